//! Reads what a streaming request asks for, never how.
//!
//! Puts a [`StreamRequest`] and the session's [`Session`] into the extensions of a request
//! whose URL is one of the [`Dialect`]'s streaming URLs; forwards every other request. Extensions that an outer stack
//! of the same process left behind (a `Permit` above all) are taken out: what was allowed there is not allowed here.
//!
//! All that is logged of such a request, here and in the layers below, comes in the session's span
//! `stream{subresource trace.id pod.namespace pod.name container}`; `trace.id` is that of a valid W3C `traceparent`.
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
use http::{Request, Response};
use tower::{Layer, Service};

pub use super::future::ResponseFuture;
use super::{feature_routing::Hop, metrics::Recorder};
use crate::upgrade::{Caller, Dialect, Permit, Session, Sessions, StreamRequest, Target, trace_id};

/// Layer that applies [`UpgradeDetect`]. See the [module docs](self).
#[derive(Clone, Debug)]
pub struct UpgradeDetectLayer {
    dialect: Dialect,
    sessions: Sessions,
}

impl UpgradeDetectLayer {
    /// Reads URLs of `dialect`; the sessions that come of them are counted and drained by `sessions`.
    #[must_use]
    pub fn new(dialect: Dialect, sessions: Sessions) -> Self {
        Self { dialect, sessions }
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
        let UpgradeDetectLayer { dialect, sessions } = &self.layer;
        let extensions = request.extensions_mut();
        extensions.remove::<Permit>();
        extensions.remove::<StreamRequest>();
        extensions.remove::<Hop>();
        extensions.remove::<Recorder>();
        let target = match Target::parse(*dialect, request.method(), request.uri()) {
            None => return ResponseFuture::forwarded(self.inner.call(request)),
            Some(Err(refusal)) => return ResponseFuture::refused(refusal.into_response(*dialect)),
            Some(Ok(target)) => Arc::new(target),
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
