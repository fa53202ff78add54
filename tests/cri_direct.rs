//! Our clients and our proxy at the streaming server of a real containerd, with nothing of ours in between that translates.
//!
//! An example kubelet runs the Pod; the URLs are those that the runtime gives for CRI's `Exec`, `Attach` and `PortForward`.

mod support;

use std::{fmt, fs, io, num::NonZeroU16, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::future::join_all;
use http::{Request, StatusCode, Uri};
use http_body_util::Empty;
use hyper::client::conn::http1 as http1_client;
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use sha2::{Digest, Sha256};
use support::{
    Outcome, Scratch,
    containerd::{Containerd, POD, WEB, manifest},
    count, hex,
    kubectl::tree,
    lab::example,
    noise,
    process::Process,
    sha256,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    net::TcpListener,
    sync::watch,
    task::JoinSet,
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tower::ServiceBuilder;
use tower_kube_streaming::{
    adapters::cri::CriRuntime,
    client::{Carrier, ExecRequest, Execute, ExecuteError, FallbackExecutor, SpdyExecutor, WebSocketExecutor},
    layers::{FeatureRoutingLayer, Hop, Resolve, UpgradeDetectLayer, danger::PermitAllLayer},
    port_forward::over_spdy_client::{self, Forward},
    remote_command::{Exit, Input, Output, Stdio, TerminalSize, Version, over_websocket::WsProtocol},
    services::{Connect, TcpConnect, UpgradeProxy},
    upgrade::{Dialect, Sessions, StreamOptions, Subresource, Target},
};

const LIMIT: Duration = Duration::from_secs(60);

/// How its streaming server is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Direct,
    /// Through a kubelet that translates nothing.
    Proxied,
}

/// A containerd with the Pod in it, and a proxy before it.
struct Pod {
    runtime: CriRuntime,
    proxy: String,
    kubelet: Process,
    _proxying: JoinSet<()>,
    _containerd: Containerd,
}

impl Pod {
    async fn start() -> Outcome<Option<Self>> {
        let Some(containerd) = Containerd::start()? else { return Ok(None) };
        let manifests = Scratch::new("cri-direct");
        let flags = [containerd.endpoint(), manifest(&manifests, POD)?];
        let mut command = example("kubelet");
        let kubelet = Process::start("kubelet", command.args(["--listen=127.0.0.1:0", "--insecure"]).args(flags))?;
        kubelet.ready().await?;
        let runtime = CriRuntime::new(&format!("unix://{}", containerd.dir.join("c.sock").display()));
        let runtime = runtime.map_err(text)?;
        let (proxy, proxying) = proxy(runtime.clone()).await.map_err(text)?;
        Ok(Some(Self { runtime, proxy, kubelet, _proxying: proxying, _containerd: containerd }))
    }

    async fn stop(self) -> Outcome {
        let ended = self.kubelet.stop().await?;
        ensure!(ended.success(), "{ended}");
        Ok(())
    }

    /// The URL for that; one of the runtime's own is good for one request.
    async fn url(&self, way: Way, subresource: Subresource, container: &str, options: StreamOptions) -> Outcome<Uri> {
        let target = Arc::new(Target {
            subresource,
            namespace: "default".into(),
            pod: "demo".into(),
            uid: None,
            container: Some(container.into()),
            options,
            dialect: Dialect::Kubelet,
        });
        let hop = match way {
            Way::Direct => self.runtime.resolve(target).await,
            Way::Proxied => Hop::kubelet(&self.proxy, &target),
        };
        hop.map(|hop| hop.uri).map_err(|refused| format!("{refused:?}"))
    }

    async fn exec(&self, way: Way, command: &[&str], tty: bool) -> Outcome<ExecRequest> {
        let command = command.iter().map(|&word| word.to_owned()).collect();
        let options = StreamOptions { stdin: true, stdout: true, stderr: !tty, tty, command, ports: Vec::new() };
        let url = self.url(way, Subresource::Exec, "sidecar", options.clone()).await?;
        ExecRequest::new(url, options).map_err(text)
    }
}

fn text(error: impl fmt::Display) -> String {
    error.to_string()
}

/// Passes all that it is asked on to the runtime, as it came.
async fn proxy(runtime: CriRuntime) -> io::Result<(String, JoinSet<()>)> {
    let stack = ServiceBuilder::new()
        .layer(UpgradeDetectLayer::new(Dialect::Kubelet, Sessions::new()))
        .layer(PermitAllLayer)
        .layer(FeatureRoutingLayer::new(runtime))
        .service(UpgradeProxy::new(TcpConnect));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let base = format!("http://{}", listener.local_addr()?);
    let mut proxying = JoinSet::new();
    proxying.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((tcp, _)) = listener.accept().await {
            let http = hyper::server::conn::http1::Builder::new();
            let served = http.serve_connection(TokioIo::new(tcp), TowerToHyperService::new(stack.clone()));
            connections.spawn(async move { drop::<Result<(), _>>(served.with_upgrades().await) });
        }
    });
    Ok((base, proxying))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containerd_speaks_with_our_clients_and_through_our_proxy() -> Outcome {
    // One runtime for all: starting one takes longer than any of these.
    let Some(pod) = Pod::start().await? else { return Ok(()) };
    every_version_of_spdy_runs_commands(&pod)
        .await
        .map_err(|why| format!("every version of spdy runs commands: {why}"))?;
    every_subprotocol_of_websocket_before_v5_runs_commands(&pod)
        .await
        .map_err(|why| format!("every subprotocol of websocket before v5 runs commands: {why}"))?;
    large_streams_arrive_whole(&pod).await.map_err(|why| format!("large streams arrive whole: {why}"))?;
    a_tree_is_copied_there_and_back(&pod).await.map_err(|why| format!("a tree is copied there and back: {why}"))?;
    a_terminal_has_its_size_and_is_told_another(&pod)
        .await
        .map_err(|why| format!("a terminal has its size and is told another: {why}"))?;
    ports_of_the_pod_are_reached(&pod).await.map_err(|why| format!("ports of the pod are reached: {why}"))?;
    attach_reads_the_main_process(&pod).await.map_err(|why| format!("attach reads the main process: {why}"))?;
    v5_is_refused_and_the_url_is_used_up(&pod)
        .await
        .map_err(|why| format!("v5 is refused and the url is used up: {why}"))?;
    pod.stop().await
}

/// The user's ends, and what the outputs said.
struct User {
    stdio: Stdio,
    stdout: DuplexStream,
    stderr: DuplexStream,
}

impl User {
    /// One who types that, and then ends stdin.
    fn typing(stdin: Vec<u8>) -> Self {
        let ((stdout, out), (stderr, err)) = (duplex(64 << 10), duplex(64 << 10));
        let mut stdio = Stdio::new(CancellationToken::new());
        stdio.stdin = Some(Input::new(io::Cursor::new(stdin)));
        (stdio.stdout, stdio.stderr) = (Some(Output::new(out)), Some(Output::new(err)));
        Self { stdio, stdout, stderr }
    }
}

/// What became of a command.
#[derive(Debug)]
struct Ran {
    exit: Result<Exit, ExecuteError>,
    stdout: String,
    stderr: String,
}

/// Runs it, and checks the protocol.
async fn run(executor: impl Execute, request: &ExecRequest, protocol: &str, stdin: Vec<u8>) -> Outcome<Ran> {
    let opened = executor.open(request).await.map_err(text)?;
    ensure!(opened.protocol() == protocol, "{} instead of {protocol}", opened.protocol());
    let User { stdio, mut stdout, mut stderr } = User::typing(stdin);
    let (mut out, mut err) = (String::new(), String::new());
    let (out, err) = (&mut out, &mut err);
    let all = async { tokio::join!(opened.run(stdio), stdout.read_to_string(out), stderr.read_to_string(err)) };
    let (exit, read_out, read_err) = timeout(LIMIT, all).await.map_err(|_| format!("{protocol}: it hangs"))?;
    read_out.and(read_err).map_err(text)?;
    Ok(Ran { exit, stdout: out.clone(), stderr: err.clone() })
}

/// A command that needs a line, and no end, of stdin.
const LINE: [&str; 3] = ["sh", "-c", "read -r line; echo \"got $line\"; echo err >&2; exit 7"];

/// What is known of an exit code of 7: in v4 the code, before it a sentence; over SPDY v1 nothing, as containerd resets the
/// error stream at once.
fn check_line(ran: &Ran, carrier: Carrier, version: Version) -> Outcome {
    ensure!((&*ran.stdout, &*ran.stderr) == ("got it\n", "err\n"), "{version}: {ran:?}");
    let told = match (&ran.exit, version) {
        (Ok(exit), Version::V1) => carrier == Carrier::Spdy && *exit == Exit::Success,
        (Ok(exit), _) => version.has_status() && *exit == Exit::Code(7),
        (Err(ExecuteError::Failed(why)), _) => !version.has_status() && why.ends_with("exit code 7"),
        _ => false,
    };
    ensure!(told, "{version}: {ran:?}");
    Ok(())
}

async fn every_version_of_spdy_runs_commands(pod: &Pod) -> Outcome {
    let offers: [(&[Version], Version); 5] = [
        (&[Version::V1], Version::V1),
        (&[Version::V2], Version::V2),
        (&[Version::V3], Version::V3),
        (&[Version::V4], Version::V4),
        (&Version::NEWEST_FIRST, Version::V4),
    ];
    let big = noise(3, 1 << 20);
    for way in [Way::Direct, Way::Proxied] {
        for (offered, version) in offers {
            let executor = || SpdyExecutor::new(TcpConnect).versions(offered.iter().copied());
            let line = run(executor(), &pod.exec(way, &LINE, false).await?, version.name(), b"it\n".into()).await?;
            check_line(&line, Carrier::Spdy, version).map_err(|why| format!("{way:?}: {why}"))?;
            if version == Version::V1 {
                continue;
            }
            let request = pod.exec(way, &["sha256sum"], false).await?;
            let sum = run(executor(), &request, version.name(), big.clone()).await?;
            ensure!(matches!(sum.exit, Ok(Exit::Success)), "{way:?} {version}: {sum:?}");
            ensure!(sum.stdout.starts_with(&sha256(&big, 1)), "{way:?} {version}: {sum:?}");
        }
    }
    Ok(())
}

async fn every_subprotocol_of_websocket_before_v5_runs_commands(pod: &Pod) -> Outcome {
    for way in [Way::Direct, Way::Proxied] {
        for protocol in WsProtocol::ALL.into_iter().filter(|protocol| *protocol != WsProtocol::V5) {
            let executor = WebSocketExecutor::new(TcpConnect).protocols([protocol]);
            let request = pod.exec(way, &LINE, false).await?;
            let line = run(executor, &request, protocol.name(), b"it\n".into()).await?;
            check_line(&line, Carrier::WebSocket, protocol.version())
                .map_err(|why| format!("{way:?} {protocol:?}: {why}"))?;
        }
        // One request may offer what only newer runtimes speak.
        let executor = WebSocketExecutor::new(TcpConnect).protocols([WsProtocol::V5, WsProtocol::V4]);
        let request = pod.exec(way, &LINE, false).await?;
        let line = run(executor, &request, WsProtocol::V4.name(), b"it\n".into()).await?;
        check_line(&line, Carrier::WebSocket, Version::V4).map_err(|why| format!("{way:?}: {why}"))?;
    }
    Ok(())
}

async fn large_streams_arrive_whole(pod: &Pod) -> Outcome {
    let mebibytes = count(16, 1024);
    let (block, lines) =
        (noise(4, 1 << 20), (1_000_000..1_131_072).map(|line| format!("{line}\n")).collect::<String>());
    let cats = format!("n=0; while [ $n -lt {mebibytes} ]; do cat /tmp/lines; n=$((n+1)); done");
    let cats = format!("seq 1000000 1131071 >/tmp/lines; {cats}");
    let limit = Duration::from_secs(count(60, 600));
    for way in [Way::Direct, Way::Proxied] {
        let User { mut stdio, mut stdout, .. } = User::typing(Vec::new());
        let (mut typing, stdin) = duplex(64 << 10);
        stdio.stdin = Some(Input::new(stdin));
        let opened = SpdyExecutor::new(TcpConnect).open(&pod.exec(way, &["sha256sum"], false).await?).await;
        let fed = async {
            for _ in 0..mebibytes {
                typing.write_all(&block).await?;
            }
            drop(typing);
            let mut sum = String::new();
            stdout.read_to_string(&mut sum).await.map(|_| sum)
        };
        let all = async { tokio::join!(opened.map_err(text)?.run(stdio), fed).1.map_err(text) };
        let sum = timeout(limit, all).await.map_err(|_| format!("{way:?}: stdin hangs"))??;
        ensure!(sum.starts_with(&sha256(&block, mebibytes)), "{way:?}: the container got {sum}");

        for carrier in [Carrier::Spdy, Carrier::WebSocket] {
            let request = pod.exec(way, &["sh", "-c", &cats], false).await?;
            let opened = match carrier {
                Carrier::Spdy => SpdyExecutor::new(TcpConnect).open(&request).await,
                _ => WebSocketExecutor::new(TcpConnect).protocols([WsProtocol::V4]).open(&request).await,
            };
            let User { stdio, mut stdout, .. } = User::typing(Vec::new());
            let read = async {
                let (mut hash, mut buffer) = (Sha256::new(), vec![0; 64 << 10]);
                while let read @ 1.. = stdout.read(&mut buffer).await? {
                    hash.update(&buffer[..read]);
                }
                Ok::<_, io::Error>(hex(&hash.finalize()))
            };
            let both = async { Ok::<_, ExecuteError>(tokio::join!(opened?.run(stdio), read)) };
            let both = timeout(limit, both).await.map_err(|_| format!("{way:?} {carrier}: stdout hangs"))?;
            let (exit, sum) = both.map_err(text)?;
            ensure!(matches!(exit, Ok(Exit::Success)), "{way:?} {carrier}: {exit:?}");
            ensure!(sum.map_err(text)? == sha256(lines.as_bytes(), mebibytes), "{way:?} {carrier}: stdout differs");
        }
    }
    Ok(())
}

/// As `cp` does it: an archive into `tar`, and one out of it.
async fn a_tree_is_copied_there_and_back(pod: &Pod) -> Outcome {
    let scratch = Scratch::new("cri-tree");
    let (there, back) = (scratch.dir("there"), scratch.path().join("back"));
    for (number, file) in ["a", "empty", "sub/b", "sub/sub/name with blanks"].into_iter().enumerate() {
        let path = there.join(file);
        fs::create_dir_all(path.parent().expect("in the tree")).map_err(text)?;
        fs::write(path, noise(number as u64, [70_000, 0, 1, 300_000][number])).map_err(text)?;
    }
    let mut archive = tar::Builder::new(Vec::new());
    archive.append_dir_all("tree", &there).map_err(text)?;
    let archive = archive.into_inner().map_err(text)?;
    for way in [Way::Direct, Way::Proxied] {
        let unpack = pod.exec(way, &["tar", "xf", "-", "-C", "/tmp"], false).await?;
        let unpacked = run(SpdyExecutor::new(TcpConnect), &unpack, Version::V4.name(), archive.clone()).await?;
        ensure!(matches!(unpacked.exit, Ok(Exit::Success)), "{way:?}: {unpacked:?}");
        let pack = pod.exec(way, &["tar", "cf", "-", "-C", "/tmp/tree", "."], false).await?;
        let opened = SpdyExecutor::new(TcpConnect).open(&pack).await.map_err(text)?;
        let User { stdio, mut stdout, .. } = User::typing(Vec::new());
        let mut packed = Vec::new();
        let both = async { tokio::join!(opened.run(stdio), stdout.read_to_end(&mut packed)) };
        let (exit, read) = timeout(LIMIT, both).await.map_err(|_| "it hangs")?;
        ensure!(matches!(exit, Ok(Exit::Success)) && read.is_ok(), "{way:?}: {exit:?}, {read:?}");
        let _ = fs::remove_dir_all(&back);
        tar::Archive::new(&*packed).unpack(&back).map_err(text)?;
        ensure!(tree(&back)? == tree(&there)?, "{way:?}: {:?}", tree(&back)?);
        let gone = pod.exec(way, &["rm", "-r", "/tmp/tree"], false).await?;
        let gone = run(SpdyExecutor::new(TcpConnect), &gone, Version::V4.name(), Vec::new()).await?;
        ensure!(matches!(gone.exit, Ok(Exit::Success)), "{way:?}: {gone:?}");
    }
    Ok(())
}

async fn a_terminal_has_its_size_and_is_told_another(pod: &Pod) -> Outcome {
    const SCRIPT: &str = "until [ \"$(stty size 2>/dev/null)\" = '33 101' ]; do sleep 0.05; done; echo first
        until [ \"$(stty size 2>/dev/null)\" = '44 132' ]; do sleep 0.05; done; echo then; exit 5";
    for way in [Way::Direct, Way::Proxied] {
        for version in [Version::V3, Version::V4] {
            let request = pod.exec(way, &["sh", "-c", SCRIPT], true).await?;
            let opened = SpdyExecutor::new(TcpConnect).versions([version]).open(&request).await.map_err(text)?;
            check_terminal(opened, version).await.map_err(|why| format!("{way:?} {version}: {why}"))?;
        }
        for protocol in [WsProtocol::V4, WsProtocol::Base64V4] {
            let request = pod.exec(way, &["sh", "-c", SCRIPT], true).await?;
            let executor = WebSocketExecutor::new(TcpConnect).protocols([protocol]);
            let opened = executor.open(&request).await.map_err(text)?;
            check_terminal(opened, Version::V4).await.map_err(|why| format!("{way:?} {protocol:?}: {why}"))?;
        }
    }
    Ok(())
}

async fn check_terminal(opened: tower_kube_streaming::client::Opened, version: Version) -> Outcome {
    let size = |height, width| Some(TerminalSize { width, height });
    let (tell, sizes) = watch::channel(size(33, 101));
    let User { mut stdio, mut stdout, .. } = User::typing(Vec::new());
    // It neither types nor ends.
    let (_typing, stdin) = duplex(1);
    stdio.stdin = Some(Input::new(stdin));
    stdio.resize = Some(sizes);
    let user = async {
        let mut screen = String::new();
        while !screen.contains("first") {
            screen.push(char::from(stdout.read_u8().await?));
        }
        tell.send_replace(size(44, 132));
        stdout.read_to_string(&mut screen).await?;
        Ok::<_, io::Error>(screen)
    };
    let both = async { tokio::join!(opened.run(stdio), user) };
    let (exit, screen) = timeout(LIMIT, both).await.map_err(|_| "it hangs")?;
    let screen = screen.map_err(text)?;
    ensure!(screen == "first\r\nthen\r\n", "{screen:?}");
    let told = match exit {
        Ok(ref exit) => version.has_status() && *exit == Exit::Code(5),
        Err(ExecuteError::Failed(ref why)) => !version.has_status() && why.ends_with("exit code 5"),
        Err(_) => false,
    };
    ensure!(told, "{exit:?}");
    Ok(())
}

/// An upgrade to SPDY for port-forward.
async fn forward(url: &Uri) -> Outcome<Forward> {
    let io = TcpConnect.connect(url.clone()).await.map_err(text)?;
    let (mut sender, connection) = http1_client::handshake(TokioIo::new(io)).await.map_err(text)?;
    tokio::spawn(connection.with_upgrades());
    let request = Request::post(url.path())
        .header("host", url.authority().map_or("", |host| host.as_str()))
        .header("connection", "Upgrade")
        .header("upgrade", "SPDY/3.1")
        .header("content-length", "0")
        .header("x-stream-protocol-version", "portforward.k8s.io")
        .body(Empty::<Bytes>::new())
        .map_err(text)?;
    let answer = sender.send_request(request).await.map_err(text)?;
    ensure!(answer.status() == StatusCode::SWITCHING_PROTOCOLS, "{}", answer.status());
    let upgraded = hyper::upgrade::on(answer).await.map_err(text)?;
    let (forward, connection) = over_spdy_client::connect(TokioIo::new(upgraded));
    tokio::spawn(connection);
    Ok(forward)
}

/// The page of the pod's web server at that port, over a connection of its own.
async fn page(forward: &Forward, port: u16) -> Outcome {
    let mut pair = forward.pair(NonZeroU16::new(port).expect("not 0")).await.map_err(text)?;
    pair.data.write_all(b"GET / HTTP/1.0\r\n\r\n").await.map_err(text)?;
    let mut page = String::new();
    pair.data.read_to_string(&mut page).await.map_err(text)?;
    ensure!(page.ends_with("\r\n\r\nfrom the pod\n"), "{page}");
    let said = pair.error.text().await.map_err(text)?;
    ensure!(said.is_none(), "beside the page: {said:?}");
    Ok(())
}

async fn ports_of_the_pod_are_reached(pod: &Pod) -> Outcome {
    for way in [Way::Direct, Way::Proxied] {
        let url = pod.url(way, Subresource::PortForward, "", StreamOptions::default()).await?;
        let forward = forward(&url).await?;
        timeout(LIMIT, page(&forward, 8080)).await.map_err(|_| format!("{way:?}: it hangs"))??;
        let refused = async { forward.pair(NonZeroU16::MIN).await?.error.text().await };
        let said = timeout(LIMIT, refused).await.map_err(|_| format!("{way:?}: it hangs"))?.map_err(text)?;
        ensure!(said.as_ref().is_some_and(|said| said.contains("port 1 ")), "{way:?}: {said:?}");
        let pages = join_all(WEB.cycle().take(200).map(|port| page(&forward, port)));
        let pages = timeout(LIMIT, pages).await.map_err(|_| format!("{way:?}: they hang"))?;
        let failed: Vec<_> = pages.into_iter().filter_map(Result::err).collect();
        ensure!(failed.is_empty(), "{way:?}: {} of 200 failed: {failed:?}", failed.len());
        forward.close();
    }
    Ok(())
}

async fn attach_reads_the_main_process(pod: &Pod) -> Outcome {
    let options = StreamOptions { stdout: true, stderr: true, ..StreamOptions::default() };
    for way in [Way::Direct, Way::Proxied] {
        for carrier in [Carrier::Spdy, Carrier::WebSocket] {
            let url = pod.url(way, Subresource::Attach, "sidecar", options.clone()).await?;
            let request = ExecRequest::new(url, options.clone()).map_err(text)?;
            let opened = match carrier {
                Carrier::Spdy => SpdyExecutor::new(TcpConnect).open(&request).await,
                _ => WebSocketExecutor::new(TcpConnect).protocols([WsProtocol::V4]).open(&request).await,
            };
            let User { stdio, mut stdout, .. } = User::typing(Vec::new());
            let gone = stdio.gone.clone();
            let user = async {
                let mut said = [0; 5];
                let read = stdout.read_exact(&mut said).await;
                gone.cancel();
                read.map(|_| said)
            };
            let both =
                async { tokio::join!(opened?.run(stdio), user).1.map_err(|_| ExecuteError::NoStatus("?".into())) };
            let said = timeout(LIMIT, both).await.map_err(|_| "it hangs")?.map_err(text)?;
            ensure!(&said == b"line ", "{way:?} {carrier}: {said:?}");
        }
    }
    Ok(())
}

async fn v5_is_refused_and_the_url_is_used_up(pod: &Pod) -> Outcome {
    let v5 = || WebSocketExecutor::new(TcpConnect);
    let code = |error: &ExecuteError| error.rejection().map(|rejection| (rejection.code(), rejection.carrier()));
    let request = pod.exec(Way::Direct, &["true"], false).await?;
    for (asked, status) in [(1, StatusCode::FORBIDDEN), (2, StatusCode::NOT_FOUND)] {
        let refused = v5().open(&request).await.expect_err("v5 is not spoken");
        ensure!(code(&refused) == Some((status, Carrier::WebSocket)), "request {asked}: {refused}");
        // Its refusal of v5 has no body; the code is told.
        ensure!(refused.to_string().contains(status.as_str()), "{refused}");
    }
    // So a fallback has nothing to fall back to, and tells of the second refusal.
    let request = pod.exec(Way::Direct, &["true"], false).await?;
    let refused = FallbackExecutor::new(TcpConnect).open(&request).await.expect_err("the URL is used up");
    ensure!(code(&refused) == Some((StatusCode::NOT_FOUND, Carrier::Spdy)), "{refused}");

    // A kubelet's URL can be asked twice: behind it each request has a URL of its own.
    let request = pod.exec(Way::Proxied, &LINE, false).await?;
    let refused = v5().open(&request).await.expect_err("v5 is not spoken");
    ensure!(code(&refused) == Some((StatusCode::FORBIDDEN, Carrier::WebSocket)), "{refused}");
    let line = run(FallbackExecutor::new(TcpConnect), &request, Version::V4.name(), b"it\n".into()).await?;
    check_line(&line, Carrier::Spdy, Version::V4)?;
    Ok(())
}
