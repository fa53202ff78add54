//! Limits that are not the defaults. The defaults are tested where they belong.

use super::*;

/// A session like any, within `limits`, and when it began.
async fn within(limits: SessionLimits) -> (DuplexStream, Upstream, JoinHandle<Report>, Instant) {
    let (client, mut upstream, relay, _) =
        raw_within(limits, Version::V4, options(true, true, true, false), ROOM).await;
    let started = Instant::now();
    upstream.accept(4).await;
    (client, upstream, relay, started)
}

/// A masked binary frame; `head` has FIN and opcode.
fn frame_of(head: u8, payload: &[u8]) -> Vec<u8> {
    [&[head, 0x80 | payload.len() as u8, 0, 0, 0, 0][..], payload].concat()
}

/// Whole seconds until the relay has ended, and why it has; the client leaves as soon as it is told.
async fn ends(
    mut client: DuplexStream,
    mut upstream: Upstream,
    relay: JoinHandle<Report>,
    started: Instant,
) -> (u64, String) {
    let told = async {
        let mut heard = Vec::new();
        let mut part = [0; 512];
        while !heard.ends_with(&[0x88, 2, 0x03, 0xe8]) {
            let read = client.read(&mut part).await.unwrap();
            assert!(read > 0, "no Close");
            heard.extend_from_slice(&part[..read]);
        }
        let took = started.elapsed().as_secs();
        client.shutdown().await.unwrap();
        took
    };
    let (took, ()) = tokio::join!(told, async { while upstream.next_but_pings().await != Seen::End {} });
    (took, relay.await.unwrap().detail.into_owned())
}

#[tokio::test(start_paused = true)]
async fn a_silent_client_is_asked_and_given_up_when_the_limits_say() {
    let limits = LIMITS.ping_after(Duration::from_secs(20)).dead_after(Duration::from_secs(35));
    let (client, mut upstream, relay, started) = within(limits).await;
    assert!(matches!(upstream.next().await, Seen::Ping(1)));
    assert!((20..=25).contains(&started.elapsed().as_secs()), "{:?}", started.elapsed());
    upstream.send(&frame::ping(1)).await;
    let (took, cause) = ends(client, upstream, relay, started).await;
    assert!((35..=40).contains(&took), "{took}");
    assert!(cause.contains("client was silent"), "{cause}");
}

#[tokio::test(start_paused = true)]
async fn a_session_without_payload_ends_when_the_limit_says_rounded_up_to_a_tick() {
    let limits = LIMITS.idle(Duration::from_secs(21)).dead_after(Duration::from_secs(1000));
    let (client, upstream, relay, started) = within(limits).await;
    let (took, cause) = ends(client, upstream, relay, started).await;
    assert!((25..=30).contains(&took), "{took}");
    assert!(cause.contains("nothing was sent"), "{cause}");
}

#[tokio::test(start_paused = true)]
async fn without_an_idle_limit_a_session_lives_as_long_as_its_peers() {
    let (client, mut upstream, relay, _) = within(LIMITS.idle(Duration::ZERO)).await;
    let mut client = WebSocketStream::from_raw_socket(client, TungsteniteRole::Client, None).await;
    let upstream = tokio::spawn(async move {
        let week = sleep(Duration::from_secs(7 * 24 * 3600));
        tokio::pin!(week);
        loop {
            tokio::select! {
                seen = upstream.next() => match seen {
                    Seen::Ping(id) => upstream.send(&frame::ping(id)).await,
                    other => panic!("{other:?}"),
                },
                () = &mut week => break,
            }
        }
        upstream.end(SUCCESS, &[5, 7]).await;
        upstream
    });
    assert_eq!(hear(&mut client).await.outcome(), Outcome::Exited(Exit::Success));
    assert_eq!(relay.await.unwrap().end, End::Success);
    drop(upstream.await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn streams_are_waited_for_as_long_as_the_limit_says() {
    let limits = LIMITS.creation(Duration::from_secs(100));
    let started = Instant::now();
    let (client, upstream, relay, _) = raw_within(limits, Version::V4, options(true, true, true, false), ROOM).await;
    let mut client = WebSocketStream::from_raw_socket(client, TungsteniteRole::Client, None).await;
    hear(&mut client).await.assert_failed();
    assert!((100..=105).contains(&started.elapsed().as_secs()), "{:?}", started.elapsed());
    assert_eq!(relay.await.unwrap().cause, Cause::CreationTimeout);
    drop(upstream);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_answer_the_close_has_as_long_as_the_limit_says() {
    let (client, mut upstream, relay, _) = within(LIMITS.farewell(Duration::from_secs(42))).await;
    upstream.end(SUCCESS, &[5, 7]).await;
    let told = Instant::now();
    assert_eq!(relay.await.unwrap().end, End::Success);
    assert!((40..=50).contains(&told.elapsed().as_secs()), "{:?}", told.elapsed());
    drop(client);
}

#[tokio::test(start_paused = true)]
async fn messages_are_as_long_and_in_as_many_frames_as_the_limits_say() {
    let stdin = |length| frame_of(0x82, &vec![0; length]);
    let fragments = |count: usize| {
        let middle = (2..count).flat_map(|_| frame_of(0x00, b"x"));
        [frame_of(0x02, &[0]), middle.collect(), frame_of(0x80, b"x")].concat()
    };
    for (limits, good, bad) in
        [(LIMITS.message(100), stdin(100), stdin(101)), (LIMITS.fragments(3), fragments(3), fragments(4))]
    {
        let (mut client, mut upstream, relay, _) = within(limits).await;
        client.write_all(&good).await.unwrap();
        sleep(Duration::from_secs(1)).await;
        assert!(!relay.is_finished());
        assert!(matches!(upstream.next().await, Seen::Data(3, ..)));
        client.write_all(&bad).await.unwrap();
        client.shutdown().await.unwrap();
        let mut heard = Vec::new();
        client.read_to_end(&mut heard).await.unwrap();
        assert!(heard.ends_with(&1009u16.to_be_bytes()), "{heard:02x?}");
        while upstream.next().await != Seen::End {}
        assert_eq!(relay.await.unwrap().end, End::Error);
    }
}
