//! Keys that leave an attached terminal, and what runs there as it is.

use std::{
    collections::VecDeque,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, ReadBuf};
use tokio_util::sync::CancellationToken;

/// Those of `attach` if none are named, as Docker has them.
pub(crate) const DEFAULT: &str = "ctrl-p,ctrl-q";
/// Bytes that are taken from the keyboard at once.
const CHUNK: usize = 1024;

/// The bytes of keys such as `ctrl-p,ctrl-q` or `~,.`. There is at least one.
pub(crate) fn sequence(keys: &str) -> Result<Vec<u8>, String> {
    let code = |key: &str| match (key.strip_prefix("ctrl-").unwrap_or_default().as_bytes(), key.as_bytes()) {
        ([letter @ (b'@' | b'a'..=b'z' | b'['..=b'_')], _) => Ok(letter & 0x1f),
        (_, [byte]) => Ok(*byte),
        (_, b"DEL") => Ok(0x7f),
        _ => Err(format!("could not bind detach keys: Unknown character: '{key}'")),
    };
    keys.split(',').map(code).collect()
}

/// A keyboard. Its end comes with the sequence, and `left` says so.
pub(crate) struct Keyboard<R> {
    inner: R,
    sequence: Vec<u8>,
    /// How much of the sequence was typed, and is held back: it may be completed.
    held: usize,
    typed: VecDeque<u8>,
    left: CancellationToken,
}

impl<R> Keyboard<R> {
    /// `sequence`: at least one byte.
    pub(crate) fn new(inner: R, sequence: Vec<u8>, left: CancellationToken) -> Self {
        Self { inner, sequence, held: 0, typed: VecDeque::new(), left }
    }

    fn is_complete(&self) -> bool {
        self.held == self.sequence.len()
    }

    fn key(&mut self, byte: u8) {
        if byte != self.sequence[self.held] {
            self.typed.extend(&self.sequence[..self.held]);
            self.held = 0;
        }
        if byte == self.sequence[self.held] {
            self.held += 1;
        } else {
            self.typed.push_back(byte);
        }
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for Keyboard<R> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if !this.typed.is_empty() {
                let ready = this.typed.len().min(buf.remaining());
                this.typed.drain(..ready).for_each(|byte| buf.put_slice(&[byte]));
                return Poll::Ready(Ok(()));
            }
            if this.is_complete() {
                this.left.cancel();
                return Poll::Ready(Ok(()));
            }
            let mut chunk = [0; CHUNK];
            let mut read = ReadBuf::new(&mut chunk);
            ready!(Pin::new(&mut this.inner).poll_read(cx, &mut read))?;
            if read.filled().is_empty() {
                this.typed.extend(&this.sequence[..this.held]);
                this.held = 0;
                if this.typed.is_empty() {
                    return Poll::Ready(Ok(()));
                }
            }
            for &byte in read.filled() {
                this.key(byte);
                if this.is_complete() {
                    break;
                }
            }
        }
    }
}
