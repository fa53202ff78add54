//! What a URL is issued for, and why none is.

use std::{error, fmt, time::Duration};

use crate::upgrade::{Dialect, Refusal, StreamOptions, Subresource, Target};

/// Longest id and command together. A command comes through heads of requests, which are held to as much at every hop;
/// and so much may be kept for each URL that waits to be used.
const LONGEST: usize = 1024 * 1024;

/// gRPC's own numbers.
const INVALID_ARGUMENT: i32 = 3;
const RESOURCE_EXHAUSTED: i32 = 8;
const INTERNAL: i32 = 13;

/// What the kubelet tells its client to wait when there are too many URLs.
const RETRY_AFTER: Duration = Duration::from_secs(60);

/// A request of CRI's `RuntimeService`, field by field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CriRequest {
    /// `ExecRequest`: runs a command in a container.
    Exec {
        /// Id of the container.
        container_id: String,
        /// Program and arguments. With the id at most 1 MiB, each argument counted with 24 bytes more.
        cmd: Vec<String>,
        /// The process has a terminal.
        tty: bool,
        /// Input goes to the process.
        stdin: bool,
        /// Output comes back.
        stdout: bool,
        /// Errors come back, apart from the output. Never together with `tty`.
        stderr: bool,
    },
    /// `AttachRequest`: attaches to a container's main process.
    Attach {
        /// Id of the container.
        container_id: String,
        /// The process has a terminal. The kubelet takes this from the container's specification.
        tty: bool,
        /// Input goes to the process.
        stdin: bool,
        /// Output comes back.
        stdout: bool,
        /// Errors come back, apart from the output. Never together with `tty`.
        stderr: bool,
    },
    /// `PortForwardRequest`: forwards connections into a pod.
    PortForward {
        /// Id of the sandbox.
        pod_sandbox_id: String,
        /// Ports, which count over legacy WebSocket only: over SPDY each connection names its own. At most 65,535, and not
        /// negative.
        port: Vec<i32>,
    },
}

impl CriRequest {
    /// What [`Runtime`](crate::runtime::Runtime) is asked for, if upstream's streaming server would take the request.
    pub(super) fn into_target(self) -> Result<Target, IssueError> {
        let (subresource, id, options, missing, no_stream) = match self {
            Self::Exec { container_id, cmd, tty, stdin, stdout, stderr } => {
                let options = StreamOptions { stdin, stdout, stderr, tty, command: cmd, ports: Vec::new() };
                let no_stream = "one of stdin, stdout, or stderr must be set";
                (Subresource::Exec, container_id, options, "missing required container_id", no_stream)
            }
            Self::Attach { container_id, tty, stdin, stdout, stderr } => {
                let options = StreamOptions { stdin, stdout, stderr, tty, ..StreamOptions::default() };
                let no_stream = "one of stdin, stdout, and stderr must be set";
                (Subresource::Attach, container_id, options, "missing required container_id", no_stream)
            }
            Self::PortForward { pod_sandbox_id, port } => {
                let options = StreamOptions { ports: ports(&port)?, ..StreamOptions::default() };
                (Subresource::PortForward, pod_sandbox_id, options, "missing required pod_sandbox_id", "")
            }
        };
        let forward = subresource == Subresource::PortForward;
        check_id(&id, missing)?;
        if options.tty && options.stderr {
            return Err(IssueError::invalid("tty and stderr cannot both be true"));
        }
        if !(forward || options.stdin || options.stdout || options.stderr) {
            return Err(IssueError::invalid(no_stream));
        }
        let command: usize = options.command.iter().map(|argument| argument.len() + size_of::<String>()).sum();
        if id.len() + command > LONGEST {
            return Err(IssueError::invalid("the request is longer than 1 MiB"));
        }
        let (pod, container) = if forward { (id, None) } else { (String::new(), Some(id)) };
        Ok(Target {
            subresource,
            namespace: String::new(),
            pod,
            uid: None,
            container,
            options,
            dialect: Dialect::Runtime,
        })
    }
}

/// An id goes into messages and log lines as it is.
fn check_id(id: &str, missing: &'static str) -> Result<(), IssueError> {
    if id.is_empty() {
        return Err(IssueError::invalid(missing));
    }
    if !id.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(IssueError::invalid("an id is of visible ASCII characters"));
    }
    Ok(())
}

fn ports(ports: &[i32]) -> Result<Vec<u16>, IssueError> {
    let most = usize::from(u16::MAX);
    if ports.len() > most {
        return Err(IssueError::invalid(format!("at most {most} ports can be forwarded")));
    }
    ports
        .iter()
        .map(|&port| u16::try_from(port).map_err(|_| IssueError::invalid(format!("port {port} is out of range"))))
        .collect()
}

/// Why no URL was issued. What a gRPC server answers is its [code](Self::grpc_code) with its `Display` for a message:
/// with tonic, `Status::new(Code::from(error.grpc_code()), error.to_string())`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssueError {
    code: i32,
    message: String,
}

impl IssueError {
    fn invalid(message: impl Into<String>) -> Self {
        Self { code: INVALID_ARGUMENT, message: message.into() }
    }

    pub(super) fn too_many() -> Self {
        Self { code: RESOURCE_EXHAUSTED, message: "maximum number of in-flight requests exceeded".into() }
    }

    pub(super) fn no_randomness(error: &dyn fmt::Display) -> Self {
        Self { code: INTERNAL, message: format!("no randomness from the system: {error}") }
    }

    /// The number of a gRPC status code: 3 `InvalidArgument`, 8 `ResourceExhausted` or 13 `Internal`.
    #[must_use]
    pub fn grpc_code(&self) -> i32 {
        self.code
    }

    /// The request makes no sense.
    #[must_use]
    pub fn is_invalid_argument(&self) -> bool {
        self.code == INVALID_ARGUMENT
    }

    /// 1,000 URLs wait to be used.
    #[must_use]
    pub fn is_resource_exhausted(&self) -> bool {
        self.code == RESOURCE_EXHAUSTED
    }
}

impl fmt::Display for IssueError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl error::Error for IssueError {}

/// As the kubelet answers a runtime's errors (`WriteError` of cri-streaming): too many are 429 with `Retry-After: 60`,
/// all others 500.
impl From<IssueError> for Refusal {
    fn from(error: IssueError) -> Self {
        if error.is_resource_exhausted() {
            return Self::too_many_requests(error.message, RETRY_AFTER);
        }
        Self::internal(error.message)
    }
}
