//! The Pods of manifests as sandboxes and containers of a runtime.
//!
//! Images have to be there already. Containers are started once, and not again when they end.

use std::collections::HashMap;

use serde_json::Value;

use super::{
    Context, Error,
    cri::{
        CONTAINER, ContainerConfig, ContainerMetadata, CreateContainerRequest, Created, Done, ImageSpec, KeyValue,
        LinuxContainerConfig, LinuxContainerSecurityContext, LinuxPodSandboxConfig, LinuxSandboxSecurityContext,
        ListPodSandboxRequest, ListPodSandboxResponse, NODE, NamespaceOption, POD, PodSandboxConfig, PodSandboxFilter,
        PodSandboxMetadata, RunPodSandboxRequest, Runtime, Sandbox,
    },
    objects::{items, text},
};

/// On every sandbox of ours: the node's name. What has no such label is another's.
const OURS: &str = "tower-kube-streaming/example-node";

/// What would be missing in a container without a word.
const UNSUPPORTED: [(&str, &str); 4] = [
    ("/spec", "initContainers"),
    ("/spec", "ephemeralContainers"),
    ("/spec", "volumes"),
    ("/spec/containers", "volumeMounts"),
];

/// Running Pods.
#[derive(Debug)]
pub struct Pods {
    runtime: Runtime,
    sandboxes: Vec<String>,
}

impl Pods {
    /// Runs these Pods, and removes first what an earlier run for that node has left. If one cannot be run, none is.
    pub async fn run(endpoint: &str, node: &str, pods: &[Value]) -> Result<Self, Error> {
        let runtime = Runtime::new(endpoint)?;
        let label_selector = HashMap::from([(OURS.to_owned(), node.to_owned())]);
        let request = ListPodSandboxRequest { filter: Some(PodSandboxFilter { label_selector }) };
        let ListPodSandboxResponse { items } = runtime.call("ListPodSandbox", request).await?;
        let left = items.into_iter().map(|Sandbox { id }| id).collect();
        Self { runtime: runtime.clone(), sandboxes: left }.remove().await?;

        let mut running = Self { runtime, sandboxes: Vec::new() };
        for pod in pods {
            let name = text(pod, "/metadata/name").unwrap_or_default();
            if let Err(error) = running.start(pod, node).await.context(format_args!("Pod {name:?}")) {
                if let Err(error) = running.remove().await {
                    tracing::warn!(%error, "a Pod was left behind");
                }
                return Err(error);
            }
        }
        Ok(running)
    }

    async fn start(&mut self, pod: &Value, node: &str) -> Result<(), Error> {
        supported(pod)?;
        let sandbox = sandbox(pod, node);
        let request = RunPodSandboxRequest { config: Some(sandbox.clone()) };
        let Sandbox { id } = self.runtime.call("RunPodSandbox", request).await?;
        self.sandboxes.push(id.clone());
        for container in items(pod, "/spec/containers") {
            let request = CreateContainerRequest {
                pod_sandbox_id: id.clone(),
                config: Some(config(container, &sandbox)?),
                sandbox_config: Some(sandbox.clone()),
            };
            let created: Created = self.runtime.call("CreateContainer", request).await?;
            let Done {} = self.runtime.call("StartContainer", created).await?;
        }
        Ok(())
    }

    /// Ends and removes them all, as far as possible; the first failure is told.
    pub async fn remove(self) -> Result<(), Error> {
        let mut result = Ok(());
        for id in self.sandboxes {
            for method in ["StopPodSandbox", "RemovePodSandbox"] {
                let done = self.runtime.call(method, Sandbox { id: id.clone() }).await;
                result = result.and(done.map(|Done {}| ()));
            }
        }
        result
    }
}

fn supported(pod: &Value) -> Result<(), Error> {
    for (place, field) in UNSUPPORTED {
        let at = pod.pointer(place);
        let mut objects = at.into_iter().flat_map(|at| at.as_array().map_or(std::slice::from_ref(at), Vec::as_slice));
        if objects.any(|object| object.get(field).is_some()) {
            return Err(format!("{field} are not supported here").into());
        }
    }
    Ok(())
}

fn sandbox(pod: &Value, node: &str) -> PodSandboxConfig {
    let field = |pointer| text(pod, pointer).unwrap_or_default().to_owned();
    let (name, namespace, uid) = (field("/metadata/name"), field("/metadata/namespace"), field("/metadata/uid"));
    let labels = [
        ("io.kubernetes.pod.name", name.as_str()),
        ("io.kubernetes.pod.namespace", &namespace),
        ("io.kubernetes.pod.uid", &uid),
        (OURS, node),
    ];
    let network = if pod["spec"]["hostNetwork"] == true { NODE } else { POD };
    let namespace_options = Some(NamespaceOption { network, pid: CONTAINER });
    PodSandboxConfig {
        hostname: if network == NODE { String::new() } else { name.clone() },
        labels: labels.map(|(label, value)| (label.to_owned(), value.to_owned())).into(),
        metadata: Some(PodSandboxMetadata { name, uid, namespace }),
        linux: Some(LinuxPodSandboxConfig {
            security_context: Some(LinuxSandboxSecurityContext { namespace_options }),
        }),
    }
}

fn config(container: &Value, sandbox: &PodSandboxConfig) -> Result<ContainerConfig, Error> {
    let field = |pointer| text(container, pointer).unwrap_or_default().to_owned();
    let words = |pointer| items(container, pointer).iter().filter_map(Value::as_str).map(str::to_owned).collect();
    let name = field("/name");
    let mut labels = sandbox.labels.clone();
    labels.insert("io.kubernetes.container.name".to_owned(), name.clone());
    let envs = items(container, "/env").iter().map(|env| match (text(env, "/name"), env.get("valueFrom")) {
        (Some(key), None) => {
            Ok(KeyValue { key: key.to_owned(), value: text(env, "/value").unwrap_or_default().to_owned() })
        }
        _ => Err(format!("container {name:?}: env takes a name and a value here")),
    });
    let security = sandbox.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    let namespace_options = security.and_then(|security| security.namespace_options);
    Ok(ContainerConfig {
        image: Some(ImageSpec { image: field("/image") }),
        command: words("/command"),
        args: words("/args"),
        working_dir: field("/workingDir"),
        envs: envs.collect::<Result<_, _>>()?,
        labels,
        stdin: container["stdin"] == true,
        stdin_once: container["stdinOnce"] == true,
        tty: container["tty"] == true,
        linux: Some(LinuxContainerConfig {
            security_context: Some(LinuxContainerSecurityContext { namespace_options }),
        }),
        metadata: Some(ContainerMetadata { name }),
    })
}
