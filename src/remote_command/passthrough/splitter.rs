//! Finds the frames in one direction, so that the place between two of them is known.

use crate::{
    spdy::{
        Error,
        frame::{self, HEAD_LEN, StreamId},
    },
    upgrade::outbox::Outbox,
};

/// Longest control frame that is held back until it is whole; Kubernetes sends under 200 bytes.
const MAX_CONTROL: usize = 128 * 1024;

/// What was found.
pub(super) enum Found<'a> {
    /// A piece of a DATA frame.
    Data { stream: u32, payload: &'a [u8], fin: bool },
    /// A whole control frame.
    Control(&'a [u8]),
}

/// Whether a control frame, or an empty DATA frame, goes on to the other side.
#[derive(PartialEq, Eq)]
pub(super) enum Then {
    Pass,
    Swallow,
}

/// Copies one direction frame by frame: whole frames as they are, the part that has come of a DATA frame as a frame of
/// its own, and a control frame when it is whole.
#[derive(Debug, Default)]
pub(super) struct Splitter {
    state: State,
    /// The beginning of a control frame.
    held: Vec<u8>,
}

#[derive(Clone, Copy, Debug, Default)]
enum State {
    #[default]
    Between,
    Head([u8; HEAD_LEN], usize),
    Data {
        stream: u32,
        left: usize,
        fin: bool,
    },
    /// Bytes until the control frame in `held` is whole.
    Control(usize),
}

impl Splitter {
    /// Takes what was read and fills the batch of `out`, which is empty.
    pub(super) fn split(
        &mut self,
        buf: &[u8],
        out: &mut Outbox,
        mut found: impl FnMut(Found<'_>) -> Result<Then, Error>,
    ) -> Result<(), Error> {
        // Frames that go on as they are, one behind the other.
        let mut whole = 0..0;
        let mut at = 0;
        while at < buf.len() {
            match self.state {
                State::Between => {
                    let Some(head) = buf[at..].first_chunk::<HEAD_LEN>() else {
                        let mut partial = [0; HEAD_LEN];
                        partial[..buf.len() - at].copy_from_slice(&buf[at..]);
                        self.state = State::Head(partial, buf.len() - at);
                        break;
                    };
                    let length = body(head);
                    let end = at + HEAD_LEN + length;
                    if end > buf.len() {
                        self.begin(*head)?;
                        at += HEAD_LEN;
                        continue;
                    }
                    let then = if is_control(head) {
                        found(Found::Control(&buf[at..end]))?
                    } else {
                        found(Found::Data { stream: first(head), payload: &buf[at + HEAD_LEN..end], fin: fin(head) })?
                    };
                    if then == Then::Swallow || whole.end != at {
                        flush(&mut whole, out);
                        whole = at..at;
                    }
                    if then == Then::Pass {
                        whole.end = end;
                    } else {
                        whole = end..end;
                    }
                    at = end;
                }
                State::Head(mut head, filled) => {
                    let here = (HEAD_LEN - filled).min(buf.len() - at);
                    head[filled..filled + here].copy_from_slice(&buf[at..at + here]);
                    at += here;
                    self.state = State::Head(head, filled + here);
                    if filled + here == HEAD_LEN {
                        self.begin(head)?;
                        if let State::Data { stream, left: 0, fin } = self.state {
                            if found(Found::Data { stream, payload: &[], fin })? == Then::Pass {
                                out.batch().push_with_head(&head, at..at);
                            }
                            self.state = State::Between;
                        }
                    }
                }
                State::Data { stream, left, fin } => {
                    flush(&mut whole, out);
                    let here = left.min(buf.len() - at);
                    let fin_here = fin && here == left;
                    found(Found::Data { stream, payload: &buf[at..at + here], fin: fin_here })?;
                    let id = StreamId::new(stream).ok_or_else(|| Error::protocol("stream 0"))?;
                    out.batch().push_with_head(&frame::data_head(id, here, fin_here), at..at + here);
                    at += here;
                    self.state = match left - here {
                        0 => State::Between,
                        left => State::Data { stream, left, fin },
                    };
                    whole = at..at;
                }
                State::Control(left) => {
                    let here = left.min(buf.len() - at);
                    self.held.extend_from_slice(&buf[at..at + here]);
                    at += here;
                    self.state = State::Control(left - here);
                }
            }
            if let State::Control(0) = self.state {
                // It began in an earlier read, or with this very one: nothing of the batch comes before it.
                if found(Found::Control(&self.held))? == Then::Pass {
                    out.push_front(&self.held);
                }
                self.held = Vec::new();
                self.state = State::Between;
                whole = at..at;
            }
        }
        flush(&mut whole, out);
        Ok(())
    }

    /// A head whose body is not here yet.
    fn begin(&mut self, head: [u8; HEAD_LEN]) -> Result<(), Error> {
        let length = body(&head);
        if !is_control(&head) {
            self.state = State::Data { stream: first(&head), left: length, fin: fin(&head) };
            return Ok(());
        }
        if length > MAX_CONTROL {
            return Err(Error::limit("control frame too long"));
        }
        self.held = head.to_vec();
        self.state = State::Control(length);
        Ok(())
    }
}

fn flush(whole: &mut std::ops::Range<usize>, out: &mut Outbox) {
    if whole.start < whole.end {
        out.batch().push_raw(whole.clone());
    }
    *whole = whole.end..whole.end;
}

fn first(head: &[u8; HEAD_LEN]) -> u32 {
    u32::from_be_bytes([head[0], head[1], head[2], head[3]])
}

fn is_control(head: &[u8; HEAD_LEN]) -> bool {
    head[0] & 0x80 != 0
}

fn fin(head: &[u8; HEAD_LEN]) -> bool {
    head[4] & 1 != 0
}

fn body(head: &[u8; HEAD_LEN]) -> usize {
    u32::from_be_bytes([0, head[5], head[6], head[7]]) as usize
}
