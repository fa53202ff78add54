//! A small kubelet: it registers its Node at an API server, and serves `exec`, `attach` and `port-forward` of its Pods to
//! whom that API server lets do it.
//!
//! ```sh
//! cargo run --release --example apiserver -- --manifest examples/manifests/demo.yaml
//! cargo run --release --example kubelet -- --data-dir target/demo      # in another shell
//! ```
//!
//! By default its one Pod is the demo's, and the containers are **plain processes of this host**. With
//! `--container-runtime-endpoint unix:///run/containerd/containerd.sock` streams go to the containers of that runtime.

mod support;

use std::{
    future::ready,
    net::SocketAddr,
    path::{PathBuf, absolute},
    process::ExitCode,
    sync::Arc,
};

use axum::{
    Json, Router,
    extract::Request,
    middleware::{from_fn, map_request},
    routing::{any_service, get},
};
use clap::{ArgAction, Parser, ValueEnum};
use http::{StatusCode, Uri};
use serde_json::json;
use support::{
    Context, Error, Stack,
    authn::Authenticator,
    client::ApiClient,
    container_logs::ContainerLogs,
    exposition, log_to_stderr,
    manifests::manifests,
    mounted,
    node::Registration,
    objects::{Kind, Store, containers_on},
    pki::{self, CertAndKey},
    pods::Pods,
    reports::Reports,
    review::Reviewer,
    say,
    server::{Server, stop_signal},
    stack::{Parts, cri_kubelet, process_kubelet},
    tls,
    tokens::Tokens,
};
use tower_kube_streaming::{
    FeatureGates,
    adapters::{cri::CriRuntime, prometheus::StreamingMetrics},
    layers::SyntheticAuthzLayer,
    port_forward::DialErrors,
    upgrade::{Dialect, Sessions},
};

/// A small kubelet that serves exec, attach and port-forward.
#[derive(Debug, Parser)]
#[command(name = "kubelet")]
struct Flags {
    /// Address to listen on; port 0 picks a free one.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:10250")]
    listen: SocketAddr,
    /// An apiserver's data directory: takes certificates, client CA and kubeconfig from there.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// The API server to register the node at, and to ask who may do what with it [default: kubelet.kubeconfig in the
    /// data directory]. Read again whenever it is used. Without it only members of system:masters may do anything.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Whether to register the node at that API server, again every 10 seconds, with its Lease and its Pods.
    #[arg(long, value_name = "BOOL", default_value_t = true, action = ArgAction::Set, num_args = 0..=1,
          default_missing_value = "true")]
    register_node: bool,
    /// Name of the node this is.
    #[arg(long, value_name = "NAME", default_value = "demo-node")]
    node_name: String,
    /// YAML with the Pods of this node, one file or a folder of them [default: the demo's Pod]. The API server has each of
    /// them as NAME-NODE, a mirror Pod.
    #[arg(long, value_name = "PATH")]
    pod_manifest_path: Option<PathBuf>,
    /// What runs the containers: `process` takes processes of this host for them, `unix:///PATH` is a container runtime's
    /// CRI. There the Pods of --pod-manifest-path are run, out of images that it has, and removed on stop. Its other
    /// Pods are found by the labels that kubelets give them.
    #[arg(long, value_name = "ENDPOINT", default_value = "process")]
    container_runtime_endpoint: RuntimeEndpoint,
    /// That runtime serves WebSocket v5 and the port-forward tunnel itself, so that nothing is translated for it. CRI cannot
    /// tell; `cri_runtime --offer-websocket` does serve them.
    #[arg(long)]
    container_runtime_speaks_websocket: bool,
    /// Leaves Pods in the container runtime on stop, and their mirrors at the API server. The next start with that node
    /// name removes them.
    #[arg(long)]
    keep_pods: bool,
    /// Where the container runtime writes what the containers of those Pods say, for `kubectl logs` [default: nowhere].
    #[arg(long, value_name = "DIR", requires = "pod_manifest_path")]
    pod_logs_dir: Option<PathBuf>,
    /// What a port-forward's client is told of a connection that failed. `isolate` hides it, so that one failure does not
    /// end kubectl's whole forward. It is for `process`: a runtime that speaks CRI reports by itself [default: report].
    #[arg(long, value_enum)]
    port_forward_errors: Option<PortForwardErrors>,
    /// Feature gates of KEP-4006, as `A=true,B=false`; what is not named is as in Kubernetes 1.36: on.
    #[arg(long, value_name = "GATES", default_value_t)]
    feature_gates: FeatureGates,
    /// Serving certificate, and whatever chain it needs.
    #[arg(long, value_name = "FILE", requires = "tls_private_key_file")]
    tls_cert_file: Option<PathBuf>,
    /// Key of the serving certificate.
    #[arg(long, value_name = "FILE", requires = "tls_cert_file")]
    tls_private_key_file: Option<PathBuf>,
    /// Who signs the certificates of those who may call.
    #[arg(long, value_name = "FILE")]
    client_ca_file: Option<PathBuf>,
    /// Plain HTTP, no authentication. Loopback addresses only.
    #[arg(long)]
    insecure: bool,
}

#[derive(Clone, Debug)]
enum RuntimeEndpoint {
    /// Processes of this host.
    Process,
    /// A container runtime, at what has yet to be checked.
    Cri(String),
}

impl From<&str> for RuntimeEndpoint {
    fn from(endpoint: &str) -> Self {
        if endpoint == "process" { Self::Process } else { Self::Cri(endpoint.to_owned()) }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum PortForwardErrors {
    /// Text on the connection's error stream, as upstream.
    Report,
    /// The connection is reset without a word.
    Isolate,
}

impl From<PortForwardErrors> for DialErrors {
    fn from(errors: PortForwardErrors) -> Self {
        match errors {
            PortForwardErrors::Report => Self::Report,
            PortForwardErrors::Isolate => Self::Isolate,
        }
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let flags = Flags::parse();
    log_to_stderr();
    match run(flags).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kubelet: {error}");
            ExitCode::from(2)
        }
    }
}

async fn run(flags: Flags) -> Result<(), Error> {
    if flags.insecure && !flags.listen.ip().is_loopback() {
        return Err("--insecure lets everybody in: only on a loopback address".into());
    }
    let runtime = match &flags.container_runtime_endpoint {
        RuntimeEndpoint::Process if flags.container_runtime_speaks_websocket => {
            return Err("--container-runtime-speaks-websocket is of a runtime that speaks CRI".into());
        }
        RuntimeEndpoint::Process if flags.pod_logs_dir.is_some() => {
            return Err("--pod-logs-dir is for container runtimes: processes of this host have no logs".into());
        }
        RuntimeEndpoint::Process => None,
        RuntimeEndpoint::Cri(_) if flags.port_forward_errors.is_some() => {
            return Err("--port-forward-errors is for `process`: a runtime that speaks CRI reports by itself".into());
        }
        RuntimeEndpoint::Cri(endpoint) => {
            let runtime = CriRuntime::new(endpoint)?.speaks_websocket(flags.container_runtime_speaks_websocket);
            Some((runtime, endpoint))
        }
    };
    let manifests = flags.pod_manifest_path.as_deref().map_or_else(|| Ok(Vec::new()), manifests)?;
    // The demo's Pod is made of processes of this host.
    let none = manifests.is_empty() && runtime.is_some();
    let store = Arc::new(if none { Store::empty()? } else { Store::from_manifests(&manifests)? });
    store.assign_all_pods(&flags.node_name);

    let stop = stop_signal()?;
    let mut server = Server::bind(flags.listen, stop.clone()).await?;
    let authenticator = if flags.insecure {
        Authenticator::anybody_is_admin(Dialect::Kubelet)
    } else {
        let (own, client_ca) = certificates(&flags)?;
        server = server.with_tls(tls::server_config(&own, &client_ca)?);
        // No tokens: by certificate only.
        Authenticator::known(Tokens::default(), Dialect::Kubelet)
    };
    let api = api_client(&flags)?;
    let address = server.address()?;
    let register = api.clone().filter(|_| flags.register_node);
    let node =
        register.map(|api| Registration::new(api, &flags.node_name, address, flags.feature_gates)).transpose()?;
    // The demo's Pod is there already, or nowhere.
    let mirrored = flags.pod_manifest_path.is_some();
    let reports = node.map(|node| Reports::new(node, &store, mirrored)).transpose()?;
    let redirect = reports.as_ref().map(Reports::redirect).unwrap_or_default();
    let reviewer = Reviewer::new(api, &flags.node_name);
    let sessions = Sessions::default();
    let metrics = Arc::new(StreamingMetrics::kubelet());
    let parts = Parts {
        sessions: sessions.clone(),
        metrics: metrics.clone(),
        gates: flags.feature_gates,
        dial_errors: flags.port_forward_errors.unwrap_or(PortForwardErrors::Report).into(),
    };
    let authorize = SyntheticAuthzLayer::new(reviewer.clone()).node_name(flags.node_name.as_str());
    // From here on there is something to take back.
    let (streams, pods) = match runtime {
        None => (mounted(process_kubelet(containers_on(&store, &flags.node_name), parts, authorize)), None),
        Some((runtime, endpoint)) => {
            let logs = flags.pod_logs_dir.as_ref().map(|dir| absolute(dir).context(dir.display())).transpose()?;
            let pods = Pods::run(endpoint, &flags.node_name, &store, logs).await?;
            (mounted(cri_kubelet(runtime, parts, authorize)), Some(pods))
        }
    };
    let keeping = pods.map(|pods| tokio::spawn(pods.keep(store.clone(), stop.clone())));
    let logs = ContainerLogs { store: store.clone(), root: flags.pod_logs_dir.clone(), stop: stop.clone() };
    let service = router(store, logs, streams, metrics, reviewer)
        .layer(authenticator.into_layer())
        // A mirror Pod stands for what it mirrors.
        .layer(map_request(move |request: Request| ready(redirect.apply(request))))
        // For anybody, and whatever the API server does: the real kubelet has a port of its own for that.
        .route("/healthz", get(|| async { "ok" }));

    say(format_args!("listening on {}", server.url()?));
    // Whoever waits for `ready` finds the node as this kubelet declares it. Until then we serve as well: another kubelet
    // of that name may have registered it.
    let keep = |reports: Reports| tokio::spawn(reports.keep(stop, || say("ready"), flags.keep_pods));
    let reporting = reports.map(keep);
    if reporting.is_none() {
        say("ready");
    }
    let served = server.serve(service, sessions).await;
    let removed = async {
        let Some(keeping) = keeping else { return Ok(()) };
        let pods = keeping.await.context("looking at the containers")?;
        if flags.keep_pods { Ok(()) } else { pods.remove().await.context("removing the Pods") }
    };
    let removed = removed.await;
    if let Some(reporting) = reporting {
        reporting.await.context("reporting to the API server")?;
    }
    served.and(removed)
}

/// The API server of this kubelet; none where no flag names one.
fn api_client(flags: &Flags) -> Result<Option<Arc<ApiClient>>, Error> {
    let in_dir = |dir: &PathBuf| dir.join("kubelet.kubeconfig");
    let file = flags.kubeconfig.clone().or_else(|| flags.data_dir.as_ref().map(in_dir));
    Ok(file.map(|file| ApiClient::new(&file)).transpose()?.map(Arc::new))
}

/// The real kubelet's routes, all of them behind authorization, as there.
fn router(
    store: Arc<Store>,
    logs: ContainerLogs,
    streams: Stack,
    metrics: Arc<StreamingMetrics>,
    reviewer: Reviewer,
) -> Router {
    let pods = move || {
        let (pods, _) = store.list(Kind::Pod);
        async move { Json(json!({ "kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": pods })) }
    };
    // The stack authorizes what is a stream, and refuses what is none.
    let streams = Router::new()
        .route("/exec/{*pod}", any_service(streams.clone()))
        .route("/attach/{*pod}", any_service(streams.clone()))
        .route("/portForward/{*pod}", any_service(streams));
    Router::new()
        .route("/pods", get(pods))
        .route("/containerLogs/{*container}", get(move |uri: Uri| logs.clone().answer(uri)))
        .route("/metrics", get(move || async move { exposition(&[metrics]) }))
        .fallback(|| async { (StatusCode::NOT_FOUND, "404 page not found\n") })
        .layer(from_fn(move |request, next| reviewer.clone().guard(request, next)))
        .merge(streams)
}

/// Serving certificate and client CA: from the flags, and what they leave open from the data directory.
fn certificates(flags: &Flags) -> Result<(CertAndKey, PathBuf), Error> {
    let given = flags.tls_cert_file.clone().zip(flags.tls_private_key_file.clone());
    let given = given.map(|(cert, key)| CertAndKey { cert, key });
    let dir = flags.data_dir.as_deref();
    let own = given.or_else(|| dir.map(pki::files::kubelet));
    let client_ca = flags.client_ca_file.clone().or_else(|| dir.map(pki::files::ca));
    let (own, client_ca) = own.zip(client_ca).ok_or(
        "give --data-dir of an apiserver; or --tls-cert-file, --tls-private-key-file and --client-ca-file; or --insecure",
    )?;
    for file in [&own.cert, &own.key, &client_ca] {
        if !file.exists() {
            return Err(format!("{} is not there; an apiserver makes it in its --data-dir", file.display()).into());
        }
    }
    Ok((own, client_ca))
}
