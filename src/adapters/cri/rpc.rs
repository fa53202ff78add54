//! One call to the runtime, bounded in time and size, and its failures as a kubelet words them.

use std::{error, fmt, time::Duration};

use http::{StatusCode, uri::PathAndQuery};
use tokio::time::timeout;
use tonic::{
    Code, Request, Status,
    client::Grpc,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

use crate::upgrade::Refusal;

/// Longest wait for a connection to the runtime's socket.
const DIAL: Duration = Duration::from_secs(5);

/// Longest wait for one answer: the kubelet's default `runtimeRequestTimeout`.
pub(super) const REQUEST: Duration = Duration::from_secs(120);

/// Longest answer in bytes, as kubelets have it (`maxMsgSize` in `cri-client`).
const MESSAGE: usize = 16 << 20;

/// What a client is told to wait when the runtime has too many streams pending: its tokens live so long (`cacheTTL`).
const RETRY_AFTER: Duration = Duration::from_secs(60);

/// Longest message of a runtime that is passed on, in bytes.
const WORDS: usize = 4096;

/// An endpoint that is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointError(String);

impl fmt::Display for EndpointError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is no endpoint of a container runtime: unix:///absolute/path is", self.0)
    }
}

impl error::Error for EndpointError {}

/// A connection to the runtime, made when it is needed and again when it was lost.
#[derive(Clone, Debug)]
pub(super) struct Client {
    channel: Channel,
    pub(super) timeout: Duration,
}

impl Client {
    pub(super) fn new(endpoint: &str) -> Result<Self, EndpointError> {
        let bad = || EndpointError(endpoint.to_owned());
        let path = endpoint.strip_prefix("unix://").ok_or_else(bad)?;
        if !path.starts_with('/') || path.ends_with('/') {
            return Err(bad());
        }
        let endpoint = Endpoint::from_shared(endpoint.to_owned()).map_err(|_| bad())?;
        Ok(Self { channel: endpoint.connect_timeout(DIAL).connect_lazy(), timeout: REQUEST })
    }

    /// Calls a method of `runtime.v1.RuntimeService`, and once more if the connection turns out to be lost: the runtime
    /// may have restarted. None of those that are called here changes anything but the list of pending URLs.
    ///
    /// # Cancel safety
    ///
    /// Dropped, the call is cancelled; the runtime may have carried it out.
    pub(super) async fn call<Q, A>(&self, path: &'static str, question: Q) -> Result<A, Refusal>
    where
        Q: prost::Message + Clone + 'static,
        A: prost::Message + Default + 'static,
    {
        let answer = timeout(self.timeout, async {
            match self.once(path, question.clone()).await {
                Err(status) if is_lost(&status) => self.once(path, question).await,
                answer => answer,
            }
        });
        let late = |_| Err(Status::deadline_exceeded("context deadline exceeded"));
        answer.await.unwrap_or_else(late).map_err(|status| refusal(path, &status))
    }

    async fn once<Q, A>(&self, path: &'static str, question: Q) -> Result<A, Status>
    where
        Q: prost::Message + 'static,
        A: prost::Message + Default + 'static,
    {
        let mut grpc = Grpc::new(self.channel.clone()).max_decoding_message_size(MESSAGE);
        grpc.ready().await.map_err(|error| Status::from_error(error.into()))?;
        let path = PathAndQuery::from_static(path);
        Ok(grpc.unary(Request::new(question), path, ProstCodec::default()).await?.into_inner())
    }
}

/// Whether it is the connection that failed. What a runtime says has no cause on our side.
fn is_lost(status: &Status) -> bool {
    error::Error::source(status).is_some()
}

/// As upstream's `WriteError` (`k8s.io/cri-streaming`, `errors.go`).
fn refusal(method: &str, status: &Status) -> Refusal {
    let said = words(status);
    tracing::debug!(cri.method = method, cri.code = ?status.code(), "the container runtime refused");
    let code = match status.code() {
        // As Go calls it, whatever tonic takes it for.
        _ if is_lost(status) => "Unavailable".to_owned(),
        Code::Cancelled => "Canceled".to_owned(),
        code => format!("{code:?}"),
    };
    let message = format!("rpc error: code = {code} desc = {said}");
    match status.code() {
        Code::NotFound => Refusal::new(StatusCode::NOT_FOUND, "NotFound", message),
        Code::ResourceExhausted => Refusal::too_many_requests(message, RETRY_AFTER),
        _ => Refusal::internal(message),
    }
}

/// What it says, and where it is a failure of the transport also why.
fn words(status: &Status) -> String {
    let mut said = status.message().to_owned();
    let mut cause = error::Error::source(status);
    while let Some(error) = cause {
        let text = error.to_string();
        if !said.contains(&text) {
            said += if said.is_empty() { "" } else { ": " };
            said += &text;
        }
        cause = error.source();
    }
    let end = (0..=WORDS.min(said.len())).rev().find(|end| said.is_char_boundary(*end)).unwrap_or(0);
    said.truncate(end);
    said
}
