//! Refuses streams over a number of sessions that live at once: of all callers together, and of each.
//!
//! Stands right below the layer that authorizes and acts on what that one permitted: who may not open a stream is told so
//! and takes no place. A stream over a limit is refused with 429 and `Retry-After` before anything below is asked, so
//! before its `101`. A place is taken with the request. It is given back when the request is refused or dropped, or
//! when the session that comes of it has ended, whatever ended it: a place rides in the [`Session`]. Requests that are
//! no streams pass.
//!
//! ```
//! use http::{Request, Response};
//! use http_body_util::Full;
//! use tower::{Service, ServiceBuilder, ServiceExt, service_fn};
//! use tower_kube_streaming::{
//!     layers::{QuotaLayer, UpgradeDetectLayer, danger::PermitAllLayer},
//!     upgrade::{Dialect, Session, Sessions},
//! };
//! # type Body = Full<bytes::Bytes>;
//!
//! # tokio_test::block_on(async {
//! let mut service = ServiceBuilder::new()
//!     .layer(UpgradeDetectLayer::new(Dialect::ApiServer, Sessions::new()))
//!     .layer(PermitAllLayer)
//!     .layer(QuotaLayer::new().max_sessions(500).max_sessions_per_user(1))
//!     // A stream is served as long as its session lives, and here as long as the response does.
//!     .service(service_fn(|mut request: Request<()>| async move {
//!         let mut response = Response::new(Body::default());
//!         response.extensions_mut().insert(request.extensions_mut().remove::<Session>());
//!         Ok::<_, std::convert::Infallible>(response)
//!     }));
//! let exec = || Request::get("/api/v1/namespaces/default/pods/demo/exec?command=date&stdout=true").body(());
//! let first = service.ready().await?.call(exec()?).await?;
//! assert_eq!(first.status(), 200);
//! let second = service.ready().await?.call(exec()?).await?;
//! assert_eq!(second.status(), 429);
//! assert_eq!(second.headers()["retry-after"], "60");
//! drop(first);
//! assert_eq!(service.ready().await?.call(exec()?).await?.status(), 200);
//! # Ok::<_, Box<dyn std::error::Error>>(()) }).unwrap();
//! ```
//!
//! [`ApiServer`](crate::services::ApiServer) and [`Kubelet`](crate::services::Kubelet) take it together with the
//! authorizing layer, as the pair `(authorize, QuotaLayer::new().max_sessions(500))`: the first of a pair is the outer one.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Extensions, Request, Response};
use tower::{Layer, Service};

pub use super::future::ResponseFuture;
use crate::upgrade::{Caller, Dialect, Refusal, Session, permit};

#[cfg(test)]
mod tests;

/// What a container runtime says when too many streams are asked for (`cri-streaming`, `NewErrorTooManyInFlight`).
const RETRY_AFTER: Duration = Duration::from_secs(60);

/// Layer that applies [`Quota`]. See the [module docs](self).
///
/// Clones, and all services they make, share their places: one layer for several routes is one quota.
#[derive(Clone, Debug)]
pub struct QuotaLayer {
    limits: Limits,
    places: Arc<Mutex<Places>>,
}

#[derive(Clone, Copy, Debug)]
struct Limits {
    sessions: usize,
    of_a_user: usize,
    retry_after: Duration,
}

impl QuotaLayer {
    /// No limit yet.
    #[must_use]
    pub fn new() -> Self {
        let limits = Limits { sessions: usize::MAX, of_a_user: usize::MAX, retry_after: RETRY_AFTER };
        Self { limits, places: Arc::default() }
    }

    /// So many sessions at once, of all callers together. 0, the default, is no limit.
    #[must_use]
    pub fn max_sessions(mut self, limit: usize) -> Self {
        self.limits.sessions = unless_zero(limit);
        self
    }

    /// So many sessions at once of one [`Caller`], told apart by name; all without one are `system:anonymous`. 0, the
    /// default, is no limit. At a kubelet the callers are API servers, not their users.
    #[must_use]
    pub fn max_sessions_per_user(mut self, limit: usize) -> Self {
        self.limits.of_a_user = unless_zero(limit);
        self
    }

    /// What `Retry-After` tells who is refused, in whole seconds. The default is 60 s, as of the container runtimes.
    #[must_use]
    pub fn retry_after(mut self, wait: Duration) -> Self {
        self.limits.retry_after = wait;
        self
    }
}

fn unless_zero(limit: usize) -> usize {
    if limit == 0 { usize::MAX } else { limit }
}

impl Default for QuotaLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl<S> Layer<S> for QuotaLayer {
    type Service = Quota<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Quota { inner, layer: self.clone() }
    }
}

/// Refuses streams over a number of sessions. See the [module docs](self).
#[derive(Clone, Debug)]
pub struct Quota<S> {
    inner: S,
    layer: QuotaLayer,
}

impl<S, B, R> Service<Request<B>> for Quota<S>
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
        match self.layer.admit(request.extensions()) {
            Ok(()) => ResponseFuture::forwarded(self.inner.call(request)),
            Err((dialect, refusal)) => ResponseFuture::refused(refusal.into_response(dialect)),
        }
    }
}

impl QuotaLayer {
    /// Gives the request's session a place, if it is one of a stream.
    fn admit(&self, request: &Extensions) -> Result<(), (Dialect, Refusal)> {
        // Above the layer that authorizes it would count nothing, as nothing is permitted there; so it must not let pass.
        let Some(target) = permit(request, "Quota")? else { return Ok(()) };
        let dialect = target.dialect;
        // Below a layer that took the client's side, what is left of the session may end before the stream does.
        let Some(session) = request.get::<Session>().filter(|session| session.is_announced()) else {
            tracing::error!("a stream came to its quota without a session: the quota stands below a layer that adapts");
            return Err((dialect, Refusal::internal("the quota of sessions cannot count this one")));
        };
        let anonymous = Caller::anonymous();
        let user = &request.get::<Caller>().unwrap_or(&anonymous).name;
        let place = self.take_place(user).map_err(|refusal| (dialect, refusal))?;
        session.hold(place);
        Ok(())
    }

    fn take_place(&self, user: &str) -> Result<Place, Refusal> {
        let Limits { sessions, of_a_user, retry_after } = self.limits;
        let mut places = lock(&self.places);
        let of_this_user = places.of_users.get(user).copied().unwrap_or_default();
        if of_this_user >= of_a_user {
            tracing::info!(user.name = ?user, limit = of_a_user, "stream refused: too many sessions of this user");
            let message = format!("too many streaming sessions of user {user:?}, please try again later");
            return Err(Refusal::too_many_requests(message, retry_after));
        }
        if places.taken >= sessions {
            tracing::info!(user.name = ?user, limit = sessions, "stream refused: too many sessions");
            return Err(Refusal::too_many_requests("too many streaming sessions, please try again later", retry_after));
        }
        let user: Arc<str> = user.into();
        places.taken += 1;
        *places.of_users.entry(Arc::clone(&user)).or_default() += 1;
        Ok(Place { places: Arc::clone(&self.places), user })
    }
}

/// Places that are taken. Only users who have one are in the table, so the sessions that live bound it.
#[derive(Debug, Default)]
struct Places {
    taken: usize,
    of_users: HashMap<Arc<str>, usize>,
}

/// One place, until it is dropped.
struct Place {
    places: Arc<Mutex<Places>>,
    user: Arc<str>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut places = lock(&self.places);
        places.taken -= 1;
        if let Some(of_this_user) = places.of_users.get_mut(&self.user) {
            *of_this_user -= 1;
            if *of_this_user == 0 {
                places.of_users.remove(&self.user);
            }
        }
    }
}

fn lock(places: &Mutex<Places>) -> MutexGuard<'_, Places> {
    places.lock().unwrap_or_else(PoisonError::into_inner)
}
