//! Which questions a request leads to, in which order, and the words in which it is refused.

use std::{fmt, sync::Arc};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header::X_CONTENT_TYPE_OPTIONS};

use super::{Attributes, Decided, Decision, SyntheticAuthzLayer, Verb, Verdict};
use crate::{
    error::BoxError,
    layers::metrics::Recorder,
    upgrade::{Caller, Dialect, Permit, Refusal, Target},
};

/// The questions about one request. The verb of its method comes first.
pub(super) struct Check {
    caller: Arc<Caller>,
    target: Arc<Target>,
    node: Arc<str>,
    /// Stands for the method.
    natural: Verb,
    /// The question that is open; never `create` after it was the natural verb.
    asking: Verb,
    create_is_next: bool,
    /// For the audit line: what was decided about the natural verb, and about the `create` that goes with it.
    told: (Told, Told),
    recorder: Option<Recorder>,
}

/// What to do after an answer.
pub(super) enum Next {
    Ask(Attributes),
    Permit(Permit),
    Refuse(Refused),
}

/// How a question ended.
#[derive(Clone, Copy)]
enum Told {
    NotAsked,
    InFront,
    Verdict(Verdict),
    Error,
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotAsked => "not_asked",
            Self::InFront => "allowed_in_front",
            Self::Verdict(Verdict::Allow) => "allow",
            Self::Verdict(Verdict::Deny) => "deny",
            Self::Verdict(Verdict::NoOpinion) => "no_opinion",
            Self::Error => "error",
        })
    }
}

impl Check {
    /// The first question, if there is any: behind an authorizer a POST leads to none.
    pub(super) fn begin<A, B>(
        layer: &SyntheticAuthzLayer<A>,
        request: &mut Request<B>,
        target: Arc<Target>,
    ) -> Result<(Self, Option<Verb>), Refusal> {
        let natural = Verb::of(request.method()).ok_or_else(Refusal::method_not_allowed)?;
        let extensions = request.extensions_mut();
        // Taken out: it is good for one request at one layer.
        let decided = extensions.remove::<Decided>();
        if layer.behind_authorizer {
            check_decided(decided, natural, &target)?;
        }
        let create = natural != Verb::Create && (layer.gate || target.dialect != Dialect::ApiServer);
        let in_front = if layer.behind_authorizer { Told::InFront } else { Told::NotAsked };
        let first = match (layer.behind_authorizer, create) {
            (false, _) => Some(natural),
            (true, true) => Some(Verb::Create),
            (true, false) => None,
        };
        let check = Self {
            caller: Arc::new(extensions.get::<Caller>().cloned().unwrap_or_else(Caller::anonymous)),
            target,
            node: Arc::clone(&layer.node),
            natural,
            asking: first.unwrap_or(natural),
            create_is_next: create && !layer.behind_authorizer,
            told: (in_front, Told::NotAsked),
            recorder: extensions.remove::<Recorder>(),
        };
        Ok((check, first))
    }

    /// The question whether the caller may do that.
    pub(super) fn ask(&self, verb: Verb) -> Attributes {
        Attributes::new(Arc::clone(&self.caller), verb, Arc::clone(&self.target), &self.node)
    }

    /// Takes the answer to the open question.
    pub(super) fn hear(&mut self, answer: Result<Decision, BoxError>) -> Next {
        let told = match &answer {
            Ok(decision) => Told::Verdict(decision.verdict),
            Err(_) => Told::Error,
        };
        if self.asking == self.natural {
            self.told.0 = told;
        } else {
            self.told.1 = told;
            if let Some(recorder) = &self.recorder {
                recorder.checked(self.target.subresource, answer.as_ref().ok().map(|decision| decision.verdict));
            }
        }
        match answer {
            Ok(Decision { verdict: Verdict::Allow, .. }) if self.create_is_next => {
                self.create_is_next = false;
                self.asking = Verb::Create;
                Next::Ask(self.ask(Verb::Create))
            }
            Ok(Decision { verdict: Verdict::Allow, .. }) => Next::Permit(self.permit()),
            Ok(Decision { reason, .. }) => Next::Refuse(self.forbidden(&reason)),
            Err(error) => Next::Refuse(self.failed(&error)),
        }
    }

    /// Leave for the very target that was asked about.
    pub(super) fn permit(&self) -> Permit {
        let (target, (natural, create)) = (&self.target, self.told);
        // Names are quoted in these lines, as a path may hold any character, a line break among them.
        tracing::debug!(
            user.name = ?self.caller.name, subresource = %target.subresource, pod.namespace = ?target.namespace,
            pod.name = ?target.pod, verb = %self.natural, decision = %natural, decision.create = %create,
            "stream allowed",
        );
        Permit(Arc::clone(target))
    }

    fn forbidden(&self, reason: &str) -> Refused {
        let (target, (natural, create)) = (&self.target, self.told);
        tracing::info!(
            user.name = ?self.caller.name, subresource = %target.subresource, pod.namespace = ?target.namespace,
            pod.name = ?target.pod, verb = %self.natural, decision = %natural, decision.create = %create,
            why = ?reason, "stream refused",
        );
        let (user, verb) = (&self.caller.name, self.asking);
        let synthetic = verb != self.natural;
        let refusal = match target.dialect {
            // `auth.go` and `server.go` (`InstallAuthFilter`) of the kubelet, which gives no reason.
            Dialect::Kubelet | Dialect::Runtime => Refusal::new(
                StatusCode::FORBIDDEN,
                "Forbidden",
                format!("Forbidden (user={user}, verb={verb}, resource=nodes, subresource(s)=[proxy])"),
            ),
            // `ensureAuthorizedForVerb` gives nothing but the reason; RBAC has none.
            Dialect::ApiServer if synthetic => Refusal::forbidden("pods", &target.pod, reason),
            // `responsewriters.ForbiddenStatusError`.
            Dialect::ApiServer => {
                let (subresource, namespace) = (target.subresource, &target.namespace);
                let mut why = format!(
                    "User {user:?} cannot {verb} resource \"pods/{subresource}\" in API group \"\" in the namespace \
                     {namespace:?}"
                );
                if !reason.is_empty() {
                    why = format!("{why}: {reason}");
                }
                Refusal::forbidden("pods", &target.pod, &why)
            }
        };
        // Upstream's filter sets the header, its synthetic check does not.
        Refused { refusal, dialect: target.dialect, nosniff: target.dialect == Dialect::ApiServer && !synthetic }
    }

    fn failed(&self, error: &BoxError) -> Refused {
        let (target, (natural, create)) = (&self.target, self.told);
        tracing::warn!(
            user.name = ?self.caller.name, subresource = %target.subresource, pod.namespace = ?target.namespace,
            pod.name = ?target.pod, verb = %self.natural, decision = %natural, decision.create = %create,
            %error, "stream refused: the authorizer failed",
        );
        let refusal = match (error.downcast_ref::<Refusal>(), target.dialect) {
            (Some(refusal), _) => refusal.clone(),
            (None, Dialect::Kubelet | Dialect::Runtime) => {
                let (user, verb) = (&self.caller.name, self.asking);
                let asked = format!("user={user}, verb={verb}, resource=nodes, subresource=proxy");
                Refusal::internal(format!("Authorization error ({asked})"))
            }
            (None, Dialect::ApiServer) => Refusal::internal(error.to_string()),
        };
        Refused { refusal, dialect: target.dialect, nosniff: false }
    }
}

/// Whether the authorizer in front allowed just this. A stack in which it did not is wrong, so nobody is asked at all.
fn check_decided(decided: Option<Decided>, natural: Verb, target: &Target) -> Result<(), Refusal> {
    let why = match decided {
        Some(decided) if decided.verb == natural && *decided.target == *target => return Ok(()),
        Some(_) => "the authorizer in front of the synthetic check decided about another request",
        None => "no authorizer in front of the synthetic check has decided about the request",
    };
    tracing::error!(verb = %natural, "{why}: the stack is wrong");
    let code = StatusCode::INTERNAL_SERVER_ERROR;
    Err(Refusal::new(code, "InternalError", format!("Internal error occurred: {why}")))
}

/// The answer to a request that is refused.
pub(super) struct Refused {
    refusal: Refusal,
    dialect: Dialect,
    nosniff: bool,
}

impl Refused {
    pub(super) fn into_response<R: From<Bytes>>(self) -> Response<R> {
        let mut response = self.refusal.into_response(self.dialect);
        if self.nosniff {
            response.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        }
        response
    }
}
