//! Asks a container runtime where a stream goes, over CRI v1.
//!
//! [`CriRuntime`] is the [`Resolve`](crate::layers::Resolve) of a kubelet. It finds the sandbox or the container by the labels
//! that kubelets give them, running ones only, and asks the runtime for `Exec`, `Attach` or `PortForward`. The runtime
//! answers with a URL that is good for one request; [`UpgradeProxy`](crate::services::UpgradeProxy) dials it. No
//! proxy variable is looked at. A runtime speaks SPDY there, so the kubelet's stack translates,
//! unless this one is said to [speak WebSocket](CriRuntime::speaks_websocket).
//!
//! ```no_run
//! use tower_kube_streaming::{
//!     adapters::cri::CriRuntime,
//!     layers::danger::PermitAllLayer,
//!     services::{Kubelet, TcpConnect, UpgradeProxy},
//!     upgrade::Sessions,
//! };
//!
//! # async {
//! let runtime = CriRuntime::new("unix:///run/containerd/containerd.sock")?;
//! // Whoever gets here is let in: put your own authorization in the place of `PermitAllLayer`.
//! let leaf = UpgradeProxy::new(TcpConnect);
//! let kubelet = Kubelet::builder().build_with(Sessions::new(), PermitAllLayer, runtime, leaf);
//! # let _ = kubelet; Ok::<_, tower_kube_streaming::adapters::cri::EndpointError>(()) };
//! ```
//!
//! What the runtime refuses is worded and numbered as by the kubelet (`WriteError` in `k8s.io/cri-streaming`): gRPC's `NotFound` is 404,
//! `ResourceExhausted` 429 with `Retry-After: 60`, and all else 500.

mod locate;
mod messages;
mod rpc;

pub use locate::CriRuntime;
pub use rpc::EndpointError;

#[cfg(test)]
mod tests;
