//! A streaming gateway for an existing cluster: it carries the streams of pods itself, and forwards all else.
//!
//! | file | one idea |
//! |---|---|
//! | `caller` | who asks, by the cluster's word or vouched for at the cluster |
//! | `forward` | a request goes on, and its answer comes back, while both still come |
//!
//! It keeps nothing that the cluster does not know, so any number of it may stand behind a balancer.

pub mod caller;
pub mod forward;

use std::{path::Path, sync::Arc};

use axum::{
    Router,
    extract::{Request, State},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::{any_service, get},
};
use http::StatusCode;
use k8s_openapi::api::authorization::v1::{NonResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::{
    Api, Client, Config,
    api::PostParams,
    config::{KubeConfigOptions, Kubeconfig, KubeconfigError},
};
use tokio_util::sync::CancellationToken;
use tower_kube_streaming::{
    FeatureGates,
    adapters::{kube::Cluster, prometheus::StreamingMetrics, rustls::TlsConnect},
    layers::{MetricsLayer, QuotaLayer, SyntheticAuthzLayer},
    services::{ApiServer, Throttled, UpgradeProxy},
    upgrade::{Caller, Dialect, SessionLimits, Sessions},
};

use self::{
    caller::{Callers, vouch},
    forward::{Upstream, unavailable},
};
use super::{
    Context, Error, Stack, exposition, mounted,
    pki::CertAndKey,
    provider,
    rbac::{About, Asked},
    say,
};

/// A cluster, and what is needed to stand in front of it.
#[derive(Clone)]
pub struct Gateway {
    client: Client,
    upstream: Upstream,
    callers: Callers,
    cluster: Cluster,
    metrics: Arc<StreamingMetrics>,
}

/// How its streams go on.
pub struct Streams {
    pub sessions: Sessions,
    pub connect: Throttled<TlsConnect>,
    pub limits: SessionLimits,
    pub quota: QuotaLayer,
    pub gates: FeatureGates,
}

impl Gateway {
    /// In front of the cluster that a kubeconfig's current context names. Starts to watch its Pods and Nodes.
    pub async fn new(
        kubeconfig: &Path,
        front_proxy: Option<&CertAndKey>,
        stop: CancellationToken,
    ) -> Result<Self, Error> {
        // Not with the loader's words where they could quote the file, which holds secrets.
        let file = Kubeconfig::read_from(kubeconfig).map_err(|error| match error {
            KubeconfigError::ReadConfig(error, path) => format!("{}: {error}", path.display()),
            _ => format!("{}: not a kubeconfig", kubeconfig.display()),
        })?;
        let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await;
        let config = config.context(kubeconfig.display())?;
        // kube-rs takes the process's; there is none where several are linked.
        let _ = Arc::unwrap_or_clone(provider::provider()).install_default();
        let upstream = Upstream::new(&config, front_proxy, stop)?;
        let client = Client::try_from(config).context(kubeconfig.display())?;
        let (cluster, watching) = Cluster::watch(client.clone());
        tokio::spawn(watching);
        let callers = Callers::new(client.clone());
        Ok(Self { client, upstream, callers, cluster, metrics: Arc::new(StreamingMetrics::api_server()) })
    }

    /// Prints `ready` when Pods and Nodes are known. Until then streams are served too, one question each.
    pub fn say_when_ready(&self) {
        let cluster = self.cluster.clone();
        tokio::spawn(async move {
            cluster.ready().await;
            say("ready");
        });
    }

    /// The whole server. `/healthz`, `/livez`, `/readyz` and `/metrics` are the gateway's own; the cluster's are not to be
    /// had through it.
    pub fn router(self, streams: Streams) -> Router {
        let stack = self.streams(streams);
        let streams = ["exec", "attach", "portforward"].into_iter().fold(Router::new(), |router, subresource| {
            let path = format!("/api/v1/namespaces/{{namespace}}/pods/{{name}}/{subresource}");
            router.route(&path, any_service(stack.clone()))
        });
        let own = streams
            .merge(Router::new().route("/metrics", get(metrics)).with_state(self.clone()))
            .route_layer(from_fn_with_state(self.callers.clone(), authenticate));
        let ok = || get(|| async { "ok" });
        Router::new()
            .merge(own)
            .route("/healthz", ok())
            .route("/livez", ok())
            .route("/readyz", get(readyz))
            .fallback(forward)
            .with_state(self)
    }

    /// The streaming stack of an API server, which asks the cluster.
    fn streams(&self, streams: Streams) -> Stack {
        let Streams { sessions, connect, limits, quota, gates } = streams;
        let metrics = MetricsLayer::new(self.metrics.clone());
        let stack = ApiServer::builder().gates(gates).limits(limits).count_refusals(metrics.clone());
        let authorize = (metrics, SyntheticAuthzLayer::new(self.callers.access()).gates(gates), quota);
        let leaf = UpgradeProxy::new(connect).limits(limits);
        mounted(stack.build(sessions, authorize, self.cluster.clone(), leaf))
    }
}

async fn authenticate(State(callers): State<Callers>, mut request: Request, next: Next) -> Response {
    match callers.authenticate(&mut request).await {
        Ok(()) => next.run(request).await,
        Err(answer) => answer,
    }
}

async fn forward(State(gateway): State<Gateway>, mut request: Request) -> Response {
    match vouch(&mut request, &gateway.upstream) {
        Ok(via) => gateway.upstream.forward(request, via).await,
        Err(refusal) => refusal.into_response(Dialect::ApiServer),
    }
}

async fn readyz(State(gateway): State<Gateway>) -> Response {
    if gateway.cluster.is_ready() {
        return "ok".into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, "the cluster's Pods and Nodes are not known yet\n").into_response()
}

/// As at an API server, for who may `get` the path.
async fn metrics(State(gateway): State<Gateway>, request: Request) -> Response {
    let caller = request.extensions().get::<Caller>().cloned().unwrap_or_else(Caller::anonymous);
    let asked = Asked { verb: "get".to_owned(), about: About::Path("/metrics".to_owned()) };
    match may_get(&gateway.client, &caller, "/metrics").await {
        Ok((true, _)) => exposition(&[gateway.metrics]).into_response(),
        Ok((false, why)) => asked.forbidden(&caller, &why),
        Err(error) => {
            tracing::warn!(%error, "asking who may read the metrics failed");
            unavailable("the cluster's API server cannot say who may read this")
        }
    }
}

/// Not cached: one scrape asks once.
async fn may_get(client: &Client, caller: &Caller, path: &str) -> Result<(bool, String), kube::Error> {
    let caller = caller.clone();
    let review = SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: Some(caller.name),
            uid: Some(caller.uid).filter(|uid| !uid.is_empty()),
            groups: Some(caller.groups),
            extra: Some(caller.extra),
            non_resource_attributes: Some(NonResourceAttributes {
                path: Some(path.to_owned()),
                verb: Some("get".to_owned()),
            }),
            ..SubjectAccessReviewSpec::default()
        },
        ..SubjectAccessReview::default()
    };
    let answer = Api::all(client.clone()).create(&PostParams::default(), &review).await?;
    let status = answer.status.unwrap_or_default();
    Ok((status.allowed, status.reason.unwrap_or_default()))
}
