//! A client that speaks WebSocket, an upstream that speaks SPDY, and the translation between them. Whatever they send,
//! cut anywhere: the session ends; the client reads well-formed frames, all the output and nothing else, one status, a
//! Close; upstream reads well-formed frames, and the end of stdin only if the client said so. **A client that is told
//! of a success was told so by upstream.**
//!
//! Input: 2 bytes of flags, then steps: what, how much, and as many bytes as the step takes.
#![no_main]

use std::{convert::Infallible, time::Duration};

use bytes::Bytes;
use http::{Extensions, Request, Response, StatusCode, header};
use libfuzzer_sys::fuzz_target;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf, split},
    sync::oneshot,
    task::yield_now,
};
use tower::{Layer, Service, service_fn};
use tower_kube_streaming::{
    layers::{TranslateLayer, UpgradeDetectLayer, danger::PermitAllLayer},
    remote_command::Version,
    spdy::{
        StreamId,
        codec::{self, HeaderMode},
        frame::{self, GoAwayCode, HeaderEncoder, ResetCode},
    },
    upgrade::{Dialect, Io, Sessions, accept},
    websocket::{
        self, ControlFrame, Opcode, Payload, Role,
        channel::{ChannelEvent, Demux, ERROR, Encoding, RESIZE, STDERR, STDIN, STDOUT},
    },
};
use tower_kube_streaming_fuzz::{Input, MASK, end_of, masked, pieces};

/// What the request asks for.
#[derive(Clone, Copy, Debug)]
struct Asked {
    version: Version,
    stdin: bool,
    stdout: bool,
    stderr: bool,
    tty: bool,
}

impl Asked {
    /// The channels in the order of their streams: 1, 3, 5, …
    fn channels(self) -> Vec<u8> {
        [
            (ERROR, true),
            (STDIN, self.stdin),
            (STDOUT, self.stdout),
            (STDERR, self.stderr && !self.tty),
            (RESIZE, self.tty && self.version.has_resize()),
        ]
        .into_iter()
        .filter_map(|(channel, asked)| asked.then_some(channel))
        .collect()
    }

    fn channel(self, stream: StreamId) -> Option<u8> {
        let index = stream.get() as usize / 2;
        stream.is_client().then(|| self.channels().get(index).copied())?
    }
}

/// A session of [`TranslateLayer`], and the two ends outside of it.
async fn translate(asked: Asked) -> (Io, Io) {
    let flag = |name, set: bool| if set { format!("&{name}=1") } else { String::new() };
    let uri = format!(
        "/api/v1/namespaces/ns/pods/p/exec?command=c{}{}{}{}",
        flag("stdin", asked.stdin),
        flag("stdout", asked.stdout),
        flag("stderr", asked.stderr),
        flag("tty", asked.tty),
    );
    let mut request = Request::get(uri)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .header(header::SEC_WEBSOCKET_KEY, "AAAAAAAAAAAAAAAAAAAAAA==")
        .header(header::SEC_WEBSOCKET_VERSION, "13")
        .header(header::SEC_WEBSOCKET_PROTOCOL, "v5.channel.k8s.io")
        .body(())
        .expect("a request");
    let client = accept(&mut Extensions::new(), request.extensions_mut());
    let (give, take) = oneshot::channel();
    let mut give = Some(give);
    let leaf = service_fn(move |mut request: Request<()>| {
        let mut response = Response::new(Bytes::new());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(header::CONNECTION, header::HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, header::HeaderValue::from_static("SPDY/3.1"));
        let version = header::HeaderValue::from_static(asked.version.name());
        headers.insert("x-stream-protocol-version", version);
        let upstream = accept(request.extensions_mut(), response.extensions_mut());
        let _ = give.take().expect("asked once").send(upstream);
        std::future::ready(Ok::<_, Infallible>(response))
    });
    let mut stack = UpgradeDetectLayer::new(Dialect::ApiServer, Sessions::new())
        .layer(PermitAllLayer.layer(TranslateLayer::new().layer(leaf)));
    let Ok(response) = stack.call(request).await;
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    (end_of(client).await, end_of(take.await.expect("the leaf was asked")).await)
}

/// One end as its peer drives it.
struct Peer {
    to: Option<WriteHalf<Io>>,
    /// All it has written.
    wrote: Vec<u8>,
    encoder: HeaderEncoder,
}

impl Peer {
    fn new(to: WriteHalf<Io>) -> Self {
        Self { to: Some(to), wrote: Vec::new(), encoder: HeaderEncoder::new() }
    }

    async fn write(&mut self, bytes: &[u8], seed: u8) {
        for piece in pieces(bytes, seed) {
            let Some(to) = &mut self.to else { return };
            if to.write_all(piece).await.is_err() {
                self.to = None;
                return;
            }
            self.wrote.extend_from_slice(piece);
            yield_now().await;
        }
    }

    async fn close(&mut self) {
        if let Some(mut to) = self.to.take() {
            let _ = to.shutdown().await;
        }
    }
}

async fn play(mut steps: Input<'_>, asked: Asked, seed: u8, client: &mut Peer, upstream: &mut Peer) {
    while !steps.is_empty() {
        let (what, size) = (steps.byte(), steps.byte());
        let index = u32::from(what >> 5);
        let stream = StreamId::new(2 * index + 1).expect("odd");
        match what & 0x1f {
            // The client.
            0 => {
                let mut message = vec![(index % 5) as u8];
                message.extend_from_slice(steps.bytes(size.into()));
                client.write(&masked(Opcode::Binary, true, &message), seed).await;
            }
            1 => {
                let mut message = vec![STDIN];
                message.extend_from_slice(&b"stdin ".repeat(40 * usize::from(size)));
                client.write(&masked(Opcode::Binary, true, &message), 0xff).await;
            }
            2 => client.write(&masked(Opcode::Binary, true, &[255, (index % 5) as u8]), seed).await,
            3 => client.write(&masked(Opcode::Binary, false, steps.bytes(size.into())), seed).await,
            4 => client.write(&masked(Opcode::Continuation, index > 0, steps.bytes(size.into())), seed).await,
            5 => {
                let payload = Payload::truncated(steps.bytes(size.into()));
                client.write(&ControlFrame::ping(&payload, Some(MASK)), seed).await;
            }
            6 => client.write(&ControlFrame::close(1000 + index as u16, "", Some(MASK)), seed).await,
            7 => client.write(steps.bytes(size.into()), seed).await,
            8 => client.close().await,
            // Upstream.
            16 => {
                for index in 0..asked.channels().len() {
                    let mut reply = Vec::new();
                    let stream = StreamId::new(2 * index as u32 + 1).expect("odd");
                    upstream.encoder.syn_reply(stream, &[], false, &mut reply);
                    upstream.write(&reply, seed).await;
                }
            }
            17 => {
                let mut reply = Vec::new();
                upstream.encoder.syn_reply(stream, &[], size & 1 != 0, &mut reply);
                upstream.write(&reply, seed).await;
            }
            18 | 19 => {
                let payload = steps.bytes(size.into());
                let fin = what & 1 != 0;
                let frame = [&frame::data_head(stream, payload.len(), fin), payload].concat();
                upstream.write(&frame, seed).await;
            }
            20 => {
                let payload = b"output ".repeat(40 * usize::from(size));
                let frame = [&frame::data_head(stream, payload.len(), false)[..], &payload].concat();
                upstream.write(&frame, 0xff).await;
            }
            21 => upstream.write(&frame::rst(stream, ResetCode(u32::from(size))), seed).await,
            22 => upstream.write(&frame::goaway(None, GoAwayCode(u32::from(size))), seed).await,
            23 => upstream.write(&frame::ping(u32::from(size)), seed).await,
            24 => {
                let mut syn = Vec::new();
                let stream = StreamId::new(u32::from(size) + 1).expect("not 0");
                upstream.encoder.syn_stream(stream, &[("streamtype", "error")], false, &mut syn);
                upstream.write(&syn, seed).await;
            }
            25 => upstream.write(steps.bytes(size.into()), seed).await,
            26 => upstream.close().await,
            // A whole status.
            27 => {
                let status: &[u8] = match size {
                    0 => br#"{"metadata":{},"status":"Success"}"#,
                    1 => br#"{"metadata":{},"status":"Failure","reason":"NonZeroExitCode","details":{"causes":[{"reason":"ExitCode","message":"3"}]}}"#,
                    _ => br#"{"metadata":{},"status":"Failure","message":"no","code":500}"#,
                };
                let error = StreamId::new(1).expect("odd");
                upstream.write(&[&frame::data_head(error, status.len(), index > 0), status].concat(), seed).await;
            }
            30 => tokio::time::sleep(Duration::from_secs(size.into())).await,
            _ => {}
        }
    }
}

/// What upstream said until it broke off or broke the protocol.
#[derive(Debug, Default)]
struct Upstream {
    /// Payload of each channel before its end.
    data: [Vec<u8>; 5],
    /// FIN, also a reply's, or RST.
    ended: [bool; 5],
    goaway: bool,
}

fn upstream_said(bytes: &[u8], asked: Asked) -> Upstream {
    let mut decoder = codec::Decoder::new(codec::Limits::default(), HeaderMode::Skip);
    let mut said = Upstream::default();
    let mut rest = bytes;
    while let Ok(step) = decoder.step(rest) {
        match step.event {
            codec::Event::NeedMore => break,
            codec::Event::Data { stream, range, fin } => {
                if let Some(channel) = asked.channel(stream).map(usize::from)
                    && !said.ended[channel]
                {
                    said.data[channel].extend_from_slice(&rest[range]);
                    said.ended[channel] = fin;
                }
            }
            // A reply can end its stream, as data can.
            codec::Event::Rst { stream, .. } | codec::Event::SynReply { stream, fin: true, .. } => {
                if let Some(channel) = asked.channel(stream) {
                    said.ended[usize::from(channel)] = true;
                }
            }
            codec::Event::GoAway { .. } => said.goaway = true,
            _ => {}
        }
        rest = &rest[step.consumed..];
    }
    said
}

/// Stdin that the client sent, and whether it ended it.
fn client_said(bytes: &[u8]) -> (Vec<u8>, bool) {
    let mut decoder = websocket::Decoder::new(Role::Server, websocket::Limits::default());
    let mut demux = Demux::new(Encoding::Binary, true);
    let (mut stdin, mut ended) = (Vec::new(), false);
    let mut buf = bytes.to_vec();
    let mut at = 0;
    while at < buf.len() {
        let Ok(step) = decoder.step(&mut buf[at..]) else { break };
        if let Some(websocket::Event::Data(mut data)) = step.event {
            data.range = data.range.start + at..data.range.end + at;
            match demux.data(&data, &mut buf) {
                Ok(Some(ChannelEvent::Data { id: STDIN, range })) => stdin.extend_from_slice(&buf[range]),
                Ok(Some(ChannelEvent::Closed(STDIN))) => ended = true,
                Ok(_) => {}
                Err(_) => break,
            }
        }
        at += step.consumed;
    }
    (stdin, ended)
}

fn check_what_upstream_read(bytes: &[u8], asked: Asked, client: &[u8]) {
    let (sent, closed) = client_said(client);
    let mut decoder = codec::Decoder::new(codec::Limits::default(), HeaderMode::Inflate);
    let (mut stdin, mut ended, mut opened) = (Vec::new(), false, 0);
    let mut rest = bytes;
    loop {
        let step = decoder.step(rest).expect("the relay writes SPDY");
        match step.event {
            codec::Event::NeedMore => break,
            codec::Event::SynStream { stream, .. } => {
                opened += 1;
                assert!(asked.channel(stream).is_some());
            }
            codec::Event::Data { stream, range, fin } => match asked.channel(stream) {
                Some(STDIN) => {
                    assert!(!ended, "stdin behind its end");
                    stdin.extend_from_slice(&rest[range]);
                    ended = fin;
                }
                Some(RESIZE) => assert!(!fin),
                other => panic!("data on {other:?}"),
            },
            _ => {}
        }
        rest = &rest[step.consumed..];
    }
    assert_eq!(opened, asked.channels().len());
    assert!(sent.starts_with(&stdin), "stdin that the client did not send");
    assert!(!ended || closed && sent == stdin, "a false end of stdin");
}

fn check_what_client_read(mut bytes: Vec<u8>, asked: Asked, upstream: &Upstream) {
    let mut decoder = websocket::Decoder::new(Role::Client, websocket::Limits::default());
    let mut output: [Vec<u8>; 5] = Default::default();
    let (mut told, mut closed) = (false, None);
    let mut message = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let step = decoder.step(&mut bytes[at..]).expect("the relay writes WebSocket");
        match step.event {
            Some(websocket::Event::Data(data)) => {
                message.extend_from_slice(&bytes[at..][data.range]);
                if data.end {
                    let (channel, payload) = message.split_first().expect("every message has a channel");
                    assert!(matches!(*channel, STDOUT | STDERR | ERROR), "channel {channel}");
                    if !payload.is_empty() {
                        // A long status takes several messages.
                        assert!(!told || *channel == ERROR, "output behind the status");
                        told = *channel == ERROR;
                    }
                    output[usize::from(*channel)].extend_from_slice(payload);
                    message.clear();
                }
            }
            Some(websocket::Event::Close(close)) => closed = close.code,
            _ => {}
        }
        at += step.consumed;
        assert!(closed.is_none() || at == bytes.len(), "bytes behind the Close");
    }
    for channel in [STDOUT, STDERR].map(usize::from) {
        assert!(upstream.data[channel].starts_with(&output[channel]), "output that upstream did not send");
    }
    if !told {
        return;
    }
    assert!(closed.is_some(), "a status without a Close");
    let status: serde_json::Value = serde_json::from_slice(&output[usize::from(ERROR)]).expect("a Status");
    let said = &upstream.data[usize::from(ERROR)];
    if status["status"] != "Success" {
        assert_eq!(status["status"], "Failure");
        return;
    }
    for channel in [STDOUT, STDERR].map(usize::from) {
        assert_eq!(output[channel], upstream.data[channel], "a success without all the output");
    }
    if asked.version.has_status() {
        let said: Option<serde_json::Value> = serde_json::from_slice(said).ok();
        assert_eq!(said.expect("a success without a status")["status"], "Success", "a false success");
    } else {
        assert!(said.is_empty(), "a success instead of an error");
        assert!(upstream.ended[usize::from(ERROR)] || upstream.goaway, "a success although upstream was lost");
    }
}

async fn read_all(mut from: ReadHalf<Io>) -> Vec<u8> {
    let mut all = Vec::new();
    let _ = from.read_to_end(&mut all).await;
    all
}

fuzz_target!(|input: &[u8]| {
    let mut input = Input(input);
    let (flags, seed) = (input.byte(), input.byte());
    let asked = Asked {
        version: Version::NEWEST_FIRST[usize::from(flags >> 4) % 5],
        stdin: flags & 1 != 0,
        stdout: flags & 2 != 0,
        stderr: flags & 4 != 0,
        tty: flags & 8 != 0,
    };
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime");
    runtime.block_on(async {
        let (client, upstream) = translate(asked).await;
        let ((from_relay, to_relay), (from_proxy, to_proxy)) = (split(client), split(upstream));
        let (mut client, mut upstream) = (Peer::new(to_relay), Peer::new(to_proxy));
        let session = async {
            let client_read = tokio::spawn(read_all(from_relay));
            let upstream_read = tokio::spawn(read_all(from_proxy));
            play(input, asked, seed, &mut client, &mut upstream).await;
            // Neither says anything more, nor closes: the session has to end by itself.
            (client_read.await.expect("no panic"), upstream_read.await.expect("no panic"))
        };
        let day = Duration::from_secs(24 * 60 * 60);
        let (client_read, upstream_read) = tokio::time::timeout(day, session).await.expect("the session ends");
        check_what_upstream_read(&upstream_read, asked, &client.wrote);
        check_what_client_read(client_read, asked, &upstream_said(&upstream.wrote, asked));
    });
});
