//! Sandboxes and containers in memory, and what streams into them: the state behind the RPCs, and the library's `Runtime`.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use http::StatusCode;
use time::OffsetDateTime;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::Status;
use tower_kube_streaming::{
    BoxError,
    remote_command::{Exit, Stdio},
    runtime::{Loopback, Main, ProcessRuntime, ProcessSession, Runtime, Session},
    upgrade::{Refusal, Target},
};

use crate::{
    messages::{
        CONTAINER_CREATED, CONTAINER_EXITED, CONTAINER_RUNNING, Container, ContainerConfig, ContainerFilter,
        ContainerStatus, CreateContainerRequest, Labels, PodSandbox, PodSandboxConfig, PodSandboxFilter,
        SANDBOX_NOTREADY, SANDBOX_READY,
    },
    support::random_hex,
};

/// Most sandboxes, and most containers. As a Pod is at most 4 MiB, which is what tonic reads, memory is bounded too.
const MOST: usize = 1_000;

/// What this runtime runs. Every container is a process of this host.
#[derive(Default)]
pub struct Node(Mutex<State>);

#[derive(Default)]
struct State {
    sandboxes: HashMap<String, Sandbox>,
    containers: HashMap<String, OneContainer>,
}

struct Sandbox {
    config: PodSandboxConfig,
    ready: bool,
    created_at: i64,
}

struct OneContainer {
    sandbox: String,
    config: ContainerConfig,
    created_at: i64,
    started_at: i64,
    finished_at: i64,
    life: Life,
}

enum Life {
    Created,
    Running(Running),
    Exited,
}

/// Dropped, it ends the main process and all execs.
struct Running {
    process: Arc<ProcessRuntime>,
    execs: DropGuard,
}

impl Life {
    fn state(&self) -> i32 {
        match self {
            Self::Created => CONTAINER_CREATED,
            Self::Running(_) => CONTAINER_RUNNING,
            Self::Exited => CONTAINER_EXITED,
        }
    }
}

impl OneContainer {
    fn stop(&mut self) {
        if matches!(self.life, Life::Running(_)) {
            self.finished_at = now();
            self.life = Life::Exited;
        }
    }
}

impl Node {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn run_sandbox(&self, config: Option<PodSandboxConfig>) -> Result<String, Status> {
        let config = config.ok_or_else(|| Status::invalid_argument("a sandbox needs a config"))?;
        let mut state = self.state();
        if state.sandboxes.len() >= MOST {
            return Err(Status::resource_exhausted("too many sandboxes"));
        }
        let id = random_hex::<32>();
        state.sandboxes.insert(id.clone(), Sandbox { config, ready: true, created_at: now() });
        Ok(id)
    }

    pub fn sandboxes(&self, filter: &PodSandboxFilter) -> Vec<PodSandbox> {
        let item = |(id, sandbox): (&String, &Sandbox)| PodSandbox {
            id: id.clone(),
            metadata: sandbox.config.metadata.clone(),
            state: if sandbox.ready { SANDBOX_READY } else { SANDBOX_NOTREADY },
            created_at: sandbox.created_at,
            labels: sandbox.config.labels.clone(),
        };
        let wanted = |sandbox: &PodSandbox| {
            (filter.id.is_empty() || filter.id == sandbox.id)
                && filter.state.is_none_or(|wanted| wanted.state == sandbox.state)
                && selects(&filter.label_selector, &sandbox.labels)
        };
        self.state().sandboxes.iter().map(item).filter(wanted).collect()
    }

    /// Ends all that runs in the sandbox. One that is not there has ended already, says CRI.
    pub fn stop_sandbox(&self, id: &str) {
        let mut state = self.state();
        if let Some(sandbox) = state.sandboxes.get_mut(id) {
            sandbox.ready = false;
        }
        state.containers.values_mut().filter(|container| container.sandbox == id).for_each(OneContainer::stop);
    }

    pub fn remove_sandbox(&self, id: &str) {
        let mut state = self.state();
        state.sandboxes.remove(id);
        state.containers.retain(|_, container| container.sandbox != id);
    }

    pub fn create_container(&self, request: CreateContainerRequest) -> Result<String, Status> {
        let CreateContainerRequest { pod_sandbox_id: sandbox, config } = request;
        let config = config.ok_or_else(|| Status::invalid_argument("a container needs a config"))?;
        // What would be missing in the container without a word.
        if !config.envs.is_empty() || !config.working_dir.is_empty() {
            return Err(Status::invalid_argument("this runtime has no env and no workingDir"));
        }
        let mut state = self.state();
        if !state.sandboxes.get(&sandbox).is_some_and(|sandbox| sandbox.ready) {
            return Err(no_sandbox(&sandbox));
        }
        if state.containers.len() >= MOST {
            return Err(Status::resource_exhausted("too many containers"));
        }
        let id = random_hex::<32>();
        let (created_at, life) = (now(), Life::Created);
        let container = OneContainer { sandbox, config, created_at, started_at: 0, finished_at: 0, life };
        state.containers.insert(id.clone(), container);
        Ok(id)
    }

    pub fn start_container(&self, id: &str) -> Result<(), Status> {
        let mut state = self.state();
        let State { sandboxes, containers } = &mut *state;
        let container = containers.get_mut(id).ok_or_else(|| no_container(id))?;
        if !matches!(container.life, Life::Created) {
            return Err(Status::failed_precondition("the container was started already"));
        }
        let config = &container.config;
        let command = config.command.iter().chain(&config.args).cloned().collect();
        let main = Main { command, tty: config.tty, stdin: config.stdin };
        let (namespace, pod) = names(sandboxes, &container.sandbox);
        let process = ProcessRuntime::new().container(namespace, pod, id, main);
        process.start();
        let execs = CancellationToken::new().drop_guard();
        container.life = Life::Running(Running { process: process.into(), execs });
        container.started_at = now();
        Ok(())
    }

    pub fn stop_container(&self, id: &str) {
        if let Some(container) = self.state().containers.get_mut(id) {
            container.stop();
        }
    }

    pub fn remove_container(&self, id: &str) {
        self.state().containers.remove(id);
    }

    pub fn containers(&self, filter: &ContainerFilter) -> Vec<Container> {
        let item = |(id, container): (&String, &OneContainer)| Container {
            id: id.clone(),
            pod_sandbox_id: container.sandbox.clone(),
            metadata: container.config.metadata.clone(),
            image: container.config.image.clone(),
            state: container.life.state(),
            created_at: container.created_at,
            labels: container.config.labels.clone(),
        };
        let wanted = |container: &Container| {
            (filter.id.is_empty() || filter.id == container.id)
                && (filter.pod_sandbox_id.is_empty() || filter.pod_sandbox_id == container.pod_sandbox_id)
                && filter.state.is_none_or(|wanted| wanted.state == container.state)
                && selects(&filter.label_selector, &container.labels)
        };
        self.state().containers.iter().map(item).filter(wanted).collect()
    }

    /// Its status, and whether it has a terminal.
    pub fn container(&self, id: &str) -> Result<(ContainerStatus, bool), Status> {
        let state = self.state();
        let container = state.containers.get(id).ok_or_else(|| no_container(id))?;
        let status = ContainerStatus {
            id: id.to_owned(),
            metadata: container.config.metadata.clone(),
            state: container.life.state(),
            created_at: container.created_at,
            started_at: container.started_at,
            finished_at: container.finished_at,
            // It only ends when it is stopped, by a SIGKILL.
            exit_code: if matches!(container.life, Life::Exited) { 137 } else { 0 },
            image: container.config.image.clone(),
            labels: container.config.labels.clone(),
        };
        Ok((status, container.config.tty))
    }

    /// `Exec` and `Attach` look here before they issue a URL.
    pub fn check_running(&self, id: &str) -> Result<(), Status> {
        match self.state().containers.get(id) {
            None => Err(no_container(id)),
            Some(container) if matches!(container.life, Life::Running(_)) => Ok(()),
            Some(_) => Err(Status::failed_precondition("the container does not run")),
        }
    }

    /// `PortForward` looks here before it issues a URL.
    pub fn check_ready(&self, sandbox: &str) -> Result<(), Status> {
        let state = self.state();
        let ready = state.sandboxes.get(sandbox).is_some_and(|sandbox| sandbox.ready);
        if ready { Ok(()) } else { Err(no_sandbox(sandbox)) }
    }
}

/// What runs on the streams. The RPC has looked already, but a minute may have gone by since then.
impl Runtime for Node {
    type Session = Command;
    type Forward = Loopback;

    async fn open(&self, target: &Target) -> Result<Command, Refusal> {
        let gone = || Refusal::new(StatusCode::NOT_FOUND, "NotFound", "the container does not run any more");
        let id = target.container.as_deref().unwrap_or_default();
        let mut target = target.clone();
        let (process, ended) = {
            let state = self.state();
            let container = state.containers.get(id).ok_or_else(gone)?;
            let Life::Running(running) = &container.life else { return Err(gone()) };
            // Streams are asked for by ids. The process has its Pod's name for a host name.
            (target.namespace, target.pod) = names(&state.sandboxes, &container.sandbox);
            (Arc::clone(&running.process), running.execs.token().clone())
        };
        Ok(Command { session: process.open(&target).await?, ended })
    }

    async fn port_forward(&self, target: &Target) -> Result<Loopback, Refusal> {
        self.check_ready(&target.pod)
            .map_err(|status| Refusal::new(StatusCode::NOT_FOUND, "NotFound", status.message()))?;
        // A Pod here has the network of the host.
        Ok(Loopback::default())
    }
}

/// A command in a container, or its main process that is attached to. It ends with the container.
pub struct Command {
    session: ProcessSession,
    ended: CancellationToken,
}

impl Session for Command {
    async fn run(self, stdio: Stdio) -> Result<Exit, BoxError> {
        tokio::select! {
            // Dropped, the session kills its process group.
            exit = self.session.run(stdio) => exit,
            () = self.ended.cancelled() => Ok(Exit::Code(137)),
        }
    }
}

/// Namespace and name of a sandbox's Pod.
fn names(sandboxes: &HashMap<String, Sandbox>, id: &str) -> (String, String) {
    let metadata = sandboxes.get(id).and_then(|sandbox| sandbox.config.metadata.clone()).unwrap_or_default();
    (metadata.namespace, metadata.name)
}

fn selects(selector: &Labels, labels: &Labels) -> bool {
    selector.iter().all(|(name, value)| labels.get(name) == Some(value))
}

fn no_container(id: &str) -> Status {
    Status::not_found(format!("an error occurred when try to find container {id:?}: not found"))
}

fn no_sandbox(id: &str) -> Status {
    Status::not_found(format!("failed to find sandbox {id:?} in store: not found"))
}

fn now() -> i64 {
    i64::try_from(OffsetDateTime::now_utc().unix_timestamp_nanos()).unwrap_or(i64::MAX)
}
