//! What is told, and to whom.

use std::{sync::Arc, time::Duration};

use http::{HeaderMap, StatusCode};

use crate::{
    layers::synthetic_authz::Verdict,
    port_forward::tunnel,
    remote_command::Version,
    upgrade::{Report, Route, Subresource, is_websocket, upgrade_names},
    websocket::handshake,
};

/// Counts streams. [`adapters::prometheus`](crate::adapters) has one.
///
/// The calls come from the data path's threads, and `ended` also while a session is dropped: they must not block and
/// must not panic.
pub trait Record: Send + Sync + 'static {
    /// A streaming request was answered, `latency` after it came. Once for each, also where nobody waited for the answer.
    fn answered(&self, stream: Stream, answer: Answer, latency: Duration);

    /// A session has ended, `lasted` after its `101`. Once for each [`Answer::Switched`], and after that.
    ///
    /// Label nothing with [`Report::detail`] or the report's protocols: they are free text.
    fn ended(&self, stream: Stream, report: &Report, lasted: Duration);

    /// The synthetic check for `create` was decided, below this layer; `None` if the authorizer failed. Not told where
    /// the natural verb was `create`, or was refused before. Does nothing by default.
    fn checked(&self, subresource: Subresource, verdict: Option<Verdict>) {
        let _ = (subresource, verdict);
    }
}

impl<T: Record + ?Sized> Record for Arc<T> {
    fn answered(&self, stream: Stream, answer: Answer, latency: Duration) {
        (**self).answered(stream, answer, latency);
    }

    fn ended(&self, stream: Stream, report: &Report, lasted: Duration) {
        (**self).ended(stream, report, lasted);
    }

    fn checked(&self, subresource: Subresource, verdict: Option<Verdict>) {
        (**self).checked(subresource, verdict);
    }
}

/// What is counted of one stream: enums, nothing that a caller can name, so the number of series is bounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Stream {
    /// What is done with the pod.
    pub subresource: Subresource,
    /// What the client asked to speak.
    pub protocol: Protocol,
    /// Which way it went below.
    pub route: Route,
}

/// What the client of a streaming request asks to speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Protocol {
    /// WebSocket, and offers `v5.channel.k8s.io`: exec and attach.
    V5,
    /// WebSocket, and offers SPDY in a tunnel: port-forward.
    Tunnel,
    /// WebSocket, and offers neither of the two.
    WebSocket,
    /// SPDY/3.1.
    Spdy,
    /// Nothing that is known here, or no upgrade at all.
    Other,
}

impl Protocol {
    pub(super) fn of(subresource: Subresource, headers: &HeaderMap) -> Self {
        if is_websocket(headers) {
            let v5 = || handshake::offers_in_first_line(headers).any(|offer| offer == Version::V5.name());
            return match subresource {
                Subresource::Exec | Subresource::Attach if v5() => Self::V5,
                Subresource::PortForward if tunnel::is_offered(headers) => Self::Tunnel,
                _ => Self::WebSocket,
            };
        }
        if upgrade_names(headers, "spdy/3.1") { Self::Spdy } else { Self::Other }
    }
}

/// How a streaming request was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Answer {
    /// `101`: a session begins.
    Switched,
    /// Another status, of whichever layer or hop.
    Refused(StatusCode),
    /// The next hop could not be dialled, and the client got this status.
    DialFailed(StatusCode),
    /// The inner service failed, without a response.
    Failed,
    /// The client went away before it was answered, or somebody gave up waiting.
    Abandoned,
}

/// Rides in a request, for the layers below that have something to tell.
#[derive(Clone)]
pub(crate) struct Recorder(pub(super) Arc<dyn Record>);

impl Recorder {
    pub(crate) fn checked(&self, subresource: Subresource, verdict: Option<Verdict>) {
        self.0.checked(subresource, verdict);
    }
}
