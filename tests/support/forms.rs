//! Every kind of request that may open a stream.

use http::Request;

use super::Outcome;

/// What a request for a stream says of its protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    V5,
    V4,
    /// WebSocket without a subprotocol.
    NoProtocol,
    Tunnel,
    Spdy,
    /// `Upgrade: foo`
    Foo,
    /// No upgrade.
    Plain,
}

impl Form {
    pub const ALL: [Self; 7] = [Self::V5, Self::V4, Self::NoProtocol, Self::Tunnel, Self::Spdy, Self::Foo, Self::Plain];

    /// The subresource it is for.
    pub fn subresource(self) -> &'static str {
        if self == Self::Tunnel { "portforward" } else { "exec" }
    }

    /// Whether it is a WebSocket handshake.
    pub fn is_websocket(self) -> bool {
        matches!(self, Self::V5 | Self::V4 | Self::NoProtocol | Self::Tunnel)
    }

    /// The request for a stream at that URL.
    pub fn request(self, method: &str, url: &str) -> Outcome<Request<()>> {
        let protocol = match self {
            Self::V5 => Some("v5.channel.k8s.io"),
            Self::V4 => Some("v4.channel.k8s.io"),
            Self::Tunnel => Some("SPDY/3.1+portforward.k8s.io"),
            _ => None,
        };
        let mut request = Request::builder().method(method).uri(url);
        if self != Self::Plain {
            let upgrade = match self {
                Self::Spdy => "SPDY/3.1",
                Self::Foo => "foo",
                _ => "websocket",
            };
            request = request.header("connection", "Upgrade").header("upgrade", upgrade);
        }
        if self == Self::Spdy {
            request = request.header("x-stream-protocol-version", "v4.channel.k8s.io");
        }
        if self.is_websocket() {
            request =
                request.header("sec-websocket-version", "13").header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
        }
        if let Some(protocol) = protocol {
            request = request.header("sec-websocket-protocol", protocol);
        }
        if method == "POST" {
            request = request.header("content-length", "0");
        }
        request.body(()).map_err(|error| format!("{method} {url}: {error}"))
    }
}
