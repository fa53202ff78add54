//! WebSocket, and SPDY where that is refused.

use std::sync::Arc;

use super::{ExecRequest, Execute, ExecuteError, FallbackPolicy, Opened, SpdyExecutor, WebSocketExecutor};
use crate::upgrade::Connect;

/// Asks one executor, and another where the first was refused. See [`FallbackPolicy`].
///
/// The streams are not touched before one of them was accepted, so what falls back has all of stdin. If both are refused,
/// the error is the second's, as kubectl has it.
///
/// Not for the URL of a container runtime (CRI's `Exec` and `Attach`): that is good for one request, which a refusal of
/// WebSocket uses up, so the other executor is told 404. Ask a runtime with [`SpdyExecutor`]; or in one request offer more
/// than v5 ([`WebSocketExecutor::protocols`]), and do without the end of stdin where it chooses v4.
#[derive(Clone, Debug)]
pub struct FallbackExecutor<P, S> {
    primary: P,
    secondary: S,
    policy: FallbackPolicy,
}

impl<C: Connect> FallbackExecutor<WebSocketExecutor<C>, SpdyExecutor<C>> {
    /// WebSocket first and then SPDY, each with its defaults.
    pub fn new(connect: C) -> Self {
        let connect = Arc::new(connect);
        Self::of(WebSocketExecutor::shared(Arc::clone(&connect)), SpdyExecutor::shared(connect))
    }
}

impl<P: Execute, S: Execute> FallbackExecutor<P, S> {
    /// Those two, with the default policy.
    pub fn of(primary: P, secondary: S) -> Self {
        Self { primary, secondary, policy: FallbackPolicy::new() }
    }

    /// Falls back as `policy` says. Executors that have clones of one policy share its memory.
    #[must_use]
    pub fn policy(mut self, policy: FallbackPolicy) -> Self {
        self.policy = policy;
        self
    }
}

impl<P: Execute, S: Execute> Execute for FallbackExecutor<P, S> {
    async fn open(&self, request: &ExecRequest) -> Result<Opened, ExecuteError> {
        let server = request.endpoint.server();
        let asked = self.policy.ask(
            server,
            "RemoteCommand fallback",
            || self.primary.open(request),
            || self.secondary.open(request),
        );
        let (opened, fell_back) = asked.await?;
        Ok(Opened { fell_back, ..opened })
    }
}
