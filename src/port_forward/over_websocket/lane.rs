//! One port: its connection into the pod, and what waits for it.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, ReadBuf};

use crate::{
    BoxError,
    port_forward::Connection,
    upgrade::{Target, buffer::LONGEST_MESSAGE},
};

/// The longest text on an error channel, in characters: one message.
const MAX_TEXT: usize = 4 * 1024;

/// In ticks: how long a pod may take the last of what the client sent: 10 s.
const GRACE: u32 = 2;

pub(super) struct Lane<C, F> {
    port: u16,
    state: State<C, F>,
    /// One side sends no more. What waits for the pod is written, then its connection is shut down.
    ended: bool,
    /// What the client sent and the pod has not taken.
    input: Vec<u8>,
    taken: usize,
    /// The last write may lie in a buffer of the connection.
    dirty: bool,
    /// What the client is still to be told.
    error: Option<String>,
    ticks: u32,
}

enum State<C, F> {
    Dialling(Pin<Box<F>>),
    Open(C),
    Over,
}

impl<C, F> Lane<C, F>
where
    C: Connection,
    F: Future<Output = Result<C, BoxError>>,
{
    pub(super) fn new(port: u16, dialled: Pin<Box<F>>) -> Self {
        let state = State::Dialling(dialled);
        Self { port, state, ended: false, input: Vec::new(), taken: 0, dirty: false, error: None, ticks: 0 }
    }

    pub(super) fn is_over(&self) -> bool {
        matches!(self.state, State::Over) && self.error.is_none()
    }

    /// A read of the client's has room, whatever is in it.
    pub(super) fn has_room(&self) -> bool {
        self.input.len() - self.taken <= LONGEST_MESSAGE
    }

    /// Takes what the client sent, if somebody is there to read it. Returns whether it was.
    pub(super) fn push(&mut self, bytes: &[u8]) -> bool {
        let wanted = !self.ended && !matches!(self.state, State::Over);
        if wanted {
            self.input.drain(..self.taken);
            self.taken = 0;
            self.input.extend_from_slice(bytes);
        }
        wanted
    }

    pub(super) fn take_error(&mut self) -> Option<String> {
        self.error.take()
    }

    /// Nothing is read any more. What the client sent still gets to the pod.
    pub(super) fn end(&mut self) {
        self.error = None;
        self.ended = true;
        self.ticks = 0;
    }

    /// The transfer is cut off: the pod sees no end of file.
    pub(super) fn reset(&mut self) {
        self.error = None;
        self.input = Vec::new();
        self.taken = 0;
        if let State::Open(connection) = std::mem::replace(&mut self.state, State::Over) {
            connection.reset();
        }
    }

    fn fail(&mut self, target: &Target, cause: &dyn std::fmt::Display) {
        let (port, pod, uid) = (self.port, &target.pod, target.uid.as_deref().unwrap_or_default());
        tracing::debug!(port, %cause, "forwarding failed");
        let text = format!("error forwarding port {port} to pod {pod}, uid {uid}: {cause}");
        self.reset();
        // Behind its end nobody waits for it any more.
        self.error = (!self.ended).then(|| text.chars().take(MAX_TEXT).collect());
    }

    /// Dials, writes what waits, and ends. Returns whether anything changed.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, target: &Target) -> bool {
        let mut moved = false;
        if let State::Dialling(dialled) = &mut self.state {
            match dialled.as_mut().poll(cx) {
                Poll::Pending => return false,
                Poll::Ready(Ok(connection)) => self.state = State::Open(connection),
                Poll::Ready(Err(cause)) => self.fail(target, &cause),
            }
            moved = true;
        }
        let before = self.taken;
        match (self.poll_write(cx), &mut self.state) {
            (Poll::Ready(Err(cause)), _) => {
                self.fail(target, &cause);
                moved = true;
            }
            (Poll::Ready(Ok(())), State::Open(connection)) if self.ended => {
                if Pin::new(connection).poll_shutdown(cx).is_ready() {
                    self.state = State::Over;
                    moved = true;
                }
            }
            (Poll::Ready(Ok(())) | Poll::Pending, _) => {}
        }
        moved || self.taken != before
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let State::Open(connection) = &mut self.state else { return Poll::Ready(Ok(())) };
        while self.taken < self.input.len() {
            let written = ready!(Pin::new(&mut *connection).poll_write(cx, &self.input[self.taken..]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.taken += written;
            self.dirty = true;
        }
        self.input = Vec::new();
        self.taken = 0;
        if self.dirty {
            ready!(Pin::new(connection).poll_flush(cx))?;
            self.dirty = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Reads what the pod says. `None`: nothing to read, now or ever.
    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut [u8], target: &Target) -> Option<usize> {
        let State::Open(connection) = &mut self.state else { return None };
        if self.ended {
            return None;
        }
        let mut read = ReadBuf::new(buf);
        match AsyncRead::poll_read(Pin::new(connection), cx, &mut read) {
            Poll::Pending => return None,
            Poll::Ready(Ok(())) if read.filled().is_empty() => self.end(),
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(cause)) => self.fail(target, &cause),
        }
        Some(read.filled().len())
    }

    /// Five seconds have passed.
    pub(super) fn tick(&mut self) {
        self.ticks += 1;
        if self.ended && self.ticks >= GRACE {
            self.reset();
        }
    }
}
