use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex, split},
    join,
};

use super::*;

const KIB: usize = 1024;

/// A throttled connection and its other end, which has room for everything.
fn pair(bytes_per_second: u64) -> (ThrottledIo<DuplexStream>, DuplexStream) {
    let (near, far) = duplex(4096 * KIB);
    (ThrottledIo::new(near, bytes_per_second), far)
}

/// Bytes of which no two places look alike for long.
fn payload(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 31 % 251) as u8).collect()
}

async fn sent(io: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> Duration {
    let begun = Instant::now();
    io.write_all(bytes).await.unwrap();
    begun.elapsed()
}

async fn received(io: &mut (impl AsyncRead + Unpin), length: usize) -> (Vec<u8>, Duration) {
    let begun = Instant::now();
    let mut bytes = vec![0; length];
    io.read_exact(&mut bytes).await.unwrap();
    (bytes, begun.elapsed())
}

fn assert_took(took: Duration, seconds: f64) {
    let off = (took.as_secs_f64() - seconds).abs() / seconds;
    assert!(off < 0.1, "{took:?} where {seconds} s were expected");
}

#[tokio::test(start_paused = true)]
async fn each_direction_is_held_to_the_rate_and_loses_nothing() {
    for rate in [10, 1000, 64 * KIB, 900 * KIB, 1024 * KIB + 7] {
        let bytes = payload((2 * rate).max(20));
        let (mut near, mut far) = pair(rate as u64);
        assert_took(sent(&mut near, &bytes).await, 2.0);
        assert_eq!(received(&mut far, bytes.len()).await.0, bytes, "{rate}");
        let (mut near, mut far) = pair(rate as u64);
        far.write_all(&bytes).await.unwrap();
        drop(far);
        let (there, took) = received(&mut near, bytes.len()).await;
        assert!(there == bytes, "{rate}");
        assert_took(took, 2.0);
        assert_eq!(near.read(&mut [0; 9]).await.unwrap(), 0, "the end is carried");
    }
}

#[tokio::test(start_paused = true)]
async fn one_direction_does_not_use_up_the_others_budget() {
    let rate = 100 * KIB;
    let (near, far) = pair(rate as u64);
    let ((mut from, mut to), (mut back, mut there)) = (split(near), split(far));
    let (down, up) = (payload(5 * rate), payload(3 * rate));
    there.write_all(&down).await.unwrap();
    let ((read, read_took), write_took) = join!(received(&mut from, down.len()), sent(&mut to, &up));
    assert_took(read_took, 5.0);
    assert_took(write_took, 3.0);
    assert!(read == down);
    assert!(received(&mut back, up.len()).await.0 == up);
}

#[tokio::test(start_paused = true)]
async fn pieces_share_the_budget_of_their_direction() {
    let (mut near, _far) = pair(1000);
    let begun = Instant::now();
    for _ in 0..200 {
        let written = near.write_vectored(&[io::IoSlice::new(b""), io::IoSlice::new(b"0123456789")]).await.unwrap();
        assert_eq!(written, 10);
    }
    assert_took(begun.elapsed(), 2.0);
}

#[tokio::test(start_paused = true)]
async fn a_pause_saves_no_more_than_one_window() {
    let (mut near, _far) = pair(10_000);
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_took(sent(&mut near, &payload(10_000)).await, 0.95);
}

#[tokio::test(start_paused = true)]
async fn without_a_limit_nothing_waits() {
    let (mut near, mut far) = pair(0);
    assert!(near.is_write_vectored() && !pair(1).0.is_write_vectored());
    assert_eq!(sent(&mut near, &payload(2048 * KIB)).await, Duration::ZERO);
    let (there, took) = received(&mut far, 2048 * KIB).await;
    assert_eq!(took, Duration::ZERO);
    assert!(there == payload(2048 * KIB));
}
