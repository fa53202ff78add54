//! The kubelet's stack over processes of this host, layer by layer.

use tower::ServiceBuilder;
use tower_kube_streaming::{
    layers::{
        UpgradeDetect, UpgradeDetectLayer,
        danger::{PermitAll, PermitAllLayer},
    },
    port_forward::DialErrors,
    runtime::{Main, ProcessRuntime},
    services::StreamingServer,
    upgrade::{Dialect, Sessions},
};

use super::objects::Container;

/// `services::Kubelet` builds the same in one call.
pub type ProcessKubelet = UpgradeDetect<PermitAll<StreamingServer<ProcessRuntime>>>;

/// Serves exec, attach and port-forward of `containers`, whose main processes are started here.
pub fn process_kubelet(containers: Vec<Container>, sessions: Sessions, dial_errors: DialErrors) -> ProcessKubelet {
    let runtime = containers.into_iter().fold(ProcessRuntime::new(), |runtime, container| {
        let main = Main { command: container.command, tty: container.tty, stdin: container.stdin };
        runtime.container(container.namespace, container.pod, container.name, main)
    });
    runtime.start();
    ServiceBuilder::new()
        .layer(UpgradeDetectLayer::new(Dialect::Kubelet, sessions))
        // Who comes here has been let in: by its certificate at the kubelet, or by the API server's stack, which is in
        // front of this one where both are one process.
        .layer(PermitAllLayer)
        .service(StreamingServer::new(runtime).dial_errors(dial_errors))
}
