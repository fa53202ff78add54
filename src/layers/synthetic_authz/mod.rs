//! Asks whether the caller may open the stream, and hands out the [`Permit`](crate::upgrade::Permit) if so.
//!
//! A WebSocket handshake is a GET (RFC 6455), so a role that grants only `get` would reach exec. The layer asks for the
//! verb that the method stands for, and then for `create` wherever that is another, whatever the headers say: a GET with
//! `Upgrade: SPDY/3.1` opens a stream too. KEP-4006, "Synthetic RBAC CREATE Authorization Check"; upstream's
//! `ensureAuthorizedForVerb` (`pkg/registry/core/pod/rest/authorize.go`), which asks for `create` only, because a filter
//! of the API server has asked for the other verb. This layer asks for both, so that it is safe alone;
//! [`SyntheticAuthzLayer::behind_authorizer`] is for a server that has such a filter.
//!
//! Both are asked before anything below is, so a refusal does not tell whether the pod exists. Only
//! [`Verdict::Allow`] opens the door: a denial, no opinion and an error all close it.
//!
//! | [`Dialect`](crate::upgrade::Dialect) | asks for | `create` as well |
//! |---|---|---|
//! | `ApiServer` | `pods/exec`, `pods/attach`, `pods/portforward` of the pod | with the gate `AuthorizePodWebsocketUpgradeCreatePermission` |
//! | `Kubelet` | `nodes/proxy` of the node | always; upstream's kubelet never does, and lets `get nodes/proxy` run commands |
//!
//! It belongs right below [`UpgradeDetect`](super::UpgradeDetect), and forwards what that did not find to be a stream
//! unchanged, without a permit.
//!
//! ```
//! use http::{Request, Response};
//! use http_body_util::Full;
//! use tower::{Service, ServiceBuilder, ServiceExt, service_fn};
//! use tower_kube_streaming::{
//!     layers::{
//!         SyntheticAuthzLayer, UpgradeDetectLayer,
//!         synthetic_authz::{Attributes, Decision, Verb},
//!     },
//!     upgrade::{Caller, Dialect, Permit, Sessions},
//! };
//! # type Body = Full<bytes::Bytes>;
//!
//! # tokio_test::block_on(async {
//! let rules = |asked: Attributes| async move {
//!     let may = asked.caller.name == "jane" || asked.verb == Verb::Get;
//!     Ok(if may { Decision::allow() } else { Decision::no_opinion() })
//! };
//! let mut service = ServiceBuilder::new()
//!     .layer(UpgradeDetectLayer::new(Dialect::ApiServer, Sessions::new()))
//!     .layer(SyntheticAuthzLayer::new(rules))
//!     .service(service_fn(|request: Request<()>| async move {
//!         assert!(request.extensions().get::<Permit>().is_some());
//!         Ok::<_, std::convert::Infallible>(Response::new(Body::default()))
//!     }));
//! let exec = "/api/v1/namespaces/default/pods/demo/exec?command=date&stdout=true";
//! let mut jane = Request::get(exec).body(())?;
//! jane.extensions_mut().insert(Caller::new("jane", ["dev"]));
//! assert_eq!(service.ready().await?.call(jane).await?.status(), 200);
//! let mut viewer = Request::get(exec).body(())?;
//! viewer.extensions_mut().insert(Caller::new("viewer", ["dev"]));
//! assert_eq!(service.ready().await?.call(viewer).await?.status(), 403);
//! # Ok::<_, Box<dyn std::error::Error>>(()) }).unwrap();
//! ```

mod authorize;
mod check;
mod future;
mod layer;
mod service;

#[cfg(test)]
mod tests;

pub use authorize::{Attributes, Authorize, Decided, Decision, Verb, Verdict};
pub use future::ResponseFuture;
pub use layer::SyntheticAuthzLayer;
pub use service::SyntheticAuthz;
