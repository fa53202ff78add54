use std::{
    future::ready,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, Version, header};
use http_body_util::{BodyExt, Full};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_test::{assert_pending, assert_ready_ok, task};
use tower_test::mock;

use super::{FeatureRoutingLayer, Hop, TranslateLayer, TunnelLayer, UpgradeDetectLayer};
use crate::gates::{FeatureGates, Gate};
use crate::upgrade::{
    Dialect, NoStream, Permit, Refusal, Session, Sessions, StreamOptions, StreamRequest, Subresource, Target, accept,
    take,
};

type Body = Full<Bytes>;
const EXEC: &str = "/api/v1/namespaces/default/pods/demo/exec?command=date&stdout=true";

fn target(subresource: Subresource) -> Arc<Target> {
    Arc::new(Target {
        subresource,
        namespace: "default".into(),
        pod: "demo".into(),
        uid: None,
        container: Some("c1".into()),
        options: StreamOptions { stdout: true, ..StreamOptions::default() },
        dialect: Dialect::ApiServer,
    })
}

async fn text(response: Response<Body>) -> String {
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

/// A permitted WebSocket handshake with a client's side; the other end of it.
fn websocket(protocol: &str) -> Request<()> {
    let mut request = Request::get(EXEC)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .header(header::SEC_WEBSOCKET_KEY, "dGhlIHNhbXBsZSBub25jZQ==")
        .header(header::SEC_WEBSOCKET_VERSION, "13")
        .header(header::SEC_WEBSOCKET_PROTOCOL, protocol)
        .body(())
        .unwrap();
    request.extensions_mut().insert(Permit(target(Subresource::Exec)));
    give_side(&mut request);
    request
}

/// Puts a client's side into the request, as a server would.
fn give_side(request: &mut Request<()>) {
    // A leaf's far end is a side like any other.
    let side = accept(&mut http::Extensions::new(), request.extensions_mut());
    drop(side);
}

// UpgradeDetect.

#[tokio::test]
async fn what_an_outer_stack_allowed_is_taken_out_and_its_session_is_kept_inside_ours() {
    let sessions = Sessions::new();
    let layer = UpgradeDetectLayer::new(Dialect::ApiServer, sessions);
    let (mut service, mut inner) = mock::spawn_layer::<Request<()>, Response<Body>, _>(layer);
    for uri in [EXEC, "/api/v1/namespaces"] {
        assert_ready_ok!(service.poll_ready());
        let mut request = Request::get(uri).body(()).unwrap();
        request.extensions_mut().insert(Permit(target(Subresource::Attach)));
        request.extensions_mut().insert(StreamRequest(target(Subresource::Attach)));
        request.extensions_mut().insert(Hop::new("http://outer/".parse().unwrap()));
        let guard = Arc::new(());
        let outer = Session::default();
        outer.hold(Arc::clone(&guard));
        request.extensions_mut().insert(outer);
        let _response = task::spawn(service.call(request));
        let (seen, _) = inner.next_request().await.unwrap();
        assert!(seen.extensions().get::<Permit>().is_none());
        assert!(seen.extensions().get::<Hop>().is_none());
        let asked = seen.extensions().get::<StreamRequest>().map(|asked| asked.target().subresource);
        assert_eq!(asked, (uri == EXEC).then_some(Subresource::Exec));
        assert_eq!(Arc::strong_count(&guard), 2, "the outer guard lives");
        drop(seen);
        assert_eq!(Arc::strong_count(&guard), 1, "and ends with the session");
    }
}

#[tokio::test]
async fn other_methods_are_refused_in_the_dialect_of_the_hop() {
    for (dialect, uri) in [(Dialect::ApiServer, EXEC), (Dialect::Kubelet, "/exec/default/demo/c1?output=1")] {
        let layer = UpgradeDetectLayer::new(dialect, Sessions::new());
        let (mut service, mut inner) = mock::spawn_layer::<Request<()>, Response<Body>, _>(layer);
        for method in [Method::PUT, Method::DELETE, Method::PATCH, Method::HEAD, Method::OPTIONS] {
            assert_ready_ok!(service.poll_ready());
            let mut response = task::spawn(service.call(Request::builder().method(method).uri(uri).body(()).unwrap()));
            let response = assert_ready_ok!(response.poll());
            assert_eq!(response.status(), StatusCode::METHOD_NOT_ALLOWED);
            assert_pending!(inner.poll_request());
            let kind = response.headers()[header::CONTENT_TYPE].to_str().unwrap().to_owned();
            assert_eq!(kind.starts_with("application/json"), dialect == Dialect::ApiServer, "{kind}");
            let allow = response.headers().get(header::ALLOW).map(|allow| allow.to_str().unwrap());
            assert_eq!(allow, (dialect == Dialect::Kubelet).then_some("GET, POST"));
            if dialect == Dialect::ApiServer {
                let body = text(response).await;
                assert!(body.ends_with("\"reason\":\"MethodNotAllowed\",\"details\":{},\"code\":405}\n"), "{body}");
            }
        }
    }
}

/// What detection answers by itself; `None`: the inner service was asked.
async fn detected(layer: UpgradeDetectLayer, request: Request<()>) -> Option<(u16, String)> {
    let (mut service, mut inner) = mock::spawn_layer::<Request<()>, Response<Body>, _>(layer);
    assert_ready_ok!(service.poll_ready());
    let mut response = task::spawn(service.call(request));
    if inner.poll_request().is_ready() {
        return None;
    }
    let response = assert_ready_ok!(response.poll());
    Some((response.status().as_u16(), text(response).await))
}

#[tokio::test]
async fn a_stream_over_http_2_is_told_that_it_needs_http_1_1() {
    let layer = || UpgradeDetectLayer::new(Dialect::ApiServer, Sessions::new());
    let ask = |method: Method, uri: &str, version: Version| {
        Request::builder().method(method).uri(uri).version(version).body(()).unwrap()
    };
    for (method, version, said) in [
        (Method::GET, Version::HTTP_2, "HTTP/2.0"),
        (Method::POST, Version::HTTP_2, "HTTP/2.0"),
        (Method::CONNECT, Version::HTTP_2, "HTTP/2.0"),
        (Method::CONNECT, Version::HTTP_3, "HTTP/3.0"),
    ] {
        let (code, body) = detected(layer(), ask(method, EXEC, version)).await.unwrap();
        assert_eq!(code, 400);
        let status = format!(
            r#"{{"kind":"Status","apiVersion":"v1","metadata":{{}},"status":"Failure","message":"Upgrade request required: a stream needs HTTP/1.1, and this request came over {said}","reason":"BadRequest","code":400}}"#
        );
        assert_eq!(body.trim_end(), status);
    }
    assert_eq!(detected(layer(), ask(Method::PUT, EXEC, Version::HTTP_2)).await.unwrap().0, 405);
    for (uri, version) in [("/api/v1/namespaces", Version::HTTP_2), (EXEC, Version::HTTP_11), (EXEC, Version::HTTP_10)]
    {
        assert_eq!(detected(layer(), ask(Method::GET, uri, version)).await, None, "{uri} {version:?}");
    }
}

#[tokio::test]
async fn a_page_of_another_origin_opens_no_stream_with_a_cookie_whatever_the_protocol() {
    let page = |origin: &str, method: Method, upgrade: &str| {
        let request = Request::builder().method(method).uri(EXEC).header(header::HOST, "api.example:6443");
        let request = request.header(header::CONNECTION, "Upgrade").header(header::UPGRADE, upgrade);
        request.header(header::COOKIE, "session=1").header(header::ORIGIN, origin).body(()).unwrap()
    };
    let layer = |dialect| UpgradeDetectLayer::new(dialect, Sessions::new());
    let strict = || layer(Dialect::ApiServer);
    for (method, upgrade) in [(Method::GET, "websocket"), (Method::POST, "SPDY/3.1"), (Method::GET, "SPDY/3.1")] {
        let refused = detected(strict(), page("https://evil.example", method.clone(), upgrade)).await.unwrap();
        assert_eq!(refused.0, 403);
        assert!(
            refused.1.contains(r#""reason":"Forbidden","details":{"name":"demo","kind":"pods"},"code":403"#),
            "{refused:?}"
        );
        assert_eq!(detected(strict(), page("https://api.example:6443", method.clone(), upgrade)).await, None);
        let allowing = strict().allow_origins(["https://console.example", "https://evil.example"]);
        assert_eq!(detected(allowing, page("https://evil.example", method, upgrade)).await, None);
    }
    let mut kubelet = page("https://evil.example", Method::GET, "websocket");
    *kubelet.uri_mut() = "/exec/default/demo/c1?output=1".parse().unwrap();
    let (code, body) = detected(layer(Dialect::Kubelet), kubelet).await.unwrap();
    assert_eq!((code, body.starts_with("pods \"demo\" is forbidden: ")), (403, true), "{body}");
}

#[tokio::test]
async fn refusals_read_as_kubernetes_has_them() {
    let head = r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","#;
    for (refusal, code, body) in [
        (
            Refusal::forbidden("pods", "demo", ""),
            403,
            r#""message":"pods \"demo\" is forbidden: ","reason":"Forbidden","details":{"name":"demo","kind":"pods"},"code":403}"#,
        ),
        (
            Refusal::not_found("pods", "nosuch"),
            404,
            r#""message":"pods \"nosuch\" not found","reason":"NotFound","details":{"name":"nosuch","kind":"pods"},"code":404}"#,
        ),
        (
            Refusal::bad_request("Upgrade request required"),
            400,
            r#""message":"Upgrade request required","reason":"BadRequest","code":400}"#,
        ),
        (
            Refusal::internal("error dialing backend: dial tcp 127.0.0.1:1: connect: connection refused"),
            500,
            r#""message":"error dialing backend: dial tcp 127.0.0.1:1: connect: connection refused","code":500}"#,
        ),
    ] {
        let message = refusal.message().to_owned();
        let response: Response<Body> = refusal.clone().into_response(Dialect::ApiServer);
        assert_eq!(response.status(), code);
        assert_eq!(text(response).await, format!("{head}{body}\n"));
        let response: Response<Body> = refusal.into_response(Dialect::Kubelet);
        assert_eq!(response.headers()[header::CONTENT_TYPE], "text/plain; charset=utf-8");
        assert_eq!(response.headers()[header::X_CONTENT_TYPE_OPTIONS], "nosniff");
        assert_eq!(text(response).await, format!("{message}\n"));
    }
}

// FeatureRouting.

#[tokio::test]
async fn what_is_no_stream_is_not_routed() {
    let layer = FeatureRoutingLayer::new(|_: Arc<Target>| async { Err::<Hop, _>(Refusal::internal("asked")) });
    let (mut service, mut inner) = mock::spawn_layer::<Request<()>, Response<Body>, _>(layer);
    assert_ready_ok!(service.poll_ready());
    let mut request = Request::get("/healthz").body(()).unwrap();
    request.extensions_mut().insert(NoStream(Dialect::ApiServer));
    let _response = task::spawn(service.call(request));
    let (seen, _) = inner.next_request().await.unwrap();
    assert!(seen.extensions().get::<Hop>().is_none());
    assert_eq!(seen.uri(), "/healthz");
}

#[tokio::test]
async fn what_the_resolver_refuses_never_reaches_the_inner_service() {
    let layer = FeatureRoutingLayer::new(|_: Arc<Target>| async { Err::<Hop, _>(Refusal::not_found("pods", "demo")) });
    let (mut service, mut inner) = mock::spawn_layer::<Request<()>, Response<Body>, _>(layer);
    assert_ready_ok!(service.poll_ready());
    let mut response = task::spawn(service.call(websocket("v5.channel.k8s.io")));
    assert_eq!(assert_ready_ok!(response.poll()).status(), StatusCode::NOT_FOUND);
    assert_pending!(inner.poll_request());
}

// Translate.

async fn translated(request: Request<()>) -> (Request<()>, bool) {
    let (mut service, mut inner) = mock::spawn_layer::<Request<()>, Response<Body>, _>(TranslateLayer::new());
    assert_ready_ok!(service.poll_ready());
    let _response = task::spawn(service.call(request));
    let (mut seen, _) = inner.next_request().await.expect("forwarded");
    let kept = take(seen.extensions_mut()).is_some();
    (seen, !kept)
}

#[tokio::test]
async fn what_is_not_adapted_goes_on_unchanged() {
    let v5 = "v5.channel.k8s.io";
    let change = |change: fn(&mut Request<()>)| {
        let mut request = websocket("v5.channel.k8s.io");
        change(&mut request);
        request
    };
    let cases = [
        ("v4 only", websocket("v4.channel.k8s.io")),
        ("wrong case", websocket("v5.CHANNEL.k8s.io")),
        (
            "no stream",
            change(|request| {
                request.extensions_mut().remove::<Permit>();
                request.extensions_mut().insert(NoStream(Dialect::ApiServer));
            }),
        ),
        (
            "port-forward",
            change(|request| {
                request.extensions_mut().insert(Permit(target(Subresource::PortForward)));
            }),
        ),
        ("no upgrade", change(|request| drop(request.headers_mut().remove(header::CONNECTION)))),
        ("no protocol", change(|request| drop(request.headers_mut().remove(header::SEC_WEBSOCKET_PROTOCOL)))),
        ("spdy", change(|request| drop(request.headers_mut().insert(header::UPGRADE, "SPDY/3.1".parse().unwrap())))),
        (
            "second line",
            change(|request| {
                let headers = request.headers_mut();
                headers.insert(header::SEC_WEBSOCKET_PROTOCOL, "v4.channel.k8s.io".parse().unwrap());
                headers.append(header::SEC_WEBSOCKET_PROTOCOL, "v5.channel.k8s.io".parse().unwrap());
            }),
        ),
        (
            "the hop speaks it",
            change(|request| {
                let hop = Hop::new("http://hop/".parse().unwrap()).speaks_websocket(true);
                request.extensions_mut().insert(hop);
            }),
        ),
        ("HTTP/1.0", change(|request| *request.version_mut() = Version::HTTP_10)),
    ];
    for (case, request) in cases {
        let before = (request.method().clone(), request.uri().clone(), request.headers().clone());
        let (seen, adapted) = translated(request).await;
        assert!(!adapted, "{case}");
        assert_eq!((seen.method().clone(), seen.uri().clone(), seen.headers().clone()), before, "{case}");
    }
    for several in [v5, "v5.channel.k8s.io, v4.channel.k8s.io", "v4.channel.k8s.io,v9, v5.channel.k8s.io"] {
        assert!(translated(websocket(several)).await.1, "{several}");
    }
}

fn lines<'a>(headers: &'a HeaderMap, name: &str) -> Vec<&'a str> {
    headers.get_all(name).iter().map(|value| value.to_str().unwrap()).collect()
}

#[tokio::test]
async fn an_adapted_request_is_a_spdy_post_with_all_versions() {
    let mut request = websocket("v5.channel.k8s.io");
    request.headers_mut().insert("x-stream-protocol-version", "v9".parse().unwrap());
    request.extensions_mut().insert(Hop::new("http://hop/exec".parse().unwrap()));
    let (seen, _) = translated(request).await;
    assert_eq!(seen.method(), Method::POST);
    let headers = seen.headers();
    assert_eq!(lines(headers, "connection"), ["Upgrade"]);
    assert_eq!(lines(headers, "upgrade"), ["SPDY/3.1"]);
    assert_eq!(lines(headers, "content-length"), ["0"]);
    assert_eq!(
        lines(headers, "x-stream-protocol-version"),
        ["v5.channel.k8s.io", "v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"]
    );
    assert!(!headers.keys().any(|name| name.as_str().starts_with("sec-websocket")));
    assert!(seen.extensions().get::<Permit>().is_some() && seen.extensions().get::<Hop>().is_some());
}

#[tokio::test]
async fn a_bad_handshake_is_refused_before_the_inner_service_is_asked() {
    type Spoil = fn(&mut Request<()>);
    let bad: [(Spoil, u16); 4] = [
        (|request| drop(request.headers_mut().remove(header::SEC_WEBSOCKET_KEY)), 400),
        (|request| drop(request.headers_mut().insert(header::SEC_WEBSOCKET_KEY, "short".parse().unwrap())), 400),
        (|request| drop(request.headers_mut().insert(header::SEC_WEBSOCKET_VERSION, "12".parse().unwrap())), 400),
        (|request| *request.method_mut() = Method::POST, 405),
    ];
    for (spoil, code) in bad {
        let (mut service, mut inner) = mock::spawn_layer::<Request<()>, Response<Body>, _>(TranslateLayer::new());
        assert_ready_ok!(service.poll_ready());
        let mut request = websocket("v5.channel.k8s.io");
        spoil(&mut request);
        let mut response = task::spawn(service.call(request));
        let response = assert_ready_ok!(response.poll());
        assert_eq!(response.status(), code);
        assert_eq!(response.headers()[header::SEC_WEBSOCKET_VERSION], "13");
        assert_pending!(inner.poll_request());
    }
}

async fn answered(answer: Response<Body>) -> Response<Body> {
    let (mut service, mut inner) = mock::spawn_layer::<Request<()>, Response<Body>, _>(TranslateLayer::new());
    assert_ready_ok!(service.poll_ready());
    let mut response = task::spawn(service.call(websocket("v5.channel.k8s.io")));
    inner.next_request().await.unwrap().1.send_response(answer);
    assert_ready_ok!(response.poll())
}

#[tokio::test]
async fn refusals_of_the_inner_service_pass_and_other_answers_become_500() {
    for code in [400, 401, 403, 404, 429, 500, 503] {
        let answer = Response::builder().status(code).header("x-kept", "yes").body(Body::from("why")).unwrap();
        let response = answered(answer).await;
        assert_eq!(response.status(), code);
        assert_eq!(response.headers()["x-kept"], "yes");
        assert_eq!(text(response).await, "why");
    }
    for code in [100, 200, 204, 301, 302, 307, 308] {
        let answer = Response::builder().status(code).header(header::LOCATION, "http://evil/").body(Body::default());
        let response = answered(answer.unwrap()).await;
        assert_eq!(response.status(), 500);
        assert!(!response.headers().contains_key(header::LOCATION));
        assert!(text(response).await.contains(&format!("invalid upgrade response: status code {code}")));
    }
}

#[tokio::test]
async fn a_switch_of_the_inner_service_is_a_websocket_switch_for_the_client() {
    let answer = Response::builder()
        .status(101)
        .header(header::UPGRADE, "SPDY/3.1")
        .header(header::CONNECTION, "Upgrade")
        .header("x-stream-protocol-version", "v4.channel.k8s.io")
        .body(Body::default());
    let response = answered(answer.unwrap()).await;
    assert_eq!(response.status(), 101);
    let headers = response.headers();
    assert_eq!(headers[header::SEC_WEBSOCKET_ACCEPT], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    assert_eq!(headers[header::SEC_WEBSOCKET_PROTOCOL], "v5.channel.k8s.io");
    assert_eq!(headers[header::UPGRADE], "websocket");
    assert!(!headers.contains_key("x-stream-protocol-version"));
}

// Tunnel.

const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";

fn port_forward(protocol: &str) -> Request<()> {
    let mut request = websocket(protocol);
    request.extensions_mut().insert(Permit(target(Subresource::PortForward)));
    request
}

async fn tunnelled(request: Request<()>) -> (Request<()>, bool) {
    let (mut service, mut inner) = mock::spawn_layer::<Request<()>, Response<Body>, _>(TunnelLayer::new());
    assert_ready_ok!(service.poll_ready());
    let _response = task::spawn(service.call(request));
    let (mut seen, _) = inner.next_request().await.expect("forwarded");
    let kept = take(seen.extensions_mut()).is_some();
    (seen, !kept)
}

#[tokio::test]
async fn what_is_not_to_be_tunnelled_goes_on_unchanged() {
    let change = |change: fn(&mut Request<()>)| {
        let mut request = port_forward(TUNNEL);
        change(&mut request);
        request
    };
    let cases = [
        ("no protocol behind the prefix", port_forward("SPDY/3.1+")),
        ("not one of Kubernetes'", port_forward("SPDY/3.1+UNKNOWN_SUBPROTOCOL")),
        ("wrong case", port_forward("spdy/3.1+portforward.k8s.io")),
        ("legacy", port_forward("v4.channel.k8s.io")),
        ("exec", websocket(TUNNEL)),
        (
            "no stream",
            change(|request| {
                request.extensions_mut().remove::<Permit>();
                request.extensions_mut().insert(NoStream(Dialect::ApiServer));
            }),
        ),
        ("no upgrade", change(|request| drop(request.headers_mut().remove(header::CONNECTION)))),
        ("no offer", change(|request| drop(request.headers_mut().remove(header::SEC_WEBSOCKET_PROTOCOL)))),
        ("spdy", change(|request| drop(request.headers_mut().insert(header::UPGRADE, "SPDY/3.1".parse().unwrap())))),
        (
            "second line",
            change(|request| {
                let headers = request.headers_mut();
                headers.insert(header::SEC_WEBSOCKET_PROTOCOL, "v4.channel.k8s.io".parse().unwrap());
                headers.append(header::SEC_WEBSOCKET_PROTOCOL, TUNNEL.parse().unwrap());
            }),
        ),
        (
            "the hop speaks it",
            change(|request| {
                let hop = Hop::new("http://hop/".parse().unwrap()).speaks_websocket(true);
                request.extensions_mut().insert(hop);
            }),
        ),
    ];
    for (case, request) in cases {
        let before = (request.method().clone(), request.uri().clone(), request.headers().clone());
        let (seen, adapted) = tunnelled(request).await;
        assert!(!adapted, "{case}");
        assert_eq!((seen.method().clone(), seen.uri().clone(), seen.headers().clone()), before, "{case}");
    }
}

#[tokio::test]
async fn a_tunnelled_request_is_a_spdy_post_that_offers_what_the_client_did() {
    let mut request = port_forward("v4.channel.k8s.io, SPDY/3.1+portforward.k8s.io,SPDY/3.1+x,SPDY/3.1+v9.k8s.io");
    let headers = request.headers_mut();
    headers.insert("x-stream-protocol-version", "v8".parse().unwrap());
    headers.insert(header::SEC_WEBSOCKET_EXTENSIONS, "permessage-deflate".parse().unwrap());
    headers.insert(header::USER_AGENT, "kubectl".parse().unwrap());
    request.extensions_mut().insert(Hop::new("http://hop/portForward".parse().unwrap()));
    let (seen, adapted) = tunnelled(request).await;
    assert!(adapted);
    assert_eq!(seen.method(), Method::POST);
    let headers = seen.headers();
    assert_eq!(lines(headers, "connection"), ["Upgrade"]);
    assert_eq!(lines(headers, "upgrade"), ["SPDY/3.1"]);
    assert_eq!(lines(headers, "content-length"), ["0"]);
    assert_eq!(lines(headers, "x-stream-protocol-version"), ["portforward.k8s.io", "v9.k8s.io"]);
    assert_eq!(lines(headers, "user-agent"), ["kubectl"]);
    assert!(!headers.keys().any(|name| name.as_str().starts_with("sec-websocket")));
    assert!(seen.extensions().get::<Permit>().is_some() && seen.extensions().get::<Hop>().is_some());
}

#[tokio::test]
async fn a_bad_handshake_of_a_tunnel_is_refused_before_the_inner_service_is_asked() {
    type Spoil = fn(&mut Request<()>);
    let bad: [(Spoil, u16); 3] = [
        (|request| drop(request.headers_mut().remove(header::SEC_WEBSOCKET_KEY)), 400),
        (|request| drop(request.headers_mut().insert(header::SEC_WEBSOCKET_VERSION, "12".parse().unwrap())), 400),
        (|request| *request.method_mut() = Method::POST, 405),
    ];
    for (spoil, code) in bad {
        let (mut service, mut inner) = mock::spawn_layer::<Request<()>, Response<Body>, _>(TunnelLayer::new());
        assert_ready_ok!(service.poll_ready());
        let mut request = port_forward(TUNNEL);
        spoil(&mut request);
        let mut response = task::spawn(service.call(request));
        let response = assert_ready_ok!(response.poll());
        assert_eq!(response.status(), code);
        assert_eq!(response.headers()[header::SEC_WEBSOCKET_VERSION], "13");
        assert_pending!(inner.poll_request());
    }
}

/// The layer's answer to the client, where the inner service answers so; and whether the leaf's side has ended.
async fn tunnel_answered(mut answer: Response<Body>) -> (Response<Body>, bool) {
    let leaf = (answer.status() == 101).then(|| accept(&mut http::Extensions::new(), answer.extensions_mut()));
    let (mut service, mut inner) = mock::spawn_layer::<Request<()>, Response<Body>, _>(TunnelLayer::new());
    assert_ready_ok!(service.poll_ready());
    let mut response = task::spawn(service.call(port_forward(TUNNEL)));
    inner.next_request().await.unwrap().1.send_response(answer);
    let response = assert_ready_ok!(response.poll());
    let Some(leaf) = leaf else { return (response, true) };
    let mut leaf = leaf.into_io().await.unwrap();
    let ended = task::spawn(leaf.read(&mut [0])).poll().is_ready();
    (response, ended)
}

fn switched() -> http::response::Builder {
    Response::builder().status(101).header(header::CONNECTION, "Upgrade").header(header::UPGRADE, "SPDY/3.1")
}

#[tokio::test]
async fn a_switch_to_spdy_is_a_switch_to_the_tunnel_for_the_client() {
    let answer = switched().header("x-stream-protocol-version", " portforward.k8s.io ").body(Body::default());
    let (response, ended) = tunnel_answered(answer.unwrap()).await;
    assert_eq!(response.status(), 101);
    let headers = response.headers();
    assert_eq!(headers[header::SEC_WEBSOCKET_ACCEPT], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    assert_eq!(headers[header::SEC_WEBSOCKET_PROTOCOL], TUNNEL);
    assert_eq!(headers[header::UPGRADE], "websocket");
    assert!(!headers.contains_key("x-stream-protocol-version"));
    assert!(!ended, "the two sides are joined");
}

#[tokio::test]
async fn a_switch_to_something_else_is_refused_and_the_leaf_ended() {
    let protocol = "x-stream-protocol-version";
    let no_upgrade = Response::builder().status(101).header(header::CONNECTION, "Upgrade");
    let no_connection = Response::builder().status(101).header(header::UPGRADE, "SPDY/3.1");
    let missing = "unable to upgrade: missing upgrade headers in response";
    for (answer, why) in [
        (no_upgrade.header(protocol, "portforward.k8s.io"), missing),
        (no_connection.header(protocol, "portforward.k8s.io"), missing),
        (switched().header(protocol, "v9.k8s.io"), "v9.k8s.io"),
        (switched(), "which was not offered"),
    ] {
        let (response, ended) = tunnel_answered(answer.body(Body::default()).unwrap()).await;
        assert_eq!(response.status(), 500);
        assert!(ended, "the leaf's side is gone");
        let text = text(response).await;
        assert!(text.contains(why), "{text}");
    }
}

#[tokio::test]
async fn refusals_pass_through_the_tunnel_and_other_answers_become_500() {
    for code in [400, 403, 404, 500, 502, 503] {
        let answer = Response::builder().status(code).header("x-kept", "yes").body(Body::from("why")).unwrap();
        let (response, _) = tunnel_answered(answer).await;
        assert_eq!(response.status(), code);
        assert_eq!(response.headers()["x-kept"], "yes");
        assert_eq!(text(response).await, "why");
    }
    for code in [200, 204, 301, 302, 307] {
        let answer = Response::builder().status(code).header(header::LOCATION, "http://evil/").body(Body::default());
        let (response, _) = tunnel_answered(answer.unwrap()).await;
        assert_eq!(response.status(), 500);
        assert!(!response.headers().contains_key(header::LOCATION));
        assert!(text(response).await.contains(&format!("invalid upgrade response: status code {code}")));
    }
}

#[tokio::test]
async fn a_tunnel_carries_bytes_between_the_client_and_the_leaf() {
    let mut request = port_forward(TUNNEL);
    let client = accept(&mut http::Extensions::new(), request.extensions_mut());
    let mut answer =
        switched().header("x-stream-protocol-version", "portforward.k8s.io").body(Body::default()).unwrap();
    let leaf = accept(&mut http::Extensions::new(), answer.extensions_mut());
    let (mut service, mut inner) = mock::spawn_layer::<Request<()>, Response<Body>, _>(TunnelLayer::new());
    assert_ready_ok!(service.poll_ready());
    let mut response = task::spawn(service.call(request));
    inner.next_request().await.unwrap().1.send_response(answer);
    assert_eq!(assert_ready_ok!(response.poll()).status(), 101);
    let (mut client, mut leaf) = (client.into_io().await.unwrap(), leaf.into_io().await.unwrap());
    client.write_all(b"\x82\x82\0\0\0\0hi").await.unwrap();
    let mut bytes = [0; 2];
    leaf.read_exact(&mut bytes).await.unwrap();
    assert_eq!(&bytes, b"hi");
    leaf.write_all(b"ho").await.unwrap();
    drop(leaf);
    let mut received = [0; 8];
    client.read_exact(&mut received).await.unwrap();
    assert_eq!(&received, b"\x82\x02ho\x88\x02\x03\xe8");
}

// Gates.

/// All on but that one.
fn without(gate: Gate) -> FeatureGates {
    FeatureGates::with([(gate, false)]).unwrap()
}

fn at(dialect: Dialect, subresource: Subresource, mut request: Request<()>) -> Request<()> {
    let target = Target { dialect, ..Target::clone(&target(subresource)) };
    request.extensions_mut().insert(Permit(Arc::new(target)));
    request
}

#[tokio::test]
async fn each_stack_adapts_behind_a_gate_of_its_own_and_forwards_what_came_when_it_is_off() {
    use Subresource::{Exec, PortForward};
    type Adapt = fn(FeatureGates) -> (TranslateLayer, TunnelLayer);
    let layers: Adapt = |gates| (TranslateLayer::new().gates(gates), TunnelLayer::new().gates(gates));
    let extend = Gate::ExtendWebSocketsToKubelet;
    for (dialect, subresource, own, other) in [
        (Dialect::ApiServer, Exec, Gate::TranslateStreamCloseWebsocketRequests, extend),
        (Dialect::ApiServer, PortForward, Gate::PortForwardWebsockets, extend),
        (Dialect::Kubelet, Exec, extend, Gate::TranslateStreamCloseWebsocketRequests),
        (Dialect::Kubelet, PortForward, extend, Gate::PortForwardWebsockets),
    ] {
        for (off, adapted) in [(own, false), (other, true)] {
            let (mut service, mut inner) = mock::spawn_layer::<Request<()>, Response<Body>, _>(layers(without(off)));
            assert_ready_ok!(service.poll_ready());
            let protocol = if subresource == Exec { "v5.channel.k8s.io" } else { TUNNEL };
            let _response = task::spawn(service.call(at(dialect, subresource, websocket(protocol))));
            let (mut seen, _) = inner.next_request().await.expect("forwarded");
            let case = format!("{dialect:?} {subresource} without {off}");
            assert_eq!(take(seen.extensions_mut()).is_none(), adapted, "{case}");
            assert_eq!(seen.method() == Method::POST, adapted, "{case}");
        }
    }
}

/// A runtime's URL is good for one request, and it keeps a place for each.
#[tokio::test]
async fn a_kubelets_resolver_is_asked_for_upgrades_alone() {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let layer = FeatureRoutingLayer::new(move |_: Arc<Target>| {
        count.fetch_add(1, Ordering::Relaxed);
        ready(Err(Refusal::internal("asked")))
    });
    for (side, upgrade, answer) in [
        (true, true, "asked\n"),
        (false, true, "Upgrade request required\n"),
        (true, false, "Upgrade request required\n"),
    ] {
        let mut request = websocket("v5.channel.k8s.io");
        if !side {
            request.extensions_mut().clear();
        }
        let target = Target { dialect: Dialect::Kubelet, ..Target::clone(&target(Subresource::Exec)) };
        request.extensions_mut().insert(Permit(target.into()));
        if !upgrade {
            request.headers_mut().remove(header::CONNECTION);
        }
        let (mut service, _inner) = mock::spawn_layer::<_, Response<Body>, _>(layer.clone());
        assert_ready_ok!(service.poll_ready());
        let response = service.call(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(text(response).await, answer);
    }
    assert_eq!(asked.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_hop_speaks_websocket_if_its_node_declares_just_that_and_the_gate_lets_it_count() {
    const FEATURE: &str = "ExtendWebSocketsToKubelet";
    type Routing = fn(FeatureRoutingLayer<()>) -> FeatureRoutingLayer<()>;
    let default: Routing = |layer| layer;
    let off: Routing = |layer| layer.gates(without(Gate::ExtendWebSocketsToKubelet));
    let assumed: Routing = FeatureRoutingLayer::assume_websocket_support;
    let assumed_off: Routing = |layer| layer.assume_websocket_support().gates(without(Gate::ExtendWebSocketsToKubelet));
    let (api_server, kubelet) = (Dialect::ApiServer, Dialect::Kubelet);
    for (dialect, routing, declared, speaks) in [
        (api_server, default, &[FEATURE][..], true),
        (api_server, default, &["A", FEATURE, "Z"], true),
        (api_server, default, &[], false),
        (api_server, default, &["extendWebSocketsToKubelet", "ExtendWebSocketsToKubelet/beta"], false),
        (api_server, off, &[FEATURE], false),
        (api_server, assumed, &[], true),
        (api_server, assumed_off, &[FEATURE], false),
        // Of a runtime, which neither gate nor declaration is about.
        (kubelet, off, &[FEATURE], true),
        (kubelet, assumed, &[], false),
    ] {
        let support = routing(FeatureRoutingLayer::new(())).support;
        let hop = Hop::new("http://hop/".parse().unwrap()).declares(declared.iter().copied());
        assert_eq!(support.of(hop, dialect).speaks_websocket, speaks, "{dialect:?} {declared:?}");
    }
}
