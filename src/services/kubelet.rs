//! The stack of a kubelet.

use std::task::{Context, Poll};

use http::Request;
use tower::{Layer, Service, ServiceBuilder};

use crate::{
    gates::FeatureGates,
    layers::{MetricsLayer, Translate, TranslateLayer, Tunnel, TunnelLayer, UpgradeDetect, UpgradeDetectLayer},
    upgrade::{Dialect, SessionLimits, Sessions},
};

/// The streaming stack of a kubelet over a leaf that runs streams here.
///
/// `UpgradeDetect`, the authorizing layer, `Translate`, `Tunnel`, leaf. A request that is no stream reaches the leaf
/// unchanged, without a permit, and gets 404 there: route it elsewhere.
#[derive(Clone, Debug)]
pub struct Kubelet<S> {
    stack: S,
}

impl Kubelet<()> {
    /// Builds the stack with the defaults of [`builder`](Self::builder).
    ///
    /// `authorize` is the layer that hands out permits, and `leaf` mostly a
    /// [`StreamingServer`](super::StreamingServer), asked for SPDY as a container runtime would be.
    pub fn new<A, L>(sessions: Sessions, authorize: A, leaf: L) -> Kubelet<UpgradeDetect<A::Service>>
    where
        A: Layer<Translate<Tunnel<L>>>,
    {
        Self::builder().build(sessions, authorize, leaf)
    }

    /// Builds the stack with other gates or limits.
    pub fn builder() -> KubeletBuilder {
        KubeletBuilder::default()
    }
}

/// Builds a [`Kubelet`]. By default its gates are those of Kubernetes 1.36.
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct KubeletBuilder {
    gates: FeatureGates,
    limits: SessionLimits,
    leaf_speaks_websocket: bool,
    metrics: Option<MetricsLayer>,
}

impl KubeletBuilder {
    /// Obeys `ExtendWebSocketsToKubelet`: off, WebSocket reaches the leaf as it came, and a runtime refuses v5 and the
    /// tunnel. What the node declares has to follow the gate.
    pub fn gates(mut self, gates: FeatureGates) -> Self {
        self.gates = gates;
        self
    }

    /// Holds the sessions that are translated or tunnelled here to `limits`. The leaf has its own.
    pub fn limits(mut self, limits: SessionLimits) -> Self {
        self.limits = limits;
        self
    }

    /// Translates and tunnels nothing, because the leaf speaks v5 and the tunnel itself
    /// ([`StreamingServer::offer_v5`](super::StreamingServer::offer_v5), `offer_tunnel`): one task fewer for each session.
    pub fn leaf_speaks_websocket(mut self) -> Self {
        self.leaf_speaks_websocket = true;
        self
    }

    /// See [`UpgradeDetectLayer::count_refusals`]. The layer itself goes into the stack with the authorizing one.
    pub fn count_refusals(mut self, metrics: MetricsLayer) -> Self {
        self.metrics = Some(metrics);
        self
    }

    /// Builds the stack; see [`Kubelet::new`].
    pub fn build<A, L>(self, sessions: Sessions, authorize: A, leaf: L) -> Kubelet<UpgradeDetect<A::Service>>
    where
        A: Layer<Translate<Tunnel<L>>>,
    {
        let Self { gates, limits, leaf_speaks_websocket, metrics } = self;
        let stack = ServiceBuilder::new()
            .layer(UpgradeDetectLayer::new(Dialect::Kubelet, sessions).count_refusals(metrics))
            .layer(authorize)
            .layer(TranslateLayer::new().limits(limits).gates(gates).off(leaf_speaks_websocket))
            .layer(TunnelLayer::new().limits(limits).gates(gates).off(leaf_speaks_websocket))
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
