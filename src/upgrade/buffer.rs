//! Buffers that exist only while bytes move.

use std::{
    cell::RefCell,
    ops::{Deref, DerefMut},
};

/// Bytes moved by one read. Half of it costs a fifth more CPU, in system calls (`scripts/bench`).
pub(crate) const BUFFER: usize = 64 * 1024;

/// The longest message that is written, with what stands before its payload: many clients take no more.
pub(crate) const LONGEST_MESSAGE: usize = 32 * 1024;

/// Buffers one thread keeps for its next poll: one for each direction, and some that wait for a slow peer.
const KEPT: usize = 8;

thread_local! {
    static POOL: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// A buffer of [`BUFFER`] bytes, borrowed from this thread and given back when dropped.
///
/// An idle session holds none: it borrows one for the length of a poll, and keeps it only while a peer does not take
/// what was read. The contents are left over from other sessions; only what was read into it may be looked at.
pub(crate) struct Buffer(Option<Box<[u8]>>);

impl Buffer {
    pub(crate) fn borrow() -> Self {
        let pooled = POOL.with_borrow_mut(Vec::pop);
        Self(Some(pooled.unwrap_or_else(|| vec![0; BUFFER].into_boxed_slice())))
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let Some(buffer) = self.0.take() else { return };
        // A thread that is ending has no pool any more: then the buffer is freed.
        let _ = POOL.try_with(|pool| {
            let mut pool = pool.borrow_mut();
            if pool.len() < KEPT {
                pool.push(buffer);
            }
        });
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0.as_deref().unwrap_or_default()
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.0.as_deref_mut().unwrap_or_default()
    }
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Buffer")
    }
}
