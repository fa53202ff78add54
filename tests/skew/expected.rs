#![allow(unreachable_pub, reason = "only this test binary uses it")]
//! What a cell of the matrix has to look like: which way it goes, what is spoken, and what every series does.

use std::fmt;

use crate::{
    series::{Change, Changes, Series},
    support::{Outcome, lab::Lab},
};

/// The gates of one API server and one kubelet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gates {
    apiserver: ApiServer,
    /// `ExtendWebSocketsToKubelet`, which its Node then declares.
    kubelet: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ApiServer {
    Off,
    TranslateAndTunnel,
    On,
}

impl Gates {
    pub const ALL: [Self; 6] = {
        use ApiServer::{Off, On, TranslateAndTunnel};
        [
            Self { apiserver: Off, kubelet: false },
            Self { apiserver: Off, kubelet: true },
            Self { apiserver: TranslateAndTunnel, kubelet: false },
            Self { apiserver: TranslateAndTunnel, kubelet: true },
            Self { apiserver: On, kubelet: false },
            Self { apiserver: On, kubelet: true },
        ]
    };

    /// Flags of the API server and of the kubelet.
    pub fn flags(self) -> (&'static str, &'static str) {
        let apiserver = match self.apiserver {
            ApiServer::Off => "--feature-gates=AllBeta=false",
            ApiServer::TranslateAndTunnel => {
                "--feature-gates=AllBeta=false,TranslateStreamCloseWebsocketRequests=true,PortForwardWebsockets=true"
            }
            ApiServer::On => "--feature-gates=AllBeta=true",
        };
        let kubelet = if self.kubelet { "--feature-gates=AllBeta=true" } else { "--feature-gates=AllBeta=false" };
        (apiserver, kubelet)
    }

    /// Which way a client goes.
    pub fn path(self, asks_for_websocket: bool) -> Path {
        match (asks_for_websocket, self.apiserver, self.kubelet) {
            (false, ..) => Path::Spdy,
            (true, ApiServer::Off, false) => Path::Fallback,
            // An API server that knows nothing of it forwards what came.
            (true, ApiServer::Off | ApiServer::On, true) => Path::PassedThrough,
            (true, ApiServer::TranslateAndTunnel, _) | (true, ApiServer::On, false) => Path::Adapted,
        }
    }
}

impl fmt::Display for Gates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let apiserver = match self.apiserver {
            ApiServer::Off => "off",
            ApiServer::TranslateAndTunnel => "translate+tunnel",
            ApiServer::On => "on",
        };
        write!(f, "{apiserver}/{}", if self.kubelet { "on" } else { "off" })
    }
}

/// What a client does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Exec,
    ExecStdin,
    Attach,
    Cp,
    PortForward,
}

/// Bytes that `exec` writes to stdout.
pub const SAID: &str = "hello\n";
/// Bytes that `exec -i` is fed, and echoes.
pub const FED: usize = 100_000;
/// Bytes of a tar archive of one small file: tar writes records of that size.
const RECORD: usize = 10_240;
/// What tar says on stderr of a path that begins at the root.
const TAR_SAYS: &str = "tar: Removing leading `/' from member names\n";

impl Operation {
    pub const ALL: [Self; 5] = [Self::Exec, Self::ExecStdin, Self::Attach, Self::Cp, Self::PortForward];

    fn subresource(self) -> &'static str {
        match self {
            Self::Exec | Self::ExecStdin | Self::Cp => "exec",
            Self::Attach => "attach",
            Self::PortForward => "portforward",
        }
    }

    /// Payload by stream and direction, where it is told apart.
    fn payload(self) -> Vec<(&'static str, &'static str, Change)> {
        let exactly = |bytes: usize| Change::Exactly(bytes as f64);
        match self {
            Self::Exec => vec![("stdout", "out", exactly(SAID.len()))],
            Self::ExecStdin => vec![("stdin", "in", exactly(FED)), ("stdout", "out", exactly(FED))],
            Self::Attach => vec![("stdout", "out", Change::More)],
            Self::Cp => vec![("stdout", "out", exactly(RECORD)), ("stderr", "out", exactly(TAR_SAYS.len()))],
            Self::PortForward => vec![("data", "in", Change::More), ("data", "out", Change::More)],
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Exec => "exec",
            Self::ExecStdin => "exec -i",
            Self::Attach => "attach",
            Self::Cp => "cp",
            Self::PortForward => "port-forward",
        })
    }
}

/// Which way a cell goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// SPDY from end to end.
    Spdy,
    /// Translated or tunnelled at the API server.
    Adapted,
    /// Passed through by the API server, translated or tunnelled at the kubelet.
    PassedThrough,
    /// WebSocket passed through, refused by the kubelet's runtime, then SPDY from end to end.
    Fallback,
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Spdy => "spdy",
            Self::Adapted => "adapted",
            Self::PassedThrough => "passed",
            Self::Fallback => "fallback",
        })
    }
}

impl Path {
    /// What the session's lines say was spoken with the client and with the next hop: API server, kubelet.
    pub fn protocols(self, operation: Operation) -> [(&'static str, &'static str); 2] {
        let (websocket, spdy) = match operation {
            Operation::PortForward => ("SPDY/3.1+portforward.k8s.io", "portforward.k8s.io"),
            _ => ("v5.channel.k8s.io", "v4.channel.k8s.io"),
        };
        // In the example the runtime is the kubelet itself: its SPDY sessions have no next hop.
        match self {
            Self::Spdy | Self::Fallback => [(spdy, spdy), (spdy, "")],
            Self::Adapted => [(websocket, spdy), (spdy, "")],
            Self::PassedThrough => [(websocket, websocket), (websocket, spdy)],
        }
    }
}

/// One request as a server saw it.
struct Request {
    websocket: bool,
    way: Way,
    answer: &'static str,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// The gate of the layer that would adapt is off, so nobody looked where it goes.
    Unrouted,
    /// As it came: to a hop that speaks SPDY, or WebSocket.
    Spdy,
    WebSocket,
    Adapted,
}

impl Gates {
    /// How the API server's series change: the ways in which they may.
    pub fn at_apiserver(self, path: Path, operation: Operation) -> Vec<Changes> {
        let passed = match (self.apiserver, self.kubelet) {
            (ApiServer::Off, _) => Way::Unrouted,
            (ApiServer::On, true) => Way::WebSocket,
            _ => Way::Spdy,
        };
        let way = if path == Path::Adapted { Way::Adapted } else { passed };
        let mut counted = Counted::new("apiserver", operation);
        for request in requests(path, operation, way) {
            counted.answered(&request);
            counted.at_apiserver(&request);
            if request.websocket && self.apiserver == ApiServer::On {
                counted.add("apiserver_streaming_synthetic_check_decisions_total", &counted.with("decision", "allow"));
            }
        }
        if way == Way::Adapted && operation != Operation::PortForward {
            counted.add("apiserver_stream_translator_requests_total", "code=\"200\"");
        }
        let carried = path == Path::PassedThrough || (operation == Operation::PortForward && way != Way::Adapted);
        let ends = if carried { vec![("carried", "finished")] } else { ends(path, operation, false) };
        counted.ended(way, !carried && operation != Operation::PortForward, &ends)
    }

    /// How the kubelet's series change: the ways in which they may.
    pub fn at_kubelet(self, path: Path, operation: Operation) -> Vec<Changes> {
        let passed = if self.kubelet { Way::Spdy } else { Way::Unrouted };
        let way = if path == Path::PassedThrough { Way::Adapted } else { passed };
        // What is adapted in front of it reaches the kubelet as SPDY.
        let seen = if path == Path::Adapted { Path::Spdy } else { path };
        let mut counted = Counted::new("kubelet", operation);
        for request in requests(seen, operation, way) {
            counted.answered(&request);
            counted.at_kubelet(&request);
            if request.websocket {
                counted.add("kubelet_streaming_synthetic_check_decisions_total", &counted.with("decision", "allow"));
            }
        }
        let read = way != Way::Adapted || operation != Operation::PortForward;
        counted.ended(way, read, &ends(path, operation, true))
    }
}

/// How the session may end, and why, where more is known than that its bytes have.
fn ends(path: Path, operation: Operation, at_kubelet: bool) -> Vec<(&'static str, &'static str)> {
    match operation {
        Operation::Exec | Operation::ExecStdin => vec![("success", "finished")],
        // kubectl is content with the archive's end, and may be gone before the status comes.
        Operation::Cp => {
            vec![("success", "finished"), ("client_gone", "client_lost"), ("client_gone", "client_closed")]
        }
        // kubectl is stopped. Where it was adapted in front of it, the kubelet is told so in order.
        Operation::Attach if at_kubelet && path == Path::Adapted => vec![("client_gone", "client_closed")],
        Operation::Attach => vec![("client_gone", "client_lost")],
        // kubectl says goodbye twice, within SPDY and around it: the next hop's answer to the one may overtake the other,
        // and its closed socket, which resets what it had not read, may take both with it.
        Operation::PortForward if at_kubelet && path != Path::PassedThrough => {
            vec![("carried", "client_closed"), ("client_gone", "client_lost")]
        }
        Operation::PortForward => {
            vec![("carried", "client_closed"), ("carried", "finished"), ("client_gone", "client_lost")]
        }
    }
}

/// The requests of a cell: one, or a WebSocket that is refused and SPDY in its place.
fn requests(path: Path, operation: Operation, way: Way) -> Vec<Request> {
    let refused = if operation == Operation::PortForward { "400" } else { "403" };
    let last = Request { websocket: matches!(path, Path::Adapted | Path::PassedThrough), way, answer: "101" };
    match path {
        Path::Fallback => vec![Request { websocket: true, way, answer: refused }, last],
        _ => vec![last],
    }
}

/// What one server counts.
struct Counted {
    server: &'static str,
    operation: Operation,
    changes: Changes,
}

impl Counted {
    fn new(server: &'static str, operation: Operation) -> Self {
        Self { server, operation, changes: Changes::new() }
    }

    /// The subresource's label, and one more.
    fn with(&self, label: &str, value: &str) -> String {
        format!("subresource=\"{}\",{label}=\"{value}\"", self.operation.subresource())
    }

    fn add(&mut self, name: &str, labels: &str) {
        let change = self.changes.entry(format!("{name}{{{labels}}}")).or_insert(Change::Exactly(0.0));
        if let Change::Exactly(by) = change {
            *by += 1.0;
        }
    }

    fn observe(&mut self, name: &str, labels: &str) {
        self.add(&format!("{name}_count"), labels);
        self.add(&format!("{name}_bucket"), &format!("{labels},le=\"+Inf\""));
    }

    fn answered(&mut self, request: &Request) {
        let server = self.server;
        let result = if request.answer == "101" { "success" } else { "failure" };
        self.observe(&format!("{server}_streaming_upgrade_duration_seconds"), &self.with("result", result));
        if request.answer != "101" {
            self.add(&format!("{server}_streaming_refused_requests_total"), &self.with("code", request.answer));
        }
    }

    fn at_apiserver(&mut self, request: &Request) {
        let port_forward = self.operation == Operation::PortForward;
        if request.websocket {
            let name = if port_forward { "num_ws_port_forward_v2_total" } else { "num_ws_remote_command_v5_total" };
            let result = if request.answer == "101" { "success" } else { "failure" };
            self.add(name, &format!("type=\"{result}\""));
            let routed = match request.way {
                Way::Unrouted => None,
                Way::WebSocket => Some("proxied_to_kubelet"),
                Way::Spdy | Way::Adapted => Some("translated_at_apiserver"),
            };
            if let Some(routed) = routed {
                self.add("apiserver_websocket_streaming_requests_total", &self.with("proxy_type", routed));
            }
        }
        if port_forward && request.way == Way::Adapted {
            self.add("apiserver_stream_tunnel_requests_total", &format!("code=\"{}\"", request.answer));
        }
    }

    fn at_kubelet(&mut self, request: &Request) {
        if !request.websocket {
            return;
        }
        let result = if request.answer == "101" { "success" } else { "failure" };
        self.add("kubelet_streaming_websocket_requests_total", &self.with("result", result));
        if request.answer == "101" {
            let subresource = format!("subresource=\"{}\"", self.operation.subresource());
            self.add("kubelet_websocket_streaming_requests_total", &subresource);
        }
    }

    /// The session's end, in one of those ways. `read`: whether its streams are told apart here.
    fn ended(mut self, way: Way, read: bool, ends: &[(&str, &str)]) -> Vec<Changes> {
        let server = self.server;
        let proxy_type = if way == Way::Adapted { "translated_or_tunneled" } else { "proxied" };
        let duration = format!("{server}_streaming_session_duration_seconds");
        self.observe(&duration, &format!("proxy_type=\"{proxy_type}\""));
        // The API server looks into SPDY for its ends only.
        let told_apart = read && (server == "kubelet" || way == Way::Adapted);
        let bytes = if told_apart {
            self.operation.payload()
        } else {
            vec![("carried", "in", Change::Any), ("carried", "out", Change::More)]
        };
        for (stream, direction, change) in bytes {
            let labels = format!("{},direction=\"{direction}\"", self.with("stream", stream));
            self.changes.insert(format!("{server}_streaming_bytes_total{{{labels}}}"), change);
        }
        let one_of = ends.iter().map(|(end, cause)| {
            let labels = format!("{},end=\"{end}\"", self.with("proxy_type", proxy_type));
            let mut changes = self.changes.clone();
            changes.insert(format!("{server}_streaming_sessions_ended_total{{{labels}}}"), Change::Exactly(1.0));
            let cause = format!("{server}_streaming_close_causes_total{{cause=\"{cause}\"}}");
            changes.insert(cause, Change::Exactly(1.0));
            changes
        });
        one_of.collect()
    }
}

/// What both processes have told so far: API server, kubelet.
pub struct Seen {
    pub sessions: [usize; 2],
    pub series: [Series; 2],
}

impl Seen {
    pub async fn of(lab: &Lab) -> Outcome<Self> {
        let series =
            [Series::parse(&lab.metrics_of_apiserver().await?)?, Series::parse(&lab.metrics_of_kubelet().await?)?];
        Ok(Self { sessions: [lab.sessions().len(), lab.kubelet_sessions().len()], series })
    }
}
