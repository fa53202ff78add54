//! Who asks. The cluster knows, and the gateway has no list of its own: a token goes on as it came, or is reviewed there
//! before a stream is opened; a certificate that the gateway has verified is vouched for.

use std::fmt::Write;

use axum::body::Body;
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, header};
use k8s_openapi::api::authorization::v1::ResourceAttributes;
use tower_kube_streaming::{
    adapters::kube::{AccessReviews, TokenReviews},
    layers::synthetic_authz::Verdict,
    upgrade::{Caller, Dialect, Refusal},
};

use super::{
    super::{
        authn::{self, ClientCertificate, REMOTE},
        impersonate,
        rbac::{About, Asked},
    },
    forward::{Upstream, Via},
};

const REMOTE_USER: HeaderName = HeaderName::from_static("x-remote-user");
const REMOTE_GROUP: HeaderName = HeaderName::from_static("x-remote-group");
const REMOTE_UID: HeaderName = HeaderName::from_static("x-remote-uid");
const REMOTE_EXTRA: &str = "x-remote-extra-";

/// A refusal that is a whole answer.
pub type Answer = http::Response<Body>;

/// Prepares a request to go on: over which connections, and with which word of who sent it.
///
/// # Errors
///
/// 401 if there is a certificate, and the cluster would not believe us whose.
pub fn vouch(request: &mut Request<Body>, upstream: &Upstream) -> Result<Via, Refusal> {
    let certificate = request.extensions_mut().remove::<ClientCertificate>();
    let headers = request.headers_mut();
    impersonate::remove_all(headers, REMOTE);
    let Some(ClientCertificate(caller)) = certificate else { return Ok(Via::Plain) };
    if !upstream.trusts_us() {
        return Err(unauthorized(
            "this gateway cannot vouch for a client certificate: it has no --proxy-client-cert-file; use a bearer token",
        ));
    }
    // In upstream's order a certificate comes first, and nobody asks for what else there is.
    headers.remove(header::AUTHORIZATION);
    name(&caller, headers).ok_or_else(|| unauthorized("the client certificate names nobody that a header can name"))?;
    Ok(Via::FrontProxy)
}

/// Writes who it is as front proxies do. `None`: a name cannot be written.
fn name(caller: &Caller, headers: &mut HeaderMap) -> Option<()> {
    // Whoever reads a header drops the spaces around it, and `" system:masters"` would be another group.
    let arrives = |text: &&str| !text.starts_with([' ', '\t']) && !text.ends_with([' ', '\t']);
    let value = |text| Some(text).filter(arrives).and_then(|text| HeaderValue::from_bytes(text.as_bytes()).ok());
    // Without a user the cluster asks whose the connection is, and that is us.
    headers.insert(REMOTE_USER, value(&caller.name).filter(|name| !name.is_empty())?);
    for group in &caller.groups {
        headers.append(REMOTE_GROUP, value(group)?);
    }
    if !caller.uid.is_empty() {
        headers.insert(REMOTE_UID, value(&caller.uid)?);
    }
    for (key, values) in &caller.extra {
        let key: HeaderName = format!("{REMOTE_EXTRA}{}", escaped(key)).parse().ok()?;
        for text in values {
            headers.append(key.clone(), value(text)?);
        }
    }
    Some(())
}

/// A key as part of a header's name: what has no place there, in percents (client-go transport/round_trippers.go,
/// `headerKeyEscape`).
fn escaped(key: &str) -> String {
    key.bytes().fold(String::new(), |mut escaped, byte| {
        if byte.is_ascii_alphanumeric() || b"!#$&'*+-.^_`|~".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            write!(escaped, "%{byte:02X}").expect("a String takes everything");
        }
        escaped
    })
}

/// Finds out who wants to open a stream.
#[derive(Clone, Debug)]
pub struct Callers {
    tokens: TokenReviews,
    access: AccessReviews,
}

impl Callers {
    pub fn new(client: kube::Client) -> Self {
        Self { tokens: TokenReviews::new(client.clone()), access: AccessReviews::new(client) }
    }

    /// Who may do what.
    pub fn access(&self) -> AccessReviews {
        self.access.clone()
    }

    /// Puts the [`Caller`] into the request, and takes out what said who it is.
    ///
    /// # Errors
    ///
    /// The whole answer: 401 for nobody, 403 for who may not act as somebody else, 503 while the cluster cannot be asked.
    pub async fn authenticate(&self, request: &mut Request<Body>) -> Result<(), Answer> {
        impersonate::remove_all(request.headers_mut(), REMOTE);
        let refuse = |refusal: Refusal| refusal.into_response(Dialect::ApiServer);
        let mut caller = self.caller(request).await.map_err(refuse)?;
        if impersonate::is_asked(request.headers()) {
            let acts = impersonate::read(request.headers()).map_err(|why| refuse(Refusal::bad_request(why)))?;
            for asked in impersonate::rights(&acts) {
                self.ask(&caller, &asked).await?;
            }
            caller = impersonate::with_own_groups(acts);
        }
        impersonate::remove(request.headers_mut());
        request.headers_mut().remove(header::AUTHORIZATION);
        request.extensions_mut().insert(caller);
        Ok(())
    }

    /// In kube-apiserver's order: certificate, header, subprotocol.
    async fn caller(&self, request: &mut Request<Body>) -> Result<Caller, Refusal> {
        if let Some(ClientCertificate(mut caller)) = request.extensions_mut().remove() {
            caller.groups.push("system:authenticated".to_owned());
            return Ok(caller);
        }
        let headers = request.headers_mut();
        let token = match authn::bearer(headers) {
            Some(token) => token.to_owned(),
            None => {
                let of_protocol = authn::bearer_protocol(headers).map_err(|why| {
                    // As upstream, the client is not told why.
                    tracing::info!(why, "nobody knows the caller");
                    unauthorized("Unauthorized")
                })?;
                let (token, others) = of_protocol.ok_or_else(|| unauthorized("Unauthorized"))?;
                headers.insert(header::SEC_WEBSOCKET_PROTOCOL, others);
                token
            }
        };
        self.tokens.caller(&token).await?.ok_or_else(|| unauthorized("Unauthorized"))
    }

    async fn ask(&self, caller: &Caller, asked: &Asked) -> Result<(), Answer> {
        let About::Resource { group, resource, subresource, namespace, name } = &asked.about else {
            unreachable!("only objects are impersonated")
        };
        let some = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
        let attributes = ResourceAttributes {
            verb: some(&asked.verb),
            group: some(group),
            version: Some("v1".to_owned()),
            resource: some(resource),
            subresource: some(subresource),
            namespace: some(namespace),
            name: some(name),
            ..ResourceAttributes::default()
        };
        let decision = self.access.may(caller, attributes).await;
        let decision = decision.map_err(|refusal| refusal.into_response(Dialect::ApiServer))?;
        if decision.verdict == Verdict::Allow {
            return Ok(());
        }
        tracing::info!(user.name = ?caller.name, asked = ?asked, why = ?decision.reason, "impersonation refused");
        Err(asked.forbidden(caller, &decision.reason))
    }
}

fn unauthorized(why: &str) -> Refusal {
    Refusal::new(StatusCode::UNAUTHORIZED, "Unauthorized", why)
}
