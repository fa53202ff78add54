//! Legacy port-forward over WebSocket, the server's side: two channels of one connection for each port of the query.
//!
//! Channel 2n is the data of port n, both ways, and 2n+1 its error, to the client. Right behind the `101` the port's
//! number is sent on both, little-endian, before anything else (`websocket.go` of cri-streaming). Each port is dialled
//! once. A channel cannot be closed: the client is not told of a port's end, and cannot half-close; the connection is
//! closed when all ports have ended.
//!
//! **Failures are always told**, as text on the port's error channel, also those in mid-transfer: there is no reset, and
//! no other port is touched by it. So [`DialErrors`](super::DialErrors) makes no difference here.

mod lane;
mod session;

use std::{future::poll_fn, pin::pin, task::Poll};

use http::StatusCode;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    task::unconstrained,
    time::sleep_until,
};
use tokio_util::sync::CancellationToken;

use self::session::Session;
use super::Dial;
use crate::{
    upgrade::{Refusal, Report, StreamOptions, Target, clock},
    websocket::channel::Encoding,
};

/// Most ports of one connection: a channel is a byte.
pub(crate) const MAX_PORTS: usize = 127;

/// A subprotocol of legacy port-forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WsProtocol {
    /// No subprotocol: as [`V4`](Self::V4).
    Unnamed,
    /// `v4.channel.k8s.io`.
    V4,
    /// `v4.base64.channel.k8s.io`.
    Base64V4,
}

impl WsProtocol {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Unnamed, Self::V4, Self::Base64V4];

    /// The name on the wire; empty where there is none.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unnamed => "",
            Self::V4 => "v4.channel.k8s.io",
            Self::Base64V4 => "v4.base64.channel.k8s.io",
        }
    }

    /// The subprotocol of that name; case matters.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|protocol| protocol.name() == name)
    }

    /// How its messages are written.
    #[must_use]
    pub const fn encoding(self) -> Encoding {
        match self {
            Self::Unnamed | Self::V4 => Encoding::Binary,
            Self::Base64V4 => Encoding::Base64,
        }
    }
}

/// Checks the ports of the query, in upstream's words (`NewV4Options`).
///
/// # Errors
///
/// 400: there are none, or 0 is among them; or there are more than [`MAX_PORTS`], where upstream's channels run over.
pub(crate) fn check_ports(options: &StreamOptions) -> Result<(), Refusal> {
    let bad = |why: String| Refusal::new(StatusCode::BAD_REQUEST, "BadRequest", why);
    match &options.ports[..] {
        [] => Err(bad("query parameter \"port\" is required".into())),
        ports if ports.contains(&0) => Err(bad("port \"0\" must be > 0".into())),
        ports if ports.len() > MAX_PORTS => Err(bad(format!("at most {MAX_PORTS} ports can be forwarded"))),
        _ => Ok(()),
    }
}

/// Serves a port-forward on a connection whose `101` has been sent, until all ports have ended or the client goes. The
/// ports are the target's, and have been [checked](check_ports).
///
/// At most 64 KiB wait for each port. A port that takes nothing holds up what the client sends to the others: one
/// connection carries them all.
///
/// # Cancel safety
///
/// Dropping the future drops all connections.
pub(crate) async fn serve<Io, D>(
    io: Io,
    protocol: WsProtocol,
    dial: &D,
    target: &Target,
    drain: CancellationToken,
) -> Report
where
    Io: AsyncRead + AsyncWrite + Unpin,
    D: Dial,
{
    let ports = target.options.ports.iter().take(MAX_PORTS);
    let dialled = ports.map(|port| (*port, Box::pin(dial.dial(*port))));
    let mut session = Session::new(io, protocol, target, dialled);
    let mut drained = pin!(drain.cancelled());
    let mut timer = pin!(sleep_until(clock::first()));
    poll_fn(|cx| {
        if !session.is_over() && drained.as_mut().poll(cx).is_ready() {
            session.drain();
        }
        loop {
            if let Poll::Ready(report) = session.poll(cx) {
                return Poll::Ready(report);
            }
            // Unconstrained: a flood that uses up the task's budget must not stop the clock.
            if pin!(unconstrained(timer.as_mut())).poll(cx).is_pending() {
                return Poll::Pending;
            }
            session.tick();
            let next = clock::after(timer.deadline());
            timer.as_mut().reset(next);
        }
    })
    .await
}

#[cfg(test)]
mod tests;
