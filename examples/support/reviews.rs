//! Questions about rights: `SelfSubjectAccessReview`, which is behind `kubectl auth can-i`, and `SubjectAccessReview`,
//! by which a kubelet asks about its callers. Answered by the same rules that the server itself obeys.

use std::collections::BTreeMap;

use axum::{Extension, Json, Router, body::Bytes, extract::State, routing::post};
use http::{HeaderMap, StatusCode, header};
use serde::Deserialize;
use serde_json::{Value, json};
use tower_kube_streaming::{
    layers::synthetic_authz::Verdict,
    upgrade::{Caller, Refusal},
};

use super::{
    api::{Api, Failure, parse},
    protobuf,
    rbac::{About, Asked, RbacAuthorizer},
};

const VERSION: &str = "authorization.k8s.io/v1";

/// The two reviews.
pub fn routes() -> Router<Api> {
    let at = |name: &str| format!("/apis/{VERSION}/{name}");
    Router::new()
        .route(&at("selfsubjectaccessreviews"), post(about_oneself))
        .route(&at("subjectaccessreviews"), post(about_anybody))
}

async fn about_oneself(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<(StatusCode, Json<Value>), Failure> {
    let (review, spec) = read(&headers, &body, "SelfSubjectAccessReview")?;
    answer(api, review, &caller, spec)
}

async fn about_anybody(
    State(api): State<Api>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<(StatusCode, Json<Value>), Failure> {
    let (review, mut spec) = read(&headers, &body, "SubjectAccessReview")?;
    if spec.user.is_empty() && spec.groups.is_empty() {
        return Err(invalid("at least one of user or group must be specified").into());
    }
    let mut caller = Caller::new(std::mem::take(&mut spec.user), std::mem::take(&mut spec.groups));
    caller.uid = std::mem::take(&mut spec.uid);
    caller.extra = std::mem::take(&mut spec.extra);
    answer(api, review, &caller, spec)
}

fn answer(api: Api, mut review: Value, caller: &Caller, spec: Spec) -> Result<(StatusCode, Json<Value>), Failure> {
    let decision = RbacAuthorizer::new(api.store).decide(caller, &spec.asked()?);
    // There is no `denied`: RBAC allows, or says nothing.
    let mut status = json!({ "allowed": decision.verdict == Verdict::Allow });
    if !decision.reason.is_empty() {
        status["reason"] = decision.reason.into();
    }
    review["status"] = status;
    Ok((StatusCode::CREATED, Json(review)))
}

fn read(headers: &HeaderMap, body: &[u8], kind: &str) -> Result<(Value, Spec), Refusal> {
    let review = read_review(headers, body, kind, VERSION, protobuf::ACCESS)?;
    let spec = Spec::deserialize(&review["spec"])
        .map_err(|error| Refusal::bad_request(format!("the spec of the {kind} cannot be read: {error}")))?;
    Ok((review, spec))
}

/// A review of that kind and version, in JSON or in protobuf.
pub fn read_review(
    headers: &HeaderMap,
    body: &[u8],
    kind: &str,
    version: &str,
    shape: protobuf::Review,
) -> Result<Value, Refusal> {
    let mut review = if headers.get(header::CONTENT_TYPE).is_some_and(|of| of == protobuf::MEDIA_TYPE) {
        protobuf::review(body, shape).ok_or_else(|| Refusal::bad_request("the body is no review in protobuf"))?
    } else {
        parse(body)?
    };
    for (field, wanted) in [("kind", kind), ("apiVersion", version)] {
        if review[field] != wanted {
            return Err(Refusal::bad_request(format!("{field} must be {wanted}")));
        }
    }
    if review["metadata"].is_null() {
        review["metadata"] = json!({});
    }
    Ok(review)
}

fn invalid(why: &str) -> Refusal {
    Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", format!("spec: Invalid value: {why}"))
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Spec {
    user: String,
    groups: Vec<String>,
    uid: String,
    extra: BTreeMap<String, Vec<String>>,
    resource_attributes: Option<ResourceAttributes>,
    non_resource_attributes: Option<NonResourceAttributes>,
}

/// Version and selectors are not read: no rule of RBAC is about them.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ResourceAttributes {
    namespace: String,
    verb: String,
    group: String,
    resource: String,
    subresource: String,
    name: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct NonResourceAttributes {
    path: String,
    verb: String,
}

impl Spec {
    fn asked(self) -> Result<Asked, Refusal> {
        match (self.resource_attributes, self.non_resource_attributes) {
            (Some(asked), None) => {
                let ResourceAttributes { namespace, verb, group, resource, subresource, name } = asked;
                Ok(Asked { verb, about: About::Resource { group, resource, subresource, namespace, name } })
            }
            (None, Some(NonResourceAttributes { path, verb })) => Ok(Asked { verb, about: About::Path(path) }),
            _ => Err(invalid("exactly one of nonResourceAttributes or resourceAttributes must be specified")),
        }
    }
}
