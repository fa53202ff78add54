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
use time::OffsetDateTime;
use tokio::time::sleep;
use tower_kube_streaming::{FeatureGates, Gate};

use super::{
    Error,
    client::{ApiClient, Ask, complaint},
    objects::{is_name, text, timestamp},
};

/// Between two updates: upstream's `nodeStatusUpdateFrequency`. An API server that lost its objects with a restart knows
/// the node again after so long.
const UPDATE: Duration = Duration::from_secs(10);
/// Between two tries.
const RETRY: Duration = Duration::from_secs(1);

/// A Node, and where it is registered.
pub struct Registration {
    api: Arc<ApiClient>,
    name: String,
    address: IpAddr,
    status: Value,
}

impl Registration {
    /// A node whose kubelet listens there.
    pub fn new(api: Arc<ApiClient>, name: &str, listens: SocketAddr, gates: FeatureGates) -> Result<Self, Error> {
        // It becomes part of a URL.
        if !is_name(name) {
            return Err(format!("--node-name {name:?} is no name of an object").into());
        }
        let started = timestamp(OffsetDateTime::now_utc());
        let address = address(listens);
        let status = status(address, listens.port(), gates, &started);
        Ok(Self { api, name: name.to_owned(), address, status })
    }

    pub fn api(&self) -> &Arc<ApiClient> {
        &self.api
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where its kubelet is.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// Registers the node until it is stopped, and calls `registered` after the first time. A failure is a warning, once
    /// until it goes away or its reason changes.
    ///
    /// # Cancel safety
    ///
    /// May be dropped at any time; the node stays as it was told last.
    pub async fn keep(&self, registered: impl FnOnce()) {
        let mut first = Some(registered);
        let mut failure = None;
        loop {
            match self.once().await {
                Ok(created) => {
                    if failure.take().is_some() || created || first.is_some() {
                        tracing::info!(node = self.name, created, "node registered");
                    }
                    if let Some(registered) = first.take() {
                        registered();
                    }
                    sleep(UPDATE).await;
                }
                Err(error) => {
                    let why = error.to_string();
                    if failure.as_ref() != Some(&why) {
                        tracing::warn!(node = self.name, error = why, "registering the node failed; trying again");
                        failure = Some(why);
                    }
                    sleep(RETRY).await;
                }
            }
        }
    }

    /// Updates the node, or creates it if it is not there, which is told.
    async fn once(&self) -> Result<bool, Error> {
        let path = format!("/api/v1/nodes/{}/status", self.name);
        let mut status = self.status.clone();
        status["conditions"][0]["lastHeartbeatTime"] = timestamp(OffsetDateTime::now_utc()).into();
        let patch = json!({ "status": status });
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
            "status": status,
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

/// The address at which clients find who listens there.
fn address(listens: SocketAddr) -> IpAddr {
    match listens.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    }
}

/// The node as the owner of what its kubelet makes.
pub async fn owner(api: &ApiClient, node: &str) -> Result<Value, Error> {
    let path = format!("/api/v1/nodes/{node}");
    let (code, object) = api.ask(&path, Ask::Get).await?;
    match text(&object, "/metadata/uid") {
        Some(uid) if code == StatusCode::OK => {
            Ok(json!({ "apiVersion": "v1", "kind": "Node", "name": node, "uid": uid }))
        }
        _ => Err(format!("GET {path}: {}", complaint(code, &object)).into()),
    }
}

/// As a merge patch: lists are replaced whole, so that no address and no feature of an earlier life is left.
fn status(address: IpAddr, port: u16, gates: FeatureGates, started: &str) -> Value {
    let ready = json!({
        "type": "Ready", "status": "True", "reason": "KubeletReady", "message": "kubelet is posting ready status",
        "lastTransitionTime": started,
    });
    json!({
        "addresses": [{ "type": "InternalIP", "address": address.to_string() }],
        "conditions": [ready],
        "daemonEndpoints": { "kubeletEndpoint": { "Port": port } },
        "nodeInfo": { "kubeletVersion": "v1.36.2" },
        "declaredFeatures": declared(gates),
    })
}

/// What the node declares, sorted; `null` takes back what an earlier kubelet of this name declared.
pub fn declared(gates: FeatureGates) -> Value {
    let extends = gates.enabled(Gate::NodeDeclaredFeatures) && gates.enabled(Gate::ExtendWebSocketsToKubelet);
    if extends { json!([Gate::ExtendWebSocketsToKubelet.name()]) } else { Value::Null }
}
