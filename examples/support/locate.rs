//! From a pod to the URL at which its kubelet streams, with upstream's words where there is none
//! (pkg/registry/core/pod/strategy.go `streamLocation`, pkg/kubelet/client).

use std::{net::IpAddr, sync::Arc};

use serde_json::Value;
use tower_kube_streaming::{
    layers::Hop,
    upgrade::{Refusal, Subresource, Target},
};

use super::{
    features, is_loopback,
    objects::{Key, Store, items, text},
};

/// kube-apiserver's own order (`--kubelet-preferred-address-types`).
const PREFERRED: [&str; 5] = ["Hostname", "InternalDNS", "InternalIP", "ExternalDNS", "ExternalIP"];
const KUBELET_PORT: u64 = 10250;

/// Looks pods and nodes up in a [`Store`].
#[derive(Clone, Debug)]
pub struct Locate {
    store: Arc<Store>,
    plain_http: bool,
}

impl Locate {
    pub fn new(store: Arc<Store>) -> Self {
        Self { store, plain_http: false }
    }

    /// Finds kubelets of this machine at `http://`.
    pub fn plain_http(mut self, on: bool) -> Self {
        self.plain_http = on;
        self
    }

    /// Where this target streams.
    pub fn hop(&self, target: &Target) -> Result<Hop, Refusal> {
        let pod = self.store.get(&Key::pod(&target.namespace, &target.pod));
        let pod = pod.ok_or_else(|| Refusal::not_found("pods", &target.pod))?;
        let mut target = target.clone();
        if target.subresource != Subresource::PortForward {
            target.container = Some(container(&pod, &target)?);
        }
        let node = text(&pod, "/spec/nodeName")
            .ok_or_else(|| Refusal::bad_request(format!("pod {} does not have a host assigned", target.pod)))?;
        let node = self.store.get(&Key::node(node)).ok_or_else(|| Refusal::not_found("nodes", node))?;
        let authority = authority(&node)?;
        let scheme = if self.plain_http { "http" } else { "https" };
        let hop = Hop::kubelet(&format!("{scheme}://{authority}"), &target)?;
        if self.plain_http && !is_loopback(&hop.uri) {
            return Err(Refusal::internal("plain HTTP is for kubelets of this machine only"));
        }
        Ok(hop.declares(features::of(&node)))
    }
}

/// The container that is meant, and is there.
fn container(pod: &Value, target: &Target) -> Result<String, Refusal> {
    // Upstream visits the init containers first and the ephemeral ones last.
    let all = ["/spec/initContainers", "/spec/containers", "/spec/ephemeralContainers"];
    let all = || all.into_iter().flat_map(|list| items(pod, list)).filter_map(|container| text(container, "/name"));
    match (&target.container, items(pod, "/spec/containers")) {
        (Some(named), _) if all().any(|name| name == named) => Ok(named.clone()),
        (Some(named), _) => Err(Refusal::bad_request(format!("container {named} is not valid for pod {}", target.pod))),
        (None, [only]) => Ok(text(only, "/name").unwrap_or_default().to_owned()),
        (None, []) => Err(Refusal::bad_request(format!("a container name must be specified for pod {}", target.pod))),
        (None, _) => Err(Refusal::bad_request(format!(
            "a container name must be specified for pod {}, choose one of: [{}]",
            target.pod,
            all().collect::<Vec<_>>().join(" ")
        ))),
    }
}

/// Host and port of a node's kubelet, and nothing else: with a `/` or a `?` in its address a node would say what we ask,
/// under our certificate, of somebody else.
fn authority(node: &Value) -> Result<String, Refusal> {
    let known: Vec<(&str, &str)> = items(node, "/status/addresses")
        .iter()
        .filter_map(|address| Some((text(address, "/type")?, text(address, "/address")?)))
        .collect();
    let preferred = PREFERRED.iter().find_map(|preferred| known.iter().find(|(kind, _)| kind == preferred));
    let Some((_, host)) = preferred else {
        let known: Vec<String> = known.iter().map(|(kind, address)| format!("{{{kind} {address}}}")).collect();
        let message = format!("no preferred addresses found; known addresses: [{}]", known.join(" "));
        return Err(Refusal::internal(message));
    };
    let port = node.pointer("/status/daemonEndpoints/kubeletEndpoint/Port").and_then(Value::as_u64);
    let port = port.filter(|port| *port != 0).unwrap_or(KUBELET_PORT);
    let of_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    match host.parse() {
        _ if port > u64::from(u16::MAX) => Err(Refusal::internal(format!("invalid port of a kubelet: {port}"))),
        Ok(IpAddr::V6(address)) => Ok(format!("[{address}]:{port}")),
        Err(_) if !host.bytes().all(of_name) => {
            Err(Refusal::internal(format!("invalid address of a kubelet: {host:?}")))
        }
        _ => Ok(format!("{host}:{port}")),
    }
}
