use std::{
    io,
    pin::Pin,
    task::{Context, Poll, Waker},
    time::Duration,
};

use futures_util::{SinkExt, StreamExt};
use proptest::prelude::*;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, duplex},
    task::JoinHandle,
    time::{Instant, timeout},
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Message,
        protocol::{
            CloseFrame, Role as TungsteniteRole,
            frame::{
                Frame,
                coding::{CloseCode, Data, OpCode},
            },
        },
    },
};

use super::*;
use crate::websocket::{self, Pipe};

type Client = WebSocketStream<DuplexStream>;

/// A tunnel over pipes of `room` bytes: the raw client's end, upstream's end.
fn start(room: usize, drain: &CancellationToken) -> (DuplexStream, DuplexStream, JoinHandle<Report>) {
    let (client, ours) = duplex(room);
    let (upstream, theirs) = duplex(room);
    let token = drain.clone();
    let relay = async move { relay(ours, theirs, &SessionLimits::new(), token).await };
    (client, upstream, tokio::spawn(relay))
}

async fn opened() -> (Client, DuplexStream, JoinHandle<Report>) {
    let (client, upstream, session) = start(64 * 1024, &CancellationToken::new());
    (WebSocketStream::from_raw_socket(client, TungsteniteRole::Client, None).await, upstream, session)
}

fn binary(bytes: &[u8]) -> Message {
    Message::Binary(bytes.to_vec().into())
}

fn close(code: u16) -> Message {
    Message::Close(Some(CloseFrame { code: CloseCode::from(code), reason: "".into() }))
}

/// All that the client is sent until the end: payload, the longest message, the Close.
async fn read_out(client: &mut Client) -> (Vec<u8>, usize, Option<u16>) {
    let (mut bytes, mut longest, mut code) = (Vec::new(), 0, None);
    while let Some(message) = client.next().await {
        match message {
            Ok(Message::Binary(payload)) => {
                longest = longest.max(payload.len());
                bytes.extend_from_slice(&payload);
            }
            Ok(Message::Close(close)) => code = close.map(|close| close.code.into()),
            Ok(Message::Ping(_) | Message::Pong(_)) => {}
            Ok(other) => panic!("nobody sends {other:?}"),
            Err(_) => break,
        }
    }
    (bytes, longest, code)
}

async fn rest(io: &mut DuplexStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    io.read_to_end(&mut bytes).await.unwrap();
    bytes
}

/// Bytes of which each tells where it stands.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at ^ (at >> 8) ^ (at >> 16)) as u8).collect()
}

#[test]
fn only_the_tunnel_of_port_forward_in_the_first_line_is_served() {
    let offered = |lines: &[&str]| {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(http::header::SEC_WEBSOCKET_PROTOCOL, line.parse().unwrap());
        }
        is_offered(&headers)
    };
    assert!(offered(&[TUNNEL]) && offered(&["v4.channel.k8s.io, SPDY/3.1+portforward.k8s.io"]));
    assert!(!offered(&[]) && !offered(&["portforward.k8s.io"]) && !offered(&["SPDY/3.1+v9.k8s.io"]));
    assert!(!offered(&["v4.channel.k8s.io", TUNNEL]));
    assert_eq!(websocket_name(&HeaderValue::from_static(PROTOCOL)), TUNNEL);
}

/// SPDY on a pipe at both ends, and the tunnel in between: as where API server and kubelet both tunnel.
#[tokio::test(start_paused = true)]
async fn spdy_streams_go_through_the_tunnel_and_are_served_on_a_pipe() {
    use crate::spdy::{Config, client, server};
    for through_the_relay in [false, true] {
        let (near, far) = duplex(10_000);
        let near = Pipe::new(near, Role::Client, websocket::Limits::default());
        let (handle, connection) = client(near, Config::new());
        let client = tokio::spawn(connection);
        let serve = |mut incoming: crate::spdy::Incoming| async move {
            let mut stream = incoming.accept().await.expect("a stream");
            stream.reply();
            let mut bytes = Vec::new();
            stream.read_to_end(&mut bytes).await.unwrap();
            stream.write_all(&bytes).await.unwrap();
            stream.shutdown().await.unwrap();
            while incoming.accept().await.is_some() {}
        };
        let mut session = None;
        let (server, echo) = if through_the_relay {
            let (upstream, theirs) = duplex(10_000);
            session =
                Some(tokio::spawn(
                    async move { relay(far, theirs, &SessionLimits::new(), CancellationToken::new()).await },
                ));
            let (incoming, _, connection) = server(upstream, Config::new());
            (tokio::spawn(connection), tokio::spawn(serve(incoming)))
        } else {
            let (incoming, _, connection) =
                server(Pipe::new(far, Role::Server, websocket::Limits::default()), Config::new());
            (tokio::spawn(connection), tokio::spawn(serve(incoming)))
        };
        let stream = handle.open(&[("streamtype", "data")]).await.unwrap();
        let (mut read, mut write) = tokio::io::split(stream);
        let expected = pattern(1_000_000);
        let writing = async {
            write.write_all(&expected).await.unwrap();
            write.shutdown().await.unwrap();
        };
        let reading = async {
            let mut bytes = Vec::new();
            read.read_to_end(&mut bytes).await.unwrap();
            bytes
        };
        assert!(tokio::join!(writing, reading).1 == expected);
        drop((read, write));
        let before = Instant::now();
        handle.close();
        client.await.unwrap().unwrap();
        server.await.unwrap().unwrap();
        echo.await.unwrap();
        if let Some(session) = session {
            assert_eq!(session.await.unwrap().end, End::Carried);
        }
        assert!(before.elapsed() < Duration::from_secs(1), "{:?}: nobody waited for a limit", before.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn the_end_of_upstream_is_a_close_1000_behind_its_last_byte() {
    let (mut client, mut upstream, session) = opened().await;
    let said = pattern(300_000);
    let expected = said.clone();
    let server = tokio::spawn(async move {
        let mut asked = [0; 5];
        upstream.read_exact(&mut asked).await.unwrap();
        upstream.write_all(&said).await.unwrap();
        asked
    });
    client.send(binary(b"hello")).await.unwrap();
    let (bytes, longest, code) = read_out(&mut client).await;
    assert_eq!(&server.await.unwrap(), b"hello");
    assert!(bytes == expected && longest <= LONGEST_MESSAGE, "{} bytes, a message of {longest}", bytes.len());
    assert_eq!(code, Some(1000));
    let report = session.await.unwrap();
    assert_eq!((report.end, report.bytes.from_client(), report.bytes.to_client()), (End::Carried, 5, 300_000));
    assert_eq!((&*report.protocol_in, &*report.protocol_out), ("SPDY/3.1+portforward.k8s.io", "portforward.k8s.io"));
}

#[tokio::test(start_paused = true)]
async fn the_end_of_the_client_is_a_half_close_and_upstream_may_finish() {
    let (mut client, mut upstream, session) = opened().await;
    let server = tokio::spawn(async move {
        let asked = rest(&mut upstream).await;
        tokio::time::sleep(Duration::from_secs(50)).await;
        upstream.write_all(&pattern(100_000)).await.unwrap();
        asked
    });
    client.send(binary(b"all")).await.unwrap();
    client.send(close(1000)).await.unwrap();
    // tungstenite hands out nothing behind its own Close, so the bytes are looked at.
    let mut raw = client.into_inner();
    let received = rest(&mut raw).await;
    assert_eq!(server.await.unwrap(), b"all");
    let mut expected = pattern(100_000);
    let (payload, controls) = decode(&received);
    assert!(payload == expected, "{} bytes", payload.len());
    assert_eq!(controls, [ControlFrame::close(1000, "", None).to_vec()]);
    expected.clear();
    let report = session.await.unwrap();
    assert_eq!((report.end, report.bytes.from_client(), report.bytes.to_client()), (End::Carried, 3, 100_000));
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_ends_not_behind_the_client_is_given_up() {
    let (mut client, mut upstream, session) = opened().await;
    client.send(close(1000)).await.unwrap();
    assert_eq!(rest(&mut upstream).await, b"");
    let before = Instant::now();
    assert_eq!(session.await.unwrap().end, End::Carried);
    assert!((55..76).contains(&before.elapsed().as_secs()), "{:?}", before.elapsed());
    assert!(upstream.write_all(b"late").await.is_err(), "nobody reads any more");
}

#[tokio::test(start_paused = true)]
async fn what_the_next_hop_does_behind_the_clients_close_is_the_clients_end_and_no_failure() {
    for reset in [false, true] {
        let (client, ours) = duplex(1024);
        let mut client = WebSocketStream::from_raw_socket(client, TungsteniteRole::Client, None).await;
        client.send(binary(b"all")).await.unwrap();
        client.send(close(1000)).await.unwrap();
        let (limits, upstream) = (SessionLimits::new(), Closes { reset, shut_down: false, reader: None });
        let session = relay(ours, upstream, &limits, CancellationToken::new());
        let (report, (.., code)) = tokio::join!(session, read_out(&mut client));
        assert_eq!((report.end, report.cause), (End::Carried, Cause::ClientClosed), "reset: {reset}");
        assert_eq!(code, Some(1000), "reset: {reset}");
    }
}

/// An upstream that closes once the client has, in order or not.
struct Closes {
    reset: bool,
    shut_down: bool,
    reader: Option<Waker>,
}

impl AsyncRead for Closes {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match (self.shut_down, self.reset) {
            (false, _) => {
                self.reader = Some(cx.waker().clone());
                Poll::Pending
            }
            (true, false) => Poll::Ready(Ok(())),
            (true, true) => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
        }
    }
}

impl AsyncWrite for Closes {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.shut_down = true;
        self.reader.take().into_iter().for_each(Waker::wake);
        Poll::Ready(Ok(()))
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_is_lost_ends_upstream_behind_its_last_byte() {
    for lost in ["dropped", "code 1001", "no code"] {
        let (mut client, mut upstream, session) = opened().await;
        client.send(binary(b"before")).await.unwrap();
        match lost {
            "dropped" => drop(client),
            "code 1001" => client.send(close(1001)).await.unwrap(),
            _ => client.send(Message::Close(None)).await.unwrap(),
        }
        assert_eq!(rest(&mut upstream).await, b"before", "{lost}");
        assert_eq!(session.await.unwrap().end, End::ClientGone, "{lost}");
        assert!(upstream.write_all(b"late").await.is_err(), "{lost}: nobody reads any more");
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_any_more_ends_upstream() {
    let (client, mut upstream, session) = start(1024, &CancellationToken::new());
    upstream.write_all(&pattern(2000)).await.unwrap();
    drop(client);
    assert_eq!(rest(&mut upstream).await, b"");
    assert_eq!(session.await.unwrap().end, End::ClientGone);
}

#[tokio::test(start_paused = true)]
async fn what_is_no_binary_message_closes_the_tunnel_behind_what_came_before() {
    let (mut client, mut upstream, session) = opened().await;
    client.send(binary(b"before")).await.unwrap();
    client.send(Message::Text("text".into())).await.unwrap();
    assert_eq!(read_out(&mut client).await.2, Some(1003));
    assert_eq!(rest(&mut upstream).await, b"before");
    assert_eq!(session.await.unwrap().end, End::Error);

    let (mut client, mut upstream, session) = start(1024, &CancellationToken::new());
    client.write_all(b"\x82\x01x").await.unwrap();
    assert_eq!(rest(&mut upstream).await, b"");
    let mut told = [0; 4];
    client.read_exact(&mut told).await.unwrap();
    assert_eq!(told, ControlFrame::close(1002, "", None)[..]);
    drop(client);
    let report = session.await.unwrap();
    assert_eq!((report.end, &*report.detail), (End::Error, "websocket: client frame without a mask"));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_never_closes_is_left_after_ten_seconds() {
    let (_client, upstream, session) = start(1024, &CancellationToken::new());
    let before = Instant::now();
    drop(upstream);
    let report = session.await.unwrap();
    // It had not said a byte.
    assert_eq!((report.end, report.cause), (End::Error, Cause::Handshake));
    assert!(before.elapsed() <= Duration::from_secs(11), "{:?}", before.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_drain_closes_both_sides() {
    let drain = CancellationToken::new();
    let (client, mut upstream, session) = start(1024, &drain);
    let mut client = WebSocketStream::from_raw_socket(client, TungsteniteRole::Client, None).await;
    drain.cancel();
    assert_eq!(read_out(&mut client).await, (Vec::new(), 0, Some(1001)));
    assert_eq!(rest(&mut upstream).await, b"");
    assert_eq!(session.await.unwrap().end, End::Error);
}

#[tokio::test(start_paused = true)]
async fn pings_are_answered_between_messages_while_nobody_else_speaks() {
    let (mut client, _upstream, _session) = opened().await;
    client.send(Message::Ping("are you there".into())).await.unwrap();
    assert_eq!(client.next().await.unwrap().unwrap(), Message::Pong("are you there".into()));
}

#[tokio::test(start_paused = true)]
async fn a_silent_client_is_pinged_every_ten_seconds_and_dead_after_sixty() {
    let (mut client, mut upstream, session) = start(1024, &CancellationToken::new());
    let before = Instant::now();
    let pings = tokio::spawn(async move {
        let mut pings = Vec::new();
        let mut ping = [0; 2];
        while client.read_exact(&mut ping).await.is_ok() {
            assert_eq!(ping, ControlFrame::ping(&Payload::default(), None)[..]);
            pings.push(before.elapsed().as_secs());
        }
        pings
    });
    assert_eq!(rest(&mut upstream).await, b"");
    let report = session.await.unwrap();
    assert_eq!((report.end, &*report.detail), (End::ClientGone, "the client was silent for too long"));
    assert!((60..=70).contains(&before.elapsed().as_secs()), "{:?}", before.elapsed());
    assert_eq!(pings.await.unwrap().len(), 5);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_answers_lives_and_a_tunnel_without_payload_ends_after_four_hours() {
    let (mut client, _upstream, session) = opened().await;
    let before = Instant::now();
    let (_, _, code) = read_out(&mut client).await;
    assert_eq!(code, Some(1001));
    assert!((14_395..=14_410).contains(&before.elapsed().as_secs()), "{:?}", before.elapsed());
    assert_eq!(session.await.unwrap().end, End::Error);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_is_not_read_is_not_dead() {
    let (client, mut upstream, session) = start(1024, &CancellationToken::new());
    let mut client = WebSocketStream::from_raw_socket(client, TungsteniteRole::Client, None).await;
    let sent = tokio::spawn(async move {
        client.send(binary(&pattern(200_000))).await.unwrap();
        client
    });
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert!(!session.is_finished() && !sent.is_finished(), "upstream takes nothing, so the client waits");
    let mut bytes = vec![0; 200_000];
    upstream.read_exact(&mut bytes).await.unwrap();
    assert!(bytes == pattern(200_000));
    drop(sent.await.unwrap());
    session.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn neither_direction_queues_what_the_other_side_does_not_take() {
    let (mut client, mut upstream, _session) = start(1024, &CancellationToken::new());
    // What a pipe holds each side of us, and one buffer in between.
    let bound = 1024 + BUFFER + 1024;
    for io in [&mut upstream, &mut client] {
        let chunk = [0; 512];
        let mut taken = 0;
        // For the client: an endless message.
        if let Ok(Ok(())) =
            timeout(Duration::from_secs(1), io.write_all(&[0x82, 0xff, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0])).await
        {
            while let Ok(written) = timeout(Duration::from_secs(1), io.write(&chunk)).await {
                taken += written.unwrap();
            }
        }
        assert!(taken > 0 && taken <= bound, "{taken}");
    }
}

/// Payload and control frames of a server's bytes.
fn decode(bytes: &[u8]) -> (Vec<u8>, Vec<Vec<u8>>) {
    let mut bytes = bytes.to_vec();
    let mut decoder = Decoder::new(Role::Client, websocket::Limits::default());
    let (mut payload, mut controls, mut at) = (Vec::new(), Vec::new(), 0);
    while at < bytes.len() {
        let step = decoder.step(&mut bytes[at..]).expect("well-formed");
        match step.event {
            Some(Event::Data(data)) => payload.extend_from_slice(&bytes[at..][data.range]),
            Some(_) => controls.push(bytes[at..][..step.consumed].to_vec()),
            None => {}
        }
        at += step.consumed;
    }
    assert!(decoder.at_message_boundary());
    (payload, controls)
}

/// How a client cuts its bytes: length of a frame, whether its message ends with it, what comes before it.
#[derive(Clone, Debug)]
struct Cut(usize, bool, Before);

#[derive(Clone, Copy, Debug)]
enum Before {
    Nothing,
    Ping,
    /// The same bytes, but from here on the client's pieces are written at once.
    Flush,
}

fn cuts() -> impl Strategy<Value = Vec<Cut>> {
    let length = prop_oneof![3 => 0_usize..5, 3 => 0_usize..600, 1 => 0_usize..70_000];
    let before = prop_oneof![4 => Just(Before::Nothing), 1 => Just(Before::Ping), 2 => Just(Before::Flush)];
    proptest::collection::vec(
        (length, any::<bool>(), before).prop_map(|(len, end, before)| Cut(len, end, before)),
        1..40,
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn any_cut_of_the_bytes_into_messages_and_fragments_is_the_same_stream(
        up in cuts(),
        down in proptest::collection::vec(0_usize..50_000, 1..12),
        room in prop_oneof![Just(1_usize), Just(37), Just(4096), Just(200_000)],
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(async {
            // A byte at a time is slow, so there is less of it.
            let scale = if room < 64 { 64 } else { 1 };
            let (client, upstream, session) = start(room, &CancellationToken::new());
            let up_bytes = pattern(up.iter().map(|cut| cut.0 / scale).sum());
            let down_bytes = pattern(down.iter().map(|len| len / scale).sum());
            let mut pings = 0_usize;
            let mut writes = vec![Vec::new()];
            let (mut rest_of_up, mut inside) = (&up_bytes[..], false);
            for (at, Cut(len, end, before)) in up.iter().enumerate() {
                match before {
                    Before::Nothing => {}
                    Before::Ping => {
                        pings += 1;
                        writes.last_mut().unwrap().extend_from_slice(&ControlFrame::ping(&Payload::truncated(&[at as u8]), Some([9; 4])));
                    }
                    Before::Flush => writes.push(Vec::new()),
                }
                let (piece, left) = rest_of_up.split_at(len / scale);
                rest_of_up = left;
                let end = *end || at + 1 == up.len();
                let opcode = if inside { OpCode::Data(Data::Continue) } else { OpCode::Data(Data::Binary) };
                let mut frame = Frame::message(piece.to_vec(), opcode, end);
                frame.header_mut().mask = Some([1, at as u8, 3, 4]);
                frame.format(writes.last_mut().unwrap()).unwrap();
                inside = !end;
            }
            writes.push(ControlFrame::close(1000, "", Some([5; 4])).to_vec());

            let (mut client_read, mut client_write) = tokio::io::split(client);
            let (mut upstream_read, mut upstream_write) = tokio::io::split(upstream);
            let client_writes = async {
                for bytes in writes {
                    client_write.write_all(&bytes).await.unwrap();
                    tokio::task::yield_now().await;
                }
            };
            let client_reads = async {
                let mut bytes = Vec::new();
                client_read.read_to_end(&mut bytes).await.unwrap();
                bytes
            };
            let upstream = async {
                let mut got = Vec::new();
                let reads = upstream_read.read_to_end(&mut got);
                let writes = async {
                    let mut rest = &down_bytes[..];
                    for len in &down {
                        let (piece, left) = rest.split_at(len / scale);
                        rest = left;
                        upstream_write.write_all(piece).await.unwrap();
                        tokio::task::yield_now().await;
                    }
                };
                tokio::join!(reads, writes).0.unwrap();
                upstream_write.shutdown().await.unwrap();
                got
            };
            let ((), received, got) = tokio::join!(client_writes, client_reads, upstream);
            assert!(got == up_bytes, "upstream got other bytes");
            let (payload, mut controls) = decode(&received);
            assert!(payload == down_bytes, "the client got other bytes");
            assert_eq!(controls.pop().as_deref(), Some(&*ControlFrame::close(1000, "", None)));
            assert!(controls.len() <= pings);
            let report = session.await.unwrap();
            assert_eq!(report.end, End::Carried);
            assert_eq!((report.bytes.from_client(), report.bytes.to_client()), (got.len() as u64, down_bytes.len() as u64));
        });
    }
}
