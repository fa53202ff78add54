//! Who is it: `TokenReview`, by which others have a bearer token read, and `SelfSubjectReview`, which is behind
//! `kubectl auth whoami`.

use std::sync::Arc;

use axum::{Extension, Json, Router, body::Bytes, routing::post};
use http::{HeaderMap, StatusCode};
use serde_json::{Value, json};
use tower_kube_streaming::upgrade::{Caller, Refusal};

use super::{
    api::Failure,
    authn::Authenticator,
    objects::{items, text},
    protobuf,
    reviews::read_review,
};

const VERSION: &str = "authentication.k8s.io/v1";

/// What upstream takes a token for where `--api-audiences` and `--service-account-issuer` say nothing else.
const AUDIENCE: &str = "https://kubernetes.default.svc.cluster.local";

/// The two reviews.
pub fn routes<S: Clone + Send + Sync + 'static>(authenticator: Authenticator) -> Router<S> {
    let authenticator = Arc::new(authenticator);
    let token = move |headers: HeaderMap, body: Bytes| {
        let answer = of_token(&authenticator, &headers, &body);
        async move { answer }
    };
    Router::new()
        .route(&format!("/apis/{VERSION}/tokenreviews"), post(token))
        .route(&format!("/apis/{VERSION}/selfsubjectreviews"), post(of_oneself))
}

type Answer = Result<(StatusCode, Json<Value>), Failure>;

fn of_token(authenticator: &Authenticator, headers: &HeaderMap, body: &[u8]) -> Answer {
    let mut review = read_review(headers, body, "TokenReview", VERSION, protobuf::TOKEN)?;
    let token =
        text(&review, "/spec/token").ok_or_else(|| Refusal::bad_request("token is required for TokenReview"))?;
    let asked = items(&review, "/spec/audiences");
    // A token of ours is for this server alone.
    let fits = asked.is_empty() || asked.iter().any(|audience| audience == AUDIENCE);
    let mut status = match authenticator.caller_of_token(token).filter(|_| fits) {
        Some(caller) => json!({ "authenticated": true, "user": user(&caller) }),
        None => json!({ "authenticated": false }),
    };
    if fits && !asked.is_empty() && status["authenticated"] == true {
        status["audiences"] = json!([AUDIENCE]);
    }
    review["status"] = status;
    // It has been told us once; it need not travel again.
    review["spec"]["token"] = "".into();
    Ok((StatusCode::CREATED, Json(review)))
}

async fn of_oneself(Extension(caller): Extension<Caller>, headers: HeaderMap, body: Bytes) -> Answer {
    let mut review = read_review(&headers, &body, "SelfSubjectReview", VERSION, &[])?;
    review["status"] = json!({ "userInfo": user(&caller) });
    Ok((StatusCode::CREATED, Json(review)))
}

fn user(caller: &Caller) -> Value {
    json!({ "username": caller.name, "uid": caller.uid, "groups": caller.groups, "extra": caller.extra })
}
