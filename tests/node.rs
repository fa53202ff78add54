//! A kubelet and its API server, as real processes: the Node that it registers, and what it declares there.

mod support;

use std::{fs, process::Stdio, time::Duration};

use futures_util::{StreamExt, stream};
use support::{
    Outcome, count,
    http::url,
    kubectl::{Client, Run, client},
    lab::{Lab, NO_WEBSOCKETS, Session, Settings, Topology, sessions_in},
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    time::timeout,
};

const LIMIT: Duration = Duration::from_secs(30);
const V5: Option<&str> = Some("v5.channel.k8s.io");
const V4: Option<&str> = Some("v4.channel.k8s.io");

/// What the Node declares, as kubectl prints it.
async fn declared(run: &Run<'_>) -> Outcome<String> {
    let path = "jsonpath={.status.declaredFeatures}";
    Ok(run.kubectl(&["get", "node", "demo-node", "-o", path]).await?.exits(0)?.stdout)
}

/// One exec, and the lines that it leaves at the API server and at the kubelet.
async fn exec(lab: &Lab, client: &Client) -> Outcome<(Session, Session)> {
    let (before, kubelet_before) = (lab.sessions().len(), lab.kubelet_sessions().len());
    let run = Run { lab, client };
    let output = run.kubectl(&["exec", "demo", "-c", "shell", "--", "echo", "hello"]).await?.exits(0)?;
    ensure!(output.stdout == "hello\n", "{output:?}");
    // The lines are written when the sessions' tasks end, which may be after kubectl did.
    let kubelet = lab.kubelet.as_ref().expect("two processes");
    for (process, before) in [(&lab.apiserver, before), (kubelet, kubelet_before)] {
        let ended = |text: &str| text.matches("session ended").count() > before;
        process.stderr.until(LIMIT, "the session's line", ended).await?;
    }
    Ok((lab.sessions().swap_remove(before), lab.kubelet_sessions().swap_remove(kubelet_before)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_declares_what_its_kubelets_gate_says_and_sessions_follow() -> Outcome {
    let Some(client) = client("1.37", true) else { return Ok(()) };
    let mut lab = Lab::start(Topology::TwoProcesses).await?;
    for on in [true, false, true] {
        if !on || lab.sessions().len() > 1 {
            lab.restart_kubelet(if on { &[] } else { NO_WEBSOCKETS }).await?;
        }
        let seen = declared(&Run { lab: &lab, client: &client }).await?;
        ensure!(seen == if on { r#"["ExtendWebSocketsToKubelet"]"# } else { "" }, "gate {on}: {seen}\n{}", lab.logs());
        let (apiserver, kubelet) = exec(&lab, &client).await?;
        // Who gets WebSocket is who translates it.
        let (translated, served) = (apiserver.field("protocol.out"), kubelet.field("protocol.in"));
        ensure!(apiserver.field("protocol.in") == V5, "gate {on}: {apiserver:?}");
        ensure!(translated == if on { V5 } else { V4 }, "gate {on}: {apiserver:?}");
        ensure!(served == if on { V5 } else { V4 }, "gate {on}: {kubelet:?}");
    }
    lab.stop().await
}

/// A rollout that is half done: each session goes the way of its own node.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_nodes_the_one_that_declares_it_gets_websocket() -> Outcome {
    const OLD_POD: &str = "
apiVersion: v1
kind: Pod
metadata: {name: old, namespace: default}
spec: {nodeName: old-node, containers: [{name: shell, image: this-host, command: [/bin/sh], stdin: true}]}
";
    let Some(client) = client("1.37", true) else { return Ok(()) };
    let lab = Lab::start_with(Topology::TwoProcesses, Settings { objects: OLD_POD, ..Settings::default() }).await?;
    let file = lab.scratch.path().join("old.yaml");
    fs::write(&file, OLD_POD).map_err(|error| error.to_string())?;
    let file = format!("--pod-manifest-path={}", file.display());
    let old = lab.another_kubelet(&[NO_WEBSOCKETS[0], "--node-name=old-node", &file]).await?;
    let run = Run { lab: &lab, client: &client };
    let execs: Vec<_> = (0..count(20, 200)).map(|at| ["demo", "old"][at % 2]).collect();
    let failed: Vec<String> = stream::iter(execs.iter().copied())
        .map(async |pod| {
            let output = run.kubectl(&["exec", pod, "-c", "shell", "--", "echo", pod]).await?.exits(0)?;
            ensure!(output.stdout.trim() == pod, "{pod}: {output:?}");
            Ok(())
        })
        .buffer_unordered(4)
        .filter_map(async |done: Outcome| done.err())
        .collect()
        .await;
    ensure!(failed.is_empty(), "{}\n{}", failed.join("\n"), lab.logs());
    let all = |text: &str| sessions_in(text).len() >= execs.len();
    lab.apiserver.stderr.until(LIMIT, "a line for each session", all).await?;
    for session in lab.sessions() {
        let (pod, went) = (session.field("pod"), (session.field("protocol.in"), session.field("protocol.out")));
        ensure!(went == (V5, if pod == Some("old") { V4 } else { V5 }), "{session:?}");
    }
    let status = old.stop().await?;
    ensure!(status.success(), "{status}");
    lab.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kubelet_registers_again_at_an_apiserver_that_came_back_elsewhere() -> Outcome {
    let Some(client) = client("1.37", true) else { return Ok(()) };
    let mut lab = Lab::start(Topology::TwoProcesses).await?;
    let log = lab.kubelet.as_ref().expect("two processes").stderr.clone();
    let before = url(&lab.apiserver)?;
    lab.apiserver.end().await?;
    log.until(LIMIT, "a warning", |text| text.contains("registering the node failed; trying again")).await?;
    lab.restart_apiserver(&[]).await?;
    ensure!(url(&lab.apiserver)? != before, "the API server came back at {before}");
    log.until(LIMIT, "the node's return", |text| text.matches("node registered").count() == 2).await?;
    ensure!(
        declared(&Run { lab: &lab, client: &client }).await? == r#"["ExtendWebSocketsToKubelet"]"#,
        "{}",
        lab.logs()
    );
    exec(&lab, &client).await?;
    lab.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kubelet_that_is_told_not_to_registers_no_node() -> Outcome {
    let Some(client) = client("1.37", true) else { return Ok(()) };
    let settings = Settings { kubelet: &["--register-node=false"], ..Settings::default() };
    let lab = Lab::start_with(Topology::TwoProcesses, settings).await?;
    let run = Run { lab: &lab, client: &client };
    run.kubectl(&["get", "node", "demo-node"]).await?.exits(1)?.says("not found")?;
    lab.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lab_tells_the_metrics_of_both_processes() -> Outcome {
    let Some(client) = client("1.37", true) else { return Ok(()) };
    let lab = Lab::start(Topology::TwoProcesses).await?;
    exec(&lab, &client).await?;
    let (apiserver, kubelet) = (lab.metrics_of_apiserver().await?, lab.metrics_of_kubelet().await?);
    let passed =
        r#"apiserver_websocket_streaming_requests_total{subresource="exec",proxy_type="proxied_to_kubelet"} 1"#;
    ensure!(apiserver.contains(passed), "{apiserver}");
    let served = r#"kubelet_websocket_streaming_requests_total{subresource="exec"} 1"#;
    ensure!(kubelet.contains(served), "{kubelet}");
    lab.stop().await
}

/// One field of the node's Lease, as kubectl prints it.
async fn lease(run: &Run<'_>, path: &str) -> Outcome<String> {
    let path = format!("jsonpath={{{path}}}");
    let args = ["get", "lease", "-n", "kube-node-lease", "demo-node", "-o", &path];
    Ok(run.kubectl(&args).await?.exits(0)?.stdout)
}

/// Watches for two values of a time. The kubelet renews every 10 seconds: two renewals, or the first and the one after it.
async fn renewed(run: &Run<'_>, resource: &str, path: &str, namespace: &str) -> Outcome {
    let output = format!("jsonpath={{{path}}}{{\"\\n\"}}");
    let args = ["get", resource, "-n", namespace, "--field-selector=metadata.name=demo-node", "-w", "-o", &output];
    let mut kubectl = run.command(&args).stdout(Stdio::piped()).spawn().map_err(|error| error.to_string())?;
    let mut lines = BufReader::new(kubectl.stdout.take().expect("stdout is piped")).lines();
    let mut times = Vec::new();
    let two = async {
        while times.len() < 2 {
            let line = lines
                .next_line()
                .await
                .map_err(|error| error.to_string())?
                .ok_or(format!("{resource}: kubectl ended"))?;
            if !line.is_empty() && times.last() != Some(&line) {
                times.push(line);
            }
        }
        Ok::<_, String>(())
    };
    timeout(LIMIT, two).await.map_err(|_| format!("{resource}: no renewal\n{}", run.lab.logs()))??;
    ensure!(times[0] < times[1], "{resource}: {times:?}");
    kubectl.kill().await.map_err(|error| error.to_string())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_keeps_its_lease_and_its_heartbeat_fresh() -> Outcome {
    let Some(client) = client("1.37", true) else { return Ok(()) };
    let mut lab = Lab::start(Topology::TwoProcesses).await?;
    for restarted in [false, true] {
        if restarted {
            lab.restart_apiserver(&[]).await?;
        }
        let run = Run { lab: &lab, client: &client };
        tokio::try_join!(
            renewed(&run, "lease", ".spec.renewTime", "kube-node-lease"),
            renewed(&run, "node", ".status.conditions[?(@.type==\"Ready\")].lastHeartbeatTime", "default"),
        )?;
        let holder = lease(&run, ".spec.holderIdentity} {.spec.leaseDurationSeconds").await?;
        let owner = lease(&run, ".metadata.ownerReferences[0].kind} {.metadata.ownerReferences[0].name").await?;
        let uid = lease(&run, ".metadata.ownerReferences[0].uid").await?;
        let node = run.kubectl(&["get", "node", "demo-node", "-o", "jsonpath={.metadata.uid}"]).await?.exits(0)?;
        ensure!(holder == "demo-node 40" && owner == "Node demo-node" && uid == node.stdout, "{holder} {owner} {uid}");
    }
    lab.stop().await
}
