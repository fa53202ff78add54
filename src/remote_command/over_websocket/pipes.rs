//! The bounded pipes between the connection and the process. They can be moved to other tasks; what waits, waits here.

use std::{
    collections::VecDeque,
    io, mem,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Room in front of output for the head of its message: up to 64 KiB, and the channel byte.
pub(super) const HEADROOM: usize = 5;

/// A buffer that has grown beyond this is not kept while it is empty.
const KEEP: usize = 4096;

#[derive(Debug)]
struct Shared<T>(Arc<Mutex<T>>);

impl<T> Shared<T> {
    fn pair(value: T) -> (Self, Self) {
        let shared = Arc::new(Mutex::new(value));
        (Self(shared.clone()), Self(shared))
    }

    fn lock(&self) -> MutexGuard<'_, T> {
        // No code that holds the lock can panic half-way through a change.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Call without the lock: a waker can hold the last reference to a task that holds the other end.
fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

fn register(slot: &mut Option<Waker>, cx: &Context<'_>) {
    match slot {
        Some(waker) => waker.clone_from(cx.waker()),
        None => *slot = Some(cx.waker().clone()),
    }
}

#[derive(Debug)]
struct In {
    bytes: VecDeque<u8>,
    limit: usize,
    /// The client closed it.
    ended: bool,
    /// The session is over; without `ended` that is no end of input.
    aborted: bool,
    reader_gone: bool,
    /// The connection waits for half of the buffer to be free.
    full: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

/// The connection's end of stdin.
#[derive(Debug)]
pub(super) struct InputSender(Shared<In>);

/// The process's end of stdin.
///
/// Ends only when the client said so. If the client vanishes it stays pending until the session is over and fails then,
/// so that a process never takes a lost client for the end of its input.
#[derive(Debug)]
pub(super) struct InputReader(Shared<In>);

pub(super) fn input(limit: usize) -> (InputSender, InputReader) {
    let (sender, reader) = Shared::pair(In {
        bytes: VecDeque::new(),
        limit,
        ended: false,
        aborted: false,
        reader_gone: false,
        full: false,
        reader: None,
        writer: None,
    });
    (InputSender(sender), InputReader(reader))
}

impl InputSender {
    /// How many bytes can be [pushed](Self::push). After `Pending` they are waited for until half of the buffer is free.
    pub(super) fn poll_room(&self, cx: &Context<'_>) -> Poll<usize> {
        let mut pipe = self.0.lock();
        if pipe.reader_gone || pipe.ended {
            return Poll::Ready(usize::MAX);
        }
        let enough = if pipe.full { pipe.limit / 2 } else { pipe.limit - 1 };
        pipe.full = pipe.bytes.len() > enough;
        if pipe.full {
            register(&mut pipe.writer, cx);
            return Poll::Pending;
        }
        Poll::Ready(pipe.limit - pipe.bytes.len())
    }

    /// Adds bytes for which there is room. If nobody reads any more they are of no interest.
    pub(super) fn push(&self, bytes: &[u8]) {
        let mut pipe = self.0.lock();
        if !pipe.reader_gone && !pipe.ended {
            pipe.bytes.extend(bytes);
            let reader = pipe.reader.take();
            drop(pipe);
            wake(reader);
        }
    }

    /// Ends the input, after what is buffered.
    pub(super) fn end(&self) {
        let mut pipe = self.0.lock();
        pipe.ended = true;
        let reader = pipe.reader.take();
        drop(pipe);
        wake(reader);
    }
}

impl Drop for InputSender {
    fn drop(&mut self) {
        let mut pipe = self.0.lock();
        pipe.aborted = true;
        let reader = pipe.reader.take();
        drop(pipe);
        wake(reader);
    }
}

impl AsyncRead for InputReader {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut pipe = self.0.lock();
        if pipe.bytes.is_empty() {
            if pipe.ended {
                return Poll::Ready(Ok(()));
            }
            if pipe.aborted {
                return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
            }
            register(&mut pipe.reader, cx);
            return Poll::Pending;
        }
        let (front, _) = pipe.bytes.as_slices();
        let taken = front.len().min(buf.remaining());
        buf.put_slice(&front[..taken]);
        pipe.bytes.drain(..taken);
        if pipe.bytes.is_empty() && pipe.bytes.capacity() > KEEP {
            pipe.bytes = VecDeque::new();
        }
        if pipe.bytes.len() <= pipe.limit / 2 {
            let writer = pipe.writer.take();
            drop(pipe);
            wake(writer);
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for InputReader {
    fn drop(&mut self) {
        let mut pipe = self.0.lock();
        pipe.reader_gone = true;
        pipe.bytes = VecDeque::new();
        let writer = pipe.writer.take();
        drop(pipe);
        wake(writer);
    }
}

#[derive(Debug)]
struct Out {
    /// [`HEADROOM`], then bytes of the process; or nothing at all.
    bytes: Vec<u8>,
    limit: usize,
    closed: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

/// The connection's end of stdout or stderr.
#[derive(Debug)]
pub(super) struct OutputReceiver(Shared<Out>);

/// The process's end of stdout or stderr. Fails with `BrokenPipe` when nobody reads it any more.
#[derive(Debug)]
pub(super) struct OutputWriter(Shared<Out>);

/// A pipe that holds up to `limit` bytes: one message.
pub(super) fn output(limit: usize) -> (OutputWriter, OutputReceiver) {
    let (writer, receiver) = Shared::pair(Out { bytes: Vec::new(), limit, closed: false, reader: None, writer: None });
    (OutputWriter(writer), OutputReceiver(receiver))
}

impl OutputReceiver {
    /// Swaps what is there with `spent`: [`HEADROOM`] bytes, and then output. `false` if there is none.
    pub(super) fn take(&self, spent: &mut Vec<u8>, cx: &Context<'_>) -> bool {
        let mut pipe = self.0.lock();
        if pipe.bytes.is_empty() {
            if pipe.bytes.capacity() > KEEP {
                pipe.bytes = Vec::new();
            }
            if !pipe.closed {
                register(&mut pipe.reader, cx);
            }
            return false;
        }
        spent.clear();
        mem::swap(&mut pipe.bytes, spent);
        let writer = pipe.writer.take();
        drop(pipe);
        wake(writer);
        true
    }

    /// Takes no more from the process. What is there can still be taken.
    pub(super) fn close(&self) {
        let mut pipe = self.0.lock();
        pipe.closed = true;
        let writer = pipe.writer.take();
        drop(pipe);
        wake(writer);
    }

    /// Takes no more from the process, and forgets what is there.
    pub(super) fn discard(&self) {
        self.close();
        self.0.lock().bytes = Vec::new();
    }
}

impl Drop for OutputReceiver {
    fn drop(&mut self) {
        self.discard();
    }
}

impl AsyncWrite for OutputWriter {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let mut pipe = self.0.lock();
        if pipe.closed {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        if pipe.bytes.is_empty() {
            pipe.bytes.resize(HEADROOM, 0);
        }
        let taken = buf.len().min(pipe.limit + HEADROOM - pipe.bytes.len());
        if taken == 0 {
            register(&mut pipe.writer, cx);
            return Poll::Pending;
        }
        pipe.bytes.extend_from_slice(&buf[..taken]);
        let reader = pipe.reader.take();
        drop(pipe);
        wake(reader);
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.lock().closed = true;
        Poll::Ready(Ok(()))
    }
}
