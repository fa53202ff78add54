//! What a stream was given and has not sent.

use std::collections::VecDeque;

/// Bytes in pieces of one DATA frame each, which move into a batch as they are.
#[derive(Debug, Default)]
pub(super) struct Unsent {
    pieces: VecDeque<Vec<u8>>,
    len: usize,
}

impl Unsent {
    /// The longest DATA frame: Go's buffers end there, and longer ones are unfair.
    const MAX_DATA: usize = 32 * 1024;

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn push(&mut self, mut bytes: &[u8]) {
        self.len += bytes.len();
        if let Some(last) = self.pieces.back_mut() {
            let (here, rest) = bytes.split_at(bytes.len().min(Self::MAX_DATA - last.len()));
            last.extend_from_slice(here);
            bytes = rest;
        }
        self.pieces.extend(bytes.chunks(Self::MAX_DATA).map(<[u8]>::to_vec));
    }

    /// The payload of the next frame.
    pub(super) fn pop(&mut self) -> Option<Vec<u8>> {
        let piece = self.pieces.pop_front()?;
        self.len -= piece.len();
        Some(piece)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_pushed_is_popped_in_frames_that_are_full_where_they_can_be() {
        let mut unsent = Unsent::default();
        unsent.push(&[1; 100]);
        unsent.push(&vec![2; 70_000]);
        unsent.push(&[]);
        unsent.push(&[3; 5]);
        assert_eq!(unsent.len(), 70_105);
        let pieces: Vec<_> = std::iter::from_fn(|| unsent.pop()).collect();
        assert_eq!(pieces.iter().map(Vec::len).collect::<Vec<_>>(), [32_768, 32_768, 4_569]);
        let wanted = [vec![1; 100], vec![2; 70_000], vec![3; 5]].concat();
        assert!(pieces.concat() == wanted && unsent.is_empty());
    }
}
