//! A small kubelet: it serves `exec`, `attach` and `port-forward` of its Pods to an API server that shows a client certificate.
//!
//! ```sh
//! cargo run --release --example apiserver -- --manifest examples/manifests/demo.yaml
//! cargo run --release --example kubelet -- --data-dir target/demo      # in another shell
//! ```
//!
//! Its one Pod is the demo's, and the containers are **plain processes of this host**.

mod support;

use std::{net::SocketAddr, path::PathBuf, process::ExitCode, sync::Arc};

use axum::{
    Json, Router,
    body::Body,
    extract::Request,
    middleware::{Next, from_fn},
    routing::{any_service, get},
};
use clap::{Parser, ValueEnum};
use http::{Method, Response, StatusCode};
use serde_json::json;
use support::{
    Error, Stack,
    authn::Authenticator,
    authz, exposition, log_to_stderr, mounted,
    objects::{Kind, Store, containers_on},
    pki::{self, CertAndKey},
    say,
    server::{Server, stop_signal},
    stack::{Parts, process_kubelet},
    tls,
    tokens::Tokens,
};
use tower_kube_streaming::{
    FeatureGates,
    adapters::prometheus::StreamingMetrics,
    port_forward::DialErrors,
    upgrade::{Caller, Dialect, Refusal, Sessions},
};

/// A small kubelet that serves exec, attach and port-forward.
#[derive(Debug, Parser)]
#[command(name = "kubelet")]
struct Flags {
    /// Address to listen on; port 0 picks a free one.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:10250")]
    listen: SocketAddr,
    /// An apiserver's data directory: takes certificates and client CA from there.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Name of the node this is.
    #[arg(long, value_name = "NAME", default_value = "demo-node")]
    node_name: String,
    /// What runs the containers.
    #[arg(long, value_enum, default_value_t = RuntimeEndpoint::Process)]
    container_runtime_endpoint: RuntimeEndpoint,
    /// What a port-forward's client is told of a connection that failed. `isolate` hides it, so that one failure does not
    /// end kubectl's whole forward. It is for `process`: a runtime that speaks CRI reports by itself.
    #[arg(long, value_enum, default_value_t = PortForwardErrors::Report)]
    port_forward_errors: PortForwardErrors,
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

#[derive(Clone, Copy, Debug, ValueEnum)]
enum RuntimeEndpoint {
    /// Processes of this host.
    Process,
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
    let store = Arc::new(Store::from_manifests(&[])?);
    store.assign_all_pods(&flags.node_name);
    let containers = match flags.container_runtime_endpoint {
        RuntimeEndpoint::Process => containers_on(&store, &flags.node_name),
    };

    let mut server = Server::bind(flags.listen, stop_signal()?).await?;
    let authenticator = if flags.insecure {
        Authenticator::anybody_is_admin(Dialect::Kubelet)
    } else {
        let (own, client_ca) = certificates(&flags)?;
        server = server.with_tls(tls::server_config(&own, &client_ca)?);
        // No tokens: by certificate only.
        Authenticator::known(Tokens::default(), Dialect::Kubelet)
    };
    let sessions = Sessions::default();
    let metrics = Arc::new(StreamingMetrics::kubelet());
    let parts = Parts {
        sessions: sessions.clone(),
        metrics: metrics.clone(),
        gates: flags.feature_gates,
        dial_errors: flags.port_forward_errors.into(),
    };
    let streams = mounted(process_kubelet(containers, parts));
    let service = router(store, streams, metrics, authenticator);

    say(format_args!("listening on {}", server.url()?));
    say("ready");
    server.serve(service, sessions).await
}

/// The real kubelet's routes, all of them behind authentication, as there.
fn router(store: Arc<Store>, streams: Stack, metrics: Arc<StreamingMetrics>, authenticator: Authenticator) -> Router {
    let pods = move || {
        let (pods, _) = store.list(Kind::Pod);
        async move { Json(json!({ "kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": pods })) }
    };
    Router::new()
        .route("/exec/{*pod}", any_service(streams.clone()))
        .route("/attach/{*pod}", any_service(streams.clone()))
        .route("/portForward/{*pod}", any_service(streams))
        .route("/pods", get(pods))
        .route("/metrics", get(move || async move { exposition(&[metrics]) }))
        .route("/healthz", get(|| async { "ok" }))
        .layer(from_fn(admin))
        .layer(authenticator.into_layer())
}

/// Lets administrators through, and words it as a kubelet otherwise (pkg/kubelet/server/server.go `InstallAuthFilter`).
async fn admin(request: Request, next: Next) -> Response<Body> {
    let caller = request.extensions().get::<Caller>().cloned().unwrap_or_else(Caller::anonymous);
    if authz::is_admin(&caller) {
        return next.run(request).await;
    }
    let verb = if request.method() == Method::POST { "create" } else { "get" };
    let user = &caller.name;
    let message = format!("Forbidden (user={user}, verb={verb}, resource=nodes, subresource(s)=[proxy])");
    Refusal::new(StatusCode::FORBIDDEN, "Forbidden", message).into_response(Dialect::Kubelet)
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
