//! The client's mask (RFC 6455, 5.3), applied piece by piece.

use std::hash::{BuildHasher, RandomState};

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
        let [a, b, c, d] = self.key;
        let word = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
        let (words, rest) = bytes.as_chunks_mut::<8>();
        for chunk in words {
            *chunk = (u64::from_ne_bytes(*chunk) ^ word).to_ne_bytes();
        }
        for (byte, key) in rest.iter_mut().zip(self.key.iter().cycle()) {
            *byte ^= key;
        }
        // Whole words leave the key where it was.
        let turned = rest.len() % 4;
        self.key.rotate_left(turned);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_word_loop_equals_the_byte_loop(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
            key: [u8; 4],
            cuts in proptest::collection::vec(0usize..200, 0..5),
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
