//! The opening handshake (RFC 6455, 4): the server's checks of a request, the client's of a `101`.

use std::{error, fmt};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use http::{
    HeaderMap, HeaderValue, Method, StatusCode, Version,
    header::{
        CONNECTION, HeaderName, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_EXTENSIONS, SEC_WEBSOCKET_KEY,
        SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
    },
};
use sha1::{Digest as _, Sha1};

/// The only version there is.
pub const VERSION: HeaderValue = HeaderValue::from_static("13");

const WEBSOCKET: &str = "websocket";
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// Why a request is no WebSocket handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RequestError {
    /// The method is not GET.
    Method,
    /// Not HTTP/1.1.
    HttpVersion,
    /// `Upgrade` does not say `websocket`.
    Upgrade,
    /// `Connection` does not say `upgrade`.
    Connection,
    /// `Sec-WebSocket-Version` is not 13.
    Version,
    /// `Sec-WebSocket-Key` is not 16 bytes in base64.
    Key,
}

impl RequestError {
    /// The status code of the refusal, as upstream has it. Add `Sec-WebSocket-Version: 13` ([`VERSION`]) to every one
    /// of them.
    #[must_use]
    pub fn status(self) -> StatusCode {
        match self {
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::HttpVersion | Self::Upgrade | Self::Connection | Self::Version | Self::Key => StatusCode::BAD_REQUEST,
        }
    }
}

impl fmt::Display for RequestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Method => "websocket: the method is not GET",
            Self::HttpVersion => "websocket: the request is not HTTP/1.1",
            Self::Upgrade => "websocket: `websocket` not found in the `Upgrade` header",
            Self::Connection => "websocket: `upgrade` not found in the `Connection` header",
            Self::Version => "websocket: `Sec-WebSocket-Version` is not 13",
            Self::Key => "websocket: `Sec-WebSocket-Key` is not 16 bytes in base64",
        })
    }
}

impl error::Error for RequestError {}

/// Checks a client's request (RFC 6455, 4.2.1) and returns its key. Subprotocols are left to the caller.
///
/// # Errors
///
/// What is wrong with it.
pub fn check_request<'a>(
    method: &Method,
    version: Version,
    headers: &'a HeaderMap,
) -> Result<&'a HeaderValue, RequestError> {
    if method != Method::GET {
        return Err(RequestError::Method);
    }
    if version != Version::HTTP_11 {
        return Err(RequestError::HttpVersion);
    }
    if !has_token(headers, &UPGRADE, WEBSOCKET) {
        return Err(RequestError::Upgrade);
    }
    if !has_token(headers, &CONNECTION, "upgrade") {
        return Err(RequestError::Connection);
    }
    if only(headers, &SEC_WEBSOCKET_VERSION).is_none_or(|version| version != VERSION) {
        return Err(RequestError::Version);
    }
    let key = only(headers, &SEC_WEBSOCKET_KEY).ok_or(RequestError::Key)?;
    match BASE64_STANDARD.decode(key.as_bytes()) {
        Ok(nonce) if nonce.len() == 16 => Ok(key),
        _ => Err(RequestError::Key),
    }
}

/// The `Sec-WebSocket-Accept` that answers a key.
#[must_use]
pub fn accept_key(key: &HeaderValue) -> HeaderValue {
    let mut sha = Sha1::new();
    sha.update(key.as_bytes());
    sha.update(GUID);
    HeaderValue::try_from(BASE64_STANDARD.encode(sha.finalize())).expect("base64 is a header value")
}

/// The subprotocols of the first header line. Upstream looks at no other when it decides whether it adapts a request
/// (`wsstream.protocolSupportsStreamClose`), so a v5 in a second line is passed through, deliberately.
pub fn offers_in_first_line(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    split(headers.get(SEC_WEBSOCKET_PROTOCOL))
}

/// The subprotocols of all header lines, in the client's order.
pub fn offers(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter().flat_map(|line| split(Some(line)))
}

/// Why a `101` does not open a WebSocket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ResponseError {
    /// The status code is not 101.
    Status(StatusCode),
    /// `Upgrade` does not say `websocket`.
    Upgrade,
    /// `Connection` does not say `upgrade`.
    Connection,
    /// `Sec-WebSocket-Accept` does not answer our key.
    Accept,
    /// An extension nobody offered.
    Extension,
    /// A subprotocol that was not offered, or none although some were.
    Protocol,
}

impl fmt::Display for ResponseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(code) => write!(f, "the server answered {code}, not 101"),
            Self::Upgrade => f.write_str("`websocket` not found in the server's `Upgrade` header"),
            Self::Connection => f.write_str("`upgrade` not found in the server's `Connection` header"),
            Self::Accept => f.write_str("`Sec-WebSocket-Accept` does not answer our key"),
            Self::Extension => f.write_str("the server chose an extension nobody offered"),
            Self::Protocol => f.write_str("the server did not choose one of the offered subprotocols"),
        }
    }
}

impl error::Error for ResponseError {}

/// Checks a server's answer (RFC 6455, 4.1) to a request with `key` and the subprotocols `offered`, and returns the one
/// it chose: exactly one of them, or `None` if none was offered. An empty protocol line counts as none: old Kubernetes
/// servers send it.
///
/// # Errors
///
/// What is wrong with it.
pub fn check_response<'a>(
    status: StatusCode,
    headers: &HeaderMap,
    key: &HeaderValue,
    offered: &[&'a str],
) -> Result<Option<&'a str>, ResponseError> {
    if status != StatusCode::SWITCHING_PROTOCOLS {
        return Err(ResponseError::Status(status));
    }
    if !has_token(headers, &UPGRADE, WEBSOCKET) {
        return Err(ResponseError::Upgrade);
    }
    if !has_token(headers, &CONNECTION, "upgrade") {
        return Err(ResponseError::Connection);
    }
    if only(headers, &SEC_WEBSOCKET_ACCEPT).is_none_or(|accept| accept != accept_key(key)) {
        return Err(ResponseError::Accept);
    }
    if headers.contains_key(SEC_WEBSOCKET_EXTENSIONS) {
        return Err(ResponseError::Extension);
    }
    let chosen = match only(headers, &SEC_WEBSOCKET_PROTOCOL) {
        Some(line) => line.as_bytes(),
        None if headers.contains_key(SEC_WEBSOCKET_PROTOCOL) => return Err(ResponseError::Protocol),
        None => b"",
    };
    if chosen.is_empty() && offered.is_empty() {
        return Ok(None);
    }
    match offered.iter().find(|offer| offer.as_bytes() == chosen) {
        Some(offer) => Ok(Some(offer)),
        None => Err(ResponseError::Protocol),
    }
}

/// The value of a header that is there exactly once.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a HeaderValue> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?;
    values.next().is_none().then_some(value)
}

fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    headers.get_all(name).iter().any(|line| split(Some(line)).any(|element| element.eq_ignore_ascii_case(token)))
}

fn split(line: Option<&HeaderValue>) -> impl Iterator<Item = &str> {
    let line = line.and_then(|line| line.to_str().ok()).unwrap_or_default();
    line.split(',').map(str::trim).filter(|element| !element.is_empty())
}

#[cfg(test)]
mod tests;
