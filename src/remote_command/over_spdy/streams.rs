//! The streams of a session: gathered, and wrapped as a runtime sees them.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};

use crate::{
    remote_command::{Input, Output, Version},
    spdy::{
        connection::Incoming,
        frame::ResetCode,
        stream::{ReadHalf, RecvEnd, Stream, WriteHalf},
    },
    upgrade::StreamOptions,
};

/// Payload bytes of one direction. Clones count together.
#[derive(Clone, Debug, Default)]
pub(super) struct Count(Arc<AtomicU64>);

impl Count {
    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn add(&self, bytes: usize) {
        self.0.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// What the client has created.
#[derive(Debug, Default)]
pub(super) struct Streams {
    pub(super) error: Option<Stream>,
    pub(super) stdin: Option<Stream>,
    pub(super) stdout: Option<Stream>,
    pub(super) stderr: Option<Stream>,
    pub(super) resize: Option<Stream>,
}

impl Streams {
    fn slot(&mut self, name: &str) -> Option<&mut Option<Stream>> {
        Some(match name {
            "error" => &mut self.error,
            "stdin" => &mut self.stdin,
            "stdout" => &mut self.stdout,
            "stderr" => &mut self.stderr,
            "resize" => &mut self.resize,
            _ => return None,
        })
    }
}

/// Accepts streams until each that was asked for is there, once. False: the client went away.
///
/// # Cancel safety
///
/// What has come so far is in `streams`.
pub(super) async fn gather(
    incoming: &mut Incoming,
    version: Version,
    options: &StreamOptions,
    streams: &mut Streams,
) -> bool {
    let wanted = [
        ("error", true),
        ("stdin", options.stdin),
        ("stdout", options.stdout),
        ("stderr", options.stderr && !options.tty),
        ("resize", options.tty && version.has_resize()),
    ];
    let mut missing = wanted.iter().filter(|(_, wanted)| *wanted).count();
    while missing > 0 {
        let Some(stream) = incoming.accept().await else { return false };
        let name = stream.header("streamtype").unwrap_or_default().to_owned();
        let asked_for = wanted.contains(&(&*name, true));
        match streams.slot(&name).filter(|slot| asked_for && slot.is_none()) {
            Some(slot) => {
                stream.reply();
                *slot = Some(stream);
                missing -= 1;
            }
            None => {
                tracing::debug!(stream.id = %stream.id(), "a stream that is not of this session refused");
                stream.refuse(ResetCode::REFUSED_STREAM);
            }
        }
    }
    true
}

/// What the client sends to the process.
pub(super) fn input(stream: Stream, count: &Count) -> Input {
    let (read, write) = stream.into_split();
    Input::new(Stdin { read, _write: write, count: count.clone() })
}

struct Stdin {
    read: ReadHalf,
    /// Kept: dropped, it would reset the stream.
    _write: WriteHalf,
    count: Count,
}

impl AsyncRead for Stdin {
    /// Ends at FIN alone. Where the client reset the stream or got lost it fails: its input was not over.
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.read).poll_read(cx, buf))?;
        let read = buf.filled().len() - before;
        self.count.add(read);
        if read == 0 && buf.remaining() > 0 && self.read.ended() != Some(RecvEnd::Fin) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        Poll::Ready(Ok(()))
    }
}

/// What the process sends to the client, and its end.
pub(super) fn output(stream: Option<Stream>, count: &Count) -> (Option<Output>, OutputEnd) {
    let Some(stream) = stream else { return (None, OutputEnd(None)) };
    let (read, write) = stream.into_split();
    // The client says nothing here.
    drop(read);
    let write = Arc::new(Mutex::new(write));
    let end = OutputEnd(Some(Arc::clone(&write)));
    (Some(Output::new(Out { write, count: count.clone() })), end)
}

struct Out {
    write: Arc<Mutex<WriteHalf>>,
    count: Count,
}

impl Out {
    fn with<T>(&self, call: impl FnOnce(Pin<&mut WriteHalf>) -> T) -> T {
        call(Pin::new(&mut self.write.lock().unwrap_or_else(PoisonError::into_inner)))
    }
}

impl AsyncWrite for Out {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(self.with(|write| write.poll_write(cx, buf)))?;
        self.count.add(written);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(|write| write.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(|write| write.poll_shutdown(cx))
    }
}

impl Drop for Out {
    /// Asks for the FIN, which comes behind all that was written.
    fn drop(&mut self) {
        let _ = self.with(|write| write.poll_shutdown(&mut Context::from_waker(Waker::noop())));
    }
}

/// Waits for what the runtime wrote.
pub(super) struct OutputEnd(Option<Arc<Mutex<WriteHalf>>>);

impl OutputEnd {
    /// Ends the stream, and returns when its FIN is on its way, or cannot be.
    pub(super) async fn finish(self) {
        let Some(write) = self.0 else { return };
        let mut out = Out { write, count: Count::default() };
        let _ = out.shutdown().await;
    }
}
