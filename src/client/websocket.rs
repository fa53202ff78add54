//! Over WebSocket.

use std::{sync::Arc, time::Duration};

use super::{ExecRequest, Execute, ExecuteError, Opened, handshake::Asker, opened::Session};
use crate::{remote_command::over_websocket::WsProtocol, upgrade::Connect, websocket::client::Connected};

/// Runs commands over WebSocket. It asks with GET, as RFC 6455 has it.
///
/// By default it offers v5 alone, as kubectl does: before it a client could not end stdin, and an API server without
/// the translation would hand an older offer on to a runtime that is content with it.
#[derive(Clone, Debug)]
pub struct WebSocketExecutor<C> {
    asker: Asker<C>,
    protocols: Vec<WsProtocol>,
}

impl<C: Connect> WebSocketExecutor<C> {
    /// Dials with `connect`.
    pub fn new(connect: C) -> Self {
        Self::shared(Arc::new(connect))
    }

    pub(super) fn shared(connect: Arc<C>) -> Self {
        Self { asker: Asker::new(connect), protocols: vec![WsProtocol::V5] }
    }

    /// Offers those, the preferred one first. None, or [`WsProtocol::Unnamed`] alone, asks without a subprotocol.
    #[must_use]
    pub fn protocols(mut self, offered: impl IntoIterator<Item = WsProtocol>) -> Self {
        self.protocols = offered.into_iter().collect();
        self
    }

    /// Longest wait for a connection; 30 s by default.
    #[must_use]
    pub fn dial_timeout(mut self, limit: Duration) -> Self {
        self.asker.dial = limit;
        self
    }

    /// Longest wait for the answer; 60 s by default.
    #[must_use]
    pub fn answer_timeout(mut self, limit: Duration) -> Self {
        self.asker.answer = limit;
        self
    }
}

impl<C: Connect> Execute for WebSocketExecutor<C> {
    async fn open(&self, request: &ExecRequest) -> Result<Opened, ExecuteError> {
        let offered: Vec<_> =
            self.protocols.iter().map(|protocol| protocol.name()).filter(|name| !name.is_empty()).collect();
        let (io, protocol) = self.asker.websocket(&request.endpoint, &offered).await?;
        let connected = Connected::new(io, protocol);
        let protocol = protocol.and_then(WsProtocol::from_name).unwrap_or(WsProtocol::Unnamed);
        let session = Session::WebSocket(Box::new(connected), protocol);
        Ok(Opened { session, options: request.options.clone(), fell_back: None })
    }
}
