//! Stacks that the types let through and that are wrong nonetheless: each answers 500, names the layer that is missing in
//! the body and in the log, and opens nothing.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, as it should")]

use std::{
    convert::Infallible,
    future::{Ready, ready},
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Extensions, Request, Response, Uri, header};
use http_body_util::{BodyExt, Full};
use tokio::io::DuplexStream;
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_kube_streaming::{
    BoxError,
    layers::{
        FeatureRoutingLayer, Hop, MetricsLayer, Record, Resolve, SyntheticAuthzLayer, TranslateLayer, TunnelLayer,
        UpgradeDetectLayer,
        danger::PermitAllLayer,
        metrics::{Answer, Stream},
        synthetic_authz::{Attributes, Decision},
    },
    remote_command::{Exit, Stdio},
    runtime::{Loopback, Runtime, Session},
    services::{ApiServer, InProcess, Kubelet, StreamingServer, UpgradeProxy},
    upgrade::{Dialect, Refusal, Report, Sessions, Target, accept},
};
use tracing_subscriber::fmt::MakeWriter;

type Body = Full<Bytes>;

/// Set by whatever would open something.
#[derive(Clone, Default)]
struct Opened(Arc<AtomicBool>);

impl Opened {
    fn set(&self) {
        self.0.store(true, Relaxed);
    }

    /// A leaf that dials.
    fn proxy(
        &self,
    ) -> impl Service<Request<()>, Response = Response<Body>, Error = Infallible, Future: Send> + Clone + use<> {
        let opened = self.clone();
        UpgradeProxy::new(move |_: Uri| {
            opened.set();
            ready(Err::<DuplexStream, _>(io::Error::other("dialled")))
        })
    }

    /// A leaf that runs commands.
    fn server(&self) -> StreamingServer<Self> {
        StreamingServer::new(self.clone()).offer_v5().offer_tunnel()
    }

    /// A leaf that hands on to a stack in this process.
    fn in_process(
        &self,
    ) -> impl Service<Request<()>, Response = Response<Body>, Error = Infallible, Future: Send> + Clone + use<> {
        let opened = self.clone();
        InProcess::new(service_fn(move |_: Request<()>| {
            opened.set();
            ready(Ok(Response::new(Body::default())))
        }))
    }
}

impl Runtime for Opened {
    type Session = Opened;
    type Forward = Loopback;

    async fn open(&self, _: &Target) -> Result<Opened, Refusal> {
        self.set();
        Ok(self.clone())
    }

    async fn port_forward(&self, _: &Target) -> Result<Loopback, Refusal> {
        self.set();
        Ok(Loopback::default())
    }
}

impl Session for Opened {
    async fn run(self, _: Stdio) -> Result<Exit, BoxError> {
        Ok(Exit::Success)
    }
}

/// Keeps what is logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

const PODS: &str = "/api/v1/namespaces/default/pods/demo";

/// What clients of all kinds ask for; each has its side with it, as from a server.
fn streams() -> Vec<Request<()>> {
    let websocket = |uri: String, protocol: &str| {
        let request = Request::get(uri).header(header::CONNECTION, "Upgrade").header(header::UPGRADE, "websocket");
        let request = request.header(header::SEC_WEBSOCKET_VERSION, "13");
        let request = request.header(header::SEC_WEBSOCKET_KEY, "dGhlIHNhbXBsZSBub25jZQ==");
        request.header(header::SEC_WEBSOCKET_PROTOCOL, protocol)
    };
    let spdy = |uri: String, protocol: &str| {
        let request = Request::post(uri).header(header::CONNECTION, "Upgrade").header(header::UPGRADE, "SPDY/3.1");
        request.header("x-stream-protocol-version", protocol)
    };
    let exec = format!("{PODS}/exec?container=c&command=date&stdout=true");
    let requests = [
        websocket(exec.clone(), "v5.channel.k8s.io"),
        websocket(format!("{PODS}/portforward"), "SPDY/3.1+portforward.k8s.io"),
        spdy(exec, "v4.channel.k8s.io"),
        spdy(format!("{PODS}/attach?container=c&stdout=true"), "v4.channel.k8s.io"),
        spdy(format!("{PODS}/portforward"), "portforward.k8s.io"),
    ];
    let with_side = |request: http::request::Builder| {
        let mut request = request.body(()).unwrap();
        drop(accept(&mut Extensions::new(), request.extensions_mut()));
        request
    };
    requests.map(with_side).into()
}

/// Asks for every kind of stream; each is answered 500 with that sentence, which is logged as an error.
async fn is_refused<S>(case: &str, stack: S, opened: &Opened, why: &str)
where
    S: Service<Request<()>, Response = Response<Body>, Error = Infallible> + Clone,
{
    for request in streams() {
        let asked = format!("{case}: {} {} {:?}", request.method(), request.uri(), request.headers()[header::UPGRADE]);
        let log = Log::default();
        let subscriber = tracing_subscriber::fmt().with_writer(log.clone()).with_ansi(false).finish();
        let guard = tracing::subscriber::set_default(subscriber);
        let response = stack.clone().oneshot(request).await.unwrap();
        drop(guard);
        assert_eq!(response.status(), 500, "{asked}");
        let body = String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap();
        assert!(body.contains(why), "{asked}: {body}");
        let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        assert!(log.lines().any(|line| line.contains("ERROR") && line.contains(why)), "{asked}: {log}");
        assert!(!opened.0.load(Relaxed), "{asked}: something was opened");
    }
}

fn detect() -> UpgradeDetectLayer {
    UpgradeDetectLayer::new(Dialect::ApiServer, Sessions::new())
}

fn routing_to_kubelet(asked: Arc<Target>) -> Ready<Result<Hop, Refusal>> {
    ready(Hop::kubelet("http://127.0.0.1:1", &asked))
}

fn routing() -> FeatureRoutingLayer<impl Resolve<Future: Send> + Clone + Send> {
    FeatureRoutingLayer::new(routing_to_kubelet)
}

fn allowing() -> SyntheticAuthzLayer<impl Fn(Attributes) -> Ready<Result<Decision, BoxError>>> {
    SyntheticAuthzLayer::new(|_: Attributes| ready(Ok(Decision::allow())))
}

#[tokio::test]
async fn a_leaf_opens_nothing_for_a_stream_that_nobody_has_authorized() {
    let opened = Opened::default();
    let missing = |leaf: &str| format!("SyntheticAuthzLayer is missing above {leaf}");
    is_refused("proxy", detect().layer(opened.proxy()), &opened, &missing("UpgradeProxy")).await;
    is_refused("server", detect().layer(opened.server()), &opened, &missing("StreamingServer")).await;
    is_refused("in process", detect().layer(opened.in_process()), &opened, &missing("InProcess")).await;
}

#[tokio::test]
async fn a_leaf_that_stands_alone_opens_nothing() {
    let opened = Opened::default();
    let missing = |leaf: &str| format!("UpgradeDetectLayer is missing above {leaf}");
    is_refused("proxy", opened.proxy(), &opened, &missing("UpgradeProxy")).await;
    is_refused("server", opened.server(), &opened, &missing("StreamingServer")).await;
    is_refused("in process", opened.in_process(), &opened, &missing("InProcess")).await;
    let permitting = (PermitAllLayer, allowing());
    is_refused("authorized", permitting.layer(opened.server()), &opened, &missing("StreamingServer")).await;
}

#[tokio::test]
async fn a_leaf_that_carries_on_opens_nothing_without_a_route() {
    let opened = Opened::default();
    let above = (detect(), PermitAllLayer);
    let missing = |leaf: &str| format!("FeatureRoutingLayer is missing above {leaf}");
    is_refused("proxy", above.layer(opened.proxy()), &opened, &missing("UpgradeProxy")).await;
    is_refused("in process", above.layer(opened.in_process()), &opened, &missing("InProcess")).await;
}

#[tokio::test]
async fn layers_in_a_wrong_order_say_what_they_miss() {
    let opened = Opened::default();
    let leaf = (PermitAllLayer, routing()).layer(opened.proxy());
    let cases: [(&str, BoxedStack, &str); 7] = [
        (
            "detect below translate",
            boxed((TranslateLayer::new(), detect()).layer(leaf.clone())),
            "UpgradeDetectLayer is missing above Translate",
        ),
        (
            "detect below tunnel",
            boxed((TunnelLayer::new(), detect()).layer(leaf.clone())),
            "UpgradeDetectLayer is missing above Tunnel",
        ),
        (
            "detect below routing",
            boxed((routing(), detect()).layer(leaf.clone())),
            "UpgradeDetectLayer is missing above FeatureRouting",
        ),
        (
            "authorizing below translate",
            boxed((detect(), TranslateLayer::new()).layer(leaf.clone())),
            "SyntheticAuthzLayer is missing above Translate",
        ),
        (
            "authorizing below tunnel",
            boxed((detect(), TunnelLayer::new()).layer(leaf.clone())),
            "SyntheticAuthzLayer is missing above Tunnel",
        ),
        (
            "authorizing below routing",
            boxed((detect(), routing()).layer(leaf.clone())),
            "SyntheticAuthzLayer is missing above FeatureRouting",
        ),
        (
            "detect below metrics",
            boxed((MetricsLayer::new(Nobody), detect()).layer(leaf)),
            "UpgradeDetectLayer is missing above Metrics",
        ),
    ];
    for (case, stack, why) in cases {
        is_refused(case, stack, &opened, why).await;
    }
}

#[tokio::test]
async fn behind_an_authorizer_that_has_not_decided_nothing_is_opened() {
    let opened = Opened::default();
    let above = (detect(), allowing().behind_authorizer());
    let why = "no authorizer in front of the synthetic check has decided about the request";
    is_refused("server", above.layer(opened.server()), &opened, why).await;
    is_refused("proxy", (above, routing()).layer(opened.proxy()), &opened, why).await;
}

/// A kubelet in the same process lets in whoever comes, since the stack above it authorizes; so nothing else may come.
#[tokio::test]
async fn an_url_of_the_kubelet_is_no_way_round_the_authorization_above_it() {
    let opened = Opened::default();
    let kubelet = Kubelet::new(Sessions::new(), PermitAllLayer, opened.server());
    let deny = SyntheticAuthzLayer::new(|_: Attributes| ready(Ok(Decision::no_opinion())));
    let stack = ApiServer::new(Sessions::new(), deny, routing_to_kubelet, InProcess::new(kubelet));
    for request in streams() {
        let mut round = request;
        *round.uri_mut() = match round.uri().path().rsplit('/').next() {
            Some("portforward") => "/portForward/default/demo".parse().unwrap(),
            _ => "/exec/default/demo/c?command=date&output=1".parse().unwrap(),
        };
        assert_eq!(stack.clone().oneshot(round).await.unwrap().status(), 404);
        assert!(!opened.0.load(Relaxed));
    }
    for request in streams() {
        assert_eq!(stack.clone().oneshot(request).await.unwrap().status(), 403);
    }
}

/// So that nobody can fill the log with errors, and the test above can fail: a whole stack opens.
#[tokio::test]
async fn a_whole_stack_opens_and_answers_404_without_an_error_to_what_is_no_stream() {
    let opened = Opened::default();
    let stack = (detect(), MetricsLayer::new(Nobody), allowing(), routing(), TranslateLayer::new(), TunnelLayer::new());
    let stack = stack.layer(opened.proxy());
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt().with_writer(log.clone()).with_ansi(false).finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    for uri in ["/", "/healthz", PODS, "/exec/default/demo/c?output=1"] {
        let response = stack.clone().oneshot(Request::get(uri).body(()).unwrap()).await.unwrap();
        assert_eq!(response.status(), 404, "{uri}");
    }
    assert_eq!(String::from_utf8(log.0.lock().unwrap().clone()).unwrap(), "");
    for request in streams() {
        opened.0.store(false, Relaxed);
        let response = stack.clone().oneshot(request).await.unwrap();
        assert_eq!(response.status(), 500, "nobody listens there");
        assert!(opened.0.load(Relaxed));
    }
}

/// Records nothing.
struct Nobody;

impl Record for Nobody {
    fn answered(&self, _: Stream, _: Answer, _: Duration) {}

    fn ended(&self, _: Stream, _: &Report, _: Duration) {}
}

type BoxedStack = tower::util::BoxCloneService<Request<()>, Response<Body>, Infallible>;

fn boxed<S>(stack: S) -> BoxedStack
where
    S: Service<Request<()>, Response = Response<Body>, Error = Infallible, Future: Send> + Clone + Send + 'static,
{
    BoxedStack::new(stack)
}
