//! Who is asking: a client certificate, a bearer token, or a bearer token where browsers can put one.
//!
//! An ordinary tower-http layer, above everything of ours. What it finds out is a [`Caller`] in the request's
//! extensions; the credential itself goes no further.

use std::{future::ready, sync::Arc};

use axum::body::Body;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, header};
use tower_http::auth::{AsyncAuthorizeRequest, AsyncRequireAuthorizationLayer};
use tower_kube_streaming::upgrade::{Caller, Dialect, Refusal};
use x509_parser::{certificate::X509Certificate, prelude::FromDer};

use super::{Context, Error, tokens::Tokens};

/// Request extension: who the connection's certificate, which TLS has verified, was made out to.
#[derive(Clone, Debug)]
pub struct ClientCertificate(pub Caller);

/// Upstream's prefix of a WebSocket subprotocol that is really a token
/// (k8s.io/apiserver pkg/authentication/request/websocket/protocol.go).
const BEARER_PROTOCOL: &str = "base64url.bearer.authorization.k8s.io.";

/// How callers are told apart.
#[derive(Clone, Debug)]
pub struct Authenticator {
    who: Who,
    dialect: Dialect,
}

#[derive(Clone, Debug)]
enum Who {
    Known(Arc<Tokens>),
    Anybody,
}

impl Authenticator {
    /// By certificate or by one of these tokens; nobody else gets in.
    pub fn known(tokens: Tokens, dialect: Dialect) -> Self {
        Self { who: Who::Known(Arc::new(tokens)), dialect }
    }

    /// Not at all: everybody is an administrator. Except web pages: a browser on this machine would carry any site's
    /// WebSocket to a loopback address.
    pub fn anybody_is_admin(dialect: Dialect) -> Self {
        Self { who: Who::Anybody, dialect }
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
        if request.headers().keys().any(|name| name.as_str().starts_with("impersonate-")) {
            // To ignore it would act with more rights than were asked for.
            return ready(Err(Refusal::bad_request("impersonation is not supported").into_response(self.dialect)));
        }
        let mut caller = match self.caller(&mut request) {
            Ok(caller) => caller,
            Err(refusal) => return ready(Err(refusal.into_response(self.dialect))),
        };
        if !caller.is_in("system:authenticated") {
            caller.groups.push("system:authenticated".into());
        }
        request.headers_mut().remove(header::AUTHORIZATION);
        request.extensions_mut().insert(caller);
        ready(Ok(request))
    }
}

/// In kube-apiserver's order: certificate, header, subprotocol.
fn known(tokens: &Tokens, request: &mut Request<Body>) -> Result<Caller, &'static str> {
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
    let name = subject.iter_common_name().next().ok_or("client certificate: no common name")?;
    let groups: Result<Vec<&str>, _> = subject.iter_organization().map(|group| group.as_str()).collect();
    let what = "client certificate";
    Ok(Caller::new(name.as_str().context(what)?, groups.context(what)?))
}
