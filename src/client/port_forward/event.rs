//! What a forwarder tells of itself, for logs and for users.

use std::{error, fmt, net::SocketAddr, num::NonZeroU16, time::Duration};

use super::ConnectionError;
use crate::{
    BoxError, Error,
    client::{Carrier, ExecuteError},
};

/// What happens in a [`Forwarder`](super::Forwarder).
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// The first connection to the server is there.
    Opened {
        /// What carries it.
        carrier: Carrier,
        /// Why another dialer had been asked first in vain.
        fell_back: Option<&'a ExecuteError>,
    },
    /// The connection to the server is over, and with it what was open on it. `None`: it ended in order.
    Lost(Option<&'a Error>),
    /// There is a connection to the server again.
    Redialled {
        /// What carries it.
        carrier: Carrier,
        /// Attempts it took.
        attempts: u32,
    },
    /// Dialling again failed. The next attempt is made when somebody waits for it, and not before that time has passed.
    DialFailed {
        /// Why.
        error: &'a DialError,
        /// Least time to the next attempt.
        pause: Duration,
    },
    /// A local program has connected.
    Accepted {
        /// The address that it connected to.
        local: SocketAddr,
        /// The program's address.
        peer: SocketAddr,
        /// The port of the pod that it wants.
        port: NonZeroU16,
    },
    /// One connection failed, alone or with the one to the server.
    ConnectionFailed {
        /// The address that the local program connected to.
        local: SocketAddr,
        /// The local program's address.
        peer: SocketAddr,
        /// The port of the pod that it wanted.
        port: NonZeroU16,
        /// Why.
        error: &'a ConnectionError,
    },
}

/// Why there is no connection to the server.
#[derive(Debug)]
#[non_exhaustive]
pub enum DialError {
    /// Nobody could say which pod.
    Resolve(BoxError),
    /// Dialling failed.
    Dial(ExecuteError),
}

impl fmt::Display for DialError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Resolve(_) => f.write_str("no pod to forward to"),
            Self::Dial(error) => error.fmt(f),
        }
    }
}

impl error::Error for DialError {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match self {
            Self::Resolve(error) => Some(&**error),
            Self::Dial(error) => error.source(),
        }
    }
}
