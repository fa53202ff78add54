//! The seam: who decides, what is asked, and what is answered.

use std::{fmt, future::Future, sync::Arc};

use http::Method;

use crate::{
    error::BoxError,
    upgrade::{Caller, Dialect, Target},
};

/// Decides whether a caller may do something. Closures implement it; what is behind an `Arc` already goes to
/// [`SyntheticAuthzLayer::shared`](super::SyntheticAuthzLayer::shared).
///
/// The layer sets no limit on the time an answer takes: an authorizer that asks over the network needs one.
pub trait Authorize {
    /// Resolves to the decision. An error means there is none, and closes the door; its text reaches the caller at an
    /// API server, as upstream's does. An error that is a [`Refusal`](crate::upgrade::Refusal) is the answer: 503 with
    /// `Retry-After`, say, where upstream knows only 500.
    type Future: Future<Output = Result<Decision, BoxError>>;

    /// Starts to decide.
    fn authorize(&self, asked: Attributes) -> Self::Future;
}

impl<F, Fut> Authorize for F
where
    F: Fn(Attributes) -> Fut,
    Fut: Future<Output = Result<Decision, BoxError>>,
{
    type Future = Fut;

    fn authorize(&self, asked: Attributes) -> Fut {
        self(asked)
    }
}

/// One question, in the terms of an RBAC rule or of a `SubjectAccessReview`. The API group is the core one, `""`, and
/// the version `v1`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Attributes {
    /// Who asks.
    pub caller: Arc<Caller>,
    /// What they want to do.
    pub verb: Verb,
    /// `pods`, or at a kubelet `nodes`.
    pub resource: &'static str,
    /// `exec`, `attach` or `portforward`, or at a kubelet `proxy`.
    pub subresource: &'static str,
    /// Of the pod; empty for a node, which has none.
    pub namespace: String,
    /// Of the pod or the node; empty where a kubelet was not given its node's name.
    pub name: String,
    /// The whole request that this is about.
    pub target: Arc<Target>,
}

impl Attributes {
    pub(crate) fn new(caller: Arc<Caller>, verb: Verb, target: Arc<Target>, node: &str) -> Self {
        let (resource, subresource, namespace, name) = match target.dialect {
            Dialect::ApiServer => ("pods", target.subresource.as_str(), target.namespace.clone(), target.pod.clone()),
            // Upstream's kubelet, `auth.go`: exec, attach and portForward are always `proxy` of its own node.
            Dialect::Kubelet | Dialect::Runtime => ("nodes", "proxy", String::new(), node.to_owned()),
        };
        Self { caller, verb, resource, subresource, namespace, name, target }
    }
}

/// What a caller wants to do, in RBAC's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Verb {
    /// GET and HEAD.
    Get,
    /// POST, and whatever opens a stream.
    Create,
    /// PUT.
    Update,
    /// PATCH.
    Patch,
    /// DELETE.
    Delete,
}

impl Verb {
    /// The verb that a method stands for on one object. `None`: RBAC has no word for it.
    #[must_use]
    pub fn of(method: &Method) -> Option<Self> {
        Some(match *method {
            Method::GET | Method::HEAD => Self::Get,
            Method::POST => Self::Create,
            Method::PUT => Self::Update,
            Method::PATCH => Self::Patch,
            Method::DELETE => Self::Delete,
            _ => return None,
        })
    }

    /// The word in RBAC rules.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Create => "create",
            Self::Update => "update",
            Self::Patch => "patch",
            Self::Delete => "delete",
        }
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An authorizer's answer, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct Decision {
    /// The answer.
    pub verdict: Verdict,
    /// Why, for the log and, with a refusal, for the caller; may be empty.
    pub reason: String,
}

/// The answer of an authorizer. All but [`Verdict::Allow`] refuse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// They may.
    Allow,
    /// They must not, whatever another authorizer says.
    Deny,
    /// No rule says they may; RBAC knows no other refusal.
    NoOpinion,
}

impl Decision {
    /// They may.
    pub fn allow() -> Self {
        Self { verdict: Verdict::Allow, reason: String::new() }
    }

    /// They must not.
    pub fn deny() -> Self {
        Self { verdict: Verdict::Deny, reason: String::new() }
    }

    /// No rule says they may.
    pub fn no_opinion() -> Self {
        Self { verdict: Verdict::NoOpinion, reason: String::new() }
    }

    /// Says why.
    pub fn because(mut self, reason: impl Into<String>) -> Self {
        self.reason = reason.into();
        self
    }
}

/// What an authorizer between [`UpgradeDetect`](crate::layers::UpgradeDetect) and this layer has allowed: a request
/// extension, good for one request. Detection takes out what an outer stack has decided.
///
/// [`SyntheticAuthzLayer::behind_authorizer`](super::SyntheticAuthzLayer::behind_authorizer) takes it for an answer only
/// where verb and target are those of the request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decided {
    /// The verb that was allowed.
    pub verb: Verb,
    /// What it was allowed for: the target of the [`StreamRequest`](crate::upgrade::StreamRequest).
    pub target: Arc<Target>,
}
