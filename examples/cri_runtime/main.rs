//! A small container runtime: CRI v1 at a Unix socket, and behind its `Exec`, `Attach` and `PortForward` the streaming
//! server of this library. Its containers are **plain processes of this host**; images are not looked at.
//!
//! ```sh
//! cargo run --release --example cri_runtime -- --listen unix:///tmp/cri.sock --offer-websocket
//! cargo run --release --example apiserver -- --manifest examples/manifests/demo.yaml    # in another shell
//! cargo run --release --example kubelet -- --data-dir target/demo \
//!     --container-runtime-endpoint unix:///tmp/cri.sock --container-runtime-speaks-websocket \
//!     --pod-manifest-path examples/manifests/demo.yaml                                   # in a third one
//! ```
//!
//! | file | one idea |
//! |---|---|
//! | `main.rs` | two sockets, and a stop that loses nothing |
//! | `rpc.rs` | CRI's methods; those that stream look the container up and answer with a URL that the library issues |
//! | `node.rs` | what there is, and what runs in it: the library's `Runtime` |
//! | `messages.rs` | what is said |

#![allow(unreachable_pub, reason = "shorter to read than pub(crate), and an example exports nothing anyway")]

mod messages;
mod node;
mod rpc;
#[path = "../support/mod.rs"]
mod support;

use std::{
    fs, io,
    net::SocketAddr,
    os::unix::{
        fs::{FileTypeExt, PermissionsExt},
        net::UnixStream,
    },
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use axum::Router;
use clap::Parser;
use futures_util::stream;
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server as GrpcServer;
use tower_kube_streaming::{
    services::{CriStreaming, StreamingServer},
    upgrade::Sessions,
};

use crate::{
    node::Node,
    rpc::RuntimeService,
    support::{
        Context, Error, log_to_stderr, mounted, say,
        server::{Server, stop_signal},
    },
};

/// A small container runtime whose containers are processes of this host.
#[derive(Debug, Parser)]
#[command(name = "cri_runtime")]
struct Flags {
    /// Where CRI is served: unix:///PATH, for this user only.
    #[arg(long, value_name = "ENDPOINT")]
    listen: String,
    /// Where the URLs are served that Exec, Attach and PortForward answer with. Loopback addresses only: who has such a URL
    /// needs nothing else.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0")]
    streaming_listen: SocketAddr,
    /// Serves v5 and the port-forward tunnel there too, which no packaged runtime does. Tell the kubelet:
    /// --container-runtime-speaks-websocket.
    #[arg(long)]
    offer_websocket: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let flags = Flags::parse();
    log_to_stderr();
    match run(flags).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cri_runtime: {error}");
            ExitCode::from(2)
        }
    }
}

async fn run(flags: Flags) -> Result<(), Error> {
    if !flags.streaming_listen.ip().is_loopback() {
        return Err("--streaming-listen is plain HTTP: only on a loopback address".into());
    }
    let path = flags.listen.strip_prefix("unix://").filter(|path| path.starts_with('/'));
    let path = path.ok_or("--listen takes unix:///absolute/path")?;
    let stop = stop_signal()?;

    // What streams: the library's server, over this runtime's containers, behind URLs that are good once.
    let node = Arc::new(Node::default());
    let mut leaf = StreamingServer::new(Arc::clone(&node));
    if flags.offer_websocket {
        leaf = leaf.offer_v5().offer_tunnel();
    }
    let server = Server::bind(flags.streaming_listen, stop.clone()).await?;
    let sessions = Sessions::default();
    let streaming = CriStreaming::new(&server.url()?, sessions.clone(), leaf)?;
    let streams = Router::new().fallback_service(mounted(streaming.clone()));

    // What issues them: CRI.
    let socket = Socket::bind(path.into())?;
    let rpc = serve_rpc(&socket, RuntimeService { node, streaming }, stop);

    say(format_args!("listening on {}, streaming on {}", flags.listen, server.url()?));
    say("ready");
    let (served, rpc) = tokio::join!(server.serve(streams, sessions), rpc);
    served.and(rpc)
}

/// Serves CRI until it is told to stop.
async fn serve_rpc(socket: &Socket, service: RuntimeService, stop: CancellationToken) -> Result<(), Error> {
    let accept = async |listener| {
        let accepted = UnixListener::accept(listener).await.map(|(io, _)| io);
        Some((accepted, listener))
    };
    let incoming = Box::pin(stream::unfold(&socket.listener, accept));
    let served = GrpcServer::builder().serve_with_incoming_shutdown(service, incoming, stop.cancelled_owned());
    served.await.context("serving CRI")
}

/// A Unix socket, whose file goes with it.
struct Socket {
    listener: UnixListener,
    path: PathBuf,
}

impl Socket {
    /// Takes the place of a socket that nobody serves any more.
    fn bind(path: PathBuf) -> Result<Self, Error> {
        if is_left_over(&path) {
            fs::remove_file(&path).context(path.display())?;
        }
        let listener = UnixListener::bind(&path).context(path.display())?;
        let socket = Self { listener, path };
        fs::set_permissions(&socket.path, fs::Permissions::from_mode(0o600)).context(socket.path.display())?;
        Ok(socket)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Linux refuses a connection to a plain file too, which is not ours to take away.
fn is_left_over(path: &Path) -> bool {
    let is_socket = path.symlink_metadata().is_ok_and(|there| there.file_type().is_socket());
    is_socket && UnixStream::connect(path).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}
