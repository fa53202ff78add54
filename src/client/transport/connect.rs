//! Reaches a server through its proxy.

use std::{error::Error as _, fmt, io};

use bytes::Bytes;
use http::{
    HeaderValue, Method, Request, Uri,
    header::{HOST, PROXY_AUTHORIZATION},
};
use http_body_util::Empty;
use hyper_util::{client::legacy::connect::proxy::SocksV5, rt::TokioIo};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, timeout},
};
use tower::{ServiceExt as _, service_fn};

use super::{
    Proxies, Proxy,
    proxies::{Credentials, Kind},
};
use crate::{
    client::handshake::{ANSWER, exchange},
    upgrade::{Connect, TcpConnect, Transport, default_port, only_http},
};

/// A connection, whatever is below it.
pub trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<Io: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for Io {}

/// Reaches servers through the proxies that [`Proxies`] names, and the others by TCP.
///
/// It speaks no TLS to the server: as [`Connect`] it refuses `https`, and as [`Transport`] it goes below
/// `adapters::rustls::TlsConnect`. A proxy has 60 s to answer, within the time that the caller gives. Errors name the
/// proxy and what it answered.
#[derive(Clone)]
pub struct ProxyConnect<P = TcpConnect> {
    proxies: Proxies,
    to_proxy: P,
}

impl ProxyConnect {
    /// Reaches the proxies themselves by TCP, so not those of `https`.
    #[must_use]
    pub fn new(proxies: Proxies) -> Self {
        Self::over(proxies, TcpConnect)
    }
}

impl<P: Connect> ProxyConnect<P> {
    /// Reaches the proxies themselves with `to_proxy`: a `TlsConnect`, which has to allow plain HTTP if there may be
    /// proxies of the other kinds, which are dialled as `http`.
    #[must_use]
    pub fn over(proxies: Proxies, to_proxy: P) -> Self {
        Self { proxies, to_proxy }
    }

    async fn through(&self, proxy: &Proxy, uri: &Uri) -> io::Result<Box<dyn ByteStream>> {
        let host = uri.host().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "no host in the URL"))?;
        let target = format!("{host}:{}", uri.port_u16().unwrap_or_else(|| default_port(uri)));
        let scheme = if proxy.kind == Kind::Https { "https" } else { "http" };
        let place = Uri::builder().scheme(scheme).authority(proxy.authority.as_str()).path_and_query("/");
        let place = place.build().map_err(io::Error::other)?;
        let io = self.to_proxy.connect(place).await;
        let io = io.map_err(|error| io::Error::new(error.kind(), format!("proxy {proxy}: {error}")))?;
        match proxy.kind {
            Kind::Http | Kind::Https => ask(io, proxy, &target).await,
            Kind::Socks5 => greet(io, proxy, &target).await,
        }
    }
}

/// HTTP CONNECT. Any success is one, as in Go's SPDY client.
async fn ask<Io>(io: Io, proxy: &Proxy, target: &str) -> io::Result<Box<dyn ByteStream>>
where
    Io: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut request = Request::new(Empty::<Bytes>::new());
    *request.method_mut() = Method::CONNECT;
    *request.uri_mut() = target.parse().map_err(io::Error::other)?;
    let headers = request.headers_mut();
    headers.insert(HOST, HeaderValue::from_str(target).map_err(io::Error::other)?);
    if let Some(basic) = proxy.basic() {
        headers.insert(PROXY_AUTHORIZATION, basic);
    }
    let answer = exchange(io, request, Instant::now() + ANSWER).await;
    let (response, io) = answer.map_err(|error| {
        let why = error.source().map_or_else(|| error.to_string(), ToString::to_string);
        io::Error::other(format!("CONNECT request to {proxy} failed: {why}"))
    })?;
    match io {
        Some(io) if response.status().is_success() => Ok(Box::new(io)),
        // Go's words.
        _ => Err(io::Error::other(format!("CONNECT request to {proxy} returned response: {}", response.status()))),
    }
}

async fn greet<Io>(io: Io, proxy: &Proxy, target: &str) -> io::Result<Box<dyn ByteStream>>
where
    Io: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let target = Uri::builder().scheme("http").authority(target).path_and_query("/").build();
    let target = target.map_err(io::Error::other)?;
    // It is asked for one connection, which is there.
    let io = std::sync::Mutex::new(Some(TokioIo::new(io)));
    let connected = service_fn(move |_: Uri| {
        let io = io.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        std::future::ready(io.ok_or(io::Error::from(io::ErrorKind::NotConnected)))
    });
    let mut socks = SocksV5::new(target.clone(), connected);
    if let Some(Credentials { user, password }) = proxy.credentials.clone() {
        socks = socks.with_auth(user, password);
    }
    match timeout(ANSWER, socks.oneshot(target)).await {
        Ok(Ok(io)) => Ok(Box::new(io.into_inner())),
        Ok(Err(error)) => Err(io::Error::other(format!("proxy {proxy}: {error}"))),
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, format!("proxy {proxy}: no answer came in time"))),
    }
}

impl<P: Connect> Transport for ProxyConnect<P> {
    type Io = Box<dyn ByteStream>;

    async fn reach(&self, uri: &Uri) -> io::Result<Box<dyn ByteStream>> {
        match self.proxies.of(uri) {
            Some(proxy) => self.through(proxy, uri).await,
            None => Ok(Box::new(TcpConnect.reach(uri).await?)),
        }
    }
}

impl<P: Connect> Connect for ProxyConnect<P> {
    type Io = Box<dyn ByteStream>;

    async fn connect(&self, uri: Uri) -> io::Result<Box<dyn ByteStream>> {
        only_http(&uri)?;
        self.reach(&uri).await
    }
}

impl<P> fmt::Debug for ProxyConnect<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProxyConnect").field("proxies", &self.proxies).finish_non_exhaustive()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that panics has failed, as it should")]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

    use super::*;

    /// A proxy that reads the head of a CONNECT, answers that, and echoes. What it was asked comes back as well.
    async fn connect(proxy: &str, answer: &'static [u8]) -> (io::Result<Box<dyn ByteStream>>, String) {
        let (near, mut far) = duplex(256 * 1024);
        let near = std::sync::Mutex::new(Some(near));
        let to_proxy = move |_: Uri| {
            let near: DuplexStream = near.lock().unwrap().take().unwrap();
            std::future::ready(Ok(near))
        };
        let connect = ProxyConnect::over(Proxies::explicit(Proxy::new(proxy).unwrap()), to_proxy);
        let played = tokio::spawn(async move {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(far.read_u8().await.unwrap());
            }
            let _ = far.write_all(answer).await;
            tokio::spawn(async move {
                let (mut read, mut write) = tokio::io::split(far);
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
            String::from_utf8(head).unwrap()
        });
        let io = connect.reach(&Uri::from_static("https://[::1]")).await;
        (io, played.await.unwrap())
    }

    #[tokio::test]
    async fn what_a_server_says_right_behind_the_proxys_answer_is_not_lost() {
        for answer in ["HTTP/1.1 200 Connection established\r\n\r\nhello", "HTTP/1.0 299 \r\nVia: x\r\n\r\nhello"] {
            let (io, asked) = connect("http://me:secret@proxy", answer.as_bytes()).await;
            assert!(asked.starts_with("CONNECT [::1]:443 HTTP/1.1\r\n"), "{asked}");
            let asked = asked.to_ascii_lowercase();
            assert!(asked.contains("\r\nhost: [::1]:443\r\n"), "{asked}");
            assert!(asked.contains("\r\nproxy-authorization: basic bwu6c2vjcmv0\r\n"), "{asked}");
            let mut io = io.unwrap();
            io.write_all(b" world").await.unwrap();
            let mut came = [0; 11];
            io.read_exact(&mut came).await.unwrap();
            assert_eq!(&came, b"hello world");
        }
    }

    #[tokio::test]
    async fn a_refusal_names_the_proxy_and_what_it_answered_and_no_password() {
        for (answer, words) in [
            (
                &b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 2\r\n\r\nno"[..],
                "returned response: 407",
            ),
            (
                b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n",
                "returned response: 101",
            ),
            (b"SSH-2.0-OpenSSH\r\n\r\n", "failed: "),
        ] {
            let (io, _) = connect("http://me:secret@proxy", answer).await;
            let error = io.err().unwrap().to_string();
            assert!(error.starts_with("CONNECT request to http://proxy:80 ") && error.contains(words), "{error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_proxy_that_says_nothing_or_never_ends_its_head_is_given_up() {
        static LONG: [u8; 100 * 1024] = [b'x'; 100 * 1024];
        for proxy in ["http://proxy", "https://proxy"] {
            let since = Instant::now();
            assert!(connect(proxy, b"").await.0.is_err());
            assert!(since.elapsed() <= Duration::from_secs(60));
            assert!(connect(proxy, &LONG).await.0.is_err());
        }
    }

    #[tokio::test]
    async fn without_tls_on_top_https_is_refused() {
        let connect = ProxyConnect::new(Proxies::none());
        let error = connect.connect(Uri::from_static("https://a")).await.err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::Unsupported);
    }
}
