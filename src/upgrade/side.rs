//! One connection of the two, and what waits to be written to it.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{buffer::Buffer, clock::Hearing, outbox::Outbox};

/// One connection, and what waits to be written to it.
pub(crate) struct Side<Io> {
    pub(crate) io: Io,
    pub(crate) out: Outbox,
    pub(crate) hearing: Hearing,
    /// Its input has ended, or is of no interest any more.
    pub(crate) deaf: bool,
    /// It takes no more bytes: its connection is lost, or we have shut it down.
    pub(crate) mute: bool,
    /// It waits for more to read, so silence is the peer's.
    pub(crate) listening: bool,
}

impl<Io> Side<Io>
where
    Io: AsyncRead + AsyncWrite + Unpin,
{
    pub(crate) fn new(io: Io) -> Self {
        Self { io, out: Outbox::default(), hearing: Hearing::default(), deaf: false, mute: false, listening: false }
    }

    /// Writes what waits. False: it has to wait on.
    pub(crate) fn poll_send(&mut self, cx: &mut Context<'_>) -> bool {
        if self.mute {
            self.out.clear();
            return true;
        }
        match self.out.poll_send(cx, &mut self.io) {
            Poll::Pending => false,
            Poll::Ready(Ok(())) => true,
            Poll::Ready(Err(_)) => {
                // What it sent before it broke may still be read.
                self.mute = true;
                self.out.clear();
                true
            }
        }
    }

    /// Reads up to `limit` bytes into a borrowed buffer; pending keeps none.
    pub(crate) fn poll_read(&mut self, cx: &mut Context<'_>, limit: usize) -> Poll<io::Result<(Buffer, usize)>> {
        let mut buffer = Buffer::borrow();
        let mut read = ReadBuf::new(&mut buffer[..limit]);
        match Pin::new(&mut self.io).poll_read(cx, &mut read) {
            Poll::Pending => {
                self.listening = true;
                Poll::Pending
            }
            Poll::Ready(Err(error)) => {
                self.deaf = true;
                Poll::Ready(Err(error))
            }
            Poll::Ready(Ok(())) => {
                let read = read.filled().len();
                self.deaf |= read == 0;
                self.hearing.heard();
                Poll::Ready(Ok((buffer, read)))
            }
        }
    }

    /// Shuts the side down once all is written. `patient`: only when the peer has closed too, so that nothing it has
    /// not read yet is lost to a reset.
    pub(crate) fn poll_close(&mut self, cx: &mut Context<'_>, patient: bool) -> Poll<()> {
        if self.mute {
            return Poll::Ready(());
        }
        if !self.out.is_empty() || patient && !self.deaf {
            return Poll::Pending;
        }
        if Pin::new(&mut self.io).poll_shutdown(cx).is_pending() {
            return Poll::Pending;
        }
        self.mute = true;
        Poll::Ready(())
    }
}
