//! Streams of a port-forward with any headers: each is taken or refused as a plain reading of upstream's rules has it,
//! and exactly the ports of the pairs that are complete are dialled.
//!
//! Input: for each stream a byte that says which headers it has, then their values, each behind its length.
#![no_main]

use std::{
    collections::HashMap,
    convert::Infallible,
    sync::{Arc, Mutex},
};

use http::{Extensions, Request, StatusCode, header};
use libfuzzer_sys::fuzz_target;
use tokio::io::{DuplexStream, duplex};
use tower::Service;
use tower_kube_streaming::{
    BoxError,
    layers::danger::PermitAllLayer,
    port_forward::Dial,
    remote_command::{Exit, Stdio},
    runtime::{Runtime, Session},
    services::{Kubelet, StreamingServer},
    spdy::{self, Config, Stream},
    upgrade::{Io, Refusal, Sessions, Target, accept},
};
use tower_kube_streaming_fuzz::{Input, end_of};

/// Fewer than pairs are allowed.
const STREAMS: usize = 100;

/// Pods that end every connection at once.
#[derive(Clone, Default)]
struct Pods(Arc<Mutex<Vec<u16>>>);

impl Dial for Pods {
    type Connection = DuplexStream;

    async fn dial(&self, port: u16) -> Result<DuplexStream, BoxError> {
        self.0.lock().expect("nobody panics").push(port);
        Ok(duplex(1).0)
    }
}

impl Runtime for Pods {
    type Session = Never;
    type Forward = Self;

    async fn open(&self, _: &Target) -> Result<Never, Refusal> {
        unreachable!("nothing but port-forward is asked for")
    }

    async fn port_forward(&self, _: &Target) -> Result<Self, Refusal> {
        Ok(self.clone())
    }
}

enum Never {}

impl Session for Never {
    async fn run(self, _: Stdio) -> Result<Exit, BoxError> {
        match self {}
    }
}

/// The client's side of a port-forward.
async fn forward(pods: Pods) -> Io {
    let mut request = Request::post("/portForward/ns/p")
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "SPDY/3.1")
        .header("x-stream-protocol-version", "portforward.k8s.io")
        .body(())
        .expect("a request");
    let client = accept(&mut Extensions::new(), request.extensions_mut());
    let Ok::<_, Infallible>(response) =
        Kubelet::new(Sessions::new(), PermitAllLayer, StreamingServer::new(pods)).call(request).await;
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    end_of(client).await
}

/// Any text, and often one that means something.
fn text(input: &mut Input<'_>, known: &[&str]) -> String {
    let len = usize::from(input.byte());
    match known.get(len.wrapping_sub(128)) {
        Some(known) => (*known).to_owned(),
        // A NUL parts the values of a header.
        None => String::from_utf8_lossy(input.bytes(len % 100)).replace('\0', "0"),
    }
}

/// The streams of an input, as their headers.
fn streams(mut input: Input<'_>) -> Vec<Vec<(&'static str, String)>> {
    let mut streams = Vec::new();
    while !input.is_empty() && streams.len() < STREAMS {
        let which = input.byte();
        let mut headers = Vec::new();
        if which & 1 == 0 {
            headers.push(("streamtype", text(&mut input, &["data", "error"])));
        }
        if which & 2 == 0 {
            headers.push(("port", text(&mut input, &["80", "65535", "65536", "0", "+1", "-1", "08"])));
        }
        if which & 4 == 0 {
            headers.push(("requestid", text(&mut input, &["0", "1", "2", "3"])));
        }
        streams.push(headers);
    }
    streams
}

/// What the server is to make of the streams: which are taken, and what is dialled.
#[derive(Default)]
struct Model {
    /// Request id to the role and the port of who waits.
    waiting: HashMap<String, (bool, u16)>,
    dialled: Vec<u16>,
}

impl Model {
    fn takes(&mut self, id: u32, headers: &[(&str, String)]) -> bool {
        let value = |name| headers.iter().find(|(of, _)| *of == name).map(|(_, value)| value.as_str()).unwrap_or("");
        let digits = value("port");
        let port = match digits.trim_start_matches('0') {
            significant if digits.chars().all(|c| c.is_ascii_digit()) && significant.len() <= 5 => {
                significant.parse::<u32>().unwrap_or(0)
            }
            _ => 0,
        };
        let (is_data, is_error) = (value("streamtype") == "data", value("streamtype") == "error");
        let request = match value("requestid") {
            "" if is_error => i64::from(id).to_string(),
            "" => (i64::from(id) - 2).to_string(),
            request => request.to_owned(),
        };
        let Some(port) = u16::try_from(port).ok().filter(|port| *port > 0) else { return false };
        if !(is_data || is_error) || request.len() > 64 {
            return false;
        }
        match self.waiting.get(&request) {
            None => {
                self.waiting.insert(request, (is_data, port));
            }
            Some((data_waits, _)) if *data_waits == is_data => {}
            Some(_) => {
                let (_, other) = self.waiting.remove(&request).expect("it was there a line ago");
                self.dialled.push(if is_data { port } else { other });
            }
        }
        true
    }
}

async fn play(input: Input<'_>) {
    let pods = Pods::default();
    let (handle, connection) = spdy::client(forward(pods.clone()).await, Config::new());
    let connection = tokio::spawn(connection);
    let mut model = Model::default();
    // Kept, so that none of them is reset.
    let mut taken: Vec<Stream> = Vec::new();
    for headers in streams(input) {
        let pairs: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let opening = handle.open_unreplied(&pairs).expect("there is room");
        let id = opening.id().get();
        let opened = opening.await;
        let expected = model.takes(id, &headers);
        assert_eq!(opened.is_ok(), expected, "a stream was taken or refused against the rules: {headers:?}");
        taken.extend(opened);
    }
    // What was complete has been dialled before the end is seen.
    handle.close();
    let _ = connection.await;
    drop(taken);
    let mut dialled = std::mem::take(&mut *pods.0.lock().expect("nobody panics"));
    dialled.sort_unstable();
    model.dialled.sort_unstable();
    assert_eq!(dialled, model.dialled, "other ports were dialled than the pairs name");
}

fuzz_target!(|bytes: &[u8]| {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
    runtime.expect("a runtime").block_on(play(Input(bytes)));
});
