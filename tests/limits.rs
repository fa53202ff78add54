//! Limits of sessions reach them through every layer and leaf that takes them.

use std::{convert::Infallible, io, ops::RangeInclusive, sync::Arc, time::Duration};

use bytes::Bytes;
use http::Uri;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto::Builder,
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    sync::Mutex,
    time::Instant,
};
use tower_kube_streaming::{
    BoxError,
    layers::{Hop, danger::PermitAllLayer},
    remote_command::{Exit, Stdio},
    runtime::{Loopback, Runtime, Session},
    services::{ApiServer, InProcess, Kubelet, StreamingServer, UpgradeProxy},
    upgrade::{Refusal, SessionLimits, Sessions, Target},
};

/// Commands that do nothing until their client is gone.
struct Quiet;

impl Runtime for Quiet {
    type Session = Quiet;
    type Forward = Loopback;

    async fn open(&self, _: &Target) -> Result<Quiet, Refusal> {
        Ok(Quiet)
    }

    async fn port_forward(&self, _: &Target) -> Result<Loopback, Refusal> {
        Ok(Loopback::default())
    }
}

impl Session for Quiet {
    async fn run(self, stdio: Stdio) -> Result<Exit, BoxError> {
        stdio.gone.cancelled().await;
        Ok(Exit::Success)
    }
}

/// A connection to an HTTP server of that stack.
fn serve<S>(stack: S) -> DuplexStream
where
    S: tower::Service<http::Request<Incoming>, Response = http::Response<Full<Bytes>>, Error = Infallible>,
    S: Clone + Send + 'static,
    S::Future: Send,
{
    let (near, far) = duplex(64 * 1024);
    tokio::spawn(async move {
        let http = Builder::new(TokioExecutor::new()).http1_only();
        let _ = http.serve_connection_with_upgrades(TokioIo::new(far), TowerToHyperService::new(stack)).await;
    });
    near
}

const KUBELET: &str = "/exec/default/demo/c?command=x&output=1";
const API_SERVER: &str = "/api/v1/namespaces/default/pods/demo/exec?container=c&command=x&stdout=true";

fn websocket(path: &str, protocol: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: {protocol}\r\n\r\n"
    )
}

fn spdy(path: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\
         X-Stream-Protocol-Version: v4.channel.k8s.io\r\nContent-Length: 0\r\n\r\n"
    )
}

/// Asks, says nothing more, and reads to the end, which has to come within these seconds.
async fn ends_within(mut client: DuplexStream, request: String, seconds: RangeInclusive<u64>) {
    let asked = Instant::now();
    client.write_all(request.as_bytes()).await.expect("the server reads");
    let mut heard = Vec::new();
    client.read_to_end(&mut heard).await.expect("an orderly end");
    assert!(heard.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&heard));
    assert!(seconds.contains(&asked.elapsed().as_secs()), "{:?}", asked.elapsed());
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[tokio::test(start_paused = true)]
async fn a_streaming_server_keeps_its_limits_over_both_carriers() {
    let limits = SessionLimits::new().dead_after(seconds(17)).creation(seconds(7));
    let kubelet = || serve(Kubelet::new(Sessions::new(), PermitAllLayer, StreamingServer::new(Quiet).limits(limits)));
    ends_within(kubelet(), websocket(KUBELET, "v4.channel.k8s.io"), 17..=17).await;
    ends_within(kubelet(), spdy(KUBELET), 7..=7).await;
}

#[tokio::test(start_paused = true)]
async fn a_translated_session_keeps_the_limits_of_its_layer() {
    let limits = SessionLimits::new().dead_after(seconds(17));
    let kubelet = Kubelet::new(Sessions::new(), PermitAllLayer, StreamingServer::new(Quiet));
    let resolve = |target: Arc<Target>| async move { Hop::kubelet("http://node:10250", &target) };
    let stack =
        ApiServer::builder().limits(limits).build(Sessions::new(), PermitAllLayer, resolve, InProcess::new(kubelet));
    // Its silence counts from the first tick on, and it has ten seconds more to answer the Close.
    ends_within(serve(stack), websocket(API_SERVER, "v5.channel.k8s.io"), 20..=40).await;
}

#[tokio::test(start_paused = true)]
async fn a_passed_through_session_keeps_the_limits_of_its_leaf() {
    let (near, mut hop) = duplex(64 * 1024);
    let near = Arc::new(Mutex::new(Some(near)));
    let connect = move |_: Uri| {
        let near = Arc::clone(&near);
        async move { near.lock().await.take().ok_or_else(|| io::Error::other("dialled twice")) }
    };
    tokio::spawn(async move {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(hop.read_u8().await.unwrap());
        }
        let answer = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\
                      X-Stream-Protocol-Version: v4.channel.k8s.io\r\n\r\n";
        hop.write_all(answer.as_bytes()).await.unwrap();
        // And then nothing.
        hop.read_to_end(&mut head).await
    });
    let resolve = |target: Arc<Target>| async move { Hop::kubelet("http://node:10250", &target) };
    let leaf = UpgradeProxy::new(connect).limits(SessionLimits::new().dead_after(seconds(17)));
    let stack = ApiServer::new(Sessions::new(), PermitAllLayer, resolve, leaf);
    ends_within(serve(stack), spdy(API_SERVER), 20..=26).await;
}
