//! The handles' side of the shared state: opening, accepting, closing.

use std::{collections::VecDeque, task::Context, time::Instant};

use super::{Body, State, closed};
use crate::spdy::{
    error::Error,
    frame::{ResetCode, StreamId},
    header_block::Headers,
    stream::RecvEnd,
};

impl State {
    pub(in crate::spdy) fn open(&mut self, headers: &[(&str, &str)], now: Instant) -> Result<StreamId, Error> {
        if let Some(Err(error)) = &self.result {
            return Err(error.clone());
        }
        if self.closing {
            return Err(closed());
        }
        let stream = self.session.open(headers, now)?;
        self.bodies.insert(stream, Body::new(None));
        self.wake_driver();
        Ok(stream)
    }

    /// `None`: not yet.
    pub(in crate::spdy) fn poll_opened(&mut self, stream: StreamId, cx: &Context<'_>) -> Option<Result<(), Error>> {
        let Some(body) = self.bodies.get_mut(&stream) else { return Some(Err(closed())) };
        if let Some(opened) = &body.opened {
            return Some(opened.clone());
        }
        if body.end.is_some() {
            return Some(Err(match &self.result {
                Some(Err(error)) => error.clone(),
                Some(Ok(())) | None => self.fatal.clone().unwrap_or_else(closed),
            }));
        }
        body.reader = Some(cx.waker().clone());
        None
    }

    /// Nobody waits for a stream any more, or nobody wants it.
    pub(in crate::spdy) fn abandon(&mut self, stream: StreamId, code: ResetCode) {
        self.reset(stream, code);
        self.drop_reader(stream);
        self.drop_writer(stream);
    }

    /// `Some(None)`: there will be no more.
    pub(in crate::spdy) fn poll_accept(&mut self, cx: &Context<'_>) -> Option<Option<(StreamId, Headers)>> {
        while let Some(stream) = self.incoming.as_mut().and_then(VecDeque::pop_front) {
            if let Some(headers) = self.bodies.get_mut(&stream).and_then(|body| body.headers.take()) {
                return Some(Some((stream, headers)));
            }
        }
        if self.closing || self.session.is_peer_gone() {
            return Some(None);
        }
        self.acceptor = Some(cx.waker().clone());
        None
    }

    /// Nobody will accept streams.
    pub(in crate::spdy) fn stop_accepting(&mut self) {
        for stream in self.incoming.take().into_iter().flatten() {
            self.abandon(stream, ResetCode::REFUSED_STREAM);
        }
    }

    pub(in crate::spdy) fn close(&mut self) {
        if self.closing {
            return;
        }
        self.closing = true;
        self.full = false;
        for body in self.bodies.values_mut() {
            body.end(RecvEnd::Reset(ResetCode::CANCEL), &mut self.wakers);
            // What was accepted goes out; a writer is told that no more is.
            self.wakers.extend(body.writer.take());
        }
        self.wakers.extend(self.acceptor.take());
        self.wake_driver();
    }
}
