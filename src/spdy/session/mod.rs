//! The streams of one connection: no I/O, no clock, no task, no payload.
//!
//! - `handle_*` and the caller's verbs: what came from the wire, the clock or the caller.
//! - [`Session::encode_control`], [`Session::poll_event`], [`Session::poll_timeout`]: what to write, what happened,
//!   when to come back. Ask all of them after every input.
//!
//! Time is an argument. The caller writes DATA itself, behind all control frames that wait, and only where
//! [`Session::can_send`].

mod queue;
mod silence;
mod stream;

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

pub use self::queue::Control;
use self::{
    queue::Queue,
    silence::Silence,
    stream::{Answer, Input, Notice, Output, Send, StreamState},
};
use super::{
    codec,
    error::{Error, Kind},
    frame::{GoAwayCode, MAX_STREAM_ID, ResetCode, StreamId},
    header_block::Headers,
};

/// The longest header block that this side writes; what it reads has the same limit.
const MAX_HEADER_BYTES: usize = 64 * 1024;

/// Which side of the connection this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Its streams and pings are odd.
    Client,
    /// Its streams and pings are even, and it does not speak first.
    Server,
}

/// Limits of a [`Session`].
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub(crate) streams: usize,
    pub(crate) reply_timeout: Duration,
    pub(crate) ping_after: Duration,
    pub(crate) dead_after: Duration,
}

impl Limits {
    /// The most streams at a time, of both sides together. The default is 2,048: a thousand port-forward pairs, and
    /// some that are on their way out.
    #[must_use]
    pub fn streams(mut self, count: usize) -> Self {
        self.streams = count;
        self
    }

    /// How long the peer may take to reply to a stream. The default is 30 s, as in Kubernetes.
    #[must_use]
    pub fn reply_timeout(mut self, timeout: Duration) -> Self {
        self.reply_timeout = timeout;
        self
    }

    /// A peer is pinged when nothing came from it for so long. The default is 10 s.
    #[must_use]
    pub fn ping_after(mut self, silence: Duration) -> Self {
        self.ping_after = silence;
        self
    }

    /// A peer is dead when nothing came from it for so long, while this side listened. The default is 60 s.
    #[must_use]
    pub fn dead_after(mut self, silence: Duration) -> Self {
        self.dead_after = silence;
        self
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            streams: 2048,
            reply_timeout: Duration::from_secs(30),
            ping_after: Duration::from_secs(10),
            dead_after: Duration::from_secs(60),
        }
    }
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The peer opened a stream: [`Session::reply`] or [`Session::reset`].
    Opened {
        /// The new stream.
        stream: StreamId,
        /// What it is for.
        headers: Headers,
    },
    /// The peer took a stream.
    Replied(StreamId),
    /// The peer did not take a stream, which is over.
    OpenFailed(StreamId, OpenFailure),
    /// The peer will send no more. All payload came before.
    Finished(StreamId),
    /// The peer reset a stream, which is over.
    Reset(StreamId, ResetCode),
    /// The peer takes no more streams.
    GoAway(GoAwayCode),
}

/// Why the peer did not take a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenFailure {
    /// It refused.
    Reset(ResetCode),
    /// It sent data before its reply.
    Protocol,
    /// It did not reply in time.
    Timeout,
    /// It went away first.
    GoAway,
}

impl From<OpenFailure> for Error {
    fn from(failure: OpenFailure) -> Self {
        match failure {
            OpenFailure::Reset(code) => Self::new(Kind::Reset(code), "stream refused"),
            OpenFailure::Protocol => Self::protocol("data on a stream before its reply"),
            OpenFailure::Timeout => Self::new(Kind::Timeout, "no reply to the new stream"),
            OpenFailure::GoAway => Self::new(Kind::Closed, "the peer takes no more streams"),
        }
    }
}

/// See the [module docs](self).
#[derive(Debug)]
pub struct Session {
    role: Role,
    limits: Limits,
    streams: HashMap<StreamId, StreamState>,
    /// How many of them are only waited for: see [`StreamState::is_abandoned`].
    abandoned: usize,
    queue: Queue,
    events: VecDeque<Event>,
    /// Our next stream.
    next: u32,
    /// The lowest number that the peer's next stream may have.
    next_peer: u32,
    /// The peer's last stream that was not refused.
    last_taken: Option<StreamId>,
    next_ping: u32,
    /// Streams that wait for their reply, and stale ones, in the order of their deadlines.
    opening: VecDeque<(Instant, StreamId)>,
    silence: Silence,
    sent_goaway: bool,
    got_goaway: bool,
}

impl Session {
    /// A new connection.
    #[must_use]
    pub fn new(role: Role, limits: Limits, now: Instant) -> Self {
        let (own, peer) = match role {
            Role::Client => (1, 2),
            Role::Server => (2, 1),
        };
        Self {
            role,
            limits,
            streams: HashMap::new(),
            abandoned: 0,
            queue: Queue::default(),
            events: VecDeque::new(),
            next: own,
            next_peer: peer,
            last_taken: None,
            next_ping: own,
            opening: VecDeque::new(),
            // A server does not speak first, and an old kubectl says nothing until it has something to forward.
            silence: Silence::new(limits.ping_after, limits.dead_after, (role == Role::Client).then_some(now)),
            sent_goaway: false,
            got_goaway: false,
        }
    }

    // What came from the wire.

    /// Takes a decoded frame. `true`: it is DATA, and its payload is for the stream's reader.
    ///
    /// # Errors
    ///
    /// If the connection cannot go on.
    pub fn handle_frame(&mut self, event: codec::Event) -> Result<bool, Error> {
        match event {
            codec::Event::Data { stream, range, fin } => {
                return Ok(self.on(stream, Input::Data { empty: range.is_empty(), fin }).deliver);
            }
            codec::Event::SynStream { stream, fin, unidirectional, headers, .. } => {
                self.handle_syn_stream(stream, fin, unidirectional, headers)?;
            }
            codec::Event::SynReply { stream, fin, .. } => {
                self.on(stream, Input::Reply { fin });
            }
            codec::Event::Headers { stream, fin, .. } => {
                self.on(stream, Input::Data { empty: true, fin });
            }
            codec::Event::Rst { stream, code } => {
                self.on_coded(stream, Input::Rst, code);
            }
            codec::Event::Ping(id) => {
                // Our own parity is an echo of ours: that it came is all it says.
                if (id % 2 == 1) != (self.role == Role::Client) {
                    self.queue.push(Control::Ping(id));
                }
            }
            codec::Event::GoAway { last_good, code } => self.handle_goaway(last_good, code),
            // Windows and settings mean nothing in Kubernetes.
            codec::Event::Settings | codec::Event::WindowUpdate { .. } | codec::Event::NeedMore => {}
        }
        Ok(false)
    }

    fn handle_syn_stream(
        &mut self,
        stream: StreamId,
        fin: bool,
        unidirectional: bool,
        headers: Headers,
    ) -> Result<(), Error> {
        if stream.is_client() == (self.role == Role::Client) {
            return Err(Error::protocol("the peer opened a stream with a number of this side's"));
        }
        // A known bug for the fuzz target `spdy_session` to find: a stream may be opened twice.
        let opened_again = cfg!(planted) && stream.get() + 2 == self.next_peer;
        if stream.get() < self.next_peer && !opened_again {
            // As spdystream answers (connection.go: validateStreamId). If it lives, it is over for both.
            return match self.streams.contains_key(&stream) {
                true => {
                    self.on_coded(stream, Input::Rst, ResetCode::PROTOCOL_ERROR);
                    self.queue.push(Control::Rst(stream, ResetCode::PROTOCOL_ERROR));
                    Ok(())
                }
                false => {
                    self.queue.push(Control::Rst(stream, ResetCode::PROTOCOL_ERROR));
                    Ok(())
                }
            };
        }
        self.next_peer = stream.get() + 2;
        // spdystream ignores streams behind a GOAWAY, and their openers wait for 30 s. A refusal ends the waiting.
        // Nobody in Kubernetes opens a unidirectional stream.
        if unidirectional || self.sent_goaway || self.got_goaway || self.streams.len() >= self.limits.streams {
            self.queue.push(Control::Rst(stream, ResetCode::REFUSED_STREAM));
            return Ok(());
        }
        self.last_taken = Some(stream);
        self.streams.insert(stream, StreamState::offered(fin));
        self.events.push_back(Event::Opened { stream, headers });
        if fin {
            self.events.push_back(Event::Finished(stream));
        }
        Ok(())
    }

    /// spdystream stops reading at a GOAWAY; here the streams that the peer took go on to their ends.
    fn handle_goaway(&mut self, last_good: Option<StreamId>, code: GoAwayCode) {
        if !self.got_goaway {
            self.got_goaway = true;
            self.events.push_back(Event::GoAway(code));
        }
        let not_taken: Vec<_> = self.opening.iter().map(|(_, id)| *id).filter(|id| Some(*id) > last_good).collect();
        for stream in not_taken {
            self.on(stream, Input::NotTaken);
        }
    }

    // What came from the clock.

    /// Bytes came.
    pub fn handle_read(&mut self, now: Instant) {
        self.silence.heard(now);
    }

    /// Whether this side reads and none of its writes waits for the peer. Only then does its silence count.
    pub fn set_listening(&mut self, listening: bool, now: Instant) {
        self.silence.set_listening(listening, now);
    }

    /// When to call [`Self::handle_timeout`].
    pub fn poll_timeout(&mut self) -> Option<Instant> {
        while let Some((_, stream)) = self.opening.front()
            && !self.is_opening(*stream)
        {
            self.opening.pop_front();
        }
        let reply = self.opening.front().map(|(deadline, _)| *deadline);
        [reply, self.silence.deadline()].into_iter().flatten().min()
    }

    /// The time has come, or may have.
    ///
    /// # Errors
    ///
    /// If the peer is dead.
    pub fn handle_timeout(&mut self, now: Instant) -> Result<(), Error> {
        while let Some((deadline, stream)) = self.opening.front().copied()
            && (deadline <= now || !self.is_opening(stream))
        {
            self.opening.pop_front();
            self.on(stream, Input::ReplyTimeout);
        }
        if self.silence.is_dead(now) {
            return Err(Error::new(Kind::Timeout, "the peer is silent"));
        }
        // One that waits is enough.
        if self.silence.wants_ping(now) && !self.queue.has_ping() {
            self.queue.push(Control::Ping(self.next_ping));
            self.next_ping = self.next_ping.checked_add(2).unwrap_or(match self.role {
                Role::Client => 1,
                Role::Server => 2,
            });
        }
        Ok(())
    }

    // What came from the caller.

    /// Opens a stream: SYN_STREAM waits to be written, and [`Event::Replied`] or [`Event::OpenFailed`] will come.
    ///
    /// # Errors
    ///
    /// If there are too many streams or headers, or one side has said GOAWAY.
    pub fn open(&mut self, headers: &[(&str, &str)], now: Instant) -> Result<StreamId, Error> {
        if self.sent_goaway || self.got_goaway {
            return Err(Error::new(Kind::Closed, "the connection takes no more streams"));
        }
        if self.streams.len() >= self.limits.streams {
            return Err(Error::limit("too many streams"));
        }
        if self.next > MAX_STREAM_ID {
            return Err(Error::limit("no stream numbers are left"));
        }
        if headers.iter().map(|(name, value)| name.len() + value.len() + 8).sum::<usize>() > MAX_HEADER_BYTES {
            return Err(Error::limit("too many headers"));
        }
        let stream = StreamId::new(self.next).expect("from 1 or 2 up, and checked");
        self.next += 2;
        self.streams.insert(stream, StreamState::OPENING);
        let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        self.queue.push(Control::SynStream { stream, headers });
        // A timeout beyond the clock's end never comes.
        if let Some(deadline) = now.checked_add(self.limits.reply_timeout) {
            self.opening.push_back((deadline, stream));
        }
        Ok(stream)
    }

    /// Takes a stream that the peer opened. Nothing if it is gone, or was taken before.
    pub fn reply(&mut self, stream: StreamId) {
        self.on(stream, Input::SendReply);
    }

    /// DATA and FIN may be written.
    #[must_use]
    pub fn can_send(&self, stream: StreamId) -> bool {
        self.streams.get(&stream).is_some_and(|state| state.send == Send::Open)
    }

    /// The caller writes FIN now, where [`Self::can_send`].
    pub fn finish(&mut self, stream: StreamId) {
        self.on(stream, Input::SendFin);
    }

    /// Ends a stream. Behind FIN, RST goes out only if the peer sends more: spdystream sends none there.
    pub fn reset(&mut self, stream: StreamId, code: ResetCode) {
        if self.is_opening(stream) && self.queue.retract(stream) {
            self.forget(stream);
            return;
        }
        self.on(stream, Input::SendReset(code));
    }

    /// Nobody reads a stream any more: what comes is ignored.
    pub fn discard(&mut self, stream: StreamId) {
        self.on(stream, Input::Discard);
    }

    /// Takes no more streams. Those that are there go on.
    pub fn go_away(&mut self, code: GoAwayCode) {
        if !self.sent_goaway {
            self.sent_goaway = true;
            self.queue.push(Control::GoAway(self.last_taken, code));
        }
    }

    // What to do.

    /// Appends control frames to `out` until it has `max` bytes or more. Between frames only.
    pub fn encode_control(&mut self, out: &mut Vec<u8>, max: usize) {
        self.queue.encode(out, max);
    }

    /// [`Self::encode_control`] has something to write.
    #[must_use]
    pub fn has_control(&self) -> bool {
        !self.queue.is_empty()
    }

    /// So many control frames wait that nothing more should be read until some are written.
    #[must_use]
    pub fn is_backed_up(&self) -> bool {
        self.queue.is_backed_up()
    }

    /// What happened next.
    pub fn poll_event(&mut self) -> Option<Event> {
        let event = self.events.pop_front();
        if event.is_none() && self.events.capacity() > 0 {
            self.events = VecDeque::new();
        }
        event
    }

    /// How many streams there are, those included that only the peer has yet to finish.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "`is_idle` is what matters of an empty one")]
    pub fn len(&self) -> usize {
        self.streams.len()
    }

    /// No stream is left that this side cares for.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.streams.len() == self.abandoned
    }

    /// The peer has said GOAWAY.
    #[must_use]
    pub fn is_peer_gone(&self) -> bool {
        self.got_goaway
    }

    fn is_opening(&self, stream: StreamId) -> bool {
        self.streams.get(&stream).is_some_and(|state| state.send == Send::Opening)
    }

    fn on(&mut self, stream: StreamId, input: Input) -> Output {
        self.on_coded(stream, input, ResetCode::CANCEL)
    }

    /// `code` is the peer's, for [`Input::Rst`].
    fn on_coded(&mut self, stream: StreamId, input: Input, code: ResetCode) -> Output {
        let Some(state) = self.streams.get_mut(&stream) else {
            // It may be on its way from before the stream's end.
            return Output::default();
        };
        let was_abandoned = state.is_abandoned();
        let output = state.on(input);
        let is_abandoned = state.is_abandoned() && !output.forget;
        self.abandoned = self.abandoned + usize::from(is_abandoned) - usize::from(was_abandoned);
        if output.forget {
            self.streams.remove(&stream);
        }
        match output.control {
            Some(Answer::Reply) => self.queue.push(Control::SynReply(stream)),
            Some(Answer::Rst(code)) => self.queue.push(Control::Rst(stream, code)),
            None => {}
        }
        match output.notice {
            Some(Notice::Replied) => self.events.push_back(Event::Replied(stream)),
            Some(Notice::RepliedAndFinished) => {
                self.events.extend([Event::Replied(stream), Event::Finished(stream)]);
            }
            Some(Notice::Finished) => self.events.push_back(Event::Finished(stream)),
            Some(Notice::Reset) => self.events.push_back(Event::Reset(stream, code)),
            Some(Notice::OpenReset) => self.failed(stream, OpenFailure::Reset(code)),
            Some(Notice::OpenProtocol) => self.failed(stream, OpenFailure::Protocol),
            Some(Notice::OpenTimeout) => self.failed(stream, OpenFailure::Timeout),
            Some(Notice::OpenNotTaken) => self.failed(stream, OpenFailure::GoAway),
            None => {}
        }
        output
    }

    fn failed(&mut self, stream: StreamId, why: OpenFailure) {
        self.events.push_back(Event::OpenFailed(stream, why));
    }

    fn forget(&mut self, stream: StreamId) {
        if let Some(state) = self.streams.remove(&stream) {
            self.abandoned -= usize::from(state.is_abandoned());
        }
    }
}

#[cfg(test)]
mod tests;
