//! What was said, in a form that two runs can be compared in.

use std::collections::BTreeMap;

use super::{
    transcript::{Frame, Http, OPCODES, escape},
    wire::Streams,
};

/// What was said, without what differs from run to run: a name and a value each, so that two can be compared.
///
/// - `status`, `header NAME`, `body`: the answer.
/// - `first message`: the empty one that goes before all output.
/// - `channel N`: all that came on that channel of a WebSocket, however it was cut. `CLOSE`, `PONG`: their payloads.
/// - `hop`, `hop header NAME`: the request to the kubelet.
/// - `hop stream N`: all that went to the kubelet on that SPDY stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Said(pub(crate) BTreeMap<String, String>);

/// Headers that say when, and how it is packed. All others are compared.
const IGNORED: [&str; 5] = ["date", "audit-id", "cache-control", "content-length", "transfer-encoding"];

impl Said {
    fn add(&mut self, name: String, value: &str, between: &str) {
        let all = self.0.entry(name);
        all.and_modify(|all| *all = format!("{all}{between}{value}")).or_insert_with(|| value.to_owned());
    }

    pub(crate) fn answer(&mut self, answer: &Http) {
        self.add("status".into(), &answer.line, "");
        self.headers("header", answer);
        if !answer.body.is_empty() {
            self.add("body".into(), &escape(&answer.body), "");
        }
    }

    pub(crate) fn hop(&mut self, request: &Http) {
        self.add("hop".into(), &request.line, "; ");
        self.headers("hop header", request);
    }

    pub(crate) fn streams(&mut self, streams: &Streams) {
        for (stream, bytes, end) in streams.data() {
            let end = if end { ", then its end" } else { "" };
            self.add(format!("hop stream {stream}"), &(escape(bytes) + end), "; ");
        }
    }

    fn headers(&mut self, what: &str, http: &Http) {
        for (name, value) in &http.headers {
            let name = name.to_ascii_lowercase();
            if !IGNORED.contains(&name.as_str()) {
                self.add(format!("{what} {name}"), value, " | ");
            }
        }
    }

    pub(crate) fn frame(&mut self, frame: &Frame) {
        let name = OPCODES.iter().find(|(_, opcode)| *opcode == frame.opcode).map_or("?", |(name, _)| name);
        match (frame.opcode, frame.payload.split_first()) {
            (1 | 2, Some((channel, []))) if !self.0.keys().any(|key| key.starts_with("channel")) => {
                self.add("first message".into(), &format!("{name} {}", escape(&[*channel])), ", ");
            }
            (1 | 2, Some((channel, payload))) => {
                self.add(format!("channel {} {name}", escape(&[*channel])), &escape(payload), "");
            }
            (8, _) => {
                let code = frame.payload.first_chunk().map(|code| u16::from_be_bytes(*code).to_string());
                let reason = frame.payload.get(2..).unwrap_or_default();
                self.add(name.into(), &(code.unwrap_or_default() + &escape(reason)), ", ");
            }
            _ => self.add(name.into(), &escape(&frame.payload), ", "),
        }
    }

    /// What `self` says otherwise than `recorded`, by name. What it does not say at all is an empty text.
    pub(crate) fn differences(&self, recorded: &Self) -> BTreeMap<String, String> {
        let names = self.0.keys().chain(recorded.0.keys());
        let differing = names.filter(|name| self.0.get(*name) != recorded.0.get(*name));
        differing.map(|name| (name.clone(), self.0.get(name).cloned().unwrap_or_default())).collect()
    }
}
