//! Keep-alive.

use super::*;

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
    assert_eq!(relay.await.unwrap().cause, Cause::UpstreamSilent);
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
    assert_eq!(report.cause, Cause::ClientSilent, "{report:?}");
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
