//! Why there is KEP-4006: proxies that pass WebSockets and nothing else. Real ones, Apache and squid as they are commonly
//! set up, stand between real clients and the example API server.

mod support;

use std::{
    fs,
    num::NonZeroU16,
    path::{Path, PathBuf},
    time::Duration,
};

use support::{
    Outcome, Scratch,
    foreign::listening,
    forward::Forward,
    http::url,
    kubectl::{Client, client, forwarder},
    lab::{Lab, Settings, Topology, port_in},
    pod::Pod,
    process::Process,
    through,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::Command,
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tower_kube_streaming::{
    client::{
        Carrier, ExecRequest, Execute, ExecuteError, FallbackExecutor, SpdyExecutor, WebSocketExecutor,
        port_forward::{FallbackDialer, OpenForward, PortForwardRequest, SpdyDialer},
    },
    remote_command::{Exit, Stdio},
    upgrade::{StreamOptions, TcpConnect},
};

const LIMIT: Duration = Duration::from_secs(30);

/// What the API server says of a request whose `Upgrade` was dropped.
const UNASKED: &str = "Upgrade request required";

/// What our clients say of it.
const DROPPED: &str = "unable to upgrade connection: Upgrade request required (the server was not shown \
                       `Upgrade: SPDY/3.1`: a proxy on the way has dropped it)";

#[derive(Clone, Copy, Debug)]
enum Kind {
    Apache,
    Squid,
}

/// A proxy before the API server at `upstream`.
#[derive(Debug)]
struct Proxy {
    process: Process,
    kubeconfig: PathBuf,
    port: u16,
}

impl Proxy {
    /// `None`: it is not installed, which is a SKIP.
    async fn start(kind: Kind, upstream: u16, scratch: &Scratch) -> Outcome<Option<Self>> {
        let (program, config): (_, fn(u16, u16, &Path) -> String) = match kind {
            Kind::Apache => ("/usr/sbin/apache2", apache),
            Kind::Squid => ("/usr/sbin/squid", squid),
        };
        let dir = scratch.dir(&format!("{kind:?}"));
        let file = dir.join("conf");
        let started = listening(program, |[port]| {
            fs::write(&file, config(port, upstream, &dir)).map_err(|error| error.to_string())?;
            let mut command = Command::new(program);
            // In the foreground, one process: it dies with its handle.
            match kind {
                Kind::Apache => command.arg("-X"),
                // Its shared memory goes by its name.
                Kind::Squid => command.args(["-Nd1", "-n", &format!("squid{port}")]),
            };
            command.arg("-f").arg(&file);
            Ok(command)
        });
        let Some((process, [port])) = started.await? else { return Ok(None) };
        let kubeconfig = dir.join("kubeconfig");
        let cluster = format!("{{name: it, cluster: {{server: 'http://127.0.0.1:{port}'}}}}");
        let context = "{name: it, context: {cluster: it}}";
        let text = format!("{{kind: Config, current-context: it, clusters: [{cluster}], contexts: [{context}]}}");
        fs::write(&kubeconfig, text).map_err(|error| error.to_string())?;
        Ok(Some(Self { process, kubeconfig, port }))
    }

    fn kubectl(&self, client: &Client, scratch: &Scratch, args: &[&str]) -> Command {
        client.command(&self.kubeconfig, scratch, args)
    }
}

/// `upgrade=websocket`, as its documentation recommends for WebSockets.
fn apache(port: u16, upstream: u16, dir: &Path) -> String {
    let modules = ["mpm_event", "authz_core", "proxy", "proxy_http"];
    let load =
        modules.map(|name| format!("LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so\n")).concat();
    let dir = dir.display();
    format!(
        "{load}ServerRoot {dir}\nPidFile {dir}/pid\nErrorLog {dir}/error.log\nServerName localhost\nListen 127.0.0.1:{port}\n\
         ProxyPass / http://127.0.0.1:{upstream}/ upgrade=websocket\n"
    )
}

/// An accelerator that lets WebSocket upgrades through.
fn squid(port: u16, upstream: u16, _: &Path) -> String {
    format!(
        "http_port 127.0.0.1:{port} accel defaultsite=localhost no-vhost\n\
         cache_peer 127.0.0.1 parent {upstream} 0 no-query originserver name=api\n\
         http_access allow all\nhttp_upgrade_request_protocols websocket allow all\n\
         cache deny all\naccess_log none\ncache_log /dev/null\npid_filename none\npinger_enable off\n\
         coredump_dir none\ncache_effective_user nobody\nshutdown_lifetime 0 seconds\n"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn through_apache_websockets_pass_and_spdy_does_not() {
    check(Kind::Apache).await.unwrap_or_else(|why| panic!("{why}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn through_squid_websockets_pass_and_spdy_does_not() {
    check(Kind::Squid).await.unwrap_or_else(|why| panic!("{why}"));
}

async fn check(kind: Kind) -> Outcome {
    let lab =
        Lab::start_with(Topology::AllInOne, Settings { apiserver: &["--insecure"], ..Settings::default() }).await?;
    let upstream = port_in(&url(&lab.apiserver)?).ok_or("the API server's port")?;
    let Some(mut proxy) = Proxy::start(kind, upstream, &lab.scratch).await? else { return Ok(()) };
    let checked = async {
        kubectls(&proxy, &lab).await?;
        commands(&proxy).await?;
        forwards(&proxy).await
    };
    let checked = checked.await.map_err(|why| format!("{kind:?}: {why}\n{}", lab.logs()));
    match kind {
        // As one process it waits for a thread after SIGTERM, while a tunnel is being closed.
        Kind::Apache => proxy.process.kill().await?,
        // Killed, it would leave its shared memory.
        Kind::Squid => proxy.process.end().await?,
    }
    checked?;
    lab.stop().await
}

async fn kubectls(proxy: &Proxy, lab: &Lab) -> Outcome {
    let args = ["exec", "demo", "--", "sh", "-c", "echo out; exit 3"];
    let pod = Pod::start().await?;
    if let Some((new, forwards)) = client("1.37", true).zip(forwarder("1.37", true)) {
        let done = proxy.kubectl(&new, &lab.scratch, &args).output().await.map_err(|error| error.to_string())?;
        ensure!(done.status.code() == Some(3) && done.stdout == b"out\n", "kubectl 1.37: {done:?}");
        let to = format!("0:{}", pod.web);
        let mut forward = proxy.kubectl(&forwards, &lab.scratch, &["port-forward", "pod/demo", &to]);
        let forward = Forward::spawn(&mut forward, &[pod.web]).await?;
        through::page(forward.to(pod.web)).await?;
        forward.stop().await?;
    }
    if let Some((old, forwards)) = client("1.28", false).zip(forwarder("1.28", false)) {
        let done = proxy.kubectl(&old, &lab.scratch, &args).output().await.map_err(|error| error.to_string())?;
        let said = String::from_utf8_lossy(&done.stderr);
        ensure!(done.status.code() == Some(1) && said.contains(UNASKED), "kubectl 1.28: {done:?}");
        let to = format!("0:{}", pod.web);
        let mut forward = proxy.kubectl(&forwards, &lab.scratch, &["port-forward", "pod/demo", &to]);
        let done = timeout(LIMIT, forward.output()).await.map_err(|_| "kubectl 1.28 port-forward goes on")?;
        let done = done.map_err(|error| error.to_string())?;
        let said = String::from_utf8_lossy(&done.stderr);
        ensure!(done.status.code() == Some(1) && said.contains(UNASKED), "kubectl 1.28 port-forward: {done:?}");
    }
    Ok(())
}

/// Our executors.
async fn commands(proxy: &Proxy) -> Outcome {
    let options = StreamOptions { stdout: true, ..StreamOptions::default() };
    let pod = format!("http://127.0.0.1:{}/api/v1/namespaces/default/pods/demo", proxy.port);
    let command = "command=sh&command=-c&command=exit%203&container=shell&stdout=true";
    let request = ExecRequest::new(format!("{pod}/exec?{command}"), options).map_err(|error| error.to_string())?;

    let exit = WebSocketExecutor::new(TcpConnect).execute(&request, stdio()).await;
    ensure!(matches!(exit, Ok(Exit::Code(3))), "over WebSocket: {exit:?}");

    let opened = FallbackExecutor::new(TcpConnect).open(&request).await.map_err(|error| error.to_string())?;
    ensure!(opened.carrier() == Carrier::WebSocket && opened.fell_back().is_none(), "it fell back: {opened:?}");
    let exit = opened.run(stdio()).await;
    ensure!(matches!(exit, Ok(Exit::Code(3))), "with a fallback at hand: {exit:?}");

    match SpdyExecutor::new(TcpConnect).execute(&request, stdio()).await {
        Err(ExecuteError::Rejected(rejection)) => {
            ensure!(rejection.dropped_header() == Some("Upgrade: SPDY/3.1"), "not told: {rejection:?}");
            ensure!(rejection.to_string() == DROPPED, "it reads {rejection}");
            Ok(())
        }
        other => Err(format!("over SPDY: {other:?}")),
    }
}

/// Our dialers.
async fn forwards(proxy: &Proxy) -> Outcome {
    let pod = Pod::start().await?;
    let port = NonZeroU16::new(pod.echo).ok_or("a port")?;
    let url = format!("http://127.0.0.1:{}/api/v1/namespaces/default/pods/demo/portforward", proxy.port);
    let request = PortForwardRequest::new(url).map_err(|error| error.to_string())?;

    let upstream = FallbackDialer::new(TcpConnect).dial(&request).await.map_err(|error| error.to_string())?;
    ensure!(upstream.carrier() == Carrier::WebSocket && upstream.fell_back().is_none(), "it fell back: {upstream:?}");
    let mut connection = upstream.connect(port).await.map_err(|error| error.to_string())?;
    let echoed = async {
        connection.write_all(b"there and back").await?;
        connection.shutdown().await?;
        let mut back = String::new();
        connection.read_to_string(&mut back).await?;
        Ok::<_, std::io::Error>(back)
    };
    let echoed = timeout(LIMIT, echoed).await.map_err(|_| "the echo does not end")?;
    ensure!(echoed.as_ref().is_ok_and(|back| back == "there and back"), "port-forward: {echoed:?}");

    match SpdyDialer::new(TcpConnect).dial(&request).await {
        Err(ExecuteError::Rejected(rejection)) => {
            ensure!(rejection.to_string() == DROPPED, "port-forward's refusal reads {rejection}");
            Ok(())
        }
        other => Err(format!("port-forward over SPDY: {other:?}")),
    }
}

fn stdio() -> Stdio {
    let mut stdio = Stdio::new(CancellationToken::new());
    stdio.stdout = Some(tower_kube_streaming::remote_command::Output::new(tokio::io::sink()));
    stdio
}
