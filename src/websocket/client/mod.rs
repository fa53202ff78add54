//! The client's end of a connection, on `fastwebsockets`: the only folder that names it.
//!
//! Its reader is not cancel-safe and grows with what it reads ahead. So the two directions are two values, the reader is
//! polled to the end by whoever owns it, and no read is longer than 64 KiB.

mod batch;

use std::{
    collections::hash_map::RandomState,
    error, fmt,
    future::{Future, poll_fn},
    hash::{BuildHasher as _, Hasher as _},
    io::{self, Cursor},
    pin::{Pin, pin},
    task::{Context, Poll},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::{Bytes, BytesMut};
use fastwebsockets::{Frame, OpCode, WebSocket, WebSocketError};
use http::{
    HeaderValue, Method, Request, Response, StatusCode, Version,
    header::{
        CONNECTION, InvalidHeaderValue, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
    },
};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{
    AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, Chain, Join, ReadBuf, ReadHalf, Sink, Take, WriteHalf,
};

pub use self::batch::Batch;
use super::{
    Close, Data, Error, Limits, Payload,
    channel::{CLOSE_SIGNAL, Encoding},
    handshake::{self, ResponseError},
};

/// Longest response head.
const MAX_HEAD: usize = 64 * 1024;

/// Longest body of a refusal that is kept; a `Status` takes less than 1 KiB.
const MAX_REFUSAL: usize = 64 * 1024;

/// Most that is read at once: the library reserves the length of a frame on top of what it has read ahead.
const MAX_READ: u64 = 64 * 1024;

/// Longest frame, which the library holds whole and reserves before it is there. Kubernetes sends 32 KiB.
const MAX_FRAME: usize = 4 << 20;

/// Why a connection did not become a WebSocket.
#[derive(Debug)]
#[non_exhaustive]
pub enum ConnectError {
    /// The server answered something else than 101. The body is cut at 64 KiB.
    Refused(Box<Response<Bytes>>),
    /// The server's 101 is not an answer to our request.
    Response(ResponseError),
    /// A subprotocol cannot be written into a header.
    Protocol(InvalidHeaderValue),
    /// HTTP failed.
    Http(hyper::Error),
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(response) => write!(f, "the server answered {}", response.status()),
            Self::Response(_) => f.write_str("the server's handshake is wrong"),
            Self::Protocol(_) => f.write_str("invalid subprotocol"),
            Self::Http(_) => f.write_str("the handshake failed"),
        }
    }
}

impl error::Error for ConnectError {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match self {
            Self::Refused(_) => None,
            Self::Response(error) => Some(error),
            Self::Protocol(error) => Some(error),
            Self::Http(error) => Some(error),
        }
    }
}

impl From<hyper::Error> for ConnectError {
    fn from(error: hyper::Error) -> Self {
        Self::Http(error)
    }
}

/// A connection, as its two directions.
#[derive(Debug)]
pub struct Connected<Io> {
    /// From the server.
    pub reader: Reader<Io>,
    /// To the server.
    pub writer: Writer<Io>,
    /// The subprotocol the server chose; `None` if none was offered.
    pub protocol: Option<&'static str>,
}

/// Opens a WebSocket on `io`. The request brings its target, `Host` and credentials; method, version and the headers of
/// the handshake are set here. Redirects are refusals.
///
/// # Errors
///
/// The refusal, with its body, or what went wrong.
///
/// # Cancel safety
///
/// Dropping the future drops the connection.
pub async fn connect<Io>(
    io: Io,
    mut request: Request<()>,
    offered: &[&'static str],
) -> Result<Connected<Io>, ConnectError>
where
    Io: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let key = prepare(&mut request, offered).map_err(ConnectError::Protocol)?;
    let (mut sender, mut connection) = http1::Builder::new().max_buf_size(MAX_HEAD).handshake(TokioIo::new(io)).await?;
    let mut finished = false;
    let mut drive = |cx: &mut Context<'_>| {
        if !finished {
            // An error reaches the response as well.
            finished = connection.poll_without_shutdown(cx).is_ready();
        }
        finished
    };
    let mut response = pin!(sender.send_request(request.map(|()| Empty::<Bytes>::new())));
    let response = poll_fn(|cx| {
        drive(cx);
        response.as_mut().poll(cx)
    })
    .await?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        let (parts, body) = response.into_parts();
        let mut body = pin!(Limited::new(body, MAX_REFUSAL).collect());
        let body = poll_fn(|cx| {
            drive(cx);
            body.as_mut().poll(cx)
        })
        .await;
        // Whatever is wrong with the body, the refusal is the answer.
        let body = body.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        return Err(ConnectError::Refused(Box::new(Response::from_parts(parts, body))));
    }
    let protocol = handshake::check_response(response.status(), response.headers(), &key, offered)
        .map_err(ConnectError::Response)?;
    poll_fn(|cx| if drive(cx) { Poll::Ready(()) } else { Poll::Pending }).await;
    let parts = connection.into_parts();
    let (read, write) = tokio::io::split(parts.io.into_inner());
    Ok(Connected { reader: Reader::new(parts.read_buf, read), writer: Writer::new(write), protocol })
}

impl<Io: AsyncRead + AsyncWrite> Connected<Io> {
    /// A connection whose handshake is done, with the first byte behind it still to be read.
    pub(crate) fn new(io: Io, protocol: Option<&'static str>) -> Self {
        let (read, write) = tokio::io::split(io);
        Self { reader: Reader::new(Bytes::new(), read), writer: Writer::new(write), protocol }
    }
}

/// Makes `request` a handshake that offers those subprotocols, and returns its key.
pub(crate) fn prepare<B>(request: &mut Request<B>, offered: &[&str]) -> Result<HeaderValue, InvalidHeaderValue> {
    let key = key();
    *request.method_mut() = Method::GET;
    *request.version_mut() = Version::HTTP_11;
    let headers = request.headers_mut();
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(SEC_WEBSOCKET_VERSION, handshake::VERSION);
    headers.insert(SEC_WEBSOCKET_KEY, key.clone());
    headers.remove(SEC_WEBSOCKET_PROTOCOL);
    if !offered.is_empty() {
        headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::try_from(offered.join(", "))?);
    }
    Ok(key)
}

/// A nonce. It has to differ, not to be secret: each `RandomState` has keys of its own.
fn key() -> HeaderValue {
    let mut nonce = [0; 16];
    for half in nonce.as_chunks_mut::<8>().0 {
        *half = RandomState::new().build_hasher().finish().to_ne_bytes();
    }
    HeaderValue::try_from(BASE64_STANDARD.encode(nonce)).expect("base64 is a header value")
}

/// What a server sent.
#[derive(Debug)]
pub enum Received {
    /// A piece of a message; the range is that of the whole payload.
    Data(Data, BytesMut),
    /// A Ping, to be answered with a Pong of the same payload.
    Ping(Payload),
    /// A Pong.
    Pong,
    /// A Close; nothing follows.
    Closed(Close),
}

/// The direction from the server.
pub struct Reader<Io> {
    frames: WebSocket<Join<Capped<ReadHalf<Io>>, Sink>>,
    /// Text or not, bytes and fragments of the message whose end has not come.
    message: Option<(bool, u64, u32)>,
}

impl<Io: AsyncRead> Reader<Io> {
    fn new(ahead: Bytes, io: ReadHalf<Io>) -> Self {
        let io = Capped(Cursor::new(ahead).chain(io).take(MAX_READ));
        let mut frames =
            WebSocket::after_handshake(tokio::io::join(io, tokio::io::sink()), fastwebsockets::Role::Client);
        // A reader that writes would stop reading when the peer does.
        frames.set_auto_close(false);
        frames.set_auto_pong(false);
        frames.set_max_message_size(MAX_FRAME);
        Self { frames, message: None }
    }

    /// Reads a frame.
    ///
    /// # Errors
    ///
    /// `UnexpectedEof` if the connection ended without a Close, `InvalidData` if it is no WebSocket, else what reading
    /// it gave.
    ///
    /// # Cancel safety
    ///
    /// None: a future that is dropped takes the beginning of a frame with it. Drop it together with the connection.
    pub async fn read(&mut self) -> io::Result<Received> {
        let frame = self.frames.read_frame().await.map_err(io_error)?;
        let (fin, opcode) = (frame.fin, frame.opcode);
        let payload = match frame.payload {
            fastwebsockets::Payload::Bytes(bytes) => bytes,
            other => BytesMut::from(&other[..]),
        };
        self.take(fin, opcode, payload).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }

    fn take(&mut self, fin: bool, opcode: OpCode, payload: BytesMut) -> Result<Received, Error> {
        let text = match (opcode, self.message) {
            (OpCode::Ping | OpCode::Pong | OpCode::Close, _) => return control(opcode, &payload),
            (OpCode::Continuation, Some((text, ..))) => text,
            (OpCode::Text, None) => true,
            (OpCode::Binary, None) => false,
            (OpCode::Continuation, None) => return Err(Error::UnexpectedContinuation),
            (OpCode::Text | OpCode::Binary, Some(_)) => return Err(Error::ExpectedContinuation),
        };
        let limits = Limits::default();
        let (_, length, fragments) = self.message.unwrap_or_default();
        let (length, fragments) = (length + payload.len() as u64, fragments + 1);
        if length > limits.message {
            return Err(Error::MessageTooLong);
        }
        if fragments > limits.fragments {
            return Err(Error::TooManyFragments);
        }
        let data = Data { range: 0..payload.len(), start: self.message.is_none(), end: fin, text };
        self.message = (!fin).then_some((text, length, fragments));
        Ok(Received::Data(data, payload))
    }
}

fn control(opcode: OpCode, payload: &[u8]) -> Result<Received, Error> {
    if payload.len() > super::MAX_CONTROL {
        return Err(Error::ControlTooLong);
    }
    let payload = Payload::truncated(payload);
    Ok(match opcode {
        OpCode::Ping => Received::Ping(payload),
        OpCode::Close => Received::Closed(Close::parse(&payload)?),
        _ => Received::Pong,
    })
}

impl<Io> fmt::Debug for Reader<Io> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").field("message", &self.message).finish_non_exhaustive()
    }
}

/// The direction to the server. Single frames are the library's, masked with its random keys, and written from here: its own
/// vectored write spins for ever on a connection that takes no more bytes. Each is copied behind its head; what there is
/// much of goes in a [`Batch`].
pub struct Writer<Io> {
    io: WriteHalf<Io>,
}

impl<Io: AsyncWrite> Writer<Io> {
    fn new(io: WriteHalf<Io>) -> Self {
        Self { io }
    }

    /// Sends a message to a channel.
    ///
    /// # Errors
    ///
    /// What writing gave.
    ///
    /// # Cancel safety
    ///
    /// None of the methods has any: a future that is dropped leaves half a frame behind it.
    pub async fn channel(&mut self, encoding: Encoding, id: u8, payload: &[u8]) -> io::Result<()> {
        match encoding {
            Encoding::Binary => self.write(Frame::binary([&[id], payload].concat().into())).await,
            Encoding::Base64 => {
                let mut message = String::from(char::from(b'0' + id));
                BASE64_STANDARD.encode_string(payload, &mut message);
                self.write(Frame::text(message.into_bytes().into())).await
            }
        }
    }

    /// Sends a batch, and empties it.
    ///
    /// # Errors
    ///
    /// What writing gave.
    pub async fn batch(&mut self, batch: &mut Batch) -> io::Result<()> {
        self.io.write_all(batch.take()).await?;
        self.io.flush().await
    }

    /// Closes a channel (v5).
    ///
    /// # Errors
    ///
    /// What writing gave.
    pub async fn close_channel(&mut self, id: u8) -> io::Result<()> {
        self.write(Frame::binary(vec![CLOSE_SIGNAL, id].into())).await
    }

    /// Sends an empty Ping.
    ///
    /// # Errors
    ///
    /// What writing gave.
    pub async fn ping(&mut self) -> io::Result<()> {
        self.write(Frame::new(true, OpCode::Ping, None, Vec::new().into())).await
    }

    /// Answers a Ping.
    ///
    /// # Errors
    ///
    /// What writing gave.
    pub async fn pong(&mut self, payload: &Payload) -> io::Result<()> {
        self.write(Frame::pong(payload.to_vec().into())).await
    }

    /// Sends a Close.
    ///
    /// # Errors
    ///
    /// What writing gave.
    pub async fn close(&mut self, code: u16) -> io::Result<()> {
        self.write(Frame::close(code, b"")).await
    }

    async fn write(&mut self, mut frame: Frame<'_>) -> io::Result<()> {
        let mut bytes = Vec::new();
        frame.mask();
        self.io.write_all(frame.write(&mut bytes)).await?;
        self.io.flush().await
    }
}

impl<Io> fmt::Debug for Writer<Io> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writer").finish_non_exhaustive()
    }
}

fn io_error(error: WebSocketError) -> io::Error {
    match error {
        WebSocketError::IoError(error) => error,
        WebSocketError::UnexpectedEOF => io::ErrorKind::UnexpectedEof.into(),
        WebSocketError::ConnectionClosed => io::ErrorKind::BrokenPipe.into(),
        error => io::Error::new(io::ErrorKind::InvalidData, error),
    }
}

/// What was read ahead, then the connection; never more than [`MAX_READ`] at once.
struct Capped<Io>(Take<Chain<Cursor<Bytes>, Io>>);

impl<Io: AsyncRead + Unpin> AsyncRead for Capped<Io> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.0.set_limit(MAX_READ);
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}
