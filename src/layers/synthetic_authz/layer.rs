use std::{fmt, sync::Arc};

use tower::Layer;

use super::SyntheticAuthz;
use crate::gates::{FeatureGates, Gate};

/// Layer that applies [`SyntheticAuthz`]. See the [module docs](super).
pub struct SyntheticAuthzLayer<A> {
    pub(super) authorizer: Arc<A>,
    pub(super) node: Arc<str>,
    /// Asks pods for `create` too.
    pub(super) gate: bool,
    pub(super) behind_authorizer: bool,
}

impl<A> SyntheticAuthzLayer<A> {
    /// Asks `authorizer`, with the gates' defaults.
    pub fn new(authorizer: A) -> Self {
        Self::shared(Arc::new(authorizer))
    }

    /// As [`new`](Self::new), for an authorizer that others use as well.
    pub fn shared(authorizer: Arc<A>) -> Self {
        Self { authorizer, node: "".into(), gate: true, behind_authorizer: false }.gates(FeatureGates::default())
    }

    /// Obeys `AuthorizePodWebsocketUpgradeCreatePermission`. Off, an API server lets GET open a stream with `get` alone,
    /// as before 1.35. A kubelet asks for `create` whatever the gate is: upstream's gate is not about it, and who needs
    /// the old rule there can grant the verb.
    #[must_use]
    pub fn gates(mut self, gates: FeatureGates) -> Self {
        self.gate = gates.enabled(Gate::AuthorizePodWebsocketUpgradeCreatePermission);
        self
    }

    /// The node that a kubelet asks about; an API server does not use it. Without it the name is empty, which an RBAC
    /// rule with `resourceNames` never matches.
    #[must_use]
    pub fn node_name(mut self, node: impl Into<Arc<str>>) -> Self {
        self.node = node.into();
        self
    }

    /// Does not ask for the method's own verb, because an authorizer in front has. It must have put
    /// [`Decided`](super::Decided) into the request; without it, or if it is about something else, the answer is 500.
    #[must_use]
    pub fn behind_authorizer(mut self) -> Self {
        self.behind_authorizer = true;
        self
    }
}

// Not derived: the authorizer is shared, not cloned.
impl<A> Clone for SyntheticAuthzLayer<A> {
    fn clone(&self) -> Self {
        let Self { authorizer, node, gate, behind_authorizer } = self;
        Self {
            authorizer: Arc::clone(authorizer),
            node: Arc::clone(node),
            gate: *gate,
            behind_authorizer: *behind_authorizer,
        }
    }
}

impl<A> fmt::Debug for SyntheticAuthzLayer<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SyntheticAuthzLayer")
            .field("node", &self.node)
            .field("gate", &self.gate)
            .field("behind_authorizer", &self.behind_authorizer)
            .finish_non_exhaustive()
    }
}

impl<S, A> Layer<S> for SyntheticAuthzLayer<A> {
    type Service = SyntheticAuthz<S, A>;

    fn layer(&self, inner: S) -> Self::Service {
        SyntheticAuthz { inner, layer: self.clone() }
    }
}
