//! Counts streams for Prometheus: [`Record`] over atomics, rendered as text.
//!
//! Each [`StreamingMetrics`] has the names of one server. The KEP's and upstream's are both there, and what neither has:
//!
//! | API server | labels | counts |
//! |---|---|---|
//! | `num_ws_remote_command_v5_total` | `type` | KEP: attempts over WebSocket v5; `success` got a `101`, all else is `failure` |
//! | `num_ws_port_forward_v2_total` | `type` | KEP: attempts in a tunnel, likewise |
//! | `apiserver_stream_translator_requests_total` | `code` | translated: the refusal's code, or at the session's end 200 or 500 |
//! | `apiserver_stream_tunnel_requests_total` | `code` | tunnelled: the answer's code, 101 included; a failed dial is 502 |
//! | `apiserver_websocket_streaming_requests_total` | `subresource`, `proxy_type` | WebSocket requests that were routed; upstream's counts SPDY too |
//!
//! | kubelet | labels | counts |
//! |---|---|---|
//! | `kubelet_streaming_websocket_requests_total` | `subresource`, `result` | KEP: all WebSocket requests |
//! | `kubelet_websocket_streaming_requests_total` | `subresource` | v5 and tunnel requests that the kubelet served or adapted itself |
//!
//! | both, as `apiserver_…` and `kubelet_…` | labels | counts |
//! |---|---|---|
//! | `streaming_active_connections` | `subresource`, `proxy_type` | KEP, of the API server: sessions that live now |
//! | `streaming_sessions_ended_total` | `subresource`, `proxy_type`, `end` | sessions that have ended; a drain and a cut are `error` |
//! | `streaming_session_duration_seconds` | `proxy_type` | from the `101` to the end |
//! | `streaming_close_causes_total` | `cause` | sessions that have ended, by their [`Cause`] |
//! | `streaming_bytes_total` | `subresource`, `stream`, `direction` | bytes from (`in`) and to (`out`) clients, added when a session ends; `carried` passed unread, what frames take included |
//! | `streaming_synthetic_check_decisions_total` | `subresource`, `decision` | the check for `create`: `allow`, `deny`, `no_opinion`, `error` |
//! | `streaming_upgrade_duration_seconds` | `subresource`, `result` | from the request to its answer, waited for or not |
//! | `streaming_refused_requests_total` | `subresource`, `code` | answers other than 101 |
//!
//! `proxy_type` is the KEP's: `translated_or_tunneled` here, or `proxied`, which is all that goes on or is served as it
//! came. A code without a value of its own counts as `other`, a client that went before its answer as 499. All series
//! are there from the start, 301 for an API server and 270 for a kubelet, and no label takes a value from a request.
//!
//! `deploy/prometheus` in the repository has recording and alert rules for the KEP's two objectives.
//!
//! ```
//! use std::sync::Arc;
//! use tower_kube_streaming::{
//!     adapters::prometheus::StreamingMetrics,
//!     layers::{MetricsLayer, danger::PermitAllLayer},
//!     services::{Kubelet, StreamingServer},
//!     upgrade::Sessions,
//! };
//! # fn stack(runtime: impl tower_kube_streaming::runtime::Runtime) {
//!
//! let metrics = Arc::new(StreamingMetrics::kubelet());
//! let authorize = (MetricsLayer::new(Arc::clone(&metrics)), PermitAllLayer);
//! let kubelet = Kubelet::new(Sessions::new(), authorize, StreamingServer::new(runtime));
//! // What `/metrics` answers.
//! assert!(metrics.render().contains("kubelet_streaming_active_connections{subresource=\"exec\""));
//! # let _ = kubelet; }
//! ```

mod own;
mod table;
#[cfg(test)]
mod tests;

use std::time::Duration;

use self::{
    own::{ApiServer, Kubelet, Own},
    table::{Histogram, Label, Table},
};
use crate::{
    layers::{
        Record,
        metrics::{Answer, Stream},
        synthetic_authz::Verdict,
    },
    upgrade::{Cause, End, Report, Route, Subresource},
};

/// The `Content-Type` of [`StreamingMetrics::render`].
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

const SUBRESOURCE: Label = ("subresource", &["exec", "attach", "portforward"]);
const PROXY_TYPE: Label = ("proxy_type", &["proxied", "translated_or_tunneled"]);
const RESULT: Label = ("result", &["success", "failure"]);
const END: Label = ("end", &["success", "exit_code", "client_gone", "carried", "error"]);
const STREAM: Label = ("stream", &["stdin", "stdout", "stderr", "data", "carried"]);
const DIRECTION: Label = ("direction", &["in", "out"]);
const DECISION: Label = ("decision", &["allow", "deny", "no_opinion", "error"]);
const CAUSE: Label = ("cause", &{
    let mut words = [""; Cause::ALL.len()];
    let mut at = 0;
    while at < words.len() {
        words[at] = Cause::ALL[at].as_str();
        at += 1;
    }
    words
});
/// The last one stands for all others: what a next hop answers must not make series.
const CODE: Label = (
    "code",
    &["101", "200", "400", "401", "403", "404", "405", "414", "429", "499", "500", "502", "503", "504", "other"],
);

/// Seconds. Most commands take less than one, a shell takes minutes, and four hours are the idle limit.
const SESSION_SECONDS: &[f64] = &[0.1, 0.5, 1.0, 5.0, 30.0, 60.0, 300.0, 1800.0, 3600.0, 14_400.0];
/// Seconds. A next hop is given 30 to be dialled, and 30 to answer.
const UPGRADE_SECONDS: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

/// Counts the streams of one server. See the [module docs](self).
#[derive(Debug)]
pub struct StreamingMetrics {
    own: Own,
    active: Table,
    ended: Table,
    causes: Table,
    bytes: Table,
    checks: Table,
    refused: Table,
    lasted: Histogram,
    upgrades: Histogram,
}

impl StreamingMetrics {
    /// Counts under the names of an API server.
    #[must_use]
    pub fn api_server() -> Self {
        Self::new("apiserver", Own::ApiServer(ApiServer::new().into()))
    }

    /// Counts under the names of a kubelet.
    #[must_use]
    pub fn kubelet() -> Self {
        Self::new("kubelet", Own::Kubelet(Kubelet::new().into()))
    }

    fn new(server: &str, own: Own) -> Self {
        let name = |rest: &str| format!("{server}_streaming_{rest}");
        Self {
            own,
            active: Table::gauge(
                name("active_connections"),
                "Gauge of active streaming connections, to distinguish between those that are proxied and those that are \
                 translated or tunneled here.",
                &[SUBRESOURCE, PROXY_TYPE],
            ),
            ended: Table::counter(
                name("sessions_ended_total"),
                "Streaming sessions that have ended, by how they did.",
                &[SUBRESOURCE, PROXY_TYPE, END],
            ),
            causes: Table::counter(
                name("close_causes_total"),
                "Streaming sessions that have ended, by why they did.",
                &[CAUSE],
            ),
            bytes: Table::counter(
                name("bytes_total"),
                "Bytes of streaming sessions that have ended, from (in) and to (out) clients; carried passed unread.",
                &[SUBRESOURCE, STREAM, DIRECTION],
            ),
            checks: Table::counter(
                name("synthetic_check_decisions_total"),
                "Decisions of the synthetic check for create, which is asked where the request's own verb is another.",
                &[SUBRESOURCE, DECISION],
            ),
            refused: Table::counter(
                name("refused_requests_total"),
                "Streaming requests that were answered otherwise than with 101.",
                &[SUBRESOURCE, CODE],
            ),
            lasted: Histogram::new(
                name("session_duration_seconds"),
                "How long streaming sessions lasted, from their 101 on.",
                &[PROXY_TYPE],
                SESSION_SECONDS,
            ),
            upgrades: Histogram::new(
                name("upgrade_duration_seconds"),
                "How long streaming requests waited for their answer; success is a 101.",
                &[SUBRESOURCE, RESULT],
                UPGRADE_SECONDS,
            ),
        }
    }

    /// All series in Prometheus' text format, 0.0.4.
    ///
    /// Of two servers in one process append the one's to the other's: no name is common to both.
    #[must_use]
    pub fn render(&self) -> String {
        let mut text = String::new();
        let common = [&self.active, &self.ended, &self.causes, &self.bytes, &self.refused, &self.checks];
        for table in self.own.tables().into_iter().chain(common) {
            table.render(&mut text);
        }
        self.lasted.render(&mut text);
        self.upgrades.render(&mut text);
        text
    }
}

impl Record for StreamingMetrics {
    fn answered(&self, stream: Stream, answer: Answer, latency: Duration) {
        let subresource = stream.subresource.as_str();
        self.upgrades.observe(&[subresource, result(answer)], latency);
        if answer == Answer::Switched {
            self.active.add(&[subresource, proxy_type(stream)], 1);
        } else {
            self.refused.add(&[subresource, code(&answer)], 1);
        }
        self.own.answered(stream, answer);
    }

    fn ended(&self, stream: Stream, report: &Report, lasted: Duration) {
        let (subresource, proxy_type) = (stream.subresource.as_str(), proxy_type(stream));
        let end = match report.end {
            End::Success => "success",
            End::ExitCode(_) => "exit_code",
            End::ClientGone => "client_gone",
            End::Carried => "carried",
            End::Error => "error",
        };
        self.active.take_one(&[subresource, proxy_type]);
        self.ended.add(&[subresource, proxy_type, end], 1);
        self.causes.add(&[report.cause.as_str()], 1);
        let bytes = &report.bytes;
        for (stream, direction, bytes) in [
            ("stdin", "in", bytes.stdin),
            ("stdout", "out", bytes.stdout),
            ("stderr", "out", bytes.stderr),
            ("data", "in", bytes.data_in),
            ("data", "out", bytes.data_out),
            ("carried", "in", bytes.carried_in),
            ("carried", "out", bytes.carried_out),
        ] {
            self.bytes.add(&[subresource, stream, direction], bytes);
        }
        self.lasted.observe(&[proxy_type], lasted);
        self.own.ended(stream, report.end);
    }

    fn checked(&self, subresource: Subresource, verdict: Option<Verdict>) {
        let decision = match verdict {
            Some(Verdict::Allow) => "allow",
            Some(Verdict::Deny) => "deny",
            Some(Verdict::NoOpinion) => "no_opinion",
            None => "error",
        };
        self.checks.add(&[subresource.as_str(), decision], 1);
    }
}

fn proxy_type(stream: Stream) -> &'static str {
    if stream.route == Route::Adapted { "translated_or_tunneled" } else { "proxied" }
}

fn result(answer: Answer) -> &'static str {
    if answer == Answer::Switched { "success" } else { "failure" }
}

fn code(answer: &Answer) -> &str {
    match answer {
        Answer::Switched => "101",
        Answer::Refused(code) | Answer::DialFailed(code) => code.as_str(),
        Answer::Failed => "500",
        Answer::Abandoned => "499",
    }
}
