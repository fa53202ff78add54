//! WebSocket (RFC 6455) as Kubernetes speaks it: a codec without I/O for both roles, the channel byte on top of it, and
//! the two halves of the opening handshake.
//!
//! No message is ever assembled: payload is unmasked in the buffer it was read into and reported as ranges of it, so a
//! session's memory does not depend on what its peer sends. There are no extensions, and nothing here fragments.

mod base64;
pub mod channel;
#[cfg(feature = "client")]
pub mod client;
pub mod codec;
mod error;
mod frame;
pub mod handshake;
mod mask;
mod pipe;

pub use codec::{Data, Decoder, Event, Limits, Role, Step};
pub use error::Error;
pub use frame::{Close, ControlFrame, Head, MAX_CONTROL, Opcode, Payload};
pub(crate) use mask::fresh_key;
pub use pipe::Pipe;
