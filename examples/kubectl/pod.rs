//! Which pod and which container a command line means.

use std::{
    io::{self, Write as _},
    time::Duration,
};

use serde_json::Value;

use super::{cluster::Cluster, failure::Failure, locate, object::Object, remote::segment};

/// A pod as the API server describes it.
#[derive(Debug)]
pub(crate) struct Pod {
    pub(crate) namespace: String,
    pub(crate) name: String,
    value: Value,
}

/// A container of a pod.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Container<'a> {
    pub(crate) name: &'a str,
    pub(crate) tty: bool,
    pub(crate) stdin: bool,
}

/// The lists of containers in a pod's spec, in kubectl's order, and what it calls them.
const LISTS: [(&str, &str); 3] =
    [("/spec/containers", ""), ("/spec/ephemeralContainers", " (ephem)"), ("/spec/initContainers", " (init)")];

impl Pod {
    /// The pod that `POD` or `TYPE/NAME` means. `wait`: how long a workload may take to have a running one.
    pub(crate) async fn find(cluster: &Cluster, target: &str, wait: Duration) -> Result<Self, Failure> {
        let namespace = &cluster.namespace;
        let (kind, name) = match target.split_once('/') {
            None => ("pod", target),
            Some((_, name)) if name.contains('/') => {
                return Err(Failure::error("arguments in resource/name form may not have more than one slash"));
            }
            Some((kind, name)) if kind.is_empty() || name.is_empty() => {
                return Err(Failure::error("arguments in resource/name form must have a single resource and name"));
            }
            Some(both) => both,
        };
        match kind {
            "pod" | "pods" | "po" => Self::get(cluster, namespace, name).await,
            kind => locate::pod_of(cluster, kind, name, wait).await,
        }
    }

    /// The pod that an object out of a file means. As in kubectl a Pod is taken as it is there: the server is not asked.
    pub(crate) async fn find_by(cluster: &Cluster, object: Object, wait: Duration) -> Result<Self, Failure> {
        let namespace = cluster.namespace_of(object.namespace.as_deref())?.to_owned();
        match (object.version.as_str(), object.kind.as_str()) {
            ("v1", "Pod") => Ok(Self::of(&namespace, object.value)),
            _ => locate::pod_of_object(cluster, &namespace, &object, wait).await,
        }
    }

    pub(crate) async fn get(cluster: &Cluster, namespace: &str, name: &str) -> Result<Self, Failure> {
        let path = format!("/api/v1/namespaces/{}/pods/{}", segment(namespace), segment(name));
        Ok(Self::of(namespace, cluster.get(&path).await?))
    }

    pub(crate) fn of(namespace: &str, value: Value) -> Self {
        let name = value.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default().to_owned();
        Self { namespace: namespace.to_owned(), name, value }
    }

    pub(crate) fn text(&self, pointer: &str) -> &str {
        self.value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
    }

    /// Refuses a pod that has ended. `doing`: what cannot be done to its containers.
    pub(crate) fn must_not_have_ended(&self, doing: &str) -> Result<(), Failure> {
        match self.text("/status/phase") {
            phase @ ("Succeeded" | "Failed") => {
                Err(Failure::error(format!("cannot {doing} a container in a completed pod; current phase is {phase}")))
            }
            _ => Ok(()),
        }
    }

    fn list(&self, pointer: &str) -> impl Iterator<Item = Container<'_>> {
        self.value.pointer(pointer).and_then(Value::as_array).into_iter().flatten().map(|container| {
            let flag = |name| container.get(name).and_then(Value::as_bool).unwrap_or_default();
            let name = container.get("name").and_then(Value::as_str).unwrap_or_default();
            Container { name, tty: flag("tty"), stdin: flag("stdin") }
        })
    }

    /// The ports that its containers declare.
    pub(crate) fn ports(&self) -> impl Iterator<Item = &Value> {
        let containers = self.value.pointer("/spec/containers").and_then(Value::as_array).into_iter().flatten();
        containers.filter_map(|container| container.get("ports")?.as_array()).flatten()
    }

    fn named(&self, name: &str) -> Option<Container<'_>> {
        LISTS.iter().flat_map(|(pointer, _)| self.list(pointer)).find(|container| container.name == name)
    }

    /// Every container, as kubectl lists them.
    fn all(&self) -> String {
        let names = LISTS
            .iter()
            .flat_map(|(pointer, kind)| self.list(pointer).map(move |container| format!("{}{kind}", container.name)));
        names.collect::<Vec<_>>().join(", ")
    }

    /// The container that is named, or else the one of the annotation, or the first; which of them it was is said unless
    /// `quiet`.
    pub(crate) fn container(&self, name: Option<&str>, quiet: bool) -> Result<Container<'_>, String> {
        if let Some(name) = name.filter(|name| !name.is_empty()) {
            let unknown = || format!("container {name} is not valid for pod {} out of: {}", self.name, self.all());
            return self.named(name).ok_or_else(unknown);
        }
        let annotated = self
            .value
            .pointer("/metadata/annotations/kubectl.kubernetes.io~1default-container")
            .and_then(Value::as_str)
            .and_then(|name| self.named(name));
        if let Some(container) = annotated {
            return Ok(container);
        }
        let first = self.list(LISTS[0].0).next();
        let first =
            first.ok_or_else(|| format!("pod {}/{} does not have any containers", self.namespace, self.name))?;
        if !quiet && LISTS.iter().flat_map(|(pointer, _)| self.list(pointer)).nth(1).is_some() {
            let _ = writeln!(io::stderr(), "Defaulted container {:?} out of: {}", first.name, self.all());
        }
        Ok(first)
    }
}
