//! The example `cri_runtime` as a process, and a kubelet's calls to it.

use std::path::PathBuf;

use http::{Response, uri::PathAndQuery};
use prost::Message;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tonic::{Request, Status, client::Grpc, transport::Channel};
use tonic_prost::ProstCodec;

use crate::{
    ensure,
    messages::{
        ContainerConfig, ContainerMetadata, CreateContainerRequest, ExecRequest, Id, Nothing, PodSandboxConfig,
        PodSandboxMetadata, RunPodSandboxRequest, StreamingResponse,
    },
    support::{Outcome, Scratch, lab::example, process::Process},
};

/// A running runtime.
pub struct Toy {
    pub process: Process,
    pub endpoint: String,
    channel: Channel,
    /// The folder of its socket.
    _scratch: Scratch,
}

impl Toy {
    pub async fn start(flags: &[&str]) -> Outcome<Self> {
        let scratch = Scratch::new("toy");
        let endpoint = format!("unix://{}", socket(&scratch)?.display());
        let mut command = example("cri_runtime");
        let process = Process::start("cri_runtime", command.arg("--listen").arg(&endpoint).args(flags))?;
        process.ready().await?;
        let channel = tonic::transport::Endpoint::from_shared(endpoint.clone()).map_err(|error| error.to_string())?;
        Ok(Self { process, endpoint, channel: channel.connect_lazy(), _scratch: scratch })
    }

    /// The flag of a kubelet that streams to it.
    pub fn flag(&self) -> String {
        format!("--container-runtime-endpoint={}", self.endpoint)
    }

    /// Calls a method.
    pub async fn call<Q, A>(&self, method: &str, question: Q) -> Result<A, Status>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let path: PathAndQuery = format!("/runtime.v1.RuntimeService/{method}").parse().expect("a path");
        let mut grpc = Grpc::new(self.channel.clone());
        grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let answer = grpc.unary(Request::new(question), path, ProstCodec::default()).await?;
        Ok(answer.into_inner())
    }

    /// A sandbox with one container, which runs: their ids.
    pub async fn container(&self) -> Result<(String, String), Status> {
        let metadata =
            PodSandboxMetadata { name: "pod".into(), namespace: "ns".into(), ..PodSandboxMetadata::default() };
        let config = PodSandboxConfig { metadata: Some(metadata), ..PodSandboxConfig::default() };
        let Id { id: sandbox } = self.call("RunPodSandbox", RunPodSandboxRequest { config: Some(config) }).await?;
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata { name: "main".into(), attempt: 0 }),
            command: ["sh", "-c", "while read line; do echo \"main heard $line\"; done"].map(str::to_owned).into(),
            stdin: true,
            ..ContainerConfig::default()
        };
        let request = CreateContainerRequest { pod_sandbox_id: sandbox.clone(), config: Some(config) };
        let created: Id = self.call("CreateContainer", request).await?;
        let Nothing {} = self.call("StartContainer", created.clone()).await?;
        Ok((sandbox, created.id))
    }

    /// The URL for a script in a container, with all streams but a terminal.
    pub async fn exec(&self, container_id: &str, script: &str) -> Result<String, Status> {
        let cmd = ["sh", "-c", script].map(str::to_owned).into();
        let container_id = container_id.to_owned();
        let request = ExecRequest { container_id, cmd, tty: false, stdin: true, stdout: true, stderr: true };
        let StreamingResponse { url } = self.call("Exec", request).await?;
        Ok(url)
    }

    pub async fn stop(self) -> Outcome {
        let status = self.process.stop().await?;
        ensure!(status.success(), "cri_runtime ended with {status} on SIGTERM");
        Ok(())
    }
}

/// The kernel takes no longer path for a socket than 107 bytes.
fn socket(scratch: &Scratch) -> Outcome<PathBuf> {
    let socket = scratch.path().join("c.sock");
    ensure!(socket.as_os_str().len() < 100, "{} is too long for a socket", socket.display());
    Ok(socket)
}

/// Sends a head, written with `\n`, to where `url` points. Returns the answer's head, and the connection.
pub async fn ask(url: &str, head: &str) -> Outcome<(Response<()>, TcpStream)> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let uri: http::Uri = url.parse().map_err(|error| text(&error))?;
    let authority = uri.authority().ok_or("no absolute URL")?.as_str();
    let mut io = TcpStream::connect(authority).await.map_err(|error| text(&error))?;
    io.write_all((head.replace('\n', "\r\n") + "\r\n\r\n").as_bytes()).await.map_err(|error| text(&error))?;
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(io.read_u8().await.map_err(|error| text(&error))?);
    }
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let mut lines = answer.trim_end().split("\r\n");
    let code = lines.next().and_then(|line| line.split(' ').nth(1)).unwrap_or_default().to_owned();
    let response = lines.fold(Response::builder().status(&*code), |response, line| {
        let (name, value) = line.split_once(": ").unwrap_or_default();
        response.header(name, value)
    });
    Ok((response.body(()).map_err(|error| text(&error))?, io))
}
