//! Why a request does not become a stream, as an HTTP response.

use std::{error, fmt, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};

use super::Dialect;
use crate::status::{Details, Status};

/// A cause that makes a request fail before its `101`.
///
/// Rendered as a Kubernetes `Status` at an API server, as plain text at a kubelet and at a runtime.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    code: StatusCode,
    reason: &'static str,
    message: String,
    /// `(name, kind)` of `Status.details`.
    details: Option<(String, &'static str)>,
    /// Seconds of `Retry-After` and of `Status.details`; 0: none.
    retry_after: u32,
}

impl Refusal {
    /// A refusal with a `Status.reason`; an empty reason is left out, as Go does for plain errors.
    pub fn new(code: StatusCode, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into(), details: None, retry_after: 0 }
    }

    /// 400 `BadRequest`.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BadRequest", message)
    }

    /// 404 `NotFound` of a named object: `pods "demo" not found`.
    #[must_use]
    pub fn not_found(kind: &'static str, name: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "NotFound", format!("{kind} {name:?} not found")).about(kind, name)
    }

    /// 403 `Forbidden` of a named object: `pods "demo" is forbidden: why`.
    #[must_use]
    pub fn forbidden(kind: &'static str, name: &str, why: &str) -> Self {
        Self::new(StatusCode::FORBIDDEN, "Forbidden", format!("{kind} {name:?} is forbidden: {why}")).about(kind, name)
    }

    /// 429 `TooManyRequests`, with `Retry-After` in whole seconds, at least one.
    pub fn too_many_requests(message: impl Into<String>, retry_after: Duration) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, "TooManyRequests", message).retry_after(retry_after)
    }

    /// 503 `ServiceUnavailable`: nobody can tell now. With `Retry-After` in whole seconds, at least one.
    pub fn unavailable(message: impl Into<String>, retry_after: Duration) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", message).retry_after(retry_after)
    }

    fn retry_after(self, after: Duration) -> Self {
        Self { retry_after: u32::try_from(after.as_secs()).unwrap_or(u32::MAX).max(1), ..self }
    }

    /// 405 `MethodNotAllowed`.
    #[must_use]
    pub fn method_not_allowed() -> Self {
        let message = "the server does not allow this method on the requested resource";
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", message).about("", "")
    }

    /// What upstream says to a request that is no upgrade. The kubelet says it with 500, deliberately kept
    /// (`pkg/kubelet/server/server.go`, `responder.Error`, 1.36). A runtime takes it for a SPDY handshake that is not whole.
    pub(crate) fn upgrade_required(dialect: Dialect) -> Self {
        match dialect {
            Dialect::ApiServer => Self::bad_request("Upgrade request required"),
            Dialect::Kubelet => Self::internal("Upgrade request required"),
            Dialect::Runtime => Self::bad_request("unable to upgrade: missing upgrade headers in request"),
        }
    }

    /// 404 of a URL that nothing is served at.
    pub(crate) fn no_such_resource() -> Self {
        let message = "the server could not find the requested resource";
        Self::new(StatusCode::NOT_FOUND, "NotFound", message).about("", "")
    }

    /// 500 of a stack that is not whole, which is logged as the error of ours that it is.
    pub(crate) fn missing_layer(layer: &str, above: &str) -> Self {
        let why = format!("the stack is wrong: {layer} is missing above {above}");
        tracing::error!("{why}");
        let code = StatusCode::INTERNAL_SERVER_ERROR;
        Self::new(code, "InternalError", format!("Internal error occurred: {why}"))
    }

    /// 500 without a reason, as Go words an error that is not an API error.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "", message)
    }

    /// Names the object the refusal is about.
    #[must_use]
    pub fn about(mut self, kind: &'static str, name: &str) -> Self {
        self.details = Some((name.to_owned(), kind));
        self
    }

    /// The HTTP status code.
    #[must_use]
    pub fn code(&self) -> StatusCode {
        self.code
    }

    /// The sentence for people.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The response this refusal becomes in `dialect`.
    ///
    /// As text it has one form: a newline at its end, and no guessing by browsers what it may be. Upstream's differ by the
    /// Go library that writes them.
    #[must_use]
    pub fn into_response<R: From<Bytes>>(self, dialect: Dialect) -> Response<R> {
        let (kind, body) = match dialect {
            Dialect::ApiServer => ("application/json", self.status_json()),
            Dialect::Kubelet | Dialect::Runtime => ("text/plain; charset=utf-8", self.message + "\n"),
        };
        let mut response = Response::new(R::from(Bytes::from(body)));
        *response.status_mut() = self.code;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        if self.retry_after > 0 {
            headers.insert(header::RETRY_AFTER, self.retry_after.into());
        }
        if dialect != Dialect::ApiServer {
            headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
            if self.code == StatusCode::METHOD_NOT_ALLOWED {
                // RFC 9110, 15.5.6. kube-apiserver leaves it out.
                headers.insert(header::ALLOW, HeaderValue::from_static("GET, POST"));
            }
        }
        response
    }

    fn status_json(&self) -> String {
        let details = (self.details.is_some() || self.retry_after > 0).then(|| {
            let (name, kind) = self.details.clone().unwrap_or_default();
            Details { name, kind: kind.to_owned(), retry_after_seconds: self.retry_after, ..Details::default() }
        });
        let status = Status {
            kind: Some("Status".into()),
            api_version: Some("v1".into()),
            status: "Failure".into(),
            message: self.message.clone(),
            reason: self.reason.into(),
            details,
            code: self.code.as_u16(),
            ..Status::default()
        };
        status.to_json() + "\n"
    }
}
/// As an error it is the answer: an [`Authorize`](crate::layers::synthetic_authz::Authorize) that fails with one refuses so.
impl error::Error for Refusal {}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// In the extensions of a response: it is a refusal because the next hop could not be dialled. A leaf that dials puts it
/// there ([`UpgradeProxy`](crate::services::UpgradeProxy) does), for [`Metrics`](crate::layers::Metrics), which counts
/// that apart and takes it out.
#[derive(Clone, Copy, Debug)]
pub struct DialFailed;
