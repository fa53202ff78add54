//! Port-forward through a real server over loopback TCP: what happens to one connection happens to it alone.
//!
//! Our own client opens all connections of a test on one SPDY connection; behind the server are real TCP targets.

mod support;

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    num::NonZeroU16,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use futures_util::{StreamExt, future::join_all, stream};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    service::TowerToHyperService,
};
use rustix::process::{Resource, getrlimit, setrlimit};
use support::{count, noise};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::{mpsc, oneshot, watch},
    time::timeout,
};
use tower_kube_streaming::{
    BoxError,
    layers::danger::PermitAllLayer,
    port_forward::{
        Connection, Dial, DialErrors, Limits,
        over_spdy_client::{self, Forward, Pair},
    },
    remote_command::{Exit, Stdio},
    runtime::{Runtime, Session},
    services::{Kubelet, StreamingServer},
    upgrade::{Refusal, Sessions, Target},
};

/// Long enough for a loaded machine, short enough that a hang is seen.
const PATIENCE: Duration = Duration::from_secs(60);

const BOTH: [DialErrors; 2] = [DialErrors::Report, DialErrors::Isolate];

/// Dials loopback, and counts the connections that live.
#[derive(Clone, Debug)]
struct Pods(watch::Sender<usize>);

struct NoCommands;

/// A connection that counts.
struct Counted {
    tcp: TcpStream,
    _count: Count,
}

struct Count(watch::Sender<usize>);

impl Drop for Count {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

impl Runtime for Pods {
    type Session = NoCommands;
    type Forward = Self;

    async fn open(&self, _: &Target) -> Result<NoCommands, Refusal> {
        Err(Refusal::bad_request("no commands here"))
    }

    async fn port_forward(&self, _: &Target) -> Result<Self, Refusal> {
        Ok(self.clone())
    }
}

impl Session for NoCommands {
    async fn run(self, _: Stdio) -> Result<Exit, BoxError> {
        Err("no commands here".into())
    }
}

impl Dial for Pods {
    type Connection = Counted;

    async fn dial(&self, port: u16) -> Result<Counted, BoxError> {
        let tcp = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
        self.0.send_modify(|count| *count += 1);
        Ok(Counted { tcp, _count: Count(self.0.clone()) })
    }
}

impl Connection for Counted {
    fn reset(self) {
        self.tcp.reset();
    }
}

impl AsyncRead for Counted {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_read(cx, buf)
    }
}

impl AsyncWrite for Counted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}

/// One forward: our client, a server, and the count of what the server has open towards pods.
struct Lab {
    forward: Forward,
    /// Pairs that the server has dialled.
    dialled: watch::Receiver<usize>,
    sessions: Sessions,
}

impl Lab {
    async fn start(errors: DialErrors, limits: Limits) -> io::Result<Self> {
        let nofile = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, rustix::process::Rlimit { current: nofile.maximum, ..nofile })?;
        let pods = Pods(watch::Sender::new(0));
        let dialled = pods.0.subscribe();
        let sessions = Sessions::new();
        let server = StreamingServer::new(pods).dial_errors(errors).port_forward_limits(limits);
        let service = TowerToHyperService::new(Kubelet::new(sessions.clone(), PermitAllLayer, server));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        tokio::spawn(async move {
            let (tcp, _) = listener.accept().await?;
            tcp.set_nodelay(true)?;
            let http = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new()).http1_only();
            http.serve_connection_with_upgrades(TokioIo::new(tcp), service).await.map_err(io::Error::other)
        });
        let (forward, connection) = over_spdy_client::connect(upgraded(address).await?);
        tokio::spawn(connection);
        Ok(Self { forward, dialled, sessions })
    }

    async fn pair(&self, port: u16) -> Pair {
        self.forward.pair(NonZeroU16::new(port).expect("a port")).await.expect("the server takes a pair")
    }

    /// Waits until no pair is left at either end, then closes.
    async fn ends_empty(mut self) {
        let empty = async {
            self.dialled.wait_for(|count| *count == 0).await.expect("the server lives");
            while self.forward.streams() > 0 {
                tokio::task::yield_now().await;
            }
        };
        let emptied = timeout(PATIENCE, empty).await;
        let (dialled, streams) = (*self.dialled.borrow(), self.forward.streams());
        emptied.unwrap_or_else(|_| panic!("{dialled} connections to pods and {streams} streams are left"));
        assert_eq!(self.sessions.len(), 1, "it is one session to its end");
        self.forward.close();
        assert_eq!(self.sessions.drain(PATIENCE, PATIENCE).await, 0);
    }
}

/// Asks for a port-forward as kubectl does, up to the `101`.
async fn upgraded(server: SocketAddr) -> io::Result<TcpStream> {
    let mut tcp = TcpStream::connect(server).await?;
    tcp.set_nodelay(true)?;
    let ask = "POST /portForward/default/demo HTTP/1.1\r\nHost: kubelet\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\
               X-Stream-Protocol-Version: portforward.k8s.io\r\nContent-Length: 0\r\n\r\n";
    tcp.write_all(ask.as_bytes()).await?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(tcp.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head).to_lowercase();
    assert!(head.starts_with("http/1.1 101 "), "{head}");
    assert!(head.contains("x-stream-protocol-version: portforward.k8s.io\r\n"), "{head}");
    Ok(tcp)
}

/// A TCP server that does `serve` with each connection. Returns its port.
async fn target<F>(serve: impl Fn(TcpStream) -> F + Send + 'static) -> u16
where
    F: Future<Output = io::Result<()>> + Send + 'static,
{
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("loopback");
    let port = listener.local_addr().expect("bound").port();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            // Its end is what the client sees of it.
            tokio::spawn(serve(tcp));
        }
    });
    port
}

/// Hands each connection to the test.
async fn handed() -> (u16, mpsc::UnboundedReceiver<TcpStream>) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let port = target(move |tcp| {
        let _ = sender.send(tcp);
        std::future::ready(Ok(()))
    })
    .await;
    (port, receiver)
}

async fn echo(mut tcp: TcpStream) -> io::Result<()> {
    let (mut read, mut write) = tcp.split();
    tokio::io::copy(&mut read, &mut write).await?;
    write.shutdown().await
}

/// What the targets of a forward do.
struct Targets {
    echo: u16,
    /// Takes 1,000 bytes, sends 1,000, resets.
    resets: u16,
    /// Sends all at once and its end; then wants all to the end.
    answers_first: u16,
    refuses: u16,
    /// Its port stays taken, and nobody listens.
    _refuses: TcpSocket,
}

impl Targets {
    async fn start() -> io::Result<Self> {
        let nobody = TcpSocket::new_v4()?;
        nobody.bind((Ipv4Addr::LOCALHOST, 0).into())?;
        Ok(Self {
            echo: target(echo).await,
            resets: target(|mut tcp| async move {
                tcp.read_exact(&mut [0; 1000]).await?;
                tcp.write_all(&[1; 1000]).await?;
                tcp.set_zero_linger()
            })
            .await,
            answers_first: target(|mut tcp| async move {
                tcp.write_all(&noise(1, 64 * 1024)).await?;
                tcp.shutdown().await?;
                let mut all = Vec::new();
                tcp.read_to_end(&mut all).await?;
                assert_eq!(all, noise(2, 64 * 1024));
                Ok(())
            })
            .await,
            refuses: nobody.local_addr()?.port(),
            _refuses: nobody,
        })
    }
}

/// Moves `bytes` out and back through an echo, the second half once `meanwhile` has happened.
async fn healthy(mut pair: Pair, bytes: &[u8], meanwhile: impl Future<Output = ()>) {
    let (first, second) = bytes.split_at(bytes.len() / 2);
    let mut back = vec![0; first.len()];
    pair.data.write_all(first).await.expect("the pod takes the first half");
    pair.data.read_exact(&mut back).await.expect("the first half comes back");
    assert!(back == first, "the first half is not what was sent");
    meanwhile.await;
    pair.data.write_all(second).await.expect("the pod takes the second half");
    pair.data.shutdown().await.expect("the pod takes the end");
    back.clear();
    pair.data.read_to_end(&mut back).await.expect("the second half comes back");
    assert!(back == second, "the second half is not what was sent");
    assert_eq!(pair.error.text().await.expect("the forward lives"), None);
}

/// One connection that fails in the `kind`th way.
async fn unhealthy(lab: &Lab, targets: &Targets, errors: DialErrors, kind: u8) {
    match kind % 4 {
        0 => {
            let mut pair = lab.pair(targets.refuses).await;
            let text = pair.error.text().await.expect("the forward lives");
            assert_eq!(text.is_some(), errors == DialErrors::Report, "{text:?}");
            let end = pair.data.read_u8().await.expect_err("nobody is there");
            assert_eq!(end.kind(), io::ErrorKind::ConnectionReset);
        }
        1 => {
            let mut pair = lab.pair(targets.resets).await;
            pair.data.write_all(&[0; 1000]).await.expect("the pod takes them");
            let mut all = Vec::new();
            let end = pair.data.read_to_end(&mut all).await.expect_err("the pod resets");
            assert_eq!((all.len(), end.kind()), (1000, io::ErrorKind::ConnectionReset));
            assert_eq!(pair.error.text().await.expect("the forward lives"), None);
        }
        2 => {
            let mut pair = lab.pair(targets.echo).await;
            pair.data.write_all(&[0; 5000]).await.expect("the pod takes them");
            pair.data.read_exact(&mut [0; 100]).await.expect("they come back");
            pair.data.reset();
            assert_eq!(pair.error.text().await.expect("the forward lives"), None);
        }
        _ => {
            let mut pair = lab.pair(targets.answers_first).await;
            let mut all = Vec::new();
            pair.data.read_to_end(&mut all).await.expect("the pod's direction ends in order");
            assert!(all == noise(1, 64 * 1024));
            pair.data.write_all(&noise(2, 64 * 1024)).await.expect("the pod still takes data");
            pair.data.shutdown().await.expect("and its end");
            assert_eq!(pair.error.text().await.expect("the forward lives"), None);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failures_of_some_connections_touch_no_other() {
    let pairs = count(1_000, 10_000) / BOTH.len();
    for errors in BOTH {
        let lab = Lab::start(errors, Limits::new()).await.expect("a forward");
        let targets = Targets::start().await.expect("targets");
        let dice = noise(7, pairs);
        let failures = watch::Sender::new(0_usize);
        let all_failures = dice.iter().filter(|dice| *dice % 5 == 0).count();
        let bytes = Arc::new(noise(3, 64 * 1024));
        stream::iter(&dice)
            .for_each_concurrent(64, |&dice| {
                let (lab, targets, failures, bytes) = (&lab, &targets, &failures, &bytes);
                async move {
                    if dice % 5 == 0 {
                        let failed = timeout(PATIENCE, unhealthy(lab, targets, errors, dice / 5)).await;
                        failed.unwrap_or_else(|_| panic!("a failure of kind {} hangs", dice / 5 % 4));
                        failures.send_modify(|count| *count += 1);
                        return;
                    }
                    let pair = lab.pair(targets.echo).await;
                    let mut seen = failures.subscribe();
                    let before = *seen.borrow_and_update();
                    let failure = async {
                        // One while this connection is in flight, if any is still to come.
                        let _ = seen.wait_for(|now| *now > before || *now == all_failures).await;
                    };
                    timeout(PATIENCE, healthy(pair, bytes, failure)).await.expect("a healthy connection hangs");
                }
            })
            .await;
        assert_eq!(*failures.borrow(), all_failures);
        assert!(all_failures > pairs / 10, "{all_failures} of {pairs} is not a fifth");
        lab.ends_empty().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_connections_at_once_carry_data() {
    let lab = Lab::start(DialErrors::Report, Limits::new()).await.expect("a forward");
    let echo = target(echo).await;
    let mut pairs = join_all((0..1_000).map(|_| lab.pair(echo))).await;
    for round in 0..3_u64 {
        join_all(pairs.iter_mut().zip(0..).map(|(pair, number)| async move {
            let sent = noise(number * 3 + round, 2000);
            let mut back = vec![0; sent.len()];
            pair.data.write_all(&sent).await.expect("the pod takes it");
            pair.data.read_exact(&mut back).await.expect("it comes back");
            assert!(back == sent, "connection {number} got another's bytes");
        }))
        .await;
    }
    assert_eq!(*lab.dialled.borrow(), 1_000);
    let one_more = lab.forward.pair(NonZeroU16::new(echo).expect("a port")).await;
    assert!(one_more.is_err(), "1,000 are the limit");
    drop(pairs);
    lab.ends_empty().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resets_go_through_both_ways() {
    for errors in BOTH {
        let lab = Lab::start(errors, Limits::new()).await.expect("a forward");
        let (port, mut pods) = handed().await;
        // The client's: the pod reads an error, no end of file.
        let mut pair = lab.pair(port).await;
        let mut pod = pods.recv().await.expect("a connection");
        pair.data.write_all(b"x").await.expect("sent");
        assert_eq!(pod.read_u8().await.expect("it comes"), b'x');
        pair.data.reset();
        let end = timeout(PATIENCE, pod.read_u8()).await.expect("an end").expect_err("an error");
        assert_eq!(end.kind(), io::ErrorKind::ConnectionReset);
        // The pod's: the client reads an error, and no text.
        let mut pair = lab.pair(port).await;
        let pod = pods.recv().await.expect("a connection");
        pod.set_zero_linger().expect("a socket");
        drop(pod);
        let end = timeout(PATIENCE, pair.data.read_u8()).await.expect("an end").expect_err("an error");
        assert_eq!(end.kind(), io::ErrorKind::ConnectionReset);
        assert_eq!(pair.error.text().await.expect("the forward lives"), None);
        lab.ends_empty().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_that_goes_away_in_mid_transfer_ends_its_connection_and_the_next_one_works() {
    for errors in BOTH {
        let lab = Lab::start(errors, Limits::new()).await.expect("a forward");
        let (port, mut pods) = handed().await;
        let mut pair = lab.pair(port).await;
        let mut pod = pods.recv().await.expect("a connection");
        let (mut read, mut write) = tokio::io::split(&mut pair.data);
        let up = async { while write.write_all(&[7; 4096]).await.is_ok() {} };
        let down = async {
            let mut all = Vec::new();
            read.read_to_end(&mut all).await.map_err(|error| error.kind())
        };
        let dies = async {
            pod.write_all(&noise(5, 100_000)).await.expect("the forward takes it");
            pod.read_exact(&mut [0; 10_000]).await.expect("it comes");
            // Killed, with bytes unread: the kernel resets.
            drop(pod);
        };
        let ((), end, ()) = timeout(PATIENCE, async { tokio::join!(up, down, dies) }).await.expect("it ends");
        assert_eq!(end, Err(io::ErrorKind::ConnectionReset));
        assert_eq!(pair.error.text().await.expect("the forward lives"), None);
        drop(pair.data);
        let next = lab.pair(target(echo).await).await;
        healthy(next, &noise(6, 64 * 1024), std::future::ready(())).await;
        lab.ends_empty().await;
    }
}

/// Sends to a pod that does not read, until `stop`; then goes on to the end. Whether all was taken.
async fn flood(mut pair: Pair, bytes: Arc<Vec<u8>>) -> (bool, Pair) {
    let sent = pair.data.write_all(&bytes).await.is_ok() && pair.data.shutdown().await.is_ok();
    (sent, pair)
}

/// A byte there and back.
async fn ping(pair: &mut Pair) -> io::Result<()> {
    pair.data.write_all(b"p").await?;
    pair.data.read_u8().await.map(drop)
}

/// Pings until one is held up, and leaves that one under way.
async fn until_held_up(pair: &mut Pair) {
    loop {
        pair.data.write_all(b"p").await.expect("the forward lives");
        match timeout(Duration::from_millis(300), pair.data.read_u8()).await {
            Ok(pong) => drop(pong.expect("the forward lives")),
            Err(_) => return,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reporting_one_stalled_connection_holds_up_the_others_until_its_release_and_nothing_is_lost() {
    let lab = Lab::start(DialErrors::Report, Limits::new()).await.expect("a forward");
    let (port, mut pods) = handed().await;
    let mut other = lab.pair(target(echo).await).await;
    ping(&mut other).await.expect("an echo");
    // More than the kernel's buffers and ours.
    let bytes = Arc::new(noise(8, 32 * 1024 * 1024));
    let flooding = tokio::spawn(flood(lab.pair(port).await, Arc::clone(&bytes)));
    let mut pod = pods.recv().await.expect("a connection");
    until_held_up(&mut other).await;
    assert!(!flooding.is_finished());
    let released = Instant::now();
    let got = tokio::spawn(async move {
        let mut all = Vec::with_capacity(32 * 1024 * 1024);
        pod.read_to_end(&mut all).await.map(|_| all)
    });
    other.data.read_u8().await.expect("the ping that was held up");
    assert!(released.elapsed() < Duration::from_secs(1), "{:?}", released.elapsed());
    let got = timeout(PATIENCE, got).await.expect("an end").expect("no panic").expect("the end of file");
    assert!(got == *bytes, "{} bytes of {} came", got.len(), bytes.len());
    let (sent, pair) = flooding.await.expect("no panic");
    assert!(sent);
    drop((pair, other));
    lab.ends_empty().await;
}

/// MiB per second through an echo, there and back: the median of five.
async fn speed(pair: &mut Pair) -> f64 {
    let bytes = noise(9, 1024 * 1024 * count(1, 64));
    let mut speeds = Vec::new();
    for _ in 0..5 {
        let started = Instant::now();
        let (mut read, mut write) = tokio::io::split(&mut pair.data);
        let mut back = vec![0; bytes.len()];
        let (sent, got) = tokio::join!(write.write_all(&bytes), read.read_exact(&mut back));
        sent.and(got.map(drop)).expect("an echo");
        assert!(back == bytes);
        speeds.push(bytes.len() as f64 / f64::from(1 << 20) / started.elapsed().as_secs_f64());
    }
    speeds.sort_by(f64::total_cmp);
    speeds[2]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn isolating_one_stalled_connection_is_reset_and_the_others_go_on() {
    // A machine that is busy must not look like a pod that stalls.
    let stall = Duration::from_secs(count(1, 5) as u64);
    let lab = Lab::start(DialErrors::Isolate, Limits::new().stall(stall)).await.expect("a forward");
    let (port, mut pods) = handed().await;
    let mut other = lab.pair(target(echo).await).await;
    let before = speed(&mut other).await;
    let (tell, told) = oneshot::channel();
    let bytes = Arc::new(noise(8, 32 * 1024 * 1024));
    let pair = lab.pair(port).await;
    let flooding = tokio::spawn(async move {
        let (sent, mut pair) = flood(pair, bytes).await;
        let end = pair.data.read_u8().await.map_err(|error| error.kind());
        let _ = tell.send(());
        (sent, end, pair.error.text().await.expect("the forward lives"))
    });
    let mut pod = pods.recv().await.expect("a connection");
    let slowest = AtomicUsize::new(0);
    let pinging = async {
        loop {
            let start = Instant::now();
            ping(&mut other).await.expect("the others live");
            slowest.fetch_max(start.elapsed().as_millis() as usize, Ordering::Relaxed);
        }
    };
    tokio::select! {
        () = pinging => {}
        told = timeout(PATIENCE, told) => told.expect("an end").expect("told"),
    }
    assert_eq!(flooding.await.expect("no panic"), (false, Err(io::ErrorKind::ConnectionReset), None));
    // Held up for the time that is stated, and not longer.
    ping(&mut other).await.expect("an echo");
    // Not the one whose ping was given up: its answer is still on the way.
    let after = speed(&mut lab.pair(target(echo).await).await).await;
    println!(
        "the others: {before:.0} MiB/s before the stall, {after:.0} MiB/s behind the reset: {:.2}",
        after / before
    );
    let slowest = slowest.load(Ordering::Relaxed);
    assert!(slowest < 2 * stall.as_millis() as usize, "an echo took {slowest} ms");
    let mut all = Vec::new();
    let end = pod.read_to_end(&mut all).await.expect_err("the pod is reset");
    assert_eq!(end.kind(), io::ErrorKind::ConnectionReset);
    drop(other);
    lab.ends_empty().await;
}
