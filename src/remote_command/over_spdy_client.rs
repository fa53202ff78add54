//! Remote command over SPDY: the client's side.

use std::{convert::Infallible, future::pending, io};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    join, select,
    sync::watch,
    try_join,
};

use super::{
    Exit, Input, Output, Stdio, TerminalSize, Version,
    status::{self, MAX_STATUS, Outcome},
};
use crate::{
    Error, Initiator,
    error::Kind,
    spdy::{self, Config, Handle, ReadHalf, RecvEnd, Stream, WriteHalf},
    upgrade::StreamOptions,
};

/// Bytes moved by one read.
const BUFFER: usize = 32 * 1024;

/// Runs a session on a connection whose `101` has come, to its end. Here `stdio` is the user's: stdin is read, stdout
/// and stderr are written, and [`Stdio::gone`] cancels. It must have the streams that `options` ask for.
///
/// v1 cannot tell the end of stdin, so the command does not see it.
///
/// # Errors
///
/// Lost connection, a stream that the server refused, silent server, broken protocol, a stream of ours that failed,
/// cancellation. A session without a status is an error or [`Outcome::Invalid`], never a success, except before v4,
/// where silence and an orderly end are one.
///
/// # Cancel safety
///
/// Dropping the future drops the connection.
pub async fn run<Io>(io: Io, version: Version, options: &StreamOptions, stdio: Stdio) -> Result<Outcome, Error>
where
    Io: AsyncRead + AsyncWrite + Unpin,
{
    let (handle, connection) = spdy::client(io, Config::new());
    let session = async {
        let gone = stdio.gone.clone();
        let outcome = select! {
            outcome = session(&handle, version, options, stdio) => outcome,
            () = gone.cancelled() => Err(Error::new(Kind::Cancelled, Initiator::User)),
        };
        handle.close();
        outcome
    };
    // How the connection ended is told by its streams.
    let (outcome, _) = join!(session, connection);
    outcome
}

async fn session(handle: &Handle, version: Version, options: &StreamOptions, stdio: Stdio) -> Result<Outcome, Error> {
    let open = async |name: &'static str, wanted: bool| match wanted {
        true => handle.open(&[("streamtype", name)]).await.map(Some),
        false => Ok(None),
    };
    // All go out together; nothing is sent on any before all are accepted.
    let (error, stdin, stdout, stderr, resize) = try_join!(
        open("error", true),
        open("stdin", options.stdin),
        open("stdout", options.stdout),
        open("stderr", options.stderr && !options.tty),
        open("resize", options.tty && version.has_resize()),
    )
    .map_err(lost)?;
    // Kept: the writing half of a stream that is only read would reset it if it were dropped.
    let (error, _error) = split(error);
    let (stdout, _stdout) = split(stdout);
    let (stderr, _stderr) = split(stderr);
    let (_stdin, stdin) = split(stdin);
    let (_resize, resize) = split(resize);

    let received = async {
        let (status, (), ()) =
            try_join!(read_status(error), write_all(stdout, stdio.stdout), write_all(stderr, stdio.stderr))?;
        Ok(status)
    };
    let (status, in_order) = select! {
        received = received => received?,
        failed = send(stdin, stdio.stdin, version) => return Err(failed),
        never = tell_sizes(resize, stdio.resize) => match never {},
    };
    Ok(match version.has_status() {
        true => status::decode(&status),
        false if !status.is_empty() => Outcome::Failed(String::from_utf8_lossy(&status).into_owned()),
        false if in_order => Outcome::Exited(Exit::Success),
        false => return Err(Error::new(Kind::Lost, Initiator::Remote)),
    })
}

fn split(stream: Option<Stream>) -> (Option<ReadHalf>, Option<WriteHalf>) {
    stream.map(Stream::into_split).unzip()
}

/// The whole error stream, and whether the server ended it rather than got lost.
async fn read_status(stream: Option<ReadHalf>) -> Result<(Vec<u8>, bool), Error> {
    let mut status = Vec::new();
    let Some(mut stream) = stream else { return Ok((status, false)) };
    let read = (&mut stream).take(MAX_STATUS as u64).read_to_end(&mut status).await;
    match read {
        Ok(_) => Ok((status, !matches!(stream.ended(), None | Some(RecvEnd::Lost)))),
        // A whole status is the truth, however the connection ended after it.
        Err(_) if !status.is_empty() => Ok((status, false)),
        Err(error) => Err(lost(error)),
    }
}

async fn write_all(from: Option<ReadHalf>, to: Option<Output>) -> Result<(), Error> {
    let Some(mut from) = from else { return Ok(()) };
    let mut to = to.unwrap_or_else(|| Output::new(tokio::io::sink()));
    let mut buffer = vec![0; BUFFER];
    loop {
        match from.read(&mut buffer).await.map_err(lost)? {
            0 => return to.shutdown().await.map_err(ours),
            read => {
                to.write_all(&buffer[..read]).await.map_err(ours)?;
                to.flush().await.map_err(ours)?;
            }
        }
    }
}

/// Sends stdin and its end; returns only if our side of it failed.
async fn send(to: Option<WriteHalf>, from: Option<Input>, version: Version) -> Error {
    if let (Some(mut to), Some(mut from)) = (to, from) {
        let mut buffer = vec![0; BUFFER];
        loop {
            match from.read(&mut buffer).await {
                Err(error) => return ours(error),
                Ok(0) => break,
                Ok(read) => {
                    if to.write_all(&buffer[..read]).await.is_err() {
                        // The process takes no more; what it says is still to come.
                        break;
                    }
                }
            }
        }
        if version > Version::V1 {
            let _ = to.shutdown().await;
        }
        // Kept open to the end, or it would be reset.
        pending::<()>().await;
    }
    pending().await
}

/// Tells each size; never returns.
async fn tell_sizes(to: Option<WriteHalf>, sizes: Option<watch::Receiver<Option<TerminalSize>>>) -> Infallible {
    if let (Some(mut to), Some(mut sizes)) = (to, sizes) {
        sizes.mark_changed();
        while sizes.changed().await.is_ok() {
            let Some(size) = *sizes.borrow_and_update() else { continue };
            let json = serde_json::to_string(&size).expect("two numbers") + "\n";
            if to.write_all(json.as_bytes()).await.is_err() {
                break;
            }
        }
        pending::<()>().await;
    }
    pending().await
}

fn lost(error: impl Into<crate::BoxError>) -> Error {
    Error::new(Kind::Lost, Initiator::Remote).with(error)
}

fn ours(error: io::Error) -> Error {
    Error::new(Kind::Cancelled, Initiator::User).with(error)
}
