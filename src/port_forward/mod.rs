//! Port-forward, whoever carries it: TCP connections into a pod.
//!
//! One local connection is one *pair* of SPDY streams, `error` and `data`; `portforward.k8s.io` is the only version.
//! Its WebSocket form, [`TUNNEL`], carries the very same SPDY bytes in messages. Upstream: `tools/portforward` of
//! client-go, `portforward` of cri-streaming.

pub(crate) mod over_spdy;
#[cfg(feature = "client")]
pub mod over_spdy_client;
pub(crate) mod over_websocket;
pub mod over_websocket_client;
pub(crate) mod pair;
pub(crate) mod tunnel;

use std::{fmt, future::Future, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncWrite, DuplexStream},
    net::TcpStream,
};

pub use self::over_websocket::WsProtocol;
use crate::{BoxError, upgrade::SessionLimits, websocket};

/// The protocol of stream pairs on SPDY.
pub const PROTOCOL: &str = "portforward.k8s.io";

/// The WebSocket subprotocol that carries SPDY with [`PROTOCOL`]: what KEP-4006 calls `v2.portforward.k8s.io`.
pub const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";

/// What a session's WebSocket messages are held to.
pub(crate) fn messages(limits: &SessionLimits) -> websocket::Limits {
    websocket::Limits { message: limits.message, fragments: limits.fragments }
}

/// Dials into a pod that was looked up.
pub trait Dial: Send + Sync + 'static {
    /// A connection to one of its ports.
    type Connection: Connection;

    /// Connects to `port` of the pod. Dropped when the client is gone.
    ///
    /// # Errors
    ///
    /// Why not, in words for the client. An [`std::io::Error`] of kind `ConnectionReset` says that there was a connection: it
    /// counts as one that failed in mid-transfer.
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

/// Limits of one port-forward, each with a default.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pairs: usize,
    pairing: Duration,
    stall: Duration,
}

impl Limits {
    /// Most connections at a time: upstream has no bound; a browser opens six to a host.
    const PAIRS: usize = 1_000;

    /// Upstream's `streamCreationTimeout`.
    const PAIRING: Duration = Duration::from_secs(30);

    /// Longer than a pause of a busy program, shorter than the patience of the others.
    const STALL: Duration = Duration::from_secs(10);

    /// The defaults of all limits.
    #[must_use]
    pub fn new() -> Self {
        Self { pairs: Self::PAIRS, pairing: Self::PAIRING, stall: Self::STALL }
    }

    /// Most connections at a time, those included that are about to be. One more is refused, alone. The default is
    /// 1,000. Each may hold about 100 KiB while its ends are slow, and all together 1 MiB that came and was not taken.
    #[must_use]
    pub fn pairs(mut self, count: usize) -> Self {
        self.pairs = count;
        self
    }

    /// How long one stream of a connection waits for the other. The default is 30 s.
    #[must_use]
    pub fn pairing(mut self, patience: Duration) -> Self {
        self.pairing = patience;
        self
    }

    /// In [`DialErrors::Isolate`], how long one connection whose pod takes no data may hold up the others. The default
    /// is 10 s.
    #[must_use]
    pub fn stall(mut self, patience: Duration) -> Self {
        self.stall = patience;
        self
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self::new()
    }
}
