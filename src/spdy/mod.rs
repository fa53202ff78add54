//! SPDY/3.1 as Kubernetes speaks it: the client and the server role, spoken by moby/spdystream on the other side.
//!
//! The core has no I/O and holds no payload: [`codec`], [`frame`] and [`header_block`] turn bytes into frames and back,
//! and [`session`] knows the streams. On it stands [`connection`]: one task that owns a socket, and [`stream`]s that read
//! and write.
//!
//! There is no flow control: nobody in Kubernetes sends WINDOW_UPDATE, and honouring the 64 KiB default would deadlock
//! against all of it.
//!
//! This folder imports nothing of the crate.

mod batch;
pub mod codec;
pub mod connection;
mod dictionary;
mod error;
pub mod frame;
pub mod header_block;
pub mod session;
mod shared;
pub mod stream;
mod zlib;

pub use connection::{Config, Connection, Handle, Incoming, Opening, client, server};
pub use error::Error;
pub use frame::{ResetCode, StreamId};
pub use stream::{ReadHalf, RecvEnd, Stream, WriteHalf};
