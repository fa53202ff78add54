//! A connection's bytes are the same frames wherever they are cut, and the frames that a plain reading of the heads
//! finds.
//!
//! Input: 1 byte that says where to cut, then the connection.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tower_kube_streaming::spdy::{
    codec::{Decoder, Event, HeaderMode, Limits},
    frame::{HEAD_LEN, MAX_STREAM_ID},
};
use tower_kube_streaming_fuzz::{Input, pieces};

/// What a connection said.
#[derive(Debug, PartialEq)]
enum Said {
    /// DATA of one stream up to FIN, or to another frame; frames of one stream run together.
    Data(u32, Vec<u8>, bool),
    Frame(Event),
    /// Which of two wrongs comes first may depend on the cut.
    Broken,
    /// How it stands at the end.
    Rest {
        at_boundary: bool,
    },
}

fn decode<'a>(pieces: impl Iterator<Item = &'a [u8]>, mode: HeaderMode) -> Vec<Said> {
    let mut decoder = Decoder::new(Limits::default(), mode);
    let mut said = Vec::new();
    for piece in pieces {
        let mut rest = piece;
        loop {
            let step = match decoder.step(rest) {
                Ok(step) => step,
                Err(error) => {
                    let again = decoder.step(&[0; 16]).expect_err("broken once is broken for good");
                    assert_eq!(again.to_string(), error.to_string());
                    said.push(Said::Broken);
                    return said;
                }
            };
            match step.event {
                Event::NeedMore => {
                    assert_eq!(step.consumed, rest.len(), "all bytes are taken");
                    break;
                }
                Event::Data { stream, range, fin } => {
                    assert!(range.end <= step.consumed, "payload is consumed with its event");
                    let payload = &rest[range];
                    match said.last_mut() {
                        Some(Said::Data(of, bytes, ended @ false)) if *of == stream.get() => {
                            bytes.extend_from_slice(payload);
                            *ended = fin;
                        }
                        _ => said.push(Said::Data(stream.get(), payload.to_vec(), fin)),
                    }
                }
                event => said.push(Said::Frame(event)),
            }
            rest = &rest[step.consumed..];
        }
    }
    said.push(Said::Rest { at_boundary: decoder.at_frame_boundary() });
    said
}

/// Reads the heads and nothing else, and holds every frame that was found against its own.
fn compare_with_heads(bytes: &[u8], said: &[Said]) {
    let mut rest = bytes;
    for said in said {
        let head = |rest: &[u8]| {
            let word = |at: usize| rest.get(at..at + 4).map(|word| u32::from_be_bytes(word.try_into().unwrap()));
            let (first, second) = (word(0)?, word(4)?);
            Some((first, (second >> 24) as u8, (second & 0x00ff_ffff) as usize))
        };
        match said {
            Said::Data(stream, payload, fin) => {
                let mut expected = Vec::new();
                let mut ended = false;
                // One run may be many frames; it ends at FIN, at another frame, or where the bytes do.
                while !ended
                    && let Some((first, flags, len)) = head(rest)
                    && first == *stream
                {
                    let end = rest.len().min(HEAD_LEN + len);
                    expected.extend_from_slice(&rest[HEAD_LEN..end]);
                    ended = flags & 1 != 0 && end == HEAD_LEN + len;
                    rest = &rest[end..];
                }
                assert_eq!((payload, *fin), (&expected, ended));
            }
            Said::Frame(event) => {
                let (first, flags, len) = head(rest).expect("a frame has a head");
                let body = &rest[HEAD_LEN..][..len];
                let word = |at: usize| u32::from_be_bytes(body[at..at + 4].try_into().unwrap());
                let id = |at: usize| word(at) & MAX_STREAM_ID;
                let end = flags & 1 != 0;
                let kind = match event {
                    Event::SynStream { stream, associated, priority, fin, unidirectional, .. } => {
                        assert_eq!((stream.get(), *associated, *priority), (id(0), id(4), body[8] >> 5));
                        assert_eq!((*fin, *unidirectional), (end, flags & 2 != 0));
                        1
                    }
                    Event::SynReply { stream, fin, .. } => {
                        assert_eq!((stream.get(), *fin), (id(0), end));
                        2
                    }
                    Event::Rst { stream, code } => {
                        assert_eq!((stream.get(), code.0), (id(0), word(4)));
                        3
                    }
                    Event::Settings => 4,
                    Event::Ping(ping) => {
                        assert_eq!(*ping, word(0));
                        6
                    }
                    Event::GoAway { last_good, code } => {
                        assert_eq!((last_good.map_or(0, |id| id.get()), code.0), (id(0), word(4)));
                        7
                    }
                    Event::Headers { stream, fin, .. } => {
                        assert_eq!((stream.get(), *fin), (id(0), end));
                        8
                    }
                    Event::WindowUpdate { stream, delta } => {
                        assert_eq!((stream.get(), *delta), (id(0), id(4)));
                        9
                    }
                    Event::Data { .. } | Event::NeedMore => unreachable!("not a frame"),
                };
                assert_eq!(first & 0x8000_ffff, 0x8000_0000 | kind);
                rest = &rest[HEAD_LEN + len..];
            }
            Said::Broken => {}
            Said::Rest { at_boundary } => assert!(!at_boundary || rest.is_empty()),
        }
    }
}

fuzz_target!(|input: &[u8]| {
    let mut input = Input(input);
    let seed = input.byte();
    let connection = input.0;
    for mode in [HeaderMode::Inflate, HeaderMode::Skip] {
        let whole = decode(std::iter::once(connection), mode);
        let cut = decode(pieces(connection, seed), mode);
        assert_eq!(whole, cut, "it matters where the bytes are cut");
        compare_with_heads(connection, &whole);
    }
});
