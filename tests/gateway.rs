//! The example API server as a gateway in front of a cluster, which is another one with its kubelet: what kubectl does
//! besides streams, who callers are, and what happens when the cluster's API, or a gateway, goes away. The corpus of
//! streams is in `kubectl.rs` and `port_forward.rs`.

#[path = "../examples/support/mod.rs"]
mod examples;
#[allow(clippy::duplicate_mod, reason = "each test binary uses its part")]
mod support;

use std::{
    convert::Infallible,
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{Router, body::Body, extract::RawQuery, routing::get as get_route};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use examples::{
    pki::{self, CertAndKey},
    server::Server,
    tls,
};
use futures_util::{StreamExt, stream};
use http::{Request, Response};
use serde_json::{Value, json};
use support::{
    Outcome, Scratch,
    balancer::Balancer,
    count,
    forms::Form,
    http::{Login, ask, url},
    kubectl::{Client, Run, client},
    lab::{Lab, Settings, Topology, example, sessions_in},
    process::Written,
    shell::Shell,
};
use tokio::{sync::Notify, time::timeout};
use tokio_util::sync::CancellationToken;
use tower_kube_streaming::upgrade::Sessions;

/// For what takes a moment.
const PATIENCE: Duration = Duration::from_secs(20);

const ADMIN: Login<'_> = Login::Token("the-token-of-admin");
const VIEWER: Login<'_> = Login::Token("the-token-of-viewer");

/// A stream that ends by itself.
const EXEC: &str = "/api/v1/namespaces/default/pods/demo/exec?command=true&container=shell&stdout=true";

async fn lab(settings: Settings<'_>) -> Outcome<Lab> {
    Lab::start_with(Topology::Gateway, settings).await
}

fn request(lab: &Lab, method: &str, path: &str, headers: &[(&str, &str)]) -> Outcome<Request<()>> {
    let uri = format!("{}{path}", url(&lab.apiserver)?);
    let request = if path == EXEC { Form::V5.request(method, &uri) } else { Form::Plain.request(method, &uri) };
    headers.iter().try_fold(request?, |mut request, (name, value)| {
        let value = value.parse().map_err(|_| format!("{name} has no value"))?;
        let name: http::HeaderName = name.parse().map_err(|_| format!("{name} is no header"))?;
        request.headers_mut().append(name, value);
        Ok(request)
    })
}

/// A GET through the gateway; of a stream, only its beginning.
async fn get(lab: &Lab, login: Login<'_>, path: &str, headers: &[(&str, &str)]) -> Outcome<Response<String>> {
    ask(&lab.ca(), login, request(lab, "GET", path, headers)?).await
}

/// The answer has that code, and these words in it.
fn says(answer: &Response<String>, code: u16, words: &str) -> Outcome {
    let (got, body) = (answer.status(), answer.body());
    ensure!(got == code && body.contains(words), "{code} with {words:?} was expected, and is {got}: {body}");
    Ok(())
}

/// The oldest and the newest kubectl that matter, all in `full`.
fn clients() -> Vec<Client> {
    let versions: &[_] = count(&["1.28", "1.37"], &["1.28", "1.33", "1.37"]);
    versions.iter().filter_map(|version| client(version, *version != "1.28")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_gets_watches_applies_and_deletes_through_a_gateway() -> Outcome {
    let lab = lab(Settings::default()).await?;
    for client in clients() {
        let done = objects(&Run { lab: &lab, client: &client }).await;
        done.map_err(|why| format!("{client}: {why}\n{}", lab.logs()))?;
    }
    lab.stop().await
}

async fn objects(run: &Run<'_>) -> Outcome {
    let said = async |args: &[&str], wanted: &str| {
        let output = run.kubectl(args).await?.exits(0)?;
        ensure!(output.stdout.trim() == wanted, "{args:?}: {wanted:?} was expected: {output:?}");
        Ok(())
    };
    said(&["get", "nodes", "-o", "name"], "node/demo-node").await?;
    said(&["get", "pods", "-o", "name"], "pod/demo\npod/several").await?;
    let table = run.kubectl(&["get", "pods"]).await?.exits(0)?.stdout;
    ensure!(table.starts_with("NAME") && table.contains("Running"), "no table: {table}");
    let file = run.lab.scratch.path().join("web.yaml");
    let web = |version: &str| {
        let container = json!({ "name": "web", "image": "web" });
        let metadata = json!({ "name": "web", "namespace": "default", "labels": { "version": version } });
        let pod =
            json!({ "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": { "containers": [container] } });
        fs::write(&file, pod.to_string()).map_err(|error| error.to_string())
    };
    let mut watch = run.command(&["get", "pods", "-w", "-o", "name"]);
    let mut watch = watch.stdout(Stdio::piped()).spawn().map_err(|error| error.to_string())?;
    let seen = Written::collect(watch.stdout.take().expect("stdout is piped"));
    let seen_web = async |times: usize| {
        seen.until(PATIENCE, "the watch", |text| text.lines().filter(|line| *line == "pod/web").count() >= times).await
    };
    seen.until(PATIENCE, "the list", |text| text.contains("pod/several\n")).await?;
    let apply = ["apply", "-f", text(&file)];
    web("one")?;
    said(&apply, "pod/web created").await?;
    seen_web(1).await?;
    web("two")?;
    said(&apply, "pod/web configured").await?;
    seen_web(2).await?;
    said(&["get", "pod", "web", "-o", "jsonpath={.metadata.labels.version}"], "two").await?;
    let deleted = run.kubectl(&["delete", "pod", "web"]).await?.exits(0)?;
    ensure!(deleted.stdout.starts_with("pod \"web\" deleted"), "{deleted:?}");
    seen_web(3).await?;
    watch.kill().await.map_err(|error| error.to_string())?;
    run.kubectl(&["get", "pod", "web"])
        .await?
        .exits(1)?
        .says("Error from server (NotFound): pods \"web\" not found")?;
    said(&["auth", "can-i", "create", "pods/exec"], "yes").await?;
    let cannot = run.kubectl(&["--token", "the-token-of-viewer", "auth", "can-i", "create", "pods/exec"]).await?;
    ensure!(cannot.exits(1)?.stdout.trim() == "no", "the viewer could create");
    let refused = run.kubectl(&["--token", "nobody-has-this-token", "get", "pods"]).await?;
    refused.exits(1)?.says("You must be logged in to the server")?;
    Ok(())
}

/// A kubelet that has one log, `one`, and `two` when it is let go on; to who follows it, each as it comes.
async fn talker(lab: &Lab, go_on: Arc<Notify>, stop: CancellationToken) -> Outcome<u16> {
    let log = move |RawQuery(query): RawQuery| async move {
        if !query.unwrap_or_default().contains("follow=true") {
            return Body::from("one\ntwo\n");
        }
        let lines = stream::once(async { "one\n" }).chain(stream::once(async move {
            go_on.notified().await;
            "two\n"
        }));
        Body::from_stream(lines.map(Ok::<_, Infallible>))
    };
    let router = Router::new().route("/containerLogs/default/talker/main", get_route(log));
    let own = pki::files::kubelet(&lab.data);
    let tls = tls::server_config(&own, &lab.ca()).map_err(|error| error.to_string())?;
    let server = Server::bind(([127, 0, 0, 1], 0).into(), stop).await.map_err(|error| error.to_string())?;
    let port = server.address().map_err(|error| error.to_string())?.port();
    tokio::spawn(server.with_tls(tls).serve(router, Sessions::new()));
    Ok(port)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_reads_and_follows_a_log_through_a_gateway() -> Outcome {
    let lab = lab(Settings::default()).await?;
    let (go_on, stop) = (Arc::new(Notify::new()), CancellationToken::new());
    let port = talker(&lab, go_on.clone(), stop.clone()).await?;
    let node = json!({
        "apiVersion": "v1", "kind": "Node", "metadata": { "name": "talkers-node" },
        "status": {
            "addresses": [{ "type": "InternalIP", "address": "127.0.0.1" }],
            "daemonEndpoints": { "kubeletEndpoint": { "Port": port } },
        },
    });
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "talker", "namespace": "default" },
        "spec": { "nodeName": "talkers-node", "containers": [{ "name": "main", "image": "talker" }] },
    });
    let file = lab.scratch.path().join("object.json");
    for (number, client) in clients().iter().enumerate() {
        let run = Run { lab: &lab, client };
        if number == 0 {
            for (path, object) in [("/api/v1/nodes", &node), ("/api/v1/namespaces/default/pods", &pod)] {
                fs::write(&file, object.to_string()).map_err(|error| error.to_string())?;
                run.kubectl(&["create", "--raw", path, "-f", text(&file)]).await?.exits(0)?;
            }
        }
        let whole = run.kubectl(&["logs", "talker"]).await?.exits(0)?;
        ensure!(whole.stdout == "one\ntwo\n", "{client}: {whole:?}");
        let mut follow = run.command(&["logs", "-f", "talker"]);
        let mut follow = follow.stdout(Stdio::piped()).spawn().map_err(|error| error.to_string())?;
        let said = Written::collect(follow.stdout.take().expect("stdout is piped"));
        said.until(PATIENCE, "the first line", |text| text == "one\n").await?;
        go_on.notify_one();
        said.until(PATIENCE, "the second line", |text| text == "one\ntwo\n").await?;
        let status = timeout(PATIENCE, follow.wait()).await.map_err(|_| "kubectl still follows")?;
        ensure!(status.as_ref().is_ok_and(std::process::ExitStatus::success), "{client}: {status:?}");
    }
    stop.cancel();
    lab.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_live_on_while_the_clusters_api_is_away_and_all_is_well_soon_after_its_return() -> Outcome {
    let Some(client) = client("1.37", true) else { return Ok(()) };
    let mut lab = lab(Settings::default()).await?;
    let mut shell = shell(&client, &lab, &lab.kubeconfig)?;
    shell.answers(0).await?;

    lab.behind().apiserver.kill().await?;
    shell.answers(1).await?;
    // What is known may be used until the end of the watch has been noticed.
    let killed = Instant::now();
    let refused = loop {
        let answer = get(&lab, ADMIN, EXEC, &[]).await?;
        if answer.status() != 101 {
            break answer;
        }
        ensure!(killed.elapsed() < Duration::from_secs(5), "new streams are opened without a cluster");
    };
    let listed = get(&lab, ADMIN, "/api/v1/pods", &[]).await?;
    // Who it is cannot be known either.
    let unknown = get(&lab, Login::Token("somebody-elses-token"), EXEC, &[]).await?;
    for answer in [&refused, &listed, &unknown] {
        says(answer, 503, "\"reason\":\"ServiceUnavailable\"")?;
        ensure!(answer.headers().contains_key("retry-after"), "no Retry-After: {answer:?}");
    }
    shell.answers(2).await?;

    lab.restart_behind().await?;
    let back = Instant::now();
    loop {
        let (listed, opened) = (get(&lab, ADMIN, "/api/v1/pods", &[]).await?, get(&lab, ADMIN, EXEC, &[]).await?);
        if listed.status() == 200 && opened.status() == 101 {
            break;
        }
        ensure!(back.elapsed() < Duration::from_secs(5), "after its return: {listed:?}, {opened:?}");
        tokio::task::yield_now().await;
    }
    let run = Run { lab: &lab, client: &client };
    let echo = run.kubectl(&["exec", "demo", "-c", "shell", "--", "echo", "well"]).await?.exits(0)?;
    ensure!(echo.stdout == "well\n", "{echo:?}");
    shell.answers(3).await?;
    shell.exits().await?;
    lab.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_gateways_one_is_killed_and_only_its_sessions_end_with_a_reason() -> Outcome {
    let Some(client) = client("1.37", true) else { return Ok(()) };
    let mut lab = lab(Settings::default()).await?;
    let other = lab.another_apiserver(&[]).await?;
    let balancer = Balancer::start(&[url(&lab.apiserver)?, url(&other)?]).await?;
    let kubeconfig = lab.scratch.path().join("balanced.kubeconfig");
    let own = fs::read_to_string(&lab.kubeconfig).map_err(|error| error.to_string())?;
    fs::write(&kubeconfig, own.replace(&url(&lab.apiserver)?, &balancer.url())).map_err(|error| error.to_string())?;
    let mut shells = Vec::new();
    for number in 0..4 {
        // However many connections kubectl makes, both have some of the shells then.
        for _ in 0..number {
            balancer.skip().await?;
        }
        let mut shell = shell(&client, &lab, &kubeconfig)?;
        shell.answers(number).await?;
        shells.push(shell);
    }
    lab.apiserver.kill().await?;
    let killed = Instant::now();
    let opened = ask(&lab.ca(), ADMIN, Form::V5.request("GET", &format!("{}{EXEC}", balancer.url()))?).await?;
    ensure!(opened.status() == 101, "{opened:?}");
    ensure!(killed.elapsed() < Duration::from_secs(1), "it took {:?}", killed.elapsed());
    let mut living = Vec::new();
    for mut shell in shells {
        if shell.outlives().await? {
            living.push(shell);
        }
    }
    ensure!((1..4).contains(&living.len()), "{} of 4 shells live on", living.len());
    for shell in living {
        shell.exits().await?;
    }
    let status = other.stop().await?;
    ensure!(status.success(), "the other gateway ended with {status} on SIGTERM");
    lab.apiserver = lab.another_apiserver(&[]).await?;
    lab.stop().await
}

/// jane may exec, by either name that a test gives her.
const JANE: &str = r#"
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: jane}
rules:
  - {apiGroups: [""], resources: [pods], verbs: [get, list]}
  - {apiGroups: [""], resources: [pods/exec], verbs: [get, create]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: jane}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: jane}
subjects: [{kind: User, name: jane}, {kind: User, name: "system:node:demo-node"}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: as-jane}
rules: [{apiGroups: [""], resources: [users], verbs: [impersonate], resourceNames: [jane]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: as-jane}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: as-jane}
subjects: [{kind: User, name: viewer}]
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_and_impersonation_are_the_clusters_to_judge() -> Outcome {
    let lab = lab(Settings { objects: JANE, ..Settings::default() }).await?;
    let nobody = Login::Token("nobody-has-this-token");
    let opened = |answer: Response<String>| says(&answer, 101, "");

    opened(get(&lab, ADMIN, EXEC, &[]).await?)?;
    says(&get(&lab, VIEWER, EXEC, &[]).await?, 403, "pods \\\"demo\\\" is forbidden")?;
    for login in [nobody, Login::Nobody] {
        says(&get(&lab, login, EXEC, &[]).await?, 401, "Unauthorized")?;
        says(&get(&lab, login, "/api/v1/pods", &[]).await?, 401, "Unauthorized")?;
    }
    // A browser's way to show a token.
    let token = URL_SAFE_NO_PAD.encode("the-token-of-admin");
    let protocol = format!("base64url.bearer.authorization.k8s.io.{token}");
    opened(get(&lab, Login::Nobody, EXEC, &[("sec-websocket-protocol", &protocol)]).await?)?;

    // Nobody says who they are in a front proxy's words.
    let spoofed = [("x-remote-user", "admin"), ("x-remote-group", "system:masters")];
    says(&get(&lab, VIEWER, "/api/v1/nodes", &spoofed).await?, 403, "User \\\"viewer\\\" cannot list")?;
    says(&get(&lab, VIEWER, EXEC, &spoofed).await?, 403, "")?;
    says(&get(&lab, Login::Nobody, "/api/v1/pods", &spoofed).await?, 401, "")?;
    says(&get(&lab, Login::Nobody, EXEC, &spoofed).await?, 401, "")?;

    // Who acts as another is asked about, and has the rights of the other and no more.
    let as_jane = [("impersonate-user", "jane")];
    opened(get(&lab, VIEWER, EXEC, &as_jane).await?)?;
    let jane = |log: &str| sessions_in(log).iter().any(|session| session.field("user") == Some("jane"));
    lab.apiserver.stderr.until(PATIENCE, "jane's session", jane).await?;
    says(&get(&lab, VIEWER, "/api/v1/nodes", &as_jane).await?, 403, "User \\\"jane\\\" cannot list")?;
    says(&get(&lab, ADMIN, EXEC, &[("impersonate-user", "viewer")]).await?, 403, "")?;
    says(&get(&lab, ADMIN, "/api/v1/nodes", &[("impersonate-user", "viewer")]).await?, 403, "User \\\"viewer\\\"")?;
    let as_admin = [("impersonate-user", "admin")];
    let in_masters = [("impersonate-user", "jane"), ("impersonate-group", "system:masters")];
    for path in [EXEC, "/api/v1/nodes"] {
        let cannot = |what: &str| format!("User \\\"viewer\\\" cannot impersonate resource \\\"{what}\\\"");
        says(&get(&lab, VIEWER, path, &as_admin).await?, 403, &cannot("users"))?;
        says(&get(&lab, VIEWER, path, &in_masters).await?, 403, &cannot("groups"))?;
    }
    says(&get(&lab, ADMIN, EXEC, &[("impersonate-group", "dev")]).await?, 400, "")?;
    says(&get(&lab, ADMIN, EXEC, &[("impersonate-user", "jane"), ("impersonate-shoe-size", "9")]).await?, 400, "")?;

    // Its own: who may read the figures, and whether it is ready.
    says(&get(&lab, ADMIN, "/metrics", &[]).await?, 200, "apiserver_websocket_streaming_requests_total")?;
    says(&get(&lab, VIEWER, "/metrics", &[]).await?, 403, "cannot get path")?;
    says(&get(&lab, Login::Nobody, "/metrics", &[]).await?, 401, "")?;
    says(&get(&lab, Login::Nobody, "/readyz", &[]).await?, 200, "ok")?;
    lab.stop().await
}

/// A CA with two client certificates: of `system:node:demo-node`, and of a member of `system:masters`.
fn authority(scratch: &Scratch, name: &str) -> Outcome<PathBuf> {
    let dir = scratch.dir(name);
    pki::prepare(&dir, [127, 0, 0, 1].into()).map_err(|error| error.to_string())?;
    Ok(dir)
}

fn read(own: &CertAndKey) -> Outcome<(Vec<u8>, Vec<u8>)> {
    let read = |file: &Path| fs::read(file).map_err(|error| format!("{}: {error}", file.display()));
    Ok((read(&own.cert)?, read(&own.key)?))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_is_vouched_for_or_refused_with_the_reason() -> Outcome {
    let scratch = Scratch::new("certificates");
    let (users, proxies) = (authority(&scratch, "users")?, authority(&scratch, "proxies")?);
    let proxy = pki::files::kubelet_client(&proxies);
    let users_ca = format!("--client-ca-file={}", pki::files::ca(&users).display());
    let cluster = [
        format!("--requestheader-client-ca-file={}", pki::files::ca(&proxies).display()),
        "--requestheader-allowed-names=kube-apiserver-kubelet-client".to_owned(),
    ];
    let cluster: Vec<&str> = cluster.iter().map(String::as_str).collect();
    let vouching = [
        users_ca.clone(),
        format!("--proxy-client-cert-file={}", proxy.cert.display()),
        format!("--proxy-client-key-file={}", proxy.key.display()),
    ];
    let vouching: Vec<&str> = vouching.iter().map(String::as_str).collect();
    let settings = Settings { objects: JANE, apiserver: &vouching, cluster: &cluster, ..Settings::default() };
    let mut lab = lab(settings).await?;

    let (cert, key) = read(&pki::files::node_client(&users))?;
    let node = Login::Certificate(&cert, &key);
    let (cert, key) = read(&pki::files::kubelet_client(&users))?;
    let master = Login::Certificate(&cert, &key);
    let user = "User \\\"system:node:demo-node\\\"";
    says(&get(&lab, node, "/api/v1/pods", &[]).await?, 200, "PodList")?;
    says(&get(&lab, master, "/apis", &[]).await?, 200, "APIGroupList")?;
    let spoofed = [("x-remote-user", "admin"), ("x-remote-group", "system:masters")];
    let secrets = "/api/v1/namespaces/default/secrets";
    says(&get(&lab, node, secrets, &spoofed).await?, 403, user)?;
    says(&get(&lab, node, EXEC, &spoofed).await?, 101, "")?;
    says(&get(&lab, node, EXEC, &[("impersonate-user", "admin")]).await?, 403, "cannot impersonate")?;
    says(&get(&lab, node, "/api/v1/pods", &[("impersonate-user", "admin")]).await?, 403, "cannot impersonate")?;
    says(&get(&lab, master, secrets, &[("impersonate-user", "viewer")]).await?, 403, "User \\\"viewer\\\"")?;
    // A token is still a token.
    says(&get(&lab, ADMIN, "/api/v1/pods", &[]).await?, 200, "PodList")?;
    let named =
        |log: &str| sessions_in(log).iter().any(|session| session.field("user") == Some("system:node:demo-node"));
    lab.apiserver.stderr.until(PATIENCE, "the session of who showed a certificate", named).await?;

    // Without a front proxy's certificate it could only pass the request on as nobody's.
    lab.restart_apiserver(&[&users_ca]).await?;
    says(&get(&lab, node, "/api/v1/pods", &[]).await?, 401, "--proxy-client-cert-file")?;
    says(&get(&lab, node, EXEC, &[]).await?, 101, "")?;
    says(&get(&lab, ADMIN, "/api/v1/pods", &[]).await?, 200, "PodList")?;
    lab.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_makes_its_own_serving_certificate_and_no_key_to_any_door() -> Outcome {
    let Some(client) = client("1.37", true) else { return Ok(()) };
    let mut lab = lab(Settings::default()).await?;
    let given = ["--tls-cert-file", "--tls-private-key-file"];
    let mut always = lab.always.clone();
    while let Some(at) = always.iter().position(|flag| given.iter().any(|given| flag == given)) {
        always.drain(at..at + 2);
    }
    lab.always = always;
    lab.restart_apiserver(&[]).await?;
    let data = lab.scratch.path().join("gateway");
    let mut made: Vec<_> = fs::read_dir(&data)
        .map_err(|error| error.to_string())?
        .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
        .collect();
    made.sort();
    ensure!(made == ["apiserver.crt", "apiserver.key", "ca.crt", "ca.key", "kubeconfig"], "{made:?}");
    let kubeconfig = fs::read_to_string(data.join("kubeconfig")).map_err(|error| error.to_string())?;
    let kubeconfig: Value = serde_json::from_str(&kubeconfig).map_err(|error| error.to_string())?;
    ensure!(kubeconfig["users"].is_null(), "{kubeconfig}");
    let exec = ["--token", "the-token-of-admin", "exec", "demo", "-c", "shell", "--", "echo", "hello"];
    let output = client.command(&data.join("kubeconfig"), &lab.scratch, &exec).output().await;
    let output = output.map_err(|error| error.to_string())?;
    ensure!(output.status.success() && output.stdout == b"hello\n", "{output:?}");
    lab.stop().await
}

#[tokio::test]
async fn flags_that_contradict_a_gateway_are_refused() -> Outcome {
    let scratch = Scratch::new("gateway-flags");
    let nowhere = scratch.path().join("nowhere");
    let kubelets = ["--kubelet-certificate-authority", "--kubelet-client-certificate", "--kubelet-client-key"];
    let kubelets: Vec<&str> = kubelets.into_iter().flat_map(|flag| [flag, "x"]).collect();
    let whole = [&["--kubeconfig", text(&nowhere)], &kubelets[..]].concat();
    for (flags, words) in [
        (vec!["--kubeconfig", "x"], "--kubelet-certificate-authority"),
        ([&whole[..], &["--manifest", "x"]].concat(), "cannot be used with"),
        ([&whole[..], &["--insecure"]].concat(), "cannot be used with"),
        ([&whole[..], &["--token-auth-file", "x"]].concat(), "cannot be used with"),
        ([&whole[..], &["--requestheader-client-ca-file", "x"]].concat(), "cannot be used with"),
        ([&whole[..], &["--proxy-client-cert-file", "x"]].concat(), "--proxy-client-key-file"),
        (
            vec!["--proxy-client-cert-file", "x", "--proxy-client-key-file", "x", "--client-ca-file", "x"],
            "--kubeconfig",
        ),
        (whole.clone(), "apiserver: x: "),
    ] {
        let data = scratch.path().join("data");
        let output = example("apiserver").args(&flags).arg("--data-dir").arg(&data).output().await;
        let output = output.map_err(|error| error.to_string())?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(2) && said.contains(words), "{flags:?}: {:?}: {said}", output.status);
    }
    Ok(())
}

fn shell(client: &Client, lab: &Lab, kubeconfig: &Path) -> Outcome<Shell> {
    let cat = ["exec", "-i", "demo", "-c", "shell", "--", "cat"];
    Shell::start(&mut client.command(kubeconfig, &lab.scratch, &cat))
}

fn text(path: &Path) -> &str {
    path.to_str().expect("paths are text")
}
