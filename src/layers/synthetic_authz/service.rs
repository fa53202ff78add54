use std::{
    fmt, mem,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Request, Response};
use tower::Service;

use super::{Authorize, ResponseFuture, SyntheticAuthzLayer, check::Check};
use crate::upgrade::{Permit, StreamRequest};

/// Asks whether the caller may open the stream. See the [module docs](super).
pub struct SyntheticAuthz<S, A> {
    pub(super) inner: S,
    pub(super) layer: SyntheticAuthzLayer<A>,
}

impl<S, A, B, R> Service<Request<B>> for SyntheticAuthz<S, A>
where
    S: Service<Request<B>, Response = Response<R>> + Clone,
    A: Authorize,
    R: From<Bytes>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S, A, Request<B>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        // Whatever came down with the request: below here a permit is ours.
        request.extensions_mut().remove::<Permit>();
        let Some(StreamRequest(target)) = request.extensions().get::<StreamRequest>() else {
            return ResponseFuture::forwarded(self.inner.call(request));
        };
        let target = Arc::clone(target);
        let dialect = target.dialect;
        let (check, verb) = match Check::begin(&self.layer, &mut request, target) {
            Ok(begun) => begun,
            Err(refusal) => return ResponseFuture::refused(refusal.into_response(dialect)),
        };
        let Some(verb) = verb else {
            request.extensions_mut().insert(check.permit());
            return ResponseFuture::forwarded(self.inner.call(request));
        };
        let decision = self.layer.authorizer.authorize(check.ask(verb));
        // `poll_ready` reserved `self.inner`; a fresh clone is not ready. Move the ready one.
        let clone = self.inner.clone();
        let inner = mem::replace(&mut self.inner, clone);
        ResponseFuture::asking(decision, Arc::clone(&self.layer.authorizer), check, inner, request)
    }
}

// Not derived: the authorizer is shared, not cloned.
impl<S: Clone, A> Clone for SyntheticAuthz<S, A> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), layer: self.layer.clone() }
    }
}

impl<S: fmt::Debug, A> fmt::Debug for SyntheticAuthz<S, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SyntheticAuthz").field("inner", &self.inner).field("layer", &self.layer).finish()
    }
}
