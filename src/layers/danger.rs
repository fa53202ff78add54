//! Lets everybody in.
//!
//! For tests, and for a stack whose every request was authorized before it came here.
//!
//! ```
//! use http::{Request, Response};
//! use http_body_util::Full;
//! use tower::{Service, ServiceBuilder, ServiceExt, service_fn};
//! use tower_kube_streaming::{
//!     layers::{UpgradeDetectLayer, danger::PermitAllLayer},
//!     upgrade::{Dialect, Permit, Sessions},
//! };
//! # type Body = Full<bytes::Bytes>;
//!
//! # tokio_test::block_on(async {
//! let mut service = ServiceBuilder::new()
//!     .layer(UpgradeDetectLayer::new(Dialect::Kubelet, Sessions::new()))
//!     .layer(PermitAllLayer)
//!     .service(service_fn(|request: Request<()>| async move {
//!         let permit = request.extensions().get::<Permit>().expect("everybody is let in");
//!         Ok::<_, std::convert::Infallible>(Response::new(Body::from(permit.pod.clone())))
//!     }));
//! let attach = Request::post("/attach/default/demo/app?output=1").body(())?;
//! assert_eq!(service.ready().await?.call(attach).await?.status(), 200);
//! # Ok::<_, Box<dyn std::error::Error>>(()) }).unwrap();
//! ```

use std::task::{Context, Poll};

use http::Request;
use tower::{Layer, Service};

use crate::upgrade::{Permit, StreamRequest};

/// Layer that applies [`PermitAll`].
#[derive(Clone, Copy, Debug, Default)]
pub struct PermitAllLayer;

impl<S> Layer<S> for PermitAllLayer {
    type Service = PermitAll<S>;

    fn layer(&self, inner: S) -> Self::Service {
        PermitAll { inner }
    }
}

/// Permits whatever is asked for, without asking anybody.
#[derive(Clone, Debug)]
pub struct PermitAll<S> {
    inner: S,
}

impl<S, B> Service<Request<B>> for PermitAll<S>
where
    S: Service<Request<B>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        if let Some(asked) = request.extensions().get::<StreamRequest>() {
            let permit = Permit(asked.target().clone());
            request.extensions_mut().insert(permit);
        }
        self.inner.call(request)
    }
}
