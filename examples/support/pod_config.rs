//! A Pod of a manifest as what a container runtime is asked for.

use serde_json::Value;

use super::{
    Error, container_logs,
    cri::{
        CONTAINER, ContainerConfig, ContainerMetadata, ImageSpec, KeyValue, LinuxContainerConfig,
        LinuxContainerSecurityContext, LinuxPodSandboxConfig, LinuxSandboxSecurityContext, NODE, NamespaceOption, POD,
        PodSandboxConfig, PodSandboxMetadata,
    },
    objects::{items, text},
};

/// On every sandbox and container of ours: the node's name. What has no such label is another's.
pub const OURS: &str = "tower-kube-streaming/example-node";

/// What would be missing in a container without a word.
const UNSUPPORTED: [(&str, &str); 4] = [
    ("/spec", "initContainers"),
    ("/spec", "ephemeralContainers"),
    ("/spec", "volumes"),
    ("/spec/containers", "volumeMounts"),
];

/// Whether all that the Pod asks for is given to it here.
pub fn supported(pod: &Value) -> Result<(), Error> {
    for (place, field) in UNSUPPORTED {
        let at = pod.pointer(place);
        let mut objects = at.into_iter().flat_map(|at| at.as_array().map_or(std::slice::from_ref(at), Vec::as_slice));
        if objects.any(|object| object.get(field).is_some()) {
            return Err(format!("{field} are not supported here").into());
        }
    }
    Ok(())
}

/// The sandbox of a Pod on that node.
pub fn sandbox(pod: &Value, node: &str) -> PodSandboxConfig {
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
        log_directory: String::new(),
        linux: Some(LinuxPodSandboxConfig {
            security_context: Some(LinuxSandboxSecurityContext { namespace_options }),
        }),
    }
}

/// A container of a Pod in that sandbox.
pub fn container(container: &Value, sandbox: &PodSandboxConfig) -> Result<ContainerConfig, Error> {
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
    let logged = !sandbox.log_directory.is_empty();
    Ok(ContainerConfig {
        log_path: if logged { container_logs::file(&name) } else { String::new() },
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
        metadata: Some(ContainerMetadata { name, attempt: 0 }),
    })
}
