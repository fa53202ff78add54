//! `exec` and `attach`, whoever carries them: versions, streams, `Status` JSON, terminal sizes.

pub(crate) mod passthrough;
pub(crate) mod relay;
mod resize;
pub mod status;
mod stdio;
mod version;

pub use stdio::{Exit, Input, Output, Stdio, TerminalSize};
pub use version::Version;
