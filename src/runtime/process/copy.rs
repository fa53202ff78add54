//! Carries bytes between a session's streams and a process, one chunk at a time.

use std::{convert::Infallible, fmt, future::pending, io, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    sync::watch,
    time::sleep,
};
use tokio_util::sync::CancellationToken;

use super::spawn::{Stdin, Terminal};
use crate::remote_command::{Input, Output, TerminalSize};

/// Bytes that are on their way in one direction of a stream; also the longest message many clients take.
pub(super) const CHUNK: usize = 32 * 1024;

/// How long a pipe may be silent after its process has ended before what still holds it open is left behind.
/// containerd waits for ever by default; a forgotten background job would hold the session as long.
pub(super) const QUIET: Duration = Duration::from_secs(10);

/// The way out of a process.
pub(super) struct Source {
    reader: Box<dyn AsyncRead + Send + Unpin>,
    buffer: Vec<u8>,
    terminal: bool,
    exited: CancellationToken,
}

impl Source {
    pub(super) fn pipe(reader: impl AsyncRead + Send + Unpin + 'static, exited: CancellationToken) -> Self {
        Self { reader: Box::new(reader), buffer: Vec::with_capacity(CHUNK), terminal: false, exited }
    }

    pub(super) fn terminal(reader: impl AsyncRead + Send + Unpin + 'static, exited: CancellationToken) -> Self {
        Self { terminal: true, ..Self::pipe(reader, exited) }
    }

    /// The next bytes; `None` is the end. A terminal's end reads as EIO.
    ///
    /// # Cancel safety
    ///
    /// Nothing was read when this is dropped before it returned.
    pub(super) async fn next(&mut self) -> Option<&[u8]> {
        self.buffer.clear();
        let quiet = async {
            self.exited.cancelled().await;
            sleep(QUIET).await;
        };
        let read = tokio::select! {
            biased;
            read = self.reader.read_buf(&mut self.buffer) => read,
            () = quiet => {
                tracing::debug!("output left to processes that outlive the command");
                Ok(0)
            }
        };
        match read {
            Ok(0) => None,
            Ok(_) => Some(&self.buffer),
            Err(error) => {
                if !self.terminal {
                    tracing::debug!(%error, "output of a process cannot be read");
                }
                None
            }
        }
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source").field("terminal", &self.terminal).finish_non_exhaustive()
    }
}

/// Writes to an [`Output`] and flushes it when nothing more is there to write.
pub(super) struct Writer {
    output: Output,
    flushed: bool,
}

impl Writer {
    pub(super) fn new(output: Output) -> Self {
        Self { output, flushed: true }
    }

    pub(super) async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.flushed = false;
        self.output.write_all(bytes).await
    }

    /// Flushes if there is something to flush, then waits for ever, so that it can stand beside what brings more.
    pub(super) async fn flush_idle(&mut self) -> io::Error {
        if !self.flushed {
            if let Err(error) = self.output.flush().await {
                return error;
            }
            self.flushed = true;
        }
        pending().await
    }

    /// Ends the output.
    pub(super) async fn end(mut self) {
        if let Err(error) = self.output.shutdown().await {
            tracing::debug!(%error, "output not ended");
        }
    }
}

/// Copies all that comes out of a process, then ends the output. Without an output it is thrown away.
///
/// When the output is taken no more, a pipe is closed, as `| head` does. A terminal is read on, since closing it would
/// be a hang-up, and that is for the session to decide.
pub(super) async fn drain(source: &mut Option<Source>, output: Option<Output>) {
    let mut writer = output.map(Writer::new);
    while let Some(open) = source {
        let broken = match &mut writer {
            None if open.next().await.is_none() => break,
            None => continue,
            Some(writer) => tokio::select! {
                biased;
                chunk = open.next() => match chunk {
                    None => break,
                    Some(chunk) => writer.write(chunk).await.err(),
                },
                error = writer.flush_idle() => Some(error),
            },
        };
        if let Some(error) = broken {
            tracing::debug!(%error, "output is taken no more");
            writer = None;
            source.take_if(|source| !source.terminal);
        }
    }
    if let Some(writer) = writer {
        writer.end().await;
    }
}

/// Copies what is typed to the process. Never returns: that input has ended does not end a session.
///
/// When the process takes no more, the rest is thrown away, so that it does not stand in the way of other streams.
pub(super) async fn feed(input: Option<Input>, stdin: &mut Option<Stdin>) -> Infallible {
    let Some(mut input) = input else { return pending().await };
    let mut buffer = Vec::with_capacity(CHUNK);
    loop {
        buffer.clear();
        match input.read_buf(&mut buffer).await {
            Ok(0) => break,
            Ok(_) => feed_chunk(stdin, &buffer).await,
            Err(error) => {
                // Lost is not ended: the process must not take what came so far for all there is.
                tracing::debug!(%error, "input lost");
                return pending().await;
            }
        }
    }
    drop(buffer);
    if let Some(open) = stdin.take()
        && let Err(error) = open.end().await
    {
        tracing::debug!(%error, "input not ended");
    }
    pending().await
}

/// Hands a chunk to the process, unless it has closed its input.
pub(super) async fn feed_chunk(stdin: &mut Option<Stdin>, chunk: &[u8]) {
    if let Some(open) = stdin
        && let Err(error) = open.write(chunk).await
    {
        tracing::debug!(%error, "input is taken no more");
        *stdin = None;
    }
}

/// Gives the terminal each new size; the latest wins. Never returns.
pub(super) async fn follow_size(
    terminal: &Option<Terminal>,
    sizes: Option<watch::Receiver<Option<TerminalSize>>>,
) -> Infallible {
    let (Some(terminal), Some(mut sizes)) = (terminal, sizes) else { return pending().await };
    loop {
        let size = *sizes.borrow_and_update();
        if let Some(size) = size {
            terminal.resize(size);
        }
        if sizes.changed().await.is_err() {
            return pending().await;
        }
    }
}
