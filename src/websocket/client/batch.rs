//! Messages that are made where their payload was read to.

use std::{fmt, mem};

use fastwebsockets::Frame;

use super::MAX_FRAME_HEAD;

/// Binary messages of the length given, masked where they were read to, which leave in one piece.
///
/// It grows with what is put in, to 256 KiB: a peer is woken once for it.
pub struct Batch {
    bytes: Vec<u8>,
    /// Where the finished messages end.
    end: usize,
    payload: usize,
}

/// The most of a batch.
const BATCH: usize = 256 * 1024;

/// Before the payload of a message in a batch: a frame's head, with a length of two bytes, and the channel.
pub const BEFORE: usize = 8 + 1;

impl Batch {
    /// For messages of up to `payload` bytes.
    ///
    /// # Panics
    ///
    /// If that is not less than 64 KiB.
    #[must_use]
    pub fn new(payload: usize) -> Self {
        assert!(BEFORE + payload <= usize::from(u16::MAX), "a longer head");
        Self { bytes: Vec::new(), end: 0, payload }
    }

    /// Where the next message's payload goes; `None` if it is full.
    pub fn room(&mut self) -> Option<&mut [u8]> {
        let end = self.end + BEFORE + self.payload;
        if end > BATCH {
            return None;
        }
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        Some(&mut self.bytes[self.end + BEFORE..end])
    }

    /// Makes the first `length` bytes of [`room`](Self::room) a message.
    pub fn push(&mut self, id: u8, length: usize) {
        let begin = self.end + BEFORE - 1;
        self.bytes[begin] = id;
        let mut head = [0; MAX_FRAME_HEAD];
        let message = &mut self.bytes[begin..=begin + length];
        let mut frame = Frame::binary(fastwebsockets::Payload::BorrowedMut(message));
        frame.mask();
        let size = frame.fmt_head(&mut head);
        if size < BEFORE - 1 {
            // It is so short that it has a shorter head.
            self.bytes.copy_within(begin..=begin + length, self.end + size);
        }
        self.bytes[self.end..self.end + size].copy_from_slice(&head[..size]);
        self.end += size + 1 + length;
    }

    /// What it holds; it is empty then.
    pub(super) fn take(&mut self) -> &[u8] {
        &self.bytes[..mem::take(&mut self.end)]
    }
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch").field("end", &self.end).finish_non_exhaustive()
    }
}
