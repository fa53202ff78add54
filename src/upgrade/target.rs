//! What a streaming request asks for.

use std::fmt;

/// Which of a pod's streaming subresources is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Subresource {
    /// Runs a command in a container.
    Exec,
    /// Attaches to a container's main process.
    Attach,
    /// Forwards TCP connections into the pod.
    PortForward,
}

impl Subresource {
    /// The name in API-server paths, RBAC rules and metric labels.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Exec => "exec",
            Self::Attach => "attach",
            Self::PortForward => "portforward",
        }
    }
}

impl fmt::Display for Subresource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Whose URLs a hop speaks, and how it words a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// `/api/v1/namespaces/{ns}/pods/{pod}/exec?stdin=true`; refusals are `Status` JSON.
    ApiServer,
    /// `/exec/{ns}/{pod}[/{uid}]/{container}?input=1`; refusals are plain text.
    Kubelet,
    /// `/exec/{token}`: what the token stands for was issued before, so no target is read from such a URL. Refusals are
    /// plain text. See [`CriStreaming`](crate::services::CriStreaming).
    Runtime,
}

/// Which streams a session has, and what it runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StreamOptions {
    /// Input goes to the process.
    pub stdin: bool,
    /// Output comes back.
    pub stdout: bool,
    /// Errors come back, apart from the output. Never together with `tty`.
    pub stderr: bool,
    /// The process has a terminal.
    pub tty: bool,
    /// Program and arguments; exec only.
    pub command: Vec<String>,
    /// Ports asked for in the query; port-forward only.
    pub ports: Vec<u16>,
}

/// What one streaming request asks for: parsed once from the request line, then authorized, resolved and rendered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// What to do with the pod.
    pub subresource: Subresource,
    /// Namespace of the pod; empty at a [`Runtime`](Dialect::Runtime), which is asked by id.
    pub namespace: String,
    /// Name of the pod. At a [`Runtime`](Dialect::Runtime) the id of the sandbox for port-forward, else empty.
    pub pod: String,
    /// UID of the pod, where the URL names one.
    pub uid: Option<String>,
    /// Name of the container, at a [`Runtime`](Dialect::Runtime) its id; `None` where the request names none.
    pub container: Option<String>,
    /// Streams and command.
    pub options: StreamOptions,
    /// Whose URL this was.
    pub dialect: Dialect,
}
