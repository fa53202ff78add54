//! One zlib context a direction: an inflater for what comes in, and a writer of stored blocks that needs no state.

use std::cell::RefCell;

use flate2::{Decompress, FlushDecompress, Status};

use super::{
    dictionary::{DICTIONARY, ID},
    error::Error,
};

/// How much is inflated at a time.
const CHUNK: usize = 1024;

/// The longest payload of a stored DEFLATE block.
const MAX_STORED: usize = u16::MAX as usize;

/// Contexts that one thread keeps for its next connections.
const KEPT: usize = 4;

thread_local! {
    static POOL: RefCell<Vec<Inflater>> = const { RefCell::new(Vec::new()) };
}

/// Inflates header blocks, which share one context for a connection's whole life. About 47 KB.
///
/// Many are needed for a moment only, so they come from a pool: freed at once they leave holes behind, which the small
/// and lasting parts of sessions break up (20 kB a session, `scripts/bench`).
#[derive(Debug)]
pub(crate) struct Inflater {
    inner: Decompress,
    primed: bool,
}

impl Inflater {
    /// At the beginning of a connection.
    pub(crate) fn borrow() -> Self {
        let pooled = POOL.try_with(|pool| pool.borrow_mut().pop()).ok().flatten();
        pooled.unwrap_or_else(|| Self { inner: Decompress::new(true), primed: false })
    }

    /// For this thread's next connection; nothing of this one is left in it.
    pub(crate) fn give_back(mut self) {
        self.inner.reset(true);
        self.primed = false;
        // A thread that is ending has no pool any more.
        let _ = POOL.try_with(|pool| {
            let mut pool = pool.borrow_mut();
            if pool.len() < KEPT {
                pool.push(self);
            }
        });
    }

    /// Inflates all of `input` to the end of `out`, which may not grow beyond `max` bytes.
    pub(crate) fn inflate(&mut self, mut input: &[u8], out: &mut Vec<u8>, max: usize) -> Result<(), Error> {
        let mut chunk = [0; CHUNK];
        loop {
            let (consumed, produced) = (self.inner.total_in(), self.inner.total_out());
            let result = self.inner.decompress(input, &mut chunk, FlushDecompress::Sync);
            // Both differences are at most the lengths of the slices given.
            let consumed = (self.inner.total_in() - consumed) as usize;
            let produced = (self.inner.total_out() - produced) as usize;
            input = &input[consumed..];
            match result {
                Ok(Status::Ok | Status::BufError) => {}
                Ok(Status::StreamEnd) => return Err(Error::protocol("the header compression was ended")),
                Err(error) => match error.needs_dictionary() {
                    // The state is checked first: zlib-rs takes a dictionary only when it asks for one.
                    Some(ID) if !self.primed => {
                        self.inner
                            .set_dictionary(&DICTIONARY)
                            .map_err(|_| Error::protocol("the dictionary was refused"))?;
                        self.primed = true;
                        continue;
                    }
                    Some(_) => return Err(Error::protocol("header block with another dictionary")),
                    None => return Err(Error::protocol("corrupt header compression")),
                },
            }
            if out.len() + produced > max {
                return Err(Error::limit("header block too long"));
            }
            if produced > 0 && !self.primed {
                return Err(Error::protocol("header block without the dictionary"));
            }
            out.extend_from_slice(&chunk[..produced]);
            // A full chunk may have left more behind even when the input is used up.
            if input.is_empty() && produced < CHUNK {
                return Ok(());
            }
            if consumed == 0 && produced == 0 {
                return Err(Error::protocol("corrupt header compression"));
            }
        }
    }
}

/// Writes `plain` as stored blocks, behind the zlib header if `first`. The empty stored block at the end is required:
/// Go's reader hands data out only at the sync marker.
pub(crate) fn store(plain: &[u8], first: bool, out: &mut Vec<u8>) {
    if first {
        // Deflate with a 32 KiB window; best compression, so that the bytes look like everybody's; FDICT set.
        out.extend_from_slice(&[0x78, 0xf9]);
        out.extend_from_slice(&ID.to_be_bytes());
    }
    for block in plain.chunks(MAX_STORED) {
        stored_block(block, out);
    }
    stored_block(&[], out);
}

fn stored_block(block: &[u8], out: &mut Vec<u8>) {
    let len = block.len() as u16; // at most `MAX_STORED`
    out.push(0);
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(&(!len).to_le_bytes());
    out.extend_from_slice(block);
}

/// The length of what [`store`] writes.
pub(crate) fn stored_len(plain: usize, first: bool) -> usize {
    plain + 5 * (plain.div_ceil(MAX_STORED) + 1) + if first { 6 } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_used_inflater_begins_anew() {
        let mut stored = Vec::new();
        store(b"plain", true, &mut stored);
        for _ in 0..2 {
            let mut inflater = Inflater::borrow();
            let mut plain = Vec::new();
            inflater.inflate(&stored, &mut plain, 100).unwrap();
            assert_eq!(plain, b"plain");
            inflater.give_back();
        }
    }

    #[test]
    fn an_inflater_given_back_behind_an_error_begins_anew() {
        let mut stored = Vec::new();
        store(b"plain", true, &mut stored);
        let mut inflater = Inflater::borrow();
        inflater.inflate(&[0x78, 0xf9, 1, 2, 3, 4], &mut Vec::new(), 100).unwrap_err();
        inflater.give_back();
        let mut plain = Vec::new();
        Inflater::borrow().inflate(&stored, &mut plain, 100).unwrap();
        assert_eq!(plain, b"plain");
    }
}
