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
use serde::Deserialize;
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
    authz, discovery, exposition, identity,
    list::{ListQuery, list},
    logs::{self, Logs},
    objects::{Kind, Refused, Store, items, text},
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
    /// Where the logs of containers are.
    pub logs: Logs,
}

/// The whole server: `streams` answers the three subresources that are streams, and authorizes them itself. All else is
/// authorized here, also what is not found or not allowed: who may not ask is not told.
pub fn router(api: Api, streams: Stack, authenticator: Authenticator) -> Router {
    let metrics = api.metrics.clone();
    let streams = ["exec", "attach", "portforward"].into_iter().fold(Router::new(), |router, subresource| {
        let path = format!("/api/v1/namespaces/{{namespace}}/pods/{{name}}/{subresource}");
        router.route(&path, any_service(streams.clone()))
    });
    let rbac = RbacAuthorizer::new(api.store.clone());
    let objects = Kind::ALL
        .into_iter()
        .fold(Router::new(), objects)
        .route("/api/v1/namespaces/{namespace}/pods/{name}/log", get(logs::read))
        .merge(discovery::routes())
        .merge(reviews::routes())
        .merge(identity::routes(authenticator.clone()))
        .with_state(api)
        .route("/metrics", get(|| async move { exposition(&metrics) }))
        .fallback(|| async { Failure(not_found()) })
        .method_not_allowed_fallback(|| async { Failure(Refusal::method_not_allowed()) })
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

/// The collections of a kind, its objects, and the status of each.
fn objects(router: Router<Api>, kind: Kind) -> Router<Api> {
    let root = if kind.group().is_empty() { "/api/v1".to_owned() } else { format!("/apis/{}", kind.api_version()) };
    let all = format!("{root}/{}", kind.plural());
    let (router, collection_of) = match kind.is_namespaced() {
        true => (router.route(&all, get(collection)), format!("{root}/namespaces/{{namespace}}/{}", kind.plural())),
        false => (router, all),
    };
    let one = || get(read).patch(change).put(replace);
    let router = router
        .route(&collection_of, get(collection).post(create))
        .route(&format!("{collection_of}/{{name}}"), one().delete(remove));
    if kind.has_status() { router.route(&format!("{collection_of}/{{name}}/status"), one()) } else { router }
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

/// Query of a change.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ChangeQuery {
    dry_run: Option<String>,
}

impl ChangeQuery {
    fn check(&self) -> Result<(), Refusal> {
        // Passed over, it would be done.
        let asked = self.dry_run.as_deref().is_some_and(|asked| !asked.is_empty());
        if asked { Err(Refusal::bad_request("dryRun is not supported")) } else { Ok(()) }
    }
}

async fn create(
    State(api): State<Api>,
    at: At,
    Query(query): Query<ChangeQuery>,
    body: Bytes,
) -> Result<(StatusCode, Json<Value>), Failure> {
    query.check()?;
    let mut object = of_kind(&at, &body)?;
    if text(&object, "/metadata/resourceVersion").is_some() {
        return Err(Refusal::bad_request("resourceVersion should not be set on objects to be created").into());
    }
    if at.kind == Kind::Pod {
        // As upstream: a client does not say how a new Pod is. A Node does.
        object["status"] = json!({ "phase": "Pending" });
    }
    let created = api.store.create(object)?;
    Ok((StatusCode::CREATED, Json(created)))
}

/// `PUT` of an object leaves its status alone, and `PUT` of its status everything else.
async fn replace(
    State(api): State<Api>,
    at: At,
    Query(query): Query<ChangeQuery>,
    body: Bytes,
) -> Result<Json<Value>, Failure> {
    query.check()?;
    let mut new = of_kind(&at, &body)?;
    let named = text(&new, "/metadata/name").unwrap_or_default();
    if at.name.as_deref() != Some(named) {
        let message = format!(
            "the name of the object ({named}) does not match the name on the URL ({})",
            at.name.as_deref().unwrap_or_default()
        );
        return Err(Refusal::bad_request(message).into());
    }
    if let (Some(uid), Some(object)) = (text(&new, "/metadata/uid"), api.store.get(&at.key()))
        && Some(uid) != text(&object, "/metadata/uid")
    {
        return Err(Refused::Conflict(at.key()).into());
    }
    let changed = api.store.update(&at.key(), |object| {
        if at.subresource.is_some() {
            object["status"] = new["status"].take();
            object["metadata"]["resourceVersion"] = new["metadata"]["resourceVersion"].take();
        } else {
            if at.kind.has_status() {
                new["status"] = object["status"].take();
            }
            *object = new;
        }
    })?;
    Ok(Json(changed.ok_or_else(|| missing(&at))?))
}

/// `PATCH` of an object leaves its status alone, and `PATCH` of its status everything else.
async fn change(
    State(api): State<Api>,
    at: At,
    Query(query): Query<ChangeQuery>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Json<Value>, Failure> {
    query.check()?;
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let strategic = match kind.split(';').next().unwrap_or_default().trim() {
        "application/merge-patch+json" => false,
        "application/strategic-merge-patch+json" => true,
        "application/apply-patch+yaml" => {
            return Err(unsupported("server-side apply is not supported here; apply on the client's side").into());
        }
        _ => {
            let message = "the body of the request was in an unknown format - accepted media types include: \
                           application/merge-patch+json, application/strategic-merge-patch+json";
            return Err(unsupported(message).into());
        }
    };
    let Value::Object(mut patch) = parse(&body)? else {
        return Err(Refusal::bad_request("a patch must be an object").into());
    };
    if at.subresource.is_some() {
        patch.retain(|name, _| name == "status");
    } else if at.kind.has_status() {
        patch.remove("status");
    }
    let changed = api.store.update(&at.key(), |object| patch::apply(object, patch.into(), strategic))?;
    Ok(Json(changed.ok_or_else(|| missing(&at))?))
}

/// `DELETE`: it is gone at once, whatever grace is asked for. No kubelet here runs Pods that it does not have from a file.
async fn remove(
    State(api): State<Api>,
    at: At,
    Query(query): Query<ChangeQuery>,
    body: Bytes,
) -> Result<Json<Value>, Failure> {
    query.check()?;
    let options = if body.is_empty() { json!({}) } else { parse(&body)? };
    if !items(&options, "/dryRun").is_empty() {
        return Err(Refusal::bad_request("dryRun is not supported").into());
    }
    let expected = |object: &Value| {
        ["uid", "resourceVersion"].iter().all(|field| {
            let expected = text(&options, &format!("/preconditions/{field}"));
            expected.is_none_or(|expected| text(object, &format!("/metadata/{field}")) == Some(expected))
        })
    };
    let gone = api.store.remove(&at.key(), expected)?.ok_or_else(|| missing(&at))?;
    if at.kind == Kind::Pod {
        return Ok(Json(gone));
    }
    let details = json!({ "name": at.name, "kind": at.kind.plural(), "uid": gone["metadata"]["uid"] });
    Ok(Json(json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details })))
}

/// An object of the kind and namespace that the URL names.
fn of_kind(at: &At, body: &[u8]) -> Result<Value, Refusal> {
    let mut object = parse(body)?;
    if object["kind"] != at.kind.name() {
        return Err(Refusal::bad_request(format!("the body must be a {}", at.kind.name())));
    }
    if let Some(namespace) = &at.namespace {
        let named = object["metadata"]["namespace"].as_str().unwrap_or(namespace);
        if named != namespace {
            let message = "the namespace of the provided object does not match the namespace sent on the request";
            return Err(Refusal::bad_request(message));
        }
        object["metadata"]["namespace"] = namespace.as_str().into();
    }
    Ok(object)
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
            Refused::Conflict(key) => {
                Refusal::new(StatusCode::CONFLICT, "Conflict", refused.message()).about(key.kind.plural(), &key.name)
            }
        })
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        self.0.into_response(Dialect::ApiServer)
    }
}

fn missing(at: &At) -> Refusal {
    let name = at.name.as_deref().unwrap_or_default();
    let message = format!("{} {name:?} not found", at.kind.qualified());
    Refusal::new(StatusCode::NOT_FOUND, "NotFound", message).about(at.kind.plural(), name)
}

fn unsupported(message: &str) -> Refusal {
    Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "UnsupportedMediaType", message)
}

fn not_found() -> Refusal {
    Refusal::new(StatusCode::NOT_FOUND, "NotFound", "the server could not find the requested resource")
}

fn version() -> Value {
    json!({
        "major": "1", "minor": "36", "gitVersion": "v1.36.2", "gitCommit": "", "gitTreeState": "", "buildDate": "",
        "goVersion": "", "compiler": "rustc", "platform": "linux/amd64",
    })
}
