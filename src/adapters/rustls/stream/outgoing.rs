//! What is encrypted and not sent.

use std::ops::Range;

use rustls::{
    Error,
    unbuffered::{EncodeError, EncryptError, InsufficientSizeError},
};

/// Why rustls did not write.
pub(super) enum Refused {
    /// It takes so many bytes.
    Room(usize),
    /// It will not.
    Never,
}

impl From<EncodeError> for Refused {
    fn from(error: EncodeError) -> Self {
        match error {
            EncodeError::InsufficientSize(InsufficientSizeError { required_size }) => Self::Room(required_size),
            EncodeError::AlreadyEncoded => Self::Never,
        }
    }
}

impl From<EncryptError> for Refused {
    fn from(error: EncryptError) -> Self {
        match error {
            EncryptError::InsufficientSize(InsufficientSizeError { required_size }) => Self::Room(required_size),
            EncryptError::EncryptExhausted => Self::Never,
        }
    }
}

/// A buffer that is not cleared each time that rustls writes into it.
#[derive(Default)]
pub(super) struct Outgoing {
    pub(super) bytes: Vec<u8>,
    /// What is to be sent.
    pub(super) range: Range<usize>,
}

impl Outgoing {
    /// Has rustls write behind what is there, into `guess` bytes or as many as it wants.
    pub(super) fn append(
        &mut self,
        guess: usize,
        mut write: impl FnMut(&mut [u8]) -> Result<usize, Refused>,
    ) -> Result<(), Error> {
        let mut written = write(self.room(guess));
        if let Err(Refused::Room(size)) = written {
            written = write(self.room(size));
        }
        self.range.end += written.map_err(|_| Error::EncryptError)?;
        Ok(())
    }

    fn room(&mut self, size: usize) -> &mut [u8] {
        let end = self.range.end + size;
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        &mut self.bytes[self.range.end..end]
    }
}
