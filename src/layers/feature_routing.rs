//! Finds out where a permitted stream goes next.
//!
//! Asks [`Resolve`] for the next hop of the permitted target and puts it into the request as a [`Hop`]. What `Resolve`
//! refuses (an unknown pod, no container named) is the answer.
//!
//! Whether the hop speaks WebSocket itself is what its node declares ([`Hop::declares`]), as far as the API server's gate
//! `ExtendWebSocketsToKubelet` lets it count. Upstream's `checkNodeSupportsWebsockets`
//! (`pkg/registry/core/pod/rest/subresources.go`).
//!
//! ```
//! use std::sync::Arc;
//! use http::{Request, Response};
//! use http_body_util::Full;
//! use tower::{Service, ServiceBuilder, ServiceExt, service_fn};
//! use tower_kube_streaming::{
//!     layers::{FeatureRoutingLayer, Hop, UpgradeDetectLayer, danger::PermitAllLayer},
//!     upgrade::{Dialect, Refusal, Sessions, Target},
//! };
//! # type Body = Full<bytes::Bytes>;
//!
//! # tokio_test::block_on(async {
//! let mut service = ServiceBuilder::new()
//!     .layer(UpgradeDetectLayer::new(Dialect::ApiServer, Sessions::new()))
//!     .layer(PermitAllLayer)
//!     .layer(FeatureRoutingLayer::new(|asked: Arc<Target>| async move {
//!         match &*asked.pod {
//!             "demo" => Ok(Hop::kubelet("https://10.0.0.7:10250", &asked)?.declares(["ExtendWebSocketsToKubelet"])),
//!             other => Err(Refusal::not_found("pods", other)),
//!         }
//!     }))
//!     .service(service_fn(|request: Request<()>| async move {
//!         let hop = request.extensions().get::<Hop>().expect("a resolved target");
//!         assert_eq!(hop.uri.path(), "/exec/default/demo/app");
//!         assert!(hop.speaks_websocket);
//!         Ok::<_, std::convert::Infallible>(Response::new(Body::default()))
//!     }));
//! let exec = |pod| format!("/api/v1/namespaces/default/pods/{pod}/exec?container=app&command=date&stdout=true");
//! let found = service.ready().await?.call(Request::get(exec("demo")).body(())?).await?;
//! assert_eq!(found.status(), 200);
//! let unknown = service.ready().await?.call(Request::get(exec("nosuch")).body(())?).await?;
//! assert_eq!(unknown.status(), 404);
//! # Ok::<_, Box<dyn std::error::Error>>(()) }).unwrap();
//! ```

use std::{
    fmt,
    future::Future,
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{Request, Response, StatusCode, Uri};
use pin_project::pin_project;
use tower::{Layer, Service};
use tracing::Span;

use crate::{
    gates::{FeatureGates, Gate},
    upgrade::{Dialect, Refusal, Target, can_switch, permit},
};

/// Where a stream goes next. Closures implement it.
pub trait Resolve {
    /// Resolves to the hop, or to why there is none.
    type Future: Future<Output = Result<Hop, Refusal>>;

    /// Starts to look the target up.
    fn resolve(&self, target: Arc<Target>) -> Self::Future;
}

impl<F, Fut> Resolve for F
where
    F: Fn(Arc<Target>) -> Fut,
    Fut: Future<Output = Result<Hop, Refusal>>,
{
    type Future = Fut;

    fn resolve(&self, target: Arc<Target>) -> Fut {
        self(target)
    }
}

/// The next hop of a stream. A request extension.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Hop {
    /// The whole URL there, rendered from the target; the client's own is never forwarded.
    pub uri: Uri,
    /// The hop speaks `v5.channel.k8s.io` and the port-forward tunnel itself, so nothing is translated.
    pub speaks_websocket: bool,
}

impl Hop {
    /// A hop at that URL which speaks SPDY only.
    #[must_use]
    pub fn new(uri: Uri) -> Self {
        Self { uri, speaks_websocket: false }
    }

    /// The kubelet at `base` (`https://host:port`), asked for `target`.
    ///
    /// # Errors
    ///
    /// 500 if `base` is no scheme and authority, 414 if the URL gets longer than 64 KiB: a command is percent-encoded.
    pub fn kubelet(base: &str, target: &Target) -> Result<Self, Refusal> {
        let uri: Uri = base.parse().map_err(|error| Refusal::internal(format!("bad address of a kubelet: {error}")))?;
        let mut parts = uri.into_parts();
        parts.path_and_query = Some(target.kubelet_path_and_query().parse().map_err(|_| {
            Refusal::new(StatusCode::URI_TOO_LONG, "RequestURITooLong", "the command is too long for a URL")
        })?);
        let uri =
            Uri::from_parts(parts).map_err(|error| Refusal::internal(format!("bad address of a kubelet: {error}")))?;
        Ok(Self::new(uri))
    }

    /// What the hop's node declares in `status.declaredFeatures`: it speaks WebSocket itself if `ExtendWebSocketsToKubelet`
    /// is in there, in just these letters. A node that declares nothing speaks SPDY only.
    #[must_use]
    pub fn declares<'a>(self, features: impl IntoIterator<Item = &'a str>) -> Self {
        let feature = Gate::ExtendWebSocketsToKubelet.name();
        self.speaks_websocket(features.into_iter().any(|declared| declared == feature))
    }

    /// Says whether the hop speaks WebSocket itself.
    #[must_use]
    pub fn speaks_websocket(mut self, yes: bool) -> Self {
        self.speaks_websocket = yes;
        self
    }

    /// What is logged of the connection there comes in this span.
    pub(crate) fn span(&self) -> Span {
        let (address, port) = (self.uri.host().unwrap_or_default(), self.uri.port_u16());
        tracing::debug_span!("next_hop", server.address = address, server.port = port)
    }
}

/// Layer that applies [`FeatureRouting`]. See the [module docs](self).
#[derive(Clone, Debug)]
pub struct FeatureRoutingLayer<V> {
    resolver: V,
    pub(super) support: Support,
}

impl<V> FeatureRoutingLayer<V> {
    /// Asks `resolver` for the next hop, with the gates' defaults.
    pub fn new(resolver: V) -> Self {
        Self { resolver, support: Support::new(FeatureGates::default()) }
    }

    /// Obeys `ExtendWebSocketsToKubelet`. Off, no kubelet is taken to speak WebSocket, whatever its node declares.
    #[must_use]
    pub fn gates(mut self, gates: FeatureGates) -> Self {
        self.support.gate = gates.enabled(Gate::ExtendWebSocketsToKubelet);
        self
    }

    /// Takes every kubelet to speak WebSocket, whatever its node declares: for the day on which all do and none says so
    /// any more. The gate, off, still wins.
    #[must_use]
    pub fn assume_websocket_support(mut self) -> Self {
        self.support.assumed = true;
        self
    }
}

/// When a hop that says so is taken to speak WebSocket.
#[derive(Clone, Copy, Debug)]
pub(super) struct Support {
    gate: bool,
    assumed: bool,
}

impl Support {
    fn new(gates: FeatureGates) -> Self {
        Self { gate: gates.enabled(Gate::ExtendWebSocketsToKubelet), assumed: false }
    }

    pub(super) fn of(self, hop: Hop, dialect: Dialect) -> Hop {
        match dialect {
            Dialect::ApiServer => {
                let speaks = self.gate && (self.assumed || hop.speaks_websocket);
                hop.speaks_websocket(speaks)
            }
            // The gate and the declaration are about kubelets, and this hop is a container runtime.
            Dialect::Kubelet | Dialect::Runtime => hop,
        }
    }
}

impl<S, V: Clone> Layer<S> for FeatureRoutingLayer<V> {
    type Service = FeatureRouting<S, V>;

    fn layer(&self, inner: S) -> Self::Service {
        FeatureRouting { inner, resolver: self.resolver.clone(), support: self.support }
    }
}

/// Finds out where a permitted stream goes next. See the [module docs](self).
#[derive(Clone, Debug)]
pub struct FeatureRouting<S, V> {
    inner: S,
    resolver: V,
    support: Support,
}

impl<S, V, B, R> Service<Request<B>> for FeatureRouting<S, V>
where
    S: Service<Request<B>, Response = Response<R>> + Clone,
    V: Resolve,
    R: From<Bytes>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S, V::Future, Request<B>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let target = match permit(request.extensions(), "FeatureRouting") {
            Ok(Some(target)) => Arc::clone(target),
            Ok(None) => return ResponseFuture { state: State::Forwarded(self.inner.call(request)) },
            Err(misbuilt) => return ResponseFuture { state: State::Refused(Some(misbuilt)) },
        };
        if target.dialect == Dialect::Kubelet && !can_switch(request.version(), request.headers(), request.extensions())
        {
            // A container runtime keeps a place for every URL that it hands out. Upstream's kubelet takes one first.
            let refusal = Refusal::upgrade_required(target.dialect);
            return ResponseFuture { state: State::Refused(Some((target.dialect, refusal))) };
        }
        let hop = self.resolver.resolve(Arc::clone(&target));
        // `poll_ready` reserved `self.inner`; a fresh clone is not ready. Move the ready one.
        let clone = self.inner.clone();
        let inner = mem::replace(&mut self.inner, clone);
        let support = self.support;
        ResponseFuture { state: State::Resolving { hop, inner, target, support, request: Some(request) } }
    }
}

/// Response future of [`FeatureRouting`].
#[pin_project]
#[must_use = "futures do nothing unless polled"]
pub struct ResponseFuture<S, H, Q>
where
    S: Service<Q>,
{
    #[pin]
    state: State<S, H, S::Future, Q>,
}

#[pin_project(project = StateProj)]
enum State<S, H, F, Q> {
    Resolving {
        #[pin]
        hop: H,
        inner: S,
        target: Arc<Target>,
        support: Support,
        request: Option<Q>,
    },
    Forwarded(#[pin] F),
    /// The stack lacks a layer above this one, or the request cannot become a stream.
    Refused(Option<(Dialect, Refusal)>),
}

impl<S, H, B, R> Future for ResponseFuture<S, H, Request<B>>
where
    S: Service<Request<B>, Response = Response<R>>,
    H: Future<Output = Result<Hop, Refusal>>,
    R: From<Bytes>,
{
    type Output = Result<Response<R>, S::Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            match self.as_mut().project().state.project() {
                StateProj::Resolving { hop, inner, target, support, request } => {
                    let hop = match ready!(hop.poll(cx)) {
                        Ok(hop) => hop,
                        Err(refusal) => {
                            tracing::info!(
                                pod.namespace = ?target.namespace, pod.name = ?target.pod,
                                why = refusal.message(), "stream refused",
                            );
                            return Poll::Ready(Ok(refusal.into_response(target.dialect)));
                        }
                    };
                    let mut request = request.take().expect("forwarded once");
                    request.extensions_mut().insert(support.of(hop, target.dialect));
                    let inner = inner.call(request);
                    self.as_mut().project().state.set(State::Forwarded(inner));
                }
                StateProj::Forwarded(inner) => return inner.poll(cx),
                StateProj::Refused(refused) => {
                    let (dialect, refusal) = refused.take().expect("polled after it was ready");
                    return Poll::Ready(Ok(refusal.into_response(dialect)));
                }
            }
        }
    }
}

impl<S: Service<Q>, H, Q> fmt::Debug for ResponseFuture<S, H, Q> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
