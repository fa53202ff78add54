use std::{future::poll_fn, sync::atomic::AtomicBool, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    task::JoinHandle,
};

use super::*;
use crate::spdy::{
    codec::{Event, HeaderMode, Step},
    frame::{self, GoAwayCode, HeaderEncoder},
    stream::RecvEnd,
};

type Task = JoinHandle<Result<(), Error>>;

/// A client and a server, connected.
struct Pair {
    client: Handle,
    incoming: Incoming,
    server: Handle,
    client_task: Task,
    server_task: Task,
}

fn pair() -> Pair {
    pair_of(Config::new(), Config::new())
}

fn pair_of(client: Config, server_config: Config) -> Pair {
    let (near, far) = duplex(64 * 1024);
    let (client, connection) = super::client(near, client);
    let client_task = tokio::spawn(connection);
    let (incoming, server, connection) = server(far, server_config);
    Pair { client, incoming, server, client_task, server_task: tokio::spawn(connection) }
}

impl Pair {
    /// A stream as both ends see it.
    async fn stream(&mut self) -> (Stream, Stream) {
        let opening = self.client.open_unreplied(&[("streamType", "data")]).unwrap();
        let far = self.incoming.accept().await.unwrap();
        far.reply();
        (opening.await.unwrap(), far)
    }
}

/// A peer that is played by hand.
struct Peer {
    io: DuplexStream,
    decoder: Decoder,
    encoder: HeaderEncoder,
}

impl Peer {
    fn new(io: DuplexStream) -> Self {
        Self { io, decoder: Decoder::new(codec::Limits::default(), HeaderMode::Inflate), encoder: HeaderEncoder::new() }
    }

    async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.io.write_all(bytes.as_ref()).await.unwrap();
    }

    async fn data(&mut self, stream: u32, payload: &[u8], fin: bool) {
        self.send(frame::data_head(id(stream), payload.len(), fin)).await;
        self.send(payload).await;
    }

    async fn syn(&mut self, stream: u32) {
        let mut out = Vec::new();
        self.encoder.syn_stream(id(stream), &[("streamType", "data")], false, &mut out);
        self.send(out).await;
    }

    async fn reply(&mut self, stream: u32) {
        let mut out = Vec::new();
        self.encoder.syn_reply(id(stream), &[], false, &mut out);
        self.send(out).await;
    }

    /// The next frame; payload byte by byte. `None` is the end.
    async fn next(&mut self) -> Option<Event> {
        let mut byte = Vec::new();
        loop {
            let Step { consumed, event } = self.decoder.step(&byte).unwrap();
            assert_eq!(consumed, byte.len());
            if event != Event::NeedMore {
                return Some(event);
            }
            byte = vec![self.io.read_u8().await.ok()?];
        }
    }
}

fn by_hand_server() -> (Peer, Incoming, Handle, Task) {
    let (near, far) = duplex(1024 * 1024);
    let (incoming, handle, connection) = server(far, Config::new());
    (Peer::new(near), incoming, handle, tokio::spawn(connection))
}

fn by_hand_client() -> (Peer, Handle, Task) {
    let (near, far) = duplex(1024 * 1024);
    let (handle, connection) = client(far, Config::new());
    (Peer::new(near), handle, tokio::spawn(connection))
}

fn id(id: u32) -> StreamId {
    StreamId::new(id).unwrap()
}

async fn read_all(stream: &mut (impl AsyncRead + Unpin)) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.unwrap();
    bytes
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[tokio::test(start_paused = true)]
async fn headers_and_bytes_go_both_ways() {
    let mut pair = pair();
    let (mut near, mut far) = pair.stream().await;
    assert_eq!((near.id().get(), far.id().get()), (1, 1));
    assert_eq!(far.header("STREAMTYPE"), Some("data"));
    assert_eq!(far.header("port"), None);
    near.write_all(b"ping").await.unwrap();
    near.shutdown().await.unwrap();
    assert_eq!(read_all(&mut far).await, b"ping");
    assert_eq!(far.ended(), Some(RecvEnd::Fin));
    // Half-closed: data comes after our own FIN.
    far.write_all(b"pong").await.unwrap();
    far.shutdown().await.unwrap();
    assert_eq!(read_all(&mut near).await, b"pong");
    assert_eq!(near.ended(), Some(RecvEnd::Fin));
    assert!(near.write_all(b"more").await.is_err());
    drop((near, far, pair.client));
    pair.client_task.await.unwrap().unwrap();
    pair.server_task.await.unwrap().unwrap();
    assert!(pair.incoming.accept().await.is_none());
    pair.server.closed().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn several_streams_open_together() {
    let mut pair = pair();
    let openings: Vec<_> = (0..5).map(|_| pair.client.open_unreplied(&[]).unwrap()).collect();
    let mut accepted = Vec::new();
    for _ in 0..5 {
        accepted.push(pair.incoming.accept().await.unwrap());
    }
    accepted.iter().for_each(Stream::reply);
    for (opening, number) in openings.into_iter().zip([1, 3, 5, 7, 9]) {
        assert_eq!(opening.await.unwrap().id().get(), number);
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_written_on_a_stream_before_its_reply() {
    let (mut peer, mut incoming, _handle, _task) = by_hand_server();
    peer.syn(1).await;
    let mut stream = incoming.accept().await.unwrap();
    stream.write_all(b"x").await.unwrap();
    peer.send(frame::ping(1)).await;
    assert_eq!(peer.next().await, Some(Event::Ping(1)));
    stream.reply();
    stream.reply();
    assert!(matches!(peer.next().await, Some(Event::SynReply { .. })));
    assert_eq!(peer.next().await, Some(Event::Data { stream: id(1), range: 0..1, fin: false }));
}

#[tokio::test(start_paused = true)]
async fn what_came_before_a_reset_is_read_to_a_clean_end() {
    let mut pair = pair();
    let (near, mut far) = pair.stream().await;
    let (mut read, mut write) = near.into_split();
    far.write_all(b"the status").await.unwrap();
    far.flush().await.unwrap();
    far.reset(ResetCode::CANCEL);
    assert_eq!(read_all(&mut read).await, b"the status");
    assert_eq!(read.ended(), Some(RecvEnd::Reset(ResetCode::CANCEL)));
    assert_eq!(write.write(b"x").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    // The connection goes on.
    pair.stream().await;
}

#[tokio::test(start_paused = true)]
async fn a_writer_dropped_without_fin_resets_and_a_stream_finished_does_not() {
    let (mut peer, handle, _task) = by_hand_client();
    let openings = [(); 2].map(|()| handle.open_unreplied(&[]).unwrap());
    for number in [1, 3] {
        assert!(matches!(peer.next().await, Some(Event::SynStream { .. })));
        peer.reply(number).await;
    }
    let [first, second] = openings;
    let (first, mut second) = (first.await.unwrap(), second.await.unwrap());
    second.write_all(b"y").await.unwrap();
    second.shutdown().await.unwrap();
    drop(second);
    assert_eq!(peer.next().await, Some(Event::Data { stream: id(3), range: 0..1, fin: false }));
    assert_eq!(peer.next().await, Some(Event::Data { stream: id(3), range: 1..1, fin: true }));
    drop(first);
    assert_eq!(peer.next().await, Some(Event::Rst { stream: id(1), code: ResetCode::CANCEL }));
    // Only now that the peer sends what nobody reads is it told so.
    peer.data(3, b"unwanted", false).await;
    assert_eq!(peer.next().await, Some(Event::Rst { stream: id(3), code: ResetCode::CANCEL }));
}

#[tokio::test(start_paused = true)]
async fn everything_before_a_goaway_is_delivered_and_so_is_what_comes_after() {
    let (mut peer, handle, task) = by_hand_client();
    let opening = handle.open_unreplied(&[]).unwrap();
    let refused = handle.open_unreplied(&[]).unwrap();
    peer.reply(1).await;
    peer.data(1, &[7; 100_000], false).await;
    peer.send(frame::goaway(Some(id(1)), GoAwayCode::OK)).await;
    peer.data(1, &[8; 100_000], false).await;
    drop(peer);
    let mut stream = opening.await.unwrap();
    assert!(refused.await.unwrap_err().is_closed());
    let bytes = read_all(&mut stream).await;
    assert_eq!((bytes.len(), bytes[0], bytes[199_999]), (200_000, 7, 8));
    assert_eq!(stream.ended(), Some(RecvEnd::GoAway));
    task.await.unwrap().unwrap();
    assert!(handle.open(&[]).await.unwrap_err().is_closed());
}

#[tokio::test(start_paused = true)]
async fn a_lost_connection_fails_the_reader_behind_what_came() {
    let (mut peer, handle, task) = by_hand_client();
    let opening = handle.open_unreplied(&[]).unwrap();
    peer.reply(1).await;
    peer.data(1, b"half of", false).await;
    drop(peer);
    let mut stream = opening.await.unwrap();
    let mut bytes = Vec::new();
    let error = stream.read_to_end(&mut bytes).await.unwrap_err();
    assert_eq!((bytes.as_slice(), error.kind()), (&b"half of"[..], io::ErrorKind::ConnectionReset));
    assert_eq!(stream.ended(), Some(RecvEnd::Lost));
    assert!(stream.write_all(b"x").await.is_err());
    assert!(task.await.unwrap().unwrap_err().is_lost());
    assert!(handle.closed().await.unwrap_err().is_lost());
}

#[tokio::test(start_paused = true)]
async fn a_goaway_cut_inside_a_frame_is_a_loss() {
    let (mut peer, handle, _task) = by_hand_client();
    let opening = handle.open_unreplied(&[]).unwrap();
    peer.reply(1).await;
    peer.send(frame::goaway(Some(id(1)), GoAwayCode::OK)).await;
    peer.send(frame::data_head(id(1), 10, true)).await;
    peer.send(b"short").await;
    drop(peer);
    let mut stream = opening.await.unwrap();
    assert!(stream.read_to_end(&mut Vec::new()).await.is_err());
    assert_eq!(stream.ended(), Some(RecvEnd::Lost));
}

#[tokio::test(start_paused = true)]
async fn a_loss_wakes_an_opener_at_once() {
    let (peer, handle, _task) = by_hand_client();
    let start = Instant::now();
    let opening = handle.open_unreplied(&[]).unwrap();
    drop(peer);
    assert!(opening.await.unwrap_err().is_lost());
    assert_eq!(Instant::now(), start);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_driver_wakes_everybody() {
    let mut pair = pair();
    let (mut near, _far) = pair.stream().await;
    let opening = pair.client.open_unreplied(&[]).unwrap();
    pair.client_task.abort();
    assert!(opening.await.unwrap_err().is_lost());
    assert!(near.read_u8().await.is_err());
    assert!(pair.client.open(&[]).await.unwrap_err().is_lost());
}

#[tokio::test(start_paused = true)]
async fn a_reply_that_does_not_come_fails_the_opener_after_30_s() {
    let (mut peer, handle, _task) = by_hand_client();
    let start = Instant::now();
    assert!(handle.open(&[]).await.unwrap_err().is_timeout());
    assert_eq!(start.elapsed().as_secs(), 30);
    assert!(matches!(peer.next().await, Some(Event::SynStream { .. })));
    loop {
        match peer.next().await.unwrap() {
            Event::Ping(_) => {}
            event => break assert_eq!(event, Event::Rst { stream: id(1), code: ResetCode::CANCEL }),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_has_its_code() {
    let mut pair = pair();
    let opening = pair.client.open_unreplied(&[]).unwrap();
    pair.incoming.accept().await.unwrap().refuse(ResetCode::REFUSED_STREAM);
    assert_eq!(opening.await.unwrap_err().reset_code(), Some(ResetCode::REFUSED_STREAM));
    drop(pair.incoming);
    let error = pair.client.open(&[]).await.unwrap_err();
    assert_eq!(error.reset_code(), Some(ResetCode::REFUSED_STREAM));
}

#[tokio::test(start_paused = true)]
async fn pings_are_answered_while_a_stream_is_unread() {
    let (mut peer, mut incoming, _handle, _task) = by_hand_server();
    peer.syn(1).await;
    let _unread = incoming.accept().await.unwrap();
    peer.data(1, &[0; 200 * 1024], false).await;
    peer.send(frame::ping(7)).await;
    assert_eq!(peer.next().await, Some(Event::Ping(7)));
}

#[tokio::test(start_paused = true)]
async fn at_the_bound_reading_pauses_and_at_half_of_it_resumes_and_nothing_is_lost() {
    let (near, far) = duplex(1024);
    let (mut incoming, _handle, connection) = server(far, Config::new());
    tokio::spawn(connection);
    let mut peer = Peer::new(near);
    peer.syn(1).await;
    let mut stream = incoming.accept().await.unwrap();
    stream.reply();
    assert!(matches!(peer.next().await, Some(Event::SynReply { .. })));
    let (read, mut write) = tokio::io::split(peer.io);
    let sent = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counter = Arc::clone(&sent);
    let writer = tokio::spawn(async move {
        for number in 0..1000u32 {
            let mut frame = frame::data_head(id(1), 1024, number == 999).to_vec();
            frame.extend([number as u8; 1024]);
            write.write_all(&frame).await.unwrap();
            counter.fetch_add(1024, std::sync::atomic::Ordering::Relaxed);
        }
    });
    let sent = || sent.load(std::sync::atomic::Ordering::Relaxed);
    settle().await;
    let bound = sent();
    assert!((256 * 1024..(256 + 34) * 1024).contains(&bound), "{bound}");
    let mut bytes = vec![0; 100 * 1024];
    stream.read_exact(&mut bytes).await.unwrap();
    settle().await;
    assert_eq!(sent(), bound, "more than half is unread");
    let mut more = vec![0; 30 * 1024];
    stream.read_exact(&mut more).await.unwrap();
    settle().await;
    assert!(sent() > bound);
    bytes.extend(more);
    bytes.extend(read_all(&mut stream).await);
    let expected: Vec<u8> = (0..1000u32).flat_map(|number| [number as u8; 1024]).collect();
    assert!(bytes == expected);
    writer.await.unwrap();
    drop(read);
}

/// Lets every task run until none can, without letting time pass.
async fn settle() {
    for _ in 0..2000 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_unread_stream_does_not_stop_the_others_below_the_bound() {
    let mut pair = pair();
    let (mut unread, far_unread) = pair.stream().await;
    let (mut near, mut far) = pair.stream().await;
    unread.write_all(&[1; 200 * 1024]).await.unwrap();
    unread.shutdown().await.unwrap();
    for _ in 0..100 {
        near.write_all(&[2; 10_000]).await.unwrap();
        let mut bytes = [0; 10_000];
        far.read_exact(&mut bytes).await.unwrap();
    }
    let mut far_unread = far_unread;
    assert_eq!(read_all(&mut far_unread).await.len(), 200 * 1024);
}

#[tokio::test(start_paused = true)]
async fn an_unread_stream_that_is_dropped_lets_the_others_go_on() {
    let mut pair = pair();
    let (mut greedy, far_greedy) = pair.stream().await;
    let (mut near, mut far) = pair.stream().await;
    let writer = tokio::spawn(async move { greedy.write_all(&vec![1; 4 << 20]).await });
    settle().await;
    near.write_all(b"waits").await.unwrap();
    settle().await;
    drop(far_greedy);
    let mut bytes = [0; 5];
    far.read_exact(&mut bytes).await.unwrap();
    assert_eq!(writer.await.unwrap().unwrap_err().kind(), io::ErrorKind::BrokenPipe);
}

#[tokio::test(start_paused = true)]
async fn the_connections_bound_holds_for_all_streams_together() {
    let mut pair = pair();
    let mut kept = Vec::new();
    let mut sent = 0;
    for _ in 0..20 {
        kept.push(pair.stream().await);
    }
    for (near, _) in &mut kept {
        let write = near.write_all(&[3; 100 * 1024]);
        if tokio::time::timeout(Duration::from_millis(1), write).await.is_err() {
            break;
        }
        sent += 100;
    }
    assert!((1000..1400).contains(&sent), "{sent} KiB");
    for (_, far) in kept.iter_mut().take(sent / 100) {
        let mut bytes = vec![0; 100 * 1024];
        far.read_exact(&mut bytes).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn writers_take_turns() {
    let (mut peer, mut incoming, _handle, _task) = by_hand_server();
    for number in [1, 3] {
        peer.syn(number).await;
    }
    for mut stream in [incoming.accept().await.unwrap(), incoming.accept().await.unwrap()] {
        stream.reply();
        tokio::spawn(async move {
            stream.write_all(&[0; 640 * 1024]).await.unwrap();
            stream.shutdown().await.unwrap();
            std::future::pending::<()>().await;
            drop(stream);
        });
    }
    let (mut first, mut second) = (0i64, 0i64);
    while first + second < 1280 * 1024 {
        let mut buffer = vec![0; 4096];
        let len = peer.io.read(&mut buffer).await.unwrap();
        let mut rest = &buffer[..len];
        while let Step { consumed, event } = peer.decoder.step(rest).unwrap()
            && event != Event::NeedMore
        {
            rest = &rest[consumed..];
            if let Event::Data { stream, range, .. } = event {
                *if stream == id(1) { &mut first } else { &mut second } += range.len() as i64;
            }
        }
        assert!((first - second).abs() <= 160 * 1024, "{first} {second}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_thousand_streams_at_once() {
    let mut pair = pair();
    let mut tasks = Vec::new();
    let mut openings = Vec::new();
    for _ in 0..1000 {
        openings.push(pair.client.open_unreplied(&[("streamType", "data")]).unwrap());
    }
    for _ in 0..1000 {
        let mut far = pair.incoming.accept().await.unwrap();
        far.reply();
        tasks.push(tokio::spawn(async move {
            let bytes = read_all(&mut far).await;
            far.write_all(&bytes).await.unwrap();
            far.shutdown().await.unwrap();
        }));
    }
    for opening in openings {
        let mut near = opening.await.unwrap();
        tasks.push(tokio::spawn(async move {
            let bytes = near.id().get().to_be_bytes().repeat(1000);
            near.write_all(&bytes).await.unwrap();
            near.shutdown().await.unwrap();
            assert!(read_all(&mut near).await == bytes);
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    // Nothing of them is left.
    let (near, far) = pair.stream().await;
    assert_eq!(near.id().get(), 2001);
    drop((near, far));
    drop(pair.client);
    pair.client_task.await.unwrap().unwrap();
    pair.server_task.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_silent_peer_is_pinged_at_10_s_and_dead_at_60_s() {
    let (mut peer, handle, task) = by_hand_client();
    let start = Instant::now();
    assert_eq!(peer.next().await, Some(Event::Ping(1)));
    assert_eq!(start.elapsed().as_secs(), 10);
    assert!(task.await.unwrap().unwrap_err().is_timeout());
    assert_eq!(start.elapsed().as_secs(), 60);
    drop(handle);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_answers_pings_lives() {
    let (mut peer, handle, task) = by_hand_client();
    let start = Instant::now();
    while start.elapsed() < seconds(600) {
        let Some(Event::Ping(number)) = peer.next().await else { panic!("no ping") };
        peer.send(frame::ping(number)).await;
    }
    assert!(!task.is_finished());
    drop(handle);
}

#[tokio::test(start_paused = true)]
async fn a_server_says_nothing_before_the_client_does() {
    let (mut peer, _incoming, _handle, task) = by_hand_server();
    let mut byte = [0];
    assert!(tokio::time::timeout(seconds(3600), peer.io.read(&mut byte)).await.is_err());
    assert!(!task.is_finished());
    peer.send(frame::ping(1)).await;
    assert_eq!(peer.next().await, Some(Event::Ping(1)));
}

#[tokio::test(start_paused = true)]
async fn silence_does_not_count_while_reading_is_paused() {
    let (mut peer, mut incoming, _handle, task) = by_hand_server();
    peer.syn(1).await;
    let mut stream = incoming.accept().await.unwrap();
    peer.data(1, &[0; 300 * 1024], false).await;
    tokio::time::sleep(seconds(300)).await;
    assert!(!task.is_finished());
    let mut bytes = vec![0; 300 * 1024];
    stream.read_exact(&mut bytes).await.unwrap();
    tokio::time::sleep(seconds(61)).await;
    assert!(task.await.unwrap().unwrap_err().is_timeout());
}

#[tokio::test(start_paused = true)]
async fn close_writes_what_was_accepted_then_resets_then_goes_away_and_reads_to_the_end() {
    let (mut peer, mut incoming, handle, task) = by_hand_server();
    for number in [1, 3] {
        peer.syn(number).await;
    }
    let (mut status, mut output) = (incoming.accept().await.unwrap(), incoming.accept().await.unwrap());
    status.reply();
    output.reply();
    output.write_all(b"output").await.unwrap();
    output.shutdown().await.unwrap();
    status.write_all(b"status").await.unwrap();
    handle.close();
    for _ in 0..2 {
        assert!(matches!(peer.next().await, Some(Event::SynReply { .. })));
    }
    let mut seen = String::new();
    loop {
        match peer.next().await.unwrap() {
            Event::Data { fin: false, .. } => {}
            Event::Data { stream, .. } => seen += &format!("FIN {stream} "),
            Event::Rst { stream, .. } => seen += &format!("RST {stream} "),
            Event::GoAway { last_good, code: GoAwayCode::OK } => {
                break seen += &format!("GOAWAY {}", last_good.unwrap());
            }
            event => panic!("{event:?}"),
        }
    }
    assert_eq!(seen, "FIN 3 RST 1 GOAWAY 3");
    assert_eq!(peer.next().await, None, "the socket is half-closed");
    // What the peer still sends is read, so that no TCP reset destroys what it has not read.
    peer.data(1, &[0; 4096], false).await;
    settle().await;
    assert!(!task.is_finished());
    drop(peer);
    task.await.unwrap().unwrap();
    assert!(status.write_all(b"x").await.is_err());
    assert!(incoming.accept().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_never_closes_is_left_after_30_s() {
    let (mut peer, incoming, handle, task) = by_hand_server();
    let start = Instant::now();
    drop((incoming, handle));
    assert_eq!(peer.next().await, Some(Event::GoAway { last_good: None, code: GoAwayCode::OK }));
    task.await.unwrap().unwrap();
    assert_eq!(start.elapsed().as_secs(), 30);
}

#[tokio::test(start_paused = true)]
async fn a_close_that_cannot_write_ends_in_an_error() {
    let (near, far) = duplex(64);
    let (handle, connection) = client(far, Config::new());
    let task = tokio::spawn(connection);
    let mut peer = Peer::new(near);
    let opening = handle.open_unreplied(&[]).unwrap();
    assert!(matches!(peer.next().await, Some(Event::SynStream { .. })));
    peer.reply(1).await;
    let mut stream = opening.await.unwrap();
    stream.write_all(&[0; 1000]).await.unwrap();
    handle.close();
    assert!(task.await.unwrap().unwrap_err().is_timeout());
    drop((stream, peer));
}

#[tokio::test(start_paused = true)]
async fn a_protocol_error_is_told_and_ends_everything() {
    let (mut peer, mut incoming, handle, task) = by_hand_server();
    peer.syn(1).await;
    let mut stream = incoming.accept().await.unwrap();
    peer.data(0x7fff_ffff, b"unknown streams are ignored", true).await;
    peer.send([0; 8]).await;
    let error = stream.read_u8().await.unwrap_err();
    assert!(error.get_ref().unwrap().downcast_ref::<Error>().unwrap().is_protocol());
    assert_eq!(peer.next().await, Some(Event::Rst { stream: id(1), code: ResetCode::CANCEL }));
    assert_eq!(peer.next().await, Some(Event::GoAway { last_good: Some(id(1)), code: GoAwayCode::PROTOCOL_ERROR }));
    drop(peer);
    assert!(task.await.unwrap().unwrap_err().is_protocol());
    assert!(handle.closed().await.unwrap_err().is_protocol());
}

#[tokio::test(start_paused = true)]
async fn streams_opened_and_reset_without_end_fill_nothing() {
    let (mut peer, mut incoming, _handle, _task) = by_hand_server();
    for number in 0..5000 {
        peer.syn(2 * number + 1).await;
        peer.data(2 * number + 1, b"x", false).await;
        peer.send(frame::rst(id(2 * number + 1), ResetCode::CANCEL)).await;
    }
    peer.syn(20_001).await;
    let stream = incoming.accept().await.unwrap();
    assert_eq!(stream.id().get(), 20_001);
    stream.reply();
    assert!(matches!(peer.next().await, Some(Event::SynReply { .. })));
}

#[tokio::test(start_paused = true)]
async fn a_failed_write_does_not_lose_what_had_come() {
    /// Reads come from a buffer, writes fail.
    struct HalfDead(tokio::io::ReadHalf<DuplexStream>, Arc<AtomicBool>);
    impl AsyncRead for HalfDead {
        fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_read(cx, buf)
        }
    }
    impl AsyncWrite for HalfDead {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            match self.1.load(std::sync::atomic::Ordering::Relaxed) {
                true => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
                false => Poll::Ready(Ok(bytes.len())),
            }
        }
        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }
    let (near, far) = duplex(4 << 20);
    let dead = Arc::new(AtomicBool::new(false));
    let (read, _write) = tokio::io::split(far);
    let (handle, connection) = client(HalfDead(read, Arc::clone(&dead)), Config::new());
    let task = tokio::spawn(connection);
    let mut peer = Peer::new(near);
    let opening = handle.open_unreplied(&[]).unwrap();
    peer.reply(1).await;
    let mut stream = opening.await.unwrap();
    peer.data(1, &[5; 2 << 20], true).await;
    dead.store(true, std::sync::atomic::Ordering::Relaxed);
    stream.write_all(b"into the void").await.unwrap();
    assert_eq!(read_all(&mut stream).await.len(), 2 << 20);
    assert_eq!(stream.ended(), Some(RecvEnd::Fin));
    assert!(task.await.unwrap().unwrap_err().is_lost());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn over_tcp_and_threads_every_byte_arrives_and_both_ends_close_in_order() {
    const LEN: usize = 4 << 20;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server_task = tokio::spawn(async move {
        let (mut incoming, handle, connection) = server(listener.accept().await.unwrap().0, Config::new());
        let task = tokio::spawn(connection);
        let mut echoes = tokio::task::JoinSet::new();
        for _ in 0..8 {
            let stream = incoming.accept().await.unwrap();
            stream.reply();
            let (mut read, mut write) = stream.into_split();
            echoes.spawn(async move {
                assert_eq!(tokio::io::copy(&mut read, &mut write).await.unwrap(), LEN as u64);
                write.shutdown().await.unwrap();
            });
        }
        echoes.join_all().await;
        handle.close();
        task.await.unwrap()
    });
    let (handle, connection) = client(tokio::net::TcpStream::connect(address).await.unwrap(), Config::new());
    let client_task = tokio::spawn(connection);
    let mut streams = tokio::task::JoinSet::new();
    for number in 0..8u8 {
        let (mut read, mut write) = handle.open(&[]).await.unwrap().into_split();
        streams.spawn(async move {
            for chunk in 0..LEN / 4096 {
                write.write_all(&[number ^ chunk as u8; 4096]).await.unwrap();
            }
            write.shutdown().await.unwrap();
        });
        streams.spawn(async move {
            let bytes = read_all(&mut read).await;
            assert_eq!(bytes.len(), LEN);
            assert!(bytes.chunks(4096).enumerate().all(|(chunk, bytes)| bytes == [number ^ chunk as u8; 4096]));
            assert_eq!(read.ended(), Some(RecvEnd::Fin));
        });
    }
    streams.join_all().await;
    client_task.await.unwrap().unwrap();
    server_task.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_stream_is_told_that_it_was_cut_off_whatever_is_unread_and_behind_its_end() {
    let mut pair = pair();
    let (mut near, mut far) = pair.stream().await;
    near.write_all(b"unread").await.unwrap();
    near.shutdown().await.unwrap();
    near.reset(ResetCode::CANCEL);
    far.write_all(b"nobody reads it").await.unwrap();
    assert_eq!(poll_fn(|cx| far.poll_aborted(cx)).await, RecvEnd::Reset(ResetCode::CANCEL));
    assert_eq!((read_all(&mut far).await, far.ended()), (b"unread".to_vec(), Some(RecvEnd::Fin)));
    let (near, far) = pair.stream().await;
    let (mut third, cut) = pair.stream().await;
    third.write_all(b"unread").await.unwrap();
    third.flush().await.unwrap();
    let told = tokio::spawn(async move {
        let end = poll_fn(|cx| cut.poll_aborted(cx)).await;
        (end, cut.ended())
    });
    tokio::task::yield_now().await;
    third.reset(ResetCode::CANCEL);
    // What came before is still to be read, so reading has not ended.
    assert_eq!(told.await.unwrap(), (RecvEnd::Reset(ResetCode::CANCEL), None));
    // One's own reset, and the connection's end.
    far.reset(ResetCode::CANCEL);
    assert_eq!(poll_fn(|cx| far.poll_aborted(cx)).await, RecvEnd::Reset(ResetCode::CANCEL));
    assert_eq!(poll_fn(|cx| near.poll_aborted(cx)).await, RecvEnd::Reset(ResetCode::CANCEL));
    let (_near, far) = pair.stream().await;
    pair.client_task.abort();
    assert_eq!(poll_fn(|cx| far.poll_aborted(cx)).await, RecvEnd::Lost);
}

#[tokio::test(start_paused = true)]
async fn capacity_is_what_the_next_write_takes() {
    let (mut peer, mut incoming, _handle, _task) = by_hand_server();
    peer.syn(1).await;
    let mut stream = incoming.accept().await.unwrap();
    // Without a reply nothing goes out.
    assert_eq!(poll_fn(|cx| stream.poll_capacity(cx)).await.unwrap(), 64 * 1024);
    stream.write_all(&vec![0; 40 * 1024]).await.unwrap();
    assert_eq!(poll_fn(|cx| stream.poll_capacity(cx)).await.unwrap(), 24 * 1024);
    stream.write_all(&vec![0; 24 * 1024]).await.unwrap();
    let room = poll_fn(|cx| Poll::Ready(stream.poll_capacity(cx))).await;
    assert!(room.is_pending());
    stream.reply();
    assert!(poll_fn(|cx| stream.poll_capacity(cx)).await.unwrap() > 0);
    stream.shutdown().await.unwrap();
    assert!(poll_fn(|cx| stream.poll_capacity(cx)).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_stalls_the_others_is_reset_where_that_is_asked_for() {
    let mut pair = pair_of(Config::new(), Config::new().reset_stalled_after(seconds(10)));
    let (mut quiet, mut quiet_far) = pair.stream().await;
    let (mut near, far) = pair.stream().await;
    quiet.write_all(b"unread, but not to blame").await.unwrap();
    let start = Instant::now();
    let flood = async { while near.write_all(&[7; 4096]).await.is_ok() {} };
    let ((), end) = tokio::join!(flood, poll_fn(|cx| far.poll_aborted(cx)));
    assert_eq!((start.elapsed().as_secs(), end), (10, RecvEnd::Reset(ResetCode::CANCEL)));
    assert_eq!(near.ended(), Some(RecvEnd::Reset(ResetCode::CANCEL)));
    quiet.shutdown().await.unwrap();
    assert_eq!(read_all(&mut quiet_far).await, b"unread, but not to blame");
    assert_eq!(pair.server.streams(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_is_read_slowly_is_not_stalled() {
    let mut pair = pair_of(Config::new(), Config::new().reset_stalled_after(seconds(10)));
    let (mut near, mut far) = pair.stream().await;
    let sent = tokio::spawn(async move {
        near.write_all(&[7; 2 * 1024 * 1024]).await.unwrap();
        near.shutdown().await.unwrap();
        read_all(&mut near).await;
    });
    let mut total = 0;
    let mut block = vec![0; 160 * 1024];
    loop {
        tokio::time::sleep(seconds(9)).await;
        match far.read(&mut block).await.unwrap() {
            0 => break,
            read => total += read,
        }
    }
    assert_eq!((total, far.ended()), (2 * 1024 * 1024, Some(RecvEnd::Fin)));
    far.shutdown().await.unwrap();
    sent.await.unwrap();
    assert_eq!(pair.client.streams(), 0);
}

#[tokio::test(start_paused = true)]
async fn streams_wait_for_each_other_for_ever_unless_told_otherwise() {
    let mut pair = pair();
    let (mut near, mut far) = pair.stream().await;
    let flood = tokio::spawn(async move {
        near.write_all(&[7; 1024 * 1024]).await.unwrap();
        near.shutdown().await.unwrap();
        read_all(&mut near).await;
    });
    tokio::time::sleep(seconds(24 * 3600)).await;
    assert!(!flood.is_finished());
    assert_eq!(read_all(&mut far).await.len(), 1024 * 1024);
}
