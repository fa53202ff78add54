//! A kubelet's Node: registered at the API server, and again and again.
//!
//! Upstream: `pkg/kubelet/kubelet_node_status.go`; what the node declares: KEP-5328 and
//! `component-helpers/nodedeclaredfeatures`.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use http::StatusCode;
use serde_json::{Value, json};
use tokio::time::sleep;
use tower_kube_streaming::{FeatureGates, Gate};

use super::{
    Error,
    client::{ApiClient, Ask, complaint},
};

/// Between two updates: upstream's `nodeStatusUpdateFrequency`. An API server that lost its objects with a restart knows
/// the node again after so long.
const UPDATE: Duration = Duration::from_secs(10);
/// Between two tries.
const RETRY: Duration = Duration::from_secs(1);
/// Upstream's limit for the name of an object.
const NAME: usize = 253;

/// A Node, and where it is registered.
pub struct Registration {
    api: Arc<ApiClient>,
    name: String,
    status: Value,
}

impl Registration {
    /// A node whose kubelet listens there.
    pub fn new(api: Arc<ApiClient>, name: &str, listens: SocketAddr, gates: FeatureGates) -> Result<Self, Error> {
        // It becomes part of a URL.
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'.';
        let ends = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
        let bytes = name.as_bytes();
        if bytes.len() > NAME || !bytes.iter().copied().all(plain) || !ends(bytes.first()) || !ends(bytes.last()) {
            return Err(format!("--node-name {name:?} is no name of an object").into());
        }
        Ok(Self { api, name: name.to_owned(), status: status(listens, gates) })
    }

    /// Registers the node until it is stopped, and calls `registered` after the first time. A failure is a warning.
    ///
    /// # Cancel safety
    ///
    /// May be dropped at any time; the node stays as it was told last.
    pub async fn keep(&self, registered: impl FnOnce()) {
        let mut first = Some(registered);
        let mut failing = true;
        loop {
            match self.once().await {
                Ok(created) => {
                    if failing || created {
                        tracing::info!(node = self.name, created, "node registered");
                    }
                    failing = false;
                    if let Some(registered) = first.take() {
                        registered();
                    }
                    sleep(UPDATE).await;
                }
                Err(error) => {
                    tracing::warn!(node = self.name, %error, "registering the node failed; trying again");
                    failing = true;
                    sleep(RETRY).await;
                }
            }
        }
    }

    /// Updates the node, or creates it if it is not there, which is told.
    async fn once(&self) -> Result<bool, Error> {
        let path = format!("/api/v1/nodes/{}/status", self.name);
        let patch = json!({ "status": self.status });
        let (code, answer) = self.api.ask(&path, Ask::MergePatch(&patch)).await?;
        match code {
            StatusCode::OK => return Ok(false),
            StatusCode::NOT_FOUND => {}
            _ => return Err(format!("PATCH {path}: {}", complaint(code, &answer)).into()),
        }
        let mut node = json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": { "name": self.name, "labels": { "kubernetes.io/hostname": self.name } },
            "status": self.status,
        });
        // `null` means "remove", and only to a patch.
        if let Some(status) = node["status"].as_object_mut() {
            status.retain(|_, value| !value.is_null());
        }
        let (code, answer) = self.api.ask("/api/v1/nodes", Ask::Post(&node)).await?;
        match code {
            StatusCode::CREATED => Ok(true),
            _ => Err(format!("POST /api/v1/nodes: {}", complaint(code, &answer)).into()),
        }
    }
}

/// As a merge patch: lists are replaced whole, so that no address and no feature of an earlier life is left.
fn status(listens: SocketAddr, gates: FeatureGates) -> Value {
    let address = match listens.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    let ready = json!({
        "type": "Ready", "status": "True", "reason": "KubeletReady", "message": "kubelet is posting ready status",
    });
    json!({
        "addresses": [{ "type": "InternalIP", "address": address.to_string() }],
        "conditions": [ready],
        "daemonEndpoints": { "kubeletEndpoint": { "Port": listens.port() } },
        "nodeInfo": { "kubeletVersion": "v1.36.2" },
        "declaredFeatures": declared(gates),
    })
}

/// What the node declares, sorted; `null` takes back what an earlier kubelet of this name declared.
pub fn declared(gates: FeatureGates) -> Value {
    let extends = gates.enabled(Gate::NodeDeclaredFeatures) && gates.enabled(Gate::ExtendWebSocketsToKubelet);
    if extends { json!([Gate::ExtendWebSocketsToKubelet.name()]) } else { Value::Null }
}
