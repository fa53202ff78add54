//! What the layers share that speak WebSocket to the client and SPDY to the inner service.

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
    Extensions, HeaderName, HeaderValue, Method, Request, Response, StatusCode,
    header::{
        CONNECTION, CONTENT_LENGTH, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_EXTENSIONS, SEC_WEBSOCKET_KEY,
        SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
    },
};
use pin_project::pin_project;
use tower::Service;
use tracing::Span;

use super::Hop;
use crate::{
    gates::{FeatureGates, Gate},
    remote_command::over_websocket::{refuse_handshake, settling},
    upgrade::{
        Dialect, Leg, Pending, Permit, Refusal, Route, Session, SessionLimits, Subresource, Target, is_upgrade,
        is_websocket, take,
    },
    websocket::handshake,
};

/// One line for each protocol that is offered, as Go's clients write it.
pub(super) const X_STREAM_PROTOCOL_VERSION: HeaderName = HeaderName::from_static("x-stream-protocol-version");

/// What a layer that adapts is told when it is built.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Settings {
    pub(super) limits: SessionLimits,
    pub(super) gates: FeatureGates,
    /// The inner service speaks WebSocket itself.
    pub(super) off: bool,
}

impl Settings {
    /// The permitted target, one of `subresources`, of a WebSocket upgrade whose next hop does not speak WebSocket.
    ///
    /// `gate` is the API server's; a kubelet adapts behind one of its own. Off, the stream counts as unrouted, as
    /// upstream's.
    pub(super) fn candidate<'a, B>(
        &self,
        request: &'a Request<B>,
        subresources: &[Subresource],
        gate: Gate,
    ) -> Option<&'a Arc<Target>> {
        let (headers, extensions) = (request.headers(), request.extensions());
        let Permit(target) = extensions.get::<Permit>().filter(|permit| subresources.contains(&permit.subresource))?;
        let gate = match target.dialect {
            Dialect::ApiServer => gate,
            Dialect::Kubelet | Dialect::Runtime => Gate::ExtendWebSocketsToKubelet,
        };
        if self.off || !self.gates.enabled(gate) {
            return None;
        }
        let speaks_websocket = extensions.get::<Hop>().is_some_and(|hop| hop.speaks_websocket);
        set_route(extensions, if speaks_websocket { Route::WebSocketHop } else { Route::SpdyHop });
        let ours = is_upgrade(request.version(), headers, extensions) && is_websocket(headers) && !speaks_websocket;
        ours.then_some(target)
    }
}

/// Tells who counts the stream which way it goes.
fn set_route(extensions: &Extensions, route: Route) {
    if let Some(session) = extensions.get::<Session>() {
        session.set_route(route);
    }
}

/// The client of a request that is adapted.
pub(super) struct Client {
    pub(super) side: Pending,
    pub(super) target: Arc<Target>,
    /// What the inner service is offered.
    pub(super) offers: Vec<HeaderValue>,
    /// Answers its key.
    pub(super) accept: HeaderValue,
    /// How long it is told nothing.
    pub(super) settling: Duration,
    pub(super) limits: SessionLimits,
    /// Names the hop; none where it is a service of this process that has no [`Hop`].
    pub(super) hop: Span,
}

/// Joins a client with an inner service that has switched protocols, and answers the client.
pub(super) type Join<R> = fn(Client, Response<R>) -> Response<R>;

/// Asks `inner` for SPDY in the client's place. A bad handshake is refused before that.
pub(super) fn call<S, B, R>(
    inner: &mut S,
    mut request: Request<B>,
    target: Arc<Target>,
    offers: Vec<HeaderValue>,
    limits: SessionLimits,
    join: Join<R>,
) -> ResponseFuture<S::Future, R>
where
    S: Service<Request<B>>,
    R: From<Bytes>,
{
    set_route(request.extensions(), Route::Adapted);
    let accept = match handshake::check_request(request.method(), request.version(), request.headers()) {
        Ok(key) => handshake::accept_key(key),
        Err(bad) => {
            tracing::info!(
                leg = %Leg::Handshake, subresource = %target.subresource, pod.namespace = ?target.namespace,
                pod.name = ?target.pod, why = %bad, "stream refused",
            );
            return ResponseFuture(State::Refused(Some(refuse_handshake(bad, target.dialect))));
        }
    };
    let Some(side) = take(request.extensions_mut()) else { return ResponseFuture::forwarded(inner.call(request)) };
    let settling = settling(request.headers());
    let hop = request.extensions().get::<Hop>().map_or_else(Span::none, Hop::span);
    to_spdy(&mut request, &offers);
    let client = Client { side, target, offers, accept, settling, limits, hop };
    ResponseFuture(State::Asked { inner: inner.call(request), joined: Some((client, join)) })
}

/// Makes the request a SPDY upgrade that offers those protocols. Body and extensions stay.
fn to_spdy<B>(request: &mut Request<B>, offers: &[HeaderValue]) {
    *request.method_mut() = Method::POST;
    let headers = request.headers_mut();
    for websocket in [SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_EXTENSIONS] {
        headers.remove(websocket);
    }
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("SPDY/3.1"));
    headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
    headers.remove(X_STREAM_PROTOCOL_VERSION);
    for offer in offers {
        headers.append(X_STREAM_PROTOCOL_VERSION, offer.clone());
    }
}

/// The `101` that answers a client's WebSocket handshake.
pub(super) fn switching_protocols<R: From<Bytes>>(accept: HeaderValue, protocol: HeaderValue) -> Response<R> {
    let mut response = Response::new(R::from(Bytes::new()));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    headers.insert(SEC_WEBSOCKET_PROTOCOL, protocol);
    response
}

/// Resolves to the inner service's answer, turned into one for the client.
#[pin_project]
#[must_use = "futures do nothing unless polled"]
pub struct ResponseFuture<F, R>(#[pin] State<F, R>);

#[pin_project(project = StateProj)]
enum State<F, R> {
    Asked {
        #[pin]
        inner: F,
        /// `None`: the request went on unchanged.
        joined: Option<(Client, Join<R>)>,
    },
    Refused(Option<Response<R>>),
}

impl<F, R> ResponseFuture<F, R> {
    pub(super) fn forwarded(inner: F) -> Self {
        Self(State::Asked { inner, joined: None })
    }

    /// The stack lacks a layer above this one.
    pub(super) fn misbuilt((dialect, refusal): (Dialect, Refusal)) -> Self
    where
        R: From<Bytes>,
    {
        Self(State::Refused(Some(refusal.into_response(dialect))))
    }
}

impl<F, R, E> Future for ResponseFuture<F, R>
where
    F: Future<Output = Result<Response<R>, E>>,
    R: From<Bytes>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().0.project() {
            StateProj::Refused(response) => Poll::Ready(Ok(response.take().expect("polled after it was ready"))),
            StateProj::Asked { inner, joined } => {
                let response = ready!(inner.poll(cx))?;
                Poll::Ready(Ok(match joined.take() {
                    None => response,
                    Some((client, join)) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
                        join(client, response)
                    }
                    Some((client, _)) => refused(response, client.target.dialect),
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
