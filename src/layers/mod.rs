//! Tower layers: each acts on a streaming request, or forwards it unchanged.
//!
//! They go with any tower layer between them, so the types do not hold their order. Where one is missing above another,
//! or above a leaf, every stream gets a 500 whose body and log line name it, and nothing is opened.

mod adapt;
pub mod danger;
pub mod feature_routing;
mod future;
pub mod metrics;
mod origin;
pub mod quota;
pub mod synthetic_authz;
pub mod translate;
pub mod tunnel;
pub mod upgrade_detect;

#[cfg(test)]
mod tests;

pub use feature_routing::{FeatureRouting, FeatureRoutingLayer, Hop, Resolve};
pub use metrics::{Metrics, MetricsLayer, Record};
pub use quota::{Quota, QuotaLayer};
pub use synthetic_authz::{Authorize, SyntheticAuthz, SyntheticAuthzLayer};
pub use translate::{Translate, TranslateLayer};
pub use tunnel::{Tunnel, TunnelLayer};
pub use upgrade_detect::{UpgradeDetect, UpgradeDetectLayer};
