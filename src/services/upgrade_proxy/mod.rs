//! Carries an upgrade to the next hop, whatever protocol it is.
//!
//! A leaf: it dials the [`Hop`](crate::layers::Hop) of a permitted request ([`Connect`]), sends the request there, and relays the answer.
//! A `101` joins the two connections, or hands the next hop's side to the layer above if that took the client's. Any
//! other answer is final: the connection is closed (CVE-2018-1002105), redirects are refused (CVE-2020-8559), and
//! what the hop refused keeps its status and body.
//!
//! The caller's credentials stay here: `Authorization`, `Proxy-Authorization`, `Cookie`, `Impersonate-*` and bearer
//! subprotocols are taken out. Half-closes are carried, and what one side sent before it ended still arrives.
//!
//! Over SPDY `exec` and `attach` the proxy also watches for the status: where the hop ends without one, the client is
//! sent a failure instead of a silence that it would take for success (see `remote_command::passthrough`).

mod connect;
mod handshake;
mod service;

#[cfg(feature = "rustls")]
pub(crate) use connect::dial;
pub use connect::{Connect, TcpConnect};
pub use service::UpgradeProxy;
pub(super) use service::upgrade_required;

#[cfg(test)]
mod tests;
