//! The one error of this folder.

use std::{error, fmt, io, sync::Arc};

use super::frame::ResetCode;

/// Why a SPDY connection ended, or a stream could not be opened. Message and type of `source()` may change; match on
/// `is_*`. Cheap to clone, for everybody who waits on a connection is told.
#[derive(Clone)]
pub struct Error(Arc<Inner>);

struct Inner {
    kind: Kind,
    message: &'static str,
    source: Option<io::Error>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The peer sent what SPDY forbids.
    Protocol,
    /// The peer, or the caller, asked for more than a limit of ours allows.
    Limit,
    /// The connection ended, or broke.
    Lost,
    /// This side or the other said GOAWAY.
    Closed,
    /// The peer was silent, or did not reply, for too long.
    Timeout,
    /// The peer reset the stream instead of replying to it.
    Reset(ResetCode),
}

impl Error {
    pub(crate) fn new(kind: Kind, message: &'static str) -> Self {
        Self(Arc::new(Inner { kind, message, source: None }))
    }

    pub(crate) fn protocol(message: &'static str) -> Self {
        Self::new(Kind::Protocol, message)
    }

    pub(crate) fn limit(message: &'static str) -> Self {
        Self::new(Kind::Limit, message)
    }

    /// The peer sent what SPDY forbids. The connection is over.
    #[must_use]
    pub fn is_protocol(&self) -> bool {
        self.0.kind == Kind::Protocol
    }

    /// A limit of this side was reached.
    #[must_use]
    pub fn is_limit(&self) -> bool {
        self.0.kind == Kind::Limit
    }

    /// The connection ended without a GOAWAY, or broke.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.0.kind == Kind::Lost
    }

    /// This side or the other closed the connection in order.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.0.kind == Kind::Closed
    }

    /// The peer was silent, or did not reply, for too long.
    #[must_use]
    pub fn is_timeout(&self) -> bool {
        self.0.kind == Kind::Timeout
    }

    /// The code with which the peer refused the stream.
    #[must_use]
    pub fn reset_code(&self) -> Option<ResetCode> {
        match self.0.kind {
            Kind::Reset(code) => Some(code),
            _ => None,
        }
    }
}

impl From<io::Error> for Error {
    fn from(source: io::Error) -> Self {
        Self(Arc::new(Inner { kind: Kind::Lost, message: "connection lost", source: Some(source) }))
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("kind", &self.0.kind)
            .field("message", &self.0.message)
            .field("source", &self.0.source)
            .finish()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.kind {
            Kind::Protocol => write!(f, "SPDY protocol error: {}", self.0.message),
            Kind::Reset(code) => write!(f, "{}: {code}", self.0.message),
            _ => f.write_str(self.0.message),
        }
    }
}

impl error::Error for Error {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        self.0.source.as_ref().map(|source| source as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_one_word() {
        assert_eq!(size_of::<Result<(), Error>>(), size_of::<usize>());
    }
}
