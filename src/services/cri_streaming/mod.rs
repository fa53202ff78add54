//! The streaming server of a container runtime: what stands behind CRI's `Exec`, `Attach` and `PortForward`.
//!
//! Those RPCs stream nothing. They answer with a URL, which the kubelet then asks for the stream. A runtime's handlers
//! call [`CriStreaming::issue`] and return the URL; an HTTP server hands the requests for it to the same
//! [`CriStreaming`], a Tower service in front of a leaf, mostly a [`StreamingServer`](super::StreamingServer) over the
//! runtime's own [`Runtime`](crate::runtime::Runtime).
//!
//! - **The token in the URL is the credential**: who has it has leave for the very request that it was issued for, with no
//!   other option. So the leaf finds its `Permit`, and no authorizing layer is needed. Keep such URLs out of logs, and
//!   serve them on a loopback address, or over TLS.
//! - It has 128 random bits of the system's, is good for one request within 60 seconds, and is compared in constant time.
//!   Any request for it uses it up, also one that is refused: as with upstream's server, the kubelet asks for a new one.
//! - At most 1,000 wait to be used; then [`issue`](CriStreaming::issue) fails as upstream's does.
//! - All other requests are answered `404 page not found`: tokens that were never issued, that were used, that are too
//!   old, and that were issued for something else.
//!
//! The runtime finds the id of the container in [`Target::container`], and for port-forward the id of the sandbox in
//! [`Target::pod`]; the other names are empty.
//!
//! With [`offer_v5`](super::StreamingServer::offer_v5) and `offer_tunnel` the leaf serves WebSocket v5 and the tunnel as
//! well. Today's kubelets do not ask a runtime for them; one of this library is told to, by `CriRuntime::speaks_websocket` of
//! `adapters::cri`. Layers go between the two as they go in front of any leaf.
//!
//! `examples/cri_runtime` in the repository is a whole runtime: CRI at a Unix socket, and this behind it.
//!
//! A session outlives its request: call [`Sessions::drain`] when the runtime stops.
//!
//! Upstream: `k8s.io/cri-streaming`, `server.go` and `request_cache.go`, which containerd and CRI-O use.
//!
//! ```
//! # #[cfg(feature = "process")] {
//! use http::{Extensions, Request, header};
//! use tokio::io::AsyncWriteExt;
//! use tower::ServiceExt;
//! use tower_kube_streaming::{
//!     BoxError,
//!     remote_command::{Exit, Stdio},
//!     runtime::{Loopback, Runtime, Session},
//!     services::{CriStreaming, StreamingServer, cri_streaming::CriRequest},
//!     upgrade::{Refusal, Sessions, Target, accept},
//! };
//!
//! /// A runtime with one container.
//! struct Toy;
//!
//! /// A command that is ready to run.
//! struct Command(Vec<String>);
//!
//! impl Runtime for Toy {
//!     type Session = Command;
//!     type Forward = Loopback;
//!
//!     async fn open(&self, target: &Target) -> Result<Command, Refusal> {
//!         match target.container.as_deref() {
//!             Some("c0ffee") => Ok(Command(target.options.command.clone())),
//!             _ => Err(Refusal::new(http::StatusCode::NOT_FOUND, "NotFound", "no such container")),
//!         }
//!     }
//!
//!     async fn port_forward(&self, _sandbox: &Target) -> Result<Loopback, Refusal> {
//!         Ok(Loopback::default())
//!     }
//! }
//!
//! impl Session for Command {
//!     async fn run(self, stdio: Stdio) -> Result<Exit, BoxError> {
//!         if let Some(mut stdout) = stdio.stdout {
//!             stdout.write_all(self.0.join(" ").as_bytes()).await?;
//!         }
//!         Ok(Exit::Code(0))
//!     }
//! }
//!
//! # tokio_test::block_on(async {
//! let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
//! let base = format!("http://{}", listener.local_addr()?);
//! let streaming = CriStreaming::new(&base, Sessions::new(), StreamingServer::new(Toy))?;
//!
//! // The handler of `Exec`: the RPC's request becomes a URL, `ExecResponse.url`.
//! let exec = CriRequest::Exec {
//!     container_id: "c0ffee".into(),
//!     cmd: vec!["echo".into(), "hello".into()],
//!     tty: false,
//!     stdin: false,
//!     stdout: true,
//!     stderr: true,
//! };
//! let url = streaming.issue(exec)?;
//! assert!(url.starts_with(&format!("{base}/exec/")));
//!
//! // The kubelet's request for it, as hyper hands it over. Serve `listener` over HTTP/1.1 with upgrades enabled.
//! let ask = || {
//!     let mut request = Request::post(&url)
//!         .header(header::CONNECTION, "Upgrade")
//!         .header(header::UPGRADE, "SPDY/3.1")
//!         .header("X-Stream-Protocol-Version", "v4.channel.k8s.io")
//!         .body(())?;
//!     let _client = accept(&mut Extensions::new(), request.extensions_mut());
//!     Ok::<_, http::Error>(request)
//! };
//! assert_eq!(streaming.clone().oneshot(ask()?).await?.status(), 101);
//! assert_eq!(streaming.clone().oneshot(ask()?).await?.status(), 404, "a token is good for one request");
//! # Ok::<_, BoxError>(()) }).unwrap();
//! # }
//! ```

mod request;
mod service;
mod token;

#[cfg(test)]
mod tests;

pub use self::{
    request::{CriRequest, IssueError},
    service::{BaseUrlError, CriStreaming, ResponseFuture},
};

#[cfg(doc)]
use crate::upgrade::{Sessions, Target};
