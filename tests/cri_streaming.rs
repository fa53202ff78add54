//! A container runtime's streaming server over real sockets: URLs are issued, and what they stand for is streamed, to
//! clients of every protocol and to a kubelet.

use std::{convert::Infallible, io, net::SocketAddr, num::NonZeroU16, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1};
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tower::{Service, ServiceBuilder, util::BoxCloneService};
use tower_kube_streaming::{
    BoxError,
    layers::{FeatureRoutingLayer, Hop, TranslateLayer, TunnelLayer, UpgradeDetectLayer, danger::PermitAllLayer},
    port_forward::{
        self, TUNNEL,
        over_spdy_client::{self as forward_over_spdy, Forward},
        over_websocket_client::{Client, Said},
    },
    remote_command::{
        Exit, Input, Output, Stdio, Version, over_spdy_client, over_websocket::WsProtocol, over_websocket_client,
        status::Outcome,
    },
    runtime::{Runtime, Session},
    services::{CriStreaming, InProcess, StreamingServer, TcpConnect, UpgradeProxy, cri_streaming::CriRequest},
    upgrade::{Dialect, Refusal, Sessions, StreamOptions, Subresource, Target},
    websocket::{Limits, Pipe, Role},
};

/// A runtime with a container `c0ffee` in a sandbox `5a11d`. Its command says what it is and echoes a line, or all of
/// stdin; its exit code is 7.
struct Toy;

struct Command(String);

/// The sandbox's network, in which every port says which it is.
struct Network(String);

impl Runtime for Toy {
    type Session = Command;
    type Forward = Network;

    async fn open(&self, target: &Target) -> Result<Command, Refusal> {
        assert_eq!((target.dialect, &*target.namespace, &*target.pod), (Dialect::Runtime, "", ""));
        match target.container.as_deref() {
            Some(id @ "c0ffee") => Ok(Command(format!("{} {id} {:?}", target.subresource, target.options.command))),
            id => Err(Refusal::new(StatusCode::NOT_FOUND, "NotFound", format!("no container {id:?}"))),
        }
    }

    async fn port_forward(&self, target: &Target) -> Result<Network, Refusal> {
        assert_eq!((target.dialect, target.container.as_deref()), (Dialect::Runtime, None));
        match &*target.pod {
            id @ "5a11d" => Ok(Network(id.to_owned())),
            id => Err(Refusal::new(StatusCode::NOT_FOUND, "NotFound", format!("no sandbox {id:?}"))),
        }
    }
}

impl Session for Command {
    async fn run(self, mut stdio: Stdio) -> Result<Exit, BoxError> {
        let mut outputs: Vec<_> = [stdio.stdout.take(), stdio.stderr.take()].into_iter().flatten().collect();
        for output in &mut outputs {
            output.write_all(self.0.as_bytes()).await?;
        }
        let mut echo = Vec::new();
        if let Some(mut stdin) = stdio.stdin.take() {
            let mut buffer = [0; 1024];
            // Before v5, WebSocket cannot end stdin: a line is all.
            while !echo.ends_with(b"\n") {
                tokio::select! {
                    read = stdin.read(&mut buffer) => match read? {
                        0 => break,
                        read => echo.extend_from_slice(&buffer[..read]),
                    },
                    () = stdio.gone.cancelled() => return Err("the client has gone".into()),
                }
            }
        }
        for output in &mut outputs {
            output.write_all(&echo).await?;
        }
        Ok(Exit::Code(7))
    }
}

impl port_forward::Dial for Network {
    type Connection = DuplexStream;

    async fn dial(&self, port: u16) -> Result<DuplexStream, BoxError> {
        if port == 1 {
            return Err("nobody listens".into());
        }
        let (mut near, far) = duplex(1024);
        near.write_all(format!("{port} of {}", self.0).as_bytes()).await?;
        Ok(far)
    }
}

type Leaf = StreamingServer<Toy>;

/// A runtime's streaming server, until it is dropped.
struct Streaming {
    server: CriStreaming<Leaf>,
    sessions: Sessions,
    served: Served,
}

impl Streaming {
    async fn start(leaf: Leaf) -> Result<Self, BoxError> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let sessions = Sessions::new();
        let base = format!("http://{}", listener.local_addr()?);
        let server = CriStreaming::new(&base, sessions.clone(), leaf)?;
        let served = Served::start(listener, server.clone())?;
        Ok(Self { server, sessions, served })
    }

    /// Connects to the server for a URL that is issued for that.
    async fn connect(&self, request: CriRequest) -> Result<(TcpStream, String), BoxError> {
        dial(&self.server.issue(request)?).await
    }
}

/// Connects to where a URL points. Returns its path as well.
async fn dial(url: &str) -> Result<(TcpStream, String), BoxError> {
    let uri: http::Uri = url.parse()?;
    let address: SocketAddr = uri.authority().ok_or("an absolute URL")?.as_str().parse()?;
    Ok((TcpStream::connect(address).await?, uri.path().to_owned()))
}

/// An HTTP server, until it is dropped.
struct Served {
    address: SocketAddr,
    _accepting: JoinSet<()>,
}

impl Served {
    fn start<S>(listener: TcpListener, stack: S) -> io::Result<Self>
    where
        S: Service<Request<Incoming>, Response = Response<Full<Bytes>>, Error = Infallible>,
        S: Clone + Send + 'static,
        S::Future: Send,
    {
        let address = listener.local_addr()?;
        let mut accepting = JoinSet::new();
        accepting.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((tcp, _)) = listener.accept().await {
                let service = TowerToHyperService::new(stack.clone());
                let served = http1::Builder::new().serve_connection(TokioIo::new(tcp), service).with_upgrades();
                // A connection that ends early is what some of these tests are about.
                connections.spawn(async move { drop(served.await) });
            }
        });
        Ok(Self { address, _accepting: accepting })
    }
}

fn exec(container_id: &str) -> CriRequest {
    CriRequest::Exec {
        container_id: container_id.into(),
        cmd: vec!["cat".into()],
        tty: false,
        stdin: true,
        stdout: true,
        stderr: true,
    }
}

fn attach(container_id: &str) -> CriRequest {
    CriRequest::Attach { container_id: container_id.into(), tty: false, stdin: true, stdout: true, stderr: true }
}

fn forward(pod_sandbox_id: &str, port: &[i32]) -> CriRequest {
    CriRequest::PortForward { pod_sandbox_id: pod_sandbox_id.into(), port: port.to_vec() }
}

const EXEC_SAYS: &str = "exec c0ffee [\"cat\"] says hi\n";

/// What the client of an exec knows.
const OPTIONS: StreamOptions =
    StreamOptions { stdin: true, stdout: true, stderr: true, tty: false, command: Vec::new(), ports: Vec::new() };

/// Sends a request head and returns the head of the answer, and for a refusal its body.
async fn ask(io: &mut TcpStream, request: &str) -> io::Result<String> {
    io.write_all((request.replace('\n', "\r\n") + "\r\n\r\n").as_bytes()).await?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(io.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap_or("0");
    let mut body = vec![0; length.parse().unwrap_or(0)];
    io.read_exact(&mut body).await?;
    Ok(head + &String::from_utf8_lossy(&body))
}

fn spdy(method: &str, path: &str, protocol: &str) -> String {
    format!(
        "{method} {path} HTTP/1.1\nHost: r\nConnection: Upgrade\nUpgrade: SPDY/3.1\nContent-Length: 0\n\
         X-Stream-Protocol-Version: {protocol}"
    )
}

fn websocket(path: &str, protocol: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\nHost: r\nConnection: Upgrade\nUpgrade: websocket\nSec-WebSocket-Version: 13\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\nSec-WebSocket-Protocol: {protocol}"
    )
}

fn switches(head: &str) -> Result<(), BoxError> {
    if head.starts_with("HTTP/1.1 101 ") { Ok(()) } else { Err(head.into()) }
}

/// The user's ends. The outputs are read to their end by the returned task.
fn user() -> (Stdio, tokio::task::JoinHandle<io::Result<(String, String)>>) {
    let mut stdio = Stdio::new(CancellationToken::new());
    let ((mut out, stdout), (mut err, stderr)) = (duplex(4096), duplex(4096));
    stdio.stdin = Some(Input::new(io::Cursor::new(b" says hi\n")));
    stdio.stdout = Some(Output::new(stdout));
    stdio.stderr = Some(Output::new(stderr));
    let heard = tokio::spawn(async move {
        let (mut stdout, mut stderr) = (String::new(), String::new());
        tokio::try_join!(out.read_to_string(&mut stdout), err.read_to_string(&mut stderr))?;
        Ok((stdout, stderr))
    });
    (stdio, heard)
}

fn check_outcome(outcome: Outcome, version: Version) {
    match version.has_status() {
        true => assert_eq!(outcome, Outcome::Exited(Exit::Code(7)), "{version}"),
        false => assert!(matches!(outcome, Outcome::Failed(why) if why.ends_with("exit code 7")), "{version}"),
    }
}

/// Runs that URL's command with our SPDY client.
async fn run_spdy((mut io, path): (TcpStream, String), method: &str, version: Version) -> Result<String, BoxError> {
    let head = ask(&mut io, &spdy(method, &path, version.name())).await?;
    switches(&head)?;
    let (stdio, heard) = user();
    check_outcome(over_spdy_client::run(io, version, &OPTIONS, stdio).await?, version);
    let (stdout, stderr) = heard.await??;
    assert_eq!(stdout, stderr);
    Ok(stdout)
}

/// Runs that URL's command with our WebSocket client.
async fn run_websocket((io, path): (TcpStream, String), protocol: WsProtocol) -> Result<String, BoxError> {
    let request = Request::get(path).header("host", "r").body(())?;
    let offers = if protocol == WsProtocol::Unnamed { vec![] } else { vec![protocol] };
    let (connected, chosen) = over_websocket_client::connect(io, request, &offers).await?;
    assert_eq!(chosen, protocol);
    let (stdio, heard) = user();
    check_outcome(over_websocket_client::run(connected, protocol, stdio).await?, protocol.version());
    let (stdout, stderr) = heard.await??;
    assert_eq!(stdout, stderr);
    Ok(stdout)
}

#[tokio::test]
async fn exec_and_attach_are_served_over_every_version_of_spdy_by_get_and_post() -> Result<(), BoxError> {
    let streaming = Streaming::start(StreamingServer::new(Toy).offer_v5()).await?;
    for version in Version::NEWEST_FIRST {
        for method in ["GET", "POST"] {
            let said = run_spdy(streaming.connect(exec("c0ffee")).await?, method, version).await?;
            assert_eq!(said, EXEC_SAYS, "{version}");
            let said = run_spdy(streaming.connect(attach("c0ffee")).await?, method, version).await?;
            assert_eq!(said, "attach c0ffee [] says hi\n", "{version}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn exec_and_attach_are_served_over_every_subprotocol_of_websocket() -> Result<(), BoxError> {
    let streaming = Streaming::start(StreamingServer::new(Toy).offer_v5()).await?;
    for protocol in WsProtocol::ALL {
        let said = run_websocket(streaming.connect(exec("c0ffee")).await?, protocol).await?;
        assert_eq!(said, EXEC_SAYS, "{protocol:?}");
        let said = run_websocket(streaming.connect(attach("c0ffee")).await?, protocol).await?;
        assert_eq!(said, "attach c0ffee [] says hi\n", "{protocol:?}");
    }
    Ok(())
}

#[tokio::test]
async fn by_default_it_offers_what_containerd_does() -> Result<(), BoxError> {
    let streaming = Streaming::start(StreamingServer::new(Toy)).await?;
    let (mut io, path) = streaming.connect(exec("c0ffee")).await?;
    let refused = ask(&mut io, &spdy("POST", &path, "v5.channel.k8s.io")).await?;
    assert!(refused.starts_with("HTTP/1.1 403 "), "{refused}");
    assert_eq!(refused.matches("x-accepted-stream-protocol-versions: ").count(), 4, "{refused}");
    for (request, protocol) in [(exec("c0ffee"), "v5.channel.k8s.io"), (forward("5a11d", &[80]), TUNNEL)] {
        let (mut io, path) = streaming.connect(request).await?;
        let refused = ask(&mut io, &websocket(&path, protocol)).await?;
        assert!(refused.starts_with("HTTP/1.1 403 "), "{refused}");
    }
    Ok(())
}

#[tokio::test]
async fn a_token_is_used_up_also_by_a_request_that_is_refused() -> Result<(), BoxError> {
    let streaming = Streaming::start(StreamingServer::new(Toy)).await?;
    for (request, bad, code, words) in [
        (exec("c0ffee"), "GET {} HTTP/1.1\nHost: r", "400", "unable to upgrade: missing upgrade headers in request\n"),
        (exec("c0ffee"), "DELETE {} HTTP/1.1\nHost: r", "405", "method on the requested resource\n"),
        (exec("gone"), &spdy("POST", "{}", "v4.channel.k8s.io"), "404", "no container Some(\"gone\")\n"),
        (forward("gone", &[]), &spdy("POST", "{}", "portforward.k8s.io"), "404", "no sandbox \"gone\"\n"),
        (forward("5a11d", &[]), &spdy("POST", "{}", "v4.channel.k8s.io"), "403", "accepts [portforward.k8s.io]\n"),
    ] {
        let (mut io, path) = streaming.connect(request).await?;
        let refused = ask(&mut io, &bad.replace("{}", &path)).await?;
        assert!(refused.starts_with(&format!("HTTP/1.1 {code} ")) && refused.ends_with(words), "{refused}");
        let mut io = TcpStream::connect(streaming.served.address).await?;
        let again = ask(&mut io, &spdy("POST", &path, "v4.channel.k8s.io")).await?;
        assert!(again.starts_with("HTTP/1.1 404 ") && again.ends_with("404 page not found\n"), "{again}");
    }
    Ok(())
}

#[tokio::test]
async fn of_many_that_show_a_token_at_once_one_is_served() -> Result<(), BoxError> {
    let streaming = Streaming::start(StreamingServer::new(Toy)).await?;
    let url = streaming.server.issue(exec("c0ffee"))?;
    let mut asking = JoinSet::new();
    for _ in 0..16 {
        let url = url.clone();
        asking.spawn(async move {
            let (mut io, path) = dial(&url).await.expect("a connection");
            let head = ask(&mut io, &spdy("POST", &path, "v4.channel.k8s.io")).await.expect("an answer");
            head.starts_with("HTTP/1.1 101 ")
        });
    }
    assert_eq!(asking.join_all().await.into_iter().filter(|served| *served).count(), 1);
    Ok(())
}

/// What a port says, and what is told of one that nobody listens to.
async fn check_forward(forward: Forward) -> Result<(), BoxError> {
    let mut said = String::new();
    let mut pair = forward.pair(NonZeroU16::new(8080).ok_or("a port")?).await?;
    pair.data.read_to_string(&mut said).await?;
    assert_eq!(said, "8080 of 5a11d");
    let text = forward.pair(NonZeroU16::MIN).await?.error.text().await?.unwrap_or_default();
    assert_eq!(text, "error forwarding port 1 to pod 5a11d, uid : nobody listens");
    Ok(())
}

#[tokio::test]
async fn port_forward_is_served_over_spdy_in_a_tunnel_and_over_legacy_websocket() -> Result<(), BoxError> {
    let streaming = Streaming::start(StreamingServer::new(Toy).offer_tunnel()).await?;
    let mut connections = JoinSet::new();

    let (mut io, path) = streaming.connect(forward("5a11d", &[])).await?;
    switches(&ask(&mut io, &spdy("POST", &path, "portforward.k8s.io")).await?)?;
    let (forwarding, connection) = forward_over_spdy::connect(io);
    connections.spawn(connection);
    check_forward(forwarding).await?;

    let (mut io, path) = streaming.connect(forward("5a11d", &[])).await?;
    switches(&ask(&mut io, &websocket(&path, TUNNEL)).await?)?;
    let (forwarding, connection) = forward_over_spdy::connect(Pipe::new(io, Role::Client, Limits::default()));
    connections.spawn(connection);
    check_forward(forwarding).await?;

    let (mut io, path) = streaming.connect(forward("5a11d", &[8080])).await?;
    let protocol = port_forward::WsProtocol::V4;
    // The ports are those that were issued, not those of the URL.
    switches(&ask(&mut io, &websocket(&format!("{path}?port=22"), protocol.name())).await?)?;
    let mut client = Client::new(io, protocol, &[8080]);
    assert_eq!(client.next().await?, Said::Data(0, b"8080 of 5a11d".to_vec()));
    Ok(())
}

type Carry = BoxCloneService<Request<Incoming>, Response<Full<Bytes>>, Infallible>;

/// A kubelet in front of that runtime: asks it for URLs, translates and tunnels for it.
async fn kubelet(streaming: &Streaming, carry: Carry) -> Result<Served, BoxError> {
    let runtime = streaming.server.clone();
    let url = move |target: Arc<Target>| {
        let StreamOptions { stdin, stdout, stderr, tty, command: cmd, ports } = target.options.clone();
        let container_id = target.container.clone().unwrap_or_default();
        // What a real one does over gRPC.
        let issued = runtime.issue(match target.subresource {
            Subresource::Exec => CriRequest::Exec { container_id, cmd, tty, stdin, stdout, stderr },
            Subresource::Attach => CriRequest::Attach { container_id, tty, stdin, stdout, stderr },
            Subresource::PortForward => CriRequest::PortForward {
                pod_sandbox_id: target.pod.clone(),
                port: ports.into_iter().map(i32::from).collect(),
            },
        });
        async move { Ok(Hop::new(issued?.parse().map_err(|_| Refusal::internal("no URL"))?)) }
    };
    let stack = ServiceBuilder::new()
        .layer(UpgradeDetectLayer::new(Dialect::Kubelet, Sessions::new()))
        .layer(PermitAllLayer)
        .layer(FeatureRoutingLayer::new(url))
        .layer(TranslateLayer::new())
        .layer(TunnelLayer::new())
        .service(carry);
    Ok(Served::start(TcpListener::bind("127.0.0.1:0").await?, stack)?)
}

#[tokio::test]
async fn a_kubelet_streams_through_it_whatever_its_client_speaks() -> Result<(), BoxError> {
    let streaming = Streaming::start(StreamingServer::new(Toy)).await?;
    check_kubelet(kubelet(&streaming, BoxCloneService::new(UpgradeProxy::new(TcpConnect))).await?).await
}

#[tokio::test]
async fn a_kubelet_of_the_same_process_needs_no_socket() -> Result<(), BoxError> {
    let streaming = Streaming::start(StreamingServer::new(Toy)).await?;
    let carry = BoxCloneService::new(InProcess::new(streaming.server.clone()));
    check_kubelet(kubelet(&streaming, carry).await?).await
}

async fn check_kubelet(node: Served) -> Result<(), BoxError> {
    const EXEC: &str = "/exec/ns/5a11d/c0ffee?command=cat&input=1&output=1&error=1";
    for protocol in [WsProtocol::V5, WsProtocol::V4, WsProtocol::Base64V4] {
        let io = TcpStream::connect(node.address).await?;
        assert_eq!(run_websocket((io, EXEC.into()), protocol).await?, EXEC_SAYS, "{protocol:?}");
    }
    let io = TcpStream::connect(node.address).await?;
    assert_eq!(run_spdy((io, EXEC.into()), "POST", Version::V4).await?, EXEC_SAYS);

    let mut io = TcpStream::connect(node.address).await?;
    switches(&ask(&mut io, &websocket("/portForward/ns/5a11d", TUNNEL)).await?)?;
    let (forwarding, connection) = forward_over_spdy::connect(Pipe::new(io, Role::Client, Limits::default()));
    let connection = tokio::spawn(connection);
    check_forward(forwarding).await?;
    let _ = connection.await;

    let mut io = TcpStream::connect(node.address).await?;
    let gone = ask(&mut io, &spdy("POST", &EXEC.replace("c0ffee", "gone"), "v4.channel.k8s.io")).await?;
    assert!(gone.starts_with("HTTP/1.1 404 ") && gone.ends_with("no container Some(\"gone\")\n"), "{gone}");
    Ok(())
}

#[tokio::test]
async fn a_kubelet_is_told_to_wait_when_a_thousand_urls_are_out() -> Result<(), BoxError> {
    let streaming = Streaming::start(StreamingServer::new(Toy)).await?;
    let node = kubelet(&streaming, BoxCloneService::new(UpgradeProxy::new(TcpConnect))).await?;
    for _ in 0..1_000 {
        streaming.server.issue(exec("c0ffee"))?;
    }
    let mut io = TcpStream::connect(node.address).await?;
    let full = ask(&mut io, &spdy("POST", "/exec/ns/p/c0ffee?command=cat&output=1", "v4.channel.k8s.io")).await?;
    assert!(full.starts_with("HTTP/1.1 429 ") && full.contains("retry-after: 60\r\n"), "{full}");
    assert!(full.ends_with("maximum number of in-flight requests exceeded\n"), "{full}");
    Ok(())
}

#[tokio::test]
async fn its_sessions_are_drained_and_their_clients_told() -> Result<(), BoxError> {
    let streaming = Streaming::start(StreamingServer::new(Toy)).await?;
    let (mut io, path) = streaming.connect(exec("c0ffee")).await?;
    switches(&ask(&mut io, &spdy("POST", &path, "v4.channel.k8s.io")).await?)?;
    // Stdin that neither says anything nor ends.
    let ((_typing, stdin), (mut out, stdout), (_err, stderr)) = (duplex(1), duplex(4096), duplex(4096));
    let mut stdio = Stdio::new(CancellationToken::new());
    stdio.stdin = Some(Input::new(stdin));
    stdio.stdout = Some(Output::new(stdout));
    stdio.stderr = Some(Output::new(stderr));
    let running = tokio::spawn(async move { over_spdy_client::run(io, Version::V4, &OPTIONS, stdio).await });
    out.read_exact(&mut [0; "exec c0ffee".len()]).await?;
    assert_eq!(streaming.sessions.len(), 1);
    assert_eq!(streaming.sessions.drain(Duration::ZERO, Duration::from_secs(20)).await, 0, "none is cut");
    let outcome = running.await??;
    assert!(matches!(&outcome, Outcome::Failed(why) if why.contains("shutting down")), "{outcome:?}");
    assert!(streaming.sessions.is_empty());
    Ok(())
}
