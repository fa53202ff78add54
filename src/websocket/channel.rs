//! The channel byte: several byte streams in the messages of one connection, as `*.channel.k8s.io` has them.

use std::ops::Range;

use super::{Data, Error, Head, Opcode, base64};

/// The process reads it.
pub const STDIN: u8 = 0;
/// The process writes it.
pub const STDOUT: u8 = 1;
/// The process writes it.
pub const STDERR: u8 = 2;
/// How the process ended.
pub const ERROR: u8 = 3;
/// Sizes of the terminal.
pub const RESIZE: u8 = 4;

/// The first byte of a v5 message that closes a channel.
pub const CLOSE_SIGNAL: u8 = 255;

/// How channels and payload are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// Binary messages: a byte, then the payload.
    Binary,
    /// Text messages: a digit, then the payload in base64.
    Base64,
}

/// What a piece of a message means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChannelEvent {
    /// Payload of a known channel; never empty. Lies in the buffer that was passed in.
    Data {
        /// The channel.
        id: u8,
        /// Where the payload lies.
        range: Range<usize>,
    },
    /// The peer closed a channel from 0 to 4; reported once.
    Closed(u8),
}

/// Takes messages apart into channels.
///
/// Empty messages, unknown channels, and data on a channel after its close are ignored, as upstream does.
#[derive(Debug)]
pub struct Demux {
    encoding: Encoding,
    close_signals: bool,
    /// The last channel that is known.
    last: u8,
    state: State,
    /// One bit for each channel that is closed.
    closed: u8,
}

#[derive(Debug)]
enum State {
    /// The channel byte has not come.
    Start,
    Binary(u8),
    Base64 {
        id: u8,
        decoder: base64::Decoder,
        delivered: bool,
    },
    /// The rest of the message is of no interest.
    Skip,
    /// A close signal whose channel has not come.
    CloseOf,
    Close(u8),
}

impl Demux {
    /// A demultiplexer at the beginning of a connection. Only v5 has close signals; before it 255 is an unknown channel.
    #[must_use]
    pub fn new(encoding: Encoding, close_signals: bool) -> Self {
        Self { encoding, close_signals, last: RESIZE, state: State::Start, closed: 0 }
    }

    /// The last channel that is known; 4 by default. Only of the first five can be closed.
    #[must_use]
    pub fn last_channel(mut self, id: u8) -> Self {
        self.last = id;
        self
    }

    /// Takes the next piece of a message, which lies in `buf`. Base64 is decoded in place.
    ///
    /// # Errors
    ///
    /// A malformed close signal; malformed base64 of which a part has been delivered already. Base64 that is malformed
    /// before that is logged and ignored.
    pub fn data(&mut self, data: &Data, buf: &mut [u8]) -> Result<Option<ChannelEvent>, Error> {
        if data.start {
            self.state = State::Start;
        }
        let mut range = data.range.clone();
        while !range.is_empty() {
            match self.state {
                State::Start => {
                    self.state = self.open(buf[range.start]);
                    range.start += 1;
                }
                State::CloseOf => {
                    self.state = State::Close(buf[range.start]);
                    range.start += 1;
                }
                State::Close(_) => return Err(Error::ChannelClose),
                State::Binary(_) | State::Base64 { .. } | State::Skip => break,
            }
        }
        match &mut self.state {
            State::Start | State::Skip => Ok(None),
            State::CloseOf if data.end => Err(Error::ChannelClose),
            State::CloseOf => Ok(None),
            State::Close(id) => {
                let id = *id;
                if id > RESIZE {
                    return Err(Error::ChannelClose);
                }
                let first = data.end && !self.is_closed(id);
                if data.end {
                    self.closed |= 1 << id;
                }
                Ok(first.then_some(ChannelEvent::Closed(id)))
            }
            State::Binary(id) => Ok(found(*id, range)),
            State::Base64 { id, decoder, delivered } => {
                let decoded = decoder.decode(&mut buf[range.clone()]);
                let decoded = if data.end { decoded.and_then(|n| decoder.finish().map(|()| n)) } else { decoded };
                match decoded {
                    Ok(written) => {
                        *delivered |= written > 0;
                        Ok(found(*id, range.start..range.start + written))
                    }
                    Err(base64::Malformed) if *delivered => Err(Error::Base64),
                    Err(base64::Malformed) => {
                        tracing::debug!(channel = *id, "malformed base64 message ignored");
                        self.state = State::Skip;
                        Ok(None)
                    }
                }
            }
        }
    }

    fn open(&self, byte: u8) -> State {
        if self.close_signals && byte == CLOSE_SIGNAL {
            return State::CloseOf;
        }
        let id = match self.encoding {
            Encoding::Binary => byte,
            Encoding::Base64 => byte.wrapping_sub(b'0'),
        };
        if id > self.last || self.is_closed(id) {
            tracing::trace!(channel = id, "message for an unknown or closed channel ignored");
            return State::Skip;
        }
        match self.encoding {
            Encoding::Binary => State::Binary(id),
            Encoding::Base64 => State::Base64 { id, decoder: base64::Decoder::default(), delivered: false },
        }
    }

    fn is_closed(&self, id: u8) -> bool {
        id <= RESIZE && self.closed & (1 << id) != 0
    }
}

fn found(id: u8, range: Range<usize>) -> Option<ChannelEvent> {
    (!range.is_empty()).then_some(ChannelEvent::Data { id, range })
}

/// The head of a server's message of `payload` bytes (in base64, characters) for a channel, channel byte included.
#[must_use]
pub fn head(encoding: Encoding, id: u8, payload: usize) -> Head {
    let (opcode, byte) = match encoding {
        Encoding::Binary => (Opcode::Binary, id),
        // Wraps as Go's does, where there are more channels than characters.
        Encoding::Base64 => (Opcode::Text, b'0'.wrapping_add(id)),
    };
    let mut head = Head::new(opcode, payload + 1, None);
    head.push(byte);
    head
}

#[cfg(test)]
mod tests;
