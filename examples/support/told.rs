//! A task of a kubelet's that is repeated for ever: how long to wait, and what to say of failures.

use std::time::Duration;

use super::Error;

/// Between two tries.
const RETRY: Duration = Duration::from_secs(1);

/// What has been said of the last try. A failure is a warning, once until it goes away or its reason changes.
#[derive(Debug)]
pub struct Told {
    what: &'static str,
    failure: Option<String>,
}

impl Told {
    pub fn new(what: &'static str) -> Self {
        Self { what, failure: None }
    }

    /// Says it, and returns the time to wait: `period`, or less after a failure.
    pub fn wait(&mut self, result: Result<(), Error>, period: Duration) -> Duration {
        let failure = result.err().map(|error| error.to_string());
        if failure != self.failure {
            match &failure {
                Some(error) => tracing::warn!(error, "{} failed; trying again", self.what),
                None => tracing::info!("{} works again", self.what),
            }
            self.failure = failure;
        }
        if self.failure.is_some() { RETRY } else { period }
    }
}
