//! One question to the cluster's API, bounded in time, size and number, and its failures as refusals.

use std::{error::Error, fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use kube::{Client, client::Body};
use serde::de::DeserializeOwned;
use tokio::{
    sync::Semaphore,
    time::{sleep, timeout},
};

use crate::{status::Status, upgrade::Refusal};

/// Longest wait for an answer, that for a place in the line and all tries included.
pub(super) const ANSWER: Duration = Duration::from_secs(10);

/// Longest wait for one try: a connection that is lost without a word must not take all the time there is.
const TRY: Duration = Duration::from_secs(4);

/// Waits before another try. Upstream's webhooks try five times, in 4 s; here the caller is told to come back.
const AGAIN: [Duration; 2] = [Duration::from_millis(100), Duration::from_millis(400)];

/// Questions on their way at once. Anybody may come with a new token, and each is a question.
const AT_ONCE: usize = 64;

/// Longest answer in bytes. An object in etcd has 1.5 MiB at most.
const BODY: usize = 4 << 20;

/// Longest text of the API server that is passed on or logged, in bytes.
pub(super) const WORDS: usize = 4096;

/// When a client is to come again if the API cannot be reached: it is back at any moment, or not.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Asks the API of a cluster. Clones share their places.
#[derive(Clone)]
pub(super) struct Api {
    pub(super) client: Client,
    places: Arc<Semaphore>,
}

/// Why there is no answer.
#[derive(Clone, Debug)]
pub(super) enum Failure {
    /// The API says that there is no such object.
    NotFound,
    /// The API cannot be reached, or has failed: it may be able to say at once.
    Lost(String),
    /// The API has no time for it: it may be able to say later.
    Busy(String),
    /// The API will not say, or what it says is no answer.
    Refused(String),
}

impl Api {
    pub(super) fn new(client: Client) -> Self {
        Self { client, places: Arc::new(Semaphore::new(AT_ONCE)) }
    }

    /// Reads the object at that path, which holds nothing that was not checked.
    ///
    /// # Cancel safety
    ///
    /// Dropped, the request is cancelled.
    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.ask(&Method::GET, path, Bytes::new()).await
    }

    /// Creates a review, and returns it as it was answered. A review changes nothing, so it may be asked for again.
    pub(super) async fn review<T: DeserializeOwned>(&self, path: &str, review: Vec<u8>) -> Result<T, Failure> {
        self.ask(&Method::POST, path, review.into()).await
    }

    async fn ask<T: DeserializeOwned>(&self, method: &Method, path: &str, body: Bytes) -> Result<T, Failure> {
        let asked = async {
            let _place = self.places.acquire().await.map_err(|error| Failure::Busy(error.to_string()))?;
            for wait in AGAIN {
                match self.once(method, path, body.clone()).await {
                    Err(Failure::Lost(_)) => sleep(wait).await,
                    answer => return answer,
                }
            }
            self.once(method, path, body).await
        };
        let late = |_| Err(Failure::Busy(format!("no answer in {ANSWER:?}")));
        timeout(ANSWER, asked).await.unwrap_or_else(late)
    }

    async fn once<T: DeserializeOwned>(&self, method: &Method, path: &str, body: Bytes) -> Result<T, Failure> {
        let mut request = Request::builder().method(method).uri(path).header(header::ACCEPT, "application/json");
        if !body.is_empty() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let request = request.body(Body::from(body)).map_err(|error| Failure::Refused(error.to_string()))?;
        let answer = async {
            let response = self.client.send(request).await.map_err(|error| Failure::Lost(words(&error)))?;
            let code = response.status();
            // Not `Client::request`, which logs what it cannot decode, and a review of a token holds the token.
            let body = Limited::new(response.into_body(), BODY).collect().await;
            Ok((code, body.map_err(|error| Failure::Lost(words(&*error)))?.to_bytes()))
        };
        let late = |_| Err(Failure::Lost(format!("no answer in {TRY:?}")));
        let (code, body) = timeout(TRY, answer).await.unwrap_or_else(late)?;
        match code {
            _ if code.is_success() => serde_json::from_slice(&body)
                // The line and the kind of error, without what was read.
                .map_err(|error| Failure::Refused(format!("an answer that is none, {:?}", error.classify()))),
            StatusCode::NOT_FOUND if is_about_an_object(&body) => Err(Failure::NotFound),
            // These kube-rs's usual client has tried for 3 s already, by its `RetryPolicy`.
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => {
                Err(Failure::Busy(complaint(code, &body)))
            }
            _ if code.is_server_error() => Err(Failure::Lost(complaint(code, &body))),
            _ => Err(Failure::Refused(complaint(code, &body))),
        }
    }
}

impl Failure {
    /// What is answered to whoever's request hangs on it: that it cannot be decided now, or that the cluster does not
    /// answer questions like it. What the API said is for the log, as it says what this process may and may not.
    pub(super) fn refusal(self, what: &'static str) -> Refusal {
        match self {
            Self::Lost(why) | Self::Busy(why) => {
                tracing::warn!(what, why, "the cluster's API cannot be asked");
                Refusal::unavailable("the cluster's API cannot be asked at the moment", RETRY_AFTER)
            }
            Self::Refused(why) => {
                tracing::warn!(what, why, "the cluster's API does not answer");
                Refusal::internal(format!("the cluster's API does not answer: {what}"))
            }
            Self::NotFound => {
                tracing::warn!(what, "the cluster's API does not know the question");
                Refusal::internal(format!("the cluster's API does not know the question: {what}"))
            }
        }
    }
}

impl fmt::Debug for Api {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Api").field("free", &self.places.available_permits()).finish_non_exhaustive()
    }
}

/// A 404 of an object; one without a name in it is of the URL.
fn is_about_an_object(body: &[u8]) -> bool {
    let status: Option<Status> = serde_json::from_slice(body).ok();
    status.and_then(|status| status.details).is_some_and(|details| !details.name.is_empty())
}

/// What the API server complains of.
fn complaint(code: StatusCode, body: &[u8]) -> String {
    let message = serde_json::from_slice::<Status>(body).map(|status| status.message).unwrap_or_default();
    cut(format!("{code}: {message}"))
}

/// An error and its causes.
pub(super) fn words(error: &dyn Error) -> String {
    let mut said = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !said.contains(&text) {
            said = format!("{said}: {text}");
        }
        cause = error.source();
    }
    cut(said)
}

/// No more of it than is passed on.
pub(super) fn cut(mut text: String) -> String {
    let end = (0..=WORDS.min(text.len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    text.truncate(end);
    text
}
