//! A stream that fails says where: in what it counts, and in the log.
//!
//! The API server is the library's stack, and its one kubelet a script.

use std::{
    cell::RefCell,
    convert::Infallible,
    io,
    sync::{Arc, Mutex, MutexGuard, Once, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{StatusCode, Uri};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto::Builder,
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    time::timeout,
};
use tower_kube_streaming::{
    FeatureGates, Gate,
    layers::{
        Hop, MetricsLayer, Record,
        danger::PermitAllLayer,
        metrics::{Answer, Stream},
    },
    runtime::ProcessRuntime,
    services::{ApiServer, Kubelet, StreamingServer, UpgradeProxy},
    upgrade::{Cause, End, Leg, Report, Sessions, Target},
};

const EXEC: &str = "/api/v1/namespaces/default/pods/demo/exec?container=c&command=secret-command&stdout=true";
const FORWARD: &str = "/api/v1/namespaces/default/pods/demo/portforward?ports=80";
const V5: &str = "v5.channel.k8s.io";
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";

const WEBSOCKET_101: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                             Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSec-WebSocket-Protocol: v5.channel.k8s.io\r\n\r\n";
const SPDY_101: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\
                        X-Stream-Protocol-Version: v4.channel.k8s.io\r\n\r\n";
const FORWARD_101: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\
                           X-Stream-Protocol-Version: portforward.k8s.io\r\n\r\n";
/// A frame of another version of SPDY behind it.
const GARBAGE: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\
                         X-Stream-Protocol-Version: v4.channel.k8s.io\r\n\r\n\x80\x02\0\x02\0\0\0\0";
const FORBIDDEN: &[u8] = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n";
const BAD_REQUEST: &[u8] = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n";

/// What the kubelet does when it has been asked.
#[derive(Clone, Copy, Debug)]
enum Scripted {
    /// It answers so, and closes.
    Dies(&'static [u8]),
    /// It answers so, and says nothing more.
    Hangs(&'static [u8]),
}

/// What was counted: how the request was answered, and how its session ended.
#[derive(Default)]
struct Counted {
    answers: Mutex<Vec<Answer>>,
    ended: Mutex<Vec<(End, Cause)>>,
}

impl Record for Counted {
    fn answered(&self, _: Stream, answer: Answer, _: Duration) {
        lock(&self.answers).push(answer);
    }

    fn ended(&self, _: Stream, report: &Report, _: Duration) {
        lock(&self.ended).push((report.end, report.cause));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

thread_local! {
    /// What this thread has logged. All tasks of a test run on its thread.
    static LOG: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Empties this thread's log, and has lines written to it from now on. One subscriber for all threads: one of a thread's own
/// misses what another thread met first.
fn log_anew() {
    static ALL: Once = Once::new();
    ALL.call_once(|| tracing_subscriber::fmt().with_ansi(false).with_writer(|| ToLog).init());
    LOG.with_borrow_mut(Vec::clear);
}

fn logged() -> Vec<String> {
    LOG.with_borrow(|bytes| String::from_utf8_lossy(bytes).lines().map(str::to_owned).collect())
}

struct ToLog;

impl io::Write for ToLog {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        LOG.with_borrow_mut(|log| log.extend_from_slice(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// How one request went.
struct Went {
    /// The heads that the kubelet and the client got.
    asked: String,
    heard: String,
    answers: Vec<Answer>,
    ended: Vec<(End, Cause)>,
    log: Vec<String>,
}

/// Asks for a stream, sends `then` behind the answer's head, and hears it to its end.
async fn ask(request: String, then: &[u8], kubelet: Scripted, declares: bool, gates: FeatureGates) -> Went {
    log_anew();
    let (near, hop) = duplex(64 * 1024);
    let scripted = tokio::spawn(play(hop, kubelet));
    let near = Arc::new(Mutex::new(Some(near)));
    let connect = move |_: Uri| {
        let near = lock(&near).take();
        async move { near.ok_or_else(|| io::Error::other("dialled twice")) }
    };
    let resolve = move |target: Arc<Target>| async move {
        let hop = Hop::kubelet("http://node:10250", &target)?;
        Ok(if declares { hop.declares(["ExtendWebSocketsToKubelet"]) } else { hop })
    };
    let (counted, sessions) = (Arc::new(Counted::default()), Sessions::new());
    let authorize = (MetricsLayer::new(Arc::clone(&counted)), PermitAllLayer);
    let stack =
        ApiServer::builder().gates(gates).build(sessions.clone(), authorize, resolve, UpgradeProxy::new(connect));
    let mut client = serve(stack);
    client.write_all(request.as_bytes()).await.expect("the server reads");
    let heard = head(&mut client).await;
    if heard.starts_with("HTTP/1.1 101 ") {
        client.write_all(then).await.expect("the server reads");
        client.read_to_end(&mut Vec::new()).await.expect("an orderly end");
    }
    drop(client);
    assert_eq!(sessions.drain(Duration::from_secs(60), Duration::from_secs(60)).await, 0);
    let asked = scripted.await.expect("the script does not panic");
    let (answers, ended) = (lock(&counted.answers).clone(), lock(&counted.ended).clone());
    Went { asked, heard, answers, ended, log: logged() }
}

async fn play(mut hop: DuplexStream, kubelet: Scripted) -> String {
    let asked = head(&mut hop).await;
    let (Scripted::Dies(answer) | Scripted::Hangs(answer)) = kubelet;
    hop.write_all(answer).await.expect("the API server reads");
    if let Scripted::Hangs(_) = kubelet {
        let mut rest = Vec::new();
        // Until the API server gives it up.
        let _ = timeout(Duration::from_secs(3600), hop.read_to_end(&mut rest)).await;
    }
    asked
}

/// Reads the head of a request or an answer.
async fn head(io: &mut DuplexStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(io.read_u8().await.expect("the rest of a head"));
    }
    String::from_utf8_lossy(&head).into_owned()
}

/// A connection to an HTTP server of that stack.
fn serve<S>(stack: S) -> DuplexStream
where
    S: tower::Service<http::Request<Incoming>, Response = http::Response<Full<Bytes>>, Error = Infallible>,
    S: Clone + Send + 'static,
    S::Future: Send,
{
    let (near, far) = duplex(64 * 1024);
    tokio::spawn(async move {
        let http = Builder::new(TokioExecutor::new()).http1_only();
        let _ = http.serve_connection_with_upgrades(TokioIo::new(far), TowerToHyperService::new(stack)).await;
    });
    near
}

fn websocket(path: &str, protocol: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: {protocol}\r\n\r\n"
    )
}

fn gates(extend: bool) -> FeatureGates {
    FeatureGates::with([(Gate::ExtendWebSocketsToKubelet, extend)]).expect("gates that go together")
}

/// The one line that names a leg; and that no line has more of the request than it should.
fn leg_line(log: &[String]) -> &str {
    assert!(log.iter().all(|line| !line.contains("secret-command")), "{log:#?}");
    let lines: Vec<&String> = log.iter().filter(|line| line.contains("leg=")).collect();
    assert_eq!(lines.len(), 1, "{log:#?}");
    lines[0]
}

#[tokio::test(start_paused = true)]
async fn a_refusal_behind_a_stale_declaration_is_relayed_counted_and_logged() {
    for (answer, code) in [(FORBIDDEN, StatusCode::FORBIDDEN), (BAD_REQUEST, StatusCode::BAD_REQUEST)] {
        for (path, protocol) in [(EXEC, V5), (FORWARD, TUNNEL)] {
            let went = ask(websocket(path, protocol), b"", Scripted::Dies(answer), true, gates(true)).await;
            assert!(went.asked.starts_with("GET ") && went.asked.contains(protocol), "{}", went.asked);
            assert!(went.heard.starts_with(&format!("HTTP/1.1 {} ", code.as_u16())), "{}", went.heard);
            assert_eq!((went.answers, went.ended), (vec![Answer::Refused(code)], vec![]));
            let line = leg_line(&went.log);
            for part in ["leg=handshake", "websocket=true", &format!("code={}", code.as_u16())] {
                assert!(line.contains(part), "{line}");
            }
        }
    }
}

#[tokio::test]
async fn a_kubelet_that_refuses_what_its_node_declares_says_so_too() {
    for (path, protocol, code) in
        [("/exec/default/demo/c?command=secret-command&output=1", V5, 403), ("/portForward/default/demo", TUNNEL, 400)]
    {
        log_anew();
        let leaf = StreamingServer::new(ProcessRuntime::new());
        let mut client = serve(Kubelet::builder().gates(gates(false)).build(Sessions::new(), PermitAllLayer, leaf));
        client.write_all(websocket(path, protocol).as_bytes()).await.expect("the server reads");
        let heard = head(&mut client).await;
        assert!(heard.starts_with(&format!("HTTP/1.1 {code} ")), "{heard}");
        let log = logged();
        let line = leg_line(&log);
        assert!(line.contains("leg=handshake") && line.contains(&format!("code={code}")), "{line}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_api_servers_gate_and_the_nodes_each_cure_a_stale_declaration() {
    for (declares, extend) in [(true, false), (false, true)] {
        let went = ask(websocket(EXEC, V5), b"", Scripted::Dies(FORBIDDEN), declares, gates(extend)).await;
        assert!(went.asked.starts_with("POST /exec/default/demo/c?"), "{}", went.asked);
        assert!(went.asked.to_ascii_lowercase().contains("upgrade: spdy/3.1\r\n"), "{}", went.asked);
    }
}

#[tokio::test(start_paused = true)]
async fn a_kubelet_that_gives_no_answer_has_failed_the_handshake() {
    for (kubelet, why) in [
        (Scripted::Hangs(b""), "TimedOut"),
        (Scripted::Hangs(b"HTTP/1.1 101 Swit"), "TimedOut"),
        (Scripted::Dies(b""), "IncompleteMessage"),
    ] {
        for declares in [false, true] {
            let went = ask(websocket(EXEC, V5), b"", kubelet, declares, gates(true)).await;
            assert!(went.heard.starts_with("HTTP/1.1 500 "), "{kubelet:?}: {}", went.heard);
            let refused = Answer::Refused(StatusCode::INTERNAL_SERVER_ERROR);
            assert_eq!((went.answers, went.ended), (vec![refused], vec![]), "{kubelet:?}");
            let line = leg_line(&went.log);
            assert!(line.contains("leg=handshake") && line.contains(why), "{line}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_session_that_fails_behind_its_101_names_the_leg_and_the_cause() {
    let unmasked = b"\x82\x01x";
    for (path, protocol, declares, kubelet, then, cause) in [
        // A 101, and nothing behind it.
        (EXEC, V5, true, Scripted::Dies(WEBSOCKET_101), &b""[..], Cause::Handshake),
        (EXEC, V5, false, Scripted::Dies(SPDY_101), b"", Cause::Handshake),
        (FORWARD, TUNNEL, false, Scripted::Dies(FORWARD_101), b"", Cause::Handshake),
        (EXEC, V5, false, Scripted::Hangs(SPDY_101), b"", Cause::CreationTimeout),
        // It switched to something else.
        (EXEC, V5, false, Scripted::Hangs(FORWARD_101), b"", Cause::Handshake),
        (EXEC, V5, false, Scripted::Dies(GARBAGE), b"", Cause::UpstreamProtocol),
        (FORWARD, TUNNEL, false, Scripted::Hangs(FORWARD_101), unmasked, Cause::ClientProtocol),
    ] {
        let what = format!("{protocol} {declares} {cause}");
        let went = ask(websocket(path, protocol), then, kubelet, declares, gates(true)).await;
        assert_eq!((went.answers, went.ended), (vec![Answer::Switched], vec![(End::Error, cause)]), "{what}");
        let line = leg_line(&went.log);
        let leg = cause.leg().expect("all of them name one");
        for part in ["session ended", &format!("leg={leg}"), &format!("cause={cause}"), "detail="] {
            assert!(line.contains(part), "{what}: {part}: {line}");
        }
    }
    assert_eq!(Cause::ClientProtocol.leg(), Some(Leg::Translation));
}
