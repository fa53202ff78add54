//! The two sides of an upgrade. The only file that asks hyper for them.

use std::{
    fmt,
    future::Future,
    io::{self, IoSlice},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use http::Extensions;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio_util::sync::CancellationToken;

use super::{Report, Session};
use crate::error::{Error, Initiator, Kind as ErrorKind};

/// Bytes that may lie between two services of one process, each way.
const PIPE: usize = 64 * 1024;

/// A connection that has switched protocols: hyper's upgrade, or one end of a pipe inside this process.
///
/// Bytes that were read together with the request or the `101` come first.
pub struct Io(Kind);

enum Kind {
    Hyper(TokioIo<Upgraded>),
    Pipe(DuplexStream),
}

/// One side of an upgrade in this process, where there is no socket. Extensions demand `Clone`.
#[derive(Clone)]
struct Local(Arc<Mutex<Option<Io>>>);

/// One side of an upgrade, and the session it belongs to. Taken once.
pub struct Pending {
    side: Side,
    session: Session,
}

enum Side {
    Hyper(OnUpgrade),
    Local(Io),
}

/// Stands in a request where the client's side was: a layer above adapts, and joins it with what comes back.
#[derive(Clone)]
struct Taken;

/// Takes one side of an upgrade: the client's out of a request, the leaf's out of a `101`.
///
/// Take it only once the stream is sure to come: a layer below finds nothing any more.
pub fn take(from: &mut Extensions) -> Option<Pending> {
    let local = from.remove::<Local>().and_then(|local| local.0.lock().unwrap_or_else(PoisonError::into_inner).take());
    let side = match local {
        Some(io) => Side::Local(io),
        None => Side::Hyper(from.remove::<OnUpgrade>()?),
    };
    from.insert(Taken);
    let session = from.remove::<Session>();
    if let Some(session) = &session {
        // For the leaf of this stack, should it serve what an adapting layer takes here.
        from.insert(session.inner());
    }
    Some(Pending { side, session: session.unwrap_or_default() })
}

/// For a leaf about to answer `101`: the client's side, else a new pipe whose far end rides in the response.
pub fn accept(request: &mut Extensions, response: &mut Extensions) -> Pending {
    take(request).unwrap_or_else(|| {
        let (near, far) = tokio::io::duplex(PIPE);
        response.insert(Local(Arc::new(Mutex::new(Some(Io(Kind::Pipe(far)))))));
        Pending { side: Side::Local(Io(Kind::Pipe(near))), session: request.remove::<Session>().unwrap_or_default() }
    })
}

pub(crate) fn has_side(extensions: &Extensions) -> bool {
    extensions.get::<OnUpgrade>().is_some() || extensions.get::<Local>().is_some()
}

/// As [`take`] leaves a request.
#[cfg(test)]
pub(crate) fn mark_taken(request: &mut Extensions) {
    request.insert(Taken);
}

pub(crate) fn was_taken(extensions: &Extensions) -> bool {
    extensions.get::<Taken>().is_some()
}

impl Pending {
    /// Spawns the session: the only place that does.
    ///
    /// `run` gets the connection as soon as the `101` is on its way, and a token that fires when the session has to
    /// end because the server does. What `run` reports is logged, once, on every path.
    pub fn spawn<F>(self, run: impl FnOnce(Io, CancellationToken) -> F + Send + 'static)
    where
        F: Future<Output = Report> + Send,
    {
        let Self { side, session } = self;
        session.spawn(move |drain| async move {
            match side.into_io().await {
                Ok(io) => run(io, drain).await,
                Err(error) => Report::new(super::End::Error, format!("the client's 101 was not sent: {error}")),
            }
        });
    }

    /// The connection, once the `101` has passed.
    ///
    /// # Errors
    ///
    /// The connection was lost before, or the server does not serve upgrades.
    pub(crate) async fn into_io(self) -> Result<Io, Error> {
        self.side.into_io().await
    }
}

impl Side {
    async fn into_io(self) -> Result<Io, Error> {
        match self {
            Self::Local(io) => Ok(io),
            Self::Hyper(on) => match on.await {
                Ok(upgraded) => Ok(Io(Kind::Hyper(TokioIo::new(upgraded)))),
                Err(error) => Err(Error::new(ErrorKind::Lost, Initiator::Remote).with(error)),
            },
        }
    }
}

impl Io {
    /// Two connected ends inside this process.
    #[must_use]
    pub fn pair() -> (Self, Self) {
        let (a, b) = tokio::io::duplex(PIPE);
        (Self(Kind::Pipe(a)), Self(Kind::Pipe(b)))
    }
}

impl fmt::Debug for Io {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Kind::Hyper(_) => "Io(Hyper)",
            Kind::Pipe(_) => "Io(Pipe)",
        })
    }
}

impl fmt::Debug for Pending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pending").finish_non_exhaustive()
    }
}

impl AsyncRead for Io {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.0 {
            Kind::Hyper(io) => Pin::new(io).poll_read(cx, buf),
            Kind::Pipe(io) => Pin::new(io).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Io {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.0 {
            Kind::Hyper(io) => Pin::new(io).poll_write(cx, buf),
            Kind::Pipe(io) => Pin::new(io).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.0 {
            Kind::Hyper(io) => Pin::new(io).poll_write_vectored(cx, bufs),
            Kind::Pipe(io) => Pin::new(io).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.0 {
            Kind::Hyper(io) => io.is_write_vectored(),
            Kind::Pipe(io) => io.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.0 {
            Kind::Hyper(io) => Pin::new(io).poll_flush(cx),
            Kind::Pipe(io) => Pin::new(io).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.0 {
            Kind::Hyper(io) => Pin::new(io).poll_shutdown(cx),
            Kind::Pipe(io) => Pin::new(io).poll_shutdown(cx),
        }
    }
}
