//! The streams' side of the shared state: reading and writing.

use std::{collections::VecDeque, task::Context};

use tokio::io::ReadBuf;

use super::{Fin, State, Stop, lost};
use crate::spdy::{
    error::Error,
    frame::{ResetCode, StreamId},
    stream::RecvEnd,
};

impl State {
    pub(in crate::spdy) fn reply(&mut self, stream: StreamId) {
        self.session.reply(stream);
        self.schedule(stream);
    }

    pub(in crate::spdy) fn reset(&mut self, stream: StreamId, code: ResetCode) {
        self.session.reset(stream, code);
        if let Some(body) = self.bodies.get_mut(&stream) {
            body.end(RecvEnd::Reset(code), &mut self.wakers);
            body.stop(&Stop::Reset, &mut self.wakers);
        }
        self.discard_unread(stream);
        self.wake_driver();
    }

    pub(in crate::spdy) fn ended(&self, stream: StreamId) -> Option<RecvEnd> {
        self.bodies.get(&stream).filter(|body| body.recv.is_empty()).and_then(|body| body.end)
    }

    /// `None`: nothing came yet. Nothing in `buf`: the end.
    pub(in crate::spdy) fn read(
        &mut self,
        stream: StreamId,
        buf: &mut ReadBuf<'_>,
        cx: &Context<'_>,
    ) -> Option<Result<(), Error>> {
        let Some(body) = self.bodies.get_mut(&stream) else { return Some(Ok(())) };
        if body.recv.is_empty() && buf.remaining() > 0 {
            return match body.end {
                Some(RecvEnd::Lost) => Some(Err(match &self.result {
                    Some(Err(error)) => error.clone(),
                    Some(Ok(())) | None => self.fatal.clone().unwrap_or_else(lost),
                })),
                Some(RecvEnd::Fin | RecvEnd::Reset(_) | RecvEnd::GoAway) => Some(Ok(())),
                None => {
                    body.reader = Some(cx.waker().clone());
                    None
                }
            };
        }
        let (first, second) = body.recv.as_slices();
        let from_first = first.len().min(buf.remaining());
        buf.put_slice(&first[..from_first]);
        let from_second = second.len().min(buf.remaining());
        buf.put_slice(&second[..from_second]);
        self.took(stream, from_first + from_second);
        Some(Ok(()))
    }

    /// The reader took `len` bytes.
    pub(super) fn took(&mut self, stream: StreamId, len: usize) {
        let Some(body) = self.bodies.get_mut(&stream) else { return };
        let paused = self.full || self.full_streams > 0;
        body.recv.drain(..len);
        if body.recv.is_empty() {
            // A stream at rest keeps nothing.
            body.recv = VecDeque::new();
        }
        self.unread -= len;
        if body.full && body.recv.len() <= self.config.stream_unread / 2 {
            body.full = false;
            self.full_streams -= 1;
        }
        self.full &= self.unread > self.config.connection_unread / 2;
        if paused && !self.full && self.full_streams == 0 {
            self.wake_driver();
        }
    }

    pub(super) fn discard_unread(&mut self, stream: StreamId) {
        if let Some(len) = self.bodies.get(&stream).map(|body| body.recv.len()) {
            self.took(stream, len);
        }
    }

    /// `None`: there is no room yet.
    pub(in crate::spdy) fn write(
        &mut self,
        stream: StreamId,
        bytes: &[u8],
        cx: &Context<'_>,
    ) -> Option<Result<usize, Stop>> {
        let Some(body) = self.bodies.get_mut(&stream) else { return Some(Err(Stop::Over)) };
        if let Some(stop) = &body.stopped {
            return Some(Err(stop.clone()));
        }
        if body.fin != Fin::No || self.closing {
            return Some(Err(Stop::Over));
        }
        let len = bytes.len().min(self.config.stream_unsent - body.send.len());
        if len == 0 && !bytes.is_empty() {
            body.writer = Some(cx.waker().clone());
            return None;
        }
        body.send.extend(&bytes[..len]);
        self.schedule(stream);
        Some(Ok(len))
    }

    /// How much the next write takes, at least one byte. `None`: there is no room yet.
    pub(in crate::spdy) fn capacity(&mut self, stream: StreamId, cx: &Context<'_>) -> Option<Result<usize, Stop>> {
        let Some(body) = self.bodies.get_mut(&stream) else { return Some(Err(Stop::Over)) };
        if let Some(stop) = &body.stopped {
            return Some(Err(stop.clone()));
        }
        if body.fin != Fin::No || self.closing {
            return Some(Err(Stop::Over));
        }
        match self.config.stream_unsent - body.send.len() {
            0 => {
                body.writer = Some(cx.waker().clone());
                None
            }
            room => Some(Ok(room)),
        }
    }

    /// How the stream was cut off. `None`: it was not yet.
    pub(in crate::spdy) fn aborted(&mut self, stream: StreamId, cx: &Context<'_>) -> Option<RecvEnd> {
        let Some(body) = self.bodies.get_mut(&stream) else { return Some(RecvEnd::Lost) };
        if body.aborted.is_none() {
            body.watcher = Some(cx.waker().clone());
        }
        body.aborted
    }

    /// `None`: not everything is out.
    pub(in crate::spdy) fn flush(&mut self, stream: StreamId, cx: &Context<'_>) -> Option<Result<(), Stop>> {
        let Some(body) = self.bodies.get_mut(&stream) else { return Some(Err(Stop::Over)) };
        match &body.stopped {
            Some(stop) => Some(Err(stop.clone())),
            None if body.has_output() => {
                body.writer = Some(cx.waker().clone());
                None
            }
            None => Some(Ok(())),
        }
    }

    /// FIN goes out behind what is queued. `None`: not yet.
    pub(in crate::spdy) fn shut_down(&mut self, stream: StreamId, cx: &Context<'_>) -> Option<Result<(), Stop>> {
        let Some(body) = self.bodies.get_mut(&stream) else { return Some(Err(Stop::Over)) };
        if body.fin == Fin::No && body.stopped.is_none() {
            if self.closing {
                return Some(Err(Stop::Over));
            }
            body.fin = Fin::Wanted;
            self.schedule(stream);
        }
        self.flush(stream, cx)
    }

    pub(in crate::spdy) fn drop_reader(&mut self, stream: StreamId) {
        self.discard_unread(stream);
        self.session.discard(stream);
        if let Some(body) = self.bodies.get_mut(&stream) {
            body.has_reader = false;
            body.reader = None;
            body.watcher = None;
        }
        self.clean(stream);
        // The connection may be done.
        self.wake_driver();
    }

    pub(in crate::spdy) fn drop_writer(&mut self, stream: StreamId) {
        let Some(body) = self.bodies.get_mut(&stream) else { return };
        body.has_writer = false;
        body.writer = None;
        // Without FIN the peer must not take what it has for everything. Without a reply FIN would never go out.
        let finishes = body.fin == Fin::Sent || body.fin == Fin::Wanted && self.session.can_send(stream);
        if !finishes && body.stopped.is_none() && !self.closing {
            self.reset(stream, ResetCode::CANCEL);
        }
        self.clean(stream);
        self.wake_driver();
    }
}
