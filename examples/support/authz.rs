//! May they: what a request asks for in the words of RBAC, and the answer to who may not. Streams are not asked about
//! here, as they have a layer of their own for that.

use axum::{
    body::Body,
    extract::{Query, Request, State},
    middleware::Next,
};
use http::{HeaderValue, Method, Response, StatusCode, Uri, header};
use percent_encoding::percent_decode_str;
use serde_json::Value;
use tower_kube_streaming::{
    layers::synthetic_authz::{Verb, Verdict},
    upgrade::Caller,
};

use super::{
    list::ListQuery,
    rbac::{About, Asked, MASTERS, RbacAuthorizer},
};

/// Lets through what the caller may do.
pub async fn authorize(State(rbac): State<RbacAuthorizer>, request: Request, next: Next) -> Response<Body> {
    let caller = request.extensions().get::<Caller>().cloned().unwrap_or_else(Caller::anonymous);
    let asked = Asked::of(request.method(), request.uri());
    let decision = rbac.decide(&caller, &asked);
    if decision.verdict == Verdict::Allow {
        return next.run(request).await;
    }
    // Quoted, as both hold what the client likes.
    tracing::info!(user.name = ?caller.name, asked = ?asked, why = ?decision.reason, "request refused");
    asked.forbidden(&caller, &decision.reason)
}

pub fn is_admin(caller: &Caller) -> bool {
    caller.is_in(MASTERS)
}

impl Asked {
    /// Upstream's `RequestInfoFactory.NewRequestInfo` (k8s.io/apiserver pkg/endpoints/request/requestinfo.go), but for the
    /// old `watch` and `proxy` prefixes. The path is taken apart before it is decoded, as the router does.
    pub fn of(method: &Method, uri: &Uri) -> Self {
        let path = uri.path();
        let parts: Vec<String> = path.trim_matches('/').split('/').map(decoded).collect();
        let (group, rest) = match parts.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["api", _, _, ..] => (String::new(), &parts[2..]),
            ["apis", group, _, _, ..] => (group.to_owned(), &parts[3..]),
            _ => {
                let verb = method.as_str().to_ascii_lowercase();
                return Self { verb, about: About::Path(decoded(path)) };
            }
        };
        let (namespace, rest) = match rest {
            // `namespaces/a/pods`, but not the namespace itself, nor a part of it.
            [word, namespace, resource, ..]
                if word == "namespaces" && !matches!(&**resource, "status" | "finalize") =>
            {
                (namespace.clone(), &rest[2..])
            }
            [word, namespace, ..] if word == "namespaces" => (namespace.clone(), rest),
            _ => (String::new(), rest),
        };
        let part = |at: usize| rest.get(at).cloned().unwrap_or_default();
        let (resource, mut name, subresource) = (part(0), part(1), part(2));
        let mut verb = Verb::of(method).map_or("", Verb::as_str);
        if name.is_empty() {
            // The handler reads the same query, and refuses what cannot be read.
            let query = Query::<ListQuery>::try_from_uri(uri).map(|Query(query)| query).unwrap_or_default();
            verb = match verb {
                "get" if query.is_watch() => "watch",
                "get" => "list",
                "delete" => "deletecollection",
                other => other,
            };
            if matches!(verb, "list" | "watch") {
                name = query.exact_name().unwrap_or_default().to_owned();
            }
        }
        Self { verb: verb.to_owned(), about: About::Resource { group, resource, subresource, namespace, name } }
    }

    /// The answer to a caller who may not (responsewriters/errors.go, `ForbiddenStatusError`).
    pub fn forbidden(&self, caller: &Caller, reason: &str) -> Response<Body> {
        let why =
            if reason.is_empty() { self.sentence(caller) } else { format!("{}: {reason}", self.sentence(caller)) };
        let (message, details) = match &self.about {
            About::Path(_) => (format!("forbidden: {why}"), String::new()),
            About::Resource { group, resource, name, .. } => {
                let dot = if group.is_empty() { "" } else { "." };
                let named = if name.is_empty() { String::new() } else { format!(" {name:?}") };
                let details = [("name", name), ("group", group), ("kind", resource)].into_iter();
                let details = details.filter(|(_, value)| !value.is_empty());
                let details: Vec<String> = details.map(|(key, value)| format!("\"{key}\":{}", json(value))).collect();
                (format!("{resource}{dot}{group}{named} is forbidden: {why}"), details.join(","))
            }
        };
        let message = json(&message);
        let body = format!(
            "{{\"kind\":\"Status\",\"apiVersion\":\"v1\",\"metadata\":{{}},\"status\":\"Failure\",\"message\":{message},\
             \"reason\":\"Forbidden\",\"details\":{{{details}}},\"code\":403}}\n"
        );
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = StatusCode::FORBIDDEN;
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        response
    }

    fn sentence(&self, caller: &Caller) -> String {
        let (user, verb) = (&caller.name, &self.verb);
        match &self.about {
            About::Path(path) => format!("User {user:?} cannot {verb} path {path:?}"),
            About::Resource { group, resource, subresource, namespace, .. } => {
                let slash = if subresource.is_empty() { "" } else { "/" };
                let place = if namespace.is_empty() {
                    "at the cluster scope".to_owned()
                } else {
                    format!("in the namespace {namespace:?}")
                };
                let what = format!("{resource}{slash}{subresource}");
                format!("User {user:?} cannot {verb} resource {what:?} in API group {group:?} {place}")
            }
        }
    }
}

fn decoded(part: &str) -> String {
    percent_decode_str(part).decode_utf8_lossy().into_owned()
}

/// A string as Go writes it.
fn json(text: &str) -> String {
    Value::from(text).to_string().replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026")
}
