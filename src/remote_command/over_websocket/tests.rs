use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use ::base64::{Engine as _, prelude::BASE64_STANDARD};
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex},
    sync::{Notify, oneshot},
    task::JoinHandle,
    time::Instant,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Message,
        protocol::{CloseFrame, Role},
    },
};

use super::*;
use crate::{
    remote_command::{TerminalSize, fixtures::LIMITS, status},
    upgrade::End,
    websocket::{Head, Opcode},
};

type Client = WebSocketStream<DuplexStream>;

/// A session over a pipe of `room` bytes, and its other end.
fn raw<F, Fut>(
    room: usize,
    protocol: WsProtocol,
    options: &StreamOptions,
    drain: CancellationToken,
    run: F,
) -> (DuplexStream, JoinHandle<Report>)
where
    F: FnOnce(Stdio) -> Fut + Send + 'static,
    Fut: Future<Output = Result<Exit, BoxError>> + Send + 'static,
{
    let (near, far) = duplex(room);
    (far, tokio::spawn(serve(near, protocol, options, &LIMITS, drain, run)))
}

/// A session of v5 within `limits`, whose command waits for its client to be gone.
fn within(limits: SessionLimits) -> (DuplexStream, JoinHandle<Report>) {
    let (near, far) = duplex(64 * 1024);
    let run = |stdio: Stdio| async move {
        stdio.gone.cancelled().await;
        Ok(Exit::Success)
    };
    (far, tokio::spawn(serve(near, WsProtocol::V5, &options("io"), &limits, CancellationToken::new(), run)))
}

async fn start<F, Fut>(protocol: WsProtocol, options: &StreamOptions, run: F) -> (Client, JoinHandle<Report>)
where
    F: FnOnce(Stdio) -> Fut + Send + 'static,
    Fut: Future<Output = Result<Exit, BoxError>> + Send + 'static,
{
    let (far, session) = raw(64 * 1024, protocol, options, CancellationToken::new(), run);
    (WebSocketStream::from_raw_socket(far, Role::Client, None).await, session)
}

fn options(streams: &str) -> StreamOptions {
    StreamOptions {
        stdin: streams.contains('i'),
        stdout: streams.contains('o'),
        stderr: streams.contains('e'),
        tty: streams.contains('t'),
        ..StreamOptions::default()
    }
}

async fn cat(stdio: Stdio) -> Result<Exit, BoxError> {
    let (mut stdin, mut stdout) = (stdio.stdin.expect("stdin"), stdio.stdout.expect("stdout"));
    tokio::io::copy(&mut stdin, &mut stdout).await?;
    Ok(Exit::Success)
}

fn binary(bytes: &[u8]) -> Message {
    Message::Binary(bytes.to_vec().into())
}

/// What a client was told until the Close: output of each channel in order, and the Close.
#[derive(Debug, Default)]
struct Told {
    channels: [Vec<u8>; 4],
    /// Channel of each message, without repetitions.
    order: Vec<u8>,
    longest: usize,
    close: Option<u16>,
}

async fn told(client: &mut Client, encoding: Encoding) -> Told {
    let mut told = Told::default();
    while let Some(message) = client.next().await {
        let (id, payload) = match message.expect("a message") {
            Message::Binary(bytes) => {
                assert_eq!(encoding, Encoding::Binary);
                (bytes[0], bytes[1..].to_vec())
            }
            Message::Text(text) => {
                assert_eq!(encoding, Encoding::Base64);
                assert!(text.len() <= 32_769);
                (text.as_bytes()[0] - b'0', BASE64_STANDARD.decode(&text[1..]).expect("base64"))
            }
            Message::Close(close) => {
                assert_eq!(told.close, None, "one Close only");
                told.close = close.map(|close| close.code.into());
                continue;
            }
            _ => continue,
        };
        assert_eq!(told.close, None, "nothing follows a Close");
        if told.order.last() != Some(&id) {
            told.order.push(id);
        }
        told.longest = told.longest.max(payload.len());
        told.channels[usize::from(id)].extend(payload);
    }
    told
}

fn outcome(told: &Told) -> status::Outcome {
    status::decode(&told.channels[3])
}

#[tokio::test(start_paused = true)]
async fn v5_echoes_until_stdin_is_closed_and_ends_with_status_and_close() {
    let (mut client, session) = start(WsProtocol::V5, &options("io"), cat).await;
    assert_eq!(client.next().await.expect("open").expect("valid"), binary(b"\x01"));
    client.send(binary(b"\x00hello ")).await.expect("sent");
    client.send(binary(b"")).await.expect("sent");
    client.send(binary(b"\x07nobody")).await.expect("sent");
    client.send(binary(b"\x00world")).await.expect("sent");
    client.send(binary(b"\xff\x00")).await.expect("sent");
    let told = told(&mut client, Encoding::Binary).await;
    assert_eq!(told.channels[1], b"hello world");
    assert_eq!(outcome(&told), status::Outcome::Exited(Exit::Success));
    assert_eq!((told.order, told.close), (vec![1, 3], Some(1000)));
    let before = Instant::now();
    drop(client);
    let report = session.await.expect("no panic");
    assert_eq!((report.end, &*report.protocol_in), (End::Success, "v5.channel.k8s.io"));
    assert_eq!((report.bytes.from_client(), report.bytes.to_client()), (11, 11));
    assert!(before.elapsed() < Duration::from_secs(1), "the close handshake did not wait for its limit");
}

async fn fails_with_seven(stdio: Stdio) -> Result<Exit, BoxError> {
    stdio.stdout.expect("stdout").write_all(b"out").await?;
    stdio.stderr.expect("stderr").write_all(b"err").await?;
    Ok(Exit::Code(7))
}

#[tokio::test(start_paused = true)]
async fn every_protocol_tells_output_and_exit_code_in_its_own_words() {
    for protocol in WsProtocol::ALL {
        let (mut client, session) = start(protocol, &options("oe"), fails_with_seven).await;
        let told = told(&mut client, protocol.encoding()).await;
        assert_eq!((&told.channels[1][..], &told.channels[2][..]), (&b"out"[..], &b"err"[..]));
        assert_eq!((told.order.last(), told.close), (Some(&3), Some(1000)));
        if protocol.version().has_status() {
            assert_eq!(outcome(&told), status::Outcome::Exited(Exit::Code(7)));
        } else {
            assert_eq!(
                told.channels[3],
                b"command terminated with non-zero exit code: command terminated with exit code 7"
            );
        }
        let report = session.await.expect("no panic");
        assert_eq!((report.end, &*report.protocol_in), (End::ExitCode(7), protocol.name()));
    }
}

#[tokio::test(start_paused = true)]
async fn before_v4_a_success_is_told_by_the_close_alone() {
    for protocol in [WsProtocol::Unnamed, WsProtocol::V1, WsProtocol::Base64V1] {
        let (mut client, session) = start(protocol, &options("e"), |_| async { Ok(Exit::Success) }).await;
        let told = told(&mut client, protocol.encoding()).await;
        assert_eq!((told.order, told.close), (vec![2], Some(1000)), "only the empty message");
        assert_eq!(session.await.expect("no panic").end, End::Success);
    }
}

#[tokio::test(start_paused = true)]
async fn base64_stdin_is_decoded_and_malformed_messages_are_skipped() {
    let run = |stdio: Stdio| async move {
        let mut line = [0; 5];
        stdio.stdin.expect("stdin").read_exact(&mut line).await?;
        stdio.stdout.expect("stdout").write_all(&line).await?;
        Ok(Exit::Success)
    };
    let (mut client, session) = start(WsProtocol::Base64V4, &options("io"), run).await;
    for message in ["0aGU=", "0***", "", "0bGxv"] {
        client.send(Message::Text(message.into())).await.expect("sent");
    }
    let told = told(&mut client, Encoding::Base64).await;
    assert_eq!(told.channels[1], b"hello");
    assert_eq!(session.await.expect("no panic").end, End::Success);
}

#[tokio::test(start_paused = true)]
async fn a_fragmented_message_is_one_message() {
    use tokio_tungstenite::tungstenite::protocol::frame::{
        Frame,
        coding::{Data, OpCode},
    };
    let (mut client, session) = start(WsProtocol::V5, &options("io"), cat).await;
    let pieces: [(&[u8], OpCode, bool); 4] = [
        (b"", OpCode::Data(Data::Binary), false),
        (b"\x00a", OpCode::Data(Data::Continue), false),
        (b"\x00b", OpCode::Data(Data::Continue), false),
        (b"", OpCode::Data(Data::Continue), true),
    ];
    for (bytes, opcode, end) in pieces {
        client.send(Message::Frame(Frame::message(bytes.to_vec(), opcode, end))).await.expect("sent");
    }
    client.send(binary(b"\xff\x00")).await.expect("sent");
    assert_eq!(told(&mut client, Encoding::Binary).await.channels[1], b"a\0b");
    assert_eq!(session.await.expect("no panic").end, End::Success);
}

#[tokio::test(start_paused = true)]
async fn a_slow_reader_gets_all_output_before_the_status() {
    const TOTAL: usize = 1 << 20;
    let run = |stdio: Stdio| async move {
        let bytes: Vec<u8> = (0..TOTAL).map(|at| at as u8).collect();
        stdio.stdout.expect("stdout").write_all(&bytes).await?;
        Ok(Exit::Success)
    };
    for protocol in [WsProtocol::V5, WsProtocol::Base64V4] {
        let (far, session) = raw(512, protocol, &options("o"), CancellationToken::new(), run);
        // Longer than every clock but the idle one.
        tokio::time::sleep(Duration::from_secs(3000)).await;
        let mut client = WebSocketStream::from_raw_socket(far, Role::Client, None).await;
        let told = told(&mut client, protocol.encoding()).await;
        assert!(told.channels[1].iter().enumerate().all(|(at, byte)| *byte == at as u8));
        assert_eq!((told.channels[1].len(), told.order), (TOTAL, vec![1, 3]));
        assert!(told.longest <= 32_768);
        assert_eq!(session.await.expect("no panic").bytes.to_client(), TOTAL as u64);
    }
}

#[tokio::test(start_paused = true)]
async fn pings_are_answered_while_output_is_busy() {
    let run = |stdio: Stdio| async move {
        let (mut stdout, mut stderr) = (stdio.stdout.expect("stdout"), stdio.stderr.expect("stderr"));
        let chunk = vec![b'y'; 32 * 1024];
        while stdout.write_all(&chunk).await.is_ok() && stderr.write_all(b"also").await.is_ok() {}
        Ok(Exit::Success)
    };
    let (mut client, session) = start(WsProtocol::V5, &options("ioe"), run).await;
    for round in 0..20u8 {
        client.send(Message::Ping(vec![round].into())).await.expect("sent");
        let mut messages = 0;
        loop {
            match client.next().await.expect("open").expect("valid") {
                Message::Pong(payload) if payload[..] == [round] => break,
                _ => messages += 1,
            }
            assert!(messages < 30, "a Pong overtakes all but what is in the connection");
        }
    }
    drop(client);
    assert_eq!(session.await.expect("no panic").end, End::ClientGone);
}

#[tokio::test(start_paused = true)]
async fn stdin_that_is_not_taken_stops_the_client_keeps_it_alive_and_loses_nothing() {
    const TOTAL: usize = 3 << 20;
    let release = Arc::new(Notify::new());
    let released = release.clone();
    let run = move |stdio: Stdio| async move {
        released.notified().await;
        let mut all = Vec::new();
        stdio.stdin.expect("stdin").read_to_end(&mut all).await?;
        assert!(all.iter().enumerate().all(|(at, byte)| *byte == (at / 1000) as u8));
        assert_eq!(all.len(), TOTAL);
        Ok(Exit::Success)
    };
    let (client, session) = start(WsProtocol::V5, &options("io"), run).await;
    let (mut sink, mut stream) = client.split();
    let sent = Arc::new(AtomicBool::new(false));
    let done = sent.clone();
    let sender = tokio::spawn(async move {
        let all: Vec<u8> = (0..TOTAL).map(|at| (at / 1000) as u8).collect();
        for chunk in all.chunks(20_000) {
            sink.send(binary(&[b"\x00", chunk].concat())).await.expect("sent");
        }
        sink.send(binary(b"\xff\x00")).await.expect("sent");
        done.store(true, Ordering::SeqCst);
    });
    let mut pongs = 0;
    let start = Instant::now();
    while pongs < 60 {
        if let Message::Pong(_) = stream.next().await.expect("open").expect("valid") {
            pongs += 1;
        }
    }
    assert_eq!(start.elapsed(), Duration::from_secs(300), "every five seconds, far beyond the silence limit");
    assert!(!sent.load(Ordering::SeqCst), "the client is held back");
    release.notify_one();
    sender.await.expect("no panic");
    while let Some(message) = stream.next().await {
        if let Message::Close(close) = message.expect("valid") {
            assert_eq!(u16::from(close.expect("a code").code), 1000);
        }
    }
    let report = session.await.expect("no panic");
    assert_eq!((report.end, report.bytes.from_client()), (End::Success, TOTAL as u64));
}

#[tokio::test(start_paused = true)]
async fn a_process_that_ends_without_reading_its_stdin_ends_the_session() {
    let run = |stdio: Stdio| async move {
        tokio::time::sleep(Duration::from_secs(5)).await;
        drop(stdio);
        Ok(Exit::Code(2))
    };
    let (client, session) = start(WsProtocol::V5, &options("io"), run).await;
    let (mut sink, mut stream) = client.split();
    let sender = tokio::spawn(async move { while sink.send(binary(&[0; 30_000])).await.is_ok() {} });
    let mut status = Vec::new();
    while let Some(Ok(message)) = stream.next().await {
        match message {
            Message::Binary(bytes) if bytes[0] == 3 => status.extend_from_slice(&bytes[1..]),
            Message::Close(_) => break,
            _ => {}
        }
    }
    assert_eq!(status::decode(&status), status::Outcome::Exited(Exit::Code(2)));
    sender.abort();
    drop(stream);
    assert_eq!(session.await.expect("no panic").end, End::ExitCode(2));
}

/// Waits for its client to go, and says whether stdin had ended by then.
async fn until_gone(stdio: Stdio, ended: oneshot::Sender<bool>) -> Result<Exit, BoxError> {
    let mut stdin = stdio.stdin.expect("stdin");
    let mut bytes = Vec::new();
    tokio::select! {
        // Pending for as long as the client has not closed it.
        _ = stdin.read_to_end(&mut bytes) => { let _ = ended.send(true); }
        () = stdio.gone.cancelled() => { let _ = ended.send(false); }
    }
    Ok(Exit::Success)
}

#[tokio::test(start_paused = true)]
async fn a_client_that_vanishes_is_no_end_of_stdin() {
    let (ended, stdin_ended) = oneshot::channel();
    let (mut client, session) = start(WsProtocol::V5, &options("io"), |stdio| until_gone(stdio, ended)).await;
    client.next().await.expect("open").expect("valid");
    client.send(binary(b"\x00half a com")).await.expect("sent");
    drop(client);
    assert!(!stdin_ended.await.expect("told"));
    let report = session.await.expect("no panic");
    assert_eq!((report.end, report.bytes.from_client()), (End::ClientGone, 10));
}

#[tokio::test(start_paused = true)]
async fn a_close_of_the_client_is_answered_and_ends_the_process() {
    let (ended, stdin_ended) = oneshot::channel();
    let (mut client, session) = start(WsProtocol::V5, &options("io"), |stdio| until_gone(stdio, ended)).await;
    client.send(Message::Close(Some(CloseFrame { code: 1001.into(), reason: "".into() }))).await.expect("sent");
    let told = told(&mut client, Encoding::Binary).await;
    assert_eq!((told.order, told.close), (vec![1], Some(1001)));
    assert!(!stdin_ended.await.expect("told"));
    assert_eq!(session.await.expect("no panic").end, End::ClientGone);
}

#[tokio::test(start_paused = true)]
async fn a_process_that_does_not_mind_its_client_is_given_up_after_ten_seconds() {
    let (client, session) =
        start(WsProtocol::V5, &options("io"), |_| std::future::pending::<Result<Exit, BoxError>>()).await;
    let before = Instant::now();
    drop(client);
    assert_eq!(session.await.expect("no panic").end, End::ClientGone);
    assert_eq!(before.elapsed().as_secs(), 10);
}

#[tokio::test(start_paused = true)]
async fn nobody_listens_to_a_process_whose_client_is_gone() {
    let (failed, failure) = oneshot::channel();
    let run = |stdio: Stdio| async move {
        stdio.gone.cancelled().await;
        let error = stdio.stdout.expect("stdout").write_all(b"x").await.expect_err("nobody reads");
        let _ = failed.send(error.kind());
        Ok(Exit::Success)
    };
    let (client, session) = start(WsProtocol::V5, &options("io"), run).await;
    drop(client);
    assert_eq!(failure.await.expect("told"), std::io::ErrorKind::BrokenPipe);
    assert_eq!(session.await.expect("no panic").end, End::ClientGone);
}

#[tokio::test(start_paused = true)]
async fn streams_kept_beyond_the_session_fail() {
    let (kept, keep) = oneshot::channel();
    let run = |stdio: Stdio| async move {
        let _ = kept.send((stdio.stdin.expect("stdin"), stdio.stdout.expect("stdout")));
        Ok(Exit::Success)
    };
    let (mut client, session) = start(WsProtocol::V5, &options("io"), run).await;
    told(&mut client, Encoding::Binary).await;
    session.await.expect("no panic");
    let (mut stdin, mut stdout) = keep.await.expect("kept");
    assert!(stdin.read_u8().await.is_err() && stdout.write_all(b"x").await.is_err());
}

/// What a raw peer reads until the end of the connection, as messages.
async fn read_raw(far: DuplexStream) -> Told {
    let mut client = WebSocketStream::from_raw_socket(far, Role::Client, None).await;
    told(&mut client, Encoding::Binary).await
}

fn masked(opcode: Opcode, payload: &[u8]) -> Vec<u8> {
    [&Head::new(opcode, payload.len(), Some([0; 4]))[..], payload].concat()
}

#[tokio::test(start_paused = true)]
async fn each_protocol_error_is_told_by_status_and_close_code() {
    let cases: Vec<(Vec<u8>, u16)> = vec![
        (b"\x82\x02\x00x".to_vec(), 1002),
        (b"\xc2\x80\0\0\0\0".to_vec(), 1002),
        (masked(Opcode::Binary, b"\xff"), 1002),
        (masked(Opcode::Binary, b"\xff\x09"), 1002),
        (b"\x82\xff\0\0\0\0\x02\0\0\x01\0\0\0\0".to_vec(), 1009),
        (masked(Opcode::Close, b"\x03\xe8\xff"), 1007),
    ];
    for (wire, code) in cases {
        let (ended, stdin_ended) = oneshot::channel();
        let run = |stdio| until_gone(stdio, ended);
        let (mut far, session) = raw(4096, WsProtocol::V5, &options("io"), CancellationToken::new(), run);
        far.write_all(&wire).await.expect("sent");
        let told = read_raw(far).await;
        assert_eq!((told.order.clone(), told.close), (vec![1, 3], Some(code)), "{wire:x?}");
        assert!(matches!(outcome(&told), status::Outcome::Failed(why) if why.contains("websocket")));
        assert!(!stdin_ended.await.expect("told"), "a protocol error is no end of stdin");
        assert_eq!(session.await.expect("no panic").end, End::Error);
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_client_is_pinged_and_given_up_after_sixty_seconds() {
    let (ended, _stdin_ended) = oneshot::channel();
    let run = |stdio| until_gone(stdio, ended);
    let (mut far, session) = raw(4096, WsProtocol::V5, &options("io"), CancellationToken::new(), run);
    let before = Instant::now();
    let report = session.await.expect("no panic");
    assert_eq!((report.end, before.elapsed().as_secs()), (End::ClientGone, 60));
    let mut heard = Vec::new();
    far.read_to_end(&mut heard).await.expect("read");
    assert_eq!(heard, [&b"\x82\x01\x01"[..], &b"\x89\x00".repeat(5)].concat());
}

#[tokio::test(start_paused = true)]
async fn a_client_that_answers_pings_lives_until_it_is_idle() {
    let (ended, _stdin_ended) = oneshot::channel();
    let (mut client, session) = start(WsProtocol::V5, &options("io"), |stdio| until_gone(stdio, ended)).await;
    let before = Instant::now();
    let told = told(&mut client, Encoding::Binary).await;
    assert_eq!(before.elapsed().as_secs(), 4 * 60 * 60);
    assert_eq!(told.close, Some(1000));
    assert!(matches!(outcome(&told), status::Outcome::Failed(why) if why.contains("idle")));
    assert_eq!(session.await.expect("no panic").end, End::Error);
}

#[tokio::test(start_paused = true)]
async fn a_drain_tells_the_client_and_ends_the_process() {
    for protocol in [WsProtocol::V1, WsProtocol::V5] {
        let (ended, stdin_ended) = oneshot::channel();
        let drain = CancellationToken::new();
        let run = |stdio| until_gone(stdio, ended);
        let (far, session) = raw(4096, protocol, &options("io"), drain.clone(), run);
        drain.cancel();
        let told = read_raw(far).await;
        assert_eq!((told.order, told.close), (vec![1, 3], Some(1000)));
        assert!(String::from_utf8_lossy(&told.channels[3]).contains("the server is shutting down"));
        assert!(!stdin_ended.await.expect("told"));
        assert_eq!(session.await.expect("no panic").end, End::Error);
    }
}

#[tokio::test(start_paused = true)]
async fn sizes_reach_a_terminal_and_are_ignored_without_one() {
    let run = |stdio: Stdio| async move {
        let mut stdout = stdio.stdout.expect("stdout");
        if let Some(mut sizes) = stdio.resize {
            sizes.changed().await?;
            let TerminalSize { width, height } = sizes.borrow_and_update().expect("a size");
            stdout.write_all(format!("{width}x{height}").as_bytes()).await?;
        }
        stdio.stdin.expect("stdin").read_u8().await?;
        Ok(Exit::Success)
    };
    for (streams, output) in [("iot", "80x24"), ("io", "")] {
        let (mut client, session) = start(WsProtocol::V4, &options(streams), run).await;
        client.send(binary(b"\x04nonsense\n")).await.expect("sent");
        client.send(binary(b"\x04{\"Width\":80,\"Hei")).await.expect("sent");
        client.send(binary(b"\x04ght\":24}\n")).await.expect("sent");
        client.send(binary(b"\x00q")).await.expect("sent");
        let told = told(&mut client, Encoding::Binary).await;
        assert_eq!(String::from_utf8_lossy(&told.channels[1]), output);
        assert_eq!(session.await.expect("no panic").end, End::Success);
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_never_closes_is_left_after_ten_seconds() {
    let run = |_: Stdio| async move { Ok(Exit::Success) };
    let (far, session) = raw(4096, WsProtocol::V5, &options("o"), CancellationToken::new(), run);
    let before = Instant::now();
    assert_eq!(session.await.expect("no panic").end, End::Success);
    assert_eq!(before.elapsed().as_secs(), 10);
    drop(far);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_before_the_status_is_gone_not_served() {
    let run = |stdio: Stdio| async move {
        stdio.stdout.expect("stdout").write_all(&[b'x'; 20_000]).await?;
        Ok(Exit::Success)
    };
    let (mut far, session) = raw(64, WsProtocol::V5, &options("o"), CancellationToken::new(), run);
    far.read_exact(&mut [0; 1000]).await.expect("output");
    drop(far);
    assert_eq!(session.await.expect("no panic").end, End::ClientGone);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_session_tells_the_process() {
    let (told, gone) = oneshot::channel();
    let run = |stdio: Stdio| async move {
        let _ = told.send(stdio.gone.clone());
        std::future::pending().await
    };
    let (_far, session) = raw(64, WsProtocol::V5, &options("o"), CancellationToken::new(), run);
    let gone = gone.await.expect("started");
    session.abort();
    gone.cancelled().await;
}

#[tokio::test]
async fn a_client_that_still_writes_reads_the_status_over_tcp() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address = listener.local_addr().expect("an address");
    for _ in 0..20 {
        let run = |stdio: Stdio| async move {
            stdio.stdin.expect("stdin").read_u8().await?;
            stdio.stdout.expect("stdout").write_all(&vec![b'x'; 200_000]).await?;
            Ok(Exit::Code(4))
        };
        let (client, server) = tokio::join!(tokio::net::TcpStream::connect(address), listener.accept());
        let io = server.expect("accepted").0;
        let session = tokio::spawn(serve(io, WsProtocol::V5, &options("io"), &LIMITS, CancellationToken::new(), run));
        let client = WebSocketStream::from_raw_socket(client.expect("connected"), Role::Client, None).await;
        let (mut sink, mut stream) = client.split();
        let sender = tokio::spawn(async move { while sink.send(binary(&[0; 30_000])).await.is_ok() {} });
        let (mut output, mut status) = (0, Vec::new());
        while let Some(Ok(message)) = stream.next().await {
            match message {
                Message::Binary(bytes) if bytes[0] == 3 => status.extend_from_slice(&bytes[1..]),
                Message::Binary(bytes) => output += bytes.len() - 1,
                _ => {}
            }
        }
        assert_eq!((status::decode(&status), output), (status::Outcome::Exited(Exit::Code(4)), 200_000));
        sender.abort();
        drop(stream);
        assert_eq!(session.await.expect("no panic").end, End::ExitCode(4));
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_client_is_asked_and_given_up_when_the_limits_say() {
    let limits = LIMITS.ping_after(Duration::from_secs(7)).dead_after(Duration::from_secs(16));
    let (mut far, session) = within(limits);
    let before = Instant::now();
    assert_eq!(session.await.expect("no panic").end, End::ClientGone);
    assert_eq!(before.elapsed().as_secs(), 16);
    let mut heard = Vec::new();
    far.read_to_end(&mut heard).await.expect("read");
    assert_eq!(heard, [&b"\x82\x01\x01"[..], &b"\x89\x00".repeat(2)].concat());
}

#[tokio::test(start_paused = true)]
async fn a_session_is_idle_when_the_limit_says_and_never_without_one() {
    for (limit, idle) in [(90, true), (0, false)] {
        let (far, session) = within(LIMITS.idle(Duration::from_secs(limit)));
        let mut client = WebSocketStream::from_raw_socket(far, Role::Client, None).await;
        let before = Instant::now();
        let week = Duration::from_secs(7 * 24 * 3600);
        let heard = tokio::time::timeout(week, told(&mut client, Encoding::Binary)).await;
        match heard {
            Ok(told) => {
                assert_eq!((idle, before.elapsed().as_secs()), (true, 90));
                assert!(matches!(outcome(&told), status::Outcome::Failed(why) if why.contains("idle")));
                assert_eq!(session.await.expect("no panic").end, End::Error);
            }
            Err(_) => assert!(!idle && !session.is_finished()),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_never_closes_has_as_long_as_the_limit_says() {
    let (near, far) = duplex(4096);
    let run = |_: Stdio| async move { Ok(Exit::Success) };
    let limits = LIMITS.farewell(Duration::from_secs(33));
    let before = Instant::now();
    let report = serve(near, WsProtocol::V5, &options("o"), &limits, CancellationToken::new(), run).await;
    assert_eq!((report.end, before.elapsed().as_secs()), (End::Success, 33));
    drop(far);
}

#[tokio::test(start_paused = true)]
async fn messages_are_as_long_and_in_as_many_frames_as_the_limits_say() {
    let fragments = |count: usize| {
        let part = |first: u8| [&[first, 0x81, 0, 0, 0, 0][..], b"\x00"].concat();
        [part(0x02), part(0x00).repeat(count - 2), part(0x80)].concat()
    };
    for (limits, good, bad) in [
        (LIMITS.message(100), masked(Opcode::Binary, &[0; 100]), masked(Opcode::Binary, &[0; 101])),
        (LIMITS.fragments(3), fragments(3), fragments(4)),
    ] {
        let (mut far, session) = within(limits);
        far.write_all(&good).await.expect("sent");
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(!session.is_finished());
        far.write_all(&bad).await.expect("sent");
        assert_eq!(read_raw(far).await.close, Some(1009));
        assert_eq!(session.await.expect("no panic").end, End::Error);
    }
}
