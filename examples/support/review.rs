//! May they, at a kubelet: its API server is asked by `SubjectAccessReview`, as upstream's kubelet does
//! (`--authorization-mode=Webhook`; k8s.io/apiserver `plugin/pkg/authorizer/webhook`).
//!
//! Everything is about the node: `nodes/proxy` for streams and most else, `nodes/metrics` for metrics. Who cannot be asked
//! about is refused. Without an API server, members of `system:masters` may do everything and others nothing.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{body::Body, extract::Request, middleware::Next};
use futures_util::future::BoxFuture;
use http::{Response, StatusCode};
use serde_json::{Value, json};
use tokio::{
    sync::Mutex as AsyncMutex,
    time::{Instant, timeout},
};
use tower_kube_streaming::{
    layers::synthetic_authz::{Attributes, Authorize, Decision, Verb, Verdict},
    upgrade::{Caller, Dialect, Refusal},
};

use super::{
    Error, authz,
    client::{ApiClient, Ask, complaint, words},
};

const REVIEWS: &str = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
/// How long an answer counts, as upstream's `--authorization-webhook-cache-*-ttl`.
const ALLOWED: Duration = Duration::from_secs(5 * 60);
const REFUSED: Duration = Duration::from_secs(30);
/// Time for an answer, the wait for somebody else's same question included.
const ANSWER: Duration = Duration::from_secs(10);
/// Answers that are kept.
const ANSWERS: usize = 1024;
/// Bytes of a question whose answer is kept, as upstream's `maxControlledAttrCacheSize`.
const QUESTION: usize = 10_000;

/// Decides what callers may do with this node. Clones share their answers.
#[derive(Clone)]
pub struct Reviewer {
    api: Option<Arc<ApiClient>>,
    node: Arc<str>,
    answers: Arc<Answers>,
}

impl Reviewer {
    /// Asks that API server about the node of this name.
    pub fn new(api: Option<Arc<ApiClient>>, node: &str) -> Self {
        Self { api, node: node.into(), answers: Arc::default() }
    }

    /// Whether the caller may do that with this subresource of the node.
    pub async fn decide(&self, caller: &Caller, verb: Verb, subresource: &str) -> Result<Decision, Error> {
        let Some(api) = &self.api else {
            return Ok(if authz::is_admin(caller) { Decision::allow() } else { Decision::no_opinion() });
        };
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {
                "user": caller.name,
                "groups": caller.groups,
                "uid": caller.uid,
                "extra": caller.extra,
                "resourceAttributes": {
                    "verb": verb.as_str(), "version": "v1", "resource": "nodes", "subresource": subresource,
                    "name": &*self.node,
                },
            },
        });
        self.answers.of(review["spec"].to_string(), ask(api, &review)).await
    }

    /// A middleware for what is no stream: lets through whom [`decide`](Self::decide) allows, and words the rest as a
    /// kubelet (pkg/kubelet/server/server.go `InstallAuthFilter`, auth.go).
    pub async fn guard(self, request: Request, next: Next) -> Response<Body> {
        let caller = request.extensions().get::<Caller>().cloned().unwrap_or_else(Caller::anonymous);
        let Some(verb) = Verb::of(request.method()) else {
            let refusal = Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", "405: Method Not Allowed");
            return refusal.into_response(Dialect::Kubelet);
        };
        let subresource = if request.uri().path() == "/metrics" { "metrics" } else { "proxy" };
        let user = &caller.name;
        match self.decide(&caller, verb, subresource).await {
            Ok(Decision { verdict: Verdict::Allow, .. }) => next.run(request).await,
            Ok(Decision { reason, .. }) => {
                tracing::info!(user.name = ?user, %verb, subresource, why = ?reason, "request refused");
                let asked = format!("user={user}, verb={verb}, resource=nodes, subresource(s)=[{subresource}]");
                let refusal = Refusal::new(StatusCode::FORBIDDEN, "Forbidden", format!("Forbidden ({asked})"));
                refusal.into_response(Dialect::Kubelet)
            }
            Err(error) => {
                tracing::warn!(user.name = ?user, %verb, subresource, %error, "request refused: the authorizer failed");
                let asked = format!("user={user}, verb={verb}, resource=nodes, subresource={subresource}");
                Refusal::internal(format!("Authorization error ({asked})")).into_response(Dialect::Kubelet)
            }
        }
    }
}

/// For streams, which are always `proxy`.
impl Authorize for Reviewer {
    type Future = BoxFuture<'static, Result<Decision, Error>>;

    fn authorize(&self, asked: Attributes) -> Self::Future {
        let reviewer = self.clone();
        Box::pin(async move { reviewer.decide(&asked.caller, asked.verb, asked.subresource).await })
    }
}

async fn ask(api: &ApiClient, review: &Value) -> Result<Decision, Error> {
    let (code, answer) = api.ask(REVIEWS, Ask::Post(review)).await?;
    if code != StatusCode::CREATED && code != StatusCode::OK {
        return Err(format!("SubjectAccessReview: {}", complaint(code, &answer)).into());
    }
    let status = answer.get("status").filter(|status| status.is_object());
    let status = status.ok_or("SubjectAccessReview: the answer has no status")?;
    let decision = match (status["allowed"] == true, status["denied"] == true) {
        (true, true) => return Err("SubjectAccessReview: both allowed and denied".into()),
        (true, false) => Decision::allow(),
        (false, true) => Decision::deny(),
        (false, false) => Decision::no_opinion(),
    };
    Ok(decision.because(words(status, "/reason")))
}

/// Answers that still count, at most 1,024. The same question is on its way once only.
#[derive(Default)]
pub struct Answers(Mutex<HashMap<String, Arc<Answer>>>);

/// Locked while it is asked for; with it, until when it counts.
type Answer = AsyncMutex<Option<(Decision, Instant)>>;

impl Answers {
    /// The answer to that question: what is known, or else what `ask` finds out. Errors are not kept.
    ///
    /// # Cancel safety
    ///
    /// Dropped, it leaves the question open for the next who has it.
    pub async fn of(
        &self,
        question: String,
        ask: impl Future<Output = Result<Decision, Error>>,
    ) -> Result<Decision, Error> {
        let answer = self.slot(question);
        let found = async {
            let mut answer = answer.lock().await;
            if let Some((decision, until)) = &*answer
                && Instant::now() < *until
            {
                return Ok(decision.clone());
            }
            let decision = ask.await?;
            let counts = if decision.verdict == Verdict::Allow { ALLOWED } else { REFUSED };
            *answer = Some((decision.clone(), Instant::now() + counts));
            Ok(decision)
        };
        timeout(ANSWER, found).await.unwrap_or_else(|_| Err(format!("no decision in {ANSWER:?}").into()))
    }

    /// Where that answer is kept. What is too long, and what finds no room, is kept nowhere.
    fn slot(&self, question: String) -> Arc<Answer> {
        if question.len() > QUESTION {
            return Arc::default();
        }
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = all.get(&question) {
            return known.clone();
        }
        if all.len() >= ANSWERS {
            // Whoever ends next. One that is being asked for is locked, and stays.
            let until = |answer: &Answer| Some(answer.try_lock().ok()?.as_ref().map(|(_, until)| *until));
            let idle = all.iter().filter_map(|(question, answer)| Some((until(answer)?, question)));
            let Some(last) = idle.min().map(|(_, question)| question.clone()) else { return Arc::default() };
            all.remove(&last);
        }
        all.entry(question).or_default().clone()
    }

    /// How many are kept.
    pub fn len(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}
