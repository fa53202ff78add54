//! A runtime, the stacks above it, and a user in front.

use std::{
    convert::Infallible,
    io,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use tokio::io::{AsyncWrite, AsyncWriteExt, DuplexStream, duplex};
use tokio_util::sync::CancellationToken;
use tower_kube_streaming::{
    BoxError, FeatureGates, Gate,
    client::ExecRequest,
    layers::{Hop, danger::PermitAllLayer},
    remote_command::{Exit, Input, Output, Stdio},
    runtime::{Loopback, Runtime, Session},
    services::{ApiServer, InProcess, Kubelet, StreamingServer},
    upgrade::{Refusal, Sessions, StreamOptions, Target},
};

/// A runtime that does what the command's first word says, and counts what it started.
#[derive(Clone, Default)]
pub(crate) struct Commands(pub(crate) Arc<AtomicUsize>);

pub(crate) struct Running(Commands, String);

impl Runtime for Commands {
    type Session = Running;
    type Forward = Loopback;

    async fn open(&self, target: &Target) -> Result<Running, Refusal> {
        match target.options.command.first() {
            Some(word) if target.pod == "demo" => Ok(Running(self.clone(), word.clone())),
            _ => Err(Refusal::not_found("pods", &target.pod)),
        }
    }

    async fn port_forward(&self, target: &Target) -> Result<Loopback, Refusal> {
        Err(Refusal::not_found("pods", &target.pod))
    }
}

impl Session for Running {
    async fn run(self, stdio: Stdio) -> Result<Exit, BoxError> {
        self.0.0.fetch_add(1, Ordering::Relaxed);
        let mut stdout = stdio.stdout.ok_or("stdout was not asked for")?;
        match &*self.1 {
            // Ends with its stdin.
            "cat" => {
                tokio::io::copy(&mut stdio.stdin.ok_or("stdin was not asked for")?, &mut stdout).await?;
                if let Some(mut stderr) = stdio.stderr {
                    stderr.write_all(b"done").await?;
                }
                Ok(Exit::Code(7))
            }
            "size" => {
                let mut sizes = stdio.resize.ok_or("no terminal")?;
                for _ in 0..2 {
                    let size = sizes.wait_for(Option::is_some).await?.ok_or("a size")?;
                    stdout.write_all(format!("{}x{} ", size.width, size.height).as_bytes()).await?;
                    sizes.changed().await?;
                }
                Ok(Exit::Success)
            }
            "true" => Ok(Exit::Success),
            _ => Err("executable file not found in $PATH".into()),
        }
    }
}

fn gates(on: &[Gate]) -> FeatureGates {
    FeatureGates::with(Gate::ALL.map(|gate| (gate, on.contains(&gate)))).expect("gates that fit")
}

/// Serves one connection with `stack`.
fn serve<S>(stack: S) -> DuplexStream
where
    S: tower::Service<http::Request<Incoming>, Response = http::Response<Full<Bytes>>, Error = Infallible>,
    S: Clone + Send + 'static,
    S::Future: Send,
{
    let (near, far) = duplex(64 * 1024);
    let http = hyper::server::conn::http1::Builder::new();
    tokio::spawn(http.serve_connection(TokioIo::new(far), TowerToHyperService::new(stack)).with_upgrades());
    near
}

/// A kubelet over `commands`, and whether its runtime speaks v5.
pub(crate) fn kubelet(commands: &Commands, on: &[Gate], v5: bool) -> DuplexStream {
    let leaf = StreamingServer::new(commands.clone());
    let leaf = if v5 { leaf.offer_v5() } else { leaf };
    serve(Kubelet::builder().gates(gates(on)).build(Sessions::new(), PermitAllLayer, leaf))
}

/// An API server, and behind it in this process a kubelet that declares what its gates are.
pub(crate) fn api_server(
    commands: &Commands,
    on: &'static [Gate],
    kubelets: &'static [Gate],
    v5: bool,
) -> DuplexStream {
    let sessions = Sessions::new();
    let leaf = StreamingServer::new(commands.clone());
    let leaf = if v5 { leaf.offer_v5() } else { leaf };
    let kubelet = Kubelet::builder().gates(gates(kubelets)).build(sessions.clone(), PermitAllLayer, leaf);
    let resolve = move |target: Arc<Target>| async move {
        let hop = Hop::kubelet("http://kubelet", &target)?;
        Ok(hop.declares(kubelets.iter().map(|gate| gate.name())))
    };
    let stack = ApiServer::builder().gates(gates(on));
    serve(stack.build(sessions, PermitAllLayer, resolve, InProcess::new(kubelet)))
}

/// A writer whose bytes can be looked at.
#[derive(Clone, Default)]
pub(crate) struct Kept(pub(crate) Arc<Mutex<Vec<u8>>>);

impl Kept {
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.0.lock().expect("not poisoned").clone()
    }
}

impl AsyncWrite for Kept {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.0.lock().expect("not poisoned").extend_from_slice(buf);
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// The user's streams: stdin, and what came out.
pub(crate) fn user(stdin: &[u8]) -> (Stdio, Kept, Kept) {
    let (stdout, stderr) = (Kept::default(), Kept::default());
    let mut stdio = Stdio::new(CancellationToken::new());
    stdio.stdin = Some(Input::new(io::Cursor::new(stdin.to_vec())));
    stdio.stdout = Some(Output::new(stdout.clone()));
    stdio.stderr = Some(Output::new(stderr.clone()));
    (stdio, stdout, stderr)
}

pub(crate) const STREAMS: StreamOptions =
    StreamOptions { stdin: true, stdout: true, stderr: true, tty: false, command: Vec::new(), ports: Vec::new() };

/// Asks an API server to run `command` in `pod`.
pub(crate) fn exec(pod: &str, command: &str) -> ExecRequest {
    let streams = "container=c&stdin=true&stdout=true&stderr=true";
    let url = format!("http://api/api/v1/namespaces/ns/pods/{pod}/exec?command={command}&{streams}");
    ExecRequest::new(url, STREAMS).expect("a URL")
}

pub(crate) fn exec_at_kubelet(command: &str) -> ExecRequest {
    let url = format!("http://node/exec/ns/demo/c?command={command}&input=1&output=1&error=1");
    ExecRequest::new(url, STREAMS).expect("a URL")
}

pub(crate) const NONE: &[Gate] = &[];
pub(crate) const TRANSLATE: &[Gate] = &[Gate::TranslateStreamCloseWebsocketRequests];
pub(crate) const EXTEND: &[Gate] = &[Gate::ExtendWebSocketsToKubelet, Gate::NodeDeclaredFeatures];
pub(crate) const BOTH: &[Gate] =
    &[Gate::TranslateStreamCloseWebsocketRequests, Gate::ExtendWebSocketsToKubelet, Gate::NodeDeclaredFeatures];
