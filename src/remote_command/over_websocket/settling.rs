//! How long a v5 client is told nothing.

use std::time::Duration;

use http::{HeaderMap, HeaderValue, header::USER_AGENT};

/// What a v5 client has to create its streams in, behind its `101`: client-go before 1.34 throws away what comes before
/// (2f016580e), and programs on it call themselves anything.
const SETTLING: Duration = Duration::from_millis(25);

/// The first minor version of kubectl that creates its streams before it reads.
const CURED: u32 = 34;

/// How long the client that sent these headers is told nothing, unless it speaks. Nothing for a kubectl that needs it
/// not: waiting costs it 25 ms, and the server a cold wake-up, as much CPU as half a short command.
pub(crate) fn settling(headers: &HeaderMap) -> Duration {
    let agent = headers.get(USER_AGENT).map_or(Ok(""), HeaderValue::to_str).unwrap_or("");
    if kubectl(agent).is_some_and(|minor| minor >= CURED) { Duration::ZERO } else { SETTLING }
}

/// The minor version, if that is what kubectl calls itself: `kubectl/v1.37.0 (linux/amd64) kubernetes/0123abc`.
fn kubectl(agent: &str) -> Option<u32> {
    let (name, version) = agent.split(' ').next()?.split_once('/')?;
    let minor = version.strip_prefix("v1.")?.split('.').next()?;
    matches!(name, "kubectl" | "kubectl.exe").then(|| minor.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(agent: &'static str) -> Duration {
        settling(&HeaderMap::from_iter([(USER_AGENT, HeaderValue::from_static(agent))]))
    }

    #[test]
    fn a_kubectl_that_creates_its_streams_first_is_not_made_to_wait() {
        assert_eq!(of("kubectl/v1.34.0 (linux/amd64) kubernetes/f28b4c9"), Duration::ZERO);
        assert_eq!(of("kubectl.exe/v1.37.2 (windows/amd64) kubernetes/f28b4c9"), Duration::ZERO);
        assert_eq!(of("kubectl/v1.100.0-alpha.1+0 (linux/amd64)"), Duration::ZERO);
    }

    #[test]
    fn everybody_else_is_waited_for() {
        assert_eq!(settling(&HeaderMap::new()), SETTLING);
        for agent in ["", "kubectl/v1.33.9 (linux/amd64)", "kubectl", "kubectl/v1.", "kubectl/v2.0.0", "k9s/v1.40.0"] {
            assert_eq!(of(agent), SETTLING, "{agent}");
        }
        assert_eq!(of("kubectl-plugin/v1.40.0 (linux/amd64) kubernetes/f28b4c9"), SETTLING);
    }
}
