//! Everything but the client: relay, proxy, runtime.

use std::{convert::Infallible, future::Future, net::SocketAddr, sync::Arc};

use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use tokio::{
    io::{
        AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, DuplexStream,
        copy_bidirectional_with_sizes, duplex, split,
    },
    net::{TcpListener, TcpStream},
};
use tower::Service;
use tower_kube_streaming::{
    BoxError,
    layers::{Hop, danger::PermitAllLayer},
    port_forward::Dial,
    remote_command::{Exit, Stdio},
    runtime::{Runtime, Session},
    services::{ApiServer, Kubelet, StreamingServer, TcpConnect, UpgradeProxy},
    upgrade::{Refusal, Sessions, Target},
};

use crate::Result;

/// What a relay and a command move at a time.
const PIECE: usize = 32 * 1024;

pub(crate) fn relay(listen: SocketAddr, to: SocketAddr) -> Result<()> {
    serve(listen, move |mut client| async move {
        let mut upstream = TcpStream::connect(to).await?;
        upstream.set_nodelay(true)?;
        copy_bidirectional_with_sizes(&mut client, &mut upstream, PIECE, PIECE).await?;
        Ok(())
    })
}

pub(crate) fn proxy(listen: SocketAddr, to: String, speaks_websocket: bool) -> Result<()> {
    let resolve = move |target: Arc<Target>| {
        std::future::ready(Hop::kubelet(&to, &target).map(|hop| hop.speaks_websocket(speaks_websocket)))
    };
    http(listen, ApiServer::new(Sessions::new(), PermitAllLayer, resolve, UpgradeProxy::new(TcpConnect)))
}

pub(crate) fn runtime(listen: SocketAddr) -> Result<()> {
    let server = StreamingServer::new(Commands).offer_v5().offer_tunnel();
    http(listen, Kubelet::builder().leaf_speaks_websocket().build(Sessions::new(), PermitAllLayer, server))
}

/// Serves upgrades as the example does, without TLS.
fn http<S, B>(listen: SocketAddr, service: S) -> Result<()>
where
    S: Service<hyper::Request<hyper::body::Incoming>, Response = hyper::Response<B>, Error = Infallible>
        + Clone
        + Send
        + Sync
        + 'static,
    S::Future: Send,
    B: hyper::body::Body<Error = Infallible, Data: Send> + Send + 'static,
{
    let service = TowerToHyperService::new(service);
    serve(listen, move |tcp| {
        let service = service.clone();
        async move {
            let builder = auto::Builder::new(TokioExecutor::new()).http1_only();
            builder.serve_connection_with_upgrades(TokioIo::new(tcp), service).await
        }
    })
}

/// The commands without HTTP: `source 1024\n`.
pub(crate) fn raw_runtime(listen: SocketAddr) -> Result<()> {
    serve(listen, |mut tcp| async move {
        let (read, write) = tcp.split();
        commanded(read, write).await
    })
}

/// Performs what a first line asks for.
async fn commanded<I: AsyncRead + Unpin, O: AsyncWrite + Unpin>(read: I, write: O) -> Result<()> {
    let mut read = BufReader::with_capacity(PIECE, read);
    let mut line = String::new();
    read.read_line(&mut line).await?;
    let command = line.split_whitespace().map(str::to_owned).collect();
    perform(&Command(command), read, write).await
}

fn serve<F, Fut>(listen: SocketAddr, handle: F) -> Result<()>
where
    F: Fn(TcpStream) -> Fut,
    Fut: Future<Output = Result<()>> + Send + 'static,
{
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
        let listener = TcpListener::bind(listen).await?;
        println!("{}", listener.local_addr()?);
        loop {
            let (tcp, _) = listener.accept().await?;
            tcp.set_nodelay(true)?;
            let handled = handle(tcp);
            // Clients that just go are part of what is measured.
            tokio::spawn(async move { drop(handled.await) });
        }
    })
}

/// A runtime without processes, so that the proxy is what is measured.
struct Commands;

struct Command(Vec<String>);

impl Runtime for Commands {
    type Session = Command;
    type Forward = Port;

    async fn open(&self, target: &Target) -> Result<Command, Refusal> {
        Ok(Command(target.options.command.clone()))
    }

    async fn port_forward(&self, _: &Target) -> Result<Port, Refusal> {
        Ok(Port)
    }
}

/// Behind every port the commands listen, without a socket.
struct Port;

impl Dial for Port {
    type Connection = DuplexStream;

    async fn dial(&self, _: u16) -> Result<DuplexStream, BoxError> {
        let (near, far) = duplex(8 * PIECE);
        let (read, write) = split(far);
        tokio::spawn(async move { drop(commanded(read, write).await) });
        Ok(near)
    }
}

impl Session for Command {
    async fn run(self, stdio: Stdio) -> Result<Exit, BoxError> {
        let Stdio { stdin, stdout, gone, .. } = stdio;
        let work = async {
            match (stdin, stdout) {
                (Some(stdin), Some(stdout)) => perform(&self, stdin, stdout).await,
                (Some(stdin), None) => perform(&self, stdin, tokio::io::sink()).await,
                (None, Some(stdout)) => perform(&self, tokio::io::empty(), stdout).await,
                (None, None) => Err("no streams".into()),
            }
        };
        tokio::select! {
            done = work => done.map(|()| Exit::Success),
            () = gone.cancelled() => Err("the client is gone".into()),
        }
    }
}

async fn perform<I, O>(Command(words): &Command, mut stdin: I, mut stdout: O) -> Result<()>
where
    I: AsyncRead + Unpin,
    O: AsyncWrite + Unpin,
{
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["source", bytes] => {
            let mut left: usize = bytes.parse()?;
            let piece = vec![b'x'; PIECE];
            while left > 0 {
                let here = left.min(PIECE);
                stdout.write_all(&piece[..here]).await?;
                left -= here;
            }
        }
        ["sink"] => {
            let mut piece = vec![0; PIECE];
            while stdin.read(&mut piece).await? > 0 {}
        }
        ["echo"] => {
            let mut piece = vec![0; PIECE];
            loop {
                match stdin.read(&mut piece).await? {
                    0 => break,
                    here => stdout.write_all(&piece[..here]).await?,
                }
            }
        }
        // Ends with the client's input.
        ["idle"] => while stdin.read(&mut [0; 16]).await? > 0 {},
        ["true"] => {}
        _ => return Err("no such command".into()),
    }
    stdout.shutdown().await?;
    Ok(())
}
