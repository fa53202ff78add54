//! A small Kubernetes API server that really streams: `kubectl exec`, `attach`, `cp` and `port-forward` work against it.
//!
//! With no flags it is a whole demo in one process: API server, kubelet, and a Pod `default/demo` whose containers are
//! **plain processes of this host**.
//!
//! ```sh
//! cargo run --release --example apiserver
//! kubectl --kubeconfig target/demo/kubeconfig exec -it demo -- sh      # in another shell
//! ```
//!
//! With `--manifest` the objects are yours, and streams go on to the kubelets of their nodes: see `kubelet.rs`.
//!
//! With `--kubeconfig` it is a streaming gateway in front of an existing cluster: it carries the streams, and forwards every
//! other request.

mod support;

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use clap::{ArgGroup, Parser};
use serde_json::Value;
use support::{
    Context, Error, Stack,
    api::{self, Api},
    authn::Authenticator,
    gateway::{Gateway, Streams},
    kubeconfig,
    locate::Locate,
    log_to_stderr,
    logs::Logs,
    mounted, node,
    objects::{Key, Store, containers_on},
    pki::{self, CertAndKey},
    rbac::RbacAuthorizer,
    say,
    server::{Server, stop_signal},
    stack::{Parts, process_kubelet},
    tls::{self, FrontProxies},
    tokens,
};
use tower_kube_streaming::{
    FeatureGates, Gate,
    adapters::{prometheus::StreamingMetrics, rustls::TlsConnect},
    layers::{MetricsLayer, QuotaLayer, SyntheticAuthzLayer, danger::PermitAllLayer},
    port_forward::DialErrors,
    services::{ApiServer, InProcess, Throttled, UpgradeProxy},
    upgrade::{Dialect, SessionLimits, Sessions, Target},
};

/// A small Kubernetes API server that really streams.
#[derive(Debug, Parser)]
#[command(name = "apiserver", group = ArgGroup::new("kubelets").args(["manifest", "kubeconfig"]))]
struct Flags {
    /// Address to listen on; port 0 picks a free one.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:6443")]
    listen: SocketAddr,
    /// Where kubeconfig, CA, certificates and tokens are kept.
    #[arg(long, value_name = "DIR", default_value = "target/demo")]
    data_dir: PathBuf,
    /// Plain HTTP, and every caller is an administrator. Loopback addresses only.
    #[arg(long, conflicts_with = "kubeconfig")]
    insecure: bool,
    /// YAML with Nodes, Pods, Roles, ClusterRoles and their bindings, instead of the demo's and of its kubelet. May be
    /// repeated.
    #[arg(long, value_name = "FILE")]
    manifest: Vec<PathBuf>,
    /// Stand in front of the cluster of this kubeconfig's current context: Pods, Nodes, who callers are and what they may
    /// come from there. What it logs in with there may watch pods and nodes, and create token and subject access reviews.
    #[arg(long, value_name = "FILE", requires_all = ["kubelet_certificate_authority", "kubelet_client_certificate"])]
    kubeconfig: Option<PathBuf>,
    /// Certificate that the cluster takes for a front proxy's. Without it callers need a token: who shows a certificate is
    /// answered 401.
    #[arg(long, value_name = "FILE", requires_all = ["proxy_client_key_file", "client_ca_file", "kubeconfig"])]
    proxy_client_cert_file: Option<PathBuf>,
    /// Key of the front proxy's certificate.
    #[arg(long, value_name = "FILE", requires = "proxy_client_cert_file")]
    proxy_client_key_file: Option<PathBuf>,
    /// Bearer tokens, a line each: token,user,uid,"group1,group2".
    #[arg(long, value_name = "FILE", conflicts_with = "kubeconfig")]
    token_auth_file: Option<PathBuf>,
    /// Serving certificate, and whatever chain it needs.
    #[arg(long, value_name = "FILE", requires = "tls_private_key_file")]
    tls_cert_file: Option<PathBuf>,
    /// Key of the serving certificate.
    #[arg(long, value_name = "FILE", requires = "tls_cert_file")]
    tls_private_key_file: Option<PathBuf>,
    /// Who signs client certificates: common name is the user, organizations are groups. By default the data directory's
    /// CA; in front of a cluster nobody, and no certificate is asked for.
    #[arg(long, value_name = "FILE")]
    client_ca_file: Option<PathBuf>,
    /// Who signs the certificates of front proxies: who the caller is then is what the headers X-Remote-User,
    /// X-Remote-Group, X-Remote-Uid and X-Remote-Extra-… say. From others they are dropped.
    #[arg(long, value_name = "FILE", conflicts_with = "kubeconfig")]
    requestheader_client_ca_file: Option<PathBuf>,
    /// Common names of those certificates, with commas between them; if there is none, any counts.
    #[arg(long, value_name = "NAMES", value_delimiter = ',', requires = "requestheader_client_ca_file")]
    requestheader_allowed_names: Vec<String>,
    /// Who signs the kubelets' certificates.
    #[arg(long, value_name = "FILE")]
    kubelet_certificate_authority: Option<PathBuf>,
    /// Certificate to show to kubelets.
    #[arg(long, value_name = "FILE", requires = "kubelet_client_key")]
    kubelet_client_certificate: Option<PathBuf>,
    /// Key of the certificate to show to kubelets.
    #[arg(long, value_name = "FILE", requires = "kubelet_client_certificate")]
    kubelet_client_key: Option<PathBuf>,
    /// Dial kubelets by plain HTTP. Nodes on loopback addresses only; for benchmarks.
    #[arg(long, conflicts_with = "kubeconfig")]
    kubelet_insecure_http: bool,
    /// Feature gates of KEP-4006, as `A=true,B=false`; what is not named is as in Kubernetes 1.36: on.
    #[arg(long, value_name = "GATES", default_value_t)]
    feature_gates: FeatureGates,
    /// A client or kubelet that says nothing for so many seconds is given up. It is pinged before, and a kubelet that is
    /// slow to open streams has half of them.
    #[arg(long, value_name = "SECONDS", default_value_t = 60, requires = "kubelets")]
    give_up_after: u64,
    /// Bytes per second of each connection to a kubelet, in each direction. 0: no limit; else at least 1024, or pings
    /// would come too late.
    #[arg(long, value_name = "N", default_value_t = 0, requires = "kubelets", value_parser = bytes_per_sec)]
    max_connection_bytes_per_sec: u64,
    /// Sessions of all users at once; more are refused with 429. 0: no limit.
    #[arg(long, value_name = "N", default_value_t = 0)]
    max_sessions: usize,
    /// Sessions of each user at once; more are refused with 429. 0: no limit.
    #[arg(long, value_name = "N", default_value_t = 0)]
    max_sessions_per_user: usize,
}

fn bytes_per_sec(text: &str) -> Result<u64, String> {
    match text.parse() {
        Ok(1..1024) => Err("must be 0, or at least 1024".to_owned()),
        Ok(rate) => Ok(rate),
        Err(error) => Err(format!("{error}")),
    }
}

/// Where streams go.
enum Next {
    /// Nowhere: the kubelet's part runs in this process.
    InProcess(Arc<Store>, Arc<StreamingMetrics>),
    /// To the kubelet of the pod's node.
    Kubelets(Throttled<TlsConnect>, SessionLimits),
}

/// The streaming stack of an API server.
fn stack(
    rbac: RbacAuthorizer,
    locate: Locate,
    next: Next,
    sessions: Sessions,
    metrics: Arc<StreamingMetrics>,
    quota: QuotaLayer,
    gates: FeatureGates,
) -> Stack {
    let resolve = move |target: Arc<Target>| std::future::ready(locate.hop(&target));
    let metrics = MetricsLayer::new(metrics);
    let stack = ApiServer::builder().gates(gates).count_refusals(metrics.clone());
    let authorize = (metrics, SyntheticAuthzLayer::new(rbac).gates(gates), quota);
    match next {
        Next::Kubelets(connect, limits) => {
            let leaf = UpgradeProxy::new(connect).limits(limits);
            mounted(stack.limits(limits).build(sessions, authorize, resolve, leaf))
        }
        Next::InProcess(store, metrics) => {
            // The kubelet's sessions are drained with ours.
            let parts = Parts { sessions: sessions.clone(), metrics, gates, dial_errors: DialErrors::Report };
            // Who comes there has been let in by this stack.
            let kubelet = process_kubelet(containers_on(&store, DEMO_NODE), parts, PermitAllLayer);
            mounted(stack.build(sessions, authorize, resolve, InProcess::new(kubelet)))
        }
    }
}

const DEMO_NODE: &str = "demo-node";

#[tokio::main]
async fn main() -> ExitCode {
    let flags = Flags::parse();
    log_to_stderr();
    let run = async {
        match flags.kubeconfig.clone() {
            Some(kubeconfig) => in_front_of(&kubeconfig, flags).await,
            None => run(flags).await,
        }
    };
    match run.await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("apiserver: {error}");
            ExitCode::from(2)
        }
    }
}

async fn run(flags: Flags) -> Result<(), Error> {
    if flags.insecure && !flags.listen.ip().is_loopback() {
        return Err("--insecure lets everybody in: only on a loopback address".into());
    }
    let dir = &flags.data_dir;
    support::create_private_dir(dir)?;
    pki::prepare(dir, flags.listen.ip())?;
    let store = Store::from_manifests(&flags.manifest)?;
    let store = Arc::new(store.declared_features(flags.feature_gates.enabled(Gate::NodeDeclaredFeatures)));
    let tokens = match &flags.token_auth_file {
        Some(file) => tokens::load(file)?,
        None => tokens::load_or_create(&dir.join("tokens.csv"))?,
    };

    let stop = stop_signal()?;
    let mut server = Server::bind(flags.listen, stop.clone()).await?;
    let mut trusted = None;
    if !flags.insecure {
        let own = pair(&flags.tls_cert_file, &flags.tls_private_key_file).unwrap_or_else(|| pki::files::apiserver(dir));
        let client_ca = flags.client_ca_file.clone().unwrap_or_else(|| pki::files::ca(dir));
        server = match &flags.requestheader_client_ca_file {
            None => server.with_tls(tls::server_config(&own, &client_ca)?),
            Some(proxies) => {
                let names = flags.requestheader_allowed_names.clone();
                let config = tls::server_config_with(&own, &client_ca, proxies)?;
                server.with_tls(config).with_front_proxies(FrontProxies::new(&client_ca, proxies, names)?)
            }
        };
        // kubectl trusts our CA; or else the given certificate itself, as we know nothing of its signer.
        let ca = flags.tls_cert_file.clone().unwrap_or_else(|| pki::files::ca(dir));
        trusted = Some(fs::read_to_string(&ca).context(ca.display())?);
    }
    let url = server.url()?;
    let kubeconfig = dir.join("kubeconfig");
    kubeconfig::write(&kubeconfig, &url, trusted.as_deref(), &tokens)?;
    let node_client = pki::files::node_client(dir);
    kubeconfig::write_for_kubelet(&dir.join("kubelet.kubeconfig"), &url, trusted.as_deref(), &node_client)?;

    let authenticator = if flags.insecure {
        Authenticator::anybody_is_admin(Dialect::ApiServer)
    } else {
        Authenticator::known(tokens::Tokens::new(&tokens), Dialect::ApiServer)
    };
    let locate = Locate::new(store.clone()).plain_http(flags.kubelet_insecure_http);
    let sessions = Sessions::default();
    let rbac = RbacAuthorizer::new(store.clone());
    let authenticator = authenticator.impersonation(rbac.clone());
    let metrics = Arc::new(StreamingMetrics::api_server());
    let (next, logs) = next(&flags, &store, &locate)?;
    let mut counted = vec![metrics.clone()];
    if let Next::InProcess(_, kubelet) = &next {
        counted.push(kubelet.clone());
    }
    let streams = stack(rbac, locate, next, sessions.clone(), metrics, quota(&flags), flags.feature_gates);
    let service = api::router(Api { store, stop, logs, metrics: counted.into() }, streams, authenticator);

    say(format_args!("listening on {url}"));
    if flags.manifest.is_empty() {
        let kubectl = format!("  kubectl --kubeconfig {}", kubeconfig.display());
        say("THE DEMO'S CONTAINERS ARE PLAIN PROCESSES OF THIS HOST. Try, in another shell:");
        say(format_args!("{kubectl} exec -it demo -- sh"));
        say(format_args!("{kubectl} attach demo -c sidecar"));
        say(format_args!("{kubectl} cp demo:/etc/os-release /tmp/os-release"));
        say(format_args!("{kubectl} port-forward demo 8080:PORT    # PORT is this host's"));
    }
    say("ready");
    server.serve(service, sessions).await
}

/// Serves as a gateway in front of the cluster that a kubeconfig names.
async fn in_front_of(kubeconfig: &Path, flags: Flags) -> Result<(), Error> {
    let dir = &flags.data_dir;
    support::create_private_dir(dir)?;
    let given = pair(&flags.tls_cert_file, &flags.tls_private_key_file);
    if given.is_none() {
        pki::prepare_server(dir, flags.listen.ip())?;
    }
    let own = given.unwrap_or_else(|| pki::files::apiserver(dir));
    let ca = flags.tls_cert_file.clone().unwrap_or_else(|| pki::files::ca(dir));
    let trusted = fs::read_to_string(&ca).context(ca.display())?;
    let streams = Streams {
        sessions: Sessions::default(),
        connect: Throttled::new(kubelets(&flags)?, flags.max_connection_bytes_per_sec),
        limits: limits(Duration::from_secs(flags.give_up_after)),
        quota: quota(&flags),
        gates: flags.feature_gates,
    };
    let stop = stop_signal()?;
    let server = Server::bind(flags.listen, stop.clone()).await?;
    let server = server.with_tls(match &flags.client_ca_file {
        Some(ca) => tls::server_config(&own, ca)?,
        None => tls::server_config_without_clients(&own)?,
    });
    let front_proxy = pair(&flags.proxy_client_cert_file, &flags.proxy_client_key_file);
    let gateway = Gateway::new(kubeconfig, front_proxy.as_ref(), stop).await?;
    let url = server.url()?;
    kubeconfig::write_for_gateway(&dir.join("kubeconfig"), &url, &trusted)?;
    say(format_args!("listening on {url}"));
    gateway.say_when_ready();
    let sessions = streams.sessions.clone();
    server.serve(gateway.router(streams), sessions).await
}

fn quota(flags: &Flags) -> QuotaLayer {
    QuotaLayer::new().max_sessions(flags.max_sessions).max_sessions_per_user(flags.max_sessions_per_user)
}

/// Where streams go, and where logs are.
fn next(flags: &Flags, store: &Arc<Store>, locate: &Locate) -> Result<(Next, Logs), Error> {
    if flags.manifest.is_empty() {
        // What a kubelet of its own would register.
        let declare = |node: &mut Value| node["status"]["declaredFeatures"] = node::declared(flags.feature_gates);
        store.update(&Key::node(DEMO_NODE), declare).map_err(|refused| refused.message())?;
        return Ok((Next::InProcess(store.clone(), Arc::new(StreamingMetrics::kubelet())), Logs::none()));
    }
    let connect = kubelets(flags)?;
    let logs = Logs::of_kubelets(locate.clone(), connect.clone());
    let connect = Throttled::new(connect, flags.max_connection_bytes_per_sec);
    Ok((Next::Kubelets(connect, limits(Duration::from_secs(flags.give_up_after))), logs))
}

/// Connections to kubelets.
fn kubelets(flags: &Flags) -> Result<TlsConnect, Error> {
    let dir = &flags.data_dir;
    let ca = flags.kubelet_certificate_authority.clone().unwrap_or_else(|| pki::files::ca(dir));
    let own = pair(&flags.kubelet_client_certificate, &flags.kubelet_client_key);
    let own = own.unwrap_or_else(|| pki::files::kubelet_client(dir));
    let connect = TlsConnect::new(Arc::new(tls::client_config(&ca, &own)?));
    Ok(if flags.kubelet_insecure_http { connect.allow_plain_http() } else { connect })
}

/// The defaults, if a silent peer is given up after 60 seconds.
fn limits(silence: Duration) -> SessionLimits {
    SessionLimits::new().ping_after(silence / 6).dead_after(silence).creation(silence / 2)
}

fn pair(cert: &Option<PathBuf>, key: &Option<PathBuf>) -> Option<CertAndKey> {
    Some(CertAndKey { cert: cert.clone()?, key: key.clone()? })
}
