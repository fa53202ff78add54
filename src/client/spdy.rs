//! Over SPDY/3.1.

use std::{sync::Arc, time::Duration};

use super::{ExecRequest, Execute, ExecuteError, Opened, handshake::Asker, opened::Session};
use crate::{remote_command::Version, upgrade::Connect};

/// Runs commands over SPDY/3.1. It asks with POST, and by default offers v5 to v1 as kubectl does.
#[derive(Clone, Debug)]
pub struct SpdyExecutor<C> {
    asker: Asker<C>,
    versions: Vec<Version>,
}

impl<C: Connect> SpdyExecutor<C> {
    /// Dials with `connect`.
    pub fn new(connect: C) -> Self {
        Self::shared(Arc::new(connect))
    }

    pub(super) fn shared(connect: Arc<C>) -> Self {
        Self { asker: Asker::new(connect), versions: Version::NEWEST_FIRST.to_vec() }
    }

    /// Offers those, the preferred one first. Servers refuse a request that offers none.
    #[must_use]
    pub fn versions(mut self, offered: impl IntoIterator<Item = Version>) -> Self {
        self.versions = offered.into_iter().collect();
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

impl<C: Connect> Execute for SpdyExecutor<C> {
    async fn open(&self, request: &ExecRequest) -> Result<Opened, ExecuteError> {
        let offered: Vec<_> = self.versions.iter().map(|version| version.name()).collect();
        // None named means v1, as it did before there were versions.
        let (io, protocol) = self.asker.spdy(&request.endpoint, &offered, Version::V1.name()).await?;
        let version = Version::from_name(protocol).expect("one of the names offered");
        Ok(Opened { session: Session::Spdy(io, version), options: request.options.clone(), fell_back: None })
    }
}
