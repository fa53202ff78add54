//! One task between a WebSocket client that speaks v5 and a SPDY server that speaks any version.
//!
//! ```text
//!            client                                           upstream
//!   messages of channel bytes                              DATA of streams
//!   ───────────────> websocket::Decoder, Demux ──> Outbox ───────────────>
//!   <─────────────── Outbox <───────────── spdy::Decoder <────────────────
//! ```
//!
//! - **Nothing is queued.** Payload stays in the buffer it was read into, between the head of one protocol that was
//!   parsed and the head of the other that is written; a side is read only when all that it brought before is written
//!   to the other. So memory is bounded by one buffer for each direction, and an idle session holds none.
//! - **Control never waits behind data.** Pings are answered when they are read, by a frame between two batches. If the
//!   client cannot be read because upstream takes no more stdin, it gets a Pong every five seconds unasked: client-go
//!   gives up after 61 s without one.
//! - **Nothing is said before the client can hear it.** kubectl 1.29 to 1.33 reads before it has created its streams, and
//!   throws away what comes for them (client-go 2f016580e). Go's API server gives it time by answering first and dialling
//!   then; here such a client gets 25 ms, unless it speaks before.
//! - **Data, then FIN, then status, then Close.** The error stream is collected until stdout and stderr have ended. What
//!   it says is sent as it came if it is a `Status`; if none came, because upstream was lost, a failure is sent.

mod lanes;
mod state;

use std::{future::poll_fn, pin::pin, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    task::unconstrained,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use self::state::Relay;
use super::Version;
use crate::upgrade::{Cause, Io, Report, SessionLimits, StreamOptions, clock};

/// Relays until the session has ended and both sides know. The client is told nothing for the time of `settling`,
/// unless it speaks.
pub(crate) async fn run<C, U>(
    client: C,
    upstream: U,
    version: Version,
    options: &StreamOptions,
    limits: &SessionLimits,
    settling: Duration,
    drain: CancellationToken,
) -> Report
where
    C: AsyncRead + AsyncWrite + Unpin,
    U: AsyncRead + AsyncWrite + Unpin,
{
    drive(Relay::new(client, upstream, version, options, limits), settling, drain).await
}

/// Tells a client that has its `101` already that there will be no session.
pub(crate) async fn fail<C>(client: C, cause: Cause, why: &str, limits: &SessionLimits, settling: Duration) -> Report
where
    C: AsyncRead + AsyncWrite + Unpin,
{
    let (nobody, _) = Io::pair();
    let mut relay = Relay::new(client, nobody, Version::V5, &StreamOptions::default(), limits);
    relay.fail(cause, why.to_owned());
    drive(relay, settling, CancellationToken::new()).await
}

async fn drive<C, U>(mut relay: Relay<C, U>, wait: Duration, drain: CancellationToken) -> Report
where
    C: AsyncRead + AsyncWrite + Unpin,
    U: AsyncRead + AsyncWrite + Unpin,
{
    let mut drained = pin!(drain.cancelled());
    let mut settling = !wait.is_zero();
    if !settling {
        relay.settle();
    }
    let mut timer = pin!(sleep_until(if settling { Instant::now() + wait } else { clock::first() }));
    poll_fn(|cx| {
        if !relay.is_closing() && drained.as_mut().poll(cx).is_ready() {
            relay.fail(Cause::Drain, "the server is shutting down".to_owned());
        }
        loop {
            if let std::task::Poll::Ready(report) = relay.poll(cx) {
                return std::task::Poll::Ready(report);
            }
            // Unconstrained: a flood that uses up the task's budget must not stop the clock.
            if pin!(unconstrained(timer.as_mut())).poll(cx).is_pending() {
                return std::task::Poll::Pending;
            }
            let next = if std::mem::take(&mut settling) {
                relay.settle();
                clock::first()
            } else {
                relay.tick();
                clock::after(timer.deadline())
            };
            timer.as_mut().reset(next);
        }
    })
    .await
}

#[cfg(test)]
mod tests;
