//! HTTP upgrades, knowing no subprotocol.
//!
//! What is asked ([`Target`], [`StreamRequest`]), by whom ([`Caller`]), what was allowed ([`Permit`]), why it is refused
//! ([`Refusal`]); and, once a request has been answered with `101`, the two byte streams that are left ([`Io`]).
//!
//! # Who carries which side
//!
//! The client's side of an upgrade rides in the request, the leaf's side in the `101`. A leaf uses the client's side if
//! the request still has it ([`accept`]); else it returns its own side in the response. A layer that adapts takes the
//! client's side out of the request ([`take`]), takes the leaf's side out of the response, and joins the two.

pub(crate) mod buffer;
mod caller;
mod cause;
pub(crate) mod clock;
mod connect;
mod grammar;
mod headers;
mod io;
mod limits;
pub(crate) mod outbox;
mod permit;
mod refusal;
mod report;
mod session;
pub(crate) mod side;
mod target;
mod trace_context;

pub use caller::{Caller, ClientAddr};
pub use cause::{Cause, Leg};
pub use connect::{Connect, TcpConnect, Transport};
#[cfg(feature = "client")]
pub(crate) use connect::{default_port, only_http};
pub(crate) use grammar::parse_port;
pub(crate) use headers::{can_switch, is_upgrade, is_websocket, list, upgrade_names};
#[cfg(test)]
pub(crate) use io::mark_taken;
pub use io::{Io, Pending, accept, take};
pub use limits::SessionLimits;
pub(crate) use permit::{NoStream, detected, permit, permitted};
pub use permit::{Permit, StreamRequest};
pub use refusal::{DialFailed, Refusal};
pub use report::{End, Report, Traffic};
pub use session::{Route, Session, Sessions};
pub use target::{Dialect, StreamOptions, Subresource, Target};
pub(crate) use trace_context::{drop_malformed as drop_malformed_trace_context, trace_id};
