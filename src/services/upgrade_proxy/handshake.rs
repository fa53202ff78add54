//! One request to the next hop, and its answer.

use std::{
    future::{Future, poll_fn},
    net::IpAddr,
    pin::pin,
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode,
    header::{
        AUTHORIZATION, CONNECTION, CONTENT_LENGTH, COOKIE, PROXY_AUTHORIZATION, SEC_WEBSOCKET_PROTOCOL,
        TRANSFER_ENCODING, UPGRADE,
    },
};
use http_body_util::{BodyExt, Empty, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::{
    BoxError,
    upgrade::{list, upgrade_names},
};

/// Bytes of a refusal's body that are relayed; a `Status` takes a few hundred.
const MAX_REFUSAL: usize = 1024 * 1024;

/// A subprotocol that carries the caller's token (`pkg/authentication/request/websocket/protocol.go`).
const BEARER: &str = "base64url.bearer.authorization.k8s.io.";

/// Why the next hop gave no usable answer.
#[derive(Debug)]
pub(super) enum Failure {
    /// It could not be asked, or its answer not be read.
    Broken(BoxError),
    /// It answered with a success or a redirect where only an upgrade or a refusal makes sense.
    NoUpgrade(StatusCode),
}

/// Takes out of `headers` what is the caller's own: nothing of it is for the next hop. Upstream takes out the front
/// proxy's headers too (`WithAuthentication`): a hop that trusts our certificate as one would believe them.
pub(in crate::services) fn strip_credentials(headers: &mut HeaderMap) {
    for credential in [AUTHORIZATION, PROXY_AUTHORIZATION, COOKIE] {
        headers.remove(credential);
    }
    let is_identity = |name: &&HeaderName| ["impersonate-", "x-remote-"].iter().any(|of| name.as_str().starts_with(of));
    let identity: Vec<HeaderName> = headers.keys().filter(is_identity).cloned().collect();
    for name in identity {
        headers.remove(name);
    }
    // A line that is not text is nobody's protocol, and may hide a token.
    let lines = headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter();
    if lines.into_iter().any(|line| line.to_str().map_or(true, |line| line.contains(BEARER))) {
        let rest: Vec<&str> =
            list(headers, SEC_WEBSOCKET_PROTOCOL).filter(|offer| !offer.starts_with(BEARER)).collect();
        let rest = HeaderValue::from_str(&rest.join(",")).expect("parts of a header value");
        headers.remove(SEC_WEBSOCKET_PROTOCOL);
        if !rest.is_empty() {
            headers.insert(SEC_WEBSOCKET_PROTOCOL, rest);
        }
    }
}

/// Appends the client to `X-Forwarded-For`, behind those that are named there already.
pub(super) fn forwarded_for(headers: &mut HeaderMap, address: IpAddr) {
    const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
    let mut chain: Vec<String> = list(headers, X_FORWARDED_FOR).map(str::to_owned).collect();
    chain.push(address.to_string());
    let chain = HeaderValue::from_str(&chain.join(", ")).expect("parts of header values, and an address");
    headers.insert(X_FORWARDED_FOR, chain);
}

/// Sends `request` over `io` and reads the answer. On a `101` its extensions hold the next hop's side.
///
/// # Cancel safety
///
/// Dropping it closes the connection.
pub(super) async fn ask<Io>(io: Io, request: Request<Empty<Bytes>>) -> Result<Response<Full<Bytes>>, Failure>
where
    Io: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let asked_for: Vec<String> = list(request.headers(), UPGRADE).map(str::to_owned).collect();
    let (mut sender, connection) = http1::handshake(TokioIo::new(io)).await.map_err(broken)?;
    let mut connection = pin!(connection.with_upgrades());
    let mut done = false;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(broken)?;
        let code = response.status();
        if code == StatusCode::SWITCHING_PROTOCOLS {
            if !asked_for.iter().any(|protocol| upgrade_names(response.headers(), protocol)) {
                return Err(Failure::Broken("the next hop switched to a protocol that was not asked for".into()));
            }
            return Ok(response.map(|_| Full::default()));
        }
        if code.is_informational() || code.is_success() || code.is_redirection() {
            return Err(Failure::NoUpgrade(code));
        }
        let (mut parts, body) = response.into_parts();
        let body = Limited::new(body, MAX_REFUSAL).collect().await.map_err(broken)?.to_bytes();
        // The body is whole and the connection ends with it.
        for hop_by_hop in [CONNECTION, TRANSFER_ENCODING, CONTENT_LENGTH] {
            parts.headers.remove(hop_by_hop);
        }
        Ok(Response::from_parts(parts, Full::new(body)))
    };
    let mut exchange = pin!(exchange);
    // The connection moves the exchange on, and after a `101` it is what hands the socket over.
    let response = poll_fn(|cx| {
        if !done {
            done = connection.as_mut().poll(cx).is_ready();
        }
        exchange.as_mut().poll(cx)
    })
    .await?;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS && !done {
        connection.await.map_err(broken)?;
    }
    Ok(response)
}

fn broken(error: impl Into<BoxError>) -> Failure {
    Failure::Broken(error.into())
}

impl Failure {
    /// The sentence upstream has for it.
    pub(super) fn message(&self) -> String {
        match self {
            Self::Broken(error) => {
                let mut root: &dyn std::error::Error = &**error;
                while let Some(source) = root.source() {
                    root = source;
                }
                let eof = error.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_incomplete_message);
                if eof { "unexpected EOF".to_owned() } else { root.to_string() }
            }
            Self::NoUpgrade(code) => format!("invalid upgrade response: status code {}", code.as_u16()),
        }
    }
}
