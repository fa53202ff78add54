//! When WebSocket is given up for SPDY.

use std::{fmt, future::Future, sync::Arc, time::Duration};

use super::{ExecuteError, memory::Memory};

/// How long a server that refused WebSocket is asked over SPDY at once.
const REMEMBERED: Duration = Duration::from_secs(600);

/// Which failures make a [`FallbackExecutor`](super::FallbackExecutor) or a
/// [`FallbackDialer`](super::port_forward::FallbackDialer) ask again, and what it remembers of it.
///
/// By default as kubectl: any answer but the upgrade asked for, so any refusal, a redirect, and a `101` without the
/// subprotocol. Not a connection that could not be made, TLS, or one that was lost before an answer. Whatever a policy
/// says, a request is sent twice at most, and never again behind a `101` that was right.
///
/// A 403 may come from a gateway that knows no WebSocket, or from an authorizer. In the second case SPDY is refused as
/// well, and the authorizer's log has it twice.
///
/// A server that answered a wrong `101` may have started the command already. Servers of Kubernetes do not answer so;
/// for others there is [`refusals_only`](Self::refusals_only).
///
/// Clones share what is remembered: of a server that refused WebSocket *and then* accepted SPDY, that the next command
/// is asked for over SPDY at once. For 10 minutes by default, of 1,024 servers, by scheme, host and port. If such a
/// server then refuses SPDY, WebSocket is tried, and the server forgotten if that is accepted. Commands and port-forward
/// are remembered apart: a server may speak WebSocket for one of them only.
#[derive(Clone)]
pub struct FallbackPolicy {
    retries: Arc<dyn Fn(&ExecuteError) -> bool + Send + Sync>,
    memory: Arc<Memory>,
}

impl FallbackPolicy {
    /// As kubectl.
    #[must_use]
    pub fn new() -> Self {
        Self { retries: Arc::new(|error| error.rejection().is_some()), memory: Arc::new(Memory::new(REMEMBERED)) }
    }

    /// As kubectl, but a `101` is never followed by a second request.
    #[must_use]
    pub fn refusals_only() -> Self {
        Self::new().retry_if(|error| {
            error.rejection().is_some_and(|rejection| rejection.code() != http::StatusCode::SWITCHING_PROTOCOLS)
        })
    }

    /// Retries what `retries` says. [`ExecuteError::Session`] is not shown to it.
    ///
    /// ```
    /// use tower_kube_streaming::client::{ExecuteError, FallbackPolicy};
    /// // A 401 is the same over SPDY.
    /// let policy = FallbackPolicy::new()
    ///     .retry_if(|error| error.rejection().is_some_and(|rejection| rejection.code() != 401));
    /// assert!(!policy.retries(&ExecuteError::NoStatus(String::new())));
    /// ```
    #[must_use]
    pub fn retry_if(mut self, retries: impl Fn(&ExecuteError) -> bool + Send + Sync + 'static) -> Self {
        self.retries = Arc::new(retries);
        self
    }

    /// Remembers a server that long; 0 remembers none. What was remembered is forgotten.
    #[must_use]
    pub fn remember_for(mut self, time: Duration) -> Self {
        self.memory = Arc::new(Memory::new(time));
        self
    }

    /// Whether that failure of one executor makes the other one be asked.
    #[must_use]
    pub fn retries(&self, error: &ExecuteError) -> bool {
        // Behind a 101 the command may run.
        let began = matches!(error, ExecuteError::Session(_) | ExecuteError::Failed(_) | ExecuteError::NoStatus(_));
        !began && (self.retries)(error)
    }

    /// Asks `server` one way, and the other way where that was refused. Returns what was opened, and why it is not the
    /// first way's. If both are refused, the error is the second's.
    pub(super) async fn ask<T, P, S>(
        &self,
        server: String,
        what: &'static str,
        primary: impl FnOnce() -> P + Send,
        secondary: impl FnOnce() -> S + Send,
    ) -> Result<(T, Option<Box<ExecuteError>>), ExecuteError>
    where
        P: Future<Output = Result<T, ExecuteError>> + Send,
        S: Future<Output = Result<T, ExecuteError>> + Send,
    {
        // For each of the two there is a gate of its own.
        let remembered = format!("{what}: {server}");
        if self.memory.has(&remembered) {
            let error = match secondary().await {
                Err(error) if self.retries(&error) => error,
                done => return done.map(|opened| (opened, None)),
            };
            // It may have changed. If it has not, its refusal stands.
            return match primary().await {
                Ok(opened) => {
                    self.memory.forget(&remembered);
                    Ok((opened, Some(Box::new(error))))
                }
                Err(_) => Err(error),
            };
        }
        let error = match primary().await {
            Err(error) if self.retries(&error) => error,
            done => return done.map(|opened| (opened, None)),
        };
        let code = error.rejection().map(|rejection| rejection.code().as_u16());
        tracing::debug!(server, code, "{what}");
        let opened = secondary().await?;
        self.memory.add(remembered);
        Ok((opened, Some(Box::new(error))))
    }
}

impl Default for FallbackPolicy {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for FallbackPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FallbackPolicy").finish_non_exhaustive()
    }
}
