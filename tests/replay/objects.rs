//! The objects that the recordings ask for.

/// Everybody's token.
pub(crate) const TOKENS: &str =
    "admin-token,admin,admin,\"system:masters\"\nviewer-token,viewer,viewer\nnobody-token,nobody,nobody\n";

/// The recordings' roles. `viewer` may look, and nothing more; `nobody` may nothing.
pub(crate) const ROLES: &str = r#"---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: viewer}
rules:
  - {apiGroups: [""], resources: [pods, pods/exec, pods/attach, pods/portforward], verbs: [get, list, watch]}
  - {apiGroups: [""], resources: [nodes/proxy], verbs: [get]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: viewer}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: viewer}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: viewer}]
"#;

/// A node whose kubelet is at that port, and its only pod.
fn node_and_pod(node: &str, port: u16, features: &str, name: &str) -> String {
    format!(
        r#"---
apiVersion: v1
kind: Node
metadata: {{name: {node}}}
status:
  addresses: [{{type: InternalIP, address: 127.0.0.1}}]
  daemonEndpoints: {{kubeletEndpoint: {{Port: {port}}}}}
  declaredFeatures: [{features}]
{}"#,
        pod(name, &format!("nodeName: {node}, containers: [{{name: c1, image: this-host}}]"))
    )
}

fn pod(name: &str, spec: &str) -> String {
    format!(
        r#"---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: default}}
spec: {{{spec}}}
status: {{phase: Running}}
"#
    )
}

/// All objects that the recordings ask for: two kubelets that answer, two ports where nothing listens, and what has no
/// kubelet at all.
pub(crate) fn cluster(kubelet: u16, nothing: u16) -> String {
    const DECLARED: &str = "ExtendWebSocketsToKubelet";
    const ONE: &str = "containers: [{name: c1, image: this-host}]";
    const SEVERAL: &str = "initContainers: [{name: i1, image: this-host}], \
                           containers: [{name: c1, image: this-host}, {name: c2, image: this-host}]";
    [
        node_and_pod("node-plain", kubelet, "", "demo"),
        node_and_pod("node-ws", kubelet, DECLARED, "demo-ws"),
        node_and_pod("node-down", nothing, "", "demo-down"),
        node_and_pod("node-down-ws", nothing, DECLARED, "demo-down-ws"),
        pod("demo-completed", &format!("nodeName: node-plain, {ONE}")),
        pod("demo-multi", &format!("nodeName: node-plain, {SEVERAL}")),
        pod("demo-unassigned", ONE),
        pod("demo-nonode", &format!("nodeName: node-gone, {ONE}")),
        pod("demo-noaddr", &format!("nodeName: node-noaddr, {ONE}")),
        "---\napiVersion: v1\nkind: Node\nmetadata: {name: node-noaddr}\n".to_owned(),
        ROLES.to_owned(),
    ]
    .concat()
}
