//! The fields of Pods and Nodes that lead to a kubelet, and upstream's rules from the ones to the other
//! (`pkg/registry/core/pod/strategy.go` `streamLocation`, `pkg/kubelet/client`).
//!
//! Decoding drops everything else at once, so neither a page of a list nor the store holds whole objects.

use std::{borrow::Cow, net::IpAddr, ops::Range};

use kube::{
    Resource,
    core::{ClusterResourceScope, NamespaceResourceScope, ObjectMeta},
};
use serde::{Deserialize, Deserializer};

use crate::{
    gates::Gate,
    layers::Hop,
    upgrade::{Refusal, Subresource, Target},
};

/// kube-apiserver's own order (`--kubelet-preferred-address-types`).
const PREFERRED: [&str; 5] = ["Hostname", "InternalDNS", "InternalIP", "ExternalDNS", "ExternalIP"];
const KUBELET_PORT: u16 = 10250;

/// Longest name of an object, in bytes; of a host in the DNS too.
const NAME: usize = 253;

/// A Pod, as the API server sends it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Pod {
    #[serde(deserialize_with = "meta")]
    metadata: ObjectMeta,
    spec: PodSpec,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct PodSpec {
    node_name: Option<String>,
    init_containers: Option<Vec<Named>>,
    containers: Option<Vec<Named>>,
    ephemeral_containers: Option<Vec<Named>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Named {
    name: String,
}

/// A Node, as the API server sends it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Node {
    #[serde(deserialize_with = "meta")]
    metadata: ObjectMeta,
    status: NodeStatus,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct NodeStatus {
    addresses: Option<Vec<Address>>,
    daemon_endpoints: DaemonEndpoints,
    declared_features: Option<Vec<String>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Address {
    #[serde(rename = "type")]
    kind: String,
    address: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct DaemonEndpoints {
    kubelet_endpoint: Endpoint,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Endpoint {
    #[serde(rename = "Port")]
    port: i64,
}

/// Of the metadata what a watch needs: labels, annotations and managed fields are most of a list.
fn meta<'de, D: Deserializer<'de>>(from: D) -> Result<ObjectMeta, D::Error> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Meta {
        name: Option<String>,
        namespace: Option<String>,
        resource_version: Option<String>,
    }
    let Meta { name, namespace, resource_version } = Meta::deserialize(from)?;
    Ok(ObjectMeta { name, namespace, resource_version, ..ObjectMeta::default() })
}

impl Resource for Pod {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        "Pod".into()
    }

    fn group((): &()) -> Cow<'_, str> {
        "".into()
    }

    fn version((): &()) -> Cow<'_, str> {
        "v1".into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        "pods".into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

impl Resource for Node {
    type DynamicType = ();
    type Scope = ClusterResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        "Node".into()
    }

    fn group((): &()) -> Cow<'_, str> {
        "".into()
    }

    fn version((): &()) -> Cow<'_, str> {
        "v1".into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        "nodes".into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// What is kept of a Pod: its node, and its containers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Placed {
    node: Option<Box<str>>,
    /// Init containers, containers, ephemeral containers: the order in which upstream visits them.
    names: Box<[Box<str>]>,
    /// The containers among them.
    regular: Range<usize>,
}

impl Pod {
    pub(super) fn placed(self) -> Placed {
        let PodSpec { node_name, init_containers, containers, ephemeral_containers } = self.spec;
        let lists = [init_containers, containers, ephemeral_containers].map(Option::unwrap_or_default);
        let start = lists[0].len();
        let regular = start..start + lists[1].len();
        let names = lists.into_iter().flatten().map(|Named { name }| name.into()).collect();
        let node = node_name.filter(|name| !name.is_empty()).map(Into::into);
        Placed { node, names, regular }
    }
}

impl Placed {
    /// The container that is meant and is there, if the stream is into one; and the name of the node.
    pub(super) fn find(&self, target: &Target) -> Result<(Option<String>, &str), Refusal> {
        let container = match target.subresource {
            Subresource::PortForward => target.container.clone(),
            Subresource::Exec | Subresource::Attach => Some(self.container(target)?),
        };
        let node = self.node.as_deref();
        let node =
            node.ok_or_else(|| Refusal::bad_request(format!("pod {} does not have a host assigned", target.pod)))?;
        Ok((container, node))
    }

    fn container(&self, target: &Target) -> Result<String, Refusal> {
        match (&target.container, &self.names[self.regular.clone()]) {
            (Some(named), _) if self.names.iter().any(|name| **name == **named) => Ok(named.clone()),
            (Some(named), _) => {
                Err(Refusal::bad_request(format!("container {named} is not valid for pod {}", target.pod)))
            }
            (None, [only]) => Ok(only.to_string()),
            (None, []) => {
                Err(Refusal::bad_request(format!("a container name must be specified for pod {}", target.pod)))
            }
            (None, _) => Err(Refusal::bad_request(format!(
                "a container name must be specified for pod {}, choose one of: [{}]",
                target.pod,
                self.names.join(" ")
            ))),
        }
    }

    pub(super) fn is_scheduled(&self) -> bool {
        self.node.is_some()
    }

    /// Bytes of all names.
    pub(super) fn size(&self) -> usize {
        self.node.as_deref().map_or(0, str::len) + self.names.iter().map(|name| name.len()).sum::<usize>()
    }
}

/// What is kept of a Node: where its kubelet is, and what that speaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Kubelet {
    authority: Box<str>,
    speaks_websocket: bool,
}

impl Node {
    /// Host and port of the kubelet, and nothing else: with a `/` or a `?` in its address a node would say what we ask,
    /// under our certificate, of somebody else.
    pub(super) fn kubelet(&self) -> Result<Kubelet, Refusal> {
        let NodeStatus { addresses, daemon_endpoints, declared_features } = &self.status;
        let known = addresses.as_deref().unwrap_or_default();
        let preferred = PREFERRED.iter().find_map(|kind| known.iter().find(|address| address.kind == *kind));
        let Some(Address { address: host, .. }) = preferred else {
            let known: Vec<String> =
                known.iter().map(|Address { kind, address }| format!("{{{kind} {address}}}")).collect();
            let message = format!("no preferred addresses found; known addresses: [{}]", known.join(" "));
            return Err(Refusal::internal(super::ask::cut(message)));
        };
        let port = match daemon_endpoints.kubelet_endpoint.port {
            0 => KUBELET_PORT,
            port => u16::try_from(port).map_err(|_| Refusal::internal(format!("invalid port of a kubelet: {port}")))?,
        };
        let of_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
        let authority = match host.parse() {
            Ok(IpAddr::V6(address)) => format!("[{address}]:{port}"),
            Err(_) if host.is_empty() || host.len() > NAME || !host.bytes().all(of_name) => {
                let message = format!("invalid address of a kubelet: {host:?}");
                return Err(Refusal::internal(super::ask::cut(message)));
            }
            _ => format!("{host}:{port}"),
        };
        let feature = Gate::ExtendWebSocketsToKubelet.name();
        let speaks_websocket = declared_features.iter().flatten().any(|declared| declared == feature);
        Ok(Kubelet { authority: authority.into(), speaks_websocket })
    }
}

impl Kubelet {
    /// Where the target streams there, with that container.
    pub(super) fn hop(&self, target: &Target, container: Option<String>) -> Result<Hop, Refusal> {
        let target = Target { container, ..target.clone() };
        let hop = Hop::kubelet(&format!("https://{}", self.authority), &target)?;
        Ok(hop.speaks_websocket(self.speaks_websocket))
    }
}

/// Whether an object can be named so. A name is part of a URL that is asked for with this process's rights, and what a
/// client says is a pod may hold anything: `../secrets/x`.
pub(super) fn is_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'.';
    let ends = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = name.as_bytes();
    bytes.len() <= NAME && bytes.iter().copied().all(plain) && ends(bytes.first()) && ends(bytes.last())
}
