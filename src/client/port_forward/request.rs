//! What a port-forward asks for.

use http::{HeaderName, HeaderValue, Uri};

use crate::client::{ExecuteError, endpoint::Endpoint};

/// A pod whose ports are forwarded: the `portforward` URL of an API server, or a kubelet's or container runtime's, and
/// headers such as `Authorization`. Ports are named by each connection, not by the URL.
///
/// `Debug` shows neither query nor headers: they may hold credentials.
#[derive(Clone, Debug)]
pub struct PortForwardRequest {
    pub(super) endpoint: Endpoint,
}

impl PortForwardRequest {
    /// Asks for `uri`, whole with `http` or `https` and host.
    ///
    /// # Errors
    ///
    /// [`ExecuteError::Request`]: no URL, no host, another scheme, or credentials in the URL, which would go nowhere.
    pub fn new<U>(uri: U) -> Result<Self, ExecuteError>
    where
        U: TryInto<Uri>,
        U::Error: Into<http::Error>,
    {
        Ok(Self { endpoint: Endpoint::new(uri)? })
    }

    /// Adds a header. Those of the handshake itself are set by the dialer, whatever is added; `Host` is the URL's unless
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
}
