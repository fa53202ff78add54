//! A child process whose output can be waited for, and that dies with its handle.

use std::{process::ExitStatus, process::Stdio, time::Duration};

use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::{Child, Command},
    sync::watch,
    time::timeout,
};

use super::Outcome;

/// What a process has written so far.
#[derive(Clone, Debug)]
pub struct Written(watch::Receiver<String>);

impl Written {
    pub fn collect(mut from: impl AsyncRead + Unpin + Send + 'static) -> Self {
        let (sender, receiver) = watch::channel(String::new());
        tokio::spawn(async move {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = from.read(&mut buffer).await {
                sender.send_modify(|text| text.push_str(&String::from_utf8_lossy(&buffer[..length])));
            }
        });
        Self(receiver)
    }

    pub fn text(&self) -> String {
        self.0.borrow().clone()
    }

    /// Waits until all of it has come; not for ever, as a child that lives on may hold it open.
    async fn whole(&self) {
        let mut receiver = self.0.clone();
        let all = async { while receiver.changed().await.is_ok() {} };
        let _ = timeout(Duration::from_secs(1), all).await;
    }

    /// Waits until `holds` is true of all that was written.
    pub async fn until(&self, limit: Duration, what: &str, holds: impl Fn(&str) -> bool) -> Outcome<String> {
        let mut receiver = self.0.clone();
        let why = match timeout(limit, receiver.wait_for(|text| holds(text))).await {
            Ok(Ok(text)) => return Ok(text.clone()),
            Ok(Err(_)) => "the output ended",
            Err(_) => "time ran out",
        };
        Err(format!("{why} before {what}; written so far:\n{}", self.text()))
    }
}

/// A running process. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    pub stdout: Written,
    pub stderr: Written,
}

impl Process {
    pub fn start(name: &str, command: &mut Command) -> Outcome<Self> {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| format!("{name}: {error}"))?;
        let stdout = Written::collect(child.stdout.take().expect("stdout is piped"));
        let stderr = Written::collect(child.stderr.take().expect("stderr is piped"));
        Ok(Self { name: name.to_owned(), child, stdout, stderr })
    }

    /// Its number, while it runs.
    pub fn id(&self) -> u32 {
        self.child.id().expect("it is not waited for before it is stopped")
    }

    /// Waits for the line `ready` on stdout.
    pub async fn ready(&self) -> Outcome {
        let ready = |text: &str| text.lines().any(|line| line.trim() == "ready");
        self.stdout
            .until(Duration::from_secs(30), "`ready`", ready)
            .await
            .map_err(|why| format!("{}: {why}\nstderr:\n{}", self.name, self.stderr.text()))?;
        Ok(())
    }

    /// Sends SIGTERM and waits for the exit, which a drain must reach within 30 s.
    pub async fn stop(self) -> Outcome<ExitStatus> {
        signal(&self.child, Signal::TERM);
        self.ended().await
    }

    /// As Ctrl-C in its terminal.
    pub async fn interrupt(self) -> Outcome<ExitStatus> {
        signal(&self.child, Signal::INT);
        self.ended().await
    }

    /// Waits for an exit that something else has brought about.
    pub async fn ended(mut self) -> Outcome<ExitStatus> {
        match timeout(Duration::from_secs(35), self.child.wait()).await {
            Ok(status) => {
                // What it wrote last is read by a task.
                tokio::join!(self.stdout.whole(), self.stderr.whole());
                status.map_err(|error| format!("{}: {error}", self.name))
            }
            Err(_) => Err(format!("{}: still there after 35 s\nstderr:\n{}", self.name, self.stderr.text())),
        }
    }

    /// Stops it with SIGTERM, if it runs; a drain must end it with code 0 then.
    pub async fn end(&mut self) -> Outcome {
        if !self.runs() {
            return Ok(());
        }
        signal(&self.child, Signal::TERM);
        match timeout(Duration::from_secs(35), self.child.wait()).await {
            Ok(Ok(status)) if status.success() => Ok(()),
            ended => Err(format!("{}: {ended:?} after SIGTERM\nstderr:\n{}", self.name, self.stderr.text())),
        }
    }

    /// Kills it, as a machine that loses its power.
    pub async fn kill(&mut self) -> Outcome {
        self.child.kill().await.map_err(|error| format!("{}: {error}", self.name))
    }

    /// Whether it runs.
    pub fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }
}

/// Sends a signal to this very child, if it still runs.
pub fn signal(child: &Child, signal: Signal) {
    if let Some(pid) = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)) {
        let _ = kill_process(pid, signal);
    }
}
