//! Who acts for whom: the `Impersonate-*` headers of `kubectl --as`. Each name in them is asked about, as upstream does
//! (k8s.io/apiserver pkg/endpoints/filters/impersonation.go).

use axum::body::Body;
use http::{HeaderMap, Response};
use tower_kube_streaming::{
    layers::synthetic_authz::Verdict,
    upgrade::{Caller, Dialect, Refusal},
};

use super::{
    authn::{extra, values},
    rbac::{About, Asked, RbacAuthorizer},
};

/// The names of all these headers begin so.
pub const PREFIX: &str = "impersonate-";
const ANONYMOUS: &str = "system:anonymous";
/// Each name costs a question. A user may well be in hundreds of groups.
const MAX_RIGHTS: usize = 512;
const ACCOUNT: &str = "system:serviceaccount:";

/// Whether a request asks for it.
pub fn is_asked(headers: &HeaderMap) -> bool {
    headers.keys().any(|name| name.as_str().starts_with(PREFIX))
}

/// Who the caller acts as, if the caller may; the headers are taken out.
pub fn apply(rbac: &RbacAuthorizer, caller: &Caller, headers: &mut HeaderMap) -> Result<Caller, Box<Response<Body>>> {
    let refuse = |why: &str| Box::new(Refusal::bad_request(why).into_response(Dialect::ApiServer));
    let acts = read(headers).map_err(|why| refuse(&why))?;
    for asked in rights(&acts) {
        let decision = rbac.decide(caller, &asked);
        if decision.verdict != Verdict::Allow {
            tracing::info!(user.name = ?caller.name, asked = ?asked, "impersonation refused");
            return Err(Box::new(asked.forbidden(caller, &decision.reason)));
        }
    }
    tracing::info!(user.name = ?caller.name, acts.name = ?acts.name, "impersonation");
    remove(headers);
    Ok(with_own_groups(acts))
}

/// Takes the headers out.
pub fn remove(headers: &mut HeaderMap) {
    remove_all(headers, PREFIX);
}

/// Takes out every header whose name begins so.
pub fn remove_all(headers: &mut HeaderMap, prefix: &str) {
    let names: Vec<_> = headers.keys().filter(|name| name.as_str().starts_with(prefix)).cloned().collect();
    for name in names {
        headers.remove(name);
    }
}

/// Who the headers name. An error is what is wrong with them.
pub fn read(headers: &HeaderMap) -> Result<Caller, String> {
    for name in headers.keys().filter_map(|name| name.as_str().strip_prefix(PREFIX)) {
        if !matches!(name, "user" | "group" | "uid") && !name.starts_with("extra-") {
            return Err(format!("impersonation of {name:?} is not supported"));
        }
    }
    let name = values(headers, "impersonate-user")?.into_iter().next().unwrap_or_default();
    if name.is_empty() {
        return Err("somebody's groups, uid or extra were to be impersonated, without a user".to_owned());
    }
    let mut acts = Caller::new(name, values(headers, "impersonate-group")?);
    acts.uid = values(headers, "impersonate-uid")?.into_iter().next().unwrap_or_default();
    acts.extra = extra(headers, "impersonate-extra-")?;
    if rights(&acts).len() > MAX_RIGHTS {
        return Err(format!("more than {MAX_RIGHTS} names to impersonate"));
    }
    Ok(acts)
}

/// All that takes the verb `impersonate`.
pub fn rights(acts: &Caller) -> Vec<Asked> {
    let asked = |group: &str, resource: &str, subresource: &str, namespace: &str, name: &str| Asked {
        verb: "impersonate".to_owned(),
        about: About::Resource {
            group: group.to_owned(),
            resource: resource.to_owned(),
            subresource: subresource.to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        },
    };
    let own = "authentication.k8s.io";
    let mut rights = vec![match account(&acts.name) {
        Some((namespace, name)) => asked("", "serviceaccounts", "", namespace, name),
        None => asked("", "users", "", "", &acts.name),
    }];
    rights.extend(acts.groups.iter().map(|group| asked("", "groups", "", "", group)));
    if !acts.uid.is_empty() {
        rights.push(asked(own, "uids", "", "", &acts.uid));
    }
    for (key, values) in &acts.extra {
        rights.extend(values.iter().map(|value| asked(own, "userextras", key, "", value)));
    }
    rights
}

/// Namespace and name of a service account.
fn account(user: &str) -> Option<(&str, &str)> {
    let (namespace, name) = user.strip_prefix(ACCOUNT)?.split_once(':')?;
    Some((namespace, name)).filter(|_| !namespace.is_empty() && !name.is_empty() && !name.contains(':'))
}

/// With the groups that somebody is in by the name alone.
pub fn with_own_groups(mut acts: Caller) -> Caller {
    if acts.groups.is_empty()
        && let Some((namespace, _)) = account(&acts.name)
    {
        acts.groups = vec!["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}")];
    }
    let own = if acts.name == ANONYMOUS { "system:unauthenticated" } else { "system:authenticated" };
    // Who is made one of those that nobody vouches for stays one.
    if !acts.is_in(own) && !acts.is_in("system:unauthenticated") {
        acts.groups.push(own.to_owned());
    }
    acts
}
