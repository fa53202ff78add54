//! Real kubectl forwards ports, through the examples as real processes, to a real web server.
//!
//! Every client that forwards (`support/kubectl.rs`) runs every case, in one process, through a kubelet that ends tunnels
//! itself, through one that leaves it to the API server, and through a gateway in front (`support/lab.rs`). A failure names client, topology and case. The variables are those of `tests/kubectl.rs`.

mod support;

use std::{
    fs, io,
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use axum::{
    Json, Router,
    routing::{any_service, get},
};
use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream};
use serde_json::json;
use support::{
    Outcome, Scratch, count,
    forward::Forward,
    kubectl::{OURS, Run, forwarder, forwarders, ours},
    lab::{Lab, NO_WEBSOCKETS, Session, Settings, Topology, sessions_in},
    noise,
    pod::Pod,
    through::{self, soon},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    sync::Barrier,
    task::JoinSet,
};
use tower_kube_streaming::{
    layers::{Hop, danger::PermitAllLayer},
    port_forward::{PROTOCOL, TUNNEL},
    runtime::{Main, ProcessRuntime},
    services::{ApiServer, Kubelet, StreamingServer, TcpConnect, UpgradeProxy},
    upgrade::{Sessions, Target},
};

/// Cases of one client at a time.
const CASES_AT_ONCE: usize = 4;

/// Forwards that each client of the corpus starts.
const FORWARDS: usize = 3;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_forwards_ports_of_the_demo_in_one_process() {
    corpus(Topology::AllInOne, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_forwards_ports_through_an_apiserver_and_a_kubelet_over_tls() {
    corpus(Topology::TwoProcesses, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_forwards_ports_through_a_kubelet_that_speaks_websocket() {
    corpus(Topology::TwoProcesses, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_forwards_ports_through_a_gateway_in_front_of_a_cluster() {
    corpus(Topology::Gateway, true).await;
}

/// `passed`: the API server passes the tunnel on to the kubelet, which ends it.
async fn corpus(topology: Topology, passed: bool) {
    let settings = Settings { kubelet: if passed { &[] } else { NO_WEBSOCKETS }, ..Settings::default() };
    let pod = Pod::start().await.expect("the pod's servers start");
    let lab = match Lab::start_with(topology, settings).await {
        Ok(lab) => lab,
        Err(why) => panic!("{topology}: {why}"),
    };
    let mut failures = Vec::new();
    let clients = forwarders().into_iter().chain([true, false].map(ours));
    for client in clients.filter(|client| topology != Topology::Gateway || client.is_at_an_end()) {
        let started = Instant::now();
        let run = Run { lab: &lab, client: &client };
        // Clients take turns, so what is new in the log is this one's.
        let before = lab.sessions().len();
        let (many, one, refused) =
            tokio::join!(several_ports(&run, &pod), one_port(&run, &pod), refused_port(&run, &pod));
        let mut failed = many;
        failed.extend(one.err().map(|why| format!("one port: {why}")));
        failed.extend(refused.err().map(|why| format!("refused port: {why}")));
        failed.extend(session_log(&run, before, passed).await.err().map(|why| format!("session log: {why}")));
        if !failed.is_empty() {
            failures.push(format!("{client}, {topology}:\n  {}\n{}", failed.join("\n  "), lab.logs()));
        }
        println!("{client}, {topology}: {:.1?}", started.elapsed());
    }
    failures.extend(lab.stop().await.err().map(|why| format!("{topology}: drain: {why}")));
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Several ports at once, and on them what port-forward is for. Returns what failed.
async fn several_ports(run: &Run<'_>, pod: &Pod) -> Vec<String> {
    let forward = match Forward::start(run, &[pod.web, pod.patient, pod.resetting]).await {
        Ok(forward) => forward,
        Err(why) => return vec![format!("several ports: {why}")],
    };
    let mut failed: Vec<String> = stream::iter(cases(&forward, pod))
        .map(|(name, case)| async move {
            let started = Instant::now();
            let result = soon(name, case).await;
            println!("  {name}: {:.1?}", started.elapsed());
            result.err()
        })
        .buffer_unordered(CASES_AT_ONCE)
        .filter_map(std::future::ready)
        .collect()
        .await;
    if !failed.is_empty() {
        failed.push(format!("kubectl said: {}", forward.stderr().text()));
    }
    failed.extend(forward.stop().await.err());
    failed
}

/// Every case, by name. None has run yet.
fn cases<'a>(forward: &Forward, pod: &Pod) -> Vec<(&'static str, BoxFuture<'a, Outcome>)> {
    let (web, patient, resetting) = (forward.to(pod.web), forward.to(pod.patient), forward.to(pod.resetting));
    let torn = async move {
        through::torn(resetting).await?;
        // The forward goes on.
        through::page(web).await?;
        through::torn(resetting).await
    };
    vec![
        ("page", through::page(web).boxed()),
        ("download", through::download(web, count(32, 1024)).boxed()),
        ("upload", through::upload(web, count(16, 256)).boxed()),
        ("WebSocket", through::websocket(web).boxed()),
        ("half-closed", through::half_closed(patient, count(8, 64)).boxed()),
        ("many together", through::together(web).boxed()),
        ("torn by the pod", torn.boxed()),
    ]
}

async fn one_port(run: &Run<'_>, pod: &Pod) -> Outcome {
    let forward = Forward::start(run, &[pod.web]).await?;
    soon("page", through::page(forward.to(pod.web))).await?;
    let complaints = forward.stop().await?;
    ensure!(complaints.is_empty(), "kubectl said: {complaints}");
    Ok(())
}

/// Where failed dials are reported, as upstream does, one of them ends kubectl's whole forward, since 1.28 at least.
async fn refused_port(run: &Run<'_>, pod: &Pod) -> Outcome {
    let forward = Forward::start(run, &[pod.closed, pod.web]).await?;
    let why = format!(
        "error forwarding port {port} to pod demo, uid : failed to connect to localhost:{port}, IPv4: Connection refused",
        port = pod.closed
    );
    soon("refused", through::refused(forward.to(pod.closed))).await?;
    forward.stderr().until(Duration::from_secs(10), "the reason", |text| text.contains(&why)).await?;
    // The first, and ours: one connection that fails is no more than that.
    if ["1.20", OURS].contains(&run.client.version) {
        soon("page", through::page(forward.to(pod.web))).await?;
        forward.stop().await?;
        return Ok(());
    }
    let stderr = forward.stderr().clone();
    let status = forward.ended().await?;
    ensure!(status.code() == Some(1), "kubectl ended with {status}");
    ensure!(stderr.text().contains("lost connection to pod"), "kubectl said: {}", stderr.text());
    Ok(())
}

/// Which way the forwards went, by the API server's log: one line a session.
async fn session_log(run: &Run<'_>, before: usize, passed: bool) -> Outcome {
    let tunnelled = run.client.websocket;
    let all_in_one = run.lab.topology == Topology::AllInOne;
    let (wanted_in, wanted_out) = match (tunnelled, all_in_one) {
        (true, _) if passed => (TUNNEL, TUNNEL),
        (true, _) => (TUNNEL, PROTOCOL),
        (false, false) => (PROTOCOL, PROTOCOL),
        // SPDY that is passed through in one process is one session: the kubelet's, which has no next hop.
        (false, true) => (PROTOCOL, ""),
    };
    let went = |session: &Session| {
        session.field("protocol.in") == Some(wanted_in) && session.field("protocol.out") == Some(wanted_out)
    };
    // A line is written when the session's task ends, which may be after kubectl did.
    let log = &run.lab.apiserver.stderr;
    let all = |text: &str| sessions_in(text).iter().skip(before).filter(|session| went(session)).count() >= FORWARDS;
    let what = format!("{FORWARDS} sessions from {wanted_in:?} to {wanted_out:?}");
    let text = log.until(Duration::from_secs(10), &what, all).await?;
    let sessions = &sessions_in(&text)[before..];
    for session in sessions {
        let kubelets_half = session.field("protocol.in") == Some(PROTOCOL) && session.field("protocol.out") == Some("");
        ensure!(went(session) || (all_in_one && kubelets_half), "{what} were expected, and not: {session:?}");
        ensure!(session.field("subresource") == Some("portforward"), "no port-forward: {session:?}");
        ensure!(session.field("user") == Some("admin"), "the user is missing: {session:?}");
    }
    let ours: Vec<_> = sessions.iter().filter(|session| went(session)).collect();
    ensure!(ours.len() == FORWARDS, "{what} were expected: {sessions:#?}");
    let most = |field| ours.iter().filter_map(|session| session.field(field)?.parse::<usize>().ok()).max();
    let (out, into) = (count(40, 1088) << 20, count(16, 256) << 20);
    ensure!(most("bytes.out") >= Some(out), "{out} bytes out were expected: {sessions:#?}");
    ensure!(most("bytes.in") >= Some(into), "{into} bytes in were expected: {sessions:#?}");
    Ok(())
}

/// A kubelet that declares the tunnel is asked for it, and the API server carries its WebSocket unread.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kubelet_that_speaks_the_tunnel_has_it_passed_through() -> Outcome {
    let Some(client) = forwarder("1.37", true) else { return Ok(()) };
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    // Its sessions run in other tasks than this one; no other test of this file has any in this process.
    tracing::subscriber::set_global_default(subscriber).map_err(|error| error.to_string())?;

    let runtime = ProcessRuntime::new().container("default", "demo", "shell", Main::default());
    let kubelets = Sessions::new();
    let leaf = StreamingServer::new(runtime).offer_tunnel();
    let kubelet = Kubelet::builder().leaf_speaks_websocket().build(kubelets.clone(), PermitAllLayer, leaf);
    let kubelet = serve(Router::new().fallback_service(any_service(kubelet))).await?;
    let resolve = move |target: Arc<Target>| {
        std::future::ready(Hop::kubelet(&kubelet, &target).map(|hop| hop.speaks_websocket(true)))
    };
    let sessions = Sessions::new();
    let streams = ApiServer::new(sessions.clone(), PermitAllLayer, resolve, UpgradeProxy::new(TcpConnect));
    let scratch = Scratch::new("passed-through");
    let kubeconfig = scratch.path().join("kubeconfig");
    write_kubeconfig(&kubeconfig, &serve(api(any_service(streams))).await?)?;

    let pod = Pod::start().await?;
    let [web, patient] = [pod.web, pod.patient];
    let args = ["port-forward", "pod/demo", &format!("0:{web}"), &format!("0:{patient}")];
    let forward = Forward::spawn(&mut client.command(&kubeconfig, &scratch, &args), &[web, patient]).await?;
    soon("page", through::page(forward.to(web))).await?;
    soon("download", through::download(forward.to(web), count(8, 256))).await?;
    soon("upload", through::upload(forward.to(web), count(8, 64))).await?;
    soon("half-closed", through::half_closed(forward.to(patient), count(8, 64))).await?;
    soon("many together", through::together(forward.to(web))).await?;
    forward.stop().await?;
    for all in [&sessions, &kubelets] {
        let cut = all.drain(Duration::from_secs(10), Duration::from_secs(10)).await;
        ensure!(cut == 0, "{cut} sessions had to be cut");
    }
    let mut went: Vec<_> = sessions_in(&log.text())
        .iter()
        .map(|session| ["protocol.in", "protocol.out"].map(|field| session.field(field).map(str::to_owned)))
        .collect();
    went.sort();
    let passed = [Some(TUNNEL.to_owned()), Some(TUNNEL.to_owned())];
    let served = [Some(TUNNEL.to_owned()), Some(String::new())];
    ensure!(went == [served, passed], "{}", log.text());
    Ok(())
}

/// What the sessions of this process have logged.
#[derive(Clone, Debug, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().expect("no writer panics")).into_owned()
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("no writer panics").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Serves on a free port until the test ends. Returns the URL.
async fn serve(router: Router) -> Outcome<String> {
    let listener = TcpListener::bind("127.0.0.1:0").await.map_err(|error| error.to_string())?;
    let address = listener.local_addr().map_err(|error| error.to_string())?;
    tokio::spawn(async move { axum::serve(listener, router).await });
    Ok(format!("http://{address}"))
}

/// What kubectl asks an API server before it forwards a port, and the streams.
fn api(streams: axum::routing::MethodRouter) -> Router {
    let pods = json!({"name": "pods", "singularName": "", "namespaced": true, "kind": "Pod", "verbs": ["get"]});
    let pod = json!({
        "kind": "Pod", "apiVersion": "v1", "metadata": {"name": "demo", "namespace": "default"},
        "spec": {"containers": [{"name": "shell"}]}, "status": {"phase": "Running"},
    });
    let answer = |value: serde_json::Value| get(move || async move { Json(value) });
    Router::new()
        .route("/api", answer(json!({"kind": "APIVersions", "versions": ["v1"]})))
        .route("/apis", answer(json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": []})))
        .route("/api/v1", answer(json!({"kind": "APIResourceList", "groupVersion": "v1", "resources": [pods]})))
        .route("/api/v1/namespaces/default/pods/demo", answer(pod))
        .route("/api/v1/namespaces/default/pods/demo/portforward", streams)
}

fn write_kubeconfig(path: &Path, url: &str) -> Outcome {
    let text = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "test",
        "clusters": [{"name": "test", "cluster": {"server": url}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        "users": [{"name": "test", "user": {}}],
    });
    fs::write(path, text.to_string()).map_err(|error| error.to_string())
}

/// Connections of one wave of the isolation run: eight in ten are healthy.
const WAVE: usize = 50;
const HEALTHY: usize = 40;

/// Bytes that a healthy connection has echoed before the others fail, and again after.
const HALF: usize = 48 << 10;

/// How a connection disturbs the others.
#[derive(Clone, Copy, Debug)]
enum Disturbance {
    Refused,
    ResetByPod,
    ResetByClient,
    HalfClosed,
}

/// In `isolate`, what happens to one connection is nothing to the others of the same forward.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failing_connections_harm_no_other_of_the_same_forward() -> Outcome {
    let Some(client) = forwarder("1.37", true) else { return Ok(()) };
    let pod = Pod::start().await?;
    let settings = Settings { kubelet: &["--port-forward-errors=isolate"], ..Settings::default() };
    let lab = Lab::start_with(Topology::TwoProcesses, settings).await?;
    let run = Run { lab: &lab, client: &client };
    let mut forward = Forward::start(&run, &[pod.echo, pod.closed, pod.resetting, pod.web]).await?;
    let ports =
        Ports { echo: forward.to(pod.echo), closed: forward.to(pod.closed), resetting: forward.to(pod.resetting) };
    let choices = noise(11, count(300, 10_000));
    let started = Instant::now();
    for (number, choices) in choices.chunks(WAVE).enumerate() {
        if let Err(why) = wave(ports, number * WAVE, choices).await {
            return Err(format!("wave {number}: {why}\nkubectl said: {}\n{}", forward.stderr().text(), lab.logs()));
        }
    }
    println!("{} connections: {:.1?}", choices.len(), started.elapsed());
    soon("page", through::page(forward.to(pod.web))).await?;
    ensure!(forward.runs(), "kubectl ended: {}", forward.stderr().text());
    forward.stop().await?;
    lab.stop().await
}

#[derive(Clone, Copy)]
struct Ports {
    echo: u16,
    closed: u16,
    resetting: u16,
}

/// Healthy connections that all are in the middle of their work while the others fail.
async fn wave(ports: Ports, first: usize, choices: &[u8]) -> Outcome {
    // Once when the healthy ones are half way, and once when the failures have happened.
    let barrier = Arc::new(Barrier::new(choices.len()));
    let mut connections = JoinSet::new();
    for (index, choice) in choices.iter().enumerate() {
        let barrier = barrier.clone();
        // Which of a wave fails is as random as how.
        let healthy = (index + first / WAVE * 7) % WAVE < HEALTHY;
        let kind = [Disturbance::Refused, Disturbance::ResetByPod, Disturbance::ResetByClient, Disturbance::HalfClosed]
            [usize::from(choice % 4)];
        connections.spawn(async move {
            if healthy {
                let work = half_and_half(ports.echo, (first + index) as u64, barrier);
                soon("healthy", work).await
            } else {
                barrier.wait().await;
                let done = soon("disturbing", disturb(ports, kind)).await;
                barrier.wait().await;
                done.map_err(|why| format!("{kind:?}: {why}"))
            }
        });
    }
    let failed: Vec<String> = connections.join_all().await.into_iter().filter_map(Result::err).collect();
    ensure!(failed.is_empty(), "{} of {} connections: {}", failed.len(), choices.len(), failed.join("; "));
    Ok(())
}

async fn half_and_half(port: u16, seed: u64, barrier: Arc<Barrier>) -> Outcome {
    let opened = async {
        let mut tcp = through::tcp(port).await?;
        through::echoed(&mut tcp, &noise(seed, HALF)).await?;
        Ok(tcp)
    };
    let opened = opened.await.map_err(|why: String| format!("before the failures: {why}"));
    // Those who failed must not keep the others.
    barrier.wait().await;
    barrier.wait().await;
    let mut tcp = opened?;
    through::echoed(&mut tcp, &noise(seed + 1, HALF)).await?;
    through::ended(tcp).await
}

async fn disturb(ports: Ports, kind: Disturbance) -> Outcome {
    match kind {
        Disturbance::Refused => through::refused(ports.closed).await,
        Disturbance::ResetByPod => through::torn(ports.resetting).await,
        Disturbance::ResetByClient => {
            let mut tcp = through::tcp(ports.echo).await?;
            through::echoed(&mut tcp, &noise(1, HALF)).await?;
            tcp.set_zero_linger().map_err(|error| error.to_string())
        }
        Disturbance::HalfClosed => {
            let mut tcp = through::tcp(ports.echo).await?;
            tcp.write_all(&noise(2, 4096)).await.map_err(|error| error.to_string())?;
            tcp.shutdown().await.map_err(|error| error.to_string())?;
            let mut echo = Vec::new();
            tcp.read_to_end(&mut echo).await.map_err(|error| error.to_string())?;
            ensure!(echo == noise(2, 4096), "{} bytes came back", echo.len());
            Ok(())
        }
    }
}

/// The harness itself: without a forward between them its clients and its servers must agree.
#[tokio::test]
async fn the_pods_servers_and_the_clients_of_the_harness_agree() -> Outcome {
    let pod = Pod::start().await?;
    let (web, patient, resetting) = (pod.web, pod.patient, pod.resetting);
    through::page(web).await?;
    through::download(web, 2).await?;
    through::upload(web, 2).await?;
    through::websocket(web).await?;
    through::together(web).await?;
    through::half_closed(patient, 2).await?;
    through::torn(resetting).await?;
    let mut tcp = through::tcp(pod.echo).await?;
    through::echoed(&mut tcp, &noise(3, HALF)).await?;
    through::ended(tcp).await?;
    ensure!(through::tcp(pod.closed).await.is_err(), "somebody listens at the closed port");
    Ok(())
}
