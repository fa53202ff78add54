//! From an address to a connection.

use std::{future::Future, io};

use http::{Uri, uri::Scheme};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};

/// Dials a server: the next hop of a stack, or whatever a client talks to. Closures from a [`Uri`] to a future implement it.
pub trait Connect: Send + Sync + 'static {
    /// The connection, TLS included.
    type Io: AsyncRead + AsyncWrite + Send + Unpin + 'static;

    /// Dials scheme, host and port of `uri`. The caller bounds the time.
    fn connect(&self, uri: Uri) -> impl Future<Output = io::Result<Self::Io>> + Send;
}

impl<F, Fut, Io> Connect for F
where
    F: Fn(Uri) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = io::Result<Io>> + Send,
    Io: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    type Io = Io;

    fn connect(&self, uri: Uri) -> impl Future<Output = io::Result<Io>> + Send {
        self(uri)
    }
}

/// Carries bytes to a server, below TLS: by TCP, or through a proxy.
pub trait Transport: Send + Sync + 'static {
    /// The connection, without TLS.
    type Io: AsyncRead + AsyncWrite + Send + Unpin + 'static;

    /// Reaches host and port of `uri`; by default 443 for `https`, else 80. The caller bounds the time.
    fn reach(&self, uri: &Uri) -> impl Future<Output = io::Result<Self::Io>> + Send;
}

impl Transport for TcpConnect {
    type Io = TcpStream;

    async fn reach(&self, uri: &Uri) -> io::Result<TcpStream> {
        dial(uri, default_port(uri)).await
    }
}

/// The port of a URI that names none.
pub(crate) fn default_port(uri: &Uri) -> u16 {
    if uri.scheme() == Some(&Scheme::HTTPS) { 443 } else { 80 }
}

/// An error unless `uri` is to be asked without TLS.
pub(crate) fn only_http(uri: &Uri) -> io::Result<()> {
    match uri.scheme_str() {
        None | Some("http") => Ok(()),
        Some(_) => Err(io::Error::new(io::ErrorKind::Unsupported, "only http is dialled without TLS")),
    }
}

/// Dials by plain TCP; as [`Connect`] it refuses `https`.
#[derive(Clone, Copy, Debug, Default)]
pub struct TcpConnect;

impl Connect for TcpConnect {
    type Io = TcpStream;

    async fn connect(&self, uri: Uri) -> io::Result<TcpStream> {
        only_http(&uri)?;
        self.reach(&uri).await
    }
}

/// Connects to host and port of `uri`, without Nagle's delay. Errors read as Go's do.
async fn dial(uri: &Uri, default_port: u16) -> io::Result<TcpStream> {
    let host = uri.host().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "no host in the URL"))?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let port = uri.port_u16().unwrap_or(default_port);
    let stream = TcpStream::connect((host, port)).await.map_err(|error| {
        let why = match error.kind() {
            io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
            io::ErrorKind::HostUnreachable => "no route to host".to_owned(),
            io::ErrorKind::NetworkUnreachable => "network is unreachable".to_owned(),
            _ => error.to_string(),
        };
        let address = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        io::Error::new(error.kind(), format!("dial tcp {address}: connect: {why}"))
    })?;
    stream.set_nodelay(true)?;
    Ok(stream)
}
