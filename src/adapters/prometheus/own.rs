//! What only one of the two servers counts: the KEP's names and upstream's.

use super::{
    CODE, RESULT, SUBRESOURCE, code, result,
    table::{Label, Table},
};
use crate::{
    layers::metrics::{Answer, Protocol, Stream},
    upgrade::{End, Route, Subresource},
};

/// What only one of the two servers has.
#[derive(Debug)]
pub(super) enum Own {
    ApiServer(Box<ApiServer>),
    Kubelet(Box<Kubelet>),
}

#[derive(Debug)]
pub(super) struct ApiServer {
    v5: Table,
    port_forward: Table,
    translated: Table,
    tunnelled: Table,
    routed: Table,
}

#[derive(Debug)]
pub(super) struct Kubelet {
    requests: Table,
    handled: Table,
}

impl Own {
    pub(super) fn answered(&self, stream: Stream, answer: Answer) {
        match self {
            Self::ApiServer(own) => own.answered(stream, answer),
            Self::Kubelet(own) => own.answered(stream, answer),
        }
    }

    pub(super) fn ended(&self, stream: Stream, end: End) {
        if let Self::ApiServer(own) = self
            && stream.route == Route::Adapted
            && stream.subresource != Subresource::PortForward
        {
            // A client that goes is no failure of the translator, and an exit code is none either.
            own.translated.add(&[if end == End::Error { "500" } else { "200" }], 1);
        }
    }

    pub(super) fn tables(&self) -> Vec<&Table> {
        match self {
            Self::ApiServer(own) => vec![&own.v5, &own.port_forward, &own.translated, &own.tunnelled, &own.routed],
            Self::Kubelet(own) => vec![&own.requests, &own.handled],
        }
    }
}

impl ApiServer {
    pub(super) fn new() -> Self {
        const TYPE: Label = ("type", RESULT.1);
        const ROUTED: Label = ("proxy_type", &["proxied_to_kubelet", "translated_at_apiserver"]);
        Self {
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
        }
    }

    fn answered(&self, stream: Stream, answer: Answer) {
        let (code, result) = (code(&answer), result(answer));
        match stream.protocol {
            Protocol::V5 => self.v5.add(&[result], 1),
            Protocol::Tunnel => self.port_forward.add(&[result], 1),
            _ => {}
        }
        match (stream.route, stream.subresource) {
            // The client got a 500, as upstream words it; upstream counts none at all.
            (Route::Adapted, Subresource::PortForward) if matches!(answer, Answer::DialFailed(_)) => {
                self.tunnelled.add(&["502"], 1);
            }
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
    pub(super) fn new() -> Self {
        Self {
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
        }
    }

    fn answered(&self, stream: Stream, answer: Answer) {
        let (subresource, result) = (stream.subresource.as_str(), result(answer));
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
