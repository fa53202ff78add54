//! A permit is a value that cannot be made up.

use std::{ops::Deref, sync::Arc};

use http::{Extensions, StatusCode};

use super::{Refusal, Target};

/// What a request asks for, as `UpgradeDetect` read it. Asked, not allowed: leaves look at [`Permit`] alone.
#[derive(Clone, Debug)]
pub struct StreamRequest(pub(crate) Arc<Target>);

/// Leave to open one stream, and the very target that was authorized.
///
/// It has no public constructor: an authorizing layer inserts it, or the explicit `danger::PermitAll`. Layers and
/// leaves learn the target from it and from nowhere else, so a rewrite of the URL below the check changes nothing.
#[derive(Clone, Debug)]
pub struct Permit(pub(crate) Arc<Target>);

impl StreamRequest {
    /// What is asked for.
    #[must_use]
    pub fn target(&self) -> &Arc<Target> {
        &self.0
    }
}

impl Deref for Permit {
    type Target = Target;

    fn deref(&self) -> &Target {
        &self.0
    }
}

/// The permitted target, or the refusal of a stack in which nobody authorizes.
pub(crate) fn permitted(extensions: &Extensions) -> Result<Arc<Target>, Refusal> {
    extensions.get::<Permit>().map(|permit| Arc::clone(&permit.0)).ok_or_else(|| {
        tracing::error!("a stream reached its leaf without a permit: the stack has no authorizing layer");
        Refusal::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "InternalError",
            "Internal error occurred: no authorizer available",
        )
    })
}
