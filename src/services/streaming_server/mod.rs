//! Runs a stream here, on a [`Runtime`].
//!
//! A leaf: it negotiates the protocol, asks the runtime to [open](Runtime::open) the permitted target, answers `101`,
//! and serves the session. What the runtime refuses is the answer.
//!
//! By default it offers what every packaged container runtime offers: over SPDY v1 to v4, over WebSocket `v4`, `v1`
//! and their base64 forms; port-forward over SPDY and legacy WebSocket. [`offer_v5`](StreamingServer::offer_v5) adds v5,
//! [`offer_tunnel`](StreamingServer::offer_tunnel) port-forward in a tunnel.
//!
//! In a kubelet the authorizing layer is in front of it; in a container runtime [`CriStreaming`](super::CriStreaming), which
//! serves the URLs that CRI's RPCs answer with.
//!
//! ```
//! # #[cfg(feature = "process")] {
//! use http::{Extensions, Request, header};
//! use tower::{ServiceBuilder, ServiceExt};
//! use tower_kube_streaming::{
//!     layers::{UpgradeDetectLayer, danger::PermitAllLayer},
//!     runtime::{Main, ProcessRuntime},
//!     services::StreamingServer,
//!     upgrade::{Dialect, Sessions, accept},
//! };
//!
//! # tokio_test::block_on(async {
//! let shell = Main { command: vec!["sh".into()], tty: true, stdin: true };
//! let service = ServiceBuilder::new()
//!     .layer(UpgradeDetectLayer::new(Dialect::Kubelet, Sessions::new()))
//!     .layer(PermitAllLayer)
//!     .service(StreamingServer::new(ProcessRuntime::new().container("default", "demo", "shell", shell)));
//! let mut request = Request::post("/exec/default/demo/shell?command=date&output=1")
//!     .header(header::CONNECTION, "Upgrade")
//!     .header(header::UPGRADE, "SPDY/3.1")
//!     .header("X-Stream-Protocol-Version", "v4.channel.k8s.io")
//!     .body(())?;
//! // The client's side, which a server has put into the request.
//! let _client = accept(&mut Extensions::new(), request.extensions_mut());
//! assert_eq!(service.oneshot(request).await?.status(), 101);
//! # Ok::<_, Box<dyn std::error::Error>>(()) }).unwrap();
//! # }
//! ```

mod negotiate;
mod port_forward;

use std::{
    convert::Infallible,
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Extensions, Request, Response, request};
use http_body_util::Full;
use tokio::time::{sleep, timeout};
use tower::Service;
use tracing::Instrument;

use self::negotiate::{Carrier, refused};
use crate::{
    BoxError,
    port_forward::{DialErrors, Limits as PortForwardLimits},
    remote_command::{
        Exit, Stdio, over_spdy,
        over_websocket::{self, WsProtocol, settling},
    },
    runtime::{Runtime, Session},
    upgrade::{Leg, Permit, Refusal, SessionLimits, Subresource, Target, accept, can_switch, is_websocket, permitted},
};

type Answer = Response<Full<Bytes>>;

/// Longest wait for a terminal's first size; a client that tells none gets its process all the same.
const FIRST_SIZE: Duration = Duration::from_millis(500);

/// Runs a stream here. See the [module docs](self).
pub struct StreamingServer<R> {
    runtime: Arc<R>,
    v5: bool,
    tunnel: bool,
    limits: SessionLimits,
    dial_errors: DialErrors,
    port_forward_limits: PortForwardLimits,
}

impl<R> Clone for StreamingServer<R> {
    fn clone(&self) -> Self {
        Self { runtime: Arc::clone(&self.runtime), ..*self }
    }
}

impl<R: Runtime> StreamingServer<R> {
    /// Serves from `runtime`.
    pub fn new(runtime: R) -> Self {
        Self {
            runtime: Arc::new(runtime),
            v5: false,
            tunnel: false,
            limits: SessionLimits::new(),
            dial_errors: DialErrors::default(),
            port_forward_limits: PortForwardLimits::default(),
        }
    }

    /// Also offers `v5.channel.k8s.io`, over both carriers. No packaged runtime does, so a kubelet that is to look like
    /// one does not either.
    #[must_use]
    pub fn offer_v5(mut self) -> Self {
        self.v5 = true;
        self
    }

    /// Also offers `SPDY/3.1+portforward.k8s.io`: port-forward in the messages of a WebSocket. No packaged runtime does.
    #[must_use]
    pub fn offer_tunnel(mut self) -> Self {
        self.tunnel = true;
        self
    }

    /// Holds the sessions to `limits`.
    #[must_use]
    pub fn limits(mut self, limits: SessionLimits) -> Self {
        self.limits = limits;
        self
    }

    /// What the client of a port-forward is told of a failed dial. The default is upstream's [`DialErrors::Report`].
    #[must_use]
    pub fn dial_errors(mut self, errors: DialErrors) -> Self {
        self.dial_errors = errors;
        self
    }

    /// Limits of each port-forward.
    #[must_use]
    pub fn port_forward_limits(mut self, limits: PortForwardLimits) -> Self {
        self.port_forward_limits = limits;
        self
    }

    async fn serve(self, mut request: request::Parts) -> Result<Answer, Box<Answer>> {
        let target = permitted(&request.extensions, "StreamingServer")
            .map_err(|(dialect, refusal)| refused(refusal, dialect))?;
        let dialect = target.dialect;
        let refuse = |refusal: Refusal| refused(refusal, dialect);
        if !can_switch(request.version, &request.headers, &request.extensions) {
            return Err(refuse(Refusal::upgrade_required(dialect)));
        }
        if target.subresource == Subresource::PortForward {
            return self.forward(request, target).await;
        }
        let carrier = if is_websocket(&request.headers) {
            negotiate::websocket(&request, self.v5, dialect)?
        } else {
            negotiate::spdy_version(&request.headers, self.v5, dialect)?
        };
        let session = self.runtime.open(&target).await.map_err(refuse)?;
        let mut response = carrier.switching_protocols();
        let settling = settling(&request.headers);
        let client = accept(&mut request.extensions, response.extensions_mut());
        let limits = self.limits;
        let span = carrier.span();
        let serve = move |io, drain| async move {
            let options = &target.options;
            match carrier {
                Carrier::Spdy(version) => {
                    over_spdy::serve(io, version, options, &limits, drain, |stdio| run(session, stdio)).await
                }
                Carrier::WebSocket { protocol, .. } => {
                    if protocol == WsProtocol::V5 {
                        sleep(settling).await;
                    }
                    over_websocket::serve(io, protocol, options, &limits, drain, |stdio| run(session, stdio)).await
                }
            }
        };
        client.spawn(move |io, drain| serve(io, drain).instrument(span));
        Ok(response)
    }
}

/// Runs the session. A terminal's first size is waited for a moment, so that a program that asks for it at once is told
/// the right one: clients send it right behind the `101`.
async fn run<S: Session>(session: S, mut stdio: Stdio) -> Result<Exit, BoxError> {
    if let Some(sizes) = &mut stdio.resize {
        let _ = timeout(FIRST_SIZE, sizes.wait_for(Option::is_some)).await;
    }
    session.run(stdio).await
}

impl<R: Runtime, B> Service<Request<B>> for StreamingServer<R> {
    type Response = Answer;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Answer, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (request, _) = request.into_parts();
        let target = permit(&request.extensions);
        let served = self.clone().serve(request);
        Box::pin(async move { Ok(served.await.unwrap_or_else(|refusal| refused_here(target.as_deref(), *refusal))) })
    }
}

fn permit(extensions: &Extensions) -> Option<Arc<Target>> {
    extensions.get::<Permit>().map(|permit| Arc::clone(&permit.0))
}

/// Says so in the log: a server in front that took this one for something else has only the code.
fn refused_here(target: Option<&Target>, refusal: Answer) -> Answer {
    if let Some(target) = target {
        tracing::info!(
            leg = %Leg::Handshake, subresource = %target.subresource, pod.namespace = ?target.namespace,
            pod.name = ?target.pod, code = refusal.status().as_u16(), "stream refused",
        );
    }
    refusal
}

impl<R> fmt::Debug for StreamingServer<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamingServer")
            .field("v5", &self.v5)
            .field("tunnel", &self.tunnel)
            .field("dial_errors", &self.dial_errors)
            .field("limits", &self.limits)
            .field("port_forward_limits", &self.port_forward_limits)
            .finish_non_exhaustive()
    }
}
