//! The Pods of manifests as sandboxes and containers of a runtime.
//!
//! Images have to be there already. The containers are looked at every second, as upstream's PLEG does it, and started
//! again as the Pod's `restartPolicy` says. What is seen is the Pods' `status` in the [`Store`].

use std::{collections::HashMap, fs, path::PathBuf, sync::Arc, time::Duration};

use serde_json::Value;
use time::OffsetDateTime;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::{
    Context, Error, container_logs,
    cri::{
        ContainerConfig, ContainerFilter, ContainerId, ContainerStatus, ContainerStatusResponse,
        CreateContainerRequest, Done, EXITED, ListContainersRequest, ListContainersResponse, ListPodSandboxRequest,
        ListPodSandboxResponse, PodSandbox, PodSandboxConfig, PodSandboxFilter, RUNNING, RunPodSandboxRequest, Runtime,
        Sandbox, VersionResponse,
    },
    objects::{Key, Kind, Store, items, text, timestamp},
    pod_config::{OURS, container, sandbox, supported},
    pod_status::{Ended, Seen, State, shortened, status},
    restarts::{BackOff, Policy},
};

/// Between two looks at the containers: upstream's `genericPlegRelistPeriod`.
const LOOK: Duration = Duration::from_secs(1);

/// What a look may still take when the kubelet stops. A container that is being created then is removed with its sandbox.
const LAST_LOOK: Duration = Duration::from_secs(10);

/// How long the kubelet stays for its Pods' removal.
const REMOVAL: Duration = Duration::from_secs(60);

/// Running Pods.
#[derive(Debug)]
pub struct Pods {
    runtime: Runtime,
    /// What the runtime calls itself.
    name: String,
    node: String,
    pods: Vec<Pod>,
    sandboxes: Vec<String>,
    /// Where the runtime writes what containers say, if anywhere; and the folders of these Pods there.
    logs: Option<PathBuf>,
    log_directories: Vec<PathBuf>,
}

#[derive(Debug)]
struct Pod {
    key: Key,
    policy: Policy,
    started: String,
    containers: Vec<Container>,
    reported: Value,
}

#[derive(Debug)]
struct Container {
    sandbox: String,
    sandbox_config: PodSandboxConfig,
    config: ContainerConfig,
    seen: Seen,
    /// When its end was seen, or the last try to start it again failed.
    ended: Instant,
    back_off: BackOff,
}

impl Pods {
    /// Runs the store's Pods, and removes first what an earlier run for that node has left. If one cannot be run, none is.
    pub async fn run(endpoint: &str, node: &str, store: &Store, logs: Option<PathBuf>) -> Result<Self, Error> {
        let runtime = Runtime::new(endpoint)?;
        let filter = PodSandboxFilter { label_selector: ours(node) };
        let request = ListPodSandboxRequest { filter: Some(filter) };
        let ListPodSandboxResponse { items } = runtime.call("ListPodSandbox", request).await?;
        let VersionResponse { runtime_name: name } = runtime.call("Version", Done {}).await?;
        // What is not ours must not be removed, whatever the runtime made of the filter.
        let left = items.into_iter().filter(|found| found.labels.get(OURS).is_some_and(|of| of == node));
        let sandboxes = left.map(|PodSandbox { id, .. }| id).collect();
        let (node, pods, log_directories) = (node.to_owned(), Vec::new(), Vec::new());
        let mut running = Self { runtime, name, node, pods, sandboxes, logs, log_directories };
        running.remove_all().await?;

        for pod in store.list(Kind::Pod).0 {
            let name = text(&pod, "/metadata/name").unwrap_or_default();
            if let Err(error) = running.start(&pod).await.context(format_args!("Pod {name:?}")) {
                if let Err(error) = running.remove_all().await {
                    tracing::warn!(%error, "a Pod was left behind");
                }
                return Err(error);
            }
        }
        running.report(store);
        Ok(running)
    }

    async fn start(&mut self, pod: &Value) -> Result<(), Error> {
        supported(pod)?;
        let policy = Policy::of(pod)?;
        let mut config = sandbox(pod, &self.node);
        if let Some(logs) = &self.logs {
            let directory = container_logs::directory(logs, pod);
            container_logs::make(&directory, pod)?;
            config.log_directory = directory.display().to_string();
            self.log_directories.push(directory);
        }
        let request = RunPodSandboxRequest { config: Some(config.clone()) };
        let Sandbox { id } = self.runtime.call("RunPodSandbox", request).await?;
        self.sandboxes.push(id.clone());
        let mut containers = Vec::new();
        for of in items(pod, "/spec/containers") {
            let word = |pointer| text(of, pointer).unwrap_or_default().to_owned();
            let mut container = Container {
                sandbox: id.clone(),
                sandbox_config: config.clone(),
                config: container(of, &config)?,
                seen: Seen {
                    name: word("/name"),
                    image: word("/image"),
                    image_id: String::new(),
                    id: String::new(),
                    restarts: 0,
                    state: State::Running(0),
                    waiting: None,
                    last: None,
                },
                ended: Instant::now(),
                back_off: BackOff::default(),
            };
            container.create(&self.runtime).await?;
            container.start(&self.runtime).await?;
            containers.push(container);
        }
        let key = Key::pod(&field(pod, "/metadata/namespace"), &field(pod, "/metadata/name"));
        let started = timestamp(OffsetDateTime::now_utc());
        self.pods.push(Pod { key, policy, started, containers, reported: Value::Null });
        Ok(())
    }

    /// Keeps containers running and the store's statuses true, until it is stopped. A runtime that does not answer is a
    /// warning, once until it answers or says something else; what was seen last stays.
    pub async fn keep(mut self, store: Arc<Store>, stop: CancellationToken) -> Self {
        let mut failure = None;
        while stop.run_until_cancelled(sleep(LOOK)).await.is_some() {
            let out_of_time = async {
                stop.cancelled().await;
                sleep(LAST_LOOK).await;
            };
            let looked = tokio::select! {
                looked = self.look() => looked.err().map(|error| error.to_string()),
                () = out_of_time => break,
            };
            self.report(&store);
            if looked != failure {
                match &looked {
                    Some(error) => tracing::warn!(error, "looking at the containers failed; trying again"),
                    None => tracing::info!("the containers are seen again"),
                }
                failure = looked;
            }
        }
        self
    }

    /// Looks at all containers, and starts again what is due. The first failure is told, and does not stop the rest.
    async fn look(&mut self) -> Result<(), Error> {
        let filter = ContainerFilter { label_selector: ours(&self.node) };
        let request = ListContainersRequest { filter: Some(filter) };
        let ListContainersResponse { containers } = self.runtime.call("ListContainers", request).await?;
        let states: HashMap<String, i32> = containers.into_iter().map(|found| (found.id, found.state)).collect();
        let mut result = Ok(());
        for pod in &mut self.pods {
            for container in &mut pod.containers {
                let state = states.get(&container.seen.id).copied();
                let looked = container.look(&self.runtime, state).await;
                container.restart(&self.runtime, pod.policy, &pod.key).await;
                result = result.and(looked);
            }
        }
        result
    }

    /// Writes what has changed into the store.
    fn report(&mut self, store: &Store) {
        for pod in &mut self.pods {
            let seen: Vec<Seen> = pod.containers.iter().map(|container| container.seen.clone()).collect();
            let status = status(pod.policy, &seen, &self.name, &pod.started);
            if status != pod.reported {
                if status["phase"] != pod.reported["phase"] {
                    let Key { namespace, name, .. } = &pod.key;
                    tracing::info!(pod.namespace = namespace, pod.name = name, phase = %status["phase"], "Pod");
                }
                // A Pod is never refused; one that is gone has no status.
                let _ = store.update(&pod.key, |pod| pod["status"] = status.clone());
                pod.reported = status;
            }
        }
    }

    /// Ends and removes them all, as far as possible and in a minute; the first failure is told.
    pub async fn remove(mut self) -> Result<(), Error> {
        let late = |_| Err("the container runtime does not answer; the next start removes what is left".into());
        timeout(REMOVAL, self.remove_all()).await.unwrap_or_else(late)
    }

    async fn remove_all(&mut self) -> Result<(), Error> {
        let mut result = Ok(());
        for id in self.sandboxes.drain(..) {
            for method in ["StopPodSandbox", "RemovePodSandbox"] {
                let done = self.runtime.call(method, Sandbox { id: id.clone() }).await;
                result = result.and(done.map(|Done {}| ()));
            }
        }
        for directory in self.log_directories.drain(..) {
            result = result.and(fs::remove_dir_all(&directory).context(directory.display()));
        }
        result
    }
}

impl Container {
    async fn create(&mut self, runtime: &Runtime) -> Result<(), Error> {
        let request = CreateContainerRequest {
            pod_sandbox_id: self.sandbox.clone(),
            config: Some(self.config.clone()),
            sandbox_config: Some(self.sandbox_config.clone()),
        };
        let ContainerId { id } = runtime.call("CreateContainer", request).await?;
        self.seen.id = id;
        Ok(())
    }

    async fn start(&mut self, runtime: &Runtime) -> Result<(), Error> {
        let Done {} = runtime.call("StartContainer", self.id()).await?;
        let ContainerStatus { started_at, image_ref, .. } = self.status(runtime).await?;
        self.seen.state = State::Running(started_at);
        self.seen.image_id = image_ref;
        Ok(())
    }

    async fn status(&self, runtime: &Runtime) -> Result<ContainerStatus, Error> {
        let ContainerStatusResponse { status } = runtime.call("ContainerStatus", self.id()).await?;
        Ok(status.unwrap_or_default())
    }

    fn id(&self) -> ContainerId {
        ContainerId { id: self.seen.id.clone() }
    }

    /// Learns that a running container has ended. `None`: the runtime has no such container.
    async fn look(&mut self, runtime: &Runtime, state: Option<i32>) -> Result<(), Error> {
        if !matches!(self.seen.state, State::Running(_)) || state == Some(RUNNING) {
            return Ok(());
        }
        let ended = match state {
            Some(EXITED) => Ended::new(&self.seen.id, self.status(runtime).await?),
            _ => Ended::unknown(&self.seen.id),
        };
        tracing::info!(container = self.seen.name, exit.code = ended.code, reason = ended.reason, "container ended");
        self.ended = Instant::now();
        self.seen.state = State::Ended(ended);
        Ok(())
    }

    /// Starts it again if it has ended, is to run, and is due.
    async fn restart(&mut self, runtime: &Runtime, policy: Policy, pod: &Key) {
        let State::Ended(ended) = &self.seen.state else { return };
        if !policy.restarts(ended.code) {
            return;
        }
        let (name, ended) = (self.seen.name.clone(), ended.clone());
        if let Err(delay) = self.back_off.start(self.ended, Instant::now()) {
            // What went wrong with the last try is worth more than that the next one is waited for.
            self.seen.waiting.get_or_insert_with(|| {
                let pod = format!("{}_{}", pod.name, pod.namespace);
                let delay = delay.as_secs();
                ("CrashLoopBackOff", format!("back-off {delay}s restarting failed container={name} pod={pod}"))
            });
            return;
        }
        // Its sandbox takes with it what cannot be removed now.
        let _ = runtime.call::<_, Done>("RemoveContainer", self.id()).await;
        let metadata = self.config.metadata.get_or_insert_default();
        metadata.attempt = metadata.attempt.saturating_add(1);
        let restarts = metadata.attempt;
        let tried = match self.create(runtime).await {
            Ok(()) => self.start(runtime).await.map_err(|error| ("RunContainerError", error)),
            Err(error) => Err(("CreateContainerError", error)),
        };
        self.seen.restarts = restarts;
        match tried {
            Ok(()) => {
                tracing::info!(container = name, restarts, "container started again");
                (self.seen.waiting, self.seen.last) = (None, Some(ended));
            }
            Err((reason, error)) => {
                tracing::warn!(container = name, restarts, %error, "the container cannot be started again");
                self.seen.waiting = Some((reason, shortened(error.to_string())));
                self.ended = Instant::now();
            }
        }
    }
}

/// What a runtime is asked for, to find what was run for that node.
fn ours(node: &str) -> HashMap<String, String> {
    HashMap::from([(OURS.to_owned(), node.to_owned())])
}

fn field(pod: &Value, pointer: &str) -> String {
    text(pod, pointer).unwrap_or_default().to_owned()
}
