//! The relay itself: two halves, polled in turns, what they read turned around, and time.

mod ending;

use std::{
    borrow::Cow,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite};

use super::lanes::Lanes;
use crate::{
    remote_command::{Version, messages, status::MAX_STATUS},
    spdy::{self, codec::HeaderMode, frame},
    upgrade::{
        Cause, End, Report, SessionLimits, StreamOptions, Traffic,
        buffer::{BUFFER, Buffer},
        clock::{self, Due},
        side::Side,
    },
    websocket::{
        self, ControlFrame, Payload, Role,
        channel::{self, ChannelEvent, Demux, ERROR, Encoding, RESIZE, STDERR, STDIN, STDOUT},
    },
};

/// Bytes of urgent control that may wait for one side: more comes only of a peer that asks and does not read.
const MAX_CONTROL: usize = 4096;

/// Reads of one direction before it is the other's turn, so that a flood does not starve it.
const TURN: usize = 8;

/// Limits in ticks.
#[derive(Debug)]
struct Ticks {
    /// Longest wait for all SYN_REPLYs.
    creation: u32,
    /// Longest wait for the peers to close once they have been told all.
    farewell: u32,
    /// Longest time without payload.
    idle: u32,
}

impl Ticks {
    fn new(limits: &SessionLimits) -> Self {
        // More ticks than any session sees.
        let [creation, farewell] = [limits.creation, limits.farewell].map(clock::ticks);
        Self { creation, farewell, idle: clock::idle(limits) }
    }
}

/// One session between a WebSocket client and a SPDY server.
pub(super) struct Relay<C, U> {
    client: Side<C>,
    upstream: Side<U>,
    version: Version,
    lanes: Lanes,
    frames: websocket::Decoder,
    demux: Demux,
    spdy: spdy::codec::Decoder,
    /// What came on the error stream.
    status: Vec<u8>,
    /// Upstream said GOAWAY: what ends now ends in order.
    goaway: bool,
    phase: Phase,
    limits: Ticks,
    next_ping: u32,
    /// The client may be told something.
    settled: bool,
    /// Where it is told that it is connected.
    greeted_on: u8,
    /// Ticks in this phase; in [`Phase::Open`] ticks without payload.
    ticks: u32,
    /// Ticks since the client has been sent all there is.
    farewell: u32,
    bytes: Traffic,
}

#[derive(Debug)]
enum Phase {
    /// Streams are being created; the client is not read, for nothing may be sent on them yet.
    Opening,
    Open,
    /// The client has been told how the session ended, or is gone. Both sides are flushed and closed.
    Closing(End, Cause, Cow<'static, str>),
}

impl<C, U> Relay<C, U>
where
    C: AsyncRead + AsyncWrite + Unpin,
    U: AsyncRead + AsyncWrite + Unpin,
{
    pub(super) fn new(
        client: C,
        upstream: U,
        version: Version,
        options: &StreamOptions,
        limits: &SessionLimits,
    ) -> Self {
        let lanes = Lanes::new(version, options);
        let mut relay = Self {
            client: Side::new(client, limits),
            upstream: Side::new(upstream, limits),
            version,
            frames: websocket::Decoder::new(Role::Server, messages(limits)),
            demux: Demux::new(Encoding::Binary, true),
            spdy: spdy::codec::Decoder::new(spdy::codec::Limits::default(), HeaderMode::Skip),
            status: Vec::new(),
            goaway: false,
            phase: Phase::Opening,
            limits: Ticks::new(limits),
            next_ping: 1,
            settled: false,
            greeted_on: lanes.lowest_readable(),
            ticks: 0,
            farewell: 0,
            bytes: Traffic::default(),
            lanes,
        };
        relay.upstream.out.push_front(&relay.lanes.syn_streams());
        relay
    }

    /// The client has created its streams.
    pub(super) fn settle(&mut self) {
        if std::mem::replace(&mut self.settled, true) {
            return;
        }
        // An empty message tells the client that the session is on; Go's servers send it too.
        self.client.out.push_front(&channel::head(Encoding::Binary, self.greeted_on, 0));
    }

    pub(super) fn is_closing(&self) -> bool {
        matches!(self.phase, Phase::Closing(..))
    }

    /// Moves all that can be moved.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Report> {
        loop {
            let inbound = self.poll_inbound(cx);
            let outbound = self.poll_outbound(cx);
            if !inbound && !outbound {
                break;
            }
        }
        if let Phase::Closing(end, cause, detail) = &mut self.phase {
            let client = self.client.poll_close(cx, true);
            let upstream = self.upstream.poll_close(cx, false);
            if client.is_ready() && upstream.is_ready() {
                let mut report = Report::new(*end, *cause, std::mem::take(detail));
                report.protocol_in = Version::V5.name().into();
                report.protocol_out = self.version.name().into();
                report.bytes = self.bytes;
                return Poll::Ready(report);
            }
        }
        Poll::Pending
    }

    /// Client to upstream. Returns whether anything was read.
    fn poll_inbound(&mut self, cx: &mut Context<'_>) -> bool {
        let mut progress = false;
        self.client.listening = false;
        for _ in 0..TURN {
            if !self.upstream.poll_send(cx) && !self.is_closing() {
                break;
            }
            if self.client.deaf || matches!(self.phase, Phase::Opening) {
                break;
            }
            match self.client.poll_read(cx, BUFFER) {
                Poll::Pending => break,
                Poll::Ready(Ok((buffer, read))) if read > 0 => self.take_messages(buffer, read),
                // Behind the end it may still read what we have for it.
                Poll::Ready(_) if self.is_closing() => {}
                Poll::Ready(_) => self.client_gone(Cause::ClientLost, "the client's connection ended"),
            }
            progress = true;
        }
        progress
    }

    /// Upstream to client. Returns whether anything was read.
    fn poll_outbound(&mut self, cx: &mut Context<'_>) -> bool {
        let mut progress = false;
        self.upstream.listening = false;
        for _ in 0..TURN {
            // Until the client has settled one read is kept for it.
            let sent = if self.settled { self.client.poll_send(cx) } else { self.client.out.is_empty() };
            if !sent {
                break;
            }
            if self.client.mute && !self.is_closing() {
                self.client_gone(Cause::ClientLost, "the client's connection broke");
                // The other half has something to send now.
                progress = true;
            }
            if self.upstream.deaf || self.is_closing() {
                break;
            }
            match self.upstream.poll_read(cx, BUFFER) {
                Poll::Pending => break,
                Poll::Ready(Ok((buffer, read))) if read > 0 => self.take_frames(buffer, read),
                Poll::Ready(_) => self.upstream_ended(),
            }
            progress = true;
        }
        progress
    }

    /// Turns what was read of the client into frames for upstream.
    fn take_messages(&mut self, mut buffer: Buffer, read: usize) {
        let was_closing = self.is_closing();
        let mut at = 0;
        while at < read && !self.client.deaf {
            let buf = &mut buffer[..read];
            let step = match self.frames.step(&mut buf[at..]) {
                Ok(step) => step,
                Err(error) => {
                    self.client_broke_protocol(error);
                    break;
                }
            };
            match step.event {
                Some(websocket::Event::Data(mut data)) if !self.is_closing() => {
                    data.range = data.range.start + at..data.range.end + at;
                    match self.demux.data(&data, buf) {
                        Ok(Some(event)) => self.take_channel(event, buf),
                        Ok(None) => {}
                        Err(error) => self.client_broke_protocol(error),
                    }
                }
                Some(websocket::Event::Ping(payload)) if !self.is_closing() => self.pong(&payload),
                Some(websocket::Event::Close(_)) => self.client_closed(),
                Some(_) | None => {}
            }
            at += step.consumed;
        }
        if was_closing {
            // All that is waited for is the client's Close.
            return;
        }
        let lanes = &self.lanes;
        self.upstream.out.batch().write_heads(|lane, length, fin| {
            let stream = lanes.stream(lane).expect("only lanes with a stream are filled");
            frame::data_head(stream, length, fin)
        });
        self.upstream.out.keep(buffer);
    }

    fn take_channel(&mut self, event: ChannelEvent, buf: &mut [u8]) {
        // Who speaks has created its streams.
        self.settle();
        let sending = self.lanes.sending;
        match event {
            // Without a terminal there is nobody to take a size, and nobody must wait for it.
            ChannelEvent::Data { id, range } if matches!(id, STDIN | RESIZE) && sending.contains(id) => {
                self.ticks = 0;
                if id == STDIN {
                    self.bytes.stdin += range.len() as u64;
                }
                self.upstream.out.batch().push(buf, id, range, false);
            }
            ChannelEvent::Closed(STDIN) if sending.contains(STDIN) => self.finish_stdin(buf),
            ChannelEvent::Data { .. } | ChannelEvent::Closed(_) => {}
        }
    }

    /// Half-closes stdin. v1 has no half-close: its servers close the process's stdin never.
    fn finish_stdin(&mut self, buf: &mut [u8]) {
        self.lanes.sending.remove(STDIN);
        if self.version > Version::V1 {
            self.upstream.out.batch().push(buf, STDIN, 0..0, true);
        }
    }

    fn pong(&mut self, payload: &Payload) {
        if self.client.out.front_len() < MAX_CONTROL {
            self.client.out.push_front(&ControlFrame::pong(payload, None));
        }
    }

    /// Turns what was read of upstream into messages for the client.
    fn take_frames(&mut self, mut buffer: Buffer, read: usize) {
        let mut at = 0;
        loop {
            let step = match self.spdy.step(&buffer[at..read]) {
                Ok(step) => step,
                Err(error) => {
                    tracing::debug!(%error, "the next hop broke the protocol");
                    self.write_messages(buffer);
                    return self.fail(Cause::UpstreamProtocol, format!("the next hop broke the protocol: {error}"));
                }
            };
            let offset = at;
            at += step.consumed;
            match step.event {
                spdy::codec::Event::NeedMore => break,
                spdy::codec::Event::Data { stream, range, fin } => {
                    let Some(channel) = self.lanes.channel(stream) else { continue };
                    let range = range.start + offset..range.end + offset;
                    self.take_data(channel, range, &mut buffer);
                    if fin {
                        self.lanes.finished(channel);
                    }
                }
                spdy::codec::Event::SynReply { stream, fin, .. } => {
                    let Some(channel) = self.lanes.channel(stream) else { continue };
                    self.lanes.unreplied.remove(channel);
                    if fin {
                        self.lanes.finished(channel);
                    }
                }
                spdy::codec::Event::Headers { stream, fin: true, .. } => {
                    if let Some(channel) = self.lanes.channel(stream) {
                        self.lanes.finished(channel);
                    }
                }
                spdy::codec::Event::Rst { stream, code } => {
                    let Some(channel) = self.lanes.channel(stream) else { continue };
                    if self.lanes.unreplied.contains(channel) {
                        self.write_messages(buffer);
                        return self.fail(Cause::UpstreamFailed, format!("the next hop refused a stream: {code}"));
                    }
                    self.lanes.reset(channel);
                }
                spdy::codec::Event::Ping(id) if id % 2 == 0 => {
                    if self.upstream.out.front_len() < MAX_CONTROL {
                        self.upstream.out.push_front(&frame::ping(id));
                    }
                }
                spdy::codec::Event::SynStream { stream, .. } => {
                    if self.upstream.out.front_len() < MAX_CONTROL {
                        self.upstream.out.push_front(&frame::rst(stream, frame::ResetCode::REFUSED_STREAM));
                    }
                }
                spdy::codec::Event::GoAway { .. } => self.goaway = true,
                spdy::codec::Event::Ping(_)
                | spdy::codec::Event::Settings
                | spdy::codec::Event::Headers { .. }
                | spdy::codec::Event::WindowUpdate { .. } => {}
            }
        }
        self.write_messages(buffer);
        if matches!(self.phase, Phase::Opening) && self.lanes.unreplied.is_empty() {
            self.phase = Phase::Open;
            self.ticks = 0;
        }
        if self.lanes.receiving.is_empty() {
            self.complete(true);
        }
    }

    fn take_data(&mut self, channel: u8, range: std::ops::Range<usize>, buffer: &mut Buffer) {
        if range.is_empty() || !self.lanes.receiving.contains(channel) {
            return;
        }
        match channel {
            STDOUT | STDERR => {
                self.ticks = 0;
                let counted = if channel == STDOUT { &mut self.bytes.stdout } else { &mut self.bytes.stderr };
                *counted += range.len() as u64;
                self.client.out.batch().push(buffer, channel, range, false);
            }
            ERROR => {
                let room = MAX_STATUS.saturating_sub(self.status.len());
                self.status.extend_from_slice(&buffer[range.start..range.end.min(range.start + room)]);
            }
            _ => {}
        }
    }

    fn write_messages(&mut self, buffer: Buffer) {
        self.client.out.batch().write_heads(|lane, length, _| HeadBytes(channel::head(Encoding::Binary, lane, length)));
        self.client.out.keep(buffer);
    }

    /// Five seconds have passed.
    pub(super) fn tick(&mut self) {
        let client = self.client.hearing.tick(self.client.listening && self.client.out.is_empty());
        let upstream = self.upstream.hearing.tick(self.upstream.listening && self.upstream.out.is_empty());
        self.ticks += 1;
        match self.phase {
            Phase::Opening if self.ticks >= self.limits.creation => {
                let why = "timed out waiting for the next hop to accept streams";
                self.fail(Cause::CreationTimeout, why.to_owned());
            }
            Phase::Opening => {}
            Phase::Open if self.ticks >= self.limits.idle => {
                self.fail(Cause::Idle, "nothing was sent for too long".to_owned());
            }
            Phase::Open => match (client, upstream) {
                (Due::Dead, _) => {
                    self.fail(Cause::ClientSilent, "the client was silent for too long".to_owned());
                }
                (_, Due::Dead) => {
                    self.fail(Cause::UpstreamSilent, "the next hop was silent for too long".to_owned());
                }
                (client, upstream) => self.keep_alive(client == Due::Ping, upstream == Due::Ping),
            },
            Phase::Closing(..) => {
                // A client that takes its output slowly has time; one that has all of it has not.
                self.farewell = if self.client.out.is_empty() { self.farewell + 1 } else { 0 };
                if self.farewell >= self.limits.farewell || self.ticks >= self.limits.idle {
                    self.client_gone(Cause::ClientSilent, "");
                    self.upstream.mute = true;
                }
            }
        }
    }

    fn keep_alive(&mut self, ping_client: bool, ping_upstream: bool) {
        if self.upstream.out.has_data() && self.client.out.front_len() == 0 {
            // Its pings lie behind stdin that nobody takes.
            self.pong(&Payload::default());
        } else if ping_client && self.client.out.front_len() == 0 {
            self.client.out.push_front(&ControlFrame::ping(&Payload::default(), None));
        }
        if ping_upstream && self.upstream.out.front_len() == 0 {
            self.upstream.out.push_front(&frame::ping(self.next_ping));
            self.next_ping = self.next_ping.wrapping_add(2) | 1;
        }
    }
}

/// A WebSocket head as bytes.
struct HeadBytes(websocket::Head);

impl AsRef<[u8]> for HeadBytes {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}
