//! The tunnel between a WebSocket client and a next hop that speaks SPDY: what the client's messages carry is the very
//! byte stream of the next hop, so it is carried unread.
//!
//! ```text
//!            client                                           upstream
//!   binary messages, cut anywhere                            SPDY bytes
//!   ───────────────> websocket::Decoder ──> Outbox ───────────────────>
//!   <─────────────── Outbox, one or two messages for each read <───────────────
//! ```
//!
//! - **Nothing is queued.** Payload is unmasked where it was read and written from there; a side is read only when all
//!   that it brought before is written to the other. So memory is bounded by one buffer for each direction, and an idle
//!   session holds none.
//! - **Ends.** Those of streams travel inside. The end of upstream is a Close 1000 behind its last byte, that of the
//!   client (its Close 1000) a half-close of upstream, which may then finish what it has to say. A client that is lost,
//!   or says another code, ends the connection to upstream.

use std::{
    borrow::Cow,
    future::poll_fn,
    pin::pin,
    task::{Context, Poll, ready},
};

use http::{HeaderMap, HeaderValue};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    task::unconstrained,
    time::sleep_until,
};
use tokio_util::sync::CancellationToken;

use super::{PROTOCOL, TUNNEL, messages};
use crate::{
    upgrade::{
        Cause, End, Report, SessionLimits, Traffic,
        buffer::{BUFFER, Buffer, LONGEST_MESSAGE},
        clock::{self, Due},
        side::Side,
    },
    websocket::{ControlFrame, Decoder, Event, Head, Opcode, Payload, Role, handshake},
};

/// What the names of tunnelled protocols begin with, and end with (`portforward.WebsocketsSPDYTunnelingPrefix`).
const PREFIX: &str = "SPDY/3.1+";
const SUFFIX: &str = ".k8s.io";

/// Bytes of Pongs that may wait: more come only of a client that asks and does not read.
const MAX_CONTROL: usize = 4096;

/// Reads of one direction before it is the other's turn, so that a flood does not starve it.
const TURN: usize = 8;

/// The SPDY protocols that a WebSocket client offers to tunnel, without the prefix. Upstream looks at no header line but
/// the first (`wsstream.IsWebSocketRequestWithTunnelingProtocol`).
pub(crate) fn offers(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    handshake::offers_in_first_line(headers)
        .filter_map(|offer| offer.strip_prefix(PREFIX))
        .filter(|protocol| protocol.ends_with(SUFFIX))
}

/// Whether the client offers [`TUNNEL`], which a server of port-forward can serve itself: as SPDY on a
/// [`Pipe`](crate::websocket::Pipe).
pub(crate) fn is_offered(headers: &HeaderMap) -> bool {
    offers(headers).any(|offer| offer == PROTOCOL)
}

/// The WebSocket subprotocol that tunnels `protocol`.
pub(crate) fn websocket_name(protocol: &HeaderValue) -> HeaderValue {
    let name = [PREFIX.as_bytes(), protocol.as_bytes()].concat();
    HeaderValue::from_bytes(&name).expect("two header values make one")
}

/// Carries until the session has ended and both sides know.
///
/// # Cancel safety
///
/// Dropping the future drops both connections, without a Close.
pub(crate) async fn relay<C, U>(client: C, upstream: U, limits: &SessionLimits, drain: CancellationToken) -> Report
where
    C: AsyncRead + AsyncWrite + Unpin,
    U: AsyncRead + AsyncWrite + Unpin,
{
    let mut tunnel = Tunnel {
        client: Side::new(client, limits),
        upstream: Side::new(upstream, limits),
        frames: Decoder::new(Role::Server, messages(limits)),
        linger: clock::ticks(limits.dead_after),
        farewell_in: clock::ticks(limits.farewell),
        idle: clock::idle(limits),
        client_ended: false,
        over: None,
        quiet: 0,
        farewell: 0,
        bytes: Traffic::default(),
    };
    let mut drained = pin!(drain.cancelled());
    let mut timer = pin!(sleep_until(clock::first()));
    poll_fn(|cx| {
        if tunnel.over.is_none() && drained.as_mut().poll(cx).is_ready() {
            tunnel.close(GOING_AWAY, End::Error, Cause::Drain, "the server is shutting down");
        }
        loop {
            if let Poll::Ready(report) = tunnel.poll(cx) {
                return Poll::Ready(report);
            }
            // Unconstrained: a flood that uses up the task's budget must not stop the clock.
            ready!(pin!(unconstrained(timer.as_mut())).poll(cx));
            tunnel.tick();
            let next = clock::after(timer.deadline());
            timer.as_mut().reset(next);
        }
    })
    .await
}

/// Close codes (RFC 6455, 7.4.1). To a Go client all but 1000 are an error, and 1000 is the end of the bytes.
const NORMAL: u16 = 1000;
const GOING_AWAY: u16 = 1001;
const UNSUPPORTED: u16 = 1003;
const INTERNAL_ERROR: u16 = 1011;

struct Tunnel<C, U> {
    client: Side<C>,
    upstream: Side<U>,
    frames: Decoder,
    /// In ticks: how long upstream may be quiet behind the client's end, as on a connection that is passed through.
    linger: u32,
    /// In ticks: how long both sides may take to close once they have been sent all there is.
    farewell_in: u32,
    /// In ticks: a tunnel in which no byte moved this long is over. A client that pings inside the tunnel keeps it
    /// alive; what it carries is not looked at.
    idle: u32,
    /// The client has said Close 1000: it sends no more, and may still read.
    client_ended: bool,
    /// How it ended. What is left is to write what waits, and to close.
    over: Option<(End, Cause, Cow<'static, str>)>,
    /// Ticks without a byte of payload.
    quiet: u32,
    /// Ticks since it is over and the client has been sent all there is.
    farewell: u32,
    bytes: Traffic,
}

impl<C, U> Tunnel<C, U>
where
    C: AsyncRead + AsyncWrite + Unpin,
    U: AsyncRead + AsyncWrite + Unpin,
{
    /// Moves all that can be moved.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Report> {
        loop {
            let inbound = self.poll_inbound(cx);
            let outbound = self.poll_outbound(cx);
            if !inbound && !outbound {
                break;
            }
        }
        let upstream = (self.client_ended || self.over.is_some()) && self.upstream.poll_close(cx, false).is_ready();
        if self.over.is_none() || self.client.poll_close(cx, true).is_pending() || !upstream {
            return Poll::Pending;
        }
        let (end, cause, detail) = self.over.take().unwrap_or((End::Carried, Cause::Finished, "".into()));
        let mut report = Report::new(end, cause, detail);
        report.protocol_in = TUNNEL.into();
        report.protocol_out = PROTOCOL.into();
        report.bytes = self.bytes;
        Poll::Ready(report)
    }

    /// Client to upstream. Returns whether anything was read.
    fn poll_inbound(&mut self, cx: &mut Context<'_>) -> bool {
        let mut progress = false;
        self.client.listening = false;
        for _ in 0..TURN {
            if !self.upstream.poll_send(cx) && self.over.is_none() {
                break;
            }
            if self.client.deaf {
                break;
            }
            match self.client.poll_read(cx, BUFFER) {
                Poll::Pending => break,
                Poll::Ready(Ok((buffer, read))) if read > 0 => self.take_messages(buffer, read),
                // Behind the end it may still read what we have for it.
                Poll::Ready(_) if self.over.is_some() => {}
                Poll::Ready(_) => self.client_gone(Cause::ClientLost, "the client's connection ended"),
            }
            progress = true;
        }
        progress
    }

    /// Upstream to client. Returns whether anything was read.
    fn poll_outbound(&mut self, cx: &mut Context<'_>) -> bool {
        let mut progress = false;
        for _ in 0..TURN {
            if !self.client.poll_send(cx) {
                break;
            }
            if self.client.mute && self.over.is_none() {
                self.client_gone(Cause::ClientLost, "the client's connection broke");
                // The other half has to end now.
                progress = true;
            }
            if self.upstream.deaf || self.over.is_some() {
                break;
            }
            match self.upstream.poll_read(cx, BUFFER) {
                Poll::Pending => break,
                Poll::Ready(Ok((buffer, read))) if read > 0 => {
                    self.quiet = 0;
                    self.bytes.carried_out += read as u64;
                    for start in (0..read).step_by(LONGEST_MESSAGE) {
                        let message = start..read.min(start + LONGEST_MESSAGE);
                        let head = Head::new(Opcode::Binary, message.len(), None);
                        self.client.out.batch().push_with_head(&head, message);
                    }
                    self.client.out.keep(buffer);
                }
                Poll::Ready(_) if self.client_ended => self.both_ended("the client ended, and so has the next hop"),
                Poll::Ready(Ok(_)) if self.bytes.carried_out == 0 => {
                    let detail = "the next hop ended before it had said anything";
                    self.close(NORMAL, End::Error, Cause::Handshake, detail);
                }
                Poll::Ready(Ok(_)) => self.close(NORMAL, End::Carried, Cause::Finished, "the next hop ended"),
                Poll::Ready(Err(error)) => {
                    tracing::debug!(%error, "reading from the next hop failed");
                    let detail = "the connection to the next hop was lost";
                    self.close(INTERNAL_ERROR, End::Error, Cause::UpstreamLost, detail);
                }
            }
            progress = true;
        }
        progress
    }

    /// Hands upstream what was read of the client, without the heads of messages.
    fn take_messages(&mut self, mut buffer: Buffer, read: usize) {
        let was_over = self.over.is_some();
        let mut at = 0;
        while at < read && !self.client.deaf {
            let step = match self.frames.step(&mut buffer[at..read]) {
                Ok(step) => step,
                Err(error) => {
                    tracing::debug!(%error, "the client broke the protocol");
                    let detail = format!("websocket: {error}");
                    self.close(error.close_code(), End::Error, Cause::ClientProtocol, detail);
                    break;
                }
            };
            match step.event {
                Some(Event::Data(data)) if self.over.is_none() => {
                    if cfg!(planted) && data.range.is_empty() {
                        // A known bug for the fuzz target `tunnel` to find: an empty message is taken for the end.
                        self.client_closed(Some(NORMAL));
                    } else if data.text {
                        let detail = "the client sent text, where only binary messages are";
                        self.close(UNSUPPORTED, End::Error, Cause::ClientProtocol, detail);
                    } else if !data.range.is_empty() && !self.upstream.mute {
                        self.quiet = 0;
                        self.bytes.carried_in += data.range.len() as u64;
                        let range = data.range.start + at..data.range.end + at;
                        self.upstream.out.batch().push(&mut buffer[..read], 0, range, false);
                    }
                }
                Some(Event::Ping(payload)) if self.client.out.front_len() < MAX_CONTROL && self.over.is_none() => {
                    self.client.out.push_front(&ControlFrame::pong(&payload, None));
                }
                Some(Event::Close(close)) => self.client_closed(close.code),
                Some(_) | None => {}
            }
            at += step.consumed;
        }
        // Once it is over, all that is looked for is the client's Close.
        if !was_over {
            self.upstream.out.keep(buffer);
        }
    }

    fn client_closed(&mut self, code: Option<u16>) {
        self.client.deaf = true;
        if self.over.is_some() {
            return;
        }
        if code == Some(NORMAL) {
            self.client_ended = true;
            self.quiet = 0;
        } else {
            // It is told its own code back, as RFC 6455, 5.5.1 has it.
            let code = code.unwrap_or(NORMAL);
            self.close(code, End::ClientGone, Cause::ClientClosed, "the client closed with an error");
        }
    }

    /// Nothing more is read from upstream. The client is told so behind all that was.
    fn close(&mut self, code: u16, end: End, cause: Cause, detail: impl Into<Cow<'static, str>>) {
        if self.over.is_none() {
            self.client.out.push_tail(&ControlFrame::close(code, "", None));
            self.over = Some((end, cause, detail.into()));
            self.quiet = 0;
        }
    }

    /// The client has said goodbye, and upstream has heard it: in order or, where bytes of the client crossed its end, with
    /// a reset, which is no failure any more.
    fn both_ended(&mut self, detail: &'static str) {
        self.close(NORMAL, End::Carried, Cause::ClientClosed, detail);
    }

    /// Nobody hears upstream any more. What the client has said still gets there.
    fn client_gone(&mut self, cause: Cause, detail: &'static str) {
        self.client.deaf = true;
        self.client.mute = true;
        self.client.out.clear();
        if self.over.is_none() {
            let (end, cause) =
                if self.client_ended { (End::Carried, Cause::ClientClosed) } else { (End::ClientGone, cause) };
            self.over = Some((end, cause, detail.into()));
            self.quiet = 0;
        }
    }

    /// Five seconds have passed.
    fn tick(&mut self) {
        let due = self.client.hearing.tick(self.client.listening && self.client.out.is_empty());
        self.quiet += 1;
        if self.over.is_some() {
            // A client that takes the rest slowly has time; one that has all of it has not.
            self.farewell = if self.client.out.is_empty() { self.farewell + 1 } else { 0 };
            if self.farewell >= self.farewell_in || self.quiet >= self.idle {
                self.client_gone(Cause::ClientSilent, "");
                self.upstream.mute = true;
            }
        } else if self.client_ended && self.quiet >= self.linger {
            self.both_ended("the client ended, and the next hop had no more to say");
        } else if self.quiet >= self.idle {
            self.close(GOING_AWAY, End::Error, Cause::Idle, "nothing was sent for too long");
        } else if due == Due::Dead {
            self.client_gone(Cause::ClientSilent, "the client was silent for too long");
        } else if due == Due::Ping && !self.client_ended && self.client.out.front_len() == 0 {
            self.client.out.push_front(&ControlFrame::ping(&Payload::default(), None));
        }
    }
}

#[cfg(test)]
mod tests;
