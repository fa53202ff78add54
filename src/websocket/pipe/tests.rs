use futures_util::{SinkExt, StreamExt};
use proptest::prelude::*;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    time::Instant,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Message,
        protocol::{
            CloseFrame, Role as TungsteniteRole,
            frame::{
                Frame,
                coding::{Data, OpCode},
            },
        },
    },
};

use super::*;

fn pipe(room: usize) -> (Pipe<DuplexStream>, DuplexStream) {
    let (ours, theirs) = duplex(room);
    (Pipe::new(ours, Role::Server, Limits::default()), theirs)
}

async fn with_client() -> (Pipe<DuplexStream>, WebSocketStream<DuplexStream>) {
    let (pipe, io) = pipe(64 * 1024);
    (pipe, WebSocketStream::from_raw_socket(io, TungsteniteRole::Client, None).await)
}

fn binary(bytes: &[u8]) -> Message {
    Message::Binary(bytes.to_vec().into())
}

fn close(code: u16) -> Message {
    Message::Close(Some(CloseFrame { code: code.into(), reason: "".into() }))
}

#[tokio::test(start_paused = true)]
async fn messages_are_a_stream_until_close_1000() {
    let (mut pipe, mut client) = with_client().await;
    for message in [&b"one"[..], b"", b"two"] {
        client.send(binary(message)).await.unwrap();
    }
    client.send(close(1000)).await.unwrap();
    let mut bytes = Vec::new();
    pipe.read_to_end(&mut bytes).await.unwrap();
    assert_eq!(bytes, b"onetwo");
}

#[tokio::test(start_paused = true)]
async fn any_other_end_is_an_error_behind_what_came() {
    for (end, kind) in [
        (Some(close(1001)), io::ErrorKind::ConnectionAborted),
        (Some(Message::Close(None)), io::ErrorKind::ConnectionAborted),
        (Some(Message::Text("text".into())), io::ErrorKind::InvalidData),
        (None, io::ErrorKind::UnexpectedEof),
    ] {
        let (mut pipe, mut client) = with_client().await;
        client.send(binary(b"before")).await.unwrap();
        match end.clone() {
            Some(message) => client.send(message).await.unwrap(),
            None => drop(client),
        }
        let mut bytes = [0; 6];
        pipe.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"before");
        for _ in 0..2 {
            assert_eq!(pipe.read(&mut bytes).await.unwrap_err().kind(), kind, "{end:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn text_and_broken_frames_are_answered_with_their_close() {
    for (wrong, code) in [(&b"\x81\x80\0\0\0\0"[..], 1003_u16), (b"\x82\x01x", 1002), (b"\x83\x80\0\0\0\0", 1002)] {
        let (mut pipe, mut io) = pipe(1024);
        io.write_all(wrong).await.unwrap();
        assert_eq!(pipe.read(&mut [0; 8]).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
        let mut told = [0; 4];
        io.read_exact(&mut told).await.unwrap();
        assert_eq!(told, ControlFrame::close(code, "", None)[..]);
        assert_eq!(pipe.write(b"more").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}

#[tokio::test(start_paused = true)]
async fn a_write_is_one_message_of_32_kib_at_most() {
    let (mut pipe, mut client) = with_client().await;
    assert_eq!(pipe.write(b"").await.unwrap(), 0);
    assert_eq!(pipe.write(b"small").await.unwrap(), 5);
    assert_eq!(pipe.write(&[7; 100_000]).await.unwrap(), MESSAGE);
    pipe.flush().await.unwrap();
    assert_eq!(client.next().await.unwrap().unwrap(), binary(b"small"));
    assert_eq!(client.next().await.unwrap().unwrap(), binary(&[7; MESSAGE]));
}

#[tokio::test(start_paused = true)]
async fn a_ping_is_answered_while_nobody_writes_and_never_inside_a_message() {
    let (mut pipe, mut io) = pipe(64);
    io.write_all(&ControlFrame::ping(&Payload::truncated(b"?"), Some([1; 4]))).await.unwrap();
    let reading = async { pipe.read(&mut [0; 8]).await.unwrap_err().kind() };
    let peer = async {
        let mut pong = [0; 3];
        io.read_exact(&mut pong).await.unwrap();
        assert_eq!(&pong, b"\x8a\x01?");
        drop(io);
    };
    assert_eq!(tokio::join!(reading, peer).0, io::ErrorKind::UnexpectedEof);

    // A message of which a part is out.
    let (mut pipe, mut io) = super::tests::pipe(64);
    assert_eq!(pipe.write(&[7; 100]).await.unwrap(), 100);
    io.write_all(&ControlFrame::ping(&Payload::truncated(b"?"), Some([1; 4]))).await.unwrap();
    io.write_all(b"\x82\x81\0\0\0\0x").await.unwrap();
    assert_eq!(pipe.read(&mut [0; 8]).await.unwrap(), 1);
    let (flushed, received) = tokio::join!(pipe.flush(), async {
        let mut bytes = [0; 102 + 3];
        io.read_exact(&mut bytes).await.unwrap();
        bytes
    });
    flushed.unwrap();
    assert_eq!(received[..2], [0x82, 100]);
    assert!(received[2..102].iter().all(|byte| *byte == 7));
    assert_eq!(&received[102..], b"\x8a\x01?");
}

#[tokio::test(start_paused = true)]
async fn shutting_down_sends_what_waits_then_one_close_and_waits_for_the_peers() {
    let (mut pipe, mut io) = pipe(16);
    assert_eq!(pipe.write(&[7; 100]).await.unwrap(), 100);
    let peer = async {
        let mut sent = [0; 106];
        io.read_exact(&mut sent).await.unwrap();
        // It was still sending, and closes then.
        io.write_all(b"\x82\x81\0\0\0\0x").await.unwrap();
        io.write_all(&ControlFrame::close(1000, "", Some([3; 4]))).await.unwrap();
        let mut rest = Vec::new();
        io.read_to_end(&mut rest).await.unwrap();
        (sent, rest)
    };
    let before = Instant::now();
    let (shut, (sent, rest)) = tokio::join!(pipe.shutdown(), peer);
    shut.unwrap();
    assert_eq!(sent[102..], ControlFrame::close(1000, "", None)[..]);
    assert_eq!(rest, b"", "one Close");
    assert_eq!(before.elapsed(), Duration::ZERO);
    assert_eq!(pipe.read(&mut [0; 8]).await.unwrap(), 0);
    pipe.shutdown().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_does_not_close_is_left_after_ten_seconds_even_if_it_never_stops_to_send() {
    for floods in [false, true] {
        let (mut pipe, mut io) = pipe(16);
        let peer = tokio::spawn(async move {
            let message = b"\x82\x81\0\0\0\0x".repeat(10);
            while floods && io.write_all(&message).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            let mut rest = Vec::new();
            let _ = io.read_to_end(&mut rest).await;
        });
        let before = Instant::now();
        pipe.shutdown().await.unwrap();
        assert_eq!(before.elapsed().as_secs(), 10);
        drop(pipe);
        peer.await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn the_peers_close_is_answered_when_we_shut_down_and_until_then_we_may_speak() {
    let (mut pipe, mut io) = pipe(1024);
    io.write_all(&ControlFrame::close(1000, "", Some([3; 4]))).await.unwrap();
    assert_eq!(pipe.read(&mut [0; 8]).await.unwrap(), 0);
    pipe.write_all(b"last").await.unwrap();
    pipe.shutdown().await.unwrap();
    let mut rest = Vec::new();
    io.read_to_end(&mut rest).await.unwrap();
    assert_eq!(rest, b"\x82\x04last\x88\x02\x03\xe8");
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at ^ (at >> 8) ^ (at >> 16)) as u8).collect()
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap().block_on(future)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn what_is_written_to_one_pipe_is_read_from_the_other(
        writes in proptest::collection::vec((0_usize..60_000, any::<bool>()), 1..10),
        reads in proptest::collection::vec(1_usize..5000, 1..10),
        room in prop_oneof![Just(7_usize), Just(1000), Just(100_000)],
        backwards: bool,
    ) {
        block_on(async {
            let (ours, theirs) = duplex(room);
            let server = Pipe::new(ours, Role::Server, Limits::default());
            let client = Pipe::new(theirs, Role::Client, Limits::default());
            let (mut from, mut to) = if backwards { (server, client) } else { (client, server) };
            let scale = if room < 64 { 50 } else { 1 };
            let bytes = pattern(writes.iter().map(|(len, _)| len / scale).sum());
            let writing = async {
                let mut rest = &bytes[..];
                for (len, flush) in &writes {
                    let (piece, left) = rest.split_at(len / scale);
                    rest = left;
                    from.write_all(piece).await.unwrap();
                    if *flush {
                        from.flush().await.unwrap();
                    }
                }
                from.shutdown().await.unwrap();
                assert!(from.out.capacity() <= KEPT, "an idle pipe holds a buffer");
            };
            let reading = async {
                let mut received = Vec::new();
                let mut buffer = [0; 5000];
                for len in reads.iter().cycle() {
                    match to.read(&mut buffer[..*len]).await.unwrap() {
                        0 => break,
                        read => received.extend_from_slice(&buffer[..read]),
                    }
                }
                to.shutdown().await.unwrap();
                received
            };
            let ((), received) = tokio::join!(writing, reading);
            assert!(received == bytes, "other bytes arrived");
        });
    }

    #[test]
    fn fragments_and_empty_messages_and_pings_mean_nothing(
        frames in proptest::collection::vec((0_usize..3000, any::<bool>(), any::<bool>()), 1..30),
        reads in proptest::collection::vec(1_usize..5000, 1..10),
        room in prop_oneof![Just(1_usize), Just(1000), Just(100_000)],
    ) {
        block_on(async {
            // A byte at a time is slow, so there is less of it.
            let scale = if room == 1 { 50 } else { 1 };
            let bytes = pattern(frames.iter().map(|(len, ..)| len / scale).sum());
            let (mut rest, mut inside, mut wire) = (&bytes[..], false, Vec::new());
            for (at, (len, end, ping)) in frames.iter().enumerate() {
                if *ping {
                    wire.extend_from_slice(&ControlFrame::ping(&Payload::default(), Some([9; 4])));
                }
                let (piece, left) = rest.split_at(len / scale);
                rest = left;
                let end = *end || at + 1 == frames.len();
                let opcode = OpCode::Data(if inside { Data::Continue } else { Data::Binary });
                let mut frame = Frame::message(piece.to_vec(), opcode, end);
                frame.header_mut().mask = Some([at as u8, 2, 3, 4]);
                frame.format(&mut wire).unwrap();
                inside = !end;
            }
            wire.extend_from_slice(&ControlFrame::close(1000, "", Some([5; 4])));
            let (mut pipe, io) = pipe(room);
            let (mut pongs, mut peer) = tokio::io::split(io);
            let writing = async {
                peer.write_all(&wire).await.unwrap();
                let mut answers = Vec::new();
                pongs.read_to_end(&mut answers).await.unwrap();
                answers
            };
            let reading = async {
                let mut received = Vec::new();
                let mut buffer = [0; 5000];
                for len in reads.iter().cycle() {
                    match pipe.read(&mut buffer[..*len]).await.unwrap() {
                        0 => break,
                        read => received.extend_from_slice(&buffer[..read]),
                    }
                }
                pipe.shutdown().await.unwrap();
                received
            };
            let (answers, received) = tokio::join!(writing, reading);
            assert!(received == bytes, "other bytes arrived");
            assert!(answers.ends_with(&ControlFrame::close(1000, "", None)));
        });
    }
}
