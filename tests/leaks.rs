//! No leaks: sessions that end anywhere, by anybody and in any way leave nothing behind.

mod support;

use std::{
    io,
    net::SocketAddr,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream};
use support::{
    Outcome, count,
    lab::Lab,
    proc::{Held, descriptors, held},
    process::Process,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{interval, timeout},
};
use tower_kube_streaming::spdy::{
    StreamId,
    frame::{HeaderEncoder, data_head},
};
use tower_kube_streaming_testing::{
    Death,
    client::{Exec, Spdy, V5, connect, message, tcp},
    kubelet::{Cut, ScriptedKubelet},
};

/// More than the cores, few enough that a burst is no peak of memory of its own.
const AT_ONCE: usize = 16;

/// A client that leaves by RST waits for nobody: behind so many sessions the server may catch up, so that it never has
/// more of them at a time than these.
const BURST: usize = 250;

/// Bursts at the end of a half whose memory counts.
const LAST: usize = 6;

/// What the second half of a run may add to resident memory.
const GROWTH_KIB: u64 = 1024;

/// Threads come and go with blocking calls; the runtime's own are fixed.
const SPARE_THREADS: usize = 4;

/// Where the client leaves.
#[derive(Clone, Copy, Debug)]
enum Leaves {
    InRequestHead,
    BeforeAnswer,
    After101,
    /// SPDY: behind its first SYN_STREAM.
    AfterSyn,
    InStdinFrame,
    /// With output unread.
    InOutput,
    /// The status has come.
    BeforeClose,
}

const LEAVES: [Leaves; 7] = [
    Leaves::InRequestHead,
    Leaves::BeforeAnswer,
    Leaves::After101,
    Leaves::AfterSyn,
    Leaves::InStdinFrame,
    Leaves::InOutput,
    Leaves::BeforeClose,
];

/// Reads what is there, so that a close is a FIN, and then leaves.
async fn leave(tcp: TcpStream, death: Death) -> io::Result<()> {
    // Who is left alone with a FIN answers it; a client that waits for that for ever would be the leak.
    timeout(Duration::from_secs(20), death.of(tcp)).await.map_err(|_| io::Error::other("the FIN was not answered"))
}

/// One session whose client leaves at that point.
async fn client_leaves(address: SocketAddr, spdy: bool, at: Leaves, death: Death) -> io::Result<()> {
    // It writes, and then waits for stdin: only the client can end it. At the last point it ends by itself.
    let script = if matches!(at, Leaves::BeforeClose) { "echo hello" } else { "head -c 200000 /dev/zero; cat" };
    let exec = Exec { command: &["sh", "-c", script], stdin: true };
    let head = if spdy { exec.spdy_head() } else { exec.websocket_head("v5.channel.k8s.io") };
    match at {
        Leaves::InRequestHead => {
            let mut tcp = tcp(address).await?;
            tcp.write_all(&head.as_bytes()[..head.len() / 2]).await?;
            return leave(tcp, death).await;
        }
        Leaves::BeforeAnswer => {
            let mut tcp = tcp(address).await?;
            tcp.write_all(head.as_bytes()).await?;
            return leave(tcp, death).await;
        }
        _ => {}
    }
    let mut tcp = connect(address, &head).await?;
    if matches!(at, Leaves::After101) {
        return leave(tcp, death).await;
    }
    if spdy {
        let mut encoder = HeaderEncoder::new();
        let mut out = Vec::new();
        for (index, name) in ["error", "stdin", "stdout", "stderr"].into_iter().enumerate() {
            let id = StreamId::new(2 * index as u32 + 1).expect("small and odd");
            encoder.syn_stream(id, &[("streamtype", name)], false, &mut out);
            if matches!(at, Leaves::AfterSyn) {
                break;
            }
        }
        tcp.write_all(&out).await?;
    }
    match at {
        Leaves::InStdinFrame => {
            if spdy {
                // Four SYN_REPLYs; what is sent before them is nobody's.
                tcp.read_exact(&mut [0; 4 * 12]).await?;
                let stdin = StreamId::new(3).expect("not 0");
                tcp.write_all(&data_head(stdin, 1000, false)).await?;
                tcp.write_all(&[b'x'; 400]).await?;
            } else {
                tcp.write_all(&message(0, &[b'x'; 1000])[..500]).await?;
            }
        }
        Leaves::InOutput => tcp.read_exact(&mut [0; 1000]).await.map(drop)?,
        Leaves::BeforeClose => {
            let mut came = Vec::new();
            while !came.windows(9).any(|word| word == b"\"Success\"") {
                if tcp.read_buf(&mut came).await? == 0 {
                    return Err(io::Error::other("no status came"));
                }
            }
        }
        _ => {}
    }
    leave(tcp, death).await
}

/// One session whose kubelet dies at that point. The client sees it to its end.
async fn kubelet_dies(address: SocketAddr, spdy: bool, cut: Cut, death: Death) -> io::Result<()> {
    let exec = Exec { command: &[cut.name(), death.name()], stdin: false };
    let ended = async {
        // That the session fails is the point; how it is told is for `faults.rs`.
        if spdy {
            if let Ok(session) = Spdy::open(address, &exec).await {
                let _ = session.finish(|_| async {}).await;
            }
        } else if let Ok(session) = V5::open(address, &exec).await {
            let _ = session.output.finish(|_| async {}).await;
        }
    };
    timeout(Duration::from_secs(40), ended).await.map_err(|_| io::Error::other("the session did not end"))
}

/// What a process holds at rest: one that has just said `ready` may still be starting its containers.
async fn at_rest(process: &Process) -> Outcome<Held> {
    let mut look = interval(Duration::from_millis(500));
    let mut last = None;
    loop {
        look.tick().await;
        let now = held(process)?;
        let counts = (now.descriptors, now.children);
        if last == Some(counts) {
            return Ok(now);
        }
        last = Some(counts);
    }
}

/// Waits until the process holds no more than it did. The kernel tells nobody when a descriptor is closed.
async fn settles(process: &Process, before: &Held) -> Outcome<Held> {
    let deadline = Instant::now() + Duration::from_secs(75);
    let mut look = interval(Duration::from_millis(100));
    loop {
        look.tick().await;
        let now = held(process)?;
        let same = now.descriptors <= before.descriptors
            && now.children <= before.children
            && now.threads <= before.threads + SPARE_THREADS;
        if same {
            return Ok(now);
        }
        ensure!(Instant::now() < deadline, "held before: {before:?}, now: {now:?}: {}", descriptors(process));
    }
}

/// Runs `sessions` sessions in two halves after a warm-up, and looks at what the processes hold behind each.
async fn nothing_stays<F, Fut>(what: &str, processes: &[(&Process, Held)], sessions: usize, one: F) -> Outcome
where
    F: Fn(usize) -> Fut,
    Fut: Future<Output = io::Result<()>>,
{
    let failed = AtomicU64::new(0);
    // Returns what the processes hold behind it: the least behind one of the last bursts, as the allocator gives back
    // what it likes, when it likes.
    let some = async |range: std::ops::Range<usize>| {
        let mut rss = vec![u64::MAX; processes.len()];
        let end = range.end;
        for start in range.step_by(BURST) {
            stream::iter(start..end.min(start + BURST))
                .map(&one)
                .for_each_concurrent(AT_ONCE, |session| async {
                    if let Err(error) = session.await
                        && failed.fetch_add(1, Ordering::Relaxed) == 0
                    {
                        println!("{what}: {error}");
                    }
                })
                .await;
            for ((process, before), least) in processes.iter().zip(&mut rss) {
                let held = settles(process, before).await.map_err(|why| format!("{what}: {why}"))?;
                if start + LAST * BURST >= end {
                    *least = held.rss_kib.min(*least);
                }
            }
        }
        Ok::<_, String>(rss)
    };
    // The allocator keeps what the largest burst took, and that takes a while to come.
    some(0..sessions.min(2000)).await?;
    let first = some(0..sessions / 2).await?;
    let second = some(sessions / 2..sessions).await?;
    let failed = failed.into_inner();
    ensure!(failed == 0, "{what}: {failed} of {sessions} sessions did not go as meant");
    println!("{what}: {sessions} sessions, RSS {first:?} then {second:?} KiB");
    for (first, second) in first.iter().zip(&second) {
        ensure!(*second <= first + GROWTH_KIB, "{what}: RSS grew from {first} to {second} KiB in the second half");
    }
    Ok(())
}

/// A drain waits for sessions: one that ends at once had none left.
async fn no_session_is_left(lab: Lab) -> Outcome {
    let begun = Instant::now();
    let log = lab.apiserver.stderr.clone();
    lab.stop().await?;
    ensure!(begun.elapsed() < Duration::from_secs(4), "the drain had to wait for sessions:\n{}", log.text());
    ensure!(!log.text().contains("panicked"), "{}", log.text());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_anywhere_leaves_nothing_behind() -> Outcome {
    let lab = Lab::plain().await?;
    let address = lab.address();
    let kubelet = lab.kubelet.as_ref().expect("it has one");
    let processes = [(&lab.apiserver, at_rest(&lab.apiserver).await?), (kubelet, at_rest(kubelet).await?)];
    for spdy in [false, true] {
        for at in LEAVES {
            if matches!(at, Leaves::AfterSyn) && !spdy {
                continue;
            }
            for death in [Death::Fin, Death::Rst] {
                let what = format!("{} client leaves {at:?} by {death:?}", if spdy { "SPDY" } else { "v5" });
                let sessions = count(8, 10_000);
                nothing_stays(&what, &processes, sessions, |_| client_leaves(address, spdy, at, death)).await?;
            }
        }
    }
    no_session_is_left(lab).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kubelet_that_dies_anywhere_leaves_nothing_behind() -> Outcome {
    let kubelet = ScriptedKubelet::start().await.expect("a port is free");
    let lab = Lab::before(kubelet.address().port()).await?;
    let address = lab.address();
    let processes = [(&lab.apiserver, at_rest(&lab.apiserver).await?)];
    for spdy in [false, true] {
        for cut in Cut::ALL {
            for death in [Death::Fin, Death::Rst] {
                let what = format!("kubelet dies {cut:?} by {death:?}, {}", if spdy { "SPDY" } else { "v5" });
                let sessions = count(8, 10_000);
                nothing_stays(&what, &processes, sessions, |_| kubelet_dies(address, spdy, cut, death)).await?;
            }
        }
    }
    no_session_is_left(lab).await
}

/// Were the fakes unable to hold anything, the tests above would prove nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_session_is_seen() -> Outcome {
    let lab = Lab::plain().await?;
    let kubelet = lab.kubelet.as_ref().expect("it has one");
    let before = [at_rest(&lab.apiserver).await?, at_rest(kubelet).await?];
    let exec = Exec { command: &["sh", "-c", "echo $$; cat"], stdin: true };
    let mut tcp = connect(lab.address(), &exec.websocket_head("v5.channel.k8s.io")).await.map_err(|e| e.to_string())?;
    tcp.read_exact(&mut [0; 8]).await.map_err(|error| error.to_string())?;
    let now = [held(&lab.apiserver)?, held(kubelet)?];
    ensure!(now[0].descriptors >= before[0].descriptors + 2, "{before:?} {now:?}");
    ensure!(now[1].children > before[1].children, "{before:?} {now:?}");
    drop(tcp);
    settles(kubelet, &before[1]).await?;
    settles(&lab.apiserver, &before[0]).await?;
    no_session_is_left(lab).await
}
