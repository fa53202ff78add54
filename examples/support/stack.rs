//! The kubelet's stack over processes of this host, layer by layer.

use tower::{Layer, ServiceBuilder};
use tower_kube_streaming::{
    layers::{UpgradeDetect, UpgradeDetectLayer},
    port_forward::DialErrors,
    runtime::{Main, ProcessRuntime},
    services::StreamingServer,
    upgrade::{Dialect, Sessions},
};

use super::objects::Container;

/// `services::Kubelet` builds the same in one call.
pub type ProcessKubelet<A> = UpgradeDetect<<A as Layer<Leaf>>::Service>;
type Leaf = StreamingServer<ProcessRuntime>;

/// Serves exec, attach and port-forward of `containers`, whose main processes are started here, to whom the layer
/// `authorize` lets in.
pub fn process_kubelet<A>(
    containers: Vec<Container>,
    sessions: Sessions,
    dial_errors: DialErrors,
    authorize: A,
) -> ProcessKubelet<A>
where
    A: Layer<Leaf>,
{
    let runtime = containers.into_iter().fold(ProcessRuntime::new(), |runtime, container| {
        let main = Main { command: container.command, tty: container.tty, stdin: container.stdin };
        runtime.container(container.namespace, container.pod, container.name, main)
    });
    runtime.start();
    ServiceBuilder::new()
        .layer(UpgradeDetectLayer::new(Dialect::Kubelet, sessions))
        .layer(authorize)
        .service(StreamingServer::new(runtime).dial_errors(dial_errors))
}
