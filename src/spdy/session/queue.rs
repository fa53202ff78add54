//! Control frames that wait to be written.

use std::collections::VecDeque;

use crate::spdy::frame::{self, GoAwayCode, HeaderEncoder, ResetCode, StreamId};

/// With so many frames waiting the peer does not read its answers: it gets no more until it does. A read may add a
/// few thousand more, as many as fit into it.
const BACKED_UP: usize = 1024;

/// A control frame to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Control {
    /// Opens a stream.
    SynStream {
        /// Of this side's.
        stream: StreamId,
        /// What it is for.
        headers: Vec<(String, String)>,
    },
    /// Takes a stream; without headers, as in Kubernetes.
    SynReply(StreamId),
    /// Ends a stream.
    Rst(StreamId, ResetCode),
    /// Ours, or an echo.
    Ping(u32),
    /// No more streams are taken.
    GoAway(Option<StreamId>, GoAwayCode),
}

#[derive(Debug, Default)]
pub(super) struct Queue {
    frames: VecDeque<Control>,
    encoder: HeaderEncoder,
}

impl Queue {
    pub(super) fn push(&mut self, control: Control) {
        self.frames.push_back(control);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    pub(super) fn is_backed_up(&self) -> bool {
        self.frames.len() >= BACKED_UP
    }

    pub(super) fn has_ping(&self) -> bool {
        self.frames.iter().any(|frame| matches!(frame, Control::Ping(_)))
    }

    /// Takes the SYN_STREAM of a stream that was given up before it was written.
    pub(super) fn retract(&mut self, opening: StreamId) -> bool {
        let written = self.frames.len();
        self.frames.retain(|frame| !matches!(frame, Control::SynStream { stream, .. } if *stream == opening));
        self.frames.len() < written
    }

    /// Appends frames until `out` has `max` bytes or more, or there are no more.
    pub(super) fn encode(&mut self, out: &mut Vec<u8>, max: usize) {
        while out.len() < max
            && let Some(control) = self.frames.pop_front()
        {
            match control {
                Control::SynStream { stream, headers } => {
                    let headers: Vec<_> = headers.iter().map(|(name, value)| (&**name, &**value)).collect();
                    self.encoder.syn_stream(stream, &headers, false, out);
                }
                Control::SynReply(stream) => self.encoder.syn_reply(stream, &[], false, out),
                Control::Rst(stream, code) => out.extend_from_slice(&frame::rst(stream, code)),
                Control::Ping(id) => out.extend_from_slice(&frame::ping(id)),
                Control::GoAway(last_good, code) => out.extend_from_slice(&frame::goaway(last_good, code)),
            }
        }
        if self.frames.is_empty() {
            // Idle connections keep nothing.
            self.frames = VecDeque::new();
        }
    }

    #[cfg(test)]
    pub(super) fn pop(&mut self) -> Option<Control> {
        self.frames.pop_front()
    }
}
