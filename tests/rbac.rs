//! Who may open a stream, by the example API server's RBAC: every kind of request by callers who may `get`, `create`, both
//! or neither, and what kubectl prints to those who may not.
//!
//! The API server speaks TLS and knows its callers by their tokens; the kubelet behind it lets everybody in.

mod support;

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use support::{
    Outcome, Scratch,
    forms::Form,
    http::{self, Login, url},
    kubectl::{Run, client},
    lab::{Lab, Topology, example, port_in},
    process::Process,
};
use tokio::time::timeout;

/// Callers, each with a token that is its name. `local` may do in the namespace `default` what `both` may everywhere.
const CALLERS: [&str; 6] = ["viewer", "creator", "both", "neither", "local", "admin"];

/// The pod is the kubelet's own, on a node at PORT.
const CLUSTER: &str = r#"
apiVersion: v1
kind: Node
metadata: {name: demo-node}
status:
  addresses: [{type: InternalIP, address: 127.0.0.1}]
  daemonEndpoints: {kubeletEndpoint: {Port: PORT}}
---
apiVersion: v1
kind: Pod
metadata: {name: demo, namespace: default}
spec: {nodeName: demo-node, containers: [{name: shell, image: this-host}, {name: sidecar, image: this-host}]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: get-streams}
rules: [{apiGroups: [""], resources: [pods/exec, pods/attach, pods/portforward], verbs: [get]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: create-streams}
rules: [{apiGroups: [""], resources: ["*/exec", "*/attach", "*/portforward"], verbs: [create]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: get-streams}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: get-streams}
subjects: [{kind: User, name: viewer}, {kind: Group, name: both}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: create-streams}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: create-streams}
subjects: [{kind: User, name: creator}, {kind: Group, name: both}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: see-pods}
rules: [{apiGroups: [""], resources: [pods], verbs: [get]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: see-pods}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: see-pods}
subjects: [{kind: User, name: creator}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: get-exec, namespace: default}
rules: [{apiGroups: [""], resources: [pods/exec], resourceNames: [demo], verbs: [get]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: get-exec, namespace: default}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: get-exec}
subjects: [{kind: User, name: local}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: create-streams, namespace: default}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: create-streams}
subjects: [{kind: User, name: local}]
"#;

/// An API server with those callers and roles before a kubelet.
struct Servers {
    apiserver: Process,
    kubelet: Process,
    /// Of the API server.
    url: String,
    data: PathBuf,
    scratch: Scratch,
}

impl Servers {
    async fn stop(self) -> Outcome {
        for process in [self.apiserver, self.kubelet] {
            let status = process.stop().await?;
            ensure!(status.success(), "{status} on SIGTERM");
        }
        Ok(())
    }
}

async fn servers(flags: &[&str]) -> Outcome<Servers> {
    let mut kubelet = example("kubelet");
    let kubelet = Process::start("kubelet", kubelet.args(["--listen", "127.0.0.1:0", "--insecure"]))?;
    kubelet.ready().await?;
    let port = port_in(&url(&kubelet)?).ok_or("the kubelet has no port")?;
    let scratch = Scratch::new("rbac");
    let data = scratch.dir("data");
    let (manifest, tokens) = (scratch.path().join("cluster.yaml"), scratch.path().join("tokens.csv"));
    let write = |file: &Path, text: &str| fs::write(file, text).map_err(|error| error.to_string());
    write(&manifest, &CLUSTER.replace("PORT", &port.to_string()))?;
    let line = |name| match name {
        "admin" => "admin,admin,admin,system:masters\n".to_owned(),
        "both" => "both,both,both,\"both,others\"\n".to_owned(),
        name => format!("{name},{name},{name}\n"),
    };
    write(&tokens, &CALLERS.map(line).concat())?;
    let mut command = example("apiserver");
    command.args(["--listen", "127.0.0.1:0", "--kubelet-insecure-http"]).args(flags);
    command.arg("--data-dir").arg(&data).arg("--manifest").arg(&manifest).arg("--token-auth-file").arg(&tokens);
    let apiserver = Process::start("apiserver", &mut command)?;
    apiserver.ready().await?;
    Ok(Servers { url: url(&apiserver)?, apiserver, kubelet, data, scratch })
}

/// An answer: its status, and its body if it is no 101.
type Answer = (u16, String);

/// Sends one request on a connection of its own, with `as_` for a token.
async fn ask(servers: &Servers, as_: &str, form: Form, method: &str, path: &str) -> Outcome<Answer> {
    let request = form.request(method, &format!("{}{path}", servers.url))?;
    let answer = http::ask(&servers.data.join("ca.crt"), Login::Token(as_), request).await?;
    Ok((answer.status().as_u16(), answer.body().trim_end().to_owned()))
}

fn exec_of(namespace: &str, pod: &str) -> String {
    format!("/api/v1/namespaces/{namespace}/pods/{pod}/exec?command=true&container=shell&stdout=true&stderr=true")
}

fn forbidden(pod: &str, why: &str) -> Answer {
    let why = why.replace('"', "\\\"");
    let body = format!(
        r#"{{"kind":"Status","apiVersion":"v1","metadata":{{}},"status":"Failure","message":"pods \"{pod}\" is forbidden: {why}","reason":"Forbidden","details":{{"name":"{pod}","kind":"pods"}},"code":403}}"#
    );
    (403, body)
}

fn cannot(user: &str, verb: &str, resource: &str, namespace: &str) -> String {
    format!(r#"User "{user}" cannot {verb} resource "pods/{resource}" in API group "" in the namespace "{namespace}""#)
}

fn failure(code: u16, reason: &str, message: &str) -> Answer {
    let body = format!(
        r#"{{"kind":"Status","apiVersion":"v1","metadata":{{}},"status":"Failure","message":"{message}","reason":"{reason}","code":{code}}}"#
    );
    (code, body)
}

fn path(form: Form) -> String {
    match form.subresource() {
        "exec" => exec_of("default", "demo"),
        other => format!("/api/v1/namespaces/default/pods/demo/{other}"),
    }
}

/// What a caller gets who may.
fn allowed(form: Form, method: &str) -> Answer {
    match form {
        Form::Plain => failure(400, "BadRequest", "Upgrade request required"),
        // These go on to the kubelet as they are; these are its words.
        Form::Foo => (400, "unable to upgrade: header X-Stream-Protocol-Version does not exist in request".to_owned()),
        Form::V4 | Form::NoProtocol if method == "POST" => (405, "websocket: the method is not GET".to_owned()),
        Form::V5 | Form::Tunnel if method == "POST" => failure(405, "BadRequest", "websocket: the method is not GET"),
        _ => (101, String::new()),
    }
}

/// What `caller` gets, `create` being asked for behind `get` or not.
fn answered(form: Form, method: &str, caller: &str, create: bool) -> Answer {
    match (method, caller) {
        ("GET", "viewer") if create => forbidden("demo", ""),
        ("GET", "viewer") | ("POST", "creator") | (_, "both" | "admin") => allowed(form, method),
        _ => {
            let verb = if method == "GET" { "get" } else { "create" };
            forbidden("demo", &cannot(caller, verb, form.subresource(), "default"))
        }
    }
}

/// Asks in every form as everybody, and says what was answered otherwise than it should be.
async fn every_form(flags: &[&str], create: bool) -> Outcome {
    let servers = servers(flags).await?;
    let mut failed = Vec::new();
    for form in Form::ALL {
        for method in ["GET", "POST"] {
            for caller in ["viewer", "creator", "both", "neither", "admin"] {
                let answer = ask(&servers, caller, form, method, &path(form)).await?;
                let wanted = answered(form, method, caller, create);
                if answer != wanted {
                    failed.push(format!("{method} {form:?} by {caller}: {answer:?}, not {wanted:?}"));
                }
            }
        }
    }
    ensure!(failed.is_empty(), "{}", failed.join("\n"));
    servers.stop().await
}

#[tokio::test]
async fn a_get_takes_both_verbs_and_a_post_create_whatever_the_upgrade() -> Outcome {
    every_form(&[], true).await
}

#[tokio::test]
async fn with_the_gate_off_get_alone_opens_a_stream_by_get() -> Outcome {
    every_form(&["--feature-gates=AuthorizePodWebsocketUpgradeCreatePermission=false"], false).await
}

#[tokio::test]
async fn who_may_not_is_not_told_which_pods_there_are_and_roles_end_at_their_namespace() -> Outcome {
    let servers = servers(&[]).await?;
    let unknown = r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"pods \"nosuch\" not found","reason":"NotFound","details":{"name":"nosuch","kind":"pods"},"code":404}"#;
    for (caller, namespace, pod, wanted) in [
        ("viewer", "default", "nosuch", forbidden("nosuch", "")),
        ("both", "default", "nosuch", (404, unknown.to_owned())),
        ("local", "default", "demo", (101, String::new())),
        ("local", "other", "demo", forbidden("demo", &cannot("local", "get", "exec", "other"))),
        // Its role names the pod.
        ("local", "default", "nosuch", forbidden("nosuch", &cannot("local", "get", "exec", "default"))),
    ] {
        let answer = ask(&servers, caller, Form::V5, "GET", &exec_of(namespace, pod)).await?;
        ensure!(answer == wanted, "{caller} at {namespace}/{pod}: {answer:?}, not {wanted:?}");
    }
    servers.stop().await
}

#[tokio::test]
async fn kubectl_tells_a_viewer_in_its_versions_words_what_is_forbidden() -> Outcome {
    let lab = Lab::start(Topology::AllInOne).await?;
    let create = cannot("viewer", "create", "exec", "default");
    for (version, websocket, exec) in [
        ("1.28", false, format!("Error from server (Forbidden): pods \"demo\" is forbidden: {create}\n")),
        // Over WebSocket first, and what SPDY answers is printed.
        ("1.37", true, format!("error: unable to upgrade connection: pods \"demo\" is forbidden: {create}\n")),
    ] {
        let Some(client) = client(version, websocket) else { continue };
        let run = Run { lab: &lab, client: &client };
        let viewer = |args: &[&'static str]| [&["--context", "viewer"], args].concat();
        let output = run.kubectl(&viewer(&["exec", "demo", "-c", "shell", "--", "true"])).await?.exits(1)?;
        ensure!(output.stderr == exec, "{client}: {output:?}");

        let pods = run.kubectl(&viewer(&["get", "pods,nodes"])).await?.exits(0)?;
        ensure!(pods.stdout.contains("pod/demo") && pods.stdout.contains("node/demo-node"), "{client}: {pods:?}");
        let deleted = run.kubectl(&viewer(&["delete", "pod", "demo"])).await?.exits(1)?;
        deleted
            .says("User \"viewer\" cannot delete resource \"pods\" in API group \"\" in the namespace \"default\"")?;
        let created = run.kubectl(&viewer(&["run", "more", "--image=x"])).await?.exits(1)?;
        created.says("pods is forbidden: User \"viewer\" cannot create resource \"pods\"")?;

        for (context, asked, may) in [
            ("admin", &["create", "pods", "--subresource=exec"][..], "yes"),
            ("viewer", &["create", "pods", "--subresource=exec"], "no"),
            ("viewer", &["get", "pods", "--subresource=exec"], "yes"),
            ("admin", &["create", "pods/exec"], "yes"),
            ("viewer", &["create", "pods/exec"], "no"),
            ("viewer", &["get", "/metrics"], "no"),
            ("viewer", &["get", "/api/v1"], "yes"),
        ] {
            let args = [&["--context", context, "auth", "can-i"], asked].concat();
            let output = run.kubectl(&args).await?.exits(i32::from(may == "no"))?;
            ensure!(output.stdout.trim() == may, "{client}: {context} {asked:?}: {output:?}");
        }
        let as_viewer = run.kubectl(&["auth", "can-i", "create", "pods", "--as=viewer"]).await?.exits(1)?;
        ensure!(as_viewer.stdout.trim() == "no", "{client}: {as_viewer:?}");
        let as_admin = ["--context", "viewer", "auth", "can-i", "create", "pods", "--as=admin"];
        run.kubectl(&as_admin).await?.exits(1)?.says("cannot impersonate resource \"users\"")?;
    }
    ensure!(lab.sessions().is_empty(), "a stream was opened: {:?}", lab.sessions());
    lab.stop().await
}

#[tokio::test]
async fn kubectl_of_a_creator_falls_back_to_spdy_and_gets_through() -> Outcome {
    let Some(client) = client("1.37", true) else { return Ok(()) };
    let servers = servers(&[]).await?;
    let exec = ["--context", "creator", "exec", "demo", "-c", "shell", "--", "echo", "hi"];
    let kubectl = client.command(&servers.data.join("kubeconfig"), &servers.scratch, &exec).output();
    let output = timeout(Duration::from_secs(90), kubectl).await.map_err(|_| "kubectl did not end")?;
    let output = output.map_err(|error| error.to_string())?;
    ensure!(output.status.success() && output.stdout == b"hi\n", "{output:?}");
    let refused = servers.apiserver.stderr.text();
    ensure!(refused.contains("user.name=\"creator\" subresource=exec"), "no WebSocket was refused before:\n{refused}");
    servers.stop().await
}
