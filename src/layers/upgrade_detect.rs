//! Reads what a streaming request asks for, never how.
//!
//! Puts a [`StreamRequest`] and the session's [`Session`] into the extensions of a request
//! whose URL is one of the [`Dialect`]'s streaming URLs; forwards every other request. Extensions that an outer stack
//! of the same process left behind (a `Permit` above all) are taken out: what was allowed there is not allowed here.
//!
//! All that is logged of such a request, here and in the layers below, comes in the session's span
//! `stream{subresource trace.id pod.namespace pod.name container}`; `trace.id` is that of a valid W3C `traceparent`.
//!
//! It refuses what can become no stream whoever asks:
//!
//! - 405 for methods other than GET and POST, and 400 for options that make no sense, in upstream's words;
//! - 400 for HTTP/2 and later, extended CONNECT (RFC 8441) among them: an upgrade needs HTTP/1.1. The server above had
//!   better not announce extended CONNECT, or browsers send their WebSockets that way;
//! - 403 for a request with a cookie from a web page of another origin. A browser sends its cookies along with every
//!   page's WebSocket handshake (RFC 6455, 10.2), so where a cookie authenticates, any page could run commands.
//!   [`UpgradeDetectLayer::allow_origins`] names pages that may.
//!
//! These refusals do not come by [`Metrics`](super::Metrics); [`UpgradeDetectLayer::count_refusals`] has it count them.
//!
//! ```
//! use http::{Request, Response};
//! use http_body_util::Full;
//! use tower::{Service, ServiceBuilder, ServiceExt, service_fn};
//! use tower_kube_streaming::{
//!     layers::UpgradeDetectLayer,
//!     upgrade::{Dialect, Sessions, StreamRequest},
//! };
//! # type Body = Full<bytes::Bytes>;
//!
//! # tokio_test::block_on(async {
//! let mut service = ServiceBuilder::new()
//!     .layer(UpgradeDetectLayer::new(Dialect::ApiServer, Sessions::new()))
//!     .service(service_fn(|request: Request<()>| async move {
//!         let asked = request.extensions().get::<StreamRequest>().expect("a streaming URL").target().clone();
//!         Ok::<_, std::convert::Infallible>(Response::new(Body::from(asked.pod.clone())))
//!     }));
//! let request = Request::get("/api/v1/namespaces/default/pods/demo/exec?command=date&stdout=true").body(())?;
//! assert!(service.ready().await?.call(request).await?.status().is_success());
//!
//! let request = Request::delete("/api/v1/namespaces/default/pods/demo/exec").body(())?;
//! assert_eq!(service.ready().await?.call(request).await?.status(), 405);
//! # Ok::<_, Box<dyn std::error::Error>>(()) }).unwrap();
//! ```

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Method, Request, Response, Version};
use tower::{Layer, Service};

pub use super::future::ResponseFuture;
use super::{MetricsLayer, feature_routing::Hop, metrics::Recorder, origin, synthetic_authz::Decided};
use crate::upgrade::{Caller, Dialect, NoStream, Permit, Refusal, Session, Sessions, StreamRequest, Target, trace_id};

/// Layer that applies [`UpgradeDetect`]. See the [module docs](self).
#[derive(Clone, Debug)]
pub struct UpgradeDetectLayer {
    dialect: Dialect,
    sessions: Sessions,
    allowed_origins: Arc<[String]>,
    metrics: Option<MetricsLayer>,
}

impl UpgradeDetectLayer {
    /// Reads URLs of `dialect`; the sessions that come of them are counted and drained by `sessions`.
    #[must_use]
    pub fn new(dialect: Dialect, sessions: Sessions) -> Self {
        Self { dialect, sessions, allowed_origins: Arc::default(), metrics: None }
    }

    /// Lets pages of these origins open streams with a cookie, besides those of the request's own `Host`.
    ///
    /// An origin is written as browsers send it: scheme, host, and a port where it is not the scheme's own; no path, not
    /// even a slash (`https://console.example`).
    #[must_use]
    pub fn allow_origins(mut self, origins: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.allowed_origins = origins.into_iter().map(Into::into).collect();
        self
    }

    /// Has the layer that counts below count what is refused here as well, as answered at once, and
    /// [`Unrouted`](crate::upgrade::Route::Unrouted).
    #[must_use]
    pub fn count_refusals(mut self, metrics: impl Into<Option<MetricsLayer>>) -> Self {
        self.metrics = metrics.into();
        self
    }
}

impl<S> Layer<S> for UpgradeDetectLayer {
    type Service = UpgradeDetect<S>;

    fn layer(&self, inner: S) -> Self::Service {
        UpgradeDetect { inner, layer: self.clone() }
    }
}

/// Reads what a streaming request asks for. See the [module docs](self).
#[derive(Clone, Debug)]
pub struct UpgradeDetect<S> {
    inner: S,
    layer: UpgradeDetectLayer,
}

impl<S, B, R> Service<Request<B>> for UpgradeDetect<S>
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
        let UpgradeDetectLayer { dialect, sessions, allowed_origins, metrics } = &self.layer;
        let extensions = request.extensions_mut();
        extensions.remove::<Permit>();
        extensions.remove::<StreamRequest>();
        extensions.remove::<NoStream>();
        extensions.remove::<Hop>();
        extensions.remove::<Recorder>();
        extensions.remove::<Decided>();
        let Some((subresource, parsed)) = Target::parse(*dialect, request.method(), request.uri()) else {
            request.extensions_mut().insert(NoStream(*dialect));
            return ResponseFuture::forwarded(self.inner.call(request));
        };
        let checked = check_version(&request).and(parsed).and_then(|target| {
            check_origin(&request, &target, allowed_origins)?;
            Ok(target)
        });
        let target = match checked {
            Ok(target) => Arc::new(target),
            Err(refusal) => {
                if let Some(metrics) = metrics {
                    metrics.refused(subresource, request.headers(), refusal.code());
                }
                return ResponseFuture::refused(refusal.into_response(*dialect));
            }
        };
        let (mut parts, body) = request.into_parts();
        let trace_id = trace_id(&parts.headers);
        let extensions = &mut parts.extensions;
        let caller = extensions.get::<Caller>().cloned().unwrap_or_else(Caller::anonymous);
        let session = Session::new(sessions.clone(), caller, Arc::clone(&target), trace_id);
        let span = session.span().clone();
        if let Some(outer) = extensions.remove::<Session>() {
            // What the outer stack's layers hold lives as long as the stream, whoever serves it, and they learn its end.
            session.hold_session(outer);
        }
        extensions.insert(session);
        extensions.insert(StreamRequest(target));
        let request = Request::from_parts(parts, body);
        let inner = span.in_scope(|| self.inner.call(request));
        ResponseFuture::forwarded_in(span, inner)
    }
}

/// Upstream answers nothing but "Upgrade request required", whatever the version.
fn check_version<B>(request: &Request<B>) -> Result<(), Refusal> {
    let (version, method) = (request.version(), request.method());
    let opens = *method == Method::GET || *method == Method::POST || *method == Method::CONNECT;
    if opens && version > Version::HTTP_11 {
        let why = format!("Upgrade request required: a stream needs HTTP/1.1, and this request came over {version:?}");
        return Err(Refusal::bad_request(why));
    }
    Ok(())
}

fn check_origin<B>(request: &Request<B>, target: &Target, allowed: &[String]) -> Result<(), Refusal> {
    if origin::is_cross_site(allowed, request.uri(), request.headers()) {
        let why = "a web page of another origin may not open a stream with a cookie";
        tracing::info!(pod.namespace = ?target.namespace, pod.name = ?target.pod, why, "stream refused");
        return Err(Refusal::forbidden("pods", &target.pod, why));
    }
    Ok(())
}
