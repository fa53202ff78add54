//! What only the examples need. The library knows nothing of it.
//!
//! | file | one idea |
//! |---|---|
//! | `pki`, `tls`, `provider` | a CA and certificates of our own; rustls configurations from PEM files; which cryptography |
//! | `tokens`, `kubeconfig` | who may log in with a bearer token; the file that kubectl reads |
//! | `server` | accept, TLS, HTTP/1.1 and HTTP/2, and a stop that loses nothing |
//! | `authn`, `impersonate`, `authz` | who is it; whom do they act for; what do they ask for, and may they |
//! | `policy`, `rbac` | roles and bindings from manifests; what they allow |
//! | `reviews`, `identity`, `protobuf` | questions about that, and about tokens; the form in which kubectl asks them |
//! | `kinds`, `objects`, `history`, `defaults` | Nodes, Pods and Leases in memory; their latest changes; what a server adds to a new one |
//! | `features`, `patch`, `locate` | what nodes declare; changes to objects; from a pod to its kubelet's URL |
//! | `client`, `node`, `lease`, `mirror`, `told`, `review` | a kubelet at its API server: the client, its Node, Lease and static Pods; and who may do what with it |
//! | `reports` | all that a kubelet keeps there |
//! | `stack` | the kubelet's streaming stack, over processes of this host or over a container runtime |
//! | `cri`, `pods` | a container runtime's calls for Pods; Pods of manifests as its sandboxes and containers |
//! | `manifests`, `container_logs` | which files hold them; what their containers have said |
//! | `pod_config`, `pod_status`, `restarts` | what such a Pod asks for; what is seen of it; when it is started again |
//! | `gateway` | in front of an existing cluster: forwards, and asks there who may |
//! | `api`, `at`, `discovery`, `list`, `selector`, `watch`, `table`, `logs` | the rest of the Kubernetes API that clients need around a stream |

// Each example uses its half.
#![allow(dead_code, reason = "the examples share this folder, and none uses all of it")]
#![allow(unreachable_pub, reason = "shorter to read than pub(crate), and an example exports nothing anyway")]

pub mod api;
pub mod at;
pub mod authn;
pub mod authz;
pub mod client;
pub mod container_logs;
pub mod cri;
pub mod defaults;
pub mod discovery;
pub mod features;
pub mod gateway;
pub mod history;
pub mod identity;
pub mod impersonate;
pub mod kinds;
pub mod kubeconfig;
pub mod lease;
pub mod list;
pub mod locate;
pub mod logs;
pub mod manifests;
pub mod mirror;
pub mod node;
pub mod objects;
pub mod patch;
pub mod pki;
pub mod pod_config;
pub mod pod_status;
pub mod pods;
pub mod policy;
pub mod protobuf;
pub mod provider;
pub mod rbac;
pub mod reports;
pub mod restarts;
pub mod review;
pub mod reviews;
pub mod selector;
pub mod server;
pub mod stack;
pub mod table;
pub mod tls;
pub mod tokens;
pub mod told;
pub mod watch;

use std::{
    convert::Infallible,
    fmt, fs,
    io::{IsTerminal, Write},
    net::IpAddr,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
    sync::Arc,
};

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderName, Request, Response, Uri, header};
use http_body_util::Full;
use tower::{Service, ServiceExt, util::BoxCloneSyncService};
use tower_kube_streaming::adapters::prometheus::{CONTENT_TYPE, StreamingMetrics};

/// A streaming stack as the routers here mount it.
pub type Stack = BoxCloneSyncService<Request<Body>, Response<Body>, Infallible>;

/// Boxes a stack for a router.
pub fn mounted<S>(stack: S) -> Stack
where
    S: Service<Request<Body>, Response = Response<Full<Bytes>>, Error = Infallible, Future: Send>,
    S: Clone + Send + Sync + 'static,
{
    Stack::new(stack.map_response(|response| response.map(Body::new)))
}

/// What `/metrics` answers.
pub fn exposition(metrics: &[Arc<StreamingMetrics>]) -> ([(HeaderName, &'static str); 1], String) {
    let text = metrics.iter().map(|metrics| metrics.render()).collect();
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], text)
}

/// What ends an example before it is `ready`, with the sentence that is printed.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// Puts what was tried before what went wrong.
pub trait Context<T> {
    fn context(self, tried: impl fmt::Display) -> Result<T, Error>;
}

impl<T, E: fmt::Display> Context<T> for Result<T, E> {
    fn context(self, tried: impl fmt::Display) -> Result<T, Error> {
        self.map_err(|error| format!("{tried}: {error}").into())
    }
}

/// Whether a URL names this machine.
pub fn is_loopback(uri: &Uri) -> bool {
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Prints a line for people and scripts. A closed stdout is not our failure.
pub fn say(line: impl fmt::Display) {
    let mut stdout = std::io::stdout().lock();
    let _ = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
}

/// Logs to stderr, `RUST_LOG` deciding what: by default `info`, so that each session leaves one line.
pub fn log_to_stderr() {
    use tracing_subscriber::{EnvFilter, fmt};
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let colours = std::io::stderr().is_terminal();
    fmt().with_env_filter(filter).with_ansi(colours).with_writer(std::io::stderr).init();
}

/// Makes a directory that only its owner enters, and those above it.
pub fn create_private_dir(path: &Path) -> Result<(), Error> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.context(format_args!("making {}", path.display()))
}

/// Writes a file that only its owner reads, so that a reader never sees half of it.
pub fn write_private(path: &Path, content: &str) -> Result<(), Error> {
    let unfinished = path.with_extension(format!("{}.tmp", std::process::id()));
    let written =
        fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&unfinished).and_then(
            |mut file| {
                file.write_all(content.as_bytes())?;
                fs::rename(&unfinished, path)
            },
        );
    written.context(format_args!("writing {}", path.display()))
}

/// Random bytes as lower-case hex digits, two a byte.
pub fn random_hex<const N: usize>() -> String {
    let mut bytes = [0; N];
    provider::provider().secure_random.fill(&mut bytes).expect("the system has randomness");
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
