//! Frames out of bytes: RFC 6455 for both roles, without I/O.
//!
//! Call [`Decoder::step`] on what is left of a read until nothing is left:
//!
//! ```
//! # use tower_kube_streaming::websocket::{Decoder, Error, Event, Limits, Role};
//! # fn read(decoder: &mut Decoder, buf: &mut [u8]) -> Result<usize, Error> {
//! let mut stdin = 0;
//! let mut at = 0;
//! while at < buf.len() {
//!     let step = decoder.step(&mut buf[at..])?;
//!     if let Some(Event::Data(data)) = step.event {
//!         stdin += buf[at..][data.range].len();
//!     }
//!     at += step.consumed;
//! }
//! # Ok(stdin) }
//! # let mut decoder = Decoder::new(Role::Server, Limits::default());
//! # assert_eq!(read(&mut decoder, &mut [0x82, 0x81, 0, 0, 0, 0, b'x']), Ok(1));
//! ```
//!
//! Text is not checked to be UTF-8: Kubernetes takes text messages for bytes.

use std::ops::Range;

use super::{
    Close, Error, Opcode, Payload,
    frame::{FIN, LENGTH_16, LENGTH_64, MASKED, MAX_CONTROL},
    mask::Mask,
};

/// Which end of the connection we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// The peer is a client, and masks its frames.
    Server,
    /// The peer is a server, and does not.
    Client,
}

/// What a peer may ask of the decoder. Neither costs memory; both bound what one message can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Payload bytes of one message; 32 MiB, as `golang.org/x/net/websocket` has it.
    pub message: u64,
    /// Frames of one message; 1,024. A message of one-byte fragments costs a head for every byte.
    pub fragments: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { message: 32 << 20, fragments: 1024 }
    }
}

/// A piece of a message, unmasked in place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Data {
    /// Where it lies in the buffer that was passed in. Empty for an empty message, or if only the end was left.
    pub range: Range<usize>,
    /// The first piece of a message.
    pub start: bool,
    /// The last piece of a message.
    pub end: bool,
    /// The message is text.
    pub text: bool,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A piece of a message.
    Data(Data),
    /// A Ping, to be answered with a Pong of the same payload.
    Ping(Payload),
    /// A Pong.
    Pong(Payload),
    /// A Close. Whatever follows is consumed unread.
    Close(Close),
}

/// What one [`Decoder::step`] did.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub struct Step {
    /// Bytes consumed from the front of the buffer; never 0 unless the buffer is empty.
    pub consumed: usize,
    /// What they meant; `None` if they were a part of a frame only.
    pub event: Option<Event>,
}

/// A decoder of one direction of a connection. Holds no payload, except of control frames.
#[derive(Debug)]
pub struct Decoder {
    role: Role,
    limits: Limits,
    /// The beginning of a head.
    head: [u8; 14],
    head_len: usize,
    state: State,
    /// The message whose last frame has not come.
    message: Option<Message>,
    control: Payload,
}

#[derive(Debug)]
enum State {
    Head,
    Payload(Frame),
    Closed,
    Failed(Error),
}

#[derive(Debug)]
struct Frame {
    opcode: Opcode,
    fin: bool,
    left: u64,
    mask: Option<Mask>,
}

#[derive(Debug)]
struct Message {
    text: bool,
    /// A piece of it has been reported.
    started: bool,
    length: u64,
    fragments: u32,
}

impl Decoder {
    /// A decoder at the beginning of a connection.
    #[must_use]
    pub fn new(role: Role, limits: Limits) -> Self {
        Self {
            role,
            limits,
            head: [0; 14],
            head_len: 0,
            state: State::Head,
            message: None,
            control: Payload::default(),
        }
    }

    /// Takes bytes from the front of `buf`, up to the end of a frame at most. Payload of messages is unmasked in place.
    ///
    /// # Errors
    ///
    /// What the peer did wrong. The connection cannot be read on: every later call returns the same error.
    pub fn step(&mut self, buf: &mut [u8]) -> Result<Step, Error> {
        match self.advance(buf) {
            Ok(step) => Ok(step),
            Err(error) => {
                self.state = State::Failed(error);
                Err(error)
            }
        }
    }

    /// No message, and no frame, has begun without having ended.
    #[must_use]
    pub fn at_message_boundary(&self) -> bool {
        let between = match self.state {
            State::Head => self.head_len == 0,
            State::Closed => true,
            State::Payload(_) | State::Failed(_) => false,
        };
        between && self.message.is_none()
    }

    fn advance(&mut self, buf: &mut [u8]) -> Result<Step, Error> {
        let mut consumed = 0;
        if let State::Head = self.state {
            consumed = self.take_head(buf)?;
        }
        let frame = match &mut self.state {
            State::Payload(frame) => frame,
            State::Head => return Ok(Step { consumed, event: None }),
            State::Closed => return Ok(Step { consumed: buf.len(), event: None }),
            State::Failed(error) => return Err(*error),
        };

        let here = usize::try_from(frame.left).unwrap_or(usize::MAX).min(buf.len() - consumed);
        let range = consumed..consumed + here;
        consumed = range.end;
        if let Some(mask) = &mut frame.mask {
            mask.apply(&mut buf[range.clone()]);
        }
        frame.left -= here as u64;
        let (opcode, fin, ended) = (frame.opcode, frame.fin, frame.left == 0);
        if ended {
            self.state = State::Head;
        }
        if opcode.is_control() {
            self.control.extend(&buf[range]);
            let event = if ended { Some(self.finish_control(opcode)?) } else { None };
            return Ok(Step { consumed, event });
        }
        Ok(Step { consumed, event: self.data(range, fin && ended) })
    }

    /// Consumes bytes of a head; in `State::Payload` once it is whole.
    fn take_head(&mut self, buf: &[u8]) -> Result<usize, Error> {
        let mut consumed = 0;
        loop {
            let wanted = self.head_wanted();
            let here = (wanted - self.head_len).min(buf.len() - consumed);
            self.head[self.head_len..][..here].copy_from_slice(&buf[consumed..][..here]);
            self.head_len += here;
            consumed += here;
            if self.head_len < wanted {
                return Ok(consumed);
            }
            if wanted == 2 {
                self.check_first_bytes()?;
            }
            if self.head_len == self.head_wanted() {
                let frame = self.parse_head()?;
                self.state = State::Payload(frame);
                self.head_len = 0;
                return Ok(consumed);
            }
        }
    }

    /// How long the head is, as far as is known.
    fn head_wanted(&self) -> usize {
        if self.head_len < 2 {
            return 2;
        }
        let length = match self.head[1] & !MASKED {
            LENGTH_16 => 2,
            LENGTH_64 => 8,
            _ => 0,
        };
        2 + length + if self.head[1] & MASKED == 0 { 0 } else { 4 }
    }

    /// All that two bytes can tell, so that nobody waits for the rest of a wrong frame.
    fn check_first_bytes(&self) -> Result<(), Error> {
        let [first, second, ..] = self.head;
        if first & 0x70 != 0 {
            return Err(Error::ReservedBits);
        }
        let opcode = Opcode::from_bits(first & 0x0f).ok_or(Error::ReservedOpcode)?;
        match (self.role, second & MASKED != 0) {
            (Role::Server, false) => return Err(Error::NotMasked),
            (Role::Client, true) => return Err(Error::Masked),
            _ => {}
        }
        if opcode.is_control() {
            if first & FIN == 0 {
                return Err(Error::ControlFragmented);
            }
            // A known bug for the fuzz target `websocket_message` to find: 126 is no length but a code.
            let longest = MAX_CONTROL + usize::from(cfg!(planted));
            if usize::from(second & !MASKED) > longest {
                return Err(Error::ControlTooLong);
            }
            return Ok(());
        }
        match (opcode, &self.message) {
            (Opcode::Continuation, None) => Err(Error::UnexpectedContinuation),
            (Opcode::Text | Opcode::Binary, Some(_)) => Err(Error::ExpectedContinuation),
            _ => Ok(()),
        }
    }

    fn parse_head(&mut self) -> Result<Frame, Error> {
        let head = &self.head;
        let opcode = Opcode::from_bits(head[0] & 0x0f).ok_or(Error::ReservedOpcode)?;
        let (left, rest) = match head[1] & !MASKED {
            LENGTH_16 => (u64::from(u16::from_be_bytes([head[2], head[3]])), 4),
            LENGTH_64 => {
                let [_, _, length @ .., _, _, _, _] = *head;
                (u64::from_be_bytes(length), 10)
            }
            short => (u64::from(short), 2),
        };
        let shortest = match left {
            0..126 => 2,
            126..0x1_0000 => 4,
            _ => 10,
        };
        if rest != shortest {
            return Err(Error::LengthNotMinimal);
        }
        let mask =
            (head[1] & MASKED != 0).then(|| Mask::new([head[rest], head[rest + 1], head[rest + 2], head[rest + 3]]));
        let fin = head[0] & FIN != 0;
        if opcode.is_control() {
            self.control = Payload::default();
        } else {
            self.count(opcode, left)?;
        }
        Ok(Frame { opcode, fin, left, mask })
    }

    /// Holds a message to its limits before any of it is taken.
    fn count(&mut self, opcode: Opcode, length: u64) -> Result<(), Error> {
        let text = opcode == Opcode::Text;
        let message = self.message.get_or_insert(Message { text, started: false, length: 0, fragments: 0 });
        message.length = message.length.saturating_add(length);
        message.fragments += 1;
        if message.length > self.limits.message {
            return Err(Error::MessageTooLong);
        }
        if message.fragments > self.limits.fragments {
            return Err(Error::TooManyFragments);
        }
        Ok(())
    }

    fn data(&mut self, range: Range<usize>, end: bool) -> Option<Event> {
        let message = self.message.as_mut()?;
        if range.is_empty() && !end {
            return None;
        }
        let data = Data { range, start: !message.started, end, text: message.text };
        message.started = true;
        if end {
            self.message = None;
        }
        Some(Event::Data(data))
    }

    fn finish_control(&mut self, opcode: Opcode) -> Result<Event, Error> {
        Ok(match opcode {
            Opcode::Ping => Event::Ping(self.control),
            Opcode::Close => {
                let close = Close::parse(&self.control)?;
                self.state = State::Closed;
                Event::Close(close)
            }
            _ => Event::Pong(self.control),
        })
    }
}

#[cfg(test)]
mod tests;
