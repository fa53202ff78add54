//! The two handshakes: what is offered, and whether a `101` is the answer to it.

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Method, Response, StatusCode,
    header::{CONNECTION, CONTENT_LENGTH, SEC_WEBSOCKET_PROTOCOL, UPGRADE},
};

use super::{
    Carrier, ExecuteError, Rejection,
    endpoint::{Endpoint, STREAM_PROTOCOL},
    handshake::{Asker, lost},
};
use crate::{
    upgrade::{Connect, Io, list, upgrade_names},
    websocket::{
        client::prepare,
        handshake::{ResponseError, check_response},
    },
};

impl<C: Connect> Asker<C> {
    /// Asks for SPDY/3.1 with one of the protocols `offered`. A `101` that names none means `unnamed`.
    pub(super) async fn spdy<'a>(
        &self,
        endpoint: &Endpoint,
        offered: &[&'a str],
        unnamed: &str,
    ) -> Result<(Io, &'a str), ExecuteError> {
        let mut asked = endpoint.http();
        *asked.method_mut() = Method::POST;
        let headers = asked.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static("SPDY/3.1"));
        // Go's servers want one, hyper leaves it out.
        headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
        for protocol in offered {
            let protocol = HeaderValue::from_str(protocol).expect("names of protocols are header values");
            headers.append(STREAM_PROTOCOL, protocol);
        }
        let (response, io) = self.ask(&endpoint.uri, asked).await?;
        let chosen = match response.status() {
            StatusCode::SWITCHING_PROTOCOLS => chosen(response.headers(), offered, unnamed).map_err(Some),
            _ => Err(None),
        };
        let protocol = chosen.map_err(|wrong| rejected(Carrier::Spdy, response, wrong))?;
        Ok((io.ok_or_else(lost)?, protocol))
    }

    /// Asks for a WebSocket with one of the subprotocols `offered`; without one, if none is.
    pub(super) async fn websocket<'a>(
        &self,
        endpoint: &Endpoint,
        offered: &[&'a str],
    ) -> Result<(Io, Option<&'a str>), ExecuteError> {
        let mut asked = endpoint.http();
        let key = prepare(&mut asked, offered).expect("names of protocols are header values");
        let (response, io) = self.ask(&endpoint.uri, asked).await?;
        let error = match check_response(response.status(), response.headers(), &key, offered) {
            Ok(protocol) => return Ok((io.ok_or_else(lost)?, protocol)),
            Err(error) => error,
        };
        let wrong = match error {
            ResponseError::Status(_) => None,
            ResponseError::Protocol => {
                let got = response.headers().get(SEC_WEBSOCKET_PROTOCOL);
                let got = got.and_then(|got| got.to_str().ok()).unwrap_or_default();
                Some(format!("invalid protocol, expected one of {offered:?}, got {got:?}"))
            }
            error => Some(format!("websocket: bad handshake (101 Switching Protocols): {error}")),
        };
        Err(rejected(Carrier::WebSocket, response, wrong))
    }
}

fn rejected(carrier: Carrier, response: Response<Bytes>, wrong: Option<String>) -> ExecuteError {
    let (answer, body) = response.into_parts();
    let (code, headers) = (answer.status, answer.headers);
    ExecuteError::Rejected(Box::new(Rejection { carrier, code, headers, body, wrong }))
}

/// The protocol that a `101` chose, or what is wrong with it.
fn chosen<'a>(headers: &HeaderMap, offered: &[&'a str], unnamed: &str) -> Result<&'a str, String> {
    if !list(headers, CONNECTION).any(|token| token.eq_ignore_ascii_case("upgrade")) {
        return Err("`upgrade` not found in the server's `Connection` header".into());
    }
    if !upgrade_names(headers, "SPDY/3.1") {
        return Err("`SPDY/3.1` not found in the server's `Upgrade` header".into());
    }
    let mut named = headers.get_all(STREAM_PROTOCOL).iter();
    let name = match (named.next(), named.next()) {
        (None, _) => "",
        (Some(name), None) => name.to_str().unwrap_or("?").trim(),
        (Some(_), Some(_)) => return Err("the server chose more than one protocol".into()),
    };
    let meant = if name.is_empty() { unnamed } else { name };
    match offered.iter().find(|offer| **offer == meant) {
        Some(offer) => Ok(offer),
        None => Err(format!("invalid protocol, expected one of {offered:?}, got {name:?}")),
    }
}
