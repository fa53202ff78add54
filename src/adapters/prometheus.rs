//! Counts streams for Prometheus: [`Record`] over atomics, rendered as text.
//!
//! Each [`StreamingMetrics`] has the names of one server. The KEP's and upstream's are both there, and what neither has:
//!
//! | API server | labels | counts |
//! |---|---|---|
//! | `num_ws_remote_command_v5_total` | `type` | KEP: attempts over WebSocket v5; `success` got a `101`, all else is `failure` |
//! | `num_ws_port_forward_v2_total` | `type` | KEP: attempts in a tunnel, likewise |
//! | `apiserver_stream_translator_requests_total` | `code` | translated: the refusal's code, or at the session's end 200 or 500 |
//! | `apiserver_stream_tunnel_requests_total` | `code` | tunnelled: the answer's code, 101 included |
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
//! | `streaming_bytes_total` | `subresource`, `direction` | bytes from (`in`) and to (`out`) clients, added when a session ends |
//! | `streaming_upgrade_duration_seconds` | `subresource`, `result` | from the request to its answer, waited for or not |
//! | `streaming_refused_requests_total` | `subresource`, `code` | answers other than 101 |
//!
//! `proxy_type` is the KEP's: `translated_or_tunneled` here, or `proxied`, which is all that goes on or is served as it
//! came. A code without a value of its own counts as `other`, a client that went before its answer as 499. All series
//! are there from the start, 249 for an API server and 218 for a kubelet, and no label takes a value from a request.
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

mod table;
#[cfg(test)]
mod tests;

use std::time::Duration;

use self::table::{Histogram, Label, Table};
use crate::{
    layers::{
        Record,
        metrics::{Answer, Protocol, Stream},
    },
    upgrade::{End, Report, Route, Subresource},
};

/// The `Content-Type` of [`StreamingMetrics::render`].
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

const SUBRESOURCE: Label = ("subresource", &["exec", "attach", "portforward"]);
const PROXY_TYPE: Label = ("proxy_type", &["proxied", "translated_or_tunneled"]);
const RESULT: Label = ("result", &["success", "failure"]);
const END: Label = ("end", &["success", "exit_code", "client_gone", "carried", "error"]);
const DIRECTION: Label = ("direction", &["in", "out"]);
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
    bytes: Table,
    refused: Table,
    lasted: Histogram,
    upgrades: Histogram,
}

/// What only one of the two servers has.
#[derive(Debug)]
enum Own {
    ApiServer(Box<ApiServer>),
    Kubelet(Box<Kubelet>),
}

#[derive(Debug)]
struct ApiServer {
    v5: Table,
    port_forward: Table,
    translated: Table,
    tunnelled: Table,
    routed: Table,
}

#[derive(Debug)]
struct Kubelet {
    requests: Table,
    handled: Table,
}

impl StreamingMetrics {
    /// Counts under the names of an API server.
    #[must_use]
    pub fn api_server() -> Self {
        const TYPE: Label = ("type", RESULT.1);
        const ROUTED: Label = ("proxy_type", &["proxied_to_kubelet", "translated_at_apiserver"]);
        let own = ApiServer {
            v5: Table::counter(
                "num_ws_remote_command_v5_total",
                "Total number of WebSocket/V5 RemoteCommand upgrade attempts that the API server saw.",
                &[TYPE],
            ),
            port_forward: Table::counter(
                "num_ws_port_forward_v2_total",
                "Total number of WebSocket/V2 PortForward upgrade attempts that the API server saw.",
                &[TYPE],
            ),
            translated: Table::counter(
                "apiserver_stream_translator_requests_total",
                "Total number of requests that were handled by the StreamTranslatorProxy, which processes streaming \
                 RemoteCommand/V5",
                &[CODE],
            ),
            tunnelled: Table::counter(
                "apiserver_stream_tunnel_requests_total",
                "Total number of requests that were handled by the StreamTunnelProxy, which processes streaming \
                 PortForward/V2",
                &[CODE],
            ),
            routed: Table::counter(
                "apiserver_websocket_streaming_requests_total",
                "Total number of WebSocket streaming requests (exec/attach/portforward) routed by the API server, \
                 labeled by subresource and proxy_type. proxy_type is proxied_to_kubelet when the kubelet handles the \
                 request directly; otherwise translated_at_apiserver.",
                &[SUBRESOURCE, ROUTED],
            ),
        };
        Self::new("apiserver", Own::ApiServer(own.into()))
    }

    /// Counts under the names of a kubelet.
    #[must_use]
    pub fn kubelet() -> Self {
        let own = Kubelet {
            requests: Table::counter(
                "kubelet_streaming_websocket_requests_total",
                "Counter of WebSocket streaming upgrade requests handled by the Kubelet.",
                &[SUBRESOURCE, RESULT],
            ),
            handled: Table::counter(
                "kubelet_websocket_streaming_requests_total",
                "Total number of WebSocket streaming requests (exec/attach/portforward) received by the kubelet.",
                &[SUBRESOURCE],
            ),
        };
        Self::new("kubelet", Own::Kubelet(own.into()))
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
            bytes: Table::counter(
                name("bytes_total"),
                "Bytes of streaming sessions that have ended, from (in) and to (out) clients.",
                &[SUBRESOURCE, DIRECTION],
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
        let own = match &self.own {
            Own::ApiServer(own) => vec![&own.v5, &own.port_forward, &own.translated, &own.tunnelled, &own.routed],
            Own::Kubelet(own) => vec![&own.requests, &own.handled],
        };
        for table in own.into_iter().chain([&self.active, &self.ended, &self.bytes, &self.refused]) {
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
        let result = if answer == Answer::Switched { "success" } else { "failure" };
        let code = code(&answer);
        self.upgrades.observe(&[subresource, result], latency);
        if answer == Answer::Switched {
            self.active.add(&[subresource, proxy_type(stream)], 1);
        } else {
            self.refused.add(&[subresource, code], 1);
        }
        match &self.own {
            Own::ApiServer(own) => own.answered(stream, answer, code, result),
            Own::Kubelet(own) => own.answered(stream, answer, result),
        }
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
        self.bytes.add(&[subresource, "in"], report.bytes_in);
        self.bytes.add(&[subresource, "out"], report.bytes_out);
        self.lasted.observe(&[proxy_type], lasted);
        if let Own::ApiServer(own) = &self.own
            && stream.route == Route::Adapted
            && stream.subresource != Subresource::PortForward
        {
            // A client that goes is no failure of the translator, and an exit code is none either.
            own.translated.add(&[if report.end == End::Error { "500" } else { "200" }], 1);
        }
    }
}

impl ApiServer {
    fn answered(&self, stream: Stream, answer: Answer, code: &str, result: &str) {
        match stream.protocol {
            Protocol::V5 => self.v5.add(&[result], 1),
            Protocol::Tunnel => self.port_forward.add(&[result], 1),
            _ => {}
        }
        match (stream.route, stream.subresource) {
            (Route::Adapted, Subresource::PortForward) => self.tunnelled.add(&[code], 1),
            // One that was answered with 101 counts at its end, as upstream's do.
            (Route::Adapted, _) if answer != Answer::Switched => self.translated.add(&[code], 1),
            _ => {}
        }
        let proxy_type = match stream.route {
            Route::WebSocketHop => "proxied_to_kubelet",
            Route::SpdyHop | Route::Adapted => "translated_at_apiserver",
            Route::Unrouted => return,
        };
        if is_websocket(stream) {
            self.routed.add(&[stream.subresource.as_str(), proxy_type], 1);
        }
    }
}

impl Kubelet {
    fn answered(&self, stream: Stream, answer: Answer, result: &str) {
        let subresource = stream.subresource.as_str();
        if is_websocket(stream) {
            self.requests.add(&[subresource, result], 1);
        }
        // Upstream's kubelet counts just before it translates: what fails earlier it does not count.
        let here = answer == Answer::Switched || stream.route == Route::Adapted;
        if here && matches!(stream.protocol, Protocol::V5 | Protocol::Tunnel) {
            self.handled.add(&[subresource], 1);
        }
    }
}

fn is_websocket(stream: Stream) -> bool {
    matches!(stream.protocol, Protocol::V5 | Protocol::Tunnel | Protocol::WebSocket)
}

fn proxy_type(stream: Stream) -> &'static str {
    if stream.route == Route::Adapted { "translated_or_tunneled" } else { "proxied" }
}

fn code(answer: &Answer) -> &str {
    match answer {
        Answer::Switched => "101",
        Answer::Refused(code) => code.as_str(),
        Answer::Failed => "500",
        Answer::Abandoned => "499",
    }
}
