//! Speaks WebSocket to the client and SPDY to the inner service: `exec` and `attach` over `v5.channel.k8s.io`.
//!
//! Acts on a permitted WebSocket upgrade that offers v5 and whose [`Hop`](super::Hop) does not speak it. The same
//! request goes on as a SPDY upgrade. **Upstream first**: the client gets its `101` only when the inner service has given
//! one, so a refusal is an HTTP answer that keeps its status and body. One task then joins the two connections; nothing
//! is dialled here. KEP-4006, "Proposal: API Server `StreamTranslatorProxy`".
//!
//! ```
//! use http::{Extensions, Request, Response, header};
//! use http_body_util::Full;
//! use tower::{Service, ServiceBuilder, ServiceExt, service_fn};
//! use tower_kube_streaming::{
//!     layers::{TranslateLayer, UpgradeDetectLayer, danger::PermitAllLayer},
//!     upgrade::{Dialect, Sessions, accept},
//! };
//! # type Body = Full<bytes::Bytes>;
//!
//! # tokio_test::block_on(async {
//! let mut service = ServiceBuilder::new()
//!     .layer(UpgradeDetectLayer::new(Dialect::ApiServer, Sessions::new()))
//!     .layer(PermitAllLayer)
//!     .layer(TranslateLayer::new())
//!     // In an API server an `UpgradeProxy`, and between it and the permit the route to the next hop.
//!     .service(service_fn(|mut request: Request<()>| async move {
//!         assert_eq!((request.method().as_str(), &request.headers()[header::UPGRADE]), ("POST", &"SPDY/3.1".parse()?));
//!         let mut answer = Response::builder()
//!             .status(101)
//!             .header(header::CONNECTION, "Upgrade")
//!             .header(header::UPGRADE, "SPDY/3.1")
//!             .header("X-Stream-Protocol-Version", "v4.channel.k8s.io")
//!             .body(Body::default())?;
//!         // The leaf's side rides in the `101`, as one end of a pipe. Nobody serves its other end here.
//!         drop(accept(request.extensions_mut(), answer.extensions_mut()));
//!         Ok::<_, Box<dyn std::error::Error>>(answer)
//!     }));
//! let mut request = Request::get("/api/v1/namespaces/default/pods/demo/exec?command=date&stdout=true")
//!     .header(header::CONNECTION, "Upgrade")
//!     .header(header::UPGRADE, "websocket")
//!     .header(header::SEC_WEBSOCKET_VERSION, "13")
//!     .header(header::SEC_WEBSOCKET_KEY, "dGhlIHNhbXBsZSBub25jZQ==")
//!     .header(header::SEC_WEBSOCKET_PROTOCOL, "v5.channel.k8s.io")
//!     .body(())?;
//! // The client's side, which a server has put into the request.
//! let _client = accept(&mut Extensions::new(), request.extensions_mut());
//! let answer = service.ready().await?.call(request).await?;
//! assert_eq!(answer.status(), 101);
//! assert_eq!(answer.headers()[header::UPGRADE], "websocket");
//! assert_eq!(answer.headers()[header::SEC_WEBSOCKET_PROTOCOL], "v5.channel.k8s.io");
//! # Ok::<_, Box<dyn std::error::Error>>(()) }).unwrap();
//! ```

use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use tower::{Layer, Service};
use tracing::Instrument;

pub use super::adapt::ResponseFuture;
use super::adapt::{self, Client, Settings, X_STREAM_PROTOCOL_VERSION};
use crate::{
    gates::{FeatureGates, Gate},
    remote_command::{Version, relay},
    upgrade::{Cause, SessionLimits, Subresource, permit, take, upgrade_names},
    websocket::handshake,
};

/// Layer that applies [`Translate`]. See the [module docs](self).
#[derive(Clone, Copy, Debug, Default)]
pub struct TranslateLayer {
    settings: Settings,
}

impl TranslateLayer {
    /// Translates with the default limits, and the gates' defaults.
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

    /// Obeys `TranslateStreamCloseWebsocketRequests` in an API server's stack, `ExtendWebSocketsToKubelet` in a kubelet's. Off, all
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

impl<S> Layer<S> for TranslateLayer {
    type Service = Translate<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Translate { inner, settings: self.settings }
    }
}

/// Speaks WebSocket to the client and SPDY to the inner service. See the [module docs](self).
#[derive(Clone, Debug)]
pub struct Translate<S> {
    inner: S,
    settings: Settings,
}

impl<S, B, R> Service<Request<B>> for Translate<S>
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
        if let Err(misbuilt) = permit(request.extensions(), "Translate") {
            return ResponseFuture::misbuilt(misbuilt);
        }
        let wanted = self
            .settings
            .candidate(&request, &[Subresource::Exec, Subresource::Attach], Gate::TranslateStreamCloseWebsocketRequests)
            .filter(|_| handshake::offers_in_first_line(request.headers()).any(|offer| offer == Version::V5.name()));
        let Some(target) = wanted.cloned() else { return ResponseFuture::forwarded(self.inner.call(request)) };
        let offers = Version::NEWEST_FIRST.map(|version| HeaderValue::from_static(version.name()));
        adapt::call(&mut self.inner, request, target, offers.into(), self.settings.limits, join)
    }
}

/// The inner service has switched: spawns the relay and answers the client.
///
/// From here the client always gets its `101`, whatever the inner service's looks like: a client that is refused after
/// the command may have started would ask again over SPDY, and run it twice.
fn join<R: From<Bytes>>(client: Client, mut inner: Response<R>) -> Response<R> {
    let leaf = take(inner.extensions_mut());
    let version = negotiated(inner.headers());
    let Client { side, target, accept, settling, limits, hop, .. } = client;
    let session = move |client, drain| async move {
        let upstream = match (leaf, version) {
            (_, Err(unknown)) => Err(unknown),
            (None, _) => Err("the inner service switched protocols without a connection".to_owned()),
            (Some(leaf), Ok(version)) => match leaf.into_io().await {
                Ok(io) => Ok((io, version)),
                Err(error) => Err(format!("the next hop's connection was lost: {error}")),
            },
        };
        match upstream {
            Ok((upstream, version)) => {
                relay::run(client, upstream, version, &target.options, &limits, settling, drain).await
            }
            Err(why) => relay::fail(client, Cause::Handshake, &why, &limits, settling).await,
        }
    };
    side.spawn(move |client, drain| session(client, drain).instrument(hop));
    adapt::switching_protocols(accept, HeaderValue::from_static(Version::V5.name()))
}

fn negotiated(headers: &HeaderMap) -> Result<Version, String> {
    if !upgrade_names(headers, "spdy/3.1") {
        return Err("the next hop switched to something that is not SPDY/3.1".to_owned());
    }
    let name = headers.get(X_STREAM_PROTOCOL_VERSION).map_or(Ok(""), HeaderValue::to_str).unwrap_or("?");
    Version::from_name(name.trim()).ok_or_else(|| format!("the next hop chose the unknown protocol {name:?}"))
}
