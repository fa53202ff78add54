//! Frame heads and control frames, written into arrays: nothing here allocates.

use std::{fmt, ops::Deref, str};

use super::{Error, mask::Mask};

/// Longest payload of a control frame (RFC 6455, 5.5).
pub const MAX_CONTROL: usize = 125;

/// Longest head, and a channel byte behind it.
pub(super) const MAX_HEAD: usize = 15;

pub(super) const FIN: u8 = 0x80;
pub(super) const MASKED: u8 = 0x80;
/// Length codes of the two longer forms.
pub(super) const LENGTH_16: u8 = 126;
pub(super) const LENGTH_64: u8 = 127;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Opcode {
    /// The next fragment of a message.
    Continuation = 0,
    /// The first frame of a text message.
    Text = 1,
    /// The first frame of a binary message.
    Binary = 2,
    /// The end of a connection.
    Close = 8,
    /// A question for a Pong.
    Ping = 9,
    /// The answer to a Ping, or a sign of life.
    Pong = 10,
}

impl Opcode {
    pub(super) fn from_bits(bits: u8) -> Option<Self> {
        Some(match bits {
            0 => Self::Continuation,
            1 => Self::Text,
            2 => Self::Binary,
            8 => Self::Close,
            9 => Self::Ping,
            10 => Self::Pong,
            _ => return None,
        })
    }

    pub(super) fn is_control(self) -> bool {
        self as u8 >= 8
    }
}

/// The bytes before the payload of one unfragmented frame.
#[derive(Clone, Copy)]
pub struct Head {
    bytes: [u8; MAX_HEAD],
    len: u8,
}

impl Head {
    /// The head of a whole message, or control frame, of `payload` bytes. A client gives a mask and applies it to the
    /// payload itself; a server gives none.
    #[must_use]
    pub fn new(opcode: Opcode, payload: usize, mask: Option<[u8; 4]>) -> Self {
        let mut head = Self { bytes: [0; MAX_HEAD], len: 0 };
        head.push(FIN | opcode as u8);
        let masked = if mask.is_some() { MASKED } else { 0 };
        match payload {
            // The casts are exact: each arm's range fits.
            0..126 => head.push(masked | payload as u8),
            126..0x1_0000 => {
                head.push(masked | LENGTH_16);
                head.extend(&(payload as u16).to_be_bytes());
            }
            _ => {
                head.push(masked | LENGTH_64);
                head.extend(&(payload as u64).to_be_bytes());
            }
        }
        if let Some(key) = mask {
            head.extend(&key);
        }
        head
    }

    pub(super) fn push(&mut self, byte: u8) {
        self.extend(&[byte]);
    }

    fn extend(&mut self, bytes: &[u8]) {
        let len = usize::from(self.len);
        self.bytes[len..len + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len() as u8;
    }
}

impl Deref for Head {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

impl fmt::Debug for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Head").field(&&**self).finish()
    }
}

/// The payload of a control frame.
#[derive(Clone, Copy)]
pub struct Payload {
    bytes: [u8; MAX_CONTROL],
    len: u8,
}

impl Payload {
    /// A payload of the first [`MAX_CONTROL`] bytes.
    #[must_use]
    pub fn truncated(bytes: &[u8]) -> Self {
        let mut payload = Self::default();
        payload.extend(&bytes[..bytes.len().min(MAX_CONTROL)]);
        payload
    }

    /// The caller has checked that there is room.
    pub(super) fn extend(&mut self, bytes: &[u8]) {
        let len = usize::from(self.len);
        self.bytes[len..len + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len() as u8;
    }
}

impl Default for Payload {
    fn default() -> Self {
        Self { bytes: [0; MAX_CONTROL], len: 0 }
    }
}

impl Deref for Payload {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Payload").field(&&**self).finish()
    }
}

impl PartialEq for Payload {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Payload {}

/// What a Close frame says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Close {
    /// The code, where there is one.
    pub code: Option<u16>,
    reason: Payload,
}

impl Close {
    pub(super) fn parse(payload: &Payload) -> Result<Self, Error> {
        let (code, reason) = match **payload {
            [] => (None, &[][..]),
            [_] => return Err(Error::CloseTruncated),
            [high, low, ref reason @ ..] => (Some(u16::from_be_bytes([high, low])), reason),
        };
        // RFC 6455, 7.4.1 and the IANA registry; 1004, 1005, 1006 and 1015 are never on the wire.
        if !matches!(code, None | Some(1000..=1003 | 1007..=1014 | 3000..=4999)) {
            return Err(Error::CloseCode);
        }
        if str::from_utf8(reason).is_err() {
            return Err(Error::CloseReason);
        }
        Ok(Self { code, reason: Payload::truncated(reason) })
    }

    /// The reason; mostly empty.
    #[must_use]
    pub fn reason(&self) -> &str {
        str::from_utf8(&self.reason).unwrap_or_default()
    }
}

/// A whole control frame.
#[derive(Clone, Copy)]
pub struct ControlFrame {
    bytes: [u8; 2 + 4 + MAX_CONTROL],
    len: u8,
}

impl ControlFrame {
    /// A Ping.
    #[must_use]
    pub fn ping(payload: &Payload, mask: Option<[u8; 4]>) -> Self {
        Self::new(Opcode::Ping, payload, mask)
    }

    /// The Pong that answers a Ping with `payload`.
    #[must_use]
    pub fn pong(payload: &Payload, mask: Option<[u8; 4]>) -> Self {
        Self::new(Opcode::Pong, payload, mask)
    }

    /// A Close. The reason is cut at a character to fit.
    #[must_use]
    pub fn close(code: u16, reason: &str, mask: Option<[u8; 4]>) -> Self {
        let mut payload = Payload::truncated(&code.to_be_bytes());
        let mut fits = reason.len().min(MAX_CONTROL - 2);
        while !reason.is_char_boundary(fits) {
            fits -= 1;
        }
        payload.extend(&reason.as_bytes()[..fits]);
        Self::new(Opcode::Close, &payload, mask)
    }

    fn new(opcode: Opcode, payload: &Payload, mask: Option<[u8; 4]>) -> Self {
        let head = Head::new(opcode, payload.len(), mask);
        let len = head.len() + payload.len();
        let mut frame = Self { bytes: [0; 2 + 4 + MAX_CONTROL], len: len as u8 };
        frame.bytes[..head.len()].copy_from_slice(&head);
        let body = &mut frame.bytes[head.len()..len];
        body.copy_from_slice(payload);
        if let Some(key) = mask {
            Mask::new(key).apply(body);
        }
        frame
    }
}

impl Deref for ControlFrame {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

impl fmt::Debug for ControlFrame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ControlFrame").field(&&**self).finish()
    }
}
