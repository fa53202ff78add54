use std::{
    convert::Infallible,
    future::{pending, ready},
    mem,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http::{Extensions, Request, Response, StatusCode, header};
use http_body_util::Full;
use tokio::{
    task::yield_now,
    time::{sleep, timeout},
};
use tower::{Service, ServiceBuilder, ServiceExt, service_fn};

use super::*;
use crate::{
    layers::{
        FeatureRoutingLayer, Hop, SyntheticAuthzLayer, TranslateLayer, TunnelLayer, UpgradeDetectLayer,
        danger::PermitAllLayer,
        synthetic_authz::{Attributes, Decision, Verb, Verdict},
    },
    services::InProcess,
    upgrade::{
        Cause, DialFailed, Dialect, End, Pending, Refusal, Report, Route, Sessions, Subresource, Target, accept, take,
    },
};

type Body = Full<Bytes>;
type Answered = Result<Response<Body>, Infallible>;

const EXEC: &str = "/api/v1/namespaces/default/pods/demo/exec?container=c1&command=date&stdout=true";
const ATTACH: &str = "/api/v1/namespaces/default/pods/demo/attach?stdout=true";
const PORT_FORWARD: &str = "/api/v1/namespaces/default/pods/demo/portforward";
const SPDY: &str = "SPDY/3.1";
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
const PATIENCE: Duration = Duration::from_secs(7);
const FAREWELL: Duration = Duration::from_secs(60);

/// Times are in whole seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Event {
    Answered(Stream, Answer, u64),
    Ended(Stream, End, (u64, u64), u64),
    Checked(Subresource, Option<Verdict>),
}

#[derive(Default)]
struct Events(Mutex<Vec<Event>>);

impl Events {
    fn take(&self) -> Vec<Event> {
        mem::take(&mut *self.0.lock().unwrap())
    }
}

impl Record for Events {
    fn answered(&self, stream: Stream, answer: Answer, latency: Duration) {
        self.0.lock().unwrap().push(Event::Answered(stream, answer, latency.as_secs()));
    }

    fn ended(&self, stream: Stream, report: &Report, lasted: Duration) {
        let bytes = (report.bytes.from_client(), report.bytes.to_client());
        self.0.lock().unwrap().push(Event::Ended(stream, report.end, bytes, lasted.as_secs()));
    }

    fn checked(&self, subresource: Subresource, verdict: Option<Verdict>) {
        self.0.lock().unwrap().push(Event::Checked(subresource, verdict));
    }
}

struct Lab {
    events: Arc<Events>,
    sessions: Sessions,
    speaks_websocket: bool,
}

impl Lab {
    fn new() -> Self {
        Self { events: Arc::default(), sessions: Sessions::new(), speaks_websocket: false }
    }

    /// Sends `request` through the whole stack of an API server.
    async fn ask<L>(&self, request: Request<()>, leaf: L) -> Result<Response<Body>, L::Error>
    where
        L: Service<Request<()>, Response = Response<Body>> + Clone,
    {
        let speaks_websocket = self.speaks_websocket;
        let resolve = move |asked: Arc<Target>| {
            let hop = Hop::kubelet("http://kubelet", &asked).map(|hop| hop.speaks_websocket(speaks_websocket));
            ready(if asked.pod == "nosuch" { Err(Refusal::not_found("pods", "nosuch")) } else { hop })
        };
        let metrics = MetricsLayer::new(Arc::clone(&self.events));
        let stack = ServiceBuilder::new()
            .layer(UpgradeDetectLayer::new(Dialect::ApiServer, self.sessions.clone()).count_refusals(metrics.clone()))
            .layer(metrics)
            .layer(PermitAllLayer)
            .layer(FeatureRoutingLayer::new(resolve))
            .layer(TranslateLayer::new())
            .layer(TunnelLayer::new())
            .service(leaf);
        stack.oneshot(request).await
    }

    /// Asks all sessions to end after seven seconds.
    async fn drain(&self) {
        assert_eq!(self.sessions.drain(PATIENCE, FAREWELL).await, 0);
    }
}

/// A client's upgrade, and the client's end of its connection.
fn upgrade(uri: &str, protocol: &str, offer: &str) -> (Request<()>, Pending) {
    let websocket = protocol == "websocket";
    let mut request = Request::builder()
        .method(if websocket { "GET" } else { "POST" })
        .uri(uri)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, protocol)
        .header(if websocket { "sec-websocket-protocol" } else { "x-stream-protocol-version" }, offer)
        .header(header::SEC_WEBSOCKET_KEY, "dGhlIHNhbXBsZSBub25jZQ==")
        .header(header::SEC_WEBSOCKET_VERSION, "13")
        .body(())
        .unwrap();
    let client = accept(&mut Extensions::new(), request.extensions_mut());
    (request, client)
}

fn spdy_exec() -> Request<()> {
    upgrade(EXEC, SPDY, "v4.channel.k8s.io").0
}

/// What `request` offers in SPDY's header, accepted.
fn switched(request: &Request<()>) -> Response<Body> {
    let response = Response::builder().status(101).header(header::CONNECTION, "Upgrade").header(header::UPGRADE, SPDY);
    let offer = request.headers().get("x-stream-protocol-version").cloned();
    response
        .header("x-stream-protocol-version", offer.unwrap_or(header::HeaderValue::from_static("")))
        .body(Body::default())
        .unwrap()
}

/// A leaf whose session lasts until it is asked to end.
async fn serve(mut request: Request<()>) -> Answered {
    let mut response = switched(&request);
    accept(request.extensions_mut(), response.extensions_mut()).spawn(|_io, drain| async move {
        drain.cancelled().await;
        let mut report = Report::new(End::ExitCode(3), Cause::Drain, "asked to");
        (report.bytes.stdin, report.bytes.stdout) = (5, 70);
        report
    });
    Ok(response)
}

async fn refuse(_: Request<()>) -> Answered {
    Ok(Response::builder().status(503).body(Body::default()).unwrap())
}

fn stream(subresource: Subresource, protocol: Protocol, route: Route) -> Stream {
    Stream { subresource, protocol, route }
}

const SPDY_EXEC: Stream = Stream { subresource: Subresource::Exec, protocol: Protocol::Spdy, route: Route::SpdyHop };

#[tokio::test(start_paused = true)]
async fn a_session_is_counted_from_its_101_to_its_end() {
    let lab = Lab::new();
    let late = service_fn(|request| async {
        sleep(Duration::from_secs(3)).await;
        serve(request).await
    });
    assert_eq!(lab.ask(spdy_exec(), late).await.unwrap().status(), 101);
    assert_eq!(lab.events.take(), [Event::Answered(SPDY_EXEC, Answer::Switched, 3)]);
    lab.drain().await;
    assert_eq!(lab.events.take(), [Event::Ended(SPDY_EXEC, End::ExitCode(3), (5, 70), 7)]);
}

#[tokio::test(start_paused = true)]
async fn each_protocol_and_each_way_it_goes_is_told() {
    use Protocol::{Other, Spdy, Tunnel, V5, WebSocket};
    use Route::{Adapted, SpdyHop, WebSocketHop};
    use Subresource::{Attach, Exec, PortForward};
    let (v4, v5) = ("v4.channel.k8s.io", "v5.channel.k8s.io");
    // By a hop that speaks SPDY only; to one that speaks WebSocket all goes on as it came.
    for (uri, protocol, offer, subresource, told, route) in [
        (EXEC, "websocket", v5, Exec, V5, Adapted),
        (ATTACH, "websocket", "v4.channel.k8s.io, v5.channel.k8s.io", Attach, V5, Adapted),
        (PORT_FORWARD, "websocket", TUNNEL, PortForward, Tunnel, Adapted),
        (EXEC, "websocket", v4, Exec, WebSocket, SpdyHop),
        (EXEC, "websocket", TUNNEL, Exec, WebSocket, SpdyHop),
        (PORT_FORWARD, "websocket", v5, PortForward, WebSocket, SpdyHop),
        (ATTACH, SPDY, v4, Attach, Spdy, SpdyHop),
        (PORT_FORWARD, SPDY, "portforward.k8s.io", PortForward, Spdy, SpdyHop),
        (EXEC, "foo", v5, Exec, Other, SpdyHop),
    ] {
        for speaks_websocket in [false, true] {
            let lab = Lab { speaks_websocket, ..Lab::new() };
            let answer = lab.ask(upgrade(uri, protocol, offer).0, service_fn(refuse)).await.unwrap();
            let route = if speaks_websocket { WebSocketHop } else { route };
            let wanted = Event::Answered(stream(subresource, told, route), Answer::Refused(answer.status()), 0);
            assert_eq!(lab.events.take(), [wanted], "{uri} {protocol} {offer}");
            assert_eq!(answer.status(), 503);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_adapted_session_is_counted_as_such_once() {
    for (uri, offer, subresource, protocol) in [
        (EXEC, "v5.channel.k8s.io", Subresource::Exec, Protocol::V5),
        (PORT_FORWARD, TUNNEL, Subresource::PortForward, Protocol::Tunnel),
    ] {
        let lab = Lab::new();
        let (request, client) = upgrade(uri, "websocket", offer);
        let mut response = lab
            .ask(request, service_fn(|request| ready(Ok::<_, Infallible>(switched_with_side(&request)))))
            .await
            .unwrap();
        assert_eq!(response.status(), 101);
        assert!(take(response.extensions_mut()).is_none(), "the two sides are joined");
        let adapted = stream(subresource, protocol, Route::Adapted);
        assert_eq!(lab.events.take(), [Event::Answered(adapted, Answer::Switched, 0)]);
        drop(client);
        lab.drain().await;
        let ended = lab.events.take();
        assert!(matches!(ended[..], [Event::Ended(stream, ..)] if stream == adapted), "{ended:?}");
    }
}

/// A leaf's `101` whose connection ends at once.
fn switched_with_side(request: &Request<()>) -> Response<Body> {
    let mut response = switched(request);
    drop(accept(&mut Extensions::new(), response.extensions_mut()));
    response
}

#[tokio::test(start_paused = true)]
async fn refusals_of_every_layer_are_counted_with_their_code() {
    let lab = Lab::new();
    let (mut bad_handshake, _client) = upgrade(EXEC, "websocket", "v5.channel.k8s.io");
    bad_handshake.headers_mut().remove(header::SEC_WEBSOCKET_KEY);
    let unknown = upgrade("/api/v1/namespaces/default/pods/nosuch/exec?command=date&stdout=true", SPDY, "").0;
    let (bad_query, _client) = upgrade(&format!("{EXEC}&dryRun=All"), "websocket", "v5.channel.k8s.io");
    let mut http_2 = Request::get(EXEC).body(()).unwrap();
    *http_2.version_mut() = http::Version::HTTP_2;
    let (mut another_page, _client) = upgrade(EXEC, "websocket", "v4.channel.k8s.io");
    another_page.headers_mut().insert(header::ORIGIN, header::HeaderValue::from_static("https://evil.example"));
    another_page.headers_mut().insert(header::COOKIE, header::HeaderValue::from_static("session=1"));
    for (request, code, protocol, route) in [
        (bad_query, StatusCode::BAD_REQUEST, Protocol::V5, Route::Unrouted),
        (http_2, StatusCode::BAD_REQUEST, Protocol::Other, Route::Unrouted),
        (another_page, StatusCode::FORBIDDEN, Protocol::WebSocket, Route::Unrouted),
        (Request::head(EXEC).body(()).unwrap(), StatusCode::METHOD_NOT_ALLOWED, Protocol::Other, Route::Unrouted),
        (bad_handshake, StatusCode::BAD_REQUEST, Protocol::V5, Route::Adapted),
        (unknown, StatusCode::NOT_FOUND, Protocol::Spdy, Route::Unrouted),
        (spdy_exec(), StatusCode::SERVICE_UNAVAILABLE, Protocol::Spdy, Route::SpdyHop),
        (Request::get(EXEC).body(()).unwrap(), StatusCode::SERVICE_UNAVAILABLE, Protocol::Other, Route::SpdyHop),
    ] {
        assert_eq!(lab.ask(request, service_fn(refuse)).await.unwrap().status(), code);
        let refused = stream(Subresource::Exec, protocol, route);
        assert_eq!(lab.events.take(), [Event::Answered(refused, Answer::Refused(code), 0)]);
    }
    assert!(lab.sessions.is_empty());
}

#[tokio::test]
async fn what_is_no_stream_is_not_counted() {
    let lab = Lab::new();
    let request = Request::get("/api/v1/namespaces/default/pods").body(()).unwrap();
    lab.ask(request, service_fn(refuse)).await.unwrap();
    assert_eq!(lab.events.take(), []);
}

#[tokio::test(start_paused = true)]
async fn a_failure_and_a_client_that_does_not_wait_are_counted() {
    let lab = Lab::new();
    let fails = service_fn(|_| ready(Err::<Response<Body>, _>("the inner service's own error")));
    assert_eq!(lab.ask(spdy_exec(), fails).await.unwrap_err(), "the inner service's own error");
    assert_eq!(lab.events.take(), [Event::Answered(SPDY_EXEC, Answer::Failed, 0)]);
    let hangs = service_fn(|_| pending::<Answered>());
    timeout(Duration::from_secs(4), lab.ask(spdy_exec(), hangs)).await.unwrap_err();
    assert_eq!(lab.events.take(), [Event::Answered(SPDY_EXEC, Answer::Abandoned, 4)]);
}

#[tokio::test(start_paused = true)]
async fn a_session_that_ends_before_its_101_comes_by_is_counted_behind_it() {
    let lab = Lab::new();
    let sessions = lab.sessions.clone();
    let quick = service_fn(move |mut request: Request<()>| {
        let sessions = sessions.clone();
        async move {
            let mut response = switched(&request);
            accept(request.extensions_mut(), response.extensions_mut())
                .spawn(|_, _| ready(Report::new(End::Success, Cause::Finished, "over")));
            while !sessions.is_empty() {
                yield_now().await;
            }
            Ok::<_, Infallible>(response)
        }
    });
    lab.ask(spdy_exec(), quick).await.unwrap();
    let wanted = [Event::Answered(SPDY_EXEC, Answer::Switched, 0), Event::Ended(SPDY_EXEC, End::Success, (0, 0), 0)];
    assert_eq!(lab.events.take(), wanted);
}

#[tokio::test(start_paused = true)]
async fn a_session_that_nobody_finishes_is_counted_as_an_error() {
    let ended = [Event::Answered(SPDY_EXEC, Answer::Switched, 0), Event::Ended(SPDY_EXEC, End::Error, (0, 0), 0)];
    // A leaf that answers 101 and lets the session fall.
    let lab = Lab::new();
    lab.ask(spdy_exec(), service_fn(|request| ready(Ok::<_, Infallible>(switched(&request))))).await.unwrap();
    assert_eq!(lab.events.take(), ended);
    // One that panics.
    let panics = service_fn(|mut request: Request<()>| {
        let mut response = switched(&request);
        accept(request.extensions_mut(), response.extensions_mut()).spawn(|_, _| async { panic!("a bug") });
        ready(Ok::<_, Infallible>(response))
    });
    lab.ask(spdy_exec(), panics).await.unwrap();
    lab.drain().await;
    assert_eq!(lab.events.take(), ended);
    // One that is cut.
    let stays = service_fn(|mut request: Request<()>| {
        let mut response = switched(&request);
        accept(request.extensions_mut(), response.extensions_mut()).spawn(|_, _| pending());
        ready(Ok::<_, Infallible>(response))
    });
    lab.ask(spdy_exec(), stays).await.unwrap();
    assert_eq!(lab.sessions.drain(PATIENCE, FAREWELL).await, 1);
    let cut = Event::Ended(SPDY_EXEC, End::Error, (0, 0), 67);
    assert_eq!(lab.events.take(), [Event::Answered(SPDY_EXEC, Answer::Switched, 0), cut]);
}

#[test]
fn a_session_whose_runtime_ends_is_counted() {
    let lab = Lab::new();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(lab.ask(spdy_exec(), service_fn(serve))).unwrap();
    drop(runtime);
    let ended = lab.events.take();
    assert!(matches!(ended[..], [Event::Answered(..), Event::Ended(SPDY_EXEC, End::Error, ..)]), "{ended:?}");
}

#[tokio::test(start_paused = true)]
async fn two_stacks_in_one_process_count_a_stream_once_each() {
    let lab = Lab::new();
    let (kubelet, inner) = (Arc::new(Events::default()), Sessions::new());
    let leaf = ServiceBuilder::new()
        .layer(UpgradeDetectLayer::new(Dialect::Kubelet, inner.clone()))
        .layer(MetricsLayer::new(Arc::clone(&kubelet)))
        .layer(PermitAllLayer)
        .service(service_fn(serve));
    lab.ask(spdy_exec(), InProcess::new(leaf)).await.unwrap();
    assert_eq!((lab.sessions.len(), inner.len()), (0, 1));
    assert_eq!(inner.drain(PATIENCE, FAREWELL).await, 0);
    let served = Stream { route: Route::Unrouted, ..SPDY_EXEC };
    for (events, stream) in [(&lab.events, SPDY_EXEC), (&kubelet, served)] {
        let wanted = [Event::Answered(stream, Answer::Switched, 0), Event::Ended(stream, End::ExitCode(3), (5, 70), 7)];
        assert_eq!(events.take(), wanted);
    }
}

#[tokio::test(start_paused = true)]
async fn a_dial_that_failed_is_told_apart_by_the_stack_that_dialled() {
    let lab = Lab::new();
    let unreachable = || {
        service_fn(|_: Request<()>| {
            let response = Response::builder().status(500).extension(DialFailed).body(Body::default());
            ready(Ok::<_, Infallible>(response.unwrap()))
        })
    };
    let failed = Answer::DialFailed(StatusCode::INTERNAL_SERVER_ERROR);
    for (request, stream) in [
        (spdy_exec(), SPDY_EXEC),
        (
            upgrade(PORT_FORWARD, "websocket", TUNNEL).0,
            stream(Subresource::PortForward, Protocol::Tunnel, Route::Adapted),
        ),
    ] {
        let response = lab.ask(request, unreachable()).await.unwrap();
        assert!(response.extensions().get::<DialFailed>().is_none(), "it says nothing to a stack around this one");
        assert_eq!(lab.events.take(), [Event::Answered(stream, failed, 0)]);
    }
    // The next hop is in this process, and it is that which could not dial.
    let kubelet = ServiceBuilder::new()
        .layer(UpgradeDetectLayer::new(Dialect::Kubelet, Sessions::new()))
        .layer(MetricsLayer::new(Arc::new(Events::default())))
        .layer(PermitAllLayer)
        .service(unreachable());
    lab.ask(spdy_exec(), InProcess::new(kubelet)).await.unwrap();
    let refused = Answer::Refused(StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(lab.events.take(), [Event::Answered(SPDY_EXEC, refused, 0)]);
}

#[tokio::test(start_paused = true)]
async fn each_synthetic_check_is_told_once_with_its_decision() {
    let (deny, error) = (Some(Verdict::Deny), None);
    for (method, natural, create, told) in [
        ("GET", Some(Verdict::Allow), Some(Verdict::Allow), Some(Some(Verdict::Allow))),
        ("GET", Some(Verdict::Allow), deny, Some(deny)),
        ("GET", Some(Verdict::Allow), Some(Verdict::NoOpinion), Some(Some(Verdict::NoOpinion))),
        ("GET", Some(Verdict::Allow), error, Some(error)),
        // Refused before it came to the check, or none was needed.
        ("GET", deny, Some(Verdict::Allow), None),
        ("GET", error, Some(Verdict::Allow), None),
        ("POST", error, Some(Verdict::Allow), None),
        ("POST", error, deny, None),
    ] {
        let events = Arc::new(Events::default());
        let rules = move |asked: Attributes| {
            ready(match if asked.verb == Verb::Create { create } else { natural } {
                Some(Verdict::Allow) => Ok(Decision::allow()),
                Some(Verdict::Deny) => Ok(Decision::deny()),
                Some(Verdict::NoOpinion) => Ok(Decision::no_opinion()),
                None => Err("the authorizer is down".into()),
            })
        };
        let stack = ServiceBuilder::new()
            .layer(UpgradeDetectLayer::new(Dialect::ApiServer, Sessions::new()))
            .layer(MetricsLayer::new(Arc::clone(&events)))
            .layer(SyntheticAuthzLayer::new(rules))
            .service(service_fn(refuse));
        let request = Request::builder().method(method).uri(EXEC).body(()).unwrap();
        stack.oneshot(request).await.unwrap();
        let checked: Vec<Event> =
            events.take().into_iter().filter(|event| matches!(event, Event::Checked(..))).collect();
        let wanted: Vec<Event> = told.map(|told| Event::Checked(Subresource::Exec, told)).into_iter().collect();
        assert_eq!(checked, wanted, "{method} {natural:?} {create:?}");
    }
}
