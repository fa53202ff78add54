//! What the gateway forwards: that nothing is held back on the way, and that nobody can say who somebody is.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, as it should")]

#[path = "../examples/support/mod.rs"]
mod support;

use std::{convert::Infallible, net::SocketAddr, path::PathBuf, time::Duration};

use axum::{Router, body::Body, extract::Request as Incoming, routing::any};
use bytes::Bytes;

use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Version, header};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper_util::rt::TokioIo;
use kube::Config;
use support::{
    authn::ClientCertificate,
    gateway::{
        caller::vouch,
        forward::{Upstream, Via},
    },
    pki,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tower_kube_streaming::upgrade::{Caller, ClientAddr};

/// Nothing here takes longer, unless it hangs.
const SOON: Duration = Duration::from_secs(20);

/// A server that answers with `handler`, at a free port.
async fn serve(router: Router) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (tcp, peer) = listener.accept().await.unwrap();
            let router = router.clone();
            let service = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
                let mut request = request.map(Body::new);
                request.extensions_mut().insert(ClientAddr(peer.ip()));
                tower::ServiceExt::oneshot(router.clone(), request)
            });
            let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(tcp), service);
            tokio::spawn(connection.with_upgrades());
        }
    });
    address
}

fn upstream(server: &str) -> (Upstream, CancellationToken) {
    let stop = CancellationToken::new();
    // What an application does once; the TLS of a server that is asked for by http:// is made all the same.
    let _ = std::sync::Arc::unwrap_or_clone(support::provider::provider()).install_default();
    let mut config = Config::new(server.parse().unwrap());
    config.root_cert = Some(Vec::new());
    (Upstream::new(&config, None, stop.clone()).unwrap(), stop)
}

/// In front of a server that answers with `router`.
async fn before(router: Router) -> (Upstream, CancellationToken) {
    upstream(&format!("http://{}", serve(router).await))
}

/// A body whose frames come out of a channel.
fn body_of(frames: mpsc::UnboundedReceiver<Frame<Bytes>>) -> Body {
    let next = |mut frames: mpsc::UnboundedReceiver<_>| async move {
        frames.recv().await.map(|frame| (Ok::<_, Infallible>(frame), frames))
    };
    Body::new(StreamBody::new(Box::pin(futures_util::stream::unfold(frames, next))))
}

async fn text(response: Response<Body>) -> String {
    let body = timeout(SOON, response.into_body().collect()).await.unwrap().unwrap();
    String::from_utf8(body.to_bytes().to_vec()).unwrap()
}

/// Answers with what it was asked.
fn echo_of_heads() -> Router {
    Router::new().fallback(|request: Incoming| async move {
        let mut lines = vec![format!("{} {}", request.method(), request.uri())];
        let line = |(name, value): (&header::HeaderName, &HeaderValue)| format!("{name}: {}", value.to_str().unwrap());
        lines.extend(request.headers().iter().map(line));
        lines.sort();
        lines.join("\n")
    })
}

#[tokio::test]
async fn a_request_goes_on_without_what_was_for_one_connection() {
    let server = serve(echo_of_heads()).await;
    let (upstream, _stop) = upstream(&format!("http://{server}/k8s/clusters/one/"));
    let mut request = Request::post("https://gateway.example:6443/api/v1/pods?limit=1&x=%2F")
        .version(Version::HTTP_2)
        .header("host", "gateway.example")
        .header("authorization", "Bearer abc")
        .header("impersonate-user", "jane")
        .header("connection", "keep-alive, x-mine")
        .header("connection", "X-Other")
        .header("x-mine", "1")
        .header("x-other", "1")
        .header("keep-alive", "timeout=5")
        .header("proxy-authorization", "Basic abc")
        .header("te", "gzip, trailers")
        .header("upgrade", "h2c")
        .header("expect", "100-continue")
        .header("x-forwarded-for", "192.0.2.1")
        .header("x-forwarded-for", "192.0.2.2")
        .header("accept-encoding", "gzip")
        .body(Body::from("{}"))
        .unwrap();
    request.extensions_mut().insert(ClientAddr([192, 0, 2, 3].into()));
    let answer = text(upstream.forward(request, Via::Plain).await).await;
    let wanted = [
        "POST /k8s/clusters/one/api/v1/pods?limit=1&x=%2F",
        "accept-encoding: gzip",
        "authorization: Bearer abc",
        "content-length: 2",
        &format!("host: {server}"),
        "impersonate-user: jane",
        "te: trailers",
        "x-forwarded-for: 192.0.2.1, 192.0.2.2, 192.0.2.3",
    ];
    assert_eq!(answer, wanted.join("\n"));
}

#[tokio::test]
async fn a_client_cannot_have_dropped_who_a_request_is_for() {
    let (upstream, _stop) = before(echo_of_heads()).await;
    let who = ["authorization", "impersonate-user", "impersonate-extra-scopes", "x-remote-user", "x-remote-group"];
    let request = who.iter().fold(Request::get("/api"), |request, name| request.header(*name, "somebody"));
    let request = request.header("connection", who.join(", ")).body(Body::empty()).unwrap();
    let answer = text(upstream.forward(request, Via::Plain).await).await;
    for name in who {
        assert!(answer.contains(&format!("{name}: somebody")), "{name} is missing: {answer}");
    }
}

#[tokio::test]
async fn an_answer_comes_back_without_what_was_for_one_connection() {
    let answer = || async {
        let mut headers = HeaderMap::new();
        for (name, value) in [("connection", "x-mine"), ("x-mine", "1"), ("keep-alive", "5"), ("audit-id", "7")] {
            headers.append(name, HeaderValue::from_static(value));
        }
        (StatusCode::CONFLICT, headers, "no")
    };
    let (upstream, _stop) = before(Router::new().fallback(answer)).await;
    let response = upstream.forward(Request::get("/api").body(Body::empty()).unwrap(), Via::Plain).await;
    assert_eq!(response.status(), StatusCode::CONFLICT);
    assert_eq!(response.headers().get("audit-id").unwrap(), "7");
    for gone in ["connection", "x-mine", "keep-alive", "transfer-encoding"] {
        assert!(!response.headers().contains_key(gone), "{gone}");
    }
    assert_eq!(text(response).await, "no");
}

#[tokio::test]
async fn upload_and_answer_flow_at_the_same_time_and_end_with_their_trailers() {
    let echo = |request: Incoming| async move {
        let mut response = Response::new(request.into_body());
        response.headers_mut().insert(header::TRAILER, HeaderValue::from_static("x-sum"));
        response
    };
    let (upstream, _stop) = before(Router::new().fallback(echo)).await;
    let (sender, frames) = mpsc::unbounded_channel();
    let request = Request::put("/upload").header("te", "trailers").header("trailer", "x-sum");
    let response = upstream.forward(request.body(body_of(frames)).unwrap(), Via::Plain);
    let mut answer = timeout(SOON, response).await.unwrap().into_body();
    for word in ["one", "two", "three"] {
        // Each comes back before the next is sent: nobody waits for the end of anything.
        sender.send(Frame::data(Bytes::from(word))).unwrap();
        let frame = timeout(SOON, answer.frame()).await.unwrap().unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), word);
    }
    let trailers = HeaderMap::from_iter([("x-sum".parse().unwrap(), HeaderValue::from_static("11"))]);
    sender.send(Frame::trailers(trailers.clone())).unwrap();
    drop(sender);
    let frame = timeout(SOON, answer.frame()).await.unwrap().unwrap().unwrap();
    assert_eq!(frame.into_trailers().unwrap(), trailers);
    assert!(answer.frame().await.is_none());
}

#[tokio::test]
async fn an_answer_that_breaks_off_does_not_end_in_order() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (upstream, _stop) = upstream(&format!("http://{}", listener.local_addr().unwrap()));
    tokio::spawn(async move {
        let (mut tcp, _) = listener.accept().await.unwrap();
        let _ = tcp.read(&mut [0; 4096]).await.unwrap();
        tcp.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n").await.unwrap();
    });
    let response = upstream.forward(Request::get("/log").body(Body::empty()).unwrap(), Via::Plain).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert!(timeout(SOON, response.into_body().collect()).await.unwrap().is_err());
}

#[tokio::test]
async fn a_watch_ends_in_order_when_the_gateway_stops_and_a_log_does_not() {
    let (events, mut asked) = mpsc::unbounded_channel();
    let open = move || {
        let events = events.clone();
        async move {
            let (sender, frames) = mpsc::unbounded_channel();
            sender.send(Frame::data(Bytes::from("first"))).unwrap();
            events.send(sender).unwrap();
            body_of(frames)
        }
    };
    let (upstream, stop) = before(Router::new().fallback(open)).await;
    let mut bodies = Vec::new();
    for path in ["/api/v1/pods?watch=true", "/api/v1/pods?allowWatchBookmarks=true&watch=1", "/log?follow=true&watch=0"]
    {
        let response = upstream.forward(Request::get(path).body(Body::empty()).unwrap(), Via::Plain).await;
        let mut body = response.into_body();
        let first = timeout(SOON, body.frame()).await.unwrap().unwrap().unwrap();
        assert_eq!(first.into_data().unwrap(), "first");
        bodies.push(body);
    }
    let mut log = bodies.pop().unwrap();
    stop.cancel();
    for mut watch in bodies {
        assert!(timeout(SOON, watch.frame()).await.unwrap().is_none());
        asked.recv().await.unwrap();
    }
    let sender = asked.recv().await.unwrap();
    sender.send(Frame::data(Bytes::from("second"))).unwrap();
    let second = timeout(SOON, log.frame()).await.unwrap().unwrap().unwrap();
    assert_eq!(second.into_data().unwrap(), "second");
}

#[tokio::test]
async fn a_server_that_is_away_is_told_with_when_to_ask_again() {
    let address = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let (upstream, _stop) = upstream(&format!("http://{address}"));
    for request in [Request::get("/api/v1/pods"), Request::post("/api/v1/namespaces/a/pods")] {
        let response = upstream.forward(request.body(Body::from("{}")).unwrap(), Via::Plain).await;
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(response.headers().get(header::RETRY_AFTER).unwrap(), "1");
        let status: serde_json::Value = serde_json::from_str(&text(response).await).unwrap();
        assert_eq!((&status["kind"], &status["reason"]), (&"Status".into(), &"ServiceUnavailable".into()));
    }
}

#[tokio::test]
async fn what_may_have_been_done_is_not_to_be_repeated() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (upstream, _stop) = upstream(&format!("http://{}", listener.local_addr().unwrap()));
    // It reads the request and is gone.
    tokio::spawn(async move {
        loop {
            let (mut tcp, _) = listener.accept().await.unwrap();
            tokio::spawn(async move { tcp.read(&mut [0; 4096]).await });
        }
    });
    for (request, status, again) in [
        (Request::post("/api/v1/namespaces/a/pods"), StatusCode::BAD_GATEWAY, false),
        (Request::delete("/api/v1/namespaces/a/pods/b"), StatusCode::BAD_GATEWAY, false),
        (Request::get("/api/v1/pods"), StatusCode::SERVICE_UNAVAILABLE, true),
    ] {
        let response = upstream.forward(request.body(Body::from("{}")).unwrap(), Via::Plain);
        let response = timeout(SOON, response).await.unwrap();
        assert_eq!(response.status(), status);
        assert_eq!(response.headers().contains_key(header::RETRY_AFTER), again);
    }
}

#[tokio::test]
async fn an_upgrade_that_is_no_stream_of_a_pod_is_carried_both_ways() {
    let upgrading = |mut request: Incoming| async move {
        assert_eq!(request.headers().get(header::UPGRADE).unwrap(), "websocket");
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let mut io = TokioIo::new(upgrade.await.unwrap());
            let mut heard = [0; 5];
            io.read_exact(&mut heard).await.unwrap();
            io.write_all(b"heard ").await.unwrap();
            io.write_all(&heard).await.unwrap();
            io.shutdown().await.unwrap();
        });
        let response = Response::builder().status(101).header("connection", "upgrade").header("upgrade", "websocket");
        response.body(Body::empty()).unwrap()
    };
    let (upstream, _stop) = before(Router::new().fallback(upgrading)).await;
    let gateway = any(move |request: Incoming| async move { upstream.forward(request, Via::Plain).await });
    let gateway = serve(Router::new().fallback_service(gateway)).await;
    let mut tcp = TcpStream::connect(gateway).await.unwrap();
    let request = b"GET /apis/x/console HTTP/1.1\r\nhost: x\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n";
    tcp.write_all(request).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(timeout(SOON, tcp.read_u8()).await.unwrap().unwrap());
    }
    assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&head));
    tcp.write_all(b"hello").await.unwrap();
    let mut rest = String::new();
    timeout(SOON, tcp.read_to_string(&mut rest)).await.unwrap().unwrap();
    assert_eq!(rest, "heard hello");
}

#[tokio::test]
async fn a_path_that_is_none_is_refused() {
    let (upstream, _stop) = upstream("http://127.0.0.1:1");
    for request in [Request::connect("pod.example:80"), Request::options("*")] {
        let response = upstream.forward(request.body(Body::empty()).unwrap(), Via::Plain).await;
        assert_eq!(response.status(), StatusCode::BAD_REQUEST);
    }
}

fn spoofed() -> Request<Body> {
    Request::get("/api")
        .header("x-remote-user", "root")
        .header("X-Remote-Group", "system:masters")
        .header("x-remote-extra-scopes", "all")
        .header("authorization", "Bearer abc")
        .header("impersonate-user", "jane")
        .body(Body::empty())
        .unwrap()
}

#[tokio::test]
async fn nobody_says_who_they_are_in_a_front_proxys_words() {
    let (upstream, _stop) = upstream("http://127.0.0.1:1");
    let mut request = spoofed();
    assert_eq!(vouch(&mut request, &upstream).unwrap(), Via::Plain);
    let mut names: Vec<&str> = request.headers().keys().map(|name| name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["authorization", "impersonate-user"]);
}

#[tokio::test]
async fn who_shows_a_certificate_is_refused_by_a_gateway_that_cannot_vouch() {
    let (upstream, _stop) = upstream("http://127.0.0.1:1");
    let mut request = spoofed();
    request.extensions_mut().insert(ClientCertificate(Caller::new("jane", ["dev"])));
    let refusal = vouch(&mut request, &upstream).unwrap_err();
    assert_eq!(refusal.code(), StatusCode::UNAUTHORIZED);
    assert!(refusal.message().contains("--proxy-client-cert-file"), "{}", refusal.message());
}

#[tokio::test]
async fn a_certificate_becomes_a_front_proxys_word() {
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("gateway-vouch");
    support::create_private_dir(&dir).unwrap();
    pki::prepare(&dir, [127, 0, 0, 1].into()).unwrap();
    let _ = std::sync::Arc::unwrap_or_clone(support::provider::provider()).install_default();
    let config = Config::new("http://127.0.0.1:1".parse().unwrap());
    let own = pki::files::kubelet_client(&dir);
    let upstream = Upstream::new(&config, Some(&own), CancellationToken::new()).unwrap();
    let mut request = spoofed();
    let mut caller = Caller::new("jane doe", ["dev", "ops team"]);
    caller.uid = "7".to_owned();
    caller.extra.insert("example.com/scopes".to_owned(), vec!["a".to_owned(), "b".to_owned()]);
    request.extensions_mut().insert(ClientCertificate(caller));
    assert_eq!(vouch(&mut request, &upstream).unwrap(), Via::FrontProxy);
    let all =
        |name: &str| -> Vec<&[u8]> { request.headers().get_all(name).iter().map(HeaderValue::as_bytes).collect() };
    assert_eq!(all("x-remote-user"), [b"jane doe"]);
    assert_eq!(all("x-remote-group"), [&b"dev"[..], b"ops team"]);
    assert_eq!(all("x-remote-uid"), [b"7"]);
    assert_eq!(all("x-remote-extra-example.com%2fscopes"), [b"a", b"b"]);
    // A token would be somebody else's word, and the impersonation is the cluster's to judge.
    assert!(all("authorization").is_empty() && all("x-remote-extra-scopes").is_empty());
    assert_eq!(all("impersonate-user"), [b"jane"]);

    let mut request = spoofed();
    request.extensions_mut().insert(ClientCertificate(Caller::new("jane\r\nx-remote-user: root", [""; 0])));
    assert_eq!(vouch(&mut request, &upstream).unwrap_err().code(), StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn nobody_is_vouched_for_under_a_name_that_a_header_changes() {
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("gateway-vouch-names");
    support::create_private_dir(&dir).unwrap();
    pki::prepare(&dir, [127, 0, 0, 1].into()).unwrap();
    let _ = std::sync::Arc::unwrap_or_clone(support::provider::provider()).install_default();
    // What the cluster is told, over a real connection.
    let mut config = Config::new(format!("http://{}", serve(echo_of_heads()).await).parse().unwrap());
    config.root_cert = Some(Vec::new());
    let own = pki::files::kubelet_client(&dir);
    let upstream = Upstream::new(&config, Some(&own), CancellationToken::new()).unwrap();
    for (name, group) in [
        ("jane", " system:masters"),
        ("jane", "system:masters\t"),
        (" admin", "dev"),
        ("admin ", "dev"),
        // Without a name the next authenticator is asked, and that finds the gateway's own certificate.
        ("", "dev"),
        (" ", "dev"),
    ] {
        let mut request = Request::get("/api").body(Body::empty()).unwrap();
        request.extensions_mut().insert(ClientCertificate(Caller::new(name, [group])));
        match vouch(&mut request, &upstream) {
            Err(refusal) => assert_eq!(refusal.code(), StatusCode::UNAUTHORIZED),
            Ok(via) => panic!("{name:?} in {group:?} came as\n{}", text(upstream.forward(request, via).await).await),
        }
    }
}
