//! A stream that a server has granted.

use std::fmt;

use super::{Carrier, ExecuteError};
use crate::{
    remote_command::{
        Exit, Input, Stdio, Version, over_spdy_client, over_websocket::WsProtocol, over_websocket_client,
        status::Outcome,
    },
    upgrade::{Io, StreamOptions},
    websocket::client::Connected,
};

/// A stream that the server has granted, and nothing has been sent on. Dropping it closes the connection.
#[must_use = "dropping it closes the connection"]
pub struct Opened {
    pub(super) session: Session,
    pub(super) options: StreamOptions,
    pub(super) fell_back: Option<Box<ExecuteError>>,
}

pub(super) enum Session {
    WebSocket(Box<Connected<Io>>, WsProtocol),
    Spdy(Io, Version),
}

impl Opened {
    /// What carries it.
    #[must_use]
    pub fn carrier(&self) -> Carrier {
        match self.session {
            Session::WebSocket(..) => Carrier::WebSocket,
            Session::Spdy(..) => Carrier::Spdy,
        }
    }

    /// The negotiated subprotocol, such as `v5.channel.k8s.io`; empty for a WebSocket without one.
    #[must_use]
    pub fn protocol(&self) -> &'static str {
        match &self.session {
            Session::WebSocket(_, protocol) => protocol.name(),
            Session::Spdy(_, version) => version.name(),
        }
    }

    /// Why another executor had been asked first in vain.
    #[must_use]
    pub fn fell_back(&self) -> Option<&ExecuteError> {
        self.fell_back.as_deref()
    }

    /// Runs the session to its end. `stdio` is the user's: stdin is read, stdout and stderr are written, and
    /// [`Stdio::gone`] cancels. A stdin that was asked for and is not there is an empty one, missing outputs are
    /// discarded, and streams that were not asked for are left alone.
    ///
    /// Where the protocol cannot tell the end of stdin (over SPDY v1, over WebSocket all but v5), the command does not
    /// see it. Before v4 there is no exit code: a command that failed is [`ExecuteError::Failed`].
    ///
    /// # Errors
    ///
    /// [`Session`](ExecuteError::Session), [`Failed`](ExecuteError::Failed), [`NoStatus`](ExecuteError::NoStatus). A
    /// server that gives no sign of life for 60 s, pings included, is lost.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future closes the connection, without a Close; what was read of stdin is gone.
    pub async fn run(self, stdio: Stdio) -> Result<Exit, ExecuteError> {
        let stdio = asked_for(stdio, &self.options);
        let outcome = match self.session {
            Session::WebSocket(connected, protocol) => over_websocket_client::run(*connected, protocol, stdio).await,
            Session::Spdy(io, version) => over_spdy_client::run(io, version, &self.options, stdio).await,
        };
        match outcome.map_err(ExecuteError::Session)? {
            Outcome::Exited(exit) => Ok(exit),
            Outcome::Failed(message) => Err(ExecuteError::Failed(message)),
            Outcome::Invalid(why) => Err(ExecuteError::NoStatus(why)),
        }
    }
}

/// The streams that were asked for, and no others.
fn asked_for(mut stdio: Stdio, options: &StreamOptions) -> Stdio {
    stdio.stdin = options.stdin.then(|| stdio.stdin.take().unwrap_or_else(|| Input::new(tokio::io::empty())));
    stdio.stdout = stdio.stdout.filter(|_| options.stdout);
    stdio.stderr = stdio.stderr.filter(|_| options.stderr && !options.tty);
    stdio.resize = stdio.resize.filter(|_| options.tty);
    stdio
}

impl fmt::Debug for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opened")
            .field("carrier", &self.carrier())
            .field("protocol", &self.protocol())
            .field("fell_back", &self.fell_back)
            .finish_non_exhaustive()
    }
}
