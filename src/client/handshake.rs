//! One request to a server on a connection of its own, and its answer.

use std::{fmt, future::Future, io, pin::pin, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt as _;
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt as _, Empty};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    select,
    time::{Instant, timeout, timeout_at},
};

use super::ExecuteError;
use crate::{
    Error, Initiator,
    error::Kind,
    upgrade::{self, Connect, Io},
};

/// Longest wait for a connection, TLS included.
const DIAL: Duration = Duration::from_secs(30);

/// Longest wait for an answer. A server asks its authorizers, its kubelet and that its runtime before it answers.
pub(super) const ANSWER: Duration = Duration::from_secs(60);

/// Longest wait for the body of a refusal, which comes together with its head.
const BODY: Duration = Duration::from_secs(5);

/// Longest head of an answer.
const MAX_HEAD: usize = 64 * 1024;

/// Most of a refusal's body that is kept; a `Status` takes less than 1 KiB.
const MAX_BODY: usize = 64 * 1024;

/// Dials, and sends a request there.
pub(super) struct Asker<C> {
    connect: Arc<C>,
    pub(super) dial: Duration,
    pub(super) answer: Duration,
}

/// The answer, and for a `101` the connection behind it.
pub(super) type Answer = (Response<Bytes>, Option<Io>);

impl<C: Connect> Asker<C> {
    pub(super) fn new(connect: Arc<C>) -> Self {
        Self { connect, dial: DIAL, answer: ANSWER }
    }

    /// # Cancel safety
    ///
    /// Dropping the future closes the connection.
    pub(super) async fn ask(&self, uri: &Uri, request: Request<Empty<Bytes>>) -> Result<Answer, ExecuteError> {
        let io = match timeout(self.dial, self.connect.connect(uri.clone())).await {
            Ok(io) => io.map_err(ExecuteError::Dial)?,
            Err(_) => return Err(ExecuteError::Dial(ExecuteError::timed_out("dial tcp: i/o timeout"))),
        };
        exchange(io, request, Instant::now() + self.answer).await
    }
}

/// Sends a request. Behind a `101`, and behind the success of a CONNECT, the connection comes along.
pub(super) async fn exchange<S>(
    io: S,
    request: Request<Empty<Bytes>>,
    deadline: Instant,
) -> Result<Answer, ExecuteError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let connects = request.method() == Method::CONNECT;
    let switches = |status: StatusCode| status == StatusCode::SWITCHING_PROTOCOLS || connects && status.is_success();
    let no_answer = |error: hyper::Error| ExecuteError::NoAnswer(error.into());
    let http = http1::Builder::new().max_buf_size(MAX_HEAD).handshake(TokioIo::new(io));
    let (mut sender, connection) = http.await.map_err(no_answer)?;
    // Fused: it ends with the `101`, and is asked again for the socket.
    let mut connection = pin!(connection.with_upgrades().fuse());
    let answer = async {
        let response = match timeout_at(deadline, sender.send_request(request)).await {
            Ok(response) => response.map_err(no_answer)?,
            Err(_) => return Err(ExecuteError::NoAnswer(ExecuteError::timed_out("no answer came in time").into())),
        };
        let (parts, body) = response.into_parts();
        let body = if switches(parts.status) { Bytes::new() } else { beginning(body).await };
        Ok(Response::from_parts(parts, body))
    };
    // The connection moves the exchange on, and after a `101` it is what hands the socket over.
    let mut response = beside(connection.as_mut(), answer).await?;
    if !switches(response.status()) {
        return Ok((response, None));
    }
    let pending = upgrade::take(response.extensions_mut()).ok_or_else(lost)?;
    let io = beside(connection, pending.into_io()).await.map_err(ExecuteError::Session)?;
    Ok((response, Some(io)))
}

/// Awaits `wanted` while `background` is driven; how that ends does not matter.
async fn beside<T>(background: impl Future, wanted: impl Future<Output = T>) -> T {
    let (mut background, mut wanted) = (pin!(background), pin!(wanted));
    select! {
        biased;
        _ = &mut background => {}
        wanted = &mut wanted => return wanted,
    }
    wanted.await
}

/// The body as far as it comes. Whatever is wrong with it, the refusal is the answer.
async fn beginning(mut body: Incoming) -> Bytes {
    let mut kept = BytesMut::new();
    let deadline = Instant::now() + BODY;
    while let Ok(Some(Ok(frame))) = timeout_at(deadline, body.frame()).await {
        let data = frame.into_data().unwrap_or_default();
        kept.extend_from_slice(&data[..data.len().min(MAX_BODY - kept.len())]);
        if kept.len() == MAX_BODY {
            break;
        }
    }
    kept.freeze()
}

impl<C> Clone for Asker<C> {
    fn clone(&self) -> Self {
        Self { connect: Arc::clone(&self.connect), ..*self }
    }
}

impl<C> fmt::Debug for Asker<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Asker").field("dial", &self.dial).field("answer", &self.answer).finish_non_exhaustive()
    }
}

/// A `101` whose connection is not there.
pub(super) fn lost() -> ExecuteError {
    ExecuteError::Session(Error::new(Kind::Lost, Initiator::Remote).with(io::Error::from(io::ErrorKind::UnexpectedEof)))
}
