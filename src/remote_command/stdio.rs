//! The streams of a session as a runtime sees them.

use std::{
    fmt, io,
    pin::Pin,
    task::{Context, Poll},
};

use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::watch,
};
use tokio_util::sync::CancellationToken;

/// Size of a terminal in character cells. On the wire `{"Width":80,"Height":24}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    /// Columns.
    #[serde(rename = "Width", alias = "width")]
    pub width: u16,
    /// Rows.
    #[serde(rename = "Height", alias = "height")]
    pub height: u16,
}

/// How a process ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Exit {
    /// Ended with code 0; also how an attach ends.
    Success,
    /// Ended with another code. A process killed by signal N ends with 128 + N.
    Code(u8),
}

/// The streams of one session. A stream that was not asked for is `None`.
#[derive(Debug)]
#[non_exhaustive]
pub struct Stdio {
    /// What the client types. Ends when the client half-closes; [`Stdio::gone`] tells a client that vanished.
    pub stdin: Option<Input>,
    /// Output of the process. Dropping it, or shutting it down, is its end.
    pub stdout: Option<Output>,
    /// Errors of the process; never there together with a terminal.
    pub stderr: Option<Output>,
    /// The latest size of the terminal; `None` until the client has told one. Only where the session has a terminal.
    pub resize: Option<watch::Receiver<Option<TerminalSize>>>,
    /// Fires when the client is gone: nobody reads the output any more.
    pub gone: CancellationToken,
}

impl Stdio {
    /// Streams from any pipes: what a runtime's own tests use.
    #[must_use]
    pub fn new(gone: CancellationToken) -> Self {
        Self { stdin: None, stdout: None, stderr: None, resize: None, gone }
    }
}

/// A stream into the process.
pub struct Input(Pin<Box<dyn AsyncRead + Send>>);

/// A stream out of the process.
pub struct Output(Pin<Box<dyn AsyncWrite + Send>>);

impl Input {
    /// Wraps any reader.
    pub fn new(reader: impl AsyncRead + Send + 'static) -> Self {
        Self(Box::pin(reader))
    }
}

impl Output {
    /// Wraps any writer.
    pub fn new(writer: impl AsyncWrite + Send + 'static) -> Self {
        Self(Box::pin(writer))
    }
}

impl fmt::Debug for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Input")
    }
}

impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Output")
    }
}

impl AsyncRead for Input {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.0.as_mut().poll_read(cx, buf)
    }
}

impl AsyncWrite for Output {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.0.as_mut().poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.as_mut().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.as_mut().poll_shutdown(cx)
    }
}
