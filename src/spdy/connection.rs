//! The one task that owns the socket.

use std::{
    cell::Cell,
    fmt,
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep},
};

use super::{
    codec::{self, Decoder},
    error::{Error, Kind},
    frame::{ResetCode, StreamId},
    session::{self, Role},
    shared::{Shared, User, header_mode, lost},
    stream::Stream,
};

/// How much is read at a time, into a buffer that the thread's connections share.
const READ: usize = 32 * 1024;

/// Rounds of reading and writing before other tasks get a turn.
const ROUNDS: usize = 16;

/// Limits of a connection, each with a default.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    pub(super) codec: codec::Limits,
    pub(super) session: session::Limits,
    pub(super) stream_unread: usize,
    pub(super) connection_unread: usize,
    pub(super) stream_unsent: usize,
    pub(super) reset_stalled_after: Option<Duration>,
    close_timeout: Duration,
}

impl Config {
    /// The defaults of all limits.
    #[must_use]
    pub fn new() -> Self {
        Self {
            codec: codec::Limits::default(),
            session: session::Limits::default(),
            stream_unread: 256 * 1024,
            connection_unread: 1024 * 1024,
            stream_unsent: 64 * 1024,
            reset_stalled_after: None,
            close_timeout: Duration::from_secs(30),
        }
    }

    /// What a peer may ask of the decoder.
    #[must_use]
    pub fn codec(mut self, limits: codec::Limits) -> Self {
        self.codec = limits;
        self
    }

    /// Streams, replies, pings.
    #[must_use]
    pub fn session(mut self, limits: session::Limits) -> Self {
        self.session = limits;
        self
    }

    /// With so many bytes unread in one stream, nothing more is read from the connection until half of them are. One
    /// read (32 KiB) may pass the bound. The default is 256 KiB: SPDY as Kubernetes speaks it has no windows, so one
    /// stream that nobody reads stops the others, but not for a moment's delay.
    #[must_use]
    pub fn stream_unread(mut self, bytes: usize) -> Self {
        self.stream_unread = bytes.max(1);
        self
    }

    /// As [`stream_unread`](Self::stream_unread), for all streams together. The default is 1 MiB.
    #[must_use]
    pub fn connection_unread(mut self, bytes: usize) -> Self {
        self.connection_unread = bytes.max(1);
        self
    }

    /// How many bytes a stream takes before they are written to the socket. The default is 64 KiB: two frames.
    #[must_use]
    pub fn stream_unsent(mut self, bytes: usize) -> Self {
        self.stream_unsent = bytes.max(1);
        self
    }

    /// A stream that has held the connection [paused](Self::stream_unread) for so long is reset, and what it had
    /// unread is gone: the others go on at once. The time counts from each pause, so one that is read slowly is spared
    /// if half of its bytes are taken in time. By default streams wait for each other for ever.
    #[must_use]
    pub fn reset_stalled_after(mut self, stall: Duration) -> Self {
        self.reset_stalled_after = Some(stall);
        self
    }

    /// The most streams at a time, of both sides together: [`session::Limits::streams`] alone.
    #[must_use]
    pub fn streams(mut self, count: usize) -> Self {
        self.session = self.session.streams(count);
        self
    }

    /// The longest inflated header block: [`codec::Limits::header_bytes`] alone. An accepted stream keeps its block.
    #[must_use]
    pub fn header_bytes(mut self, bytes: usize) -> Self {
        self.codec = self.codec.header_bytes(bytes);
        self
    }

    /// How long a closed connection may be stuck with unwritten data, and then how long the peer may take to close its
    /// side. The default is 30 s: it outlasts a stall of the network.
    #[must_use]
    pub fn close_timeout(mut self, timeout: Duration) -> Self {
        self.close_timeout = timeout;
        self
    }
}

impl Default for Config {
    fn default() -> Self {
        Self::new()
    }
}

/// The client's side of a connection over `io`. Nothing happens unless [`Connection`] is polled.
pub fn client<Io>(io: Io, config: Config) -> (Handle, Connection<Io>) {
    let connection = Connection::new(io, config, Role::Client, 1);
    (Handle { user: User::counted(&connection.shared) }, connection)
}

/// The server's side of a connection over `io`. Nothing happens unless [`Connection`] is polled. It does not speak
/// before the client has: Go discards what comes right behind the 101.
pub fn server<Io>(io: Io, config: Config) -> (Incoming, Handle, Connection<Io>) {
    let connection = Connection::new(io, config, Role::Server, 2);
    let [incoming, handle] = [(); 2].map(|()| User::counted(&connection.shared));
    (Incoming { user: incoming }, Handle { user: handle }, connection)
}

/// Opens streams, and closes the connection. The connection lives as long as there are handles, [`Incoming`] or
/// streams, and then closes in order.
#[derive(Clone, Debug)]
pub struct Handle {
    user: User,
}

impl Handle {
    /// Opens a stream and waits for the peer's reply.
    ///
    /// # Errors
    ///
    /// If the peer refuses ([`Error::reset_code`]) or does not reply in time, or the connection ends, which is told at
    /// once; if there are too many streams.
    ///
    /// # Cancel safety
    ///
    /// Dropped before its end it resets the stream.
    pub async fn open(&self, headers: &[(&str, &str)]) -> Result<Stream, Error> {
        self.open_unreplied(headers)?.await
    }

    /// Opens a stream without waiting, so that several go out together. Send nothing on any of them before all
    /// replies are there: spdystream drops the data of a stream without one.
    ///
    /// # Errors
    ///
    /// If there are too many streams, or the connection is closed.
    pub fn open_unreplied(&self, headers: &[(&str, &str)]) -> Result<Opening, Error> {
        let now = Instant::now().into_std();
        let stream = self.user.with(|state| state.open(headers, now))?;
        Ok(Opening { user: Some(self.user.clone()), stream })
    }

    /// Closes the connection in order: what streams were given is written, those that are open are reset, then GOAWAY;
    /// the socket is half-closed and the peer read for a bounded time, so that nothing under way is destroyed.
    /// [`Connection`] ends behind all that.
    pub fn close(&self) {
        self.user.with(super::shared::State::close);
    }

    /// How many streams are not over: not finished by both sides, and not reset.
    #[must_use]
    pub fn streams(&self) -> usize {
        self.user.with(|state| state.session.len())
    }

    /// Waits until the connection is over, and says how it ended.
    ///
    /// # Errors
    ///
    /// As [`Connection`]'s.
    pub async fn closed(&self) -> Result<(), Error> {
        self.user.shared().done().await
    }
}

/// A stream that was opened and has no reply yet. Dropped, it resets the stream.
#[derive(Debug)]
#[must_use = "a stream that is not awaited is reset"]
pub struct Opening {
    /// `None` behind the end.
    user: Option<User>,
    stream: StreamId,
}

impl Opening {
    /// The number of the stream to be.
    #[must_use]
    pub fn id(&self) -> StreamId {
        self.stream
    }
}

impl Future for Opening {
    type Output = Result<Stream, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let stream = self.stream;
        let user = self.user.as_ref().expect("not polled again behind its end");
        match user.with(|state| state.poll_opened(stream, cx)) {
            None => Poll::Pending,
            Some(Ok(())) => {
                let user = self.user.take().expect("it was there a line ago");
                Poll::Ready(Ok(Stream::new(user, stream, Default::default())))
            }
            // `drop` forgets the stream.
            Some(Err(error)) => Poll::Ready(Err(error)),
        }
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        if let Some(user) = &self.user {
            user.with(|state| state.abandon(self.stream, ResetCode::CANCEL));
        }
    }
}

/// The streams that the client opens. Dropped, it refuses those to come.
#[derive(Debug)]
pub struct Incoming {
    user: User,
}

impl Incoming {
    /// The next stream, to which the caller has yet to [`reply`](Stream::reply). `None`: there will be no more.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost.
    pub async fn accept(&mut self) -> Option<Stream> {
        let (stream, headers) =
            std::future::poll_fn(|cx| self.user.with(|state| state.poll_accept(cx)).map_or(Poll::Pending, Poll::Ready))
                .await?;
        Some(Stream::new(self.user.clone(), stream, headers))
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        self.user.with(super::shared::State::stop_accepting);
    }
}

/// The task that owns the socket: spawn it. It ends with the connection, `Ok` if the end was in order: both sides
/// agreed, or no stream was open. Dropped, it loses the connection.
#[must_use = "nothing happens unless it is polled"]
pub struct Connection<Io> {
    io: Io,
    shared: Arc<Shared>,
    decoder: Decoder,
    /// The batch that is being written.
    out: Vec<u8>,
    written: usize,
    needs_flush: bool,
    /// Writing failed; what the peer sent before is still read.
    broken: Option<Broken>,
    phase: Phase,
    /// The close may be stuck until then.
    close_by: Option<Instant>,
    close_timeout: Duration,
    sleep: Option<Pin<Box<Sleep>>>,
}

#[derive(Debug)]
struct Broken {
    error: Error,
    /// A part of a batch was not written.
    unwritten: bool,
    /// Readers that pause the connection have until then.
    until: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Serving,
    /// All is written.
    ShuttingDown,
    /// Our half of the socket is closed, and the peer's is read to its end.
    Draining,
}

impl<Io> Connection<Io> {
    fn new(io: Io, config: Config, role: Role, users: usize) -> Self {
        Self {
            io,
            shared: Shared::new(role, config, Instant::now().into_std(), users),
            decoder: Decoder::new(config.codec, header_mode(role)),
            out: Vec::new(),
            written: 0,
            needs_flush: false,
            broken: None,
            phase: Phase::Serving,
            close_by: None,
            close_timeout: config.close_timeout,
            sleep: None,
        }
    }

    fn finish(&self, result: Result<(), Error>) {
        let cut = !self.decoder.at_frame_boundary() || result.as_ref().is_err_and(|error| !error.is_lost());
        self.shared.finish(result, cut);
    }
}

impl<Io: AsyncRead + AsyncWrite + Unpin> Connection<Io> {
    fn drive(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        for _ in 0..ROUNDS {
            let progress = match self.phase {
                Phase::Serving => match self.serve(cx) {
                    Ok(progress) => progress,
                    Err(End(result)) => return Poll::Ready(result),
                },
                Phase::ShuttingDown => match Pin::new(&mut self.io).poll_shutdown(cx) {
                    Poll::Pending => false,
                    // If it fails the peer is gone: reading will tell.
                    Poll::Ready(_) => {
                        self.phase = Phase::Draining;
                        self.close_by = Some(Instant::now() + self.close_timeout);
                        true
                    }
                },
                Phase::Draining => match read(&mut self.io, cx, |_| ()) {
                    Poll::Pending => false,
                    Poll::Ready(Ok(Some(()))) => true,
                    Poll::Ready(Ok(None) | Err(_)) => return Poll::Ready(self.outcome()),
                },
            };
            if progress {
                continue;
            }
            let Some(deadline) = self.deadline() else { return Poll::Pending };
            let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
            if sleep.deadline() != deadline {
                sleep.as_mut().reset(deadline);
            }
            ready!(sleep.as_mut().poll(cx));
            if self.close_by.is_some_and(|by| by <= Instant::now()) {
                return Poll::Ready(match self.phase {
                    Phase::Draining => self.outcome(),
                    Phase::Serving | Phase::ShuttingDown => {
                        Err(Error::new(Kind::Timeout, "the peer does not take the last of the data"))
                    }
                });
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// One round. `true`: there may be more to do at once.
    fn serve(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        let now = Instant::now();
        let wants_read = self.shared.with(|state| {
            state.set_driver(cx.waker());
            state.reset_stalled(now.into_std());
            let wants_read = state.wants_read();
            state.session.handle_timeout(now.into_std())?;
            state.handle_events();
            Ok::<_, Error>(wants_read)
        });
        let wants_read = wants_read.map_err(|error| End(Err(error)))?;
        let mut progress = wants_read && self.read(cx, now)?;
        if let Some(broken) = &self.broken {
            // What had come is read; while readers pause the connection there may be more, for a while.
            if !progress && wants_read || broken.until <= now {
                return Err(End(self.orderly().unwrap_or_else(|| Err(broken.error.clone()))));
            }
            return Ok(progress);
        }
        match self.write(cx) {
            Ok(wrote) => progress |= wrote,
            Err(error) => {
                let unwritten = self.written < self.out.len() || self.needs_flush;
                self.broken = Some(Broken { error: error.into(), unwritten, until: now + self.close_timeout });
                self.out = Vec::new();
                self.written = 0;
                self.needs_flush = false;
                return Ok(true);
            }
        }
        Ok(progress)
    }

    fn read(&mut self, cx: &mut Context<'_>, now: Instant) -> Result<bool, End> {
        let Self { io, shared, decoder, .. } = self;
        let read = read(io, cx, |bytes| shared.with(|state| state.handle_bytes(decoder, bytes, now.into_std())));
        match read {
            Poll::Pending => Ok(false),
            Poll::Ready(Ok(Some(()))) => Ok(true),
            Poll::Ready(Ok(None)) => Err(End(self.orderly().unwrap_or_else(|| Err(lost())))),
            Poll::Ready(Err(error)) => Err(End(self.orderly().unwrap_or_else(|| Err(error.into())))),
        }
    }

    /// How the connection ended, if that was in order.
    fn orderly(&self) -> Option<Result<(), Error>> {
        let unwritten = self.written < self.out.len() || self.broken.as_ref().is_some_and(|broken| broken.unwritten);
        let may_end = self.shared.with(|state| state.may_end(unwritten));
        (may_end && self.decoder.at_frame_boundary() || self.shared.with(|state| state.fatal().is_some()))
            .then(|| self.outcome())
    }

    fn outcome(&self) -> Result<(), Error> {
        self.shared.with(|state| state.fatal().map_or(Ok(()), Err))
    }

    /// Writes one batch, as far as the socket takes it.
    fn write(&mut self, cx: &mut Context<'_>) -> io::Result<bool> {
        if self.written == self.out.len() {
            self.out.clear();
            self.written = 0;
            self.shared.with(|state| state.fill(&mut self.out));
        }
        let mut progress = false;
        while self.written < self.out.len() {
            match Pin::new(&mut self.io).poll_write(cx, &self.out[self.written..])? {
                Poll::Pending => break,
                Poll::Ready(0) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(len) => {
                    self.written += len;
                    self.needs_flush = true;
                    progress = true;
                }
            }
        }
        let (must_end, is_flushed) = self.shared.with(|state| (state.must_end(), state.is_flushed()));
        if must_end && (progress || self.close_by.is_none()) {
            self.close_by = Some(Instant::now() + self.close_timeout);
        }
        if self.written < self.out.len() || progress {
            return Ok(progress);
        }
        // Nothing is left to write. An idle connection keeps no buffer.
        self.out = Vec::new();
        if self.needs_flush {
            if Pin::new(&mut self.io).poll_flush(cx)?.is_pending() {
                return Ok(false);
            }
            self.needs_flush = false;
        }
        if is_flushed {
            self.phase = Phase::ShuttingDown;
        }
        Ok(is_flushed)
    }

    /// When to come back, if nothing happens before.
    fn deadline(&self) -> Option<Instant> {
        let session = match self.phase {
            Phase::Serving => {
                let unwritten = self.written < self.out.len() || self.needs_flush;
                let deadline = self.shared.with(|state| {
                    let listening = state.wants_read() && !unwritten;
                    state.session.set_listening(listening, Instant::now().into_std());
                    [state.session.poll_timeout(), state.stalled_at()].into_iter().flatten().min()
                });
                deadline.map(Instant::from_std)
            }
            Phase::ShuttingDown | Phase::Draining => None,
        };
        [session, self.close_by, self.broken.as_ref().map(|broken| broken.until)].into_iter().flatten().min()
    }
}

/// The connection is over.
struct End(Result<(), Error>);

thread_local! {
    static BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Reads once, into the thread's buffer. `None` is the end of input.
fn read<Io: AsyncRead + Unpin, T>(
    io: &mut Io,
    cx: &mut Context<'_>,
    handle: impl FnOnce(&[u8]) -> T,
) -> Poll<io::Result<Option<T>>> {
    let mut bytes = BUFFER.take();
    bytes.resize(READ, 0);
    let mut buf = ReadBuf::new(&mut bytes);
    let result = Pin::new(io).poll_read(cx, &mut buf).map_ok(|()| match buf.filled() {
        [] => None,
        filled => Some(handle(filled)),
    });
    BUFFER.set(bytes);
    result
}

impl<Io: AsyncRead + AsyncWrite + Unpin> Future for Connection<Io> {
    type Output = Result<(), Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let result = ready!(self.drive(cx));
        self.finish(result.clone());
        Poll::Ready(result)
    }
}

impl<Io> Drop for Connection<Io> {
    fn drop(&mut self) {
        // Nothing, if it has ended.
        self.finish(Err(lost()));
    }
}

impl<Io> fmt::Debug for Connection<Io> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("phase", &self.phase).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
