//! CRI's `RuntimeService` as a Tower service: a path names a method, and tonic reads and writes its messages.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use prost::Message;
use tonic::{Code, Request, Response, Status, body::Body, server::Grpc};
use tonic_prost::ProstCodec;
use tower::{Service, service_fn};
use tower_kube_streaming::services::{CriStreaming, StreamingServer, cri_streaming::CriRequest};

use crate::{
    messages::{
        AttachRequest, ContainerStatusRequest, ContainerStatusResponse, CreateContainerRequest, ExecRequest, Id,
        ListContainersRequest, ListContainersResponse, ListPodSandboxRequest, ListPodSandboxResponse, Nothing,
        PortForwardRequest, RunPodSandboxRequest, StreamingResponse, VersionResponse,
    },
    node::Node,
};

/// The runtime's streaming server.
pub type Streaming = CriStreaming<StreamingServer<Arc<Node>>>;

/// `runtime.v1.RuntimeService`, as much of it as Pods and their streams need.
#[derive(Clone)]
pub struct RuntimeService {
    pub node: Arc<Node>,
    pub streaming: Streaming,
}

impl Service<http::Request<Body>> for RuntimeService {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let this = self.clone();
        Box::pin(async move { Ok(this.answer(request).await) })
    }
}

impl RuntimeService {
    async fn answer(&self, request: http::Request<Body>) -> http::Response<Body> {
        let node = &*self.node;
        let path = request.uri().path().to_owned();
        let Some(method) = path.strip_prefix("/runtime.v1.RuntimeService/") else {
            return Status::unimplemented("this runtime has only runtime.v1.RuntimeService").into_http();
        };
        match method {
            "Version" => unary(request, |Nothing {}| Ok(version())).await,
            "RunPodSandbox" => {
                let run = |RunPodSandboxRequest { config }| Ok(Id { id: node.run_sandbox(config)? });
                unary(request, run).await
            }
            "ListPodSandbox" => {
                let list = |ListPodSandboxRequest { filter }| {
                    Ok(ListPodSandboxResponse { items: node.sandboxes(&filter.unwrap_or_default()) })
                };
                unary(request, list).await
            }
            "StopPodSandbox" => told(request, |id| node.stop_sandbox(id)).await,
            "RemovePodSandbox" => told(request, |id| node.remove_sandbox(id)).await,
            "CreateContainer" => {
                let create = |asked: CreateContainerRequest| Ok(Id { id: node.create_container(asked)? });
                unary(request, create).await
            }
            "StartContainer" => unary(request, |Id { id }| node.start_container(&id).map(|()| Nothing {})).await,
            "StopContainer" => told(request, |id| node.stop_container(id)).await,
            "RemoveContainer" => told(request, |id| node.remove_container(id)).await,
            "ListContainers" => {
                let list = |ListContainersRequest { filter }| {
                    Ok(ListContainersResponse { containers: node.containers(&filter.unwrap_or_default()) })
                };
                unary(request, list).await
            }
            "ContainerStatus" => unary(request, |asked| self.container_status(&asked)).await,
            "Exec" => unary(request, |asked| self.exec(asked)).await,
            "Attach" => unary(request, |asked| self.attach(asked)).await,
            "PortForward" => unary(request, |asked| self.port_forward(asked)).await,
            _ => Status::unimplemented(format!("this runtime has no {method}")).into_http(),
        }
    }

    fn container_status(&self, asked: &ContainerStatusRequest) -> Result<ContainerStatusResponse, Status> {
        let (status, tty) = self.node.container(&asked.container_id)?;
        // CRI has no field for the terminal. Kubelets that read it from a runtime, as the example does, find it here.
        let info = serde_json::json!({ "runtimeSpec": { "process": { "terminal": tty } } }).to_string();
        let info = asked.verbose.then(|| ("info".to_owned(), info)).into_iter().collect();
        Ok(ContainerStatusResponse { status: Some(status), info })
    }

    fn exec(&self, asked: ExecRequest) -> Result<StreamingResponse, Status> {
        let ExecRequest { container_id, cmd, tty, stdin, stdout, stderr } = asked;
        // Before a URL is issued: that is what is told as `NotFound`.
        self.node.check_running(&container_id)?;
        self.issue(CriRequest::Exec { container_id, cmd, tty, stdin, stdout, stderr })
    }

    fn attach(&self, asked: AttachRequest) -> Result<StreamingResponse, Status> {
        let AttachRequest { container_id, stdin, tty, stdout, stderr } = asked;
        self.node.check_running(&container_id)?;
        self.issue(CriRequest::Attach { container_id, tty, stdin, stdout, stderr })
    }

    fn port_forward(&self, asked: PortForwardRequest) -> Result<StreamingResponse, Status> {
        let PortForwardRequest { pod_sandbox_id, port } = asked;
        self.node.check_ready(&pod_sandbox_id)?;
        self.issue(CriRequest::PortForward { pod_sandbox_id, port })
    }

    fn issue(&self, request: CriRequest) -> Result<StreamingResponse, Status> {
        match self.streaming.issue(request) {
            Ok(url) => Ok(StreamingResponse { url }),
            Err(error) => Err(Status::new(Code::from(error.grpc_code()), error.to_string())),
        }
    }
}

/// One question, one answer.
async fn unary<Q, A>(
    request: http::Request<Body>,
    answer: impl Fn(Q) -> Result<A, Status> + Send,
) -> http::Response<Body>
where
    Q: Message + Default + Send + 'static,
    A: Message + Default + Send + 'static,
{
    let method = service_fn(|question: Request<Q>| -> Ready<Result<Response<A>, Status>> {
        ready(answer(question.into_inner()).map(Response::new))
    });
    Grpc::new(ProstCodec::default()).unary(method, request).await
}

/// A method that is told an id, and cannot fail: what is not there has gone already.
async fn told(request: http::Request<Body>, act: impl Fn(&str) + Send + Sync) -> http::Response<Body> {
    let answer = |Id { id }| {
        act(&id);
        Ok(Nothing {})
    };
    unary(request, answer).await
}

fn version() -> VersionResponse {
    VersionResponse {
        version: "0.1.0".to_owned(),
        runtime_name: "tower-kube-streaming-example".to_owned(),
        runtime_version: env!("CARGO_PKG_VERSION").to_owned(),
        runtime_api_version: "v1".to_owned(),
    }
}
