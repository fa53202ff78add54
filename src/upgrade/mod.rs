//! HTTP upgrades, knowing no subprotocol: what is asked ([`Target`]), what was allowed ([`Permit`]), why it is refused
//! ([`Refusal`]), and the two byte streams that are left when a request has been answered with `101` ([`Io`]).

mod refusal;
mod report;
mod target;

pub use refusal::Refusal;
pub use report::{End, Report};
pub use target::{Dialect, StreamOptions, Subresource, Target};
