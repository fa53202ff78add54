//! What is written to the socket at once: heads and control frames, and payload where it lies.

use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::AsyncWrite;

/// Payload up to here is copied behind its head: a segment of its own costs more.
const SHORT: usize = 1024;

/// Segments that are handed to the system at once; a batch seldom has more than four.
const SLICES: usize = 16;

/// Frames, in order.
#[derive(Debug, Default)]
pub(super) struct Batch {
    segments: VecDeque<Segment>,
    /// Bytes of the first segment that are out.
    written: usize,
    len: usize,
}

#[derive(Debug)]
enum Segment {
    /// May grow.
    Frames(Vec<u8>),
    /// As a stream was given it.
    Payload(Vec<u8>),
}

impl Segment {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Frames(bytes) | Self::Payload(bytes) => bytes,
        }
    }
}

impl Batch {
    /// Bytes that are not out.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Appends what `write` does: whole frames, or a head.
    pub(super) fn frames(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        let mut frames = match self.segments.pop_back() {
            Some(Segment::Frames(frames)) => frames,
            other => {
                self.segments.extend(other);
                Vec::new()
            }
        };
        let before = frames.len();
        write(&mut frames);
        self.len += frames.len() - before;
        if !frames.is_empty() {
            self.segments.push_back(Segment::Frames(frames));
        }
    }

    /// Appends the payload of the head before it.
    pub(super) fn payload(&mut self, payload: Vec<u8>) {
        if payload.len() <= SHORT {
            return self.frames(|frames| frames.extend_from_slice(&payload));
        }
        self.len += payload.len();
        self.segments.push_back(Segment::Payload(payload));
    }

    /// Writes once, and forgets what is out.
    pub(super) fn poll_write<Io>(&mut self, io: Pin<&mut Io>, cx: &mut Context<'_>) -> Poll<io::Result<()>>
    where
        Io: AsyncWrite,
    {
        let mut slices = [IoSlice::new(&[]); SLICES];
        let mut count = 0;
        for (slice, segment) in slices.iter_mut().zip(&self.segments) {
            let written = if count == 0 { self.written } else { 0 };
            *slice = IoSlice::new(&segment.bytes()[written..]);
            count += 1;
        }
        let mut out = match &slices[..count] {
            [one] => ready!(io.poll_write(cx, one))?,
            several => ready!(io.poll_write_vectored(cx, several))?,
        };
        if out == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.len -= out;
        while let Some(first) = self.segments.front() {
            let left = first.bytes().len() - self.written;
            if out < left {
                self.written += out;
                break;
            }
            out -= left;
            self.written = 0;
            self.segments.pop_front();
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, task::Waker};

    use tokio::io::{AsyncReadExt, duplex};

    use super::*;

    #[tokio::test]
    async fn everything_comes_in_order_however_little_the_socket_takes() {
        for room in [1, 7, 4096] {
            let (mut near, mut far) = duplex(room);
            let mut batch = Batch::default();
            let mut wanted = Vec::new();
            for index in 0..40_u8 {
                batch.frames(|frames| frames.extend_from_slice(&[index; 8]));
                wanted.extend_from_slice(&[index; 8]);
                let payload = vec![index; usize::from(index) * 100];
                wanted.extend_from_slice(&payload);
                batch.payload(payload);
            }
            assert_eq!(batch.len(), wanted.len());
            let write = async {
                while !batch.is_empty() {
                    poll_fn(|cx| batch.poll_write(Pin::new(&mut near), cx)).await.unwrap();
                }
                drop(near);
            };
            let mut got = Vec::new();
            tokio::join!(write, async { far.read_to_end(&mut got).await.unwrap() });
            assert!(got == wanted);
        }
    }

    #[test]
    fn a_batch_that_is_out_holds_nothing() {
        let mut batch = Batch::default();
        batch.frames(|_| ());
        assert!(batch.segments.is_empty());
        batch.payload(vec![0; 2 * SHORT]);
        let mut sink = tokio::io::sink();
        let poll = batch.poll_write(Pin::new(&mut sink), &mut Context::from_waker(Waker::noop()));
        assert!(poll.is_ready() && batch.is_empty() && batch.segments.is_empty());
    }
}
