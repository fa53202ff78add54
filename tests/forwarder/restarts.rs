//! A forwarder whose server goes away and comes back, under load.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::watch,
    time::timeout,
};
use tower_kube_streaming::client::{
    Carrier,
    port_forward::{
        ConnectionError, DialError, Event, FallbackDialer, Forwarder, OpenForward, SpdyDialer, TunnelDialer,
    },
};

use super::{
    EXTEND, NONE, TUNNEL, at_api_server, at_kubelet, port,
    server::{Server, Side},
    support::{Outcome, count, noise, pod::Pod, through},
};
use crate::ensure;

/// Programs at once.
const PROGRAMS: usize = 24;

/// How soon traffic must flow again once the server is back.
const RESUMED: Duration = Duration::from_secs(2);

const LOCAL: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// What a forwarder told.
#[derive(Debug, Default)]
struct Told {
    log: Mutex<Vec<String>>,
    /// Connections that the server said had failed.
    failed: AtomicUsize,
}

impl Told {
    fn listener(self: &Arc<Self>) -> impl Fn(&Event<'_>) + Send + Sync + 'static {
        let told = Arc::clone(self);
        move |event| {
            let line = match event {
                Event::Opened { carrier, .. } => format!("opened {carrier}"),
                Event::Lost(_) => "lost".into(),
                Event::Redialled { carrier, .. } => format!("redialled {carrier}"),
                Event::ConnectionFailed { error: ConnectionError::Lost, .. } | Event::Accepted { .. } => return,
                Event::ConnectionFailed { error: ConnectionError::Failed(_), .. } => {
                    told.failed.fetch_add(1, Ordering::Relaxed);
                    return;
                }
                Event::ConnectionFailed { error, .. } => error.to_string(),
                _ => return,
            };
            told.log.lock().expect("not poisoned").push(line);
        }
    }

    fn log(&self) -> Vec<String> {
        self.log.lock().expect("not poisoned").clone()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_what_was_open_on_a_lost_server_fails_and_traffic_resumes_over_websocket() {
    let server = Server::new(Side::ApiServer(TUNNEL, NONE));
    under_load(&server, FallbackDialer::new(server.dial()), Carrier::WebSocket).await;
    let server = Server::new(Side::ApiServer(TUNNEL, NONE));
    under_load(&server, TunnelDialer::new(server.dial()), Carrier::WebSocket).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_what_was_open_on_a_lost_server_fails_and_traffic_resumes_over_spdy() {
    let server = Server::new(Side::ApiServer(NONE, NONE));
    under_load(&server, FallbackDialer::new(server.dial()), Carrier::Spdy).await;
    let server = Server::new(Side::ApiServer(NONE, NONE));
    under_load(&server, SpdyDialer::new(server.dial()), Carrier::Spdy).await;
}

/// Connections of which every fifth is to a closed port, and two restarts in the middle.
async fn under_load(server: &Server, dialer: impl OpenForward + 'static, carrier: Carrier) {
    let connections = count(500, 10_000);
    let pod = Pod::start().await.expect("a pod");
    let told = Arc::new(Told::default());
    let forwarder = Forwarder::new(dialer, at_api_server("demo")).on_event(told.listener());
    let forwarding = forwarder.start().await.expect("a server");
    let echo = forwarding.listen(LOCAL, port(pod.echo)).await.expect("a port").port();
    let closed = forwarding.listen(LOCAL, port(pod.closed)).await.expect("a port").port();

    let load = Load { stops: AtomicUsize::new(0), done: watch::Sender::new(0), retried: AtomicUsize::new(0) };
    let programs = async {
        let programs = (0..connections).map(|number| load.program(number, echo, closed));
        stream::iter(programs)
            .buffer_unordered(PROGRAMS)
            .filter_map(|done| async { done.err() })
            .collect::<Vec<_>>()
            .await
    };
    let restarts = async {
        for part in 1..=2 {
            let _ = load.done.subscribe().wait_for(|done| *done >= connections * part / 3).await;
            load.stops.fetch_add(1, Ordering::SeqCst);
            server.stop().await;
            load.stops.fetch_add(1, Ordering::SeqCst);
            // The second attempt is made for a connection that waits.
            let dialled = *server.dialled.borrow();
            let _ = server.dialled.subscribe().wait_for(|now| *now > dialled + 1).await;
            let (back, before) = (Instant::now(), *load.done.borrow());
            server.start();
            let _ = load.done.subscribe().wait_for(|done| *done > before + PROGRAMS).await;
            assert!(back.elapsed() < RESUMED, "traffic resumed after {:?}", back.elapsed());
        }
    };
    let (failures, ()) = tokio::join!(programs, restarts);
    assert!(failures.is_empty(), "{} collateral failures: {:?}", failures.len(), failures.first());
    let retried = load.retried.load(Ordering::Relaxed);
    assert!(retried <= 2 * PROGRAMS, "{retried} were open on a lost server");
    let failed = told.failed.load(Ordering::Relaxed);
    assert!(failed >= connections / 5 - 2 * PROGRAMS, "{failed} failures were told");
    let log = told.log();
    assert_eq!(
        log,
        [
            format!("opened {carrier}"),
            "lost".into(),
            format!("redialled {carrier}"),
            "lost".into(),
            format!("redialled {carrier}"),
        ]
    );
    assert_eq!(forwarding.stop(Duration::from_secs(10)).await, 0);
}

struct Load {
    /// One more when the server is about to stop, and one more when it has.
    stops: AtomicUsize,
    done: watch::Sender<usize>,
    retried: AtomicUsize,
}

impl Load {
    /// One program's connection. If it began before the server had stopped it tries again, as programs do.
    async fn program(&self, number: usize, echo: u16, closed: u16) -> Outcome {
        loop {
            let stops = self.stops.load(Ordering::SeqCst);
            let once = async {
                match number % 5 {
                    0 => refused(closed).await,
                    _ => echoed(echo, number).await,
                }
            };
            let outcome = timeout(Duration::from_secs(30), once).await.unwrap_or_else(|_| Err("it hangs".into()));
            let may_be_lost = stops % 2 == 1 || stops != self.stops.load(Ordering::SeqCst);
            if outcome.is_err() && may_be_lost {
                self.retried.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            self.done.send_modify(|done| *done += 1);
            return outcome.map_err(|why| format!("connection {number}: {why}"));
        }
    }
}

async fn echoed(to: u16, number: usize) -> Outcome {
    let mut tcp = through::tcp(to).await?;
    through::echoed(&mut tcp, &noise(number as u64, 2048)).await?;
    through::ended(tcp).await
}

/// Nobody listens: it is reset, which may be seen while connecting already.
async fn refused(to: u16) -> Outcome {
    let Ok(mut tcp) = TcpStream::connect((Ipv4Addr::LOCALHOST, to)).await else { return Ok(()) };
    match tcp.read(&mut [0]).await {
        Err(_) => Ok(()),
        Ok(read) => Err(format!("{read} bytes and no error came out of a closed port")),
    }
}

#[tokio::test]
async fn a_connection_waits_for_the_server_only_so_long_and_the_next_attempt_waits_for_a_connection() -> Outcome {
    let pod = Pod::start().await?;
    let server = Server::new(Side::Kubelet(EXTEND));
    let told = Arc::new(Told::default());
    let forwarder = Forwarder::new(TunnelDialer::new(server.dial()), at_kubelet())
        .on_event(told.listener())
        .hold(Duration::from_millis(500));
    let forwarding = forwarder.start().await.map_err(|error| error.to_string())?;
    let local = forwarding.listen(LOCAL, port(pod.echo)).await.map_err(|error| error.to_string())?.port();
    let mut open = through::tcp(local).await?;
    through::echoed(&mut open, b"open").await?;
    server.stop().await;
    // The program sees a reset, not an end.
    let error = open.read_u8().await.expect_err("the server is gone");
    ensure!(error.kind() == std::io::ErrorKind::ConnectionReset, "{error}");
    let mut held = through::tcp(local).await?;
    let since = Instant::now();
    held.read_u8().await.expect_err("nobody comes");
    ensure!(since.elapsed() >= Duration::from_millis(400), "held for {:?}", since.elapsed());
    let log = told.log();
    ensure!(log == ["opened WebSocket", "lost", "no connection to the server in time"], "{log:?}");
    let dialled = *server.dialled.borrow();
    ensure!((3..=6).contains(&dialled), "dialled {dialled} times in half a second");
    server.start();
    let mut again = through::tcp(local).await?;
    through::echoed(&mut again, b"again").await?;
    ensure!(*server.dialled.borrow() <= dialled + 2, "dialled {} times", *server.dialled.borrow());
    drop(forwarding);
    again.read_u8().await.expect_err("a forwarder that is dropped resets what is open");
    Ok(())
}

#[tokio::test]
async fn after_a_loss_the_pod_is_found_again() -> Outcome {
    let pod = Pod::start().await?;
    let server = Server::new(Side::ApiServer(TUNNEL, NONE));
    let asked = Arc::new(AtomicUsize::new(0));
    let ready = asked.clone();
    let resolve = move || {
        let number = ready.fetch_add(1, Ordering::SeqCst);
        async move {
            match number {
                0 => Ok(at_api_server("demo")),
                1 => Err("no pod is ready".into()),
                _ => Ok(at_api_server("other")),
            }
        }
    };
    let forwarding = Forwarder::resolving(SpdyDialer::new(server.dial()), resolve).start().await;
    let forwarding = forwarding.map_err(|error| error.to_string())?;
    let local = forwarding.listen(LOCAL, port(pod.echo)).await.map_err(|error| error.to_string())?.port();
    for word in [b"before", b"behind"] {
        let mut tcp = through::tcp(local).await?;
        through::echoed(&mut tcp, word).await?;
        server.stop().await;
        server.start();
        tcp.read_u8().await.expect_err("the server was restarted");
    }
    ensure!(asked.load(Ordering::SeqCst) >= 3, "the pod was looked for {asked:?} times");
    Ok(())
}

#[tokio::test]
async fn a_forwarder_that_cannot_begin_says_why() {
    let server = Server::new(Side::ApiServer(TUNNEL, NONE));
    let dialer = FallbackDialer::new(server.dial());
    let error = Forwarder::new(dialer.clone(), at_api_server("nosuch")).start().await.expect_err("no pod");
    assert!(matches!(&error, DialError::Dial(error) if error.rejection().is_some()), "{error:?}");
    let error = Forwarder::resolving(dialer, || async { Err("no pod is ready".into()) }).start().await;
    assert!(matches!(error.expect_err("no pod"), DialError::Resolve(_)));
}

#[tokio::test]
async fn a_forwarder_that_stops_lets_what_is_open_finish_and_takes_nothing_new() -> Outcome {
    let pod = Pod::start().await?;
    let server = Server::new(Side::Kubelet(EXTEND));
    for grace in [Duration::from_secs(20), Duration::ZERO] {
        let forwarding = Forwarder::new(SpdyDialer::new(server.dial()), at_kubelet()).start().await;
        let forwarding = forwarding.map_err(|error| error.to_string())?;
        let local = forwarding.listen(LOCAL, port(pod.echo)).await.map_err(|error| error.to_string())?.port();
        let mut open = through::tcp(local).await?;
        through::echoed(&mut open, b"open").await?;
        let stopped = tokio::spawn(forwarding.stop(grace));
        // The listener is gone first.
        while TcpStream::connect((Ipv4Addr::LOCALHOST, local)).await.is_ok() {
            tokio::task::yield_now().await;
        }
        if grace.is_zero() {
            open.read_u8().await.expect_err("reset");
        } else {
            through::echoed(&mut open, b"still open").await?;
            open.shutdown().await.map_err(|error| error.to_string())?;
            ensure!(through::rest(&mut open).await.map_err(|error| error.to_string())? == 0, "nothing comes");
        }
        let left = stopped.await.map_err(|error| error.to_string())?;
        ensure!(left == usize::from(grace.is_zero()), "{left} were reset");
    }
    Ok(())
}
