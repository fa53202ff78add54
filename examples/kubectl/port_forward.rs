//! `kubectl port-forward`.

use std::{
    env, fmt,
    io::{self, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use clap::Args;
use tokio::{signal, time::Instant};
use tower_kube_streaming::{
    BoxError,
    client::{
        Carrier, ExecuteError, FallbackPolicy,
        port_forward::{
            ConnectionError, DialError, Event, FallbackDialer, Forwarder, Forwarding, OpenForward, PortForwardRequest,
            SpdyDialer, TunnelDialer, Upstream,
        },
    },
};

use super::{
    cluster::Cluster,
    failure::{Failure, chain},
    flags::{duration, must_wait},
    log::{self, klog},
    pod::Pod,
    ports::Ports,
    remote::{Asked, segment},
};

/// Turns WebSocket off, as in kubectl.
const WEBSOCKETS: &str = "KUBECTL_PORT_FORWARD_WEBSOCKETS";

#[derive(Args, Debug)]
#[command(override_usage = "kubectl port-forward TYPE/NAME [options] [LOCAL_PORT:]REMOTE_PORT [...]")]
pub(crate) struct PortForward {
    /// A pod, or what has pods, and then ports: REMOTE, LOCAL:REMOTE, or :REMOTE for a local port that is free.
    #[arg(value_name = "TYPE/NAME [LOCAL_PORT:]REMOTE_PORT")]
    args: Vec<String>,
    /// Addresses to listen at, separated by commas: IP addresses, or localhost for 127.0.0.1 and ::1.
    #[arg(long, value_name = "ADDRESSES", value_delimiter = ',', default_value = "localhost")]
    address: Vec<String>,
    /// How long to wait for a workload's pod to run, such as 5s, 2m or 3h.
    #[arg(long, value_name = "TIME", default_value = "1m0s", value_parser = duration)]
    pod_running_timeout: Duration,
}

impl PortForward {
    /// What can be said without a cluster.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        if self.args.len() < 2 {
            return Err(Failure::error(
                "TYPE/NAME and list of ports are required for port-forward\n\
                 See 'kubectl port-forward -h' for help and examples",
            ));
        }
        must_wait(self.pod_running_timeout, "port-forward")
    }

    pub(crate) async fn run(self, cluster: Cluster) -> Result<(), Failure> {
        let (target, wanted) = (self.args[0].clone(), &self.args[1..]);
        let pod = Pod::find(&cluster, &target, self.pod_running_timeout).await?;
        let ports = Ports::of(&cluster, &target, &pod, wanted).await?;
        let phase = pod.text("/status/phase");
        if phase != "Running" {
            let why = format!("unable to forward port because pod is not running. Current status={phase}");
            return Err(Failure::error(why));
        }
        let addresses = addresses(&self.address)?;
        let forwarding = self.start(cluster, target, &pod).await?;
        listen(&forwarding, &ports, &addresses).await?;
        // Ctrl-C is the way to end it, and no failure.
        let _ = signal::ctrl_c().await;
        forwarding.stop(Duration::ZERO).await;
        Ok(())
    }

    async fn start(&self, cluster: Cluster, target: String, pod: &Pod) -> Result<Forwarding, Failure> {
        let (server, connect) = (cluster.server.clone(), cluster.connect.clone());
        let first = request(&cluster, pod).map_err(|error| Failure::stream(&server, &error))?;
        let first = Arc::new(Mutex::new(Some(first)));
        let (cluster, wait) = (Arc::new(cluster), self.pod_running_timeout);
        // The pod of the first dialling is known. It may have been replaced when the next one comes.
        let resolve = move || {
            let first = first.lock().unwrap_or_else(PoisonError::into_inner).take();
            let (cluster, target) = (cluster.clone(), target.clone());
            async move {
                match first {
                    Some(request) => Ok(request),
                    None => {
                        let pod = Pod::find(&cluster, &target, wait).await.map_err(Failure::into_text)?;
                        request(&cluster, &pod).map_err(BoxError::from)
                    }
                }
            }
        };
        let spdy = Asked("POST", SpdyDialer::new(connect.clone()));
        let off = env::var(WEBSOCKETS).is_ok_and(|value| value.eq_ignore_ascii_case("false"));
        let started = if off {
            Forwarder::resolving(spdy, resolve).on_event(tell).start().await
        } else {
            let tunnel = Asked("GET", TunnelDialer::new(connect));
            let policy = FallbackPolicy::new().retry_if(|error| {
                let refused = error.rejection().is_some();
                if refused {
                    klog!(4, "fallback to secondary dialer from primary dialer err: {}", chain(error));
                }
                refused
            });
            let dialer = FallbackDialer::of(tunnel, spdy).policy(policy);
            Forwarder::resolving(dialer, resolve).on_event(tell).start().await
        };
        started.map_err(|error| match error {
            DialError::Dial(ExecuteError::Dial(error)) => Failure::unreachable(&server, &error),
            error => Failure::error(format!("error upgrading connection: {}", chain(&error))),
        })
    }
}

fn request(cluster: &Cluster, pod: &Pod) -> Result<PortForwardRequest, ExecuteError> {
    let path = format!("/api/v1/namespaces/{}/pods/{}/portforward", segment(&pod.namespace), segment(&pod.name));
    let mut request = PortForwardRequest::new(cluster.url(&path))?;
    for (name, value) in &cluster.headers {
        request = request.header(name, value)?;
    }
    Ok(request)
}

/// The addresses to listen at, and whether that one must be there.
fn addresses(wanted: &[String]) -> Result<Vec<Vec<IpAddr>>, Failure> {
    let of = |text: &String| match text.as_str() {
        "localhost" => Ok(vec![IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)]),
        text => text.parse().map(|ip| vec![ip]).map_err(|_| Failure::error(format!("{text} is not a valid IP"))),
    };
    wanted.iter().map(of).collect()
}

/// Listens for each port at each address. As in kubectl one listener is enough.
async fn listen(forwarding: &Forwarding, ports: &Ports, addresses: &[Vec<IpAddr>]) -> Result<(), Failure> {
    let mut any = false;
    for (local, remote) in ports.iter() {
        for group in addresses {
            let mut failed = Vec::new();
            let mut port = local;
            for ip in group {
                match forwarding.listen(SocketAddr::new(*ip, port), remote).await {
                    Ok(address) => {
                        say(format_args!("Forwarding from {address} -> {remote}"));
                        // Both addresses of localhost have the same port.
                        (any, port) = (true, address.port());
                    }
                    Err(error) => failed.push(format!("unable to create listener: {ip}: {error}")),
                }
            }
            if failed.len() == group.len() {
                let errors = failed.join(" ");
                let _ = writeln!(
                    io::stderr(),
                    "Unable to listen on port {local}: Listeners failed to create with the following errors: [{errors}]"
                );
            }
        }
    }
    if any {
        return Ok(());
    }
    let ports: Vec<String> = ports.iter().map(|(local, remote)| format!("{{{local} {remote}}}")).collect();
    Err(Failure::error(format!("unable to listen on any of the requested ports: [{}]", ports.join(" "))))
}

/// Writes a line to stdout. Whoever read it may be gone, as in `| grep -m1 Forwarding`, and the ports are still wanted.
fn say(line: fmt::Arguments<'_>) {
    let _ = writeln!(io::stdout(), "{line}");
}

/// What happens, in kubectl's words where it has some.
fn tell(event: &Event<'_>) {
    match event {
        Event::Accepted { local, .. } => say(format_args!("Handling connection for {}", local.port())),
        // Ctrl-C ends what is open, and needs no word.
        Event::ConnectionFailed { error: ConnectionError::Stopped, .. } => {}
        Event::ConnectionFailed { local, port, error, .. } => {
            log::error(
                "port_forward.rs",
                format_args!("an error occurred forwarding {} -> {port}: {}", local.port(), chain(error)),
            );
        }
        Event::Lost(_) => {
            log::error("port_forward.rs", format_args!("lost connection to pod; it is dialled again when it is needed"))
        }
        Event::DialFailed { error, .. } => {
            log::error("port_forward.rs", format_args!("error upgrading connection: {}", chain(error)))
        }
        Event::Redialled { attempts, .. } => klog!(2, "connected again, at attempt {attempts}"),
        _ => {}
    }
}

impl<D: OpenForward> OpenForward for Asked<D> {
    async fn dial(&self, request: &PortForwardRequest) -> Result<Upstream, ExecuteError> {
        if self.0 == "GET" {
            klog!(4, "Before WebSocket Upgrade Connection...");
        }
        self.asks(request.uri());
        let began = Instant::now();
        let upstream = self.1.dial(request).await;
        self.answered(began, upstream.as_ref().err());
        if let Ok(upstream) = &upstream {
            match upstream.carrier() {
                Carrier::Spdy => klog!(4, "negotiated protocol: portforward.k8s.io over SPDY/3.1"),
                _ => klog!(4, "negotiated protocol: portforward.k8s.io"),
            }
        }
        upstream
    }
}
