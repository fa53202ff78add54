//! Dials the next hop over TLS with rustls.
//!
//! An upgrade needs HTTP/1.1 and a connection of its own, so ALPN offers `http/1.1` and nothing else, and nothing is
//! pooled. Which roots are trusted, which client certificate is shown and which cryptography is used is the
//! [`ClientConfig`]'s affair; this crate brings no provider.

mod stream;

use std::{
    fmt, io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use http::{Uri, uri::Scheme};
use pin_project::pin_project;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use self::stream::TlsStream;
use crate::upgrade::{Connect, TcpConnect, Transport};

/// Dials `https://host:port`, and `http://host:port` where that is allowed: by TCP, or [`over`](Self::over) another
/// transport such as a proxy.
///
/// The host, a name or an address, is what the certificate must be for. Cheap to clone: all clones share one
/// configuration and its session cache.
#[derive(Clone)]
pub struct TlsConnect<T = TcpConnect> {
    config: Arc<ClientConfig>,
    transport: T,
    plain_http: bool,
    name: Option<ServerName<'static>>,
}

impl TlsConnect {
    /// A dialer with this configuration's roots and client certificate. Its ALPN list is replaced by `http/1.1`.
    #[must_use]
    pub fn new(config: Arc<ClientConfig>) -> Self {
        Self::over(TcpConnect, config)
    }
}

impl<T> TlsConnect<T> {
    /// As [`new`](TlsConnect::new), over connections of `transport`.
    #[must_use]
    pub fn over(transport: T, config: Arc<ClientConfig>) -> Self {
        let mut config = Arc::unwrap_or_clone(config);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Self { config: Arc::new(config), transport, plain_http: false, name: None }
    }

    /// Also dials `http://` URIs, without any protection. Off by default: a URI must not be able to turn TLS off.
    #[must_use]
    pub fn allow_plain_http(mut self) -> Self {
        self.plain_http = true;
        self
    }

    /// Whom certificates must be for, and the SNI, in the place of the URI's host: a kubeconfig's `tls-server-name`.
    #[must_use]
    pub fn server_name(mut self, name: ServerName<'static>) -> Self {
        self.name = Some(name);
        self
    }
}

impl<T: Transport> Connect for TlsConnect<T> {
    type Io = TlsIo<T::Io>;

    async fn connect(&self, uri: Uri) -> io::Result<Self::Io> {
        if uri.scheme() == Some(&Scheme::HTTP) && self.plain_http {
            return Ok(TlsIo(Kind::Plain(self.transport.reach(&uri).await?)));
        }
        if uri.scheme() != Some(&Scheme::HTTPS) {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "only https is dialled with TLS"));
        }
        let name = match &self.name {
            Some(name) => name.clone(),
            None => server_name(&uri)?,
        };
        let io = self.transport.reach(&uri).await?;
        Ok(TlsIo(Kind::Tls(Box::new(TlsStream::connect(self.config.clone(), name, io).await?))))
    }
}

/// Whom the certificate must name.
fn server_name(uri: &Uri) -> io::Result<ServerName<'static>> {
    let host = uri.host().unwrap_or_default();
    // `http` leaves an IPv6 address in its brackets; certificates do not know them.
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let name = ServerName::try_from(host).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
    Ok(name.to_owned())
}

impl<T> fmt::Debug for TlsConnect<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsConnect").field("plain_http", &self.plain_http).finish_non_exhaustive()
    }
}

/// A connection that [`TlsConnect`] opened.
#[derive(Debug)]
#[pin_project]
pub struct TlsIo<Io = TcpStream>(#[pin] Kind<Io>);

#[derive(Debug)]
#[pin_project(project = KindProj)]
enum Kind<Io> {
    Plain(#[pin] Io),
    // Boxed: a TLS session is a kilobyte, and this value is moved about before it is used.
    Tls(#[pin] Box<TlsStream<Io>>),
}

impl<Io: AsyncRead + AsyncWrite + Unpin> AsyncRead for TlsIo<Io> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.project().0.project() {
            KindProj::Plain(io) => io.poll_read(cx, buf),
            KindProj::Tls(io) => io.poll_read(cx, buf),
        }
    }
}

impl<Io: AsyncRead + AsyncWrite + Unpin> AsyncWrite for TlsIo<Io> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.project().0.project() {
            KindProj::Plain(io) => io.poll_write(cx, buf),
            KindProj::Tls(io) => io.poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.project().0.project() {
            KindProj::Plain(io) => io.poll_write_vectored(cx, bufs),
            KindProj::Tls(io) => io.poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.0 {
            Kind::Plain(io) => io.is_write_vectored(),
            Kind::Tls(io) => io.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.project().0.project() {
            KindProj::Plain(io) => io.poll_flush(cx),
            KindProj::Tls(io) => io.poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.project().0.project() {
            KindProj::Plain(io) => io.poll_shutdown(cx),
            KindProj::Tls(io) => io.poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that panics has failed, as it should")]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair};
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };
    use tokio_rustls::{
        TlsAcceptor,
        rustls::{RootCertStore, ServerConfig, crypto::ring, pki_types::PrivateKeyDer},
    };

    /// A TLS server for `names`, and a dialer that trusts it.
    async fn server(names: &[&str]) -> (TcpListener, TlsAcceptor, TlsConnect) {
        let key = KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let certificate = CertificateParams::new(names).unwrap().self_signed(&key).unwrap();
        let provider = Arc::new(ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], PrivateKeyDer::try_from(key.serialize_der()).unwrap())
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let mut roots = RootCertStore::empty();
        roots.add(certificate.der().clone()).unwrap();
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        client.alpn_protocols = vec![b"h2".to_vec()];
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        (listener, TlsAcceptor::from(Arc::new(config)), TlsConnect::new(Arc::new(client)))
    }

    fn uri(scheme: &str, listener: &TcpListener) -> Uri {
        format!("{scheme}://{}/exec/a/b/c", listener.local_addr().unwrap()).parse().unwrap()
    }

    #[tokio::test]
    async fn an_address_is_dialed_by_tls_and_only_http_1_1_is_offered() {
        let (listener, acceptor, connect) = server(&["127.0.0.1"]).await;
        let uri = uri("https", &listener);
        let served = tokio::spawn(async move {
            let mut io = acceptor.accept(listener.accept().await.unwrap().0).await.unwrap();
            let alpn = io.get_ref().1.alpn_protocol().map(<[u8]>::to_vec);
            let mut word = [0; 4];
            io.read_exact(&mut word).await.unwrap();
            io.write_all(&word).await.unwrap();
            io.shutdown().await.unwrap();
            alpn
        });
        let mut io = connect.connect(uri.clone()).await.unwrap();
        io.write_all(b"ping").await.unwrap();
        io.flush().await.unwrap();
        let mut all = Vec::new();
        io.read_to_end(&mut all).await.unwrap();
        assert_eq!(all, b"ping");
        assert_eq!(served.await.unwrap().as_deref(), Some(&b"http/1.1"[..]));
    }

    #[tokio::test]
    async fn a_certificate_for_another_host_is_refused() {
        let (listener, acceptor, connect) = server(&["elsewhere.example"]).await;
        let uri = uri("https", &listener);
        tokio::spawn(async move { acceptor.accept(listener.accept().await.unwrap().0).await.is_ok() });
        let error = connect.connect(uri.clone()).await.unwrap_err();
        assert!(error.to_string().contains("certificate"), "{error}");
    }

    #[tokio::test]
    async fn plain_http_is_dialed_only_where_allowed() {
        let (listener, _, connect) = server(&["127.0.0.1"]).await;
        let uri = uri("http", &listener);
        assert_eq!(connect.connect(uri.clone()).await.unwrap_err().kind(), io::ErrorKind::Unsupported);
        let mut io = connect.allow_plain_http().connect(uri).await.unwrap();
        let mut accepted = listener.accept().await.unwrap().0;
        io.write_all(b"plain").await.unwrap();
        let mut word = [0; 5];
        accepted.read_exact(&mut word).await.unwrap();
        assert_eq!(&word, b"plain");
    }

    #[tokio::test]
    async fn a_refused_connection_is_worded_as_go_does() {
        let (listener, _, connect) = server(&["127.0.0.1"]).await;
        let uri = uri("https", &listener);
        let address = listener.local_addr().unwrap();
        drop(listener);
        let error = connect.connect(uri.clone()).await.unwrap_err();
        assert_eq!(error.to_string(), format!("dial tcp {address}: connect: connection refused"));
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }

    #[test]
    fn brackets_of_an_ipv6_address_are_no_part_of_its_name() {
        let name = |uri: &str| server_name(&uri.parse().unwrap());
        assert_eq!(name("https://[::1]:10250/").unwrap(), ServerName::try_from("::1").unwrap());
        assert_eq!(name("https://node-1:10250/").unwrap(), ServerName::try_from("node-1").unwrap());
        assert_eq!(name("/no/host").unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
