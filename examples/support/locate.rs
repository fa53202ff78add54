//! From a pod to the URL at which its kubelet streams, with upstream's words where there is none
//! (pkg/registry/core/pod/strategy.go `streamLocation`, pkg/kubelet/client).

use std::{net::IpAddr, sync::Arc};

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
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
        let pod = self.pod(&target.namespace, &target.pod)?;
        let mut target = target.clone();
        if target.subresource != Subresource::PortForward {
            target.container = Some(container(&pod, &target.pod, target.container.as_deref())?);
        }
        let (node, base) = self.kubelet(&pod, &target.pod)?;
        let hop = Hop::kubelet(&base, &target)?;
        if self.plain_http && !is_loopback(&hop.uri) {
            return Err(Refusal::internal("plain HTTP is for kubelets of this machine only"));
        }
        Ok(hop.declares(features::of(&node)))
    }

    /// Where the log of that container is, without a query; `None` while nobody has taken the pod.
    pub fn log(&self, namespace: &str, pod: &str, named: Option<&str>) -> Result<Option<String>, Refusal> {
        let object = self.pod(namespace, pod)?;
        let container = container(&object, pod, named)?;
        if text(&object, "/spec/nodeName").is_none() {
            return Ok(None);
        }
        let (_, base) = self.kubelet(&object, pod)?;
        // The names of objects are plain; a container may be called anything.
        let container = utf8_percent_encode(&container, NON_ALPHANUMERIC);
        let uri = format!("{base}/containerLogs/{namespace}/{pod}/{container}");
        if self.plain_http && !uri.parse().is_ok_and(|uri| is_loopback(&uri)) {
            return Err(Refusal::internal("plain HTTP is for kubelets of this machine only"));
        }
        Ok(Some(uri))
    }

    fn pod(&self, namespace: &str, pod: &str) -> Result<Value, Refusal> {
        self.store.get(&Key::pod(namespace, pod)).ok_or_else(|| Refusal::not_found("pods", pod))
    }

    /// The node of a pod, and the URL of its kubelet.
    fn kubelet(&self, object: &Value, pod: &str) -> Result<(Value, String), Refusal> {
        let node = text(object, "/spec/nodeName")
            .ok_or_else(|| Refusal::bad_request(format!("pod {pod} does not have a host assigned")))?;
        let node = self.store.get(&Key::node(node)).ok_or_else(|| Refusal::not_found("nodes", node))?;
        let scheme = if self.plain_http { "http" } else { "https" };
        let base = format!("{scheme}://{}", authority(&node)?);
        Ok((node, base))
    }
}

/// The container that is meant, and is there.
fn container(object: &Value, pod: &str, named: Option<&str>) -> Result<String, Refusal> {
    // Upstream visits the init containers first and the ephemeral ones last.
    let all = ["/spec/initContainers", "/spec/containers", "/spec/ephemeralContainers"];
    let all = || all.into_iter().flat_map(|list| items(object, list)).filter_map(|container| text(container, "/name"));
    match (named, items(object, "/spec/containers")) {
        (Some(named), _) if all().any(|name| name == named) => Ok(named.to_owned()),
        (Some(named), _) => Err(Refusal::bad_request(format!("container {named} is not valid for pod {pod}"))),
        (None, [only]) => Ok(text(only, "/name").unwrap_or_default().to_owned()),
        (None, []) => Err(Refusal::bad_request(format!("a container name must be specified for pod {pod}"))),
        (None, _) => Err(Refusal::bad_request(format!(
            "a container name must be specified for pod {pod}, choose one of: [{}]",
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
