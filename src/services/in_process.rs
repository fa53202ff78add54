//! The next hop is a service of this process.

use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use tower::Service;

use super::upgrade_proxy::{strip_credentials, upgrade_required};
use crate::{
    layers::{Hop, upgrade_detect::ResponseFuture},
    upgrade::{Refusal, can_switch, permitted},
};

/// Hands a stream to a stack in this process, as if it had been dialled: the [`Hop`]'s URL becomes the request's, and
/// the caller's credentials stay here, as with [`UpgradeProxy`](super::UpgradeProxy).
///
/// The upgrade needs no socket: the inner stack uses the client's side if the request still has it, else returns its
/// own as one end of a pipe. Nothing but permitted streams goes there. Their [`Caller`](crate::upgrade::Caller) goes along:
/// a stack there that authorizes asks about the user, where a kubelet that is dialled sees the API server.
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
        // What is no stream to the stack above may be one to the stack below, and nobody has authorized it.
        let dialect = match permitted(&parts.extensions, "InProcess") {
            Ok(target) => target.dialect,
            Err((dialect, refusal)) => return ResponseFuture::refused(refusal.into_response(dialect)),
        };
        if !can_switch(&parts) {
            return ResponseFuture::refused(upgrade_required(dialect).into_response(dialect));
        }
        let Some(hop) = parts.extensions.remove::<Hop>() else {
            let refusal = Refusal::missing_layer("FeatureRoutingLayer", "InProcess");
            return ResponseFuture::refused(refusal.into_response(dialect));
        };
        parts.uri = hop.uri;
        strip_credentials(&mut parts.headers);
        ResponseFuture::forwarded(self.inner.call(Request::from_parts(parts, body)))
    }
}
