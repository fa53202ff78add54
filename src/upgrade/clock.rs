//! Time of sessions, in ticks of five seconds: nothing on the data path asks what time it is.

use std::{sync::OnceLock, time::Duration};

use tokio::time::Instant;

/// How often a session looks at the time; its bounds are kept to one tick. It is also how often a client that waits for
/// its stdin to be taken is shown that we live.
const TICK: Duration = Duration::from_secs(5);

/// Ticks of all sessions fall on a common grid, so that one wake-up of a thread serves many of them.
const GRID: Duration = Duration::from_millis(250);

/// A peer that was silent this long is pinged: 10 s.
const PING_AFTER: u32 = 2;

/// A peer that was silent this long, while we listened, is dead: 60 s.
const DEAD_AFTER: u32 = 12;

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

/// What one peer let us hear.
#[derive(Debug, Default)]
pub(crate) struct Hearing {
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
    /// Something was read from it.
    pub(crate) fn heard(&mut self) {
        self.heard = true;
    }

    /// A tick has passed. `listening`: we read from it, and nothing of ours waits to be written to it; only then is
    /// silence its own. Pings are due all the same: a write that fails ends a session that nobody reads.
    pub(crate) fn tick(&mut self, listening: bool) -> Due {
        if std::mem::take(&mut self.heard) {
            *self = Self::default();
            return Due::Nothing;
        }
        self.silent = if listening { self.silent + 1 } else { 0 };
        self.unasked += 1;
        if self.silent >= DEAD_AFTER {
            return Due::Dead;
        }
        if self.unasked >= PING_AFTER {
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
        *self = Self::default();
        Due::Nothing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_asked_about_every_ten_seconds_and_ends_after_sixty() {
        let mut hearing = Hearing::default();
        let due: Vec<Due> = (0..12).map(|_| hearing.tick(true)).collect();
        assert_eq!(due.iter().filter(|due| **due == Due::Ping).count(), 5);
        assert_eq!(due.last(), Some(&Due::Dead));
    }

    #[test]
    fn silence_does_not_count_while_we_do_not_listen_but_pings_go_on() {
        let mut hearing = Hearing::default();
        let due: Vec<Due> = (0..100).map(|_| hearing.tick(false)).collect();
        assert_eq!(due.iter().filter(|due| **due == Due::Ping).count(), 50);
        assert!(!due.contains(&Due::Dead));
    }

    #[test]
    fn who_is_not_asked_while_we_do_not_listen_has_the_whole_time_behind_it() {
        let mut hearing = Hearing::default();
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
        let mut hearing = Hearing::default();
        for _ in 0..11 {
            hearing.tick(true);
        }
        hearing.heard();
        let due: Vec<Due> = (0..3).map(|_| hearing.tick(true)).collect();
        assert_eq!(due, [Due::Nothing, Due::Nothing, Due::Ping]);
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
