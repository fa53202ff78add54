//! `kubectl exec`, and what it shares with `attach`.

use std::{
    io::{self, Write as _},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use clap::{ArgAction, Args};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
    time::sleep,
};
use tokio_util::sync::CancellationToken;
use tower_kube_streaming::{
    client::Opened,
    remote_command::{Exit, Input, Stdio, TerminalSize},
    upgrade::StreamOptions,
};

use super::{
    cluster::Cluster,
    detach::Keyboard,
    failure::{Failure, of_exit},
    flags::{boolean, duration, must_wait},
    object,
    pod::Pod,
    remote::Remote,
    stdio,
    terminal::{self, Interrupts, Raw},
};

/// Exit code of a program that a closed pipe has ended, as shells count it.
const BROKEN_PIPE: i32 = 141;
/// A terminal that is attached to is told a size that is one too large for so long, so that programs draw anew.
const REDRAW: Duration = Duration::from_millis(50);
/// What was typed before the keys that leave has so long to arrive. A runtime that ends a session with its stdin has ended
/// it by then; others never would.
const LEAVE: Duration = Duration::from_millis(500);
const NO_COMMAND: &str = "you must specify at least one command for the container";
const NOT_A_TERMINAL: &str = "Unable to use a TTY - input is not a terminal or the right kind of file";

/// The flags of `exec` and `attach`.
#[derive(Args, Debug)]
pub(crate) struct Streams {
    /// Container name [default: the pod's default container, or its first].
    #[arg(short, long, value_name = "NAME")]
    pub(crate) container: Option<String>,
    /// Pass stdin to the container.
    #[arg(short = 'i', long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value_t = false,
          default_missing_value = "true", action = ArgAction::Set, value_parser = boolean)]
    pub(crate) stdin: bool,
    /// Stdin is a TTY.
    #[arg(short, long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value_t = false,
          default_missing_value = "true", action = ArgAction::Set, value_parser = boolean)]
    pub(crate) tty: bool,
    /// Only print output from the remote session.
    #[arg(short, long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value_t = false,
          default_missing_value = "true", action = ArgAction::Set, value_parser = boolean)]
    pub(crate) quiet: bool,
    /// How long to wait for a workload's pod to run, such as 5s, 2m or 3h.
    #[arg(long, value_name = "TIME", default_value = "1m0s", value_parser = duration)]
    pub(crate) pod_running_timeout: Duration,
}

#[derive(Args, Debug)]
#[command(override_usage = "kubectl exec (POD | TYPE/NAME) [-c CONTAINER] [flags] -- COMMAND [args...]")]
pub(crate) struct Exec {
    #[arg(value_name = "POD | TYPE/NAME")]
    pod: Vec<String>,
    /// JSON or YAML of a Pod, or of a workload or a Service that stands for one, in place of its name: one local file.
    #[arg(short, long, value_name = "FILE", value_delimiter = ',')]
    filename: Vec<String>,
    #[arg(last = true)]
    command: Vec<String>,
    #[command(flatten)]
    streams: Streams,
}

impl Exec {
    /// What can be said without a cluster.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        must_wait(self.streams.pod_running_timeout, "exec")?;
        match &self.pod[..] {
            [] if self.files().is_empty() => Err(Failure::error("pod, type/name or --filename must be specified")),
            [] | [_] if !self.command.is_empty() => Ok(()),
            [_] if self.files().is_empty() => Err(Failure::error(NO_COMMAND)),
            [] => Err(Failure::error(NO_COMMAND)),
            _ => Err(Failure::error(
                "exec [POD] [COMMAND] is not supported anymore. Use exec [POD] -- [COMMAND] instead\n\
                 See 'kubectl exec -h' for help and examples",
            )),
        }
    }

    /// As in kubectl an empty name is none.
    fn files(&self) -> &[String] {
        if self.filename == [""] { &[] } else { &self.filename }
    }

    pub(crate) async fn run(self, cluster: &Cluster) -> Result<(), Failure> {
        let wait = self.streams.pod_running_timeout;
        let pod = match self.files() {
            [] => Pod::find(cluster, &self.pod[0], wait).await?,
            files => Pod::find_by(cluster, object::read(files, !self.pod.is_empty())?, wait).await?,
        };
        pod.must_not_have_ended("exec into")?;
        let container = pod.container(self.streams.container.as_deref(), self.streams.quiet).map_err(Failure::error)?;
        let tty = may_be_terminal(&self.streams, self.streams.tty);
        let options = StreamOptions {
            stdin: self.streams.stdin,
            stdout: true,
            stderr: !tty,
            tty,
            command: self.command,
            ..StreamOptions::default()
        };
        let remote = Remote::new(cluster);
        let opened = remote.open("exec", &pod, container.name, options.clone()).await;
        let opened = opened.map_err(|error| remote.failure(&error))?;
        of_exit(&converse(&remote, opened, &options, None).await?)
    }
}

/// Whether the session gets the terminal that was asked for. As in kubectl there is none without stdin, silently.
pub(crate) fn may_be_terminal(streams: &Streams, asked: bool) -> bool {
    if !asked || !streams.stdin {
        return false;
    }
    let is = terminal::on_stdin();
    if !is && !streams.quiet {
        let _ = writeln!(io::stderr(), "{NOT_A_TERMINAL}");
    }
    is
}

/// Joins the user to a session until it ends. With a terminal, that is raw meanwhile and its size is told. `detach`: it is
/// attached to, so that programs on it are made to draw anew, and these keys leave it.
pub(crate) async fn converse(
    remote: &Remote<'_>,
    opened: Opened,
    options: &StreamOptions,
    detach: Option<Vec<u8>>,
) -> Result<Exit, Failure> {
    let redraw = detach.is_some();
    let left = CancellationToken::new();
    let closed = Arc::new(AtomicBool::new(false));
    let mut streams = Stdio::new(CancellationToken::new());
    streams.stdin = options.stdin.then(|| match detach {
        Some(keys) => Input::new(Keyboard::new(stdio::stdin(), keys, left.clone())),
        None => stdio::stdin(),
    });
    streams.stdout = options.stdout.then(|| stdio::stdout(&closed));
    streams.stderr = options.stderr.then(stdio::stderr);
    let ended = if options.tty {
        // Caught before the terminal is raw: a signal between would leave it so.
        let told = |error: std::io::Error| Failure::error(error.to_string());
        let mut interrupts = Interrupts::new().map_err(told)?;
        let (tell, sizes) = watch::channel(terminal::size());
        streams.resize = Some(sizes);
        let raw = Raw::enter().map_err(told)?;
        let ended = tokio::select! {
            ended = opened.run(streams) => Some(ended),
            () = interrupts.any() => None,
            () = async { left.cancelled().await; sleep(LEAVE).await } => Some(Ok(Exit::Success)),
            never = tell_sizes(tell, redraw) => match never {},
        };
        drop(raw);
        // kubectl's code for each of the signals.
        ended.ok_or_else(|| Failure::silent(1))?
    } else {
        opened.run(streams).await
    };
    ended.map_err(
        |error| {
            if closed.load(Ordering::Relaxed) { Failure::silent(BROKEN_PIPE) } else { remote.failure(&error) }
        },
    )
}

/// Follows the terminal's size.
async fn tell_sizes(tell: watch::Sender<Option<TerminalSize>>, redraw: bool) -> std::convert::Infallible {
    let changes = signal(SignalKind::window_change());
    if redraw {
        let larger = |size: TerminalSize| TerminalSize {
            width: size.width.saturating_add(1),
            height: size.height.saturating_add(1),
        };
        tell.send_replace(terminal::size().map(larger));
        sleep(REDRAW).await;
    }
    // It may have changed before the signal was caught.
    tell.send_replace(terminal::size());
    let Ok(mut changes) = changes else { return std::future::pending().await };
    loop {
        changes.recv().await;
        tell.send_replace(terminal::size());
    }
}
