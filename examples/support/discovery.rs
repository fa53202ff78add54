//! What clients ask before anything else: groups, versions and resources, and an OpenAPI document.

use axum::{
    Json, Router,
    response::{IntoResponse, Response},
    routing::get,
};
use http::{StatusCode, header};
use serde_json::{Value, json};

use super::objects::Kind;

/// Groups other than the core, all of them at `v1`.
const GROUPS: [&str; 3] = ["authentication.k8s.io", "authorization.k8s.io", "coordination.k8s.io"];

/// As upstream answers who asks for version 2; the `@` of the question is no media type in Go.
const OPENAPI_V2: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// All of discovery.
pub fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    let core = Router::new()
        .route("/api", get(|| async { Json(versions()) }))
        .route("/apis", get(|| async { Json(groups()) }))
        .route("/api/v1", get(|| async { Json(resources("")) }))
        .route("/openapi/v2", get(openapi_v2))
        .route("/openapi/v3", get(|| async { Json(json!({ "paths": {} })) }));
    GROUPS.into_iter().fold(core, |router, name| {
        router
            .route(&format!("/apis/{name}"), get(move || async move { Json(group(name)) }))
            .route(&format!("/apis/{name}/v1"), get(move || async move { Json(resources(name)) }))
    })
}

/// A document that says nothing: its version only. `kubectl apply` wants to have one, and validates nothing by it.
async fn openapi_v2() -> Response {
    (StatusCode::OK, [(header::CONTENT_TYPE, OPENAPI_V2)], &b"\x0a\x032.0"[..]).into_response()
}

fn versions() -> Value {
    json!({ "kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": [] })
}

fn groups() -> Value {
    json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": GROUPS.map(group) })
}

fn group(name: &str) -> Value {
    let version = json!({ "groupVersion": format!("{name}/v1"), "version": "v1" });
    json!({ "kind": "APIGroup", "apiVersion": "v1", "name": name, "versions": [version], "preferredVersion": version })
}

fn resources(group: &str) -> Value {
    let mut all: Vec<Value> = Kind::ALL.into_iter().filter(|kind| kind.group() == group).flat_map(stored).collect();
    let parts: &[(&str, &str, &[&str])] = match group {
        "" => &[
            ("pods/attach", "PodAttachOptions", &["create", "get"]),
            ("pods/exec", "PodExecOptions", &["create", "get"]),
            ("pods/log", "Pod", &["get"]),
            ("pods/portforward", "PodPortForwardOptions", &["create", "get"]),
        ],
        "authentication.k8s.io" => {
            &[("selfsubjectreviews", "SelfSubjectReview", &["create"]), ("tokenreviews", "TokenReview", &["create"])]
        }
        "authorization.k8s.io" => &[
            ("selfsubjectaccessreviews", "SelfSubjectAccessReview", &["create"]),
            ("subjectaccessreviews", "SubjectAccessReview", &["create"]),
        ],
        _ => &[],
    };
    all.extend(parts.iter().map(|(name, kind, verbs)| resource(name, kind, name.starts_with("pods"), verbs)));
    let version = if group.is_empty() { "v1".to_owned() } else { format!("{group}/v1") };
    json!({ "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": all })
}

fn stored(kind: Kind) -> Vec<Value> {
    let verbs = ["create", "delete", "get", "list", "patch", "update", "watch"];
    let mut main = resource(kind.plural(), kind.name(), kind.is_namespaced(), &verbs);
    main["singularName"] = kind.name().to_lowercase().into();
    main["shortNames"] = kind.short().into();
    let status = format!("{}/status", kind.plural());
    let status = resource(&status, kind.name(), kind.is_namespaced(), &["get", "patch", "update"]);
    if kind.has_status() { vec![main, status] } else { vec![main] }
}

fn resource(name: &str, kind: &str, namespaced: bool, verbs: &[&str]) -> Value {
    json!({ "name": name, "singularName": "", "namespaced": namespaced, "kind": kind, "verbs": verbs })
}
