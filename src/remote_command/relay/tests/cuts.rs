//! Everything, cut anywhere.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use proptest::prelude::*;
use tokio::io::ReadBuf;

use super::*;

/// Cuts every read and write at sizes that look random, and is Pending now and then.
struct Chop<S> {
    io: S,
    random: u64,
    most: usize,
}

impl<S> Chop<S> {
    fn new(io: S, seed: u64, most: usize) -> Self {
        Self { io, random: seed | 1, most }
    }

    fn next(&mut self) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random as usize
    }

    /// How much may go now; 0 is Pending.
    fn size(&mut self, cx: &mut Context<'_>) -> usize {
        if self.next().is_multiple_of(4) {
            cx.waker().wake_by_ref();
            return 0;
        }
        1 + self.next() % self.most
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Chop<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let size = self.size(cx);
        if size == 0 {
            return Poll::Pending;
        }
        let mut part = buf.take(size);
        std::task::ready!(Pin::new(&mut self.io).poll_read(cx, &mut part))?;
        let read = part.filled().len();
        buf.advance(read);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Chop<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let size = self.size(cx);
        if size == 0 {
            return Poll::Pending;
        }
        Pin::new(&mut self.io).poll_write(cx, &buf[..buf.len().min(size)])
    }

    /// Cut across the pieces, as a socket does it.
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let size = self.size(cx);
        if size == 0 {
            return Poll::Pending;
        }
        let mut joined: Vec<u8> = bufs.iter().flat_map(|buf| buf.iter().copied()).collect();
        joined.truncate(size);
        Pin::new(&mut self.io).poll_write(cx, &joined)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

async fn carries(stdin: Vec<Vec<u8>>, output: Vec<(bool, Vec<u8>)>, code: u8, seed: u64, most: usize, room: usize) {
    let (client, ours) = duplex(room);
    let (upstream, theirs) = duplex(room);
    let options = options(true, true, true, false);
    let (ours, theirs) = (Chop::new(ours, seed, most), Chop::new(theirs, seed ^ 0x9e37_79b9, most));
    let relay = tokio::spawn(async move {
        run(ours, theirs, Version::V4, &options, &LIMITS, SETTLING, CancellationToken::new()).await
    });
    let client = WebSocketStream::from_raw_socket(client, TungsteniteRole::Client, None).await;
    let mut upstream = Upstream::new(upstream);

    let typed = stdin.concat();
    let printed = output.clone();
    let client = tokio::spawn(async move {
        let (mut sink, mut stream) = client.split();
        let write = async {
            for (at, piece) in stdin.iter().enumerate() {
                sink.send(message(0, piece)).await.unwrap();
                if at % 3 == 0 {
                    ping(&mut sink).await;
                }
            }
            sink.send(message(255, &[0])).await.unwrap();
        };
        let read = async {
            let mut told = Told::default();
            while let Some(Ok(message)) = stream.next().await {
                told.add(message);
            }
            told
        };
        tokio::join!(read, write).0
    });
    upstream.accept(4).await;
    let (mut reader, mut near) = upstream.split();
    let write = async {
        for (at, (errors, bytes)) in output.iter().enumerate() {
            near.write_all(&data(if *errors { 7 } else { 5 }, bytes, false)).await.unwrap();
            if at % 4 == 0 {
                near.write_all(&frame::ping(2)).await.unwrap();
            }
        }
    };
    let read = async {
        let mut bytes = Vec::new();
        loop {
            match reader.next().await {
                Seen::Data(3, piece, fin) => {
                    bytes.extend_from_slice(&piece);
                    if fin {
                        return bytes;
                    }
                }
                Seen::Ping(_) => {}
                other => panic!("{other:?}"),
            }
        }
    };
    let (received, ()) = tokio::join!(read, write);
    assert!(received == typed);
    let exit = if code == 0 { Exit::Success } else { Exit::Code(code) };
    let status = status::encode(Version::V4, &Ok(exit.clone()));
    for end in [data(5, b"", true), data(7, b"", true), data(1, status.as_bytes(), false), rst(1).to_vec()] {
        near.write_all(&end).await.unwrap();
    }
    let told = client.await.unwrap();
    for (channel, errors) in [(1, false), (2, true)] {
        let expected: Vec<u8> =
            printed.iter().filter(|(of, _)| *of == errors).flat_map(|(_, bytes)| bytes.clone()).collect();
        assert!(told.of(channel) == expected, "channel {channel}");
    }
    assert_eq!(told.outcome(), Outcome::Exited(exit));
    assert_eq!(told.close, Some(1000));
    let report = relay.await.unwrap();
    assert_eq!(report.bytes.from_client(), typed.len() as u64);
    drop((near, reader));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(48) })]

    #[test]
    fn any_bytes_cut_anywhere_arrive_the_same_in_both_directions(
        stdin in prop::collection::vec(payload(), 0..12),
        output in prop::collection::vec((any::<bool>(), payload()), 0..12),
        code in any::<u8>(),
        seed in any::<u64>(),
        most in prop::sample::select(vec![1, 7, 600, 5000, 40_000]),
        room in prop::sample::select(vec![1, 100, 70_000]),
    ) {
        let (mut stdin, mut output) = (stdin, output);
        if most.min(room) < 500 {
            // Byte by byte, long payloads take minutes.
            stdin.iter_mut().for_each(|bytes| bytes.truncate(300));
            output.iter_mut().for_each(|(_, bytes)| bytes.truncate(300));
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(carries(stdin, output, code, seed, most, room));
    }
}

fn payload() -> impl Strategy<Value = Vec<u8>> {
    let length = prop_oneof![0usize..20, 100usize..2000, 30_000usize..34_000];
    (length, any::<u8>())
        .prop_map(|(length, first)| (0..length).map(|at| (at as u8).wrapping_mul(31) ^ first).collect())
}
