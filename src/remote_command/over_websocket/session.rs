//! One session: the only owner of its connection, polled in one place, so nothing here can be cancelled half-way.
//!
//! ```text
//! Running --process ended--------------------------> Ending --Close written--> Closing --peer closed--> Over
//!    |----drain, idle, protocol error, peer's Close-->  |  (all output, status, Close)  |
//!    '----connection lost, peer dead--------------------+-------------------------------'----------------^
//! ```

mod clocks;
mod from_client;
mod to_client;

use std::{
    borrow::Cow,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::watch,
    time::{Instant, Sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{
    Limits, WsProtocol,
    pipes::{self, InputSender, OutputReceiver},
};
use crate::{
    BoxError,
    remote_command::{Exit, Input, Output, Stdio, TerminalSize, resize::ResizeDecoder, status},
    upgrade::{Cause, End, Report, StreamOptions, Traffic},
    websocket::{
        self, ControlFrame, Decoder, Payload, Role,
        channel::{self, Demux, Encoding},
    },
};

/// What is read at once, and the longest payload that is sent in a message: many clients cap at 32 KiB.
const CHUNK: usize = 32 * 1024;

/// Rounds of a poll before others get their turn.
const ROUNDS: usize = 16;

/// Far enough away for a timer that waits for nothing.
const NEVER: Duration = Duration::from_secs(365 * 24 * 60 * 60);

#[derive(Debug)]
pub(super) struct Session<Io> {
    io: Io,
    protocol: WsProtocol,
    limits: Limits,
    phase: Phase,
    /// How it ended; the first verdict stands.
    verdict: Option<(End, Cause, Cow<'static, str>)>,
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
    bytes: Traffic,
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
            bytes: Traffic::default(),
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
            Ok(Exit::Success) => (End::Success, Cause::Finished, "the command ended".into()),
            Ok(Exit::Code(code)) => (End::ExitCode(*code), Cause::Finished, "the command ended".into()),
            // What the runtime says of it may name the command: the client is told, the log is not.
            Err(_) => (End::Error, Cause::Runtime, "the runtime could not run the command".into()),
        });
        let status = status::encode(self.protocol.version(), &result);
        self.end(status, 1000, None);
    }

    pub(super) fn drain(&mut self) {
        self.fail(Cause::Drain, "the server is shutting down", 1000);
    }

    pub(super) fn into_report(mut self) -> Report {
        let given_up = (End::Error, Cause::Aborted, "the session was given up".into());
        let (end, cause, detail) = self.verdict.take().unwrap_or(given_up);
        let mut report = Report::new(end, cause, detail);
        report.protocol_in = self.protocol.name().into();
        report.bytes = self.bytes;
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
    fn fail(&mut self, cause: Cause, why: &'static str, code: u16) {
        if let Phase::Running = self.phase {
            self.verdict = Some((End::Error, cause, why.into()));
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
            self.verdict = Some((End::Error, Cause::ClientProtocol, why.into()));
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
        self.lose(Cause::ClientClosed, "the client closed the connection");
        for (_, output) in self.outputs.iter().flatten() {
            output.discard();
        }
        let code = close.code.unwrap_or(1000);
        self.end(String::new(), code, Some(Instant::now() + self.limits.status_write));
    }

    /// Nothing can be written any more, or nobody reads it.
    fn lost(&mut self, cause: Cause, why: &'static str) {
        // After our Close nobody owes us anything.
        if !matches!(self.phase, Phase::Closing { .. }) {
            self.lose(cause, why);
        }
        for (_, output) in self.outputs.iter().flatten() {
            output.discard();
        }
        self.phase = Phase::Over;
    }

    /// The client did not hear how it ended. An error that was its reason stands.
    fn lose(&mut self, cause: Cause, why: &'static str) {
        if !matches!(self.verdict, Some((End::Error | End::ClientGone, ..))) {
            self.verdict = Some((End::ClientGone, cause, why.into()));
        }
        self.client_gone();
    }

    fn client_gone(&mut self) {
        if self.process_running {
            self.gone.cancel();
            self.process_until.get_or_insert_with(|| Instant::now() + self.limits.run_grace);
        }
    }
}

impl<Io> Drop for Session<Io> {
    fn drop(&mut self) {
        self.gone.cancel();
    }
}
