//! Runs commands of this host, on pipes or on a pseudo-terminal.
//!
//! There is no isolation: a "container" is a name, and its processes are children of this program with this program's
//! user, files and network.
//!
//! Every command leads a process group of its own, and with a terminal a session of its own. Signals go to that group,
//! so what a command starts ends with it, unless it leaves the group on purpose (`setsid`, a job of an interactive
//! shell that ignores the hang-up).

mod copy;
mod exec;
mod group;
mod loopback;
mod main_process;
mod spawn;
#[cfg(test)]
mod tests;

use std::{collections::HashMap, fmt, sync::Arc};

use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    BoxError,
    remote_command::{Exit, Stdio},
    runtime::{Runtime, Session},
    upgrade::{Refusal, StreamOptions, Subresource, Target},
};
use http::StatusCode;
pub use loopback::Loopback;
use main_process::MainProcess;
use spawn::Recipe;

/// The main process of a container: what `attach` attaches to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Main {
    /// Program and arguments. Empty: the container has no main process, and an attach is refused.
    pub command: Vec<String>,
    /// It runs on a terminal. An attach must ask for the same.
    pub tty: bool,
    /// Its input is open. Otherwise what an attached client types is discarded.
    pub stdin: bool,
}

/// A [`Runtime`] whose containers are processes of this host. See the [module's limits](ProcessSession).
///
/// Main processes are started by [`start`](Self::start) or by the first attach, and started again after they end: at
/// first after 200 ms, after at most 10 s if they keep ending. Their output goes to all who are attached at that time
/// and is discarded if nobody is; the slowest of those attached sets the pace until it is gone.
///
/// Dropping the runtime kills the main processes with their process groups. Sessions that run an exec are not touched:
/// they belong to whoever runs them.
///
/// The UID in a [`Target`] is not checked; pods have none here.
///
/// Commands inherit the signals that this program ignores. One that was started by a script's `&` ignores SIGINT, and so
/// would they, Ctrl-C on a terminal too, unless this program handles SIGINT: what is handled begins anew in a command.
///
/// ```
/// use tower_kube_streaming::runtime::{Main, ProcessRuntime};
///
/// let shell = Main { command: vec!["sh".into()], tty: true, stdin: true };
/// let runtime = ProcessRuntime::new().container("default", "demo", "shell", shell);
/// ```
pub struct ProcessRuntime {
    /// By namespace and name.
    pods: HashMap<(String, String), Pod>,
    stop: DropGuard,
}

struct Pod {
    /// In the order of their declaration; never empty.
    containers: Vec<(String, Arc<MainProcess>)>,
}

impl ProcessRuntime {
    /// A runtime without pods.
    #[must_use]
    pub fn new() -> Self {
        Self { pods: HashMap::new(), stop: CancellationToken::new().drop_guard() }
    }

    /// Declares a container. The first of a pod is the pod's default; one declared again is replaced.
    #[must_use]
    pub fn container(
        mut self,
        namespace: impl Into<String>,
        pod: impl Into<String>,
        name: impl Into<String>,
        main: Main,
    ) -> Self {
        let (pod, name) = (pod.into(), name.into());
        let process = Arc::new(MainProcess::new(main, pod.clone(), self.stop.token().clone()));
        let containers =
            &mut self.pods.entry((namespace.into(), pod)).or_insert_with(|| Pod { containers: Vec::new() }).containers;
        match containers.iter_mut().find(|(known, _)| *known == name) {
            Some((_, known)) => *known = process,
            None => containers.push((name, process)),
        }
        self
    }

    /// Starts all main processes that do not run yet.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn start(&self) {
        for (_, process) in self.pods.values().flat_map(|pod| &pod.containers) {
            process.start();
        }
    }

    fn pod(&self, target: &Target) -> Result<&Pod, Refusal> {
        self.pods
            .get(&(target.namespace.clone(), target.pod.clone()))
            .ok_or_else(|| Refusal::new(StatusCode::NOT_FOUND, "NotFound", "pod does not exist"))
    }

    fn find(&self, target: &Target) -> Result<&Arc<MainProcess>, Refusal> {
        let pod = self.pod(target)?;
        let found = match &target.container {
            Some(name) => pod.containers.iter().find(|(known, _)| known == name),
            None => pod.containers.first(),
        };
        found.map(|(_, process)| process).ok_or_else(|| {
            let name = target.container.as_deref().unwrap_or_default();
            // Upstream's own words, kubelet_pods.go: GetExec and GetAttach.
            Refusal::internal(match target.subresource {
                Subresource::Attach => {
                    format!("container {name} not found in pod {}_{}", target.pod, target.namespace)
                }
                _ => format!("container not found ({name:?})"),
            })
        })
    }
}

impl Default for ProcessRuntime {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for ProcessRuntime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProcessRuntime").field("pods", &self.pods.keys()).finish_non_exhaustive()
    }
}

impl Runtime for ProcessRuntime {
    type Session = ProcessSession;
    type Forward = Loopback;

    async fn open(&self, target: &Target) -> Result<ProcessSession, Refusal> {
        let options = &target.options;
        if target.subresource == Subresource::PortForward {
            return Err(Refusal::bad_request("a port-forward runs no command"));
        }
        if !(options.stdin || options.stdout || options.stderr) {
            return Err(Refusal::bad_request("you must specify at least 1 of stdin, stdout, stderr"));
        }
        let main = self.find(target)?;
        Ok(ProcessSession(match target.subresource {
            Subresource::Attach => {
                check_attach(main.main(), options)?;
                Kind::Attach(Arc::clone(main))
            }
            _ => Kind::Exec(exec_recipe(target)?),
        }))
    }

    async fn port_forward(&self, target: &Target) -> Result<Loopback, Refusal> {
        self.pod(target).map(|_| Loopback::default())
    }
}

fn exec_recipe(target: &Target) -> Result<Recipe, Refusal> {
    let options = &target.options;
    match options.command.first() {
        None => return Err(Refusal::bad_request("you must specify a command")),
        Some(program) if program.is_empty() => return Err(Refusal::bad_request("the command's name is empty")),
        Some(_) if options.command.iter().any(|part| part.contains('\0')) => {
            return Err(Refusal::bad_request("the command contains a NUL byte"));
        }
        Some(_) => {}
    }
    Ok(Recipe {
        command: options.command.clone(),
        hostname: target.pod.clone(),
        tty: options.tty,
        stdin: options.stdin,
        stdout: options.stdout,
        stderr: options.stderr,
    })
}

/// Refuses what would leave a client waiting for a stream that never comes (upstream's behaviour, 13.5 of its
/// semantics): the terminal is the container's, whatever the request says.
fn check_attach(main: &Main, options: &StreamOptions) -> Result<(), Refusal> {
    if main.command.is_empty() {
        return Err(Refusal::bad_request("the container has no main process to attach to"));
    }
    match (main.tty, options.tty) {
        (true, false) => Err(Refusal::bad_request("the container has a terminal: attach with tty")),
        (false, true) => Err(Refusal::bad_request("the container has no terminal: attach without tty")),
        _ => Ok(()),
    }
}

/// A command that is about to run, or a main process that is about to be attached to.
///
/// An exec ends when its process has ended and its output is read to the end. Processes it leaves behind may hold the
/// output open: then it ends when a pipe has been quiet for 10 s, and they live on. A reader that is slow is waited for
/// as long as it is there; beyond the kernel's pipe, 32 KiB a stream are held.
///
/// When [`Stdio::gone`] fires, or the future is dropped, the process group of an exec is killed; on a terminal, if it
/// is not dropped, it is hung up first and has a second to go. An attach only detaches. It ends when the main process
/// does, and holds up to 96 KiB of output a stream.
///
/// The end of input closes a pipe. On a terminal it types the end-of-file character, so a shell ends and its last
/// output still comes.
#[derive(Debug)]
pub struct ProcessSession(Kind);

#[derive(Debug)]
enum Kind {
    Exec(Recipe),
    Attach(Arc<MainProcess>),
}

impl Session for ProcessSession {
    async fn run(self, stdio: Stdio) -> Result<Exit, BoxError> {
        match self.0 {
            Kind::Exec(recipe) => exec::run(&recipe, stdio).await,
            Kind::Attach(main) => main.attach(stdio).await,
        }
    }
}
