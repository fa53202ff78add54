//! Speaks WebSocket to the client and SPDY to the inner service: `exec` and `attach` over `v5.channel.k8s.io`.
//!
//! Acts on a permitted WebSocket upgrade that offers v5 and whose [`Hop`] does not speak it. The same request goes on
//! as a SPDY upgrade. **Upstream first**: the client gets its `101` only when the inner service has given one, so a
//! refusal is an HTTP answer that keeps its status and body. One task then joins the two connections; nothing is
//! dialled here. KEP-4006, "Proposal: API Server `StreamTranslatorProxy`".
//!
//! ```
//! use http_body_util::Full;
//! use tower::ServiceBuilder;
//! use tower_kube_streaming::{
//!     layers::{TranslateLayer, UpgradeDetectLayer, danger::PermitAllLayer},
//!     services::{TcpConnect, UpgradeProxy},
//!     upgrade::{Dialect, Sessions},
//! };
//!
//! // The route to the next hop, which names it, goes between the permit and the translation.
//! let stack = ServiceBuilder::new()
//!     .layer(UpgradeDetectLayer::new(Dialect::ApiServer, Sessions::new()))
//!     .layer(PermitAllLayer)
//!     .layer(TranslateLayer::new())
//!     .service(UpgradeProxy::new(TcpConnect));
//! # let _ = stack;
//! ```

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode,
    header::{
        CONNECTION, CONTENT_LENGTH, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_EXTENSIONS, SEC_WEBSOCKET_KEY,
        SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
    },
};
use pin_project::pin_project;
use tower::{Layer, Service};

use super::Hop;
use crate::{
    remote_command::{
        Version,
        over_websocket::{refuse_handshake, settling},
        relay,
    },
    upgrade::{
        Dialect, Pending, Permit, Refusal, SessionLimits, Subresource, Target, is_upgrade, is_websocket, take,
        upgrade_names,
    },
    websocket::handshake,
};

/// One line for each version that is offered, as Go's clients write it.
const X_STREAM_PROTOCOL_VERSION: HeaderName = HeaderName::from_static("x-stream-protocol-version");

/// Layer that applies [`Translate`]. See the [module docs](self).
#[derive(Clone, Copy, Debug, Default)]
pub struct TranslateLayer {
    limits: SessionLimits,
}

impl TranslateLayer {
    /// Translates with the default limits.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Holds the sessions to `limits`.
    #[must_use]
    pub fn limits(mut self, limits: SessionLimits) -> Self {
        self.limits = limits;
        self
    }
}

impl<S> Layer<S> for TranslateLayer {
    type Service = Translate<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Translate { inner, limits: self.limits }
    }
}

/// Speaks WebSocket to the client and SPDY to the inner service. See the [module docs](self).
#[derive(Clone, Debug)]
pub struct Translate<S> {
    inner: S,
    limits: SessionLimits,
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

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let Some(target) = adapts(&request) else { return ResponseFuture::inner(self.inner.call(request), None) };
        let accept = match handshake::check_request(request.method(), request.version(), request.headers()) {
            Ok(key) => handshake::accept_key(key),
            Err(bad) => return ResponseFuture::refused(refuse_handshake(bad, target.dialect)),
        };
        let Some(client) = take(request.extensions_mut()) else {
            return ResponseFuture::inner(self.inner.call(request), None);
        };
        let settling = settling(request.headers());
        to_spdy(&mut request);
        let client = Client { side: client, accept, settling, target, limits: self.limits };
        ResponseFuture::inner(self.inner.call(request), Some(client))
    }
}

/// The permitted target, if this request is one to translate.
fn adapts<B>(request: &Request<B>) -> Option<Arc<Target>> {
    let (headers, extensions) = (request.headers(), request.extensions());
    let Permit(target) = extensions.get::<Permit>()?;
    let ours = matches!(target.subresource, Subresource::Exec | Subresource::Attach)
        && is_upgrade(request.version(), headers, extensions)
        && is_websocket(headers)
        && handshake::offers_in_first_line(headers).any(|offer| offer == Version::V5.name())
        && extensions.get::<Hop>().is_none_or(|hop| !hop.speaks_websocket);
    ours.then(|| Arc::clone(target))
}

/// Makes the request a SPDY upgrade that offers every version. Body and extensions stay.
fn to_spdy<B>(request: &mut Request<B>) {
    *request.method_mut() = Method::POST;
    let headers = request.headers_mut();
    for websocket in [SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_EXTENSIONS] {
        headers.remove(websocket);
    }
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("SPDY/3.1"));
    headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
    headers.remove(X_STREAM_PROTOCOL_VERSION);
    for version in Version::NEWEST_FIRST {
        headers.append(X_STREAM_PROTOCOL_VERSION, HeaderValue::from_static(version.name()));
    }
}

/// The client of a request under translation.
struct Client {
    side: Pending,
    accept: HeaderValue,
    settling: Duration,
    target: Arc<Target>,
    limits: SessionLimits,
}

impl Client {
    /// The inner service has switched: spawns the relay and answers the client.
    ///
    /// From here the client always gets its `101`, whatever the inner service's looks like: a client that is refused
    /// after the command may have started would ask again over SPDY, and run it twice.
    fn join<R: From<Bytes>>(self, mut inner: Response<R>) -> Response<R> {
        let leaf = take(inner.extensions_mut());
        let version = negotiated(inner.headers());
        let (settling, target, limits) = (self.settling, self.target, self.limits);
        self.side.spawn(move |client, drain| async move {
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
                Err(why) => relay::fail(client, &why, &limits, settling).await,
            }
        });
        let mut response = Response::new(R::from(Bytes::new()));
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(SEC_WEBSOCKET_ACCEPT, self.accept);
        headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(Version::V5.name()));
        response
    }
}

fn negotiated(headers: &HeaderMap) -> Result<Version, String> {
    if !upgrade_names(headers, "spdy/3.1") {
        return Err("the next hop switched to something that is not SPDY/3.1".to_owned());
    }
    let name = headers.get(X_STREAM_PROTOCOL_VERSION).map_or(Ok(""), HeaderValue::to_str).unwrap_or("?");
    Version::from_name(name.trim()).ok_or_else(|| format!("the next hop chose the unknown protocol {name:?}"))
}

/// Response future of [`Translate`].
#[pin_project]
#[must_use = "futures do nothing unless polled"]
pub struct ResponseFuture<F, R> {
    #[pin]
    state: State<F, R>,
}

#[pin_project(project = StateProj)]
enum State<F, R> {
    Inner {
        #[pin]
        inner: F,
        client: Option<Client>,
    },
    Refused(Option<Response<R>>),
}

impl<F, R> ResponseFuture<F, R> {
    fn inner(inner: F, client: Option<Client>) -> Self {
        Self { state: State::Inner { inner, client } }
    }

    fn refused(response: Response<R>) -> Self {
        Self { state: State::Refused(Some(response)) }
    }
}

impl<F, R, E> Future for ResponseFuture<F, R>
where
    F: Future<Output = Result<Response<R>, E>>,
    R: From<Bytes>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            StateProj::Refused(response) => Poll::Ready(Ok(response.take().expect("polled after it was ready"))),
            StateProj::Inner { inner, client } => {
                let response = ready!(inner.poll(cx))?;
                Poll::Ready(Ok(match client.take() {
                    None => response,
                    Some(client) if response.status() == StatusCode::SWITCHING_PROTOCOLS => client.join(response),
                    Some(client) => refused(response, client.target.dialect),
                }))
            }
        }
    }
}

/// A refusal passes as it is; a success or a redirect is none, and must not reach a client that asked for a stream.
fn refused<R: From<Bytes>>(response: Response<R>, dialect: Dialect) -> Response<R> {
    let code = response.status();
    if code.is_client_error() || code.is_server_error() {
        return response;
    }
    Refusal::internal(format!("invalid upgrade response: status code {}", code.as_u16())).into_response(dialect)
}

impl<F, R> fmt::Debug for ResponseFuture<F, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
