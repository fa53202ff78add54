//! The versions of the remote command protocol, and which of them a carrier can speak.

use std::fmt;

/// A version of the remote command protocol (`remotecommand` in Kubernetes).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Version {
    /// `channel.k8s.io`: no half-close of stdin, errors as text.
    V1,
    /// `v2.channel.k8s.io`: stdin can be half-closed.
    V2,
    /// `v3.channel.k8s.io`: terminals can be resized.
    V3,
    /// `v4.channel.k8s.io`: errors are a `Status`, so exit codes arrive.
    V4,
    /// `v5.channel.k8s.io`: as v4, and channels can be closed over WebSocket.
    V5,
}

impl Version {
    /// All versions, newest first: the order in which a SPDY client offers them.
    pub const NEWEST_FIRST: [Self; 5] = [Self::V5, Self::V4, Self::V3, Self::V2, Self::V1];

    /// The name on the wire.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::V1 => "channel.k8s.io",
            Self::V2 => "v2.channel.k8s.io",
            Self::V3 => "v3.channel.k8s.io",
            Self::V4 => "v4.channel.k8s.io",
            Self::V5 => "v5.channel.k8s.io",
        }
    }

    /// The version of that name; no name means [`V1`](Self::V1), as it does for old clients and servers.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        if name.is_empty() {
            return Some(Self::V1);
        }
        Self::NEWEST_FIRST.into_iter().find(|version| version.name() == name)
    }

    /// Errors are a JSON `Status`, so a missing one is an error.
    #[must_use]
    pub fn has_status(self) -> bool {
        self >= Self::V4
    }

    /// Over SPDY a terminal has a resize stream.
    #[must_use]
    pub fn has_resize(self) -> bool {
        self >= Self::V3
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
