//! Tower layers: each acts on a streaming request, or forwards it unchanged.

pub mod danger;
pub mod feature_routing;
mod future;
pub mod translate;
pub mod upgrade_detect;

#[cfg(test)]
mod tests;

pub use feature_routing::{FeatureRouting, FeatureRoutingLayer, Hop, Resolve};
pub use translate::{Translate, TranslateLayer};
pub use upgrade_detect::{UpgradeDetect, UpgradeDetectLayer};
