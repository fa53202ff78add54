//! A running `kubectl exec -i … cat`.

use std::{process::Stdio, time::Duration};

use tokio::{io::AsyncWriteExt, process::Command, time::timeout};

use super::{Outcome, process::Written};
use crate::ensure;

/// For what takes a moment.
const PATIENCE: Duration = Duration::from_secs(20);

/// Says what it is told. Dropping it kills kubectl.
pub struct Shell {
    kubectl: tokio::process::Child,
    stdout: Written,
    stderr: Written,
}

impl Shell {
    pub fn start(command: &mut Command) -> Outcome<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut kubectl = command.spawn().map_err(|error| error.to_string())?;
        let stdout = Written::collect(kubectl.stdout.take().expect("stdout is piped"));
        let stderr = Written::collect(kubectl.stderr.take().expect("stderr is piped"));
        Ok(Self { kubectl, stdout, stderr })
    }

    /// Its session lives: what goes in comes out.
    pub async fn answers(&mut self, to: usize) -> Outcome {
        let lines = self.stdout.text().lines().count();
        let line = format!("line {to}, the {lines}th\n");
        let stdin = self.kubectl.stdin.as_mut().expect("stdin is piped");
        stdin.write_all(line.as_bytes()).await.map_err(|error| error.to_string())?;
        let echoed = self.stdout.until(PATIENCE, "the echo", |text| text.ends_with(&line)).await;
        echoed.map_err(|why| format!("{why}; on stderr: {}", self.stderr.text()))?;
        Ok(())
    }

    /// Waits until it either echoes or has ended, with an error and a reason: whether it lives.
    pub async fn outlives(&mut self) -> Outcome<bool> {
        let line = format!("still there, after {} lines\n", self.stdout.text().lines().count());
        let stdin = self.kubectl.stdin.as_mut().expect("stdin is piped");
        // Where it has ended, its exit tells.
        let _ = stdin.write_all(line.as_bytes()).await;
        let ended = tokio::select! {
            ended = timeout(PATIENCE, self.kubectl.wait()) => ended,
            echoed = self.stdout.until(PATIENCE, "the echo", |text| text.ends_with(&line)) => {
                if echoed.is_ok() {
                    return Ok(true);
                }
                // Its output has ended, so its exit is near.
                timeout(PATIENCE, self.kubectl.wait()).await
            }
        };
        let status = ended.map_err(|_| "it neither echoes nor ends")?.map_err(|error| error.to_string())?;
        let why = self.stderr.until(PATIENCE, "a reason", |text| !text.trim().is_empty()).await?;
        ensure!(status.code().is_some_and(|code| code != 0), "kubectl ended with {status}: {why}");
        Ok(false)
    }

    /// Ends it as a user does.
    pub async fn exits(mut self) -> Outcome {
        drop(self.kubectl.stdin.take());
        let status = timeout(PATIENCE, self.kubectl.wait()).await.map_err(|_| "kubectl still runs")?;
        ensure!(status.is_ok_and(|status| status.success()), "kubectl failed: {}", self.stderr.text());
        Ok(())
    }
}
