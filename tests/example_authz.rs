//! How the example API server decides: roles and bindings as upstream evaluates and words them, reviews, and what nodes
//! may declare.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, as it should")]

#[path = "../examples/support/mod.rs"]
mod support;

use std::{
    fs,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use axum::{Router, body::Body};
use http::{Method, Request};
use serde_json::{Value, json};
use support::{
    Stack,
    api::{self, Api},
    authn::Authenticator,
    logs::Logs,
    objects::{Key, Store},
    protobuf,
    rbac::{About, Asked, RbacAuthorizer},
    tokens::{self, Tokens},
};
use tokio_util::sync::CancellationToken;
use tower::{Service, service_fn};
use tower_kube_streaming::{
    layers::synthetic_authz::Verdict,
    upgrade::{Caller, Dialect},
};

/// A file of this test's own.
fn file(content: &str) -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("example_authz");
    support::create_private_dir(&dir).unwrap();
    let file = dir.join(format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
    fs::write(&file, content).unwrap();
    file
}

fn rbac(yaml: &str) -> RbacAuthorizer {
    RbacAuthorizer::new(Arc::new(Store::from_manifests(&[file(yaml)]).unwrap()))
}

/// A role and its binding, one line each.
fn cluster(role: &str, rule: &str, subject: &str) -> String {
    format!(
        "{{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRole, metadata: {{name: {role}}}, rules: [{rule}]}}\n---\n\
         {{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRoleBinding, metadata: {{name: {role}}}, \
         roleRef: {{kind: ClusterRole, name: {role}}}, subjects: [{subject}]}}\n"
    )
}

fn jane() -> Caller {
    Caller::new("jane", ["dev", "system:authenticated"])
}

/// `get pods/exec default/demo` and the like; a path begins with `/`.
fn asked(words: &str) -> Asked {
    let mut words = words.split(' ');
    let (verb, what) = (words.next().unwrap().to_owned(), words.next().unwrap());
    if what.starts_with('/') {
        return Asked { verb, about: About::Path(what.to_owned()) };
    }
    let (of, group) = what.split_once('.').unwrap_or((what, ""));
    let (resource, subresource) = of.split_once('/').unwrap_or((of, ""));
    let (namespace, name) = words.next().map_or(("", ""), |at| at.split_once('/').unwrap());
    let [group, resource, subresource, namespace, name] =
        [group, resource, subresource, namespace, name].map(str::to_owned);
    Asked { verb, about: About::Resource { group, resource, subresource, namespace, name } }
}

fn may(rbac: &RbacAuthorizer, caller: &Caller, words: &str) -> bool {
    rbac.decide(caller, &asked(words)).verdict == Verdict::Allow
}

const JANE: &str = "{kind: User, name: jane}";

#[test]
fn a_rule_allows_what_it_names_and_nothing_else() {
    for (rule, allowed, not) in [
        (
            r#"{apiGroups: [""], resources: [pods], verbs: [get]}"#,
            &["get pods a/b", "get pods"][..],
            &["list pods", "get pods/exec a/b", "get pods.apps", "get nodes", "get /pods"][..],
        ),
        (
            r#"{apiGroups: ["*"], resources: ["*"], verbs: ["*"]}"#,
            &["get pods/exec a/b", "delete x.y", "create pods"],
            &["get /metrics"],
        ),
        (
            r#"{apiGroups: [""], resources: [pods/exec, "*/attach"], verbs: [create]}"#,
            &["create pods/exec a/b", "create pods/attach a/b", "create x/attach"],
            &["create pods", "create exec", "create x/exec", "get pods/exec a/b", "create attach"],
        ),
        (
            // Upstream takes these for names, not for patterns.
            r#"{apiGroups: [""], resources: ["pods/*", "*/*", "p*"], verbs: [get]}"#,
            &[],
            &["get pods/exec a/b", "get pods a/b", "get p"],
        ),
        (r#"{apiGroups: ["a*"], resources: [pods], verbs: ["g*"]}"#, &[], &["get pods", "get pods.apps", "g pods"]),
        (
            r#"{apiGroups: [""], resources: [pods], resourceNames: [b, c], verbs: [get, create]}"#,
            &["get pods a/b", "get pods x/c"],
            &["get pods a/d", "get pods a/", "create pods a/"],
        ),
        (
            r"{nonResourceURLs: [/metrics, /debug/*], verbs: [get]}",
            &["get /metrics", "get /debug/", "get /debug/x/y"],
            &["post /metrics", "get /metrics/x", "get /debug", "get /", "get metrics", "get pods"],
        ),
    ] {
        let rbac = rbac(&cluster("role", rule, JANE));
        for words in allowed {
            assert!(may(&rbac, &jane(), words), "{rule} must allow {words}");
            assert!(!may(&rbac, &Caller::new("joe", ["dev"]), words), "nobody else: {words}");
        }
        for words in not {
            assert!(!may(&rbac, &jane(), words), "{rule} must not allow {words}");
        }
    }
}

#[test]
fn the_reason_names_binding_role_and_subject_as_upstream_does() {
    let rule = r#"{apiGroups: [""], resources: [pods], verbs: [get]}"#;
    let account = Caller::new("system:serviceaccount:ci:robot", ["system:serviceaccounts"]);
    for (subject, caller, named) in [
        (JANE, jane(), r#"User "jane""#),
        ("{kind: Group, name: dev}", jane(), r#"Group "dev""#),
        ("{kind: ServiceAccount, name: robot, namespace: ci}", account, r#"ServiceAccount "robot/ci""#),
    ] {
        let decision = rbac(&cluster("see", rule, subject)).decide(&caller, &asked("get pods a/b"));
        let reason = format!(r#"RBAC: allowed by ClusterRoleBinding "see" of ClusterRole "see" to {named}"#);
        assert_eq!((decision.verdict, decision.reason), (Verdict::Allow, reason));
    }
    let nobody = rbac("").decide(&jane(), &asked("get pods a/b"));
    assert_eq!((nobody.verdict, &*nobody.reason), (Verdict::NoOpinion, ""));
    let masters = rbac("").decide(&Caller::new("root", ["system:masters"]), &asked("delete pods a/b"));
    assert_eq!((masters.verdict, &*masters.reason), (Verdict::Allow, ""));
}

const NAMESPACED: &str = r#"
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: shell, namespace: team}
rules: [{apiGroups: [""], resources: [pods/exec], verbs: [get, create]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: shells, namespace: team}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: shell}
subjects: [{kind: User, name: jane}, {kind: ServiceAccount, name: robot}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: lost, namespace: team}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: nosuch}
subjects: [{kind: Group, name: dev}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: elsewhere, namespace: other}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: shell}
subjects: [{kind: User, name: jane}]
"#;

#[test]
fn a_role_binding_is_about_its_namespace_and_a_role_that_is_not_there_gives_nothing() {
    let rbac = rbac(NAMESPACED);
    let decision = rbac.decide(&jane(), &asked("create pods/exec team/demo"));
    assert_eq!(decision.reason, r#"RBAC: allowed by RoleBinding "shells/team" of Role "shell" to User "jane""#);
    let robot = Caller::new("system:serviceaccount:team:robot", ["x"]);
    let decision = rbac.decide(&robot, &asked("create pods/exec team/demo"));
    assert!(decision.reason.ends_with(r#"to ServiceAccount "robot/team""#), "{}", decision.reason);
    assert!(!may(&rbac, &Caller::new("system:serviceaccount:default:robot", ["x"]), "create pods/exec team/demo"));

    for elsewhere in ["create pods/exec default/demo", "create pods/exec", "create pods/exec teams/demo"] {
        assert!(!may(&rbac, &jane(), elsewhere), "{elsewhere}");
    }
    for (what, missing) in [
        ("delete pods team/demo", r#"RBAC: clusterrole.rbac.authorization.k8s.io "nosuch" not found"#),
        // The role of that name lies in another namespace.
        ("create pods/exec other/demo", r#"RBAC: role.rbac.authorization.k8s.io "shell" not found"#),
    ] {
        let decision = rbac.decide(&jane(), &asked(what));
        assert_eq!((decision.verdict, &*decision.reason), (Verdict::NoOpinion, missing));
    }
}

#[test]
fn a_kubelet_may_what_it_needs_whatever_manifests_are_given() {
    let rbac = rbac("# nothing\n");
    let kubelet = Caller::new("system:node:demo-node", ["system:nodes", "system:authenticated"]);
    for allowed in [
        "create nodes",
        "get nodes /demo-node",
        "patch nodes/status /demo-node",
        "create subjectaccessreviews.authorization.k8s.io",
        "watch pods",
        "patch pods/status default/demo",
        "get /api",
    ] {
        assert!(may(&rbac, &kubelet, allowed), "{allowed}");
    }
    for not in
        ["delete nodes /demo-node", "create pods/exec default/demo", "get pods/exec default/demo", "get nodes/proxy"]
    {
        assert!(!may(&rbac, &kubelet, not), "{not}");
    }
    assert!(!may(&rbac, &jane(), "create subjectaccessreviews.authorization.k8s.io"));
    assert!(may(&rbac, &jane(), "create selfsubjectaccessreviews.authorization.k8s.io"));
    assert!(!may(&rbac, &Caller::anonymous(), "create selfsubjectaccessreviews.authorization.k8s.io"));
}

#[test]
fn a_manifest_that_grants_otherwise_than_it_reads_is_refused() {
    let role =
        |rest: &str| format!("{{apiVersion: rbac.authorization.k8s.io/v1, kind: Role, metadata: {{name: r}}, {rest}}}");
    let cluster = |rest: &str| {
        format!("{{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRoleBinding, metadata: {{name: r}}, {rest}}}")
    };
    let reference = "roleRef: {kind: ClusterRole, name: r}";
    for (yaml, why) in [
        ("{apiVersion: v1, kind: Role, metadata: {name: r}}".into(), "apiVersion must be rbac.authorization.k8s.io/v1"),
        ("{apiVersion: rbac.authorization.k8s.io/v1, kind: Role}".into(), "metadata.name is missing"),
        (
            role(r#"rules: [{apiGroups: [""], resources: [pods]}]"#),
            "Role \"r\": rules[0]: verbs must contain at least one value",
        ),
        (role("rules: [{verbs: [get], resources: [pods]}]"), "resource rules must supply at least one api group"),
        (role(r#"rules: [{verbs: [get], apiGroups: [""]}]"#), "resource rules must supply at least one resource"),
        (role("rules: [{verbs: [get], nonResourceURLs: [/x]}]"), "cannot apply to non-resource URLs"),
        (role(r#"rules: [{verbs: [get], apiGroups: [""], resources: [pods], resourceName: [a]}]"#), "unknown field"),
        (
            role("rules: []").replace("name: r", "name: r, namespce: a"),
            "Role \"r\": unknown field `namespce` in metadata",
        ),
        (role("rules: []").replace("name: r", "name: r, namespace: [a]"), "metadata.namespace is no name"),
        (role("rules: []").replace("name: r", "name: r, namespace: ''"), "metadata.namespace is no name"),
        (
            cluster(reference).replace("metadata: {name: r}", "metadata: {name: r, namespace: a}"),
            "ClusterRoleBinding \"r\": it counts in all namespaces, so it has none",
        ),
        (role("rules: pods"), "invalid type"),
        (role("aggregationRule: {}"), "unknown field"),
        (cluster("subjects: []"), "missing field `roleRef`"),
        (cluster("roleRef: {kind: Role, name: r}"), "roleRef.kind Role is not supported here"),
        (cluster("roleRef: {kind: ClusterRole, name: r, apiGroup: v1}"), "roleRef.apiGroup must be"),
        (cluster(&format!("{reference}, subjects: [{{kind: Robot, name: x}}]")), "kind Robot is not supported"),
        (cluster(&format!("{reference}, subjects: [{{kind: User, name: ''}}]")), "a name is missing"),
        (cluster(&format!("{reference}, subjects: [{{kind: User, name: x, apiGroup: v1}}]")), "is not of API group"),
        (
            cluster(&format!("{reference}, subjects: [{{kind: ServiceAccount, name: x}}]")),
            "the namespace of \"x\" is missing",
        ),
        (format!("{0}\n---\n{0}", role("rules: []")), "there already is one"),
        (format!("{0}\n---\n{0}", cluster(reference)), "there already is one"),
    ] {
        let error = Store::from_manifests(&[file(&yaml)]).unwrap_err().to_string();
        assert!(error.contains(why), "{yaml}: {error}");
    }
}

#[test]
fn a_request_is_asked_about_by_verb_and_resource_as_upstream_does() {
    for (method, uri, words) in [
        ("GET", "/api/v1/pods", "list pods"),
        ("HEAD", "/api/v1/pods/", "list pods"),
        ("GET", "/api/v1/pods?watch=1", "watch pods"),
        ("GET", "/api/v1/pods?watch=false", "list pods"),
        ("GET", "/api/v1/nodes?fieldSelector=metadata.name%3Da", "list nodes /a"),
        ("GET", "/api/v1/nodes?fieldSelector=metadata.name!%3Da", "list nodes"),
        ("GET", "/api/v1/nodes/a?watch=1", "get nodes /a"),
        ("GET", "/api/v1/namespaces/n/pods", "list pods n/"),
        ("PATCH", "/api/v1/namespaces/n/pods/p/status", "patch pods/status n/p"),
        ("GET", "/api/v1/namespaces/n/pods/p%2Fq", "get pods n/p/q"),
        ("GET", "/api/v1/namespaces/n", "get namespaces n/n"),
        ("PUT", "/api/v1/namespaces/n/status", "update namespaces/status n/n"),
        ("DELETE", "/apis/apps/v1/namespaces/n/deployments", "deletecollection deployments.apps n/"),
        (
            "POST",
            "/apis/authorization.k8s.io/v1/subjectaccessreviews",
            "create subjectaccessreviews.authorization.k8s.io",
        ),
        ("GET", "/api/v1", "get /api/v1"),
        ("GET", "/apis/apps/v1", "get /apis/apps/v1"),
        ("POST", "/x%20y", "post /x y"),
    ] {
        let got = Asked::of(&method.parse::<Method>().unwrap(), &uri.parse().unwrap());
        let wanted = match words.split_once(" /x") {
            Some((verb, _)) => Asked { verb: verb.into(), about: About::Path("/x y".into()) },
            None => asked(words),
        };
        assert_eq!(got, wanted, "{method} {uri}");
    }
}

/// An API server with these manifests, and tokens for `admin`, `jane` and a kubelet.
fn server(yaml: &str, declared: bool) -> Router {
    let store = Arc::new(Store::from_manifests(&[file(yaml)]).unwrap().declared_features(declared));
    let tokens = "admin,admin,1,system:masters\njane,jane,2,dev\nkubelet,system:node:n,3,system:nodes\n";
    let tokens = tokens::load(&file(tokens)).unwrap();
    let authenticator = Authenticator::known(Tokens::new(&tokens), Dialect::ApiServer);
    let streams = service_fn(async |_: Request<Body>| Ok(http::Response::new(Body::empty())));
    let api = Api { store, metrics: Arc::default(), stop: CancellationToken::new(), logs: Logs::none() };
    api::router(api, Stack::new(streams), authenticator)
}

async fn send(server: &mut Router, token: &str, method: &str, path: &str, kind: &str, body: Vec<u8>) -> (u16, Value) {
    let request = Request::builder().method(method).uri(path).header("authorization", format!("Bearer {token}"));
    let request = request.header("content-type", kind).body(Body::from(body)).unwrap();
    let response = server.call(request).await.unwrap();
    let status = response.status().as_u16();
    let body = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
    (status, serde_json::from_slice(&body).unwrap_or_else(|_| String::from_utf8_lossy(&body).into_owned().into()))
}

async fn post(server: &mut Router, token: &str, path: &str, body: Value) -> (u16, Value) {
    send(server, token, "POST", path, "application/json", body.to_string().into_bytes()).await
}

const SELF: &str = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
const SUBJECT: &str = "/apis/authorization.k8s.io/v1/subjectaccessreviews";

fn review(kind: &str, spec: Value) -> Value {
    json!({ "apiVersion": "authorization.k8s.io/v1", "kind": kind, "spec": spec })
}

#[tokio::test]
async fn who_asks_about_themselves_is_told_what_the_server_would_do() {
    let rule = r#"{apiGroups: [""], resources: [pods/exec], verbs: [get]}"#;
    let mut server = server(&cluster("see", rule, JANE), true);
    let ask = |verb: &str| {
        let attributes =
            json!({ "namespace": "n", "verb": verb, "version": "*", "resource": "pods", "subresource": "exec" });
        review("SelfSubjectAccessReview", json!({ "resourceAttributes": attributes }))
    };
    let reason = "RBAC: allowed by ClusterRoleBinding \"see\" of ClusterRole \"see\" to User \"jane\"";
    let (code, answer) = post(&mut server, "jane", SELF, ask("get")).await;
    assert_eq!((code, &answer["status"]), (201, &json!({ "allowed": true, "reason": reason })));
    assert_eq!(answer["kind"], "SelfSubjectAccessReview");
    assert_eq!(answer["spec"], ask("get")["spec"]);
    assert_eq!(post(&mut server, "jane", SELF, ask("create")).await.1["status"], json!({ "allowed": false }));
    assert_eq!(post(&mut server, "admin", SELF, ask("create")).await.1["status"], json!({ "allowed": true }));
    let path = json!({ "nonResourceAttributes": { "path": "/api/v1", "verb": "get" } });
    let answer = post(&mut server, "jane", SELF, review("SelfSubjectAccessReview", path)).await.1;
    assert_eq!(answer["status"]["allowed"], true);
}

#[tokio::test]
async fn who_may_ask_about_others_is_told_of_user_and_groups() {
    let rule = r#"{apiGroups: [""], resources: [nodes/proxy], verbs: [create]}"#;
    let mut server = server(&cluster("ops", rule, "{kind: Group, name: ops}"), true);
    let ask = |user: &str, groups: &[&str]| {
        let attributes = json!({ "verb": "create", "resource": "nodes", "subresource": "proxy", "name": "n" });
        let extra = json!({ "scopes": ["a"] });
        let spec =
            json!({ "user": user, "groups": groups, "uid": "7", "extra": extra, "resourceAttributes": attributes });
        review("SubjectAccessReview", spec)
    };
    for (user, groups, allowed) in [("a", &["ops"][..], true), ("a", &["dev"], false), ("", &["system:masters"], true)]
    {
        let (code, answer) = post(&mut server, "kubelet", SUBJECT, ask(user, groups)).await;
        assert_eq!((code, &answer["status"]["allowed"]), (201, &json!(allowed)), "{user} {groups:?}");
    }
    let (code, answer) = post(&mut server, "jane", SUBJECT, ask("a", &["ops"])).await;
    assert_eq!(code, 403);
    let why = "subjectaccessreviews.authorization.k8s.io is forbidden: User \"jane\" cannot create resource \
               \"subjectaccessreviews\" in API group \"authorization.k8s.io\" at the cluster scope";
    assert_eq!(answer["message"], why);
    assert_eq!(post(&mut server, "kubelet", SUBJECT, ask("", &[])).await.0, 422);
}

#[tokio::test]
async fn a_review_that_asks_nothing_or_two_things_is_refused() {
    let mut server = server("", true);
    let (resource, path) = (json!({ "verb": "get", "resource": "pods" }), json!({ "verb": "get", "path": "/" }));
    for (body, code) in [
        (review("SelfSubjectAccessReview", json!({})), 422),
        (
            review("SelfSubjectAccessReview", json!({ "resourceAttributes": resource, "nonResourceAttributes": path })),
            422,
        ),
        (review("SelfSubjectAccessReview", json!({ "resourceAttributes": { "verb": 7 } })), 400),
        (review("SubjectAccessReview", json!({ "nonResourceAttributes": path })), 400),
        (json!({ "kind": "SelfSubjectAccessReview" }), 400),
        (json!("x"), 400),
    ] {
        assert_eq!(post(&mut server, "jane", SELF, body.clone()).await.0, code, "{body}");
    }
    let large = vec![b' '; 3 << 20];
    assert_eq!(send(&mut server, "jane", "POST", SELF, "application/json", large).await.0, 413);
}

/// What kubectl 1.37 sends for `auth can-i create pods --subresource=exec`, but for the names.
const IN_PROTOBUF: &[u8] = b"k8s\0\n2\n\x17authorization.k8s.io/v1\x12\x17SelfSubjectAccessReview\x12C\n\x10\n\0\x12\0\x1a\0\"\0*\x002\x008\0B\0\x12%\n#\n\x07default\x12\x06create\x1a\0\"\0*\x04pods2\x04exec:\0\x1a\x08\x08\0\x12\0\x1a\0 \0\x1a\0\"\0";

#[tokio::test]
async fn kubectls_protobuf_is_read_as_the_json_would_be() {
    let asked = json!({
        "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
        "spec": { "resourceAttributes": {
            "namespace": "default", "verb": "create", "group": "", "resource": "pods", "subresource": "exec", "name": "",
        } },
    });
    assert_eq!(protobuf::review(IN_PROTOBUF, protobuf::ACCESS).unwrap(), asked);
    let rule = r#"{apiGroups: [""], resources: [pods/exec], verbs: [create]}"#;
    let mut server = server(&cluster("run", rule, JANE), true);
    let kind = protobuf::MEDIA_TYPE;
    let (code, answer) = send(&mut server, "jane", "POST", SELF, kind, IN_PROTOBUF.to_vec()).await;
    assert_eq!((code, &answer["status"]["allowed"]), (201, &json!(true)));
}

#[tokio::test]
async fn protobuf_cut_anywhere_or_nonsense_is_refused() {
    let whole = IN_PROTOBUF.len();
    // The last two fields of the envelope are empty; without them it is whole too.
    for end in (0..whole).filter(|end| ![whole - 2, whole - 4].contains(end)) {
        assert!(protobuf::review(&IN_PROTOBUF[..end], protobuf::ACCESS).is_none(), "cut at {end}");
    }
    for nonsense in [
        &b"k8s\0\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f"[..],
        b"k8s\0\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        b"k8s\0\x0b",
        b"k8s\0",
    ] {
        assert!(protobuf::review(nonsense, protobuf::ACCESS).is_none(), "{nonsense:?}");
    }
    let mut server = server("", true);
    assert_eq!(send(&mut server, "jane", "POST", SELF, protobuf::MEDIA_TYPE, b"k8s\0\x0b".to_vec()).await.0, 400);
}

const NODE: &str = "{kind: Node, metadata: {name: old}, status: {declaredFeatures: [Told]}}\n---\n{kind: Node, metadata: {name: new}}\n";

async fn declare(server: &mut Router, node: &str, features: Value) -> (u16, Value) {
    let body = json!({ "status": { "declaredFeatures": features } }).to_string().into_bytes();
    let path = format!("/api/v1/nodes/{node}/status");
    let (code, answer) = send(server, "kubelet", "PATCH", &path, "application/merge-patch+json", body).await;
    let said = if code == 200 { answer["status"]["declaredFeatures"].clone() } else { answer["message"].clone() };
    (code, said)
}

#[tokio::test]
async fn a_node_declares_its_features_and_withdraws_them() {
    let mut server = server(NODE, true);
    let both = json!(["ExtendWebSocketsToKubelet", "Other/part2"]);
    assert_eq!(declare(&mut server, "new", both.clone()).await, (200, both));
    assert_eq!(declare(&mut server, "new", json!([])).await, (200, json!([])));
    assert_eq!(declare(&mut server, "new", Value::Null).await, (200, Value::Null));
    let node = json!({ "kind": "Node", "metadata": { "name": "third" }, "status": { "declaredFeatures": ["A"] } });
    let (code, created) = post(&mut server, "kubelet", "/api/v1/nodes", node).await;
    assert_eq!((code, &created["status"]["declaredFeatures"]), (201, &json!(["A"])));
}

#[tokio::test]
async fn with_the_gate_off_a_declaration_is_dropped_unless_the_node_has_one_already() {
    let mut server = server(NODE, false);
    assert_eq!(declare(&mut server, "new", json!(["A"])).await, (200, Value::Null));
    let node =
        json!({ "kind": "Node", "metadata": { "name": "third" }, "status": { "declaredFeatures": ["A"], "x": 1 } });
    let (code, created) = post(&mut server, "kubelet", "/api/v1/nodes", node).await;
    assert_eq!((code, &created["status"]), (201, &json!({ "x": 1 })));
    assert_eq!(declare(&mut server, "old", json!(["A", "Told"])).await, (200, json!(["A", "Told"])));
    assert_eq!(declare(&mut server, "old", json!([])).await, (200, json!([])));
    assert_eq!(declare(&mut server, "old", json!(["A"])).await, (200, Value::Null), "it has none any more");
}

#[tokio::test]
async fn a_declaration_that_is_no_sorted_list_of_names_is_refused() {
    let long = format!("A{}", "a".repeat(253));
    let mut server = server(NODE, true);
    for (features, why) in [
        (
            json!(["lower"]),
            "status.declaredFeatures[0]: Invalid value: \"lower\": must start with an UpperCamelCase segment",
        ),
        (json!([""]), "declaredFeatures[0]: Invalid value"),
        (json!(["A/"]), "declaredFeatures[0]: Invalid value"),
        (json!(["A/2"]), "declaredFeatures[0]: Invalid value"),
        (json!(["A-b"]), "declaredFeatures[0]: Invalid value"),
        (json!(["\u{c4}a"]), "declaredFeatures[0]: Invalid value"),
        (json!([long]), "must be no more than 253 characters"),
        (json!(["B", "A"]), "status.declaredFeatures[1]: Invalid value: \"A\": list must be sorted alphabetically"),
        (json!(["A", "A"]), "status.declaredFeatures[1]: Duplicate value: \"A\""),
        (json!([7]), "must be a string"),
        (json!("A"), "must be a list"),
    ] {
        let (code, said) = declare(&mut server, "new", features.clone()).await;
        assert!(code == 422 && said.as_str().unwrap().contains(why), "{features}: {code} {said}");
    }
    let bad = "{kind: Node, metadata: {name: n}, status: {declaredFeatures: [x]}}";
    assert!(Store::from_manifests(&[file(bad)]).is_err());
    let store = Store::from_manifests(&[file(NODE)]).unwrap();
    assert!(store.update(&Key::node("new"), |node| node["status"]["declaredFeatures"] = json!(["x"])).is_err());
    assert!(store.get(&Key::node("new")).unwrap()["status"].is_null(), "what is refused changes nothing");
}
