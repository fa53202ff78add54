//! Time of sessions, in ticks of five seconds: nothing on the data path asks what time it is.

use std::{future::pending, sync::OnceLock, time::Duration};

use tokio::time::{Instant, sleep};

use super::SessionLimits;

/// How often a session looks at the time; its bounds are kept to one tick. It is also how often a client that waits for
/// its stdin to be taken is shown that we live.
const TICK: Duration = Duration::from_secs(5);

/// Ticks of all sessions fall on a common grid, so that one wake-up of a thread serves many of them.
const GRID: Duration = Duration::from_millis(250);

/// How often [`quiet`] looks, at most.
const LOOK: Duration = Duration::from_secs(60);

/// A session's first tick: [`TICK`] from now, and what is missing to the grid.
pub(crate) fn first() -> Instant {
    static EPOCH: OnceLock<std::time::Instant> = OnceLock::new();
    let then = Instant::now() + TICK;
    let past = then.into_std().saturating_duration_since(*EPOCH.get_or_init(std::time::Instant::now));
    let beyond = Duration::from_nanos((past.as_nanos() % GRID.as_nanos()) as u64);
    then + (GRID - beyond)
}

/// The tick behind one that was due at `deadline`.
pub(crate) fn after(deadline: Instant) -> Instant {
    let next = deadline + TICK;
    if next > Instant::now() { next } else { first() }
}

/// A time in ticks, rounded up; at least one.
pub(crate) fn ticks(time: Duration) -> u32 {
    u32::try_from(time.as_nanos().div_ceil(TICK.as_nanos())).unwrap_or(u32::MAX).max(1)
}

/// Ticks without payload behind which a session is over.
pub(crate) fn idle(limits: &SessionLimits) -> u32 {
    if limits.idle.is_zero() { u32::MAX } else { ticks(limits.idle) }
}

/// Returns when `moved` has said the same for `limit`, or up to a minute later; never if it is zero. For sessions that do
/// not count ticks.
pub(crate) async fn quiet<T: PartialEq>(limit: Duration, moved: impl Fn() -> T) {
    if limit.is_zero() {
        return pending().await;
    }
    let step = limit.min(LOOK);
    let mut quiet = Duration::ZERO;
    let mut last = moved();
    while quiet < limit {
        sleep(step).await;
        let now = moved();
        quiet = if now == last { quiet + step } else { Duration::ZERO };
        last = now;
    }
}

/// What one peer let us hear.
#[derive(Debug)]
pub(crate) struct Hearing {
    ping_after: u32,
    dead_after: u32,
    /// Something came since the last tick.
    heard: bool,
    /// Ticks of silence while we listened.
    silent: u32,
    /// Ticks since something came or a ping went out.
    unasked: u32,
}

/// What to do about a peer at a tick.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Due {
    Nothing,
    Ping,
    Dead,
}

impl Hearing {
    pub(crate) fn new(limits: &SessionLimits) -> Self {
        let (ping_after, dead_after) = (ticks(limits.ping_after), ticks(limits.dead_after));
        Self { ping_after, dead_after, heard: false, silent: 0, unasked: 0 }
    }

    fn begin_anew(&mut self) {
        (self.heard, self.silent, self.unasked) = (false, 0, 0);
    }

    /// Something was read from it.
    pub(crate) fn heard(&mut self) {
        self.heard = true;
    }

    /// A tick has passed. `listening`: we read from it, and nothing of ours waits to be written to it; only then is
    /// silence its own. Pings are due all the same: a write that fails ends a session that nobody reads.
    pub(crate) fn tick(&mut self, listening: bool) -> Due {
        if self.heard {
            self.begin_anew();
            return Due::Nothing;
        }
        self.silent = if listening { self.silent + 1 } else { 0 };
        self.unasked += 1;
        if self.silent >= self.dead_after {
            return Due::Dead;
        }
        if self.unasked >= self.ping_after {
            self.unasked = 0;
            return Due::Ping;
        }
        Due::Nothing
    }

    /// As [`tick`](Self::tick), for a peer that is asked nothing while we do not listen: both counts begin anew.
    pub(crate) fn tick_if_listening(&mut self, listening: bool) -> Due {
        if listening {
            return self.tick(true);
        }
        self.begin_anew();
        Due::Nothing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_asked_about_every_ten_seconds_and_ends_after_sixty() {
        let mut hearing = Hearing::new(&SessionLimits::new());
        let due: Vec<Due> = (0..12).map(|_| hearing.tick(true)).collect();
        assert_eq!(due.iter().filter(|due| **due == Due::Ping).count(), 5);
        assert_eq!(due.last(), Some(&Due::Dead));
    }

    #[test]
    fn silence_does_not_count_while_we_do_not_listen_but_pings_go_on() {
        let mut hearing = Hearing::new(&SessionLimits::new());
        let due: Vec<Due> = (0..100).map(|_| hearing.tick(false)).collect();
        assert_eq!(due.iter().filter(|due| **due == Due::Ping).count(), 50);
        assert!(!due.contains(&Due::Dead));
    }

    #[test]
    fn who_is_not_asked_while_we_do_not_listen_has_the_whole_time_behind_it() {
        let mut hearing = Hearing::new(&SessionLimits::new());
        for listening in [true, false, false, true] {
            assert_eq!(hearing.tick_if_listening(listening), Due::Nothing);
        }
        assert_eq!(hearing.tick_if_listening(true), Due::Ping);
        let rest: Vec<Due> = (2..12).map(|_| hearing.tick_if_listening(true)).collect();
        assert!(rest[..9].iter().all(|due| *due != Due::Dead));
        assert_eq!(rest[9], Due::Dead);
    }

    #[test]
    fn what_is_heard_starts_the_count_anew() {
        let mut hearing = Hearing::new(&SessionLimits::new());
        for _ in 0..11 {
            hearing.tick(true);
        }
        hearing.heard();
        let due: Vec<Due> = (0..3).map(|_| hearing.tick(true)).collect();
        assert_eq!(due, [Due::Nothing, Due::Nothing, Due::Ping]);
    }

    #[test]
    fn both_times_can_be_set_and_are_rounded_up_to_ticks() {
        let limits = SessionLimits::new().ping_after(Duration::from_secs(11)).dead_after(Duration::from_secs(26));
        let mut hearing = Hearing::new(&limits);
        let due: Vec<Due> = (0..6).map(|_| hearing.tick(true)).collect();
        assert_eq!(due, [Due::Nothing, Due::Nothing, Due::Ping, Due::Nothing, Due::Nothing, Due::Dead]);
        assert_eq!([0, 1, 5, 6].map(|seconds| ticks(Duration::from_secs(seconds))), [1, 1, 1, 2]);
        assert_eq!(ticks(Duration::MAX), u32::MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn ticks_are_five_seconds_apart_and_never_in_the_past() {
        let begun = Instant::now();
        let tick = first();
        let until = tick - begun;
        assert!(until > TICK && until <= TICK + GRID, "{until:?}");
        assert_eq!(after(tick), tick + TICK);
        // A task that was not polled for a minute makes up for none of them.
        tokio::time::advance(Duration::from_secs(60)).await;
        assert!(after(tick) > Instant::now() + TICK);
    }
}
