//! What a kubelet says of a Pod and its containers: a Pod's `status`.
//!
//! Upstream: `getPhase` in `pkg/kubelet/kubelet_pods.go`, `convertContainerStatusToRuntimeStatus` beside it.

use serde_json::{Value, json};
use time::OffsetDateTime;

use super::{cri, objects::timestamp, restarts::Policy};

/// Longest message of a runtime that is passed on, in bytes: upstream's for a termination message.
const MESSAGE: usize = 4096;

/// What is known of one container.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    pub name: String,
    pub image: String,
    pub image_id: String,
    /// The latest container of that name, running or not; empty where there is none.
    pub id: String,
    pub restarts: u32,
    pub state: State,
    /// Reason and message, while it is to be started again.
    pub waiting: Option<(&'static str, String)>,
    /// How the one before it ended.
    pub last: Option<Ended>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum State {
    /// Since then, in nanoseconds since 1970.
    Running(i64),
    Ended(Ended),
}

#[derive(Clone, Debug, PartialEq)]
pub struct Ended {
    pub id: String,
    pub code: i32,
    pub reason: String,
    pub message: String,
    /// Nanoseconds since 1970; 0 is unknown.
    pub started: i64,
    pub finished: i64,
}

impl Ended {
    /// As the runtime tells it.
    pub fn new(id: &str, status: cri::ContainerStatus) -> Self {
        let cri::ContainerStatus { started_at, finished_at, exit_code, reason, message, .. } = status;
        Self {
            id: id.to_owned(),
            code: exit_code,
            reason: shortened(reason),
            message: shortened(message),
            started: started_at,
            finished: finished_at,
        }
    }

    /// The runtime does not know how it ended. Upstream's words and code.
    pub fn unknown(id: &str) -> Self {
        Self {
            id: id.to_owned(),
            code: 137,
            reason: "ContainerStatusUnknown".to_owned(),
            message: "The container could not be located when the pod was terminated".to_owned(),
            started: 0,
            finished: 0,
        }
    }

    fn json(&self, runtime: &str) -> Value {
        json!({ "terminated": {
            "exitCode": self.code, "reason": self.reason, "message": self.message,
            "startedAt": at(self.started), "finishedAt": at(self.finished),
            "containerID": format!("{runtime}://{}", self.id),
        } })
    }
}

pub fn shortened(mut text: String) -> String {
    let end = (0..=MESSAGE.min(text.len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    text.truncate(end);
    text
}

/// A Pod's `status`. `runtime` is the runtime's name.
pub fn status(policy: Policy, containers: &[Seen], runtime: &str, started: &str) -> Value {
    let phase = phase(policy, containers);
    let ready = containers.iter().all(|container| container.runs());
    let reason = match phase {
        _ if ready => Value::Null,
        "Succeeded" => "PodCompleted".into(),
        "Failed" => "PodFailed".into(),
        _ => "ContainersNotReady".into(),
    };
    let condition = |kind: &str| {
        let status = if ready { "True" } else { "False" };
        json!({ "type": kind, "status": status, "reason": reason })
    };
    json!({
        "phase": phase,
        "conditions": [condition("Ready"), condition("ContainersReady")],
        "startTime": started,
        "containerStatuses": containers.iter().map(|container| container.json(runtime)).collect::<Vec<_>>(),
    })
}

fn phase(policy: Policy, containers: &[Seen]) -> &'static str {
    let ended = |container: &Seen| match &container.state {
        State::Ended(ended) => Some(ended.code),
        State::Running(_) => None,
    };
    if containers.iter().any(|container| ended(container).is_none_or(|code| policy.restarts(code))) {
        return "Running";
    }
    if containers.iter().all(|container| ended(container) == Some(0)) { "Succeeded" } else { "Failed" }
}

impl Seen {
    fn runs(&self) -> bool {
        matches!(self.state, State::Running(_))
    }

    fn json(&self, runtime: &str) -> Value {
        let last = self.last.as_ref().map_or(json!({}), |last| last.json(runtime));
        let (state, last) = match (&self.waiting, &self.state) {
            (_, State::Running(since)) => (json!({ "running": { "startedAt": at(*since) } }), last),
            (None, State::Ended(ended)) => (ended.json(runtime), last),
            (Some((reason, message)), State::Ended(ended)) => {
                (json!({ "waiting": { "reason": reason, "message": message } }), ended.json(runtime))
            }
        };
        json!({
            "name": self.name, "image": self.image, "imageID": self.image_id,
            "containerID": format!("{runtime}://{}", self.id),
            "ready": self.runs(), "started": self.runs(), "restartCount": self.restarts,
            "state": state, "lastState": last,
        })
    }
}

/// `null` where there is no such time, as Kubernetes writes it.
fn at(nanoseconds: i64) -> Value {
    let time = OffsetDateTime::from_unix_timestamp_nanos(nanoseconds.into());
    time.ok().filter(|_| nanoseconds > 0).map_or(Value::Null, |time| timestamp(time).into())
}
