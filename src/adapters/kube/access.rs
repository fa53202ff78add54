//! May they: asked by `SubjectAccessReview`, as upstream's webhook authorizer does
//! (`k8s.io/apiserver` `plugin/pkg/authorizer/webhook`).

use std::{fmt, future::Future, pin::Pin, sync::Arc, time::Duration};

use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec, SubjectAccessReviewStatus,
};
use kube::Client;
use serde::Deserialize;

use super::{
    answers::Answers,
    ask::{Api, Failure, cut},
};
use crate::{
    error::BoxError,
    layers::synthetic_authz::{Attributes, Authorize, Decision, Verdict},
    upgrade::{Caller, Refusal},
};

const PATH: &str = "/apis/authorization.k8s.io/v1/subjectaccessreviews";

/// How long an answer counts: upstream's `--authorization-webhook-cache-authorized-ttl` and `…-unauthorized-ttl`.
const ALLOWED: Duration = Duration::from_secs(5 * 60);
const REFUSED: Duration = Duration::from_secs(30);

/// Most answers that are kept, as upstream.
const KEPT: usize = 8192;

/// Asks a cluster what callers may do, by `SubjectAccessReview`. Cheap to clone; clones share their answers.
///
/// "Yes" counts for 5 minutes and all else for 30 seconds, 8,192 answers at most; failures are never kept. A question is
/// tried three times within 10 s. If the API cannot be asked the caller is refused with 503 and `Retry-After`.
///
/// Needs `create` on `subjectaccessreviews.authorization.k8s.io` (the cluster role `system:auth-delegator`).
#[derive(Clone)]
pub struct AccessReviews(Arc<Reviews>);

struct Reviews {
    api: Api,
    answers: Answers<Decision>,
}

/// The review as it is answered. The answer repeats the question, which nobody needs.
#[derive(Deserialize)]
struct Answered {
    status: SubjectAccessReviewStatus,
}

impl AccessReviews {
    /// Asks with that client.
    #[must_use]
    pub fn new(client: Client) -> Self {
        Self(Arc::new(Reviews { api: Api::new(client), answers: Answers::new(KEPT) }))
    }

    /// Whether the caller may do that.
    ///
    /// # Errors
    ///
    /// 503 with `Retry-After` if the API cannot be asked or does not answer in time, 500 if it answers, but not that.
    ///
    /// # Cancel safety
    ///
    /// Dropped, it leaves nothing behind.
    pub async fn may(&self, caller: &Caller, asked: ResourceAttributes) -> Result<Decision, Refusal> {
        let spec = SubjectAccessReviewSpec {
            user: Some(caller.name.clone()),
            uid: Some(caller.uid.clone()).filter(|uid| !uid.is_empty()),
            groups: Some(caller.groups.clone()),
            extra: Some(caller.extra.clone()),
            resource_attributes: Some(asked),
            ..SubjectAccessReviewSpec::default()
        };
        let review = SubjectAccessReview { spec, ..SubjectAccessReview::default() };
        let review = serde_json::to_vec(&review).map_err(|error| Refusal::internal(error.to_string()))?;
        let Reviews { api, answers } = &*self.0;
        // The question is all of the review: whatever may change the answer is in it.
        let decision = answers.of(&review, counts, async { decide(api.review(PATH, review.clone()).await?) }).await;
        decision.map_err(|failure| failure.refusal("subjectaccessreviews"))
    }
}

fn counts(decision: &Decision) -> Duration {
    match decision.verdict {
        Verdict::Allow => ALLOWED,
        Verdict::Deny | Verdict::NoOpinion => REFUSED,
    }
}

fn decide(Answered { status }: Answered) -> Result<Decision, Failure> {
    let decision = match (status.allowed, status.denied.unwrap_or_default()) {
        (true, true) => return Err(Failure::Refused("a review that is both allowed and denied".into())),
        (true, false) => Decision::allow(),
        (false, true) => Decision::deny(),
        (false, false) => Decision::no_opinion(),
    };
    Ok(decision.because(cut(status.reason.unwrap_or_default())))
}

/// A refusal is the error: the stack answers with it.
impl Authorize for AccessReviews {
    type Future = Pin<Box<dyn Future<Output = Result<Decision, BoxError>> + Send>>;

    fn authorize(&self, asked: Attributes) -> Self::Future {
        let reviews = self.clone();
        let Attributes { caller, verb, resource, subresource, namespace, name, .. } = asked;
        let asked = ResourceAttributes {
            group: Some(String::new()),
            version: Some("v1".into()),
            verb: Some(verb.as_str().into()),
            resource: Some(resource.into()),
            subresource: Some(subresource.into()),
            namespace: Some(namespace),
            name: Some(name),
            ..ResourceAttributes::default()
        };
        Box::pin(async move { Ok(reviews.may(&caller, asked).await?) })
    }
}

impl fmt::Debug for AccessReviews {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AccessReviews").field("kept", &self.0.answers.len()).finish_non_exhaustive()
    }
}
