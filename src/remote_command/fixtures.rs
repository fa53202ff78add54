//! What the tests of several carriers need.

use crate::{
    spdy::frame::{self, ResetCode, StreamId},
    upgrade::SessionLimits,
};

pub(super) const LIMITS: SessionLimits = SessionLimits::new();

/// The status of a command that has succeeded, as Go's servers write it.
pub(super) const SUCCESS: &[u8] = br#"{"metadata":{},"status":"Success"}"#;

/// A whole DATA frame.
pub(super) fn data(stream: u32, bytes: &[u8], fin: bool) -> Vec<u8> {
    let mut frame = frame::data_head(StreamId::new(stream).unwrap(), bytes.len(), fin).to_vec();
    frame.extend_from_slice(bytes);
    frame
}

pub(super) fn rst(stream: u32) -> [u8; 16] {
    frame::rst(StreamId::new(stream).unwrap(), ResetCode::CANCEL)
}
