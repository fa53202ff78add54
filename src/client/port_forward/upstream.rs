//! One connection to a server, and the many into a pod that share it.

use std::{
    error, fmt, io,
    num::NonZeroU16,
    pin::Pin,
    task::{Context, Poll, Waker},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tracing::Instrument as _;

use crate::{
    BoxError, Error,
    client::{Carrier, ExecuteError, rejection::shown},
    port_forward::over_spdy_client::{self, Data, ErrorText, Forward, NoPair},
    spdy::RecvEnd,
};

/// A connection to a server, over which many go into a pod.
///
/// A server that is silent for 10 s is pinged, and lost after 60 s. Dropped, it closes in order once all its
/// [`Connection`]s are dropped too.
#[derive(Debug)]
pub struct Upstream {
    forward: Forward,
    carrier: Carrier,
    pub(super) fell_back: Option<Box<ExecuteError>>,
}

impl Upstream {
    /// Spawns what moves the bytes; it ends with the connection.
    pub(super) fn new<Io>(io: Io, carrier: Carrier) -> Self
    where
        Io: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (forward, connection) = over_spdy_client::connect(io);
        let driven = async {
            // How it ended is told to everybody who waits for it.
            let _ = connection.await;
        };
        tokio::spawn(driven.in_current_span());
        Self { forward, carrier, fell_back: None }
    }

    /// What carries it.
    #[must_use]
    pub fn carrier(&self) -> Carrier {
        self.carrier
    }

    /// Why another dialer had been asked first in vain.
    #[must_use]
    pub fn fell_back(&self) -> Option<&ExecuteError> {
        self.fell_back.as_deref()
    }

    /// Asks for a connection to `port` of the pod. A server says yes before it dials the pod; if that fails, reading does.
    ///
    /// # Errors
    ///
    /// [`ConnectionError::Rejected`] if the server takes no further one or is silent for 30 s,
    /// [`ConnectionError::Lost`] if the connection to it is over.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future gives up the connection to the pod, and no other.
    pub async fn connect(&self, port: NonZeroU16) -> Result<Connection, ConnectionError> {
        match self.forward.open(port).await {
            Ok(pair) => Ok(Connection { data: pair.data, error: pair.error, said: None }),
            Err(NoPair::Refused(error)) => Err(ConnectionError::Rejected(error.into())),
            Err(NoPair::Lost(_)) => Err(ConnectionError::Lost),
        }
    }

    /// Waits until the connection to the server is over.
    ///
    /// # Errors
    ///
    /// How it ended, if not in order.
    pub async fn closed(&self) -> Result<(), Error> {
        self.forward.closed().await
    }

    /// Closes in order: what was written goes out, and what is open is reset.
    pub fn close(&self) {
        self.forward.close();
    }

    /// How many streams are not over: two for each connection whose ends have not both finished.
    #[must_use]
    pub fn streams(&self) -> usize {
        self.forward.streams()
    }
}

/// A connection into a pod.
///
/// `shutdown` ends this side's direction, and the pod's goes on. Dropped without it, the connection is reset. Reading ends
/// where the pod did; it fails with `ConnectionReset` if the connection was reset or lost on the way, and with a
/// [`PodError`] if the server says that it failed. Whatever fails touches this connection alone.
#[derive(Debug)]
pub struct Connection {
    data: Data,
    error: ErrorText,
    /// What the server said of its failure.
    said: Option<String>,
}

impl Connection {
    /// Resets the connection: the pod sees an error and no end of file.
    pub fn reset(&self) {
        self.data.reset();
    }

    /// What the server has said until now of why the connection failed.
    pub fn error(&mut self) -> Option<&str> {
        // If it is cut off, what came before is what was said.
        let _ = self.error.poll_end(&mut Context::from_waker(Waker::noop()));
        self.keep_said();
        self.said.as_deref()
    }

    fn keep_said(&mut self) {
        if self.said.is_none() {
            self.said = self.error.so_far();
        }
    }

    /// Why it is cut off, if it is.
    pub(super) fn why_cut(&mut self) -> Option<ConnectionError> {
        if let Some(said) = self.error() {
            return Some(ConnectionError::Failed(PodError(said.to_owned())));
        }
        match self.data.poll_aborted(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(RecvEnd::Reset(_)) => Some(ConnectionError::Reset),
            Poll::Ready(_) => Some(ConnectionError::Lost),
            Poll::Pending => None,
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buf.filled().len();
        let read = Pin::new(&mut this.data).poll_read(cx, buf);
        if buf.filled().len() > before || buf.remaining() == 0 {
            return read;
        }
        // Nothing came, or nothing will. A server writes the error before it ends the data, or without an end.
        let whole = this.error.poll_end(cx).is_ready();
        if whole || read.is_ready() {
            this.keep_said();
            if let Some(said) = &this.said {
                return Poll::Ready(Err(io::Error::other(PodError(said.clone()))));
            }
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.data).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.data).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.data).poll_shutdown(cx)
    }
}

/// What a server said of a connection into a pod that failed, such as that nobody listens. `Display` escapes its control
/// characters, and cuts it at 1 KiB.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodError(pub String);

impl fmt::Display for PodError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        shown(f, self.0.trim_end())
    }
}

impl error::Error for PodError {}

/// Why one connection failed.
#[derive(Debug)]
#[non_exhaustive]
pub enum ConnectionError {
    /// The server did not take it, or did not answer in time.
    Rejected(BoxError),
    /// The server took it, and then said that it failed: mostly, that nobody listens at the pod's port.
    Failed(PodError),
    /// The pod, or the server, reset it.
    Reset,
    /// The connection to the server was lost, and this one with it.
    Lost,
    /// There was no connection to the server for too long.
    NoUpstream,
    /// The local program's side failed: it reset the connection, or is gone.
    Local(io::Error),
    /// It was still open when the forwarder stopped.
    Stopped,
}

impl fmt::Display for ConnectionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rejected(_) => f.write_str("the server did not take the connection"),
            Self::Failed(said) => said.fmt(f),
            Self::Reset => f.write_str("connection reset by the pod"),
            Self::Lost => f.write_str("lost connection to pod"),
            Self::NoUpstream => f.write_str("no connection to the server in time"),
            Self::Local(_) => f.write_str("the local connection failed"),
            Self::Stopped => f.write_str("the forwarder stopped"),
        }
    }
}

impl error::Error for ConnectionError {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match self {
            Self::Rejected(error) => Some(&**error),
            Self::Local(error) => Some(error),
            _ => None,
        }
    }
}
