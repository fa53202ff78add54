use std::{
    collections::VecDeque,
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{FutureExt, SinkExt, StreamExt, stream::SplitSink};
use proptest::prelude::*;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, ReadHalf, WriteHalf, duplex},
    task::JoinHandle,
    time::{Instant, sleep},
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Message,
        protocol::{CloseFrame, Role as TungsteniteRole, frame::coding::CloseCode},
    },
};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::{
    remote_command::{
        Exit, Version,
        status::{self, Outcome},
    },
    spdy::{
        codec::{Decoder, Event, HeaderMode, Limits},
        frame::{self, GoAwayCode, HeaderEncoder, ResetCode, StreamId},
    },
    upgrade::{End, Report, SessionLimits, StreamOptions},
};

const LIMITS: SessionLimits = SessionLimits::new();
const SUCCESS: &[u8] = br#"{"metadata":{},"status":"Success"}"#;
const EXIT_3: &[u8] = br#"{"status":"Failure","message":"x","reason":"NonZeroExitCode","details":{"causes":[{"reason":"ExitCode","message":"3"}]}}"#;

/// What the scripted upstream sees.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Seen {
    Syn(u32, String),
    Data(u32, Vec<u8>, bool),
    Rst(u32),
    Ping(u32),
    GoAway,
    End,
}

/// A SPDY server that does what the test says.
struct Upstream<S = DuplexStream> {
    io: S,
    decoder: Decoder,
    buf: Vec<u8>,
    at: usize,
    headers: HeaderEncoder,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Upstream<S> {
    fn new(io: S) -> Self {
        let decoder = Decoder::new(Limits::default(), HeaderMode::Inflate);
        Self { io, decoder, buf: Vec::new(), at: 0, headers: HeaderEncoder::new() }
    }

    async fn next(&mut self) -> Seen {
        loop {
            let step = self.decoder.step(&self.buf[self.at..]).expect("our SPDY is well-formed");
            let offset = self.at;
            self.at += step.consumed;
            return match step.event {
                Event::NeedMore => {
                    self.at = 0;
                    self.buf.clear();
                    if self.io.read_buf(&mut self.buf).await.unwrap_or(0) == 0 {
                        return Seen::End;
                    }
                    continue;
                }
                Event::SynStream { stream, headers, .. } => {
                    let name = headers.get("streamtype").expect("a stream type");
                    Seen::Syn(stream.get(), String::from_utf8(name.to_vec()).unwrap())
                }
                Event::Data { stream, range, fin } => {
                    Seen::Data(stream.get(), self.buf[range.start + offset..range.end + offset].to_vec(), fin)
                }
                Event::Rst { stream, .. } => Seen::Rst(stream.get()),
                Event::Ping(id) => Seen::Ping(id),
                Event::GoAway { .. } => Seen::GoAway,
                other => panic!("nobody sends {other:?}"),
            };
        }
    }

    /// The next that is no PING of the relay's own.
    async fn next_but_pings(&mut self) -> Seen {
        loop {
            match self.next().await {
                Seen::Ping(id) if id % 2 == 1 => self.send(&frame::ping(id)).await,
                seen => return seen,
            }
        }
    }

    async fn send(&mut self, bytes: &[u8]) {
        self.io.write_all(bytes).await.expect("the relay reads");
    }

    async fn data(&mut self, stream: u32, bytes: &[u8], fin: bool) {
        self.send(&data(stream, bytes, fin)).await;
    }

    /// Reads `count` SYN_STREAMs and replies to them.
    async fn accept(&mut self, count: usize) -> Vec<(u32, String)> {
        let mut streams = Vec::new();
        for _ in 0..count {
            let Seen::Syn(id, name) = self.next().await else { panic!("a SYN_STREAM was expected") };
            streams.push((id, name));
        }
        let mut replies = Vec::new();
        for (id, _) in &streams {
            self.headers.syn_reply(StreamId::new(*id).unwrap(), &[], false, &mut replies);
        }
        self.send(&replies).await;
        streams
    }

    /// Ends as this crate's servers do.
    async fn end(&mut self, status: &[u8], outputs: &[u32]) {
        for stream in outputs {
            self.data(*stream, b"", true).await;
        }
        self.data(1, status, true).await;
    }
}

type Reader = Upstream<tokio::io::Join<ReadHalf<DuplexStream>, tokio::io::Sink>>;

impl Upstream {
    /// What reads, and what is written by hand.
    fn split(self) -> (Reader, WriteHalf<DuplexStream>) {
        let Self { io, decoder, buf, at, headers } = self;
        let (read, write) = tokio::io::split(io);
        (Upstream { io: tokio::io::join(read, tokio::io::sink()), decoder, buf, at, headers }, write)
    }
}

fn data(stream: u32, bytes: &[u8], fin: bool) -> Vec<u8> {
    let mut frame = frame::data_head(StreamId::new(stream).unwrap(), bytes.len(), fin).to_vec();
    frame.extend_from_slice(bytes);
    frame
}

fn rst(stream: u32) -> [u8; 16] {
    frame::rst(StreamId::new(stream).unwrap(), ResetCode::CANCEL)
}

fn options(stdin: bool, stdout: bool, stderr: bool, tty: bool) -> StreamOptions {
    StreamOptions { stdin, stdout, stderr, tty, ..StreamOptions::default() }
}

struct Ends {
    client: WebSocketStream<DuplexStream>,
    upstream: Upstream,
    relay: JoinHandle<Report>,
    drain: CancellationToken,
}

const ROOM: usize = 64 * 1024;

async fn raw(
    version: Version,
    options: StreamOptions,
    room: usize,
) -> (DuplexStream, Upstream, JoinHandle<Report>, CancellationToken) {
    let (client, ours) = duplex(room);
    let (upstream, theirs) = duplex(room);
    let drain = CancellationToken::new();
    let token = drain.clone();
    let relay = tokio::spawn(async move { super::run(ours, theirs, version, &options, &LIMITS, token).await });
    (client, Upstream::new(upstream), relay, drain)
}

async fn start(version: Version, options: StreamOptions, room: usize) -> Ends {
    let (client, upstream, relay, drain) = raw(version, options, room).await;
    let client = WebSocketStream::from_raw_socket(client, TungsteniteRole::Client, None).await;
    Ends { client, upstream, relay, drain }
}

/// All streams of a session without a terminal: error 1, stdin 3, stdout 5, stderr 7.
async fn started() -> Ends {
    let mut ends = start(Version::V4, options(true, true, true, false), ROOM).await;
    ends.upstream.accept(4).await;
    ends
}

/// What a client was told, in order; neighbours of one channel joined.
#[derive(Debug, Default)]
struct Told {
    messages: Vec<(u8, Vec<u8>)>,
    pongs: usize,
    close: Option<u16>,
}

impl Told {
    fn add(&mut self, message: Message) {
        match message {
            Message::Binary(bytes) => {
                let (channel, payload) = bytes.split_first().expect("an empty message ends Go's client");
                match self.messages.last_mut() {
                    Some((last, before)) if last == channel => before.extend_from_slice(payload),
                    _ => self.messages.push((*channel, payload.to_vec())),
                }
            }
            Message::Close(close) => self.close = Some(close.expect("a code").code.into()),
            Message::Pong(_) => self.pongs += 1,
            Message::Ping(_) => {}
            other => panic!("nobody sends {other:?}"),
        }
    }

    fn of(&self, channel: u8) -> Vec<u8> {
        self.messages.iter().filter(|(of, _)| *of == channel).flat_map(|(_, bytes)| bytes.clone()).collect()
    }

    fn outcome(&self) -> Outcome {
        assert_eq!(self.messages.last().map(|(channel, _)| *channel), Some(3), "the status comes last");
        status::decode(&self.of(3))
    }

    fn assert_failed(&self) {
        assert!(matches!(self.outcome(), Outcome::Failed(_)), "{:?}", self.outcome());
        assert_eq!(self.close, Some(1000));
    }
}

/// Reads until the relay has closed.
async fn hear(client: &mut WebSocketStream<DuplexStream>) -> Told {
    let mut told = Told::default();
    while let Some(message) = client.next().await {
        match message {
            Ok(message) => told.add(message),
            Err(_) => break,
        }
    }
    told
}

fn message(channel: u8, bytes: &[u8]) -> Message {
    let mut message = vec![channel];
    message.extend_from_slice(bytes);
    Message::binary(message)
}

/// Reads DATA of `stream` until `length` bytes, or FIN, have come.
async fn collect<S: AsyncRead + AsyncWrite + Unpin>(
    upstream: &mut Upstream<S>,
    stream: u32,
    length: usize,
) -> (Vec<u8>, bool) {
    let mut bytes = Vec::new();
    while bytes.len() < length {
        match upstream.next_but_pings().await {
            Seen::Data(id, piece, fin) if id == stream => {
                bytes.extend_from_slice(&piece);
                if fin {
                    return (bytes, true);
                }
            }
            other => panic!("stdin was expected: {other:?}"),
        }
    }
    (bytes, false)
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 7 + at / 251) as u8).collect()
}

// Streams and their order.

#[tokio::test(start_paused = true)]
async fn all_streams_are_created_at_once_and_nothing_is_sent_on_them_before_all_replies() {
    let Ends { mut client, mut upstream, relay: _relay, .. } =
        start(Version::V4, options(true, true, true, true), ROOM).await;
    client.send(message(0, b"early")).await.unwrap();
    client.send(message(4, b"{}")).await.unwrap();
    client.send(message(255, &[0])).await.unwrap();
    for (id, name) in [(1, "error"), (3, "stdin"), (5, "stdout"), (7, "resize")] {
        assert_eq!(upstream.next().await, Seen::Syn(id, name.into()));
    }
    for id in [7, 1, 5] {
        let mut reply = Vec::new();
        upstream.headers.syn_reply(StreamId::new(id).unwrap(), &[], false, &mut reply);
        upstream.send(&reply).await;
        sleep(Duration::from_secs(1)).await;
        assert_eq!(upstream.next().now_or_never(), None, "one reply is missing");
    }
    let mut reply = Vec::new();
    upstream.headers.syn_reply(StreamId::new(3).unwrap(), &[], false, &mut reply);
    upstream.send(&reply).await;
    assert_eq!(upstream.next().await, Seen::Data(3, b"early".to_vec(), false));
    assert_eq!(upstream.next().await, Seen::Data(7, b"{}".to_vec(), false));
    assert_eq!(upstream.next().await, Seen::Data(3, b"".to_vec(), true));
}

#[tokio::test(start_paused = true)]
async fn streams_are_those_that_were_asked_for() {
    for (version, options, expected) in [
        (Version::V4, options(true, true, true, false), vec!["error", "stdin", "stdout", "stderr"]),
        (Version::V4, options(false, true, true, true), vec!["error", "stdout", "resize"]),
        (Version::V2, options(true, true, false, true), vec!["error", "stdin", "stdout"]),
        (Version::V1, options(false, false, true, false), vec!["error", "stderr"]),
    ] {
        let mut ends = start(version, options, ROOM).await;
        let created: Vec<_> = ends.upstream.accept(expected.len()).await.into_iter().map(|(_, name)| name).collect();
        assert_eq!(created, expected);
        sleep(Duration::from_secs(1)).await;
        assert_eq!(ends.upstream.next().now_or_never(), None);
    }
}

#[tokio::test(start_paused = true)]
async fn an_empty_message_on_the_lowest_channel_tells_the_client_that_it_is_connected() {
    for (options, lowest) in [
        (options(true, true, true, false), 1),
        (options(true, false, true, false), 2),
        (options(true, false, false, false), 3),
        (options(true, false, true, true), 3),
    ] {
        let mut ends = start(Version::V4, options, ROOM).await;
        assert_eq!(ends.client.next().await.unwrap().unwrap(), message(lowest, b""));
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_hears_nothing_for_25_ms_unless_it_has_spoken() {
    for speaks in [false, true] {
        let Ends { mut client, mut upstream, .. } = started().await;
        upstream.data(5, b"early", false).await;
        let sent = Instant::now();
        if speaks {
            client.send(message(0, b"x")).await.unwrap();
        }
        // Nothing of it is lost, and the greeting comes first.
        assert_eq!(client.next().await.unwrap().unwrap(), message(1, b""));
        assert_eq!(client.next().await.unwrap().unwrap(), message(1, b"early"));
        let wanted = if speaks { Duration::ZERO } else { Duration::from_millis(25) };
        assert!(sent.elapsed().abs_diff(wanted) < Duration::from_millis(2), "{:?}", sent.elapsed());
    }
}

// How sessions end.

#[tokio::test(start_paused = true)]
async fn output_then_status_then_close_when_upstream_ends_as_go_does() {
    let Ends { mut client, mut upstream, relay, .. } = started().await;
    upstream.data(5, b"out", false).await;
    upstream.data(7, b"err", false).await;
    upstream.data(5, b"", true).await;
    upstream.data(7, b"", true).await;
    upstream.data(1, EXIT_3, false).await;
    upstream.send(&rst(1)).await;
    upstream.send(&rst(3)).await;
    upstream.send(&frame::goaway(None, GoAwayCode::OK)).await;
    upstream.io.shutdown().await.unwrap();
    let told = hear(&mut client).await;
    assert_eq!(told.messages, [(1, b"out".to_vec()), (2, b"err".to_vec()), (3, EXIT_3.to_vec())]);
    assert_eq!(told.close, Some(1000));
    let report = relay.await.unwrap();
    assert_eq!(report.end, End::ExitCode(3));
    assert_eq!((report.bytes_in, report.bytes_out), (0, 6));
    assert_eq!((&*report.protocol_in, &*report.protocol_out), ("v5.channel.k8s.io", "v4.channel.k8s.io"));
}

#[tokio::test(start_paused = true)]
async fn a_status_that_comes_first_waits_for_the_output() {
    let Ends { mut client, mut upstream, relay, .. } = started().await;
    upstream.data(1, SUCCESS, true).await;
    upstream.data(7, b"", true).await;
    sleep(Duration::from_secs(7)).await;
    upstream.data(5, b"late", true).await;
    let told = hear(&mut client).await;
    assert_eq!(told.messages, [(1, b"late".to_vec()), (3, SUCCESS.to_vec())]);
    assert_eq!(relay.await.unwrap().end, End::Success);
    assert_eq!(upstream.next().await, Seen::Rst(1));
}

#[tokio::test(start_paused = true)]
async fn after_the_end_open_streams_are_reset_and_upstream_is_told() {
    let Ends { mut client, mut upstream, relay, .. } = started().await;
    upstream.end(SUCCESS, &[5, 7]).await;
    assert_eq!(hear(&mut client).await.close, Some(1000));
    let mut seen = Vec::new();
    loop {
        match upstream.next().await {
            Seen::End => break,
            other => seen.push(other),
        }
    }
    assert_eq!(seen, [Seen::Rst(1), Seen::Rst(3), Seen::Rst(5), Seen::Rst(7), Seen::GoAway]);
    relay.await.unwrap();
}

/// Every byte that a server says in one session, and where the session has succeeded for certain.
fn session(version: Version) -> (Vec<u8>, usize) {
    let mut bytes = Vec::new();
    let mut headers = HeaderEncoder::new();
    for id in [1, 3, 5, 7] {
        headers.syn_reply(StreamId::new(id).unwrap(), &[], false, &mut bytes);
    }
    if version == Version::V1 {
        // What v1 servers do as soon as they have the streams.
        bytes.extend(data(3, b"", true));
    }
    bytes.extend(data(5, b"some output", false));
    bytes.extend(data(7, b"some errors", false));
    bytes.extend(data(5, b"more", false));
    bytes.extend(data(5, b"", true));
    bytes.extend(data(7, b"", true));
    let told;
    if version.has_status() {
        bytes.extend(data(1, SUCCESS, false));
        told = bytes.len();
        bytes.extend(rst(1));
    } else {
        bytes.extend(rst(1));
        told = bytes.len();
    }
    bytes.extend(rst(3));
    bytes.extend(frame::goaway(None, GoAwayCode::OK));
    (bytes, told)
}

#[tokio::test(start_paused = true)]
async fn an_upstream_cut_at_any_byte_is_a_success_only_if_all_was_there() {
    for version in [Version::V4, Version::V3, Version::V1] {
        let (bytes, all_told) = session(version);
        for cut in 0..=bytes.len() {
            for broken in [false, true] {
                let (client, ours) = duplex(ROOM);
                let theirs = Script { reads: VecDeque::from([bytes[..cut].to_vec()]), broken };
                let options = options(true, true, true, false);
                let relay = tokio::spawn(async move {
                    super::run(ours, theirs, version, &options, &LIMITS, CancellationToken::new()).await
                });
                let mut client = WebSocketStream::from_raw_socket(client, TungsteniteRole::Client, None).await;
                let told = hear(&mut client).await;
                let case = format!("{version} cut at {cut}, broken {broken}");
                assert_eq!(told.close, Some(1000), "{case}");
                if cut < all_told {
                    assert!(matches!(told.outcome(), Outcome::Failed(_)), "{case}: {told:?}");
                    assert_eq!(relay.await.unwrap().end, End::Error, "{case}");
                } else {
                    assert_eq!(told.outcome(), Outcome::Exited(Exit::Success), "{case}");
                    assert_eq!(relay.await.unwrap().end, End::Success, "{case}");
                    assert_eq!(told.of(1), b"some outputmore");
                }
                assert!(b"some outputmore".starts_with(&told.of(1)), "{case}");
            }
        }
    }
}

/// Brings what it has, then ends or breaks; takes everything.
struct Script {
    reads: VecDeque<Vec<u8>>,
    broken: bool,
}

impl AsyncRead for Script {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.reads.pop_front() {
            Some(bytes) => buf.put_slice(&bytes),
            None if self.broken => return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
            None => {}
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Script {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(buf.len()))
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[tokio::test(start_paused = true)]
async fn garbage_of_upstream_ends_in_a_failure_behind_the_output_before_it() {
    let Ends { mut client, mut upstream, relay, .. } = started().await;
    let mut bytes = data(5, b"good", false);
    bytes.extend_from_slice(&[0xff; 64]);
    upstream.send(&bytes).await;
    let told = hear(&mut client).await;
    assert_eq!(told.of(1), b"good");
    told.assert_failed();
    assert_eq!(relay.await.unwrap().end, End::Error);
}

#[tokio::test(start_paused = true)]
async fn what_upstream_says_in_place_of_a_status_is_told_to_the_client_only() {
    for said in [&b"secret"[..], br#"{"status":"Success"} secret"#, br#"{"status":"secret"}"#] {
        for version in [Version::V2, Version::V4] {
            let mut ends = start(version, options(false, true, false, false), ROOM).await;
            ends.upstream.accept(2).await;
            ends.upstream.end(said, &[3]).await;
            hear(&mut ends.client).await.assert_failed();
            assert!(!ends.relay.await.unwrap().cause.contains("secret"));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_status_is_bounded_and_sent_in_messages_of_32_kib() {
    let Ends { mut client, mut upstream, relay, .. } = started().await;
    upstream.data(5, b"", true).await;
    upstream.data(7, b"", true).await;
    let long = format!(r#"{{"status":"Failure","message":"{}"}}"#, "x".repeat(60_000));
    upstream.data(1, long.as_bytes(), true).await;
    let mut status = Vec::new();
    while let Some(Ok(message)) = client.next().await {
        if let Message::Binary(bytes) = message {
            assert!(bytes.len() <= 32 * 1024);
            if bytes[0] == 3 {
                status.extend_from_slice(&bytes[1..]);
            }
        }
    }
    assert_eq!(status, long.as_bytes());
    assert_eq!(relay.await.unwrap().end, End::Error);

    let Ends { mut client, mut upstream, .. } = started().await;
    for _ in 0..100 {
        upstream.data(1, &[b'x'; 10_000], false).await;
    }
    upstream.end(b"", &[5, 7]).await;
    let told = hear(&mut client).await;
    told.assert_failed();
    assert!(told.of(3).len() < 300_000);
}

#[tokio::test(start_paused = true)]
async fn a_refused_stream_is_a_failure() {
    let Ends { mut client, mut upstream, relay, .. } = start(Version::V4, options(true, true, true, false), ROOM).await;
    upstream.next().await;
    upstream.send(&frame::rst(StreamId::new(3).unwrap(), ResetCode::REFUSED_STREAM)).await;
    hear(&mut client).await.assert_failed();
    assert!(relay.await.unwrap().cause.contains("REFUSED_STREAM"));
}

#[tokio::test(start_paused = true)]
async fn streams_that_get_no_reply_fail_after_thirty_seconds() {
    let Ends { mut client, upstream, relay, .. } = start(Version::V4, options(true, true, true, false), ROOM).await;
    let started = Instant::now();
    hear(&mut client).await.assert_failed();
    let took = started.elapsed().as_secs();
    assert!((30..=35).contains(&took), "{took}");
    assert_eq!(relay.await.unwrap().end, End::Error);
    drop(upstream);
}

#[tokio::test(start_paused = true)]
async fn fins_on_replies_count() {
    let Ends { mut client, mut upstream, .. } = start(Version::V4, options(false, true, false, false), ROOM).await;
    let mut bytes = Vec::new();
    upstream.headers.syn_reply(StreamId::new(1).unwrap(), &[], false, &mut bytes);
    upstream.headers.syn_reply(StreamId::new(3).unwrap(), &[], true, &mut bytes);
    bytes.extend(data(1, SUCCESS, true));
    upstream.send(&bytes).await;
    assert_eq!(hear(&mut client).await.outcome(), Outcome::Exited(Exit::Success));
}

#[tokio::test(start_paused = true)]
async fn a_drain_tells_the_client_and_upstream() {
    let Ends { mut client, mut upstream, relay, drain } = started().await;
    upstream.data(5, b"before", false).await;
    sleep(Duration::from_secs(1)).await;
    drain.cancel();
    let told = hear(&mut client).await;
    assert_eq!(told.of(1), b"before");
    told.assert_failed();
    assert_eq!(upstream.next_but_pings().await, Seen::Rst(1));
    assert_eq!(relay.await.unwrap().cause, "the server is shutting down");
}

#[tokio::test(start_paused = true)]
async fn a_session_without_upstream_is_a_status_and_a_close() {
    let (client, ours) = duplex(ROOM);
    let relay = tokio::spawn(async move { super::fail(ours, "no such runtime", &LIMITS).await });
    let mut client = WebSocketStream::from_raw_socket(client, TungsteniteRole::Client, None).await;
    let told = hear(&mut client).await;
    told.assert_failed();
    assert!(String::from_utf8(told.of(3)).unwrap().contains("no such runtime"));
    assert_eq!(relay.await.unwrap().end, End::Error);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_answer_the_close_is_left_after_ten_seconds() {
    let (client, mut upstream, relay, _drain) = raw(Version::V4, options(false, true, false, false), ROOM).await;
    upstream.accept(2).await;
    upstream.end(SUCCESS, &[3]).await;
    let started = Instant::now();
    assert_eq!(relay.await.unwrap().end, End::Success);
    assert!(started.elapsed() <= Duration::from_secs(15), "{:?}", started.elapsed());
    drop(client);
}

#[tokio::test(start_paused = true)]
async fn a_session_in_which_nothing_is_said_ends_after_four_hours_whatever_is_pinged() {
    let Ends { mut client, mut upstream, relay, .. } = started().await;
    let started = Instant::now();
    let (told, ()) = tokio::join!(hear(&mut client), async { while upstream.next_but_pings().await != Seen::End {} });
    told.assert_failed();
    let took = started.elapsed().as_secs();
    assert!((4 * 3600..4 * 3600 + 10).contains(&took), "{took}");
    assert_eq!(relay.await.unwrap().end, End::Error);
}

// Stdin and resize.

#[tokio::test(start_paused = true)]
async fn a_close_of_stdin_is_one_fin_and_what_follows_is_ignored() {
    let Ends { mut client, mut upstream, .. } = started().await;
    client.send(message(0, b"in")).await.unwrap();
    client.send(message(255, &[0])).await.unwrap();
    client.send(message(0, b"after")).await.unwrap();
    client.send(message(255, &[0])).await.unwrap();
    client.send(message(255, &[4])).await.unwrap();
    client.send(message(255, &[1])).await.unwrap();
    let (bytes, fin) = collect(&mut upstream, 3, usize::MAX).await;
    assert_eq!((&*bytes, fin), (&b"in"[..], true));
    sleep(Duration::from_secs(1)).await;
    assert_eq!(upstream.next().now_or_never(), None);
    upstream.end(SUCCESS, &[5, 7]).await;
    assert_eq!(hear(&mut client).await.outcome(), Outcome::Exited(Exit::Success));
}

#[tokio::test(start_paused = true)]
async fn v1_has_no_half_close_and_loses_no_stdin_to_the_fin_of_its_server() {
    let mut ends = start(Version::V1, options(true, true, false, false), ROOM).await;
    ends.upstream.accept(3).await;
    ends.upstream.data(3, b"", true).await;
    ends.upstream.send(&rst(1)).await;
    ends.client.send(message(0, b"in")).await.unwrap();
    assert_eq!(ends.upstream.next().await, Seen::Data(3, b"in".to_vec(), false));
    ends.client.send(message(255, &[0])).await.unwrap();
    sleep(Duration::from_secs(1)).await;
    assert_eq!(ends.upstream.next().now_or_never(), None);
    ends.upstream.data(5, b"out", true).await;
    let told = hear(&mut ends.client).await;
    assert_eq!(told.messages, [(1, b"out".to_vec()), (3, SUCCESS.to_vec())]);
}

#[tokio::test(start_paused = true)]
async fn sizes_go_on_only_where_there_is_a_terminal() {
    let size = br#"{"Width":80,"Height":24}"#;
    let mut ends = start(Version::V4, options(true, true, false, true), ROOM).await;
    ends.upstream.accept(4).await;
    ends.client.send(message(4, size)).await.unwrap();
    assert_eq!(ends.upstream.next().await, Seen::Data(7, size.to_vec(), false));

    let mut ends = started().await;
    for _ in 0..10_000 {
        ends.client.send(message(4, size)).await.unwrap();
    }
    ends.client.send(message(0, b"typed")).await.unwrap();
    assert_eq!(ends.upstream.next().await, Seen::Data(3, b"typed".to_vec(), false));
}

#[tokio::test(start_paused = true)]
async fn messages_for_streams_that_were_not_asked_for_or_go_the_other_way_are_ignored() {
    let mut ends = start(Version::V4, options(false, true, false, false), ROOM).await;
    ends.upstream.accept(2).await;
    for channel in [0, 1, 2, 3, 4, 5, 99] {
        ends.client.send(message(channel, b"x")).await.unwrap();
    }
    ends.client.send(message(255, &[0])).await.unwrap();
    sleep(Duration::from_secs(1)).await;
    assert_eq!(ends.upstream.next().now_or_never(), None);
    ends.upstream.end(SUCCESS, &[3]).await;
    assert_eq!(hear(&mut ends.client).await.outcome(), Outcome::Exited(Exit::Success));
}

#[tokio::test(start_paused = true)]
async fn stdin_that_upstream_has_reset_is_thrown_away_and_the_session_goes_on() {
    let Ends { mut client, mut upstream, relay, .. } = started().await;
    upstream.send(&rst(3)).await;
    sleep(Duration::from_secs(1)).await;
    for _ in 0..100 {
        client.send(message(0, &[0; 8192])).await.unwrap();
    }
    upstream.data(5, b"out", true).await;
    upstream.end(SUCCESS, &[7]).await;
    let told = hear(&mut client).await;
    assert_eq!(told.of(1), b"out");
    assert_eq!(told.outcome(), Outcome::Exited(Exit::Success));
    assert_eq!(upstream.next().await, Seen::Rst(1), "no stdin, and no reset of what is reset");
    assert_eq!(relay.await.unwrap().end, End::Success);
}

#[tokio::test(start_paused = true)]
async fn many_tiny_messages_arrive_whole_and_in_few_frames() {
    let Ends { mut client, mut upstream, .. } = started().await;
    let sent = pattern(20_000);
    let expected = sent.clone();
    let writer = tokio::spawn(async move {
        for byte in sent {
            client.feed(message(0, &[byte])).await.unwrap();
        }
        client.send(message(255, &[0])).await.unwrap();
        client
    });
    let (mut bytes, mut frames) = (Vec::new(), 0);
    loop {
        let Seen::Data(3, piece, fin) = upstream.next().await else { panic!("stdin was expected") };
        bytes.extend_from_slice(&piece);
        frames += 1;
        if fin {
            break;
        }
    }
    assert_eq!(bytes, expected);
    assert!(frames < 500, "{frames} frames");
    writer.await.unwrap();
}

// Keep-alive.

#[tokio::test(start_paused = true)]
async fn pings_of_upstream_are_echoed_if_they_are_its_own() {
    let Ends { client: _client, mut upstream, .. } = started().await;
    upstream.send(&frame::ping(1)).await;
    upstream.send(&frame::ping(2)).await;
    assert_eq!(upstream.next().await, Seen::Ping(2));
}

#[tokio::test(start_paused = true)]
async fn pings_of_the_client_are_answered_while_output_flows() {
    let Ends { client, mut upstream, relay, .. } = started().await;
    let writer = tokio::spawn(async move {
        let bytes = pattern(16 * 1024);
        for _ in 0..200 {
            upstream.data(5, &bytes, false).await;
        }
        upstream.end(SUCCESS, &[5, 7]).await;
        upstream
    });
    let (mut sink, mut stream) = client.split();
    let mut told = Told::default();
    let mut pinged = 0;
    while let Some(Ok(message)) = stream.next().await {
        if pinged < 50 {
            pinged += 1;
            ping(&mut sink).await;
        }
        told.add(message);
    }
    assert_eq!(told.pongs, pinged);
    assert_eq!(told.of(1).len(), 200 * 16 * 1024);
    assert_eq!(relay.await.unwrap().end, End::Success);
    drop(writer.await.unwrap());
}

async fn ping(sink: &mut SplitSink<WebSocketStream<DuplexStream>, Message>) {
    sink.send(Message::Ping(b"are you there"[..].into())).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_client_whose_stdin_nobody_takes_hears_a_pong_every_five_seconds_and_loses_nothing() {
    let (client, mut upstream, relay, _drain) = raw(Version::V4, options(true, true, false, false), 4096).await;
    let client = WebSocketStream::from_raw_socket(client, TungsteniteRole::Client, None).await;
    upstream.accept(3).await;
    let (mut sink, mut stream) = client.split();
    let sent = pattern(300_000);
    let expected = sent.clone();
    let writer = tokio::spawn(async move {
        for chunk in sent.chunks(5000) {
            sink.send(message(0, chunk)).await.unwrap();
        }
        sink.send(message(255, &[0])).await.unwrap();
        sink
    });
    let reader = tokio::spawn(async move {
        let (mut told, mut pongs) = (Told::default(), Vec::new());
        while let Some(Ok(message)) = stream.next().await {
            if message.is_pong() {
                pongs.push(Instant::now());
            }
            told.add(message);
        }
        (told, pongs)
    });
    let started = Instant::now();
    sleep(Duration::from_secs(30)).await;
    // Output still flows.
    upstream.data(5, b"meanwhile", false).await;
    sleep(Duration::from_secs(270)).await;
    assert!(!writer.is_finished(), "the client is not read beyond a buffer");
    let released = Instant::now();
    let (bytes, fin) = collect(&mut upstream, 3, usize::MAX).await;
    assert!(fin);
    assert!(bytes == expected);
    upstream.end(SUCCESS, &[5]).await;
    let (told, pongs) = reader.await.unwrap();
    assert_eq!(told.of(1), b"meanwhile");
    assert_eq!(told.outcome(), Outcome::Exited(Exit::Success));
    let gaps = [started].into_iter().chain(pongs.iter().copied()).collect::<Vec<_>>();
    assert!(gaps.windows(2).all(|pair| pair[1] - pair[0] <= Duration::from_secs(11)), "{:?}", pongs.len());
    assert!(pongs.iter().filter(|at| **at <= released).count() >= 58);
    assert_eq!(relay.await.unwrap().end, End::Success);
    drop(writer.await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_client_that_stalls_for_minutes_loses_nothing_and_upstream_is_not_read_meanwhile() {
    let (client, mut upstream, relay, _drain) = raw(Version::V4, options(true, true, false, false), 4096).await;
    upstream.accept(3).await;
    let mut client = WebSocketStream::from_raw_socket(client, TungsteniteRole::Client, None).await;
    let sent = pattern(500_000);
    let expected = sent.clone();
    let (mut upstream, mut near) = upstream.split();
    let written = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = written.clone();
    let writer = tokio::spawn(async move {
        for chunk in sent.chunks(4000) {
            near.write_all(&data(5, chunk, false)).await.unwrap();
            count.fetch_add(chunk.len(), std::sync::atomic::Ordering::Relaxed);
        }
        near.write_all(&data(5, b"", true)).await.unwrap();
        near.write_all(&data(1, SUCCESS, true)).await.unwrap();
        near
    });
    for _ in 0..10 {
        sleep(Duration::from_secs(60)).await;
        assert!(written.load(std::sync::atomic::Ordering::Relaxed) < 80_000);
        assert!(!relay.is_finished());
    }
    // Stdin still flows.
    client.send(message(0, b"typed")).await.unwrap();
    let mut seen = upstream.next().await;
    while matches!(seen, Seen::Ping(_)) {
        seen = upstream.next().await;
    }
    assert_eq!(seen, Seen::Data(3, b"typed".to_vec(), false));
    let told = hear(&mut client).await;
    assert!(told.of(1) == expected);
    assert_eq!(told.outcome(), Outcome::Exited(Exit::Success));
    assert_eq!(relay.await.unwrap().end, End::Success);
    drop(writer.await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_silent_upstream_is_pinged_after_ten_seconds_and_dead_after_sixty() {
    let Ends { mut client, mut upstream, relay, .. } = started().await;
    let started = Instant::now();
    let upstream = tokio::spawn(async move {
        let mut pings = Vec::new();
        while let Seen::Ping(id) = upstream.next().await {
            assert_eq!(id % 2, 1);
            pings.push(started.elapsed().as_secs());
        }
        pings
    });
    let told = hear(&mut client).await;
    told.assert_failed();
    let took = started.elapsed().as_secs();
    assert!((60..=65).contains(&took), "{took}");
    assert!(relay.await.unwrap().cause.contains("next hop was silent"));
    let pings = upstream.await.unwrap();
    assert!((10..=15).contains(&pings[0]), "{pings:?}");
    assert!(pings.len() >= 4, "{pings:?}");
}

#[tokio::test(start_paused = true)]
async fn a_silent_client_is_pinged_after_ten_seconds_and_dead_after_sixty() {
    let (mut client, mut upstream, relay, _drain) = raw(Version::V4, options(true, true, true, false), ROOM).await;
    upstream.accept(4).await;
    let started = Instant::now();
    let upstream = tokio::spawn(async move { while upstream.next_but_pings().await != Seen::End {} });
    let mut heard = vec![0; 3];
    client.read_exact(&mut heard).await.unwrap();
    assert_eq!(heard, [0x82, 1, 1]);
    client.read_exact(&mut heard[..2]).await.unwrap();
    assert_eq!(heard[..2], [0x89, 0], "a Ping");
    assert!((10..=15).contains(&started.elapsed().as_secs()));
    client.read_to_end(&mut heard).await.unwrap();
    assert!(heard.ends_with(&[0x88, 2, 0x03, 0xe8]));
    let report = relay.await.unwrap();
    assert!(report.cause.contains("client was silent"), "{report:?}");
    assert!((60..=80).contains(&started.elapsed().as_secs()));
    upstream.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn peers_that_answer_pings_keep_an_idle_session_for_hours() {
    let Ends { mut client, mut upstream, relay, .. } = started().await;
    let upstream = tokio::spawn(async move {
        let end = sleep(Duration::from_secs(3 * 3600));
        tokio::pin!(end);
        loop {
            tokio::select! {
                seen = upstream.next() => match seen {
                    Seen::Ping(id) => upstream.send(&frame::ping(id)).await,
                    other => panic!("{other:?}"),
                },
                () = &mut end => break,
            }
        }
        upstream.end(SUCCESS, &[5, 7]).await;
        upstream
    });
    assert_eq!(hear(&mut client).await.outcome(), Outcome::Exited(Exit::Success));
    assert_eq!(relay.await.unwrap().end, End::Success);
    upstream.await.unwrap();
}

// Clients that go.

async fn assert_reset(upstream: &mut Upstream) {
    let mut seen = Vec::new();
    loop {
        match upstream.next().await {
            Seen::End => break,
            Seen::Ping(_) | Seen::Data(..) => {}
            other => seen.push(other),
        }
    }
    assert_eq!(seen, [Seen::Rst(1), Seen::Rst(3), Seen::Rst(5), Seen::Rst(7), Seen::GoAway]);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_vanishes_resets_all_streams_at_once() {
    let Ends { client, mut upstream, relay, .. } = started().await;
    let started = Instant::now();
    drop(client);
    assert_reset(&mut upstream).await;
    assert_eq!(relay.await.unwrap().end, End::ClientGone);
    assert!(started.elapsed() < Duration::from_secs(1));
}

/// Takes a hundred bytes, then none until it breaks; brings nothing.
struct Breaks {
    taken: usize,
    broken: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl AsyncRead for Breaks {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Poll::Pending
    }
}

impl AsyncWrite for Breaks {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let size = buf.len().min(100 - self.taken);
        if size == 0 {
            return self.broken.as_mut().poll(cx).map(|()| Err(io::ErrorKind::BrokenPipe.into()));
        }
        self.taken += size;
        Poll::Ready(Ok(size))
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Pending
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_cannot_be_written_to_is_gone_at_once() {
    let (upstream, theirs) = duplex(ROOM);
    let broken = CancellationToken::new();
    let client = Breaks { taken: 0, broken: Box::pin(broken.clone().cancelled_owned()) };
    let options = options(true, true, true, false);
    let relay = tokio::spawn(async move {
        super::run(client, theirs, Version::V4, &options, &LIMITS, CancellationToken::new()).await
    });
    let mut upstream = Upstream::new(upstream);
    upstream.accept(4).await;
    upstream.data(5, &[7; 1000], false).await;
    sleep(Duration::from_secs(1)).await;
    broken.cancel();
    let started = Instant::now();
    assert_reset(&mut upstream).await;
    assert_eq!(relay.await.unwrap().end, End::ClientGone);
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_client_that_closes_gets_a_close_and_upstream_gets_its_stdin_first() {
    let Ends { mut client, mut upstream, relay, .. } = started().await;
    client.feed(message(0, b"last words")).await.unwrap();
    client.send(Message::Close(Some(CloseFrame { code: CloseCode::Away, reason: "".into() }))).await.unwrap();
    assert_eq!(collect(&mut upstream, 3, 10).await.0, b"last words");
    assert_reset(&mut upstream).await;
    let told = hear(&mut client).await;
    assert_eq!(told.close, Some(1000));
    assert_eq!(relay.await.unwrap().end, End::ClientGone);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_breaks_the_protocol_gets_a_status_and_its_close_code() {
    let stdin = [0x82, 0x83, 0, 0, 0, 0, 0, b'h', b'i'];
    for (wrong, code) in [
        (&[0x82, 0x01, 0x00][..], 1002),
        (&[0xc2, 0x80, 0, 0, 0, 0], 1002),
        (&[0x82, 0x81, 0, 0, 0, 0, 0xff], 1002),
        (&[0x82, 0x82, 0, 0, 0, 0, 0xff, 9], 1002),
        (&[0x82, 0xff, 0, 0, 0, 0, 0xff, 0, 0, 0, 0, 0, 0, 0, 0], 1009),
    ] {
        let (mut client, mut upstream, relay, _drain) = raw(Version::V4, options(true, true, true, false), ROOM).await;
        upstream.accept(4).await;
        // In one read with good stdin, which still arrives.
        client.write_all(&[&stdin[..], wrong, &[0; 5000]].concat()).await.unwrap();
        assert_eq!(collect(&mut upstream, 3, 2).await.0, b"hi", "{wrong:02x?}");
        assert_reset(&mut upstream).await;
        // What it goes on to send is taken, so that the status is not lost to a reset.
        client.write_all(&[0; 300_000]).await.unwrap();
        client.shutdown().await.unwrap();
        let mut heard = Vec::new();
        client.read_to_end(&mut heard).await.unwrap();
        let [.., 0x88, 2, high, low] = *heard else { panic!("no Close: {heard:02x?}") };
        assert_eq!(u16::from_be_bytes([high, low]), code, "{wrong:02x?}");
        let text = String::from_utf8_lossy(&heard);
        assert!(text.contains(r#""status":"Failure""#), "{text}");
        assert_eq!(relay.await.unwrap().end, End::Error);
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_is_gone_while_its_stdin_is_stuck_is_noticed() {
    let (client, mut upstream, relay, _drain) = raw(Version::V4, options(true, true, true, false), 1024).await;
    upstream.accept(4).await;
    let mut client = WebSocketStream::from_raw_socket(client, TungsteniteRole::Client, None).await;
    let _ = tokio::time::timeout(Duration::from_secs(1), async {
        loop {
            client.send(message(0, &[0; 1000])).await.unwrap();
        }
    })
    .await;
    drop(client);
    let report = tokio::time::timeout(Duration::from_secs(30), relay).await.expect("noticed").unwrap();
    assert_eq!(report.end, End::ClientGone);
    drop(upstream);
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_stdin_does_not_keep_output_back() {
    // Both always ready: the budget of a task is used up by whoever is polled first.
    struct Flood(bool);
    impl AsyncRead for Flood {
        fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            let budget = std::task::ready!(tokio::task::coop::poll_proceed(cx));
            budget.made_progress();
            if self.0 {
                return Poll::Ready(Ok(()));
            }
            while buf.remaining() >= 106 {
                buf.put_slice(&[0x82, 0x80 | 100, 0, 0, 0, 0]);
                buf.put_slice(&[0; 100]);
            }
            Poll::Ready(Ok(()))
        }
    }
    impl AsyncWrite for Flood {
        fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            std::task::ready!(tokio::task::coop::poll_proceed(cx)).made_progress();
            self.0 |= buf.ends_with(&[0x88, 2, 0x03, 0xe8]);
            Poll::Ready(Ok(buf.len()))
        }
        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }
    // So wide that upstream, too, is always ready.
    let (upstream, theirs) = duplex(1 << 28);
    let options = options(true, true, false, false);
    let relay = tokio::spawn(async move {
        super::run(Flood(false), theirs, Version::V4, &options, &LIMITS, CancellationToken::new()).await
    });
    let mut upstream = Upstream::new(upstream);
    upstream.accept(3).await;
    let (mut far, mut near) = tokio::io::split(upstream.io);
    let reader = tokio::spawn(async move { tokio::io::copy(&mut far, &mut tokio::io::sink()).await });
    for _ in 0..50 {
        near.write_all(&data(5, &[7; 32 * 1024], false)).await.unwrap();
    }
    near.write_all(&data(5, b"", true)).await.unwrap();
    near.write_all(&data(1, SUCCESS, true)).await.unwrap();
    let report = relay.await.unwrap();
    assert_eq!((report.end, report.bytes_out), (End::Success, 50 * 32 * 1024));
    assert!(report.bytes_in > 0 && report.bytes_in < 10 * report.bytes_out, "{report:?}");
    reader.await.unwrap().unwrap();
}

// Everything, cut anywhere.

/// Cuts every read and write at sizes that look random, and is Pending now and then.
struct Chop<S> {
    io: S,
    random: u64,
    most: usize,
}

impl<S> Chop<S> {
    fn new(io: S, seed: u64, most: usize) -> Self {
        Self { io, random: seed | 1, most }
    }

    fn next(&mut self) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random as usize
    }

    /// How much may go now; 0 is Pending.
    fn size(&mut self, cx: &mut Context<'_>) -> usize {
        if self.next().is_multiple_of(4) {
            cx.waker().wake_by_ref();
            return 0;
        }
        1 + self.next() % self.most
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Chop<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let size = self.size(cx);
        if size == 0 {
            return Poll::Pending;
        }
        let mut part = buf.take(size);
        std::task::ready!(Pin::new(&mut self.io).poll_read(cx, &mut part))?;
        let read = part.filled().len();
        buf.advance(read);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Chop<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let size = self.size(cx);
        if size == 0 {
            return Poll::Pending;
        }
        Pin::new(&mut self.io).poll_write(cx, &buf[..buf.len().min(size)])
    }

    /// Cut across the pieces, as a socket does it.
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let size = self.size(cx);
        if size == 0 {
            return Poll::Pending;
        }
        let mut joined: Vec<u8> = bufs.iter().flat_map(|buf| buf.iter().copied()).collect();
        joined.truncate(size);
        Pin::new(&mut self.io).poll_write(cx, &joined)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

async fn carries(stdin: Vec<Vec<u8>>, output: Vec<(bool, Vec<u8>)>, code: u8, seed: u64, most: usize, room: usize) {
    let (client, ours) = duplex(room);
    let (upstream, theirs) = duplex(room);
    let options = options(true, true, true, false);
    let (ours, theirs) = (Chop::new(ours, seed, most), Chop::new(theirs, seed ^ 0x9e37_79b9, most));
    let relay = tokio::spawn(async move {
        super::run(ours, theirs, Version::V4, &options, &LIMITS, CancellationToken::new()).await
    });
    let client = WebSocketStream::from_raw_socket(client, TungsteniteRole::Client, None).await;
    let mut upstream = Upstream::new(upstream);

    let typed = stdin.concat();
    let printed = output.clone();
    let client = tokio::spawn(async move {
        let (mut sink, mut stream) = client.split();
        let write = async {
            for (at, piece) in stdin.iter().enumerate() {
                sink.send(message(0, piece)).await.unwrap();
                if at % 3 == 0 {
                    ping(&mut sink).await;
                }
            }
            sink.send(message(255, &[0])).await.unwrap();
        };
        let read = async {
            let mut told = Told::default();
            while let Some(Ok(message)) = stream.next().await {
                told.add(message);
            }
            told
        };
        tokio::join!(read, write).0
    });
    upstream.accept(4).await;
    let (mut reader, mut near) = upstream.split();
    let write = async {
        for (at, (errors, bytes)) in output.iter().enumerate() {
            near.write_all(&data(if *errors { 7 } else { 5 }, bytes, false)).await.unwrap();
            if at % 4 == 0 {
                near.write_all(&frame::ping(2)).await.unwrap();
            }
        }
    };
    let read = async {
        let mut bytes = Vec::new();
        loop {
            match reader.next().await {
                Seen::Data(3, piece, fin) => {
                    bytes.extend_from_slice(&piece);
                    if fin {
                        return bytes;
                    }
                }
                Seen::Ping(_) => {}
                other => panic!("{other:?}"),
            }
        }
    };
    let (received, ()) = tokio::join!(read, write);
    assert!(received == typed);
    let exit = if code == 0 { Exit::Success } else { Exit::Code(code) };
    let status = status::encode(Version::V4, &Ok(exit.clone()));
    for end in [data(5, b"", true), data(7, b"", true), data(1, status.as_bytes(), false), rst(1).to_vec()] {
        near.write_all(&end).await.unwrap();
    }
    let told = client.await.unwrap();
    for (channel, errors) in [(1, false), (2, true)] {
        let expected: Vec<u8> =
            printed.iter().filter(|(of, _)| *of == errors).flat_map(|(_, bytes)| bytes.clone()).collect();
        assert!(told.of(channel) == expected, "channel {channel}");
    }
    assert_eq!(told.outcome(), Outcome::Exited(exit));
    assert_eq!(told.close, Some(1000));
    let report = relay.await.unwrap();
    assert_eq!(report.bytes_in, typed.len() as u64);
    drop((near, reader));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(48) })]

    #[test]
    fn any_bytes_cut_anywhere_arrive_the_same_in_both_directions(
        stdin in prop::collection::vec(payload(), 0..12),
        output in prop::collection::vec((any::<bool>(), payload()), 0..12),
        code in any::<u8>(),
        seed in any::<u64>(),
        most in prop::sample::select(vec![1, 7, 600, 5000, 40_000]),
        room in prop::sample::select(vec![1, 100, 70_000]),
    ) {
        let (mut stdin, mut output) = (stdin, output);
        if most.min(room) < 500 {
            // Byte by byte, long payloads take minutes.
            stdin.iter_mut().for_each(|bytes| bytes.truncate(300));
            output.iter_mut().for_each(|(_, bytes)| bytes.truncate(300));
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(carries(stdin, output, code, seed, most, room));
    }
}

fn payload() -> impl Strategy<Value = Vec<u8>> {
    let length = prop_oneof![0usize..20, 100usize..2000, 30_000usize..34_000];
    (length, any::<u8>())
        .prop_map(|(length, first)| (0..length).map(|at| (at as u8).wrapping_mul(31) ^ first).collect())
}

#[test]
fn a_session_is_small() {
    let size = size_of::<super::state::Relay<crate::upgrade::Io, crate::upgrade::Io>>();
    assert!(size < 2048, "{size} bytes");
}
