//! The kubelet's stack as an HTTP server: what it answers to which handshake, and that what it answers is served.

use std::{convert::Infallible, io, num::NonZeroU16, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;

use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tower_kube_streaming::{
    BoxError, FeatureGates, Gate,
    layers::{Hop, danger::PermitAllLayer},
    port_forward::over_spdy_client as forward_over_spdy,
    remote_command::{
        Exit, Input, Output, Stdio, Version, over_spdy_client, over_websocket::WsProtocol, over_websocket_client,
        status::Outcome,
    },
    runtime::{Loopback, Runtime, Session},
    services::{ApiServer, InProcess, Kubelet, StreamingServer},
    upgrade::{Refusal, Sessions, StreamOptions, Target},
};

/// A runtime that echoes stdin to stdout and to stderr, says whom it serves, and ends with 7.
struct Echo;

struct Echoing(String);

impl Runtime for Echo {
    type Session = Echoing;
    type Forward = Loopback;

    async fn open(&self, target: &Target) -> Result<Echoing, Refusal> {
        if target.pod == "nosuch" {
            return Err(Refusal::not_found("pods", &target.pod));
        }
        Ok(Echoing(format!("{}/{}/{:?}", target.subresource, target.pod, target.container)))
    }

    async fn port_forward(&self, target: &Target) -> Result<Loopback, Refusal> {
        match &*target.pod {
            "nosuch" => Err(Refusal::not_found("pods", &target.pod)),
            _ => Ok(Loopback::default()),
        }
    }
}

impl Session for Echoing {
    async fn run(self, mut stdio: Stdio) -> Result<Exit, BoxError> {
        let mut said = self.0.into_bytes();
        if let Some(mut stdin) = stdio.stdin.take() {
            let mut buffer = [0; 1024];
            // v1 and v4 over WebSocket cannot end stdin: a line is all.
            while !said.ends_with(b"\n") {
                match stdin.read(&mut buffer).await? {
                    0 => break,
                    read => said.extend_from_slice(&buffer[..read]),
                }
            }
        }
        for output in [stdio.stdout.take(), stdio.stderr.take()].into_iter().flatten() {
            let mut output = output;
            output.write_all(&said).await?;
        }
        Ok(Exit::Code(7))
    }
}

/// A connection to a kubelet over [`Echo`].
fn kubelet(v5: bool) -> DuplexStream {
    let server = StreamingServer::new(Echo);
    let leaf = if v5 { server.offer_v5() } else { server };
    serve(Kubelet::builder().leaf_speaks_websocket().build(Sessions::new(), PermitAllLayer, leaf))
}

/// A connection to an HTTP server of that stack.
fn serve<S>(stack: S) -> DuplexStream
where
    S: tower::Service<http::Request<Incoming>, Response = http::Response<Full<Bytes>>, Error = Infallible>,
    S: Clone + Send + 'static,
    S::Future: Send,
{
    let (near, far) = duplex(64 * 1024);
    let service = hyper_util::service::TowerToHyperService::new(stack);
    tokio::spawn(async move {
        let http = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new()).http1_only();
        // A connection that ends early is what some of these tests are about.
        let _ = http.serve_connection_with_upgrades(TokioIo::new(far), service).await;
    });
    near
}

/// A connection to an API server whose kubelet, over [`Echo`], is in the same process.
fn api_server() -> DuplexStream {
    let sessions = Sessions::new();
    let kubelet = Kubelet::new(sessions.clone(), PermitAllLayer, StreamingServer::new(Echo));
    let resolve = |target: Arc<Target>| async move { Hop::kubelet("http://kubelet", &target) };
    serve(ApiServer::new(sessions, PermitAllLayer, resolve, InProcess::new(kubelet)))
}

/// Sends a request head and returns the head of the answer, and for a refusal its body.
async fn ask(io: &mut DuplexStream, request: &str) -> io::Result<String> {
    let request = request.trim_start().replace('\n', "\r\n") + "\r\n\r\n";
    io.write_all(request.as_bytes()).await?;
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

fn spdy(versions: &[&str]) -> String {
    let versions: String = versions.iter().map(|version| format!("\nX-Stream-Protocol-Version: {version}")).collect();
    format!(
        "POST /exec/ns/pod/c?command=x&input=1&output=1&error=1 HTTP/1.1\nHost: k\nConnection: Upgrade\n\
         Upgrade: SPDY/3.1\nContent-Length: 0{versions}"
    )
}

fn websocket(protocols: &[&str]) -> String {
    let protocols: String = protocols.iter().map(|protocol| format!("\nSec-WebSocket-Protocol: {protocol}")).collect();
    format!(
        "GET /exec/ns/pod/c?command=x&input=1&output=1&error=1 HTTP/1.1\nHost: k\nConnection: keep-alive, Upgrade\n\
         Upgrade: WebSocket\nSec-WebSocket-Version: 13\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=={protocols}"
    )
}

const OPTIONS: StreamOptions =
    StreamOptions { stdin: true, stdout: true, stderr: true, tty: false, command: Vec::new(), ports: Vec::new() };

/// The user's ends: `stdin` is a line, the outputs are returned.
fn user() -> (Stdio, DuplexStream, DuplexStream) {
    let mut stdio = Stdio::new(tokio_util::sync::CancellationToken::new());
    let (out, stdout) = duplex(4096);
    let (err, stderr) = duplex(4096);
    stdio.stdin = Some(Input::new(io::Cursor::new(b" says hi\n")));
    stdio.stdout = Some(Output::new(stdout));
    stdio.stderr = Some(Output::new(stderr));
    (stdio, out, err)
}

async fn heard(mut out: DuplexStream, mut err: DuplexStream) -> io::Result<(String, String)> {
    let (mut stdout, mut stderr) = (String::new(), String::new());
    out.read_to_string(&mut stdout).await?;
    err.read_to_string(&mut stderr).await?;
    Ok((stdout, stderr))
}

#[tokio::test]
async fn exec_and_attach_are_served_over_every_version_of_spdy() -> Result<(), BoxError> {
    for version in Version::NEWEST_FIRST {
        for (kind, path) in [("exec", "exec/ns/pod"), ("attach", "attach/ns/pod/some-uid")] {
            let mut io = kubelet(true);
            let request = spdy(&[version.name()]).replace("exec/ns/pod", path);
            let head = ask(&mut io, &request).await?;
            assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
            assert!(head.contains(&format!("x-stream-protocol-version: {version}\r\n")), "{head}");
            let (stdio, out, err) = user();
            let outcome = over_spdy_client::run(io, version, &OPTIONS, stdio).await?;
            match version.has_status() {
                true => assert_eq!(outcome, Outcome::Exited(Exit::Code(7))),
                false => assert!(matches!(outcome, Outcome::Failed(why) if why.ends_with("exit code 7"))),
            }
            let said = format!("{kind}/pod/Some(\"c\") says hi\n");
            assert_eq!(heard(out, err).await?, (said.clone(), said));
        }
    }
    Ok(())
}

#[tokio::test]
async fn exec_is_served_over_every_subprotocol_of_websocket() -> Result<(), BoxError> {
    for protocol in WsProtocol::ALL {
        let io = kubelet(true);
        let request = http::Request::get("/exec/ns/pod/c?command=x&input=1&output=1&error=1").header("host", "k");
        let offers = if protocol == WsProtocol::Unnamed { vec![] } else { vec![protocol] };
        let (connected, chosen) = over_websocket_client::connect(io, request.body(())?, &offers).await?;
        assert_eq!(chosen, protocol);
        let (stdio, out, err) = user();
        let outcome = over_websocket_client::run(connected, protocol, stdio).await?;
        match protocol.version().has_status() {
            true => assert_eq!(outcome, Outcome::Exited(Exit::Code(7)), "{protocol:?}"),
            false => assert!(matches!(outcome, Outcome::Failed(why) if why.ends_with("exit code 7"))),
        }
        let said = "exec/pod/Some(\"c\") says hi\n".to_owned();
        assert_eq!(heard(out, err).await?, (said.clone(), said));
    }
    Ok(())
}

#[tokio::test]
async fn in_one_process_v5_is_translated_for_the_kubelet_and_all_else_is_its_own() -> Result<(), BoxError> {
    const EXEC: &str = "/api/v1/namespaces/ns/pods/pod/exec?container=c&command=x&stdin=1&stdout=1&stderr=1";
    for protocol in [WsProtocol::V5, WsProtocol::V4, WsProtocol::Base64V4] {
        let request = http::Request::get(EXEC).header("host", "api").body(())?;
        let (connected, chosen) = over_websocket_client::connect(api_server(), request, &[protocol]).await?;
        assert_eq!(chosen, protocol);
        let (stdio, out, err) = user();
        let outcome = over_websocket_client::run(connected, protocol, stdio).await?;
        assert_eq!(outcome, Outcome::Exited(Exit::Code(7)), "{protocol:?}");
        let said = "exec/pod/Some(\"c\") says hi\n".to_owned();
        assert_eq!(heard(out, err).await?, (said.clone(), said));
    }
    let mut io = api_server();
    let kubelet = "/exec/ns/pod/c?command=x&input=1&output=1&error=1";
    let head = ask(&mut io, &spdy(&["v4.channel.k8s.io"]).replace(kubelet, EXEC)).await?;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    let (stdio, _out, _err) = user();
    let outcome = over_spdy_client::run(io, Version::V4, &OPTIONS, stdio).await;
    assert_eq!(outcome?, Outcome::Exited(Exit::Code(7)));
    let refused = ask(&mut api_server(), &format!("GET {EXEC} HTTP/1.1\nHost: api")).await?;
    assert!(
        refused.starts_with("HTTP/1.1 400 ") && refused.contains("\"message\":\"Upgrade request required\""),
        "{refused}"
    );
    Ok(())
}

#[tokio::test]
async fn of_the_spdy_versions_a_client_offers_the_first_that_is_served_wins() -> Result<(), BoxError> {
    for (offers, chosen) in [
        (&["v5.channel.k8s.io", "v4.channel.k8s.io", "v3.channel.k8s.io"][..], "v4.channel.k8s.io"),
        (&["v5.channel.k8s.io, v3.channel.k8s.io,v4.channel.k8s.io"], "v3.channel.k8s.io"),
        (&["", " , channel.k8s.io"], "channel.k8s.io"),
    ] {
        let head = ask(&mut kubelet(false), &spdy(offers)).await?;
        assert!(head.contains(&format!("x-stream-protocol-version: {chosen}\r\n")), "{offers:?}: {head}");
    }
    Ok(())
}

#[tokio::test]
async fn a_spdy_client_without_a_common_version_is_told_what_is_served() -> Result<(), BoxError> {
    let refused = ask(&mut kubelet(false), &spdy(&["v9.channel.k8s.io", "V4.channel.k8s.io"])).await?;
    assert!(refused.starts_with("HTTP/1.1 403 "), "{refused}");
    assert_eq!(refused.matches("x-accepted-stream-protocol-versions: ").count(), 4, "{refused}");
    let words = "unable to upgrade: unable to negotiate protocol: client supports [v9.channel.k8s.io V4.channel.k8s.io], \
                 server accepts [v4.channel.k8s.io v3.channel.k8s.io v2.channel.k8s.io channel.k8s.io]\n";
    assert!(refused.ends_with(words), "{refused}");
    Ok(())
}

/// A request for a port-forward of that pod.
fn port_forward(method: &str, pod: &str, protocols: &[&str]) -> String {
    let protocols: String = protocols.iter().map(|name| format!("\nX-Stream-Protocol-Version: {name}")).collect();
    format!(
        "{method} /portForward/ns/{pod} HTTP/1.1\nHost: k\nConnection: Upgrade\nUpgrade: SPDY/3.1\n\
         Content-Length: 0{protocols}"
    )
}

#[tokio::test]
async fn port_forward_is_served_over_spdy_by_get_and_post_and_through_an_api_server() -> Result<(), BoxError> {
    for method in ["GET", "POST"] {
        let mut io = kubelet(false);
        let offers = ["v4.channel.k8s.io, portforward.k8s.io"];
        let head = ask(&mut io, &port_forward(method, "pod", &offers)).await?;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        assert!(head.contains("upgrade: SPDY/3.1\r\n"), "{head}");
        assert!(head.contains("x-stream-protocol-version: portforward.k8s.io\r\n"), "{head}");
    }
    let mut io = api_server();
    let kubelets = port_forward("POST", "pod", &["portforward.k8s.io"]);
    let ask_api = kubelets.replace("/portForward/ns/pod", "/api/v1/namespaces/ns/pods/pod/portforward");
    let head = ask(&mut io, &ask_api).await?;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    // The runtime's pod is there; a port of it that nobody listens to is told in the stream.
    let nobody = tokio::net::TcpSocket::new_v4()?;
    nobody.bind((std::net::Ipv4Addr::LOCALHOST, 0).into())?;
    let port = NonZeroU16::new(nobody.local_addr()?.port()).ok_or("a port")?;
    let (forward, connection) = forward_over_spdy::connect(io);
    tokio::spawn(connection);
    let text = forward.pair(port).await?.error.text().await?.unwrap_or_default();
    assert!(text.starts_with(&format!("error forwarding port {port} to pod pod, uid : failed to connect")), "{text}");
    Ok(())
}

#[tokio::test]
async fn a_port_forward_that_cannot_be_is_refused_before_the_101() -> Result<(), BoxError> {
    let gone = ask(&mut kubelet(false), &port_forward("POST", "nosuch", &["portforward.k8s.io"])).await?;
    assert!(gone.starts_with("HTTP/1.1 404 ") && gone.contains("nosuch"), "{gone}");
    let other = ask(&mut kubelet(false), &port_forward("POST", "pod", &["v4.channel.k8s.io"])).await?;
    assert!(other.starts_with("HTTP/1.1 403 "), "{other}");
    assert!(other.contains("x-accepted-stream-protocol-versions: portforward.k8s.io\r\n"), "{other}");
    let words = "unable to upgrade: unable to negotiate protocol: client supports [v4.channel.k8s.io], \
                 server accepts [portforward.k8s.io]\n";
    assert!(other.ends_with(words), "{other}");
    let none = ask(&mut kubelet(false), &port_forward("POST", "pod", &[])).await?;
    assert!(none.starts_with("HTTP/1.1 400 "), "{none}");
    Ok(())
}

#[tokio::test]
async fn a_spdy_request_without_versions_or_with_half_an_upgrade_is_refused() -> Result<(), BoxError> {
    let cases = [
        (spdy(&[]), "400", "X-Stream-Protocol-Version does not exist"),
        (spdy(&[" , "]), "400", "no valid protocols"),
        (spdy(&["v4.channel.k8s.io"]).replace("SPDY/3.1", "SPDY/2"), "400", "missing upgrade headers"),
        (spdy(&["v4.channel.k8s.io"]).replace("Connection: Upgrade\n", ""), "500", "Upgrade request required"),
        ("GET /exec/ns/pod/c?output=1 HTTP/1.1\nHost: k".to_owned(), "500", "Upgrade request required"),
    ];
    for (request, code, words) in cases {
        let refused = ask(&mut kubelet(false), &request).await?;
        assert!(refused.starts_with(&format!("HTTP/1.1 {code} ")), "{refused}");
        assert!(refused.contains(words), "{refused}");
    }
    Ok(())
}

#[tokio::test]
async fn of_the_websocket_protocols_the_first_that_is_served_wins_and_is_echoed() -> Result<(), BoxError> {
    for (v5, offers, chosen) in [
        (false, &["v5.channel.k8s.io, v4.channel.k8s.io"][..], Some("v4.channel.k8s.io")),
        (false, &["v5.channel.k8s.io", "v4.base64.channel.k8s.io"], Some("v4.base64.channel.k8s.io")),
        (true, &["v4.channel.k8s.io, v5.channel.k8s.io"], Some("v4.channel.k8s.io")),
        (true, &["v5.channel.k8s.io"], Some("v5.channel.k8s.io")),
        (false, &[], None),
    ] {
        let head = ask(&mut kubelet(v5), &websocket(offers)).await?;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        assert!(head.contains("sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"), "{head}");
        let echoed = head.lines().find_map(|line| line.strip_prefix("sec-websocket-protocol: "));
        assert_eq!(echoed, chosen, "{offers:?}");
    }
    Ok(())
}

#[tokio::test]
async fn websocket_v5_is_refused_where_it_is_not_offered_so_that_kubectl_falls_back() -> Result<(), BoxError> {
    for offers in [&["v5.channel.k8s.io"][..], &["v2.channel.k8s.io", "v3.channel.k8s.io"], &["V4.channel.k8s.io"]] {
        let refused = ask(&mut kubelet(false), &websocket(offers)).await?;
        assert!(refused.starts_with("HTTP/1.1 403 "), "{refused}");
    }
    Ok(())
}

#[tokio::test]
async fn a_bad_websocket_handshake_is_refused_before_anything_runs() -> Result<(), BoxError> {
    let good = websocket(&["v4.channel.k8s.io"]);
    let cases = [
        (good.replace("GET ", "POST "), "405"),
        (good.replace("Version: 13", "Version: 8"), "400"),
        (good.replace("dGhlIHNhbXBsZSBub25jZQ==", "c2hvcnQ="), "400"),
    ];
    for (request, code) in cases {
        let refused = ask(&mut kubelet(false), &request).await?;
        assert!(refused.starts_with(&format!("HTTP/1.1 {code} ")), "{refused}");
        assert!(refused.contains("sec-websocket-version: 13\r\n"), "{refused}");
    }
    Ok(())
}

#[tokio::test]
async fn what_the_runtime_refuses_and_what_cannot_be_asked_is_an_answer_and_no_stream() -> Result<(), BoxError> {
    let v4 = spdy(&["v4.channel.k8s.io"]);
    let cases = [
        (v4.replace("/pod/", "/nosuch/"), "404", "pods \"nosuch\" not found\n"),
        (
            v4.replace("input=1&output=1&error=1", "x=1"),
            "400",
            "you must specify at least 1 of stdin, stdout, stderr\n",
        ),
        (v4.replace("POST", "DELETE"), "405", ""),
    ];
    for (request, code, words) in cases {
        let refused = ask(&mut kubelet(false), &request).await?;
        assert!(refused.starts_with(&format!("HTTP/1.1 {code} ")), "{refused}");
        assert!(refused.contains("content-type: text/plain") && refused.ends_with(words), "{refused}");
    }
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_client_that_never_creates_its_streams_does_not_keep_the_connection() -> Result<(), BoxError> {
    let mut io = kubelet(false);
    let head = ask(&mut io, &spdy(&["v4.channel.k8s.io"])).await?;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    let started = tokio::time::Instant::now();
    let mut rest = Vec::new();
    io.read_to_end(&mut rest).await?;
    assert!(started.elapsed() < Duration::from_secs(90), "{:?}", started.elapsed());
    Ok(())
}

/// A connection to a kubelet whose leaf speaks SPDY and legacy WebSocket, as a container runtime does.
fn kubelet_with(gates: FeatureGates) -> DuplexStream {
    serve(Kubelet::builder().gates(gates).build(Sessions::new(), PermitAllLayer, StreamingServer::new(Echo)))
}

#[tokio::test]
async fn a_kubelet_translates_v5_for_a_runtime_that_does_not_speak_it() -> Result<(), BoxError> {
    let request = || http::Request::get("/exec/ns/pod/c?command=x&input=1&output=1&error=1").header("host", "node");
    for protocol in [WsProtocol::V5, WsProtocol::V4] {
        let io = kubelet_with(FeatureGates::default());
        let (connected, chosen) = over_websocket_client::connect(io, request().body(())?, &[protocol]).await?;
        assert_eq!(chosen, protocol);
        let (stdio, out, err) = user();
        let outcome = over_websocket_client::run(connected, protocol, stdio).await?;
        assert_eq!(outcome, Outcome::Exited(Exit::Code(7)), "{protocol:?}");
        let said = "exec/pod/Some(\"c\") says hi\n".to_owned();
        assert_eq!(heard(out, err).await?, (said.clone(), said));
    }
    Ok(())
}

#[tokio::test]
async fn a_kubelet_whose_gate_is_off_answers_websocket_as_its_runtime_does() -> Result<(), BoxError> {
    let off = || FeatureGates::with([(Gate::ExtendWebSocketsToKubelet, false)]);
    let v5 = ask(&mut kubelet_with(off()?), &websocket(&["v5.channel.k8s.io"])).await?;
    assert!(v5.starts_with("HTTP/1.1 403 "), "{v5}");
    let tunnel = websocket(&["SPDY/3.1+portforward.k8s.io"]);
    let tunnel = tunnel.replace("/exec/ns/pod/c?command=x&input=1&output=1&error=1", "/portForward/ns/pod");
    let refused = ask(&mut kubelet_with(off()?), &tunnel).await?;
    assert!(
        refused.starts_with("HTTP/1.1 400 ") && refused.contains("query parameter \"port\" is required"),
        "{refused}"
    );
    let served = ask(&mut kubelet_with(FeatureGates::default()), &tunnel).await?;
    assert!(served.starts_with("HTTP/1.1 101 "), "{served}");
    Ok(())
}
