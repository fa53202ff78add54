//! Serves port-forward, whatever carries it.

use std::sync::Arc;

use http::{HeaderValue, request};
use tracing::Instrument;

use super::{
    Answer, StreamingServer,
    negotiate::{self, refused, spdy_switching_protocols, websocket_switching_protocols},
};
use crate::{
    port_forward::{
        PROTOCOL, TUNNEL, WsProtocol, messages, over_spdy,
        over_websocket::{self, check_ports},
        tunnel,
    },
    runtime::Runtime,
    upgrade::{Target, accept, is_websocket},
    websocket::{Pipe, Role},
};

/// What carries it, as negotiated.
enum Carrier {
    Spdy,
    Tunnel { accept: HeaderValue },
    WebSocket { protocol: WsProtocol, accept: HeaderValue },
}

impl<R: Runtime> StreamingServer<R> {
    /// Negotiates what carries it, asks the runtime for the pod, and answers. The ports of the query mean nothing over
    /// SPDY: each pair of streams names its own.
    pub(super) async fn forward(self, mut request: request::Parts, target: Arc<Target>) -> Result<Answer, Box<Answer>> {
        let dialect = target.dialect;
        let carrier = self.carrier(&request, &target)?;
        let dial = self.runtime.port_forward(&target).await.map_err(|refusal| refused(refusal, dialect))?;
        let mut response = match &carrier {
            Carrier::Spdy => spdy_switching_protocols(PROTOCOL),
            Carrier::Tunnel { accept } => websocket_switching_protocols(accept.clone(), Some(TUNNEL)),
            // Without an offer there is nothing to echo.
            Carrier::WebSocket { protocol, accept } => {
                let name = Some(protocol.name()).filter(|name| !name.is_empty());
                websocket_switching_protocols(accept.clone(), name)
            }
        };
        let client = accept(&mut request.extensions, response.extensions_mut());
        let (errors, pairs, limits) = (self.dial_errors, self.port_forward_limits, self.limits);
        let span = match &carrier {
            Carrier::Spdy => tracing::debug_span!("spdy", protocol = PROTOCOL),
            Carrier::Tunnel { .. } => tracing::debug_span!("websocket", protocol = TUNNEL),
            Carrier::WebSocket { protocol, .. } => tracing::debug_span!("websocket", protocol = protocol.name()),
        };
        let serve = move |io, drain| async move {
            match carrier {
                Carrier::Spdy => over_spdy::serve(io, &dial, &target, errors, pairs, &limits, drain).await,
                Carrier::Tunnel { .. } => {
                    let io = Pipe::new(io, Role::Server, messages(&limits));
                    let mut report = over_spdy::serve(io, &dial, &target, errors, pairs, &limits, drain).await;
                    report.protocol_in = TUNNEL.into();
                    report
                }
                Carrier::WebSocket { protocol, .. } => {
                    over_websocket::serve(io, protocol, &dial, &target, &limits, drain).await
                }
            }
        };
        client.spawn(move |io, drain| serve(io, drain).instrument(span));
        Ok(response)
    }

    /// Upstream looks at the ports of the query first, so a tunnel that is not offered is refused for want of them.
    fn carrier(&self, request: &request::Parts, target: &Target) -> Result<Carrier, Box<Answer>> {
        let dialect = target.dialect;
        if !is_websocket(&request.headers) {
            negotiate::spdy(&request.headers, &[PROTOCOL], dialect)?;
            return Ok(Carrier::Spdy);
        }
        if self.tunnel && tunnel::is_offered(&request.headers) {
            return Ok(Carrier::Tunnel { accept: negotiate::websocket_accept(request, dialect)? });
        }
        check_ports(&target.options).map_err(|refusal| refused(refusal, dialect))?;
        let accept = negotiate::websocket_accept(request, dialect)?;
        let protocol = negotiate::websocket_protocol(request, WsProtocol::Unnamed, WsProtocol::from_name, dialect)?;
        Ok(Carrier::WebSocket { protocol, accept })
    }
}
