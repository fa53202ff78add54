//! Why a streaming session ended before its time.

use std::{error, fmt};

/// An error of somebody else's type.
pub type BoxError = Box<dyn error::Error + Send + Sync>;

/// Whose fault an [`Error`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Initiator {
    /// Ours: a limit, a time-out, a bug.
    Library,
    /// The peer's: it broke the protocol, or went away.
    Remote,
    /// The caller's: it cancelled, or asked for what cannot be.
    User,
}

/// Why a streaming session ended. Message and type of `source()` may change; match on `is_*`.
pub struct Error(Box<Inner>);

struct Inner {
    kind: Kind,
    initiator: Initiator,
    source: Option<BoxError>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The connection ended before the session did.
    Lost,
    /// The peer broke the protocol.
    Protocol,
    /// The peer was silent, or did not do what it had to, for too long.
    Timeout,
    /// The session was cancelled.
    Cancelled,
}

impl Error {
    pub(crate) fn new(kind: Kind, initiator: Initiator) -> Self {
        Self(Box::new(Inner { kind, initiator, source: None }))
    }

    pub(crate) fn with(mut self, source: impl Into<BoxError>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// Whose fault it is.
    #[must_use]
    pub fn initiator(&self) -> Initiator {
        self.0.initiator
    }

    /// The connection ended before the session did.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.0.kind == Kind::Lost
    }

    /// The peer broke the protocol.
    #[must_use]
    pub fn is_protocol(&self) -> bool {
        self.0.kind == Kind::Protocol
    }

    /// A time limit passed.
    #[must_use]
    pub fn is_timeout(&self) -> bool {
        self.0.kind == Kind::Timeout
    }

    /// The session was cancelled.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.0.kind == Kind::Cancelled
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("kind", &self.0.kind)
            .field("initiator", &self.0.initiator)
            .field("source", &self.0.source)
            .finish()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0.kind {
            Kind::Lost => "connection lost",
            Kind::Protocol => "protocol error",
            Kind::Timeout => "timed out",
            Kind::Cancelled => "cancelled",
        })
    }
}

impl error::Error for Error {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}
