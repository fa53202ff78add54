//! The kubelet's stack over processes of this host, layer by layer.

use std::sync::Arc;

use tower::{Layer, ServiceBuilder};
use tower_kube_streaming::{
    FeatureGates,
    adapters::prometheus::StreamingMetrics,
    layers::{
        Metrics, MetricsLayer, Translate, TranslateLayer, Tunnel, TunnelLayer, UpgradeDetect, UpgradeDetectLayer,
    },
    port_forward::DialErrors,
    runtime::{Main, ProcessRuntime},
    services::StreamingServer,
    upgrade::{Dialect, Sessions},
};

use super::objects::Container;

/// `services::Kubelet` builds the same in one call.
pub type ProcessKubelet<A> = UpgradeDetect<Metrics<<A as Layer<Adapted>>::Service>>;
type Adapted = Translate<Tunnel<StreamingServer<ProcessRuntime>>>;

/// What a kubelet's stack is built from.
pub struct Parts {
    pub sessions: Sessions,
    pub metrics: Arc<StreamingMetrics>,
    pub gates: FeatureGates,
    pub dial_errors: DialErrors,
}

/// Serves exec, attach and port-forward of `containers`, whose main processes are started here, to whom the layer
/// `authorize` lets in.
pub fn process_kubelet<A>(containers: Vec<Container>, parts: Parts, authorize: A) -> ProcessKubelet<A>
where
    A: Layer<Adapted>,
{
    let Parts { sessions, metrics, gates, dial_errors } = parts;
    let runtime = containers.into_iter().fold(ProcessRuntime::new(), |runtime, container| {
        let main = Main { command: container.command, tty: container.tty, stdin: container.stdin };
        runtime.container(container.namespace, container.pod, container.name, main)
    });
    runtime.start();
    let metrics = MetricsLayer::new(metrics);
    ServiceBuilder::new()
        .layer(UpgradeDetectLayer::new(Dialect::Kubelet, sessions).count_refusals(metrics.clone()))
        .layer(metrics)
        .layer(authorize)
        // As in front of any container runtime: WebSocket comes in, SPDY goes on.
        .layer(TranslateLayer::new().gates(gates))
        .layer(TunnelLayer::new().gates(gates))
        .service(StreamingServer::new(runtime).dial_errors(dial_errors))
}
