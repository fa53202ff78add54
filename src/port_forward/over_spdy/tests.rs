use std::{
    io,
    num::NonZeroU16,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::Poll,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadBuf, duplex},
    sync::{mpsc, oneshot},
    task::JoinHandle,
};

use super::*;
use crate::{
    BoxError,
    port_forward::{
        Connection,
        over_spdy_client::{self, Forward, Pair},
    },
    spdy::{Handle, RecvEnd},
    upgrade::{Dialect, StreamOptions, Subresource},
};

/// A pod whose ports are this test.
struct Pod {
    dialled: mpsc::UnboundedSender<Near>,
    /// Dials under way.
    dialling: Arc<AtomicUsize>,
}

/// Nobody listens.
const REFUSED: u16 = 1;
/// Nobody answers.
const SILENT: u16 = 2;
/// Somebody takes the connection, and resets it at once.
const RESETTING: u16 = 3;

/// The pod's end of a connection.
struct Near {
    io: DuplexStream,
    /// `Ok`: it was reset; `Err`: it was closed.
    reset: oneshot::Receiver<()>,
    /// Fails the other end's reading.
    fail: oneshot::Sender<()>,
}

/// The forward's end of it.
struct Far {
    io: DuplexStream,
    reset: oneshot::Sender<()>,
    failed: Option<oneshot::Receiver<()>>,
}

impl Dial for Pod {
    type Connection = Far;

    async fn dial(&self, port: u16) -> Result<Far, BoxError> {
        struct Count(Arc<AtomicUsize>);
        impl Drop for Count {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::Relaxed);
            }
        }
        self.dialling.fetch_add(1, Ordering::Relaxed);
        let _count = Count(Arc::clone(&self.dialling));
        match port {
            REFUSED => return Err("connection refused".into()),
            SILENT => std::future::pending().await,
            RESETTING => return Err(io::Error::from(io::ErrorKind::ConnectionReset).into()),
            _ => {}
        }
        let (near, far) = duplex(1024);
        let (reset, was_reset) = oneshot::channel();
        let (fail, failed) = oneshot::channel();
        self.dialled.send(Near { io: near, reset: was_reset, fail })?;
        Ok(Far { io: far, reset, failed: Some(failed) })
    }
}

impl Connection for Far {
    fn reset(self) {
        let _ = self.reset.send(());
    }
}

impl AsyncRead for Far {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if let Poll::Ready(read) = Pin::new(&mut self.io).poll_read(cx, buf) {
            return Poll::Ready(read);
        }
        let failed = self.failed.as_mut().map(|failed| Pin::new(failed).poll(cx));
        match failed {
            Some(Poll::Ready(Ok(()))) => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
            Some(Poll::Ready(Err(_))) => {
                self.failed = None;
                Poll::Pending
            }
            Some(Poll::Pending) | None => Poll::Pending,
        }
    }
}

impl AsyncWrite for Far {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// A forward that is served, and what lies behind it.
struct Served {
    io: DuplexStream,
    dialled: mpsc::UnboundedReceiver<Near>,
    dialling: Arc<AtomicUsize>,
    drain: CancellationToken,
    report: JoinHandle<Report>,
}

fn served(errors: DialErrors, limits: Limits) -> Served {
    let (io, far) = duplex(64 * 1024);
    let (sender, dialled) = mpsc::unbounded_channel();
    let (dialling, drain) = (Arc::default(), CancellationToken::new());
    let pod = Pod { dialled: sender, dialling: Arc::clone(&dialling) };
    let token = drain.clone();
    let target = Target {
        subresource: Subresource::PortForward,
        namespace: "default".into(),
        pod: "demo".into(),
        uid: Some("1-2-3".into()),
        container: None,
        options: StreamOptions::default(),
        dialect: Dialect::Kubelet,
    };
    let report =
        tokio::spawn(async move { serve(far, &pod, &target, errors, limits, &SessionLimits::new(), token).await });
    Served { io, dialled, dialling, drain, report }
}

/// Our client on such a forward.
struct Lab {
    forward: Forward,
    client: JoinHandle<Result<(), Error>>,
    dialled: mpsc::UnboundedReceiver<Near>,
    dialling: Arc<AtomicUsize>,
    drain: CancellationToken,
    report: JoinHandle<Report>,
}

fn lab(errors: DialErrors) -> Lab {
    lab_with(errors, Limits::new())
}

fn lab_with(errors: DialErrors, limits: Limits) -> Lab {
    let Served { io, dialled, dialling, drain, report } = served(errors, limits);
    let (forward, connection) = over_spdy_client::connect(io);
    Lab { forward, client: tokio::spawn(connection), dialled, dialling, drain, report }
}

impl Lab {
    async fn open(&self, port: u16) -> Pair {
        self.forward.pair(NonZeroU16::new(port).unwrap()).await.unwrap()
    }

    /// A connection as both ends see it.
    async fn pair(&mut self) -> (Pair, Near) {
        let pair = self.open(80).await;
        (pair, self.dialled.recv().await.unwrap())
    }

    /// Asserts that a new connection works.
    async fn goes_on(&mut self) {
        let (mut pair, mut pod) = self.pair().await;
        pair.data.write_all(b"ping").await.unwrap();
        assert_eq!(read_exact(&mut pod.io, 4).await, b"ping");
        pod.io.write_all(b"pong").await.unwrap();
        assert_eq!(read_exact(&mut pair.data, 4).await, b"pong");
    }

    /// Waits until no stream is left.
    async fn is_empty(&self) {
        while self.forward.streams() > 0 {
            tokio::task::yield_now().await;
        }
    }

    /// Closes in order.
    async fn close(self) -> Report {
        drop(self.forward);
        self.client.await.unwrap().unwrap();
        self.report.await.unwrap()
    }
}

impl Near {
    async fn was_reset(self) -> bool {
        self.reset.await.is_ok()
    }
}

async fn read_exact(io: &mut (impl AsyncRead + Unpin), len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    io.read_exact(&mut bytes).await.unwrap();
    bytes
}

async fn read_all(io: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    io.read_to_end(&mut bytes).await?;
    Ok(bytes)
}

fn is_reset(result: io::Result<Vec<u8>>) -> bool {
    result.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionReset)
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 31 % 251) as u8).collect()
}

const BOTH: [DialErrors; 2] = [DialErrors::Report, DialErrors::Isolate];

#[tokio::test(start_paused = true)]
async fn the_client_ends_its_direction_and_the_pods_goes_on() {
    let mut lab = lab(DialErrors::Report);
    let (mut pair, mut pod) = lab.pair().await;
    let (up, down) = (pattern(300_000), pattern(200_000));
    let sends = async {
        pair.data.write_all(&up).await.unwrap();
        pair.data.shutdown().await.unwrap();
        read_all(&mut pair.data).await.unwrap()
    };
    let answers = async {
        assert_eq!(read_all(&mut pod.io).await.unwrap(), up);
        pod.io.write_all(&down).await.unwrap();
        pod.io.shutdown().await.unwrap();
        assert!(!pod.was_reset().await);
    };
    let (got, ()) = tokio::join!(sends, answers);
    assert_eq!(got, down);
    assert_eq!(pair.error.text().await.unwrap(), None);
    lab.is_empty().await;
    drop(pair.data);
    let report = lab.close().await;
    assert_eq!((report.end, &*report.protocol_in), (End::Carried, "portforward.k8s.io"));
    assert_eq!((report.bytes.from_client(), report.bytes.to_client()), (300_000, 200_000));
}

#[tokio::test(start_paused = true)]
async fn the_pod_ends_its_direction_and_the_clients_goes_on() {
    let mut lab = lab(DialErrors::Report);
    let (mut pair, mut pod) = lab.pair().await;
    pod.io.write_all(b"all there is").await.unwrap();
    pod.io.shutdown().await.unwrap();
    assert_eq!(read_all(&mut pair.data).await.unwrap(), b"all there is");
    let up = pattern(100_000);
    let sent = async {
        pair.data.write_all(&up).await.unwrap();
        pair.data.shutdown().await.unwrap();
    };
    let ((), got) = tokio::join!(sent, read_all(&mut pod.io));
    assert_eq!(got.unwrap(), up);
    assert!(!pod.was_reset().await);
    assert_eq!(pair.error.text().await.unwrap(), None);
    lab.is_empty().await;
}

/// kubectl up to 1.31 waits for that, and its local client may wait for kubectl to close.
#[tokio::test(start_paused = true)]
async fn the_error_stream_ends_with_the_pods_direction() {
    for errors in BOTH {
        let mut lab = lab(errors);
        let (mut pair, mut pod) = lab.pair().await;
        pod.io.write_all(b"bye").await.unwrap();
        pod.io.shutdown().await.unwrap();
        assert_eq!(read_all(&mut pair.data).await.unwrap(), b"bye");
        assert_eq!(pair.error.text().await.unwrap(), None);
        pair.data.write_all(b"so long").await.unwrap();
        pair.data.shutdown().await.unwrap();
        assert_eq!(read_all(&mut pod.io).await.unwrap(), b"so long");
        assert!(!pod.was_reset().await);
        lab.is_empty().await;
        lab.goes_on().await;
    }
}

#[tokio::test(start_paused = true)]
async fn kubectl_resets_behind_the_pods_end_and_the_error_stream_still_ends_without_text() {
    for errors in BOTH {
        let mut lab = lab(errors);
        let (mut pair, mut pod) = lab.pair().await;
        pod.io.shutdown().await.unwrap();
        assert_eq!(read_all(&mut pair.data).await.unwrap(), b"");
        pair.data.reset();
        assert_eq!(pair.error.text().await.unwrap(), None);
        assert!(pod.was_reset().await);
        lab.is_empty().await;
        lab.goes_on().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_clients_reset_resets_the_pod() {
    let mut lab = lab(DialErrors::Report);
    // At rest.
    let (pair, pod) = lab.pair().await;
    pair.data.reset();
    assert!(pod.was_reset().await);
    assert_eq!(pair.error.text().await.unwrap(), None);
    // Dropped.
    let (pair, pod) = lab.pair().await;
    drop(pair);
    assert!(pod.was_reset().await);
    // While the pod takes nothing, also behind its own end.
    for ends in [false, true] {
        let (mut pair, mut pod) = lab.pair().await;
        if ends {
            pod.io.shutdown().await.unwrap();
            assert_eq!(read_all(&mut pair.data).await.unwrap(), b"");
        }
        pair.data.write_all(&pattern(100_000)).await.unwrap();
        pair.data.flush().await.unwrap();
        pair.data.reset();
        assert!(pod.was_reset().await);
    }
    // While the client takes nothing.
    let (pair, mut pod) = lab.pair().await;
    let flood = async { while pod.io.write_all(&pattern(4096)).await.is_ok() {} };
    let reset = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        pair.data.reset();
    };
    tokio::join!(flood, reset);
    assert!(pod.was_reset().await);
    lab.is_empty().await;
    lab.goes_on().await;
}

#[tokio::test(start_paused = true)]
async fn a_dial_ends_with_its_client() {
    let lab = lab(DialErrors::Report);
    let pair = lab.open(SILENT).await;
    let other = lab.open(SILENT).await;
    while lab.dialling.load(Ordering::Relaxed) < 2 {
        tokio::task::yield_now().await;
    }
    pair.data.reset();
    assert_eq!(pair.error.text().await.unwrap(), None);
    while lab.dialling.load(Ordering::Relaxed) != 1 {
        tokio::task::yield_now().await;
    }
    lab.client.abort();
    assert_eq!(lab.report.await.unwrap().end, End::ClientGone);
    assert_eq!(lab.dialling.load(Ordering::Relaxed), 0);
    drop(other);
}

#[tokio::test(start_paused = true)]
async fn a_pods_reset_resets_the_pair_without_text_behind_what_came_before() {
    for errors in BOTH {
        let mut lab = lab(errors);
        let (mut pair, mut pod) = lab.pair().await;
        let (mut other, mut other_pod) = lab.pair().await;
        pod.io.write_all(b"before").await.unwrap();
        pod.fail.send(()).unwrap();
        assert_eq!(read_exact(&mut pair.data, 6).await, b"before");
        assert!(is_reset(read_all(&mut pair.data).await));
        assert_eq!(pair.error.text().await.unwrap(), None);
        other.data.write_all(b"alive").await.unwrap();
        assert_eq!(read_exact(&mut other_pod.io, 5).await, b"alive");
        drop(other);
        lab.is_empty().await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_ahead_of_the_pods_end_is_not_lost_to_a_client_that_still_sends() {
    let mut lab = lab(DialErrors::Report);
    let (mut pair, mut pod) = lab.pair().await;
    pair.data.write_all(&pattern(10_000)).await.unwrap();
    assert_eq!(read_exact(&mut pod.io, 1).await.len(), 1);
    pod.io.write_all(b"413").await.unwrap();
    // It reads no more: writing to it is a broken pipe, which is found before the answer is read.
    drop(pod.io);
    assert_eq!(read_all(&mut pair.data).await.unwrap(), b"413");
    assert_eq!(pair.error.text().await.unwrap(), None);
    drop(pair.data);
    lab.is_empty().await;
}

#[tokio::test(start_paused = true)]
async fn a_failed_dial_is_reported_in_upstreams_words() {
    let mut lab = lab(DialErrors::Report);
    let mut pair = lab.open(REFUSED).await;
    let text = "error forwarding port 1 to pod demo, uid 1-2-3: connection refused";
    assert_eq!(pair.error.text().await.unwrap().as_deref(), Some(text));
    assert!(is_reset(read_all(&mut pair.data).await));
    lab.is_empty().await;
    lab.goes_on().await;
}

#[tokio::test(start_paused = true)]
async fn a_failed_dial_is_hidden_by_isolation() {
    let mut lab = lab(DialErrors::Isolate);
    let mut pair = lab.open(REFUSED).await;
    assert_eq!(pair.error.text().await.unwrap(), None);
    assert!(is_reset(read_all(&mut pair.data).await));
    lab.is_empty().await;
    lab.goes_on().await;
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_is_reset_before_the_dial_knows_it_is_no_failed_dial() {
    for errors in [DialErrors::Report, DialErrors::Isolate] {
        let mut lab = lab(errors);
        let mut pair = lab.open(RESETTING).await;
        assert_eq!(pair.error.text().await.unwrap(), None);
        assert!(is_reset(read_all(&mut pair.data).await));
        lab.is_empty().await;
        lab.goes_on().await;
    }
}

/// A client that opens the streams by hand.
struct ByHand {
    handle: Handle,
    dialled: mpsc::UnboundedReceiver<Near>,
    _report: JoinHandle<Report>,
}

impl ByHand {
    fn new(errors: DialErrors, limits: Limits) -> Self {
        let Served { io, dialled, report, .. } = served(errors, limits);
        let (handle, connection) = spdy::client(io, Config::new());
        tokio::spawn(connection);
        Self { handle, dialled, _report: report }
    }

    async fn open(&self, role: &str, port: &str, request: Option<&str>) -> Result<Stream, Error> {
        let mut headers = vec![("streamtype", role), ("port", port)];
        headers.extend(request.map(|request| ("requestid", request)));
        self.handle.open(&headers).await
    }
}

#[tokio::test(start_paused = true)]
async fn the_data_stream_may_come_first_and_old_clients_send_no_request_id() {
    let mut lab = ByHand::new(DialErrors::Report, Limits::new());
    let mut data = lab.open("data", "80", Some("0")).await.unwrap();
    let _error = lab.open("error", "80", Some("0")).await.unwrap();
    data.write_all(b"first").await.unwrap();
    let mut pod = lab.dialled.recv().await.unwrap();
    assert_eq!(read_exact(&mut pod.io, 5).await, b"first");
    let _error = lab.open("error", "80", None).await.unwrap();
    let mut data = lab.open("data", "80", None).await.unwrap();
    data.write_all(b"old").await.unwrap();
    let mut pod = lab.dialled.recv().await.unwrap();
    assert_eq!(read_exact(&mut pod.io, 3).await, b"old");
}

#[tokio::test(start_paused = true)]
async fn a_stream_with_bad_headers_is_refused_alone() {
    let mut lab = ByHand::new(DialErrors::Report, Limits::new());
    let _error = lab.open("error", "80", Some("0")).await.unwrap();
    for (role, port) in [("data", "0"), ("data", "http"), ("data", "65536"), ("resize", "80"), ("", "80")] {
        let refused = lab.open(role, port, Some("0")).await.unwrap_err();
        assert_eq!(refused.reset_code(), Some(ResetCode::CANCEL), "{role} {port}");
    }
    let _data = lab.open("data", "80", Some("0")).await.unwrap();
    lab.dialled.recv().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_duplicate_is_told_to_its_pair_or_only_reset() {
    for errors in BOTH {
        let mut lab = ByHand::new(errors, Limits::new());
        let mut first = lab.open("error", "80", Some("0")).await.unwrap();
        let mut second = lab.open("error", "80", Some("0")).await.unwrap();
        assert_eq!(read_all(&mut second).await.unwrap(), b"");
        assert_eq!(second.ended(), Some(RecvEnd::Reset(ResetCode::CANCEL)));
        let text = "error processing stream for request 0: error stream already assigned";
        if errors == DialErrors::Report {
            assert_eq!(read_exact(&mut first, text.len()).await, text.as_bytes());
        }
        let data = lab.open("data", "80", Some("0")).await.unwrap();
        let mut duplicate = lab.open("data", "80", Some("0")).await.unwrap();
        // The pair was complete, so this one is the first of another.
        let pod = lab.dialled.recv().await.unwrap();
        data.reset(ResetCode::CANCEL);
        assert!(pod.was_reset().await);
        assert_eq!(read_all(&mut first).await.unwrap(), b"");
        let mut again = lab.open("data", "80", Some("0")).await.unwrap();
        assert_eq!(read_all(&mut again).await.unwrap(), b"");
        // Nobody to tell.
        assert!(duplicate.write_all(b"x").await.is_ok());
    }
}

#[tokio::test(start_paused = true)]
async fn half_a_pair_is_given_up_after_thirty_seconds() {
    for errors in BOTH {
        let lab = ByHand::new(errors, Limits::new());
        let start = Instant::now();
        let mut error = lab.open("error", "80", Some("0")).await.unwrap();
        let mut data = lab.open("data", "80", Some("1")).await.unwrap();
        let (text, end) = tokio::join!(read_all(&mut error), read_all(&mut data));
        let waited = start.elapsed();
        assert!((30..31).contains(&waited.as_secs()), "{waited:?}");
        assert_eq!(data.ended(), Some(RecvEnd::Reset(ResetCode::CANCEL)));
        assert_eq!(end.unwrap(), b"");
        match errors {
            DialErrors::Report => {
                assert_eq!(text.unwrap(), b"(request=0) timed out waiting for streams");
                assert_eq!(error.ended(), Some(RecvEnd::Fin));
            }
            DialErrors::Isolate => assert_eq!(text.unwrap(), b""),
        }
        drop((error, data));
        while lab.handle.streams() > 0 {
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_too_many_is_refused_alone_and_takes_the_place_of_one_that_ended() {
    let mut lab = ByHand::new(DialErrors::Report, Limits::new().pairs(2));
    let _error = lab.open("error", "80", Some("0")).await.unwrap();
    let data = lab.open("data", "80", Some("0")).await.unwrap();
    let _waiting = lab.open("error", "80", Some("1")).await.unwrap();
    let refused = lab.open("error", "80", Some("2")).await.unwrap_err();
    assert_eq!(refused.reset_code(), Some(ResetCode::REFUSED_STREAM));
    // Half a pair may be completed.
    let gone = lab.open("data", "80", Some("1")).await.unwrap();
    let (pod, gone_pod) = (lab.dialled.recv().await.unwrap(), lab.dialled.recv().await.unwrap());
    assert!(lab.open("error", "80", Some("2")).await.is_err());
    drop(gone);
    assert!(gone_pod.was_reset().await);
    // A client that gave up while it waited does not count.
    let given_up = lab.open("error", "80", Some("2")).await.unwrap();
    assert!(lab.open("error", "80", Some("3")).await.is_err());
    given_up.reset(ResetCode::CANCEL);
    let _error = lab.open("error", "80", Some("3")).await.unwrap();
    drop((data, pod));
}

#[tokio::test(start_paused = true)]
async fn reporting_a_stalled_pod_pauses_the_others_until_it_reads_and_nothing_is_lost() {
    let mut lab = lab(DialErrors::Report);
    let (pair, mut pod) = lab.pair().await;
    let (mut other, mut other_pod) = lab.pair().await;
    let data = pattern(1_000_000);
    let (mut read, mut write) = tokio::io::split(pair.data);
    let sent = tokio::spawn({
        let data = data.clone();
        async move {
            write.write_all(&data).await.unwrap();
            write.shutdown().await.unwrap();
        }
    });
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert!(!sent.is_finished());
    other.data.write_all(b"waits").await.unwrap();
    let waits = timeout(Duration::from_secs(60), other_pod.io.read_u8()).await;
    assert!(waits.is_err(), "the whole connection is paused");
    let start = Instant::now();
    let ((), got) = tokio::join!(
        async {
            assert_eq!(read_exact(&mut other_pod.io, 5).await, b"waits");
            assert!(start.elapsed() < Duration::from_secs(1));
        },
        read_all(&mut pod.io)
    );
    assert_eq!(got.unwrap(), data);
    sent.await.unwrap();
    drop(pod);
    assert_eq!(read_all(&mut read).await.unwrap(), b"");
    pair.error.text().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn isolating_a_stalled_pod_is_reset_after_ten_seconds_and_the_others_go_on() {
    let mut lab = lab(DialErrors::Isolate);
    let (mut other, mut other_pod) = lab.pair().await;
    let (mut pair, pod) = lab.pair().await;
    let data = pattern(1_000_000);
    let start = Instant::now();
    let stalled = tokio::spawn(async move {
        // What is stuck in the pipe is gone with the pair.
        let failed = pair.data.write_all(&data).await;
        (failed.is_err(), is_reset(read_all(&mut pair.data).await), pair.error.text().await.unwrap())
    });
    tokio::time::sleep(Duration::from_secs(5)).await;
    other.data.write_all(b"waits").await.unwrap();
    assert_eq!(read_exact(&mut other_pod.io, 5).await, b"waits");
    let waited = start.elapsed();
    assert!((10..11).contains(&waited.as_secs()), "{waited:?}");
    assert_eq!(stalled.await.unwrap(), (true, true, None));
    assert!(pod.was_reset().await);
    lab.goes_on().await;
}

#[tokio::test(start_paused = true)]
async fn many_slow_pods_are_reset_no_further_than_needed() {
    let limits = Limits::new().stall(Duration::from_secs(20));
    let mut lab = lab_with(DialErrors::Isolate, limits);
    let mut pairs = Vec::new();
    for _ in 0..8 {
        pairs.push(lab.pair().await);
    }
    // Each below its own bound, together above the connection's.
    let block = pattern(220 * 1024);
    let sending: Vec<_> = pairs
        .into_iter()
        .map(|(mut pair, pod)| {
            let block = block.clone();
            tokio::spawn(async move {
                let sent = pair.data.write_all(&block).await.is_ok() && pair.data.flush().await.is_ok();
                (sent, pair, pod)
            })
        })
        .collect();
    let start = Instant::now();
    let mut reset = 0;
    let mut alive = Vec::new();
    for task in sending {
        let (_, pair, mut pod) = task.await.unwrap();
        alive.push((pair, timeout(Duration::from_secs(60), &mut pod.reset).await.is_ok()));
        reset += usize::from(alive.last().unwrap().1);
    }
    assert!(start.elapsed() >= Duration::from_secs(20));
    assert!((1..8).contains(&reset), "{reset} of 8 were reset");
    lab.goes_on().await;
}

#[tokio::test(start_paused = true)]
async fn a_drain_resets_the_pods_and_closes_in_order_behind_what_was_sent() {
    let mut lab = lab(DialErrors::Report);
    let (mut pair, mut pod) = lab.pair().await;
    let _half = lab.forward.clone();
    pod.io.write_all(b"last words").await.unwrap();
    assert_eq!(read_exact(&mut pair.data, 4).await, b"last");
    lab.drain.cancel();
    assert_eq!(read_exact(&mut pair.data, 6).await, b" words");
    assert!(is_reset(read_all(&mut pair.data).await));
    assert!(pod.was_reset().await);
    assert_eq!(pair.error.text().await.unwrap(), None);
    lab.client.await.unwrap().unwrap();
    let report = lab.report.await.unwrap();
    assert_eq!((report.end, &*report.detail), (End::Error, "the server is shutting down"));
    assert_eq!((report.bytes.from_client(), report.bytes.to_client()), (0, 10));
}

#[tokio::test(start_paused = true)]
async fn when_the_client_gets_lost_only_what_it_finished_ends_in_order() {
    let mut lab = lab(DialErrors::Report);
    let (_cut, cut_pod) = lab.pair().await;
    let (mut ended, mut ended_pod) = lab.pair().await;
    let data = pattern(50_000);
    ended.data.write_all(&data).await.unwrap();
    ended.data.shutdown().await.unwrap();
    ended.data.flush().await.unwrap();
    assert_eq!(read_exact(&mut ended_pod.io, 1).await, data[..1]);
    lab.client.abort();
    assert!(cut_pod.was_reset().await);
    assert_eq!(read_all(&mut ended_pod.io).await.unwrap(), data[1..]);
    assert!(!ended_pod.was_reset().await);
    let report = lab.report.await.unwrap();
    assert_eq!((report.end, report.bytes.from_client()), (End::ClientGone, 50_000));
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_never_takes_the_last_of_a_lost_client_is_reset() {
    let mut lab = lab(DialErrors::Report);
    let (mut pair, pod) = lab.pair().await;
    pair.data.write_all(&pattern(50_000)).await.unwrap();
    pair.data.shutdown().await.unwrap();
    lab.client.abort();
    let start = Instant::now();
    assert_eq!(lab.report.await.unwrap().end, End::ClientGone);
    assert!((10..11).contains(&start.elapsed().as_secs()));
    assert!(pod.was_reset().await);
}

#[tokio::test(start_paused = true)]
async fn a_forward_without_payload_ends_after_four_hours() {
    let mut lab = lab(DialErrors::Report);
    let (mut pair, mut pod) = lab.pair().await;
    tokio::time::sleep(Duration::from_secs(3 * 3600)).await;
    pair.data.write_all(b"x").await.unwrap();
    assert_eq!(read_exact(&mut pod.io, 1).await, b"x");
    let start = Instant::now();
    let report = lab.report.await.unwrap();
    assert_eq!((report.end, &*report.detail), (End::Error, "nothing was sent for too long"));
    let waited = start.elapsed().as_secs();
    assert!((4 * 3600..4 * 3600 + 180).contains(&waited), "{waited}");
    assert!(pod.was_reset().await);
}
