//! The Kubernetes API around a stream: what kubectl asks before it opens one, and what a kubelet needs to register.

use std::sync::Arc;

use axum::{
    Json, Router,
    body::Bytes,
    extract::{Query, State},
    middleware::from_fn_with_state,
    response::{IntoResponse, Response},
    routing::{any_service, get},
};
use http::{HeaderMap, StatusCode, header};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tower_kube_streaming::{
    adapters::prometheus::StreamingMetrics,
    upgrade::{Dialect, Refusal},
};

use super::{
    Stack,
    at::At,
    authn::Authenticator,
    authz, exposition,
    list::{ListQuery, list},
    objects::{Kind, Refused, Store},
    patch,
    rbac::RbacAuthorizer,
    reviews, table,
};

/// What the handlers share.
#[derive(Clone, Debug)]
pub struct Api {
    pub store: Arc<Store>,
    /// What `/metrics` shows.
    pub metrics: Arc<[Arc<StreamingMetrics>]>,
    /// Ends watches when the server stops.
    pub stop: CancellationToken,
}

/// The whole server: `streams` answers the three subresources that are streams, and authorizes them itself. All else is
/// authorized here, also what is not found or not allowed: who may not ask is not told.
pub fn router(api: Api, streams: Stack, authenticator: Authenticator) -> Router {
    let metrics = api.metrics.clone();
    let streams = ["exec", "attach", "portforward"].into_iter().fold(Router::new(), |router, subresource| {
        let path = format!("/api/v1/namespaces/{{namespace}}/pods/{{name}}/{subresource}");
        router.route(&path, any_service(streams.clone()))
    });
    let one = || get(read).patch(change);
    let rbac = RbacAuthorizer::new(api.store.clone());
    let objects = Router::new()
        .route("/api", get(|| async { Json(versions()) }))
        .route("/apis", get(|| async { Json(groups()) }))
        .route("/api/v1", get(|| async { Json(resources()) }))
        .route("/api/v1/nodes", get(collection).post(create))
        .route("/api/v1/nodes/{name}", one())
        .route("/api/v1/nodes/{name}/status", one())
        .route("/api/v1/pods", get(collection))
        .route("/api/v1/namespaces/{namespace}/pods", get(collection).post(create))
        .route("/api/v1/namespaces/{namespace}/pods/{name}", one())
        .route("/api/v1/namespaces/{namespace}/pods/{name}/status", one())
        .merge(reviews::routes())
        .with_state(api)
        .route("/metrics", get(|| async move { exposition(&metrics) }))
        .fallback(|| async { Failure(not_found()) })
        .method_not_allowed_fallback(|| async { Failure(method_not_allowed()) })
        .layer(from_fn_with_state(rbac, authz::authorize));
    let known = objects.merge(streams).layer(authenticator.into_layer());
    // Anybody may ask these, as with a real API server.
    let ok = || get(|| async { "ok" });
    Router::new()
        .route("/healthz", ok())
        .route("/livez", ok())
        .route("/readyz", ok())
        .route("/version", get(|| async { Json(version()) }))
        .merge(known)
}

async fn collection(
    State(api): State<Api>,
    at: At,
    Query(query): Query<ListQuery>,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    Ok(list(&api.store, &at, &query, &headers, &api.stop)?)
}

async fn read(State(api): State<Api>, at: At, headers: HeaderMap) -> Result<Json<Value>, Failure> {
    let object = api.store.get(&at.key()).ok_or_else(|| missing(&at))?;
    Ok(Json(if table::is_wanted(&headers) { table::of(at.kind, &[object], "") } else { object }))
}

async fn create(State(api): State<Api>, at: At, body: Bytes) -> Result<(StatusCode, Json<Value>), Failure> {
    let mut object = parse(&body)?;
    if object["kind"] != at.kind.name() {
        return Err(Refusal::bad_request(format!("the body must be a {}", at.kind.name())).into());
    }
    if let Some(namespace) = &at.namespace {
        let named = object["metadata"]["namespace"].as_str().unwrap_or(namespace);
        if named != namespace {
            let message = "the namespace of the provided object does not match the namespace sent on the request";
            return Err(Refusal::bad_request(message).into());
        }
        object["metadata"]["namespace"] = namespace.as_str().into();
    }
    if at.kind == Kind::Pod {
        // As upstream: a client does not say how a new Pod is. A Node does.
        object["status"] = json!({ "phase": "Pending" });
    }
    let created = api.store.create(object)?;
    Ok((StatusCode::CREATED, Json(created)))
}

/// `PATCH` of an object leaves its status alone, and `PATCH` of its status everything else.
async fn change(State(api): State<Api>, at: At, headers: HeaderMap, body: Bytes) -> Result<Json<Value>, Failure> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let strategic = match kind.split(';').next().unwrap_or_default().trim() {
        "application/merge-patch+json" => false,
        "application/strategic-merge-patch+json" => true,
        _ => {
            let message = "the body of the request was in an unknown format - accepted media types include: \
                           application/merge-patch+json, application/strategic-merge-patch+json";
            return Err(Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "UnsupportedMediaType", message).into());
        }
    };
    let Value::Object(mut patch) = parse(&body)? else {
        return Err(Refusal::bad_request("a patch must be an object").into());
    };
    if at.subresource.is_some() {
        patch.retain(|name, _| name == "status");
    } else {
        patch.remove("status");
    }
    let changed = api.store.update(&at.key(), |object| patch::apply(object, patch.into(), strategic))?;
    Ok(Json(changed.ok_or_else(|| missing(&at))?))
}

/// A Kubernetes object in JSON.
pub fn parse(body: &[u8]) -> Result<Value, Refusal> {
    let object: Value =
        serde_json::from_slice(body).map_err(|error| Refusal::bad_request(format!("the body is not JSON: {error}")))?;
    let metadata = object.get("metadata");
    if !object.is_object() || metadata.is_some_and(|metadata| !metadata.is_object()) {
        return Err(Refusal::bad_request("the body is not a Kubernetes object"));
    }
    Ok(object)
}

/// A refusal, as a `Status`.
pub struct Failure(Refusal);

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self(refusal)
    }
}

impl From<Refused> for Failure {
    fn from(refused: Refused) -> Self {
        Self(match &refused {
            Refused::Invalid(why) => Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", why.as_str()),
            Refused::Exists(key) => Refusal::new(StatusCode::CONFLICT, "AlreadyExists", refused.message())
                .about(key.kind.plural(), &key.name),
        })
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        self.0.into_response(Dialect::ApiServer)
    }
}

fn missing(at: &At) -> Refusal {
    Refusal::not_found(at.kind.plural(), at.name.as_deref().unwrap_or_default())
}

fn not_found() -> Refusal {
    Refusal::new(StatusCode::NOT_FOUND, "NotFound", "the server could not find the requested resource")
}

fn method_not_allowed() -> Refusal {
    let message = "the server does not allow this method on the requested resource";
    Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", message)
}

fn version() -> Value {
    json!({
        "major": "1", "minor": "36", "gitVersion": "v1.36.2", "gitCommit": "", "gitTreeState": "", "buildDate": "",
        "goVersion": "", "compiler": "rustc", "platform": "linux/amd64",
    })
}

fn versions() -> Value {
    json!({ "kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": [] })
}

fn groups() -> Value {
    json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": [reviews::group()] })
}

fn resources() -> Value {
    let resource = |name: &str, kind: &str, verbs: &[&str]| {
        let namespaced = name.starts_with("pods");
        json!({ "name": name, "singularName": "", "namespaced": namespaced, "kind": kind, "verbs": verbs })
    };
    let main = |name: &str, kind: &str, short: &str| {
        let mut resource = resource(name, kind, &["create", "get", "list", "patch", "watch"]);
        resource["singularName"] = kind.to_lowercase().into();
        resource["shortNames"] = json!([short]);
        resource
    };
    let stream = ["create", "get"];
    json!({
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": "v1",
        "resources": [
            main("nodes", "Node", "no"),
            resource("nodes/status", "Node", &["get", "patch"]),
            main("pods", "Pod", "po"),
            resource("pods/status", "Pod", &["get", "patch"]),
            resource("pods/attach", "PodAttachOptions", &stream),
            resource("pods/exec", "PodExecOptions", &stream),
            resource("pods/portforward", "PodPortForwardOptions", &stream),
        ],
    })
}
