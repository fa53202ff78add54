//! The layer in a stack in one process: detection above it, a resolver and a leaf below.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http::{Extensions, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use tokio_test::{assert_pending, assert_ready_ok, task};
use tower::{ServiceBuilder, ServiceExt, service_fn};
use tower_test::mock;

use super::{Attributes, Decided, Decision, SyntheticAuthzLayer, Verb, Verdict};
use crate::{
    error::BoxError,
    gates::{FeatureGates, Gate},
    layers::{FeatureRoutingLayer, Hop, UpgradeDetectLayer},
    upgrade::{Caller, Dialect, Permit, Refusal, Sessions, StreamOptions, StreamRequest, Subresource, Target, accept},
};

type Body = Full<Bytes>;
type Answer = Result<Decision, BoxError>;

const API_SERVER: &str = "/api/v1/namespaces/default/pods/demo/exec?command=date&container=c1&stdout=true";
const KUBELET: &str = "/exec/default/demo/c1?command=date&output=1";
const HEAD: &str = r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","#;

/// Who was asked what, in order: questions, then `resolver`, then `leaf`.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    fn push(&self, line: impl Into<String>) {
        self.0.lock().unwrap().push(line.into());
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

/// An authorizer that answers by verb, and notes the questions.
fn rules(log: &Log, rule: impl Fn(Verb) -> Answer + Clone) -> impl Fn(Attributes) -> Ready<Answer> + Clone {
    let log = log.clone();
    move |asked: Attributes| {
        log.push(format!(
            "{} {} {}/{} {:?} {:?}",
            asked.caller.name, asked.verb, asked.resource, asked.subresource, asked.namespace, asked.name
        ));
        ready(rule(asked.verb))
    }
}

fn gates(create: bool) -> FeatureGates {
    FeatureGates::with([(Gate::AuthorizePodWebsocketUpgradeCreatePermission, create)]).unwrap()
}

fn allow_all(_: Verb) -> Answer {
    Ok(Decision::allow())
}

fn request(method: Method, uri: &str) -> Request<()> {
    let mut request = Request::builder().method(method).uri(uri).body(()).unwrap();
    request.extensions_mut().insert(Caller::new("jane", ["dev"]));
    if uri == KUBELET {
        // A kubelet's resolver is asked about nothing else than an upgrade, with the client's side in it.
        request.headers_mut().insert(header::CONNECTION, "Upgrade".parse().unwrap());
        request.headers_mut().insert(header::UPGRADE, "SPDY/3.1".parse().unwrap());
        drop(accept(&mut Extensions::new(), request.extensions_mut()));
    }
    request
}

/// What the authorizer between detection and the layer puts into the request.
#[derive(Clone)]
struct InFront(Decided);

/// Sends the request down the stack; the answer, and what was asked on the way.
async fn send<A>(log: &Log, layer: SyntheticAuthzLayer<A>, request: Request<()>) -> (Response<Body>, Vec<String>)
where
    A: super::Authorize,
{
    let dialect = if request.uri().path().starts_with("/api") { Dialect::ApiServer } else { Dialect::Kubelet };
    let (resolver, leaf) = (log.clone(), log.clone());
    let stack = ServiceBuilder::new()
        .layer(UpgradeDetectLayer::new(dialect, Sessions::new()))
        .map_request(|mut request: Request<()>| {
            if let Some(InFront(decided)) = request.extensions_mut().remove() {
                request.extensions_mut().insert(decided);
            }
            request
        })
        .layer(layer)
        .layer(FeatureRoutingLayer::new(move |_: Arc<Target>| {
            resolver.push("resolver");
            ready(Ok(Hop::new("http://hop/".parse().unwrap())))
        }))
        .service(service_fn(move |request: Request<()>| {
            let permit = request.extensions().get::<Permit>().expect("a permit");
            let asked = request.extensions().get::<StreamRequest>().expect("a stream");
            assert!(Arc::ptr_eq(&permit.0, asked.target()), "the very target that was asked about");
            leaf.push("leaf");
            ready(Ok::<_, Infallible>(Response::new(Body::default())))
        }));
    let response = stack.oneshot(request).await.unwrap();
    (response, log.take())
}

async fn text(response: Response<Body>) -> String {
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

fn answers() -> [fn() -> Answer; 4] {
    [
        || Ok(Decision::allow()),
        || Ok(Decision::deny()),
        || Ok(Decision::no_opinion()),
        || Err("the authorizer is down".into()),
    ]
}

#[tokio::test]
async fn every_method_gate_and_decision_leads_to_the_questions_and_the_answer_it_should() {
    for (uri, what) in [(API_SERVER, "pods/exec \"default\" \"demo\""), (KUBELET, "nodes/proxy \"\" \"node-1\"")] {
        for method in [Method::GET, Method::POST] {
            for gate in [true, false] {
                for (first, of_natural) in answers().into_iter().enumerate() {
                    for (second, of_create) in answers().into_iter().enumerate() {
                        let case = format!("{method} {uri} gate={gate} natural={first} create={second}");
                        let log = Log::default();
                        let natural = Verb::of(&method).unwrap();
                        let rule = move |verb| if verb == natural { of_natural() } else { of_create() };
                        let layer = SyntheticAuthzLayer::new(rules(&log, rule)).gates(gates(gate)).node_name("node-1");
                        let (response, asked) = send(&log, layer, request(method.clone(), uri)).await;

                        let both = method == Method::GET && (gate || uri == KUBELET);
                        let mut expected = vec![format!("jane {natural} {what}")];
                        if both && first == 0 {
                            expected.push(format!("jane create {what}"));
                        }
                        let last = if both && first == 0 { second } else { first };
                        if last == 0 {
                            expected.extend(["resolver".to_owned(), "leaf".to_owned()]);
                        }
                        assert_eq!(asked, expected, "{case}");
                        assert_eq!(response.status().as_u16(), [200, 403, 403, 500][last], "{case}");
                    }
                }
            }
        }
    }
}

#[tokio::test]
async fn the_headers_of_the_upgrade_do_not_matter() {
    for upgrade in [None, Some("websocket"), Some("SPDY/3.1"), Some("foo")] {
        let log = Log::default();
        let viewer = |verb| Ok(if verb == Verb::Get { Decision::allow() } else { Decision::no_opinion() });
        let mut request = request(Method::GET, API_SERVER);
        if let Some(upgrade) = upgrade {
            request.headers_mut().insert(header::CONNECTION, "Upgrade".parse().unwrap());
            request.headers_mut().insert(header::UPGRADE, upgrade.parse().unwrap());
        }
        let (response, asked) = send(&log, SyntheticAuthzLayer::new(rules(&log, viewer)), request).await;
        assert_eq!(response.status(), StatusCode::FORBIDDEN, "{upgrade:?}");
        assert_eq!(asked.len(), 2, "{upgrade:?}");
    }
}

#[tokio::test]
async fn each_subresource_is_asked_for_by_its_name() {
    for (uri, subresource) in [
        ("/api/v1/namespaces/ns/pods/p/exec?stdout=true", "exec"),
        ("/api/v1/namespaces/ns/pods/p/attach?stdout=true", "attach"),
        ("/api/v1/namespaces/ns/pods/p/portforward", "portforward"),
    ] {
        let log = Log::default();
        let (_, asked) = send(&log, SyntheticAuthzLayer::new(rules(&log, allow_all)), request(Method::POST, uri)).await;
        assert_eq!(asked[0], format!("jane create pods/{subresource} \"ns\" \"p\""));
    }
    for uri in ["/exec/ns/p/c?output=1", "/attach/ns/p/u/c?output=1", "/portForward/ns/p"] {
        let log = Log::default();
        let (_, asked) = send(&log, SyntheticAuthzLayer::new(rules(&log, allow_all)), request(Method::POST, uri)).await;
        assert_eq!(asked[0], "jane create nodes/proxy \"\" \"\"", "{uri}");
    }
}

#[tokio::test]
async fn who_nobody_vouches_for_is_asked_about_as_anonymous() {
    let log = Log::default();
    let mut request = request(Method::POST, API_SERVER);
    request.extensions_mut().remove::<Caller>();
    let (_, asked) = send(&log, SyntheticAuthzLayer::new(rules(&log, allow_all)), request).await;
    assert_eq!(asked[0], "system:anonymous create pods/exec \"default\" \"demo\"");
}

#[tokio::test]
async fn an_api_servers_refusals_read_as_recorded() {
    let about = r#""reason":"Forbidden","details":{"name":"demo","kind":"pods"},"code":403}"#;
    let cannot = |verb: &str, why: &str| {
        format!(
            r#""message":"pods \"demo\" is forbidden: User \"jane\" cannot {verb} resource \"pods/exec\" in API group \"\" in the namespace \"default\"{why}",{about}"#
        )
    };
    let down = r#""message":"the authorizer is down","code":500}"#.to_owned();
    type Rule = fn(Verb) -> Answer;
    let synthetic = |message: &str| format!(r#""message":"pods \"demo\" is forbidden: {message}",{about}"#);
    let cases: [(&str, Method, Rule, String, bool); 8] = [
        ("get refused", Method::GET, |_| Ok(Decision::no_opinion()), cannot("get", ""), true),
        ("post refused", Method::POST, |_| Ok(Decision::no_opinion()), cannot("create", ""), true),
        ("with a reason", Method::POST, |_| Ok(Decision::deny().because("no: x")), cannot("create", ": no: x"), true),
        ("create refused", Method::GET, only_get, synthetic(""), false),
        (
            "create refused with a reason",
            Method::GET,
            |verb| Ok(if verb == Verb::Get { Decision::allow() } else { Decision::deny().because("no shells") }),
            synthetic("no shells"),
            false,
        ),
        ("get fails", Method::GET, |_| Err("the authorizer is down".into()), down.clone(), false),
        ("post fails", Method::POST, |_| Err("the authorizer is down".into()), down.clone(), false),
        (
            "create fails",
            Method::GET,
            |verb| if verb == Verb::Get { Ok(Decision::allow()) } else { Err("the authorizer is down".into()) },
            down,
            false,
        ),
    ];
    for (case, method, rule, body, nosniff) in cases {
        let log = Log::default();
        let (response, _) = send(&log, SyntheticAuthzLayer::new(rules(&log, rule)), request(method, API_SERVER)).await;
        assert_eq!(response.headers()[header::CONTENT_TYPE], "application/json", "{case}");
        assert_eq!(response.headers().contains_key(header::X_CONTENT_TYPE_OPTIONS), nosniff, "{case}");
        assert_eq!(text(response).await, format!("{HEAD}{body}\n"), "{case}");
    }
}

fn only_get(verb: Verb) -> Answer {
    Ok(if verb == Verb::Get { Decision::allow() } else { Decision::no_opinion() })
}

#[tokio::test]
async fn a_kubelets_refusals_read_as_recorded() {
    type Rule = fn(Verb) -> Answer;
    let cases: [(Method, Rule, u16, &str); 5] = [
        (Method::GET, |_| Ok(Decision::no_opinion()), 403, "Forbidden (user=jane, verb=get, "),
        (Method::POST, |_| Ok(Decision::deny().because("not told")), 403, "Forbidden (user=jane, verb=create, "),
        (Method::GET, only_get, 403, "Forbidden (user=jane, verb=create, "),
        (Method::GET, |_| Err("secret".into()), 500, "Authorization error (user=jane, verb=get, "),
        (Method::POST, |_| Err("secret".into()), 500, "Authorization error (user=jane, verb=create, "),
    ];
    for (method, rule, code, begins) in cases {
        let log = Log::default();
        let (response, _) = send(&log, SyntheticAuthzLayer::new(rules(&log, rule)), request(method, KUBELET)).await;
        assert_eq!(response.status().as_u16(), code);
        assert_eq!(response.headers()[header::CONTENT_TYPE], "text/plain; charset=utf-8");
        let of = if code == 403 { "subresource(s)=[proxy]" } else { "subresource=proxy" };
        assert_eq!(text(response).await, format!("{begins}resource=nodes, {of})\n"));
    }
}

/// So an authorizer that cannot decide now says that the caller is to come again.
#[tokio::test]
async fn an_authorizer_that_fails_with_a_refusal_refuses_so() {
    let later = |verb: Verb| match verb {
        Verb::Get => Ok(Decision::allow()),
        _ => Err(Refusal::unavailable("ask later", Duration::from_secs(2)).into()),
    };
    let body = r#""message":"ask later","reason":"ServiceUnavailable","details":{"retryAfterSeconds":2},"code":503}"#;
    for (uri, body) in [(API_SERVER, format!("{HEAD}{body}\n")), (KUBELET, "ask later\n".to_owned())] {
        for method in [Method::GET, Method::POST] {
            let log = Log::default();
            let layer = SyntheticAuthzLayer::new(rules(&log, later));
            let (response, asked) = send(&log, layer, request(method, uri)).await;
            assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
            assert_eq!(response.headers()[header::RETRY_AFTER], "2");
            assert_eq!(text(response).await, body);
            assert!(!asked.iter().any(|asked| asked == "leaf"), "{asked:?}");
        }
    }
}

fn decided(verb: Verb, change: impl FnOnce(&mut Target)) -> Decided {
    let mut target = Target {
        subresource: Subresource::Exec,
        namespace: "default".into(),
        pod: "demo".into(),
        uid: None,
        container: Some("c1".into()),
        options: StreamOptions { stdout: true, command: vec!["date".into()], ..StreamOptions::default() },
        dialect: Dialect::ApiServer,
    };
    change(&mut target);
    Decided { verb, target: Arc::new(target) }
}

#[tokio::test]
async fn behind_an_authorizer_only_the_create_of_a_get_is_asked_for() {
    for (method, verb, gate, expected) in [
        (Method::GET, Verb::Get, true, &["jane create pods/exec \"default\" \"demo\"", "resolver", "leaf"][..]),
        (Method::GET, Verb::Get, false, &["resolver", "leaf"]),
        (Method::POST, Verb::Create, true, &["resolver", "leaf"]),
    ] {
        let log = Log::default();
        let layer = SyntheticAuthzLayer::new(rules(&log, allow_all)).gates(gates(gate)).behind_authorizer();
        let mut request = request(method.clone(), API_SERVER);
        request.extensions_mut().insert(InFront(decided(verb, |_| ())));
        let (response, asked) = send(&log, layer, request).await;
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(asked, expected, "{method} gate={gate}");
    }
}

#[tokio::test]
async fn behind_an_authorizer_a_refused_create_is_worded_as_the_synthetic_check_words_it() {
    let log = Log::default();
    let layer = SyntheticAuthzLayer::new(rules(&log, |_| Ok(Decision::no_opinion()))).behind_authorizer();
    let mut request = request(Method::GET, API_SERVER);
    request.extensions_mut().insert(InFront(decided(Verb::Get, |_| ())));
    let (response, asked) = send(&log, layer, request).await;
    assert_eq!(response.status(), StatusCode::FORBIDDEN);
    assert_eq!(asked.len(), 1);
    assert!(text(response).await.contains(r#""message":"pods \"demo\" is forbidden: ","#));
}

#[tokio::test]
async fn what_was_decided_about_another_request_or_not_at_all_is_500_and_nobody_is_asked() {
    let wrong = [
        ("nothing", None),
        ("another verb", Some(decided(Verb::Create, |_| ()))),
        ("another pod", Some(decided(Verb::Get, |target| target.pod = "other".into()))),
        ("another namespace", Some(decided(Verb::Get, |target| target.namespace = "other".into()))),
        ("another subresource", Some(decided(Verb::Get, |target| target.subresource = Subresource::Attach))),
        ("another container", Some(decided(Verb::Get, |target| target.container = None))),
        ("another command", Some(decided(Verb::Get, |target| target.options.command.clear()))),
        ("another hop", Some(decided(Verb::Get, |target| target.dialect = Dialect::Kubelet))),
    ];
    for (case, decided) in wrong {
        let log = Log::default();
        let mut request = request(Method::GET, API_SERVER);
        if let Some(decided) = decided {
            request.extensions_mut().insert(InFront(decided));
        }
        let layer = SyntheticAuthzLayer::new(rules(&log, allow_all)).behind_authorizer();
        let (response, asked) = send(&log, layer, request).await;
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR, "{case}");
        assert!(asked.is_empty(), "{case}: {asked:?}");
    }
}

#[tokio::test]
async fn what_an_authorizer_of_an_outer_stack_has_decided_is_no_answer_here() {
    let log = Log::default();
    let mut request = request(Method::POST, API_SERVER);
    request.extensions_mut().insert(decided(Verb::Create, |_| ()));
    let layer = SyntheticAuthzLayer::new(rules(&log, allow_all)).behind_authorizer();
    let (response, asked) = send(&log, layer, request).await;
    assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
    assert!(asked.is_empty(), "{asked:?}");
}

#[tokio::test]
async fn a_layer_that_stands_alone_asks_whatever_was_decided_in_front() {
    let log = Log::default();
    let mut request = request(Method::GET, API_SERVER);
    request.extensions_mut().insert(InFront(decided(Verb::Get, |_| ())));
    let layer = SyntheticAuthzLayer::new(rules(&log, |_| Ok(Decision::deny())));
    let (response, asked) = send(&log, layer, request).await;
    assert_eq!(response.status(), StatusCode::FORBIDDEN);
    assert_eq!(asked, ["jane get pods/exec \"default\" \"demo\""]);
}

#[test]
fn every_verb_of_a_method_is_the_one_rbac_uses() {
    for (method, verb) in [
        (Method::GET, Some("get")),
        (Method::HEAD, Some("get")),
        (Method::POST, Some("create")),
        (Method::PUT, Some("update")),
        (Method::PATCH, Some("patch")),
        (Method::DELETE, Some("delete")),
        (Method::OPTIONS, None),
        (Method::CONNECT, None),
        (Method::from_bytes(b"EXEC").unwrap(), None),
    ] {
        assert_eq!(Verb::of(&method).map(Verb::as_str), verb, "{method}");
    }
}

/// What is logged, whole.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn one_line_carries_both_decisions_and_nothing_that_the_caller_could_forge_or_would_keep_secret() {
    type Rule = fn(Verb) -> Answer;
    let cases: [(Method, Rule, &str, &str); 5] = [
        (Method::GET, allow_all, "DEBUG", "verb=get decision=allow decision.create=allow"),
        (Method::POST, allow_all, "DEBUG", "verb=create decision=allow decision.create=not_asked"),
        (Method::GET, only_get, "INFO", "verb=get decision=allow decision.create=no_opinion"),
        (Method::GET, |_| Ok(Decision::deny()), "INFO", "verb=get decision=deny decision.create=not_asked"),
        (
            Method::GET,
            |verb| if verb == Verb::Get { Ok(Decision::allow()) } else { Err("down".into()) },
            "WARN",
            "verb=get decision=allow decision.create=error",
        ),
    ];
    for (method, rule, level, decisions) in cases {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::TRACE)
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish();
        let guard = tracing::subscriber::set_default(subscriber);
        let log = Log::default();
        let forged = "/api/v1/namespaces/default/pods/a%0Ab/exec?command=sesame&stdout=true";
        send(&log, SyntheticAuthzLayer::new(rules(&log, rule)), request(method, forged)).await;
        drop(guard);
        let told = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        let [line] = told.lines().collect::<Vec<_>>()[..] else { panic!("one line: {told}") };
        assert!(line.contains(level) && line.contains(decisions), "{line}");
        assert!(
            line.contains(r#"user.name="jane" subresource=exec pod.namespace="default" pod.name="a\nb""#),
            "{line}"
        );
        assert!(!line.contains("sesame"), "{line}");
    }
}

// The layer alone, polled.

#[tokio::test]
async fn methods_that_detection_would_have_refused_need_their_own_verb_and_create() {
    for (method, expected) in [
        (Method::HEAD, &["get", "create"][..]),
        (Method::PUT, &["update", "create"]),
        (Method::PATCH, &["patch", "create"]),
        (Method::DELETE, &["delete", "create"]),
        (Method::OPTIONS, &[]),
    ] {
        let log = Log::default();
        let layer = SyntheticAuthzLayer::new(rules(&log, allow_all));
        let (mut service, mut inner) = mock::spawn_layer::<Request<()>, Response<Body>, _>(layer);
        assert_ready_ok!(service.poll_ready());
        let mut request = request(method.clone(), API_SERVER);
        request.extensions_mut().insert(StreamRequest(decided(Verb::Get, |_| ()).target));
        let mut response = task::spawn(service.call(request));
        if expected.is_empty() {
            assert_eq!(assert_ready_ok!(response.poll()).status(), StatusCode::METHOD_NOT_ALLOWED);
            assert_pending!(inner.poll_request());
        } else {
            assert_pending!(response.poll());
            assert!(inner.next_request().await.is_some(), "{method}");
        }
        let verbs: Vec<_> = log.take().iter().map(|line| line.split(' ').nth(1).unwrap().to_owned()).collect();
        assert_eq!(verbs, expected, "{method}");
    }
}

#[tokio::test]
async fn what_is_no_stream_goes_on_without_a_permit_whoever_gave_it_one() {
    let log = Log::default();
    let layer = SyntheticAuthzLayer::new(rules(&log, |_| Ok(Decision::deny())));
    let (mut service, mut inner) = mock::spawn_layer::<Request<()>, Response<Body>, _>(layer);
    assert_ready_ok!(service.poll_ready());
    let mut request = request(Method::GET, "/api/v1/namespaces");
    request.extensions_mut().insert(Permit(decided(Verb::Get, |_| ()).target));
    let _response = task::spawn(service.call(request));
    let (seen, _) = inner.next_request().await.unwrap();
    assert!(seen.extensions().get::<Permit>().is_none());
    assert!(log.take().is_empty());
}

#[tokio::test]
async fn no_way_to_write_a_url_opens_a_stream_that_was_not_asked_about() {
    const EXEC: &str = "exec?command=id&stdout=true";
    for (path, code, pod) in [
        ("/api/v1/namespaces/default/pods/demo/", 200, Some("demo")),
        ("/api/v1/namespaces/default/pods/de%6Do/", 200, Some("demo")),
        ("/api/v1/namespaces/default/pods/demo;x/", 200, Some("demo;x")),
        ("/api/v1/namespaces/default/pods/%2e%2E/", 400, None),
        ("/api/v1/namespaces/default/pods/demo%2Fexec/", 400, None),
        ("/api/v1/namespaces/default/pods/%2564emo/", 400, None),
        ("/api/v1/namespaces/default/pods/x/../demo/", 404, None),
        ("/api/v1/namespaces/default/pods//", 404, None),
        ("/api/v1/namespaces//pods/demo/", 404, None),
        ("//api/v1/namespaces/default/pods/demo/", 404, None),
        ("/api//v1/namespaces/default/pods/demo/", 404, None),
        ("/api/v1/namespaces/default/pods/demo//", 404, None),
        ("/api/v1/namespaces/default/pods/demo/%2e/", 404, None),
        ("/api/v1/namespaces/default/pods/demo/x;/../", 404, None),
        ("/%61pi/v1/namespaces/default/pods/demo/", 404, None),
        ("/API/v1/namespaces/default/pods/demo/", 404, None),
        ("/api/v1/namespaces/default/%70ods/demo/", 404, None),
        ("/api/v1/namespaces/default/pods/demo/%65xec?", 404, None),
        ("/api/v1/namespaces/default/pods/demo/exec/?", 404, None),
        ("/api/v1/namespaces/default/pods/demo/exec;x?", 404, None),
    ] {
        let log = Log::default();
        let stack = ServiceBuilder::new()
            .layer(UpgradeDetectLayer::new(Dialect::ApiServer, Sessions::new()))
            .layer(SyntheticAuthzLayer::new(rules(&log, allow_all)))
            .service(service_fn(|request: Request<()>| {
                let permit = request.extensions().get::<Permit>().map(|permit| permit.pod.clone());
                let mut response = Response::new(Body::from(permit.clone().unwrap_or_default()));
                *response.status_mut() = if permit.is_some() { StatusCode::OK } else { StatusCode::NOT_FOUND };
                ready(Ok::<_, Infallible>(response))
            }));
        let response = stack.oneshot(request(Method::GET, &format!("{path}{EXEC}"))).await.unwrap();
        assert_eq!(response.status(), code, "{path}");
        let asked = pod.map(|pod| ["get", "create"].map(|verb| format!("jane {verb} pods/exec \"default\" {pod:?}")));
        assert_eq!(log.take(), asked.map_or(Vec::new(), Vec::from), "{path}");
        if let Some(pod) = pod {
            assert_eq!(text(response).await, pod);
        }
    }
}

#[tokio::test]
async fn nothing_below_is_asked_while_the_authorizer_thinks() {
    let (say, hear) = tokio::sync::watch::channel(None::<Verdict>);
    let slow = Arc::new(move |_: Attributes| {
        let mut hear = hear.clone();
        async move {
            let verdict = hear.wait_for(Option::is_some).await?.expect("waited for");
            Ok::<_, BoxError>(Decision { verdict, reason: String::new() })
        }
    });
    let layer = SyntheticAuthzLayer::shared(slow);
    let (mut service, mut inner) = mock::spawn_layer::<Request<()>, Response<Body>, _>(layer);
    assert_ready_ok!(service.poll_ready());
    let mut request = request(Method::GET, API_SERVER);
    request.extensions_mut().insert(StreamRequest(decided(Verb::Get, |_| ()).target));
    let mut response = task::spawn(service.call(request));
    assert_pending!(response.poll());
    assert_pending!(inner.poll_request());
    say.send(Some(Verdict::Allow)).unwrap();
    assert!(response.is_woken());
    assert_pending!(response.poll());
    let (seen, _) = inner.next_request().await.unwrap();
    assert_eq!(seen.extensions().get::<Permit>().unwrap().pod, "demo");
}
