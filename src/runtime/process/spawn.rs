//! Starts a process on pipes or on a terminal.

#[cfg(target_os = "linux")]
use std::os::fd::AsFd;
use std::{
    io,
    pin::Pin,
    process::Stdio,
    sync::{Arc, Mutex, PoisonError, RwLock},
    task::{Context, Poll},
};

use pty_process::{OwnedWritePty, Size};
#[cfg(target_os = "linux")]
use rustix::pipe::fcntl_setpipe_size;
#[cfg(target_os = "linux")]
use tokio::process::Child;
use tokio::{
    io::{AsyncWrite, AsyncWriteExt},
    process::{ChildStdin, Command},
};
use tokio_util::sync::CancellationToken;

use super::{copy::Source, group::Group};
use crate::{BoxError, remote_command::TerminalSize};

/// A new terminal is inherited by whatever is forked before it is marked close-on-exec, and then outlives us there. So
/// no process of ours starts while a terminal is opened.
static OPENING_TERMINAL: RwLock<()> = RwLock::new(());

/// Bytes that a pipe to a process holds. Of Linux's 64 KiB, either side soon has to wait for the other.
#[cfg(target_os = "linux")]
const PIPE: usize = 256 * 1024;

/// What a terminal takes for the end of input at the beginning of a line.
const END_OF_FILE: u8 = 0x04;

/// What to start, and which streams it gets. The others are `/dev/null`.
#[derive(Clone, Debug)]
pub(super) struct Recipe {
    pub(super) command: Vec<String>,
    pub(super) hostname: String,
    pub(super) tty: bool,
    pub(super) stdin: bool,
    pub(super) stdout: bool,
    /// Means nothing with a terminal.
    pub(super) stderr: bool,
}

/// A started process and our ends of its streams.
///
/// The ends must not be closed before the group is killed: what reads its input would take it for complete.
#[derive(Debug)]
pub(super) struct Started {
    pub(super) group: Group,
    pub(super) stdin: Option<Stdin>,
    pub(super) stdout: Option<Source>,
    pub(super) stderr: Option<Source>,
    pub(super) terminal: Option<Terminal>,
    /// To be cancelled when the process has ended: the sources then end after a while of silence.
    pub(super) exited: CancellationToken,
}

impl Recipe {
    /// Starts the process. On a terminal, `size` is there from the beginning.
    pub(super) fn spawn(&self, size: Option<TerminalSize>) -> Result<Started, BoxError> {
        let (program, arguments) = self.command.split_first().ok_or("no command")?;
        let mut command = Command::new(program);
        command.args(arguments).env("HOSTNAME", &self.hostname);
        let started = if self.tty { self.on_terminal(command, size) } else { self.on_pipes(command) };
        started.map_err(|error| explain(program, &error).into())
    }

    fn on_pipes(&self, mut command: Command) -> io::Result<Started> {
        let pipe = |wanted: bool| if wanted { Stdio::piped() } else { Stdio::null() };
        command.stdin(pipe(self.stdin)).stdout(pipe(self.stdout)).stderr(pipe(self.stderr)).process_group(0);
        let mut child = {
            let _none_is_opened = OPENING_TERMINAL.read().unwrap_or_else(PoisonError::into_inner);
            command.spawn()?
        };
        #[cfg(target_os = "linux")]
        widen(&child);
        let exited = CancellationToken::new();
        Ok(Started {
            stdin: child.stdin.take().map(Stdin::Pipe),
            stdout: child.stdout.take().map(|pipe| Source::pipe(pipe, exited.clone())),
            stderr: child.stderr.take().map(|pipe| Source::pipe(pipe, exited.clone())),
            terminal: None,
            exited,
            group: Group::new(child),
        })
    }

    fn on_terminal(&self, mut command: Command, size: Option<TerminalSize>) -> io::Result<Started> {
        command.env("TERM", "xterm");
        let (ours, theirs) = {
            let _alone = OPENING_TERMINAL.write().unwrap_or_else(PoisonError::into_inner);
            pty_process::open().map_err(io_error)?
        };
        if let Some(size) = size.and_then(in_cells) {
            ours.resize(size).map_err(io_error)?;
        }
        let child = {
            let _none_is_opened = OPENING_TERMINAL.read().unwrap_or_else(PoisonError::into_inner);
            // Drops their side: from now on it is closed when the process closes it.
            pty_process::Command::from(command).spawn(theirs).map_err(io_error)?
        };
        let group = Group::new(child);
        let (reader, writer) = ours.into_split();
        let terminal = Terminal(Arc::new(Mutex::new(writer)));
        let exited = CancellationToken::new();
        Ok(Started {
            group,
            stdin: self.stdin.then(|| Stdin::Terminal { terminal: terminal.clone(), within_line: false }),
            stdout: Some(Source::terminal(reader, exited.clone())),
            stderr: None,
            terminal: Some(terminal),
            exited,
        })
    }
}

/// Gives a process' pipes more room, unless their user has too many wide ones (`pipe(7)`).
#[cfg(target_os = "linux")]
fn widen(child: &Child) {
    let (stdin, stdout, stderr) = (child.stdin.as_ref(), child.stdout.as_ref(), child.stderr.as_ref());
    let pipes = [stdin.map(AsFd::as_fd), stdout.map(AsFd::as_fd), stderr.map(AsFd::as_fd)];
    for pipe in pipes.into_iter().flatten() {
        if let Err(error) = fcntl_setpipe_size(pipe, PIPE) {
            tracing::debug!(%error, "a pipe to a process stays narrow");
        }
    }
}

/// The words of runc and containerd, which people know and scripts search for.
fn explain(program: &str, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound if program.contains('/') => {
            format!("exec: {program:?}: stat {program}: no such file or directory")
        }
        io::ErrorKind::NotFound => format!("exec: {program:?}: executable file not found in $PATH"),
        io::ErrorKind::PermissionDenied => format!("exec: {program:?}: permission denied"),
        _ => format!("exec: {program:?}: {error}"),
    }
}

fn io_error(error: pty_process::Error) -> io::Error {
    match error {
        pty_process::Error::Io(error) => error,
        pty_process::Error::Rustix(error) => error.into(),
        other => io::Error::other(other.to_string()),
    }
}

fn in_cells(size: TerminalSize) -> Option<Size> {
    (size.width > 0 && size.height > 0).then(|| Size::new(size.height, size.width))
}

/// The way into a process.
#[derive(Debug)]
pub(super) enum Stdin {
    Pipe(ChildStdin),
    Terminal {
        terminal: Terminal,
        /// The last byte typed did not end a line.
        within_line: bool,
    },
}

impl Stdin {
    /// Hands all of it to the process, at the process's pace. An error means that it takes no more.
    pub(super) async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Pipe(pipe) => pipe.write_all(bytes).await,
            Self::Terminal { terminal, within_line } => {
                if let Some(last) = bytes.last() {
                    *within_line = !matches!(last, b'\n' | b'\r');
                }
                terminal.write_all(bytes).await
            }
        }
    }

    /// Tells the process that nothing more comes.
    pub(super) async fn end(self) -> io::Result<()> {
        match self {
            Self::Pipe(pipe) => {
                drop(pipe);
                Ok(())
            }
            // Within a line the first one only hands out what was typed of it.
            Self::Terminal { mut terminal, within_line: true } => terminal.write_all(&[END_OF_FILE; 2]).await,
            Self::Terminal { mut terminal, within_line: false } => terminal.write_all(&[END_OF_FILE]).await,
        }
    }
}

/// Our side of a terminal, for typing and for its size. Locked within one poll only.
#[derive(Clone, Debug)]
pub(super) struct Terminal(Arc<Mutex<OwnedWritePty>>);

impl Terminal {
    /// Sets the size; one that is not at least 1 by 1 is ignored, as containerd does.
    pub(super) fn resize(&self, size: TerminalSize) {
        let Some(size) = in_cells(size) else { return };
        if let Err(error) = self.lock().resize(size) {
            tracing::debug!(%error, "terminal not resized");
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, OwnedWritePty> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsyncWrite for Terminal {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.lock()).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[tokio::test]
    async fn pipes_to_a_process_are_wide() {
        let command = vec!["true".to_owned()];
        let recipe =
            Recipe { command, hostname: "host".to_owned(), tty: false, stdin: true, stdout: true, stderr: true };
        let started = recipe.spawn(None).expect("it starts");
        let Some(Stdin::Pipe(stdin)) = &started.stdin else { panic!("no pipe") };
        assert_eq!(rustix::pipe::fcntl_getpipe_size(stdin).expect("Linux says"), PIPE);
    }
}
