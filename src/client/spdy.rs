//! Over SPDY/3.1.

use std::{sync::Arc, time::Duration};

use http::{
    HeaderMap, HeaderValue, Method, StatusCode,
    header::{CONNECTION, CONTENT_LENGTH, UPGRADE},
};

use super::{
    Carrier, ExecRequest, Execute, ExecuteError, Opened, Rejection,
    handshake::{Asker, lost},
    opened::Session,
    request::STREAM_PROTOCOL,
};
use crate::{
    remote_command::Version,
    upgrade::{Connect, list, upgrade_names},
};

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
        let mut asked = request.http();
        *asked.method_mut() = Method::POST;
        let headers = asked.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static("SPDY/3.1"));
        // Go's servers want one, hyper leaves it out.
        headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
        for version in &self.versions {
            headers.append(STREAM_PROTOCOL, HeaderValue::from_static(version.name()));
        }
        let (response, io) = self.asker.ask(&request.uri, asked).await?;
        let (answer, body) = response.into_parts();
        let chosen = match answer.status {
            StatusCode::SWITCHING_PROTOCOLS => chosen(&answer.headers, &self.versions).map_err(Some),
            _ => Err(None),
        };
        let version = chosen.map_err(|wrong| {
            let (code, headers) = (answer.status, answer.headers);
            ExecuteError::Rejected(Box::new(Rejection { carrier: Carrier::Spdy, code, headers, body, wrong }))
        })?;
        let session = Session::Spdy(io.ok_or_else(lost)?, version);
        Ok(Opened { session, options: request.options.clone(), fell_back: None })
    }
}

/// The version that a `101` chose, or what is wrong with it. None named means v1, as it did before there were versions.
fn chosen(headers: &HeaderMap, offered: &[Version]) -> Result<Version, String> {
    if !list(headers, CONNECTION).any(|token| token.eq_ignore_ascii_case("upgrade")) {
        return Err("`upgrade` not found in the server's `Connection` header".into());
    }
    if !upgrade_names(headers, "SPDY/3.1") {
        return Err("`SPDY/3.1` not found in the server's `Upgrade` header".into());
    }
    let mut named = headers.get_all(STREAM_PROTOCOL).iter();
    let name = match (named.next(), named.next()) {
        (None, _) => "",
        (Some(name), None) => name.to_str().unwrap_or("?").trim(),
        (Some(_), Some(_)) => return Err("the server chose more than one protocol".into()),
    };
    match Version::from_name(name).filter(|version| offered.contains(version)) {
        Some(version) => Ok(version),
        None => {
            let offered: Vec<_> = offered.iter().map(|version| version.name()).collect();
            Err(format!("invalid protocol, expected one of {offered:?}, got {name:?}"))
        }
    }
}
