//! What a session is held to.

use std::time::Duration;

/// The shortest time a limit can be, so that none makes a session spin.
const LEAST: Duration = Duration::from_secs(1);

/// The longest: a year is for ever.
const MOST: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Limits of one session, each with a default and a setter. Times are kept between one second and one year.
///
/// Sessions that are only carried or translated look at the time every five seconds: there a time counts in such ticks,
/// rounded up, and what is due is done at the next one.
///
/// | limit | default | `Translate` | `StreamingServer`, WebSocket | `StreamingServer`, SPDY | `UpgradeProxy` |
/// |---|---|---|---|---|---|
/// | [`ping_after`](Self::ping_after) | 10 s | both peers | yes | yes | the hop of SPDY `exec` and `attach` |
/// | [`dead_after`](Self::dead_after) | 60 s | both peers | yes | yes | as before, and half-closed sessions |
/// | [`idle`](Self::idle) | 4 h | yes | yes | yes, to a minute | – |
/// | [`creation`](Self::creation) | 30 s | yes | nothing to wait for | yes | – |
/// | [`farewell`](Self::farewell) | 10 s | yes | yes | 30 s, [`spdy::Config::close_timeout`] | – |
/// | [`message`](Self::message), [`fragments`](Self::fragments) | 32 MiB, 1,024 | yes | yes | – | – |
///
/// `Tunnel` honours all but `creation`: it pings its client, and leaves the next hop to the SPDY inside. `StreamingServer`
/// holds port-forward to them too; there `creation` is [`port_forward::Limits::pairing`].
///
/// ```
/// use std::time::Duration;
/// use tower_kube_streaming::{layers::TranslateLayer, upgrade::SessionLimits};
///
/// let limits = SessionLimits::new().idle(Duration::from_secs(15 * 60)).dead_after(Duration::from_secs(30));
/// let layer = TranslateLayer::new().limits(limits);
/// # let _ = layer;
/// ```
///
/// [`spdy::Config::close_timeout`]: crate::spdy::Config::close_timeout
/// [`port_forward::Limits::pairing`]: crate::port_forward::Limits::pairing
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionLimits {
    pub(crate) ping_after: Duration,
    pub(crate) dead_after: Duration,
    /// Zero: none.
    pub(crate) idle: Duration,
    pub(crate) creation: Duration,
    pub(crate) farewell: Duration,
    pub(crate) message: u64,
    pub(crate) fragments: u32,
}

impl SessionLimits {
    /// The defaults of all limits.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            ping_after: Duration::from_secs(10),
            dead_after: Duration::from_secs(60),
            idle: Duration::from_secs(4 * 60 * 60),
            creation: Duration::from_secs(30),
            farewell: Duration::from_secs(10),
            message: 32 << 20,
            fragments: 1024,
        }
    }

    /// A peer from which nothing came for so long is pinged. The default is 10 s: balancers drop what is silent for
    /// longer than a minute, and KEP-4006 wants no more heartbeats than SPDY had.
    #[must_use]
    pub fn ping_after(mut self, silence: Duration) -> Self {
        self.ping_after = silence.clamp(LEAST, MOST);
        self
    }

    /// A peer from which nothing came for so long, while we listened and owed it nothing, is dead, and the session ends
    /// with a failure. The default is 60 s, client-go's own deadline. Shorter than
    /// [`ping_after`](Self::ping_after) it ends sessions that are only quiet.
    #[must_use]
    pub fn dead_after(mut self, silence: Duration) -> Self {
        self.dead_after = silence.clamp(LEAST, MOST);
        self
    }

    /// A session in which no payload moved for so long ends with a failure; pings do not count. The default is 4 h, as
    /// of kubelet and containerd. Zero turns it off, and with it the end of a client that does not take what is left of
    /// a session that is over.
    #[must_use]
    pub fn idle(mut self, quiet: Duration) -> Self {
        self.idle = if quiet.is_zero() { quiet } else { quiet.clamp(LEAST, MOST) };
        self
    }

    /// The streams of a session must be there within so long. The default is 30 s, upstream's
    /// `DefaultStreamCreationTimeout`.
    #[must_use]
    pub fn creation(mut self, wait: Duration) -> Self {
        self.creation = wait.clamp(LEAST, MOST);
        self
    }

    /// How long the status and the Close may take to be written, and then how long a peer that has them may take to
    /// close. The default is 10 s: a round trip through a bad network.
    #[must_use]
    pub fn farewell(mut self, wait: Duration) -> Self {
        self.farewell = wait.clamp(LEAST, MOST);
        self
    }

    /// Payload bytes of one WebSocket message of the client. The default is 32 MiB, as `golang.org/x/net/websocket` has
    /// it. It costs no memory: messages are read as streams.
    #[must_use]
    pub fn message(mut self, bytes: u64) -> Self {
        self.message = bytes;
        self
    }

    /// Frames of one WebSocket message of the client, at least 1. The default is 1,024: a message of one-byte fragments
    /// costs a head for every byte.
    #[must_use]
    pub fn fragments(mut self, count: u32) -> Self {
        self.fragments = count.max(1);
        self
    }
}

impl Default for SessionLimits {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_time_is_so_short_that_a_session_spins_or_so_long_that_clocks_overflow() {
        for time in [Duration::ZERO, Duration::from_nanos(1), Duration::MAX] {
            let limits =
                SessionLimits::new().ping_after(time).dead_after(time).creation(time).farewell(time).idle(time);
            for kept in [limits.ping_after, limits.dead_after, limits.creation, limits.farewell] {
                assert!((LEAST..=MOST).contains(&kept), "{kept:?}");
            }
            assert!(limits.idle.is_zero() == time.is_zero() && limits.idle <= MOST);
        }
        assert_eq!(SessionLimits::new().fragments(0).fragments, 1);
    }
}
