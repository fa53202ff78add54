//! Serves port-forward, whatever carries it.

use std::sync::Arc;

use http::{StatusCode, request};

use super::{
    Answer, StreamingServer,
    negotiate::{self, refused, spdy_switching_protocols, websocket_switching_protocols},
};
use crate::{
    port_forward::{PROTOCOL, TUNNEL, over_spdy, tunnel},
    remote_command::over_websocket::refuse_handshake,
    runtime::Runtime,
    upgrade::{Refusal, Report, Target, accept, is_websocket},
    websocket::{self, Pipe, Role, handshake},
};

impl<R: Runtime> StreamingServer<R> {
    /// Negotiates what carries it, asks the runtime for the pod, and answers. The ports of the query mean nothing over
    /// SPDY: each pair of streams names its own.
    pub(super) async fn forward(self, mut request: request::Parts, target: Arc<Target>) -> Result<Answer, Box<Answer>> {
        let dialect = target.dialect;
        if self.tunnel && is_websocket(&request.headers) && tunnel::offers(&request.headers).any(|to| to == PROTOCOL) {
            return self.forward_in_tunnel(request, target).await;
        }
        if is_websocket(&request.headers) {
            let why = Refusal::new(StatusCode::FORBIDDEN, "Forbidden", "no acceptable subprotocol");
            return Err(refused(why, dialect));
        }
        let protocol = negotiate::spdy(&request.headers, &[PROTOCOL], dialect)?;
        let dial = self.runtime.port_forward(&target).await.map_err(|refusal| refused(refusal, dialect))?;
        let mut response = spdy_switching_protocols(protocol);
        let client = accept(&mut request.extensions, response.extensions_mut());
        client.spawn(move |io, drain| async move {
            over_spdy::serve(io, &dial, &target, self.dial_errors, self.limits, drain).await
        });
        Ok(response)
    }

    /// The same SPDY, in WebSocket messages.
    async fn forward_in_tunnel(self, mut request: request::Parts, target: Arc<Target>) -> Result<Answer, Box<Answer>> {
        let dialect = target.dialect;
        let key = handshake::check_request(&request.method, request.version, &request.headers)
            .map_err(|bad| Box::new(refuse_handshake(bad, dialect)))?;
        let mut response = websocket_switching_protocols(handshake::accept_key(key), Some(TUNNEL));
        let dial = self.runtime.port_forward(&target).await.map_err(|refusal| refused(refusal, dialect))?;
        let client = accept(&mut request.extensions, response.extensions_mut());
        client.spawn(move |io, drain| async move {
            let pipe = Pipe::new(io, Role::Server, websocket::Limits::default());
            let report = over_spdy::serve(pipe, &dial, &target, self.dial_errors, self.limits, drain).await;
            Report { protocol_in: TUNNEL.into(), ..report }
        });
        Ok(response)
    }
}
