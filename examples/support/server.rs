//! Accepts connections, speaks TLS, HTTP/1.1 and HTTP/2 on them, and stops without losing a session.

use std::{net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use axum::{Router, body::Body};
use http::Request;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{
        conn::auto,
        graceful::{GracefulShutdown, Watcher},
    },
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    signal::unix::{SignalKind, signal},
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, rustls::ServerConfig, server::TlsStream};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;
use tower_kube_streaming::upgrade::{ClientAddr, Sessions};

use super::{
    Context, Error,
    authn::{ByFrontProxy, ClientCertificate, caller_of_certificate},
    say,
    tls::FrontProxies,
};

/// Time for a TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Time for a request head, and for silence between two requests. Go's API server allows its head 32 s.
const HEAD: Duration = Duration::from_secs(32);
/// Bytes of a request head, as Go's servers allow.
const HEAD_BYTES: usize = 1 << 20;
/// An HTTP/2 peer is pinged after so much silence, and has so long to answer.
const PING: Duration = Duration::from_secs(30);
const PONG: Duration = Duration::from_secs(15);
/// When the process is asked to stop: time for sessions to end by themselves, and then to tell their clients why they
/// have to. It exits within 30 s.
const PATIENCE: Duration = Duration::from_secs(5);
const FAREWELL: Duration = Duration::from_secs(20);
/// Time for requests to end. Short: a peer that stops in the middle of a head is waiting for nothing.
const DRAIN_REQUESTS: Duration = Duration::from_secs(10);
/// Pause after a failed accept: when descriptors run out, trying at once would only burn CPU.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A bound socket, and how connections on it are protected.
pub struct Server {
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    front_proxies: Option<Arc<FrontProxies>>,
    stop: CancellationToken,
}

impl Server {
    /// Binds the address; port 0 picks a free one. `stop` ends [`serve`](Self::serve).
    pub async fn bind(address: SocketAddr, stop: CancellationToken) -> Result<Self, Error> {
        let listener = TcpListener::bind(address).await.context(format_args!("listening on {address}"))?;
        Ok(Self { listener, tls: None, front_proxies: None, stop })
    }

    /// Speaks TLS; without it, plain HTTP.
    pub fn with_tls(mut self, config: ServerConfig) -> Self {
        self.tls = Some(TlsAcceptor::from(Arc::new(config)));
        self
    }

    /// Tells front proxies from clients, where the TLS configuration takes both.
    pub fn with_front_proxies(mut self, proxies: FrontProxies) -> Self {
        self.front_proxies = Some(Arc::new(proxies));
        self
    }

    pub fn address(&self) -> Result<SocketAddr, Error> {
        self.listener.local_addr().context("listening")
    }

    /// Where clients of this machine find it.
    pub fn url(&self) -> Result<String, Error> {
        let mut address = self.address()?;
        if address.ip().is_unspecified() {
            address.set_ip(if address.is_ipv4() { [127, 0, 0, 1].into() } else { [0, 0, 0, 0, 0, 0, 0, 1].into() });
        }
        Ok(format!("{}://{address}", if self.tls.is_some() { "https" } else { "http" }))
    }

    /// Serves until told to stop; then accepts nothing more, tells the sessions why they end, and waits for them and
    /// for the requests in flight, for less than 30 s.
    pub async fn serve(self, service: Router, sessions: Sessions) -> Result<(), Error> {
        let connections = GracefulShutdown::new();
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = self.stop.cancelled() => break,
            };
            let (tcp, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "accepting a connection failed");
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            // In a task of its own, so that a peer that does not shake hands keeps nobody waiting.
            let (tls, stop, watcher) = (self.tls.clone(), self.stop.clone(), connections.watcher());
            let (service, proxies) = (service.clone(), self.front_proxies.clone());
            tokio::spawn(async move {
                let served = async {
                    // hyper leaves Nagle's algorithm on; keystrokes would wait for each other.
                    tcp.set_nodelay(true)?;
                    let Some(tls) = tls else { return serve_http(tcp, peer, Shown::default(), service, watcher).await };
                    // Who has not shaken hands when we stop has not asked for anything yet.
                    let Some(shaken) = stop.run_until_cancelled(shake_hands(tls, tcp, proxies)).await else {
                        return Ok(());
                    };
                    let (tls, shown) = shaken?;
                    serve_http(tls, peer, shown, service, watcher).await
                };
                if let Err(error) = served.await {
                    tracing::debug!(%peer, %error, "connection ended");
                }
            });
        }
        drop(self.listener);
        tracing::info!("stopping");
        let requests = async { timeout(DRAIN_REQUESTS, connections.shutdown()).await.is_ok() };
        let (requests_ended, cut) = tokio::join!(requests, sessions.drain(PATIENCE, FAREWELL));
        if !requests_ended {
            tracing::warn!("requests were still open after {DRAIN_REQUESTS:?}");
        }
        if cut > 0 {
            tracing::warn!(sessions = cut, "sessions were still open and have been cut");
        }
        Ok(())
    }
}

/// What a connection's certificate says of its peer.
#[derive(Clone, Debug, Default)]
struct Shown {
    client: Option<ClientCertificate>,
    by_front_proxy: bool,
}

async fn shake_hands(
    tls: TlsAcceptor,
    tcp: TcpStream,
    proxies: Option<Arc<FrontProxies>>,
) -> Result<(TlsStream<TcpStream>, Shown), Error> {
    let tls = timeout(HANDSHAKE, tls.accept(tcp)).await.context("TLS handshake")??;
    let chain = tls.get_ref().1.peer_certificates().unwrap_or_default();
    let Some(certificate) = chain.first() else { return Ok((tls, Shown::default())) };
    let caller = caller_of_certificate(certificate)?;
    // The handshake has verified that one of the authorities has signed it; with two, which one is what matters.
    let by_front_proxy = proxies.as_ref().is_some_and(|proxies| proxies.is_proxy(chain, &caller.name));
    let is_client = proxies.is_none_or(|proxies| proxies.is_client(chain));
    let shown = Shown { client: is_client.then_some(ClientCertificate(caller)), by_front_proxy };
    Ok((tls, shown))
}

async fn serve_http(
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    peer: SocketAddr,
    shown: Shown,
    router: Router,
    watcher: Watcher,
) -> Result<(), Error> {
    let asked = CancellationToken::new();
    let first = asked.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        first.cancel();
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(ClientAddr(peer.ip()));
        if let Some(certificate) = &shown.client {
            request.extensions_mut().insert(certificate.clone());
        }
        if shown.by_front_proxy {
            request.extensions_mut().insert(ByFrontProxy);
        }
        router.clone().oneshot(request)
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD).max_buf_size(HEAD_BYTES);
    // Extended CONNECT (RFC 8441) stays off: browsers would send their WebSockets that way instead of over HTTP/1.1.
    let mut http2 = builder.http2();
    http2.timer(TokioTimer::new()).max_header_list_size(HEAD_BYTES as u32);
    http2.keep_alive_interval(PING).keep_alive_timeout(PONG);
    // `_with_upgrades`: without it hyper still sends the 101, and the session never gets its bytes.
    // `auto`: plain http1's upgradeable connection cannot be watched.
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(io), service).into_owned();
    let mut served = pin!(watcher.watch(connection));
    // Until a peer has shown which HTTP it speaks, nobody but us looks at the clock.
    tokio::select! {
        served = &mut served => return served,
        () = asked.cancelled() => {}
        () = sleep(HEAD) => return Err(format!("no request within {HEAD:?}").into()),
    }
    served.await
}

/// Fires at the first SIGTERM or Ctrl-C. The second one ends the process at once.
pub fn stop_signal() -> Result<CancellationToken, Error> {
    let mut terminate = signal(SignalKind::terminate()).context("signals")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("signals")?;
    let stop = CancellationToken::new();
    let fire = stop.clone();
    tokio::spawn(async move {
        for first in [true, false] {
            tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
            if first {
                fire.cancel();
            } else {
                say("stopped without waiting for sessions");
                std::process::exit(1);
            }
        }
    });
    Ok(stop)
}
