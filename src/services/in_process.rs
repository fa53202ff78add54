//! The next hop is a service of this process.

use std::task::{Context, Poll};

use http::Request;
use tower::Service;

use crate::layers::Hop;

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

impl<S, B> Service<Request<B>> for InProcess<S>
where
    S: Service<Request<B>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        if let Some(hop) = request.extensions_mut().remove::<Hop>() {
            *request.uri_mut() = hop.uri;
        }
        self.inner.call(request)
    }
}
