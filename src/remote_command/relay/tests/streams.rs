//! Streams and their order.

use futures_util::FutureExt;

use super::*;

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

#[tokio::test(start_paused = true)]
async fn a_client_that_needs_no_time_hears_at_once() {
    let ((client, ours), (upstream, theirs)) = (duplex(ROOM), duplex(ROOM));
    let options = StreamOptions { stdout: true, ..StreamOptions::default() };
    let started = Instant::now();
    let relay = tokio::spawn(async move {
        run(ours, theirs, Version::V4, &options, &LIMITS, Duration::ZERO, CancellationToken::new()).await
    });
    let mut client = WebSocketStream::from_raw_socket(client, TungsteniteRole::Client, None).await;
    assert_eq!(client.next().await.unwrap().unwrap(), message(1, b""));
    assert_eq!(started.elapsed(), Duration::ZERO);
    drop((client, upstream));
    relay.await.unwrap();
}
