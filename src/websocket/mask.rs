//! The client's mask (RFC 6455, 5.3), applied piece by piece.

use std::hash::{BuildHasher, RandomState};

use fearless_simd::{Level, Simd, dispatch};

/// Vectors are stored at twice the speed where none crosses a cache line.
const LINE: usize = 64;

/// A key for one frame of ours. It must not be foreseeable (RFC 6455, 10.3): the hasher is keyed with the system's
/// randomness.
pub(crate) fn fresh_key() -> [u8; 4] {
    (RandomState::new().hash_one(()) as u32).to_ne_bytes()
}

/// A masking key that remembers how far it has got.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mask {
    /// Rotated, so that its first byte is for the next byte of payload.
    key: [u8; 4],
}

impl Mask {
    pub(super) fn new(key: [u8; 4]) -> Self {
        Self { key }
    }

    /// Masks or unmasks the next bytes in place.
    pub(super) fn apply(&mut self, bytes: &mut [u8]) {
        let before = bytes.as_ptr().addr().wrapping_neg() % LINE;
        let (before, bytes) = bytes.split_at_mut(before.min(bytes.len()));
        let (words, rest) = bytes.as_chunks_mut::<8>();
        self.apply_bytes(before);
        if !words.is_empty() {
            let [a, b, c, d] = self.key;
            let word = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
            dispatch!(Level::new(), simd => apply_words(simd, words, word));
        }
        // Whole words leave the key where it was.
        self.apply_bytes(rest);
    }

    fn apply_bytes(&mut self, bytes: &mut [u8]) {
        for (byte, key) in bytes.iter_mut().zip(self.key.iter().cycle()) {
            *byte ^= key;
        }
        self.key.rotate_left(bytes.len() % 4);
    }
}

/// Inlined into a function for each set of vector instructions, with which the compiler makes the best of the loop.
#[inline(always)]
fn apply_words<S: Simd>(_: S, words: &mut [[u8; 8]], word: u64) {
    for bytes in words {
        *bytes = (u64::from_ne_bytes(*bytes) ^ word).to_ne_bytes();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_word_loop_equals_the_byte_loop(
            bytes in proptest::collection::vec(any::<u8>(), 0..2000),
            key: [u8; 4],
            cuts in proptest::collection::vec(0usize..2000, 0..5),
        ) {
            let expected: Vec<u8> = bytes.iter().enumerate().map(|(at, byte)| byte ^ key[at % 4]).collect();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let mut actual = bytes;
            let mut mask = Mask::new(key);
            for pair in cuts.windows(2) {
                mask.apply(&mut actual[pair[0]..pair[1]]);
            }
            prop_assert_eq!(actual, expected);
        }
    }
}
