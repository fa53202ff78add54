//! Pods and Nodes by watch, and from a pod to the URL at which its kubelet streams.

use std::{fmt, future::Future, pin::Pin, sync::Arc};

use kube::Client;
use tokio::join;

use super::{
    ask::{Api, Failure},
    objects::{Kubelet, Node, Placed, Pod, is_name},
    store::Store,
    watching::keep,
};
use crate::{
    layers::{Hop, Resolve},
    upgrade::{Refusal, Target},
};

/// Most Pods and Nodes that are kept; Kubernetes is built for 150,000 and 5,000.
const PODS: usize = 200_000;
const NODES: usize = 20_000;

/// Most bytes of names that are kept of a Pod. Usual ones have less than 200.
const NAMES: usize = 4096;

/// Pods and Nodes of a cluster, by watch: what an API server asks where a stream goes next. Cheap to clone.
///
/// A pod is looked up as kube-apiserver does it, and refused in its words. What the watch has not seen yet, or would
/// refuse, is asked of the API, so a pod or an ephemeral container that was created a moment ago is found. While the
/// watch is not open everything is asked. If the API cannot be asked either, streams are refused with 503 and
/// `Retry-After`.
///
/// Kept are the names of nodes and containers, addresses and ports: about 300 bytes for a pod, 200,000 pods at most.
/// Needs `get`, `list` and `watch` on `pods` and `nodes`.
#[derive(Clone)]
pub struct Cluster {
    api: Api,
    pods: Arc<Store<Placed>>,
    nodes: Arc<Store<Kubelet>>,
}

impl Cluster {
    /// Watches with that client. The future keeps the watches for as long as it is polled, and never ends: spawn it. It
    /// may be dropped at any time; everything is asked of the API then.
    #[must_use = "without the future nothing is watched"]
    pub fn watch(client: Client) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let cluster = Self {
            api: Api::new(client.clone()),
            pods: Arc::new(Store::new(PODS)),
            nodes: Arc::new(Store::new(NODES)),
        };
        let (pods, nodes) = (cluster.pods.clone(), cluster.nodes.clone());
        let watches = async move {
            let pods = keep(client.clone(), "pods", pods, |pod: Pod| {
                Some(pod.placed()).filter(|pod| pod.is_scheduled() && pod.size() <= NAMES)
            });
            let nodes = keep(client, "nodes", nodes, |node: Node| node.kubelet().ok());
            join!(pods, nodes);
        };
        (cluster, watches)
    }

    /// Whether all Pods and Nodes were listed once.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.pods.is_filled() && self.nodes.is_filled()
    }

    /// Waits for that.
    ///
    /// # Cancel safety
    ///
    /// May be dropped and called again.
    pub async fn ready(&self) {
        self.pods.filled().await;
        self.nodes.filled().await;
    }

    async fn hop(&self, target: &Target) -> Result<Hop, Refusal> {
        let Target { namespace, pod, .. } = target;
        if !is_name(namespace) || !is_name(pod) {
            return Err(Refusal::not_found("pods", pod));
        }
        // A refusal is never the store's: what it has may be a moment old.
        match self.known(target) {
            Some(hop) => Ok(hop),
            None => self.asked(target).await,
        }
    }

    /// By what the watches have found.
    fn known(&self, target: &Target) -> Option<Hop> {
        let pod = self.pods.get(&format!("{}/{}", target.namespace, target.pod))?;
        let (container, node) = pod.find(target).ok()?;
        self.nodes.get(node)?.hop(target, container).ok()
    }

    /// By what the API says now.
    async fn asked(&self, target: &Target) -> Result<Hop, Refusal> {
        let Target { namespace, pod: name, .. } = target;
        let pod = self.api.get::<Pod>(&format!("/api/v1/namespaces/{namespace}/pods/{name}")).await;
        let pod = pod.map_err(|failure| refusal(failure, "pods", name))?.placed();
        let (container, node) = pod.find(target)?;
        if let Some(kubelet) = self.nodes.get(node) {
            return kubelet.hop(target, container);
        }
        if !is_name(node) {
            return Err(Refusal::not_found("nodes", node));
        }
        let found = self.api.get::<Node>(&format!("/api/v1/nodes/{node}")).await;
        found.map_err(|failure| refusal(failure, "nodes", node))?.kubelet()?.hop(target, container)
    }
}

impl Resolve for Cluster {
    type Future = Pin<Box<dyn Future<Output = Result<Hop, Refusal>> + Send>>;

    fn resolve(&self, target: Arc<Target>) -> Self::Future {
        let cluster = self.clone();
        Box::pin(async move { cluster.hop(&target).await })
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster")
            .field("pods", &self.pods.len())
            .field("nodes", &self.nodes.len())
            .finish_non_exhaustive()
    }
}

fn refusal(failure: Failure, kind: &'static str, name: &str) -> Refusal {
    match failure {
        Failure::NotFound => Refusal::not_found(kind, name),
        failure => failure.refusal(kind),
    }
}
