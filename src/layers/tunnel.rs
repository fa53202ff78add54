//! Speaks WebSocket to the client and SPDY to the inner service: port-forward over `SPDY/3.1+portforward.k8s.io`.
//!
//! Acts on a permitted WebSocket upgrade that offers SPDY inside of it and whose [`Hop`](super::Hop) does not speak it.
//! The same request goes on as a SPDY upgrade. **Upstream first**: the client gets its `101` only when the inner
//! service has given one, so a refusal is an HTTP answer that keeps its status and body. One task then copies the bytes
//! of the inner service into messages and out of them, unread; nothing is dialled here. KEP-4006, "Proposal:
//! `PortForward` Subprotocol - Tunneling SPDY over WebSockets".
//!
//! ```
//! use http::{Extensions, Request, Response, header};
//! use http_body_util::Full;
//! use tower::{Service, ServiceBuilder, ServiceExt, service_fn};
//! use tower_kube_streaming::{
//!     layers::{TunnelLayer, UpgradeDetectLayer, danger::PermitAllLayer},
//!     upgrade::{Dialect, Sessions, accept},
//! };
//! # type Body = Full<bytes::Bytes>;
//!
//! # tokio_test::block_on(async {
//! let mut service = ServiceBuilder::new()
//!     .layer(UpgradeDetectLayer::new(Dialect::ApiServer, Sessions::new()))
//!     .layer(PermitAllLayer)
//!     .layer(TunnelLayer::new())
//!     // In an API server an `UpgradeProxy`, and between it and the permit the route to the next hop.
//!     .service(service_fn(|mut request: Request<()>| async move {
//!         assert_eq!((request.method().as_str(), &request.headers()[header::UPGRADE]), ("POST", &"SPDY/3.1".parse()?));
//!         let mut answer = Response::builder()
//!             .status(101)
//!             .header(header::CONNECTION, "Upgrade")
//!             .header(header::UPGRADE, "SPDY/3.1")
//!             .header("X-Stream-Protocol-Version", "portforward.k8s.io")
//!             .body(Body::default())?;
//!         // The leaf's side rides in the `101`, as one end of a pipe. Nobody serves its other end here.
//!         drop(accept(request.extensions_mut(), answer.extensions_mut()));
//!         Ok::<_, Box<dyn std::error::Error>>(answer)
//!     }));
//! let mut request = Request::get("/api/v1/namespaces/default/pods/demo/portforward")
//!     .header(header::CONNECTION, "Upgrade")
//!     .header(header::UPGRADE, "websocket")
//!     .header(header::SEC_WEBSOCKET_VERSION, "13")
//!     .header(header::SEC_WEBSOCKET_KEY, "dGhlIHNhbXBsZSBub25jZQ==")
//!     .header(header::SEC_WEBSOCKET_PROTOCOL, "SPDY/3.1+portforward.k8s.io")
//!     .body(())?;
//! // The client's side, which a server has put into the request.
//! let _client = accept(&mut Extensions::new(), request.extensions_mut());
//! let answer = service.ready().await?.call(request).await?;
//! assert_eq!(answer.status(), 101);
//! assert_eq!(answer.headers()[header::UPGRADE], "websocket");
//! assert_eq!(answer.headers()[header::SEC_WEBSOCKET_PROTOCOL], "SPDY/3.1+portforward.k8s.io");
//! # Ok::<_, Box<dyn std::error::Error>>(()) }).unwrap();
//! ```

use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderValue, Request, Response};
use tower::{Layer, Service};
use tracing::Instrument;

pub use super::adapt::ResponseFuture;
use super::adapt::{self, Client, Settings, X_STREAM_PROTOCOL_VERSION};
use crate::{
    gates::{FeatureGates, Gate},
    port_forward::tunnel,
    upgrade::{Cause, End, Leg, Refusal, Report, SessionLimits, Subresource, list, permit, take, upgrade_names},
};

/// Layer that applies [`Tunnel`]. See the [module docs](self).
#[derive(Clone, Copy, Debug, Default)]
pub struct TunnelLayer {
    settings: Settings,
}

impl TunnelLayer {
    /// Tunnels with the default limits, and the gates' defaults.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Holds the sessions to `limits`.
    #[must_use]
    pub fn limits(mut self, limits: SessionLimits) -> Self {
        self.settings.limits = limits;
        self
    }

    /// Obeys `PortForwardWebsockets` in an API server's stack, `ExtendWebSocketsToKubelet` in a kubelet's. Off, all
    /// requests are forwarded unchanged.
    #[must_use]
    pub fn gates(mut self, gates: FeatureGates) -> Self {
        self.settings.gates = gates;
        self
    }

    /// Forwards all requests unchanged: the inner service speaks WebSocket itself.
    pub(crate) fn off(mut self, off: bool) -> Self {
        self.settings.off = off;
        self
    }
}

impl<S> Layer<S> for TunnelLayer {
    type Service = Tunnel<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Tunnel { inner, settings: self.settings }
    }
}

/// Speaks WebSocket to the client and SPDY to the inner service. See the [module docs](self).
#[derive(Clone, Debug)]
pub struct Tunnel<S> {
    inner: S,
    settings: Settings,
}

impl<S, B, R> Service<Request<B>> for Tunnel<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    R: From<Bytes>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future, R>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        if let Err(misbuilt) = permit(request.extensions(), "Tunnel") {
            return ResponseFuture::misbuilt(misbuilt);
        }
        let wanted = self.settings.candidate(&request, &[Subresource::PortForward], Gate::PortForwardWebsockets);
        let offers: Vec<HeaderValue> =
            tunnel::offers(request.headers()).filter_map(|offer| HeaderValue::from_str(offer).ok()).collect();
        match wanted.cloned() {
            Some(target) if !offers.is_empty() => {
                adapt::call(&mut self.inner, request, target, offers, self.settings.limits, join)
            }
            _ => ResponseFuture::forwarded(self.inner.call(request)),
        }
    }
}

/// The inner service has switched: spawns the copying and answers the client. Where what it switched to is not what the
/// client asked for, the client is refused and the inner service's side ends: nothing has run there yet.
fn join<R: From<Bytes>>(client: Client, mut inner: Response<R>) -> Response<R> {
    let leaf = take(inner.extensions_mut());
    let refuse = |why: String| {
        tracing::warn!(leg = %Leg::Handshake, %why, "the next hop gave no usable answer");
        Refusal::internal(format!("unable to upgrade: {why}")).into_response(client.target.dialect)
    };
    let headers = inner.headers();
    let upgraded = list(headers, http::header::CONNECTION).any(|token| token.eq_ignore_ascii_case("upgrade"))
        && upgrade_names(headers, "spdy/3.1");
    let Some(leaf) = leaf.filter(|_| upgraded) else {
        return refuse("missing upgrade headers in response".to_owned());
    };
    let chosen = headers.get(X_STREAM_PROTOCOL_VERSION).map(HeaderValue::as_bytes).unwrap_or_default().trim_ascii();
    let Some(protocol) = client.offers.iter().find(|offer| offer.as_bytes() == chosen) else {
        return refuse(format!(
            "the response names the protocol {:?}, which was not offered",
            chosen.escape_ascii().to_string()
        ));
    };
    let protocol = tunnel::websocket_name(protocol);
    let (limits, hop) = (client.limits, client.hop);
    let session = move |client, drain| async move {
        match leaf.into_io().await {
            Ok(upstream) => tunnel::relay(client, upstream, &limits, drain).await,
            Err(error) => {
                Report::new(End::Error, Cause::Handshake, format!("the next hop's connection was lost: {error}"))
            }
        }
    };
    client.side.spawn(move |client, drain| session(client, drain).instrument(hop));
    adapt::switching_protocols(client.accept, protocol)
}
