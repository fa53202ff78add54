//! What the examples are built from: who may come in, which container is meant, where its kubelet is.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, as it should")]

#[path = "../examples/support/mod.rs"]
mod support;

use std::{fs, net::IpAddr, path::PathBuf, sync::Arc, time::Duration};

use axum::body::Body;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use http::{Request, Response, StatusCode, header};
use serde_json::json;
use support::{
    Stack,
    api::{self, Api},
    authn::{Authenticator, ClientCertificate, caller_of_certificate},
    kubeconfig,
    locate::Locate,
    logs::Logs,
    objects::{Key, Store, containers_on},
    patch,
    pki::{self, CertAndKey},
    rbac::RbacAuthorizer,
    restarts::{BackOff, Policy},
    server::Server,
    tokens::{self, Tokens},
};
use tokio::{
    io::AsyncReadExt,
    net::TcpStream,
    time::{Instant, timeout},
};
use tokio_rustls::rustls::pki_types::{CertificateDer, pem::PemObject};
use tokio_util::sync::CancellationToken;
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};
use tower_kube_streaming::{
    layers::{SyntheticAuthzLayer, UpgradeDetectLayer},
    upgrade::{Caller, Dialect, Sessions, StreamOptions, Subresource, Target},
};

/// A directory of this test's own.
fn dir(test: &str) -> PathBuf {
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(test);
    let _ = fs::remove_dir_all(&dir);
    support::create_private_dir(&dir).unwrap();
    dir
}

fn file(dir: &std::path::Path, content: &str) -> PathBuf {
    let file = dir.join("file");
    fs::write(&file, content).unwrap();
    file
}

const TOKENS: &str = "a-token,admin,1,\"system:masters,ops\"\nv-token,viewer,2\n";

fn known(test: &str) -> Authenticator {
    let tokens = tokens::load(&file(&dir(test), TOKENS)).unwrap();
    Authenticator::known(Tokens::new(&tokens), Dialect::ApiServer)
}

/// What a service below the authenticator sees, or the refusal.
async fn through(authenticator: Authenticator, request: Request<Body>) -> Result<Request<()>, StatusCode> {
    let inner = service_fn(async |request: Request<Body>| {
        let mut response = Response::new(Body::empty());
        response.extensions_mut().insert(Arc::new(request.map(drop)));
        Ok::<_, std::convert::Infallible>(response)
    });
    let mut response = authenticator.into_layer().layer(inner).oneshot(request).await.unwrap();
    match response.extensions_mut().remove::<Arc<Request<()>>>() {
        Some(request) => Ok(Arc::into_inner(request).unwrap()),
        None => Err(response.status()),
    }
}

fn caller(request: &Request<()>) -> (String, Vec<String>) {
    let caller = request.extensions().get::<Caller>().unwrap();
    (caller.name.clone(), caller.groups.clone())
}

fn websocket(protocols: &[&str]) -> Request<Body> {
    let mut request = Request::get("/").header("connection", "upgrade").header("upgrade", "websocket");
    for protocol in protocols {
        request = request.header(header::SEC_WEBSOCKET_PROTOCOL, *protocol);
    }
    request.body(Body::empty()).unwrap()
}

#[tokio::test]
async fn a_token_tells_who_it_is_and_goes_no_further() {
    let request = Request::get("/").header("authorization", "bearer a-token").body(Body::empty()).unwrap();
    let request = through(known("bearer"), request).await.unwrap();
    let groups = ["system:masters", "ops", "system:authenticated"].map(str::to_owned).to_vec();
    assert_eq!(caller(&request), ("admin".to_owned(), groups));
    assert!(!request.headers().contains_key("authorization"));
}

#[tokio::test]
async fn nobody_gets_in_without_a_credential_that_is_known() {
    for value in ["", "Bearer", "Bearer wrong", "Basic a-token", "a-token"] {
        let request = Request::get("/").header("authorization", value).body(Body::empty()).unwrap();
        assert_eq!(through(known("unknown"), request).await.unwrap_err(), StatusCode::UNAUTHORIZED, "{value}");
    }
}

#[tokio::test]
async fn a_token_among_the_subprotocols_is_taken_out_of_them() {
    let token = format!("base64url.bearer.authorization.k8s.io.{}", URL_SAFE_NO_PAD.encode("v-token"));
    let request = websocket(&[&format!("{token}, v5.channel.k8s.io"), "v4.channel.k8s.io"]);
    let request = through(known("subprotocol"), request).await.unwrap();
    assert_eq!(caller(&request).0, "viewer");
    assert_eq!(request.headers()[header::SEC_WEBSOCKET_PROTOCOL], "v5.channel.k8s.io,v4.channel.k8s.io");
    assert_eq!(request.headers().get_all(header::SEC_WEBSOCKET_PROTOCOL).iter().count(), 1);

    for refused in [vec![&*token], vec![&token, &token, "v5.channel.k8s.io"]] {
        let refused = through(known("subprotocol_refused"), websocket(&refused)).await;
        assert_eq!(refused.unwrap_err(), StatusCode::UNAUTHORIZED);
    }
}

#[tokio::test]
async fn a_token_among_the_subprotocols_counts_only_in_a_websocket_request_and_only_alone() {
    let bearer = |bytes: &[u8]| format!("base64url.bearer.authorization.k8s.io.{}", URL_SAFE_NO_PAD.encode(bytes));
    let (own, v5) = (bearer(b"v-token"), "v5.channel.k8s.io");
    let upgrade = |lines: &[&str]| {
        let mut request = websocket(&[v5, &own]);
        request.headers_mut().remove("upgrade");
        for line in lines {
            request.headers_mut().append("upgrade", line.parse().unwrap());
        }
        request
    };
    for (case, request, code) in [
        ("any case", upgrade(&["WebSocket"]), None),
        ("a list", upgrade(&["foo/2, websocket"]), None),
        ("a second line", upgrade(&["foo/2", "websocket"]), None),
        ("SPDY", upgrade(&["SPDY/3.1"]), Some(StatusCode::UNAUTHORIZED)),
        ("no upgrade", upgrade(&[]), Some(StatusCode::UNAUTHORIZED)),
        ("two tokens", websocket(&[&own, &bearer(b"a-token"), v5]), Some(StatusCode::UNAUTHORIZED)),
        ("no UTF-8", websocket(&[&bearer(b"\xff\xfe"), v5]), Some(StatusCode::UNAUTHORIZED)),
        ("no base64", websocket(&["base64url.bearer.authorization.k8s.io.a+b", v5]), Some(StatusCode::UNAUTHORIZED)),
        ("padded base64", websocket(&[&format!("{}=", bearer(b"v-token")), v5]), Some(StatusCode::UNAUTHORIZED)),
        ("empty", websocket(&["base64url.bearer.authorization.k8s.io.", v5]), Some(StatusCode::UNAUTHORIZED)),
        ("alone among blanks", websocket(&[&format!(" , {own},"), " "]), Some(StatusCode::UNAUTHORIZED)),
    ] {
        assert_eq!(through(known("subprotocol_rules"), request).await.err(), code, "{case}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_connects_and_says_nothing_is_given_up() {
    let stop = CancellationToken::new();
    let server = Server::bind(([127, 0, 0, 1], 0).into(), stop.clone()).await.unwrap();
    let address = server.address().unwrap();
    let serving = tokio::spawn(server.serve(axum::Router::new(), Sessions::new()));
    let began = Instant::now();
    let mut peer = TcpStream::connect(address).await.unwrap();
    let read = timeout(Duration::from_secs(120), peer.read(&mut [0])).await.expect("given up");
    assert_eq!(read.unwrap(), 0);
    assert!(began.elapsed() >= Duration::from_secs(30), "{:?}", began.elapsed());
    stop.cancel();
    serving.await.unwrap().unwrap();
}

#[tokio::test]
async fn impersonation_is_refused_rather_than_ignored() {
    let request = Request::get("/").header("authorization", "Bearer a-token").header("Impersonate-User", "viewer");
    let refused = through(known("impersonation"), request.body(Body::empty()).unwrap()).await;
    assert_eq!(refused.unwrap_err(), StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn without_authentication_a_web_page_is_still_refused() {
    let authenticator = Authenticator::anybody_is_admin(Dialect::ApiServer);
    let request = through(authenticator.clone(), websocket(&["v5.channel.k8s.io"])).await.unwrap();
    assert!(caller(&request).1.contains(&"system:masters".to_owned()));
    let mut page = websocket(&["v5.channel.k8s.io"]);
    page.headers_mut().insert("origin", "https://elsewhere.example".parse().unwrap());
    assert_eq!(through(authenticator, page).await.unwrap_err(), StatusCode::FORBIDDEN);
}

#[test]
fn a_token_file_with_a_line_that_cannot_work_is_refused() {
    let dir = dir("token_lines");
    for bad in ["only-a-token", "token,user", ",user,uid", "token,,uid"] {
        assert!(tokens::load(&file(&dir, bad)).unwrap_err().to_string().contains(":1: "), "{bad}");
    }
}

#[test]
fn certificates_are_kept_until_they_do_not_fit() {
    let dir = dir("certificates");
    let read = || {
        let ca = fs::read(pki::files::ca(&dir)).unwrap();
        (ca, fs::read(pki::files::apiserver(&dir).cert).unwrap(), fs::read(pki::files::kubelet(&dir).cert).unwrap())
    };
    let home: IpAddr = [127, 0, 0, 1].into();
    pki::prepare(&dir, home).unwrap();
    let first = read();
    pki::prepare(&dir, home).unwrap();
    assert_eq!(read(), first);
    pki::prepare(&dir, [127, 0, 0, 2].into()).unwrap();
    let moved = read();
    assert_eq!(moved.0, first.0, "the CA stays");
    assert_ne!(moved.1, first.1, "the certificate does not name the new address");
    fs::remove_file(dir.join("ca.key")).unwrap();
    pki::prepare(&dir, home).unwrap();
    let renewed = read();
    assert!(renewed.0 != moved.0 && renewed.1 != moved.1 && renewed.2 != moved.2, "a new CA signs all anew");
}

#[test]
fn a_client_certificate_names_user_and_groups() {
    let dir = dir("client_certificate");
    pki::prepare(&dir, [127, 0, 0, 1].into()).unwrap();
    let der = CertificateDer::from_pem_file(pki::files::kubelet_client(&dir).cert).unwrap();
    let caller = caller_of_certificate(&der).unwrap();
    assert_eq!(caller.name, "kube-apiserver-kubelet-client");
    assert_eq!(caller.groups, ["system:masters"]);
    assert!(caller_of_certificate(b"not a certificate").is_err());

    let der = CertificateDer::from_pem_file(pki::files::node_client(&dir).cert).unwrap();
    let caller = caller_of_certificate(&der).unwrap();
    assert_eq!((&*caller.name, caller.groups), ("system:node:demo-node", vec!["system:nodes".to_owned()]));
}

#[test]
fn of_several_common_names_the_last_one_counts_as_it_does_in_go_and_none_is_empty() {
    let certificate = |names: &[&str]| {
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        for (at, name) in names.iter().enumerate() {
            // rcgen keeps one of a kind; a name under another kind with the same OID is another one.
            let kind = if at == 0 { rcgen::DnType::CommonName } else { rcgen::DnType::CustomDnType(vec![2, 5, 4, 3]) };
            params.distinguished_name.push(kind, *name);
        }
        let key = rcgen::KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().der().clone()
    };
    assert_eq!(caller_of_certificate(&certificate(&["alice"])).unwrap().name, "alice");
    assert_eq!(caller_of_certificate(&certificate(&["admin", "alice"])).unwrap().name, "alice");
    caller_of_certificate(&certificate(&[""])).unwrap_err();
    caller_of_certificate(&certificate(&["admin", ""])).unwrap_err();
}

#[test]
fn a_kubelets_kubeconfig_names_its_certificate_by_absolute_paths_and_none_without_tls() {
    let file = dir("kubelet_kubeconfig").join("kubelet.kubeconfig");
    let own = CertAndKey { cert: "some/kubelet-client.crt".into(), key: "some/kubelet-client.key".into() };
    let written = |ca| -> serde_json::Value {
        kubeconfig::write_for_kubelet(&file, "https://127.0.0.1:6443", ca, &own).unwrap();
        serde_json::from_slice(&fs::read(&file).unwrap()).unwrap()
    };
    let with_tls = written(Some("a CA"));
    assert_eq!(with_tls["clusters"][0]["cluster"]["server"], "https://127.0.0.1:6443");
    assert_eq!(with_tls["clusters"][0]["cluster"]["certificate-authority-data"], "YSBDQQ==");
    let user = &with_tls["users"][0]["user"];
    for (named, file) in [("client-certificate", "some/kubelet-client.crt"), ("client-key", "some/kubelet-client.key")]
    {
        let path = PathBuf::from(user[named].as_str().unwrap());
        assert!(path.is_absolute() && path.ends_with(file), "{user}");
    }
    assert_eq!(written(None)["users"][0]["user"], json!({}));
}

const PODS: &str = r"
{kind: Node, metadata: {name: v6}, status: {addresses: [{type: InternalIP, address: '::1'}]}}
---
{kind: Node, metadata: {name: bare}}
---
{kind: Node, metadata: {name: far}, status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}}
---
{kind: Pod, metadata: {name: one}, spec: {nodeName: v6, containers: [{name: c}]}}
---
{kind: Pod, metadata: {name: two}, spec: {nodeName: v6, initContainers: [{name: i1}], containers: [{name: c1}, {name: c2}]}}
---
{kind: Pod, metadata: {name: waiting}, spec: {containers: [{name: c}]}}
---
{kind: Pod, metadata: {name: homeless}, spec: {nodeName: bare, containers: [{name: c}]}}
---
{kind: Pod, metadata: {name: lost}, spec: {nodeName: gone, containers: [{name: c}]}}
---
{kind: Pod, metadata: {name: away}, spec: {nodeName: far, containers: [{name: c}]}}
";

fn target(pod: &str, container: Option<&str>) -> Target {
    Target {
        subresource: Subresource::Exec,
        namespace: "default".into(),
        pod: pod.into(),
        uid: None,
        container: container.map(str::to_owned),
        options: StreamOptions { stdout: true, command: vec!["date".into()], ..StreamOptions::default() },
        dialect: Dialect::ApiServer,
    }
}

#[test]
fn what_cannot_be_located_is_refused_in_upstreams_words() {
    let store = Arc::new(Store::from_manifests(&[file(&dir("locate"), PODS)]).unwrap());
    let locate = Locate::new(store);
    let refusal = |pod, container| {
        let refusal = locate.hop(&target(pod, container)).unwrap_err();
        (refusal.code().as_u16(), refusal.message().to_owned())
    };
    for (pod, container, code, message) in [
        ("nosuch", None, 404, "pods \"nosuch\" not found"),
        ("waiting", None, 400, "pod waiting does not have a host assigned"),
        ("two", None, 400, "a container name must be specified for pod two, choose one of: [i1 c1 c2]"),
        ("one", Some("zz"), 400, "container zz is not valid for pod one"),
        ("homeless", None, 500, "no preferred addresses found; known addresses: []"),
        ("lost", None, 404, "nodes \"gone\" not found"),
    ] {
        assert_eq!(refusal(pod, container), (code, message.to_owned()));
    }
    let away = locate.clone().plain_http(true).hop(&target("away", None)).unwrap_err();
    assert_eq!(away.message(), "plain HTTP is for kubelets of this machine only");
}

#[test]
fn a_node_says_where_its_kubelet_is_and_not_what_is_asked_there() {
    let store = Arc::new(Store::from_manifests(&[file(&dir("address"), PODS)]).unwrap());
    for (address, port) in [
        ("apiserver/api/v1/namespaces/kube-system/pods/etcd/exec?command=sh&x=", 10250),
        ("127.0.0.1?", 10250),
        ("127.0.0.1#", 10250),
        ("somebody@127.0.0.1", 10250),
        ("127.0.0.1:1", 10250),
        ("[::1]", 10250),
        ("::1/x", 10250),
        ("a b", 10250),
        ("127.0.0.1", 65536),
    ] {
        let said = store.update(&Key::node("v6"), |node| {
            node["status"]["addresses"] = json!([{ "type": "InternalIP", "address": address }]);
            node["status"]["daemonEndpoints"] = json!({ "kubeletEndpoint": { "Port": port } });
        });
        assert!(said.unwrap().is_some());
        let refusal = Locate::new(store.clone()).hop(&target("one", None)).map(|hop| hop.uri);
        assert_eq!(refusal.unwrap_err().code(), 500, "{address} {port}");
    }
}

#[test]
fn the_only_container_is_meant_where_none_is_named() {
    let store = Arc::new(Store::from_manifests(&[file(&dir("only"), PODS)]).unwrap());
    let hop = Locate::new(store).hop(&target("one", None)).unwrap();
    assert_eq!(hop.uri, "https://[::1]:10250/exec/default/one/c?command=date&output=1");
    assert!(!hop.speaks_websocket);
}

#[test]
fn a_hop_speaks_websocket_where_its_node_declares_it() {
    let store = Arc::new(Store::from_manifests(&[file(&dir("declared"), PODS)]).unwrap());
    for (declared, speaks) in [
        (json!(["ExtendWebSocketsToKubelet"]), true),
        (json!(["ExtendWebSocketsToKubelet", "Other"]), true),
        (json!(["ExtendWebSocketsToKubelets", "Other"]), false),
        (json!([]), false),
        (json!(null), false),
    ] {
        let said = store.update(&Key::node("v6"), |node| node["status"]["declaredFeatures"] = declared.clone());
        assert!(said.unwrap().is_some());
        let hop = Locate::new(store.clone()).hop(&target("one", None)).unwrap();
        assert_eq!(hop.speaks_websocket, speaks, "{declared}");
    }
}

#[test]
fn an_empty_manifest_is_an_empty_cluster_and_an_unknown_kind_an_error() {
    let dir = dir("manifest");
    let cluster = Store::from_manifests(&[file(&dir, "# nothing\n")]).unwrap();
    assert!(cluster.list(support::objects::Kind::Pod).0.is_empty());
    let error = Store::from_manifests(&[file(&dir, "{kind: Secret, metadata: {name: s}}")]).unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("kind Secret is not supported; Node, Pod, Lease, Role, ClusterRole and their bindings are"),
        "{error}"
    );
}

#[test]
fn the_demos_pod_has_a_shell_on_a_terminal_and_a_sidecar_without() {
    let store = Store::from_manifests(&[]).unwrap();
    let containers = containers_on(&store, "demo-node");
    let facts: Vec<_> = containers.iter().map(|c| (c.name.as_str(), c.tty, c.stdin)).collect();
    assert_eq!(facts, [("shell", true, true), ("sidecar", false, false)]);
    assert!(containers_on(&store, "other-node").is_empty());
    store.assign_all_pods("other-node");
    assert_eq!(containers_on(&store, "other-node").len(), 2);
}

#[test]
fn a_strategic_patch_joins_conditions_by_their_type_and_a_merge_patch_replaces_them() {
    let before = json!({ "status": { "conditions": [{ "type": "A", "status": "True" }, { "type": "B" }], "x": 1 } });
    let change = json!({ "status": { "$setElementOrder/conditions": [], "x": null,
        "conditions": [{ "type": "A", "status": "False" }, { "type": "C" }] } });
    let (mut strategic, mut merged) = (before.clone(), before);
    patch::apply(&mut strategic, change.clone(), true);
    let joined =
        json!({ "status": { "conditions": [{ "type": "A", "status": "False" }, { "type": "B" }, { "type": "C" }] } });
    assert_eq!(strategic, joined);
    patch::apply(&mut merged, change, false);
    assert_eq!(merged["status"]["conditions"].as_array().unwrap().len(), 2);
}

/// An API server whose streams answer 418 once they are authorized, so that a test sees who gets as far as them.
fn server(test: &str) -> axum::Router {
    let store = Arc::new(Store::from_manifests(&[]).unwrap());
    let streams = ServiceBuilder::new()
        .layer(UpgradeDetectLayer::new(Dialect::ApiServer, Sessions::new()))
        .layer(SyntheticAuthzLayer::new(RbacAuthorizer::new(store.clone())))
        .service(service_fn(async |_request: Request<Body>| {
            Ok(Response::builder().status(StatusCode::IM_A_TEAPOT).body(Body::empty()).unwrap())
        }));
    let api = Api { store, metrics: Arc::default(), stop: CancellationToken::new(), logs: Logs::none() };
    api::router(api, Stack::new(streams), known(test))
}

async fn ask(server: &mut axum::Router, method: &str, path: &str, token: &str) -> (u16, String) {
    let request = Request::builder().method(method).uri(path).header("authorization", format!("Bearer {token}"));
    let response = server.call(request.body(Body::empty()).unwrap()).await.unwrap();
    let status = response.status().as_u16();
    let body = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test]
async fn a_viewer_may_look_but_opens_no_stream_by_any_method() {
    let mut server = server("viewer");
    let pod = "/api/v1/namespaces/default/pods/demo";
    for path in [pod, "/api/v1/pods", "/api/v1/namespaces/default/pods", "/api/v1/nodes", "/api", "/apis", "/api/v1"] {
        assert_eq!(ask(&mut server, "GET", path, "v-token").await.0, 200, "{path}");
    }
    let forbidden = |why: &str| {
        format!(
            r#"{{"kind":"Status","apiVersion":"v1","metadata":{{}},"status":"Failure","message":"pods \"demo\" is forbidden: {why}","reason":"Forbidden","details":{{"name":"demo","kind":"pods"}},"code":403}}"#
        )
    };
    let create =
        r#"User \"viewer\" cannot create resource \"pods/exec\" in API group \"\" in the namespace \"default\""#;
    for (method, code, body) in
        [("GET", 403, forbidden("")), ("POST", 403, forbidden(create)), ("HEAD", 405, String::new())]
    {
        let answer = ask(&mut server, method, &format!("{pod}/exec?command=sh&stdout=1"), "v-token").await;
        assert_eq!((answer.0, answer.1.trim_end()), (code, &*body), "{method}");
    }
    for subresource in ["exec?command=sh&stdout=1", "attach?stdout=1", "portforward"] {
        let path = format!("{pod}/{subresource}");
        assert_eq!(ask(&mut server, "GET", &path, "v-token").await.0, 403);
        assert_eq!(ask(&mut server, "GET", &path, "a-token").await.0, 418);
    }
}

#[tokio::test]
async fn what_is_not_there_or_not_allowed_is_told_only_to_who_may_ask() {
    let mut server = server("told");
    let pod = "/api/v1/namespaces/default/pods/demo";
    for (method, path, admins, why) in [
        (
            "PATCH",
            pod,
            415,
            r#"pods \"demo\" is forbidden: User \"viewer\" cannot patch resource \"pods\" in API group \"\" in the namespace \"default\""#,
        ),
        ("PUT", pod, 400, r#"User \"viewer\" cannot update resource \"pods\""#),
        ("DELETE", "/api/v1/namespaces/default/pods/gone", 404, r#"User \"viewer\" cannot delete resource \"pods\""#),
        (
            "DELETE",
            "/api/v1/pods",
            405,
            r#"pods is forbidden: User \"viewer\" cannot deletecollection resource \"pods\" in API group \"\" at the cluster scope"#,
        ),
        (
            "POST",
            "/api/v1/nodes",
            400,
            r#"nodes is forbidden: User \"viewer\" cannot create resource \"nodes\" in API group \"\" at the cluster scope"#,
        ),
        ("PATCH", "/api/v1/nodes/demo-node/status", 415, r#"cannot patch resource \"nodes/status\""#),
        ("GET", "/api/v1/nodes?watch=true", 200, r#"cannot watch resource \"nodes\""#),
        ("GET", "/api/v1/secrets", 404, r#"cannot list resource \"secrets\""#),
        (
            "GET",
            "/apis/apps/v1/deployments",
            404,
            r#"deployments.apps is forbidden: User \"viewer\" cannot list resource \"deployments\" in API group \"apps\" at the cluster scope","reason":"Forbidden","details":{"group":"apps","kind":"deployments"}"#,
        ),
        (
            "GET",
            "/nosuch",
            404,
            r#""forbidden: User \"viewer\" cannot get path \"/nosuch\"","reason":"Forbidden","details":{}"#,
        ),
    ] {
        let (status, body) = ask(&mut server, method, path, "v-token").await;
        assert_eq!(status, 403, "{method} {path}");
        assert!(body.contains(why), "{method} {path}: {body}");
        if !path.contains("watch") {
            assert_eq!(ask(&mut server, method, path, "a-token").await.0, admins, "{method} {path}");
        }
    }
}

#[tokio::test]
async fn a_path_is_read_once_and_what_is_no_text_is_refused() {
    let mut server = server("paths");
    for (path, code) in [
        ("/api/v1/namespaces/%64efault/pods/dem%6F", 200),
        // Not taken for a list of all namespaces.
        ("/api/v1/namespaces/%ff/pods", 400),
        ("/api/v1/namespaces/default/pods/%ff", 400),
        ("/api/v1/nodes/%ff/status", 400),
        ("/api/v1/%6eodes", 404),
        ("//api/v1/nodes", 404),
        ("/api/v1//nodes", 404),
        ("/api/v1/nodes/", 404),
        ("/api/v1/nodes/demo-node/", 404),
        ("/api/v1/x/../nodes", 404),
        ("/api/v1/nodes;x=1", 404),
        ("/api/v1/nodes/demo-node%2Fstatus", 404),
        ("/api/v1/namespaces/default/pods/demo/exec/", 404),
        ("/api/v1/namespaces/default/pods/demo/EXEC", 404),
    ] {
        let (status, body) = ask(&mut server, "GET", path, "a-token").await;
        assert_eq!(status, code, "{path}: {body}");
    }
}

#[tokio::test]
async fn pods_are_listed_whatever_their_kubelet_says_of_them() {
    let mut server = server("table");
    let restarts = json!({ "containerStatuses": [{ "restartCount": u64::MAX }, { "restartCount": 1 }] });
    for (path, patch) in [
        ("/api/v1/namespaces/default/pods/demo/status", json!({ "status": restarts })),
        ("/api/v1/nodes/demo-node/status", json!({ "status": { "conditions": [7], "addresses": "x" } })),
    ] {
        let request = Request::patch(path)
            .header("authorization", "Bearer a-token")
            .header("content-type", "application/merge-patch+json");
        let response = server.call(request.body(Body::from(patch.to_string())).unwrap()).await.unwrap();
        assert_eq!(response.status(), 200, "{path}");
    }
    for path in ["/api/v1/pods", "/api/v1/nodes"] {
        let request = Request::get(path)
            .header("authorization", "Bearer a-token")
            .header("accept", "application/json;as=Table;v=v1;g=meta.k8s.io");
        let response = server.call(request.body(Body::empty()).unwrap()).await.unwrap();
        assert_eq!(response.status(), 200, "{path}");
    }
}

#[tokio::test]
async fn all_but_health_and_version_needs_a_name() {
    let mut server = server("health");
    for open in ["/healthz", "/livez", "/readyz", "/version"] {
        assert_eq!(ask(&mut server, "GET", open, "wrong").await.0, 200);
    }
    let unauthorized = r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"Unauthorized","reason":"Unauthorized","code":401}"#;
    for closed in ["/api", "/apis", "/api/v1/pods", "/nosuch", "/api/v1/namespaces/default/pods/demo/exec"] {
        let (status, body) = ask(&mut server, "GET", closed, "wrong").await;
        assert_eq!((status, body.trim_end()), (401, unauthorized));
    }
    assert_eq!(ask(&mut server, "GET", "/nosuch", "a-token").await.0, 404);
}

#[tokio::test]
async fn a_certificate_counts_before_a_token() {
    let mut request = Request::get("/").header("authorization", "Bearer v-token").body(Body::empty()).unwrap();
    let shown = Caller::new("by-certificate", ["ops"]);
    request.extensions_mut().insert(ClientCertificate(shown));
    assert_eq!(caller(&through(known("certificate"), request).await.unwrap()).0, "by-certificate");
}

#[test]
fn a_container_is_started_again_at_once_and_then_ever_later() {
    let (mut back_off, begun) = (BackOff::default(), Instant::now());
    let mut now = begun;
    back_off.start(now, now).unwrap();
    for delay in [10, 20, 40, 80, 160, 300, 300].map(Duration::from_secs) {
        assert_eq!(back_off.start(now, now), Err(delay));
        assert_eq!(back_off.start(now, now + delay - Duration::from_nanos(1)), Err(delay));
        back_off.start(now, now + delay).unwrap();
        now += delay;
    }
    // One that ran for long begins anew.
    let ended = now + Duration::from_secs(600);
    assert_eq!(back_off.start(ended, ended), Err(Duration::from_secs(300)));
    let ended = ended + Duration::from_nanos(1);
    back_off.start(ended, ended).unwrap();
    assert_eq!(back_off.start(ended, ended), Err(Duration::from_secs(10)));
}

#[test]
fn a_restart_policy_looks_at_the_exit_code() {
    let policy = |name: &str| Policy::of(&json!({ "spec": { "restartPolicy": name } }));
    let restarts = |name: &str| [0, 1, -1].map(|code| policy(name).unwrap().restarts(code));
    assert_eq!(restarts("Always"), [true, true, true]);
    assert_eq!(restarts("OnFailure"), [false, true, true]);
    assert_eq!(restarts("Never"), [false, false, false]);
    assert_eq!(Policy::of(&json!({ "spec": {} })).unwrap(), Policy::Always);
    assert!(policy("always").unwrap_err().to_string().contains("none of Always, OnFailure and Never"));
}
