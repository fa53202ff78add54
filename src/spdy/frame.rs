//! Frames as they are written, and what their fields mean (SPDY/3.1, section 2.2 and 2.6).

use std::{fmt, num::NonZeroU32};

use super::{header_block, zlib};

/// Bytes before a frame's body.
pub const HEAD_LEN: usize = 8;

/// The longest body: lengths have 24 bits.
pub const MAX_FRAME_LEN: usize = (1 << 24) - 1;

/// The highest stream id: ids have 31 bits.
pub const MAX_STREAM_ID: u32 = 0x7fff_ffff;

pub(crate) const SYN_STREAM: u16 = 1;
pub(crate) const SYN_REPLY: u16 = 2;
pub(crate) const RST_STREAM: u16 = 3;
pub(crate) const SETTINGS: u16 = 4;
pub(crate) const PING: u16 = 6;
pub(crate) const GOAWAY: u16 = 7;
pub(crate) const HEADERS: u16 = 8;
pub(crate) const WINDOW_UPDATE: u16 = 9;

pub(crate) const FIN: u8 = 1;
pub(crate) const UNIDIRECTIONAL: u8 = 2;

/// Number of a stream: never 0, 31 bits, odd if the client opened it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(NonZeroU32);

impl StreamId {
    /// `None` for 0 and for more than 31 bits.
    #[must_use]
    pub const fn new(id: u32) -> Option<Self> {
        if id > MAX_STREAM_ID {
            return None;
        }
        match NonZeroU32::new(id) {
            Some(id) => Some(Self(id)),
            None => None,
        }
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0.get()
    }

    /// The client opened it.
    #[must_use]
    pub const fn is_client(self) -> bool {
        self.get() % 2 == 1
    }
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Why a stream was reset. Any number but 0 may come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ResetCode(pub u32);

impl ResetCode {
    /// The peer broke the protocol.
    pub const PROTOCOL_ERROR: Self = Self(1);
    /// There is no such stream.
    pub const INVALID_STREAM: Self = Self(2);
    /// The stream was refused before anything was done with it.
    pub const REFUSED_STREAM: Self = Self(3);
    /// Another version of SPDY.
    pub const UNSUPPORTED_VERSION: Self = Self(4);
    /// Its creator no longer needs the stream. Kubernetes uses this one for everything.
    pub const CANCEL: Self = Self(5);
    /// The sender failed.
    pub const INTERNAL_ERROR: Self = Self(6);
    /// The peer broke flow control.
    pub const FLOW_CONTROL_ERROR: Self = Self(7);
    /// A second SYN_REPLY.
    pub const STREAM_IN_USE: Self = Self(8);
    /// Data behind FIN.
    pub const STREAM_ALREADY_CLOSED: Self = Self(9);
}

impl fmt::Display for ResetCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match *self {
            Self::PROTOCOL_ERROR => "PROTOCOL_ERROR",
            Self::INVALID_STREAM => "INVALID_STREAM",
            Self::REFUSED_STREAM => "REFUSED_STREAM",
            Self::UNSUPPORTED_VERSION => "UNSUPPORTED_VERSION",
            Self::CANCEL => "CANCEL",
            Self::INTERNAL_ERROR => "INTERNAL_ERROR",
            Self::FLOW_CONTROL_ERROR => "FLOW_CONTROL_ERROR",
            Self::STREAM_IN_USE => "STREAM_IN_USE",
            Self::STREAM_ALREADY_CLOSED => "STREAM_ALREADY_CLOSED",
            Self(code) => return write!(f, "code {code}"),
        })
    }
}

/// Why a connection goes away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GoAwayCode(pub u32);

impl GoAwayCode {
    /// An orderly end.
    pub const OK: Self = Self(0);
    /// The peer broke the protocol.
    pub const PROTOCOL_ERROR: Self = Self(1);
    /// The sender failed.
    pub const INTERNAL_ERROR: Self = Self(2);
}

/// The head of a DATA frame of `len` bytes.
///
/// # Panics
///
/// If `len` is above [`MAX_FRAME_LEN`].
#[must_use]
pub fn data_head(stream: StreamId, len: usize, fin: bool) -> [u8; HEAD_LEN] {
    head(stream.get(), if fin { FIN } else { 0 }, len)
}

/// RST_STREAM.
#[must_use]
pub fn rst(stream: StreamId, code: ResetCode) -> [u8; 16] {
    two_words(RST_STREAM, stream.get(), code.0)
}

/// PING.
#[must_use]
pub fn ping(id: u32) -> [u8; 12] {
    let mut frame = [0; 12];
    frame[..HEAD_LEN].copy_from_slice(&control_head(PING, 0, 4));
    frame[HEAD_LEN..].copy_from_slice(&id.to_be_bytes());
    frame
}

/// GOAWAY. `last_good` is the last stream of the peer's that was accepted.
#[must_use]
pub fn goaway(last_good: Option<StreamId>, code: GoAwayCode) -> [u8; 16] {
    two_words(GOAWAY, last_good.map_or(0, StreamId::get), code.0)
}

/// WINDOW_UPDATE. Nobody in Kubernetes sends it, and nobody heeds it.
#[must_use]
pub fn window_update(stream: StreamId, delta: u32) -> [u8; 16] {
    two_words(WINDOW_UPDATE, stream.get(), delta & MAX_STREAM_ID)
}

/// One entry of SETTINGS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Persistence flags.
    pub flags: u8,
    /// 24 bits.
    pub id: u32,
    /// Its meaning depends on the id.
    pub value: u32,
}

/// Appends SETTINGS.
///
/// # Panics
///
/// If there are more entries than a frame holds.
pub fn settings(entries: &[Setting], out: &mut Vec<u8>) {
    out.extend_from_slice(&control_head(SETTINGS, 0, 4 + 8 * entries.len()));
    out.extend_from_slice(&(entries.len() as u32).to_be_bytes());
    for entry in entries {
        out.extend_from_slice(&(u32::from(entry.flags) << 24 | entry.id & 0x00ff_ffff).to_be_bytes());
        out.extend_from_slice(&entry.value.to_be_bytes());
    }
}

/// Writes the frames that have a header block, in the order in which they go out. Blocks are stored, not deflated: a
/// deflater costs 380 kB a connection to save ten bytes a stream.
#[derive(Clone, Debug, Default)]
pub struct HeaderEncoder {
    started: bool,
}

impl HeaderEncoder {
    /// At the beginning of a connection.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends SYN_STREAM: no associated stream, the highest priority, no flag but FIN, as Kubernetes sends it.
    ///
    /// # Panics
    ///
    /// If the headers do not fit into a frame, as with the other two.
    pub fn syn_stream(&mut self, stream: StreamId, headers: &[(&str, &str)], fin: bool, out: &mut Vec<u8>) {
        self.frame(SYN_STREAM, fin, &[stream.get().to_be_bytes(), [0; 4]], &[0; 2], headers, out);
    }

    /// Appends SYN_REPLY.
    pub fn syn_reply(&mut self, stream: StreamId, headers: &[(&str, &str)], fin: bool, out: &mut Vec<u8>) {
        self.frame(SYN_REPLY, fin, &[stream.get().to_be_bytes()], &[], headers, out);
    }

    /// Appends HEADERS. Never send it to a Go peer, which stops at it for ever.
    pub fn headers(&mut self, stream: StreamId, headers: &[(&str, &str)], fin: bool, out: &mut Vec<u8>) {
        self.frame(HEADERS, fin, &[stream.get().to_be_bytes()], &[], headers, out);
    }

    fn frame(
        &mut self,
        kind: u16,
        fin: bool,
        words: &[[u8; 4]],
        bytes: &[u8],
        headers: &[(&str, &str)],
        out: &mut Vec<u8>,
    ) {
        let mut plain = Vec::new();
        header_block::write_plain(headers, &mut plain);
        let len = 4 * words.len() + bytes.len() + zlib::stored_len(plain.len(), !self.started);
        out.extend_from_slice(&control_head(kind, if fin { FIN } else { 0 }, len));
        out.extend_from_slice(words.as_flattened());
        out.extend_from_slice(bytes);
        zlib::store(&plain, !self.started, out);
        self.started = true;
    }
}

fn two_words(kind: u16, first: u32, second: u32) -> [u8; 16] {
    let mut frame = [0; 16];
    frame[..HEAD_LEN].copy_from_slice(&control_head(kind, 0, 8));
    frame[8..12].copy_from_slice(&first.to_be_bytes());
    frame[12..].copy_from_slice(&second.to_be_bytes());
    frame
}

fn control_head(kind: u16, flags: u8, len: usize) -> [u8; HEAD_LEN] {
    head(0x8003_0000 | u32::from(kind), flags, len)
}

fn head(first: u32, flags: u8, len: usize) -> [u8; HEAD_LEN] {
    assert!(len <= MAX_FRAME_LEN, "a frame's length has 24 bits");
    let [a, b, c, d] = first.to_be_bytes();
    let [_, f, g, h] = (len as u32).to_be_bytes();
    [a, b, c, d, flags, f, g, h]
}
