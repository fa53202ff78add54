//! May they: members of `system:masters` may do everything, everybody else who is known may look.

use axum::{body::Body, extract::Request, middleware::Next};
use http::{Method, Response, StatusCode};
use tower_kube_streaming::upgrade::{Caller, Dialect, Refusal};

use super::at::At;

/// Lets reading requests of anybody through, and all requests of administrators.
pub async fn reading_or_admin(at: At, request: Request, next: Next) -> Response<Body> {
    if request.method() == Method::GET || request.method() == Method::HEAD {
        return next.run(request).await;
    }
    admin(at, request, next).await
}

/// Lets administrators through. For streams: a WebSocket handshake is a GET, and opens a shell nonetheless.
pub async fn admin(at: At, request: Request, next: Next) -> Response<Body> {
    let caller = request.extensions().get::<Caller>().cloned().unwrap_or_else(Caller::anonymous);
    if is_admin(&caller) {
        return next.run(request).await;
    }
    refusal(&caller, request.method(), &at).into_response(Dialect::ApiServer)
}

pub fn is_admin(caller: &Caller) -> bool {
    caller.is_in("system:masters")
}

/// In upstream's words (k8s.io/apiserver pkg/endpoints/handlers/responsewriters/errors.go).
fn refusal(caller: &Caller, method: &Method, at: &At) -> Refusal {
    let verb = match *method {
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        // Also for GET: what opens a stream is asked for as `create`, whatever the handshake is.
        _ => "create",
    };
    let kind = at.kind.plural();
    let resource = match &at.subresource {
        Some(subresource) => format!("{kind}/{subresource}"),
        None => kind.to_owned(),
    };
    let place = match &at.namespace {
        Some(namespace) => format!("in the namespace {namespace:?}"),
        None => "at the cluster scope".to_owned(),
    };
    let user = &caller.name;
    let why = format!("User {user:?} cannot {verb} resource {resource:?} in API group \"\" {place}");
    match &at.name {
        Some(name) => Refusal::forbidden(kind, name, &why),
        None => Refusal::new(StatusCode::FORBIDDEN, "Forbidden", format!("{kind} is forbidden: {why}")).about(kind, ""),
    }
}
