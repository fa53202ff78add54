//! Why a session ended.

use std::fmt;

/// Why a session ended, in values few enough to count and to act on. What exactly happened is in
/// [`Report::detail`](super::Report::detail), for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Cause {
    /// It came to its own end: the command did, or both sides of what was carried unread.
    Finished,
    /// The client said that it goes, before the end.
    ClientClosed,
    /// The connection to the client ended or broke without a word.
    ClientLost,
    /// The client gave no sign of life, or did not take what was left for it, for too long.
    ClientSilent,
    /// The client broke its protocol, or a limit of it.
    ClientProtocol,
    /// The next hop said that it failed: in its status, or by refusing a stream.
    UpstreamFailed,
    /// The connection to the next hop ended or broke before it had said how the command ended.
    UpstreamLost,
    /// The next hop gave no sign of life for too long.
    UpstreamSilent,
    /// The next hop broke its protocol.
    UpstreamProtocol,
    /// There was a `101`, and then nothing: no connection, another protocol, or an end before the first byte.
    Handshake,
    /// The streams of the session were not there in time.
    CreationTimeout,
    /// No payload was sent for too long.
    Idle,
    /// The server was asked to end its sessions.
    Drain,
    /// The server did not wait for the session any longer.
    Cut,
    /// The runtime of this process could not run the command.
    Runtime,
    /// It was dropped before its end: a panic, or the end of the process.
    Aborted,
}

impl Cause {
    /// All of them.
    pub const ALL: [Self; 16] = [
        Self::Finished,
        Self::ClientClosed,
        Self::ClientLost,
        Self::ClientSilent,
        Self::ClientProtocol,
        Self::UpstreamFailed,
        Self::UpstreamLost,
        Self::UpstreamSilent,
        Self::UpstreamProtocol,
        Self::Handshake,
        Self::CreationTimeout,
        Self::Idle,
        Self::Drain,
        Self::Cut,
        Self::Runtime,
        Self::Aborted,
    ];

    /// The word for logs and labels: `client_lost`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Finished => "finished",
            Self::ClientClosed => "client_closed",
            Self::ClientLost => "client_lost",
            Self::ClientSilent => "client_silent",
            Self::ClientProtocol => "client_protocol",
            Self::UpstreamFailed => "upstream_failed",
            Self::UpstreamLost => "upstream_lost",
            Self::UpstreamSilent => "upstream_silent",
            Self::UpstreamProtocol => "upstream_protocol",
            Self::Handshake => "handshake",
            Self::CreationTimeout => "creation_timeout",
            Self::Idle => "idle",
            Self::Drain => "drain",
            Self::Cut => "cut",
            Self::Runtime => "runtime",
            Self::Aborted => "aborted",
        }
    }

    /// Which leg failed. None where no leg did: a good end, a client that says goodbye, and ends of this server's making.
    #[must_use]
    pub const fn leg(self) -> Option<Leg> {
        match self {
            Self::Handshake | Self::CreationTimeout => Some(Leg::Handshake),
            Self::ClientLost | Self::ClientSilent | Self::ClientProtocol => Some(Leg::Translation),
            Self::UpstreamFailed
            | Self::UpstreamLost
            | Self::UpstreamSilent
            | Self::UpstreamProtocol
            | Self::Runtime => Some(Leg::Spdy),
            Self::Finished | Self::ClientClosed | Self::Idle | Self::Drain | Self::Cut | Self::Aborted => None,
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Which part of a stream's way failed, for whoever has to find out where to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Leg {
    /// There was no `101`, or what has to follow it never came.
    Handshake,
    /// The client's side, which speaks WebSocket where anything is translated.
    Translation,
    /// The next hop's side, which speaks SPDY where anything is translated; or the runtime in its place.
    Spdy,
}

impl Leg {
    /// The word for logs: `handshake`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Handshake => "handshake",
            Self::Translation => "translation",
            Self::Spdy => "spdy",
        }
    }
}

impl fmt::Display for Leg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_cause_has_a_word_of_its_own() {
        let words: BTreeSet<&str> = Cause::ALL.into_iter().map(Cause::as_str).collect();
        assert_eq!(words.len(), Cause::ALL.len());
    }

    #[test]
    fn whoever_failed_names_the_leg() {
        for cause in Cause::ALL {
            let leg = match cause.as_str().split_once('_') {
                Some(("upstream", _)) => Some(Leg::Spdy),
                Some(("client", what)) if what != "closed" => Some(Leg::Translation),
                _ => cause.leg().filter(|leg| *leg == Leg::Handshake || cause == Cause::Runtime),
            };
            assert_eq!(cause.leg(), leg, "{cause}");
        }
        assert_eq!(Cause::Finished.leg(), None);
    }
}
