//! What a peer can do wrong, and the Close code that tells it so.

use std::{error, fmt};

/// Why the bytes of a peer are not WebSocket, or not the channels of Kubernetes on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Error {
    /// A reserved bit is set; no extension was negotiated that could mean something by it.
    ReservedBits,
    /// A reserved opcode.
    ReservedOpcode,
    /// A client's frame without a mask (RFC 6455, 5.1).
    NotMasked,
    /// A server's frame with a mask (RFC 6455, 5.1).
    Masked,
    /// A length that fits into fewer bytes than it was written in.
    LengthNotMinimal,
    /// A control frame in fragments.
    ControlFragmented,
    /// A control frame with more than 125 bytes.
    ControlTooLong,
    /// A continuation of nothing.
    UnexpectedContinuation,
    /// A new message inside the fragments of another.
    ExpectedContinuation,
    /// A message longer than [`Limits::message`](super::Limits::message).
    MessageTooLong,
    /// More fragments than [`Limits::fragments`](super::Limits::fragments).
    TooManyFragments,
    /// A Close payload of one byte.
    CloseTruncated,
    /// A Close code that must not be on the wire.
    CloseCode,
    /// A Close reason that is not UTF-8.
    CloseReason,
    /// A channel close signal that is not the two bytes `FF cc` with a known channel.
    ChannelClose,
    /// A base64 message that turned out to be malformed after its beginning had been delivered.
    Base64,
}

impl Error {
    /// The code of the Close frame that answers it.
    #[must_use]
    pub fn close_code(self) -> u16 {
        match self {
            Self::CloseReason | Self::Base64 => 1007,
            Self::MessageTooLong | Self::TooManyFragments => 1009,
            _ => 1002,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ReservedBits => "reserved bits are set",
            Self::ReservedOpcode => "reserved opcode",
            Self::NotMasked => "client frame without a mask",
            Self::Masked => "server frame with a mask",
            Self::LengthNotMinimal => "length not in its shortest form",
            Self::ControlFragmented => "fragmented control frame",
            Self::ControlTooLong => "control frame of more than 125 bytes",
            Self::UnexpectedContinuation => "continuation without a message",
            Self::ExpectedContinuation => "new message inside a fragmented one",
            Self::MessageTooLong => "message too long",
            Self::TooManyFragments => "too many fragments",
            Self::CloseTruncated => "close payload of one byte",
            Self::CloseCode => "invalid close code",
            Self::CloseReason => "close reason is not UTF-8",
            Self::ChannelClose => "malformed channel close signal",
            Self::Base64 => "malformed base64",
        })
    }
}

impl error::Error for Error {}
