//! A client that speaks WebSocket, an upstream of bytes, and the tunnel between them. Whatever they send, cut anywhere:
//! the session ends; the client reads well-formed frames and a prefix of upstream's bytes, **all of them if it is told
//! so by Close 1000**; upstream reads a prefix of what the client's messages carry, and all of it if that ended in order.
//!
//! Input: 1 byte for cutting, then steps: what, how much, and as many bytes as the step takes.
#![no_main]

use std::{convert::Infallible, time::Duration};

use bytes::Bytes;
use http::{Extensions, HeaderValue, Request, Response, StatusCode, header};
use libfuzzer_sys::fuzz_target;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf, split},
    sync::oneshot,
    task::yield_now,
};
use tower::{Layer, Service, service_fn};
use tower_kube_streaming::{
    layers::{TunnelLayer, UpgradeDetectLayer, danger::PermitAllLayer},
    upgrade::{Dialect, Io, Sessions, accept},
    websocket::{ControlFrame, Decoder, Event, Limits, Opcode, Payload, Role},
};
use tower_kube_streaming_fuzz::{Input, MASK, end_of, masked, pieces};

/// A session of [`TunnelLayer`], and the two ends outside of it.
async fn tunnel() -> (Io, Io) {
    let mut request = Request::get("/api/v1/namespaces/ns/pods/p/portforward")
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .header(header::SEC_WEBSOCKET_KEY, "AAAAAAAAAAAAAAAAAAAAAA==")
        .header(header::SEC_WEBSOCKET_VERSION, "13")
        .header(header::SEC_WEBSOCKET_PROTOCOL, "SPDY/3.1+portforward.k8s.io")
        .body(())
        .expect("a request");
    let client = accept(&mut Extensions::new(), request.extensions_mut());
    let (give, take) = oneshot::channel();
    let mut give = Some(give);
    let leaf = service_fn(move |mut request: Request<()>| {
        let mut response = Response::new(Bytes::new());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static("SPDY/3.1"));
        headers.insert("x-stream-protocol-version", HeaderValue::from_static("portforward.k8s.io"));
        let upstream = accept(request.extensions_mut(), response.extensions_mut());
        let _ = give.take().expect("asked once").send(upstream);
        std::future::ready(Ok::<_, Infallible>(response))
    });
    let mut stack = UpgradeDetectLayer::new(Dialect::ApiServer, Sessions::new())
        .layer(PermitAllLayer.layer(TunnelLayer::new().layer(leaf)));
    let Ok(response) = stack.call(request).await;
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    (end_of(client).await, end_of(take.await.expect("the leaf was asked")).await)
}

/// One end as its peer drives it.
struct Peer {
    to: Option<WriteHalf<Io>>,
    /// All it has written.
    wrote: Vec<u8>,
    /// It ended by itself.
    closed: bool,
}

impl Peer {
    fn new(to: WriteHalf<Io>) -> Self {
        Self { to: Some(to), wrote: Vec::new(), closed: false }
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
            self.closed = to.shutdown().await.is_ok();
        }
    }
}

/// Plays the steps; returns for how many seconds both were silent in all.
async fn play(mut steps: Input<'_>, seed: u8, client: &mut Peer, upstream: &mut Peer) -> u64 {
    let mut slept = 0;
    while !steps.is_empty() {
        let (what, size) = (steps.byte(), steps.byte());
        let index = u16::from(what >> 5);
        match what & 0x1f {
            // The client.
            0 => client.write(&masked(Opcode::Binary, true, steps.bytes(size.into())), seed).await,
            1 => client.write(&masked(Opcode::Binary, true, &b"forwarded ".repeat(40 * usize::from(size))), 0xff).await,
            2 => client.write(&masked(Opcode::Binary, false, steps.bytes(size.into())), seed).await,
            3 => client.write(&masked(Opcode::Continuation, index > 0, steps.bytes(size.into())), seed).await,
            4 => {
                let payload = Payload::truncated(steps.bytes(size.into()));
                client.write(&ControlFrame::ping(&payload, Some(MASK)), seed).await;
            }
            5 => client.write(&ControlFrame::close(1000 + index, "", Some(MASK)), seed).await,
            6 => client.write(&masked(Opcode::Text, true, steps.bytes(size.into())), seed).await,
            7 => client.write(steps.bytes(size.into()), seed).await,
            8 => client.close().await,
            // Upstream.
            16 => upstream.write(steps.bytes(size.into()), seed).await,
            17 => upstream.write(&b"backward ".repeat(40 * usize::from(size)), 0xff).await,
            18 => upstream.close().await,
            30 => {
                slept += u64::from(size);
                tokio::time::sleep(Duration::from_secs(size.into())).await;
            }
            _ => {}
        }
    }
    slept
}

/// How a client's frames end.
#[derive(Debug, PartialEq, Eq)]
enum Ended {
    Not,
    Close(Option<u16>),
    Wrong,
}

/// What the client's messages carry, and how they end.
fn client_said(bytes: &[u8]) -> (Vec<u8>, Ended) {
    let mut decoder = Decoder::new(Role::Server, Limits::default());
    let mut carried = Vec::new();
    let mut buf = bytes.to_vec();
    let mut at = 0;
    while at < buf.len() {
        let Ok(step) = decoder.step(&mut buf[at..]) else { return (carried, Ended::Wrong) };
        match step.event {
            Some(Event::Data(data)) if data.text => return (carried, Ended::Wrong),
            Some(Event::Data(data)) => carried.extend_from_slice(&buf[at..][data.range]),
            Some(Event::Close(close)) => return (carried, Ended::Close(close.code)),
            _ => {}
        }
        at += step.consumed;
    }
    (carried, Ended::Not)
}

fn check_what_client_read(mut bytes: Vec<u8>, client: &Ended, upstream: &Peer) {
    let mut decoder = Decoder::new(Role::Client, Limits::default());
    let (mut payload, mut closed) = (Vec::new(), None);
    let mut at = 0;
    while at < bytes.len() {
        let step = decoder.step(&mut bytes[at..]).expect("the tunnel writes WebSocket");
        match step.event {
            Some(Event::Data(data)) => {
                assert!(!data.text);
                payload.extend_from_slice(&bytes[at..][data.range]);
            }
            Some(Event::Close(close)) => closed = close.code,
            _ => {}
        }
        at += step.consumed;
        assert!(closed.is_none() || at == bytes.len(), "bytes behind the Close");
    }
    assert!(upstream.wrote.starts_with(&payload), "bytes that upstream did not send");
    if closed == Some(1000) && *client == Ended::Not {
        assert!(upstream.closed && payload == upstream.wrote, "a false end of upstream's bytes");
    }
}

async fn read_all(mut from: ReadHalf<Io>) -> Vec<u8> {
    let mut all = Vec::new();
    let _ = from.read_to_end(&mut all).await;
    all
}

fuzz_target!(|input: &[u8]| {
    let mut input = Input(input);
    let seed = input.byte();
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime");
    runtime.block_on(async {
        let (client, upstream) = tunnel().await;
        let ((from_server, to_server), (from_proxy, to_proxy)) = (split(client), split(upstream));
        let (mut client, mut upstream) = (Peer::new(to_server), Peer::new(to_proxy));
        let session = async {
            let client_read = tokio::spawn(read_all(from_server));
            let upstream_read = tokio::spawn(read_all(from_proxy));
            let slept = play(input, seed, &mut client, &mut upstream).await;
            // Neither says anything more, nor closes: the session has to end by itself.
            (slept, client_read.await.expect("no panic"), upstream_read.await.expect("no panic"))
        };
        let day = Duration::from_secs(24 * 60 * 60);
        let (slept, client_read, upstream_read) = tokio::time::timeout(day, session).await.expect("the session ends");
        let (carried, ended) = client_said(&client.wrote);
        assert!(carried.starts_with(&upstream_read), "bytes that the client did not send");
        // Nobody was given up, and upstream took all.
        if ended == Ended::Close(Some(1000)) && !upstream.closed && slept < 30 {
            assert_eq!(upstream_read.len(), carried.len(), "the client's bytes are missing");
        }
        check_what_client_read(client_read, &ended, &upstream);
    });
});
