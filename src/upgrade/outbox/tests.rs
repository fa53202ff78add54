use std::{
    io,
    pin::Pin,
    task::{Context, Poll, Waker},
};

use proptest::prelude::*;
use tokio::io::AsyncWrite;

use super::*;
use crate::upgrade::buffer::BUFFER;

/// Takes `room` bytes for each write until `budget` is used up, then is Pending.
#[derive(Default)]
struct Sink {
    taken: Vec<u8>,
    room: usize,
    budget: usize,
    flushes: usize,
    writes: usize,
}

impl AsyncWrite for Sink {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let whole: usize = bufs.iter().map(|buf| buf.len()).sum();
        assert!(whole > 0, "an empty write");
        let size = whole.min(self.room).min(self.budget);
        if size == 0 {
            return Poll::Pending;
        }
        self.taken.extend(bufs.iter().flat_map(|buf| buf.iter()).take(size));
        self.budget -= size;
        self.writes += 1;
        Poll::Ready(Ok(size))
    }

    fn poll_flush(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.flushes += 1;
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

fn send(outbox: &mut Outbox, sink: &mut Sink) -> Poll<io::Result<()>> {
    outbox.poll_send(&mut Context::from_waker(Waker::noop()), sink)
}

/// A frame of one lane: `<lane>:<length>[!]`, padded so that it looks like no payload.
fn head(lane: u8, length: usize, fin: bool) -> Vec<u8> {
    format!("<{lane}:{length:05}{}>", if fin { '!' } else { '.' }).into_bytes()
}

fn fill(outbox: &mut Outbox, pieces: &[(u8, &[u8], bool)], gap: usize) {
    let mut buffer = Buffer::borrow();
    let mut at = 0;
    for (lane, bytes, fin) in pieces {
        at += gap;
        buffer[at..at + bytes.len()].copy_from_slice(bytes);
        outbox.batch().push(&mut buffer, *lane, at..at + bytes.len(), *fin);
        at += bytes.len();
    }
    outbox.batch().write_heads(head);
    outbox.keep(buffer);
}

#[test]
fn neighbours_of_one_lane_become_one_frame_and_fin_ends_it() {
    let mut outbox = Outbox::default();
    let long = [b'x'; 1000];
    fill(
        &mut outbox,
        &[(1, b"ab", false), (1, b"cd", false), (1, &long, false), (2, b"e", false), (1, b"f", true), (1, b"g", false)],
        6,
    );
    let mut sink = Sink { room: usize::MAX, budget: usize::MAX, ..Sink::default() };
    assert!(send(&mut outbox, &mut sink).is_ready());
    let expected = [&b"<1:01004.>abcd"[..], &long, b"<2:00001.>e<1:00001!>f<1:00001.>g"].concat();
    assert_eq!(String::from_utf8(sink.taken).unwrap(), String::from_utf8(expected).unwrap());
    assert!(outbox.is_empty() && !outbox.has_data());
    assert_eq!((sink.writes, sink.flushes), (1, 1));
}

#[test]
fn an_idle_outbox_writes_and_flushes_nothing() {
    let mut sink = Sink { room: 10, budget: 10, ..Sink::default() };
    assert!(send(&mut Outbox::default(), &mut sink).is_ready());
    assert_eq!((sink.writes, sink.flushes), (0, 0));
}

#[test]
fn urgent_control_goes_before_a_batch_or_behind_it_but_never_inside() {
    for taken in 0..40 {
        let mut outbox = Outbox::default();
        fill(&mut outbox, &[(1, b"first", false), (2, b"second", false)], 3);
        outbox.push_tail(b"[close]");
        let mut sink = Sink { room: usize::MAX, budget: taken, ..Sink::default() };
        let _ = send(&mut outbox, &mut sink);
        outbox.push_front(b"[pong]");
        sink.budget = usize::MAX;
        assert!(send(&mut outbox, &mut sink).is_ready());
        let text = String::from_utf8(sink.taken).unwrap();
        let data = "<1:00005.>first<2:00006.>second";
        let expected = match taken {
            0 => format!("[pong]{data}[close]"),
            taken if taken <= data.len() => format!("{data}[pong][close]"),
            // The close has begun: nothing comes inside it either.
            _ => format!("{data}[close][pong]"),
        };
        assert_eq!(text, expected, "{taken}");
    }
}

#[test]
fn control_that_is_never_all_taken_does_not_grow() {
    let mut outbox = Outbox::default();
    let mut sink = Sink { room: usize::MAX, ..Sink::default() };
    for _ in 0..10_000 {
        outbox.push_front(&[7; 100]);
        sink.budget = 99 + usize::from(outbox.front_len() > 1000);
        let _ = send(&mut outbox, &mut sink);
        assert!(outbox.front_len() < 11_000);
    }
    assert!(outbox.front.bytes.capacity() < 64 * 1024, "{}", outbox.front.bytes.capacity());
}

#[test]
fn a_write_of_nothing_is_an_error_and_not_a_loop() {
    struct Zero;
    impl AsyncWrite for Zero {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
            Poll::Ready(Ok(0))
        }
        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }
    let mut outbox = Outbox::default();
    outbox.push_front(b"x");
    let result = outbox.poll_send(&mut Context::from_waker(Waker::noop()), &mut Zero);
    assert!(matches!(result, Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::WriteZero));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

    #[test]
    fn whatever_is_taken_at_a_time_the_bytes_are_the_same(
        pieces in prop::collection::vec((0u8..3, prop_oneof![0usize..4, 500usize..530, 1usize..2000, 20_000usize..50_000], any::<bool>()), 0..200),
        gap in 0usize..20,
        room in 20usize..5000,
    ) {
        let mut at = 0;
        let pieces: Vec<(u8, Vec<u8>, bool)> = pieces
            .into_iter()
            .take_while(|(_, length, _)| { at += gap + length; at < BUFFER })
            .map(|(lane, length, fin)| (lane, vec![b'a' + lane; length], fin))
            .collect();
        let borrowed: Vec<_> = pieces.iter().map(|(lane, bytes, fin)| (*lane, &bytes[..], *fin)).collect();
        // Frames by the rule: neighbours of one lane are one, until FIN, and then cut where clients want it.
        let mut frames: Vec<(u8, Vec<u8>, bool)> = Vec::new();
        for (lane, bytes, fin) in &borrowed {
            match frames.last_mut() {
                Some((last, before, ended)) if last == lane && !*ended => {
                    before.extend_from_slice(bytes);
                    *ended = *fin;
                }
                _ => frames.push((*lane, bytes.to_vec(), *fin)),
            }
        }
        let mut expected = b"[front]".to_vec();
        for (lane, mut bytes, fin) in frames {
            while bytes.len() > MAX_FRAME {
                let rest = bytes.split_off(MAX_FRAME);
                expected.extend(head(lane, MAX_FRAME, false));
                expected.extend(bytes);
                bytes = rest;
            }
            expected.extend(head(lane, bytes.len(), fin));
            expected.extend(bytes);
        }
        expected.extend(b"[tail]");

        let mut outbox = Outbox::default();
        fill(&mut outbox, &borrowed, gap);
        outbox.push_front(b"[front]");
        outbox.push_tail(b"[tail]");
        let mut sink = Sink { room, ..Sink::default() };
        loop {
            sink.budget = room / 2 + 1;
            if send(&mut outbox, &mut sink).is_ready() {
                break;
            }
        }
        prop_assert!(sink.taken == expected);
        prop_assert!(outbox.is_empty());
        prop_assert!(outbox.batch.buffer.is_none());
    }
}
