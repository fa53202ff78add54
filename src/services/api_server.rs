//! The stack of an API server.

use std::task::{Context, Poll};

use http::Request;
use tower::{Layer, Service, ServiceBuilder};

use crate::{
    layers::{
        FeatureRouting, FeatureRoutingLayer, Translate, TranslateLayer, Tunnel, TunnelLayer, UpgradeDetect,
        UpgradeDetectLayer,
    },
    upgrade::{Dialect, Sessions},
};

/// The streaming stack of an API server over a leaf that carries streams on.
///
/// `UpgradeDetect`, the authorizing layer, `FeatureRouting`, `Translate`, `Tunnel`, leaf. A request that is no stream reaches the
/// leaf unchanged, without a permit, and is refused there: route it elsewhere.
#[derive(Clone, Debug)]
pub struct ApiServer<S> {
    stack: S,
}

impl ApiServer<()> {
    /// Builds the stack.
    ///
    /// `authorize` is the layer that hands out permits, `resolve` the [`Resolve`](crate::layers::Resolve) that finds
    /// the node, and `leaf` mostly an [`UpgradeProxy`](super::UpgradeProxy).
    pub fn new<A, V, L>(sessions: Sessions, authorize: A, resolve: V, leaf: L) -> ApiServer<UpgradeDetect<A::Service>>
    where
        A: Layer<FeatureRouting<Translate<Tunnel<L>>, V>>,
        V: Clone,
    {
        let stack = ServiceBuilder::new()
            .layer(UpgradeDetectLayer::new(Dialect::ApiServer, sessions))
            .layer(authorize)
            .layer(FeatureRoutingLayer::new(resolve))
            .layer(TranslateLayer::new())
            .layer(TunnelLayer::new())
            .service(leaf);
        ApiServer { stack }
    }
}

impl<S, B> Service<Request<B>> for ApiServer<S>
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
