//! A server that falls silent is pinged after 10 s, and lost after 60 s: for commands and for port-forward alike.

use std::{future::Ready, io, pin::pin, time::Duration};

use http::Uri;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    sync::mpsc,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;
use tower_kube_streaming::{
    client::{
        ExecRequest, Execute, ExecuteError, SpdyExecutor, WebSocketExecutor,
        port_forward::{OpenForward, SpdyDialer, TunnelDialer},
    },
    remote_command::Stdio,
    upgrade::StreamOptions,
    websocket::handshake::accept_key,
};

use super::{at_kubelet, port};

/// A server that answers `101` with those headers, and nothing more. It tells when anything comes.
fn silent(
    headers: &'static str,
) -> (impl Fn(Uri) -> Ready<io::Result<DuplexStream>> + Send + Sync + 'static, mpsc::UnboundedReceiver<Duration>) {
    let (heard, came) = mpsc::unbounded_channel();
    let dial = move |_| {
        let (near, mut io) = duplex(64 * 1024);
        let heard = heard.clone();
        tokio::spawn(async move {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(io.read_u8().await.expect("a head"));
            }
            let head = String::from_utf8(head).expect("text");
            let key = head.lines().find_map(|line| line.strip_prefix("sec-websocket-key: "));
            let accept = key.map(|key| accept_key(&key.parse().expect("a value")));
            let accept = accept.as_ref().map_or("", |accept| accept.to_str().expect("text"));
            let answer = format!("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n{headers}\r\n\r\n");
            io.write_all(answer.replace("{accept}", accept).as_bytes()).await.expect("taken");
            let since = Instant::now();
            let mut buffer = [0; 4096];
            while let Ok(1..) = io.read(&mut buffer).await {
                let _ = heard.send(since.elapsed());
            }
        });
        std::future::ready(Ok(near))
    };
    (dial, came)
}

const V5: &str = "Upgrade: websocket\r\nSec-WebSocket-Accept: {accept}\r\nSec-WebSocket-Protocol: v5.channel.k8s.io";
const TUNNELLED: &str =
    "Upgrade: websocket\r\nSec-WebSocket-Accept: {accept}\r\nSec-WebSocket-Protocol: SPDY/3.1+portforward.k8s.io";
const V4: &str = "Upgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io";
const FORWARD: &str = "Upgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: portforward.k8s.io";

/// `lost` ends after 60 s of silence, with pings every 10 s.
async fn lives_a_minute(lost: impl Future<Output = ()>, mut came: mpsc::UnboundedReceiver<Duration>) {
    let since = Instant::now();
    timeout(Duration::from_secs(100), lost).await.expect("it is given up");
    let lived = since.elapsed();
    assert!((Duration::from_secs(58)..Duration::from_secs(66)).contains(&lived), "{lived:?}");
    let mut pings = Vec::new();
    while let Ok(at) = came.try_recv() {
        if at > Duration::from_secs(1) && pings.last().is_none_or(|last| at - *last > Duration::from_secs(1)) {
            pings.push(at);
        }
    }
    assert!((4..=6).contains(&pings.len()), "{pings:?}");
    assert!((Duration::from_secs(9)..Duration::from_secs(16)).contains(&pings[0]), "{pings:?}");
}

async fn command(executor: impl Execute) {
    let options = StreamOptions { stdout: true, ..StreamOptions::default() };
    let request = ExecRequest::new("http://node/exec/a/b/c?command=x&output=1", options).expect("a URL");
    let opened = executor.open(&request).await.expect("a 101");
    let error = opened.run(Stdio::new(CancellationToken::new())).await.expect_err("nobody is there");
    assert!(matches!(error, ExecuteError::Session(_)), "{error:?}");
}

async fn forward(dialer: impl OpenForward) {
    let upstream = dialer.dial(&at_kubelet()).await.expect("a 101");
    let mut closed = pin!(upstream.closed());
    assert!(timeout(Duration::from_secs(5), closed.as_mut()).await.is_err(), "it lives");
    closed.await.expect_err("nobody is there");
    upstream.connect(port(1)).await.expect_err("nobody is there");
}

#[tokio::test(start_paused = true)]
async fn a_silent_server_is_pinged_every_ten_seconds_and_given_up_after_sixty() {
    let (dial, came) = silent(V5);
    lives_a_minute(command(WebSocketExecutor::new(dial)), came).await;
    let (dial, came) = silent(FORWARD);
    lives_a_minute(forward(SpdyDialer::new(dial)), came).await;
    let (dial, came) = silent(TUNNELLED);
    lives_a_minute(forward(TunnelDialer::new(dial)), came).await;
}

#[tokio::test(start_paused = true)]
async fn a_server_that_never_replies_to_the_streams_of_a_command_is_given_up_after_thirty_seconds() {
    let (dial, _came) = silent(V4);
    let since = Instant::now();
    command(SpdyExecutor::new(dial)).await;
    assert!(since.elapsed() < Duration::from_secs(61), "{:?}", since.elapsed());
}
