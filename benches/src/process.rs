//! A child process of this very program, and what it has used.

use std::{
    fs,
    io::{BufRead, BufReader},
    net::SocketAddr,
    process::{Child, Command, Stdio},
    time::Duration,
};

use crate::Result;

/// A peer that listens. Killed when dropped.
#[derive(Debug)]
pub(crate) struct Peer {
    child: Child,
    pub(crate) addr: SocketAddr,
}

impl Peer {
    pub(crate) fn start(arguments: &[&str]) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().ok_or("no stdout")?).read_line(&mut line)?;
        let addr = line.trim().parse().map_err(|_| format!("{arguments:?} did not start"))?;
        Ok(Self { child, addr })
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// CPU time of all its threads so far. Peers end no thread while they are measured.
    ///
    /// `schedstat` counts nanoseconds; where the kernel has none, `stat` counts ticks of 10 ms.
    pub(crate) fn cpu(&self) -> Result<Duration> {
        let pid = self.child.id();
        let mut nanos = 0;
        for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
            match fs::read_to_string(thread?.path().join("schedstat")) {
                Ok(line) => nanos += first_number(&line)?,
                Err(_) => return self.ticks(),
            }
        }
        Ok(Duration::from_nanos(nanos))
    }

    fn ticks(&self) -> Result<Duration> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        // The name in parentheses may hold anything.
        let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        let time: u64 = fields.split_whitespace().skip(11).take(2).map(|ticks| ticks.parse().unwrap_or(0)).sum();
        Ok(Duration::from_millis(time * 10))
    }

    /// Resident memory in bytes.
    pub(crate) fn rss(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
        Ok(first_number(line)? * 1024)
    }
}

fn first_number(line: &str) -> Result<u64> {
    Ok(line.split_whitespace().next().unwrap_or_default().parse()?)
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
