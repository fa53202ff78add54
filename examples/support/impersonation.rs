//! Acting as somebody else: what the `Impersonate-` headers ask for, which questions that raises, and who the caller is
//! afterwards. Upstream's `WithImpersonation` (k8s.io/apiserver pkg/endpoints/filters/impersonation, 1.36).

use http::{HeaderMap, HeaderName};
use percent_encoding::percent_decode_str;
use tower_kube_streaming::upgrade::{Caller, Refusal};

use super::rbac::{About, Asked};

const PREFIX: &str = "impersonate-";
const USER: HeaderName = HeaderName::from_static("impersonate-user");
const GROUP: HeaderName = HeaderName::from_static("impersonate-group");
const UID: HeaderName = HeaderName::from_static("impersonate-uid");
const EXTRA: &str = "impersonate-extra-";

/// Each costs a question to the authorizer. A user may well be in hundreds of groups.
const MAX_QUESTIONS: usize = 512;

const AUTHENTICATED: &str = "system:authenticated";
const UNAUTHENTICATED: &str = "system:unauthenticated";
const AUTHENTICATION: &str = "authentication.k8s.io";

/// Who the caller wants to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Impersonation(Caller);

impl Impersonation {
    /// `None`: the caller wants to be nobody else.
    ///
    /// # Errors
    ///
    /// 400 if the headers cannot be read, or name no user. Upstream says 500.
    pub fn of(headers: &HeaderMap) -> Result<Option<Self>, Refusal> {
        if !headers.keys().any(|name| name.as_str().starts_with(PREFIX)) {
            return Ok(None);
        }
        let mut wanted = Caller::new("", [""; 0]);
        for (name, value) in headers {
            let value = || text(name, value.as_bytes());
            match name.as_str() {
                name if name == USER => wanted.name = single(headers, &USER).and_then(|()| value())?,
                name if name == UID => wanted.uid = single(headers, &UID).and_then(|()| value())?,
                name if name == GROUP => wanted.groups.push(value()?),
                name if name.starts_with(EXTRA) => {
                    let key = percent_decode_str(&name[EXTRA.len()..]).decode_utf8_lossy().into_owned();
                    wanted.extra.entry(key).or_default().push(value()?);
                }
                name if name.starts_with(PREFIX) => {
                    return Err(Refusal::bad_request(format!("unknown impersonation header {name:?}")));
                }
                _ => {}
            }
        }
        if wanted.name.is_empty() {
            return Err(Refusal::bad_request("requested to impersonate without impersonating a user"));
        }
        let wanted = Self(wanted);
        if wanted.questions().len() > MAX_QUESTIONS {
            return Err(Refusal::bad_request(format!("more than {MAX_QUESTIONS} values to impersonate")));
        }
        Ok(Some(wanted))
    }

    /// What the caller must all be allowed, `impersonate` of each.
    pub fn questions(&self) -> Vec<Asked> {
        let Self(wanted) = self;
        let about = |group: &str, resource: &str, subresource: &str, namespace: &str, name: &str| Asked {
            verb: "impersonate".to_owned(),
            about: About::Resource {
                group: group.to_owned(),
                resource: resource.to_owned(),
                subresource: subresource.to_owned(),
                namespace: namespace.to_owned(),
                name: name.to_owned(),
            },
        };
        let who = match service_account(&wanted.name) {
            Some((namespace, name)) => about("", "serviceaccounts", "", namespace, name),
            None => about("", "users", "", "", &wanted.name),
        };
        let mut questions = vec![who];
        questions.extend(wanted.groups.iter().map(|group| about("", "groups", "", "", group)));
        let extra = wanted.extra.iter().flat_map(|(key, values)| values.iter().map(move |value| (key, value)));
        questions.extend(extra.map(|(key, value)| about(AUTHENTICATION, "userextras", key, "", value)));
        if !wanted.uid.is_empty() {
            questions.push(about(AUTHENTICATION, "uids", "", "", &wanted.uid));
        }
        questions
    }

    /// Who the caller is, once that is allowed.
    pub fn into_caller(self) -> Caller {
        let Self(mut caller) = self;
        if caller.groups.is_empty()
            && let Some((namespace, _)) = service_account(&caller.name)
        {
            caller.groups = vec!["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}")];
        }
        let anonymous = caller.name == "system:anonymous";
        let named = caller.is_in(UNAUTHENTICATED) || (!anonymous && caller.is_in(AUTHENTICATED));
        if !named {
            caller.groups.push(if anonymous { UNAUTHENTICATED } else { AUTHENTICATED }.to_owned());
        }
        caller
    }
}

/// Takes the headers out.
pub fn remove(headers: &mut HeaderMap) {
    remove_all(headers, PREFIX);
}

/// Takes out every header whose name begins so.
pub fn remove_all(headers: &mut HeaderMap, prefix: &str) {
    let names: Vec<HeaderName> = headers.keys().filter(|name| name.as_str().starts_with(prefix)).cloned().collect();
    for name in names {
        headers.remove(name);
    }
}

/// Upstream takes the first of several; whoever sent them meant one.
fn single(headers: &HeaderMap, name: &HeaderName) -> Result<(), Refusal> {
    let several = headers.get_all(name).iter().nth(1).is_some();
    if several { Err(Refusal::bad_request(format!("several {name} headers"))) } else { Ok(()) }
}

fn text(name: &HeaderName, value: &[u8]) -> Result<String, Refusal> {
    let text = String::from_utf8(value.to_vec());
    text.map_err(|_| Refusal::bad_request(format!("the header {name} is not UTF-8")))
}

/// `system:serviceaccount:NAMESPACE:NAME`, where both are names.
fn service_account(user: &str) -> Option<(&str, &str)> {
    let (namespace, name) = user.strip_prefix("system:serviceaccount:")?.split_once(':')?;
    let fits = |name: &str, longest: usize, dots: bool| {
        let of_label = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let labels = name.split('.').all(|label| {
            !label.is_empty() && !label.starts_with('-') && !label.ends_with('-') && label.bytes().all(of_label)
        });
        name.len() <= longest && labels && (dots || !name.contains('.'))
    };
    (fits(namespace, 63, false) && fits(name, 253, true)).then_some((namespace, name))
}
