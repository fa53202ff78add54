//! Legacy port-forward over WebSocket, the client's side.

use std::io;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::WsProtocol;
use crate::websocket::{
    ControlFrame, Decoder, Event, Head, Limits, Opcode, Role,
    channel::{ChannelEvent, Demux, Encoding},
    fresh_key,
};

/// Longest payload of a message of ours.
const MESSAGE: usize = 24 * 1024;

/// What a server says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// Bytes of the pod's port with that index.
    Data(usize, Vec<u8>),
    /// Bytes of the text that says why that port failed.
    Error(usize, Vec<u8>),
    /// The connection is over: the code of the Close, if there was one.
    Closed(Option<u16>),
}

/// A connection whose `101` has come. The ports, which it knows by their index, are those of its request's query.
#[derive(Debug)]
pub struct Client<Io> {
    io: Io,
    encoding: Encoding,
    frames: Decoder,
    demux: Demux,
    /// What was read and not taken apart.
    buffer: Vec<u8>,
    at: usize,
    /// The beginnings of the channels: each tells its port in two bytes.
    announced: Vec<Vec<u8>>,
    ports: Vec<u16>,
}

impl<Io: AsyncRead + AsyncWrite + Unpin> Client<Io> {
    /// A client of those ports, at most 127.
    pub fn new(io: Io, protocol: WsProtocol, ports: &[u16]) -> Self {
        let channels = ports.len().min(super::over_websocket::MAX_PORTS) * 2;
        Self {
            io,
            encoding: protocol.encoding(),
            frames: Decoder::new(Role::Client, Limits::default()),
            demux: Demux::new(protocol.encoding(), false).last_channel(channels.saturating_sub(1) as u8),
            buffer: Vec::new(),
            at: 0,
            announced: vec![Vec::new(); channels],
            ports: ports.to_vec(),
        }
    }

    /// Sends bytes to the port with that index.
    ///
    /// # Errors
    ///
    /// The connection is lost, or there is no such port.
    pub async fn send(&mut self, port: usize, bytes: &[u8]) -> io::Result<()> {
        if port * 2 >= self.announced.len() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let channel = 2 * port as u8;
        for piece in bytes.chunks(MESSAGE) {
            let (opcode, payload) = match self.encoding {
                Encoding::Binary => (Opcode::Binary, [&[channel], piece].concat()),
                Encoding::Base64 => {
                    let text = BASE64_STANDARD.encode(piece);
                    (Opcode::Text, [&[b'0'.wrapping_add(channel)], text.as_bytes()].concat())
                }
            };
            let key = fresh_key();
            let mut frame = Head::new(opcode, payload.len(), Some(key)).to_vec();
            frame.extend(payload.iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key));
            self.io.write_all(&frame).await?;
        }
        self.io.flush().await
    }

    /// Closes the connection: no port gets more.
    ///
    /// # Errors
    ///
    /// The connection is lost.
    pub async fn close(&mut self) -> io::Result<()> {
        self.io.write_all(&ControlFrame::close(1000, "", Some(fresh_key()))).await?;
        self.io.flush().await
    }

    /// What the server says next. Its pings are answered.
    ///
    /// # Errors
    ///
    /// The connection is lost, or the server breaks the protocol: in particular, a channel that does not begin with its
    /// port.
    pub async fn next(&mut self) -> io::Result<Said> {
        loop {
            if self.at == self.buffer.len() {
                self.at = 0;
                self.buffer.clear();
                self.buffer.reserve(32 * 1024);
                if self.io.read_buf(&mut self.buffer).await? == 0 {
                    return Ok(Said::Closed(None));
                }
            }
            let rest = &mut self.buffer[self.at..];
            let step = self.frames.step(rest).map_err(broken)?;
            self.at += step.consumed;
            match step.event {
                Some(Event::Data(data)) => {
                    let Some(ChannelEvent::Data { id, range }) = self.demux.data(&data, rest).map_err(broken)? else {
                        continue;
                    };
                    let bytes = rest[range].to_vec();
                    if let Some(said) = self.said(id, bytes)? {
                        return Ok(said);
                    }
                }
                Some(Event::Ping(payload)) => {
                    self.io.write_all(&ControlFrame::pong(&payload, Some(fresh_key()))).await?;
                    self.io.flush().await?;
                }
                Some(Event::Close(close)) => return Ok(Said::Closed(close.code)),
                Some(Event::Pong(_)) | None => {}
            }
        }
    }

    /// Takes the port's number off the front of a channel.
    fn said(&mut self, id: u8, mut bytes: Vec<u8>) -> io::Result<Option<Said>> {
        let id = usize::from(id);
        let announced = &mut self.announced[id];
        let missing = (2 - announced.len()).min(bytes.len());
        announced.extend(bytes.drain(..missing));
        if announced.len() == 2 && announced[..] != self.ports[id / 2].to_le_bytes() {
            return Err(broken("the channel is another port's"));
        }
        Ok((!bytes.is_empty())
            .then(|| if id.is_multiple_of(2) { Said::Data(id / 2, bytes) } else { Said::Error(id / 2, bytes) }))
    }

    /// The connection, without what was read of it.
    pub fn into_io(self) -> Io {
        self.io
    }

    /// Whether every channel has told its port.
    #[must_use]
    pub fn is_announced(&self) -> bool {
        self.announced.iter().all(|port| port.len() == 2)
    }
}

fn broken(error: impl Into<crate::BoxError>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
