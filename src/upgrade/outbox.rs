//! What waits to be written to one side: a batch of frames around borrowed payload, and control before and after it.

use std::{
    io::{self, IoSlice},
    ops::Range,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::AsyncWrite;

use super::buffer::{Buffer, LONGEST_MESSAGE};

/// Longest head of a frame of ours: WebSocket's ten bytes and a channel, SPDY's eight.
const MAX_HEAD: usize = 15;

/// Payload of one frame: with its channel byte it is a message that clients take.
const MAX_FRAME: usize = LONGEST_MESSAGE - 1;

/// Pieces that one system call writes.
const SLICES: usize = 64;

/// Payload up to this long is moved down to its predecessor: a copy is cheaper than a piece.
const MOVED: usize = 512;

/// Pieces of a batch that are kept room for; more come only of very small frames.
const KEPT_PIECES: usize = 32;

/// What waits to be written to one side. Empty, it holds no payload.
///
/// A batch is what one read brought: whole frames, so that control may go before and after it and never inside.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    /// Control that must not wait for data, and does not care about its order: pings and their answers.
    front: Control,
    batch: Batch,
    /// Control that comes after all data: a status, a close.
    tail: Control,
    /// The last write may lie in a buffer of the transport (TLS).
    dirty: bool,
}

#[derive(Debug, Default)]
struct Control {
    bytes: Vec<u8>,
    sent: usize,
}

/// Pieces of payload in one buffer, in order, each with the head of a frame or without.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    buffer: Option<Buffer>,
    pieces: Vec<Piece>,
    /// Payload of the last frame.
    frame: usize,
    /// The piece in flight, and how much of it is written.
    next: usize,
    sent: usize,
}

#[derive(Debug)]
struct Piece {
    head: [u8; MAX_HEAD],
    head_len: u8,
    /// Which stream the payload belongs to.
    lane: u8,
    /// It begins a frame; if not, it goes on with the one before.
    opens: bool,
    /// The stream ends behind it.
    fin: bool,
    start: u32,
    end: u32,
}

impl Control {
    fn rest(&self) -> &[u8] {
        &self.bytes[self.sent..]
    }

    /// Counts `written` down by what it takes of it.
    fn advance(&mut self, written: &mut usize) {
        let taken = self.rest().len().min(*written);
        self.sent += taken;
        *written -= taken;
        if self.sent == self.bytes.len() {
            *self = Self::default();
        }
    }
}

impl Piece {
    fn payload(&self) -> Range<usize> {
        self.start as usize..self.end as usize
    }

    fn len(&self) -> usize {
        usize::from(self.head_len) + self.payload().len()
    }
}

impl Batch {
    /// Adds payload that lies in `buf`: to the frame before as far as it has room, if that is of the same lane and open.
    pub(crate) fn push(&mut self, buf: &mut [u8], lane: u8, mut range: Range<usize>, fin: bool) {
        loop {
            let goes_on = self.pieces.last().is_some_and(|last| last.lane == lane && !last.fin);
            let room = if goes_on { MAX_FRAME - self.frame } else { 0 };
            let opens = room == 0 && !(goes_on && range.is_empty());
            let here = range.start..range.end.min(range.start + if opens { MAX_FRAME } else { room });
            range.start = here.end;
            self.append(buf, lane, here, fin && range.is_empty(), opens);
            if range.is_empty() {
                return;
            }
        }
    }

    fn append(&mut self, buf: &mut [u8], lane: u8, range: Range<usize>, fin: bool, opens: bool) {
        self.frame = range.len() + if opens { 0 } else { self.frame };
        if let Some(last) = self.pieces.last_mut().filter(|_| !opens) {
            last.fin = fin;
            let end = last.end as usize;
            if range.start == end || range.len() <= MOVED {
                buf.copy_within(range.clone(), end);
                last.end += range.len() as u32;
                return;
            }
            // The frame goes on in a piece of its own; its end is told by the piece that is last.
        }
        let (start, end) = (range.start as u32, range.end as u32);
        self.pieces.push(Piece { head: [0; MAX_HEAD], head_len: 0, lane, opens, fin, start, end });
    }

    /// Adds bytes as they are: whole frames of somebody else's.
    pub(crate) fn push_raw(&mut self, range: Range<usize>) {
        self.push_with_head(&[], range);
    }

    /// Adds payload behind a head that is known already.
    pub(crate) fn push_with_head(&mut self, head: &[u8], range: Range<usize>) {
        let mut piece = Piece {
            head: [0; MAX_HEAD],
            head_len: head.len() as u8,
            lane: 0,
            opens: false,
            fin: true,
            start: range.start as u32,
            end: range.end as u32,
        };
        piece.head[..head.len()].copy_from_slice(head);
        self.pieces.push(piece);
    }

    /// Writes the heads of all frames: `head(lane, length, fin)`.
    pub(crate) fn write_heads<H: AsRef<[u8]>>(&mut self, head: impl Fn(u8, usize, bool) -> H) {
        let mut at = 0;
        while at < self.pieces.len() {
            let frame = 1 + self.pieces[at + 1..].iter().take_while(|piece| !piece.opens).count();
            let pieces = &mut self.pieces[at..at + frame];
            let length = pieces.iter().map(|piece| piece.payload().len()).sum();
            let fin = pieces.last().is_some_and(|last| last.fin);
            let bytes = head(pieces[0].lane, length, fin);
            let bytes = bytes.as_ref();
            pieces[0].head[..bytes.len()].copy_from_slice(bytes);
            pieces[0].head_len = bytes.len() as u8;
            at += frame;
        }
    }

    fn started(&self) -> bool {
        self.next > 0 || self.sent > 0
    }

    fn gather<'a>(&'a self, slices: &mut Slices<'a>) {
        let payload = self.buffer.as_deref().unwrap_or_default();
        let mut skip = self.sent;
        for piece in &self.pieces[self.next..] {
            for part in [&piece.head[..usize::from(piece.head_len)], &payload[piece.payload()]] {
                let skipped = skip.min(part.len());
                skip -= skipped;
                slices.push(&part[skipped..]);
            }
            if slices.is_full() {
                return;
            }
        }
    }

    fn advance(&mut self, written: &mut usize) {
        while let Some(piece) = self.pieces.get(self.next) {
            let left = piece.len() - self.sent;
            if *written < left {
                self.sent += *written;
                *written = 0;
                return;
            }
            *written -= left;
            self.next += 1;
            self.sent = 0;
        }
        self.clear();
    }

    fn clear(&mut self) {
        self.buffer = None;
        self.next = 0;
        self.sent = 0;
        self.pieces.clear();
        if self.pieces.capacity() > KEPT_PIECES {
            self.pieces = Vec::new();
        }
    }
}

/// The slices of one vectored write.
struct Slices<'a> {
    slices: [IoSlice<'a>; SLICES],
    len: usize,
}

impl<'a> Slices<'a> {
    fn push(&mut self, part: &'a [u8]) {
        if !part.is_empty() && self.len < SLICES {
            self.slices[self.len] = IoSlice::new(part);
            self.len += 1;
        }
    }

    fn is_full(&self) -> bool {
        self.len == SLICES
    }
}

impl Outbox {
    /// Queues control that must not wait for data. It never goes inside a frame.
    pub(crate) fn push_front(&mut self, frame: &[u8]) {
        // A peer that never takes all of it must not make it grow by what it has taken.
        self.front.bytes.drain(..self.front.sent);
        self.front.sent = 0;
        self.front.bytes.extend_from_slice(frame);
    }

    /// Bytes of urgent control that wait.
    pub(crate) fn front_len(&self) -> usize {
        self.front.rest().len()
    }

    /// Queues control behind all data. Nothing may be queued after it but more of it.
    pub(crate) fn push_tail(&mut self, frame: &[u8]) {
        self.tail.bytes.extend_from_slice(frame);
    }

    /// The batch to fill. Callers fill it only when everything before was written, with pieces of one buffer.
    pub(crate) fn batch(&mut self) -> &mut Batch {
        debug_assert!(
            self.batch.buffer.is_none() && !self.batch.started(),
            "a batch is filled only when the one before is written"
        );
        &mut self.batch
    }

    /// Keeps the buffer in which the payload of the batch lies.
    pub(crate) fn keep(&mut self, buffer: Buffer) {
        if !self.batch.pieces.is_empty() {
            self.batch.buffer = Some(buffer);
        }
    }

    /// Nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        !self.dirty && self.front.rest().is_empty() && self.batch.pieces.is_empty() && self.tail.rest().is_empty()
    }

    /// Data waits: its source must not be read.
    pub(crate) fn has_data(&self) -> bool {
        !self.batch.pieces.is_empty()
    }

    /// Forgets everything: the side is gone.
    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Writes and flushes all that waits. Pending keeps what was not written.
    ///
    /// # Errors
    ///
    /// Those of the write. The side is gone then.
    pub(crate) fn poll_send<W>(&mut self, cx: &mut Context<'_>, to: &mut W) -> Poll<io::Result<()>>
    where
        W: AsyncWrite + Unpin,
    {
        loop {
            let mut slices = Slices { slices: [IoSlice::new(&[]); SLICES], len: 0 };
            // Whatever is out in part has to be followed by its rest.
            let front_first = !self.batch.started() && self.tail.sent == 0;
            if front_first {
                slices.push(self.front.rest());
            }
            self.batch.gather(&mut slices);
            if !slices.is_full() && (front_first || self.front.rest().is_empty() || self.tail.sent > 0) {
                slices.push(self.tail.rest());
            }
            if slices.len == 0 {
                break;
            }
            let mut written = ready!(Pin::new(&mut *to).poll_write_vectored(cx, &slices.slices[..slices.len]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.dirty = true;
            if front_first {
                self.front.advance(&mut written);
            }
            self.batch.advance(&mut written);
            self.tail.advance(&mut written);
        }
        if self.dirty {
            ready!(Pin::new(to).poll_flush(cx))?;
            self.dirty = false;
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests;
