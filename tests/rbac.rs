//! Who may open a stream, by the example API server's RBAC: every kind of request by callers who may `get`, `create`, both
//! or neither, and what kubectl prints to those who may not.
//!
//! The API server speaks TLS and knows its callers by their tokens; the kubelet behind it lets everybody in.

mod support;

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use support::{
    Outcome, Scratch,
    kubectl::{Run, client},
    lab::{Lab, Topology, example},
    process::Process,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{
    TlsConnector,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::ring,
        pki_types::{CertificateDer, ServerName, pem::PemObject},
    },
};

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
    address: SocketAddr,
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

/// Where a process that is ready listens.
fn address(process: &Process) -> Outcome<SocketAddr> {
    let said = process.stdout.text();
    let address = said.split_once("://").and_then(|(_, rest)| rest.split_whitespace().next());
    address.and_then(|address| address.parse().ok()).ok_or_else(|| format!("no address:\n{said}"))
}

async fn servers(flags: &[&str]) -> Outcome<Servers> {
    let mut kubelet = example("kubelet");
    let kubelet = Process::start("kubelet", kubelet.args(["--listen", "127.0.0.1:0", "--insecure"]))?;
    kubelet.ready().await?;
    let port = address(&kubelet)?.port();
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
    Ok(Servers { address: address(&apiserver)?, apiserver, kubelet, data, scratch })
}

/// An answer: its status, and its body if it is no 101.
type Answer = (u16, String);

/// Sends one request on a connection of its own, with `as_` for a token.
async fn ask(servers: &Servers, as_: &str, method: &str, path: &str, headers: &str) -> Outcome<Answer> {
    let tls = connector(&servers.data.join("ca.crt"))?;
    let tcp = TcpStream::connect(servers.address).await.map_err(|error| error.to_string())?;
    let name = ServerName::try_from("localhost").expect("a name");
    let mut io = tls.connect(name, tcp).await.map_err(|error| error.to_string())?;
    let head = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {as_}\r\n{headers}\r\n");
    io.write_all(head.as_bytes()).await.map_err(|error| error.to_string())?;
    let mut got = Vec::new();
    while !got.ends_with(b"\r\n\r\n") {
        got.push(io.read_u8().await.map_err(|error| format!("{error} after {:?}", String::from_utf8_lossy(&got)))?);
    }
    let head = String::from_utf8_lossy(&got).to_ascii_lowercase();
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or("no status")?;
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    let mut body = vec![0; if status == 101 { 0 } else { length.unwrap_or(0) }];
    io.read_exact(&mut body).await.map_err(|error| error.to_string())?;
    Ok((status, String::from_utf8_lossy(&body).trim_end().to_owned()))
}

fn connector(ca: &Path) -> Outcome<TlsConnector> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca).map_err(|error| error.to_string())?).map_err(|e| e.to_string())?;
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
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

fn upgrade_required() -> Answer {
    let body = r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"Upgrade request required","reason":"BadRequest","code":400}"#;
    (400, body.to_owned())
}

/// What is neither WebSocket nor plain goes on to the kubelet as it is, which takes it for a SPDY request.
const KUBELETS_WORDS: &str = "unable to upgrade: header X-Stream-Protocol-Version does not exist in request";

/// A way to ask for a stream.
struct Form {
    name: &'static str,
    subresource: &'static str,
    headers: String,
    /// What a caller gets who may.
    allowed: Answer,
}

fn forms() -> Vec<Form> {
    let websocket = |protocol: Option<&str>| {
        let protocol = protocol.map(|name| format!("Sec-WebSocket-Protocol: {name}\r\n")).unwrap_or_default();
        format!(
            "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{protocol}"
        )
    };
    let switched = || (101, String::new());
    let form = |name, headers, allowed| Form { name, subresource: "exec", headers, allowed };
    let spdy = "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\n";
    let tunnel = websocket(Some("SPDY/3.1+portforward.k8s.io"));
    vec![
        form("v5", websocket(Some("v5.channel.k8s.io")), switched()),
        form("v4", websocket(Some("v4.channel.k8s.io")), switched()),
        form("none", websocket(None), switched()),
        Form { subresource: "portforward", ..form("tunnel", tunnel, switched()) },
        form("SPDY/3.1", spdy.to_owned(), switched()),
        form("foo", "Connection: Upgrade\r\nUpgrade: foo\r\n".to_owned(), (400, KUBELETS_WORDS.to_owned())),
        form("plain", String::new(), upgrade_required()),
    ]
}

fn path(form: &Form) -> String {
    match form.subresource {
        "exec" => exec_of("default", "demo"),
        other => format!("/api/v1/namespaces/default/pods/demo/{other}"),
    }
}

/// What `caller` gets who asks by GET, `create` being asked for or not.
fn by_get(form: &Form, caller: &str, create: bool) -> Answer {
    match caller {
        "viewer" if create => forbidden("demo", ""),
        "viewer" | "both" | "admin" => form.allowed.clone(),
        _ => forbidden("demo", &cannot(caller, "get", form.subresource, "default")),
    }
}

#[tokio::test]
async fn a_get_takes_both_verbs_and_a_post_create_whatever_the_upgrade() -> Outcome {
    let servers = servers(&[]).await?;
    for form in forms() {
        let path = path(&form);
        for caller in ["viewer", "creator", "both", "neither", "admin"] {
            let answer = ask(&servers, caller, "GET", &path, &form.headers).await?;
            let wanted = by_get(&form, caller, true);
            ensure!(answer == wanted, "GET {} by {caller}: {answer:?}, not {wanted:?}", form.name);
        }
    }
    for form in forms().iter().filter(|form| ["SPDY/3.1", "plain"].contains(&form.name)) {
        let headers = format!("{}Content-Length: 0\r\n", form.headers);
        for caller in ["viewer", "creator", "both", "neither", "admin"] {
            let answer = ask(&servers, caller, "POST", &path(form), &headers).await?;
            let wanted = match caller {
                "creator" | "both" | "admin" => form.allowed.clone(),
                _ => forbidden("demo", &cannot(caller, "create", "exec", "default")),
            };
            ensure!(answer == wanted, "POST {} by {caller}: {answer:?}, not {wanted:?}", form.name);
        }
    }
    servers.stop().await
}

#[tokio::test]
async fn with_the_gate_off_get_alone_opens_a_stream_by_get() -> Outcome {
    let servers = servers(&["--feature-gates=AuthorizePodWebsocketUpgradeCreatePermission=false"]).await?;
    for form in forms() {
        for caller in ["viewer", "creator", "both", "neither"] {
            let answer = ask(&servers, caller, "GET", &path(&form), &form.headers).await?;
            let wanted = by_get(&form, caller, false);
            ensure!(answer == wanted, "GET {} by {caller}: {answer:?}, not {wanted:?}", form.name);
        }
    }
    let spdy = "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nContent-Length: 0\r\n";
    let answer = ask(&servers, "viewer", "POST", &exec_of("default", "demo"), spdy).await?;
    ensure!(answer == forbidden("demo", &cannot("viewer", "create", "exec", "default")), "POST: {answer:?}");
    servers.stop().await
}

#[tokio::test]
async fn who_may_not_is_not_told_which_pods_there_are_and_roles_end_at_their_namespace() -> Outcome {
    let servers = servers(&[]).await?;
    let v5 = &forms()[0];
    let unknown = r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"pods \"nosuch\" not found","reason":"NotFound","details":{"name":"nosuch","kind":"pods"},"code":404}"#;
    for (caller, namespace, pod, wanted) in [
        ("viewer", "default", "nosuch", forbidden("nosuch", "")),
        ("both", "default", "nosuch", (404, unknown.to_owned())),
        ("local", "default", "demo", (101, String::new())),
        ("local", "other", "demo", forbidden("demo", &cannot("local", "get", "exec", "other"))),
        // Its role names the pod.
        ("local", "default", "nosuch", forbidden("nosuch", &cannot("local", "get", "exec", "default"))),
    ] {
        let answer = ask(&servers, caller, "GET", &exec_of(namespace, pod), &v5.headers).await?;
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
        let impersonating = ["auth", "can-i", "create", "pods", "--as=viewer"];
        run.kubectl(&impersonating).await?.exits(1)?.says("impersonation is not supported")?;
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
