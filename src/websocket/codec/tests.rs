use proptest::prelude::*;

use super::*;
use crate::websocket::{ControlFrame, Head};

const KEY: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// What a peer said, however it arrived.
#[derive(Debug, PartialEq, Eq, Default)]
struct Heard {
    messages: Vec<(bool, Vec<u8>)>,
    control: Vec<Event>,
    error: Option<Error>,
}

/// Decodes `wire` in reads of the given sizes, over and over.
fn hear(role: Role, wire: &[u8], reads: &[usize]) -> Heard {
    let mut decoder = Decoder::new(role, Limits::default());
    let mut heard = Heard::default();
    let mut message: Option<(bool, Vec<u8>)> = None;
    let mut rest = wire.to_vec();
    let mut sizes = reads.iter().cycle();
    while !rest.is_empty() {
        let size = (*sizes.next().expect("a size")).clamp(1, rest.len());
        let mut read: Vec<u8> = rest.drain(..size).collect();
        let mut at = 0;
        while at < read.len() {
            let step = match decoder.step(&mut read[at..]) {
                Ok(step) => step,
                Err(error) => {
                    assert_eq!(decoder.step(&mut []), Err(error), "an error stays");
                    heard.error = Some(error);
                    return heard;
                }
            };
            assert!(step.consumed > 0);
            match step.event {
                Some(Event::Data(data)) => {
                    assert_eq!(data.start, message.is_none());
                    let (text, bytes) = message.get_or_insert((data.text, Vec::new()));
                    assert_eq!(*text, data.text);
                    bytes.extend_from_slice(&read[at..][data.range]);
                    if data.end {
                        heard.messages.extend(message.take());
                    }
                }
                Some(control) => heard.control.push(control),
                None => {}
            }
            at += step.consumed;
        }
    }
    assert_eq!(decoder.step(&mut []), Ok(Step { consumed: 0, event: None }));
    heard
}

fn frame(fin: bool, opcode: Opcode, payload: &[u8], mask: Option<[u8; 4]>) -> Vec<u8> {
    let mut wire = Head::new(opcode, payload.len(), mask).to_vec();
    if !fin {
        wire[0] &= !FIN;
    }
    let at = wire.len();
    wire.extend_from_slice(payload);
    if let Some(key) = mask {
        Mask::new(key).apply(&mut wire[at..]);
    }
    wire
}

fn error_of(wire: &[u8]) -> Option<Error> {
    let whole = hear(Role::Server, wire, &[usize::MAX]).error;
    assert_eq!(hear(Role::Server, wire, &[1]).error, whole);
    whole
}

#[derive(Debug, Clone)]
enum Said {
    Message { text: bool, fragments: Vec<Vec<u8>>, ping_inside: bool },
    Ping(Vec<u8>),
    Pong(Vec<u8>),
}

fn said() -> impl Strategy<Value = Said> {
    let bytes = || proptest::collection::vec(any::<u8>(), 0..300);
    let small = || proptest::collection::vec(any::<u8>(), 0..=MAX_CONTROL);
    prop_oneof![
        4 => (any::<bool>(), proptest::collection::vec(bytes(), 1..4), any::<bool>())
            .prop_map(|(text, fragments, ping_inside)| Said::Message { text, fragments, ping_inside }),
        1 => small().prop_map(Said::Ping),
        1 => small().prop_map(Said::Pong),
    ]
}

proptest! {
    #[test]
    fn what_was_encoded_is_decoded_in_both_roles_however_it_is_cut(
        all in proptest::collection::vec(said(), 0..8),
        server: bool,
        reads in proptest::collection::vec(1usize..400, 1..20),
    ) {
        let (role, mask) = if server { (Role::Server, Some(KEY)) } else { (Role::Client, None) };
        let mut wire = Vec::new();
        let mut expected = Heard::default();
        for said in all {
            match said {
                Said::Message { text, fragments, ping_inside } => {
                    let last = fragments.len() - 1;
                    for (at, fragment) in fragments.iter().enumerate() {
                        let first = if text { Opcode::Text } else { Opcode::Binary };
                        let opcode = if at == 0 { first } else { Opcode::Continuation };
                        wire.extend(frame(at == last, opcode, fragment, mask));
                        if ping_inside && at == 0 {
                            wire.extend_from_slice(&ControlFrame::ping(&Payload::truncated(b"in"), mask));
                            expected.control.push(Event::Ping(Payload::truncated(b"in")));
                        }
                    }
                    expected.messages.push((text, fragments.concat()));
                }
                Said::Ping(payload) => {
                    let payload = Payload::truncated(&payload);
                    wire.extend_from_slice(&ControlFrame::ping(&payload, mask));
                    expected.control.push(Event::Ping(payload));
                }
                Said::Pong(payload) => {
                    let payload = Payload::truncated(&payload);
                    wire.extend_from_slice(&ControlFrame::pong(&payload, mask));
                    expected.control.push(Event::Pong(payload));
                }
            }
        }
        prop_assert_eq!(&hear(role, &wire, &reads), &expected);
        prop_assert_eq!(&hear(role, &wire, &[usize::MAX]), &expected);
        prop_assert_eq!(&hear(role, &wire, &[1]), &expected);
    }

    #[test]
    fn garbage_gives_the_same_verdict_however_it_is_cut(
        wire in proptest::collection::vec(any::<u8>(), 0..200),
        first in prop_oneof![Just(0x81u8), Just(0x02), Just(0x88), any::<u8>()],
        reads in proptest::collection::vec(1usize..50, 1..10),
    ) {
        let wire = [&[first][..], &wire].concat();
        for role in [Role::Server, Role::Client] {
            prop_assert_eq!(hear(role, &wire, &reads), hear(role, &wire, &[usize::MAX]));
        }
    }
}

#[test]
fn lengths_of_all_three_forms_are_read_back() {
    for len in [0, 1, 125, 126, 127, 65_535, 65_536, 70_000] {
        let wire = frame(true, Opcode::Binary, &vec![7; len], Some(KEY));
        let heard = hear(Role::Server, &wire, &[1000]);
        assert_eq!(heard.messages, [(false, vec![7; len])]);
    }
}

#[test]
fn a_close_is_read_and_what_follows_is_not() {
    let mut wire = ControlFrame::close(1000, "bye", Some(KEY)).to_vec();
    wire.extend_from_slice(b"\xff\xff garbage");
    let heard = hear(Role::Server, &wire, &[3]);
    let [Event::Close(close)] = &heard.control[..] else { panic!("{heard:?}") };
    assert_eq!((close.code, close.reason(), heard.error), (Some(1000), "bye", None));

    let heard = hear(Role::Server, &frame(true, Opcode::Close, b"", Some(KEY)), &[1]);
    let [Event::Close(close)] = &heard.control[..] else { panic!("{heard:?}") };
    assert_eq!(close.code, None);
}

#[test]
fn a_long_close_reason_is_cut_at_a_character() {
    let frame = ControlFrame::close(1011, &"é".repeat(100), None);
    let heard = hear(Role::Client, &frame, &[50]);
    let [Event::Close(close)] = &heard.control[..] else { panic!("{heard:?}") };
    assert_eq!(close.reason(), "é".repeat(61));
}

#[test]
fn each_violation_has_its_error_and_close_code() {
    let masked = Some(KEY);
    let long = |length: u64| [&[0x82, 0xff][..], &length.to_be_bytes(), &KEY].concat();
    let cases: Vec<(Vec<u8>, Error, u16)> = vec![
        (vec![0xc2, 0x80], Error::ReservedBits, 1002),
        (vec![0x92, 0x80], Error::ReservedBits, 1002),
        (vec![0x83, 0x80], Error::ReservedOpcode, 1002),
        (vec![0x8b, 0x80], Error::ReservedOpcode, 1002),
        (frame(true, Opcode::Binary, b"x", None), Error::NotMasked, 1002),
        (vec![0x82, 0xfe, 0, 125, 0, 0, 0, 0], Error::LengthNotMinimal, 1002),
        (long(65_535), Error::LengthNotMinimal, 1002),
        (frame(false, Opcode::Ping, b"", masked), Error::ControlFragmented, 1002),
        (vec![0x89, 0xfe], Error::ControlTooLong, 1002),
        (frame(true, Opcode::Continuation, b"x", masked), Error::UnexpectedContinuation, 1002),
        (
            [frame(false, Opcode::Text, b"x", masked), frame(true, Opcode::Text, b"y", masked)].concat(),
            Error::ExpectedContinuation,
            1002,
        ),
        (long((32 << 20) + 1), Error::MessageTooLong, 1009),
        (long(u64::MAX), Error::MessageTooLong, 1009),
        (frame(true, Opcode::Close, b"x", masked), Error::CloseTruncated, 1002),
        (frame(true, Opcode::Close, b"\xff\xfe", masked), Error::CloseCode, 1002),
        (frame(true, Opcode::Close, &1005u16.to_be_bytes(), masked), Error::CloseCode, 1002),
        (frame(true, Opcode::Close, b"\x03\xe8\xff", masked), Error::CloseReason, 1007),
    ];
    for (wire, error, code) in cases {
        assert_eq!(error_of(&wire), Some(error), "{wire:x?}");
        assert_eq!(error.close_code(), code);
    }
    let unmasking = hear(Role::Client, &frame(true, Opcode::Binary, b"x", masked), &[9]);
    assert_eq!(unmasking.error, Some(Error::Masked));
}

#[test]
fn a_message_of_the_longest_length_passes_and_one_byte_more_in_fragments_does_not() {
    let limits = Limits { message: 1000, fragments: 4 };
    let mut decoder = Decoder::new(Role::Server, limits);
    assert!(decoder.step(&mut frame(true, Opcode::Binary, &[0; 1000], Some(KEY))).is_ok());
    assert!(decoder.step(&mut frame(false, Opcode::Binary, &[0; 999], Some(KEY))).is_ok());
    let mut rest = frame(true, Opcode::Continuation, &[0; 2], Some(KEY));
    assert_eq!(decoder.step(&mut rest), Err(Error::MessageTooLong));
}

#[test]
fn a_hundred_thousand_one_byte_fragments_are_refused_at_the_limit() {
    let mut wire = frame(false, Opcode::Binary, b"x", Some(KEY));
    let next = frame(false, Opcode::Continuation, b"x", Some(KEY));
    for _ in 0..100_000 {
        wire.extend_from_slice(&next);
    }
    let mut decoder = Decoder::new(Role::Server, Limits::default());
    let mut at = 0;
    let error = loop {
        match decoder.step(&mut wire[at..]) {
            Ok(step) => at += step.consumed,
            Err(error) => break error,
        }
    };
    assert_eq!(error, Error::TooManyFragments);
    assert_eq!(at, 1024 * next.len());
    // Empty ones count as well.
    let mut wire = frame(false, Opcode::Binary, b"", Some(KEY));
    for _ in 0..1024 {
        wire.extend(frame(false, Opcode::Continuation, b"", Some(KEY)));
    }
    assert_eq!(error_of(&wire), Some(Error::TooManyFragments));
}

#[test]
fn the_boundary_of_messages_is_known() {
    let mut decoder = Decoder::new(Role::Server, Limits::default());
    assert!(decoder.at_message_boundary());
    let mut wire = frame(true, Opcode::Binary, b"xy", Some(KEY));
    let end = wire.len();
    for at in 0..end {
        let _ = decoder.step(&mut wire[at..=at]).expect("valid");
        assert_eq!(decoder.at_message_boundary(), at == end - 1, "byte {at}");
    }
    let _ = decoder.step(&mut frame(false, Opcode::Binary, b"x", Some(KEY))).expect("valid");
    assert!(!decoder.at_message_boundary());
}
