//! A kubelet and its API server, as real processes: the Node that it registers and what it declares there, and who may
//! come in by what that API server says.

mod support;

use std::{fs, path::Path, time::Duration};

use http::{Request, Response};
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair};
use support::{
    Outcome,
    http::{Login, ask, url},
    kubectl::{Client, Run, client},
    lab::{Lab, NO_WEBSOCKETS, Session, Settings, Topology},
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

/// `reader` may get what a node answers, `runner` may also create, `scraper` may get metrics, and `stranger` nothing.
const ROLES: &str = r#"
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: reader}
rules: [{apiGroups: [""], resources: [nodes/proxy], verbs: [get]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: runner}
rules: [{apiGroups: [""], resources: [nodes/proxy], verbs: [get, create], resourceNames: [demo-node]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: scraper}
rules: [{apiGroups: [""], resources: [nodes/metrics], verbs: [get]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: reader}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: reader}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: reader}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: runner}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: runner}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: Group, name: runners}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: scraper}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: scraper}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: scraper}]
"#;

/// A client certificate of the lab's CA.
struct Person {
    cert: String,
    key: String,
}

impl Person {
    fn new(lab: &Lab, name: &str, group: &str) -> Outcome<Self> {
        let read = |file: &Path| fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()));
        let text = |error: rcgen::Error| error.to_string();
        let ca_key = KeyPair::from_pem(&read(&lab.data.join("ca.key"))?).map_err(text)?;
        let ca = Issuer::from_ca_cert_pem(&read(&lab.ca())?, ca_key).map_err(text)?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.distinguished_name.push(DnType::OrganizationName, group);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().map_err(text)?;
        let cert = params.signed_by(&key, &ca).map_err(text)?.pem();
        Ok(Self { cert, key: key.serialize_pem() })
    }

    fn login(&self) -> Login<'_> {
        Login::Certificate(self.cert.as_bytes(), self.key.as_bytes())
    }
}

/// What is asked of the kubelet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    /// A GET of that path.
    Path(&'static str),
    ExecWebSocket,
    /// A GET whose `Upgrade` is not WebSocket's.
    ExecSpdyByGet,
    ExecSpdy,
}

async fn wish(lab: &Lab, login: Login<'_>, wish: Wish) -> Outcome<Response<String>> {
    let kubelet = url(lab.kubelet.as_ref().expect("two processes"))?;
    let exec = format!("{kubelet}/exec/default/demo/shell?command=true&output=1");
    let spdy = |request: http::request::Builder| {
        request
            .header("connection", "Upgrade")
            .header("upgrade", "SPDY/3.1")
            .header("x-stream-protocol-version", "v4.channel.k8s.io")
    };
    let request = match wish {
        Wish::Path(path) => Request::get(format!("{kubelet}{path}")),
        Wish::ExecWebSocket => Request::get(exec)
            .header("connection", "Upgrade")
            .header("upgrade", "websocket")
            .header("sec-websocket-version", "13")
            .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
            .header("sec-websocket-protocol", "v5.channel.k8s.io"),
        Wish::ExecSpdyByGet => spdy(Request::get(exec)),
        Wish::ExecSpdy => spdy(Request::post(exec)),
    };
    ask(&lab.ca(), login, request.body(()).map_err(|error| error.to_string())?).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kubelet_lets_in_whom_its_apiserver_names_and_get_alone_opens_no_stream() -> Outcome {
    let lab = Lab::start_with(Topology::TwoProcesses, Settings { objects: ROLES, ..Settings::default() }).await?;
    let (pods, metrics) = (Wish::Path("/pods"), Wish::Path("/metrics"));
    let streams = [Wish::ExecWebSocket, Wish::ExecSpdyByGet, Wish::ExecSpdy];
    let mut failed = Vec::new();
    for (name, may) in [
        ("stranger", &[][..]),
        ("reader", &[pods]),
        ("runner", &[pods, Wish::ExecWebSocket, Wish::ExecSpdy, Wish::ExecSpdyByGet]),
        ("scraper", &[metrics]),
    ] {
        let person = Person::new(&lab, name, &format!("{name}s"))?;
        for asked in [pods, metrics, Wish::Path("/nothing-here")].into_iter().chain(streams) {
            let answer = wish(&lab, person.login(), asked).await?;
            let verb = match asked {
                // Who may get is refused for what a stream is: a `create`.
                Wish::ExecSpdy => "create",
                Wish::ExecWebSocket | Wish::ExecSpdyByGet if name == "reader" => "create",
                _ => "get",
            };
            let sub = if asked == metrics { "metrics" } else { "proxy" };
            let forbidden = format!("Forbidden (user={name}, verb={verb}, resource=nodes, subresource(s)=[{sub}])\n");
            let code = answer.status().as_u16();
            let ok = match (asked, may.contains(&asked)) {
                (Wish::Path("/nothing-here"), _) if may.contains(&pods) => code == 404,
                (Wish::Path(_), true) => code == 200,
                (_, true) => code == 101,
                (_, false) => code == 403 && answer.body() == &forbidden,
            };
            if !ok {
                failed.push(format!("{name}, {asked:?}: {code} {}", answer.body()));
            }
        }
    }
    for asked in [pods, metrics].into_iter().chain(streams) {
        let answer = wish(&lab, Login::Nobody, asked).await?;
        if answer.status() != 401 {
            failed.push(format!("nobody, {asked:?}: {} {}", answer.status(), answer.body()));
        }
    }
    ensure!(wish(&lab, Login::Nobody, Wish::Path("/healthz")).await?.body() == "ok", "/healthz");
    ensure!(failed.is_empty(), "{}\n{}", failed.join("\n"), lab.logs());
    lab.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_its_apiserver_a_kubelet_lets_in_only_whom_it_has_asked_about() -> Outcome {
    let settings = Settings { objects: ROLES, ..Settings::default() };
    let mut lab = Lab::start_with(Topology::TwoProcesses, settings).await?;
    let (known, unknown) = (Person::new(&lab, "known", "runners")?, Person::new(&lab, "unknown", "runners")?);
    let answer = wish(&lab, known.login(), Wish::ExecWebSocket).await?;
    ensure!(answer.status() == 101, "{} {}", answer.status(), answer.body());
    lab.apiserver.kill().await?;
    for (asked, verb) in [(Wish::ExecWebSocket, "get"), (Wish::ExecSpdy, "create"), (Wish::Path("/pods"), "get")] {
        let answer = wish(&lab, unknown.login(), asked).await?;
        let said = format!("Authorization error (user=unknown, verb={verb}, resource=nodes, subresource=proxy)\n");
        ensure!(answer.status() == 500 && *answer.body() == said, "{asked:?}: {answer:?}");
        let answer = wish(&lab, known.login(), asked).await?;
        ensure!(answer.status() == 101 || answer.status() == 200, "{asked:?}: {answer:?}");
    }
    let log = lab.kubelet.as_ref().expect("two processes").stderr.text();
    for line in ["stream refused: the authorizer failed", "request refused: the authorizer failed"] {
        let told = log.lines().any(|text| text.contains(line) && text.contains("connection refused"));
        ensure!(told, "{line:?} is missing:\n{log}");
    }
    Ok(())
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
