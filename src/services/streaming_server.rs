//! Runs a stream here, on a [`Runtime`].
//!
//! A leaf: it negotiates the protocol, asks the runtime to [open](Runtime::open) the permitted target, answers `101`,
//! and serves the session. What the runtime refuses is the answer.
//!
//! By default it offers what every packaged container runtime offers: over SPDY v1 to v4, over WebSocket `v4`, `v1`
//! and their base64 forms. [`offer_v5`](StreamingServer::offer_v5) adds v5.

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
use http::{
    HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode,
    header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_PROTOCOL, UPGRADE},
    request,
};
use http_body_util::Full;
use tokio::time::{sleep, timeout};
use tower::Service;

use super::upgrade_proxy::upgrade_required;
use crate::{
    BoxError,
    remote_command::{
        Exit, Stdio, Version, over_spdy,
        over_websocket::{self, WsProtocol, refuse_handshake, settling},
    },
    runtime::{Runtime, Session},
    upgrade::{
        Dialect, Refusal, SessionLimits, Subresource, accept, can_switch, is_websocket, list, permitted, upgrade_names,
    },
    websocket::handshake,
};

type Answer = Response<Full<Bytes>>;

/// Longest wait for a terminal's first size; a client that tells none gets its process all the same.
const FIRST_SIZE: Duration = Duration::from_millis(500);

const X_STREAM_PROTOCOL_VERSION: HeaderName = HeaderName::from_static("x-stream-protocol-version");
const X_ACCEPTED_STREAM_PROTOCOL_VERSIONS: HeaderName = HeaderName::from_static("x-accepted-stream-protocol-versions");

/// Runs a stream here. See the [module docs](self).
pub struct StreamingServer<R> {
    runtime: Arc<R>,
    v5: bool,
    limits: SessionLimits,
}

impl<R> Clone for StreamingServer<R> {
    fn clone(&self) -> Self {
        Self { runtime: Arc::clone(&self.runtime), v5: self.v5, limits: self.limits }
    }
}

impl<R: Runtime> StreamingServer<R> {
    /// Serves from `runtime`.
    pub fn new(runtime: R) -> Self {
        Self { runtime: Arc::new(runtime), v5: false, limits: SessionLimits::new() }
    }

    /// Also offers `v5.channel.k8s.io`, over both carriers. No packaged runtime does, so a kubelet that is to look like
    /// one does not either.
    #[must_use]
    pub fn offer_v5(mut self) -> Self {
        self.v5 = true;
        self
    }

    /// Holds the sessions to `limits`.
    #[must_use]
    pub fn limits(mut self, limits: SessionLimits) -> Self {
        self.limits = limits;
        self
    }

    async fn serve(self, mut request: request::Parts) -> Result<Answer, Box<Answer>> {
        let target = permitted(&request.extensions).map_err(|refusal| refused(refusal, Dialect::ApiServer))?;
        let dialect = target.dialect;
        let refuse = |refusal: Refusal| refused(refusal, dialect);
        if !can_switch(&request) {
            return Err(refuse(upgrade_required(dialect)));
        }
        if target.subresource == Subresource::PortForward {
            return Err(refuse(Refusal::bad_request("port-forward is not served here")));
        }
        let carrier = if is_websocket(&request.headers) {
            self.negotiate_websocket(&request, dialect)?
        } else {
            self.negotiate_spdy(&request.headers, dialect)?
        };
        let session = self.runtime.open(&target).await.map_err(refuse)?;
        let mut response = carrier.switching_protocols();
        let settling = settling(&request.headers);
        let client = accept(&mut request.extensions, response.extensions_mut());
        let limits = self.limits;
        client.spawn(move |io, drain| async move {
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
        });
        Ok(response)
    }

    /// RFC 6455 section 4.2, then the first offer that is served here.
    fn negotiate_websocket(&self, request: &request::Parts, dialect: Dialect) -> Result<Carrier, Box<Answer>> {
        let key = handshake::check_request(&request.method, request.version, &request.headers)
            .map_err(|bad| Box::new(refuse_handshake(bad, dialect)))?;
        let accept = handshake::accept_key(key);
        let mut offers = list(&request.headers, SEC_WEBSOCKET_PROTOCOL).peekable();
        if offers.peek().is_none() {
            return Ok(Carrier::WebSocket { protocol: WsProtocol::Unnamed, accept });
        }
        let served = |protocol: &WsProtocol| self.v5 || protocol.version() != Version::V5;
        match offers.find_map(|offer| WsProtocol::from_name(offer).filter(served)) {
            Some(protocol) => Ok(Carrier::WebSocket { protocol, accept }),
            None => {
                Err(refused(Refusal::new(StatusCode::FORBIDDEN, "Forbidden", "no acceptable subprotocol"), dialect))
            }
        }
    }

    /// Upstream's `httpstream.Handshake`: the first of the client's versions that is served here.
    fn negotiate_spdy(&self, headers: &HeaderMap, dialect: Dialect) -> Result<Carrier, Box<Answer>> {
        let bad = |why: &str| refused(Refusal::bad_request(format!("unable to upgrade: {why}")), dialect);
        if !headers.contains_key(X_STREAM_PROTOCOL_VERSION) {
            return Err(bad("header X-Stream-Protocol-Version does not exist in request"));
        }
        let offers: Vec<&str> = list(headers, X_STREAM_PROTOCOL_VERSION).collect();
        if offers.is_empty() {
            return Err(bad("header X-Stream-Protocol-Version has no valid protocols"));
        }
        let served: Vec<Version> =
            Version::NEWEST_FIRST.into_iter().filter(|version| self.v5 || *version != Version::V5).collect();
        let chosen = offers.iter().find_map(|offer| served.iter().find(|version| version.name() == *offer));
        let Some(&version) = chosen else {
            let names: Vec<&str> = served.iter().map(|version| version.name()).collect();
            let why = format!(
                "unable to upgrade: unable to negotiate protocol: client supports [{}], server accepts [{}]",
                offers.join(" "),
                names.join(" "),
            );
            let mut response = refused(Refusal::new(StatusCode::FORBIDDEN, "Forbidden", why), dialect);
            for name in names {
                response.headers_mut().append(X_ACCEPTED_STREAM_PROTOCOL_VERSIONS, HeaderValue::from_static(name));
            }
            return Err(response);
        };
        if !upgrade_names(headers, "spdy/3.1") {
            return Err(bad("missing upgrade headers in request"));
        }
        Ok(Carrier::Spdy(version))
    }
}

fn refused(refusal: Refusal, dialect: Dialect) -> Box<Answer> {
    Box::new(refusal.into_response(dialect))
}

/// Runs the session. A terminal's first size is waited for a moment, so that a program that asks for it at once is told
/// the right one: clients send it right behind the `101`.
async fn run<S: Session>(session: S, mut stdio: Stdio) -> Result<Exit, BoxError> {
    if let Some(sizes) = &mut stdio.resize {
        let _ = timeout(FIRST_SIZE, sizes.wait_for(Option::is_some)).await;
    }
    session.run(stdio).await
}

/// What carries the session, as negotiated.
enum Carrier {
    Spdy(Version),
    WebSocket { protocol: WsProtocol, accept: HeaderValue },
}

impl Carrier {
    fn switching_protocols(&self) -> Answer {
        let mut response = Response::new(Full::default());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        match self {
            Self::Spdy(version) => {
                headers.insert(UPGRADE, HeaderValue::from_static("SPDY/3.1"));
                headers.insert(X_STREAM_PROTOCOL_VERSION, HeaderValue::from_static(version.name()));
            }
            Self::WebSocket { protocol, accept } => {
                headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
                headers.insert(SEC_WEBSOCKET_ACCEPT, accept.clone());
                // Without an offer there is nothing to echo; upstream's empty header upsets strict clients.
                if *protocol != WsProtocol::Unnamed {
                    headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol.name()));
                }
            }
        }
        response
    }
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
        let served = self.clone().serve(request);
        Box::pin(async move { Ok(served.await.unwrap_or_else(|refusal| *refusal)) })
    }
}

impl<R> fmt::Debug for StreamingServer<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamingServer").field("v5", &self.v5).finish_non_exhaustive()
    }
}
