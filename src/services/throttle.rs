//! Holds each connection to the next hop to a number of bytes per second.
//!
//! [`Throttled`] wraps whatever dials ([`Connect`]), so what is translated, tunnelled and passed through is throttled alike,
//! and nothing else knows of it. Each direction has a budget of its own, for each tenth of a second, as upstream's
//! (`--max-connection-bytes-per-sec`, `go-flowrate`); who is over it waits, nothing is dropped, and TCP tells the sender.
//! What the wrapped dialer does below, a TLS handshake above all, is neither counted nor slowed down.
//!
//! ```
//! use tower_kube_streaming::services::{TcpConnect, Throttled, UpgradeProxy};
//!
//! let leaf = UpgradeProxy::new(Throttled::new(TcpConnect, 10 << 20));
//! # let _ = leaf;
//! ```
//!
//! # Low rates
//!
//! The heads of requests, control frames and the status share the budget, and wait behind the data in flight: up to
//! 64 KiB of it where a session is translated or passed through. So below 1 KiB/s a ping can wait for longer than the
//! minute after which a peer is given up, and a kubectl that sends a lot of stdin meets its own write deadline earlier
//! (2 s in 1.29, 60 s in later ones). Such rates are obeyed all the same.

use std::{
    future::Future,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use http::Uri;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep_until},
};

use super::Connect;

#[cfg(test)]
mod tests;

/// A budget is for so long. `go-flowrate` takes its samples as often.
const WINDOW: Duration = Duration::from_millis(100);

/// Dials with another dialer, and throttles what it dialled. See the [module docs](self).
#[derive(Clone, Copy, Debug)]
pub struct Throttled<C> {
    connect: C,
    bytes_per_second: u64,
}

impl<C: Connect> Throttled<C> {
    /// Each connection carries at most so many bytes per second in each direction, and at least ten. 0: no limit.
    pub fn new(connect: C, bytes_per_second: u64) -> Self {
        Self { connect, bytes_per_second }
    }
}

impl<C: Connect> Connect for Throttled<C> {
    type Io = ThrottledIo<C::Io>;

    async fn connect(&self, uri: Uri) -> io::Result<Self::Io> {
        Ok(ThrottledIo::new(self.connect.connect(uri).await?, self.bytes_per_second))
    }
}

/// A connection that [`Throttled`] opened.
#[derive(Debug)]
pub struct ThrottledIo<Io> {
    io: Io,
    /// `None`: no limit.
    budgets: Option<Box<Budgets>>,
}

#[derive(Debug)]
struct Budgets {
    read: Budget,
    write: Budget,
}

/// What may pass in one direction.
#[derive(Debug)]
struct Budget {
    each_window: usize,
    left: usize,
    ends: Instant,
    /// Until the window ends; made when it is first needed.
    wait: Option<Pin<Box<Sleep>>>,
}

impl<Io> ThrottledIo<Io> {
    fn new(io: Io, bytes_per_second: u64) -> Self {
        let budgets = (bytes_per_second > 0).then(|| {
            let (read, write) = (Budget::new(bytes_per_second), Budget::new(bytes_per_second));
            Box::new(Budgets { read, write })
        });
        Self { io, budgets }
    }
}

impl Budget {
    fn new(bytes_per_second: u64) -> Self {
        let windows = 1000 / WINDOW.as_millis() as u64;
        let each_window = usize::try_from(bytes_per_second.saturating_add(windows / 2) / windows).unwrap_or(usize::MAX);
        let each_window = each_window.max(1);
        Self { each_window, left: each_window, ends: Instant::now() + WINDOW, wait: None }
    }

    /// How many bytes may pass now, at least one; or it waits for the next window.
    fn poll_left(&mut self, cx: &mut Context<'_>) -> Poll<usize> {
        loop {
            let now = Instant::now();
            if now >= self.ends {
                // Windows follow each other, so that late timers cost nothing; after a pause none is made up for.
                self.ends = if now < self.ends + WINDOW { self.ends + WINDOW } else { now + WINDOW };
                self.left = self.each_window;
            }
            if self.left > 0 {
                return Poll::Ready(self.left);
            }
            let wait = self.wait.get_or_insert_with(|| Box::pin(sleep_until(self.ends)));
            if wait.deadline() != self.ends {
                wait.as_mut().reset(self.ends);
            }
            ready!(wait.as_mut().poll(cx));
        }
    }
}

impl<Io: AsyncRead + Unpin> AsyncRead for ThrottledIo<Io> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { io, budgets } = &mut *self;
        let Some(budgets) = budgets else { return Pin::new(io).poll_read(cx, buf) };
        let left = ready!(budgets.read.poll_left(cx)).min(buf.remaining());
        let mut part = ReadBuf::new(buf.initialize_unfilled_to(left));
        ready!(Pin::new(io).poll_read(cx, &mut part))?;
        let read = part.filled().len();
        buf.advance(read);
        budgets.read.left -= read;
        Poll::Ready(Ok(()))
    }
}

impl<Io: AsyncWrite + Unpin> AsyncWrite for ThrottledIo<Io> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let Self { io, budgets } = &mut *self;
        let Some(budgets) = budgets else { return Pin::new(io).poll_write(cx, buf) };
        let left = ready!(budgets.write.poll_left(cx)).min(buf.len());
        let written = ready!(Pin::new(io).poll_write(cx, &buf[..left]))?;
        budgets.write.left -= written;
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.budgets.is_none() {
            return Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        }
        // One piece a call is enough for who has to wait anyway.
        let first = bufs.iter().find(|buf| !buf.is_empty()).map_or(&[][..], |buf| buf);
        self.poll_write(cx, first)
    }

    fn is_write_vectored(&self) -> bool {
        self.budgets.is_none() && self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
