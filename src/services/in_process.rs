//! The next hop is a service of this process.

use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use tower::Service;

use super::upgrade_proxy::upgrade_required;
use crate::{
    layers::{Hop, upgrade_detect::ResponseFuture},
    upgrade::{Permit, can_switch},
};

/// Hands a stream to a stack in this process, as if it had been dialled: the [`Hop`]'s URL becomes the request's.
///
/// The upgrade needs no socket: the inner stack uses the client's side if the request still has it, else returns its
/// own as one end of a pipe.
#[derive(Clone, Debug)]
pub struct InProcess<S> {
    inner: S,
}

impl<S> InProcess<S> {
    /// The next hop is `inner`, mostly a [`Kubelet`](super::Kubelet).
    pub fn new(inner: S) -> Self {
        Self { inner }
    }
}

impl<S, B, R> Service<Request<B>> for InProcess<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    R: From<Bytes>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future, R>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (mut parts, body) = request.into_parts();
        if let Some(Permit(target)) = parts.extensions.get()
            && !can_switch(&parts)
        {
            let dialect = target.dialect;
            return ResponseFuture::refused(upgrade_required(dialect).into_response(dialect));
        }
        if let Some(hop) = parts.extensions.remove::<Hop>() {
            parts.uri = hop.uri;
        }
        ResponseFuture::forwarded(self.inner.call(Request::from_parts(parts, body)))
    }
}
