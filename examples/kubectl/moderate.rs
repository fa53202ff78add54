//! Reads seldom where much comes, as network cards interrupt: a server that is slower than we are would wake us for
//! every piece, and being woken costs more than the piece.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    thread,
    time::{Duration, Instant},
};

use http::Uri;
use pin_project::pin_project;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tower_kube_streaming::upgrade::Connect;

/// Much: that many bytes within [`SOON`], 25 MB/s.
const MUCH: usize = 256 << 10;
const SOON: Duration = Duration::from_millis(10);

/// How long what comes is left in the socket then.
const PAUSE: Duration = Duration::from_millis(1);

/// Dials connections that are read so.
#[derive(Clone)]
pub(crate) struct Moderate<C>(pub(crate) C);

impl<C: Connect> Connect for Moderate<C> {
    type Io = Moderated<C::Io>;

    async fn connect(&self, uri: Uri) -> io::Result<Self::Io> {
        Ok(Moderated { io: self.0.connect(uri).await?, came: 0, since: Instant::now() })
    }
}

/// A connection. It holds up the thread while it pauses, since a timer would not keep the socket from waking us: for a
/// program that has this one stream to move.
#[pin_project]
pub(crate) struct Moderated<Io> {
    #[pin]
    io: Io,
    /// What came since then.
    came: usize,
    since: Instant,
}

impl<Io: AsyncRead> AsyncRead for Moderated<Io> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.project();
        let before = buf.filled().len();
        let read = this.io.poll_read(cx, buf);
        *this.came += buf.filled().len() - before;
        if read.is_pending() && *this.came >= MUCH {
            if this.since.elapsed() < SOON {
                thread::sleep(PAUSE);
            }
            *this.came = 0;
            *this.since = Instant::now();
        }
        read
    }
}

impl<Io: AsyncWrite> AsyncWrite for Moderated<Io> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.project().io.poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.project().io.poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.project().io.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.project().io.poll_shutdown(cx)
    }
}
