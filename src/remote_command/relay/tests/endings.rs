//! How sessions end.

use std::{
    collections::VecDeque,
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::io::ReadBuf;

use super::{super::fail, *};
use crate::spdy::frame::{GoAwayCode, ResetCode};

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
    assert_eq!((report.bytes.from_client(), report.bytes.to_client()), (0, 6));
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
                    run(ours, theirs, version, &options, &LIMITS, SETTLING, CancellationToken::new()).await
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
            assert!(!ends.relay.await.unwrap().detail.contains("secret"));
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
    let report = relay.await.unwrap();
    assert!(report.cause == Cause::UpstreamFailed && report.detail.contains("REFUSED_STREAM"), "{report:?}");
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
    assert_eq!(relay.await.unwrap().cause, Cause::Drain);
}

#[tokio::test(start_paused = true)]
async fn a_session_without_upstream_is_a_status_and_a_close() {
    let (client, ours) = duplex(ROOM);
    let relay = tokio::spawn(async move { fail(ours, Cause::Handshake, "no such runtime", &LIMITS, SETTLING).await });
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
