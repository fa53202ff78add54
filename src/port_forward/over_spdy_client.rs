//! Port-forward over SPDY: the client's side.

use std::{
    io, mem,
    num::NonZeroU16,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
};

use futures_util::FutureExt as _;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};

use crate::{
    Error, Initiator,
    error::Kind,
    spdy::{self, Config, Handle, ReadHalf, RecvEnd, ResetCode, Stream, WriteHalf},
};

/// The longest text that is taken from an error stream.
const MAX_TEXT: usize = 64 * 1024;

/// How much of an error stream is read at a time.
const TEXT: usize = 1024;

/// Speaks port-forward on a connection whose `101` has come. Nothing happens unless [`spdy::Connection`] is polled; it
/// ends with the connection.
pub fn connect<Io>(io: Io) -> (Forward, spdy::Connection<Io>)
where
    Io: AsyncRead + AsyncWrite + Unpin,
{
    connect_with(io, Config::new())
}

/// As [`connect`], with other limits.
pub fn connect_with<Io>(io: Io, config: Config) -> (Forward, spdy::Connection<Io>)
where
    Io: AsyncRead + AsyncWrite + Unpin,
{
    let (handle, connection) = spdy::client(io, config);
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
        self.open(port).await.map_err(lost)
    }

    /// As [`pair`](Self::pair). [`Lost`](NoPair::Lost) is told only of the whole connection.
    pub(crate) async fn open(&self, port: NonZeroU16) -> Result<Pair, NoPair> {
        let request = self.next.fetch_add(1, Ordering::Relaxed).to_string();
        let port = port.to_string();
        let told = |error: spdy::Error| match error.is_closed() || error.is_lost() || self.is_over() {
            true => NoPair::Lost(error),
            false => NoPair::Refused(error),
        };
        let open = async |role| {
            let headers = [("streamtype", role), ("port", port.as_str()), ("requestid", request.as_str())];
            self.handle.open(&headers).await.map_err(told)
        };
        let mut error = open("error").await?;
        // Nothing goes this way.
        if let Err(reset) = error.shutdown().await {
            return Err(match self.is_over() {
                true => NoPair::Lost(reset.into()),
                false => NoPair::Refused(reset.into()),
            });
        }
        let (error, write) = error.into_split();
        let data = open("data").await?;
        let error = ErrorText { read: Some(error), text: Vec::new(), _write: write };
        Ok(Pair { data: Data(data), error })
    }

    fn is_over(&self) -> bool {
        self.handle.closed().now_or_never().is_some()
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

    /// Ready when it was cut off: reset by either side, or over with the connection to the server.
    pub(crate) fn poll_aborted(&self, cx: &mut Context<'_>) -> Poll<RecvEnd> {
        self.0.poll_aborted(cx)
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

/// Why there is no pair.
#[derive(Debug)]
pub(crate) enum NoPair {
    /// The server does not take this one, or is silent about it.
    Refused(spdy::Error),
    /// The connection to the server is over, or about to be.
    Lost(spdy::Error),
}

impl From<NoPair> for crate::BoxError {
    fn from(error: NoPair) -> Self {
        match error {
            NoPair::Refused(error) | NoPair::Lost(error) => error.into(),
        }
    }
}

/// What the server says of a connection that failed.
#[derive(Debug)]
pub struct ErrorText {
    /// `None`: it has ended, or said more than is taken.
    read: Option<ReadHalf>,
    text: Vec<u8>,
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
    pub async fn text(mut self) -> Result<Option<String>, Error> {
        std::future::poll_fn(|cx| self.poll_end(cx)).await.map_err(lost)?;
        Ok(self.so_far())
    }

    /// Ready when the server has said all it will.
    pub(crate) fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(stream) = &mut self.read {
            let mut bytes = [0; TEXT];
            let mut buf = ReadBuf::new(&mut bytes);
            ready!(Pin::new(stream).poll_read(cx, &mut buf))?;
            let room = MAX_TEXT - self.text.len();
            self.text.extend(buf.filled().iter().take(room));
            if buf.filled().is_empty() || self.text.len() == MAX_TEXT {
                self.read = None;
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Takes what has been read.
    pub(crate) fn so_far(&mut self) -> Option<String> {
        let text = mem::take(&mut self.text);
        (!text.is_empty()).then(|| String::from_utf8_lossy(&text).into_owned())
    }
}

fn lost(error: impl Into<crate::BoxError>) -> Error {
    Error::new(Kind::Lost, Initiator::Remote).with(error)
}
