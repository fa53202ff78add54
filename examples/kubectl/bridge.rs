//! Between the session, which is polled, and tar, which blocks in a thread of its own.

use std::{
    io::{self, Read, Write},
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    thread,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream},
    runtime::Handle,
    sync::oneshot,
};

use super::progress::Progress;

/// Bytes on their way between the two.
pub(crate) const BUFFER: usize = 256 << 10;

/// Reads and writes where blocking is allowed. Its handle's runtime must be running.
pub(crate) struct Blocking<T>(pub(crate) T, pub(crate) Handle);

impl<T: AsyncRead + Unpin> Read for Blocking<T> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.1.block_on(self.0.read(buf))
    }
}

impl<T: AsyncWrite + Unpin> Write for Blocking<T> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.1.block_on(self.0.write(buf))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.1.block_on(self.0.flush())
    }
}

/// Runs `work` in a thread of its own.
pub(crate) async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (send, receive) = oneshot::channel();
    thread::spawn(move || send.send(work()).is_ok());
    receive.await.expect("the thread sends unless it panics, and then so do we")
}

/// One writer for several sessions, one after another: the end of one is not the end of what is written.
#[derive(Clone)]
pub(crate) struct Feed(Arc<Fed>);

struct Fed {
    to: Mutex<Option<DuplexStream>>,
    bytes: AtomicU64,
    refused: AtomicBool,
    progress: Progress,
}

impl Feed {
    pub(crate) fn new(to: DuplexStream, progress: Progress) -> Self {
        let to = Mutex::new(Some(to));
        Self(Arc::new(Fed { to, bytes: AtomicU64::new(0), refused: AtomicBool::new(false), progress }))
    }

    /// What was taken so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.0.bytes.load(Ordering::Relaxed)
    }

    /// Whether the reader has stopped reading.
    pub(crate) fn refused(&self) -> bool {
        self.0.refused.load(Ordering::Relaxed)
    }

    /// The end.
    pub(crate) fn end(&self) {
        self.0.to.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    fn poll(&self, poll: impl FnOnce(Pin<&mut DuplexStream>) -> Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        let mut to = self.0.to.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(to) = &mut *to else { return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())) };
        let done = ready!(poll(Pin::new(to)));
        match &done {
            Ok(bytes) => {
                self.0.bytes.fetch_add(*bytes as u64, Ordering::Relaxed);
                self.0.progress.add(*bytes as u64);
            }
            Err(_) => self.0.refused.store(true, Ordering::Relaxed),
        }
        Poll::Ready(done)
    }
}

impl AsyncWrite for Feed {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll(|to| to.poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll(|to| to.poll_flush(cx).map_ok(|()| 0)).map_ok(|_| ())
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush(cx)
    }
}
