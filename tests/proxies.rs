//! Clients behind real proxies: squid, tinyproxy and microsocks, between ours and the example API server over TLS.

mod support;

use std::{fs, num::NonZeroU16, sync::Arc, time::Duration};

use support::{
    Outcome, Scratch,
    foreign::listening,
    http::{Login, tls_config, url},
    lab::{Lab, Topology, example, port_in},
    noise,
    pod::Pod,
    process::Process,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::Command,
    time::timeout,
};
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_util::sync::CancellationToken;
use tower_kube_streaming::{
    adapters::rustls::TlsConnect,
    client::{
        Carrier, ExecRequest, Execute, ExecuteError, FallbackExecutor, SpdyExecutor,
        port_forward::{FallbackDialer, OpenForward, PortForwardRequest},
        transport::{Proxies, Proxy, ProxyConnect},
    },
    remote_command::{Exit, Input, Output, Stdio},
    upgrade::StreamOptions,
};

/// A name that no resolver is asked for: one part is a byte too long. squid finds it in a file.
const NAME: &str = "api.a234567890123456789012345678901234567890123456789012345678901234.test";

const LIMIT: Duration = Duration::from_secs(20);

/// A proxy of its own, and its ports, that of TLS last. `None`: it is not installed.
type Started<const PORTS: usize> = Outcome<Option<(Process, [u16; PORTS])>>;

/// Plain and over TLS. It finds [`NAME`] here, and does not connect to `refused`.
async fn squid(scratch: &Scratch, lab: &Lab, refused: u16) -> Started<2> {
    let dir = scratch.dir("squid");
    let (hosts, data) = (dir.join("hosts"), lab.data.display());
    fs::write(&hosts, format!("127.0.0.1 {NAME}\n")).map_err(|error| error.to_string())?;
    listening("/usr/sbin/squid", |[plain, tls]| {
        let file = dir.join("conf");
        let config = format!(
            "http_port 127.0.0.1:{plain}\n\
             https_port 127.0.0.1:{tls} tls-cert={data}/apiserver.crt tls-key={data}/apiserver.key\n\
             acl refused port {refused}\nhttp_access deny refused\nhttp_access allow all\n\
             hosts_file {}\ncache deny all\naccess_log none\ncache_log /dev/null\npid_filename none\n\
             pinger_enable off\ncoredump_dir none\nshutdown_lifetime 0 seconds\n",
            hosts.display()
        );
        fs::write(&file, config).map_err(|error| error.to_string())?;
        let mut squid = Command::new("/usr/sbin/squid");
        // What stops it is told on stderr. Its shared memory goes by its name.
        squid.args(["-Nd1", "-n", &format!("squid{plain}"), "-f"]).arg(file);
        Ok(squid)
    })
    .await
}

/// Knows one user.
async fn tinyproxy(scratch: &Scratch) -> Started<1> {
    let file = scratch.dir("tinyproxy").join("conf");
    listening("/usr/bin/tinyproxy", |[port]| {
        let config = format!("Port {port}\nListen 127.0.0.1\nBasicAuth me p-ss\nLogLevel Connect\nTimeout 60\n");
        fs::write(&file, config).map_err(|error| error.to_string())?;
        let mut tinyproxy = Command::new("/usr/bin/tinyproxy");
        tinyproxy.args(["-d", "-c"]).arg(&file);
        Ok(tinyproxy)
    })
    .await
}

/// Knows one user.
async fn microsocks() -> Started<1> {
    listening("/usr/bin/microsocks", |[port]| {
        let mut microsocks = Command::new("/usr/bin/microsocks");
        microsocks.args(["-i", "127.0.0.1", "-p", &port.to_string(), "-u", "me", "-P", "p-ss"]);
        Ok(microsocks)
    })
    .await
}

/// Waits until a proxy has told of a connection to `port`.
async fn connected(proxy: &Process, port: u16) -> Outcome {
    let connected = format!(":{port}");
    let Process { stdout, stderr, .. } = proxy;
    tokio::select! {
        Ok(_) = stdout.until(LIMIT, "the connection", |text| text.contains(&connected)) => Ok(()),
        told = stderr.until(LIMIT, "the connection", |text| text.contains(&connected)) => told.map(drop),
    }
}

/// What is asked, and where.
struct Server {
    url: String,
    port: u16,
    ca: std::path::PathBuf,
    token: String,
    pod: Pod,
}

type Through = TlsConnect<ProxyConnect<TlsConnect>>;

impl Server {
    fn through(&self, proxies: Proxies) -> Outcome<Through> {
        let config = Arc::new(tls_config(&self.ca, Login::Nobody)?);
        let to_proxy = TlsConnect::new(Arc::clone(&config)).allow_plain_http();
        Ok(TlsConnect::over(ProxyConnect::over(proxies, to_proxy), config))
    }

    fn by(&self, proxy: &str) -> Outcome<Through> {
        self.through(Proxies::explicit(Proxy::new(proxy).map_err(|error| error.to_string())?))
    }

    /// `cat`, which then exits with 3, by the executor.
    async fn exec(&self, executor: &impl Execute, url: &str) -> Result<Carrier, ExecuteError> {
        let options = StreamOptions { stdin: true, stdout: true, ..StreamOptions::default() };
        let command = "container=shell&command=sh&command=-c&command=cat;exit%203&stdin=1&stdout=1";
        let request = ExecRequest::new(format!("{url}/api/v1/namespaces/default/pods/demo/exec?{command}"), options)?
            .header("authorization", format!("Bearer {}", self.token))?;
        let opened = executor.open(&request).await?;
        let carrier = opened.carrier();
        let bytes = noise(1, 1 << 20);
        let (stdout, mut read) = tokio::io::duplex(1 << 16);
        let mut stdio = Stdio::new(CancellationToken::new());
        stdio.stdin = Some(Input::new(std::io::Cursor::new(bytes.clone())));
        stdio.stdout = Some(Output::new(stdout));
        let mut came = Vec::new();
        let (exit, _) = tokio::join!(opened.run(stdio), read.read_to_end(&mut came));
        assert_eq!(exit?, Exit::Code(3));
        assert!(came == bytes, "{} of {} bytes came back", came.len(), bytes.len());
        Ok(carrier)
    }

    /// Exec over both carriers, and port-forward.
    async fn all(&self, connect: Through, url: &str) -> Outcome {
        let text = |error: ExecuteError| {
            let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
            format!("{error}: {source}")
        };
        let carrier = self.exec(&FallbackExecutor::new(connect.clone()), url).await.map_err(text)?;
        ensure!(carrier == Carrier::WebSocket, "{carrier}");
        self.exec(&SpdyExecutor::new(connect.clone()), url).await.map_err(text)?;
        let request = PortForwardRequest::new(format!("{url}/api/v1/namespaces/default/pods/demo/portforward"))
            .and_then(|request| request.header("authorization", format!("Bearer {}", self.token)));
        let upstream = FallbackDialer::new(connect).dial(&request.map_err(text)?).await.map_err(text)?;
        ensure!(upstream.carrier() == Carrier::WebSocket, "{}", upstream.carrier());
        let port = NonZeroU16::new(self.pod.echo).ok_or("a port")?;
        let mut connection = upstream.connect(port).await.map_err(|error| error.to_string())?;
        connection.write_all(b"through").await.map_err(|error| error.to_string())?;
        let mut came = [0; 7];
        connection.read_exact(&mut came).await.map_err(|error| error.to_string())?;
        ensure!(&came == b"through", "{came:?} came back");
        Ok(())
    }

    /// What an executor says that cannot reach the server.
    async fn refused(&self, connect: Through, url: &str) -> Outcome<String> {
        match self.exec(&FallbackExecutor::new(connect), url).await {
            Err(ExecuteError::Dial(error)) => Ok(error.to_string()),
            Err(error) => Err(format!("{error:?} is no error of dialling")),
            Ok(_) => Err("it was reached".into()),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_and_ports_pass_proxies_and_a_proxy_that_refuses_is_named() {
    check().await.unwrap_or_else(|why| panic!("{why}"));
}

async fn check() -> Outcome {
    let lab = Lab::start(Topology::AllInOne).await?;
    let url = url(&lab.apiserver)?;
    let port = port_in(&url).ok_or("the API server's port")?;
    let (ca, token, pod) = (lab.ca(), lab.admin_token()?, Pod::start().await?);
    let server = Server { url, port, ca, token, pod };
    let scratch = Scratch::new("proxies");
    let checked = async {
        through_squid(&server, &scratch, &lab).await.map_err(|why| format!("squid: {why}"))?;
        through_tinyproxy(&server, &scratch).await.map_err(|why| format!("tinyproxy: {why}"))?;
        through_microsocks(&server).await.map_err(|why| format!("microsocks: {why}"))?;
        unreachable_proxy(&server).await
    };
    checked.await.map_err(|why| format!("{why}\n{}", lab.logs()))?;
    lab.stop().await
}

async fn through_squid(server: &Server, scratch: &Scratch, lab: &Lab) -> Outcome {
    let refused = server.pod.closed;
    let Some((squid, [plain, tls])) = squid(scratch, lab, refused).await? else { return Ok(()) };
    // A name that only the proxy can find; the certificate is for the address.
    let named = format!("https://{NAME}:{}", server.port);
    let name = || ServerName::try_from("127.0.0.1").expect("an address");
    for proxy in [format!("http://127.0.0.1:{plain}"), format!("https://127.0.0.1:{tls}")] {
        let connect = server.by(&proxy)?.server_name(name());
        server.all(connect, &named).await.map_err(|why| format!("{proxy}: {why}"))?;
    }
    let variables = |no: &'static str| {
        move |name: &str| match name {
            "HTTPS_PROXY" => Some(format!("127.0.0.1:{plain}")),
            "NO_PROXY" => Some(no.to_owned()),
            _ => None,
        }
    };
    for (no, passes) in [("", true), (".test:1", true), (".test", false), ("*", false)] {
        let proxies = Proxies::from_variables(variables(no)).map_err(|error| error.to_string())?;
        let connect = server.through(proxies)?.server_name(name());
        if passes {
            server.all(connect, &named).await.map_err(|why| format!("NO_PROXY={no}: {why}"))?;
        } else {
            let why = server.refused(connect, &named).await.map_err(|why| format!("NO_PROXY={no}: {why}"))?;
            ensure!(why.starts_with(&format!("dial tcp {NAME}:")), "NO_PROXY={no}: {why}");
        }
    }
    our_kubectl(lab, &named, plain).await.map_err(|why| format!("our kubectl: {why}"))?;
    let elsewhere = format!("https://127.0.0.1:{refused}");
    let why = server.refused(server.by(&format!("http://127.0.0.1:{plain}"))?, &elsewhere).await?;
    let words = format!("CONNECT request to http://127.0.0.1:{plain} returned response: 403 Forbidden");
    ensure!(why == words, "{why}");
    squid.stop().await.map(drop)
}

/// The example kubectl, by its kubeconfig's `proxy-url` and by the environment.
async fn our_kubectl(lab: &Lab, server: &str, proxy: u16) -> Outcome {
    let text = fs::read(&lab.kubeconfig).map_err(|error| error.to_string())?;
    let mut config: serde_json::Value = serde_json::from_slice(&text).map_err(|error| error.to_string())?;
    let proxy = format!("http://127.0.0.1:{proxy}");
    for (by_file, variables, code) in [
        (true, &[][..], 3),
        (false, &[("HTTPS_PROXY", &*proxy)], 3),
        (false, &[("HTTPS_PROXY", &*proxy), ("NO_PROXY", ".test")], 1),
    ] {
        let cluster = &mut config["clusters"][0]["cluster"];
        cluster["server"] = server.into();
        cluster["tls-server-name"] = "127.0.0.1".into();
        cluster["proxy-url"] = if by_file { proxy.as_str().into() } else { serde_json::Value::Null };
        let file = lab.scratch.path().join("proxied.kubeconfig");
        fs::write(&file, config.to_string()).map_err(|error| error.to_string())?;
        let mut kubectl = example("kubectl");
        for name in ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "NO_PROXY", "no_proxy"] {
            kubectl.env_remove(name);
        }
        kubectl.envs(variables.iter().copied()).arg("--kubeconfig").arg(&file);
        kubectl.args(["exec", "demo", "-c", "shell", "--", "sh", "-c", "exit 3"]).kill_on_drop(true);
        let done = timeout(LIMIT, kubectl.output()).await.map_err(|_| "it goes on")?;
        let done = done.map_err(|error| error.to_string())?;
        ensure!(done.status.code() == Some(code), "{by_file} {variables:?}: {done:?}");
    }
    Ok(())
}

async fn through_tinyproxy(server: &Server, scratch: &Scratch) -> Outcome {
    let Some((tinyproxy, [port])) = tinyproxy(scratch).await? else { return Ok(()) };
    server.all(server.by(&format!("http://me:p%2Dss@127.0.0.1:{port}"))?, &server.url).await?;
    connected(&tinyproxy, server.port).await?;
    for (login, answer) in [("", "407"), ("me:secret@", "401")] {
        let why = server.refused(server.by(&format!("http://{login}127.0.0.1:{port}"))?, &server.url).await?;
        let words = format!("CONNECT request to http://127.0.0.1:{port} returned response: {answer}");
        ensure!(why.starts_with(&words), "{why}");
    }
    tinyproxy.stop().await.map(drop)
}

async fn through_microsocks(server: &Server) -> Outcome {
    let Some((microsocks, [port])) = microsocks().await? else { return Ok(()) };
    server.all(server.by(&format!("socks5://me:p%2Dss@127.0.0.1:{port}"))?, &server.url).await?;
    connected(&microsocks, server.port).await?;
    for login in ["", "me:secret@"] {
        let why = server.refused(server.by(&format!("socks5://{login}127.0.0.1:{port}"))?, &server.url).await?;
        ensure!(why.starts_with(&format!("proxy socks5://127.0.0.1:{port}: ")) && !why.contains("secret"), "{why}");
    }
    let login = format!("socks5://me:p%2Dss@127.0.0.1:{port}");
    let elsewhere = format!("https://127.0.0.1:{}", server.pod.closed);
    let why = server.refused(server.by(&login)?, &elsewhere).await?;
    ensure!(why.starts_with(&format!("proxy socks5://127.0.0.1:{port}: ")), "{why}");
    microsocks.stop().await.map(drop)
}

async fn unreachable_proxy(server: &Server) -> Outcome {
    let closed = server.pod.closed;
    let why = server.refused(server.by(&format!("http://127.0.0.1:{closed}"))?, &server.url).await?;
    let proxy = format!("http://127.0.0.1:{closed}");
    ensure!(why == format!("proxy {proxy}: dial tcp 127.0.0.1:{closed}: connect: connection refused"), "{why}");
    // By variables this host is reached without one.
    let variables = move |name: &str| (name == "HTTPS_PROXY").then(|| proxy.clone());
    let proxies = Proxies::from_variables(variables).map_err(|error| error.to_string())?;
    server.all(server.through(proxies)?, &server.url).await
}
