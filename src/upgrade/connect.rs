//! From an address to a connection.

use std::{future::Future, io};

use http::Uri;
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

/// Dials by plain TCP; refuses `https`.
#[derive(Clone, Copy, Debug, Default)]
pub struct TcpConnect;

impl Connect for TcpConnect {
    type Io = TcpStream;

    async fn connect(&self, uri: Uri) -> io::Result<TcpStream> {
        if uri.scheme_str().is_some_and(|scheme| scheme != "http") {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "only http is dialled without TLS"));
        }
        dial(&uri, 80).await
    }
}

/// Connects to host and port of `uri`, without Nagle's delay. Errors read as Go's do.
pub(crate) async fn dial(uri: &Uri, default_port: u16) -> io::Result<TcpStream> {
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
