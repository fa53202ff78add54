//! The stack of an API server.

use std::task::{Context, Poll};

use http::Request;
use tower::{Layer, Service, ServiceBuilder};

use crate::{
    gates::FeatureGates,
    layers::{
        FeatureRouting, FeatureRoutingLayer, MetricsLayer, Translate, TranslateLayer, Tunnel, TunnelLayer,
        UpgradeDetect, UpgradeDetectLayer,
    },
    upgrade::{Dialect, SessionLimits, Sessions},
};

/// The streaming stack of an API server over a leaf that carries streams on.
///
/// `UpgradeDetect`, the authorizing layer, `FeatureRouting`, `Translate`, `Tunnel`, leaf. A request that is no stream reaches the
/// leaf unchanged, without a permit, and gets 404 there: route it elsewhere.
#[derive(Clone, Debug)]
pub struct ApiServer<S> {
    stack: S,
}

impl ApiServer<()> {
    /// Builds the stack with the defaults of [`builder`](Self::builder).
    ///
    /// `authorize` is the layer that hands out permits, `resolve` the [`Resolve`](crate::layers::Resolve) that finds
    /// the node, and `leaf` mostly an [`UpgradeProxy`](super::UpgradeProxy).
    pub fn new<A, V, L>(sessions: Sessions, authorize: A, resolve: V, leaf: L) -> ApiServer<UpgradeDetect<A::Service>>
    where
        A: Layer<FeatureRouting<Translate<Tunnel<L>>, V>>,
        V: Clone,
    {
        Self::builder().build(sessions, authorize, resolve, leaf)
    }

    /// Builds the stack with other gates or limits.
    pub fn builder() -> ApiServerBuilder {
        ApiServerBuilder::default()
    }
}

/// Builds an [`ApiServer`]. By default its gates are those of Kubernetes 1.36.
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct ApiServerBuilder {
    gates: FeatureGates,
    limits: SessionLimits,
    assume_websocket_support: bool,
    allowed_origins: Vec<String>,
    metrics: Option<MetricsLayer>,
}

impl ApiServerBuilder {
    /// Obeys the gates of an API server. The authorizing layer has one of its own:
    /// [`SyntheticAuthzLayer::gates`](crate::layers::SyntheticAuthzLayer::gates).
    pub fn gates(mut self, gates: FeatureGates) -> Self {
        self.gates = gates;
        self
    }

    /// Holds the sessions that are translated or tunnelled here to `limits`. The leaf has its own.
    pub fn limits(mut self, limits: SessionLimits) -> Self {
        self.limits = limits;
        self
    }

    /// See [`FeatureRoutingLayer::assume_websocket_support`].
    pub fn assume_websocket_support(mut self) -> Self {
        self.assume_websocket_support = true;
        self
    }

    /// See [`UpgradeDetectLayer::allow_origins`].
    pub fn allow_origins(mut self, origins: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.allowed_origins = origins.into_iter().map(Into::into).collect();
        self
    }

    /// See [`UpgradeDetectLayer::count_refusals`]. The layer itself goes into the stack with the authorizing one.
    pub fn count_refusals(mut self, metrics: MetricsLayer) -> Self {
        self.metrics = Some(metrics);
        self
    }

    /// Builds the stack; see [`ApiServer::new`].
    pub fn build<A, V, L>(
        self,
        sessions: Sessions,
        authorize: A,
        resolve: V,
        leaf: L,
    ) -> ApiServer<UpgradeDetect<A::Service>>
    where
        A: Layer<FeatureRouting<Translate<Tunnel<L>>, V>>,
        V: Clone,
    {
        let Self { gates, limits, assume_websocket_support, allowed_origins, metrics } = self;
        let detect = UpgradeDetectLayer::new(Dialect::ApiServer, sessions);
        let routing = FeatureRoutingLayer::new(resolve).gates(gates);
        let stack = ServiceBuilder::new()
            .layer(detect.allow_origins(allowed_origins).count_refusals(metrics))
            .layer(authorize)
            .layer(if assume_websocket_support { routing.assume_websocket_support() } else { routing })
            .layer(TranslateLayer::new().limits(limits).gates(gates))
            .layer(TunnelLayer::new().limits(limits).gates(gates))
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
