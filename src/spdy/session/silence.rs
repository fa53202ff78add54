//! How long the peer has been silent.

use std::time::{Duration, Instant};

/// Two clocks: one since the last byte that came, for pings; one that runs only while this side listens, for death.
#[derive(Debug)]
pub(super) struct Silence {
    ping_after: Duration,
    dead_after: Duration,
    /// When the next ping is due. `None`: this side may not speak yet.
    ping_at: Option<Instant>,
    /// What was counted before `since`.
    counted: Duration,
    /// The clock runs since then.
    since: Option<Instant>,
    listening: bool,
}

impl Silence {
    /// `now`: count from now on; else from the first byte on.
    pub(super) fn new(ping_after: Duration, dead_after: Duration, now: Option<Instant>) -> Self {
        let mut silence =
            Self { ping_after, dead_after, ping_at: None, counted: Duration::ZERO, since: None, listening: true };
        if let Some(now) = now {
            silence.heard(now);
        }
        silence
    }

    pub(super) fn heard(&mut self, now: Instant) {
        self.ping_at = now.checked_add(self.ping_after);
        self.counted = Duration::ZERO;
        self.since = self.listening.then_some(now);
    }

    pub(super) fn set_listening(&mut self, listening: bool, now: Instant) {
        if self.listening == listening {
            return;
        }
        self.listening = listening;
        if listening {
            self.since = self.ping_at.map(|_| now);
        } else if let Some(since) = self.since.take() {
            self.counted += now.saturating_duration_since(since);
        }
    }

    /// Also while this side does not listen: a write that fails ends a session that nobody reads.
    pub(super) fn wants_ping(&mut self, now: Instant) -> bool {
        let due = self.ping_at.is_some_and(|at| at <= now);
        if due {
            self.ping_at = now.checked_add(self.ping_after);
        }
        due
    }

    pub(super) fn is_dead(&self, now: Instant) -> bool {
        self.dies_at().is_some_and(|at| at <= now)
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        [self.ping_at, self.dies_at()].into_iter().flatten().min()
    }

    fn dies_at(&self) -> Option<Instant> {
        self.since?.checked_add(self.dead_after.saturating_sub(self.counted))
    }
}
