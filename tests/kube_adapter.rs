//! `adapters::kube` against the example API server: a real one with a real kube-rs client, over TLS.

mod support;

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Request, StatusCode, header::RETRY_AFTER};
use http_body_util::Full;
use k8s_openapi::api::{authorization::v1::ResourceAttributes, core::v1::Pod};
use kube::{
    Api, Client, Config,
    api::{DeleteParams, PostParams},
    client::Body,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::json;
use support::{
    Outcome, Scratch,
    lab::{example, port_in},
    process::Process,
};
use tokio::{task::AbortHandle, time::timeout};
use tower::service_fn;
use tower_kube_streaming::{
    adapters::kube::{AccessReviews, Cluster, TokenReviews},
    layers::{Hop, Resolve, synthetic_authz::Verdict},
    upgrade::{Caller, Dialect, Refusal, StreamOptions, Subresource, Target},
};

/// What everything must be over by.
const LIMIT: Duration = Duration::from_secs(20);

/// A node, a pod with two containers on it, and a role that lets `viewer` look and `runner` run.
const OBJECTS: &str = r#"
apiVersion: v1
kind: Node
metadata: {name: n1}
status:
  addresses: [{type: InternalIP, address: 10.0.0.7}]
  daemonEndpoints: {kubeletEndpoint: {Port: 10255}}
  declaredFeatures: [ExtendWebSocketsToKubelet]
---
apiVersion: v1
kind: Pod
metadata: {name: demo, namespace: default}
spec:
  nodeName: n1
  containers: [{name: shell, image: i}, {name: sidecar, image: i}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: runner}
rules: [{apiGroups: [""], resources: [pods/exec], verbs: [get, create]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: runner}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: runner}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: Group, name: runners}]
"#;

/// An API server that is started again at its port.
struct ApiServer {
    process: Process,
    port: u16,
    scratch: Scratch,
}

impl ApiServer {
    async fn start() -> Outcome<Self> {
        let scratch = Scratch::new("kube_adapter");
        std::fs::write(scratch.path().join("objects.yaml"), OBJECTS).map_err(|error| error.to_string())?;
        let process = run(&scratch, 0).await?;
        let said = process.stdout.text();
        let port = port_in(&said).ok_or_else(|| format!("no port:\n{said}"))?;
        Ok(Self { process, port, scratch })
    }

    async fn start_again(&mut self) -> Outcome {
        self.process = run(&self.scratch, self.port).await?;
        Ok(())
    }

    /// A client as its administrator.
    async fn client(&self) -> Outcome<Client> {
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let file = Kubeconfig::read_from(self.scratch.path().join("data/kubeconfig")).map_err(|error| text(&error))?;
        let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await;
        Client::try_from(config.map_err(|error| text(&error))?).map_err(|error| text(&error))
    }

    fn token(&self, of: &str) -> Outcome<String> {
        let tokens = std::fs::read_to_string(self.scratch.path().join("data/tokens.csv"));
        let tokens = tokens.map_err(|error| error.to_string())?;
        let line = tokens.lines().find(|line| line.split(',').nth(1) == Some(of)).ok_or("no such token")?;
        Ok(line.split(',').next().unwrap_or_default().to_owned())
    }
}

async fn run(scratch: &Scratch, port: u16) -> Outcome<Process> {
    let mut command = example("apiserver");
    command.arg("--listen").arg(format!("127.0.0.1:{port}"));
    command.arg("--data-dir").arg(scratch.path().join("data"));
    command.arg("--manifest").arg(scratch.path().join("objects.yaml"));
    let process = Process::start("apiserver", &mut command)?;
    process.ready().await?;
    Ok(process)
}

/// A cluster that is watched, and what it asked for. Stops with the handle.
struct Watched {
    cluster: Cluster,
    asked: Arc<Mutex<Vec<String>>>,
    watches: AbortHandle,
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.watches.abort();
    }
}

impl Watched {
    fn by(client: Client) -> Self {
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let log = asked.clone();
        let noting = service_fn(move |request: Request<Body>| {
            log.lock().expect("nobody panics with it").push(request.uri().to_string());
            let client = client.clone();
            async move { client.send(request).await }
        });
        let (cluster, watches) = Cluster::watch(Client::new(noting, "default"));
        Self { cluster, asked, watches: tokio::spawn(watches).abort_handle() }
    }

    async fn exec(&self, pod: &str, container: Option<&str>) -> Result<Hop, Refusal> {
        let target = Target {
            subresource: Subresource::Exec,
            namespace: "default".into(),
            pod: pod.into(),
            uid: None,
            container: container.map(Into::into),
            options: StreamOptions { stdout: true, command: vec!["date".into()], ..StreamOptions::default() },
            dialect: Dialect::ApiServer,
        };
        self.cluster.resolve(Arc::new(target)).await
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.asked.lock().expect("nobody panics with it"))
    }

    /// Waits until an exec ends so, and says after which time. What is waited for is in another process, so it is asked
    /// for again and again.
    async fn until(
        &self,
        what: &str,
        pod: &str,
        holds: impl Fn(Result<Hop, Refusal>, bool) -> bool,
    ) -> Outcome<Duration> {
        let started = Instant::now();
        let mut pause = tokio::time::interval(Duration::from_millis(20));
        loop {
            pause.tick().await;
            self.asked();
            let answer = self.exec(pod, Some("shell")).await;
            let by_watch = self.asked().is_empty();
            let said = format!("{answer:?}, by the watch: {by_watch}");
            if holds(answer, by_watch) {
                return Ok(started.elapsed());
            }
            ensure!(started.elapsed() < LIMIT, "not {what} in {LIMIT:?}: {said}");
        }
    }

    async fn until_seen(&self, pod: &str) -> Outcome<Duration> {
        self.until("seen by the watch", pod, |answer, by_watch| answer.is_ok() && by_watch).await
    }

    async fn until_refused(&self, pod: &str, code: StatusCode) -> Outcome<Duration> {
        self.until("refused", pod, |answer, _| answer.is_err_and(|refusal| refusal.code() == code)).await
    }
}

fn pod(name: &str) -> Pod {
    let pod = json!({
        "metadata": { "name": name },
        "spec": { "nodeName": "n1", "containers": [{ "name": "shell", "image": "i" }] },
    });
    serde_json::from_value(pod).expect("a Pod")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_and_nodes_are_found_by_watch_through_a_restart_of_the_api() -> Outcome {
    let mut api = ApiServer::start().await?;
    let client = api.client().await?;
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    let watched = Watched::by(client);
    timeout(LIMIT, watched.cluster.ready()).await.map_err(|_| "not ready")?;
    watched.until_seen("demo").await?;
    let hop = watched.exec("demo", Some("sidecar")).await.map_err(|refusal| refusal.to_string())?;
    ensure!(hop.uri == "https://10.0.0.7:10255/exec/default/demo/sidecar?command=date&output=1", "{}", hop.uri);
    ensure!(hop.speaks_websocket, "the node declares it");
    let refusal = watched.exec("demo", None).await.expect_err("there are two containers");
    let words = "a container name must be specified for pod demo, choose one of: [shell sidecar]";
    ensure!(refusal.message() == words, "{refusal}");

    // A pod is found as soon as it is there, and seen by the watch a moment later.
    let post = PostParams::default();
    pods.create(&post, &pod("new")).await.map_err(|error| error.to_string())?;
    ensure!(watched.exec("new", None).await.is_ok(), "found at once");
    watched.until_seen("new").await?;
    pods.delete("new", &DeleteParams::default().grace_period(0)).await.map_err(|error| error.to_string())?;
    watched.until_refused("new", StatusCode::NOT_FOUND).await?;

    pods.create(&post, &pod("lost")).await.map_err(|error| error.to_string())?;
    watched.until_seen("lost").await?;
    api.process.kill().await?;
    watched.until_refused("demo", StatusCode::SERVICE_UNAVAILABLE).await?;
    let refusal = watched.exec("demo", Some("shell")).await.expect_err("nobody can tell");
    let response = refusal.into_response::<Full<Bytes>>(Dialect::ApiServer);
    ensure!(response.headers().get(RETRY_AFTER).is_some_and(|after| after == "1"), "{response:?}");

    api.start_again().await?;
    let limit = Duration::from_secs(5);
    let after = watched.until("found", "demo", |answer, _| answer.is_ok()).await?;
    ensure!(after < limit, "found only {after:?} after the return");
    let after = watched.until_seen("demo").await?;
    ensure!(after < limit, "seen only {after:?} after the return");
    // What it lost with the restart is gone here as well.
    watched.until_refused("lost", StatusCode::NOT_FOUND).await?;
    api.process.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reviews_say_whose_a_token_is_and_who_may() -> Outcome {
    let mut api = ApiServer::start().await?;
    let client = api.client().await?;
    let said = |error: Refusal| format!("{} {error}", error.code());
    let (tokens, access) = (TokenReviews::new(client.clone()), AccessReviews::new(client));

    let viewer = tokens.caller(&api.token("viewer")?).await.map_err(said)?.ok_or("viewer's token is known")?;
    ensure!(viewer.name == "viewer" && viewer.is_in("system:authenticated"), "{viewer:?}");
    ensure!(tokens.caller("nobody's").await.map_err(said)?.is_none(), "a token of nobody");
    let admin = tokens.caller(&api.token("admin")?).await.map_err(said)?.ok_or("admin's token is known")?;

    let exec = |verb: &str| ResourceAttributes {
        verb: Some(verb.into()),
        resource: Some("pods".into()),
        subresource: Some("exec".into()),
        namespace: Some("default".into()),
        name: Some("demo".into()),
        ..ResourceAttributes::default()
    };
    let runner = Caller::new("anybody", ["runners"]);
    for (caller, verb, verdict) in [
        (&viewer, "get", Verdict::NoOpinion),
        (&viewer, "create", Verdict::NoOpinion),
        (&runner, "create", Verdict::Allow),
        (&runner, "delete", Verdict::NoOpinion),
        (&admin, "create", Verdict::Allow),
    ] {
        let decision = access.may(caller, exec(verb)).await.map_err(said)?;
        ensure!(decision.verdict == verdict, "{} {verb}: {decision:?}", caller.name);
    }

    api.process.kill().await?;
    // What is known still counts; what is not is refused.
    ensure!(access.may(&runner, exec("create")).await.is_ok(), "kept");
    let refusal = access.may(&runner, exec("update")).await.expect_err("nobody can tell");
    ensure!(refusal.code() == StatusCode::SERVICE_UNAVAILABLE, "{refusal}");
    ensure!(tokens.caller("another").await.is_err_and(|refusal| refusal.code() == 503), "nobody can tell");
    Ok(())
}
