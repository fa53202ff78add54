//! Header blocks: inflated within their limit wherever they are cut, and read as a plain reading reads them.
//!
//! Input: 1 byte of flags, 1 byte that says where to cut, then a block: compressed, or plain to be stored.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tower_kube_streaming::spdy::{
    Error, StreamId,
    codec::{Decoder, Event, HeaderMode, Limits},
    frame::HeaderEncoder,
    header_block::Headers,
};
use tower_kube_streaming_fuzz::{Input, pieces};

const COMPRESSED: u8 = 1;
const REPLY: u8 = 2;

const MAX_BYTES: usize = 2048;
const MAX_HEADERS: usize = 16;

type Pairs = Vec<(Vec<u8>, Vec<u8>)>;

fn frame(reply: bool, block: &[u8]) -> Vec<u8> {
    let fixed: &[u8] = if reply { &[0, 0, 0, 1] } else { &[0, 0, 0, 1, 0, 0, 0, 0, 0, 0] };
    let mut frame = vec![0x80, 3, 0, if reply { 2 } else { 1 }, 0];
    frame.extend_from_slice(&((fixed.len() + block.len()) as u32).to_be_bytes()[1..]);
    frame.extend_from_slice(fixed);
    frame.extend_from_slice(block);
    frame
}

fn decode<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Result<Headers, Error> {
    let limits = Limits::default().header_bytes(MAX_BYTES).headers(MAX_HEADERS);
    let mut decoder = Decoder::new(limits, HeaderMode::Inflate);
    for piece in pieces {
        match decoder.step(piece)?.event {
            Event::NeedMore => {}
            Event::SynStream { headers, .. } | Event::SynReply { headers, .. } => {
                assert!(decoder.at_frame_boundary());
                return Ok(headers);
            }
            other => panic!("a frame of headers became {other:?}"),
        }
    }
    panic!("a whole frame is no frame");
}

/// SPDY/3, 2.6.10, read the plain way.
fn read(plain: &[u8], reply: bool) -> Option<Pairs> {
    fn string<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
        let len = u32::from_be_bytes(rest.get(..4)?.try_into().ok()?) as usize;
        let string = rest.get(4..)?.get(..len)?;
        *rest = &rest[4 + len..];
        Some(string)
    }
    let count = u32::from_be_bytes(plain.get(..4)?.try_into().ok()?) as usize;
    if count > MAX_HEADERS || plain.len() > MAX_BYTES {
        return None;
    }
    let mut rest = &plain[4..];
    let mut pairs = Vec::new();
    for _ in 0..count {
        let (name, value) = (string(&mut rest)?, string(&mut rest)?);
        let forbidden: [&[u8]; 5] = [
            b"connection",
            b"keep-alive",
            b"proxy-connection",
            b"transfer-encoding",
            if reply { b"-" } else { b"host" },
        ];
        if name.iter().any(u8::is_ascii_uppercase) || name != b"-" && forbidden.contains(&name) {
            return None;
        }
        pairs.push((name.to_vec(), value.to_vec()));
    }
    rest.is_empty().then_some(pairs)
}

fn pairs(headers: &Headers) -> Pairs {
    headers.iter().map(|(name, value)| (name.to_vec(), value.to_vec())).collect()
}

fuzz_target!(|input: &[u8]| {
    let mut input = Input(input);
    let (flags, seed) = (input.byte(), input.byte());
    let reply = flags & REPLY != 0;
    let block = if flags & COMPRESSED != 0 {
        input.0.to_vec()
    } else {
        // zlib's head with the dictionary's id, then stored blocks.
        let mut encoded = Vec::new();
        HeaderEncoder::new().syn_stream(StreamId::new(1).unwrap(), &[], false, &mut encoded);
        let mut block = encoded[18..24].to_vec();
        for stored in input.0.chunks(u16::MAX.into()).chain([&[][..]]) {
            let len = stored.len() as u16;
            block.push(0);
            block.extend_from_slice(&len.to_le_bytes());
            block.extend_from_slice(&(!len).to_le_bytes());
            block.extend_from_slice(stored);
        }
        block
    };
    let frame = frame(reply, &block);
    let whole = decode(std::iter::once(&frame[..]));
    let cut = decode(pieces(&frame, seed));
    match (&whole, &cut) {
        (Ok(whole), Ok(cut)) => assert_eq!(pairs(whole), pairs(cut)),
        // Which of two wrongs comes first may depend on the cut.
        (Err(_), Err(_)) => {}
        _ => panic!("it matters where the bytes are cut: {whole:?} and {cut:?}"),
    }
    if flags & COMPRESSED == 0 {
        let found = whole.as_ref().ok().map(pairs);
        assert_eq!(found, read(input.0, reply), "a plain reading says otherwise");
    }
    let Ok(headers) = whole else { return };
    let found = pairs(&headers);
    assert!(found.len() <= MAX_HEADERS && found.iter().map(|(n, v)| n.len() + v.len() + 8).sum::<usize>() <= MAX_BYTES);
    for (name, _) in &found {
        let Ok(name) = std::str::from_utf8(name) else { continue };
        assert!(headers.get(name).is_some() && headers.get(&name.to_uppercase()).is_some() | !name.is_ascii());
    }
    // What was read can be written, and reads back the same.
    let text: Option<Vec<(&str, &str)>> = found
        .iter()
        .map(|(name, value)| Some((std::str::from_utf8(name).ok()?, std::str::from_utf8(value).ok()?)))
        .collect();
    if let Some(text) = text {
        let mut encoded = Vec::new();
        let mut encoder = HeaderEncoder::new();
        match reply {
            true => encoder.syn_reply(StreamId::new(1).unwrap(), &text, false, &mut encoded),
            false => encoder.syn_stream(StreamId::new(1).unwrap(), &text, false, &mut encoded),
        }
        assert_eq!(pairs(&decode(std::iter::once(&encoded[..])).expect("ours")), found);
    }
});
