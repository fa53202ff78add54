//! Which protocol: what the client offers, what is served here, and the `101` that says so.

use http::{
    HeaderMap, HeaderName, HeaderValue, Response, StatusCode,
    header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_PROTOCOL, UPGRADE},
    request,
};
use http_body_util::Full;
use tracing::Span;

use super::Answer;
use crate::{
    remote_command::{
        Version,
        over_websocket::{WsProtocol, refuse_handshake},
    },
    upgrade::{Dialect, Refusal, list, upgrade_names},
    websocket::handshake,
};

const X_STREAM_PROTOCOL_VERSION: HeaderName = HeaderName::from_static("x-stream-protocol-version");
const X_ACCEPTED_STREAM_PROTOCOL_VERSIONS: HeaderName = HeaderName::from_static("x-accepted-stream-protocol-versions");

/// What carries the session, as negotiated.
pub(super) enum Carrier {
    Spdy(Version),
    WebSocket { protocol: WsProtocol, accept: HeaderValue },
}

impl Carrier {
    /// What is logged of the connection to the client comes in this span.
    pub(super) fn span(&self) -> Span {
        match self {
            Self::Spdy(version) => tracing::debug_span!("spdy", protocol = version.name()),
            Self::WebSocket { protocol, .. } => tracing::debug_span!("websocket", protocol = protocol.name()),
        }
    }

    pub(super) fn switching_protocols(&self) -> Answer {
        match self {
            Self::Spdy(version) => spdy_switching_protocols(version.name()),
            // Without an offer there is nothing to echo; upstream's empty header upsets strict clients.
            Self::WebSocket { protocol: WsProtocol::Unnamed, accept } => {
                websocket_switching_protocols(accept.clone(), None)
            }
            Self::WebSocket { protocol, accept } => {
                websocket_switching_protocols(accept.clone(), Some(protocol.name()))
            }
        }
    }
}

/// The `101` to SPDY.
pub(super) fn spdy_switching_protocols(protocol: &'static str) -> Answer {
    let mut response = switching_protocols("SPDY/3.1");
    response.headers_mut().insert(X_STREAM_PROTOCOL_VERSION, HeaderValue::from_static(protocol));
    response
}

/// The `101` to WebSocket. `accept` answers the client's key.
pub(super) fn websocket_switching_protocols(accept: HeaderValue, protocol: Option<&'static str>) -> Answer {
    let mut response = switching_protocols("websocket");
    let headers = response.headers_mut();
    headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    if let Some(protocol) = protocol {
        headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
    }
    response
}

fn switching_protocols(upgrade: &'static str) -> Answer {
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static(upgrade));
    response
}

/// What is served here of remote command over WebSocket.
pub(super) fn websocket(request: &request::Parts, v5: bool, dialect: Dialect) -> Result<Carrier, Box<Answer>> {
    let accept = websocket_accept(request, dialect)?;
    let served = |name: &str| WsProtocol::from_name(name).filter(|protocol| v5 || protocol.version() != Version::V5);
    let protocol = websocket_protocol(request, WsProtocol::Unnamed, served, dialect)?;
    Ok(Carrier::WebSocket { protocol, accept })
}

/// RFC 6455, 4.2: what answers the client's key.
pub(super) fn websocket_accept(request: &request::Parts, dialect: Dialect) -> Result<HeaderValue, Box<Answer>> {
    let key = handshake::check_request(&request.method, request.version, &request.headers)
        .map_err(|bad| Box::new(refuse_handshake(bad, dialect)))?;
    Ok(handshake::accept_key(key))
}

/// The first offer that is served, or `unnamed` where nothing is offered.
pub(super) fn websocket_protocol<P>(
    request: &request::Parts,
    unnamed: P,
    served: impl Fn(&str) -> Option<P>,
    dialect: Dialect,
) -> Result<P, Box<Answer>> {
    let mut offers = list(&request.headers, SEC_WEBSOCKET_PROTOCOL).peekable();
    if offers.peek().is_none() {
        return Ok(unnamed);
    }
    offers
        .find_map(served)
        .ok_or_else(|| refused(Refusal::new(StatusCode::FORBIDDEN, "Forbidden", "no acceptable subprotocol"), dialect))
}

/// The first of the client's versions that is served here.
pub(super) fn spdy_version(headers: &HeaderMap, v5: bool, dialect: Dialect) -> Result<Carrier, Box<Answer>> {
    let served: Vec<Version> =
        Version::NEWEST_FIRST.into_iter().filter(|version| v5 || *version != Version::V5).collect();
    let names: Vec<&str> = served.iter().map(|version| version.name()).collect();
    let chosen = spdy(headers, &names, dialect)?;
    let version = served.into_iter().find(|version| version.name() == chosen).expect("chosen from them");
    Ok(Carrier::Spdy(version))
}

/// Upstream's `httpstream.Handshake`: the first of the client's protocols that is in `served`.
pub(super) fn spdy(
    headers: &HeaderMap,
    served: &[&'static str],
    dialect: Dialect,
) -> Result<&'static str, Box<Answer>> {
    let bad = |why: &str| refused(Refusal::bad_request(format!("unable to upgrade: {why}")), dialect);
    if !headers.contains_key(X_STREAM_PROTOCOL_VERSION) {
        return Err(bad("header X-Stream-Protocol-Version does not exist in request"));
    }
    let offers: Vec<&str> = list(headers, X_STREAM_PROTOCOL_VERSION).collect();
    if offers.is_empty() {
        return Err(bad("header X-Stream-Protocol-Version has no valid protocols"));
    }
    let chosen = offers.iter().find_map(|offer| served.iter().find(|name| *name == offer));
    let Some(&chosen) = chosen else {
        let why = format!(
            "unable to upgrade: unable to negotiate protocol: client supports [{}], server accepts [{}]",
            offers.join(" "),
            served.join(" "),
        );
        let mut response = refused(Refusal::new(StatusCode::FORBIDDEN, "Forbidden", why), dialect);
        for name in served {
            response.headers_mut().append(X_ACCEPTED_STREAM_PROTOCOL_VERSIONS, HeaderValue::from_static(name));
        }
        return Err(response);
    };
    if !upgrade_names(headers, "spdy/3.1") {
        return Err(bad("missing upgrade headers in request"));
    }
    Ok(chosen)
}

pub(super) fn refused(refusal: Refusal, dialect: Dialect) -> Box<Answer> {
    Box::new(refusal.into_response(dialect))
}
