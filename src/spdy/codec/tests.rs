use proptest::prelude::*;

use super::*;
use crate::spdy::frame::{HeaderEncoder, Setting};

/// An event that does not depend on how the input was split.
#[derive(Clone, Debug, PartialEq)]
enum Seen {
    Data { stream: StreamId, bytes: Vec<u8>, fin: bool },
    Other(Event),
}

/// Decodes `pieces`, joining the payload of a stream that comes in several steps.
fn decode<'a>(
    decoder: &mut Decoder,
    pieces: impl IntoIterator<Item = &'a [u8]>,
) -> Result<Vec<Seen>, (Vec<Seen>, Error)> {
    let mut seen = Vec::new();
    let mut continues = false;
    for mut piece in pieces {
        loop {
            match decoder.step(piece) {
                Err(error) => return Err((seen, error)),
                Ok(Step { consumed, event: Event::NeedMore }) => {
                    assert_eq!(consumed, piece.len(), "a step that needs more leaves nothing unread");
                    break;
                }
                Ok(Step { consumed, event: Event::Data { stream, range, fin } }) => {
                    assert_eq!(range.end, consumed);
                    let bytes = piece[range].to_vec();
                    match seen.last_mut() {
                        Some(Seen::Data { bytes: before, fin: before_fin, .. }) if continues => {
                            before.extend(bytes);
                            *before_fin = fin;
                        }
                        _ => seen.push(Seen::Data { stream, bytes, fin }),
                    }
                    piece = &piece[consumed..];
                    continues = !decoder.at_frame_boundary();
                }
                Ok(Step { consumed, event }) => {
                    seen.push(Seen::Other(event));
                    piece = &piece[consumed..];
                }
            }
        }
    }
    Ok(seen)
}

fn decoder() -> Decoder {
    Decoder::new(Limits::default(), HeaderMode::Inflate)
}

fn decode_all(bytes: &[u8]) -> Result<Vec<Seen>, Error> {
    decode(&mut decoder(), [bytes]).map_err(|(_, error)| error)
}

fn id(id: u32) -> StreamId {
    StreamId::new(id).unwrap()
}

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

fn control(kind: u16, flags: u8, body: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x80, 3];
    frame.extend(kind.to_be_bytes());
    frame.extend((u32::from(flags) << 24 | body.len() as u32).to_be_bytes());
    frame.extend(body);
    frame
}

/// What Go's side wrote, both directions.
const GO_CLIENT: &str = "
    80030001 00000028 00000001 00000000 0000 78f9e3c6a7c202a62346703a2b294a4dcc851625aca9a08006000000ffff
    80030001 00000019 00000003 00000000 0000 c22a054ccc29f9a52500000000ffff
    80030006 00000004 00000001
    80030007 00000008 00000005 00000000
    80030003 00000008 00000001 00000005
    00000001 01000000
    00000005 00000002 6869";
const GO_SERVER: &str = "
    80030002 00000014 00000001 78f9e3c6a7c202a6230600000000ffff
    80030002 0000000c 00000003 020100000000ffff";

#[test]
fn what_go_writes_is_read() {
    let seen = decode_all(&hex(GO_CLIENT)).unwrap();
    let stream_types: Vec<_> = seen
        .iter()
        .filter_map(|seen| match seen {
            Seen::Other(Event::SynStream {
                stream, headers, fin: false, unidirectional: false, priority: 0, ..
            }) => Some((stream.get(), headers.get("streamType").unwrap().to_vec())),
            _ => None,
        })
        .collect();
    assert_eq!(stream_types, [(1, b"error".to_vec()), (3, b"stdout".to_vec())]);
    assert_eq!(
        seen[2..],
        [
            Seen::Other(Event::Ping(1)),
            Seen::Other(Event::GoAway { last_good: Some(id(5)), code: GoAwayCode::OK }),
            Seen::Other(Event::Rst { stream: id(1), code: ResetCode::CANCEL }),
            Seen::Data { stream: id(1), bytes: vec![], fin: true },
            Seen::Data { stream: id(5), bytes: b"hi".to_vec(), fin: false },
        ]
    );
    let replies = decode_all(&hex(GO_SERVER)).unwrap();
    assert_eq!(
        replies,
        [1, 3].map(|stream| Seen::Other(Event::SynReply {
            stream: id(stream),
            fin: false,
            headers: Headers::default()
        }))
    );
}

#[test]
fn frames_without_a_header_block_are_written_as_go_writes_them() {
    assert_eq!(frame::ping(1)[..], hex("80030006 00000004 00000001"));
    assert_eq!(frame::goaway(Some(id(5)), GoAwayCode::OK)[..], hex("80030007 00000008 00000005 00000000"));
    assert_eq!(frame::rst(id(1), ResetCode::CANCEL)[..], hex("80030003 00000008 00000001 00000005"));
    assert_eq!(frame::data_head(id(1), 0, true)[..], hex("00000001 01000000"));
    assert_eq!(frame::data_head(id(5), 2, false)[..], hex("00000005 00000002"));
    assert_eq!(frame::window_update(id(1), 9)[..], hex("80030009 00000008 00000001 00000009"));
}

#[test]
fn header_blocks_are_written_stored_and_end_in_a_sync_marker() {
    let mut encoder = HeaderEncoder::new();
    let mut out = Vec::new();
    encoder.syn_reply(id(1), &[], false, &mut out);
    assert_eq!(out, hex("80030002 00000018 00000001 78f9e3c6a7c2 00 0400 fbff 00000000 00 0000 ffff"));
    out.clear();
    encoder.syn_reply(id(3), &[], true, &mut out);
    assert_eq!(out, hex("80030002 01000012 00000003 00 0400 fbff 00000000 00 0000 ffff"));
}

#[test]
fn deflated_and_stored_blocks_share_a_context() {
    let mut bytes = hex(GO_CLIENT);
    let mut encoder = HeaderEncoder::new();
    encoder.syn_stream(id(1), &[], false, &mut Vec::new());
    encoder.syn_stream(id(7), &[("port", "80")], false, &mut bytes);
    let seen = decode_all(&bytes).unwrap();
    let Some(Seen::Other(Event::SynStream { headers, .. })) = seen.last() else { panic!("{seen:?}") };
    assert_eq!(headers.get("port"), Some(&b"80"[..]));
}

#[test]
fn skipped_headers_are_empty_and_cost_nothing() {
    let mut skipping = Decoder::new(Limits::default(), HeaderMode::Skip);
    let seen = decode(&mut skipping, [&*hex(GO_CLIENT)]).unwrap();
    assert_eq!(seen.len(), 7);
    assert!(matches!(&seen[0], Seen::Other(Event::SynStream { headers, .. }) if headers.is_empty()));
    // Garbage is as good as a block.
    decode(&mut skipping, [&*control(frame::SYN_REPLY, 0, &[0, 0, 0, 1, 9, 9, 9])]).unwrap();
}

#[test]
fn frame_boundaries_are_known() {
    let mut decoder = decoder();
    assert!(decoder.at_frame_boundary());
    decode(&mut decoder, [&hex("0000000500")[..]]).unwrap();
    assert!(!decoder.at_frame_boundary());
    decode(&mut decoder, [&hex("00000268")[..]]).unwrap();
    assert!(!decoder.at_frame_boundary());
    decode(&mut decoder, [&hex("69")[..]]).unwrap();
    assert!(decoder.at_frame_boundary());
}

#[test]
fn fin_comes_with_the_last_byte_only() {
    let mut decoder = decoder();
    let step = decoder.step(&hex("00000005 01000002 68")).unwrap();
    assert_eq!(step.event, Event::Data { stream: id(5), range: 8..9, fin: false });
    let step = decoder.step(b"i").unwrap();
    assert_eq!(step.event, Event::Data { stream: id(5), range: 0..1, fin: true });
}

#[test]
fn the_version_is_not_looked_at() {
    assert_eq!(decode_all(&hex("80020006 00000004 00000001")).unwrap(), [Seen::Other(Event::Ping(1))]);
}

#[test]
fn what_spdy_forbids_is_an_error_and_stays_one() {
    let block = hex("78f9e3c6a7c202a6230600000000ffff");
    let with_block = |start: &[u8]| [start, &block].concat();
    for (what, bytes) in [
        ("DATA on stream 0", hex("00000000 00000001 00")),
        ("SYN_STREAM 0", control(1, 0, &with_block(&[0; 10]))),
        ("SYN_REPLY 0", control(2, 0, &with_block(&[0; 4]))),
        ("HEADERS 0", control(8, 0, &with_block(&[0; 4]))),
        ("RST 0", control(3, 0, &hex("00000000 00000005"))),
        ("WINDOW_UPDATE 0", control(9, 0, &hex("00000000 00000005"))),
        ("PING 0", control(6, 0, &[0; 4])),
        ("RST without a reason", control(3, 0, &hex("00000001 00000000"))),
        ("NOOP", control(5, 0, &[])),
        ("type 0", control(0, 0, &[])),
        ("CREDENTIAL", control(10, 0, &[])),
        ("a short SYN_STREAM", control(1, 0, &[1; 9])),
        ("a short SYN_REPLY", control(2, 0, &[1; 3])),
        ("a short RST", control(3, 0, &[1; 7])),
        ("a long RST", control(3, 0, &[1; 9])),
        ("a short SETTINGS", control(4, 0, &[0; 3])),
        ("a short PING", control(6, 0, &[1; 3])),
        ("a long PING", control(6, 0, &[1; 5])),
        ("a long GOAWAY", control(7, 0, &[1; 9])),
        ("a long WINDOW_UPDATE", control(9, 0, &[1; 12])),
        ("PING with flags", control(6, 1, &[1; 4])),
        ("GOAWAY with flags", control(7, 1, &[1; 8])),
        ("WINDOW_UPDATE with flags", control(9, 1, &[1; 8])),
        ("SETTINGS of four billion", control(4, 0, &[0xff; 4])),
        ("SETTINGS that overflow", control(4, 0, &hex("20000000"))),
        ("SETTINGS with a rest", control(4, 0, &[0; 5])),
        ("an empty header block", control(2, 0, &[0, 0, 0, 1])),
        ("a wrong dictionary", control(2, 0, &hex("00000001 78f911111111 020100000000ffff"))),
        ("no dictionary", control(2, 0, &hex("00000001 789c 000400fbff00000000 000000ffff"))),
        ("a broken zlib header", control(2, 0, &hex("00000001 00f9e3c6a7c2 020100000000ffff"))),
        ("a broken block", control(2, 0, &hex("00000001 78f9e3c6a7c2 ffffffffffffffff"))),
        ("an ended compression", control(2, 0, &hex("00000001 78f9e3c6a7c2 010400fbff00000000 9add2f14"))),
        ("a block that is not flushed", control(2, 0, &hex("00000001 78f9e3c6a7c2 000400fbff000000"))),
        ("bytes behind the headers", control(2, 0, &hex("00000001 78f9e3c6a7c2 000500faff0000000000 000000ffff"))),
    ] {
        let mut decoder = decoder();
        let (seen, error) = decode(&mut decoder, [&*bytes]).expect_err(what);
        assert_eq!(seen, [], "{what}");
        assert!(error.is_protocol(), "{what}: {error:?}");
        assert!(decoder.step(&hex("80030006 00000004 00000001")).is_err(), "{what}");
    }
}

fn stored(plain: &[u8]) -> Vec<u8> {
    let mut body = vec![0, 0, 0, 1];
    crate::spdy::zlib::store(plain, true, &mut body);
    control(frame::SYN_REPLY, 0, &body)
}

#[test]
fn hostile_header_counts_and_lengths_end_at_a_limit() {
    assert!(decode_all(&stored(&[0xff; 4])).unwrap_err().is_limit());
    assert!(decode_all(&stored(&257u32.to_be_bytes())).unwrap_err().is_limit());
    assert!(decode_all(&stored(&[&[0, 0, 0, 1][..], &[0xff; 4]].concat())).unwrap_err().is_protocol());
    assert!(decode_all(&stored(&[0; 64 * 1024 + 1])).unwrap_err().is_limit());
}

#[test]
fn a_zip_bomb_stops_at_the_limit() {
    use flate2::{Compress, Compression, FlushCompress};
    let mut compress = Compress::new(Compression::best(), true);
    compress.set_dictionary(&crate::spdy::dictionary::DICTIONARY).unwrap();
    let mut body = Vec::with_capacity(1 << 20);
    body.extend([0, 0, 0, 1]);
    compress.compress_vec(&vec![0; 64 << 20], &mut body, FlushCompress::Sync).unwrap();
    assert!(compress.total_in() == 64 << 20 && body.len() < 100_000);
    let mut decoder = decoder();
    let (_, error) = decode(&mut decoder, [&*control(frame::SYN_REPLY, 0, &body)]).unwrap_err();
    assert!(error.is_limit());
    assert!(decoder.headers.is_none(), "its memory is given back");
}

#[test]
fn settings_are_skipped_whatever_their_length() {
    let mut bytes = Vec::new();
    frame::settings(&[Setting { flags: 1, id: 7, value: 65_536 }; 10_000], &mut bytes);
    bytes.extend(frame::ping(3));
    assert_eq!(decode_all(&bytes).unwrap(), [Seen::Other(Event::Settings), Seen::Other(Event::Ping(3))]);
}

#[test]
fn the_longest_frame_is_read_in_pieces() {
    let mut decoder = decoder();
    let head = frame::data_head(id(1), frame::MAX_FRAME_LEN, true);
    assert_eq!(decode(&mut decoder, [&head[..]]).unwrap(), []);
    let piece = vec![7; 1 << 20];
    let mut left = frame::MAX_FRAME_LEN;
    while left > 0 {
        let here = left.min(piece.len());
        left -= here;
        let step = decoder.step(&piece[..here]).unwrap();
        assert_eq!(step.event, Event::Data { stream: id(1), range: 0..here, fin: left == 0 });
    }
    assert!(decoder.at_frame_boundary());
}

/// A frame to write.
#[derive(Clone, Debug)]
enum Frame {
    Data(StreamId, Vec<u8>, bool),
    SynStream(StreamId, Vec<(String, String)>, bool),
    SynReply(StreamId, Vec<(String, String)>, bool),
    Headers(StreamId, Vec<(String, String)>, bool),
    Rst(StreamId, u32),
    Settings(usize),
    Ping(u32),
    GoAway(u32, u32),
    WindowUpdate(StreamId, u32),
}

impl Frame {
    fn write(&self, encoder: &mut HeaderEncoder, out: &mut Vec<u8>) {
        fn pairs(headers: &[(String, String)]) -> Vec<(&str, &str)> {
            headers.iter().map(|(name, value)| (&**name, &**value)).collect()
        }
        match self {
            Self::Data(stream, bytes, fin) => {
                out.extend(frame::data_head(*stream, bytes.len(), *fin));
                out.extend(bytes);
            }
            Self::SynStream(stream, headers, fin) => encoder.syn_stream(*stream, &pairs(headers), *fin, out),
            Self::SynReply(stream, headers, fin) => encoder.syn_reply(*stream, &pairs(headers), *fin, out),
            Self::Headers(stream, headers, fin) => encoder.headers(*stream, &pairs(headers), *fin, out),
            Self::Rst(stream, code) => out.extend(frame::rst(*stream, ResetCode(*code))),
            Self::Settings(count) => frame::settings(&vec![Setting { flags: 0, id: 4, value: 9 }; *count], out),
            Self::Ping(id) => out.extend(frame::ping(*id)),
            Self::GoAway(last, code) => out.extend(frame::goaway(StreamId::new(*last), GoAwayCode(*code))),
            Self::WindowUpdate(stream, delta) => out.extend(frame::window_update(*stream, *delta)),
        }
    }

    fn is(&self, seen: &Seen) -> bool {
        fn same(ours: &[(String, String)], theirs: &Headers) -> bool {
            theirs.iter().map(|(n, v)| (n.to_vec(), v.to_vec())).collect::<Vec<_>>()
                == ours.iter().map(|(n, v)| (n.clone().into_bytes(), v.clone().into_bytes())).collect::<Vec<_>>()
        }
        match (self, seen) {
            (Self::Data(a, b, c), Seen::Data { stream, bytes, fin }) => (a, b, c) == (stream, bytes, fin),
            (Self::SynStream(a, b, c), Seen::Other(Event::SynStream { stream, headers, fin, .. }))
            | (Self::SynReply(a, b, c), Seen::Other(Event::SynReply { stream, headers, fin }))
            | (Self::Headers(a, b, c), Seen::Other(Event::Headers { stream, headers, fin })) => {
                (a, c) == (stream, fin) && same(b, headers)
            }
            (Self::Rst(a, b), Seen::Other(Event::Rst { stream, code })) => (*a, *b) == (*stream, code.0),
            (Self::Settings(_), Seen::Other(Event::Settings)) => true,
            (Self::Ping(a), Seen::Other(Event::Ping(id))) => a == id,
            (Self::GoAway(a, b), Seen::Other(Event::GoAway { last_good, code })) => {
                (StreamId::new(*a), *b) == (*last_good, code.0)
            }
            (Self::WindowUpdate(a, b), Seen::Other(Event::WindowUpdate { stream, delta })) => (a, b) == (stream, delta),
            _ => false,
        }
    }
}

fn any_frame() -> impl Strategy<Value = Frame> {
    let stream = (1..=frame::MAX_STREAM_ID).prop_map(id);
    let headers = || prop::collection::vec(("[a-z0-9]{1,9}x", ".{0,20}"), 0..5);
    prop_oneof![
        (stream.clone(), prop::collection::vec(any::<u8>(), 0..40), any::<bool>())
            .prop_map(|(a, b, c)| Frame::Data(a, b, c)),
        (stream.clone(), headers(), any::<bool>()).prop_map(|(a, b, c)| Frame::SynStream(a, b, c)),
        (stream.clone(), headers(), any::<bool>()).prop_map(|(a, b, c)| Frame::SynReply(a, b, c)),
        (stream.clone(), headers(), any::<bool>()).prop_map(|(a, b, c)| Frame::Headers(a, b, c)),
        (stream.clone(), 1..u32::MAX).prop_map(|(a, b)| Frame::Rst(a, b)),
        (0..5usize).prop_map(Frame::Settings),
        (1..u32::MAX).prop_map(Frame::Ping),
        (0..=frame::MAX_STREAM_ID, any::<u32>()).prop_map(|(a, b)| Frame::GoAway(a, b)),
        (stream, 0..=frame::MAX_STREAM_ID).prop_map(|(a, b)| Frame::WindowUpdate(a, b)),
    ]
}

proptest! {
    #[test]
    fn what_is_written_is_read(frames in prop::collection::vec(any_frame(), 1..20)) {
        let (mut encoder, mut bytes) = (HeaderEncoder::new(), Vec::new());
        for frame in &frames {
            frame.write(&mut encoder, &mut bytes);
        }
        let seen = decode_all(&bytes).unwrap();
        prop_assert_eq!(seen.len(), frames.len());
        for (frame, seen) in frames.iter().zip(&seen) {
            prop_assert!(frame.is(seen), "{:?} became {:?}", frame, seen);
        }
    }

    #[test]
    fn every_split_gives_the_same_events(
        frames in prop::collection::vec(any_frame(), 1..6),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
    ) {
        let (mut encoder, mut bytes) = (HeaderEncoder::new(), Vec::new());
        for frame in &frames {
            frame.write(&mut encoder, &mut bytes);
        }
        let whole = decode_all(&bytes).unwrap();
        // One cut, anywhere.
        for cut in 0..=bytes.len() {
            prop_assert_eq!(&decode(&mut decoder(), [&bytes[..cut], &bytes[cut..]]).unwrap(), &whole);
        }
        // Byte by byte.
        prop_assert_eq!(&decode(&mut decoder(), bytes.chunks(1)).unwrap(), &whole);
        // Many cuts.
        let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        let pieces = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]);
        prop_assert_eq!(&decode(&mut decoder(), pieces).unwrap(), &whole);
    }

    #[test]
    fn garbage_and_its_splits_give_the_same_events_or_the_same_error(
        start in prop::sample::select(vec![GO_CLIENT, GO_SERVER, ""]),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        rest in prop::collection::vec(any::<u8>(), 0..64),
    ) {
        let mut bytes = hex(start);
        bytes.extend(rest);
        for (at, value) in changes {
            if !bytes.is_empty() {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
        }
        let outcome = |pieces: Vec<&[u8]>| match decode(&mut decoder(), pieces) {
            Ok(seen) => (seen, None),
            Err((seen, error)) => (seen, Some(error.is_limit())),
        };
        let whole = outcome(vec![&bytes]);
        prop_assert_eq!(outcome(bytes.chunks(1).collect()), whole);
    }
}
