//! An answer that is not the upgrade that was asked for.

use std::fmt;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use serde_json::Value;

use crate::status::Status;

/// Bytes of a refusal's text that are shown. client-go's WebSocket library keeps as many.
const SHOWN: usize = 1024;

/// What carries a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Carrier {
    /// A WebSocket: with a channel for each stream of a command, and for port-forward with SPDY inside.
    WebSocket,
    /// A SPDY/3.1 connection with its streams.
    Spdy,
}

impl fmt::Display for Carrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::WebSocket => "WebSocket",
            Self::Spdy => "SPDY",
        })
    }
}

/// A server's answer that is not the upgrade that was asked for: another status code, or a `101` that is wrong.
///
/// `Display` has kubectl's words, with control characters escaped and at most 1 KiB of a body that is not a `Status`.
#[derive(Clone)]
pub struct Rejection {
    pub(super) carrier: Carrier,
    pub(super) code: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    /// What is wrong with a `101`.
    pub(super) wrong: Option<String>,
}

/// The `Status` object that an API server sends with a refusal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ApiStatus {
    /// The sentence for people.
    pub message: String,
    /// The word for programs, such as `Forbidden`; may be empty.
    pub reason: String,
    /// The HTTP status code; 0 if it says none.
    pub code: u16,
    /// Resource that it is about, such as `pods`; may be empty.
    pub kind: String,
    /// Name of the object it is about; may be empty.
    pub name: String,
    /// Sentences of the causes.
    pub causes: Vec<String>,
}

impl Rejection {
    /// What was asked for.
    #[must_use]
    pub fn carrier(&self) -> Carrier {
        self.carrier
    }

    /// The HTTP status code; 101 if the upgrade came and was another than asked for.
    #[must_use]
    pub fn code(&self) -> StatusCode {
        self.code
    }

    /// The headers of the answer.
    #[must_use]
    pub fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    /// The body as far as it came, at most 64 KiB of it.
    #[must_use]
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// The body, if it is a Kubernetes `Status`.
    #[must_use]
    pub fn status(&self) -> Option<ApiStatus> {
        let status: Status = serde_json::from_slice(&self.body).ok()?;
        if status.kind.as_deref() != Some("Status") {
            return None;
        }
        let details = status.details.unwrap_or_default();
        Some(ApiStatus {
            message: status.message,
            reason: status.reason,
            code: status.code,
            kind: details.kind,
            name: details.name,
            causes: details.causes.into_iter().map(|cause| cause.message).collect(),
        })
    }

    /// The header that something between here and the server dropped, where the answer shows it: the server saw no
    /// upgrade, or none of the protocols that were offered.
    ///
    /// It is read off the words of the refusals that Kubernetes has for it, so `None` says nothing.
    #[must_use]
    pub fn dropped_header(&self) -> Option<&'static str> {
        let upgrade = match self.carrier {
            Carrier::WebSocket => "Upgrade: websocket",
            Carrier::Spdy => "Upgrade: SPDY/3.1",
        };
        let text = String::from_utf8_lossy(&self.body);
        // A server refuses with these words a request that asks for no upgrade; we did.
        let unasked = ["Upgrade request required", "missing upgrade headers in request"];
        if self.code.is_client_error() || self.code.is_server_error() {
            if unasked.iter().any(|words| text.contains(words)) {
                return Some(upgrade);
            }
            return text.contains("client supports [],").then_some("X-Stream-Protocol-Version");
        }
        None
    }

    /// As client-go words it: `UpgradeFailureError` around its WebSocket library's error or the `Status`.
    fn websocket(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("unable to upgrade streaming request: ")?;
        if let Some(wrong) = &self.wrong {
            return f.write_str(wrong);
        }
        if let Some(status) = self.status() {
            return shown(f, &status.message);
        }
        write!(f, "websocket: bad handshake ({})", self.code)?;
        match String::from_utf8_lossy(&self.body).trim() {
            "" => Ok(()),
            text => {
                f.write_str(": ")?;
                shown(f, text)
            }
        }
    }

    /// As `spdy.NewConnection` of client-go 1.36 words it.
    fn spdy(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("unable to upgrade connection: ")?;
        if let Some(wrong) = &self.wrong {
            return f.write_str(wrong);
        }
        let json: Option<Value> = serde_json::from_slice(&self.body).ok();
        let field = |name| json.as_ref()?.get(name)?.as_str().filter(|text| !text.is_empty());
        if let Some(text) = field("message").or_else(|| field("error")) {
            return shown(f, text);
        }
        match String::from_utf8_lossy(&self.body).trim() {
            "" => f.write_str("empty server response"),
            text => shown(f, text),
        }
    }
}

/// Writes what a server said so that it cannot drive a terminal.
pub(super) fn shown(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    let beginning = text.char_indices().take_while(|(at, char)| at + char.len_utf8() <= SHOWN);
    for (_, char) in beginning {
        match char {
            '\n' | '\t' => write!(f, "{char}")?,
            char if char.is_control() => write!(f, "{}", char.escape_default())?,
            char => write!(f, "{char}")?,
        }
    }
    Ok(())
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.carrier {
            Carrier::WebSocket => self.websocket(f),
            Carrier::Spdy => self.spdy(f),
        }?;
        match self.dropped_header() {
            Some(header) => write!(f, " (the server was not shown `{header}`: a proxy on the way has dropped it)"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rejection")
            .field("carrier", &self.carrier)
            .field("code", &self.code)
            .field("body", &self.body.len())
            .field("wrong", &self.wrong)
            .finish_non_exhaustive()
    }
}
