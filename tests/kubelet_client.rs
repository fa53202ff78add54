//! The example kubelet at its API server: what it reads from a kubeconfig, registers, asks, and remembers. The API server
//! is scripted; tests/node.rs and tests/kubelet_authz.rs have the real one.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, as it should")]

#[path = "../examples/support/mod.rs"]
mod support;

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{
        Arc, LazyLock, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{Router, body::Bytes, extract::State};
use http::{Method, StatusCode, Uri};
use serde_json::{Value, json};
use support::{
    client::{ApiClient, Ask},
    node::Registration,
    review::{Answers, Reviewer},
};
use tokio::{
    net::TcpListener,
    time::{advance, timeout},
};
use tower_kube_streaming::{
    FeatureGates, Gate,
    layers::synthetic_authz::{Decision, Verb, Verdict},
    upgrade::Caller,
};

/// A kubeconfig of that content, in a directory of this test's own.
fn kubeconfig(test: &str, server: &str, user: Value) -> PathBuf {
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("kubelet-client-{test}"));
    support::create_private_dir(&dir).unwrap();
    let file = dir.join("kubelet.kubeconfig");
    rewrite(&file, server, user);
    file
}

fn rewrite(file: &Path, server: &str, user: Value) {
    let config = json!({
        "current-context": "kubelet",
        "contexts": [{ "name": "kubelet", "context": { "cluster": "demo", "user": "kubelet" } }],
        "clusters": [{ "name": "demo", "cluster": { "server": server } }],
        "users": [{ "name": "kubelet", "user": user }],
    });
    fs::write(file, config.to_string()).unwrap();
}

/// A request: method, path, content type and login, body.
type Seen = (Method, String, String, Value);

/// An API server that answers with the first of these answers that is left, and the last one again and again.
#[derive(Clone)]
struct Scripted {
    answers: Arc<Mutex<Vec<(StatusCode, String)>>>,
    seen: Arc<Mutex<Vec<Seen>>>,
    url: String,
}

impl Scripted {
    async fn start(answers: &[(u16, Value)]) -> Self {
        let answers = answers.iter().rev().map(|(code, body)| (StatusCode::from_u16(*code).unwrap(), body.to_string()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let scripted = Self {
            answers: Arc::new(Mutex::new(answers.collect())),
            seen: Arc::default(),
            url: format!("http://{}", listener.local_addr().unwrap()),
        };
        let router = Router::new().fallback(Self::answer).with_state(scripted.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        scripted
    }

    async fn answer(
        State(scripted): State<Self>,
        method: Method,
        uri: Uri,
        headers: http::HeaderMap,
        body: Bytes,
    ) -> (StatusCode, String) {
        let header = |name| headers.get(name).map_or("", |value| value.to_str().unwrap());
        let heads = format!("{} {}", header("content-type"), header("authorization"));
        let body = serde_json::from_slice(&body).unwrap();
        scripted.seen.lock().unwrap().push((method, uri.path().to_owned(), heads, body));
        let mut answers = scripted.answers.lock().unwrap();
        if answers.len() > 1 { answers.pop().unwrap() } else { answers[0].clone() }
    }

    fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

fn client(file: &Path) -> Arc<ApiClient> {
    Arc::new(ApiClient::new(file).unwrap())
}

#[tokio::test]
async fn a_kubeconfig_that_cannot_be_followed_is_refused_and_its_secrets_are_not_told() {
    let secret = "s3cret-of-the-kubelet";
    let at =
        |server: &str, user: Value| ApiClient::new(&kubeconfig("refused", server, user)).err().unwrap().to_string();
    let here = "http://127.0.0.1:1";
    for (why, said) in [
        ("user.exec", at(here, json!({ "exec": { "command": secret } }))),
        ("user.password", at(here, json!({ "username": "u", "password": secret }))),
        ("need each other", at(here, json!({ "client-key-data": "a2V5" }))),
        ("not base64", at(here, json!({ "client-certificate-data": format!("%{secret}"), "client-key-data": "" }))),
        ("not a token", at(here, json!({ "token": format!("{secret}\n") }))),
        ("/nowhere/at/all", at(here, json!({ "client-key": "/nowhere/at/all" }))),
        ("of this machine only", at("http://192.0.2.1", json!({}))),
        ("must be a URL", at("ftp://127.0.0.1", json!({}))),
    ] {
        assert!(said.contains(why), "{why}: {said}");
        assert!(!said.contains(secret), "{said}");
    }
    let file = kubeconfig("no-yaml", here, json!({}));
    for (content, why) in [
        (format!("users: [{{token: {secret}"), "not a kubeconfig"),
        ("{}".to_owned(), "current-context is missing"),
        ("current-context: a".to_owned(), "there is no context \"a\""),
        ("x".repeat((1 << 20) + 1), "more than 1048576 bytes"),
    ] {
        fs::write(&file, content).unwrap();
        let said = ApiClient::new(&file).err().unwrap().to_string();
        assert!(said.contains(why) && !said.contains(secret), "{why}: {said}");
    }
}

#[tokio::test]
async fn a_request_carries_the_token_and_follows_the_file_to_another_server() {
    let (first, second) = (Scripted::start(&[(200, json!(1))]).await, Scripted::start(&[(200, json!(2))]).await);
    let file = kubeconfig("moves", &first.url, json!({ "token": "t" }));
    let client = client(&file);
    let body = json!({ "a": 1 });
    assert_eq!(client.ask("/p", Ask::Post(&body)).await.unwrap(), (StatusCode::OK, json!(1)));
    rewrite(&file, &second.url, json!({}));
    assert_eq!(client.ask("/q", Ask::MergePatch(&body)).await.unwrap(), (StatusCode::OK, json!(2)));
    let post = (Method::POST, "/p".to_owned(), "application/json Bearer t".to_owned(), body.clone());
    let patch = (Method::PATCH, "/q".to_owned(), "application/merge-patch+json ".to_owned(), body.clone());
    assert_eq!((first.seen(), second.seen()), (vec![post], vec![patch]));
    // A file that is half written is an error, and the next one is read.
    fs::write(&file, "{").unwrap();
    client.ask("/r", Ask::Post(&body)).await.unwrap_err();
    rewrite(&file, &first.url, json!({}));
    client.ask("/r", Ask::Post(&body)).await.unwrap();
}

#[tokio::test]
async fn an_answer_over_a_mebibyte_and_one_that_is_not_json_are_errors() {
    let api = Scripted::start(&[(200, json!("x".repeat(1 << 20))), (200, json!(0))]).await;
    let client = client(&kubeconfig("answers", &api.url, json!({})));
    let error = client.ask("/", Ask::Post(&json!({}))).await.unwrap_err().to_string();
    assert!(error.contains("length limit exceeded"), "{error}");
    api.answers.lock().unwrap()[0].1 = "<html>".to_owned();
    let error = client.ask("/", Ask::Post(&json!({}))).await.unwrap_err().to_string();
    assert!(error.contains("200 OK, and the answer is not JSON"), "{error}");
}

/// Registers once; what the API server saw.
async fn registered(test: &str, api: &Scripted, listens: &str, gates: FeatureGates) -> Vec<Seen> {
    let client = client(&kubeconfig(test, &api.url, json!({})));
    let node = Registration::new(client, "demo-node", listens.parse().unwrap(), gates).unwrap();
    let (tell, told) = tokio::sync::oneshot::channel();
    let wait = async { timeout(Duration::from_secs(20), told).await.unwrap().unwrap() };
    tokio::select! { () = node.keep(|| tell.send(()).unwrap()) => {}, () = wait => {} }
    api.seen()
}

#[tokio::test]
async fn a_node_is_updated_or_else_created_and_a_failure_is_tried_again() {
    let unknown = json!({ "kind": "Status", "message": "no" });
    let script =
        [(500, unknown.clone()), (404, unknown.clone()), (409, unknown.clone()), (404, unknown), (201, json!({}))];
    let api = Scripted::start(&script).await;
    let seen = registered("creates", &api, "0.0.0.0:1234", FeatureGates::default()).await;
    let asked: Vec<_> = seen.iter().map(|(method, path, ..)| format!("{method} {path}")).collect();
    let (patch, post) = ("PATCH /api/v1/nodes/demo-node/status", "POST /api/v1/nodes");
    assert_eq!(asked, [patch, patch, post, patch, post]);
    let node = &seen[4].3;
    assert_eq!(node["metadata"]["name"], "demo-node");
    assert_eq!(node["status"]["addresses"], json!([{ "type": "InternalIP", "address": "127.0.0.1" }]));
    assert_eq!(node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"], 1234);
    assert_eq!(node["status"]["declaredFeatures"], json!(["ExtendWebSocketsToKubelet"]));
}

/// All that this process logs.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

static LOG: LazyLock<Log> = LazyLock::new(|| {
    let log = Log::default();
    let writer = log.clone();
    tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).init();
    log
});

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_failure_to_register_is_told_once_until_its_reason_changes() {
    LazyLock::force(&LOG);
    let failure = |why: &str| (500, json!({ "message": why }));
    let script = [failure("reason one"), failure("reason one"), failure("reason two"), (200, json!({}))];
    let api = Scripted::start(&script).await;
    assert_eq!(registered("told", &api, "127.0.0.1:1", FeatureGates::default()).await.len(), 4);
    let log = String::from_utf8(LOG.0.lock().unwrap().clone()).unwrap();
    let told = [log.matches("reason one").count(), log.matches("reason two").count()];
    assert_eq!(told, [1, 1], "{log}");
}

#[tokio::test]
async fn what_a_gate_forbids_is_not_declared_and_taken_back() {
    for off in [&[Gate::ExtendWebSocketsToKubelet][..], &[Gate::ExtendWebSocketsToKubelet, Gate::NodeDeclaredFeatures]]
    {
        let gates = FeatureGates::with(off.iter().map(|gate| (*gate, false))).unwrap();
        let api = Scripted::start(&[(404, json!({})), (201, json!({}))]).await;
        let seen = registered("withdraws", &api, "[::1]:1", gates).await;
        let statuses: Vec<_> = seen.iter().map(|(.., body)| &body["status"]).collect();
        // To a patch `null` means: remove it. In a new object there is nothing to remove.
        assert_eq!(statuses[0].get("declaredFeatures"), Some(&Value::Null));
        assert_eq!(statuses[1].get("declaredFeatures"), None);
        assert_eq!(statuses[1]["addresses"][0]["address"], "::1");
    }
}

#[tokio::test]
async fn a_node_name_that_is_no_name_is_refused() {
    let client = client(&kubeconfig("names", "http://127.0.0.1:1", json!({})));
    for name in ["", "Node", "a/b", "a?b", "-a", "a.", "ä", &"a".repeat(254)] {
        let refused = Registration::new(client.clone(), name, ([127, 0, 0, 1], 1).into(), FeatureGates::default());
        assert!(refused.is_err(), "{name:?}");
    }
}

#[tokio::test]
async fn a_review_asks_about_the_node_and_only_allowed_is_allowed() {
    let status = |status: Value| (201, json!({ "status": status }));
    let script = [
        status(json!({ "allowed": true, "reason": "rule 1" })),
        status(json!({ "allowed": false, "denied": true })),
        status(json!({ "allowed": "yes" })),
        status(json!({ "allowed": true, "denied": true })),
        (201, json!({})),
        (200, json!([])),
        (403, json!({ "message": "you may not ask" })),
        (500, json!({})),
    ];
    let api = Scripted::start(&script).await;
    let reviewer = Reviewer::new(Some(client(&kubeconfig("review", &api.url, json!({})))), "demo-node");
    let mut verdicts = Vec::new();
    for user in ["a", "b", "c", "d", "e", "f", "g", "h"] {
        let decision = reviewer.decide(&Caller::new(user, ["dev"]), Verb::Create, "proxy").await;
        verdicts.push(decision.map(|decision| (decision.verdict, decision.reason)).map_err(|error| error.to_string()));
    }
    assert_eq!(verdicts[0], Ok((Verdict::Allow, "rule 1".to_owned())));
    assert_eq!(verdicts[1], Ok((Verdict::Deny, String::new())));
    assert_eq!(verdicts[2], Ok((Verdict::NoOpinion, String::new())));
    assert!(verdicts[3..].iter().all(Result::is_err), "{verdicts:?}");
    assert!(verdicts[6].as_ref().is_err_and(|why| why.contains("403 Forbidden: \"you may not ask\"")), "{verdicts:?}");
    let spec = json!({
        "user": "a", "groups": ["dev"], "uid": "", "extra": {},
        "resourceAttributes": {
            "verb": "create", "version": "v1", "resource": "nodes", "subresource": "proxy", "name": "demo-node",
        },
    });
    assert_eq!(api.seen()[0].3["spec"], spec);
    // Known now, so nobody is asked; another verb, subresource, name, group, uid or extra is another question.
    let asked = api.seen().len();
    let _ = reviewer.decide(&Caller::new("a", ["dev"]), Verb::Create, "proxy").await.unwrap();
    assert_eq!(api.seen().len(), asked);
    for (user, group, verb, sub) in [
        ("a", "dev", Verb::Get, "proxy"),
        ("a", "dev", Verb::Create, "metrics"),
        ("A", "dev", Verb::Create, "proxy"),
        ("a", "ops", Verb::Create, "proxy"),
    ] {
        reviewer.decide(&Caller::new(user, [group]), verb, sub).await.unwrap_err();
    }
    let (mut other_uid, mut other_extra) = (Caller::new("a", ["dev"]), Caller::new("a", ["dev"]));
    other_uid.uid = "7".into();
    other_extra.extra.insert("scopes".into(), vec!["a".into()]);
    for caller in [other_uid, other_extra] {
        reviewer.decide(&caller, Verb::Create, "proxy").await.unwrap_err();
    }
}

#[tokio::test]
async fn of_a_reason_no_more_is_kept_than_a_log_line_is_worth() {
    let long = "ä".repeat(1 << 18);
    let api = Scripted::start(&[(201, json!({ "status": { "allowed": false, "reason": long } }))]).await;
    let reviewer = Reviewer::new(Some(client(&kubeconfig("reason", &api.url, json!({})))), "demo-node");
    let decision = reviewer.decide(&Caller::new("a", ["dev"]), Verb::Create, "proxy").await.unwrap();
    assert_eq!(decision.reason, "ä".repeat(512));
}

#[tokio::test]
async fn without_an_api_server_only_masters_may_and_with_one_that_is_gone_nobody() {
    let (master, other) = (Caller::new("m", ["system:masters"]), Caller::new("o", ["system:nodes"]));
    let alone = Reviewer::new(None, "demo-node");
    assert_eq!(alone.decide(&master, Verb::Get, "proxy").await.unwrap().verdict, Verdict::Allow);
    assert_eq!(alone.decide(&other, Verb::Get, "proxy").await.unwrap().verdict, Verdict::NoOpinion);
    // A port that nobody is given by chance.
    let gone = Reviewer::new(Some(client(&kubeconfig("gone", "http://127.0.0.1:1", json!({})))), "demo-node");
    let error = gone.decide(&master, Verb::Get, "proxy").await.unwrap_err().to_string();
    assert!(error.contains("connection refused"), "{error}");
}

/// Asks `answers`, and counts how often somebody had to find out.
async fn known(answers: &Answers, found: &AtomicUsize, question: &str, decision: Decision) -> Verdict {
    let find = async {
        found.fetch_add(1, Ordering::Relaxed);
        Ok(decision)
    };
    answers.of(question.to_owned(), find).await.unwrap().verdict
}

#[tokio::test(start_paused = true)]
async fn allowed_counts_for_five_minutes_and_refused_for_thirty_seconds() {
    for (decision, seconds) in [(Decision::allow(), 300), (Decision::deny(), 30), (Decision::no_opinion(), 30)] {
        let (answers, found) = (Answers::default(), AtomicUsize::new(0));
        assert_eq!(known(&answers, &found, "q", decision.clone()).await, decision.verdict);
        advance(Duration::from_secs(seconds - 1)).await;
        // What would be found out now does not matter yet.
        assert_eq!(known(&answers, &found, "q", Decision::allow()).await, decision.verdict);
        assert_eq!(found.load(Ordering::Relaxed), 1);
        advance(Duration::from_secs(1)).await;
        known(&answers, &found, "q", decision).await;
        assert_eq!(found.load(Ordering::Relaxed), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn the_same_question_is_asked_once_at_a_time_and_an_error_is_not_kept() {
    let (answers, found) = (Answers::default(), AtomicUsize::new(0));
    let slow = answers.of("q".to_owned(), async {
        tokio::time::sleep(Duration::from_secs(5)).await;
        Ok(Decision::allow())
    });
    let (slow, second) = tokio::join!(slow, known(&answers, &found, "q", Decision::deny()));
    assert_eq!((slow.unwrap().verdict, second), (Verdict::Allow, Verdict::Allow));
    assert_eq!(found.load(Ordering::Relaxed), 0);

    answers.of("r".to_owned(), async { Err("gone".into()) }).await.unwrap_err();
    assert_eq!(known(&answers, &found, "r", Decision::allow()).await, Verdict::Allow);

    // One that is never answered fails, also for who waits for it, and stands in nobody's way after that.
    let hung = || answers.of("s".to_owned(), std::future::pending());
    let (first, second) = tokio::join!(hung(), hung());
    assert!(first.is_err() && second.is_err());
    assert_eq!(known(&answers, &found, "s", Decision::allow()).await, Verdict::Allow);
}

#[tokio::test(start_paused = true)]
async fn no_more_than_1024_answers_are_kept_and_no_long_question() {
    let (answers, found) = (Answers::default(), AtomicUsize::new(0));
    for number in 0..3000 {
        known(&answers, &found, &format!("q{number}"), Decision::allow()).await;
        advance(Duration::from_millis(1)).await;
        assert!(answers.len() <= 1024);
    }
    // The newest are known, the oldest had to go.
    known(&answers, &found, "q2999", Decision::allow()).await;
    known(&answers, &found, "q1976", Decision::allow()).await;
    assert_eq!(found.load(Ordering::Relaxed), 3000);
    known(&answers, &found, "q0", Decision::allow()).await;
    assert_eq!(found.load(Ordering::Relaxed), 3001);

    let (long, before) = ("x".repeat(10_001), answers.len());
    for _ in 0..2 {
        known(&answers, &found, &long, Decision::allow()).await;
    }
    assert_eq!((found.load(Ordering::Relaxed), answers.len()), (3003, before));
}
