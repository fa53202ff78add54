use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{Request, Response};
use pin_project::pin_project;
use tower::Service;

use super::{
    Authorize,
    check::{Check, Next},
};

/// Response future of [`SyntheticAuthz`](super::SyntheticAuthz). Dropped, it asks and opens nothing more.
#[pin_project]
#[must_use = "futures do nothing unless polled"]
pub struct ResponseFuture<S, A, Q>
where
    S: Service<Q>,
    A: Authorize,
{
    #[pin]
    state: State<S, A, A::Future, S::Future, Q, S::Response>,
}

#[pin_project(project = StateProj)]
enum State<S, A, D, F, Q, P> {
    Asking {
        #[pin]
        decision: D,
        authorizer: Arc<A>,
        check: Check,
        inner: S,
        request: Option<Q>,
    },
    Forwarded(#[pin] F),
    Refused(Option<P>),
}

impl<S, A, Q> ResponseFuture<S, A, Q>
where
    S: Service<Q>,
    A: Authorize,
{
    pub(super) fn asking(decision: A::Future, authorizer: Arc<A>, check: Check, inner: S, request: Q) -> Self {
        Self { state: State::Asking { decision, authorizer, check, inner, request: Some(request) } }
    }

    pub(super) fn forwarded(inner: S::Future) -> Self {
        Self { state: State::Forwarded(inner) }
    }

    pub(super) fn refused(response: S::Response) -> Self {
        Self { state: State::Refused(Some(response)) }
    }
}

impl<S, A, B, R> Future for ResponseFuture<S, A, Request<B>>
where
    S: Service<Request<B>, Response = Response<R>>,
    A: Authorize,
    R: From<Bytes>,
{
    type Output = Result<Response<R>, S::Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            match self.as_mut().project().state.project() {
                StateProj::Asking { mut decision, authorizer, check, inner, request } => {
                    match check.hear(ready!(decision.as_mut().poll(cx))) {
                        Next::Ask(asked) => decision.set(authorizer.authorize(asked)),
                        Next::Refuse(refused) => return Poll::Ready(Ok(refused.into_response())),
                        Next::Permit(permit) => {
                            let mut request = request.take().expect("forwarded once");
                            request.extensions_mut().insert(permit);
                            let inner = inner.call(request);
                            self.as_mut().project().state.set(State::Forwarded(inner));
                        }
                    }
                }
                StateProj::Forwarded(inner) => return inner.poll(cx),
                StateProj::Refused(response) => {
                    return Poll::Ready(Ok(response.take().expect("polled after it was ready")));
                }
            }
        }
    }
}

impl<S, A, Q> fmt::Debug for ResponseFuture<S, A, Q>
where
    S: Service<Q>,
    A: Authorize,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
