//! From a target to the URL at which the runtime streams it.

use std::{fmt, future::Future, pin::Pin, sync::Arc, time::Duration};

use http::{StatusCode, Uri};
use serde_json::Value;

use super::{
    messages::{
        AttachRequest, Container, ContainerFilter, ContainerStatusRequest, ContainerStatusResponse, ExecRequest,
        Labels, ListContainersRequest, ListContainersResponse, ListPodSandboxRequest, ListPodSandboxResponse,
        PodSandbox, PodSandboxFilter, PortForwardRequest, READY, RUNNING, StateValue, StreamingResponse,
    },
    rpc::{Client, EndpointError},
};
use crate::{
    layers::{Hop, Resolve},
    upgrade::{Refusal, Subresource, Target},
};

/// Longest URL of a runtime, in bytes. Theirs are shorter than 100.
const URL: usize = 8 << 10;

/// A container runtime that speaks CRI v1, as what a kubelet [asks](Resolve) for the next hop. See the [module docs](super).
///
/// It connects when it is asked first, and again whenever the connection was lost: a runtime may restart. Clones share
/// the connection.
#[derive(Clone)]
pub struct CriRuntime {
    client: Client,
    speaks_websocket: bool,
}

impl CriRuntime {
    /// The runtime at `unix:///absolute/path`. It needs not be there yet.
    ///
    /// Must be called in the context of a tokio runtime.
    ///
    /// # Errors
    ///
    /// For anything that is no such path.
    pub fn new(endpoint: &str) -> Result<Self, EndpointError> {
        Ok(Self { client: Client::new(endpoint)?, speaks_websocket: false })
    }

    /// Longest wait for each answer; 2 minutes by default, as in kubelets. A stream takes up to three.
    #[must_use]
    pub fn request_timeout(mut self, timeout: Duration) -> Self {
        self.client.timeout = timeout;
        self
    }

    /// Says that this runtime serves `v5.channel.k8s.io` and the port-forward tunnel itself, as one does that
    /// [offers them](crate::services::StreamingServer::offer_v5) behind
    /// [`CriStreaming`](crate::services::CriStreaming). WebSocket then goes to it as it came, and nothing is translated. By
    /// default it does not: CRI has no field that tells, and no packaged runtime serves them.
    #[must_use]
    pub fn speaks_websocket(mut self, yes: bool) -> Self {
        self.speaks_websocket = yes;
        self
    }

    async fn hop(self, target: Arc<Target>) -> Result<Hop, Refusal> {
        let StreamingResponse { url } = match target.subresource {
            Subresource::Exec => self.exec(&target).await?,
            Subresource::Attach => self.attach(&target).await?,
            Subresource::PortForward => self.port_forward(&target).await?,
        };
        let hop = |uri| Hop::new(uri).speaks_websocket(self.speaks_websocket);
        parse(&url).map(hop).ok_or_else(|| {
            // The URL is a credential: it is not told.
            Refusal::internal("the container runtime's URL is none of http or https")
        })
    }

    async fn exec(&self, target: &Target) -> Result<StreamingResponse, Refusal> {
        let options = &target.options;
        let request = ExecRequest {
            container_id: self.container(target).await?,
            cmd: options.command.clone(),
            tty: options.tty,
            stdin: options.stdin,
            stdout: options.stdout,
            stderr: options.stderr,
        };
        self.client.call("/runtime.v1.RuntimeService/Exec", request).await
    }

    async fn attach(&self, target: &Target) -> Result<StreamingResponse, Refusal> {
        let container_id = self.container(target).await?;
        let request = ContainerStatusRequest { container_id: container_id.clone(), verbose: true };
        let status: ContainerStatusResponse =
            self.client.call("/runtime.v1.RuntimeService/ContainerStatus", request).await?;
        let options = &target.options;
        let request = AttachRequest {
            container_id,
            // The container has a terminal or has none, whatever the request says.
            tty: has_terminal(&status).unwrap_or(options.tty),
            stdin: options.stdin,
            stdout: options.stdout,
            stderr: options.stderr,
        };
        self.client.call("/runtime.v1.RuntimeService/Attach", request).await
    }

    async fn port_forward(&self, target: &Target) -> Result<StreamingResponse, Refusal> {
        let request = PortForwardRequest {
            pod_sandbox_id: self.sandbox(target).await?.ok_or_else(no_pod)?,
            port: target.options.ports.iter().copied().map(i32::from).collect(),
        };
        self.client.call("/runtime.v1.RuntimeService/PortForward", request).await
    }

    /// The running container that is meant.
    async fn container(&self, target: &Target) -> Result<String, Refusal> {
        let name = target.container.as_deref().unwrap_or_default();
        let mut labels = labels_of_pod(target);
        labels.insert("io.kubernetes.container.name".to_owned(), name.to_owned());
        let state = Some(StateValue { state: RUNNING });
        let filter = ContainerFilter { state, label_selector: labels.clone() };
        let request = ListContainersRequest { filter: Some(filter) };
        let ListContainersResponse { containers } =
            self.client.call("/runtime.v1.RuntimeService/ListContainers", request).await?;
        let meant = |found: &Container| found.state == RUNNING && has(&found.labels, &labels);
        let running = containers.into_iter().filter(meant);
        // Of two, one is of a pod that is being replaced.
        if let Some(Container { id, .. }) = running.max_by_key(|container| container.created_at) {
            return Ok(id);
        }
        // Upstream's words, which differ.
        Err(match (self.sandbox(target).await?, target.subresource) {
            (None, _) => no_pod(),
            (_, Subresource::Attach) => {
                Refusal::internal(format!("container {name} not found in pod {}_{}", target.pod, target.namespace))
            }
            _ => Refusal::internal(format!("container not found ({name:?})")),
        })
    }

    /// The sandbox of the pod, if it is ready.
    async fn sandbox(&self, target: &Target) -> Result<Option<String>, Refusal> {
        let labels = labels_of_pod(target);
        let state = Some(StateValue { state: READY });
        let filter = PodSandboxFilter { state, label_selector: labels.clone() };
        let request = ListPodSandboxRequest { filter: Some(filter) };
        let ListPodSandboxResponse { items } =
            self.client.call("/runtime.v1.RuntimeService/ListPodSandbox", request).await?;
        let ready = items.into_iter().filter(|found| found.state == READY && has(&found.labels, &labels));
        Ok(ready.max_by_key(|sandbox| sandbox.created_at).map(|PodSandbox { id, .. }| id))
    }
}

impl Resolve for CriRuntime {
    type Future = Pin<Box<dyn Future<Output = Result<Hop, Refusal>> + Send>>;

    fn resolve(&self, target: Arc<Target>) -> Self::Future {
        Box::pin(self.clone().hop(target))
    }
}

impl fmt::Debug for CriRuntime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CriRuntime")
            .field("request_timeout", &self.client.timeout)
            .field("speaks_websocket", &self.speaks_websocket)
            .finish_non_exhaustive()
    }
}

/// What kubelets label sandboxes and containers with (`pkg/kubelet/types/labels.go`).
fn labels_of_pod(target: &Target) -> Labels {
    let mut labels = Labels::from([
        ("io.kubernetes.pod.name".to_owned(), target.pod.clone()),
        ("io.kubernetes.pod.namespace".to_owned(), target.namespace.clone()),
    ]);
    labels.extend(target.uid.clone().map(|uid| ("io.kubernetes.pod.uid".to_owned(), uid)));
    labels
}

/// Whether it is what was asked for. A runtime that overlooks the filter must not lead into another pod than was authorized.
fn has(found: &Labels, wanted: &Labels) -> bool {
    wanted.iter().all(|(label, value)| found.get(label) == Some(value))
}

fn no_pod() -> Refusal {
    Refusal::new(StatusCode::NOT_FOUND, "NotFound", "pod does not exist")
}

/// Whether the container has a terminal, as far as the runtime tells. CRI has no field for it: containerd and CRI-O put
/// the OCI specification into the verbose part of the status, containerd also the kubelet's configuration.
pub(super) fn has_terminal(status: &ContainerStatusResponse) -> Option<bool> {
    let info: Value = serde_json::from_str(status.info.get("info")?).ok()?;
    let spec = info.get("runtimeSpec").and_then(|spec| spec.get("process"));
    if let Some(process) = spec {
        // OCI leaves out what is false.
        return Some(process.get("terminal").and_then(Value::as_bool).unwrap_or(false));
    }
    info.get("config").map(|config| config.get("tty").and_then(Value::as_bool).unwrap_or(false))
}

/// The runtime's URL. One without a scheme is `http`, as upstream's `normalizeLocation` has it, `//` in front or not.
pub(super) fn parse(url: &str) -> Option<Uri> {
    if url.len() > URL {
        return None;
    }
    let url = match url.split_once("//") {
        Some(("", rest)) => format!("http://{rest}"),
        Some((scheme, _)) if scheme.ends_with(':') => url.to_owned(),
        _ => format!("http://{url}"),
    };
    let uri: Uri = url.parse().ok()?;
    let http = matches!(uri.scheme_str(), Some("http" | "https"));
    (http && uri.host().is_some_and(|host| !host.is_empty())).then_some(uri)
}
