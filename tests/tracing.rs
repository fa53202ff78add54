//! What is logged: every line of a session in its span, the trace of the request in all processes, and never a secret.
//!
//! One subscriber takes every line at every level, of this crate and of all others.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, as it should")]

use std::{
    convert::Infallible,
    io::{self, Write},
    sync::{Arc, LazyLock, Mutex},
    time::Duration,
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    net::TcpListener,
    sync::mpsc,
};
use tower::{Service, util::BoxCloneSyncService};
use tower_kube_streaming::{
    adapters::prometheus::StreamingMetrics,
    layers::{
        Hop, MetricsLayer, QuotaLayer, SyntheticAuthzLayer,
        danger::PermitAllLayer,
        synthetic_authz::{Attributes, Decision},
    },
    port_forward::over_spdy_client,
    remote_command::{Input, Output, Stdio, Version, over_spdy_client as exec_over_spdy, status::Outcome},
    runtime::{Main, ProcessRuntime},
    services::{ApiServer, Kubelet, StreamingServer, UpgradeProxy},
    upgrade::{Sessions, StreamOptions, Target},
};
use tower_kube_streaming_testing::{
    client::message,
    http::{header, read_head},
};

/// All that was logged in this process.
static LOG: LazyLock<Arc<Mutex<Vec<u8>>>> = LazyLock::new(|| {
    let log: Arc<Mutex<Vec<u8>>> = Arc::default();
    let writer = Arc::clone(&log);
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_ansi(false)
        .with_writer(move || Append(Arc::clone(&writer)))
        .init();
    log
});

struct Append(Arc<Mutex<Vec<u8>>>);

impl Write for Append {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The lines so far that have `part` in them.
fn lines(part: &str) -> Vec<String> {
    let log = String::from_utf8_lossy(&LOG.lock().unwrap()).into_owned();
    log.lines().filter(|line| line.contains(part)).map(str::to_owned).collect()
}

/// A connection to an HTTP server of that stack.
fn serve<S>(stack: S) -> DuplexStream
where
    S: Service<Request<Incoming>, Response = Response<Full<Bytes>>, Error = Infallible, Future: Send>,
    S: Clone + Send + 'static,
{
    let (near, far) = duplex(64 * 1024);
    tokio::spawn(async move {
        let http = hyper::server::conn::http1::Builder::new();
        http.serve_connection(TokioIo::new(far), TowerToHyperService::new(stack)).with_upgrades().await
    });
    near
}

/// API server and kubelet as two stacks with HTTP between them, as two processes would be.
struct Cluster {
    sessions: [Sessions; 2],
    kubelet: BoxCloneSyncService<Request<Incoming>, Response<Full<Bytes>>, Infallible>,
}

impl Cluster {
    fn new() -> Self {
        LazyLock::force(&LOG);
        let sessions = [Sessions::new(), Sessions::new()];
        let shell = Main { command: vec!["sleep".into(), "1000".into()], tty: false, stdin: false };
        let runtime = ProcessRuntime::new().container("default", "demo", "c", shell);
        let kubelet = Kubelet::new(sessions[1].clone(), PermitAllLayer, StreamingServer::new(runtime));
        Self { sessions, kubelet: BoxCloneSyncService::new(kubelet) }
    }

    /// A connection to the API server.
    fn dial(&self) -> DuplexStream {
        let kubelet = self.kubelet.clone();
        before(self.sessions[0].clone(), false, move |_: Uri| {
            let kubelet = kubelet.clone();
            async move { Ok::<_, io::Error>(serve(kubelet)) }
        })
    }

    /// Waits until all sessions have ended, and told so.
    async fn ended(self) {
        for sessions in self.sessions {
            assert_eq!(sessions.drain(Duration::from_secs(20), Duration::ZERO).await, 0, "a session did not end");
        }
    }
}

/// A connection to an API server with all layers, before hops that `connect` dials.
fn before<C>(sessions: Sessions, speaks_websocket: bool, connect: C) -> DuplexStream
where
    C: tower_kube_streaming::services::Connect,
{
    let authorize = SyntheticAuthzLayer::new(|_: Attributes| async { Ok(Decision::allow()) });
    let layers = (MetricsLayer::new(StreamingMetrics::api_server()), authorize, QuotaLayer::new().max_sessions(100));
    let resolve = move |target: Arc<Target>| async move {
        Ok(Hop::kubelet("http://node:10250", &target)?.speaks_websocket(speaks_websocket))
    };
    serve(ApiServer::new(sessions, layers, resolve, UpgradeProxy::new(connect)))
}

const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";

fn websocket(path: &str, protocols: &str, more: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: {protocols}\r\n{more}\r\n"
    )
}

fn spdy(path: &str, protocol: &str, more: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\
         X-Stream-Protocol-Version: {protocol}\r\nContent-Length: 0\r\n{more}\r\n"
    )
}

fn path(subresource: &str, query: &str) -> String {
    format!("/api/v1/namespaces/default/pods/demo/{subresource}{query}")
}

/// Asks, and expects a `101`.
async fn switch(io: &mut DuplexStream, request: &str) {
    io.write_all(request.as_bytes()).await.unwrap();
    let answer = read_head(io).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
}

/// Reads until `part` has come.
async fn hears(io: &mut DuplexStream, part: &str) -> String {
    let mut heard = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&heard);
        if text.contains(part) {
            return text.into_owned();
        }
        let length = io.read_buf(&mut heard).await.unwrap();
        assert!(length > 0, "the end came before {part:?}: {}", String::from_utf8_lossy(&heard));
    }
}

/// A control frame of a version that there is not.
const NO_SPDY: &[u8] = &[0xff; 16];

/// Each is a word that nothing else would say.
const SECRETS: [&str; 8] = [
    "sEcRet-argument",
    "sEcRet-program",
    "sEcRet-environment",
    "sEcRet-token",
    "sEcRet-protocol",
    "sEcRet-stdin",
    "sEcRet-size",
    "sEcRet-bytes",
];

#[tokio::test]
async fn no_line_at_any_level_tells_commands_environment_tokens_or_bytes() {
    let [argument, program, environment, token, protocol, stdin, size, bytes] = SECRETS;
    let cluster = Cluster::new();
    let encoded = URL_SAFE_NO_PAD.encode(protocol);
    let credentials = format!("Authorization: Bearer {token}\r\nCookie: id={token}\r\n");
    let protocols = format!("base64url.bearer.authorization.k8s.io.{encoded}, v5.channel.k8s.io");
    let script =
        format!("command=env&command=WHAT={environment}&command=sh&command=-c&command=cat;echo%20$0%20$WHAT;exit%203");
    let script = format!("?container=c&stdin=true&stdout=true&{script}&command={argument}");

    // Translated.
    let mut client = cluster.dial();
    switch(&mut client, &websocket(&path("exec", &script), &protocols, &credentials)).await;
    client.write_all(&[message(0, stdin.as_bytes()), message(255, &[0])].concat()).await.unwrap();
    let heard = hears(&mut client, "NonZeroExitCode").await;
    for secret in [stdin, argument, environment] {
        assert!(heard.contains(secret), "{secret} is not in {heard}");
    }
    drop(client);

    // Passed through.
    let mut client = cluster.dial();
    switch(&mut client, &spdy(&path("exec", &script), "v4.channel.k8s.io", &credentials)).await;
    let (gone, mut output) = (Default::default(), duplex(1024));
    let mut stdio = Stdio::new(gone);
    stdio.stdin = Some(Input::new(stdin.as_bytes()));
    stdio.stdout = Some(Output::new(output.0));
    let mut options = StreamOptions::default();
    (options.stdin, options.stdout) = (true, true);
    let outcome = exec_over_spdy::run(client, Version::V4, &options, stdio).await.unwrap();
    assert!(matches!(outcome, Outcome::Exited(_)), "{outcome:?}");
    let mut heard = String::new();
    output.1.read_to_string(&mut heard).await.unwrap();
    assert!(heard.contains(stdin) && heard.contains(argument), "{heard}");

    // A program that is not there, and a terminal of a size that is none.
    let mut client = cluster.dial();
    let query = format!("?container=c&stdin=true&stdout=true&tty=true&command=/{program}&command={argument}");
    switch(&mut client, &websocket(&path("exec", &query), &protocols, &credentials)).await;
    let sizes = [format!(r#"{{"Width":"{size}"}}"#), format!(r#"{{"{size}":1}}"#), format!("{size}}}")];
    for size in sizes {
        client.write_all(&message(4, size.as_bytes())).await.unwrap();
    }
    hears(&mut client, program).await;
    drop(client);

    // What breaks either protocol.
    let mut client = cluster.dial();
    let query = "?container=c&stdin=true&stdout=true&command=cat";
    switch(&mut client, &websocket(&path("exec", query), &protocols, &credentials)).await;
    client.write_all(bytes.as_bytes()).await.unwrap();
    client.read_buf(&mut Vec::new()).await.unwrap();
    drop(client);
    let mut client = cluster.dial();
    switch(&mut client, &spdy(&path("exec", query), "v4.channel.k8s.io", &credentials)).await;
    client.write_all(&[NO_SPDY, bytes.as_bytes()].concat()).await.unwrap();
    client.read_to_end(&mut Vec::new()).await.unwrap();

    // A port-forward.
    let pod = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = pod.local_addr().unwrap().port();
    tokio::spawn(async move {
        let mut io = pod.accept().await.unwrap().0;
        let (mut read, mut write) = io.split();
        tokio::io::copy(&mut read, &mut write).await
    });
    let mut client = cluster.dial();
    switch(&mut client, &spdy(&path("portforward", ""), "portforward.k8s.io", &credentials)).await;
    let (forward, connection) = over_spdy_client::connect(client);
    let connection = tokio::spawn(connection);
    let mut pair = forward.pair(port.try_into().unwrap()).await.unwrap();
    pair.data.write_all(bytes.as_bytes()).await.unwrap();
    pair.data.shutdown().await.unwrap();
    let mut heard = String::new();
    pair.data.read_to_string(&mut heard).await.unwrap();
    assert_eq!(heard, bytes);
    forward.close();
    drop((pair, forward));
    connection.await.unwrap().unwrap();
    cluster.ended().await;

    for sign_of_life in ["session ended", "malformed terminal size", "broke the protocol", "DEBUG", "TRACE"] {
        tracing::trace!("the lowest level is taken too");
        assert!(!lines(sign_of_life).is_empty(), "{sign_of_life}");
    }
    for secret in SECRETS.into_iter().chain([&*encoded]) {
        assert_eq!(lines(secret), [""; 0]);
    }
}

fn traceparent(trace: &str) -> String {
    format!("traceparent: 00-{trace}-00f067aa0ba902b7-01\r\ntracestate: vendor=1\r\n")
}

#[tokio::test]
async fn both_processes_lines_name_the_trace_of_the_request() {
    let trace = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa1";
    let cluster = Cluster::new();
    let query = "?container=c&stdout=true&command=true";
    let mut client = cluster.dial();
    switch(&mut client, &websocket(&path("exec", query), "v5.channel.k8s.io", &traceparent(trace))).await;
    hears(&mut client, "Success").await;
    drop(client);
    let mut client = cluster.dial();
    let nosuch = path("exec", query).replace("demo", "nosuch");
    client.write_all(spdy(&nosuch, "v4.channel.k8s.io", &traceparent(trace)).as_bytes()).await.unwrap();
    hears(&mut client, "HTTP/1.1 404").await;
    cluster.ended().await;

    let told = lines(&format!("trace.id={trace}"));
    assert!(told.iter().all(|line| line.contains("stream{subresource=exec ")), "{told:#?}");
    let count = |part: &str| told.iter().filter(|line| line.contains(part)).count();
    assert_eq!(count("session ended"), 2, "{told:#?}");
    assert_eq!(count("stream allowed"), 2, "{told:#?}");
    assert_eq!(count("the next hop refused the stream"), 1, "{told:#?}");
    assert_eq!(count(r#"}:next_hop{server.address="node" server.port=10250}: "#), 1, "{told:#?}");
}

#[tokio::test]
async fn a_fault_of_a_hop_is_told_in_a_span_that_names_the_hop() {
    LazyLock::force(&LOG);
    let garbage = |protocol: &'static str| {
        move |_: Uri| async move {
            let (near, mut hop) = duplex(64 * 1024);
            tokio::spawn(async move {
                read_head(&mut hop).await.unwrap();
                let answer = format!(
                    "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\
                     X-Stream-Protocol-Version: {protocol}\r\n\r\n"
                );
                hop.write_all(&[answer.as_bytes(), NO_SPDY].concat()).await.unwrap();
                hop.read_to_end(&mut Vec::new()).await
            });
            Ok::<_, io::Error>(near)
        }
    };
    let exec = path("exec", "?container=c&stdout=true&command=true");
    let v4 = "v4.channel.k8s.io";
    for (trace, request, fault) in [
        (
            "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb1",
            websocket(&exec, "v5.channel.k8s.io", ""),
            "the next hop broke the protocol",
        ),
        ("bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb2", spdy(&exec, v4, ""), "not SPDY"),
    ] {
        let sessions = Sessions::new();
        let mut client = before(sessions.clone(), false, garbage(v4));
        let request = request.strip_suffix("\r\n").unwrap().to_owned() + &traceparent(trace) + "\r\n";
        switch(&mut client, &request).await;
        client.read_buf(&mut Vec::new()).await.unwrap();
        drop(client);
        sessions.drain(Duration::from_secs(20), Duration::ZERO).await;
        let told = lines(trace);
        let inside = format!("trace.id={trace}}}:next_hop{{server.address=\"node\" server.port=10250}}: ");
        let told_inside = told.iter().any(|line| line.contains(&inside) && line.contains(fault));
        assert!(told_inside, "{fault}: {told:#?}");
    }
}

#[tokio::test]
async fn the_next_hop_gets_the_trace_context_on_every_path_if_it_is_valid() {
    LazyLock::force(&LOG);
    let valid = traceparent("ccccccccccccccccccccccccccccccc1");
    let malformed = valid.replace("00-c", "00-C");
    let exec = path("exec", "?container=c&stdout=true&command=true");
    let forward = path("portforward", "");
    for (name, head, speaks_websocket) in [
        ("translated", websocket(&exec, "v5.channel.k8s.io", ""), false),
        ("tunnelled", websocket(&forward, TUNNEL, ""), false),
        ("SPDY passed through", spdy(&exec, "v4.channel.k8s.io", ""), false),
        ("WebSocket passed through", websocket(&exec, "v5.channel.k8s.io", ""), true),
    ] {
        for (context, passes) in [(&valid, true), (&malformed, false)] {
            let (asked, mut heads) = mpsc::unbounded_channel();
            let connect = move |_: Uri| {
                let asked = asked.clone();
                async move {
                    let (near, mut hop) = duplex(64 * 1024);
                    tokio::spawn(async move { asked.send(read_head(&mut hop).await.unwrap()) });
                    Ok::<_, io::Error>(near)
                }
            };
            let mut client = before(Sessions::new(), speaks_websocket, connect);
            let request = head.strip_suffix("\r\n").unwrap().to_owned() + context + "\r\n";
            client.write_all(request.as_bytes()).await.unwrap();
            let asked = heads.recv().await.unwrap();
            let sent = header(&format!("\r\n{context}"), "traceparent").unwrap().to_owned();
            assert_eq!(header(&asked, "traceparent"), passes.then_some(&*sent), "{name}: {asked}");
            assert_eq!(header(&asked, "tracestate"), passes.then_some("vendor=1"), "{name}: {asked}");
        }
    }
}
