//! When sessions look at the time.

use std::{sync::OnceLock, time::Duration};

use tokio::time::Instant;

/// How often a session looks at the time; its bounds are kept to one tick. It is also how often a client that waits for
/// its stdin to be taken is shown that we live.
pub(super) const TICK: Duration = Duration::from_secs(5);

/// Ticks of all sessions fall on a common grid, so that one wake-up of a thread serves many of them.
const GRID: Duration = Duration::from_millis(250);

/// A session's first tick: [`TICK`] from now, and what is missing to the grid.
pub(super) fn first() -> Instant {
    static EPOCH: OnceLock<std::time::Instant> = OnceLock::new();
    let then = Instant::now() + TICK;
    let past = then.into_std().saturating_duration_since(*EPOCH.get_or_init(std::time::Instant::now));
    let beyond = Duration::from_nanos((past.as_nanos() % GRID.as_nanos()) as u64);
    then + (GRID - beyond)
}

/// The tick behind one that was due at `deadline`.
pub(super) fn after(deadline: Instant) -> Instant {
    let next = deadline + TICK;
    if next > Instant::now() { next } else { first() }
}
