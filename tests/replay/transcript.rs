//! The recordings in `tests/transcripts/`, whose README.md says how they are written.

use std::{fs, iter, path::Path, str};

use super::{said::Said, wire::Streams};

/// Where the recordings lie.
pub(crate) fn folder() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/transcripts"))
}

/// One recorded case.
#[derive(Clone, Debug)]
pub(crate) struct Transcript {
    /// `SERVER/CASE`, which is its path without `.txt`.
    pub(crate) name: String,
    /// The server's `--feature-gates`; empty for the defaults.
    pub(crate) gates: String,
    pub(crate) steps: Vec<Step>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    Client,
    ApiServer,
    Kubelet,
}

/// One thing that was sent.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub(crate) from: Who,
    pub(crate) to: Who,
    pub(crate) what: What,
}

#[derive(Clone, Debug)]
pub(crate) enum What {
    Http(Http),
    WebSocket(Frame),
    Spdy(Spdy),
}

/// A request or an answer.
#[derive(Clone, Debug, Default)]
pub(crate) struct Http {
    /// The request line, or the status line.
    pub(crate) line: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

/// A WebSocket frame.
#[derive(Clone, Debug)]
pub(crate) struct Frame {
    pub(crate) opcode: u8,
    /// Whether it ends its message.
    pub(crate) fin: bool,
    pub(crate) masked: bool,
    pub(crate) payload: Vec<u8>,
}

/// A SPDY frame, as far as a kubelet needs to know it.
#[derive(Clone, Debug)]
pub(crate) enum Spdy {
    SynStream(u32),
    SynReply(u32),
    Data { stream: u32, flags: u8, payload: Vec<u8> },
}

pub(crate) const OPCODES: [(&str, u8); 6] =
    [("CONT", 0), ("TEXT", 1), ("BINARY", 2), ("CLOSE", 8), ("PING", 9), ("PONG", 10)];

/// All recordings of a server, by name.
pub(crate) fn load(server: &str) -> Vec<Transcript> {
    let entries = fs::read_dir(folder().join(server)).expect("there are recordings");
    let mut files: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
    files.sort();
    let case = |file: &std::path::PathBuf| {
        let name = file.file_stem().and_then(|name| name.to_str()).expect("names are text");
        let text = fs::read_to_string(file).expect("recordings are text");
        parse(format!("{server}/{name}"), &text).unwrap_or_else(|why| panic!("{server}/{name}: {why}"))
    };
    files.iter().map(case).collect()
}

fn parse(name: String, text: &str) -> Result<Transcript, String> {
    let mut all = Transcript { name, gates: String::new(), steps: Vec::new() };
    for line in text.lines() {
        parse_line(&mut all, line).ok_or_else(|| format!("cannot be read: {line}"))?;
    }
    Ok(all)
}

fn parse_line(all: &mut Transcript, line: &str) -> Option<()> {
    if let Some(gates) = line.strip_prefix("gates: ") {
        gates.clone_into(&mut all.gates);
        return Some(());
    }
    if let Some(head) = line.strip_prefix("| ") {
        let What::Http(http) = &mut all.steps.last_mut()?.what else { return None };
        if http.line.is_empty() {
            head.clone_into(&mut http.line);
        } else {
            let (name, value) = head.split_once(':')?;
            http.headers.push((name.to_owned(), value.trim().to_owned()));
        }
        return Some(());
    }
    let (subject, text) = line.split_once(':')?;
    let mut words = subject.split(' ');
    let from = who(words.next()?)?;
    words.next().filter(|arrow| *arrow == "->")?;
    let to = who(words.next()?)?;
    let text = text.strip_prefix(' ').unwrap_or(text);
    let what = match (words.next(), words.collect::<Vec<_>>().as_slice()) {
        (None, []) => What::Http(Http::default()),
        (Some("body"), []) => {
            let What::Http(http) = &mut all.steps.last_mut()?.what else { return None };
            http.body = unescape(text)?;
            return Some(());
        }
        (Some("WS"), [opcode, rest @ ..]) => {
            let (_, opcode) = OPCODES.into_iter().find(|(name, _)| name == opcode)?;
            let payload = if opcode == 8 { code(text)? } else { unescape(text)? };
            let fin = !rest.contains(&"fin=0");
            What::WebSocket(Frame { opcode, fin, masked: from == Who::Client && !rest.contains(&"unmasked"), payload })
        }
        (Some("SPDY"), [kind, stream, flags]) => {
            let stream = stream.parse().ok()?;
            let flags = flags.strip_prefix("flags=")?.parse().ok()?;
            What::Spdy(match *kind {
                "SYN_STREAM" => Spdy::SynStream(stream),
                "SYN_REPLY" => Spdy::SynReply(stream),
                "DATA" => Spdy::Data { stream, flags, payload: unescape(text)? },
                _ => return None,
            })
        }
        _ => return None,
    };
    all.steps.push(Step { from, to, what });
    Some(())
}

fn who(name: &str) -> Option<Who> {
    match name {
        "client" => Some(Who::Client),
        "apiserver" => Some(Who::ApiServer),
        "kubelet" => Some(Who::Kubelet),
        _ => None,
    }
}

fn code(text: &str) -> Option<Vec<u8>> {
    if text.is_empty() { Some(Vec::new()) } else { Some(text.parse::<u16>().ok()?.to_be_bytes().to_vec()) }
}

/// Printable ASCII as it is; the other bytes, and the backslash, behind one.
pub(crate) fn escape(bytes: &[u8]) -> String {
    let byte = |byte: &u8| match byte {
        b'\'' | b'"' => char::from(*byte).to_string(),
        byte => byte.escape_ascii().to_string(),
    };
    bytes.iter().map(byte).collect()
}

fn unescape(text: &str) -> Option<Vec<u8>> {
    let mut chars = text.bytes();
    iter::from_fn(|| {
        let byte = match chars.next()? {
            b'\\' => match chars.next() {
                Some(b'n') => Some(b'\n'),
                Some(b'r') => Some(b'\r'),
                Some(b't') => Some(b'\t'),
                Some(b'\\') => Some(b'\\'),
                Some(b'x') => {
                    let digits = [chars.next()?, chars.next()?];
                    str::from_utf8(&digits).ok().and_then(|digits| u8::from_str_radix(digits, 16).ok())
                }
                _ => None,
            },
            byte => Some(byte),
        };
        Some(byte)
    })
    .collect()
}

impl Transcript {
    fn http(&self, from: Who, to: Who) -> Option<&Http> {
        self.steps.iter().find_map(|step| match &step.what {
            What::Http(http) if (step.from, step.to) == (from, to) => Some(http),
            _ => None,
        })
    }

    /// What the client asked.
    pub(crate) fn request(&self) -> &Http {
        self.steps.first().and_then(|first| self.http(first.from, first.to)).expect("a recording begins with a request")
    }

    /// Takes the bearer token out of the request, if it is somebody's.
    pub(crate) fn take_token(&mut self) -> Option<String> {
        let What::Http(request) = &mut self.steps.first_mut()?.what else { return None };
        let at = request.headers.iter().position(|(name, _)| name == "Authorization")?;
        let user = request.headers[at].1.strip_prefix("Bearer ")?.strip_suffix("-token")?.to_owned();
        request.headers.remove(at);
        Some(user)
    }

    /// The WebSocket frames that went from one to the other.
    pub(crate) fn frames(&self, from: Who, to: Who) -> impl Iterator<Item = &Frame> {
        self.steps.iter().filter_map(move |step| match &step.what {
            What::WebSocket(frame) if (step.from, step.to) == (from, to) => Some(frame),
            _ => None,
        })
    }

    /// What the client of `server` heard, and what that asked of its kubelet.
    pub(crate) fn said(&self, server: Who) -> Said {
        let answer = self.http(server, Who::Client).expect("a recording has an answer");
        let mut said = Said::default();
        said.answer(answer);
        self.frames(server, Who::Client).for_each(|frame| said.frame(frame));
        if let Some(hop) = self.http(Who::ApiServer, Who::Kubelet) {
            said.hop(hop);
        }
        let mut streams = Streams::default();
        for step in self.steps.iter().filter(|step| step.from == Who::ApiServer) {
            if let What::Spdy(Spdy::Data { stream, flags, payload }) = &step.what {
                streams.add(*stream, flags & 1 == 1, payload);
            }
        }
        said.streams(&streams);
        said
    }

    /// Whether the kubelet spoke SPDY.
    pub(crate) fn has_streams(&self) -> bool {
        self.steps.iter().any(|step| matches!(step.what, What::Spdy(_)))
    }
}
