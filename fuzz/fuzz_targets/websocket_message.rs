//! A connection's bytes are the same messages, and the same channels, wherever they are cut; and what was read can be
//! written and reads back the same.
//!
//! Input: 1 byte of flags, 1 byte that says where to cut, then the connection.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tower_kube_streaming::websocket::{
    Close, ControlFrame, Decoder, Error, Event, Head, Limits, Opcode, Role,
    channel::{ChannelEvent, Demux, Encoding, RESIZE},
};
use tower_kube_streaming_fuzz::{Input, pieces};

const CLIENT: u8 = 1;
const BASE64: u8 = 2;
const CLOSE_SIGNALS: u8 = 4;

#[derive(Clone, Debug, PartialEq)]
enum Said {
    /// One message, or as much of it as came before a control frame.
    Message {
        text: bool,
        start: bool,
        payload: Vec<u8>,
        end: bool,
    },
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(Close),
    Broken(Error),
    Rest {
        at_boundary: bool,
    },
}

/// What came on the channels, with the number of its message.
#[derive(Debug, PartialEq)]
enum Channel {
    Data(usize, u8, Vec<u8>),
    Closed(usize, u8),
    Broken(usize, Error),
}

impl Channel {
    fn message(&self) -> usize {
        let (Self::Data(message, ..) | Self::Closed(message, _) | Self::Broken(message, _)) = self;
        *message
    }
}

fn decode<'a>(pieces: impl Iterator<Item = &'a [u8]>, flags: u8) -> (Vec<Said>, Vec<Channel>) {
    let role = if flags & CLIENT != 0 { Role::Client } else { Role::Server };
    let encoding = if flags & BASE64 != 0 { Encoding::Base64 } else { Encoding::Binary };
    let limits = Limits { message: 4096, fragments: 8 };
    let mut decoder = Decoder::new(role, limits);
    let mut demux = Some(Demux::new(encoding, flags & CLOSE_SIGNALS != 0));
    let (mut said, mut channels) = (Vec::new(), Vec::new());
    let mut message = 0;
    for piece in pieces {
        let mut buf = piece.to_vec();
        let mut at = 0;
        while at < buf.len() {
            let step = match decoder.step(&mut buf[at..]) {
                Ok(step) => step,
                Err(error) => {
                    assert_eq!(decoder.step(&mut [0; 16]), Err(error), "broken once is broken for good");
                    said.push(Said::Broken(error));
                    return (said, channels);
                }
            };
            assert!(step.consumed > 0, "every step goes on");
            match step.event {
                None => {}
                Some(Event::Ping(payload)) => said.push(Said::Ping(payload.to_vec())),
                Some(Event::Pong(payload)) => said.push(Said::Pong(payload.to_vec())),
                Some(Event::Close(close)) => said.push(Said::Close(close)),
                Some(Event::Data(mut data)) => {
                    assert!(data.range.end <= step.consumed);
                    data.range = data.range.start + at..data.range.end + at;
                    let piece = &buf[data.range.clone()];
                    match said.last_mut() {
                        Some(Said::Message { payload, end: end @ false, text, .. }) => {
                            assert!(!data.start && *text == data.text);
                            payload.extend_from_slice(piece);
                            *end = data.end;
                        }
                        _ => said.push(Said::Message {
                            text: data.text,
                            start: data.start,
                            payload: piece.to_vec(),
                            end: data.end,
                        }),
                    }
                    message += usize::from(data.start);
                    match demux.as_mut().map_or(Ok(None), |demux| demux.data(&data, &mut buf)) {
                        Ok(None) => {}
                        Ok(Some(ChannelEvent::Closed(id))) => {
                            assert!(id <= RESIZE);
                            channels.push(Channel::Closed(message, id));
                        }
                        Ok(Some(ChannelEvent::Data { id, range })) => {
                            assert!(id <= RESIZE && !range.is_empty());
                            assert!(data.range.start <= range.start && range.end <= data.range.end);
                            match channels.last_mut() {
                                Some(Channel::Data(of, same, payload)) if (*of, *same) == (message, id) => {
                                    payload.extend_from_slice(&buf[range]);
                                }
                                _ => channels.push(Channel::Data(message, id, buf[range].to_vec())),
                            }
                        }
                        Err(error) => {
                            demux = None;
                            channels.push(Channel::Broken(message, error));
                        }
                    }
                }
            }
            at += step.consumed;
        }
    }
    said.push(Said::Rest { at_boundary: decoder.at_message_boundary() });
    (said, channels)
}

/// Writes what was said for the other role to read.
fn encode(said: &[Said], mask: Option<[u8; 4]>) -> Vec<u8> {
    let mut out = Vec::new();
    for said in said {
        match said {
            Said::Message { text, payload, .. } => {
                let opcode = if *text { Opcode::Text } else { Opcode::Binary };
                out.extend_from_slice(&Head::new(opcode, payload.len(), mask));
                let key = mask.unwrap_or_default();
                out.extend(payload.iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key));
            }
            Said::Ping(payload) => out.extend_from_slice(&ControlFrame::ping(&control(payload), mask)),
            Said::Pong(payload) => out.extend_from_slice(&ControlFrame::pong(&control(payload), mask)),
            Said::Close(close) => match close.code {
                Some(code) => out.extend_from_slice(&ControlFrame::close(code, close.reason(), mask)),
                None => out.extend_from_slice(&Head::new(Opcode::Close, 0, mask)),
            },
            Said::Broken(_) | Said::Rest { .. } => {}
        }
    }
    out
}

fn control(payload: &[u8]) -> tower_kube_streaming::websocket::Payload {
    assert!(payload.len() <= 125);
    tower_kube_streaming::websocket::Payload::truncated(payload)
}

fuzz_target!(|input: &[u8]| {
    let mut input = Input(input);
    let (flags, seed) = (input.byte(), input.byte());
    let (whole, channels) = decode(std::iter::once(input.0), flags);
    let (cut, cut_channels) = decode(pieces(input.0, seed), flags);
    assert_eq!(whole, cut, "it matters where the bytes are cut");
    // Malformed base64 is an error only if a part of it was delivered, and that depends on the cut.
    match cut_channels.last() {
        Some(Channel::Broken(message, Error::Base64)) => {
            let before = |channels: Vec<Channel>| -> Vec<Channel> {
                channels.into_iter().filter(|channel| channel.message() < *message).collect()
            };
            let message_before = before(channels);
            let count = message_before.len();
            assert_eq!(message_before[..], cut_channels[..count]);
        }
        _ => assert_eq!(channels, cut_channels, "it matters where the messages are cut"),
    }
    // Whole messages only: nothing here writes fragments.
    let mut messages: Vec<Said> = whole
        .into_iter()
        .filter(|said| !matches!(said, Said::Message { start, end, .. } if !(*start && *end)))
        .collect();
    messages.retain(|said| !matches!(said, Said::Broken(_) | Said::Rest { .. }));
    for (flags, mask) in [(0, Some([seed, 1, 2, 3])), (CLIENT, None)] {
        let (again, _) = decode(std::iter::once(&encode(&messages, mask)[..]), flags);
        assert_eq!(again.split_last(), Some((&Said::Rest { at_boundary: true }, &messages[..])));
    }
});
