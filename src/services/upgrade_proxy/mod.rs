//! Carries an upgrade to the next hop, whatever protocol it is.
//!
//! A leaf: it dials the [`Hop`](crate::layers::Hop) of a permitted request ([`Connect`]), sends the request there, and relays the answer.
//! A `101` joins the two connections, or hands the next hop's side to the layer above if that took the client's. Any
//! other answer is final: the connection is closed (CVE-2018-1002105), redirects are refused (CVE-2020-8559), and
//! what the hop refused keeps its status and body.
//!
//! The caller's credentials stay here: `Authorization`, `Proxy-Authorization`, `Cookie`, `Impersonate-*`, `X-Remote-*` and
//! bearer subprotocols are taken out. A W3C `traceparent` is passed on as it came, with its `tracestate`, and dropped when it is
//! malformed. Half-closes are carried, and what one side sent before it ended still arrives.
//!
//! Over SPDY `exec` and `attach` the proxy also watches for the status: where the hop ends without one, the client is
//! sent a failure instead of a silence that it would take for success (see `remote_command::passthrough`).
//!
//! ```
//! use http::{Extensions, Request, Uri, header};
//! use tokio::io::{AsyncReadExt, AsyncWriteExt};
//! use tower::{ServiceBuilder, ServiceExt};
//! use tower_kube_streaming::{
//!     layers::{FeatureRoutingLayer, Hop, UpgradeDetectLayer, danger::PermitAllLayer},
//!     services::UpgradeProxy,
//!     upgrade::{Dialect, Sessions, accept},
//! };
//!
//! # tokio_test::block_on(async {
//! // A kubelet that refuses everybody. `TcpConnect` dials real ones.
//! let dial = |_: Uri| async {
//!     let (near, mut kubelet) = tokio::io::duplex(4096);
//!     tokio::spawn(async move {
//!         let _ = kubelet.read(&mut [0; 4096]).await;
//!         let _ = kubelet.write_all(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n").await;
//!     });
//!     Ok(near)
//! };
//! let service = ServiceBuilder::new()
//!     .layer(UpgradeDetectLayer::new(Dialect::ApiServer, Sessions::new()))
//!     .layer(PermitAllLayer)
//!     .layer(FeatureRoutingLayer::new(|asked: std::sync::Arc<_>| async move {
//!         Hop::kubelet("http://127.0.0.1:10250", &asked)
//!     }))
//!     .service(UpgradeProxy::new(dial));
//! let mut request = Request::post("/api/v1/namespaces/default/pods/demo/attach?container=app&stdout=true")
//!     .header(header::CONNECTION, "Upgrade")
//!     .header(header::UPGRADE, "SPDY/3.1")
//!     .body(())?;
//! // The client's side, which a server has put into the request.
//! let _client = accept(&mut Extensions::new(), request.extensions_mut());
//! assert_eq!(service.oneshot(request).await?.status(), 403);
//! # Ok::<_, Box<dyn std::error::Error>>(()) }).unwrap();
//! ```

mod connect;
mod handshake;
mod service;

#[cfg(feature = "rustls")]
pub(crate) use connect::dial;
pub use connect::{Connect, TcpConnect};
pub(super) use handshake::strip_credentials;
pub use service::UpgradeProxy;
pub(super) use service::upgrade_required;

#[cfg(test)]
mod tests;
