//! Counts every streaming request once, and its session for as long as it lives.
//!
//! Stands below [`UpgradeDetect`](super::UpgradeDetect) and above all that may refuse. What it sees it tells [`Record`]:
//! how a request was answered and after how long, and, for a `101`, how the session ended. A session is counted from the
//! `101` on, not from the request, and until its task has ended, whatever ends it; a leaf that answers `101` and does not
//! use the request's [`Session`] has none that could be watched, so its end is counted at once, as an error. Requests that
//! are no streams pass uncounted. KEP-4006, "Monitoring Requirements".
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

use std::{
    fmt,
    future::Future,
    mem,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use pin_project::pin_project;
use tokio::time::Instant;
use tower::{Layer, Service};

use crate::{
    port_forward::tunnel,
    remote_command::Version,
    upgrade::{End, Report, Route, Session, StreamRequest, Subresource, detected, is_websocket, upgrade_names},
    websocket::handshake,
};

#[cfg(test)]
mod tests;

/// Counts streams. [`adapters::prometheus`](crate::adapters) has one.
///
/// Both calls come from the data path's threads, and `ended` also while a session is dropped: they must not block and
/// must not panic.
pub trait Record: Send + Sync + 'static {
    /// A streaming request was answered, `latency` after it came. Once for each, also where nobody waited for the answer.
    fn answered(&self, stream: Stream, answer: Answer, latency: Duration);

    /// A session has ended, `lasted` after its `101`. Once for each [`Answer::Switched`], and after that.
    ///
    /// Label nothing with [`Report::cause`] or the report's protocols: they are free text.
    fn ended(&self, stream: Stream, report: &Report, lasted: Duration);
}

impl<T: Record + ?Sized> Record for Arc<T> {
    fn answered(&self, stream: Stream, answer: Answer, latency: Duration) {
        (**self).answered(stream, answer, latency);
    }

    fn ended(&self, stream: Stream, report: &Report, lasted: Duration) {
        (**self).ended(stream, report, lasted);
    }
}

/// What is counted of one stream: enums, nothing that a caller can name, so the number of series is bounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Stream {
    /// What is done with the pod.
    pub subresource: Subresource,
    /// What the client asked to speak.
    pub protocol: Protocol,
    /// Which way it went below.
    pub route: Route,
}

/// What the client of a streaming request asks to speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Protocol {
    /// WebSocket, and offers `v5.channel.k8s.io`: exec and attach.
    V5,
    /// WebSocket, and offers SPDY in a tunnel: port-forward.
    Tunnel,
    /// WebSocket, and offers neither of the two.
    WebSocket,
    /// SPDY/3.1.
    Spdy,
    /// Nothing that is known here, or no upgrade at all.
    Other,
}

impl Protocol {
    fn of(subresource: Subresource, headers: &HeaderMap) -> Self {
        if is_websocket(headers) {
            let v5 = || handshake::offers_in_first_line(headers).any(|offer| offer == Version::V5.name());
            return match subresource {
                Subresource::Exec | Subresource::Attach if v5() => Self::V5,
                Subresource::PortForward if tunnel::is_offered(headers) => Self::Tunnel,
                _ => Self::WebSocket,
            };
        }
        if upgrade_names(headers, "spdy/3.1") { Self::Spdy } else { Self::Other }
    }
}

/// How a streaming request was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Answer {
    /// `101`: a session begins.
    Switched,
    /// Another status, of whichever layer or hop.
    Refused(StatusCode),
    /// The inner service failed, without a response.
    Failed,
    /// The client went away before it was answered, or somebody gave up waiting.
    Abandoned,
}

/// Layer that applies [`Metrics`]. See the [module docs](self).
#[derive(Clone)]
pub struct MetricsLayer {
    record: Arc<dyn Record>,
}

impl MetricsLayer {
    /// Tells `record`.
    pub fn new(record: impl Record) -> Self {
        Self { record: Arc::new(record) }
    }
}

impl<S> Layer<S> for MetricsLayer {
    type Service = Metrics<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Metrics { inner, record: Arc::clone(&self.record) }
    }
}

/// Counts every streaming request once. See the [module docs](self).
#[derive(Clone)]
pub struct Metrics<S> {
    inner: S,
    record: Arc<dyn Record>,
}

impl<S, B, R> Service<Request<B>> for Metrics<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    R: From<Bytes>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = ResponseFuture<super::future::ResponseFuture<S::Future, R>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        if let Err((dialect, refusal)) = detected(request.extensions(), "Metrics") {
            let misbuilt = super::future::ResponseFuture::refused(refusal.into_response(dialect));
            return ResponseFuture { inner: misbuilt, waiting: None };
        }
        let waiting = Waiting::of(&self.record, &request);
        ResponseFuture { inner: super::future::ResponseFuture::forwarded(self.inner.call(request)), waiting }
    }
}

/// Response future of [`Metrics`].
#[pin_project]
#[must_use = "futures do nothing unless polled"]
pub struct ResponseFuture<F> {
    #[pin]
    inner: F,
    /// `None`: no stream, or answered.
    waiting: Option<Waiting>,
}

impl<F, R, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<Response<R>, E>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let result = ready!(this.inner.poll(cx));
        if let Some(waiting) = this.waiting.take() {
            waiting.answered(match &result {
                Ok(response) if response.status() == StatusCode::SWITCHING_PROTOCOLS => Answer::Switched,
                Ok(response) => Answer::Refused(response.status()),
                Err(_) => Answer::Failed,
            });
        }
        Poll::Ready(result)
    }
}

/// A request that waits for its answer. Dropped before that, it was abandoned.
struct Waiting {
    session: Session,
    counted: Arc<Counted>,
}

impl Waiting {
    fn of<B>(record: &Arc<dyn Record>, request: &Request<B>) -> Option<Self> {
        let subresource = request.extensions().get::<StreamRequest>()?.target().subresource;
        let session = request.extensions().get::<Session>()?.clone();
        let counted = Arc::new(Counted {
            record: Arc::clone(record),
            subresource,
            protocol: Protocol::of(subresource, request.headers()),
            asked: Instant::now(),
            phase: Mutex::new(Phase::Asked),
        });
        // Told before the inner service is asked: in one process a session can end before its `101` comes by here.
        let ending = Ending(Arc::clone(&counted));
        session.on_end(move |report| ending.0.ended(report));
        Some(Self { session, counted })
    }

    fn answered(&self, answer: Answer) {
        self.counted.answered(self.session.route(), answer);
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        // Does nothing once it was answered.
        self.answered(Answer::Abandoned);
    }
}

/// Rides in the session, so that its end is counted also where nobody reports it.
struct Ending(Arc<Counted>);

impl Drop for Ending {
    fn drop(&mut self) {
        // Does nothing once the end was reported.
        self.0.ended(&Report::new(End::Error, "dropped"));
    }
}

/// One request and the session that comes of it, each counted once.
struct Counted {
    record: Arc<dyn Record>,
    subresource: Subresource,
    protocol: Protocol,
    asked: Instant,
    phase: Mutex<Phase>,
}

enum Phase {
    /// Not answered yet.
    Asked,
    /// Not answered yet, and the session has ended.
    Over(Report),
    /// The session lives since then.
    Open(Stream, Instant),
    /// All is counted.
    Done,
}

impl Counted {
    fn answered(&self, route: Route, answer: Answer) {
        // The lock is held while the record is told: an end must not overtake its beginning.
        let mut phase = self.lock();
        let over = match mem::replace(&mut *phase, Phase::Done) {
            Phase::Asked => None,
            Phase::Over(report) => Some(report),
            counted => return *phase = counted,
        };
        let now = Instant::now();
        let stream = Stream { subresource: self.subresource, protocol: self.protocol, route };
        self.record.answered(stream, answer, now.saturating_duration_since(self.asked));
        match over {
            _ if answer != Answer::Switched => {}
            None => *phase = Phase::Open(stream, now),
            Some(report) => self.record.ended(stream, &report, Duration::ZERO),
        }
    }

    fn ended(&self, report: &Report) {
        let mut phase = self.lock();
        match mem::replace(&mut *phase, Phase::Done) {
            Phase::Asked => *phase = Phase::Over(report.clone()),
            Phase::Open(stream, since) => self.record.ended(stream, report, since.elapsed()),
            counted => *phase = counted,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Phase> {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for MetricsLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MetricsLayer").finish_non_exhaustive()
    }
}

impl<S: fmt::Debug> fmt::Debug for Metrics<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl<F> fmt::Debug for ResponseFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
