//! All that a kubelet keeps at its API server: its Node, its Lease, and a mirror of each static Pod.

use std::sync::Arc;

use axum::extract::Request;
use tokio_util::sync::CancellationToken;

use super::{Error, lease::NodeLease, mirror::Mirrors, node::Registration, objects::Store};

/// What is kept.
pub struct Reports {
    node: Registration,
    lease: NodeLease,
    mirrors: Option<Arc<Mirrors>>,
}

/// Takes requests for a mirror Pod for those of the Pod that it mirrors.
#[derive(Clone, Default)]
pub struct Redirect(Option<Arc<Mirrors>>);

impl Redirect {
    pub fn apply(&self, request: Request) -> Request {
        match &self.0 {
            Some(mirrors) => mirrors.redirect(request),
            None => request,
        }
    }
}

impl Reports {
    /// That node, its Lease, and mirrors of the Pods in the store, if they are wanted.
    pub fn new(node: Registration, store: &Arc<Store>, mirrored: bool) -> Result<Self, Error> {
        let (api, name) = (node.api(), node.name());
        let mirrors = match mirrored {
            true => Some(Arc::new(Mirrors::new(api.clone(), store.clone(), name, node.address())?)),
            false => None,
        };
        Ok(Self { lease: NodeLease::new(api.clone(), name), mirrors, node })
    }

    pub fn redirect(&self) -> Redirect {
        Redirect(self.mirrors.clone())
    }

    /// Keeps it until stopped, and calls `registered` when the Node is there, which all else belongs to. The mirrors go
    /// then, unless they are to stay.
    pub async fn keep(self, stop: CancellationToken, registered: impl FnOnce(), leave: bool) {
        let Self { node, lease, mirrors } = self;
        let known = CancellationToken::new();
        let node = node.keep(|| {
            registered();
            known.cancel();
        });
        let rest = async {
            known.cancelled().await;
            let mirrored = async {
                if let Some(mirrors) = &mirrors {
                    mirrors.keep().await;
                }
            };
            tokio::join!(lease.keep(), mirrored)
        };
        stop.run_until_cancelled(async { tokio::join!(node, rest) }).await;
        if let Some(mirrors) = mirrors.filter(|_| !leave) {
            mirrors.remove().await;
        }
    }
}
