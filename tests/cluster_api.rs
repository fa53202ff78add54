//! The example API server as a cluster to others: lists that are watched on, changes that do not undo each other, who a
//! token or a front proxy speaks for, and who may act as whom.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, as it should")]

#[path = "../examples/support/mod.rs"]
mod examples;
#[allow(clippy::duplicate_mod, reason = "each test binary uses its part")]
mod support;

use std::{fs, path::Path, process::Stdio, sync::Arc, time::Duration};

use axum::{Router, body::Body};
use examples::{
    Stack,
    api::{self, Api},
    authn::Authenticator,
    client::pool,
    logs::Logs,
    objects::Store,
    pki::{self, CertAndKey},
    rbac::RbacAuthorizer,
    tls,
    tokens::{self, Tokens},
};
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};
use support::{
    Outcome, Scratch, count,
    http::url,
    kubectl::{Client, Run, client},
    lab::{Lab, Settings, Topology},
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tower::{Service, service_fn};
use tower_kube_streaming::{adapters::rustls::TlsConnect, upgrade::Dialect};

const LIMIT: Duration = Duration::from_secs(30);
const PODS: &str = "/api/v1/namespaces/default/pods";
const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";

/// Of whom `jane` may act as, and nothing else.
const ROLES: &str = r#"
{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRole, metadata: {name: support}, rules: [
  {apiGroups: [""], resources: [users], resourceNames: [joe], verbs: [impersonate]},
  {apiGroups: [""], resources: [groups], resourceNames: [dev], verbs: [impersonate]},
  {apiGroups: [""], resources: [serviceaccounts], verbs: [impersonate]},
  {apiGroups: [authentication.k8s.io], resources: [userextras/scopes, uids], verbs: [impersonate]}]}
---
{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRoleBinding, metadata: {name: support},
 roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: support},
 subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: jane}]}
"#;

/// An API server in this process, with tokens that are the names of their users.
struct Cluster(Router);

impl Cluster {
    fn start() -> Self {
        let scratch = Scratch::new("cluster");
        let file = |name: &str, text: &str| {
            let path = scratch.path().join(name);
            fs::write(&path, text).unwrap();
            path
        };
        let store = Arc::new(Store::from_manifests(&[file("roles", ROLES)]).unwrap());
        let tokens = "admin,admin,1,system:masters\njane,jane,2,ops\nkubelet,system:node:n,3,system:nodes\n";
        let tokens = Tokens::new(&tokens::load(&file("tokens", tokens)).unwrap());
        let authenticator = Authenticator::known(tokens, Dialect::ApiServer);
        let authenticator = authenticator.impersonation(RbacAuthorizer::new(store.clone()));
        let streams = service_fn(async |_: Request<Body>| Ok(http::Response::new(Body::empty())));
        let api = Api { store, metrics: Arc::default(), stop: CancellationToken::new(), logs: Logs::none() };
        Self(api::router(api, Stack::new(streams), authenticator))
    }

    async fn answer(&mut self, request: Request<Body>) -> http::Response<Body> {
        self.0.call(request).await.unwrap()
    }

    async fn send(&mut self, method: &str, path: &str, kind: &str, body: &Value) -> (u16, Value) {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let request = Request::builder().method(method).uri(path).header("authorization", "Bearer admin");
        let request = request.header("content-type", kind).body(body.into()).unwrap();
        json_of(self.answer(request).await).await
    }

    async fn ask(&mut self, method: &str, path: &str, body: Value) -> (u16, Value) {
        let kind = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        self.send(method, path, kind, &body).await
    }

    async fn version(&mut self) -> String {
        let (_, list) = self.ask("GET", PODS, Value::Null).await;
        list["metadata"]["resourceVersion"].as_str().unwrap().to_owned()
    }

    /// The lines of a watch, one at a time.
    async fn watch(&mut self, path: &str) -> Lines {
        let request = Request::get(path).header("authorization", "Bearer admin").body(Body::empty()).unwrap();
        let answer = self.answer(request).await;
        assert_eq!(answer.status(), 200, "{path}");
        Lines(answer.into_body())
    }

    async fn as_somebody(&mut self, headers: &[(&str, &str)]) -> (u16, Value) {
        let review = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview" });
        let request = Request::post("/apis/authentication.k8s.io/v1/selfsubjectreviews");
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        json_of(self.answer(request.body(review.to_string().into()).unwrap()).await).await
    }
}

async fn json_of(answer: http::Response<Body>) -> (u16, Value) {
    let code = answer.status().as_u16();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    (code, serde_json::from_slice(&body).unwrap_or_else(|_| String::from_utf8_lossy(&body).into_owned().into()))
}

struct Lines(Body);

impl Lines {
    async fn next(&mut self) -> Option<Value> {
        let frame = timeout(Duration::from_secs(3600), self.0.frame()).await.expect("a line")?;
        Some(serde_json::from_slice(&frame.unwrap().into_data().unwrap()).unwrap())
    }

    /// Type and name of the next event.
    async fn event(&mut self) -> (String, String) {
        let event = self.next().await.unwrap();
        let word = |pointer| event.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
        (word("/type"), word("/object/metadata/name"))
    }
}

fn pod(name: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "labels": { "app": name } },
        "spec": { "containers": [{ "name": "c", "image": "i" }] } })
}

fn lease(name: &str) -> Value {
    json!({ "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": { "name": name },
        "spec": { "holderIdentity": name, "leaseDurationSeconds": 40 } })
}

fn words(pair: &(String, String)) -> (&str, &str) {
    (&pair.0, &pair.1)
}

#[tokio::test]
async fn a_watch_goes_on_where_the_list_ended_and_sees_every_change_once() {
    let mut cluster = Cluster::start();
    cluster.ask("POST", PODS, pod("a")).await;
    let version = cluster.version().await;
    cluster.ask("POST", PODS, pod("b")).await;
    cluster.ask("POST", LEASES, lease("not-a-pod")).await;
    let mut watch = cluster.watch(&format!("{PODS}?watch=1&resourceVersion={version}")).await;
    assert_eq!(words(&watch.event().await), ("ADDED", "b"));
    cluster.ask("PATCH", &format!("{PODS}/a/status"), json!({ "status": { "phase": "Running" } })).await;
    cluster.ask("DELETE", &format!("{PODS}/b"), Value::Null).await;
    assert_eq!(words(&watch.event().await), ("MODIFIED", "a"));
    let gone = watch.next().await.unwrap();
    assert_eq!((&gone["type"], &gone["object"]["metadata"]["name"]), (&json!("DELETED"), &json!("b")));
    // Who goes on from what it was told last is told nothing twice.
    let version = gone["object"]["metadata"]["resourceVersion"].as_str().unwrap();
    let mut watch = cluster.watch(&format!("{PODS}?watch=1&resourceVersion={version}")).await;
    cluster.ask("POST", PODS, pod("c")).await;
    assert_eq!(words(&watch.event().await), ("ADDED", "c"));
    // And without a version, all that is there comes first.
    let mut watch = cluster.watch(&format!("{PODS}?watch=1")).await;
    assert_eq!(words(&watch.event().await), ("ADDED", "a"));
    assert_eq!(words(&watch.event().await), ("ADDED", "c"));
}

#[tokio::test]
async fn to_a_selector_an_object_comes_and_goes_as_it_fits() {
    let mut cluster = Cluster::start();
    let version = cluster.version().await;
    let mut by_label =
        cluster.watch(&format!("{PODS}?watch=1&resourceVersion={version}&labelSelector=app+in+(a,x)")).await;
    let mut by_field =
        cluster.watch(&format!("/api/v1/pods?watch=1&resourceVersion={version}&fieldSelector=spec.nodeName%3Dn")).await;
    cluster.ask("POST", PODS, pod("a")).await;
    cluster.ask("POST", PODS, pod("b")).await;
    let a = format!("{PODS}/a");
    cluster.ask("PATCH", &a, json!({ "spec": { "nodeName": "n" } })).await;
    cluster.ask("PATCH", &a, json!({ "metadata": { "labels": { "app": "other" } } })).await;
    cluster.ask("DELETE", &a, Value::Null).await;
    for (watch, seen) in
        [(&mut by_label, ["ADDED", "MODIFIED", "DELETED"]), (&mut by_field, ["ADDED", "MODIFIED", "DELETED"])]
    {
        for wanted in seen {
            assert_eq!(words(&watch.event().await), (wanted, "a"));
        }
    }
    cluster.ask("POST", PODS, pod("x")).await;
    assert_eq!(words(&by_label.event().await), ("ADDED", "x"), "the deletion of `a` is nothing to it");
    for (selector, code) in [
        ("labelSelector=app+in+(b)", 200),
        ("labelSelector=%21none", 200),
        ("labelSelector=a+of+(b)", 400),
        ("labelSelector=(", 400),
        ("fieldSelector=spec.x%3D1", 400),
    ] {
        assert_eq!(cluster.ask("GET", &format!("{PODS}?{selector}"), Value::Null).await.0, code, "{selector}");
    }
    let (_, one) = cluster.ask("GET", &format!("{PODS}?labelSelector=app+notin+(x),app"), Value::Null).await;
    assert_eq!(one["items"].as_array().unwrap().len(), 1, "{one}");
}

#[tokio::test]
async fn a_version_that_is_too_old_or_none_of_ours_has_expired() {
    let mut cluster = Cluster::start();
    let version = cluster.version().await;
    cluster.ask("POST", PODS, pod("a")).await;
    let mut live = cluster.watch(&format!("{PODS}?watch=1&resourceVersion={version}")).await;
    assert_eq!(words(&live.event().await), ("ADDED", "a"));
    for number in 0..1100 {
        cluster
            .ask("PATCH", &format!("{PODS}/a"), json!({ "metadata": { "labels": { "n": number.to_string() } } }))
            .await;
    }
    let future = (version.parse::<u64>().unwrap() + 1_000_000).to_string();
    for version in ["1", &version, &future] {
        let mut watch = cluster.watch(&format!("{PODS}?watch=1&resourceVersion={version}")).await;
        let told = watch.next().await.unwrap();
        assert_eq!(
            (&told["type"], &told["object"]["code"], &told["object"]["reason"]),
            (&json!("ERROR"), &json!(410), &json!("Expired"))
        );
        assert_eq!(watch.next().await, None);
    }
    // One that has fallen behind so far is told the same.
    assert_eq!(live.next().await.unwrap()["object"]["code"], 410);
    assert_eq!(cluster.ask("GET", &format!("{PODS}?watch=1&resourceVersion=x"), Value::Null).await.0, 400);
    assert_eq!(cluster.ask("GET", &format!("{PODS}?continue=x"), Value::Null).await.0, 400);
    assert_eq!(cluster.ask("GET", &format!("{PODS}?limit=1"), Value::Null).await.0, 200);
}

#[tokio::test(start_paused = true)]
async fn a_quiet_watch_is_told_the_version_each_minute_if_it_asks_and_ends_in_time() {
    let mut cluster = Cluster::start();
    let version = cluster.version().await;
    cluster.ask("POST", LEASES, lease("n")).await;
    let path = format!("{PODS}?watch=1&resourceVersion={version}&timeoutSeconds=90");
    let mut quiet = cluster.watch(&path).await;
    assert_eq!(quiet.next().await, None);
    let mut told = cluster.watch(&format!("{path}&allowWatchBookmarks=true")).await;
    for _ in ["after a minute", "at the end"] {
        let bookmark = told.next().await.unwrap();
        assert_eq!((&bookmark["type"], &bookmark["object"]["kind"]), (&json!("BOOKMARK"), &json!("Pod")));
        let at = bookmark["object"]["metadata"]["resourceVersion"].as_str().unwrap();
        assert!(at.parse::<u64>().unwrap() > version.parse().unwrap(), "the lease's change counts too: {at}");
    }
    assert_eq!(told.next().await, None);
}

#[tokio::test]
async fn a_change_that_would_undo_another_is_a_conflict() {
    let mut cluster = Cluster::start();
    let path = format!("{LEASES}/n");
    assert_eq!(cluster.ask("GET", &path, Value::Null).await.0, 404);
    let (code, first) = cluster.ask("POST", LEASES, lease("n")).await;
    assert_eq!(
        (code, &first["apiVersion"], &first["metadata"]["namespace"]),
        (201, &json!("coordination.k8s.io/v1"), &json!("kube-node-lease"))
    );
    assert_eq!(cluster.ask("POST", LEASES, lease("n")).await.1["reason"], "AlreadyExists");
    let mut renewed = first.clone();
    renewed["spec"]["renewTime"] = "2026-01-01T00:00:00.000000Z".into();
    let (code, second) = cluster.ask("PUT", &path, renewed.clone()).await;
    assert_eq!((code, &second["spec"]["renewTime"]), (200, &renewed["spec"]["renewTime"]));
    assert_ne!(second["metadata"]["resourceVersion"], first["metadata"]["resourceVersion"]);
    // The same again, with what has been read before the change.
    let (code, why) = cluster.ask("PUT", &path, renewed.clone()).await;
    assert_eq!((code, &why["reason"]), (409, &json!("Conflict")), "{why}");
    let stale = json!({ "metadata": { "resourceVersion": first["metadata"]["resourceVersion"] }, "spec": { "x": 1 } });
    assert_eq!(cluster.ask("PATCH", &path, stale).await.0, 409);
    // Without a version the last one wins; what changes nothing has no new version.
    renewed["metadata"].as_object_mut().unwrap().remove("resourceVersion");
    let (code, same) = cluster.ask("PUT", &path, renewed.clone()).await;
    assert_eq!((code, &same), (200, &second));
    for (why, mut wrong) in [("uid", renewed.clone()), ("name", renewed.clone()), ("namespace", renewed)] {
        wrong["metadata"][why] = "other".into();
        let code = if why == "uid" { 409 } else { 400 };
        assert_eq!(cluster.ask("PUT", &path, wrong).await.0, code, "{why}");
    }
    let other = json!({ "preconditions": { "uid": "other" } });
    assert_eq!(cluster.ask("DELETE", &path, other).await.0, 409);
    assert_eq!(cluster.ask("DELETE", &path, Value::Null).await.1["status"], "Success");
    assert_eq!(cluster.ask("DELETE", &path, Value::Null).await.0, 404);
}

#[tokio::test]
async fn a_pods_status_is_changed_only_where_it_is_asked_for() {
    let mut cluster = Cluster::start();
    let path = format!("{PODS}/a");
    let mut lying = pod("a");
    lying["status"] = json!({ "phase": "Running" });
    let (_, created) = cluster.ask("POST", PODS, lying.clone()).await;
    assert_eq!(created["status"], json!({ "phase": "Pending" }));
    lying["spec"]["nodeName"] = "n".into();
    let (_, put) = cluster.ask("PUT", &path, lying.clone()).await;
    assert_eq!((&put["status"]["phase"], &put["spec"]["nodeName"]), (&json!("Pending"), &json!("n")));
    lying["spec"]["nodeName"] = "m".into();
    let (_, put) = cluster.ask("PUT", &format!("{path}/status"), lying).await;
    assert_eq!((&put["status"]["phase"], &put["spec"]["nodeName"]), (&json!("Running"), &json!("n")));
}

#[tokio::test]
async fn what_would_be_ignored_is_refused() {
    let mut cluster = Cluster::start();
    cluster.ask("POST", PODS, pod("a")).await;
    let path = format!("{PODS}/a");
    for (method, path) in [("POST", PODS), ("PUT", &*path), ("PATCH", &*path), ("DELETE", &*path)] {
        let (code, why) = cluster.ask(method, &format!("{path}?dryRun=All"), pod("a")).await;
        assert_eq!((code, &why["message"]), (400, &json!("dryRun is not supported")), "{method}");
    }
    assert_eq!(cluster.ask("DELETE", &path, json!({ "dryRun": ["All"] })).await.0, 400);
    let (code, why) = cluster.send("PATCH", &path, "application/apply-patch+yaml", &pod("a")).await;
    assert_eq!(code, 415, "{why}");
    assert!(why["message"].as_str().unwrap().contains("server-side apply is not supported"), "{why}");
    let mut old = pod("b");
    old["metadata"]["resourceVersion"] = "1".into();
    assert_eq!(cluster.ask("POST", PODS, old).await.0, 400);
    for name in ["B", "a/b", "-a", &"a".repeat(254)] {
        assert_eq!(cluster.ask("POST", PODS, pod(name)).await.0, 422, "{name}");
    }
    assert_eq!(cluster.ask("GET", &path, Value::Null).await.0, 200);
}

#[tokio::test]
async fn a_token_review_says_who_a_token_is_and_does_not_repeat_it() {
    const REVIEWS: &str = "/apis/authentication.k8s.io/v1/tokenreviews";
    let mut cluster = Cluster::start();
    let review = |token: &str, audiences: &[&str]| {
        json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
            "spec": { "token": token, "audiences": audiences } })
    };
    let (code, known) = cluster.ask("POST", REVIEWS, review("jane", &[])).await;
    let jane = json!({ "username": "jane", "uid": "2", "groups": ["ops", "system:authenticated"], "extra": {} });
    assert_eq!((code, &known["status"]), (201, &json!({ "authenticated": true, "user": jane })));
    assert!(!known["spec"].to_string().contains("jane"), "{known}");
    let ours = "https://kubernetes.default.svc.cluster.local";
    let (_, fitting) = cluster.ask("POST", REVIEWS, review("jane", &["other", ours])).await;
    assert_eq!(fitting["status"]["audiences"], json!([ours]));
    for (token, audiences) in [("nobody", &[][..]), ("jane", &["other"])] {
        let (code, answer) = cluster.ask("POST", REVIEWS, review(token, audiences)).await;
        assert_eq!((code, &answer["status"]), (201, &json!({ "authenticated": false })), "{token}");
    }
    assert_eq!(cluster.ask("POST", REVIEWS, review("", &[])).await.0, 400);
    // As a Go client would ask in protobuf.
    let protobuf =
        b"k8s\0\x0a\x28\x0a\x18authentication.k8s.io/v1\x12\x0bTokenReview\x12\x0a\x0a\0\x12\x06\x0a\x04jane";
    let mut protobuf = protobuf.to_vec();
    // The length of the type.
    protobuf[5] = (protobuf.len() - 6 - 12) as u8;
    let request = Request::post(REVIEWS).header("authorization", "Bearer admin");
    let request = request.header("content-type", "application/vnd.kubernetes.protobuf").body(protobuf.into()).unwrap();
    let (code, answer) = json_of(cluster.answer(request).await).await;
    assert_eq!((code, &answer["status"]["user"]["username"]), (201, &json!("jane")), "{answer}");
    // Not for everybody.
    for token in ["jane", "kubelet"] {
        let request = Request::post(REVIEWS).header("authorization", format!("Bearer {token}"));
        let request = request.body(review("admin", &[]).to_string().into()).unwrap();
        assert_eq!(cluster.answer(request).await.status(), 403, "{token}");
    }
}

#[tokio::test]
async fn one_acts_as_another_only_with_a_right_to_each_name() {
    let mut cluster = Cluster::start();
    let jane = ("authorization", "Bearer jane");
    let joe = ("impersonate-user", "joe");
    let all = [jane, joe, ("impersonate-group", "dev"), ("impersonate-uid", "7"), ("impersonate-extra-Scopes", "view")];
    let (code, answer) = cluster.as_somebody(&all).await;
    let user = json!({ "username": "joe", "uid": "7", "groups": ["dev", "system:authenticated"], "extra": { "scopes": ["view"] } });
    assert_eq!((code, &answer["status"]["userInfo"]), (201, &user), "{answer}");
    for (header, why) in [
        (
            ("impersonate-user", "admin"),
            r#"users "admin" is forbidden: User "jane" cannot impersonate resource "users""#,
        ),
        (("impersonate-group", "system:masters"), r#"cannot impersonate resource "groups""#),
        (("impersonate-extra-other", "x"), r#"cannot impersonate resource "userextras/other""#),
    ] {
        let headers = if header.0 == "impersonate-user" { vec![jane, header] } else { vec![jane, joe, header] };
        let (code, answer) = cluster.as_somebody(&headers).await;
        assert_eq!(code, 403, "{answer}");
        assert!(answer["message"].as_str().unwrap().contains(why), "{answer}");
    }
    for without_user in [("impersonate-group", "dev"), ("impersonate-uid", "7"), ("impersonate-something", "x")] {
        assert_eq!(cluster.as_somebody(&[jane, without_user]).await.0, 400, "{without_user:?}");
    }
    let account = ("impersonate-user", "system:serviceaccount:ci:runner");
    let (_, answer) = cluster.as_somebody(&[jane, account]).await;
    let groups = ["system:serviceaccounts", "system:serviceaccounts:ci", "system:authenticated"];
    assert_eq!(answer["status"]["userInfo"]["groups"], json!(groups));
    // It is not jane who lists then, and joe may not.
    let request = Request::get(PODS).header("authorization", "Bearer admin").header("impersonate-user", "joe");
    let (code, answer) = json_of(cluster.answer(request.body(Body::empty()).unwrap()).await).await;
    assert_eq!(code, 403);
    assert!(answer["message"].as_str().unwrap().contains(r#"User "joe" cannot list"#), "{answer}");
}

/// `selfsubjectreviews` over TLS, with this certificate.
async fn whoami(server: &str, ca: &Path, own: &CertAndKey, headers: &[(&str, &str)]) -> Outcome<(u16, Value)> {
    let connect = TlsConnect::new(Arc::new(tls::client_config(ca, own).map_err(|error| error.to_string())?));
    let review = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview" });
    let request = Request::post(format!("{server}/apis/authentication.k8s.io/v1/selfsubjectreviews"));
    let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    let request =
        request.method(Method::POST).body(Full::from(review.to_string())).map_err(|error| error.to_string())?;
    let answer = pool(connect).request(request).await.map_err(|error| format!("{error:?}"))?;
    let code = answer.status().as_u16();
    let body = answer.into_body().collect().await.map_err(|error| error.to_string())?.to_bytes();
    Ok((code, serde_json::from_slice(&body).map_err(|error| error.to_string())?))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_front_proxys_word_counts_and_nobody_elses() -> Outcome {
    let scratch = Scratch::new("front-proxy");
    let proxies = scratch.dir("proxies");
    pki::prepare(&proxies, [127, 0, 0, 1].into()).map_err(|error| error.to_string())?;
    let proxy_ca = pki::files::ca(&proxies);
    let flags = [
        format!("--requestheader-client-ca-file={}", proxy_ca.display()),
        "--requestheader-allowed-names=front-proxy-client,kube-apiserver-kubelet-client".to_owned(),
    ];
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let lab = Lab::start_with(Topology::AllInOne, Settings { apiserver: &flags, ..Settings::default() }).await?;
    let server = url(&lab.apiserver)?;
    let ca = pki::files::ca(&lab.data);
    let says = [
        ("x-remote-user", "joe"),
        ("x-remote-group", "dev"),
        ("x-remote-group", "ops"),
        ("x-remote-uid", "7"),
        ("x-remote-extra-example.org%2fscopes", "view"),
    ];
    let (code, answer) = whoami(&server, &ca, &pki::files::kubelet_client(&proxies), &says).await?;
    let user = json!({ "username": "joe", "uid": "7", "groups": ["dev", "ops", "system:authenticated"],
        "extra": { "example.org/scopes": ["view"] } });
    ensure!((code, &answer["status"]["userInfo"]) == (201, &user), "{answer}");
    // It is nobody by itself: its certificate is no client's, though it is made out to a `system:masters`.
    let (code, answer) = whoami(&server, &ca, &pki::files::kubelet_client(&proxies), &[]).await?;
    ensure!(code == 401, "{answer}");
    // The right authority, and a name that is not allowed.
    let (code, answer) = whoami(&server, &ca, &pki::files::node_client(&proxies), &says).await?;
    ensure!(code == 401, "{answer}");
    // A client's certificate, even with an allowed name, is who it is made out to.
    let (code, answer) = whoami(&server, &ca, &pki::files::kubelet_client(&lab.data), &says).await?;
    let name = &answer["status"]["userInfo"]["username"];
    ensure!(code == 201 && name == "kube-apiserver-kubelet-client", "{answer}");
    lab.stop().await
}

async fn apply_watch_and_delete(lab: &Lab, client: &Client) -> Outcome {
    let run = Run { lab, client };
    let file = lab.scratch.path().join("web.yaml");
    let web = |label: &str| {
        let mut web = pod("web");
        web["metadata"]["labels"]["app"] = label.into();
        fs::write(&file, web.to_string()).map_err(|error| error.to_string())
    };
    web("one")?;
    let apply = ["apply", "-f", file.to_str().unwrap()];
    let says = async |args: &[&str], wanted: &str| {
        let output = run.kubectl(args).await?.exits(0)?;
        if output.stdout.trim().starts_with(wanted) { Ok(()) } else { Err(format!("{args:?}: {output:?}")) }
    };
    says(&apply, "pod/web created").await?;
    says(&apply, "pod/web unchanged").await?;
    let mut watch = run.command(&["get", "pods", "-w", "-o", "name", "--field-selector", "metadata.name=web"]);
    let mut watch = watch.stdout(Stdio::piped()).spawn().map_err(|error| error.to_string())?;
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    let mut line = async || match timeout(LIMIT, lines.next_line()).await {
        Ok(Ok(Some(line))) => Ok(line),
        other => Err(format!("a line of the watch was expected: {other:?}")),
    };
    ensure!(line().await? == "pod/web", "the list comes first");
    web("two")?;
    says(&apply, "pod/web configured").await?;
    ensure!(line().await? == "pod/web", "then the change");
    says(&["get", "pod", "web", "-o", "jsonpath={.metadata.labels.app}"], "two").await?;
    says(&["delete", "pod", "web"], "pod \"web\" deleted").await?;
    ensure!(line().await? == "pod/web", "and its end");
    watch.kill().await.map_err(|error| error.to_string())?;
    run.kubectl(&["get", "pod", "web"]).await?.exits(1)?.says("not found")?;
    says(&["auth", "whoami", "-o", "jsonpath={.status.userInfo.username}"], "admin").await?;
    run.kubectl(&["apply", "--server-side", "-f", file.to_str().unwrap()])
        .await?
        .exits(1)?
        .says("not supported here")?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_applies_watches_and_deletes() -> Outcome {
    let lab = Lab::start(Topology::AllInOne).await?;
    for version in count(&["1.28", "1.37"][..], &["1.28", "1.33", "1.37"]) {
        let Some(client) = client(version, *version != "1.28") else { continue };
        apply_watch_and_delete(&lab, &client)
            .await
            .map_err(|why| format!("kubectl {version}: {why}\n{}", lab.logs()))?;
    }
    lab.stop().await
}
