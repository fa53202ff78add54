//! Issues URLs, and serves them.

use std::{
    error, fmt,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, Uri, uri::Scheme};
use tower::Service;

use super::{CriRequest, IssueError, token::Tokens};
pub use crate::layers::upgrade_detect::ResponseFuture;
use crate::{
    layers::upgrade_detect::{announce, forget_outer_stack},
    upgrade::{Dialect, Permit, Refusal, Sessions, Subresource},
};

/// Issues one-time URLs and serves them. See the [module docs](super). Clones issue and serve the same URLs.
#[derive(Clone)]
pub struct CriStreaming<S> {
    inner: S,
    base: Arc<Base>,
    tokens: Arc<Tokens>,
    sessions: Sessions,
}

/// Where the URLs begin.
struct Base {
    /// Without a slash at its end.
    url: String,
    /// The path of `url`: where it begins in `url`.
    path: usize,
}

impl<S> CriStreaming<S> {
    /// Hands permitted requests to `inner`. The sessions that come of them are counted and drained by `sessions`.
    ///
    /// `base_url` is where the kubelet reaches this server: `http://127.0.0.1:41379`, or with a path in front of
    /// `/exec/{token}`. Requests are served with that path and without it, as a router may have taken it off.
    ///
    /// # Errors
    ///
    /// `base_url` is no `http` or `https` URL with an authority, or has a user name or a query. A kubelet may fail on a
    /// URL without scheme.
    pub fn new(base_url: &str, sessions: Sessions, inner: S) -> Result<Self, BaseUrlError> {
        Ok(Self { inner, base: Arc::new(Base::parse(base_url)?), tokens: Arc::default(), sessions })
    }

    /// The URL, absolute, at which the stream that `request` asks for is served once, within 60 seconds. The container
    /// or sandbox is looked up only then: look it up before, so that the RPC can answer `NotFound`.
    ///
    /// # Errors
    ///
    /// In upstream's words: the request makes no sense, or 1,000 URLs wait to be used. Or the system gives no randomness.
    pub fn issue(&self, request: CriRequest) -> Result<String, IssueError> {
        let target = request.into_target()?;
        let subresource = target.subresource;
        let token = self.tokens.issue(target).inspect_err(|error| {
            tracing::info!(%subresource, %error, "no streaming URL issued");
        })?;
        Ok(format!("{}/{subresource}/{token}", self.base.url))
    }
}

impl Base {
    fn parse(url: &str) -> Result<Self, BaseUrlError> {
        let uri: Uri = url.parse().map_err(|_| BaseUrlError("it is no URL"))?;
        if !uri.scheme().is_some_and(|scheme| *scheme == Scheme::HTTP || *scheme == Scheme::HTTPS) {
            return Err(BaseUrlError("its scheme is neither http nor https"));
        }
        let authority = uri.authority().map(|authority| authority.as_str()).unwrap_or_default();
        if authority.is_empty() || authority.contains('@') {
            return Err(BaseUrlError("its authority is no host with a port"));
        }
        if uri.query().is_some() || url.contains('#') {
            return Err(BaseUrlError("it has a query or a fragment"));
        }
        let path = uri.path().trim_end_matches('/');
        let origin = format!("{}://{authority}", uri.scheme_str().unwrap_or_default());
        Ok(Self { path: origin.len(), url: origin + path })
    }

    /// What is asked for at that path, and by which token.
    fn read<'a>(&self, path: &'a str) -> Option<(Subresource, &'a str)> {
        let path = path.strip_prefix(&self.url[self.path..]).unwrap_or(path);
        let (first, token) = path.strip_prefix('/')?.split_once('/')?;
        let known = [Subresource::Exec, Subresource::Attach, Subresource::PortForward];
        Some((known.into_iter().find(|known| known.as_str() == first)?, token))
    }
}

impl<S, B, R> Service<Request<B>> for CriStreaming<S>
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
        let (mut parts, body) = request.into_parts();
        let refused = |refusal: Refusal| ResponseFuture::refused(refusal.into_response(Dialect::Runtime));
        let Some((subresource, token)) = self.base.read(parts.uri.path()) else { return refused(not_found()) };
        // Whatever becomes of the request, its token has been shown and is used up.
        let target = self.tokens.take(subresource, token);
        if parts.method != Method::GET && parts.method != Method::POST {
            return refused(Refusal::method_not_allowed());
        }
        let Some(target) = target else {
            tracing::debug!(%subresource, "stream refused: the token is unknown, used, too old, or for something else");
            return refused(not_found());
        };
        forget_outer_stack(&mut parts.extensions);
        let span = announce(&mut parts, Arc::clone(&target), &self.sessions);
        parts.extensions.insert(Permit(target));
        let request = Request::from_parts(parts, body);
        let inner = span.in_scope(|| self.inner.call(request));
        ResponseFuture::forwarded_in(span, inner)
    }
}

/// Go's `http.NotFound`.
fn not_found() -> Refusal {
    Refusal::new(StatusCode::NOT_FOUND, "NotFound", "404 page not found")
}

/// Tells no token.
impl<S> fmt::Debug for CriStreaming<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CriStreaming").field("base_url", &self.base.url).finish_non_exhaustive()
    }
}

/// Why URLs cannot begin so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseUrlError(&'static str);

impl fmt::Display for BaseUrlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bad base URL: {}", self.0)
    }
}

impl error::Error for BaseUrlError {}
