//! The streaming stack of an API server inside somebody else's axum application: beside its own routes, and below its own
//! middleware.
//!
//! ```sh
//! cargo run --example kubelet -- --insecure
//! cargo run --example axum                                          # in another shell
//! kubectl --kubeconfig target/axum/kubeconfig exec demo -- date     # in a third
//! ```
//!
//! The application knows one Pod, `default/demo`, whose containers the kubelet runs as **plain processes of this host**.

mod support;

use std::{
    future::{Ready, ready},
    net::SocketAddr,
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use axum::{
    Json, Router,
    body::Body,
    routing::{any_service, get},
};
use clap::Parser;
use http::{
    Request, StatusCode,
    header::{AUTHORIZATION, COOKIE, SEC_WEBSOCKET_PROTOCOL},
};
use serde_json::{Value, json};
use support::{
    Context, Error, Stack,
    authn::Authenticator,
    kubeconfig, log_to_stderr, mounted, pki, say,
    server::{Server, stop_signal},
    tls,
    tokens::{self, Tokens},
};
use tower::ServiceBuilder;
use tower_http::{
    catch_panic::CatchPanicLayer,
    request_id::{MakeRequestUuid, PropagateRequestIdLayer, RequestId, SetRequestIdLayer},
    sensitive_headers::SetSensitiveRequestHeadersLayer,
    timeout::TimeoutLayer,
    trace::TraceLayer,
};
use tower_kube_streaming::{
    BoxError,
    layers::{
        Hop, SyntheticAuthzLayer,
        synthetic_authz::{Attributes, Decision},
    },
    services::{ApiServer, TcpConnect, UpgradeProxy},
    upgrade::{Dialect, Refusal, Sessions, Subresource, Target},
};

/// An axum application with exec, attach and port-forward in it.
#[derive(Debug, Parser)]
#[command(name = "axum")]
struct Flags {
    /// Address to listen on; port 0 picks a free one.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8443")]
    listen: SocketAddr,
    /// The kubelet that runs the Pod, which speaks plain HTTP: one of this machine, started with --insecure.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:10250")]
    kubelet: String,
    /// Where kubeconfig, CA, certificates and tokens are kept.
    #[arg(long, value_name = "DIR", default_value = "target/axum")]
    data_dir: PathBuf,
    /// Longest wait for an answer. A stream may last longer: it begins with its answer.
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    request_timeout: u64,
}

/// The part that is this library's: who may open a stream, where it goes, and what carries it there.
fn streams(kubelet: String, sessions: Sessions) -> Stack {
    let authorize = SyntheticAuthzLayer::new(|asked: Attributes| -> Ready<Result<Decision, BoxError>> {
        let admin = asked.caller.is_in("system:masters");
        ready(Ok(if admin { Decision::allow() } else { Decision::no_opinion() }))
    });
    let resolve = move |asked: Arc<Target>| ready(hop(&kubelet, &asked));
    mounted(ApiServer::new(sessions, authorize, resolve, UpgradeProxy::new(TcpConnect)))
}

fn hop(kubelet: &str, asked: &Target) -> Result<Hop, Refusal> {
    if (&*asked.namespace, &*asked.pod) != ("default", "demo") {
        return Err(Refusal::not_found("pods", &asked.pod));
    }
    if asked.container.is_none() && asked.subresource != Subresource::PortForward {
        return Err(Refusal::bad_request("a container name must be specified for pod demo"));
    }
    Hop::kubelet(kubelet, asked)
}

/// The application's own routes: as much as kubectl asks for before it opens a stream.
fn own_routes() -> Router {
    let answer = |body: Value| get(async || Json(body));
    let no_groups = json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": [] });
    let pods = json!({ "name": "pods", "singularName": "pod", "namespaced": true, "kind": "Pod", "verbs": ["get"] });
    let pod = json!({
        "kind": "Pod",
        "apiVersion": "v1",
        "metadata": { "name": "demo", "namespace": "default" },
        "spec": { "containers": [{ "name": "shell" }, { "name": "sidecar" }] },
        "status": { "phase": "Running" },
    });
    Router::new()
        .route("/healthz", get(async || "ok"))
        .route("/api", answer(json!({ "kind": "APIVersions", "versions": ["v1"] })))
        .route("/apis", answer(no_groups))
        .route("/api/v1", answer(json!({ "kind": "APIResourceList", "groupVersion": "v1", "resources": [pods] })))
        .route("/api/v1/namespaces/default/pods/demo", answer(pod))
}

fn application(streams: Stack, tokens: Tokens, request_timeout: Duration) -> Router {
    let authenticate = Authenticator::known(tokens, Dialect::ApiServer).into_layer();
    ["exec", "attach", "portforward"]
        .into_iter()
        .fold(own_routes(), |router, subresource| {
            let path = format!("/api/v1/namespaces/{{namespace}}/pods/{{name}}/{subresource}");
            router.route(&path, any_service(streams.clone()))
        })
        .layer(
            ServiceBuilder::new()
                // A browser's token is a subprotocol.
                .layer(SetSensitiveRequestHeadersLayer::new([AUTHORIZATION, COOKIE, SEC_WEBSOCKET_PROTOCOL]))
                .layer(SetRequestIdLayer::x_request_id(MakeRequestUuid))
                .layer(TraceLayer::new_for_http().make_span_with(span))
                .layer(PropagateRequestIdLayer::x_request_id())
                .layer(CatchPanicLayer::new())
                // All of these end with the 101; the session goes on behind it, in the request's span.
                .layer(TimeoutLayer::with_status_code(StatusCode::GATEWAY_TIMEOUT, request_timeout))
                .layer(authenticate),
        )
}

/// tower-http's own span names the whole URL. Not here: the command is in it.
fn span(request: &Request<Body>) -> tracing::Span {
    let id = request.extensions().get::<RequestId>().and_then(|id| id.header_value().to_str().ok());
    tracing::info_span!("request", id = id.unwrap_or_default(), method = %request.method(), path = request.uri().path())
}

#[tokio::main]
async fn main() -> ExitCode {
    let flags = Flags::parse();
    log_to_stderr();
    match run(flags).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("axum: {error}");
            ExitCode::from(2)
        }
    }
}

/// As in `apiserver.rs`: certificates, tokens and a kubeconfig of our own, since kubectl sends a token over TLS only.
/// `axum::serve` would do for the rest; behind it, too, the sessions have to be drained.
async fn run(flags: Flags) -> Result<(), Error> {
    let dir = &flags.data_dir;
    support::create_private_dir(dir)?;
    pki::prepare(dir, flags.listen.ip())?;
    let tokens = tokens::load_or_create(&dir.join("tokens.csv"))?;
    let ca = pki::files::ca(dir);
    let server = Server::bind(flags.listen, stop_signal()?).await?;
    let server = server.with_tls(tls::server_config(&pki::files::apiserver(dir), &ca)?);
    let url = server.url()?;
    let trusted = std::fs::read_to_string(&ca).context(ca.display())?;
    kubeconfig::write(&dir.join("kubeconfig"), &url, Some(&trusted), &tokens)?;

    let sessions = Sessions::new();
    let streams = streams(flags.kubelet, sessions.clone());
    let app = application(streams, Tokens::new(&tokens), Duration::from_secs(flags.request_timeout));
    say(format_args!("listening on {url}"));
    say("ready");
    server.serve(app, sessions).await
}
