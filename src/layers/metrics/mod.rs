//! Counts every streaming request once, and its session for as long as it lives.
//!
//! Stands below [`UpgradeDetect`](super::UpgradeDetect) and above all that may refuse. What it sees it tells [`Record`]:
//! how a request was answered and after how long, what the synthetic check below decided, and, for a `101`, how the session
//! ended. A session is counted from the `101` on, not from the request, and until its task has ended, whatever ends it; a
//! leaf that answers `101` and does not use the request's [`Session`](crate::upgrade::Session) has none that could be
//! watched, so its end is counted at once, as an error. Requests that are no streams pass uncounted; what detection refuses
//! comes by only with [`count_refusals`](super::UpgradeDetectLayer::count_refusals). KEP-4006, "Monitoring
//! Requirements".
//!
//! ```
//! use std::{sync::{Arc, atomic::{AtomicU64, Ordering::Relaxed}}, time::Duration};
//! use http::{Request, Response, StatusCode};
//! use http_body_util::Full;
//! use tower::{Service, ServiceBuilder, ServiceExt, service_fn};
//! use tower_kube_streaming::{
//!     layers::{MetricsLayer, Record, UpgradeDetectLayer, metrics::{Answer, Stream}},
//!     upgrade::{Dialect, Report, Sessions},
//! };
//! # type Body = Full<bytes::Bytes>;
//!
//! /// Counts the streams that were forbidden.
//! #[derive(Default)]
//! struct Forbidden(AtomicU64);
//!
//! impl Record for Forbidden {
//!     fn answered(&self, _: Stream, answer: Answer, _: Duration) {
//!         if answer == Answer::Refused(StatusCode::FORBIDDEN) {
//!             self.0.fetch_add(1, Relaxed);
//!         }
//!     }
//!
//!     fn ended(&self, _: Stream, _: &Report, _: Duration) {}
//! }
//!
//! # tokio_test::block_on(async {
//! let forbidden = Arc::new(Forbidden::default());
//! let mut service = ServiceBuilder::new()
//!     .layer(UpgradeDetectLayer::new(Dialect::ApiServer, Sessions::new()))
//!     .layer(MetricsLayer::new(Arc::clone(&forbidden)))
//!     .service(service_fn(|_: Request<()>| async {
//!         Ok::<_, std::convert::Infallible>(Response::builder().status(403).body(Body::default()).expect("a response"))
//!     }));
//! let exec = Request::get("/api/v1/namespaces/default/pods/demo/exec?command=date&stdout=true").body(())?;
//! service.ready().await?.call(exec).await?;
//! assert_eq!(forbidden.0.load(Relaxed), 1);
//! # Ok::<_, Box<dyn std::error::Error>>(()) }).unwrap();
//! ```
//!
//! [`ApiServer`](crate::services::ApiServer) and [`Kubelet`](crate::services::Kubelet) take it together with the
//! authorizing layer, as the pair `(MetricsLayer::new(record), authorize)`.

mod counted;
mod record;
mod service;

#[cfg(test)]
mod tests;

pub(crate) use record::Recorder;
pub use record::{Answer, Protocol, Record, Stream};
pub use service::{Metrics, MetricsLayer, ResponseFuture};
