//! Who dials: over SPDY, over SPDY inside WebSocket, and one after the other.

use std::{future::Future, sync::Arc, time::Duration};

use super::{PortForwardRequest, Upstream};
use crate::{
    client::{Carrier, ExecuteError, FallbackPolicy, handshake::Asker},
    port_forward::{PROTOCOL, TUNNEL},
    upgrade::Connect,
    websocket::{Limits, Pipe, Role},
};

/// Opens a connection to a server, over which many go into a pod.
pub trait OpenForward: Send + Sync {
    /// Dials, asks for the stream and checks the answer.
    ///
    /// # Errors
    ///
    /// Why there is none.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future closes the connection.
    fn dial(&self, request: &PortForwardRequest) -> impl Future<Output = Result<Upstream, ExecuteError>> + Send;
}

impl<D: OpenForward> OpenForward for Arc<D> {
    fn dial(&self, request: &PortForwardRequest) -> impl Future<Output = Result<Upstream, ExecuteError>> + Send {
        (**self).dial(request)
    }
}

/// Forwards over SPDY/3.1. It asks with POST.
#[derive(Clone, Debug)]
pub struct SpdyDialer<C> {
    asker: Asker<C>,
}

impl<C: Connect> SpdyDialer<C> {
    /// Dials with `connect`.
    pub fn new(connect: C) -> Self {
        Self { asker: Asker::new(Arc::new(connect)) }
    }

    /// Longest wait for a connection; 30 s by default.
    #[must_use]
    pub fn dial_timeout(mut self, limit: Duration) -> Self {
        self.asker.dial = limit;
        self
    }

    /// Longest wait for the answer; 60 s by default.
    #[must_use]
    pub fn answer_timeout(mut self, limit: Duration) -> Self {
        self.asker.answer = limit;
        self
    }
}

impl<C: Connect> OpenForward for SpdyDialer<C> {
    async fn dial(&self, request: &PortForwardRequest) -> Result<Upstream, ExecuteError> {
        let (io, _) = self.asker.spdy(&request.endpoint, &[PROTOCOL], "").await?;
        Ok(Upstream::new(io, Carrier::Spdy))
    }
}

/// Forwards over SPDY inside a WebSocket, which passes gateways that know no SPDY. It asks with GET, for
/// [`TUNNEL`] alone, as kubectl does.
#[derive(Clone, Debug)]
pub struct TunnelDialer<C> {
    asker: Asker<C>,
}

impl<C: Connect> TunnelDialer<C> {
    /// Dials with `connect`.
    pub fn new(connect: C) -> Self {
        Self { asker: Asker::new(Arc::new(connect)) }
    }

    /// Longest wait for a connection; 30 s by default.
    #[must_use]
    pub fn dial_timeout(mut self, limit: Duration) -> Self {
        self.asker.dial = limit;
        self
    }

    /// Longest wait for the answer; 60 s by default.
    #[must_use]
    pub fn answer_timeout(mut self, limit: Duration) -> Self {
        self.asker.answer = limit;
        self
    }
}

impl<C: Connect> OpenForward for TunnelDialer<C> {
    async fn dial(&self, request: &PortForwardRequest) -> Result<Upstream, ExecuteError> {
        let (io, _) = self.asker.websocket(&request.endpoint, &[TUNNEL]).await?;
        Ok(Upstream::new(Pipe::new(io, Role::Client, Limits::default()), Carrier::WebSocket))
    }
}

/// Asks one dialer, and another where the first was refused. See [`FallbackPolicy`].
///
/// If both are refused, the error is the second's, as kubectl has it.
#[derive(Clone, Debug)]
pub struct FallbackDialer<P, S> {
    primary: P,
    secondary: S,
    policy: FallbackPolicy,
}

impl<C: Connect> FallbackDialer<TunnelDialer<C>, SpdyDialer<C>> {
    /// WebSocket first and then SPDY, each with its defaults.
    pub fn new(connect: C) -> Self {
        let asker = Asker::new(Arc::new(connect));
        Self::of(TunnelDialer { asker: asker.clone() }, SpdyDialer { asker })
    }
}

impl<P: OpenForward, S: OpenForward> FallbackDialer<P, S> {
    /// Those two, with the default policy.
    pub fn of(primary: P, secondary: S) -> Self {
        Self { primary, secondary, policy: FallbackPolicy::new() }
    }

    /// Falls back as `policy` says. Executors and dialers that have clones of one policy share its memory.
    #[must_use]
    pub fn policy(mut self, policy: FallbackPolicy) -> Self {
        self.policy = policy;
        self
    }
}

impl<P: OpenForward, S: OpenForward> OpenForward for FallbackDialer<P, S> {
    async fn dial(&self, request: &PortForwardRequest) -> Result<Upstream, ExecuteError> {
        let server = request.endpoint.server();
        let asked = self.policy.ask(
            server,
            "port-forward fallback",
            || self.primary.dial(request),
            || self.secondary.dial(request),
        );
        let (mut upstream, fell_back) = asked.await?;
        upstream.fell_back = fell_back;
        Ok(upstream)
    }
}
