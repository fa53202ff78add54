//! Remote command over WebSocket: channels of one connection. The server's side; the client's is in
//! `over_websocket_client`.
//!
//! The order is the same on every path: all output, then the status, then one Close, then silence until the peer has
//! closed as well. Nothing of an accepted byte is dropped: a client that does not read blocks the process, a process
//! that does not read blocks the client.

mod pipes;
mod session;
mod settling;

#[cfg(test)]
mod tests;

use std::{
    future::{Future, poll_fn},
    pin::pin,
    time::Duration,
};

use bytes::Bytes;
use http::{Response, header::SEC_WEBSOCKET_VERSION};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

use self::session::Session;
pub(crate) use self::settling::settling;
use super::{Exit, Stdio, Version, messages};
use crate::{
    BoxError,
    upgrade::{Dialect, Refusal, Report, SessionLimits, StreamOptions},
    websocket::{
        self,
        channel::Encoding,
        handshake::{self, RequestError},
    },
};

/// A subprotocol of remote command over WebSocket. There never were a v2 and a v3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WsProtocol {
    /// No subprotocol: as [`V1`](Self::V1).
    Unnamed,
    /// `channel.k8s.io`: stdin cannot end, errors are text.
    V1,
    /// `base64.channel.k8s.io`.
    Base64V1,
    /// `v4.channel.k8s.io`: errors are a `Status`.
    V4,
    /// `v4.base64.channel.k8s.io`.
    Base64V4,
    /// `v5.channel.k8s.io`: stdin can be closed.
    V5,
}

impl WsProtocol {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::Unnamed, Self::V1, Self::Base64V1, Self::V4, Self::Base64V4, Self::V5];

    /// The name on the wire; empty where there is none.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unnamed => "",
            Self::V1 => "channel.k8s.io",
            Self::Base64V1 => "base64.channel.k8s.io",
            Self::V4 => "v4.channel.k8s.io",
            Self::Base64V4 => "v4.base64.channel.k8s.io",
            Self::V5 => "v5.channel.k8s.io",
        }
    }

    /// The subprotocol of that name; case matters.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|protocol| protocol.name() == name)
    }

    /// The version of remote command.
    #[must_use]
    pub const fn version(self) -> Version {
        match self {
            Self::Unnamed | Self::V1 | Self::Base64V1 => Version::V1,
            Self::V4 | Self::Base64V4 => Version::V4,
            Self::V5 => Version::V5,
        }
    }

    /// How its messages are written.
    #[must_use]
    pub const fn encoding(self) -> Encoding {
        match self {
            Self::Base64V1 | Self::Base64V4 => Encoding::Base64,
            Self::Unnamed | Self::V1 | Self::V4 | Self::V5 => Encoding::Binary,
        }
    }

    /// A client can close a channel.
    #[must_use]
    pub const fn has_close_signal(self) -> bool {
        matches!(self, Self::V5)
    }
}

/// Limits of a session.
#[derive(Clone, Debug)]
struct Limits {
    /// A peer from which nothing was read for this long is pinged.
    ping_after: Duration,
    /// A peer from which nothing was read for this long is dead. Runs only while we read and none of our writes is
    /// pending.
    dead_after: Duration,
    /// Without payload for this long in either direction the session ends; zero is never. Pings do not count.
    idle: Duration,
    /// How often a client that we do not read is sent a Pong: client-go's read deadline of 61 s moves on any.
    pong_every: Duration,
    /// How long the status and the Close may take.
    status_write: Duration,
    /// How long the peer's Close, and the end of its bytes, are waited for.
    close_handshake: Duration,
    /// How long a process is waited for after its client has gone.
    run_grace: Duration,
    /// Bytes of stdin that wait for the process.
    stdin_buffer: usize,
    /// Limits of a message.
    message: websocket::Limits,
}

impl From<&SessionLimits> for Limits {
    fn from(limits: &SessionLimits) -> Self {
        Self {
            ping_after: limits.ping_after,
            dead_after: limits.dead_after,
            idle: limits.idle,
            pong_every: Duration::from_secs(5),
            status_write: limits.farewell,
            close_handshake: limits.farewell,
            run_grace: Duration::from_secs(10),
            stdin_buffer: 256 * 1024,
            message: messages(limits),
        }
    }
}

/// Runs a session on a connection whose `101` has been sent.
///
/// `run` gets the streams that `options` ask for. It is polled here, so it needs no task of its own. When `drain`
/// fires the session ends with a Failure that says so.
///
/// # Cancel safety
///
/// Dropping the future drops the connection without a Close, drops what `run` returned, and fires [`Stdio::gone`].
pub(crate) fn serve<Io, F, Fut>(
    io: Io,
    protocol: WsProtocol,
    options: &StreamOptions,
    limits: &SessionLimits,
    drain: CancellationToken,
    run: F,
) -> impl Future<Output = Report> + use<Io, F, Fut>
where
    Io: AsyncRead + AsyncWrite + Unpin,
    F: FnOnce(Stdio) -> Fut,
    Fut: Future<Output = Result<Exit, BoxError>>,
{
    let (mut session, stdio) = Session::new(io, protocol, options, limits.into());
    async move {
        let mut run = pin!(run(stdio));
        let mut drain = pin!(drain.cancelled_owned());
        let mut draining = false;
        poll_fn(|cx| {
            if session.is_process_running()
                && let std::task::Poll::Ready(result) = run.as_mut().poll(cx)
            {
                session.process_ended(result);
            }
            if !draining && drain.as_mut().poll(cx).is_ready() {
                draining = true;
                session.drain();
            }
            session.poll(cx)
        })
        .await;
        session.into_report()
    }
}

/// What RFC 6455, 4.2.2 says to a request that is no handshake.
pub(crate) fn refuse_handshake<R: From<Bytes>>(bad: RequestError, dialect: Dialect) -> Response<R> {
    let mut response = Refusal::new(bad.status(), "BadRequest", bad.to_string()).into_response(dialect);
    response.headers_mut().insert(SEC_WEBSOCKET_VERSION, handshake::VERSION);
    response
}
