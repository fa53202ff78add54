//! Clients that go.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::io::ReadBuf;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, frame::coding::CloseCode};
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::*;

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
        run(client, theirs, Version::V4, &options, &LIMITS, SETTLING, CancellationToken::new()).await
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
        run(Flood(false), theirs, Version::V4, &options, &LIMITS, SETTLING, CancellationToken::new()).await
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
    assert_eq!((report.end, report.bytes.to_client()), (End::Success, 50 * 32 * 1024));
    assert!(report.bytes.from_client() > 0 && report.bytes.from_client() < 10 * report.bytes.to_client(), "{report:?}");
    reader.await.unwrap().unwrap();
}
