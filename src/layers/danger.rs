//! Lets everybody in.
//!
//! For tests, and for a stack whose every request was authorized before it came here.

use std::task::{Context, Poll};

use http::Request;
use tower::{Layer, Service};

use crate::upgrade::{Permit, StreamRequest};

/// Layer that applies [`PermitAll`].
#[derive(Clone, Copy, Debug, Default)]
pub struct PermitAllLayer;

impl<S> Layer<S> for PermitAllLayer {
    type Service = PermitAll<S>;

    fn layer(&self, inner: S) -> Self::Service {
        PermitAll { inner }
    }
}

/// Permits whatever is asked for, without asking anybody.
#[derive(Clone, Debug)]
pub struct PermitAll<S> {
    inner: S,
}

impl<S, B> Service<Request<B>> for PermitAll<S>
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
        if let Some(asked) = request.extensions().get::<StreamRequest>() {
            let permit = Permit(asked.target().clone());
            request.extensions_mut().insert(permit);
        }
        self.inner.call(request)
    }
}
