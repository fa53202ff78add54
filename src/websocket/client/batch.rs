//! Messages that are made where their payload was read to.

use std::{fmt, mem, ops::Range};

use super::super::{Head, Opcode, frame::MAX_HEAD, fresh_key, mask::Mask};

/// Binary messages of the length given, masked where they were read to, which leave in one piece.
///
/// It grows with what is put in, to 1 MiB: a peer is woken once for it.
pub struct Batch {
    bytes: Vec<u8>,
    /// The finished messages.
    messages: Range<usize>,
    /// The longest payload.
    most: usize,
    /// The longest payload of the next batch's first message.
    first: usize,
}

/// The most of a batch.
const BATCH: usize = 1024 * 1024;

/// The longest payload of the first message: whole pages, so that a file is read from page to page, and one for the head.
const FIRST: usize = BATCH - PAGE;

/// The longest payload of any other, and of the first at first: whole pages whose message tells its length in two bytes.
const OTHER: usize = 15 * PAGE;

const PAGE: usize = 4096;

/// Before the payload of a message that is not the first: a frame's head, with a length of two bytes, and the channel.
const BEFORE: usize = 8 + 1;

/// What is read to a multiple of it is read faster: a kernel copies by `rep movsb`, which likes to write whole cache lines.
const LINE: usize = 64;

impl Batch {
    /// For messages of up to `payload` bytes, and of no more than 1,020 KiB.
    #[must_use]
    pub fn new(payload: usize) -> Self {
        let most = payload.min(FIRST);
        Self { bytes: Vec::new(), messages: 0..0, most, first: most.min(OTHER) }
    }

    /// Where the next message's payload goes; `None` if it is full.
    pub fn room(&mut self) -> Option<&mut [u8]> {
        let (most, needed) = if self.messages.is_empty() {
            (self.first, MAX_HEAD + LINE + self.first)
        } else {
            let most = self.most.min(OTHER);
            (most, self.messages.end + BEFORE + most)
        };
        if needed > BATCH {
            return None;
        }
        if self.bytes.len() < needed {
            self.bytes.resize(needed, 0);
        }
        let begin = self.next();
        Some(&mut self.bytes[begin..begin + most])
    }

    /// Makes the first `length` bytes of [`room`](Self::room) a message.
    pub fn push(&mut self, id: u8, length: usize) {
        let begin = self.next() - 1;
        let end = begin + 1 + length;
        self.bytes[begin] = id;
        let key = fresh_key();
        Mask::new(key).apply(&mut self.bytes[begin..end]);
        let head = Head::new(Opcode::Binary, end - begin, Some(key));
        let size = head.len();
        let at = if self.messages.is_empty() {
            // What fills its room, as a file does and a pipe soon does not, is given twice as much next.
            let first = if length == self.first { (self.first + PAGE) * 2 - PAGE } else { OTHER };
            self.first = first.min(self.most);
            self.messages = begin - size..end;
            begin - size
        } else {
            let at = self.messages.end;
            if size < BEFORE - 1 {
                // It is so short that it has a shorter head.
                self.bytes.copy_within(begin..end, at + size);
            }
            self.messages.end = at + size + 1 + length;
            at
        };
        self.bytes[at..at + size].copy_from_slice(&head);
    }

    /// Where the next payload begins.
    fn next(&self) -> usize {
        if self.messages.is_empty() {
            let address = self.bytes.as_ptr().addr();
            (address + MAX_HEAD).next_multiple_of(LINE) - address
        } else {
            self.messages.end + BEFORE
        }
    }

    /// What it holds; it is empty then.
    pub(super) fn take(&mut self) -> &[u8] {
        &self.bytes[mem::take(&mut self.messages)]
    }
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch").field("messages", &self.messages).finish_non_exhaustive()
    }
}
