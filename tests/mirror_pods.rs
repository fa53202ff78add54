//! The example kubelet's static Pods at its API server: they are seen there, can be streamed to, and come back.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, as it should")]

#[path = "../examples/support/mod.rs"]
mod examples;
#[allow(clippy::duplicate_mod, reason = "each test binary uses its part")]
mod support;

use std::{fs, process::Stdio, sync::Arc, time::Duration};

use axum::{body::Body, extract::Request};
use examples::{
    client::{ApiClient, Ask},
    mirror::Mirrors,
    objects::{Key, Store},
};
use serde_json::{Value, json};
use support::{
    Outcome, Scratch,
    kubectl::{Client, Run, client},
    lab::{Lab, Settings, Topology},
};
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStdout},
    time::timeout,
};

const LIMIT: Duration = Duration::from_secs(30);
const NAME: &str = "web-demo-node";
const WEB: &str = "
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}, annotations: {by: hand}}
spec: {containers: [{name: shell, image: this-host, command: [/bin/sh], stdin: true}]}
";

/// API server and kubelet; the kubelet has `web` from a file.
async fn start(flags: &[&str]) -> Outcome<(Lab, Scratch)> {
    let scratch = Scratch::new("static");
    let file = scratch.path().join("web.yaml");
    fs::write(&file, WEB).map_err(|error| error.to_string())?;
    let path = format!("--pod-manifest-path={}", file.display());
    let kubelet: Vec<&str> = [&*path].into_iter().chain(flags.iter().copied()).collect();
    let lab = Lab::start_with(Topology::TwoProcesses, Settings { kubelet: &kubelet, ..Settings::default() }).await?;
    Ok((lab, scratch))
}

/// The events of a Pod, as a running `kubectl get -w` tells them.
struct Events {
    kubectl: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Events {
    fn of(run: &Run<'_>, name: &str) -> Outcome<Self> {
        let (field, columns) = (
            format!("metadata.name={name}"),
            "custom-columns=EVENT:.type,UID:.object.metadata.uid,PHASE:.object.status.phase",
        );
        let args =
            ["get", "pods", "-w", "--output-watch-events", "--no-headers", "--field-selector", &field, "-o", columns];
        let mut command = run.command(&args);
        let mut kubectl = command.stdout(Stdio::piped()).spawn().map_err(|error| error.to_string())?;
        let lines = BufReader::new(kubectl.stdout.take().unwrap()).lines();
        Ok(Self { kubectl, lines })
    }

    /// Waits for that event, and says which uid it is about.
    async fn until(&mut self, event: &str, phase: &str) -> Outcome<String> {
        let found = async {
            while let Ok(Some(line)) = self.lines.next_line().await {
                let words: Vec<&str> = line.split_whitespace().collect();
                if let [of, uid, in_phase] = words[..]
                    && (of, in_phase) == (event, phase)
                {
                    return Ok(uid.to_owned());
                }
            }
            Err(format!("kubectl ended before {event} {phase}"))
        };
        timeout(LIMIT, found).await.map_err(|_| format!("no {event} {phase} within {LIMIT:?}"))?
    }

    async fn end(mut self) -> Outcome {
        self.kubectl.kill().await.map_err(|error| error.to_string())
    }
}

async fn exec(run: &Run<'_>) -> Outcome {
    let output = run.kubectl(&["exec", NAME, "--", "echo", "hello"]).await?.exits(0)?;
    ensure!(output.stdout == "hello\n", "{output:?}");
    Ok(())
}

async fn object(run: &Run<'_>) -> Outcome<Value> {
    let output = run.kubectl(&["get", "pod", NAME, "-o", "json"]).await?.exits(0)?;
    serde_json::from_str(&output.stdout).map_err(|error| error.to_string())
}

/// The mirror Pod, when it runs.
async fn running(run: &Run<'_>) -> Outcome<String> {
    let mut events = Events::of(run, NAME)?;
    let wait = async {
        loop {
            // Whether it ran already when the watch began, or not.
            let line = events.lines.next_line().await.map_err(|error| error.to_string())?;
            let line = line.ok_or("kubectl ended")?;
            if let [_, uid, "Running"] = line.split_whitespace().collect::<Vec<_>>()[..] {
                return Ok::<_, String>(uid.to_owned());
            }
        }
    };
    let uid = timeout(LIMIT, wait).await.map_err(|_| format!("no mirror Pod within {LIMIT:?}"))??;
    events.end().await?;
    Ok(uid)
}

async fn seen_and_streamed_to(lab: &mut Lab, client: &Client) -> Outcome {
    let first = {
        let run = Run { lab, client };
        let uid = running(&run).await?;
        let pod = object(&run).await?;
        let annotations = &pod["metadata"]["annotations"];
        let hash = &annotations["kubernetes.io/config.hash"];
        ensure!(
            annotations["kubernetes.io/config.mirror"] == *hash && hash.as_str().is_some_and(|hash| hash.len() == 32),
            "{pod}"
        );
        ensure!(annotations["kubernetes.io/config.source"] == "file" && annotations["by"] == "hand", "{pod}");
        ensure!(pod["metadata"]["labels"] == json!({ "app": "web" }), "{pod}");
        let owner = &pod["metadata"]["ownerReferences"][0];
        ensure!(owner["kind"] == "Node" && owner["name"] == "demo-node" && owner["controller"] == true, "{pod}");
        ensure!(pod["spec"]["nodeName"] == "demo-node" && pod["status"]["hostIP"] == "127.0.0.1", "{pod}");
        ensure!(pod["status"]["containerStatuses"][0]["ready"] == true, "{pod}");
        exec(&run).await?;

        // Deleted, it comes back as another one.
        let mut events = Events::of(&run, NAME)?;
        events.until("ADDED", "Running").await?;
        run.kubectl(&["delete", "pod", NAME]).await?.exits(0)?;
        let gone = events.until("DELETED", "Running").await?;
        ensure!(gone == uid, "{gone} is not {uid}");
        let next = events.until("MODIFIED", "Running").await?;
        ensure!(next != uid, "the same again: {next}");
        events.end().await?;
        exec(&run).await?;
        next
    };
    // The API server forgets all that it had in memory.
    lab.restart_apiserver(&[]).await?;
    let run = Run { lab, client };
    let again = running(&run).await?;
    ensure!(again != first, "the API server has kept it");
    exec(&run).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_static_pod_is_seen_streamed_to_and_comes_back() -> Outcome {
    let Some(client) = client("1.37", true) else { return Ok(()) };
    let (mut lab, _files) = start(&[]).await?;
    seen_and_streamed_to(&mut lab, &client).await.map_err(|why| format!("{why}\n{}", lab.logs()))?;
    lab.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mirror_pod_goes_with_its_kubelet_unless_it_is_to_stay() -> Outcome {
    let Some(client) = client("1.37", true) else { return Ok(()) };
    for keep in [false, true] {
        let (mut lab, _files) = start(if keep { &["--keep-pods"] } else { &[] }).await?;
        running(&Run { lab: &lab, client: &client }).await?;
        let status = lab.kubelet.take().expect("two processes").stop().await?;
        ensure!(status.success(), "{status}");
        let left = Run { lab: &lab, client: &client }.kubectl(&["get", "pod", NAME]).await?;
        ensure!((left.code == Some(0)) == keep, "keep {keep}: {left:?}");
        lab.stop().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_of_that_name_that_is_no_mirror_is_left_alone() -> Outcome {
    const OTHER: &str = "
apiVersion: v1
kind: Pod
metadata: {name: web-demo-node}
spec: {nodeName: demo-node, containers: [{name: other, image: i}]}
";
    let scratch = Scratch::new("static");
    let file = scratch.path().join("web.yaml");
    fs::write(&file, WEB).map_err(|error| error.to_string())?;
    let path = format!("--pod-manifest-path={}", file.display());
    let settings = Settings { kubelet: &[&path], objects: OTHER, ..Settings::default() };
    let lab = Lab::start_with(Topology::TwoProcesses, settings).await?;
    let log = lab.kubelet.as_ref().expect("two processes").stderr.clone();
    log.until(LIMIT, "a warning", |text| text.contains("there is a Pod of that name which is no mirror Pod")).await?;
    let Some(client) = client("1.37", true) else { return lab.stop().await };
    let pod = object(&Run { lab: &lab, client: &client }).await?;
    ensure!(pod["spec"]["containers"][0]["name"] == "other", "{pod}");
    lab.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_for_a_mirror_pod_is_one_for_the_static_pod_by_name_and_by_uid() -> Outcome {
    let lab = Lab::start(Topology::AllInOne).await?;
    let file = lab.scratch.path().join("web.yaml");
    fs::write(&file, WEB).map_err(|error| error.to_string())?;
    let error = |error: examples::Error| error.to_string();
    let store = Arc::new(Store::from_manifests(&[file]).map_err(error)?);
    store.assign_all_pods("demo-node");
    let uid = store.get(&Key::pod("default", "web")).unwrap()["metadata"]["uid"].as_str().unwrap().to_owned();
    let api = Arc::new(ApiClient::new(&lab.data.join("kubelet.kubeconfig")).map_err(error)?);
    let mirrors = Mirrors::new(api.clone(), store, "demo-node", [127, 0, 0, 1].into()).map_err(error)?;
    let path = format!("/api/v1/namespaces/default/pods/{NAME}");
    let mirrored = async {
        loop {
            let (_, pod) = api.ask(&path, Ask::Get).await.unwrap();
            if pod["status"]["phase"] == "Running" {
                return pod["metadata"]["uid"].as_str().unwrap().to_owned();
            }
            tokio::task::yield_now().await;
        }
    };
    let mirror = tokio::select! {
        () = mirrors.keep() => unreachable!("it keeps for ever"),
        mirror = timeout(LIMIT, mirrored) => mirror.map_err(|_| "no mirror Pod")?,
    };
    for (asked, got) in [
        (
            format!("/exec/default/{NAME}/shell?command=a%2Fb&output=1"),
            "/exec/default/web/shell?command=a%2Fb&output=1".to_owned(),
        ),
        (format!("/attach/default/{NAME}/{mirror}/shell"), format!("/attach/default/web/{uid}/shell")),
        (format!("/portForward/default/{NAME}"), "/portForward/default/web".to_owned()),
        (format!("/portForward/default/{NAME}/{mirror}"), format!("/portForward/default/web/{uid}")),
        // A uid of another life is not translated, and so not found.
        (format!("/attach/default/{NAME}/other/shell"), "/attach/default/web/other/shell".to_owned()),
        // Not a uid, but a container of that name.
        (format!("/exec/default/{NAME}/{mirror}"), format!("/exec/default/web/{mirror}")),
        (format!("/exec/other/{NAME}/shell"), format!("/exec/other/{NAME}/shell")),
        ("/exec/default/web/shell".to_owned(), "/exec/default/web/shell".to_owned()),
        (format!("/pods/{NAME}"), format!("/pods/{NAME}")),
    ] {
        let request = Request::get(&asked).body(Body::empty()).unwrap();
        let seen = mirrors.redirect(request).uri().to_string();
        ensure!(seen == got, "{asked}: {seen}, not {got}");
    }
    mirrors.remove().await;
    let (code, _) = api.ask(&path, Ask::Get).await.map_err(error)?;
    ensure!(code == 404, "{code}");
    lab.stop().await
}
