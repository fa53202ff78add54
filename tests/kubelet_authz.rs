//! Who may come in at a kubelet, by what its API server says: every kind of request by callers who may `get`, `create`,
//! both or neither on its node, each with a client certificate.

mod support;

use std::{fs, path::Path};

use http::{Request, Response};
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair};
use support::{
    Outcome,
    forms::Form,
    http::{Login, ask, url},
    lab::{Lab, Settings, Topology},
};

/// `reader` may get what a node answers, `creator` may create, runners may both, `scraper` may get metrics, and
/// `stranger` nothing.
const ROLES: &str = r#"
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: reader}
rules: [{apiGroups: [""], resources: [nodes/proxy], verbs: [get]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: creator}
rules: [{apiGroups: [""], resources: ["*/proxy"], verbs: [create]}]
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
metadata: {name: creator}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: creator}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: creator}]
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

/// A request to the kubelet for something that is no stream.
async fn get(lab: &Lab, login: Login<'_>, path: &str) -> Outcome<Response<String>> {
    let request = Request::get(format!("{}{path}", kubelet(lab)?)).body(()).map_err(|error| error.to_string())?;
    ask(&lab.ca(), login, request).await
}

/// A request to the kubelet for a stream.
async fn stream(lab: &Lab, login: Login<'_>, form: Form, method: &str) -> Outcome<Response<String>> {
    let path = match form.subresource() {
        "exec" => "/exec/default/demo/shell?command=true&output=1",
        _ => "/portForward/default/demo",
    };
    ask(&lab.ca(), login, form.request(method, &format!("{}{path}", kubelet(lab)?))?).await
}

fn kubelet(lab: &Lab) -> Outcome<String> {
    url(lab.kubelet.as_ref().expect("two processes"))
}

/// What a caller gets who may.
fn allowed(form: Form, method: &str) -> (u16, &'static str) {
    match form {
        // As recorded: see tests/transcripts/kubelet/plain-GET-exec.txt.
        Form::Plain => (500, "Upgrade request required\n"),
        Form::Foo => (400, "unable to upgrade: header X-Stream-Protocol-Version does not exist in request\n"),
        _ if form.is_websocket() && method == "POST" => (405, "websocket: the method is not GET\n"),
        _ => (101, ""),
    }
}

fn forbidden(name: &str, verb: &str, subresource: &str) -> String {
    format!("Forbidden (user={name}, verb={verb}, resource=nodes, subresource(s)=[{subresource}])\n")
}

async fn lab() -> Outcome<Lab> {
    Lab::start_with(Topology::TwoProcesses, Settings { objects: ROLES, ..Settings::default() }).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_get_takes_both_verbs_on_the_node_and_a_post_create_whatever_the_upgrade() -> Outcome {
    let lab = lab().await?;
    let mut failed = Vec::new();
    for (name, gets, creates) in
        [("stranger", false, false), ("reader", true, false), ("creator", false, true), ("runner", true, true)]
    {
        let person = Person::new(&lab, name, &format!("{name}s"))?;
        for form in Form::ALL {
            for method in ["GET", "POST"] {
                let answer = stream(&lab, person.login(), form, method).await?;
                let refused = match method {
                    "GET" if !gets => Some("get"),
                    _ if !creates => Some("create"),
                    _ => None,
                };
                let (code, body) = match (refused, allowed(form, method)) {
                    (Some(verb), _) => (403, forbidden(name, verb, "proxy")),
                    (None, (code, body)) => (code, body.to_owned()),
                };
                if (answer.status().as_u16(), answer.body()) != (code, &body) {
                    failed.push(format!("{method} {form:?} by {name}: {} {:?}", answer.status(), answer.body()));
                }
            }
        }
    }
    for form in Form::ALL {
        let answer = stream(&lab, Login::Nobody, form, "GET").await?;
        if answer.status() != 401 {
            failed.push(format!("{form:?} by nobody: {} {}", answer.status(), answer.body()));
        }
    }
    ensure!(failed.is_empty(), "{}\n{}", failed.join("\n"), lab.logs());
    lab.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_stream_takes_get_and_metrics_have_a_subresource_of_their_own() -> Outcome {
    let lab = lab().await?;
    let mut failed = Vec::new();
    for (name, proxy, metrics) in [
        ("stranger", false, false),
        ("creator", false, false),
        ("reader", true, false),
        ("runner", true, false),
        ("scraper", false, true),
    ] {
        let person = Person::new(&lab, name, &format!("{name}s"))?;
        for (path, may, subresource, code) in [
            ("/pods", proxy, "proxy", 200),
            ("/metrics", metrics, "metrics", 200),
            ("/nothing-here", proxy, "proxy", 404),
            ("/exec", proxy, "proxy", 404),
            ("//pods", proxy, "proxy", 404),
            ("/%70ods", proxy, "proxy", 404),
            ("/metrics/", proxy, "proxy", 404),
        ] {
            let answer = get(&lab, person.login(), path).await?;
            let ok = match may {
                true => answer.status() == code,
                false => answer.status() == 403 && *answer.body() == forbidden(name, "get", subresource),
            };
            if !ok {
                failed.push(format!("{path} by {name}: {} {}", answer.status(), answer.body()));
            }
        }
    }
    for path in ["/pods", "/metrics", "/nothing-here"] {
        let answer = get(&lab, Login::Nobody, path).await?;
        if answer.status() != 401 {
            failed.push(format!("{path} by nobody: {} {}", answer.status(), answer.body()));
        }
    }
    ensure!(get(&lab, Login::Nobody, "/healthz").await?.body() == "ok", "/healthz");
    ensure!(failed.is_empty(), "{}\n{}", failed.join("\n"), lab.logs());
    lab.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_its_apiserver_a_kubelet_lets_in_only_whom_it_has_asked_about() -> Outcome {
    let mut lab = lab().await?;
    let (known, unknown) = (Person::new(&lab, "known", "runners")?, Person::new(&lab, "unknown", "runners")?);
    let answer = stream(&lab, known.login(), Form::V5, "GET").await?;
    ensure!(answer.status() == 101, "{} {}", answer.status(), answer.body());
    lab.apiserver.kill().await?;
    for (method, form, verb) in
        [("GET", Some(Form::V5), "get"), ("POST", Some(Form::Spdy), "create"), ("GET", None, "get")]
    {
        let asked = async |person: &Person| match form {
            Some(form) => stream(&lab, person.login(), form, method).await,
            None => get(&lab, person.login(), "/pods").await,
        };
        let answer = asked(&unknown).await?;
        let said = format!("Authorization error (user=unknown, verb={verb}, resource=nodes, subresource=proxy)\n");
        ensure!(answer.status() == 500 && *answer.body() == said, "{method} {form:?}: {answer:?}");
        let answer = asked(&known).await?;
        ensure!(answer.status() == if form.is_some() { 101 } else { 200 }, "{method} {form:?}: {answer:?}");
    }
    let log = lab.kubelet.as_ref().expect("two processes").stderr.text();
    for line in ["stream refused: the authorizer failed", "request refused: the authorizer failed"] {
        let told = log.lines().any(|text| text.contains(line) && text.contains("connection refused"));
        ensure!(told, "{line:?} is missing:\n{log}");
    }
    Ok(())
}
