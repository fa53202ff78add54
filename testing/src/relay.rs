//! A TCP relay that is slow, stalls, or cuts.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{mpsc, watch},
    task::{AbortHandle, JoinSet},
    time::{Instant, sleep_until},
};

use crate::Death;

/// What a relay does to each connection.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// Time that a byte is under way, in each direction.
    pub delay: Duration,
    /// In each direction; 0 is as fast as it goes.
    pub bytes_per_second: u64,
    /// Once a connection has carried so many bytes, nothing moves for a while, once.
    pub stall: Option<(u64, Duration)>,
    /// Once a connection has carried so many bytes, both its sides see this.
    pub cut: Option<(u64, Death)>,
}

const CHUNK: usize = 16 << 10;

/// Chunks under way in one direction, 1 MiB: more than bandwidth times delay of any test.
const UNDER_WAY: usize = 64;

/// A listening relay. Dropped, it ends with all its connections.
#[derive(Debug)]
pub struct FaultRelay {
    address: SocketAddr,
    stalls: Arc<AtomicU64>,
    task: AbortHandle,
}

impl FaultRelay {
    /// Listens on a free port of the loopback address, and connects to `to` for each connection.
    ///
    /// # Errors
    ///
    /// Those of binding.
    pub async fn start(to: SocketAddr, faults: Faults) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let stalls = Arc::new(AtomicU64::new(0));
        let counted = stalls.clone();
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                tokio::select! {
                    Ok((client, _)) = listener.accept() => {
                        let stalls = counted.clone();
                        connections.spawn(async move {
                            if let Ok(server) = TcpStream::connect(to).await {
                                carry(client, server, faults, &stalls).await;
                            }
                        });
                    }
                    Some(_) = connections.join_next() => {}
                }
            }
        });
        Ok(Self { address, stalls, task: task.abort_handle() })
    }

    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many connections have stalled so far: a test that meant to stall can tell that it did.
    #[must_use]
    pub fn stalls(&self) -> u64 {
        self.stalls.load(Ordering::Relaxed)
    }
}

impl Drop for FaultRelay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What both directions of a connection share.
struct Line {
    faults: Faults,
    carried: AtomicU64,
    stalled_until: watch::Sender<Option<Instant>>,
    cut: watch::Sender<bool>,
}

async fn carry(client: TcpStream, server: TcpStream, faults: Faults, stalls: &AtomicU64) {
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let line = Line {
        faults,
        carried: AtomicU64::new(0),
        stalled_until: watch::Sender::new(None),
        cut: watch::Sender::new(false),
    };
    let (client_in, mut client_out) = client.into_split();
    let (server_in, mut server_out) = server.into_split();
    let mut cut = line.cut.subscribe();
    let both = async {
        tokio::join!(
            direction(client_in, &mut server_out, &line, stalls),
            direction(server_in, &mut client_out, &line, stalls)
        )
    };
    let was_cut = tokio::select! {
        _ = both => false,
        Ok(_) = cut.wait_for(|cut| *cut) => true,
    };
    if let Some((_, death)) = faults.cut.filter(|_| was_cut) {
        match death {
            Death::Fin => {}
            Death::Rst => {
                let _ = (client_out.as_ref().set_zero_linger(), server_out.as_ref().set_zero_linger());
                // A write half that is dropped says FIN first.
                client_out.forget();
                server_out.forget();
            }
            Death::Silence => std::future::pending().await,
        }
    }
}

async fn direction(from: OwnedReadHalf, to: &mut OwnedWriteHalf, line: &Line, stalls: &AtomicU64) {
    let (sender, receiver) = mpsc::channel(UNDER_WAY);
    tokio::join!(take(from, sender, line), give(to, receiver, line, stalls));
}

/// Takes bytes no faster than the line is, and stamps them with when they arrive.
async fn take(mut from: OwnedReadHalf, chunks: mpsc::Sender<(Instant, Vec<u8>)>, line: &Line) {
    let Faults { delay, bytes_per_second, .. } = line.faults;
    let mut free = Instant::now();
    loop {
        let mut chunk = vec![0; CHUNK];
        let Ok(length @ 1..) = from.read(&mut chunk).await else { return };
        chunk.truncate(length);
        free = free.max(Instant::now());
        if let Some(micros) = (length as u64 * 1_000_000).checked_div(bytes_per_second) {
            free += Duration::from_micros(micros);
            sleep_until(free).await;
        }
        if chunks.send((free + delay, chunk)).await.is_err() {
            return;
        }
    }
}

async fn give(
    to: &mut OwnedWriteHalf,
    mut chunks: mpsc::Receiver<(Instant, Vec<u8>)>,
    line: &Line,
    stalls: &AtomicU64,
) {
    while let Some((due, chunk)) = chunks.recv().await {
        sleep_until(due).await;
        let carried = line.carried.fetch_add(chunk.len() as u64, Ordering::Relaxed) + chunk.len() as u64;
        if let Some((_, lasting)) = line.faults.stall.filter(|(after, _)| carried >= *after) {
            line.stalled_until.send_if_modified(|until| {
                let first = until.is_none();
                if first {
                    *until = Some(Instant::now() + lasting);
                    stalls.fetch_add(1, Ordering::Relaxed);
                }
                first
            });
        }
        let until = *line.stalled_until.borrow();
        if let Some(until) = until {
            sleep_until(until).await;
        }
        let mut length = chunk.len();
        let cut = line.faults.cut.filter(|(after, _)| carried >= *after);
        if let Some((after, _)) = cut {
            length = length.saturating_sub(usize::try_from(carried - after).unwrap_or(usize::MAX));
        }
        if to.write_all(&chunk[..length]).await.is_err() {
            return;
        }
        if cut.is_some() {
            line.cut.send_replace(true);
            return;
        }
    }
    let _ = to.shutdown().await;
}
