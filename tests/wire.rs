//! The golden bytes of `tests/wire` are whole: a file that was cut or mistyped would weaken every test that reads it.

use std::{fs, path::Path};

use base64::{Engine, engine::general_purpose::STANDARD};
use sha1::{Digest, Sha1};

/// A file of `tests/wire`, taken apart.
struct Capture {
    name: String,
    request: Vec<String>,
    response: Vec<String>,
    frames: Vec<Vec<u8>>,
}

impl Capture {
    fn header<'a>(head: &'a [String], name: &str) -> Option<&'a str> {
        head.iter().skip(1).find_map(|line| {
            let (found, value) = line.split_once(": ")?;
            found.eq_ignore_ascii_case(name).then_some(value)
        })
    }
}

fn captures() -> Vec<Capture> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/wire");
    let mut captures: Vec<Capture> = fs::read_dir(dir)
        .expect("tests/wire can be listed")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "txt"))
        .map(|path| {
            let name = path.file_name().expect("a file has a name").to_string_lossy().into_owned();
            parse(name, &fs::read_to_string(&path).expect("a capture is text"))
        })
        .collect();
    captures.sort_by(|a, b| a.name.cmp(&b.name));
    captures
}

fn parse(name: String, text: &str) -> Capture {
    let mut capture = Capture { name, request: Vec::new(), response: Vec::new(), frames: Vec::new() };
    for line in text.lines() {
        match line.split_once(' ').unwrap_or((line, "")) {
            ("#", _) => {}
            (">", head) => capture.request.push(head.to_owned()),
            ("<", head) => capture.response.push(head.to_owned()),
            (">x" | "<x", hex) => capture.frames.push(bytes(hex)),
            _ => panic!("{}: unknown line {line:?}", capture.name),
        }
    }
    capture
}

fn bytes(hex: &str) -> Vec<u8> {
    assert!(hex.len().is_multiple_of(2), "{hex:?} ends within a byte");
    let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex digits");
    (0..hex.len()).step_by(2).map(byte).collect()
}

#[test]
fn every_client_of_the_matrix_was_captured() {
    let names: Vec<String> = captures().into_iter().map(|capture| capture.name).collect();
    for version in ["1.20", "1.28", "1.29", "1.30", "1.36", "1.37"] {
        assert!(names.iter().any(|name| name.starts_with(&format!("kubectl-{version}-"))), "{version}: {names:?}");
    }
}

#[test]
fn heads_are_an_upgrade_and_its_101() {
    for Capture { name, request, response, .. } in captures() {
        assert!(request.len() > 3 && request.last().is_some_and(String::is_empty), "{name}: {request:?}");
        assert!(response.len() > 3 && response.last().is_some_and(String::is_empty), "{name}: {response:?}");
        assert!(request[0].ends_with(" HTTP/1.1"), "{name}: {}", request[0]);
        assert_eq!(response[0], "HTTP/1.1 101 Switching Protocols", "{name}");
        let asked = Capture::header(&request, "upgrade").expect("an upgrade");
        assert_eq!(Capture::header(&response, "upgrade"), Some(asked), "{name}");
        if asked == "websocket" {
            let key = Capture::header(&request, "sec-websocket-key").expect("a key");
            let accept = STANDARD.encode(Sha1::digest(format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11")));
            assert_eq!(Capture::header(&response, "sec-websocket-accept"), Some(accept.as_str()), "{name}");
        }
    }
}

#[test]
fn every_line_of_bytes_is_one_whole_frame() {
    for Capture { name, request, frames, .. } in captures() {
        let websocket = Capture::header(&request, "upgrade") == Some("websocket");
        for frame in frames {
            let length = if websocket {
                let mask = if frame[1] & 0x80 == 0 { 0 } else { 4 };
                2 + mask + usize::from(frame[1] & 0x7F)
            } else {
                8 + u32::from_be_bytes([0, frame[5], frame[6], frame[7]]) as usize
            };
            assert_eq!(frame.len(), length, "{name}: {frame:02x?}");
        }
    }
}
