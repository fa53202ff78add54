//! A running `kubectl port-forward`.

use std::{collections::HashMap, process::ExitStatus, time::Duration};

use tokio::process::Command;

use super::{
    Outcome,
    kubectl::Run,
    process::{Process, Written},
};

/// `kubectl port-forward`, ready. Dropping it kills it.
#[derive(Debug)]
pub struct Forward {
    kubectl: Process,
    local: HashMap<u16, u16>,
}

impl Forward {
    /// Forwards a free local port to each of the demo Pod's `ports`.
    pub async fn start(run: &Run<'_>, ports: &[u16]) -> Outcome<Self> {
        let specs: Vec<String> = ports.iter().map(|port| format!("0:{port}")).collect();
        let mut args = vec!["port-forward", "pod/demo"];
        args.extend(specs.iter().map(String::as_str));
        Self::spawn(&mut run.command(&args), ports).await
    }

    /// Starts a command that forwards to `ports`.
    pub async fn spawn(command: &mut Command, ports: &[u16]) -> Outcome<Self> {
        let kubectl = Process::start("kubectl", command)?;
        let all = |text: &str| ports.iter().all(|port| local_ports(text).contains_key(port));
        let said = kubectl.stdout.until(Duration::from_secs(30), "the forwarded ports", all).await;
        let said = said.map_err(|why| format!("{why}; on stderr: {}", kubectl.stderr.text()))?;
        Ok(Self { kubectl, local: local_ports(&said) })
    }

    /// The local port that leads to `port` of the Pod.
    pub fn to(&self, port: u16) -> u16 {
        self.local[&port]
    }

    /// What kubectl complains of.
    pub fn stderr(&self) -> &Written {
        &self.kubectl.stderr
    }

    /// Whether kubectl still runs.
    pub fn runs(&mut self) -> bool {
        self.kubectl.runs()
    }

    /// Ends it as a user does. Returns what it complained of.
    pub async fn stop(self) -> Outcome<String> {
        let stderr = self.kubectl.stderr.clone();
        let status = self.kubectl.interrupt().await?;
        match status.code() {
            Some(0) => Ok(stderr.text()),
            _ => Err(format!("kubectl ended with {status} on Ctrl-C: {}", stderr.text())),
        }
    }

    /// Waits until it ends by itself.
    pub async fn ended(self) -> Outcome<ExitStatus> {
        self.kubectl.ended().await
    }
}

/// Remote ports and the IPv4 ports of this host that lead there: `Forwarding from 127.0.0.1:40001 -> 80`.
fn local_ports(text: &str) -> HashMap<u16, u16> {
    let lines = text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
    let pairs = lines.filter_map(|line| line.strip_prefix("Forwarding from 127.0.0.1:")?.split_once(" -> "));
    pairs.filter_map(|(local, remote)| Some((remote.trim().parse().ok()?, local.parse().ok()?))).collect()
}
