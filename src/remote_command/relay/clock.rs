//! Time, in ticks of five seconds: nothing on the data path asks what time it is.

/// A peer that was silent this long is pinged: 10 s.
const PING_AFTER: u32 = 2;

/// A peer that was silent this long, while we listened, is dead: 60 s.
const DEAD_AFTER: u32 = 12;

/// Longest wait for all SYN_REPLYs: 30 s, as `createStreamResponseTimeout` of client-go.
pub(super) const CREATION: u32 = 6;

/// Longest wait for the peers to close once they have been told all: 10 s.
pub(super) const FAREWELL: u32 = 2;

/// A session in which no payload moved this long is over: 4 h, as containerd's and kubelet's default.
pub(super) const IDLE: u32 = 4 * 60 * 12;

/// What one peer let us hear.
#[derive(Debug, Default)]
pub(super) struct Hearing {
    /// Something came since the last tick.
    heard: bool,
    /// Ticks of silence while we listened.
    silent: u32,
    /// Ticks since something came or a ping went out.
    unasked: u32,
}

/// What to do about a peer at a tick.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Due {
    Nothing,
    Ping,
    Dead,
}

impl Hearing {
    pub(super) fn heard(&mut self) {
        self.heard = true;
    }

    /// `listening`: we read from it, and nothing of ours waits to be written to it; only then is silence its own.
    pub(super) fn tick(&mut self, listening: bool) -> Due {
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
}
