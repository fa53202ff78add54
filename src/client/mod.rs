//! Runs commands in pods: the client's half of `exec` and `attach`, with the fallback from WebSocket to SPDY. Ports are
//! forwarded by [`port_forward`].
//!
//! [`Execute`] is the one surface. [`WebSocketExecutor`] and [`SpdyExecutor`] each speak one of the two carriers;
//! [`FallbackExecutor`] asks over WebSocket, and over SPDY where the server, or a gateway before it, refuses that. What
//! dials is a [`Connect`](crate::upgrade::Connect): [`TcpConnect`](crate::upgrade::TcpConnect), or `TlsConnect` of
//! `adapters::rustls`.
//!
//! It goes in two phases. [`open`](Execute::open) dials, asks and checks the answer, and has no streams yet; so a refusal
//! costs no byte of stdin, and only this phase can be repeated. [`Opened::run`] then moves the streams until the status
//! is there.
//!
//! ```
//! # #[cfg(feature = "process")] {
//! use bytes::Bytes;
//! use hyper_util::{rt::TokioIo, service::TowerToHyperService};
//! use tokio_util::sync::CancellationToken;
//! use tower_kube_streaming::{
//!     client::{Carrier, ExecRequest, Execute, FallbackExecutor},
//!     layers::danger::PermitAllLayer,
//!     remote_command::{Exit, Input, Output, Stdio},
//!     runtime::{Main, ProcessRuntime},
//!     services::{Kubelet, StreamingServer},
//!     upgrade::{Sessions, StreamOptions},
//! };
//!
//! # tokio_test::block_on(async {
//! // A kubelet in this process. `TcpConnect` dials real ones.
//! let main = Main { command: vec!["sleep".into(), "60".into()], tty: false, stdin: false };
//! let runtime = ProcessRuntime::new().container("default", "demo", "shell", main);
//! let kubelet = Kubelet::new(Sessions::new(), PermitAllLayer, StreamingServer::new(runtime));
//! let dial = move |_: http::Uri| {
//!     let (near, far) = tokio::io::duplex(64 * 1024);
//!     let http = hyper::server::conn::http1::Builder::new();
//!     let service = TowerToHyperService::new(kubelet.clone());
//!     tokio::spawn(http.serve_connection(TokioIo::new(far), service).with_upgrades());
//!     async { Ok(near) }
//! };
//!
//! let options = StreamOptions { stdin: true, stdout: true, ..StreamOptions::default() };
//! let url = "http://node/exec/default/demo/shell?command=sh&command=-c&command=cat;exit%203&input=1&output=1";
//! let request = ExecRequest::new(url, options)?.header("authorization", "Bearer token")?;
//!
//! let mut stdio = Stdio::new(CancellationToken::new());
//! stdio.stdin = Some(Input::new(&b"hello"[..]));
//! let (stdout, mut read) = tokio::io::duplex(1024);
//! stdio.stdout = Some(Output::new(stdout));
//!
//! let exit = FallbackExecutor::new(dial).execute(&request, stdio).await?;
//! assert_eq!(exit, Exit::Code(3));
//! let mut said = String::new();
//! tokio::io::AsyncReadExt::read_to_string(&mut read, &mut said).await?;
//! assert_eq!(said, "hello");
//! # Ok::<_, Box<dyn std::error::Error>>(()) }).unwrap(); }
//! ```

mod endpoint;
mod error;
mod fallback;
pub mod guides;
mod handshake;
mod memory;
mod negotiate;
mod opened;
mod policy;
pub mod port_forward;
mod rejection;
mod request;
mod spdy;
pub mod transport;
mod websocket;

use std::future::Future;

pub use error::ExecuteError;
pub use fallback::FallbackExecutor;
pub use opened::Opened;
pub use policy::FallbackPolicy;
pub use rejection::{ApiStatus, Carrier, Rejection};
pub use request::ExecRequest;
pub use spdy::SpdyExecutor;
pub use websocket::WebSocketExecutor;

use crate::remote_command::{Exit, Stdio};

/// Runs a command in a pod, or attaches to one.
pub trait Execute: Send + Sync {
    /// Dials, asks for the stream and checks the answer.
    ///
    /// # Errors
    ///
    /// Why there is no stream. Nothing has been read of any stdin.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future closes the connection. The server may have read the request by then; a command that it had
    /// started ends as that of any client that goes.
    fn open(&self, request: &ExecRequest) -> impl Future<Output = Result<Opened, ExecuteError>> + Send;

    /// Opens the stream and runs it to its end: [`open`](Self::open), then [`Opened::run`].
    ///
    /// # Errors
    ///
    /// Those of the two. A stream that ends without a status is one of them, and never a success. An exit code other than
    /// 0 is not an error.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future closes the connection, without a Close. To end with one, fire [`Stdio::gone`].
    fn execute(&self, request: &ExecRequest, stdio: Stdio) -> impl Future<Output = Result<Exit, ExecuteError>> + Send {
        async move { self.open(request).await?.run(stdio).await }
    }
}

impl<E: Execute> Execute for std::sync::Arc<E> {
    fn open(&self, request: &ExecRequest) -> impl Future<Output = Result<Opened, ExecuteError>> + Send {
        (**self).open(request)
    }
}
