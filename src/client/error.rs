//! Why a stream did not come, or a command did not run to its end.

use std::{error, fmt, io};

use super::{Rejection, rejection::shown};
use crate::{BoxError, Error};

/// Why a stream did not come, or a command did not run to its end or is not known to have. What a server said is shown
/// with its control characters escaped.
#[derive(Debug)]
#[non_exhaustive]
pub enum ExecuteError {
    /// The request cannot be sent as it is.
    Request(String),
    /// No connection: name, TCP, TLS, or a proxy.
    Dial(io::Error),
    /// The connection was lost before an answer came, or the answer is not HTTP. Whether the server began is not known.
    NoAnswer(BoxError),
    /// The server answered something else than the upgrade that was asked for.
    Rejected(Box<Rejection>),
    /// The session broke behind the `101`, or was cancelled.
    Session(Error),
    /// The server could not run the command, or watch it to its end; its own sentence.
    Failed(String),
    /// The session ended without a status that can be read. The command may have run.
    NoStatus(String),
}

impl ExecuteError {
    /// The answer that was not the upgrade asked for.
    #[must_use]
    pub fn rejection(&self) -> Option<&Rejection> {
        match self {
            Self::Rejected(rejection) => Some(rejection),
            _ => None,
        }
    }

    pub(super) fn timed_out(what: &'static str) -> io::Error {
        io::Error::new(io::ErrorKind::TimedOut, what)
    }
}

impl fmt::Display for ExecuteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Request(why) => write!(f, "invalid request: {why}"),
            // client-go's words for both.
            Self::Dial(_) | Self::NoAnswer(_) => f.write_str("error sending request"),
            Self::Rejected(rejection) => rejection.fmt(f),
            Self::Session(_) => f.write_str("the session broke"),
            Self::Failed(message) | Self::NoStatus(message) => shown(f, message),
        }
    }
}

impl error::Error for ExecuteError {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match self {
            Self::Dial(error) => Some(error),
            Self::NoAnswer(error) => Some(&**error),
            Self::Session(error) => Some(error),
            Self::Request(_) | Self::Rejected(_) | Self::Failed(_) | Self::NoStatus(_) => None,
        }
    }
}
