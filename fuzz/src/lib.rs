//! What the fuzz targets share: how they read their input, and what they need of peers.

use tokio::sync::oneshot;
use tower_kube_streaming::{
    upgrade::{Cause, End, Io, Pending, Report},
    websocket::{Head, Opcode},
};

/// An input, read from the front. Behind its end everything is zero.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    /// Nothing is left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next byte.
    pub fn byte(&mut self) -> u8 {
        let Some((byte, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *byte
    }

    /// The next `len` bytes, or as many as there are.
    pub fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (bytes, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        bytes
    }
}

/// Cuts `bytes` into pieces: `seed` says where. The same every time; small pieces are as likely as large ones.
pub fn pieces(mut bytes: &[u8], seed: u8) -> impl Iterator<Item = &[u8]> {
    let mut state = u32::from(seed) | 0x9e37_0000;
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        // xorshift32
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        let len = match (seed, state >> 28) {
            // Byte by byte is the hardest way.
            (0, _) | (_, 0..8) => 1,
            (_, size) => 1 + (state as usize >> 8) % (1 << (size - 7)),
        };
        let (piece, rest) = bytes.split_at(len.min(bytes.len()));
        bytes = rest;
        Some(piece)
    })
}

/// The mask of the clients' frames.
pub const MASK: [u8; 4] = [1, 2, 3, 4];

/// A frame of a client's.
pub fn masked(opcode: Opcode, fin: bool, payload: &[u8]) -> Vec<u8> {
    let mut out = Head::new(opcode, payload.len(), Some(MASK)).to_vec();
    if !fin {
        out[0] &= 0x7f;
    }
    out.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, key)| byte ^ key));
    out
}

/// The side of an upgrade that a peer holds.
pub async fn end_of(pending: Pending) -> Io {
    let (give, take) = oneshot::channel();
    pending.spawn(move |io, _| async move {
        let _ = give.send(io);
        Report::new(End::Carried, Cause::Finished, "")
    });
    take.await.expect("a side in this process has a connection")
}
