//! Port-forward over SPDY: the client's side.

use std::{
    io,
    num::NonZeroU16,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};

use crate::{
    Error, Initiator,
    error::Kind,
    spdy::{self, Config, Handle, ReadHalf, RecvEnd, ResetCode, Stream, WriteHalf},
};

/// The longest text that is taken from an error stream.
const MAX_TEXT: u64 = 64 * 1024;

/// Speaks port-forward on a connection whose `101` has come. Nothing happens unless [`spdy::Connection`] is polled; it
/// ends with the connection.
pub fn connect<Io>(io: Io) -> (Forward, spdy::Connection<Io>)
where
    Io: AsyncRead + AsyncWrite + Unpin,
{
    let (handle, connection) = spdy::client(io, Config::new());
    (Forward { handle, next: Arc::default() }, connection)
}

/// Opens connections into the pod. Clones share the one to the server, which closes in order when all of them and all
/// pairs are dropped.
#[derive(Clone, Debug)]
pub struct Forward {
    handle: Handle,
    /// The next request id.
    next: Arc<AtomicU64>,
}

impl Forward {
    /// Asks for a connection to `port`. As client-go: the error stream first, half-closed at once, then the data
    /// stream. Whether the pod takes it shows in [`Pair::data`], and why not in [`Pair::error`].
    ///
    /// # Errors
    ///
    /// If the server refuses or is silent for 30 s, or the connection is lost.
    ///
    /// # Cancel safety
    ///
    /// Dropped before its end it resets what it opened.
    pub async fn pair(&self, port: NonZeroU16) -> Result<Pair, Error> {
        let request = self.next.fetch_add(1, Ordering::Relaxed).to_string();
        let port = port.to_string();
        let open = async |role| {
            let headers = [("streamtype", role), ("port", port.as_str()), ("requestid", request.as_str())];
            self.handle.open(&headers).await.map_err(lost)
        };
        let mut error = open("error").await?;
        // Nothing goes this way.
        error.shutdown().await.map_err(lost)?;
        let (error, write) = error.into_split();
        let data = open("data").await?;
        Ok(Pair { data: Data(data), error: ErrorText { read: error, _write: write } })
    }

    /// How many streams are not over: two for each pair whose ends have not both finished.
    #[must_use]
    pub fn streams(&self) -> usize {
        self.handle.streams()
    }

    /// Closes in order: what was written goes out, what is open is reset.
    pub fn close(&self) {
        self.handle.close();
    }

    /// Waits until the connection to the server is over.
    ///
    /// # Errors
    ///
    /// How it ended, if not in order.
    pub async fn closed(&self) -> Result<(), Error> {
        self.handle.closed().await.map_err(lost)
    }
}

/// A connection into the pod.
#[derive(Debug)]
pub struct Pair {
    /// Its bytes.
    pub data: Data,
    /// Why there is none.
    pub error: ErrorText,
}

/// Bytes from and to a pod's port.
///
/// `shutdown` ends this side's direction, and the pod's goes on. Dropped without it, the connection is reset.
#[derive(Debug)]
pub struct Data(Stream);

impl Data {
    /// Resets the connection: the pod sees an error and no end of file.
    pub fn reset(&self) {
        self.0.reset(ResetCode::CANCEL);
    }
}

impl AsyncRead for Data {
    /// Ends where the pod did. A reset, from the pod or on the way, is `ConnectionReset`.
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.0).poll_read(cx, buf))?;
        if buf.filled().len() == before && buf.remaining() > 0 && self.0.ended() != Some(RecvEnd::Fin) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Data {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// What the server says of a connection that failed.
#[derive(Debug)]
pub struct ErrorText {
    read: ReadHalf,
    /// Kept: it is finished, not reset.
    _write: WriteHalf,
}

impl ErrorText {
    /// Waits until the server has said all it will. `None`: nothing, the connection came to its end or was reset. At
    /// most 64 KiB are read.
    ///
    /// # Errors
    ///
    /// If the connection to the server was lost before.
    pub async fn text(self) -> Result<Option<String>, Error> {
        let mut text = Vec::new();
        self.read.take(MAX_TEXT).read_to_end(&mut text).await.map_err(lost)?;
        Ok((!text.is_empty()).then(|| String::from_utf8_lossy(&text).into_owned()))
    }
}

fn lost(error: impl Into<crate::BoxError>) -> Error {
    Error::new(Kind::Lost, Initiator::Remote).with(error)
}
