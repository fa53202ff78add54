//! How a session ended.

use std::borrow::Cow;

/// How a session ended: what its log line says, and what metrics count.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// Protocol spoken with the client, as negotiated: `v5.channel.k8s.io`.
    pub protocol_in: Cow<'static, str>,
    /// Protocol spoken with the next hop, as negotiated; empty where the session ran here.
    pub protocol_out: Cow<'static, str>,
    /// Bytes from the client: payload where it is known, else as carried.
    pub bytes_in: u64,
    /// Bytes to the client: payload where it is known, else as carried.
    pub bytes_out: u64,
    /// How it ended.
    pub end: End,
    /// Why, in a few words for operators. Never bytes of the stream.
    pub cause: Cow<'static, str>,
}

/// How a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum End {
    /// The command ended with code 0, or the stream with a success.
    Success,
    /// The command ended with another code, which the client was told.
    ExitCode(u8),
    /// The client went away, or closed, before the end.
    ClientGone,
    /// Anything else: an error on the way, a limit, a drain.
    Error,
    /// The bytes were carried unread, so only the two ends know.
    Carried,
}

impl Report {
    /// A report with nothing counted.
    pub fn new(end: End, cause: impl Into<Cow<'static, str>>) -> Self {
        Self { protocol_in: "".into(), protocol_out: "".into(), bytes_in: 0, bytes_out: 0, end, cause: cause.into() }
    }
}
