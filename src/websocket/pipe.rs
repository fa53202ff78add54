//! The payload of binary messages as a stream of bytes: how SPDY travels inside WebSocket.

use std::{
    fmt,
    future::Future,
    io::{self, IoSlice},
    pin::{Pin, pin},
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    task::{coop, unconstrained},
    time::{Sleep, sleep},
};

use super::{
    Close, ControlFrame, Decoder, Error, Event, Head, Limits, Opcode, Payload, Role,
    mask::{Mask, fresh_key},
};

/// Longest payload of a message of ours: many peers cap at 32 KiB.
const MESSAGE: usize = 32 * 1024;

/// How long the peer may take to close once we have.
const CLOSE: Duration = Duration::from_secs(10);

/// Bytes of an output buffer that is kept while it is empty.
const KEPT: usize = 1024;

const NORMAL: u16 = 1000;
const UNSUPPORTED: u16 = 1003;

/// A stream of bytes in the binary messages of a connection.
///
/// - **Reading** gives the payload of the peer's messages, wherever they are cut; fragments and empty messages mean
///   nothing. It is unmasked in the caller's buffer. Close 1000 is the end; any other, a lost connection, a text message
///   and a breach of the protocol are errors, and the latter two are told to the peer.
/// - **Writing** makes a message of each call, of up to 32 KiB, never in fragments. Flush behind it: what the
///   connection did not take of a message is kept, up to one.
/// - **Shutting down** sends all that waits and Close 1000, and waits for the peer's Close for up to 10 s. What the peer
///   still sends is thrown away.
/// - Pings are answered while reading, between messages. None are sent: what is carried has its own, or goes without.
///
/// Poll it from one task: reading also writes, to answer. An idle pipe holds no buffer.
pub struct Pipe<Io> {
    io: Io,
    role: Role,
    decoder: Decoder,
    input: Input,
    /// Nothing more can be read from the connection.
    eof: bool,
    /// What is left of the frames in flight.
    out: Vec<u8>,
    sent: usize,
    /// The latest Ping that was not answered. One answer to several is enough (RFC 6455, 5.5.3).
    pong: Option<Payload>,
    output: Output,
    /// Runs while the peer's Close is waited for.
    patience: Option<Pin<Box<Sleep>>>,
}

/// What the peer may still say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Input {
    Open,
    Ended,
    Failed(Failure),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failure {
    Text,
    Protocol(Error),
    Closed(Option<u16>),
    Lost,
}

/// What we may still say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Output {
    Open,
    /// A Close is the next.
    Closing(u16),
    Closed,
}

impl<Io> Pipe<Io> {
    /// A pipe over a connection that has switched to WebSocket.
    pub fn new(io: Io, role: Role, limits: Limits) -> Self {
        Self {
            io,
            role,
            decoder: Decoder::new(role, limits),
            input: Input::Open,
            eof: false,
            out: Vec::new(),
            sent: 0,
            pong: None,
            output: Output::Open,
            patience: None,
        }
    }

    fn mask(&self) -> Option<[u8; 4]> {
        (self.role == Role::Client).then(fresh_key)
    }

    /// Takes apart what was read. The payload is moved to the front of `bytes`; returns how much there is.
    fn take(&mut self, bytes: &mut [u8]) -> usize {
        let (mut at, mut payload) = (0, 0);
        while at < bytes.len() && self.input == Input::Open {
            let step = match self.decoder.step(&mut bytes[at..]) {
                Ok(step) => step,
                Err(error) => {
                    self.fail(Failure::Protocol(error), Some(error.close_code()));
                    break;
                }
            };
            match step.event {
                Some(Event::Data(data)) if data.text => self.fail(Failure::Text, Some(UNSUPPORTED)),
                Some(Event::Data(data)) => {
                    let len = data.range.len();
                    bytes.copy_within(data.range.start + at..data.range.end + at, payload);
                    payload += len;
                }
                Some(Event::Ping(payload)) => self.pong = Some(payload),
                Some(Event::Close(Close { code: Some(NORMAL), .. })) => self.input = Input::Ended,
                Some(Event::Close(close)) => self.fail(Failure::Closed(close.code), Some(close.code.unwrap_or(NORMAL))),
                Some(Event::Pong(_)) | None => {}
            }
            at += step.consumed;
        }
        payload
    }

    fn fail(&mut self, failure: Failure, close: Option<u16>) {
        self.input = Input::Failed(failure);
        if let (Output::Open, Some(code)) = (self.output, close) {
            self.output = Output::Closing(code);
        }
    }
}

impl<Io: AsyncRead + AsyncWrite + Unpin> Pipe<Io> {
    /// Reads from the connection once, into `bytes`. Ready with the payload that it brought, which may be none.
    fn poll_take(&mut self, cx: &mut Context<'_>, bytes: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut read = ReadBuf::new(bytes);
        let result = ready!(Pin::new(&mut self.io).poll_read(cx, &mut read));
        let read = read.filled().len();
        if result.is_err() || read == 0 {
            self.eof = true;
            if self.input == Input::Open {
                self.fail(Failure::Lost, None);
            }
            result?;
        }
        Poll::Ready(Ok(if self.input == Input::Open { self.take(&mut bytes[..read]) } else { 0 }))
    }

    /// Writes what is left of a message, then control frames: never inside one.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            while self.sent < self.out.len() {
                let written = ready!(Pin::new(&mut self.io).poll_write(cx, &self.out[self.sent..]))?;
                if written == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                self.sent += written;
            }
            self.sent = 0;
            self.out.clear();
            self.out.shrink_to(KEPT);
            match (self.pong.take(), self.output) {
                (Some(pong), Output::Open) => self.out.extend_from_slice(&ControlFrame::pong(&pong, self.mask())),
                (_, Output::Closing(code)) => {
                    self.out.extend_from_slice(&ControlFrame::close(code, "", self.mask()));
                    self.output = Output::Closed;
                }
                _ => return Poll::Ready(Ok(())),
            }
        }
    }

    /// Answers, where there is something to answer, as far as there is room. A write that fails is told to who writes.
    fn answer(&mut self, cx: &mut Context<'_>) {
        if (self.pong.is_some() || self.input != Input::Open)
            && let Poll::Ready(Ok(())) = self.poll_drain(cx)
        {
            let _ = Pin::new(&mut self.io).poll_flush(cx);
        }
    }
}

impl Failure {
    fn into_io(self) -> io::Error {
        match self {
            Self::Text => io::Error::new(io::ErrorKind::InvalidData, "websocket: a text message"),
            Self::Protocol(error) => io::Error::new(io::ErrorKind::InvalidData, error),
            Self::Closed(code) => {
                let code = code.unwrap_or(1005);
                io::Error::new(io::ErrorKind::ConnectionAborted, format!("websocket: closed with code {code}"))
            }
            Self::Lost => {
                io::Error::new(io::ErrorKind::UnexpectedEof, "websocket: the connection ended without a Close")
            }
        }
    }
}

impl<Io: AsyncRead + AsyncWrite + Unpin> AsyncRead for Pipe<Io> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            this.answer(cx);
            match this.input {
                Input::Open if buf.remaining() > 0 => {}
                Input::Open | Input::Ended => return Poll::Ready(Ok(())),
                Input::Failed(failure) => return Poll::Ready(Err(failure.into_io())),
            }
            let payload = ready!(this.poll_take(cx, buf.initialize_unfilled()))?;
            if payload > 0 {
                buf.advance(payload);
                this.answer(cx);
                return Poll::Ready(Ok(()));
            }
            // A flood of pings, or of nothing, must not keep the others from their turn.
            ready!(coop::poll_proceed(cx)).made_progress();
        }
    }
}

impl<Io: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Pipe<Io> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        ready!(this.poll_drain(cx))?;
        if this.output != Output::Open {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let message = &buf[..buf.len().min(MESSAGE)];
        let mask = this.mask();
        let head = Head::new(Opcode::Binary, message.len(), mask);
        if let Some(key) = mask {
            this.out.extend_from_slice(&head);
            this.out.extend_from_slice(message);
            Mask::new(key).apply(&mut this.out[head.len()..]);
            // What is not taken now is taken by the flush.
            let _ = this.poll_drain(cx)?;
            return Poll::Ready(Ok(message.len()));
        }
        let parts = [IoSlice::new(&head), IoSlice::new(message)];
        let written = ready!(Pin::new(&mut this.io).poll_write_vectored(cx, &parts))?;
        if written == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        let (of_head, of_message) = (written.min(head.len()), written.saturating_sub(head.len()));
        this.out.extend_from_slice(&head[of_head..]);
        this.out.extend_from_slice(&message[of_message..]);
        Poll::Ready(Ok(message.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.output == Output::Open {
            this.output = Output::Closing(NORMAL);
        }
        ready!(this.poll_drain(cx))?;
        ready!(Pin::new(&mut this.io).poll_flush(cx))?;
        // What is unread when a connection is dropped makes its system throw away what the peer has not read.
        let mut scratch = [0; 4096];
        while !this.eof && !matches!(this.input, Input::Ended | Input::Failed(Failure::Closed(_))) {
            let patience = this.patience.get_or_insert_with(|| Box::pin(sleep(CLOSE)));
            // Unconstrained: a flood that uses up the task's budget must not stop the clock.
            if pin!(unconstrained(patience.as_mut())).poll(cx).is_ready() {
                break;
            }
            // If it fails that is an end as well.
            let _ = ready!(this.poll_take(cx, &mut scratch));
        }
        if this.input == Input::Open {
            this.input = Input::Ended;
        }
        Pin::new(&mut this.io).poll_shutdown(cx)
    }
}

impl<Io> fmt::Debug for Pipe<Io> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pipe").field("role", &self.role).field("input", &self.input).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
