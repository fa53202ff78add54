//! SPDY/3.1 as Kubernetes speaks it: the client and the server role, spoken by moby/spdystream on the other side.
//!
//! The core has no I/O and holds no payload: [`codec`], [`frame`] and [`header_block`] turn bytes into frames and back.
//!
//! There is no flow control: nobody in Kubernetes sends WINDOW_UPDATE, and honouring the 64 KiB default would deadlock
//! against all of it.
//!
//! This folder imports nothing of the crate.

pub mod codec;
mod dictionary;
mod error;
pub mod frame;
pub mod header_block;
mod zlib;

pub use error::Error;
