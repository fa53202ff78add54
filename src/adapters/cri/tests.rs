//! Against a runtime that answers by a script, over a real Unix socket. Against a real one: `tests/cri.rs`.

use std::{
    collections::HashMap,
    convert::Infallible,
    env, fs,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Request, Response, header};
use http_body_util::{BodyExt, Full, combinators::WithTrailers};
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tokio::{net::UnixListener, task::JoinSet};

use super::{
    CriRuntime,
    locate::{has_terminal, parse},
    messages::*,
};
use crate::{
    layers::{Hop, Resolve},
    upgrade::{Dialect, Refusal, StreamOptions, Subresource, Target},
};

/// What a script answers: a message, or a gRPC status. `None`: nothing, ever.
type Answer = Option<Result<Vec<u8>, (u32, &'static str)>>;

/// A runtime at a socket of its own, and what it was asked.
struct Fake {
    endpoint: String,
    asked: Arc<Mutex<Vec<(String, Bytes)>>>,
    /// Stops with the handle.
    _serving: JoinSet<()>,
}

impl Fake {
    fn start(script: impl Fn(&str) -> Answer + Send + Sync + 'static) -> Self {
        Self::start_at(socket(), script)
    }

    fn start_at(socket: PathBuf, script: impl Fn(&str) -> Answer + Send + Sync + 'static) -> Self {
        let endpoint = format!("unix://{}", socket.display());
        let _ = fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket).unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (log, script) = (asked.clone(), Arc::new(script));
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((io, _)) = listener.accept().await {
                let (log, script) = (log.clone(), script.clone());
                let serve = service_fn(move |request| answer(request, log.clone(), script.clone()));
                let connection = http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(io), serve);
                connections.spawn(async move {
                    let _ = connection.await;
                });
            }
        });
        Self { endpoint, asked, _serving: serving }
    }

    fn runtime(&self) -> CriRuntime {
        CriRuntime::new(&self.endpoint).unwrap()
    }

    /// The last question of a method.
    fn asked<M: Message + Default>(&self, method: &str) -> M {
        let asked = self.asked.lock().unwrap();
        let (_, bytes) = asked.iter().rfind(|(path, _)| path.ends_with(method)).expect("it was asked");
        M::decode(bytes.clone()).unwrap()
    }
}

fn socket() -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let name = format!("cri-{}-{}.sock", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    env::temp_dir().join(name)
}

impl Drop for Fake {
    fn drop(&mut self) {
        let _ = fs::remove_file(self.endpoint.trim_start_matches("unix://"));
    }
}

type Body = WithTrailers<Full<Bytes>, std::future::Ready<Option<Result<HeaderMap, Infallible>>>>;

async fn answer(
    request: Request<Incoming>,
    log: Arc<Mutex<Vec<(String, Bytes)>>>,
    script: Arc<impl Fn(&str) -> Answer>,
) -> Result<Response<Body>, Infallible> {
    let path = request.uri().path().to_owned();
    let question = request.into_body().collect().await.unwrap().to_bytes().slice(5..);
    let method = path.rsplit('/').next().unwrap().to_owned();
    log.lock().unwrap().push((path, question));
    let Some(answer) = script(&method) else { std::future::pending().await };
    let mut body = BytesMut::new();
    let mut trailers = HeaderMap::new();
    let (code, words) = match answer {
        Ok(message) => {
            body.put_u8(0);
            body.put_u32(u32::try_from(message.len()).unwrap());
            body.extend_from_slice(&message);
            (0, "")
        }
        Err(status) => status,
    };
    trailers.insert("grpc-status", code.into());
    trailers.insert("grpc-message", HeaderValue::from_static(words));
    let body = Full::new(body.freeze()).with_trailers(std::future::ready(Some(Ok(trailers))));
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    Ok(response)
}

fn ok(message: &impl Message) -> Answer {
    Some(Ok(message.encode_to_vec()))
}

/// Those of the target, and another.
fn labels() -> Labels {
    let labels = [("pod.name", "demo"), ("pod.namespace", "default"), ("pod.uid", "u-1"), ("container.name", "zz")];
    labels.map(|(name, value)| (format!("io.kubernetes.{name}"), value.to_owned())).into()
}

fn container(id: &str, state: i32, created_at: i64) -> Container {
    Container { id: id.into(), state, created_at, labels: labels() }
}

fn sandbox(id: &str) -> PodSandbox {
    PodSandbox { id: id.into(), state: READY, created_at: 1, labels: labels() }
}

fn url() -> Answer {
    ok(&StreamingResponse { url: "http://127.0.0.1:4711/exec/t0ken".into() })
}

/// A pod with one container, and all that can be asked of it.
fn whole(method: &str) -> Answer {
    match method {
        "ListContainers" => ok(&ListContainersResponse { containers: vec![container("c1", RUNNING, 1)] }),
        "ListPodSandbox" => ok(&ListPodSandboxResponse { items: vec![sandbox("s1")] }),
        "ContainerStatus" => {
            ok(&ContainerStatusResponse { info: HashMap::from([("info".into(), r#"{"config":{"tty":true}}"#.into())]) })
        }
        _ => url(),
    }
}

fn target(subresource: Subresource) -> Arc<Target> {
    Arc::new(Target {
        subresource,
        namespace: "default".into(),
        pod: "demo".into(),
        uid: None,
        container: Some("zz".into()),
        options: StreamOptions { stdout: true, command: vec!["echo".into(), "a b".into()], ..StreamOptions::default() },
        dialect: Dialect::Kubelet,
    })
}

async fn refused(runtime: &CriRuntime, subresource: Subresource) -> Refusal {
    runtime.resolve(target(subresource)).await.map(drop).unwrap_err()
}

#[tokio::test]
async fn a_container_is_found_by_the_kubelets_labels_and_the_command_goes_there() {
    let fake = Fake::start(whole);
    let mut exec = Target::clone(&target(Subresource::Exec));
    exec.uid = Some("u-1".into());
    let Hop { uri, speaks_websocket, .. } = fake.runtime().resolve(exec.into()).await.unwrap();
    assert_eq!(uri, "http://127.0.0.1:4711/exec/t0ken");
    assert!(!speaks_websocket);
    let asked: ListContainersRequest = fake.asked("/runtime.v1.RuntimeService/ListContainers");
    let filter = asked.filter.unwrap();
    assert_eq!(filter.state, Some(StateValue { state: RUNNING }));
    assert_eq!(filter.label_selector, labels());
    let asked: ExecRequest = fake.asked("/Exec");
    let cmd = vec!["echo".to_owned(), "a b".to_owned()];
    assert_eq!(asked, ExecRequest { container_id: "c1".into(), cmd, stdout: true, ..ExecRequest::default() });
}

#[tokio::test]
async fn a_runtime_is_asked_for_websocket_only_where_it_is_said_to_speak_it() {
    let fake = Fake::start(whole);
    for speaks in [false, true] {
        for subresource in [Subresource::Exec, Subresource::Attach, Subresource::PortForward] {
            let hop = fake.runtime().speaks_websocket(speaks).resolve(target(subresource)).await.unwrap();
            assert_eq!(hop.speaks_websocket, speaks, "{subresource}");
        }
    }
}

#[tokio::test]
async fn of_several_containers_the_newest_that_runs_is_meant() {
    let fake = Fake::start(|method| match method {
        "ListContainers" => ok(&ListContainersResponse {
            containers: vec![container("old", RUNNING, 1), container("new", RUNNING, 2), container("exited", 2, 3)],
        }),
        _ => url(),
    });
    fake.runtime().resolve(target(Subresource::Exec)).await.unwrap();
    assert_eq!(fake.asked::<ExecRequest>("/Exec").container_id, "new");
}

#[tokio::test]
async fn a_runtime_that_overlooks_the_filter_leads_into_no_other_pod() {
    let strangers =
        ["pod.name", "pod.namespace", "container.name"].map(|label| (format!("io.kubernetes.{label}"), "x"));
    for (label, value) in strangers {
        let mut of_another = container("other", RUNNING, 9);
        of_another.labels.insert(label.clone(), value.into());
        let mut unlabelled = container("nobody's", RUNNING, 9);
        unlabelled.labels.clear();
        let answer = ListContainersResponse { containers: vec![of_another, unlabelled, container("c1", RUNNING, 1)] };
        let mut another = sandbox("other");
        another.labels.insert(label.clone(), value.into());
        let sandboxes = ListPodSandboxResponse { items: vec![another] };
        let fake = Fake::start(move |method| match method {
            "ListContainers" => ok(&answer),
            "ListPodSandbox" => ok(&sandboxes),
            method => whole(method),
        });
        fake.runtime().resolve(target(Subresource::Exec)).await.unwrap();
        assert_eq!(fake.asked::<ExecRequest>("/Exec").container_id, "c1", "{label}");
        if label != "io.kubernetes.container.name" {
            assert_eq!(refused(&fake.runtime(), Subresource::PortForward).await.message(), "pod does not exist");
        }
    }
}

#[tokio::test]
async fn an_answer_that_is_too_long_is_not_read() {
    let fake = Fake::start(|method| match method {
        "ListContainers" => Some(Ok(vec![0; (16 << 20) + 1])),
        method => whole(method),
    });
    let refusal = refused(&fake.runtime(), Subresource::Exec).await;
    assert_eq!(refusal.code(), 500);
    assert!(refusal.message().starts_with("rpc error: code = OutOfRange desc = "), "{}", refusal.message());
}

#[tokio::test]
async fn attach_takes_the_terminal_from_the_container_not_from_the_request() {
    let fake = Fake::start(whole);
    fake.runtime().resolve(target(Subresource::Attach)).await.unwrap();
    let asked: AttachRequest = fake.asked("/Attach");
    assert_eq!(asked, AttachRequest { container_id: "c1".into(), tty: true, stdout: true, ..AttachRequest::default() });
}

#[test]
fn a_terminal_is_read_from_what_runtimes_tell() {
    for (info, tells) in [
        (r#"{"runtimeSpec":{"process":{"terminal":true}},"config":{}}"#, Some(true)),
        (r#"{"runtimeSpec":{"process":{}},"config":{"tty":true}}"#, Some(false)),
        (r#"{"config":{"tty":true}}"#, Some(true)),
        (r#"{"config":{}}"#, Some(false)),
        ("{}", None),
        ("[1]", None),
        ("no JSON", None),
    ] {
        let status = ContainerStatusResponse { info: HashMap::from([("info".into(), info.into())]) };
        assert_eq!(has_terminal(&status), tells, "{info}");
    }
    assert_eq!(has_terminal(&ContainerStatusResponse::default()), None);
}

#[tokio::test]
async fn ports_go_to_the_sandbox_that_is_ready() {
    let fake = Fake::start(whole);
    let mut forward = Target::clone(&target(Subresource::PortForward));
    forward.options.ports = vec![80, 65535];
    fake.runtime().resolve(forward.into()).await.unwrap();
    let filter = fake.asked::<ListPodSandboxRequest>("/ListPodSandbox").filter.unwrap();
    assert_eq!(filter.state, Some(StateValue { state: READY }));
    let asked: PortForwardRequest = fake.asked("/PortForward");
    assert_eq!(asked, PortForwardRequest { pod_sandbox_id: "s1".into(), port: vec![80, 65535] });
}

#[tokio::test]
async fn what_is_not_there_is_refused_in_the_kubelets_words() {
    let fake = Fake::start(|method| match method {
        "ListContainers" => ok(&ListContainersResponse::default()),
        method => whole(method),
    });
    let runtime = fake.runtime();
    for (subresource, words) in [
        (Subresource::Exec, "container not found (\"zz\")"),
        (Subresource::Attach, "container zz not found in pod demo_default"),
    ] {
        let refusal = refused(&runtime, subresource).await;
        assert_eq!((refusal.code().as_u16(), refusal.message()), (500, words));
    }
    let empty = Fake::start(|_| Some(Ok(Vec::new())));
    for subresource in [Subresource::Exec, Subresource::Attach, Subresource::PortForward] {
        let refusal = refused(&empty.runtime(), subresource).await;
        assert_eq!((refusal.code().as_u16(), refusal.message()), (404, "pod does not exist"), "{subresource}");
    }
}

#[tokio::test]
async fn failures_of_the_runtime_become_the_kubelets_codes() {
    for (grpc, code, name, retry) in [
        (5, 404, "NotFound", None),
        (8, 429, "ResourceExhausted", Some("60")),
        (3, 500, "InvalidArgument", None),
        (1, 500, "Canceled", None),
        (14, 500, "Unavailable", None),
    ] {
        let fake = Fake::start(move |method| match method {
            "Exec" => Some(Err((grpc, "its own words"))),
            method => whole(method),
        });
        let refusal = refused(&fake.runtime(), Subresource::Exec).await;
        let response = refusal.into_response::<Full<Bytes>>(Dialect::Kubelet);
        assert_eq!(response.status().as_u16(), code, "{name}");
        let after = response.headers().get(header::RETRY_AFTER).map(|value| value.to_str().unwrap());
        assert_eq!(after, retry, "{name}");
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(body, format!("rpc error: code = {name} desc = its own words\n"));
    }
}

#[tokio::test]
async fn a_runtime_that_does_not_answer_is_given_up() {
    let fake = Fake::start(|_| None);
    let runtime = fake.runtime().request_timeout(Duration::from_millis(20));
    let refusal = refused(&runtime, Subresource::Exec).await;
    assert_eq!(refusal.code(), 500);
    assert_eq!(refusal.message(), "rpc error: code = DeadlineExceeded desc = context deadline exceeded");
}

#[tokio::test]
async fn a_runtime_may_come_late_go_and_come_again() {
    let at = socket();
    let runtime = CriRuntime::new(&format!("unix://{}", at.display())).unwrap();
    for _ in 0..2 {
        let refusal = refused(&runtime, Subresource::Exec).await;
        assert_eq!(refusal.code(), 500);
        assert!(refusal.message().starts_with("rpc error: code = Unavailable desc = "), "{}", refusal.message());
        let fake = Fake::start_at(at.clone(), whole);
        for _ in 0..2 {
            runtime.resolve(target(Subresource::Exec)).await.unwrap();
        }
        drop(fake);
    }
}

#[tokio::test]
async fn a_url_that_cannot_be_dialled_is_not_told() {
    let fake = Fake::start(|method| match method {
        "Exec" => ok(&StreamingResponse { url: "ftp://127.0.0.1/s3cret".into() }),
        method => whole(method),
    });
    let refusal = refused(&fake.runtime(), Subresource::Exec).await;
    assert_eq!(refusal.message(), "the container runtime's URL is none of http or https");
}

#[test]
fn a_url_without_a_scheme_is_http() {
    for (url, read) in [
        ("http://127.0.0.1:1/exec/a_b-9", Some("http://127.0.0.1:1/exec/a_b-9")),
        ("https://[::1]:1/exec/a", Some("https://[::1]:1/exec/a")),
        ("//127.0.0.1:1/exec/a", Some("http://127.0.0.1:1/exec/a")),
        ("127.0.0.1:1/exec/a", Some("http://127.0.0.1:1/exec/a")),
        ("localhost:1/exec//a", Some("http://localhost:1/exec//a")),
        ("ftp://127.0.0.1/", None),
        ("unix:///run/x", None),
        ("/exec/a", None),
        ("http:///exec/a", None),
        ("", None),
        ("http://a b/", None),
    ] {
        assert_eq!(parse(url).map(|uri| uri.to_string()).as_deref(), read, "{url}");
    }
    assert_eq!(parse(&format!("http://a/{}", "x".repeat(8 << 10))), None);
}

#[tokio::test]
async fn an_endpoint_is_a_path_of_a_socket() {
    for bad in ["", "/run/c.sock", "unix://", "unix://run/c.sock", "unix:///run/", "tcp://127.0.0.1:1", "npipe:////./x"]
    {
        let error = CriRuntime::new(bad).unwrap_err();
        assert!(error.to_string().ends_with("unix:///absolute/path is"), "{error}");
    }
}
