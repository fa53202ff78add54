//! What a cluster's API knows: where a pod is, who a token belongs to, and who may do what.
//!
//! - [`Cluster`] is the [`Resolve`](crate::layers::Resolve) of an API server: Pods and Nodes by watch.
//! - [`AccessReviews`] is an [`Authorize`](crate::layers::synthetic_authz::Authorize), by `SubjectAccessReview`.
//! - [`TokenReviews`] finds out who a bearer token belongs to, by `TokenReview`.
//!
//! All three refuse while they cannot decide: 503, with `Retry-After`. They bound what they keep, the time for an
//! answer, and the questions on their way at once (64).
//!
//! ```no_run
//! use tower_kube_streaming::{
//!     adapters::kube::{AccessReviews, Cluster},
//!     layers::synthetic_authz::SyntheticAuthzLayer,
//!     services::{ApiServer, TcpConnect, UpgradeProxy},
//!     upgrade::Sessions,
//! };
//!
//! # async {
//! let client = kube::Client::try_default().await?;
//! let (cluster, watches) = Cluster::watch(client.clone());
//! tokio::spawn(watches);
//! cluster.ready().await;
//! let may = SyntheticAuthzLayer::new(AccessReviews::new(client));
//! // A kubelet wants TLS and a client certificate: `adapters::rustls::TlsConnect` in the place of `TcpConnect`.
//! let leaf = UpgradeProxy::new(TcpConnect);
//! let gateway = ApiServer::new(Sessions::new(), may, cluster, leaf);
//! # let _ = gateway; Ok::<_, kube::Error>(()) };
//! ```
//!
//! # What the application brings
//!
//! This feature brings kube-rs without TLS. An application names `kube` itself, of the same version, with the features it
//! wants, such as `rustls-tls` and a provider (`ring` or `aws-lc-rs`), and hands over a [`kube::Client`]. It names
//! `k8s-openapi` as well, with the Kubernetes version whose types it wants (`v1_33`, or `latest`); a library alone
//! can be built with `K8S_OPENAPI_ENABLED_VERSION=1.33` in its environment. What is used of it here is the same in all versions.

mod access;
mod answers;
mod ask;
mod cluster;
mod objects;
mod store;
mod tokens;
#[cfg(feature = "client")]
mod transport;
mod watching;

pub use access::AccessReviews;
pub use cluster::Cluster;
pub use tokens::TokenReviews;
#[cfg(feature = "client")]
pub use transport::proxies;

#[cfg(test)]
mod tests;
