//! A permit is a value that cannot be made up.

use std::{ops::Deref, sync::Arc};

use http::Extensions;

use super::{Dialect, Refusal, Target};

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

/// `UpgradeDetect` has read the URL, and it is no streaming URL of that dialect.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NoStream(pub(crate) Dialect);

/// For a layer below the authorizing one: the permitted target, or `None` for a request that is no stream.
///
/// # Errors
///
/// The refusal of a stack that lacks a layer above `part`.
pub(crate) fn permit<'a>(
    extensions: &'a Extensions,
    part: &str,
) -> Result<Option<&'a Arc<Target>>, (Dialect, Refusal)> {
    if let Some(Permit(target)) = extensions.get() {
        return Ok(Some(target));
    }
    match detected(extensions, part)? {
        None => Ok(None),
        Some(target) => Err((target.dialect, Refusal::missing_layer("SyntheticAuthzLayer", part))),
    }
}

/// For a layer below `UpgradeDetect`: what is asked for, or `None` for a request that is no stream.
///
/// # Errors
///
/// The refusal of a stack that lacks `UpgradeDetect` above `part`.
pub(crate) fn detected<'a>(
    extensions: &'a Extensions,
    part: &str,
) -> Result<Option<&'a Arc<Target>>, (Dialect, Refusal)> {
    match extensions.get() {
        Some(StreamRequest(target)) => Ok(Some(target)),
        None if extensions.get::<NoStream>().is_some() => Ok(None),
        None => Err((Dialect::ApiServer, Refusal::missing_layer("UpgradeDetectLayer", part))),
    }
}

/// For a leaf: the permitted target.
///
/// # Errors
///
/// As for [`permit`], and 404 for a request that is no stream.
pub(crate) fn permitted(extensions: &Extensions, leaf: &str) -> Result<Arc<Target>, (Dialect, Refusal)> {
    permit(extensions, leaf)?.cloned().ok_or_else(|| {
        let dialect = extensions.get().map_or(Dialect::ApiServer, |NoStream(dialect)| *dialect);
        (dialect, Refusal::no_such_resource())
    })
}
