//! Our own stacks in this process, which can be stopped and started.

use std::{
    convert::Infallible,
    io,
    sync::{Arc, Mutex, MutexGuard},
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::Uri;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use tokio::{
    io::{DuplexStream, copy_bidirectional, duplex},
    select,
    sync::watch,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower_kube_streaming::{
    FeatureGates, Gate,
    layers::{Hop, danger::PermitAllLayer},
    runtime::{Main, ProcessRuntime},
    services::{ApiServer, InProcess, Kubelet, StreamingServer},
    upgrade::{Sessions, Target},
};

/// Which stack answers, with its gates; the API server's with those of its kubelet.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Side {
    ApiServer(&'static [Gate], &'static [Gate]),
    Kubelet(&'static [Gate]),
}

/// A server with the pods `demo` and `other`. All its connections end with its being stopped.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    side: Side,
    /// `None`: it is stopped.
    runs: Arc<Mutex<Option<Run>>>,
    /// How often it was dialled, in vain included.
    pub(crate) dialled: watch::Sender<usize>,
}

/// From a start to a stop.
#[derive(Clone, Debug, Default)]
struct Run {
    stop: CancellationToken,
    connections: TaskTracker,
}

impl Server {
    pub(crate) fn new(side: Side) -> Self {
        Self { side, runs: Arc::new(Mutex::new(Some(Run::default()))), dialled: watch::Sender::new(0) }
    }

    fn runs(&self) -> MutexGuard<'_, Option<Run>> {
        self.runs.lock().expect("not poisoned")
    }

    /// Refuses new connections, and cuts all there are.
    pub(crate) async fn stop(&self) {
        let run = self.runs().take();
        if let Some(run) = run {
            run.stop.cancel();
            run.connections.close();
            run.connections.wait().await;
        }
    }

    pub(crate) fn start(&self) {
        *self.runs() = Some(Run::default());
    }

    pub(crate) fn dial(&self) -> impl Fn(Uri) -> BoxFuture<'static, io::Result<DuplexStream>> + Clone + use<> {
        let server = self.clone();
        move |_| {
            server.dialled.send_modify(|dialled| *dialled += 1);
            let run = server.runs().clone();
            let io = run.map(|run| server.connection(&run)).ok_or(io::ErrorKind::ConnectionRefused.into());
            Box::pin(std::future::ready(io))
        }
    }

    /// A connection that is cut when the server stops.
    fn connection(&self, run: &Run) -> DuplexStream {
        let leaf = StreamingServer::new(runtime());
        let mut served = match self.side {
            Side::Kubelet(on) => {
                serve(Kubelet::builder().gates(gates(on)).build(Sessions::new(), PermitAllLayer, leaf))
            }
            Side::ApiServer(on, kubelets) => {
                let sessions = Sessions::new();
                let kubelet = Kubelet::builder().gates(gates(kubelets)).build(sessions.clone(), PermitAllLayer, leaf);
                let resolve = move |target: Arc<Target>| async move {
                    let hop = Hop::kubelet("http://kubelet", &target)?;
                    Ok(hop.declares(kubelets.iter().map(|gate| gate.name())))
                };
                let stack = ApiServer::builder().gates(gates(on));
                serve(stack.build(sessions, PermitAllLayer, resolve, InProcess::new(kubelet)))
            }
        };
        let (near, mut far) = duplex(64 * 1024);
        let stop = run.stop.clone();
        run.connections.spawn(async move {
            select! {
                // How they end is what the test looks at, from the other side.
                _ = copy_bidirectional(&mut far, &mut served) => {}
                () = stop.cancelled() => {}
            }
        });
        near
    }
}

fn runtime() -> ProcessRuntime {
    let main = || Main { command: vec!["sleep".into(), "60".into()], tty: false, stdin: false };
    ProcessRuntime::new().container("default", "demo", "c", main()).container("default", "other", "c", main())
}

fn gates(on: &[Gate]) -> FeatureGates {
    FeatureGates::with(Gate::ALL.map(|gate| (gate, on.contains(&gate)))).expect("gates that fit")
}

fn serve<S>(stack: S) -> DuplexStream
where
    S: tower::Service<http::Request<Incoming>, Response = http::Response<Full<Bytes>>, Error = Infallible>,
    S: Clone + Send + 'static,
    S::Future: Send,
{
    let (near, far) = duplex(64 * 1024);
    let http = hyper::server::conn::http1::Builder::new();
    tokio::spawn(http.serve_connection(TokioIo::new(far), TowerToHyperService::new(stack)).with_upgrades());
    near
}
