//! Remote command over SPDY, the server's side: one stream each for error, stdin, stdout, stderr and resize.
//!
//! The client creates the streams. Each that the options ask for must come exactly once; others are refused. Then the
//! order is the same on every path: all output, then its FIN, then the status and its FIN, then GOAWAY.

mod streams;

use std::{
    convert::Infallible,
    future::{Future, pending},
    pin::pin,
    time::Duration,
};

use futures_util::FutureExt;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    join, select,
    sync::watch,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use self::streams::{Count, Streams, gather, input, output};
use super::{Exit, Stdio, TerminalSize, Version, resize::ResizeDecoder, status};
use crate::{
    BoxError,
    spdy::{
        self,
        connection::{Config, Handle, Incoming},
        frame::ResetCode,
        stream::{ReadHalf, WriteHalf},
    },
    upgrade::{Cause, End, Report, SessionLimits, StreamOptions, clock::quiet},
};

/// How long a process is waited for when its client has gone.
const GRACE: Duration = Duration::from_secs(10);

/// Runs a session on a connection whose `101` has been sent.
///
/// `run` gets the streams that `options` ask for. Everything is polled here, so that it needs no task of its own. When
/// `drain` fires the session ends with a failure that says so.
///
/// # Cancel safety
///
/// Dropping the future drops the connection and what `run` returned.
pub(crate) async fn serve<Io, F, Fut>(
    io: Io,
    version: Version,
    options: &StreamOptions,
    limits: &SessionLimits,
    drain: CancellationToken,
    run: F,
) -> Report
where
    Io: AsyncRead + AsyncWrite + Unpin,
    F: FnOnce(Stdio) -> Fut,
    Fut: Future<Output = Result<Exit, BoxError>>,
{
    let (mut incoming, handle, connection) = spdy::connection::server(io, config(limits));
    let session = async {
        let mut streams = Streams::default();
        let collected = timeout(limits.creation, gather(&mut incoming, version, options, &mut streams)).await;
        let report = match collected {
            Ok(true) => {
                Session { version, streams, incoming, handle: &handle, idle: limits.idle }
                    .run(options, drain, run)
                    .await
            }
            Ok(false) => {
                let detail = "the client went away before it had created its streams";
                Report::new(End::ClientGone, Cause::ClientLost, detail)
            }
            Err(_) => {
                let why = "timed out waiting for the client to create streams";
                if let Some(error) = streams.error.take() {
                    let (_, mut error) = error.into_split();
                    tell(&mut error, &status::encode_failure(version, why)).await;
                }
                Report::new(End::Error, Cause::CreationTimeout, why)
            }
        };
        handle.close();
        report
    };
    // What the connection says of its own end is told by the streams already.
    let (mut report, _) = join!(session, connection);
    report.protocol_in = version.name().into();
    report
}

fn config(limits: &SessionLimits) -> Config {
    let session = spdy::session::Limits::default();
    Config::new().session(session.ping_after(limits.ping_after).dead_after(limits.dead_after))
}

struct Session<'a> {
    version: Version,
    streams: Streams,
    incoming: Incoming,
    handle: &'a Handle,
    idle: Duration,
}

impl Session<'_> {
    async fn run<F, Fut>(self, options: &StreamOptions, drain: CancellationToken, run: F) -> Report
    where
        F: FnOnce(Stdio) -> Fut,
        Fut: Future<Output = Result<Exit, BoxError>>,
    {
        let Self { version, streams, mut incoming, handle, idle: limit } = self;
        let (count_in, count_out, count_err) = (Count::default(), Count::default(), Count::default());
        let moved = || (count_in.get(), count_out.get(), count_err.get());
        let gone = CancellationToken::new();
        // Fired on every way out, so that no process outlives its session.
        let _gone = gone.clone().drop_guard();
        let mut stdio = Stdio::new(gone.clone());
        stdio.stdin = streams.stdin.map(|stream| input(stream, &count_in));
        let (stdout, stdout_end) = output(streams.stdout, &count_out);
        let (stderr, stderr_end) = output(streams.stderr, &count_err);
        stdio.stdout = stdout;
        stdio.stderr = stderr;
        let (size, sizes) = watch::channel(None);
        stdio.resize = options.tty.then_some(sizes);
        let (_, mut error) = streams.error.expect("gathered").into_split();
        let (resize, _resize) = streams.resize.map(spdy::stream::Stream::into_split).unzip();

        let mut run = pin!(run(stdio));
        let ended = select! {
            biased;
            result = &mut run => Ended::Ran(result),
            ended = handle.closed() => Ended::ClientGone(cause_of(&ended)),
            () = drain.cancelled() => Ended::Failed(Cause::Drain, "the server is shutting down"),
            () = quiet(limit, moved) => Ended::Failed(Cause::Idle, "nothing was sent for too long"),
            never = refuse(&mut incoming) => match never {},
            never = resize_from(resize, size) => match never {},
        };
        let ran = match ended {
            Ended::Ran(result) => Ok(result),
            Ended::ClientGone(cause) => {
                gone.cancel();
                let _ = timeout(GRACE, run.as_mut()).await;
                Err((End::ClientGone, cause, "the client went away"))
            }
            Ended::Failed(cause, why) => {
                gone.cancel();
                let _ = timeout(GRACE, run.as_mut()).await;
                Err((End::Error, cause, why))
            }
        };

        // Data and FIN before the status, whatever the runtime did with its ends.
        let ending = async {
            stdout_end.finish().await;
            stderr_end.finish().await;
            let status = match &ran {
                Ok(result) => status::encode(version, result),
                Err((.., why)) => status::encode_failure(version, why),
            };
            tell(&mut error, &status).await
        };
        // A client that takes nothing of what is left has as long as a quiet session.
        let untold = select! {
            biased;
            told = ending => (!told).then_some(Cause::ClientLost),
            () = quiet(limit, moved) => Some(Cause::ClientSilent),
        };
        let (end, cause, detail) = match (ran, untold) {
            (Ok(_), Some(cause)) => {
                // A command may end because its client has gone, and be seen first.
                let cause = handle.closed().now_or_never().map_or(cause, |ended| cause_of(&ended));
                (End::ClientGone, cause, "the client went away before it had the status")
            }
            (Ok(Ok(Exit::Success)), None) => (End::Success, Cause::Finished, "the command ended"),
            (Ok(Ok(Exit::Code(code))), None) => (End::ExitCode(code), Cause::Finished, "the command ended"),
            (Ok(Err(_)), None) => (End::Error, Cause::Runtime, "the runtime could not run the command"),
            (Err(ended), _) => ended,
        };
        let mut report = Report::new(end, cause, detail);
        report.bytes.stdin = count_in.get();
        report.bytes.stdout = count_out.get();
        report.bytes.stderr = count_err.get();
        report
    }
}

enum Ended {
    Ran(Result<Exit, BoxError>),
    ClientGone(Cause),
    Failed(Cause, &'static str),
}

/// Why the client's connection ended before the command did.
fn cause_of(ended: &Result<(), spdy::Error>) -> Cause {
    match ended {
        Ok(()) => Cause::ClientClosed,
        Err(error) if error.is_timeout() => Cause::ClientSilent,
        Err(error) if error.is_protocol() || error.is_limit() => Cause::ClientProtocol,
        Err(_) => Cause::ClientLost,
    }
}

/// Writes the status and FIN. Whether the client's connection took it.
async fn tell(error: &mut WriteHalf, status: &str) -> bool {
    error.write_all(status.as_bytes()).await.is_ok() && error.shutdown().await.is_ok()
}

/// Refuses what comes beyond the session's streams; never returns.
async fn refuse(incoming: &mut Incoming) -> Infallible {
    while let Some(stream) = incoming.accept().await {
        tracing::debug!(stream.id = %stream.id(), "a stream too many refused");
        stream.refuse(ResetCode::REFUSED_STREAM);
    }
    // The connection's end is told by its handle.
    pending().await
}

/// Tells the terminal's sizes; never returns.
async fn resize_from(stream: Option<ReadHalf>, size: watch::Sender<Option<TerminalSize>>) -> Infallible {
    let mut decoder = ResizeDecoder::default();
    if let Some(mut stream) = stream {
        let mut buf = [0; 256];
        while let Ok(read @ 1..) = stream.read(&mut buf).await {
            if let Some(latest) = decoder.push(&buf[..read]) {
                size.send_replace(Some(latest));
            }
        }
    }
    pending().await
}

#[cfg(test)]
#[cfg(feature = "client")]
mod tests;
