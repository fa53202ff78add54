//! Keeps a container's main process running, and lets sessions attach to it.

use std::{
    convert::Infallible,
    future::pending,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use rustix::process::Signal;
use tokio::{
    io::AsyncReadExt,
    join,
    sync::{mpsc, watch},
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::{
    Main,
    copy::{CHUNK, Source, Writer, feed_chunk, follow_size},
    spawn::{Recipe, Started, Stdin},
};
use crate::{
    BoxError,
    remote_command::{Exit, Input, Output, Stdio, TerminalSize},
};

/// Wait before the first restart: who leaves an attached shell finds a fresh one.
const BACK_OFF: Duration = Duration::from_millis(200);

/// Longest wait between restarts, doubled up to here; also how long a process must run for the next wait to be short.
const MAX_BACK_OFF: Duration = Duration::from_secs(10);

/// The main process of one container.
#[derive(Debug)]
pub(super) struct MainProcess {
    main: Main,
    hostname: String,
    state: watch::Sender<State>,
    /// The last size an attached client told; it outlives the process.
    size: watch::Sender<Option<TerminalSize>>,
    supervised: AtomicBool,
    stop: CancellationToken,
}

#[derive(Clone, Debug)]
enum State {
    Starting,
    Running(Arc<Live>),
    /// It could not be started; another try comes.
    Failed(String),
    /// The runtime was dropped.
    Stopped,
}

/// What sessions share with one run of the process.
#[derive(Debug)]
struct Live {
    stdout: Fanout,
    stderr: Fanout,
    stdin: mpsc::Sender<Bytes>,
    ended: CancellationToken,
}

impl MainProcess {
    pub(super) fn new(main: Main, hostname: String, stop: CancellationToken) -> Self {
        Self {
            main,
            hostname,
            state: watch::Sender::new(State::Starting),
            size: watch::Sender::new(None),
            supervised: AtomicBool::new(false),
            stop,
        }
    }

    pub(super) fn main(&self) -> &Main {
        &self.main
    }

    /// Starts the process and sees to it that it stays, unless that is done already or there is none.
    pub(super) fn start(self: &Arc<Self>) {
        if self.main.command.is_empty() || self.supervised.swap(true, Ordering::Relaxed) {
            return;
        }
        let this = Arc::clone(self);
        let supervisor = async move {
            this.stop.run_until_cancelled(this.supervise()).await;
            this.state.send_replace(State::Stopped);
        };
        tokio::spawn(supervisor.in_current_span());
    }

    async fn supervise(&self) -> Infallible {
        let recipe = Recipe {
            command: self.main.command.clone(),
            hostname: self.hostname.clone(),
            tty: self.main.tty,
            stdin: self.main.stdin,
            stdout: true,
            stderr: true,
        };
        let mut back_off = BACK_OFF;
        loop {
            let began = Instant::now();
            let size = *self.size.borrow();
            match recipe.spawn(size) {
                Ok(started) => self.run(started).await,
                Err(error) => {
                    tracing::warn!(%error, "main process not started");
                    self.state.send_replace(State::Failed(error.to_string()));
                }
            }
            if began.elapsed() >= MAX_BACK_OFF {
                back_off = BACK_OFF;
            }
            sleep(back_off).await;
            back_off = MAX_BACK_OFF.min(back_off * 2);
        }
    }

    /// Carries the streams of one run until its end. Dropped, it kills the process group.
    async fn run(&self, started: Started) {
        // The group comes last, so that it is killed first if this is dropped: see `Started`.
        let Started { mut stdin, mut stdout, mut stderr, terminal, exited, mut group } = started;
        let (typing, typed) = mpsc::channel(1);
        let live = Arc::new(Live {
            stdout: Fanout::default(),
            stderr: Fanout::default(),
            stdin: typing,
            ended: CancellationToken::new(),
        });
        self.state.send_replace(State::Running(Arc::clone(&live)));
        let _ended = Ended { main: self, live: &live };

        let ended = async {
            let leader = async {
                let exit = group.exited().await;
                exited.cancel();
                // As in a container, whose other processes do not outlive the first.
                group.signal(Signal::KILL);
                exit
            };
            join!(leader, fan_out(&mut stdout, &live.stdout), fan_out(&mut stderr, &live.stderr)).0
        };
        tokio::select! {
            exit = ended => tracing::debug!(?exit, "main process ended"),
            never = take_typed(typed, &mut stdin) => match never {},
            never = follow_size(&terminal, Some(self.size.subscribe())) => match never {},
        }
    }

    /// Joins a session to the process until one of them ends.
    ///
    /// # Cancel safety
    ///
    /// Dropped, it detaches; output that was on its way to the session is lost to it.
    pub(super) async fn attach(self: Arc<Self>, stdio: Stdio) -> Result<Exit, BoxError> {
        self.start();
        let gone = stdio.gone.clone();
        tokio::select! {
            biased;
            () = gone.cancelled() => Ok(Exit::Success),
            result = self.attached(stdio) => result,
        }
    }

    async fn attached(&self, stdio: Stdio) -> Result<Exit, BoxError> {
        let live = self.live().await?;
        // Joined before anything is typed, so that the answer is not missed.
        let stdout = stdio.stdout.map(|output| (live.stdout.join(), output));
        let stderr = stdio.stderr.map(|output| (live.stderr.join(), output));
        let ended = async {
            join!(relay(stdout), relay(stderr), live.ended.cancelled());
        };
        tokio::select! {
            () = ended => Ok(Exit::Success),
            never = self.type_into(stdio.stdin, &live) => match never {},
            never = self.tell_size(stdio.resize) => match never {},
        }
    }

    /// The run there is, or the next one if one is about to start.
    async fn live(&self) -> Result<Arc<Live>, BoxError> {
        let mut state = self.state.subscribe();
        let state = state.wait_for(|state| !matches!(state, State::Starting)).await?;
        match &*state {
            State::Running(live) => Ok(Arc::clone(live)),
            State::Failed(why) => Err(why.clone().into()),
            State::Starting | State::Stopped => Err("the container is stopped".into()),
        }
    }

    /// Types what a client sends. Its end is not the process's: others may type on.
    async fn type_into(&self, input: Option<Input>, live: &Live) -> Infallible {
        let Some(mut input) = input else { return pending().await };
        let mut buffer = Vec::with_capacity(CHUNK);
        loop {
            buffer.clear();
            match input.read_buf(&mut buffer).await {
                Ok(0) => break,
                Ok(_) if self.main.stdin => {
                    // An error is the end of the process, which ends the session.
                    let _ = live.stdin.send(Bytes::copy_from_slice(&buffer)).await;
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::debug!(%error, "input lost");
                    break;
                }
            }
        }
        drop(buffer);
        pending().await
    }

    async fn tell_size(&self, sizes: Option<watch::Receiver<Option<TerminalSize>>>) -> Infallible {
        let Some(mut sizes) = sizes else { return pending().await };
        loop {
            let size = *sizes.borrow_and_update();
            if size.is_some() {
                self.size.send_replace(size);
            }
            if sizes.changed().await.is_err() {
                return pending().await;
            }
        }
    }
}

/// Ends one run for all who are attached, also when it is dropped midway.
struct Ended<'a> {
    main: &'a MainProcess,
    live: &'a Live,
}

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        // First, so that who attaches now gets the next run and not the end of this one.
        self.main.state.send_replace(State::Starting);
        self.live.stdout.close();
        self.live.stderr.close();
        self.live.ended.cancel();
    }
}

/// One output of the process, for all who listen. `None` once it has ended.
#[derive(Debug)]
struct Fanout(Mutex<Option<Vec<mpsc::Sender<Bytes>>>>);

impl Default for Fanout {
    fn default() -> Self {
        Self(Mutex::new(Some(Vec::new())))
    }
}

impl Fanout {
    fn lock(&self) -> MutexGuard<'_, Option<Vec<mpsc::Sender<Bytes>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Listens from now on.
    fn join(&self) -> mpsc::Receiver<Bytes> {
        let (sender, receiver) = mpsc::channel(1);
        if let Some(listeners) = &mut *self.lock() {
            // Here too: a silent process never sends, and sessions may come and go.
            listeners.retain(|listener| !listener.is_closed());
            listeners.push(sender);
        }
        receiver
    }

    /// Returns when every listener has taken it or is gone: the slowest sets the pace, and nothing is dropped.
    async fn send(&self, chunk: &[u8]) {
        let listeners = match &mut *self.lock() {
            Some(listeners) => {
                listeners.retain(|listener| !listener.is_closed());
                listeners.clone()
            }
            None => return,
        };
        if listeners.is_empty() {
            return;
        }
        let chunk = Bytes::copy_from_slice(chunk);
        for listener in listeners {
            // An error is a listener that has gone.
            let _ = listener.send(chunk.clone()).await;
        }
    }

    fn close(&self) {
        self.lock().take();
    }
}

async fn fan_out(source: &mut Option<Source>, fanout: &Fanout) {
    if let Some(source) = source {
        while let Some(chunk) = source.next().await {
            fanout.send(chunk).await;
        }
    }
    fanout.close();
}

/// Writes what is heard until its end. A broken output only stops listening: the session's end is told by `gone`.
async fn relay(stream: Option<(mpsc::Receiver<Bytes>, Output)>) {
    let Some((mut chunks, output)) = stream else { return };
    let mut writer = Writer::new(output);
    loop {
        let broken = tokio::select! {
            biased;
            chunk = chunks.recv() => match chunk {
                None => return writer.end().await,
                Some(chunk) => writer.write(&chunk).await.err(),
            },
            error = writer.flush_idle() => Some(error),
        };
        if let Some(error) = broken {
            tracing::debug!(%error, "output is taken no more");
            return;
        }
    }
}

/// Hands what is typed to the process; thrown away once it has closed its input.
async fn take_typed(mut typed: mpsc::Receiver<Bytes>, stdin: &mut Option<Stdin>) -> Infallible {
    while let Some(chunk) = typed.recv().await {
        feed_chunk(stdin, &chunk).await;
    }
    pending().await
}
