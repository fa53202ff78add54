//! Tower layers and services that speak Kubernetes streaming: `exec`, `attach`, `cp` and `port-forward`.
//!
//! One idea: **everything is an HTTP service that may answer `101 Switching Protocols`.**
pub mod adapters;
mod error;
pub mod layers;
pub mod remote_command;
pub mod runtime;
pub mod services;
pub mod spdy;
mod status;
pub mod upgrade;
pub mod websocket;

pub use error::{BoxError, Error, Initiator};
