//! What a client asks for.

use std::fmt;

use http::{HeaderName, HeaderValue, Uri};

use super::{ExecuteError, endpoint::Endpoint};
use crate::upgrade::StreamOptions;

/// A command to run, or a container to attach to: the streaming URL of an API server, a kubelet or a container runtime,
/// headers such as `Authorization`, and the streams that the URL's query asks for.
///
/// `Debug` shows neither query nor headers: they hold the command and credentials.
#[derive(Clone)]
pub struct ExecRequest {
    pub(super) endpoint: Endpoint,
    pub(super) options: StreamOptions,
}

impl ExecRequest {
    /// Asks for `uri`, whole with `http` or `https`, host and query. `options` says which of the streams the query asks
    /// for, and whether there is a terminal; the two must agree, because a server waits for the streams it was asked for.
    /// The command and the ports in `options` are not looked at.
    ///
    /// # Errors
    ///
    /// [`ExecuteError::Request`]: no URL, no host, another scheme, or credentials in the URL, which would go nowhere.
    pub fn new<U>(uri: U, options: StreamOptions) -> Result<Self, ExecuteError>
    where
        U: TryInto<Uri>,
        U::Error: Into<http::Error>,
    {
        Ok(Self { endpoint: Endpoint::new(uri)?, options })
    }

    /// Adds a header. Those of the handshake itself are set by the executor, whatever is added; `Host` is the URL's unless
    /// it is added.
    ///
    /// # Errors
    ///
    /// [`ExecuteError::Request`]: the name or the value is no header.
    pub fn header<N, V>(mut self, name: N, value: V) -> Result<Self, ExecuteError>
    where
        N: TryInto<HeaderName>,
        N::Error: Into<http::Error>,
        V: TryInto<HeaderValue>,
        V::Error: Into<http::Error>,
    {
        self.endpoint.header(name, value)?;
        Ok(self)
    }

    /// The URL.
    #[must_use]
    pub fn uri(&self) -> &Uri {
        &self.endpoint.uri
    }

    /// The streams.
    #[must_use]
    pub fn options(&self) -> &StreamOptions {
        &self.options
    }
}

impl fmt::Debug for ExecRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let StreamOptions { stdin, stdout, stderr, tty, .. } = self.options;
        f.debug_struct("ExecRequest")
            .field("endpoint", &self.endpoint)
            .field("streams", &format_args!("stdin={stdin} stdout={stdout} stderr={stderr} tty={tty}"))
            .finish_non_exhaustive()
    }
}
