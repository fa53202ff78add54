//! Who is asking: a client certificate, a bearer token, or a bearer token where browsers can put one.
//!
//! An ordinary tower-http layer, above everything of ours. What it finds out is a [`Caller`] in the request's
//! extensions; the credential itself goes no further.

use std::{collections::BTreeMap, future::ready, sync::Arc};

use axum::body::Body;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, header};
use percent_encoding::percent_decode_str;
use tower_http::auth::{AsyncAuthorizeRequest, AsyncRequireAuthorizationLayer};
use tower_kube_streaming::upgrade::{Caller, Dialect, Refusal};
use x509_parser::{certificate::X509Certificate, prelude::FromDer};

use super::{Context, Error, impersonate, rbac::RbacAuthorizer, tokens::Tokens};

/// Request extension: who the connection's certificate, which TLS has verified, was made out to.
#[derive(Clone, Debug)]
pub struct ClientCertificate(pub Caller);

/// Request extension: the connection's certificate is a front proxy's, whose word counts for who the caller is.
#[derive(Clone, Copy, Debug)]
pub struct ByFrontProxy;

/// What a front proxy says of its caller is in headers that begin so; nobody else's such headers go any further.
pub const REMOTE: &str = "x-remote-";

/// Upstream's prefix of a WebSocket subprotocol that is really a token
/// (k8s.io/apiserver pkg/authentication/request/websocket/protocol.go).
const BEARER_PROTOCOL: &str = "base64url.bearer.authorization.k8s.io.";

/// How callers are told apart.
#[derive(Clone, Debug)]
pub struct Authenticator {
    who: Who,
    dialect: Dialect,
    /// Who decides whether one may act as another.
    impersonation: Option<RbacAuthorizer>,
}

#[derive(Clone, Debug)]
enum Who {
    Known(Arc<Tokens>),
    Anybody,
}

impl Authenticator {
    /// By certificate or by one of these tokens; nobody else gets in.
    pub fn known(tokens: Tokens, dialect: Dialect) -> Self {
        Self { who: Who::Known(Arc::new(tokens)), dialect, impersonation: None }
    }

    /// Not at all: everybody is an administrator. Except web pages: a browser on this machine would carry any site's
    /// WebSocket to a loopback address.
    pub fn anybody_is_admin(dialect: Dialect) -> Self {
        Self { who: Who::Anybody, dialect, impersonation: None }
    }

    /// Lets callers act as others, as far as these roles say so. Without, who wants to is refused.
    pub fn impersonation(mut self, rbac: RbacAuthorizer) -> Self {
        self.impersonation = Some(rbac);
        self
    }

    /// Whose bearer token that is.
    pub fn caller_of_token(&self, token: &str) -> Option<Caller> {
        match &self.who {
            Who::Known(tokens) => tokens.caller(token).cloned().map(authenticated),
            Who::Anybody => None,
        }
    }

    pub fn into_layer(self) -> AsyncRequireAuthorizationLayer<Self> {
        AsyncRequireAuthorizationLayer::new(self)
    }

    fn caller(&self, request: &mut Request<Body>) -> Result<Caller, Refusal> {
        match &self.who {
            Who::Anybody if request.headers().contains_key(header::ORIGIN) => {
                Err(Refusal::new(StatusCode::FORBIDDEN, "Forbidden", "browsers need a server with authentication"))
            }
            Who::Anybody => Ok(Caller::new("insecure", ["system:masters"])),
            Who::Known(tokens) => known(tokens, request).map_err(|why| {
                // As upstream, the client is not told why.
                tracing::info!(why, "nobody knows the caller");
                Refusal::new(StatusCode::UNAUTHORIZED, "Unauthorized", "Unauthorized")
            }),
        }
    }
}

impl AsyncAuthorizeRequest<Body> for Authenticator {
    type RequestBody = Body;
    type ResponseBody = Body;
    type Future = std::future::Ready<Result<Request<Body>, Response<Body>>>;

    fn authorize(&mut self, mut request: Request<Body>) -> Self::Future {
        let caller = match self.caller(&mut request) {
            Ok(caller) => authenticated(caller),
            Err(refusal) => return ready(Err(refusal.into_response(self.dialect))),
        };
        let headers = request.headers_mut();
        headers.remove(header::AUTHORIZATION);
        impersonate::remove_all(headers, REMOTE);
        let caller = match (&self.impersonation, impersonate::is_asked(headers)) {
            (_, false) => caller,
            (Some(rbac), true) => match impersonate::apply(rbac, &caller, headers) {
                Ok(caller) => caller,
                Err(refused) => return ready(Err(*refused)),
            },
            // To ignore it would act with more rights than were asked for.
            (None, true) => {
                let refusal = Refusal::bad_request("impersonation is not supported");
                return ready(Err(refusal.into_response(self.dialect)));
            }
        };
        request.extensions_mut().insert(caller);
        ready(Ok(request))
    }
}

fn authenticated(mut caller: Caller) -> Caller {
    if !caller.is_in("system:authenticated") {
        caller.groups.push("system:authenticated".into());
    }
    caller
}

/// In kube-apiserver's order: front proxy, certificate, header, subprotocol.
fn known(tokens: &Tokens, request: &mut Request<Body>) -> Result<Caller, &'static str> {
    if request.extensions_mut().remove::<ByFrontProxy>().is_some()
        && let Some(caller) = remote(request.headers())?
    {
        return Ok(caller);
    }
    if let Some(ClientCertificate(caller)) = request.extensions_mut().remove() {
        return Ok(caller);
    }
    if let Some(caller) = bearer(request.headers()).and_then(|token| tokens.caller(token)) {
        return Ok(caller.clone());
    }
    let (token, others) = bearer_protocol(request.headers())?.ok_or("no valid certificate or bearer token")?;
    let caller = tokens.caller(&token).ok_or("invalid bearer token")?.clone();
    request.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, others);
    Ok(caller)
}

/// Who the caller is by a front proxy's word (k8s.io/apiserver pkg/authentication/request/headerrequest); `None` where
/// it names nobody.
fn remote(headers: &HeaderMap) -> Result<Option<Caller>, &'static str> {
    let values = |name| values(headers, name).map_err(|_| "a front proxy's header is no text");
    let Some(name) = values("x-remote-user")?.into_iter().find(|name| !name.is_empty()) else { return Ok(None) };
    let mut caller = Caller::new(name, values("x-remote-group")?);
    caller.uid = values("x-remote-uid")?.into_iter().next().unwrap_or_default();
    caller.extra = extra(headers, "x-remote-extra-").map_err(|_| "a front proxy's header is no text")?;
    Ok(Some(caller))
}

/// The values of a header, as text.
pub fn values(headers: &HeaderMap, name: &str) -> Result<Vec<String>, String> {
    let values = headers.get_all(name).into_iter();
    values
        .map(|value| Ok(std::str::from_utf8(value.as_bytes()).map_err(|_| format!("{name} is no text"))?.to_owned()))
        .collect()
}

/// The headers with that prefix: the rest of each name, its escapes read, with the values.
pub fn extra(headers: &HeaderMap, prefix: &str) -> Result<BTreeMap<String, Vec<String>>, String> {
    let names = headers.keys().filter_map(|name| Some((name.as_str(), name.as_str().strip_prefix(prefix)?)));
    let mut extra = BTreeMap::<String, Vec<String>>::new();
    for (name, key) in names {
        let key = percent_decode_str(key).decode_utf8().map_err(|_| format!("{name} is no text"))?.to_lowercase();
        extra.entry(key).or_default().extend(values(headers, name)?);
    }
    Ok(extra)
}

/// `Authorization: Bearer TOKEN`, as kube-apiserver reads it.
pub fn bearer(headers: &HeaderMap) -> Option<&str> {
    let mut words = headers.get(header::AUTHORIZATION)?.to_str().ok()?.trim().splitn(3, ' ');
    words.next().filter(|scheme| scheme.eq_ignore_ascii_case("bearer"))?;
    words.next().filter(|token| !token.is_empty())
}

/// The token among the subprotocols of a WebSocket request, and the other protocols in one header value. As upstream:
/// all header lines count, one token only, and never a token alone. `None`: there is no token.
///
/// # Errors
///
/// In upstream's words.
pub fn bearer_protocol(headers: &HeaderMap) -> Result<Option<(String, HeaderValue)>, &'static str> {
    if !list(headers, header::UPGRADE).any(|protocol| protocol.eq_ignore_ascii_case("websocket")) {
        return Ok(None);
    }
    let (tokens, others): (Vec<&str>, Vec<&str>) =
        list(headers, header::SEC_WEBSOCKET_PROTOCOL).partition(|protocol| protocol.starts_with(BEARER_PROTOCOL));
    let token = match tokens[..] {
        [] => return Ok(None),
        [token] => token.strip_prefix(BEARER_PROTOCOL).unwrap_or_default(),
        _ => return Err("multiple base64.bearer.authorization tokens specified"),
    };
    let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| "invalid base64.bearer.authorization token encoding")?;
    let token = String::from_utf8(bytes).map_err(|_| "invalid base64.bearer.authorization token")?;
    if others.is_empty() {
        return Err("missing additional subprotocol");
    }
    let others = HeaderValue::from_str(&others.join(",")).map_err(|_| "invalid subprotocols")?;
    Ok(Some((token, others)))
}

/// The elements of a header that is a list, whether its lines are repeated or joined.
fn list(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &str> {
    let lines = headers.get_all(name).into_iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(str::trim).filter(|element| !element.is_empty())
}

/// Common name and organizations are user and groups, as everywhere in Kubernetes.
pub fn caller_of_certificate(der: &[u8]) -> Result<Caller, Error> {
    let (_, certificate) = X509Certificate::from_der(der).context("client certificate")?;
    let subject = certificate.subject();
    // As Go: of several the last one, which is whom its signer has seen.
    let name = subject.iter_common_name().last().ok_or("client certificate: no common name")?;
    let groups: Result<Vec<&str>, _> = subject.iter_organization().map(|group| group.as_str()).collect();
    let what = "client certificate";
    let name = name.as_str().context(what)?;
    if name.is_empty() {
        return Err("client certificate: the common name is empty".into());
    }
    Ok(Caller::new(name, groups.context(what)?))
}
