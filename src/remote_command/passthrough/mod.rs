//! Carries an upgrade that both sides speak themselves.
//!
//! Bytes are copied, half-closes are carried, and what one side sent before it ended still arrives.
//!
//! # A lost status
//!
//! kubectl over SPDY takes the end of a connection without a status for exit code 0. So `exec` and `attach` over SPDY
//! are watched: the heads of frames, not what they carry. If upstream ends without a status, the client is sent one that
//! says so, on the error stream, with FIN. To have a place for it, a frame of which only a part has come is sent on as a
//! smaller frame of that part; and an upstream that is silent is asked by a PING of ours.

mod splitter;
mod watch;

use std::{
    future::poll_fn,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    task::unconstrained,
    time::sleep_until,
};
use tokio_util::sync::CancellationToken;

use self::watch::Watch;
use super::Version;
use crate::upgrade::{
    Cause, End, Report, SessionLimits,
    buffer::{BUFFER, Buffer},
    clock::{self, Due},
    outbox::Outbox,
};

const NEVER_THERE: &str = "the next hop ended before it had said anything";
const ONE_ENDED: &str = "one side ended, the other was silent";

/// Carries `client` and `upstream` until both have ended. `watched`: the version of a SPDY exec or attach.
pub(crate) async fn carry<C, U>(
    client: C,
    upstream: U,
    watched: Option<Version>,
    limits: &SessionLimits,
    drain: CancellationToken,
) -> Report
where
    C: AsyncRead + AsyncWrite + Unpin,
    U: AsyncRead + AsyncWrite + Unpin,
{
    let mut carrier = Carrier {
        client,
        upstream,
        up: Half::default(),
        down: Half::default(),
        watch: watched.map(|version| Watch::new(version, limits)),
        over: None,
        client_first: false,
        told: false,
        quiet: 0,
        linger: clock::ticks(limits.dead_after),
    };
    let mut drained = pin!(drain.cancelled());
    let mut timer = pin!(sleep_until(clock::first()));
    poll_fn(|cx| {
        if carrier.over.is_none() && drained.as_mut().poll(cx).is_ready() {
            carrier.finish(End::Error, Cause::Drain, "the server is shutting down");
        }
        loop {
            if let Poll::Ready(report) = carrier.poll(cx) {
                return Poll::Ready(report);
            }
            // Unconstrained: a flood that uses up the task's budget must not stop the clock.
            ready!(pin!(unconstrained(timer.as_mut())).poll(cx));
            carrier.tick();
            let next = clock::after(timer.deadline());
            timer.as_mut().reset(next);
        }
    })
    .await
}

struct Carrier<C, U> {
    client: C,
    upstream: U,
    /// Client to upstream.
    up: Half,
    /// Upstream to client.
    down: Half,
    watch: Option<Watch>,
    /// Set where the session is over before both sides have ended it.
    over: Option<(End, Cause, &'static str)>,
    /// The client ended before upstream did.
    client_first: bool,
    /// The client has been sent the whole status.
    told: bool,
    /// Ticks in which nothing moved.
    quiet: u32,
    /// So many of them end a session of which one side has ended.
    linger: u32,
}

/// One direction.
#[derive(Debug, Default)]
struct Half {
    out: Outbox,
    state: State,
    carried: u64,
    /// Something was read since the last tick.
    moved: bool,
    /// Waits for more to read.
    listening: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Open,
    /// The reader has ended; what is left is written, then the writer is shut down.
    Ending,
    Ended,
    /// The writer takes no more.
    Broken,
}

/// What a poll of a half brought.
enum Read {
    Some(Buffer, usize),
    /// The reader has ended just now.
    End,
    Nothing,
}

impl Half {
    /// Writes what waits, then reads, then shuts down: whichever is next.
    fn poll<R, W>(&mut self, cx: &mut Context<'_>, from: &mut R, to: &mut W) -> Read
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        self.listening = false;
        if matches!(self.state, State::Ended | State::Broken) {
            return Read::Nothing;
        }
        match self.out.poll_send(cx, to) {
            Poll::Pending => return Read::Nothing,
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(_)) => {
                self.out.clear();
                self.state = State::Broken;
                return Read::Nothing;
            }
        }
        if self.state == State::Ending {
            if Pin::new(to).poll_shutdown(cx).is_ready() {
                self.state = State::Ended;
            }
            return Read::Nothing;
        }
        let mut buffer = Buffer::borrow();
        let mut read = ReadBuf::new(&mut buffer[..BUFFER]);
        let Poll::Ready(result) = Pin::new(from).poll_read(cx, &mut read) else {
            self.listening = true;
            return Read::Nothing;
        };
        let length = read.filled().len();
        if result.is_err() || length == 0 {
            self.state = State::Ending;
            return Read::End;
        }
        self.moved = true;
        self.carried += length as u64;
        Read::Some(buffer, length)
    }
}

impl<C, U> Carrier<C, U>
where
    C: AsyncRead + AsyncWrite + Unpin,
    U: AsyncRead + AsyncWrite + Unpin,
{
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Report> {
        loop {
            let up = self.up.poll(cx, &mut self.client, &mut self.upstream);
            let up_moved = !matches!(up, Read::Nothing);
            match up {
                Read::Some(buffer, length) => self.take(true, buffer, length),
                Read::End => self.client_first = self.down.state == State::Open,
                Read::Nothing => {}
            }
            let down = self.down.poll(cx, &mut self.upstream, &mut self.client);
            let down_moved = !matches!(down, Read::Nothing);
            match down {
                Read::Some(buffer, length) => self.take(false, buffer, length),
                Read::End => self.upstream_ended(),
                Read::Nothing => {}
            }
            let whole = self.watch.as_ref().is_some_and(Watch::has_whole_status);
            self.told |= whole && self.down.out.is_empty() && self.down.state != State::Broken;
            if self.down.state == State::Broken && !self.client_first {
                // Nobody hears upstream any more, so it is told that the client is gone. Where the client has ended, it
                // is being told so, and its last words to nobody are no loss.
                self.finish(End::ClientGone, Cause::ClientLost, "the client's connection broke");
            }
            let down_over = matches!(self.down.state, State::Ended | State::Broken);
            let up_over = matches!(self.up.state, State::Ended | State::Broken);
            if down_over && (up_over || self.over.is_some()) {
                return Poll::Ready(self.report());
            }
            if !up_moved && !down_moved {
                return Poll::Pending;
            }
        }
    }

    fn take(&mut self, up: bool, mut buffer: Buffer, length: usize) {
        let half = if up { &mut self.up } else { &mut self.down };
        let Some(watch) = &mut self.watch else {
            half.out.batch().push_raw(0..length);
            half.out.keep(buffer);
            return;
        };
        let watched = match up {
            true => watch.client_says(&mut buffer[..length], &mut half.out),
            false => watch.upstream_says(&mut buffer[..length], &mut half.out),
        };
        half.out.keep(buffer);
        if let Err(error) = watched {
            tracing::debug!(%error, up, "not SPDY");
            let (cause, detail) = match up {
                true => (Cause::ClientProtocol, "the client broke the protocol"),
                false => (Cause::UpstreamProtocol, "the next hop broke the protocol"),
            };
            self.finish(End::Error, cause, detail);
        }
    }

    /// Upstream says no more; if it has not said how the command ended, we do.
    fn upstream_ended(&mut self) {
        if let Some(watch) = &mut self.watch {
            let why = self.over.map_or(watch::LOST, |(.., detail)| detail);
            watch.write_lost_status(why, &mut self.down.out);
            watch.reset_unanswered(&mut self.down.out);
        }
    }

    /// Ends the session from here: what is in flight to the client still arrives, with a status if it had none.
    fn finish(&mut self, end: End, cause: Cause, detail: &'static str) {
        if self.over.is_none() {
            self.over = Some((end, cause, detail));
            self.quiet = 0;
        }
        if self.down.state == State::Open {
            self.down.state = State::Ending;
            self.upstream_ended();
        }
        if self.up.state == State::Open {
            self.up.state = State::Ending;
        }
    }

    fn tick(&mut self) {
        let moved = std::mem::take(&mut self.up.moved) | std::mem::take(&mut self.down.moved);
        self.quiet = if moved { 0 } else { self.quiet + 1 };
        let half_ended = self.up.state != State::Open || self.down.state != State::Open;
        if half_ended && self.quiet >= self.linger {
            let (cause, detail) = match self.down.state {
                State::Open => (Cause::UpstreamSilent, ONE_ENDED),
                _ if self.was_never_there() => (Cause::Handshake, NEVER_THERE),
                _ => (Cause::ClientSilent, ONE_ENDED),
            };
            self.finish(End::Error, cause, detail);
            // Whoever has not taken what is left by now does not want it.
            self.down.state = State::Broken;
            return;
        }
        let Some(watch) = &mut self.watch else { return };
        match watch.tick(self.down.listening && self.up.out.is_empty()) {
            Due::Nothing => {}
            Due::Ping => watch.ping(&mut self.up.out),
            Due::Dead => self.finish(End::Error, Cause::UpstreamSilent, "the next hop was silent for too long"),
        }
    }

    /// The next hop was the first to end, and had not said a byte.
    fn was_never_there(&self) -> bool {
        self.down.carried == 0 && !self.client_first
    }

    fn report(&self) -> Report {
        let (end, cause, detail) = match (self.over, &self.watch) {
            // What happens behind that changes nothing: clients close, and next hops say goodbye to nobody.
            (_, Some(watch)) if self.told => watch.end(),
            (Some(over), _) => over,
            (None, Some(watch)) if self.client_first && (!watch.has_ended() || self.down.state == State::Broken) => {
                (End::ClientGone, Cause::ClientLost, "the client's connection ended")
            }
            (None, _) if self.was_never_there() => (End::Error, Cause::Handshake, NEVER_THERE),
            (None, Some(watch)) => watch.end(),
            (None, None) => (End::Carried, Cause::Finished, "both sides have ended"),
        };
        let mut report = Report::new(end, cause, detail);
        report.bytes.carried_in = self.up.carried;
        report.bytes.carried_out = self.down.carried;
        report
    }
}

#[cfg(test)]
mod tests;
