//! The response future of a layer that answers itself, or lets the inner service answer.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use http::Response;
use pin_project::pin_project;
use tracing::Span;

/// Resolves to the inner service's response, or to a refusal.
#[pin_project]
#[must_use = "futures do nothing unless polled"]
pub struct ResponseFuture<F, R>(#[pin] State<F, R>);

#[pin_project(project = StateProj)]
enum State<F, R> {
    Forwarded {
        #[pin]
        inner: F,
        span: Span,
    },
    Refused(Option<Response<R>>),
}

impl<F, R> ResponseFuture<F, R> {
    pub(crate) fn forwarded(inner: F) -> Self {
        Self::forwarded_in(Span::none(), inner)
    }

    /// Polls `inner` in `span`.
    pub(crate) fn forwarded_in(span: Span, inner: F) -> Self {
        Self(State::Forwarded { inner, span })
    }

    pub(crate) fn refused(response: Response<R>) -> Self {
        Self(State::Refused(Some(response)))
    }
}

impl<F, R, E> Future for ResponseFuture<F, R>
where
    F: Future<Output = Result<Response<R>, E>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().0.project() {
            StateProj::Forwarded { inner, span } => span.in_scope(|| inner.poll(cx)),
            StateProj::Refused(response) => Poll::Ready(Ok(response.take().expect("polled after it was ready"))),
        }
    }
}

impl<F, R> fmt::Debug for ResponseFuture<F, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
