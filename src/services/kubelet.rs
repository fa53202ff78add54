//! The stack of a kubelet.

use std::task::{Context, Poll};

use http::Request;
use tower::{Layer, Service, ServiceBuilder};

use crate::{
    layers::{UpgradeDetect, UpgradeDetectLayer},
    upgrade::{Dialect, Sessions},
};

/// The streaming stack of a kubelet over a leaf that runs streams here.
///
/// `UpgradeDetect`, the authorizing layer, leaf. A request that is no stream reaches the leaf unchanged, without a
/// permit, and is refused there: route it elsewhere.
#[derive(Clone, Debug)]
pub struct Kubelet<S> {
    stack: S,
}

impl Kubelet<()> {
    /// Builds the stack.
    ///
    /// `authorize` is the layer that hands out permits, and `leaf` mostly a
    /// [`StreamingServer`](super::StreamingServer).
    pub fn new<A, L>(sessions: Sessions, authorize: A, leaf: L) -> Kubelet<UpgradeDetect<A::Service>>
    where
        A: Layer<L>,
    {
        let stack = ServiceBuilder::new()
            .layer(UpgradeDetectLayer::new(Dialect::Kubelet, sessions))
            .layer(authorize)
            .service(leaf);
        Kubelet { stack }
    }
}

impl<S, B> Service<Request<B>> for Kubelet<S>
where
    S: Service<Request<B>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.stack.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        self.stack.call(request)
    }
}
