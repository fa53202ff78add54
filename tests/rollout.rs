//! Gates that change while a cluster is in use: API servers of both kinds side by side, and each gate turned off and on
//! again under sessions that live on.

mod support;

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::{Value, json};
use support::{
    Outcome,
    balancer::Balancer,
    count,
    forward::Forward,
    http::url,
    kubectl::{Client, client},
    lab::{Lab, Session, Settings, Topology, sessions_in},
    pod::Pod,
    process::Process,
    shell::Shell,
    through,
};
use tokio::{process::Command, task::JoinSet};

const V4: &str = "v4.channel.k8s.io";
const V5: &str = "v5.channel.k8s.io";
const ALL_OFF: &str = "--feature-gates=AllBeta=false";

/// May do what the demo's viewer may: `get` what a stream needs.
const VIEWER: &str = r#"
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: viewer}
rules: [{apiGroups: [""], resources: [pods, pods/exec], verbs: [get]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: viewer}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: viewer}
subjects: [{kind: User, name: viewer}]
"#;

/// For what takes a moment.
const PATIENCE: Duration = Duration::from_secs(20);

/// Execs at a time.
const AT_ONCE: usize = 4;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_apiservers_with_different_gates_behind_one_balancer_lose_no_exec() -> Outcome {
    let execs = count(30, 200);
    for (version, websocket) in [("1.28", false), ("1.37", true)] {
        let Some(client) = client(version, websocket) else { continue };
        let cluster = Cluster::start(true).await?;
        let other = cluster.another_apiserver(&[ALL_OFF]).await?;
        let balancer = Balancer::start(&[url(&cluster.lab.apiserver)?, url(&other)?]).await?;
        let kubeconfig = cluster.kubeconfig_at(&balancer.url())?;
        let mut running = JoinSet::new();
        let mut ended: Vec<Outcome> = Vec::new();
        for _ in 0..execs {
            if running.len() == AT_ONCE {
                ended.extend(running.join_next().await.map(|ended| ended.expect("no exec panics")));
            }
            let command = echoing(&client, &cluster.lab, &kubeconfig, "demo");
            running.spawn(said(command, "demo"));
        }
        ended.extend(running.join_all().await);
        let failed: Vec<String> = ended.into_iter().filter_map(Result::err).collect();
        ensure!(failed.is_empty(), "{client}: {} of {execs} failed: {}", failed.len(), failed[0]);
        let shares = [&cluster.lab.apiserver, &other].map(|server| sessions_in(&server.stderr.text()).len());
        ensure!(shares.iter().all(|share| *share > execs / 10), "one of them served next to nothing: {shares:?}");
        println!("{client}: {execs} execs, {shares:?} by server");
        other.stop().await?;
        cluster.lab.stop().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_follow_the_gates_of_a_new_apiserver_and_those_of_the_old_one_live_on() -> Outcome {
    let Some(client) = client("1.37", true) else { return Ok(()) };
    for (gates, declared, on, off) in [
        (&["TranslateStreamCloseWebsocketRequests"][..], false, V4, V5),
        (&["ExtendWebSocketsToKubelet"], true, V5, V4),
        // The first needs the second.
        (&["ExtendWebSocketsToKubelet", "NodeDeclaredFeatures"], true, V5, V4),
    ] {
        let cluster = Cluster::start(declared).await?;
        let mut shells = vec![cluster.shell(&client, &cluster.lab.apiserver)?];
        shells[0].answers(1).await?;
        let mut servers = Vec::new();
        for (value, spoken) in [(false, off), (true, on)] {
            let gates: Vec<_> = gates.iter().map(|gate| format!("{gate}={value}")).collect();
            let gates = gates.join(",");
            let server = cluster.another_apiserver(&[&format!("--feature-gates={gates}")]).await?;
            let kubeconfig = cluster.kubeconfig_for(&server)?;
            echo(&client, &cluster.lab, &kubeconfig, "demo").await?;
            let session = session_after(&server, 0).await?;
            ensure!(session.field("protocol.in") == Some(V5), "{gates}: {session:?}");
            ensure!(session.field("protocol.out") == Some(spoken), "{gates}: {session:?}");
            shells.push(cluster.shell(&client, &server)?);
            servers.push(server);
            for (number, shell) in shells.iter_mut().enumerate() {
                shell.answers(number).await.map_err(|why| format!("{gates}, shell {number}: {why}"))?;
            }
        }
        for shell in shells {
            shell.exits().await?;
        }
        cluster.stop(servers).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forwards_follow_the_gate_of_a_new_apiserver_and_those_of_the_old_one_live_on() -> Outcome {
    const GATE: &str = "PortForwardWebsockets";
    let Some(client) = support::kubectl::forwarder("1.37", true) else { return Ok(()) };
    let pod = Pod::start().await.map_err(|error| error.to_string())?;
    let cluster = Cluster::start(false).await?;
    let forward = async |server: &Process| {
        let ports = format!("0:{}", pod.web);
        let kubeconfig = cluster.kubeconfig_for(server)?;
        let mut command = client.command(&kubeconfig, &cluster.lab.scratch, &["port-forward", "pod/demo", &ports]);
        Forward::spawn(&mut command, &[pod.web]).await
    };
    let mut forwards = vec![forward(&cluster.lab.apiserver).await?];
    let mut servers = Vec::new();
    for value in [false, true] {
        let server = cluster.another_apiserver(&[&format!("--feature-gates={GATE}={value}")]).await?;
        forwards.push(forward(&server).await?);
        servers.push(server);
        for forward in &forwards {
            through::page(forward.to(pod.web)).await?;
        }
    }
    for forward in forwards {
        forward.stop().await?;
    }
    // What the kubelet's gate lets in came through as it was; with the API server's on it came as SPDY.
    let tunnel = "SPDY/3.1+portforward.k8s.io";
    for (server, spoken) in
        [(&cluster.lab.apiserver, "portforward.k8s.io"), (&servers[0], tunnel), (&servers[1], "portforward.k8s.io")]
    {
        let session = session_after(server, 0).await?;
        ensure!(session.field("protocol.in") == Some(tunnel), "{session:?}");
        ensure!(session.field("protocol.out") == Some(spoken), "{session:?}");
    }
    cluster.stop(servers).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_viewer_gets_in_while_a_new_apiservers_gate_is_off_and_stays_in_when_it_is_on_again() -> Outcome {
    const GATE: &str = "AuthorizePodWebsocketUpgradeCreatePermission";
    let Some(client) = client("1.37", true) else { return Ok(()) };
    let cluster = Cluster::start(true).await?;
    let mut shells = vec![cluster.shell(&client, &cluster.lab.apiserver)?];
    shells[0].answers(0).await?;
    let mut servers = Vec::new();
    let viewers = ["--context", "viewer", "exec", "-i", "demo", "-c", "shell", "--", "cat"];
    for on in [true, false, true] {
        let server = cluster.another_apiserver(&[&format!("--feature-gates={GATE}={on}")]).await?;
        let kubeconfig = cluster.kubeconfig_for(&server)?;
        let mut command = client.command(&kubeconfig, &cluster.lab.scratch, &viewers);
        if on {
            let refused = command.output().await.map_err(|error| error.to_string())?;
            let why = String::from_utf8_lossy(&refused.stderr);
            ensure!(refused.status.code() == Some(1) && refused.stdout.is_empty(), "{refused:?}");
            ensure!(why.contains("\"viewer\" cannot create resource \"pods/exec\""), "{why}");
            ensure!(sessions_in(&server.stderr.text()).is_empty(), "a stream was opened");
        } else {
            shells.push(Shell::start(&mut command)?);
        }
        servers.push(server);
        for (number, shell) in shells.iter_mut().enumerate() {
            shell.answers(number).await.map_err(|why| format!("{GATE}={on}, shell {number}: {why}"))?;
        }
    }
    for shell in shells {
        shell.exits().await?;
    }
    cluster.stop(servers).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_follow_what_the_node_declares_and_those_before_live_on() -> Outcome {
    let Some(client) = client("1.37", true) else { return Ok(()) };
    let cluster = Cluster::start(true).await?;
    let api = &cluster.lab.apiserver;
    let mut shells = vec![cluster.shell(&client, api)?];
    shells[0].answers(0).await?;
    let mut kubelets = Vec::new();
    for (value, spoken) in [(false, V4), (true, V5)] {
        let gate = format!("--feature-gates=ExtendWebSocketsToKubelet={value}");
        let kubelet = cluster.lab.another_kubelet(&[&gate, "--register-node=false"]).await?;
        let status = serde_json::to_string(&json!({ "status": node(&kubelet, value)?["status"] })).expect("JSON");
        let patch = ["patch", "node", "demo-node", "--subresource=status", "--type=merge", "-p", &status];
        let patched = client.command(&cluster.lab.kubeconfig, &cluster.lab.scratch, &patch).output().await;
        let patched = patched.map_err(|error| error.to_string())?;
        ensure!(patched.status.success(), "{patched:?}");
        let before = cluster.lab.sessions().len();
        echo(&client, &cluster.lab, &cluster.lab.kubeconfig, "demo").await?;
        let session = session_after(api, before).await?;
        ensure!(session.field("protocol.out") == Some(spoken), "declared: {value}: {session:?}");
        kubelets.push(kubelet);
        shells.push(cluster.shell(&client, api)?);
        for (number, shell) in shells.iter_mut().enumerate() {
            shell.answers(number).await.map_err(|why| format!("declared: {value}, shell {number}: {why}"))?;
        }
    }
    for shell in shells {
        shell.exits().await?;
    }
    cluster.stop(kubelets).await
}

/// API server and kubelet, and a Node that this test registers, so that it says what the test wants.
struct Cluster {
    lab: Lab,
    node: PathBuf,
    /// As the first API server wrote it; every one writes its own over it.
    kubeconfig: String,
}

impl Cluster {
    async fn start(declared: bool) -> Outcome<Self> {
        let settings = Settings { kubelet: &["--register-node=false"], objects: VIEWER, ..Settings::default() };
        let lab = Lab::start_with(Topology::TwoProcesses, settings).await?;
        let kubeconfig = fs::read_to_string(&lab.kubeconfig).map_err(|error| error.to_string())?;
        let node_file = lab.scratch.path().join("node.json");
        let kubelet = lab.kubelet.as_ref().expect("it has one");
        fs::write(&node_file, node(kubelet, declared)?.to_string()).map_err(|error| error.to_string())?;
        let cluster = Self { lab, node: node_file, kubeconfig };
        cluster.register(&cluster.lab.apiserver).await?;
        Ok(cluster)
    }

    /// Tells an API server of the Node.
    async fn register(&self, server: &Process) -> Outcome {
        let Some(client) = client("1.37", true) else { return Err("this needs kubectl 1.37".into()) };
        let create = ["create", "--raw", "/api/v1/nodes", "-f", text(&self.node)];
        let mut command = client.command(&self.kubeconfig_for(server)?, &self.lab.scratch, &create);
        let created = command.output().await.map_err(|error| error.to_string())?;
        ensure!(created.status.success(), "{created:?}");
        Ok(())
    }

    /// Another API server, of the same certificates, tokens and Node.
    async fn another_apiserver(&self, flags: &[&str]) -> Outcome<Process> {
        let server = self.lab.another_apiserver(flags).await?;
        self.register(&server).await?;
        Ok(server)
    }

    fn kubeconfig_for(&self, server: &Process) -> Outcome<PathBuf> {
        self.kubeconfig_at(&url(server)?)
    }

    fn kubeconfig_at(&self, server: &str) -> Outcome<PathBuf> {
        let first = url(&self.lab.apiserver)?;
        let file =
            self.lab.scratch.path().join(format!("kubeconfig-{}", server.rsplit(':').next().unwrap_or_default()));
        fs::write(&file, self.kubeconfig.replace(&first, server)).map_err(|error| error.to_string())?;
        Ok(file)
    }

    fn shell(&self, client: &Client, server: &Process) -> Outcome<Shell> {
        let mut command = client.command(
            &self.kubeconfig_for(server)?,
            &self.lab.scratch,
            &["exec", "-i", "demo", "-c", "shell", "--", "cat"],
        );
        Shell::start(&mut command)
    }

    async fn stop(self, others: Vec<Process>) -> Outcome {
        for other in others {
            let status = other.stop().await?;
            ensure!(status.success(), "another one ended with {status} on SIGTERM");
        }
        self.lab.stop().await
    }
}

/// A Node whose kubelet is that process.
fn node(kubelet: &Process, declares: bool) -> Outcome<Value> {
    let url = url(kubelet)?;
    let port: u16 = url.rsplit(':').next().and_then(|port| port.parse().ok()).ok_or("the kubelet has no port")?;
    let declared = if declares { json!(["ExtendWebSocketsToKubelet"]) } else { Value::Null };
    Ok(json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": { "name": "demo-node" },
        "status": {
            "addresses": [{ "type": "InternalIP", "address": "127.0.0.1" }],
            "daemonEndpoints": { "kubeletEndpoint": { "Port": port } },
            "declaredFeatures": declared,
        },
    }))
}

fn echoing(client: &Client, lab: &Lab, kubeconfig: &Path, pod: &str) -> Command {
    client.command(kubeconfig, &lab.scratch, &["exec", pod, "-c", "shell", "--", "echo", pod])
}

async fn said(mut command: Command, word: &'static str) -> Outcome {
    let output = command.output().await.map_err(|error| error.to_string())?;
    ensure!(output.status.success() && output.stdout == format!("{word}\n").as_bytes(), "{output:?}");
    Ok(())
}

async fn echo(client: &Client, lab: &Lab, kubeconfig: &Path, pod: &'static str) -> Outcome {
    said(echoing(client, lab, kubeconfig, pod), pod).await
}

/// The first session that has ended at this server after so many others.
async fn session_after(server: &Process, before: usize) -> Outcome<Session> {
    let more = |text: &str| sessions_in(text).len() > before;
    let log = server.stderr.until(PATIENCE, "another session's end", more).await?;
    Ok(sessions_in(&log).swap_remove(before))
}

fn text(path: &Path) -> &str {
    path.to_str().expect("paths are text")
}
