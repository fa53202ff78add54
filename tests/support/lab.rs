//! The examples, built and started: all in one process, or API server and kubelet apart.

use std::{
    env,
    ffi::OsString,
    fmt, fs,
    path::{Path, PathBuf},
    process::Command as Cargo,
    sync::OnceLock,
};

use tokio::process::Command;

use super::{Outcome, Scratch, gateway::Behind, process::Process};
use crate::ensure;

/// How the stack is spread over processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topology {
    /// `apiserver` alone: API server, kubelet and runtime in one process.
    AllInOne,
    /// `apiserver` and `kubelet`, with TLS between them.
    TwoProcesses,
    /// Two processes as a cluster that is there already, and a second `apiserver` as a gateway in front of it.
    Gateway,
}

impl fmt::Display for Topology {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AllInOne => "all in one",
            Self::TwoProcesses => "two processes",
            Self::Gateway => "gateway",
        })
    }
}

/// Turns off, at a kubelet, what the older ones lack: the API server translates and ends tunnels then.
pub const NO_WEBSOCKETS: &[&str] = &["--feature-gates=ExtendWebSocketsToKubelet=false"];

/// What the processes of a lab are told besides.
#[derive(Clone, Copy, Debug, Default)]
pub struct Settings<'a> {
    /// Flags of the API server, or of the gateway.
    pub apiserver: &'a [&'a str],
    /// Flags of the API server behind a gateway.
    pub cluster: &'a [&'a str],
    /// Flags of the kubelet, if it is a process of its own.
    pub kubelet: &'a [&'a str],
    /// More YAML documents for the API server of two processes or behind a gateway.
    pub objects: &'a str,
}

/// A running demo, with a data directory of its own.
#[derive(Debug)]
pub struct Lab {
    pub topology: Topology,
    /// The one that clients talk to.
    pub apiserver: Process,
    pub kubelet: Option<Process>,
    pub kubeconfig: PathBuf,
    /// Of both processes: certificates, tokens, kubeconfigs.
    pub data: PathBuf,
    /// For files of the test. The "containers" are processes of this host, so they see it too.
    pub scratch: Scratch,
    /// Flags that every API server of this lab is given.
    pub always: Vec<OsString>,
    /// What is behind a gateway, besides the kubelet.
    pub behind: Option<Behind>,
}

impl Lab {
    pub async fn start(topology: Topology) -> Outcome<Self> {
        Self::start_with(topology, Settings::default()).await
    }

    /// In two processes the API server comes first and knows no Node; the kubelet registers it, and is ready then.
    pub async fn start_with(topology: Topology, settings: Settings<'_>) -> Outcome<Self> {
        if topology == Topology::Gateway {
            return Self::start_behind_gateway(settings).await;
        }
        let scratch = Scratch::new("lab");
        let data = scratch.dir("data");
        let mut always: Vec<OsString> = vec!["--data-dir".into(), data.clone().into()];
        if topology == Topology::TwoProcesses {
            let manifest = scratch.path().join("cluster.yaml");
            write(&manifest, &format!("{PODS}---\n{}", settings.objects))?;
            always.extend(["--manifest".into(), manifest.into()]);
        }
        let apiserver = start("apiserver", &always, settings.apiserver).await?;
        let kubeconfig = data.join("kubeconfig");
        let mut lab = Self { topology, apiserver, kubelet: None, kubeconfig, data, scratch, always, behind: None };
        if topology == Topology::TwoProcesses {
            lab.start_kubelet(settings.kubelet).await?;
        }
        Ok(lab)
    }

    /// Stops the API server, if it still runs, and starts one with these flags: at another port, with the same files, and
    /// without what it had in memory.
    pub async fn restart_apiserver(&mut self, flags: &[&str]) -> Outcome {
        self.apiserver.end().await?;
        self.apiserver = start("apiserver", &self.always, flags).await?;
        Ok(())
    }

    /// Stops the kubelet, and starts one with these flags. It registers again, and is ready then.
    pub async fn restart_kubelet(&mut self, flags: &[&str]) -> Outcome {
        if let Some(mut kubelet) = self.kubelet.take() {
            kubelet.end().await?;
        }
        self.start_kubelet(flags).await
    }

    /// One more kubelet with this lab's files. Give it a `--node-name` of its own; it is not stopped with the lab.
    pub async fn another_kubelet(&self, flags: &[&str]) -> Outcome<Process> {
        start("kubelet", &["--data-dir".into(), self.data.clone().into()], flags).await
    }

    async fn start_kubelet(&mut self, flags: &[&str]) -> Outcome {
        self.kubelet = Some(self.another_kubelet(flags).await?);
        Ok(())
    }

    /// Another API server, with the same files and other flags. It writes its own kubeconfigs over those that are there.
    pub async fn another_apiserver(&self, flags: &[&str]) -> Outcome<Process> {
        start("apiserver", &self.always, flags).await
    }

    /// The API server's log lines of sessions that have ended.
    pub fn sessions(&self) -> Vec<Session> {
        sessions_in(&self.apiserver.stderr.text())
    }

    /// The kubelet's log lines of sessions that have ended, if it is a process of its own.
    pub fn kubelet_sessions(&self) -> Vec<Session> {
        self.kubelet.as_ref().map_or_else(Vec::new, |kubelet| sessions_in(&kubelet.stderr.text()))
    }

    /// What the processes have logged, for a failure's report.
    pub fn logs(&self) -> String {
        let mut logs = format!("--- apiserver's stderr\n{}", tail(&self.apiserver.stderr.text()));
        if let Some(kubelet) = &self.kubelet {
            logs += &format!("--- kubelet's stderr\n{}", tail(&kubelet.stderr.text()));
        }
        if let Some(behind) = &self.behind {
            logs += &format!("--- stderr of the cluster's apiserver\n{}", tail(&behind.apiserver.stderr.text()));
        }
        logs
    }

    /// Drains: SIGTERM, and each process ends by itself with code 0.
    pub async fn stop(self) -> Outcome {
        let apiserver = self.apiserver.stop().await?;
        ensure!(apiserver.success(), "apiserver ended with {apiserver} on SIGTERM");
        if let Some(kubelet) = self.kubelet {
            let kubelet = kubelet.stop().await?;
            ensure!(kubelet.success(), "kubelet ended with {kubelet} on SIGTERM");
        }
        if let Some(behind) = self.behind {
            let behind = behind.apiserver.stop().await?;
            ensure!(behind.success(), "the cluster's apiserver ended with {behind} on SIGTERM");
        }
        Ok(())
    }
}

/// A session's line in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session(String);

/// The sessions that have ended, by a log.
pub fn sessions_in(log: &str) -> Vec<Session> {
    log.lines().filter(|line| line.contains("session ended")).map(Session::new).collect()
}

impl Session {
    fn new(line: &str) -> Self {
        Self(line.to_owned())
    }

    /// The value of a field, which is a word without blanks, quoted or not.
    pub fn field(&self, name: &str) -> Option<&str> {
        let mut words = self.0.split_whitespace();
        words.find_map(|word| Some(word.strip_prefix(name)?.strip_prefix('=')?.trim_matches('"')))
    }
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(60)..].iter().map(|line| format!("{line}\n")).collect()
}

pub(super) fn write(path: &Path, text: &str) -> Outcome {
    fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
}

/// Starts an example at a free port, and waits until it is ready.
pub(super) async fn start(name: &str, always: &[OsString], flags: &[&str]) -> Outcome<Process> {
    start_at(name, "127.0.0.1:0", always, flags).await
}

/// Starts an example at an address, and waits until it is ready.
pub(super) async fn start_at(name: &str, listen: &str, always: &[OsString], flags: &[&str]) -> Outcome<Process> {
    let mut command = example(name);
    let process = Process::start(name, command.args(["--listen", listen]).args(always).args(flags))?;
    process.ready().await?;
    Ok(process)
}

/// A built example's command. Log lines are read by tests, so they carry no colours.
pub fn example(name: &str) -> Command {
    let mut command = Command::new(example_path(name));
    command.env("NO_COLOR", "1").env_remove("RUST_LOG");
    command
}

/// A built example's program.
pub fn example_path(name: &str) -> PathBuf {
    examples().join(name)
}

/// The folder of the examples in this build's profile, built first: `cargo test --test NAME` alone does not build them.
fn examples() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let own = env::current_exe().expect("a test knows its own path");
        let profile = own.parent().and_then(Path::parent).expect("tests lie in target/PROFILE/deps");
        let name = profile.file_name().and_then(|name| name.to_str()).expect("a profile's folder has a name");
        let mut cargo = Cargo::new(env!("CARGO"));
        cargo.current_dir(env!("CARGO_MANIFEST_DIR")).args(["build", "--quiet", "--examples", "--all-features"]);
        cargo.arg("--profile").arg(if name == "debug" { "dev" } else { name });
        cargo.arg("--target-dir").arg(profile.parent().expect("a profile lies in target"));
        // What the outer cargo says about this package would make ring's build script run again, and with it half a build.
        for (name, _) in env::vars_os() {
            let text = name.to_string_lossy();
            if ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_CRATE_", "CARGO_BIN_"].iter().any(|own| text.starts_with(own)) {
                cargo.env_remove(&name);
            }
        }
        cargo.env_remove("LD_LIBRARY_PATH");
        let status = cargo.status().expect("cargo can be run");
        assert!(status.success(), "the examples do not build");
        profile.join("examples")
    })
}

/// The port in the first `127.0.0.1:PORT` of a text.
pub fn port_in(text: &str) -> Option<u16> {
    text.split("127.0.0.1:").skip(1).find_map(|rest| {
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().ok().filter(|port| *port != 0)
    })
}

/// [`PODS`], and the Node of a kubelet at that port, for a kubelet that does not register.
pub(super) fn cluster(kubelet_port: u16) -> String {
    format!(
        r#"apiVersion: v1
kind: Node
metadata: {{name: demo-node}}
status:
  addresses:
    - {{type: InternalIP, address: 127.0.0.1}}
  conditions:
    - {{type: Ready, status: "True", reason: KubeletReady}}
  daemonEndpoints:
    kubeletEndpoint: {{Port: {kubelet_port}}}
---
{PODS}"#
    )
}

/// The demo's Pod, and a second one that has no default container.
pub(super) const PODS: &str = "apiVersion: v1
kind: Pod
metadata:
  name: demo
  namespace: default
  annotations:
    kubectl.kubernetes.io/default-container: shell
spec:
  nodeName: demo-node
  containers:
    - {name: shell, image: this-host, command: [/bin/sh], stdin: true, tty: true}
    - {name: sidecar, image: this-host, command: [/bin/sh, -c, 'true']}
status:
  phase: Running
---
apiVersion: v1
kind: Pod
metadata:
  name: several
  namespace: default
spec:
  nodeName: demo-node
  containers:
    - {name: first, image: this-host, command: [/bin/sh]}
    - {name: second, image: this-host, command: [/bin/sh]}
status:
  phase: Running
";
