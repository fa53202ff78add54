//! The driver's side of the shared state: what came, and what goes out.

use std::{collections::VecDeque, task::Waker, time::Instant};

use super::{Body, Fin, State, Stop};
use crate::spdy::{
    codec::{Decoder, Event as Frame},
    error::Error,
    frame::{self, GoAwayCode, ResetCode, StreamId},
    session::Event,
    stream::RecvEnd,
};

/// The longest DATA frame: Go's buffers end there, and longer ones are unfair.
const MAX_DATA: usize = 32 * 1024;

/// A batch to write is full at this length. It may be passed by one DATA frame.
const MAX_BATCH: usize = 32 * 1024;

impl State {
    pub(in crate::spdy) fn set_driver(&mut self, waker: &Waker) {
        match &mut self.driver {
            Some(driver) => driver.clone_from(waker),
            None => self.driver = Some(waker.clone()),
        }
    }

    /// Takes what came from the peer.
    pub(in crate::spdy) fn handle_bytes(&mut self, decoder: &mut Decoder, mut bytes: &[u8], now: Instant) {
        self.session.handle_read(now);
        while self.fatal.is_none() {
            match self.handle_step(decoder, &mut bytes) {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => self.fail(error),
            }
        }
    }

    /// `false`: the bytes are used up.
    pub(super) fn handle_step(&mut self, decoder: &mut Decoder, bytes: &mut &[u8]) -> Result<bool, Error> {
        let step = decoder.step(bytes)?;
        let payload = match &step.event {
            Frame::NeedMore => return Ok(false),
            Frame::Data { stream, range, .. } => Some((*stream, &bytes[range.clone()])),
            _ => None,
        };
        *bytes = &bytes[step.consumed..];
        if self.session.handle_frame(step.event)?
            && let Some((stream, payload)) = payload
        {
            self.deliver(stream, payload);
        }
        self.handle_events();
        Ok(true)
    }

    pub(super) fn deliver(&mut self, stream: StreamId, payload: &[u8]) {
        // Closing, nobody will read; the peer is drained all the same.
        let Some(body) = self.bodies.get_mut(&stream).filter(|body| body.has_reader && body.end.is_none()) else {
            return;
        };
        body.recv.extend(payload);
        self.unread += payload.len();
        if !body.full && body.recv.len() >= self.config.stream_unread {
            body.full = true;
            self.full_streams += 1;
        }
        self.full |= self.unread >= self.config.connection_unread;
        self.wakers.extend(body.reader.take());
    }

    pub(in crate::spdy) fn handle_events(&mut self) {
        while let Some(event) = self.session.poll_event() {
            match event {
                Event::Opened { stream, headers } => match &mut self.incoming {
                    Some(incoming) if !self.closing => {
                        incoming.push_back(stream);
                        self.bodies.insert(stream, Body::new(Some(headers)));
                        self.wakers.extend(self.acceptor.take());
                    }
                    _ => self.session.reset(stream, ResetCode::REFUSED_STREAM),
                },
                Event::Replied(stream) => {
                    if let Some(body) = self.bodies.get_mut(&stream) {
                        body.opened = Some(Ok(()));
                        self.wakers.extend(body.reader.take());
                    }
                    self.schedule(stream);
                }
                Event::OpenFailed(stream, failure) => {
                    if let Some(body) = self.bodies.get_mut(&stream) {
                        body.opened = Some(Err(failure.into()));
                        self.wakers.extend(body.reader.take());
                    }
                }
                Event::Finished(stream) => {
                    if let Some(body) = self.bodies.get_mut(&stream) {
                        body.end(RecvEnd::Fin, &mut self.wakers);
                    }
                }
                Event::Reset(stream, code) => {
                    let Some(body) = self.bodies.get_mut(&stream) else { continue };
                    body.end(RecvEnd::Reset(code), &mut self.wakers);
                    body.stop(&Stop::Reset, &mut self.wakers);
                    if body.headers.is_some() {
                        // Nobody accepted it. A peer that opens and resets without end fills no queue.
                        self.incoming.iter_mut().for_each(|incoming| incoming.retain(|id| *id != stream));
                        self.drop_reader(stream);
                        self.drop_writer(stream);
                    }
                    self.clean(stream);
                }
                // It opens no more streams.
                Event::GoAway(_) => self.wakers.extend(self.acceptor.take()),
            }
        }
    }

    /// Reads pause for the whole connection: SPDY as Kubernetes speaks it has no other way.
    pub(in crate::spdy) fn wants_read(&self) -> bool {
        self.closing || !self.is_paused() && !self.session.is_backed_up()
    }

    /// So much is unread that nothing more is read.
    fn is_paused(&self) -> bool {
        self.full_streams > 0 || self.full
    }

    /// Resets the streams that have held the connection paused for the time they may. Nothing comes meanwhile, so a
    /// stream that somebody reads is empty by then: those that are full, or else have most, are to blame.
    pub(in crate::spdy) fn reset_stalled(&mut self, now: Instant) {
        if self.closing || !self.is_paused() {
            self.paused_since = None;
            return;
        }
        self.paused_since.get_or_insert(now);
        if self.stalled_at().is_none_or(|at| now < at) {
            return;
        }
        while self.is_paused() {
            let any_full = self.full_streams > 0;
            let to_blame = self.bodies.iter().filter(|(_, body)| body.full || !any_full && !body.recv.is_empty());
            let Some((&stream, _)) = to_blame.max_by_key(|(_, body)| body.recv.len()) else { break };
            self.reset(stream, ResetCode::CANCEL);
        }
        self.paused_since = None;
    }

    /// When to call [`Self::reset_stalled`].
    pub(in crate::spdy) fn stalled_at(&self) -> Option<Instant> {
        self.paused_since?.checked_add(self.config.reset_stalled_after?)
    }

    /// Fills an empty batch: control frames first, then one DATA frame of each stream in turn.
    pub(in crate::spdy) fn fill(&mut self, out: &mut Vec<u8>) {
        self.session.encode_control(out, MAX_BATCH);
        self.batch_has_data = false;
        while out.len() < MAX_BATCH
            && let Some(stream) = self.ready.pop_front()
        {
            let Some(body) = self.bodies.get_mut(&stream) else { continue };
            body.queued = false;
            if !body.has_output() || !self.session.can_send(stream) {
                continue;
            }
            self.batch_has_data = true;
            let len = body.send.len().min(MAX_DATA);
            if len > 0 {
                out.reserve(len + 2 * frame::HEAD_LEN);
                out.extend_from_slice(&frame::data_head(stream, len, false));
                let (first, second) = body.send.as_slices();
                let from_first = len.min(first.len());
                out.extend_from_slice(&first[..from_first]);
                out.extend_from_slice(&second[..len - from_first]);
                body.send.drain(..len);
            }
            if !body.send.is_empty() {
                body.queued = true;
                self.ready.push_back(stream);
            } else {
                body.send = VecDeque::new();
                if body.fin == Fin::Wanted {
                    // A frame of its own, as Go writes it.
                    out.extend_from_slice(&frame::data_head(stream, 0, true));
                    body.fin = Fin::Sent;
                    self.session.finish(stream);
                }
            }
            self.wakers.extend(body.writer.take());
            self.clean(stream);
        }
        if self.ready.is_empty() && out.is_empty() && self.must_end() {
            // Everything that was accepted is out. As Go's `Close`: RST what is open, then GOAWAY.
            let streams: Vec<_> = self.bodies.keys().copied().collect();
            for stream in streams {
                self.session.reset(stream, ResetCode::CANCEL);
            }
            self.session.go_away(match self.fatal {
                Some(_) => GoAwayCode::PROTOCOL_ERROR,
                None => GoAwayCode::OK,
            });
            self.session.encode_control(out, usize::MAX);
        }
    }

    /// The connection has no purpose any more.
    pub(in crate::spdy) fn must_end(&self) -> bool {
        self.closing || self.session.is_peer_gone() && self.session.is_idle()
    }

    /// All is written, GOAWAY too: time to close the socket.
    pub(in crate::spdy) fn is_flushed(&self) -> bool {
        self.must_end() && self.ready.is_empty() && !self.session.has_control()
    }

    /// The peer broke the protocol: its streams end here, and GOAWAY says why.
    pub(in crate::spdy) fn fail(&mut self, error: Error) {
        self.fatal.get_or_insert(error);
        self.end_all(RecvEnd::Lost);
        self.close();
    }

    pub(in crate::spdy) fn fatal(&self) -> Option<Error> {
        self.fatal.clone()
    }

    /// If the connection ends here, that is in order: nothing is lost but control frames.
    pub(in crate::spdy) fn may_end(&self, batch_unwritten: bool) -> bool {
        let all_written = self.ready.is_empty() && !(batch_unwritten && self.batch_has_data);
        self.session.is_peer_gone() || all_written && (self.closing || self.session.is_idle())
    }

    pub(super) fn finish(&mut self, result: Result<(), Error>, cut: bool) {
        if self.result.is_some() {
            return;
        }
        let gone = self.session.is_peer_gone() && !cut;
        self.result = Some(result);
        self.closing = true;
        self.end_all(if gone { RecvEnd::GoAway } else { RecvEnd::Lost });
        self.wakers.extend(self.acceptor.take());
        self.driver = None;
    }

    pub(super) fn end_all(&mut self, end: RecvEnd) {
        self.ready.clear();
        for body in self.bodies.values_mut() {
            body.queued = false;
            body.end(end, &mut self.wakers);
            body.stop(&Stop::Over, &mut self.wakers);
        }
        self.bodies.retain(|_, body| body.has_reader || body.has_writer);
    }

    /// Forgets a stream that nobody uses and that has nothing left to send.
    pub(super) fn clean(&mut self, stream: StreamId) {
        if self.bodies.get(&stream).is_some_and(|body| !body.has_reader && !body.has_writer && !body.has_output()) {
            self.bodies.remove(&stream);
        }
    }

    pub(super) fn schedule(&mut self, stream: StreamId) {
        let Some(body) = self.bodies.get_mut(&stream) else { return };
        if body.has_output() && !body.queued && self.session.can_send(stream) {
            body.queued = true;
            self.ready.push_back(stream);
        }
        self.wake_driver();
    }

    pub(in crate::spdy) fn wake_driver(&mut self) {
        self.wakers.extend(self.driver.take());
    }
}
