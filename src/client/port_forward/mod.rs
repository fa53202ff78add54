//! Forwards ports as a client: dialers with the fallback from WebSocket to SPDY, and local listeners that survive.
//!
//! [`OpenForward`] is the one surface. [`TunnelDialer`] carries SPDY inside a WebSocket and [`SpdyDialer`] does without;
//! [`FallbackDialer`] asks for the one, and for the other where the server, or a gateway before it, refuses that. Each gives
//! an [`Upstream`]: one connection to the server, over which many go into a pod. What fails in one of those is an
//! error of that one alone; kubectl ends its whole forward.
//!
//! A [`Forwarder`] listens at local addresses, and dials again when the server is lost:
//!
//! - What was open on the lost connection is reset. What connects meanwhile is held, for 10 s at most, and then served.
//! - The first attempt is made at once, the following after 100 ms to 2 s, and only while a connection waits.
//! - Who asks for a Service or a Deployment says with [`Forwarder::resolving`] which pod that is now.
//!
//! ```
//! # #[cfg(feature = "process")] {
//! use hyper_util::{rt::TokioIo, service::TowerToHyperService};
//! use std::{num::NonZeroU16, time::Duration};
//! use tokio::{io::{AsyncReadExt, AsyncWriteExt}, net::{TcpListener, TcpStream}};
//! use tower_kube_streaming::{
//!     client::port_forward::{FallbackDialer, Forwarder, PortForwardRequest},
//!     layers::danger::PermitAllLayer,
//!     runtime::{Main, ProcessRuntime},
//!     services::{Kubelet, StreamingServer},
//!     upgrade::Sessions,
//! };
//!
//! # tokio_test::block_on(async {
//! // A kubelet in this process, whose pods have this host's loopback. `TcpConnect` dials real ones.
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
//! let pod = TcpListener::bind("127.0.0.1:0").await?;
//! let port = NonZeroU16::new(pod.local_addr()?.port()).expect("a port");
//!
//! let request = PortForwardRequest::new("http://node/portForward/default/demo")?
//!     .header("authorization", "Bearer token")?;
//! let forwarder = Forwarder::new(FallbackDialer::new(dial), request).on_event(|event| println!("{event:?}"));
//! let forwarding = forwarder.start().await?;
//! let local = forwarding.listen("127.0.0.1:0".parse()?, port).await?;
//!
//! let mut program = TcpStream::connect(local).await?;
//! program.write_all(b"hello").await?;
//! let (mut server, _) = pod.accept().await?;
//! let mut came = [0; 5];
//! server.read_exact(&mut came).await?;
//! assert_eq!(&came, b"hello");
//!
//! drop((program, server));
//! forwarding.stop(Duration::from_secs(10)).await;
//! # Ok::<_, Box<dyn std::error::Error>>(()) }).unwrap(); }
//! ```

mod dialers;
mod event;
mod forwarder;
mod keeper;
mod request;
mod upstream;

pub use dialers::{FallbackDialer, OpenForward, SpdyDialer, TunnelDialer};
pub use event::{DialError, Event};
pub use forwarder::{Forwarder, Forwarding};
pub use request::PortForwardRequest;
pub use upstream::{Connection, ConnectionError, PodError, Upstream};
