use ::base64::{Engine as _, prelude::BASE64_STANDARD};
use proptest::prelude::*;

use super::*;

/// Bytes of each channel, and the channels that were closed.
#[derive(Debug, Default, PartialEq, Eq)]
struct Heard {
    channels: [Vec<u8>; 5],
    closed: Vec<u8>,
}

fn data(demux: &mut Demux, piece: &[u8], start: bool, end: bool, heard: &mut Heard) -> Result<(), Error> {
    // The piece lies somewhere in a buffer.
    let mut buf = [b"head", piece, b"tail"].concat();
    let data = Data { range: 4..4 + piece.len(), start, end, text: false };
    match demux.data(&data, &mut buf)? {
        Some(ChannelEvent::Data { id, range }) => {
            assert!(!range.is_empty() && range.end <= 4 + piece.len());
            heard.channels[usize::from(id)].extend_from_slice(&buf[range]);
        }
        Some(ChannelEvent::Closed(id)) => heard.closed.push(id),
        None => {}
    }
    assert_eq!((&buf[..4], &buf[buf.len() - 4..]), (&b"head"[..], &b"tail"[..]));
    Ok(())
}

/// Every message cut at the given place, and an empty piece at its end.
fn hear(encoding: Encoding, v5: bool, messages: &[&[u8]], cut: usize) -> Result<Heard, Error> {
    let mut demux = Demux::new(encoding, v5);
    let mut heard = Heard::default();
    for message in messages {
        let (a, b) = message.split_at(cut.min(message.len()));
        data(&mut demux, a, true, false, &mut heard)?;
        data(&mut demux, b, false, false, &mut heard)?;
        data(&mut demux, b"", false, true, &mut heard)?;
    }
    Ok(heard)
}

#[test]
fn channels_are_told_apart_and_the_rest_is_ignored() {
    let messages: &[&[u8]] = &[b"\x00ab", b"", b"\x00", b"\x04{}", b"\x05no", b"\x00c", b"\xff\x00"];
    for cut in 0..4 {
        let heard = hear(Encoding::Binary, false, messages, cut).expect("valid");
        assert_eq!((&heard.channels[0][..], &heard.channels[4][..]), (&b"abc"[..], &b"{}"[..]));
        assert!(heard.closed.is_empty(), "before v5, 255 is an unknown channel");
    }
}

#[test]
fn a_channel_is_closed_once_and_data_after_it_is_ignored() {
    let messages: &[&[u8]] = &[b"\x00ab", b"\xff\x00", b"\x00late", b"\xff\x00", b"\x04x", b"\xff\x02"];
    for cut in 0..4 {
        let heard = hear(Encoding::Binary, true, messages, cut).expect("valid");
        assert_eq!(heard.channels[0], b"ab");
        assert_eq!(heard.channels[4], b"x");
        assert_eq!(heard.closed, [0, 2]);
    }
}

#[test]
fn malformed_close_signals_are_errors() {
    for signal in [&b"\xff"[..], b"\xff\x00\x00", b"\xff\x05", b"\xff\xff"] {
        for cut in 0..=signal.len() {
            assert_eq!(hear(Encoding::Binary, true, &[signal], cut), Err(Error::ChannelClose), "{signal:x?}");
        }
    }
}

#[test]
fn a_malformed_base64_message_is_ignored_and_the_next_is_read() {
    let messages: &[&[u8]] = &[b"0YWI=", b"0!!", b"0", b"", b"9YWI=", b"0Yw==", b"4e30="];
    for cut in 0..2 {
        let heard = hear(Encoding::Base64, false, messages, cut).expect("valid");
        assert_eq!((&heard.channels[0][..], &heard.channels[4][..]), (&b"abc"[..], &b"{}"[..]));
    }
}

#[test]
fn base64_that_breaks_after_a_part_of_it_was_delivered_is_an_error() {
    assert_eq!(hear(Encoding::Base64, false, &[b"0YWJj!"], 5), Err(Error::Base64));
    assert_eq!(Error::Base64.close_code(), 1007);
}

proptest! {
    #[test]
    fn every_cut_of_every_message_gives_the_same_channels(
        messages in proptest::collection::vec((0u8..5, proptest::collection::vec(any::<u8>(), 0..40)), 0..6),
        cut in 0usize..60,
    ) {
        let mut expected = Heard::default();
        let mut binary = Vec::new();
        let mut text = Vec::new();
        for (id, payload) in &messages {
            expected.channels[usize::from(*id)].extend_from_slice(payload);
            binary.push([&[*id][..], payload].concat());
            text.push(format!("{id}{}", BASE64_STANDARD.encode(payload)).into_bytes());
        }
        let binary: Vec<&[u8]> = binary.iter().map(Vec::as_slice).collect();
        let text: Vec<&[u8]> = text.iter().map(Vec::as_slice).collect();
        prop_assert_eq!(&hear(Encoding::Binary, true, &binary, cut), &Ok(expected));
        prop_assert_eq!(hear(Encoding::Base64, false, &text, cut), hear(Encoding::Binary, true, &binary, cut));
    }
}

#[test]
fn heads_carry_the_channel() {
    assert_eq!(&head(Encoding::Binary, STDOUT, 3)[..], b"\x82\x04\x01");
    assert_eq!(&head(Encoding::Base64, ERROR, 0)[..], b"\x81\x013");
    assert_eq!(&head(Encoding::Binary, STDERR, 32_768)[..], b"\x82\x7e\x80\x01\x02");
    assert_eq!(&head(Encoding::Binary, STDERR, 65_535)[..], b"\x82\x7f\0\0\0\0\0\x01\0\0\x02");
}
