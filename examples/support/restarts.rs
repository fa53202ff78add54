//! Whether and when a container that has ended is started again.
//!
//! Upstream: `ShouldContainerBeRestarted` in `pkg/kubelet/container/helpers.go`, `doBackOff` in
//! `pkg/kubelet/kuberuntime/kuberuntime_manager.go`, and `client-go/util/flowcontrol/backoff.go`.

use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use super::{Error, objects::text};

/// The first delay. The first start after an end has none.
const FIRST: Duration = Duration::from_secs(10);
/// The delay doubles up to here.
const LONGEST: Duration = Duration::from_secs(300);
/// A container that ran for so long begins anew.
const FORGOTTEN: Duration = Duration::from_secs(2 * 300);

/// A Pod's `restartPolicy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    Always,
    OnFailure,
    Never,
}

impl Policy {
    pub fn of(pod: &Value) -> Result<Self, Error> {
        match text(pod, "/spec/restartPolicy") {
            None | Some("Always") => Ok(Self::Always),
            Some("OnFailure") => Ok(Self::OnFailure),
            Some("Never") => Ok(Self::Never),
            Some(other) => Err(format!("restartPolicy {other:?} is none of Always, OnFailure and Never").into()),
        }
    }

    /// Whether a container that ended so is started again.
    pub fn restarts(self, exit_code: i32) -> bool {
        match self {
            Self::Always => true,
            Self::OnFailure => exit_code != 0,
            Self::Never => false,
        }
    }
}

/// How long one container is waited for. The clock is ours: what a runtime says of its times may be anything.
#[derive(Debug, Default)]
pub struct BackOff {
    /// The delay, and when the container was started with it.
    given: Option<(Duration, Instant)>,
}

impl BackOff {
    /// `Ok`: the container that ended at `ended` is to be started now, which counts. `Err`: the delay that is not over.
    pub fn start(&mut self, ended: Instant, now: Instant) -> Result<(), Duration> {
        let given = self.given.filter(|(_, started)| ended.saturating_duration_since(*started) <= FORGOTTEN);
        let next = match given {
            Some((delay, _)) if now.saturating_duration_since(ended) < delay => return Err(delay),
            Some((delay, _)) => (delay * 2).min(LONGEST),
            None => FIRST,
        };
        self.given = Some((next, now));
        Ok(())
    }
}
