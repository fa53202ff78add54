//! One session: the only owner of its connection, polled in one place, so nothing here can be cancelled half-way.
//!
//! ```text
//! Running --process ended--------------------------> Ending --Close written--> Closing --peer closed--> Over
//!    |----drain, idle, protocol error, peer's Close-->  |  (all output, status, Close)  |
//!    '----connection lost, peer dead--------------------+-------------------------------'----------------^
//! ```

use std::{
    borrow::Cow,
    cell::Cell,
    io, mem,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::watch,
    time::{Instant, Sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{
    Limits, WsProtocol,
    pipes::{self, HEADROOM, InputSender, OutputReceiver},
};
use crate::{
    BoxError,
    remote_command::{Exit, Input, Output, Stdio, TerminalSize, resize::ResizeDecoder, status},
    upgrade::{End, Report, StreamOptions},
    websocket::{
        self, ControlFrame, Decoder, Event, Payload, Role,
        channel::{self, ChannelEvent, Demux, Encoding},
    },
};

/// What is read at once, and the longest payload that is sent in a message: many clients cap at 32 KiB.
const CHUNK: usize = 32 * 1024;

/// Rounds of a poll before others get their turn.
const ROUNDS: usize = 16;

/// Far enough away for a timer that waits for nothing.
const NEVER: Duration = Duration::from_secs(365 * 24 * 60 * 60);

thread_local! {
    /// A buffer to read into. A read is parsed whole before the poll returns, so a session needs none of its own.
    static BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

#[derive(Debug)]
pub(super) struct Session<Io> {
    io: Io,
    protocol: WsProtocol,
    limits: Limits,
    phase: Phase,
    /// How it ended; the first verdict stands.
    verdict: Option<(End, Cow<'static, str>)>,
    gone: CancellationToken,
    process_running: bool,
    /// When a process whose client has gone is given up.
    process_until: Option<Instant>,

    decoder: Decoder,
    demux: Demux,
    stdin: Option<InputSender>,
    resize: Option<(ResizeDecoder, watch::Sender<Option<TerminalSize>>)>,
    /// Stdin is full, so the client is not read.
    paused: bool,
    /// The peer has sent its Close, or cannot send one.
    peer_closed: bool,

    outputs: [Option<(u8, OutputReceiver)>; 2],
    /// Which of the outputs goes first, so that neither starves the other.
    first: usize,
    /// The frame that is being written.
    out: Vec<u8>,
    out_at: usize,
    unflushed: bool,
    /// A write of ours is pending.
    blocked: bool,
    pong: Option<Payload>,
    ping: bool,

    timer: Pin<Box<Sleep>>,
    /// Since when we listen and hear nothing.
    quiet_since: Option<Instant>,
    /// When the last Ping, or unsolicited Pong, was due.
    last_sign: Instant,
    last_payload: Instant,
    bytes_in: u64,
    bytes_out: u64,
}

#[derive(Debug)]
enum Phase {
    Running,
    /// The last output, the status and the Close go out.
    Ending {
        /// What is left of the status.
        status: Vec<u8>,
        close: Option<ControlFrame>,
        until: Option<Instant>,
    },
    /// Our Close is out. The peer's Close, and the end of its bytes, are waited for.
    Closing {
        until: Instant,
        shut: bool,
    },
    /// The connection is of no use any more.
    Over,
}

impl<Io: AsyncRead + AsyncWrite + Unpin> Session<Io> {
    pub(super) fn new(io: Io, protocol: WsProtocol, options: &StreamOptions, limits: Limits) -> (Self, Stdio) {
        let now = Instant::now();
        let gone = CancellationToken::new();
        let mut stdio = Stdio::new(gone.clone());
        let mut stdin = None;
        if options.stdin {
            let (sender, reader) = pipes::input(limits.stdin_buffer.max(1));
            stdin = Some(sender);
            stdio.stdin = Some(Input::new(reader));
        }
        let message = match protocol.encoding() {
            Encoding::Binary => CHUNK,
            Encoding::Base64 => CHUNK / 4 * 3,
        };
        let output = |wanted: bool, id| {
            let (writer, receiver) = wanted.then(|| pipes::output(message)).unzip();
            (writer.map(Output::new), receiver.map(|receiver| (id, receiver)))
        };
        let (writer, stdout) = output(options.stdout, channel::STDOUT);
        stdio.stdout = writer;
        let (writer, stderr) = output(options.stderr && !options.tty, channel::STDERR);
        stdio.stderr = writer;
        let mut resize = None;
        if options.tty {
            let (sender, receiver) = watch::channel(None);
            resize = Some((ResizeDecoder::default(), sender));
            stdio.resize = Some(receiver);
        }
        // The client learns from an empty message that the session is there (wsstream; semantics 3.3).
        let lowest = stdout.as_ref().or(stderr.as_ref()).map_or(channel::ERROR, |(id, _)| *id);
        let session = Self {
            io,
            protocol,
            phase: Phase::Running,
            verdict: None,
            gone,
            process_running: true,
            process_until: None,
            decoder: Decoder::new(Role::Server, limits.message),
            demux: Demux::new(protocol.encoding(), protocol.has_close_signal()),
            stdin,
            resize,
            paused: false,
            peer_closed: false,
            outputs: [stdout, stderr],
            first: 0,
            out: channel::head(protocol.encoding(), lowest, 0).to_vec(),
            out_at: 0,
            unflushed: true,
            blocked: false,
            pong: None,
            ping: false,
            timer: Box::pin(sleep_until(now + NEVER)),
            quiet_since: None,
            last_sign: now,
            last_payload: now,
            bytes_in: 0,
            bytes_out: 0,
            limits,
        };
        (session, stdio)
    }

    pub(super) fn is_process_running(&self) -> bool {
        self.process_running
    }

    pub(super) fn process_ended(&mut self, result: Result<Exit, BoxError>) {
        self.process_running = false;
        if !matches!(self.phase, Phase::Running) {
            return;
        }
        self.verdict = Some(match &result {
            Ok(Exit::Success) => (End::Success, "the command ended".into()),
            Ok(Exit::Code(code)) => (End::ExitCode(*code), "the command ended".into()),
            Err(error) => (End::Error, error.to_string().into()),
        });
        let status = status::encode(self.protocol.version(), &result);
        self.end(status, 1000, None);
    }

    pub(super) fn drain(&mut self) {
        self.fail("the server is shutting down", 1000);
    }

    pub(super) fn into_report(mut self) -> Report {
        let (end, cause) = self.verdict.take().unwrap_or((End::Error, "the session was given up".into()));
        let mut report = Report::new(end, cause);
        report.protocol_in = self.protocol.name().into();
        report.bytes_in = self.bytes_in;
        report.bytes_out = self.bytes_out;
        report
    }

    /// Moves everything that can be moved. Ready when nothing is left to do.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        for _ in 0..ROUNDS {
            let mut moved = self.poll_out(cx);
            moved |= self.poll_in(cx);
            moved |= self.check_clocks(Instant::now());
            let process_over = !self.process_running || self.process_until.is_some_and(|at| at <= Instant::now());
            if matches!(self.phase, Phase::Over) && process_over {
                return Poll::Ready(());
            }
            if !moved {
                return self.poll_timer(cx);
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    // ---- endings

    /// Ends the session for a reason that is not the process's.
    fn fail(&mut self, why: &'static str, code: u16) {
        if let Phase::Running = self.phase {
            self.verdict = Some((End::Error, why.into()));
            self.client_gone();
            let status = status::encode_failure(self.protocol.version(), why);
            self.end(status, code, Some(Instant::now() + self.limits.status_write));
        }
    }

    /// The peer broke the protocol, and cannot be read on.
    fn violated(&mut self, error: websocket::Error) {
        // A Close of its own would not be understood, so none is waited for.
        self.peer_closed = true;
        // Later our words are on their way already, and what the peer says no longer matters.
        if let Phase::Running = self.phase {
            tracing::debug!(%error, "the client broke the protocol");
            let why = format!("websocket: {error}");
            let status = status::encode_failure(self.protocol.version(), &why);
            self.verdict = Some((End::Error, why.into()));
            self.client_gone();
            self.end(status, error.close_code(), Some(Instant::now() + self.limits.status_write));
        }
    }

    fn end(&mut self, status: String, code: u16, until: Option<Instant>) {
        for (_, output) in self.outputs.iter().flatten() {
            output.close();
        }
        let status = status.into_bytes();
        self.phase = Phase::Ending { status, close: Some(ControlFrame::close(code, "", None)), until };
    }

    fn peer_closed(&mut self, close: &websocket::Close) {
        self.peer_closed = true;
        match &self.phase {
            Phase::Running | Phase::Ending { close: Some(_), .. } => {}
            // All was said already.
            Phase::Ending { close: None, .. } | Phase::Closing { .. } | Phase::Over => return,
        }
        self.lose("the client closed the connection");
        for (_, output) in self.outputs.iter().flatten() {
            output.discard();
        }
        let code = close.code.unwrap_or(1000);
        self.end(String::new(), code, Some(Instant::now() + self.limits.status_write));
    }

    /// Nothing can be written any more, or nobody reads it.
    fn lost(&mut self, why: &'static str) {
        // After our Close nobody owes us anything.
        if !matches!(self.phase, Phase::Closing { .. }) {
            self.lose(why);
        }
        for (_, output) in self.outputs.iter().flatten() {
            output.discard();
        }
        self.phase = Phase::Over;
    }

    /// The client did not hear how it ended. An error that was its reason stands.
    fn lose(&mut self, why: &'static str) {
        if !matches!(self.verdict, Some((End::Error | End::ClientGone, _))) {
            self.verdict = Some((End::ClientGone, why.into()));
        }
        self.client_gone();
    }

    fn client_gone(&mut self) {
        if self.process_running {
            self.gone.cancel();
            self.process_until.get_or_insert_with(|| Instant::now() + self.limits.run_grace);
        }
    }

    // ---- to the client

    /// Writes until there is nothing to write, or no room. True if anything changed.
    fn poll_out(&mut self, cx: &mut Context<'_>) -> bool {
        let mut moved = false;
        loop {
            if let Phase::Over = self.phase {
                return moved;
            }
            match self.poll_frame(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => {
                    tracing::debug!(%error, "writing to the client failed");
                    self.lost("the connection to the client was lost");
                    return true;
                }
                Poll::Pending => {
                    self.blocked = true;
                    return moved;
                }
            }
            self.blocked = false;
            if self.next_frame(cx) {
                moved = true;
                continue;
            }
            if !self.unflushed {
                return moved | self.shut_down(cx);
            }
            match Pin::new(&mut self.io).poll_flush(cx) {
                Poll::Ready(Ok(())) => {
                    self.unflushed = false;
                    self.out = Vec::new();
                    if let Phase::Ending { close: None, .. } = self.phase {
                        self.phase =
                            Phase::Closing { until: Instant::now() + self.limits.close_handshake, shut: false };
                    }
                    moved = true;
                }
                Poll::Ready(Err(error)) => {
                    tracing::debug!(%error, "writing to the client failed");
                    self.lost("the connection to the client was lost");
                    return true;
                }
                Poll::Pending => {
                    self.blocked = true;
                    return moved;
                }
            }
        }
    }

    /// Half-closes after both Closes. The peer's bytes are still read: what is unread when a socket is dropped makes
    /// its system throw away what it has not read itself.
    fn shut_down(&mut self, cx: &mut Context<'_>) -> bool {
        let Phase::Closing { shut: shut @ false, .. } = &mut self.phase else { return false };
        if !self.peer_closed {
            return false;
        }
        match Pin::new(&mut self.io).poll_shutdown(cx) {
            Poll::Ready(Ok(())) => *shut = true,
            Poll::Ready(Err(_)) => self.phase = Phase::Over,
            Poll::Pending => return false,
        }
        true
    }

    /// Writes the rest of a frame.
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.out_at < self.out.len() {
            let written = ready!(Pin::new(&mut self.io).poll_write(cx, &self.out[self.out_at..]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.out_at += written;
            self.unflushed = true;
        }
        self.out.clear();
        self.out_at = 0;
        Poll::Ready(Ok(()))
    }

    /// Puts the next frame into `out`. Control frames first: they are small, and someone waits for them.
    fn next_frame(&mut self, cx: &mut Context<'_>) -> bool {
        if let Phase::Closing { .. } = self.phase {
            return false;
        }
        if let Some(pong) = self.pong.take() {
            self.out.extend_from_slice(&ControlFrame::pong(&pong, None));
            return true;
        }
        if mem::take(&mut self.ping) {
            self.out.extend_from_slice(&ControlFrame::ping(&Payload::default(), None));
            return true;
        }
        for turn in 0..2 {
            let at = (self.first + turn) % 2;
            if let Some((id, output)) = &self.outputs[at]
                && output.take(&mut self.out, cx)
            {
                let id = *id;
                self.bytes_out += (self.out.len() - HEADROOM) as u64;
                self.last_payload = Instant::now();
                self.first = 1 - at;
                self.frame_output(id);
                return true;
            }
        }
        let Phase::Ending { status, close, until } = &mut self.phase else { return false };
        if !status.is_empty() {
            until.get_or_insert_with(|| Instant::now() + self.limits.status_write);
            let now = status.len().min(CHUNK / 4 * 3);
            self.out.resize(HEADROOM, 0);
            self.out.extend(status.drain(..now));
            self.frame_output(channel::ERROR);
            return true;
        }
        if let Some(close) = close.take() {
            until.get_or_insert_with(|| Instant::now() + self.limits.status_write);
            self.out.extend_from_slice(&close);
            return true;
        }
        false
    }

    /// Makes a message of `out`, which holds headroom and payload.
    fn frame_output(&mut self, id: u8) {
        match self.protocol.encoding() {
            Encoding::Binary => {
                let head = channel::head(Encoding::Binary, id, self.out.len() - HEADROOM);
                self.out_at = HEADROOM - head.len();
                self.out[self.out_at..HEADROOM].copy_from_slice(&head);
            }
            Encoding::Base64 => {
                let text = BASE64_STANDARD.encode(&self.out[HEADROOM..]);
                self.out.clear();
                self.out.extend_from_slice(&channel::head(Encoding::Base64, id, text.len()));
                self.out.extend_from_slice(text.as_bytes());
            }
        }
    }

    // ---- from the client

    /// Reads once. True if anything changed.
    fn poll_in(&mut self, cx: &mut Context<'_>) -> bool {
        let room = match (&self.phase, &self.stdin) {
            (Phase::Over, _) => return false,
            // A read is never more than stdin has room for, so it can be parsed whole.
            (Phase::Running, Some(stdin)) => stdin.poll_room(cx),
            _ => Poll::Ready(CHUNK),
        };
        let Poll::Ready(room) = room else {
            if !self.paused {
                self.paused = true;
                self.last_sign = Instant::now();
            }
            return false;
        };
        self.paused = false;
        let mut buffer = BUFFER.take();
        buffer.resize(CHUNK, 0);
        let mut read = ReadBuf::new(&mut buffer[..room.min(CHUNK)]);
        let result = Pin::new(&mut self.io).poll_read(cx, &mut read);
        let filled = read.filled().len();
        match result {
            Poll::Ready(Ok(())) if filled > 0 => {
                self.quiet_since = None;
                self.parse(&mut buffer[..filled]);
            }
            Poll::Ready(Ok(())) => self.lost("the client went away"),
            Poll::Ready(Err(ref error)) => {
                tracing::debug!(%error, "reading from the client failed");
                self.lost("the connection to the client was lost");
            }
            Poll::Pending => {}
        }
        BUFFER.set(buffer);
        result.is_ready()
    }

    fn parse(&mut self, buf: &mut [u8]) {
        let mut at = 0;
        while at < buf.len() {
            let rest = &mut buf[at..];
            let consumed = self.decoder.step(rest).and_then(|step| {
                match step.event {
                    Some(Event::Data(data)) => self.data(&data, rest)?,
                    // One answer to several Pings is enough (RFC 6455, 5.5.3), and a flood of them takes no memory.
                    Some(Event::Ping(payload)) => self.pong = Some(payload),
                    Some(Event::Close(close)) => self.peer_closed(&close),
                    Some(Event::Pong(_)) | None => {}
                }
                Ok(step.consumed)
            });
            match consumed {
                Ok(consumed) => at += consumed,
                Err(error) => return self.violated(error),
            }
        }
    }

    fn data(&mut self, data: &websocket::Data, buf: &mut [u8]) -> Result<(), websocket::Error> {
        let Phase::Running = self.phase else { return Ok(()) };
        match self.demux.data(data, buf)? {
            Some(ChannelEvent::Data { id: channel::STDIN, range }) => {
                self.received(range.len());
                if let Some(stdin) = &self.stdin {
                    stdin.push(&buf[range]);
                }
            }
            Some(ChannelEvent::Data { id: channel::RESIZE, range }) => {
                self.received(range.len());
                if let Some((decoder, sizes)) = &mut self.resize
                    && let Some(size) = decoder.push(&buf[range])
                {
                    sizes.send_replace(Some(size));
                }
            }
            Some(ChannelEvent::Closed(channel::STDIN)) => {
                if let Some(stdin) = &self.stdin {
                    stdin.end();
                }
            }
            // The other channels are ours to write; Kubernetes ignores what comes in on them.
            Some(ChannelEvent::Data { .. } | ChannelEvent::Closed(_)) | None => {}
        }
        Ok(())
    }

    fn received(&mut self, bytes: usize) {
        self.bytes_in += bytes as u64;
        self.last_payload = Instant::now();
    }

    // ---- time

    /// Does what is due. True if anything changed.
    fn check_clocks(&mut self, now: Instant) -> bool {
        match self.phase {
            Phase::Running if self.idle_until().is_some_and(|at| at <= now) => {
                self.fail("the session was idle for too long", 1000);
                return true;
            }
            Phase::Ending { until, .. } if until.or(self.idle_until()).is_some_and(|at| at <= now) => {
                self.lost("the client did not read to the end");
                return true;
            }
            Phase::Closing { until, .. } if until <= now => {
                self.phase = Phase::Over;
                return true;
            }
            Phase::Closing { .. } | Phase::Over => return false,
            Phase::Running | Phase::Ending { .. } => {}
        }
        if self.blocked || self.paused {
            self.quiet_since = None;
            if self.blocked || self.last_sign + self.limits.pong_every > now {
                return false;
            }
            self.last_sign = now;
            self.pong.get_or_insert_default();
            return true;
        }
        let quiet_since = *self.quiet_since.get_or_insert(now);
        if quiet_since + self.limits.dead_after <= now {
            self.lost("the client gave no sign of life");
            return true;
        }
        if quiet_since.max(self.last_sign) + self.limits.ping_after <= now {
            self.last_sign = now;
            self.ping = true;
            return true;
        }
        false
    }

    fn idle_until(&self) -> Option<Instant> {
        (!self.limits.idle.is_zero()).then(|| self.last_payload + self.limits.idle)
    }

    /// The next moment at which [`check_clocks`](Self::check_clocks), or the wait for the process, has something to do.
    fn next_deadline(&self) -> Option<Instant> {
        let of_phase = match self.phase {
            Phase::Running => self.idle_until(),
            Phase::Ending { until, .. } => until.or(self.idle_until()),
            Phase::Closing { until, .. } => Some(until),
            Phase::Over => None,
        };
        let of_peer = match self.phase {
            Phase::Running | Phase::Ending { .. } if self.blocked => None,
            Phase::Running | Phase::Ending { .. } if self.paused => Some(self.last_sign + self.limits.pong_every),
            Phase::Running | Phase::Ending { .. } => self
                .quiet_since
                .map(|since| (since.max(self.last_sign) + self.limits.ping_after).min(since + self.limits.dead_after)),
            Phase::Closing { .. } | Phase::Over => None,
        };
        let of_process = self.process_until.filter(|_| self.process_running && matches!(self.phase, Phase::Over));
        [of_phase, of_peer, of_process].into_iter().flatten().min()
    }

    /// Arms the timer. It may go off early: a deadline that only moved away is not worth touching the timer for.
    fn poll_timer(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(next) = self.next_deadline() else { return Poll::Pending };
        if next < self.timer.deadline() || self.timer.is_elapsed() {
            self.timer.as_mut().reset(next);
        }
        while self.timer.as_mut().poll(cx).is_ready() {
            if next <= Instant::now() {
                cx.waker().wake_by_ref();
                break;
            }
            self.timer.as_mut().reset(next);
        }
        Poll::Pending
    }
}

impl<Io> Drop for Session<Io> {
    fn drop(&mut self) {
        self.gone.cancel();
    }
}
