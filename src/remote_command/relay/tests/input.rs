//! Stdin and resize.

use futures_util::FutureExt;

use super::*;

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
