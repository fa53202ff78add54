//! Which local port leads to which port of a pod.

use std::num::NonZeroU16;

use serde_json::Value;

use super::{cluster::Cluster, failure::Failure, locate, pod::Pod};

/// Pairs of a local port, 0 for one that is free, and a pod's.
#[derive(Debug)]
pub(crate) struct Ports(Vec<(u16, NonZeroU16)>);

impl Ports {
    /// Reads `[LOCAL:]REMOTE`. A port's name is the pod's; of a Service, ports and names are its own, and lead to its
    /// target ports.
    pub(crate) async fn of(cluster: &Cluster, target: &str, pod: &Pod, wanted: &[String]) -> Result<Self, Failure> {
        let service = match target.split_once('/') {
            Some((kind, name)) => locate::service(cluster, kind, name).await?,
            None => None,
        };
        wanted.iter().map(|text| pair(text, pod, service.as_ref())).collect::<Result<_, _>>().map(Self)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u16, NonZeroU16)> + '_ {
        self.0.iter().copied()
    }
}

fn pair(text: &str, pod: &Pod, service: Option<&Value>) -> Result<(u16, NonZeroU16), Failure> {
    let (local, remote) = match *text.split(':').collect::<Vec<_>>() {
        [port] => (port, port),
        ["", remote] => ("0", remote),
        [local, remote] => (local, remote),
        _ => return Err(Failure::error(format!("invalid port format '{text}'"))),
    };
    let number = match service {
        Some(service) => of_service(remote, pod, service)?,
        None if is_number(remote) => remote.to_owned(),
        None => named(remote, pod)?,
    };
    // A name stands for the pod's number on both sides.
    let local = if local == remote && !is_number(local) { number.as_str() } else { local };
    let local = parsed("local", local)?;
    let remote = NonZeroU16::new(parsed("remote", &number)?);
    Ok((local, remote.ok_or_else(|| Failure::error("remote port must be > 0"))?))
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// In the words of Go's `strconv`.
fn parsed(side: &str, text: &str) -> Result<u16, Failure> {
    text.parse().map_err(|_| {
        let why = if is_number(text) { "value out of range" } else { "invalid syntax" };
        Failure::error(format!("error parsing {side} port '{text}': strconv.ParseUint: parsing {text:?}: {why}"))
    })
}

/// A named port of the pod's containers.
fn named(name: &str, pod: &Pod) -> Result<String, Failure> {
    let port = pod.ports().find(|port| port.get("name").and_then(Value::as_str) == Some(name));
    let number = port.and_then(|port| port.get("containerPort")).and_then(Value::as_u64);
    let unknown = || Failure::error(format!("Pod '{}' does not have a named port '{name}'", pod.name));
    number.map(|number| number.to_string()).ok_or_else(unknown)
}

/// The pod's port behind one of a Service.
fn of_service(wanted: &str, pod: &Pod, service: &Value) -> Result<String, Failure> {
    let ports = service.pointer("/spec/ports").and_then(Value::as_array).into_iter().flatten();
    let number = |port: &Value| port.get("port").and_then(Value::as_u64).map(|port| port.to_string());
    let name = |port: &Value| port.get("name").and_then(Value::as_str).map(str::to_owned);
    let mut ports =
        ports.filter(|port| number(port).as_deref() == Some(wanted) || name(port).as_deref() == Some(wanted));
    let title = service.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
    let Some(port) = ports.next() else {
        return Err(Failure::error(if is_number(wanted) {
            format!("Service {title} does not have a service port {wanted}")
        } else {
            format!("Service '{title}' does not have a named port '{wanted}'")
        }));
    };
    // A headless one leads to its pods directly.
    if service.pointer("/spec/clusterIP").and_then(Value::as_str) == Some("None") {
        return number(port).ok_or_else(|| Failure::error(format!("Service {title} has a port without a number")));
    }
    match port.get("targetPort") {
        Some(Value::String(target)) if !is_number(target) => named(target, pod),
        Some(Value::String(target)) => Ok(target.clone()),
        Some(Value::Number(target)) if target.as_u64() != Some(0) => Ok(target.to_string()),
        _ => number(port).ok_or_else(|| Failure::error(format!("Service {title} has a port without a number"))),
    }
}
