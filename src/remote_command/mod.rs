//! `exec` and `attach`, whoever carries them: versions, streams, `Status` JSON, terminal sizes.

pub mod over_websocket;
#[cfg(feature = "client")]
mod over_websocket_client;
mod resize;
pub mod status;
mod stdio;
mod version;

pub use stdio::{Exit, Input, Output, Stdio, TerminalSize};
pub use version::Version;
