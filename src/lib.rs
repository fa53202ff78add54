//! Tower layers and services that speak Kubernetes streaming: `exec`, `attach`, `cp` and `port-forward`, over SPDY/3.1 and
//! WebSocket.
//!
//! It implements [KEP-4006] at the API server, at the kubelet, and in between.
//!
//! One idea: **everything is an HTTP service that may answer `101 Switching Protocols`.** A streaming request goes down a
//! stack of layers, each of which acts or forwards unchanged; the leaf carries the upgrade to the next hop, or serves it.
//!
//! ```text
//! request
//!   |
//! UpgradeDetect      what is asked, never how: subresource, pod, container, options
//! Metrics            counts each stream once, and its session for as long as it lives
//! (authorizing)      hands out the Permit, without which every leaf answers 500
//! Quota              refuses with 429 what is over the sessions that may live at once
//! FeatureRouting     resolves the next hop: its whole URL, and does it speak WebSocket itself
//! Translate          WebSocket v5 channels <-> SPDY streams, for a hop that speaks no WebSocket (exec, attach)
//! Tunnel             SPDY inside WebSocket messages <-> SPDY, likewise (port-forward)
//! leaf               UpgradeProxy: carry the upgrade to the next hop   |   StreamingServer: run it here
//! ```
//!
//! An API server, which finds a pod's kubelet and translates for it:
//!
//! ```
//! use std::sync::Arc;
//! use tower_kube_streaming::{
//!     layers::{Hop, danger::PermitAllLayer},
//!     services::{ApiServer, TcpConnect, UpgradeProxy},
//!     upgrade::{Refusal, Sessions, Target},
//! };
//!
//! let sessions = Sessions::new();
//! let kubelet_of = |asked: Arc<Target>| async move {
//!     match &*asked.pod {
//!         "demo" => Hop::kubelet("http://127.0.0.1:10250", &asked),
//!         other => Err(Refusal::not_found("pods", other)),
//!     }
//! };
//! // Whoever gets here is let in: put your own authorization in the place of `PermitAllLayer`.
//! let api_server = ApiServer::new(sessions.clone(), PermitAllLayer, kubelet_of, UpgradeProxy::new(TcpConnect));
//! # let _ = api_server;
//! ```
//!
//! A kubelet, which runs the commands:
//!
//! ```
//! # #[cfg(feature = "process")] {
//! use tower_kube_streaming::{
//!     layers::danger::PermitAllLayer,
//!     runtime::{Main, ProcessRuntime},
//!     services::{Kubelet, StreamingServer},
//!     upgrade::Sessions,
//! };
//!
//! let shell = Main { command: vec!["sh".into()], tty: true, stdin: true };
//! let runtime = ProcessRuntime::new().container("default", "demo", "shell", shell);
//! let kubelet = Kubelet::new(Sessions::new(), PermitAllLayer, StreamingServer::new(runtime));
//! # let _ = kubelet; }
//! ```
//!
//! Serve either over HTTP/1.1 with upgrades enabled, and call [`Sessions::drain`](upgrade::Sessions::drain) when you stop:
//! a session outlives its request. `examples/apiserver.rs` and `examples/kubelet.rs` are whole programs.
//!
//! # Features
//!
//! None is on by default, and none turns a check off.
//!
//! - `client`: runs commands as kubectl does, over WebSocket (on fastwebsockets) and over SPDY.
//! - `process`: [`runtime::ProcessRuntime`](runtime), which runs commands of this host.
//! - `rustls`: [`adapters::rustls`](adapters), which dials the next hop over TLS.
//! - `cri`: [`adapters::cri`](adapters), which asks a container runtime where a stream goes. Brings tonic.
//! - `kube`: [`adapters::kube`](adapters), which asks a cluster where pods are and who may do what. Brings kube-rs.
//! - `prometheus`: [`adapters::prometheus`](adapters), which counts streams under Kubernetes' names and renders them.
//! - `full`: all of them.
//!
//! [KEP-4006]: https://github.com/kubernetes/enhancements/tree/master/keps/sig-api-machinery/4006-transition-spdy-to-websockets

pub mod adapters;
#[cfg(feature = "client")]
pub mod client;
mod error;
mod gates;
pub mod layers;
pub mod port_forward;
pub mod remote_command;
pub mod runtime;
pub mod services;
pub mod spdy;
mod status;
pub mod upgrade;
pub mod websocket;

pub use error::{BoxError, Error, Initiator};
pub use gates::{FeatureGates, Gate, GatesError, Maturity};
