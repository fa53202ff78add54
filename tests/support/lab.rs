//! The examples, built and started: all in one process, or API server and kubelet apart.

use std::{
    env, fmt, fs,
    path::{Path, PathBuf},
    process::Command as Cargo,
    sync::OnceLock,
};

use tokio::process::Command;

use super::{Outcome, Scratch, process::Process};
use crate::ensure;

/// How the stack is spread over processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topology {
    /// `apiserver` alone: API server, kubelet and runtime in one process.
    AllInOne,
    /// `apiserver` and `kubelet`, with TLS between them.
    TwoProcesses,
}

impl fmt::Display for Topology {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AllInOne => "all in one",
            Self::TwoProcesses => "two processes",
        })
    }
}

/// A running demo, with a data directory of its own.
#[derive(Debug)]
pub struct Lab {
    pub topology: Topology,
    pub apiserver: Process,
    pub kubelet: Option<Process>,
    pub kubeconfig: PathBuf,
    /// For files of the test. The "containers" are processes of this host, so they see it too.
    pub scratch: Scratch,
}

impl Lab {
    pub async fn start(topology: Topology) -> Outcome<Self> {
        Self::start_with(topology, &[]).await
    }

    /// With flags for the kubelet, if it is a process of its own.
    pub async fn start_with(topology: Topology, kubelet_flags: &[&str]) -> Outcome<Self> {
        let scratch = Scratch::new("lab");
        let data = scratch.dir("data");
        let (apiserver, kubelet) = match topology {
            Topology::AllInOne => (apiserver(&data, None)?, None),
            Topology::TwoProcesses => {
                // The API server makes the CA, the kubelet needs it to start, and the API server needs to know the
                // kubelet's port. So: CA first, from an API server that is stopped again.
                let empty = scratch.path().join("empty.yaml");
                write(&empty, "")?;
                let first = apiserver(&data, Some(&empty))?;
                first.ready().await?;
                let status = first.stop().await?;
                ensure!(status.success(), "an idle apiserver ended with {status} on SIGTERM");
                let kubelet = kubelet(&data, kubelet_flags)?;
                kubelet.ready().await?;
                let said = kubelet.stdout.text();
                let port = port_in(&said).ok_or_else(|| format!("kubelet's stdout names no port:\n{said}"))?;
                let manifest = scratch.path().join("cluster.yaml");
                write(&manifest, &cluster(port))?;
                (apiserver(&data, Some(&manifest))?, Some(kubelet))
            }
        };
        apiserver.ready().await?;
        Ok(Self { topology, apiserver, kubelet, kubeconfig: data.join("kubeconfig"), scratch })
    }

    /// The API server's log lines of sessions that have ended.
    pub fn sessions(&self) -> Vec<Session> {
        sessions_in(&self.apiserver.stderr.text())
    }

    /// What the processes have logged, for a failure's report.
    pub fn logs(&self) -> String {
        let mut logs = format!("--- apiserver's stderr\n{}", tail(&self.apiserver.stderr.text()));
        if let Some(kubelet) = &self.kubelet {
            logs += &format!("--- kubelet's stderr\n{}", tail(&kubelet.stderr.text()));
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

    /// The value of a field, which is a word without blanks.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.0.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
    }
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(60)..].iter().map(|line| format!("{line}\n")).collect()
}

pub(super) fn write(path: &Path, text: &str) -> Outcome {
    fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
}

fn apiserver(data: &Path, manifest: Option<&Path>) -> Outcome<Process> {
    let mut command = example("apiserver");
    command.arg("--listen").arg("127.0.0.1:0").arg("--data-dir").arg(data);
    if let Some(manifest) = manifest {
        command.arg("--manifest").arg(manifest);
    }
    Process::start("apiserver", &mut command)
}

fn kubelet(data: &Path, flags: &[&str]) -> Outcome<Process> {
    let mut command = example("kubelet");
    Process::start("kubelet", command.arg("--listen").arg("127.0.0.1:0").arg("--data-dir").arg(data).args(flags))
}

/// A built example's command. Log lines are read by tests, so they carry no colours.
pub fn example(name: &str) -> Command {
    let mut command = Command::new(examples().join(name));
    command.env("NO_COLOR", "1").env_remove("RUST_LOG");
    command
}

/// The folder of the examples in this build's profile, built first: `cargo test --test NAME` alone does not build them.
fn examples() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let own = env::current_exe().expect("a test knows its own path");
        let profile = own.parent().and_then(Path::parent).expect("tests lie in target/PROFILE/deps");
        let name = profile.file_name().and_then(|name| name.to_str()).expect("a profile's folder has a name");
        let mut cargo = Cargo::new(env!("CARGO"));
        // A test's own package must not be seen: ring's build script reruns when these change, and with it half a build.
        let own = |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
        env::vars_os().filter(|(name, _)| name.to_str().is_some_and(own)).for_each(|(name, _)| {
            cargo.env_remove(name);
        });
        cargo.current_dir(env!("CARGO_MANIFEST_DIR")).args(["build", "--quiet", "--examples", "--all-features"]);
        cargo.arg("--profile").arg(if name == "debug" { "dev" } else { name });
        cargo.arg("--target-dir").arg(profile.parent().expect("a profile lies in target"));
        // What the outer cargo says about this package would make build scripts run again, and rebuild what hangs on them.
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
pub(super) fn port_in(text: &str) -> Option<u16> {
    text.split("127.0.0.1:").skip(1).find_map(|rest| {
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().ok().filter(|port| *port != 0)
    })
}

/// The demo's objects with the kubelet's real port, and a second Pod that has no default container.
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
apiVersion: v1
kind: Pod
metadata:
  name: demo
  namespace: default
  annotations:
    kubectl.kubernetes.io/default-container: shell
spec:
  nodeName: demo-node
  containers:
    - {{name: shell, image: this-host, command: [/bin/sh], stdin: true, tty: true}}
    - {{name: sidecar, image: this-host, command: [/bin/sh, -c, "true"]}}
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
    - {{name: first, image: this-host, command: [/bin/sh]}}
    - {{name: second, image: this-host, command: [/bin/sh]}}
status:
  phase: Running
"#
    )
}
