use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use tower::{Service, service_fn};

use super::{CriRequest, CriStreaming, IssueError, token::OUTSTANDING};
use crate::{
    layers::Hop,
    upgrade::{Dialect, Permit, Refusal, Session, Sessions, StreamOptions, StreamRequest, Subresource, Target},
};

type Answer = Response<Bytes>;

pub(super) fn attach(container: &str) -> Target {
    let request =
        CriRequest::Attach { container_id: container.into(), tty: false, stdin: true, stdout: false, stderr: false };
    request.into_target().unwrap_or_else(|error| panic!("{container}: {error}"))
}

fn exec() -> CriRequest {
    CriRequest::Exec {
        container_id: "c0ffee".into(),
        cmd: vec!["ls".into(), "-l".into()],
        tty: true,
        stdin: true,
        stdout: true,
        stderr: false,
    }
}

fn attach_request() -> CriRequest {
    CriRequest::Attach { container_id: "c0ffee".into(), tty: false, stdin: false, stdout: true, stderr: true }
}

fn port_forward(port: &[i32]) -> CriRequest {
    CriRequest::PortForward { pod_sandbox_id: "5a11d".into(), port: port.to_vec() }
}

/// What reached the leaf.
type Seen = Arc<Mutex<Vec<Target>>>;

/// A server whose leaf notes what it is permitted, and answers 200.
fn streaming(
    base: &str,
) -> (CriStreaming<impl Service<Request<()>, Response = Answer, Error = Infallible> + Clone>, Seen) {
    let seen = Seen::default();
    let notes = Arc::clone(&seen);
    let leaf = service_fn(move |request: Request<()>| {
        let extensions = request.extensions();
        let permit = extensions.get::<Permit>().expect("a permit");
        assert!(Arc::ptr_eq(&permit.0, extensions.get::<StreamRequest>().expect("what is asked").target()));
        assert!(extensions.get::<Session>().is_some_and(Session::is_announced));
        assert!(extensions.get::<Hop>().is_none());
        notes.lock().expect("unpoisoned").push(Target::clone(&permit.0));
        async { Ok(Response::new(Bytes::new())) }
    });
    (CriStreaming::new(base, Sessions::new(), leaf).expect("a base URL"), seen)
}

async fn ask<S>(streaming: &mut CriStreaming<S>, method: Method, url: &str) -> Answer
where
    S: Service<Request<()>, Response = Answer, Error = Infallible>,
{
    let request = Request::builder().method(method).uri(url).body(()).expect("a request");
    let Ok(answer) = streaming.call(request).await;
    answer
}

async fn get<S>(streaming: &mut CriStreaming<S>, url: &str) -> StatusCode
where
    S: Service<Request<()>, Response = Answer, Error = Infallible>,
{
    ask(streaming, Method::GET, url).await.status()
}

const BASE: &str = "http://127.0.0.1:41379";

#[tokio::test]
async fn the_very_request_that_was_issued_reaches_the_leaf() {
    let (mut streaming, seen) = streaming(BASE);
    for (request, kind) in
        [(exec(), "exec"), (attach_request(), "attach"), (port_forward(&[80, 65_535]), "portforward")]
    {
        let url = streaming.issue(request).expect("a URL");
        assert!(url.starts_with(&format!("{BASE}/{kind}/")), "{url}");
        // No option of the URL counts.
        assert_eq!(get(&mut streaming, &format!("{url}?command=sh&tty=1&port=22")).await, 200);
    }
    let streams = StreamOptions { stdout: true, stderr: true, ..StreamOptions::default() };
    let target = Target {
        subresource: Subresource::Attach,
        namespace: String::new(),
        pod: String::new(),
        uid: None,
        container: Some("c0ffee".into()),
        options: streams.clone(),
        dialect: Dialect::Runtime,
    };
    let command = vec!["ls".into(), "-l".into()];
    let wanted = [
        Target {
            subresource: Subresource::Exec,
            options: StreamOptions { stdin: true, stdout: true, tty: true, command, ..StreamOptions::default() },
            ..target.clone()
        },
        target.clone(),
        Target {
            subresource: Subresource::PortForward,
            pod: "5a11d".into(),
            container: None,
            options: StreamOptions { ports: vec![80, 65_535], ..StreamOptions::default() },
            ..target
        },
    ];
    assert_eq!(*seen.lock().expect("unpoisoned"), wanted);
}

#[tokio::test]
async fn a_token_is_good_for_one_request_whatever_that_was() {
    let (mut streaming, seen) = streaming(BASE);
    let url = streaming.issue(exec()).expect("a URL");
    assert_eq!(get(&mut streaming, &url).await, 200);
    assert_eq!(get(&mut streaming, &url).await, 404);
    let url = streaming.issue(exec()).expect("a URL");
    assert_eq!(ask(&mut streaming, Method::DELETE, &url).await.status(), 405);
    assert_eq!(get(&mut streaming, &url).await, 404);
    for wrong in ["attach", "portforward"] {
        let url = streaming.issue(exec()).expect("a URL");
        assert_eq!(get(&mut streaming, &url.replace("/exec/", &format!("/{wrong}/"))).await, 404, "{wrong}");
        assert_eq!(get(&mut streaming, &url).await, 404, "used at the wrong place: {wrong}");
    }
    assert_eq!(seen.lock().expect("unpoisoned").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_url_is_good_for_less_than_a_minute() {
    let (mut streaming, _) = streaming(BASE);
    let urls = [(); 2].map(|()| streaming.issue(exec()).expect("a URL"));
    tokio::time::advance(Duration::from_millis(59_999)).await;
    assert_eq!(get(&mut streaming, &urls[0]).await, 200);
    tokio::time::advance(Duration::from_millis(1)).await;
    assert_eq!(get(&mut streaming, &urls[1]).await, 404);
}

#[tokio::test]
async fn whatever_else_is_asked_for_is_answered_as_go_does() {
    let (mut streaming, seen) = streaming(BASE);
    let url = streaming.issue(port_forward(&[])).expect("a URL");
    let token = url.rsplit('/').next().expect("a token");
    for path in [
        "/".into(),
        "/exec".into(),
        "/exec/".into(),
        format!("/portForward/{token}"),
        format!("/portforward/{token}/"),
        format!("/portforward//{token}"),
        format!("//portforward/{token}"),
        format!("/cri/portforward/{token}"),
        format!("/portforward/x{token}"),
        "/portforward/AAAAAAAAAAAAAAAAAAAAAA".into(),
        format!("/portforward/{}", "A".repeat(60_000)),
    ] {
        let answer = ask(&mut streaming, Method::POST, &path).await;
        assert_eq!((answer.status(), &answer.body()[..]), (StatusCode::NOT_FOUND, &b"404 page not found\n"[..]));
        assert_eq!(answer.headers()[header::CONTENT_TYPE], "text/plain; charset=utf-8");
        assert_eq!(answer.headers()[header::X_CONTENT_TYPE_OPTIONS], "nosniff");
    }
    assert!(seen.lock().expect("unpoisoned").is_empty());
    assert_eq!(get(&mut streaming, &url).await, 200, "it was never shown");
}

#[tokio::test]
async fn a_method_says_nothing_of_whether_a_token_is_good() {
    let (mut streaming, _) = streaming(BASE);
    let good = streaming.issue(exec()).expect("a URL");
    let bad = format!("{BASE}/exec/AAAAAAAAAAAAAAAAAAAAAA");
    let answers = [ask(&mut streaming, Method::PUT, &good).await, ask(&mut streaming, Method::PUT, &bad).await];
    for answer in &answers {
        assert_eq!(answer.status(), StatusCode::METHOD_NOT_ALLOWED);
        assert_eq!(answer.headers()[header::ALLOW], "GET, POST");
    }
    assert_eq!(answers[0].body(), answers[1].body());
}

#[tokio::test]
async fn of_a_thousand_and_one_the_last_is_refused_as_the_kubelet_knows_it() {
    let (mut streaming, _) = streaming(BASE);
    let urls: Vec<String> = (0..OUTSTANDING).map(|_| streaming.issue(exec()).expect("room")).collect();
    let full = streaming.clone().issue(attach_request()).expect_err("full, for its clones too");
    assert_eq!((full.grpc_code(), full.is_resource_exhausted()), (8, true));
    assert_eq!(full.to_string(), "maximum number of in-flight requests exceeded");
    let told: Answer = Refusal::from(full).into_response(Dialect::Kubelet);
    assert_eq!(told.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(told.headers()[header::RETRY_AFTER], "60");
    assert_eq!(get(&mut streaming, &urls[500]).await, 200);
    assert!(streaming.issue(attach_request()).is_ok());
}

#[tokio::test]
async fn requests_that_make_no_sense_are_refused_in_upstreams_words() {
    let (streaming, _) = streaming(BASE);
    let refused = |request: CriRequest| {
        let error: IssueError = streaming.issue(request).expect_err("refused");
        assert_eq!((error.grpc_code(), error.is_invalid_argument(), error.is_resource_exhausted()), (3, true, false));
        assert_eq!(Refusal::from(error.clone()).code(), 500);
        error.to_string()
    };
    let exec = |container_id: &str, cmd: Vec<String>, tty, stderr| CriRequest::Exec {
        container_id: container_id.into(),
        cmd,
        tty,
        stdin: false,
        stdout: false,
        stderr,
    };
    let attach = |container_id: &str, tty, stderr| CriRequest::Attach {
        container_id: container_id.into(),
        tty,
        stdin: false,
        stdout: false,
        stderr,
    };
    let forward = |id: &str, port: Vec<i32>| CriRequest::PortForward { pod_sandbox_id: id.into(), port };
    assert_eq!(refused(exec("", vec![], false, true)), "missing required container_id");
    assert_eq!(refused(attach("", false, true)), "missing required container_id");
    assert_eq!(refused(forward("", vec![])), "missing required pod_sandbox_id");
    assert_eq!(refused(exec("c", vec![], true, true)), "tty and stderr cannot both be true");
    assert_eq!(refused(attach("c", true, true)), "tty and stderr cannot both be true");
    assert_eq!(refused(exec("c", vec![], true, false)), "one of stdin, stdout, or stderr must be set");
    assert_eq!(refused(attach("c", false, false)), "one of stdin, stdout, and stderr must be set");
    // Ours, of what would go wrong later.
    for port in [-1, 65_536, i32::MIN, i32::MAX] {
        assert_eq!(refused(forward("s", vec![80, port])), format!("port {port} is out of range"));
    }
    assert_eq!(refused(forward("s", vec![80; 65_536])), "at most 65535 ports can be forwarded");
    assert_eq!(refused(forward("s\n", vec![])), "an id is of visible ASCII characters");
    let long = "the request is longer than 1 MiB";
    assert_eq!(refused(exec("c", vec!["a".repeat(1 << 20)], false, true)), long);
    assert_eq!(refused(exec("c", vec![String::new(); 1 << 16], false, true)), long);
    assert_eq!(refused(attach(&"c".repeat((1 << 20) + 1), false, true)), long);
    assert!(streaming.issue(exec("c", vec!["a".repeat((1 << 20) - 25)], false, true)).is_ok());
}

#[tokio::test]
async fn urls_begin_as_they_are_told_to_and_a_path_in_front_may_be_taken_off() {
    for (base, url, path) in [
        ("http://127.0.0.1:41379/", "http://127.0.0.1:41379", ""),
        ("HTTPS://node:10010", "https://node:10010", ""),
        ("http://[::1]:80/cri/streams//", "http://[::1]:80/cri/streams", "/cri/streams"),
    ] {
        let (mut streaming, _) = streaming(base);
        let issued = streaming.issue(exec()).expect("a URL");
        let token = issued.strip_prefix(&format!("{url}/exec/")).unwrap_or_else(|| panic!("{issued}"));
        assert_eq!(get(&mut streaming, &format!("{path}/exec/{token}")).await, 200, "{base}");
        let issued = streaming.issue(exec()).expect("a URL");
        let token = issued.rsplit('/').next().expect("a token");
        assert_eq!(get(&mut streaming, &format!("/exec/{token}")).await, 200, "{base}");
    }
}

#[test]
fn a_base_that_a_kubelet_could_not_dial_is_refused() {
    let refused = |base: &str| CriStreaming::new(base, Sessions::new(), ()).expect_err(base).to_string();
    for base in ["127.0.0.1:41379", "/cri", "unix:///run/s.sock", "ftp://node:1", "", "http://", "http://a b"] {
        assert!(refused(base).starts_with("bad base URL: "), "{base}");
    }
    assert_eq!(refused("http://me:secret@node:1"), "bad base URL: its authority is no host with a port");
    for base in ["http://node:1?x", "http://node:1/#x"] {
        assert_eq!(refused(base), "bad base URL: it has a query or a fragment");
    }
}

#[tokio::test]
async fn what_is_printed_tells_no_token() {
    let (streaming, _) = streaming(BASE);
    let url = streaming.issue(exec()).expect("a URL");
    let token = url.rsplit('/').next().expect("a token");
    assert!(!format!("{streaming:?}").contains(token));
}

#[tokio::test]
async fn what_an_outer_stack_permitted_is_not_permitted_here() {
    let (mut streaming, seen) = streaming(BASE);
    let mut request = Request::post(format!("{BASE}/exec/AAAAAAAAAAAAAAAAAAAAAA")).body(()).expect("a request");
    request.extensions_mut().insert(Permit(Arc::new(attach("other"))));
    let Ok(answer) = streaming.call(request).await;
    assert_eq!(answer.status(), 404);
    let mut request = Request::post(streaming.issue(exec()).expect("a URL")).body(()).expect("a request");
    request.extensions_mut().insert(Permit(Arc::new(attach("other"))));
    request.extensions_mut().insert(Hop::new(http::Uri::from_static("http://elsewhere/")));
    let Ok(answer) = streaming.call(request).await;
    assert_eq!(answer.status(), 200);
    let seen = seen.lock().expect("unpoisoned");
    assert_eq!(seen.iter().map(|target| target.subresource).collect::<Vec<_>>(), [Subresource::Exec]);
}
