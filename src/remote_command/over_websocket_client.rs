//! Remote command over WebSocket: the client's side.

use std::{
    future::{Future as _, poll_fn},
    io,
    pin::pin,
    sync::{Mutex, PoisonError},
    task::Poll,
    time::Duration,
};

use http::Request;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    sync::Notify,
    time::{Instant, MissedTickBehavior, interval, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    Output, Stdio, Version,
    over_websocket::WsProtocol,
    status::{self, MAX_STATUS, Outcome},
};
use crate::{
    Error, Initiator,
    error::Kind,
    websocket::{
        Payload,
        channel::{self, ChannelEvent, Demux, Encoding},
        client::{self, Batch, ConnectError, Connected, Reader, Received, Writer},
    },
};

/// Payload of one message in base64, before it is encoded: its frame tells its length in two bytes then.
const BASE64: usize = 45 * 1024;

/// A server from which nothing was read for this long is pinged, and asked every so often.
const PING_AFTER: Duration = Duration::from_secs(10);

/// A server from which nothing was read for this long, while we read, is dead.
const DEAD_AFTER: Duration = Duration::from_secs(60);

/// How long our Close may take.
const CLOSE: Duration = Duration::from_secs(2);

/// Opens a WebSocket on `io` and offers the protocols, the preferred one first. No protocols means
/// [`WsProtocol::Unnamed`]. The request brings target, `Host` and credentials.
///
/// # Errors
///
/// See [`client::connect`].
pub async fn connect<Io>(
    io: Io,
    request: Request<()>,
    protocols: &[WsProtocol],
) -> Result<(Connected<Io>, WsProtocol), ConnectError>
where
    Io: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let offered: Vec<_> = protocols.iter().map(|protocol| protocol.name()).filter(|name| !name.is_empty()).collect();
    let connected = client::connect(io, request, &offered).await?;
    let protocol = connected.protocol.and_then(WsProtocol::from_name).unwrap_or(WsProtocol::Unnamed);
    Ok((connected, protocol))
}

/// Runs a session to its end. Here `stdio` is the user's: stdin is read, stdout and stderr are written, and
/// [`Stdio::gone`] cancels.
///
/// Before v5 the end of stdin cannot be told, so the command does not see it.
///
/// # Errors
///
/// Lost connection, silent server, broken protocol, a stream of ours that failed, cancellation. A session without a
/// status is an error or [`Outcome::Invalid`], never a success, except before v4, where silence and Close 1000 are one.
///
/// # Cancel safety
///
/// Dropping the future drops the connection without a Close.
pub async fn run<Io>(connected: Connected<Io>, protocol: WsProtocol, stdio: Stdio) -> Result<Outcome, Error>
where
    Io: AsyncRead + AsyncWrite,
{
    let Connected { reader, writer, .. } = connected;
    let shared = Shared::new(protocol);
    let Stdio { stdin, stdout, stderr, resize, gone } = stdio;
    let mut receive = pin!(receive(reader, stdout, stderr, &shared));
    let mut send = pin!(send(writer, stdin, resize, &gone, &shared));
    let mut sending = true;
    loop {
        tokio::select! {
            biased;
            received = &mut receive => {
                shared.done.cancel();
                if sending {
                    // Nobody needs our Close but for politeness.
                    let _ = timeout(CLOSE, &mut send).await;
                }
                return received;
            }
            () = gone.cancelled() => {
                if sending {
                    // It may be in the middle of a frame that the server does not take.
                    let _ = timeout(CLOSE, &mut send).await;
                }
                return Err(Error::new(Kind::Cancelled, Initiator::User));
            }
            sent = &mut send, if sending => match sent {
                // What the server has to say is read to its end, whatever became of stdin.
                Ok(()) => sending = false,
                Err(error) => return Err(error),
            },
        }
    }
}

/// What the two directions tell each other.
#[derive(Debug)]
struct Shared {
    protocol: WsProtocol,
    /// The latest Ping that was not answered, and when the server was last heard.
    heard: Mutex<(Option<Payload>, Instant)>,
    pinged: Notify,
    /// The server has said all.
    done: CancellationToken,
}

impl Shared {
    fn new(protocol: WsProtocol) -> Self {
        Self {
            protocol,
            heard: Mutex::new((None, Instant::now())),
            pinged: Notify::new(),
            done: CancellationToken::new(),
        }
    }

    fn with_heard<T>(&self, f: impl FnOnce(&mut (Option<Payload>, Instant)) -> T) -> T {
        f(&mut self.heard.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Reads until the end. The reader lives in this future and is dropped with the connection only.
async fn receive<Io: AsyncRead>(
    mut reader: Reader<Io>,
    mut stdout: Option<Output>,
    mut stderr: Option<Output>,
    shared: &Shared,
) -> Result<Outcome, Error> {
    let version = shared.protocol.version();
    let mut demux = Demux::new(shared.protocol.encoding(), false);
    let mut status = Vec::new();
    loop {
        let received = match timeout(DEAD_AFTER, reader.read()).await {
            Ok(Ok(received)) => received,
            Ok(Err(error)) => return ended(version, &status, Err(error)),
            Err(_) => return Err(Error::new(Kind::Timeout, Initiator::Remote).with("the server gave no sign of life")),
        };
        shared.with_heard(|heard| heard.1 = Instant::now());
        match received {
            Received::Data(data, mut payload) => {
                let event = demux.data(&data, &mut payload).map_err(protocol_error)?;
                let Some(ChannelEvent::Data { id, range }) = event else { continue };
                match id {
                    channel::STDOUT => write(&mut stdout, &payload[range]).await?,
                    channel::STDERR => write(&mut stderr, &payload[range]).await?,
                    channel::ERROR => {
                        let room = MAX_STATUS - status.len();
                        status.extend(payload[range].iter().take(room));
                    }
                    _ => {}
                }
                // Writing may have taken its time; nobody was silent meanwhile.
                shared.with_heard(|heard| heard.1 = Instant::now());
            }
            Received::Ping(payload) => {
                shared.with_heard(|heard| heard.0 = Some(payload));
                shared.pinged.notify_one();
            }
            Received::Pong => {}
            Received::Closed(close) => return ended(version, &status, Ok(close.code)),
        }
    }
}

async fn write(output: &mut Option<Output>, bytes: &[u8]) -> Result<(), Error> {
    let Some(output) = output else { return Ok(()) };
    let written = async {
        output.write_all(bytes).await?;
        output.flush().await
    };
    written.await.map_err(|error| Error::new(Kind::Cancelled, Initiator::User).with(error))
}

/// What an end means: a Close with its code, or none.
fn ended(version: Version, status: &[u8], close: io::Result<Option<u16>>) -> Result<Outcome, Error> {
    let orderly = matches!(close, Ok(Some(1000)));
    if version.has_status() {
        match status::decode(status) {
            // A whole status is the truth, however the connection ended after it.
            Outcome::Invalid(_) if !orderly => {}
            outcome => return Ok(outcome),
        }
    } else if orderly {
        return Ok(match status {
            [] => Outcome::Exited(super::Exit::Success),
            text => Outcome::Failed(String::from_utf8_lossy(text).into_owned()),
        });
    }
    Err(match close {
        Ok(code) => Error::new(Kind::Lost, Initiator::Remote)
            .with(format!("the server closed with code {} and no status", code.unwrap_or(1005))),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => protocol_error(error),
        Err(error) => Error::new(Kind::Lost, Initiator::Remote).with(error),
    })
}

fn protocol_error(error: impl Into<crate::BoxError>) -> Error {
    Error::new(Kind::Protocol, Initiator::Remote).with(error)
}

/// Writes until the server has said all, or takes no more. What is read in an arm can be dropped; writes are awaited
/// in the arms' bodies, where nothing drops them.
async fn send<Io: AsyncWrite>(
    mut writer: Writer<Io>,
    mut stdin: Option<super::Input>,
    mut resize: Option<tokio::sync::watch::Receiver<Option<super::TerminalSize>>>,
    gone: &CancellationToken,
    shared: &Shared,
) -> Result<(), Error> {
    let encoding = shared.protocol.encoding();
    let mut batch = Batch::new(if encoding == Encoding::Base64 { BASE64 } else { usize::MAX });
    let mut ahead = None;
    let mut clock = interval(PING_AFTER);
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    clock.tick().await;
    if let Some(resize) = &mut resize {
        // The size that is there counts as news.
        resize.mark_changed();
    }
    loop {
        let written = tokio::select! {
            biased;
            () = shared.done.cancelled() => {
                let _ = writer.close(1000).await;
                return Ok(());
            }
            () = gone.cancelled() => {
                let _ = writer.close(1000).await;
                return Ok(());
            }
            () = shared.pinged.notified() => match shared.with_heard(|heard| heard.0.take()) {
                Some(payload) => writer.pong(&payload).await,
                None => Ok(()),
            },
            _ = clock.tick() => {
                if shared.with_heard(|heard| heard.1.elapsed()) < PING_AFTER {
                    continue;
                }
                writer.ping().await
            }
            size = next_size(&mut resize), if resize.is_some() => match size {
                Some(json) => writer.channel(encoding, channel::RESIZE, json.as_bytes()).await,
                None => continue,
            },
            read = read(&mut stdin, &mut batch, &mut ahead), if stdin.is_some() => match read {
                Ok(0) => {
                    stdin = None;
                    if !shared.protocol.has_close_signal() {
                        continue;
                    }
                    writer.close_channel(channel::STDIN).await
                }
                Ok(read) if encoding == Encoding::Base64 => {
                    let room = batch.room().unwrap_or_default();
                    writer.channel(encoding, channel::STDIN, &room[..read]).await
                }
                Ok(read) => {
                    batch.push(channel::STDIN, read);
                    gather(&mut stdin, &mut batch, &mut ahead).await;
                    writer.batch(&mut batch).await
                }
                Err(error) => return Err(Error::new(Kind::Cancelled, Initiator::User).with(error)),
            },
        };
        if let Err(error) = written {
            tracing::debug!(%error, "writing to the server failed");
            return Ok(());
        }
    }
}

/// What stdin said already, or says next.
async fn read(
    stdin: &mut Option<super::Input>,
    batch: &mut Batch,
    ahead: &mut Option<io::Result<usize>>,
) -> io::Result<usize> {
    match (ahead.take(), stdin, batch.room()) {
        (Some(said), ..) => said,
        (None, Some(stdin), Some(room)) => stdin.read(room).await,
        _ => std::future::pending().await,
    }
}

/// Adds what stdin has at once. Its end, and its failure, are for later.
async fn gather(stdin: &mut Option<super::Input>, batch: &mut Batch, ahead: &mut Option<io::Result<usize>>) {
    let Some(stdin) = stdin else { return };
    while let Some(room) = batch.room() {
        let mut read = pin!(stdin.read(room));
        match poll_fn(|cx| Poll::Ready(read.as_mut().poll(cx))).await {
            Poll::Ready(Ok(read)) if read > 0 => batch.push(channel::STDIN, read),
            Poll::Ready(said) => {
                *ahead = Some(said);
                return;
            }
            Poll::Pending => return,
        }
    }
}

/// The next size as JSON. `None`, and no receiver any more, if there will be none.
async fn next_size(resize: &mut Option<tokio::sync::watch::Receiver<Option<super::TerminalSize>>>) -> Option<String> {
    let sizes = resize.as_mut()?;
    if sizes.changed().await.is_err() {
        *resize = None;
        return None;
    }
    let size = (*sizes.borrow_and_update())?;
    // Two numbers always serialize.
    serde_json::to_string(&size).ok().map(|json| json + "\n")
}

#[cfg(test)]
mod tests;
