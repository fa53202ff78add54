//! All ports of one connection, polled in one place.

use std::{
    borrow::Cow,
    pin::Pin,
    task::{Context, Poll},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use tokio::io::{AsyncRead, AsyncWrite};

use super::{WsProtocol, lane::Lane};
use crate::{
    BoxError,
    port_forward::{Connection, messages},
    upgrade::{
        Cause, End, Report, SessionLimits, Target, Traffic,
        buffer::{Buffer, LONGEST_MESSAGE},
        clock::{self, Due},
        side::Side,
    },
    websocket::{
        self, ControlFrame, Decoder, Event, Payload, Role,
        channel::{self, ChannelEvent, Demux, Encoding},
    },
};

/// Bytes of Pongs that may wait: more come only of a client that asks and does not read.
const MAX_CONTROL: usize = 4096;

const NORMAL: u16 = 1000;
const GOING_AWAY: u16 = 1001;

pub(super) struct Session<'a, Io, C, F> {
    client: Side<Io>,
    protocol: WsProtocol,
    target: &'a Target,
    frames: Decoder,
    demux: Demux,
    lanes: Vec<Lane<C, F>>,
    /// Which port is read first, so that none starves the others.
    first: usize,
    /// In ticks: how long the client may take to close once it has been sent all there is.
    farewell_in: u32,
    /// In ticks: a session in which no payload moved this long is over.
    idle: u32,
    /// How it ended. What is left is to write what waits, and to close.
    over: Option<(End, Cause, Cow<'static, str>)>,
    /// Ticks without payload.
    quiet: u32,
    /// Ticks since it is over and the client has been sent all there is.
    farewell: u32,
    bytes: Traffic,
}

impl<'a, Io, C, F> Session<'a, Io, C, F>
where
    Io: AsyncRead + AsyncWrite + Unpin,
    C: Connection,
    F: Future<Output = Result<C, BoxError>>,
{
    pub(super) fn new(
        io: Io,
        protocol: WsProtocol,
        target: &'a Target,
        limits: &SessionLimits,
        dialled: impl Iterator<Item = (u16, Pin<Box<F>>)>,
    ) -> Self {
        let mut client = Side::new(io, limits);
        let mut lanes = Vec::new();
        for (at, (port, dialled)) in dialled.enumerate() {
            lanes.push(Lane::new(port, dialled));
            for id in [channel_of(at), channel_of(at) + 1] {
                client.out.push_front(&message(protocol.encoding(), id, &port.to_le_bytes()));
            }
        }
        let last = channel_of(lanes.len()).saturating_sub(1);
        Self {
            client,
            protocol,
            target,
            frames: Decoder::new(Role::Server, messages(limits)),
            demux: Demux::new(protocol.encoding(), false).last_channel(last),
            lanes,
            first: 0,
            farewell_in: clock::ticks(limits.farewell),
            idle: clock::idle(limits),
            over: None,
            quiet: 0,
            farewell: 0,
            bytes: Traffic::default(),
        }
    }

    pub(super) fn is_over(&self) -> bool {
        self.over.is_some()
    }

    pub(super) fn drain(&mut self) {
        self.cut(GOING_AWAY, Cause::Drain, "the server is shutting down");
    }

    /// Moves all that can be moved.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Report> {
        loop {
            let mut moved = self.poll_client(cx);
            for lane in &mut self.lanes {
                moved |= lane.poll(cx, self.target);
            }
            moved |= self.poll_pods(cx);
            if !moved {
                break;
            }
        }
        let lanes_over = self.lanes.iter().all(Lane::is_over);
        if self.over.is_none() && lanes_over {
            self.close(NORMAL, End::Carried, Cause::Finished, "all ports have ended");
            // Nobody else would send it.
            self.client.poll_send(cx);
        }
        if self.over.is_none() || !lanes_over || self.client.poll_close(cx, true).is_pending() {
            return Poll::Pending;
        }
        let (end, cause, detail) = self.over.take().unwrap_or((End::Carried, Cause::Finished, "".into()));
        let mut report = Report::new(end, cause, detail);
        report.protocol_in = self.protocol.name().into();
        report.bytes = self.bytes;
        Poll::Ready(report)
    }

    /// Reads from the client once. Returns whether anything was read.
    fn poll_client(&mut self, cx: &mut Context<'_>) -> bool {
        self.client.listening = false;
        if self.client.deaf || self.over.is_none() && !self.lanes.iter().all(Lane::has_room) {
            return false;
        }
        match self.client.poll_read(cx, LONGEST_MESSAGE) {
            Poll::Pending => return false,
            Poll::Ready(Ok((mut buffer, read))) if read > 0 => self.take_messages(&mut buffer[..read]),
            // Behind the end it may still read what we have for it.
            Poll::Ready(_) if self.over.is_some() => {}
            Poll::Ready(_) => self.client_lost(Cause::ClientLost, "the client's connection ended"),
        }
        true
    }

    fn take_messages(&mut self, buf: &mut [u8]) {
        let mut at = 0;
        while at < buf.len() && !self.client.deaf {
            let rest = &mut buf[at..];
            let step = match self.frames.step(rest) {
                Ok(step) => step,
                Err(error) => return self.client_broke_protocol(error),
            };
            match step.event {
                Some(Event::Data(data)) if self.over.is_none() => match self.demux.data(&data, rest) {
                    // The odd channels are ours to write.
                    Ok(Some(ChannelEvent::Data { id, range })) if id % 2 == 0 => {
                        let lane = self.lanes.get_mut(usize::from(id / 2));
                        if lane.is_some_and(|lane| lane.push(&rest[range.clone()])) {
                            self.quiet = 0;
                            self.bytes.data_in += range.len() as u64;
                        }
                    }
                    Ok(_) => {}
                    Err(error) => self.client_broke_protocol(error),
                },
                Some(Event::Ping(payload)) if self.client.out.front_len() < MAX_CONTROL && self.over.is_none() => {
                    self.client.out.push_front(&ControlFrame::pong(&payload, None));
                }
                Some(Event::Close(close)) => self.client_closed(close.code),
                Some(_) | None => {}
            }
            at += step.consumed;
        }
    }

    /// Sends what waits for the client, and reads the pods in turn. Returns whether anything moved.
    fn poll_pods(&mut self, cx: &mut Context<'_>) -> bool {
        let mut moved = false;
        loop {
            if !self.client.poll_send(cx) {
                return moved;
            }
            if self.over.is_some() {
                return moved;
            }
            if self.client.mute {
                self.client_lost(Cause::ClientLost, "the client's connection broke");
                return true;
            }
            if !self.poll_pod(cx) {
                return moved;
            }
            moved = true;
        }
    }

    /// Reads from the next port that has something. Everything before has been sent.
    fn poll_pod(&mut self, cx: &mut Context<'_>) -> bool {
        let encoding = self.protocol.encoding();
        let mut buffer = Buffer::borrow();
        for turn in 0..self.lanes.len() {
            let at = (self.first + turn) % self.lanes.len();
            let lane = &mut self.lanes[at];
            if let Some(text) = lane.take_error() {
                self.client.out.push_front(&message(encoding, channel_of(at) + 1, text.as_bytes()));
                return true;
            }
            let Some(read) = lane.poll_read(cx, &mut buffer[..longest_read(encoding)], self.target) else { continue };
            self.first = at + 1;
            if read > 0 {
                self.quiet = 0;
                self.bytes.data_out += read as u64;
                self.send(channel_of(at), buffer, read);
            }
            return true;
        }
        false
    }

    fn send(&mut self, id: u8, buffer: Buffer, read: usize) {
        let encoding = self.protocol.encoding();
        let (buffer, length) = match encoding {
            Encoding::Binary => (buffer, read),
            Encoding::Base64 => {
                let mut text = Buffer::borrow();
                let length = BASE64_STANDARD.encode_slice(&buffer[..read], &mut text);
                (text, length.expect("a read is a quarter shorter than a buffer"))
            }
        };
        self.client.out.batch().push_with_head(&channel::head(encoding, id, length), 0..length);
        self.client.out.keep(buffer);
    }

    /// The client said Close. Without a code, as browsers send it, it is in order too.
    fn client_closed(&mut self, code: Option<u16>) {
        self.client.deaf = true;
        if self.over.is_some() {
            return;
        }
        if matches!(code, None | Some(NORMAL)) {
            self.lanes.iter_mut().for_each(Lane::end);
            self.close(NORMAL, End::Carried, Cause::ClientClosed, "the client closed the connection");
        } else {
            self.cut(code.unwrap_or(NORMAL), Cause::ClientClosed, "the client closed with an error");
        }
    }

    fn client_broke_protocol(&mut self, error: websocket::Error) {
        self.cut(error.close_code(), Cause::ClientProtocol, format!("websocket: {error}"));
    }

    /// Ends it in mid-transfer, and the pods are told so.
    fn cut(&mut self, code: u16, cause: Cause, detail: impl Into<Cow<'static, str>>) {
        if self.over.is_none() {
            self.lanes.iter_mut().for_each(Lane::reset);
            let end = if self.client.deaf { End::ClientGone } else { End::Error };
            self.close(code, end, cause, detail);
        }
    }

    fn close(&mut self, code: u16, end: End, cause: Cause, detail: impl Into<Cow<'static, str>>) {
        self.client.out.push_tail(&ControlFrame::close(code, "", None));
        self.over = Some((end, cause, detail.into()));
        self.quiet = 0;
    }

    /// Nobody is there any more.
    fn client_lost(&mut self, cause: Cause, detail: &'static str) {
        self.client.deaf = true;
        self.client.mute = true;
        self.client.out.clear();
        self.lanes.iter_mut().for_each(Lane::reset);
        if self.over.is_none() {
            self.over = Some((End::ClientGone, cause, detail.into()));
        }
    }

    /// Five seconds have passed.
    pub(super) fn tick(&mut self) {
        let due = self.client.hearing.tick(self.client.listening && self.client.out.is_empty());
        self.quiet += 1;
        self.lanes.iter_mut().for_each(Lane::tick);
        if self.over.is_some() {
            // A client that takes the rest slowly has time; one that has all of it has not.
            self.farewell = if self.client.out.is_empty() { self.farewell + 1 } else { 0 };
            if self.farewell >= self.farewell_in || self.quiet >= self.idle {
                self.client_lost(Cause::ClientSilent, "");
            }
        } else if self.quiet >= self.idle {
            self.cut(GOING_AWAY, Cause::Idle, "nothing was sent for too long");
        } else if due == Due::Dead {
            self.client_lost(Cause::ClientSilent, "the client was silent for too long");
        } else if due == Due::Ping && self.client.out.front_len() == 0 {
            self.client.out.push_front(&ControlFrame::ping(&Payload::default(), None));
        }
    }
}

/// The data channel of the port with that index; its error channel is the next.
fn channel_of(at: usize) -> u8 {
    u8::try_from(2 * at).expect("there are at most 127 ports")
}

/// What is read of a pod at once: a message is at most 32 KiB with its channel byte.
fn longest_read(encoding: Encoding) -> usize {
    match encoding {
        Encoding::Binary => LONGEST_MESSAGE - 1,
        Encoding::Base64 => LONGEST_MESSAGE / 4 * 3 - 3,
    }
}

/// A short message.
fn message(encoding: Encoding, id: u8, payload: &[u8]) -> Vec<u8> {
    let text;
    let payload = match encoding {
        Encoding::Binary => payload,
        Encoding::Base64 => {
            text = BASE64_STANDARD.encode(payload);
            text.as_bytes()
        }
    };
    [&channel::head(encoding, id, payload.len())[..], payload].concat()
}
