//! `GET …/pods/{name}/log`: a plain request to the kubelet, whose answer goes to the client as it comes.

use std::{fmt, time::Duration};

use axum::{
    body::{Body, Bytes},
    extract::{Query, State},
    response::{IntoResponse, Response},
};
use futures_util::StreamExt;
use http::{HeaderValue, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use tokio::time::timeout;
use tower_kube_streaming::{adapters::rustls::TlsConnect, upgrade::Refusal};

use super::{
    api::{Api, Failure},
    at::At,
    client::{Dialer, pool},
    locate::Locate,
};

/// Time for a kubelet to begin its answer.
const ANSWER: Duration = Duration::from_secs(30);
/// Bytes of a kubelet's refusal, as upstream.
const REFUSAL: usize = 2048;

/// Where the logs of containers are.
#[derive(Clone)]
pub struct Logs(Option<(Locate, Client<Dialer, Full<Bytes>>)>);

impl Logs {
    /// Nowhere: processes of this host have none.
    pub fn none() -> Self {
        Self(None)
    }

    /// At the kubelets.
    pub fn of_kubelets(locate: Locate, connect: TlsConnect) -> Self {
        Self(Some((locate, pool(connect))))
    }
}

impl fmt::Debug for Logs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Logs").field(&self.0.as_ref().map(|(locate, _)| locate)).finish()
    }
}

/// `PodLogOptions`, as strings: the kubelet reads them.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct LogQuery {
    container: Option<String>,
    follow: Option<String>,
    limit_bytes: Option<String>,
    previous: Option<String>,
    since_seconds: Option<String>,
    since_time: Option<String>,
    tail_lines: Option<String>,
    timestamps: Option<String>,
}

impl LogQuery {
    fn for_kubelet(&self) -> String {
        let fields = [
            ("follow", &self.follow),
            ("limitBytes", &self.limit_bytes),
            ("previous", &self.previous),
            ("sinceSeconds", &self.since_seconds),
            ("sinceTime", &self.since_time),
            ("tailLines", &self.tail_lines),
            ("timestamps", &self.timestamps),
        ];
        let given = fields.iter().filter_map(|(name, value)| Some((name, value.as_deref()?)));
        let words: Vec<_> =
            given.map(|(name, value)| format!("{name}={}", utf8_percent_encode(value, NON_ALPHANUMERIC))).collect();
        words.join("&")
    }
}

/// Answers with the log of a container.
pub async fn read(State(api): State<Api>, at: At, Query(query): Query<LogQuery>) -> Result<Response, Failure> {
    let Some((locate, http)) = &api.logs.0 else {
        return Err(Refusal::bad_request("processes of this host have no log here").into());
    };
    let (namespace, pod) = (at.namespace.unwrap_or_default(), at.name.unwrap_or_default());
    let named = query.container.as_deref().filter(|name| !name.is_empty());
    let Some(uri) = locate.log(&namespace, &pod, named)? else {
        // As upstream: a pod that nobody has taken has said nothing yet.
        return Ok(text(Body::empty()));
    };
    let uri = format!("{uri}?{}", query.for_kubelet());
    let uri = uri.parse().map_err(|_| Refusal::bad_request("the query is too long for a URL"))?;
    let answer = timeout(ANSWER, http.get(uri)).await;
    let answer = answer.map_err(|_| Refusal::internal(format!("the kubelet does not answer within {ANSWER:?}")))?;
    let answer = answer.map_err(|error| {
        tracing::warn!(%error, pod.namespace = namespace, pod.name = pod, "asking a kubelet for a log failed");
        Refusal::internal("dialing the kubelet failed")
    })?;
    if !answer.status().is_success() {
        return Err(refusal(answer).await.into());
    }
    let lines = Body::new(answer.into_body()).into_data_stream().take_until(api.stop.cancelled_owned());
    Ok(text(Body::from_stream(lines)))
}

fn text(body: Body) -> Response {
    ([(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"))], body).into_response()
}

/// Upstream's `GenericHttpResponseChecker` (pkg/registry/generic/rest/response_checker.go).
async fn refusal(answer: http::Response<Incoming>) -> Refusal {
    let code = answer.status();
    let body = Limited::new(answer.into_body(), REFUSAL).collect();
    let words = match timeout(ANSWER, body).await {
        Ok(Ok(body)) => String::from_utf8_lossy(&body.to_bytes()).into_owned(),
        _ => String::new(),
    };
    let words = words.trim_end();
    match code {
        StatusCode::BAD_REQUEST => Refusal::bad_request(words),
        StatusCode::NOT_FOUND => Refusal::new(code, "NotFound", format!("the kubelet says: {words}")),
        _ => Refusal::internal(format!("the kubelet says {}: {words}", code.as_u16())),
    }
}
