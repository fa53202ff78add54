//! The standard streams without a thread between, where the system allows it.
//!
//! A pipe or a terminal is opened anew by way of `/proc`, so that it can be non-blocking without being that for the
//! shell, which shares the old description. A file is read and written as it is: it does not keep one waiting. All else,
//! and other systems, go by tokio's threads.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    os::fd::{AsFd, BorrowedFd},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
};

use rustix::{
    fs::{FileType, Mode, OFlags, fstat, open},
    termios::isatty,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::unix::pipe,
};
use tower_kube_streaming::remote_command::{Input, Output};

/// Reads stdin. Nothing is read before it is polled.
pub(crate) fn stdin() -> Input {
    match own(io::stdin().as_fd(), "/proc/self/fd/0", OFlags::RDONLY, pipe::Receiver::from_file_unchecked) {
        Some(Own::Ready(file)) => Input::new(Ready(file)),
        Some(Own::Waits(pipe)) => Input::new(pipe),
        None => Input::new(tokio::io::stdin()),
    }
}

/// Writes stdout. `closed` is set when its reader is gone.
pub(crate) fn stdout(closed: &Arc<AtomicBool>) -> Output {
    let closed = closed.clone();
    match own(io::stdout().as_fd(), "/proc/self/fd/1", OFlags::WRONLY, pipe::Sender::from_file_unchecked) {
        Some(Own::Ready(file)) => Output::new(Ready(file)),
        Some(Own::Waits(pipe)) => Output::new(Watched(pipe, closed)),
        None => Output::new(Watched(tokio::io::stdout(), closed)),
    }
}

/// Writes stderr.
pub(crate) fn stderr() -> Output {
    match own(io::stderr().as_fd(), "/proc/self/fd/2", OFlags::WRONLY, pipe::Sender::from_file_unchecked) {
        Some(Own::Ready(file)) => Output::new(Ready(file)),
        Some(Own::Waits(pipe)) => Output::new(pipe),
        None => Output::new(tokio::io::stderr()),
    }
}

/// A standard stream that needs no thread.
enum Own<P> {
    /// A pipe or a terminal, non-blocking; what is made for pipes serves both.
    Waits(P),
    /// A file, or a device that is always ready.
    Ready(File),
}

fn own<P>(fd: BorrowedFd<'_>, path: &str, access: OFlags, pipe: fn(File) -> io::Result<P>) -> Option<Own<P>> {
    if !cfg!(target_os = "linux") {
        return None;
    }
    match FileType::from_raw_mode(fstat(fd).ok()?.st_mode) {
        FileType::Fifo => {}
        FileType::CharacterDevice if isatty(fd) => {}
        FileType::CharacterDevice | FileType::RegularFile => {
            return Some(Own::Ready(File::from(fd.try_clone_to_owned().ok()?)));
        }
        _ => return None,
    }
    let flags = access | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    pipe(File::from(open(path, flags, Mode::empty()).ok()?)).ok().map(Own::Waits)
}

struct Ready(File);

impl AsyncRead for Ready {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = self.0.read(buf.initialize_unfilled())?;
        buf.advance(read);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Ready {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(self.0.write(buf))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// A writer that notes when nobody reads it any more.
struct Watched<W>(W, Arc<AtomicBool>);

impl<W: AsyncWrite + Unpin> AsyncWrite for Watched<W> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.0).poll_write(cx, buf));
        if written.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::BrokenPipe) {
            self.1.store(true, Ordering::Relaxed);
        }
        Poll::Ready(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
