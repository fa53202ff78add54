//! A stream's two directions as the caller sees them.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{
    frame::{ResetCode, StreamId},
    header_block::Headers,
    shared::{Stop, User},
};

/// How the peer's direction of a stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecvEnd {
    /// The peer finished it.
    Fin,
    /// The stream was reset, by the peer, or by [`Stream::reset`] or [`Handle::close`](super::connection::Handle) with
    /// its code.
    Reset(ResetCode),
    /// The peer said GOAWAY and closed the connection.
    GoAway,
    /// The connection broke, or ended without a word.
    Lost,
}

/// One stream.
///
/// Reading ends at FIN, and also where the peer reset the stream or went away in order, behind everything that came
/// before: Kubernetes ends its streams so. [`ended`](Self::ended) tells which. Where the connection was lost, reading
/// fails.
///
/// Writing is finished by `shutdown`, which sends FIN behind everything written. Dropped without it, the stream is
/// reset: the peer must not take a part for the whole.
#[derive(Debug)]
pub struct Stream {
    // The writer is dropped first, so that the reset comes before the discarding.
    write: WriteHalf,
    read: ReadHalf,
}

/// The reading half of a [`Stream`]. Dropped, it lets what still comes be ignored.
#[derive(Debug)]
pub struct ReadHalf(Arc<Inner>);

/// The writing half of a [`Stream`]. Dropped without `shutdown`, it resets the whole stream.
#[derive(Debug)]
pub struct WriteHalf(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    user: User,
    id: StreamId,
    headers: Headers,
}

impl Stream {
    pub(super) fn new(user: User, id: StreamId, headers: Headers) -> Self {
        let inner = Arc::new(Inner { user, id, headers });
        Self { write: WriteHalf(Arc::clone(&inner)), read: ReadHalf(inner) }
    }

    /// Its number.
    #[must_use]
    pub fn id(&self) -> StreamId {
        self.read.0.id
    }

    /// The first value of a header of the client's SYN_STREAM, whatever the case of its name. `None` also if it is not
    /// UTF-8, and on streams that this side opened.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        std::str::from_utf8(self.read.0.headers.get(name)?).ok()
    }

    /// Takes a stream that the peer opened. Before it, nothing that is written goes out. Nothing the second time.
    pub fn reply(&self) {
        self.read.0.user.with(|state| state.reply(self.id()));
    }

    /// Does not take a stream that the peer opened.
    pub fn refuse(self, code: ResetCode) {
        self.reset(code);
    }

    /// Ends both directions at once; what was not yet written or read is gone. Behind FIN the peer is told only if it
    /// sends more, as Go does.
    pub fn reset(&self, code: ResetCode) {
        self.read.0.reset(code);
    }

    /// How the peer's direction ended, once everything that came is read.
    #[must_use]
    pub fn ended(&self) -> Option<RecvEnd> {
        self.read.ended()
    }

    /// How many bytes the next write takes, at least one: who asks first need not hold what does not fit.
    ///
    /// # Errors
    ///
    /// As writing.
    pub fn poll_capacity(&self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        ready_io(self.read.0.user.with(|state| state.capacity(self.id(), cx)))
    }

    /// Ready when the stream was cut off: reset by either side, or over with its connection. Never tells
    /// [`RecvEnd::Fin`]. Unlike [`ended`](Self::ended), it tells at once, whatever is unread, and behind FIN too. One
    /// task at a time may wait.
    pub fn poll_aborted(&self, cx: &mut Context<'_>) -> Poll<RecvEnd> {
        self.read.0.user.with(|state| state.aborted(self.id(), cx)).map_or(Poll::Pending, Poll::Ready)
    }

    /// Two halves that may go to different tasks.
    #[must_use]
    pub fn into_split(self) -> (ReadHalf, WriteHalf) {
        (self.read, self.write)
    }
}

impl ReadHalf {
    /// As [`Stream::id`].
    #[must_use]
    pub fn id(&self) -> StreamId {
        self.0.id
    }

    /// As [`Stream::ended`].
    #[must_use]
    pub fn ended(&self) -> Option<RecvEnd> {
        self.0.user.with(|state| state.ended(self.0.id))
    }

    /// As [`Stream::reset`].
    pub fn reset(&self, code: ResetCode) {
        self.0.reset(code);
    }
}

impl WriteHalf {
    /// As [`Stream::id`].
    #[must_use]
    pub fn id(&self) -> StreamId {
        self.0.id
    }

    /// As [`Stream::reset`].
    pub fn reset(&self, code: ResetCode) {
        self.0.reset(code);
    }
}

impl Inner {
    fn reset(&self, code: ResetCode) {
        self.user.with(|state| state.reset(self.id, code));
    }
}

impl Drop for ReadHalf {
    fn drop(&mut self) {
        self.0.user.with(|state| state.drop_reader(self.0.id));
    }
}

impl Drop for WriteHalf {
    fn drop(&mut self) {
        self.0.user.with(|state| state.drop_writer(self.0.id));
    }
}

impl AsyncRead for ReadHalf {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.0.user.with(|state| state.read(self.0.id, buf, cx)) {
            None => Poll::Pending,
            Some(Ok(())) => Poll::Ready(Ok(())),
            Some(Err(error)) => Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionReset, error))),
        }
    }
}

impl AsyncWrite for WriteHalf {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready_io(self.0.user.with(|state| state.write(self.0.id, bytes, cx)))
    }

    /// Ready when everything was handed to the socket's task, which flushes by itself.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready_io(self.0.user.with(|state| state.flush(self.0.id, cx)))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready_io(self.0.user.with(|state| state.shut_down(self.0.id, cx)))
    }
}

fn ready_io<T>(outcome: Option<Result<T, Stop>>) -> Poll<io::Result<T>> {
    match outcome {
        None => Poll::Pending,
        Some(Ok(value)) => Poll::Ready(Ok(value)),
        Some(Err(Stop::Reset)) => Poll::Ready(Err(io::Error::new(io::ErrorKind::BrokenPipe, "the stream was reset"))),
        Some(Err(Stop::Over)) => {
            Poll::Ready(Err(io::Error::new(io::ErrorKind::BrokenPipe, "the stream is closed for writing")))
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.read).poll_read(cx, buf)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.write).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.write).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.write).poll_shutdown(cx)
    }
}
