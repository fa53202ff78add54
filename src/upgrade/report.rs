//! How a session ended.

use std::borrow::Cow;

use super::Cause;

/// How a session ended: what its log line says, and what metrics count.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// Protocol spoken with the client, as negotiated: `v5.channel.k8s.io`.
    pub protocol_in: Cow<'static, str>,
    /// Protocol spoken with the next hop, as negotiated; empty where the session ran here.
    pub protocol_out: Cow<'static, str>,
    /// What it carried.
    pub bytes: Traffic,
    /// How it ended.
    pub end: End,
    /// Why.
    pub cause: Cause,
    /// What exactly happened, in a few words for the log. Never bytes of the stream.
    pub detail: Cow<'static, str>,
}

/// Bytes of a session, for each of its streams as far as they are told apart: payload, or what was carried unread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Traffic {
    /// From the client to the command.
    pub stdin: u64,
    /// From the command to the client.
    pub stdout: u64,
    /// From the command to the client.
    pub stderr: u64,
    /// From the client into the connections of a port-forward.
    pub data_in: u64,
    /// Out of the connections of a port-forward to the client.
    pub data_out: u64,
    /// From the client, passed on unread: heads and control included.
    pub carried_in: u64,
    /// To the client, passed on unread: heads and control included.
    pub carried_out: u64,
}

impl Traffic {
    /// All bytes from the client.
    #[must_use]
    pub fn from_client(&self) -> u64 {
        self.stdin + self.data_in + self.carried_in
    }

    /// All bytes to the client.
    #[must_use]
    pub fn to_client(&self) -> u64 {
        self.stdout + self.stderr + self.data_out + self.carried_out
    }
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
    pub fn new(end: End, cause: Cause, detail: impl Into<Cow<'static, str>>) -> Self {
        let bytes = Traffic::default();
        Self { protocol_in: "".into(), protocol_out: "".into(), bytes, end, cause, detail: detail.into() }
    }
}
