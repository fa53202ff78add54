use std::time::Duration;

use proptest::prelude::*;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    task::JoinHandle,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use crate::{
    remote_command::{
        Exit, Version,
        fixtures::{LIMITS, SUCCESS, data, rst},
        status::{self, Outcome},
    },
    spdy::{
        codec::{Decoder, Event, HeaderMode, Limits},
        frame::{self, GoAwayCode, HeaderEncoder, StreamId},
    },
    upgrade::{Cause, End, Report, SessionLimits},
};

/// Stream, payload, FIN.
type Data = (u32, Vec<u8>, bool);

/// Control frames and payload in `bytes`, and whether they end with a frame. Neighbouring payload of one stream is
/// joined.
fn read(bytes: &[u8]) -> (Vec<Event>, Vec<Data>, bool) {
    let mut decoder = Decoder::new(Limits::default(), HeaderMode::Inflate);
    let (mut control, mut data, mut at) = (Vec::new(), Vec::<Data>::new(), 0);
    loop {
        let step = decoder.step(&bytes[at..]).expect("well-formed SPDY");
        match step.event {
            Event::NeedMore => break,
            Event::Data { stream, range, fin } => {
                let piece = &bytes[at..][range];
                match data.last_mut() {
                    Some((last, before, ended)) if *last == stream.get() && !*ended => {
                        before.extend_from_slice(piece);
                        *ended = fin;
                    }
                    _ => data.push((stream.get(), piece.to_vec(), fin)),
                }
            }
            other => control.push(other),
        }
        at += step.consumed;
    }
    (control, data, decoder.at_frame_boundary())
}

fn of(data: &[Data], stream: u32) -> (Vec<u8>, bool) {
    let pieces = || data.iter().filter(|(id, ..)| *id == stream);
    (pieces().flat_map(|(_, bytes, _)| bytes.clone()).collect(), pieces().any(|(.., fin)| *fin))
}

/// The SYN_STREAMs of a client.
fn creation() -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut headers = HeaderEncoder::new();
    for (id, name) in [(1, "error"), (3, "stdin"), (5, "stdout"), (7, "stderr")] {
        headers.syn_stream(StreamId::new(id).unwrap(), &[("streamtype", name)], false, &mut bytes);
    }
    bytes
}

fn replies() -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut headers = HeaderEncoder::new();
    for id in [1, 3, 5, 7] {
        headers.syn_reply(StreamId::new(id).unwrap(), &[], false, &mut bytes);
    }
    bytes
}

struct Ends {
    client: DuplexStream,
    upstream: DuplexStream,
    session: JoinHandle<Report>,
    drain: CancellationToken,
}

fn start(watched: Option<Version>, room: usize) -> Ends {
    start_within(LIMITS, watched, room)
}

fn start_within(limits: SessionLimits, watched: Option<Version>, room: usize) -> Ends {
    let (client, ours) = duplex(room);
    let (upstream, theirs) = duplex(room);
    let drain = CancellationToken::new();
    let token = drain.clone();
    let session = tokio::spawn(async move { super::carry(ours, theirs, watched, &limits, token).await });
    Ends { client, upstream, session, drain }
}

/// A session whose streams exist.
async fn started(version: Version) -> Ends {
    let mut ends = start(Some(version), 64 * 1024);
    ends.client.write_all(&creation()).await.unwrap();
    let mut there = vec![0; creation().len()];
    ends.upstream.read_exact(&mut there).await.unwrap();
    assert_eq!(there, creation());
    ends.upstream.write_all(&replies()).await.unwrap();
    ends
}

async fn rest(io: &mut DuplexStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    io.read_to_end(&mut bytes).await.unwrap();
    bytes
}

fn assert_told_failure(bytes: &[u8]) {
    let (_, data, whole) = read(bytes);
    assert!(whole, "ends inside a frame");
    let (status, fin) = of(&data, 1);
    assert!(fin, "the error stream has not ended");
    assert!(matches!(status::decode(&status), Outcome::Failed(_)), "{:?}", String::from_utf8_lossy(&status));
}

fn server(version: Version) -> (Vec<u8>, usize) {
    let mut bytes = replies();
    bytes.extend(data(5, b"some output", false));
    bytes.extend(data(7, b"some errors", false));
    bytes.extend(data(5, b"", true));
    bytes.extend(data(7, b"", true));
    let told;
    if version.has_status() {
        bytes.extend(data(1, SUCCESS, false));
        told = bytes.len();
        bytes.extend(rst(1));
    } else {
        bytes.extend(data(1, b"", true));
        told = bytes.len();
    }
    bytes.extend(rst(3));
    bytes.extend(frame::goaway(None, GoAwayCode::OK));
    (bytes, told)
}

#[tokio::test(start_paused = true)]
async fn an_upstream_cut_at_any_byte_leaves_a_status_or_a_failure() {
    for version in [Version::V4, Version::V3, Version::V1] {
        let (bytes, told) = server(version);
        for cut in 0..=bytes.len() {
            let Ends { mut client, mut upstream, session, .. } = start(Some(version), 64 * 1024);
            client.write_all(&creation()).await.unwrap();
            let mut there = vec![0; creation().len()];
            upstream.read_exact(&mut there).await.unwrap();
            upstream.write_all(&bytes[..cut]).await.unwrap();
            drop(upstream);
            let heard = rest(&mut client).await;
            drop(client);
            let report = session.await.unwrap();
            let case = format!("{version} cut at {cut}");
            let (_, data, whole) = read(&heard);
            assert!(whole, "{case}: ends inside a frame");
            let (status, fin) = of(&data, 1);
            assert!(b"some output".starts_with(&of(&data, 5).0), "{case}");
            if cut >= told {
                assert_eq!(report.end, End::Success, "{case}");
                assert_eq!(status, if version.has_status() { SUCCESS } else { b"" }, "{case}");
                continue;
            }
            assert_eq!(report.end, End::Error, "{case}");
            assert!(fin, "{case}");
            if version.has_status() {
                assert!(!matches!(status::decode(&status), Outcome::Exited(_)), "{case}");
                assert!(!status.is_empty(), "{case}: Go takes that for a success");
            } else {
                assert!(!status.is_empty(), "{case}: Go takes that for a success");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_error_stream_that_ends_unsaid_becomes_a_failure_before_the_goaway() {
    let endings: [Vec<u8>; 4] = [
        rst(1).to_vec(),
        data(1, b"", true),
        frame::goaway(None, GoAwayCode::OK).to_vec(),
        [&rst(1)[..], &rst(3), &rst(5), &rst(7), &frame::goaway(None, GoAwayCode::OK)].concat(),
    ];
    for ending in endings {
        for piece in [1, 3, 11, 1000] {
            let Ends { mut client, mut upstream, session, .. } = started(Version::V4).await;
            upstream.write_all(&data(5, b"out", false)).await.unwrap();
            for bytes in ending.chunks(piece) {
                upstream.write_all(bytes).await.unwrap();
                sleep(Duration::from_millis(1)).await;
            }
            drop(upstream);
            let heard = rest(&mut client).await;
            assert_told_failure(&heard);
            let (control, data, _) = read(&heard);
            assert_eq!(of(&data, 5).0, b"out");
            if ending.ends_with(&frame::goaway(None, GoAwayCode::OK)) {
                assert!(heard.ends_with(&frame::goaway(None, GoAwayCode::OK)), "Go reads nothing behind a GOAWAY");
            }
            assert!(!control.iter().any(|event| matches!(event, Event::Rst { stream, .. } if stream.get() == 1)));
            drop(client);
            assert_eq!(session.await.unwrap().end, End::Error);
        }
    }
}

/// Go's client waits 30 s for a reply, even if its connection is closed; a reset it hears at once.
#[tokio::test(start_paused = true)]
async fn streams_without_a_reply_are_reset_when_upstream_is_lost() {
    for answered in [0, 20, 40, replies().len()] {
        let Ends { mut client, mut upstream, session, .. } = start(Some(Version::V4), 64 * 1024);
        client.write_all(&creation()).await.unwrap();
        let mut there = vec![0; creation().len()];
        upstream.read_exact(&mut there).await.unwrap();
        upstream.write_all(&replies()[..answered]).await.unwrap();
        drop(upstream);
        let (control, ..) = read(&rest(&mut client).await);
        let ids = |wanted: fn(&Event) -> Option<StreamId>| control.iter().filter_map(wanted).collect::<Vec<_>>();
        let mut told = ids(|event| match event {
            Event::SynReply { stream, .. } => Some(*stream),
            _ => None,
        });
        told.extend(ids(|event| match event {
            Event::Rst { stream, .. } => Some(*stream),
            _ => None,
        }));
        assert_eq!(told, [1, 3, 5, 7].map(|id| StreamId::new(id).unwrap()), "{answered} bytes of replies");
        drop(client);
        assert_eq!(session.await.unwrap().end, End::Error);
    }
}

#[tokio::test(start_paused = true)]
async fn garbage_of_upstream_ends_in_a_failure() {
    let Ends { mut client, mut upstream, session, .. } = started(Version::V4).await;
    upstream.write_all(&data(5, b"good", false)).await.unwrap();
    sleep(Duration::from_millis(1)).await;
    // A control frame that is longer than any.
    upstream.write_all(&[0x80, 3, 0, 2, 0, 0xff, 0xff, 0xff]).await.unwrap();
    upstream.write_all(&[0; 100]).await.unwrap();
    assert_told_failure(&rest(&mut client).await);
    assert_eq!(session.await.unwrap().end, End::Error);
}

#[tokio::test(start_paused = true)]
async fn exit_codes_are_reported_and_not_touched() {
    let Ends { mut client, mut upstream, session, .. } = started(Version::V4).await;
    let status = status::encode(Version::V4, &Ok(Exit::Code(3)));
    let said = [data(5, b"", true), data(7, b"", true), data(1, status.as_bytes(), false), rst(1).to_vec()].concat();
    upstream.write_all(&said).await.unwrap();
    drop(upstream);
    let heard = rest(&mut client).await;
    assert_eq!(heard, [replies(), said].concat());
    drop(client);
    assert_eq!(session.await.unwrap().end, End::ExitCode(3));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_goes_with_its_status_is_not_lost_whatever_the_next_hop_does_then() {
    for then in ["says goodbye", "breaks its protocol", "keeps silent"] {
        let Ends { mut client, mut upstream, session, .. } = started(Version::V4).await;
        let said = [data(1, SUCCESS, false), data(1, b"", true)].concat();
        upstream.write_all(&said).await.unwrap();
        let mut heard = vec![0; replies().len() + said.len()];
        client.read_exact(&mut heard).await.unwrap();
        drop(client);
        assert_eq!(rest(&mut upstream).await, b"", "{then}");
        match then {
            "says goodbye" => upstream.write_all(&frame::goaway(None, GoAwayCode::OK)).await.unwrap(),
            "breaks its protocol" => upstream.write_all(&[0x80, 3, 0, 2, 0, 0xff, 0xff, 0xff]).await.unwrap(),
            _ => {}
        }
        let report = session.await.unwrap();
        assert_eq!((report.end, report.cause), (End::Success, Cause::Finished), "{then}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_next_hop_says_behind_the_clients_end_is_no_loss() {
    let Ends { mut client, mut upstream, session, .. } = start(None, 1000);
    upstream.write_all(b"hello").await.unwrap();
    client.read_exact(&mut [0; 5]).await.unwrap();
    drop(client);
    assert_eq!(rest(&mut upstream).await, b"");
    upstream.write_all(b"goodbye").await.unwrap();
    let report = session.await.unwrap();
    assert_eq!((report.end, report.cause), (End::Carried, Cause::Finished));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_goes_before_it_has_its_status_is_lost() {
    let Ends { client, mut upstream, session, .. } = started(Version::V4).await;
    // More than its connection holds, and the status behind it.
    upstream.write_all(&data(5, &[7; 60_000], true)).await.unwrap();
    upstream.write_all(&data(5, &[7; 10_000], true)).await.unwrap();
    upstream.write_all(&[data(1, SUCCESS, false), data(1, b"", true)].concat()).await.unwrap();
    sleep(Duration::from_secs(1)).await;
    drop(client);
    let report = session.await.unwrap();
    assert_eq!((report.end, report.cause), (End::ClientGone, Cause::ClientLost));
    drop(upstream);
}

#[tokio::test(start_paused = true)]
async fn a_silent_upstream_is_pinged_and_the_client_never_sees_it() {
    let Ends { mut client, mut upstream, session, .. } = started(Version::V4).await;
    // Three hours of silence, but for the answers.
    let end = Instant::now() + Duration::from_secs(3 * 3600);
    let mut pings = 0;
    while Instant::now() < end {
        let mut ping = [0; 12];
        upstream.read_exact(&mut ping).await.unwrap();
        assert_eq!(ping, frame::ping(0x7fff_ff01));
        pings += 1;
        // In two parts, for whoever reads must wait for the whole.
        upstream.write_all(&ping[..5]).await.unwrap();
        sleep(Duration::from_millis(1)).await;
        upstream.write_all(&ping[5..]).await.unwrap();
    }
    assert!(pings > 600);
    assert!(!session.is_finished());
    let silenced = Instant::now();
    let heard = rest(&mut client).await;
    let took = silenced.elapsed().as_secs();
    assert!((60..=65).contains(&took), "{took}");
    assert_told_failure(&heard);
    assert!(!read(&heard).0.iter().any(|event| matches!(event, Event::Ping(_))));
    assert_eq!(session.await.unwrap().cause, Cause::UpstreamSilent);
}

#[tokio::test(start_paused = true)]
async fn a_silent_upstream_is_asked_and_given_up_when_the_limits_say() {
    let limits = LIMITS.ping_after(Duration::from_secs(20)).dead_after(Duration::from_secs(33));
    let Ends { mut client, mut upstream, session, .. } = start_within(limits, Some(Version::V4), 64 * 1024);
    client.write_all(&creation()).await.unwrap();
    let mut there = vec![0; creation().len()];
    upstream.read_exact(&mut there).await.unwrap();
    upstream.write_all(&replies()).await.unwrap();
    let silenced = Instant::now();
    let mut ping = [0; 12];
    upstream.read_exact(&mut ping).await.unwrap();
    // Rounded up to ticks, from the one at which it was last heard.
    assert!((20..=26).contains(&silenced.elapsed().as_secs()), "{:?}", silenced.elapsed());
    assert_told_failure(&rest(&mut client).await);
    assert!((35..=41).contains(&silenced.elapsed().as_secs()), "{:?}", silenced.elapsed());
    assert_eq!(session.await.unwrap().cause, Cause::UpstreamSilent);
}

#[tokio::test(start_paused = true)]
async fn a_side_that_ended_is_waited_for_as_long_as_the_limit_says() {
    let limits = LIMITS.dead_after(Duration::from_secs(20));
    let Ends { mut client, upstream, session, .. } = start_within(limits, None, 1000);
    client.shutdown().await.unwrap();
    let started = Instant::now();
    assert_eq!(session.await.unwrap().end, End::Error);
    assert!((20..=31).contains(&started.elapsed().as_secs()), "{:?}", started.elapsed());
    drop(upstream);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_stalls_is_no_silence_of_upstream() {
    let Ends { mut client, mut upstream, session, .. } = started(Version::V4).await;
    let bytes = data(5, &[7; 400_000], false);
    let expected = bytes.len();
    let writer = tokio::spawn(async move {
        upstream.write_all(&bytes).await.unwrap();
        upstream.write_all(&data(1, SUCCESS, true)).await.unwrap();
    });
    sleep(Duration::from_secs(600)).await;
    assert!(!session.is_finished() && !writer.is_finished());
    let heard = rest(&mut client).await;
    assert_eq!(of(&read(&heard).1, 5).0.len(), expected - 8);
    assert_eq!(of(&read(&heard).1, 1), (SUCCESS.to_vec(), true));
    drop(client);
    assert_eq!(session.await.unwrap().end, End::Success);
}

#[tokio::test(start_paused = true)]
async fn a_drain_writes_the_failure_at_a_frame_boundary() {
    let Ends { mut client, mut upstream, session, drain } = started(Version::V4).await;
    let half = data(5, &[7; 10_000], false);
    upstream.write_all(&half[..4000]).await.unwrap();
    sleep(Duration::from_secs(1)).await;
    drain.cancel();
    let heard = rest(&mut client).await;
    assert_told_failure(&heard);
    assert_eq!(of(&read(&heard).1, 5).0.len(), 4000 - 8);
    assert_eq!(session.await.unwrap().cause, Cause::Drain);
}

#[tokio::test(start_paused = true)]
async fn upstream_is_shut_down_when_the_client_is_gone() {
    let Ends { client, mut upstream, session, .. } = started(Version::V4).await;
    drop(client);
    assert_eq!(rest(&mut upstream).await, b"");
    drop(upstream);
    assert_eq!(session.await.unwrap().end, End::ClientGone);

    // One that goes on as if nothing were.
    let Ends { client, mut upstream, session, .. } = started(Version::V4).await;
    drop(client);
    while upstream.write_all(&data(5, b"out", false)).await.is_ok() {
        sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(session.await.unwrap().end, End::ClientGone);
}

#[tokio::test(start_paused = true)]
async fn unwatched_bytes_are_carried_as_they_are_with_their_half_closes() {
    for client_first in [true, false] {
        let Ends { client, upstream, session, .. } = start(None, 1000);
        let (mut first, mut second) = if client_first { (client, upstream) } else { (upstream, client) };
        let bytes: Vec<u8> = (0..200_000u32).map(|at| (at % 251) as u8).collect();
        let sent = bytes.clone();
        let writer = tokio::spawn(async move {
            first.write_all(&sent).await.unwrap();
            first.shutdown().await.unwrap();
            first
        });
        assert!(rest(&mut second).await == bytes);
        let mut first = writer.await.unwrap();
        sleep(Duration::from_secs(30)).await;
        // The other direction is still open.
        second.write_all(b"the answer").await.unwrap();
        second.shutdown().await.unwrap();
        assert_eq!(rest(&mut first).await, b"the answer");
        let report = session.await.unwrap();
        assert_eq!(report.end, End::Carried);
        let (there, back) = if client_first { (200_000, 10) } else { (10, 200_000) };
        assert_eq!((report.bytes.from_client(), report.bytes.to_client()), (there, back));
    }
}

#[tokio::test(start_paused = true)]
async fn an_unwatched_client_that_has_ended_is_not_lost_by_what_comes_for_it_then() {
    let Ends { mut client, mut upstream, session, .. } = start(None, 1000);
    upstream.write_all(b"before").await.unwrap();
    assert_eq!(client.read(&mut [0; 10]).await.unwrap(), 6);
    drop(client);
    assert_eq!(rest(&mut upstream).await, b"");
    upstream.write_all(b"goodbye").await.unwrap();
    let report = session.await.unwrap();
    assert_eq!((report.end, report.cause), (End::Carried, Cause::Finished));
}

#[tokio::test(start_paused = true)]
async fn a_next_hop_that_ends_behind_its_101_has_failed_the_handshake() {
    for watched in [None, Some(Version::V4)] {
        let Ends { mut client, upstream, session, .. } = start(watched, 1000);
        drop(upstream);
        assert!(rest(&mut client).await.is_empty());
        drop(client);
        let report = session.await.unwrap();
        assert_eq!((report.end, report.cause), (End::Error, Cause::Handshake), "{watched:?}");
    }
    // One whose client left first has not.
    let Ends { client, mut upstream, session, .. } = start(None, 1000);
    drop(client);
    assert!(rest(&mut upstream).await.is_empty());
    drop(upstream);
    assert_ne!(session.await.unwrap().cause, Cause::Handshake);
}

#[tokio::test(start_paused = true)]
async fn a_side_that_ended_is_not_waited_for_without_end() {
    let Ends { mut client, upstream, session, .. } = start(None, 1000);
    client.shutdown().await.unwrap();
    let started = Instant::now();
    assert_eq!(session.await.unwrap().end, End::Error);
    assert!((60..=70).contains(&started.elapsed().as_secs()));
    drop(upstream);
}

async fn carries(up: Vec<u8>, down: Vec<u8>, cuts: Vec<usize>, room: usize) -> (Vec<u8>, Vec<u8>) {
    let Ends { client, upstream, session, .. } = start(Some(Version::V4), room);
    let (mut client_read, mut client_write) = tokio::io::split(client);
    let (mut upstream_read, mut upstream_write) = tokio::io::split(upstream);
    let write = async |writer: &mut tokio::io::WriteHalf<DuplexStream>, bytes: &[u8]| {
        let (mut at, mut turn) = (0, 0);
        while at < bytes.len() {
            let size = cuts[turn % cuts.len()].min(bytes.len() - at);
            writer.write_all(&bytes[at..at + size]).await.unwrap();
            tokio::task::yield_now().await;
            (at, turn) = (at + size, turn + 1);
        }
    };
    let (mut there, mut back) = (vec![0; creation().len()], Vec::new());
    let creation = creation();
    let (_, read) = tokio::join!(write(&mut client_write, &creation), upstream_read.read_exact(&mut there));
    read.unwrap();
    tokio::join!(
        async {
            write(&mut client_write, &up).await;
            client_write.shutdown().await.unwrap();
        },
        async {
            write(&mut upstream_write, &down).await;
            upstream_write.shutdown().await.unwrap();
        },
        async { upstream_read.read_to_end(&mut there).await.unwrap() },
        async { client_read.read_to_end(&mut back).await.unwrap() },
    );
    session.await.unwrap();
    (there, back)
}

fn frames() -> impl Strategy<Value = Vec<u8>> {
    let length = prop_oneof![Just(0usize), 0usize..20, 100usize..2000, 30_000usize..70_000];
    let frame = prop_oneof![
        4 => (prop::sample::select(vec![3u32, 5, 7]), length, any::<u8>()).prop_map(|(stream, length, first)| {
            let bytes: Vec<u8> = (0..length).map(|at| (at as u8).wrapping_mul(31) ^ first).collect();
            data(stream, &bytes, false)
        }),
        1 => (1u32..1000).prop_map(|id| frame::ping(id).to_vec()),
        1 => Just(rst(9).to_vec()),
        1 => Just(frame::window_update(StreamId::new(5).unwrap(), 9).to_vec()),
    ];
    prop::collection::vec(frame, 0..12).prop_map(|frames| frames.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    #[test]
    fn frames_cut_anywhere_say_the_same_on_the_other_side(
        up in frames(),
        down in frames(),
        cuts in prop_oneof![
            prop::collection::vec(1usize..40, 1..6),
            prop::collection::vec(500usize..50_000, 1..6),
        ],
        room in prop::sample::select(vec![1000, 70_000]),
    ) {
        let down = [replies(), down, data(5, b"", true), data(1, SUCCESS, true), rst(3).to_vec(),
            frame::goaway(None, GoAwayCode::OK).to_vec()].concat();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        let (there, back) = runtime.block_on(carries(up.clone(), down.clone(), cuts, room));
        prop_assert!(read(&there) == read(&[creation(), up].concat()), "client to upstream");
        prop_assert!(read(&back) == read(&down), "upstream to client");
    }
}
