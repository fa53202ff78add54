//! Serves port-forward, whatever carries it.

use std::sync::Arc;

use http::{StatusCode, request};

use super::{
    Answer, StreamingServer,
    negotiate::{self, refused, spdy_switching_protocols},
};
use crate::{
    port_forward::{PROTOCOL, over_spdy},
    runtime::Runtime,
    upgrade::{Refusal, Target, accept, is_websocket},
};

impl<R: Runtime> StreamingServer<R> {
    /// Negotiates what carries it, asks the runtime for the pod, and answers. The ports of the query mean nothing over
    /// SPDY: each pair of streams names its own.
    pub(super) async fn forward(self, mut request: request::Parts, target: Arc<Target>) -> Result<Answer, Box<Answer>> {
        let dialect = target.dialect;
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
}
