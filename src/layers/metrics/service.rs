//! The layer.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use pin_project::pin_project;
use tower::{Layer, Service};

use super::{super::future, Answer, Protocol, Record, Stream, counted::Waiting, record::Recorder};
use crate::upgrade::{DialFailed, Route, Subresource, detected};

/// Layer that applies [`Metrics`]. See the [module docs](super).
#[derive(Clone)]
pub struct MetricsLayer {
    record: Arc<dyn Record>,
}

impl MetricsLayer {
    /// Tells `record`.
    pub fn new(record: impl Record) -> Self {
        Self { record: Arc::new(record) }
    }

    /// Counts what detection refused.
    pub(in crate::layers) fn refused(&self, subresource: Subresource, headers: &HeaderMap, code: StatusCode) {
        let protocol = Protocol::of(subresource, headers);
        let stream = Stream { subresource, protocol, route: Route::Unrouted };
        self.record.answered(stream, Answer::Refused(code), Duration::ZERO);
    }
}

impl<S> Layer<S> for MetricsLayer {
    type Service = Metrics<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Metrics { inner, record: Arc::clone(&self.record) }
    }
}

/// Counts every streaming request once. See the [module docs](super).
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
    type Future = ResponseFuture<future::ResponseFuture<S::Future, R>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        if let Err((dialect, refusal)) = detected(request.extensions(), "Metrics") {
            let misbuilt = future::ResponseFuture::refused(refusal.into_response(dialect));
            return ResponseFuture { inner: misbuilt, waiting: None };
        }
        let waiting = Waiting::of(&self.record, &request);
        if waiting.is_some() {
            request.extensions_mut().insert(Recorder(Arc::clone(&self.record)));
        }
        ResponseFuture { inner: future::ResponseFuture::forwarded(self.inner.call(request)), waiting }
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
        let mut result = ready!(this.inner.poll(cx));
        if let Some(waiting) = this.waiting.take() {
            waiting.answered(match &mut result {
                Ok(response) => answer_of(response),
                Err(_) => Answer::Failed,
            });
        }
        Poll::Ready(result)
    }
}

fn answer_of<R>(response: &mut Response<R>) -> Answer {
    // Taken out: to a stack around this one it says nothing about its own next hop.
    let dial_failed = response.extensions_mut().remove::<DialFailed>().is_some();
    match response.status() {
        StatusCode::SWITCHING_PROTOCOLS => Answer::Switched,
        code if dial_failed => Answer::DialFailed(code),
        code => Answer::Refused(code),
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
