//! What is due when nothing happens.

use std::task::{Context, Poll};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::Instant,
};

use super::{Phase, Session};
use crate::upgrade::Cause;

impl<Io: AsyncRead + AsyncWrite + Unpin> Session<Io> {
    /// Does what is due. True if anything changed.
    pub(super) fn check_clocks(&mut self, now: Instant) -> bool {
        match self.phase {
            Phase::Running if self.idle_until().is_some_and(|at| at <= now) => {
                self.fail(Cause::Idle, "the session was idle for too long", 1000);
                return true;
            }
            Phase::Ending { until, .. } if until.or(self.idle_until()).is_some_and(|at| at <= now) => {
                self.lost(Cause::ClientSilent, "the client did not read to the end");
                return true;
            }
            Phase::Closing { until, .. } if until <= now => {
                self.phase = Phase::Over;
                return true;
            }
            Phase::Closing { .. } | Phase::Over => return false,
            Phase::Running | Phase::Ending { .. } => {}
        }
        if self.blocked || self.paused {
            self.quiet_since = None;
            if self.blocked || self.last_sign + self.limits.pong_every > now {
                return false;
            }
            self.last_sign = now;
            self.pong.get_or_insert_default();
            return true;
        }
        let quiet_since = *self.quiet_since.get_or_insert(now);
        if quiet_since + self.limits.dead_after <= now {
            self.lost(Cause::ClientSilent, "the client gave no sign of life");
            return true;
        }
        if quiet_since.max(self.last_sign) + self.limits.ping_after <= now {
            self.last_sign = now;
            self.ping = true;
            return true;
        }
        false
    }

    fn idle_until(&self) -> Option<Instant> {
        (!self.limits.idle.is_zero()).then(|| self.last_payload + self.limits.idle)
    }

    /// The next moment at which [`check_clocks`](Self::check_clocks), or the wait for the process, has something to do.
    fn next_deadline(&self) -> Option<Instant> {
        let of_phase = match self.phase {
            Phase::Running => self.idle_until(),
            Phase::Ending { until, .. } => until.or(self.idle_until()),
            Phase::Closing { until, .. } => Some(until),
            Phase::Over => None,
        };
        let of_peer = match self.phase {
            Phase::Running | Phase::Ending { .. } if self.blocked => None,
            Phase::Running | Phase::Ending { .. } if self.paused => Some(self.last_sign + self.limits.pong_every),
            Phase::Running | Phase::Ending { .. } => self
                .quiet_since
                .map(|since| (since.max(self.last_sign) + self.limits.ping_after).min(since + self.limits.dead_after)),
            Phase::Closing { .. } | Phase::Over => None,
        };
        let of_process = self.process_until.filter(|_| self.process_running && matches!(self.phase, Phase::Over));
        [of_phase, of_peer, of_process].into_iter().flatten().min()
    }

    /// Arms the timer. It may go off early: a deadline that only moved away is not worth touching the timer for.
    pub(super) fn poll_timer(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(next) = self.next_deadline() else { return Poll::Pending };
        if next < self.timer.deadline() || self.timer.is_elapsed() {
            self.timer.as_mut().reset(next);
        }
        while self.timer.as_mut().poll(cx).is_ready() {
            if next <= Instant::now() {
                cx.waker().wake_by_ref();
                break;
            }
            self.timer.as_mut().reset(next);
        }
        Poll::Pending
    }
}
