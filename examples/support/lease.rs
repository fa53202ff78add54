//! A kubelet's Lease: the cheap sign that its node lives (KEP-589).
//!
//! Upstream: `component-helpers/apimachinery/lease/controller.go`, `pkg/kubelet/util/nodelease.go`.

use std::{sync::Arc, time::Duration};

use http::StatusCode;
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::time::sleep;

use super::{
    Error,
    client::{ApiClient, Ask, complaint},
    defaults::micro_timestamp,
    node::owner,
    objects::items,
    told::Told,
};

const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
/// As upstream's `nodeLeaseDurationSeconds`, and a quarter of it between two renewals.
const SECONDS: u64 = 40;
const RENEW: Duration = Duration::from_secs(SECONDS / 4);

/// The Lease of a node.
pub struct NodeLease {
    api: Arc<ApiClient>,
    node: String,
}

impl NodeLease {
    pub fn new(api: Arc<ApiClient>, node: &str) -> Self {
        Self { api, node: node.to_owned() }
    }

    /// Renews it until dropped, which may be at any time.
    pub async fn keep(&self) {
        let mut told = Told::new("renewing the node's lease");
        loop {
            let renewed = self.once().await;
            sleep(told.wait(renewed, RENEW)).await;
        }
    }

    /// Renews the Lease, or creates it. Whoever has changed it in between wins, until the next try.
    async fn once(&self) -> Result<(), Error> {
        let path = format!("{LEASES}/{}", self.node);
        let (code, lease) = self.api.ask(&path, Ask::Get).await?;
        let (mut lease, is_new) = match code {
            StatusCode::OK => (lease, false),
            StatusCode::NOT_FOUND => (self.fresh(), true),
            _ => return Err(format!("GET {path}: {}", complaint(code, &lease)).into()),
        };
        if !lease["metadata"].is_object() || !(lease["spec"].is_null() || lease["spec"].is_object()) {
            return Err(format!("GET {path}: the answer is no Lease").into());
        }
        lease["spec"]["holderIdentity"] = self.node.as_str().into();
        lease["spec"]["leaseDurationSeconds"] = SECONDS.into();
        lease["spec"]["renewTime"] = micro_timestamp(OffsetDateTime::now_utc()).into();
        if items(&lease, "/metadata/ownerReferences").is_empty() {
            lease["metadata"]["ownerReferences"] = json!([owner(&self.api, &self.node).await?]);
        }
        let (path, ask) = if is_new { (LEASES, Ask::Post(&lease)) } else { (&*path, Ask::Put(&lease)) };
        let (code, answer) = self.api.ask(path, ask).await?;
        if code.is_success() { Ok(()) } else { Err(format!("{path}: {}", complaint(code, &answer)).into()) }
    }

    fn fresh(&self) -> Value {
        json!({
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": { "name": self.node, "namespace": "kube-node-lease" },
            "spec": {},
        })
    }
}
