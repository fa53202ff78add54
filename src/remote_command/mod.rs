//! `exec` and `attach`, whoever carries them: versions, streams, `Status` JSON, terminal sizes.

pub(crate) mod over_spdy;
#[cfg(feature = "client")]
pub mod over_spdy_client;
pub mod over_websocket;
#[cfg(feature = "client")]
pub mod over_websocket_client;
pub(crate) mod passthrough;
pub(crate) mod relay;
mod resize;
pub mod status;
mod stdio;
mod version;

pub use stdio::{Exit, Input, Output, Stdio, TerminalSize};
pub use version::Version;
