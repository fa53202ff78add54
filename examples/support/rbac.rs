//! Role-based access control over the roles and bindings of a [`Store`], as upstream decides and words it
//! (plugin/pkg/auth/authorizer/rbac, pkg/apis/rbac/v1/evaluation_helpers.go).

use std::{
    fmt,
    future::{Ready, ready},
    sync::Arc,
};

use tower_kube_streaming::{
    BoxError,
    layers::synthetic_authz::{Attributes, Authorize, Decision},
    upgrade::Caller,
};

use super::{
    objects::Store,
    policy::{Binding, RoleRef, Rule, Subject},
};

/// Members may do everything: upstream's privileged group, which no rule can take anything from.
pub const MASTERS: &str = "system:masters";

/// One question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    pub verb: String,
    pub about: About,
}

/// What a question is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum About {
    /// An object, a collection, or part of an object. What does not apply is empty.
    Resource { group: String, resource: String, subresource: String, namespace: String, name: String },
    /// A URL that names no resource.
    Path(String),
}

/// Decides by the roles and bindings of a store.
#[derive(Clone, Debug)]
pub struct RbacAuthorizer {
    store: Arc<Store>,
}

impl RbacAuthorizer {
    pub fn new(store: Arc<Store>) -> Self {
        Self { store }
    }

    /// Allows what a rule says, with the binding as the reason; all else is no opinion, as RBAC denies nothing. The reason
    /// is then empty, or names the roles that are bound to the caller and not there.
    pub fn decide(&self, caller: &Caller, asked: &Asked) -> Decision {
        if caller.is_in(MASTERS) {
            return Decision::allow();
        }
        let policy = self.store.policy();
        let namespace = match &asked.about {
            About::Resource { namespace, .. } => namespace,
            About::Path(_) => "",
        };
        let mut missing = Vec::new();
        for binding in policy.bindings(namespace) {
            let Some(subject) = binding.subjects.iter().find(|subject| subject.is(caller)) else { continue };
            match policy.rules(binding) {
                Some(rules) if rules.iter().any(|rule| rule.allows(asked)) => {
                    return Decision::allow().because(format!("RBAC: allowed by {binding} to {subject}"));
                }
                Some(_) => {}
                None => missing.push(binding.role.not_found()),
            }
        }
        match &missing[..] {
            [] => Decision::no_opinion(),
            [one] => Decision::no_opinion().because(format!("RBAC: {one}")),
            // As Go prints several errors.
            several => Decision::no_opinion().because(format!("RBAC: [{}]", several.join(", "))),
        }
    }
}

impl Authorize for RbacAuthorizer {
    type Future = Ready<Result<Decision, BoxError>>;

    fn authorize(&self, asked: Attributes) -> Self::Future {
        let about = About::Resource {
            group: String::new(),
            resource: asked.resource.to_owned(),
            subresource: asked.subresource.to_owned(),
            namespace: asked.namespace,
            name: asked.name,
        };
        ready(Ok(self.decide(&asked.caller, &Asked { verb: asked.verb.as_str().to_owned(), about })))
    }
}

impl Rule {
    fn allows(&self, asked: &Asked) -> bool {
        if !is_in(&self.verbs, &asked.verb) {
            return false;
        }
        match &asked.about {
            About::Path(path) => self.non_resource_urls.iter().any(|url| match url.strip_suffix('*') {
                Some(start) => path.starts_with(start),
                None => path == url,
            }),
            About::Resource { group, resource, subresource, name, .. } => {
                is_in(&self.api_groups, group)
                    && self.resources.iter().any(|rule| names(rule, resource, subresource))
                    && (self.resource_names.is_empty() || self.resource_names.contains(name))
            }
        }
    }
}

/// Whether the list has the word, or `*`.
fn is_in(list: &[String], word: &str) -> bool {
    list.iter().any(|listed| listed == "*" || listed == word)
}

/// `*` is everything, `*/exec` that subresource of everything. There is no `pods/*`: upstream takes it for a name.
fn names(rule: &str, resource: &str, subresource: &str) -> bool {
    match rule.split_once('/') {
        _ if rule == "*" => true,
        Some((of, part)) => !subresource.is_empty() && part == subresource && (of == "*" || of == resource),
        None => subresource.is_empty() && rule == resource,
    }
}

impl Subject {
    fn is(&self, caller: &Caller) -> bool {
        match self {
            Self::User(name) => caller.name == *name,
            Self::Group(name) => caller.is_in(name),
            Self::ServiceAccount { namespace, name } => {
                let account = caller.name.strip_prefix("system:serviceaccount:");
                account.and_then(|account| account.split_once(':')) == Some((namespace, name))
            }
        }
    }
}

impl RoleRef {
    fn not_found(&self) -> String {
        match self {
            Self::ClusterRole(name) => format!("clusterrole.rbac.authorization.k8s.io {name:?} not found"),
            Self::Role(name) => format!("role.rbac.authorization.k8s.io {name:?} not found"),
        }
    }
}

impl fmt::Display for Binding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "RoleBinding {:?} of {}", format!("{}/{namespace}", self.name), self.role),
            None => write!(f, "ClusterRoleBinding {:?} of {}", self.name, self.role),
        }
    }
}

impl fmt::Display for RoleRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ClusterRole(name) => write!(f, "ClusterRole {name:?}"),
            Self::Role(name) => write!(f, "Role {name:?}"),
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(name) => write!(f, "User {name:?}"),
            Self::Group(name) => write!(f, "Group {name:?}"),
            Self::ServiceAccount { namespace, name } => write!(f, "ServiceAccount {:?}", format!("{name}/{namespace}")),
        }
    }
}
