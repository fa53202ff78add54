use serde_json::{Value, json};

use super::super::objects::{Node, Pod, is_name};
use crate::{
    layers::Hop,
    upgrade::{Dialect, Refusal, StreamOptions, Subresource, Target},
};

pub(super) fn pod(name: &str, node: &str, containers: &[&str]) -> Value {
    let containers: Vec<Value> =
        containers.iter().map(|name| json!({ "name": name, "image": "i", "env": [{ "name": "SECRET" }] })).collect();
    json!({
        "kind": "Pod",
        "metadata": { "name": name, "namespace": "default", "labels": { "a": "b" }, "managedFields": [{}] },
        "spec": { "nodeName": node, "containers": containers },
        "status": { "phase": "Running" },
    })
}

pub(super) fn node(name: &str, address: &str, features: &[&str]) -> Value {
    json!({
        "kind": "Node",
        "metadata": { "name": name },
        "status": {
            "addresses": [{ "type": "InternalIP", "address": address }],
            "daemonEndpoints": { "kubeletEndpoint": { "Port": 10255 } },
            "declaredFeatures": features,
        },
    })
}

pub(super) fn target(subresource: Subresource, pod: &str, container: Option<&str>) -> Target {
    Target {
        subresource,
        namespace: "default".into(),
        pod: pod.into(),
        uid: None,
        container: container.map(Into::into),
        options: StreamOptions { stdout: true, command: vec!["date".into()], ..StreamOptions::default() },
        dialect: Dialect::ApiServer,
    }
}

fn hop(pod: &Value, node: &Value, target: &Target) -> Result<Hop, Refusal> {
    let pod: Pod = serde_json::from_value(pod.clone()).unwrap();
    let pod = pod.placed();
    let (container, _) = pod.find(target)?;
    let node: Node = serde_json::from_value(node.clone()).unwrap();
    node.kubelet()?.hop(target, container)
}

fn code_and_words(refused: Result<Hop, Refusal>) -> (u16, String) {
    let refusal = refused.expect_err("it is refused");
    (refusal.code().as_u16(), refusal.message().to_owned())
}

#[test]
fn a_pod_leads_to_its_kubelet() {
    let exec = target(Subresource::Exec, "demo", None);
    let found =
        hop(&pod("demo", "n1", &["app"]), &node("n1", "10.0.0.7", &["ExtendWebSocketsToKubelet"]), &exec).unwrap();
    assert_eq!(found.uri, "https://10.0.0.7:10255/exec/default/demo/app?command=date&output=1");
    assert!(found.speaks_websocket);
    let forward = Target { options: StreamOptions::default(), ..target(Subresource::PortForward, "demo", None) };
    let found =
        hop(&pod("demo", "n1", &["app", "b"]), &node("n1", "fd00::7", &["Extendwebsocketstokubelet"]), &forward)
            .unwrap();
    assert_eq!(found.uri.to_string(), "https://[fd00::7]:10255/portForward/default/demo");
    assert!(!found.speaks_websocket);
}

#[test]
fn a_container_is_found_or_refused_in_upstream_s_words() {
    let mut several = pod("demo", "n1", &["a", "b"]);
    several["spec"]["initContainers"] = json!([{ "name": "init" }]);
    several["spec"]["ephemeralContainers"] = json!([{ "name": "debug" }]);
    let n1 = node("n1", "10.0.0.7", &[]);
    for (named, path) in
        [("a", "/exec/default/demo/a"), ("init", "/exec/default/demo/init"), ("debug", "/exec/default/demo/debug")]
    {
        let found = hop(&several, &n1, &target(Subresource::Exec, "demo", Some(named))).unwrap();
        assert_eq!(found.uri.path(), path);
    }
    let none = pod("demo", "n1", &[]);
    for (pod, named, words) in [
        (&several, Some("c"), "container c is not valid for pod demo"),
        (&several, None, "a container name must be specified for pod demo, choose one of: [init a b debug]"),
        (&none, None, "a container name must be specified for pod demo"),
        (&pod("demo", "", &["a"]), None, "pod demo does not have a host assigned"),
    ] {
        let refused = hop(pod, &n1, &target(Subresource::Attach, "demo", named));
        assert_eq!(code_and_words(refused), (400, words.to_owned()));
    }
}

#[test]
fn an_address_is_chosen_as_upstream_does_and_the_port_has_a_default() {
    let demo = pod("demo", "n1", &["app"]);
    let exec = target(Subresource::Exec, "demo", None);
    let mut n1 = node("n1", "10.0.0.7", &[]);
    n1["status"] = json!({ "addresses": [
        { "type": "ExternalIP", "address": "203.0.113.7" },
        { "type": "Hostname", "address": "Node-1.example_x" },
        { "type": "InternalIP", "address": "10.0.0.7" },
    ] });
    assert_eq!(hop(&demo, &n1, &exec).unwrap().uri.authority().unwrap(), "Node-1.example_x:10250");
    n1["status"]["addresses"] = json!([{ "type": "Other", "address": "x" }]);
    let words = "no preferred addresses found; known addresses: [{Other x}]".to_owned();
    assert_eq!(code_and_words(hop(&demo, &n1, &exec)), (500, words));
    n1["status"] = json!({ "addresses": null, "declaredFeatures": null });
    let words = "no preferred addresses found; known addresses: []".to_owned();
    assert_eq!(code_and_words(hop(&demo, &n1, &exec)), (500, words));
}

#[test]
fn an_address_that_could_be_read_as_more_is_refused() {
    let demo = pod("demo", "n1", &["app"]);
    let exec = target(Subresource::Exec, "demo", None);
    let long = "a".repeat(254);
    for address in [
        "",
        "a/b",
        "a?b",
        "a#b",
        "user@a",
        "a:1",
        "a b",
        "a%2fb",
        "[::1]",
        "ä",
        "10.0.0.7/exec/kube-system/x/y?command=",
        &long,
    ] {
        let (code, words) = code_and_words(hop(&demo, &node("n1", address, &[]), &exec));
        assert_eq!(code, 500, "{address}");
        assert!(words.starts_with("invalid address of a kubelet: "), "{address}: {words}");
    }
    for port in [-1, 65_536, i64::MAX] {
        let mut n1 = node("n1", "10.0.0.7", &[]);
        n1["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"] = port.into();
        assert_eq!(code_and_words(hop(&demo, &n1, &exec)), (500, format!("invalid port of a kubelet: {port}")));
    }
}

#[test]
fn a_name_is_nothing_but_a_name() {
    let long = "a".repeat(254);
    for name in ["a", "a-b", "a.b", "0", "kube-system", "10-0-0-7.example.com"] {
        assert!(is_name(name), "{name}");
    }
    for name in ["", ".", "..", "../x", "a/b", "a?b", "a%2fb", "A", "a_b", "-a", "a-", ".a", "a b", "a\n", "ä", &long]
    {
        assert!(!is_name(name), "{name:?}");
    }
}
