//! Port-forward, whoever carries it: TCP connections into a pod.
//!
//! One local connection is one *pair* of SPDY streams, `error` and `data`; `portforward.k8s.io` is the only version.
//! Its WebSocket form, [`TUNNEL`], carries the very same SPDY bytes in messages. Upstream: `tools/portforward` of
//! client-go, `portforward` of cri-streaming.

// Until `StreamingServer` serves it.
#[cfg_attr(not(test), expect(dead_code))]
pub(crate) mod over_websocket;
pub mod over_websocket_client;
pub(crate) mod tunnel;

use std::{fmt, future::Future};

use tokio::{
    io::{AsyncRead, AsyncWrite, DuplexStream},
    net::TcpStream,
};

pub use self::over_websocket::WsProtocol;
use crate::BoxError;

/// The protocol of stream pairs on SPDY.
pub const PROTOCOL: &str = "portforward.k8s.io";

/// The WebSocket subprotocol that carries SPDY with [`PROTOCOL`]: what KEP-4006 calls `v2.portforward.k8s.io`.
pub const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";

/// Dials into a pod that was looked up.
pub trait Dial: Send + Sync + 'static {
    /// A connection to one of its ports.
    type Connection: Connection;

    /// Connects to `port` of the pod. Dropped when the client is gone.
    ///
    /// # Errors
    ///
    /// Why not, in words for the client.
    fn dial(&self, port: u16) -> impl Future<Output = Result<Self::Connection, BoxError>> + Send;
}

/// A connection into a pod.
pub trait Connection: AsyncRead + AsyncWrite + Send + Unpin + 'static {
    /// Ends it so that the pod sees an error and no end of file: for TCP, an RST.
    fn reset(self);
}

impl Connection for TcpStream {
    fn reset(self) {
        // If it fails the connection is gone already.
        let _ = self.set_zero_linger();
    }
}

/// A pipe knows no other end than an end of file.
impl Connection for DuplexStream {
    fn reset(self) {}
}

/// What a client is told of a failed dial.
///
/// kubectl ends its whole forward, all ports, when a pair's error stream brings text, and goes on when a pair is reset
/// without any. A failure in mid-transfer therefore resets without text in both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DialErrors {
    /// Text on the pair's error stream, as upstream.
    #[default]
    Report,
    /// The pair is reset without text: other connections of the same forward live on. A pair that takes no data for a
    /// while, and so holds up the others, is reset too.
    Isolate,
}

impl fmt::Display for DialErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Report => "report",
            Self::Isolate => "isolate",
        })
    }
}
