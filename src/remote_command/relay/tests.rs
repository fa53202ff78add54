//! A relay between a real WebSocket client and a scripted SPDY server.

mod clients_that_go;
mod cuts;
mod endings;
mod input;
mod keep_alive;
mod limits;
mod streams;

use std::time::Duration;

use futures_util::{SinkExt, StreamExt, stream::SplitSink};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf, duplex},
    task::JoinHandle,
    time::{Instant, sleep},
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, protocol::Role as TungsteniteRole},
};
use tokio_util::sync::CancellationToken;

use super::run;
use crate::{
    remote_command::{
        Exit, Version,
        fixtures::{LIMITS, SUCCESS, data, rst},
        status::{self, Outcome},
    },
    spdy::{
        codec::{Decoder, Event, HeaderMode, Limits},
        frame::{self, HeaderEncoder, StreamId},
    },
    upgrade::{Cause, End, Report, SessionLimits, StreamOptions},
};

/// As for a client that nothing is known of.
const SETTLING: Duration = Duration::from_millis(25);

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
    raw_within(LIMITS, version, options, room).await
}

async fn raw_within(
    limits: SessionLimits,
    version: Version,
    options: StreamOptions,
    room: usize,
) -> (DuplexStream, Upstream, JoinHandle<Report>, CancellationToken) {
    let (client, ours) = duplex(room);
    let (upstream, theirs) = duplex(room);
    let drain = CancellationToken::new();
    let token = drain.clone();
    let relay = tokio::spawn(async move { run(ours, theirs, version, &options, &limits, SETTLING, token).await });
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

async fn ping(sink: &mut SplitSink<WebSocketStream<DuplexStream>, Message>) {
    sink.send(Message::Ping(b"are you there"[..].into())).await.unwrap();
}

#[test]
fn a_session_is_small() {
    let size = size_of::<super::state::Relay<crate::upgrade::Io, crate::upgrade::Io>>();
    assert!(size < 2048, "{size} bytes");
}
