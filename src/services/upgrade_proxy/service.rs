//! The leaf itself.

use std::{
    convert::Infallible,
    fmt,
    future::Future,
    io,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{
    HeaderValue, Method, Request, Response, StatusCode,
    header::{CONTENT_LENGTH, HOST, TRANSFER_ENCODING},
    request,
};
use http_body_util::{Empty, Full};
use tokio::{
    select,
    time::{Instant, sleep},
};
use tower::Service;
use tracing::{Instrument, Span};

use super::{
    Connect,
    handshake::{self, Failure},
};
use crate::{
    layers::Hop,
    remote_command::{Version, passthrough},
    upgrade::{
        self, Cause, ClientAddr, DialFailed, Dialect, Leg, Refusal, Report, SessionLimits, Subresource, Target,
        can_switch, drop_malformed_trace_context, is_upgrade, is_websocket, permitted, upgrade_names,
    },
};

type Answer = Response<Full<Bytes>>;

/// Longest wait for a connection to the next hop.
const DIAL: Duration = Duration::from_secs(30);

/// Longest wait for its answer. A kubelet asks its runtime before it answers.
const ANSWER: Duration = Duration::from_secs(30);

/// Carries an upgrade to the next hop. See the [module docs](super).
#[derive(Debug)]
pub struct UpgradeProxy<C> {
    connect: Arc<C>,
    dial: Duration,
    answer: Duration,
    limits: SessionLimits,
}

impl<C> Clone for UpgradeProxy<C> {
    fn clone(&self) -> Self {
        Self { connect: Arc::clone(&self.connect), ..*self }
    }
}

impl<C: Connect> UpgradeProxy<C> {
    /// Dials with `connect`.
    pub fn new(connect: C) -> Self {
        Self { connect: Arc::new(connect), dial: DIAL, answer: ANSWER, limits: SessionLimits::new() }
    }

    /// Longest wait for a connection to the next hop; 30 s by default.
    #[must_use]
    pub fn dial_timeout(mut self, limit: Duration) -> Self {
        self.dial = limit;
        self
    }

    /// Longest wait for the next hop's answer; 30 s by default.
    #[must_use]
    pub fn answer_timeout(mut self, limit: Duration) -> Self {
        self.answer = limit;
        self
    }

    /// Holds the sessions to `limits`: of those, `ping_after` and `dead_after` apply here.
    #[must_use]
    pub fn limits(mut self, limits: SessionLimits) -> Self {
        self.limits = limits;
        self
    }

    async fn carry(self, mut request: request::Parts) -> Result<Answer, Box<Answer>> {
        let target = permitted(&request.extensions, "UpgradeProxy")
            .map_err(|(dialect, refusal)| Box::new(refusal.into_response(dialect)))?;
        let refuse = |refusal: Refusal| Box::new(refusal.into_response(target.dialect));
        let Some(hop) = request.extensions.remove::<Hop>() else {
            return Err(refuse(Refusal::missing_layer("FeatureRoutingLayer", "UpgradeProxy")));
        };
        if !can_switch(&request) {
            return Err(refuse(upgrade_required(target.dialect)));
        }
        let ours = is_upgrade(request.version, &request.headers, &request.extensions);
        let span = hop.span();
        let asked = ask_for(&request, hop);
        let mut response = self.ask(&target, asked).instrument(span.clone()).await?;
        if ours && response.status() == StatusCode::SWITCHING_PROTOCOLS {
            join(&mut request, &mut response, &target, self.limits, span);
        }
        Ok(response)
    }

    /// Dials, asks and waits for the answer.
    async fn ask(&self, target: &Target, asked: Request<Empty<Bytes>>) -> Result<Answer, Box<Answer>> {
        let websocket = is_websocket(asked.headers());
        // One timer for both waits: a new one that is due before all others wakes the thread that sleeps on them.
        let mut clock = pin!(sleep(self.dial));
        let io = select! {
            biased;
            io = self.connect.connect(asked.uri().clone()) => io,
            () = &mut clock => Err(io::Error::new(io::ErrorKind::TimedOut, "dial tcp: i/o timeout")),
        };
        let refuse = |refusal: Refusal| Box::new(refusal.into_response(target.dialect));
        let io = io.map_err(|error| {
            let mut answer = refuse(bad_gateway(target, format!("error dialing backend: {error}"), &error));
            answer.extensions_mut().insert(DialFailed);
            answer
        })?;
        clock.as_mut().reset(Instant::now() + self.answer);
        let answer = select! {
            biased;
            answer = handshake::ask(io, relative(asked)) => answer,
            () = &mut clock => Err(Failure::Broken(io::Error::from(io::ErrorKind::TimedOut).into())),
        };
        let response = answer.map_err(|failure| refuse(bad_gateway(target, failure.message(), &failure)))?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            // Over WebSocket, 400 and 403 mostly mean that the hop does not speak it, whatever was said of it.
            tracing::info!(
                leg = %Leg::Handshake, subresource = %target.subresource, pod.namespace = ?target.namespace,
                pod.name = ?target.pod, websocket, code = response.status().as_u16(),
                "the next hop refused the stream",
            );
        }
        Ok(response)
    }
}

/// Joins the client's side, which the request still has, with the next hop's.
fn join(
    request: &mut request::Parts,
    response: &mut Response<Full<Bytes>>,
    target: &Target,
    limits: SessionLimits,
    span: Span,
) {
    let Some(client) = upgrade::take(&mut request.extensions) else { return };
    let Some(hop) = upgrade::take(response.extensions_mut()) else { return };
    let protocol = negotiated(response);
    let spdy = upgrade_names(response.headers(), "spdy/3.1");
    let watched = match target.subresource {
        Subresource::Exec | Subresource::Attach if spdy => Version::from_name(&protocol),
        _ => None,
    };
    let session = move |client, drain| async move {
        let mut report = match hop.into_io().await {
            Ok(hop) => passthrough::carry(client, hop, watched, &limits, drain).await,
            Err(error) => {
                let detail = format!("the next hop's connection was lost: {error}");
                Report::new(upgrade::End::Error, Cause::Handshake, detail)
            }
        };
        report.protocol_in = protocol.clone().into();
        report.protocol_out = protocol.into();
        report
    };
    client.spawn(move |client, drain| session(client, drain).instrument(span));
}

fn negotiated(response: &Response<Full<Bytes>>) -> String {
    let headers = response.headers();
    let protocol = headers.get("x-stream-protocol-version").or_else(|| headers.get("sec-websocket-protocol"));
    protocol.and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
}

/// The client's request, moved to the next hop.
fn ask_for(client: &request::Parts, hop: Hop) -> Request<Empty<Bytes>> {
    let mut request = Request::new(Empty::new());
    *request.method_mut() = client.method.clone();
    *request.headers_mut() = client.headers.clone();
    *request.uri_mut() = hop.uri;
    let headers = request.headers_mut();
    handshake::strip_credentials(headers);
    drop_malformed_trace_context(headers);
    if let Some(ClientAddr(address)) = client.extensions.get() {
        handshake::forwarded_for(headers, *address);
    }
    // The client's body stays here.
    headers.remove(TRANSFER_ENCODING);
    headers.remove(CONTENT_LENGTH);
    if client.method == Method::POST {
        // Go's servers want one, hyper leaves it out.
        headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
    }
    request
}

/// The request as HTTP/1.1 writes it: no authority in the request line, but a `Host`.
fn relative(mut request: Request<Empty<Bytes>>) -> Request<Empty<Bytes>> {
    if !request.headers().contains_key(HOST) {
        let host = request.uri().authority().and_then(|authority| HeaderValue::from_str(authority.as_str()).ok());
        request.headers_mut().insert(HOST, host.unwrap_or(HeaderValue::from_static("")));
    }
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    *request.uri_mut() = path.parse().expect("path and query of a URI");
    request
}

/// What upstream says to a request that is no upgrade. The kubelet says it with 500, deliberately kept
/// (`pkg/kubelet/server/server.go`, `responder.Error`, 1.36).
pub(in crate::services) fn upgrade_required(dialect: Dialect) -> Refusal {
    match dialect {
        Dialect::ApiServer => Refusal::bad_request("Upgrade request required"),
        Dialect::Kubelet => Refusal::internal("Upgrade request required"),
    }
}

fn bad_gateway(target: &Target, message: String, cause: &dyn fmt::Debug) -> Refusal {
    tracing::warn!(
        leg = %Leg::Handshake, subresource = %target.subresource, pod.namespace = ?target.namespace,
        pod.name = ?target.pod, ?cause,
        "the next hop cannot be reached, or gave no usable answer",
    );
    Refusal::internal(message)
}

impl<C: Connect, B> Service<Request<B>> for UpgradeProxy<C> {
    type Response = Answer;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Answer, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (request, _) = request.into_parts();
        let carried = self.clone().carry(request);
        Box::pin(async move { Ok(carried.await.unwrap_or_else(|refusal| *refusal)) })
    }
}
