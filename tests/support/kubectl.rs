//! Which kubectl binaries there are, and one run of one of them.

use std::{
    env, fmt, fs,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::Stdio,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use sha2::{Digest, Sha256};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::{Child, Command},
    time::timeout,
};

use super::{
    Outcome, Scratch, count, full, hex,
    lab::{Lab, example_path},
    skip,
};

const EXEC: &str = "KUBECTL_REMOTE_COMMAND_WEBSOCKETS";
const PORT_FORWARD: &str = "KUBECTL_PORT_FORWARD_WEBSOCKETS";

type Env = &'static [(&'static str, &'static str)];

/// Clients: version, environment, and whether it asks for WebSocket first.
type Matrix = &'static [(&'static str, Env, bool)];

/// Who runs exec, attach and cp.
const MATRIX: Matrix = &[
    ("1.20", &[], false),
    ("1.28", &[], false),
    ("1.29", &[], false),
    ("1.29", &[(EXEC, "true")], true),
    ("1.30", &[], true),
    ("1.31", &[], true),
    ("1.33", &[], true),
    ("1.36", &[], true),
    ("1.37", &[(EXEC, "false"), (PORT_FORWARD, "false")], false),
    ("1.37", &[], true),
];

/// Who forwards ports.
const FORWARDERS: Matrix = &[
    ("1.20", &[], false),
    ("1.28", &[], false),
    ("1.30", &[], false),
    ("1.30", &[(PORT_FORWARD, "true")], true),
    ("1.31", &[], true),
    ("1.33", &[], true),
    ("1.36", &[], true),
    ("1.37", &[(PORT_FORWARD, "false")], false),
    ("1.37", &[], true),
];

/// Who is tested against every pair of gates: how it runs exec, and how it forwards. 1.29 knows no other forward than
/// SPDY's, and 1.30 has to be asked for the other.
const SKEW: &[(&str, Env, bool, bool)] = &[
    ("1.20", &[], false, false),
    ("1.28", &[], false, false),
    ("1.29", &[(EXEC, "true")], true, false),
    ("1.30", &[], true, false),
    ("1.31", &[], true, true),
    ("1.33", &[], true, true),
    ("1.35", &[], true, true),
    ("1.36", &[], true, true),
    ("1.37", &[(EXEC, "false"), (PORT_FORWARD, "false")], false, false),
    ("1.37", &[], true, true),
];

/// One kubectl of the skew matrix.
#[derive(Clone, Debug)]
pub struct SkewClient {
    exec: Client,
    forward: Client,
}

impl SkewClient {
    /// As it forwards ports, or as it does all else.
    pub fn of(&self, port_forward: bool) -> &Client {
        if port_forward { &self.forward } else { &self.exec }
    }
}

impl fmt::Display for SkewClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let env: Vec<String> = self.exec.env.iter().map(|(_, value)| format!("={value}")).collect();
        write!(f, "kubectl {}{}", self.exec.version, env.concat())
    }
}

/// The clients of the skew matrix, chosen as [`clients`] are.
pub fn skew_clients() -> Vec<SkewClient> {
    let row = |asks: fn(&(&'static str, Env, bool, bool)) -> bool| {
        let rows: Vec<_> = SKEW.iter().map(|row| (row.0, row.1, asks(row))).collect();
        choose(&rows)
    };
    row(|row| row.2).into_iter().zip(row(|row| row.3)).map(|(exec, forward)| SkewClient { exec, forward }).collect()
}

/// A kubectl of one version, in one environment.
#[derive(Clone, Debug)]
pub struct Client {
    pub version: &'static str,
    /// Whether it asks for WebSocket first, v5 or the tunnel; else it speaks SPDY.
    pub websocket: bool,
    env: Env,
    binary: PathBuf,
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "kubectl {} ({})", self.version, if self.websocket { "WebSocket" } else { "SPDY" })
    }
}

/// The clients to test exec, attach and cp with.
///
/// `KUBECTL_VERSIONS` says which: unset the newest that is there, `all`, or a list such as `1.28,1.37`. The binaries are
/// those that `scripts/kubectls` fetches; one that is missing is skipped, or fails under `REQUIRE_REAL=1`.
pub fn clients() -> Vec<Client> {
    choose(MATRIX)
}

/// What stands for the version of the example kubectl.
pub const OURS: &str = "of our own";

/// The example kubectl: it asks for WebSocket first, or for SPDY alone.
pub fn ours(websocket: bool) -> Client {
    let env: Env = if websocket { &[] } else { &[(EXEC, "false"), (PORT_FORWARD, "false")] };
    Client { version: OURS, websocket, env, binary: example_path("kubectl") }
}

/// The clients to test port-forward with, chosen as [`clients`] are.
pub fn forwarders() -> Vec<Client> {
    choose(FORWARDERS)
}

fn choose(matrix: &[(&'static str, Env, bool)]) -> Vec<Client> {
    let dir = directory();
    let asked = env::var("KUBECTL_VERSIONS").unwrap_or_default();
    let mut clients: Vec<Client> = matrix
        .iter()
        .filter(|(version, ..)| {
            asked.is_empty() || asked == "all" || asked.split(',').any(|asked| asked.trim() == *version)
        })
        .map(|(version, env, websocket)| Client {
            version,
            websocket: *websocket,
            env,
            binary: dir.join(format!("kubectl-{version}")),
        })
        .collect();
    if asked.is_empty() {
        clients.retain(|client| client.binary.exists());
        clients.drain(..clients.len().saturating_sub(1));
        if clients.is_empty() {
            skip("there is no kubectl; scripts/kubectls fetches it");
        }
    }
    clients.retain(|client| {
        let there = client.binary.exists();
        if !there {
            skip(&format!("{} is missing; scripts/kubectls fetches it", client.binary.display()));
        }
        there
    });
    clients
}

/// The kubectl of one version that execs over WebSocket or SPDY. `None`: it is not there, which is a SKIP.
pub fn client(version: &str, websocket: bool) -> Option<Client> {
    one_of(MATRIX, version, websocket)
}

/// The kubectl of one version that forwards over WebSocket or SPDY. `None`: it is not there, which is a SKIP.
pub fn forwarder(version: &str, websocket: bool) -> Option<Client> {
    one_of(FORWARDERS, version, websocket)
}

fn one_of(matrix: Matrix, version: &str, websocket: bool) -> Option<Client> {
    let (version, env, websocket) = *matrix.iter().find(|(of, _, speaks)| *of == version && *speaks == websocket)?;
    let client = Client { version, websocket, env, binary: directory().join(format!("kubectl-{version}")) };
    if client.binary.exists() {
        return Some(client);
    }
    skip(&format!("{} is missing; scripts/kubectls fetches it", client.binary.display()));
    None
}

fn directory() -> PathBuf {
    env::var_os("KUBECTL_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/kubectl"), PathBuf::from)
}

/// What a run left behind.
#[derive(Debug)]
pub struct Output {
    pub code: Option<i32>,
    /// The first 64 KiB.
    pub stdout: String,
    pub stdout_bytes: u64,
    pub stdout_sha256: String,
    pub stderr: String,
}

impl Output {
    /// Passes the output on if the exit code is `code`.
    pub fn exits(self, code: i32) -> Outcome<Self> {
        if self.code == Some(code) { Ok(self) } else { Err(format!("exit code {code} was expected: {self:?}")) }
    }

    /// Passes the output on if stderr has `part` in it.
    pub fn says(self, part: &str) -> Outcome<Self> {
        if self.stderr.contains(part) { Ok(self) } else { Err(format!("{part:?} was expected on stderr: {self:?}")) }
    }
}

/// What a command is fed: a block, a number of times over.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a>(pub &'a [u8], pub usize);

/// One client against one lab.
#[derive(Debug)]
pub struct Run<'a> {
    pub lab: &'a Lab,
    pub client: &'a Client,
}

impl Client {
    /// Whether it is among the oldest and the newest that are wanted where all would take too long; in `full` all are.
    pub fn is_at_an_end(&self) -> bool {
        full() || matches!(self.version, "1.28" | "1.37")
    }

    /// The command, ready to be started, with a HOME of its own in `scratch`: kubectl caches discovery there.
    pub fn command(&self, kubeconfig: &Path, scratch: &Scratch, args: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        // What it calls itself to the server.
        command.arg0("kubectl");
        command.envs(self.env(scratch));
        command.arg("--kubeconfig").arg(kubeconfig).args(args);
        command.kill_on_drop(true);
        command
    }

    fn env(&self, scratch: &Scratch) -> Vec<(&'static str, String)> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let home = scratch.dir(&format!("home-{}", NEXT.fetch_add(1, Ordering::Relaxed)));
        let none = [EXEC, PORT_FORWARD, "KUBECONFIG"].map(|name| (name, String::new()));
        let own = self.env.iter().map(|(name, value)| (*name, (*value).to_owned()));
        none.into_iter().chain(own).chain([("HOME", home.to_string_lossy().into_owned())]).collect()
    }
}

impl Run<'_> {
    /// The command, ready to be started.
    pub fn command(&self, args: &[&str]) -> Command {
        self.client.command(&self.lab.kubeconfig, &self.lab.scratch, args)
    }

    /// As [`command`](Self::command), on a terminal that becomes its controlling one.
    pub fn command_on(&self, terminal: &OwnedFd, args: &[&str]) -> Outcome<Command> {
        let stdio = || terminal.try_clone().map(Stdio::from).map_err(|error| error.to_string());
        let mut command = Command::new("setsid");
        command.envs(self.client.env(&self.lab.scratch));
        command.arg("--ctty").arg(&self.client.binary).arg("--kubeconfig").arg(&self.lab.kubeconfig).args(args);
        command.stdin(stdio()?).stdout(stdio()?).stderr(stdio()?).kill_on_drop(true);
        Ok(command)
    }

    /// Runs kubectl to its end, without stdin.
    pub async fn kubectl(&self, args: &[&str]) -> Outcome<Output> {
        self.kubectl_fed(args, Input(b"", 0)).await
    }

    /// Runs kubectl to its end. Its stdin is `input`, then EOF.
    pub async fn kubectl_fed(&self, args: &[&str], input: Input<'_>) -> Outcome<Output> {
        let limit = Duration::from_secs(count(90, 900));
        let mut command = self.command(args);
        command.stdin(if input.1 == 0 { Stdio::null() } else { Stdio::piped() });
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| format!("{}: {error}", self.client.binary.display()))?;
        match timeout(limit, finish(&mut child, input)).await {
            Ok(output) => output.map_err(|error| format!("kubectl {args:?}: {error}")),
            Err(_) => Err(format!("kubectl {args:?} did not end within {limit:?}")),
        }
    }
}

async fn finish(child: &mut Child, input: Input<'_>) -> std::io::Result<Output> {
    let stdin = child.stdin.take();
    let mut out = child.stdout.take().expect("stdout is piped");
    let mut err = child.stderr.take().expect("stderr is piped");
    let feed = async {
        let Some(mut stdin) = stdin else { return };
        for _ in 0..input.1 {
            // kubectl may end before it has read everything; its exit code tells.
            if stdin.write_all(input.0).await.is_err() {
                return;
            }
        }
    };
    let read_out = async {
        let (mut hash, mut head, mut length) = (Sha256::new(), Vec::new(), 0);
        let mut buffer = vec![0; 64 << 10];
        loop {
            let read = out.read(&mut buffer).await?;
            if read == 0 {
                return Ok::<_, std::io::Error>((hex(&hash.finalize()), head, length));
            }
            hash.update(&buffer[..read]);
            length += read as u64;
            head.extend_from_slice(&buffer[..read.min((64 << 10) - head.len())]);
        }
    };
    let read_err = async {
        let mut text = Vec::new();
        err.read_to_end(&mut text).await?;
        Ok::<_, std::io::Error>(text)
    };
    let ((), out, err) = tokio::join!(feed, read_out, read_err);
    let (stdout_sha256, head, stdout_bytes) = out?;
    Ok(Output {
        code: child.wait().await?.code(),
        stdout: String::from_utf8_lossy(&head).into_owned(),
        stdout_bytes,
        stdout_sha256,
        stderr: String::from_utf8_lossy(&err?).into_owned(),
    })
}

/// A file tree's content: path below `root` and hash, sorted.
pub fn tree(root: &Path) -> Outcome<Vec<(String, String)>> {
    let mut found = Vec::new();
    let mut open = vec![root.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).map_err(|error| format!("{}: {error}", dir.display()))? {
            let path = entry.map_err(|error| error.to_string())?.path();
            if path.is_dir() {
                open.push(path);
            } else {
                let bytes = fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
                let below = path.strip_prefix(root).expect("below the root").to_string_lossy().into_owned();
                found.push((below, super::sha256(&bytes, 1)));
            }
        }
    }
    found.sort();
    Ok(found)
}
