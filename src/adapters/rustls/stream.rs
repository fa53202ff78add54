//! A TLS connection over rustls' unbuffered API.
//!
//! rustls' buffered connection asks for one record at a time, and copies between buffers of its own. Here up to
//! [`READ`] bytes come by one call. A connection on which little is said keeps no buffers; behind much they stay until
//! little is said again.

mod outgoing;

use std::{
    fmt, io,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, BufMut, BytesMut};
use rustls::{
    ClientConfig, Error, InvalidMessage,
    client::UnbufferedClientConnection,
    pki_types::ServerName,
    unbuffered::{ConnectionState, UnbufferedStatus},
};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};

use self::outgoing::{Outgoing, Refused};

/// What is read at once where much comes: four records. Whole messages and records are kept there, of up to 64 KiB. No
/// whole number of pages: what rustls copies a record to often lies right behind, and then in the worst place (see [`copy`]).
const READ: usize = 66 * 1024;

/// What is read at once where little comes.
const QUIET: usize = 8 * 1024;

/// Plaintext that is taken at once.
const WRITE: usize = 1024 * 1024;

/// A record's plaintext, at most (RFC 8446, 5.1).
const RECORD: usize = 16 * 1024;

/// More than a record adds to its plaintext: head, nonce, content type and tag, or a key update before it.
const OVERHEAD: usize = 64;

/// A client's connection. Reading does not wait for writing, nor the other way round, so the halves of a split one may
/// be with two tasks.
pub(super) struct TlsStream<Io> {
    io: Io,
    session: UnbufferedClientConnection,
    /// What came and is not decrypted: at most [`READ`], and the beginning of a record or message.
    incoming: BytesMut,
    /// How much came by the last read.
    came: usize,
    /// What is decrypted and did not fit where it was to go.
    plaintext: BytesMut,
    /// What is encrypted and not sent: at most [`WRITE`], and the records' overhead.
    outgoing: Outgoing,
    /// How much was taken by the last write.
    took: usize,
    /// The peer's close_notify has come: nothing follows.
    ended: bool,
    /// Ours is on its way.
    closing: bool,
    /// A writer may wait for the connection to take more.
    waiting: bool,
    /// What went wrong, behind data that is read first.
    failed: Option<Error>,
}

/// What a step came to.
enum Step {
    /// A record was decrypted; there may be more.
    Read,
    /// All that came is dealt with, and data may be sent.
    Open,
    /// The handshake waits for the peer.
    Blocked,
}

/// What is to be encrypted once everything that came is dealt with.
#[derive(Clone, Copy)]
enum Send<'a> {
    Nothing,
    Data(&'a [u8]),
    Close,
}

impl<Io: AsyncRead + AsyncWrite + Unpin> TlsStream<Io> {
    /// Shakes hands. Dropping the future drops the connection.
    pub(super) async fn connect(config: Arc<ClientConfig>, name: ServerName<'static>, io: Io) -> io::Result<Self> {
        let session = UnbufferedClientConnection::new(config, name).map_err(invalid)?;
        let mut stream = Self {
            io,
            session,
            incoming: BytesMut::new(),
            came: 0,
            plaintext: BytesMut::new(),
            outgoing: Outgoing::default(),
            took: 0,
            ended: false,
            closing: false,
            waiting: false,
            failed: None,
        };
        loop {
            let step = stream.step(&mut ReadBuf::new(&mut []), Send::Nothing);
            // An alert goes out too. What is beneath may hold back what it is not told to send.
            let sent = stream.flush().await;
            match step.map_err(invalid)? {
                Step::Read => {}
                Step::Open => return sent.map(|()| stream),
                Step::Blocked => {
                    sent?;
                    stream.make_room(READ).map_err(invalid)?;
                    if stream.io.read_buf(&mut stream.incoming).await? == 0 {
                        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "tls handshake eof"));
                    }
                }
            }
        }
    }
}

impl<Io> TlsStream<Io> {
    /// Deals with what came, up to a record of data: that goes into `buf`, and behind it into `plaintext`. Once nothing is
    /// left, encrypts what is to be sent.
    fn step(&mut self, buf: &mut ReadBuf<'_>, send: Send<'_>) -> Result<Step, Error> {
        loop {
            let UnbufferedStatus { mut discard, state } = self.session.process_tls_records(&mut self.incoming);
            let mut step = None;
            match state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(record) = traffic.next_record() {
                        let record = record?;
                        discard += record.discard;
                        let (now, later) = record.payload.split_at(record.payload.len().min(buf.remaining()));
                        self.plaintext.reserve(later.len());
                        copy(now, buf);
                        copy(later, &mut self.plaintext);
                    }
                    step = Some(Step::Read);
                }
                Ok(ConnectionState::EncodeTlsData(mut data)) => {
                    self.outgoing.append(0, |room| data.encode(room).map_err(Refused::from))?;
                }
                // It is in the queue, where nothing overtakes it.
                Ok(ConnectionState::TransmitTlsData(data)) => data.done(),
                Ok(ConnectionState::PeerClosed) => self.ended = true,
                Ok(ConnectionState::WriteTraffic(mut traffic)) => {
                    let out = &mut self.outgoing;
                    match send {
                        Send::Nothing => {}
                        Send::Data(data) => {
                            let guess = data.len() + (data.len() / RECORD + 2) * OVERHEAD;
                            out.append(guess, |room| traffic.encrypt(data, room).map_err(Refused::from))?;
                        }
                        Send::Close => {
                            out.append(OVERHEAD, |room| traffic.queue_close_notify(room).map_err(Refused::from))?;
                        }
                    }
                    step = Some(Step::Open);
                }
                Ok(ConnectionState::BlockedHandshake) => step = Some(Step::Blocked),
                // Closed, by both. A client gets no early data.
                Ok(_) => step = Some(Step::Open),
                Err(error) => {
                    self.incoming.advance(discard);
                    self.alert();
                    return Err(error);
                }
            }
            self.incoming.advance(discard);
            if let Some(step) = step {
                return Ok(step);
            }
        }
    }

    /// Makes room to read into, behind the beginning of a record or message. That of a message in many records, each padded
    /// at will, would have no end: rustls counts the message's bytes alone.
    fn make_room(&mut self, size: usize) -> Result<(), Error> {
        if self.incoming.len() >= READ {
            return Err(InvalidMessage::HandshakePayloadTooLarge.into());
        }
        self.incoming.reserve(size);
        Ok(())
    }

    /// Takes what the peer is to be told of an error. The records that came are not looked at again.
    fn alert(&mut self) {
        while self.session.wants_write() {
            let Ok(ConnectionState::EncodeTlsData(mut data)) =
                self.session.process_tls_records(&mut self.incoming).state
            else {
                return;
            };
            if self.outgoing.append(0, |room| data.encode(room).map_err(Refused::from)).is_err() {
                return;
            }
        }
    }
}

impl<Io: AsyncWrite + Unpin> TlsStream<Io> {
    /// Sends what is encrypted.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Outgoing { bytes, range } = &mut self.outgoing;
        self.waiting = true;
        while range.start < range.end {
            match ready!(Pin::new(&mut self.io).poll_write(cx, &bytes[range.clone()]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                sent => range.start += sent,
            }
        }
        *range = 0..0;
        self.waiting = false;
        if self.took < QUIET {
            *bytes = Vec::new();
        }
        Poll::Ready(Ok(()))
    }

    /// Encrypts, once all that came has been dealt with. What was decrypted on the way waits in `plaintext`.
    fn encrypt(&mut self, send: Send<'_>) -> io::Result<()> {
        if let Some(error) = &self.failed {
            return Err(invalid(error.clone()));
        }
        loop {
            match self.step(&mut ReadBuf::new(&mut []), send) {
                Ok(Step::Read) => {}
                Ok(Step::Open | Step::Blocked) => return Ok(()),
                Err(error) => {
                    self.failed = Some(error.clone());
                    return Err(invalid(error));
                }
            }
        }
    }
}

impl<Io: AsyncRead + AsyncWrite + Unpin> AsyncRead for TlsStream<Io> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buf.filled().len();
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        loop {
            let fits = this.plaintext.len().min(buf.remaining());
            copy(&this.plaintext.split_to(fits), buf);
            if this.plaintext.is_empty() {
                this.plaintext = BytesMut::new();
            }
            while buf.remaining() > 0 && this.failed.is_none() && !this.ended {
                match this.step(buf, Send::Nothing) {
                    Ok(Step::Read) => {}
                    Ok(Step::Open | Step::Blocked) => break,
                    Err(error) => this.failed = Some(error),
                }
            }
            if buf.filled().len() > before {
                return Poll::Ready(Ok(()));
            }
            if let Some(error) = this.failed.clone() {
                // The alert, if it can be sent at once. A writer that waits would not be woken any more, and sends it.
                if !this.waiting {
                    let _ = this.poll_send(cx);
                }
                return Poll::Ready(Err(invalid(error)));
            }
            if this.ended {
                return Poll::Ready(Ok(()));
            }
            let quiet = this.came < QUIET;
            this.make_room(if quiet { QUIET } else { READ }).map_err(invalid)?;
            let read = pin!(this.io.read_buf(&mut this.incoming)).poll(cx);
            if read.is_pending() && quiet && this.incoming.is_empty() {
                this.incoming = BytesMut::new();
            }
            this.came = ready!(read)?;
            if this.came == 0 {
                let why = "peer closed connection without sending TLS close_notify";
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::UnexpectedEof, why)));
            }
        }
    }
}

impl<Io: AsyncRead + AsyncWrite + Unpin> AsyncWrite for TlsStream<Io> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_send(cx))?;
        if self.closing {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let taken = buf.len().min(WRITE);
        self.took = taken;
        self.encrypt(Send::Data(&buf[..taken]))?;
        match self.poll_send(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            // The rest goes with the next write or flush.
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Ready(Ok(taken)),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send(cx))?;
        let flushed = Pin::new(&mut self.io).poll_flush(cx);
        self.waiting = flushed.is_pending();
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.closing {
            self.closing = true;
            // A session that has failed has nothing more to say.
            let _ = self.encrypt(Send::Close);
        }
        ready!(self.poll_send(cx))?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

impl<Io: fmt::Debug> fmt::Debug for TlsStream<Io> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsStream").field("io", &self.io).finish_non_exhaustive()
    }
}

/// Copies in pieces that `memcpy` moves by vector registers. Beyond 2 KiB glibc takes `rep movsb`, which is twenty times
/// slower on AMD's Zen 3 where the destination is 1 to 31 bytes behind the source, modulo a page: a matter of luck.
fn copy(from: &[u8], to: &mut impl BufMut) {
    for piece in from.chunks(2048) {
        to.put_slice(piece);
    }
}

fn invalid(error: Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
mod tests;
