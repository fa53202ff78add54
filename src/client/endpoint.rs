//! Where a client asks, and what goes along.

use std::fmt;

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Request, Uri, Version,
    header::{
        CONNECTION, CONTENT_LENGTH, HOST, SEC_WEBSOCKET_EXTENSIONS, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
        SEC_WEBSOCKET_VERSION, TRANSFER_ENCODING, UPGRADE,
    },
};
use http_body_util::Empty;

use super::ExecuteError;

/// The offers of a SPDY handshake, one a line.
pub(super) const STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");

/// Headers that belong to the handshake: what a caller sets of them does not go out.
const OURS: [HeaderName; 9] = [
    CONNECTION,
    UPGRADE,
    CONTENT_LENGTH,
    TRANSFER_ENCODING,
    SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_VERSION,
    SEC_WEBSOCKET_PROTOCOL,
    SEC_WEBSOCKET_EXTENSIONS,
    STREAM_PROTOCOL,
];

/// A URL and headers of the caller's. `Debug` shows neither query nor headers.
#[derive(Clone)]
pub(super) struct Endpoint {
    pub(super) uri: Uri,
    headers: HeaderMap,
}

impl Endpoint {
    pub(super) fn new<U>(uri: U) -> Result<Self, ExecuteError>
    where
        U: TryInto<Uri>,
        U::Error: Into<http::Error>,
    {
        let uri = uri.try_into().map_err(|error| ExecuteError::Request(error.into().to_string()))?;
        let wrong = |why: &str| Err(ExecuteError::Request(why.into()));
        match uri.scheme_str() {
            Some("http" | "https") => {}
            Some(other) => return Err(ExecuteError::Request(format!("unknown url scheme: {other}"))),
            None => return wrong("the URL has no scheme"),
        }
        match uri.authority() {
            Some(authority) if authority.as_str().contains('@') => wrong("the URL has credentials in it"),
            Some(authority) if !authority.host().is_empty() => Ok(Self { uri, headers: HeaderMap::new() }),
            _ => wrong("the URL has no host"),
        }
    }

    pub(super) fn header<N, V>(&mut self, name: N, value: V) -> Result<(), ExecuteError>
    where
        N: TryInto<HeaderName>,
        N::Error: Into<http::Error>,
        V: TryInto<HeaderValue>,
        V::Error: Into<http::Error>,
    {
        let wrong = |error: http::Error| ExecuteError::Request(error.to_string());
        let name = name.try_into().map_err(|error| wrong(error.into()))?;
        let value = value.try_into().map_err(|error| wrong(error.into()))?;
        self.headers.append(name, value);
        Ok(())
    }

    /// The request as HTTP/1.1 writes it, without a handshake.
    pub(super) fn http(&self) -> Request<Empty<Bytes>> {
        let mut request = Request::new(Empty::new());
        *request.version_mut() = Version::HTTP_11;
        let path = self.uri.path_and_query().map_or("/", |path| path.as_str());
        *request.uri_mut() = path.parse().expect("path and query of a URI");
        let headers = request.headers_mut();
        *headers = self.headers.clone();
        for name in OURS {
            headers.remove(name);
        }
        if !headers.contains_key(HOST) {
            let host = self.uri.authority().map_or("", |authority| authority.as_str());
            headers.insert(HOST, HeaderValue::from_str(host).expect("an authority is a header value"));
        }
        request
    }

    /// Whom a fallback is remembered for: scheme, host and port.
    pub(super) fn server(&self) -> String {
        let scheme = self.uri.scheme_str().unwrap_or_default();
        let port = self.uri.port_u16().unwrap_or(if scheme == "https" { 443 } else { 80 });
        format!("{scheme}://{}:{port}", self.uri.host().unwrap_or_default().to_ascii_lowercase())
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.server(), self.uri.path())
    }
}
