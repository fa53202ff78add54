//! From a workload or a Service to one of its pods, by its selector.

use std::time::Duration;

use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::{cluster::Cluster, failure::Failure, log::klog, object::Object, pod::Pod, remote::segment};

/// How long until a workload without a running pod is asked again.
const AGAIN: Duration = Duration::from_millis(500);

/// Names of a kind, and where its objects are.
const KINDS: [(&[&str], &str, &str); 7] = [
    (&["deployment", "deployments", "deploy", "deployment.apps", "deployments.apps"], "/apis/apps/v1", "deployments"),
    (&["replicaset", "replicasets", "rs", "replicaset.apps", "replicasets.apps"], "/apis/apps/v1", "replicasets"),
    (&["statefulset", "statefulsets", "sts", "statefulset.apps", "statefulsets.apps"], "/apis/apps/v1", "statefulsets"),
    (&["daemonset", "daemonsets", "ds", "daemonset.apps", "daemonsets.apps"], "/apis/apps/v1", "daemonsets"),
    (&["job", "jobs", "job.batch", "jobs.batch"], "/apis/batch/v1", "jobs"),
    (&["replicationcontroller", "replicationcontrollers", "rc"], "/api/v1", "replicationcontrollers"),
    (&["service", "services", "svc"], "/api/v1", "services"),
];

/// The Service of that name, if `kind` is one.
pub(crate) async fn service(cluster: &Cluster, kind: &str, name: &str) -> Result<Option<Value>, Failure> {
    let (names, group, plural) = KINDS[6];
    if !names.contains(&kind) {
        return Ok(None);
    }
    let path = format!("{group}/namespaces/{}/{plural}/{}", segment(&cluster.namespace), segment(name));
    cluster.get(&path).await.map(Some)
}

/// The best pod of a workload: running and ready ones first. Waits that long until one runs.
pub(crate) async fn pod_of(cluster: &Cluster, kind: &str, name: &str, wait: Duration) -> Result<Pod, Failure> {
    let unknown = || Failure::error(format!("the server doesn't have a resource type {kind:?}"));
    let (_, group, plural) = KINDS.iter().find(|(names, ..)| names.contains(&kind)).ok_or_else(unknown)?;
    let namespace = segment(&cluster.namespace);
    let (code, object) = cluster.ask(&format!("{group}/namespaces/{namespace}/{plural}/{}", segment(name))).await?;
    // A 404 without the object's name is about the whole kind.
    if code == 404 && object.pointer("/details/name").is_none() {
        return Err(unknown());
    }
    if !code.is_success() {
        return Err(Failure::refused(code.as_u16(), &object));
    }
    best(cluster, &cluster.namespace, (plural, name), &object, wait).await
}

/// As [`pod_of`], of an object that is at hand. `namespace`: where it is.
pub(crate) async fn pod_of_object(
    cluster: &Cluster,
    namespace: &str,
    object: &Object,
    wait: Duration,
) -> Result<Pod, Failure> {
    let Object { version, kind, name, value, .. } = object;
    let of_version = |group: &str| group.strip_prefix("/apis/").or(group.strip_prefix("/api/")) == Some(version);
    let (_, _, plural) = KINDS
        .iter()
        .find(|(names, group, _)| of_version(group) && names[0].eq_ignore_ascii_case(kind))
        .ok_or_else(|| Failure::error(format!("cannot exec into a {kind:?} of {version:?}: it stands for no pod")))?;
    best(cluster, namespace, (plural, name), value, wait).await
}

async fn best(
    cluster: &Cluster,
    namespace: &str,
    (plural, name): (&str, &str),
    object: &Value,
    wait: Duration,
) -> Result<Pod, Failure> {
    let selector = selector(object).ok_or_else(|| {
        Failure::error(format!("invalid {plural} '{name}': no selector that says which pods are its own"))
    })?;
    let path = format!("/api/v1/namespaces/{}/pods?labelSelector={}", segment(namespace), segment(&selector));
    let deadline = Instant::now() + wait;
    loop {
        let list = cluster.get(&path).await?;
        let pods = list.get("items").and_then(Value::as_array).cloned().unwrap_or_default();
        let best = pods.into_iter().max_by_key(fitness);
        let runs = |pod: &Value| fitness(pod).1 == 2;
        if let Some(pod) = best.filter(|pod| runs(pod) || Instant::now() >= deadline) {
            let pod = Pod::of(namespace, pod);
            klog!(4, "{plural}/{name} stands for pod {}", pod.name);
            return Ok(pod);
        }
        if Instant::now() >= deadline {
            return Err(Failure::error("timed out waiting for the condition"));
        }
        sleep(AGAIN).await;
    }
}

/// As kubectl's `ActivePods`, the best last: not being deleted, running, ready.
fn fitness(pod: &Value) -> (bool, u8, bool) {
    let phase = match pod.pointer("/status/phase").and_then(Value::as_str) {
        Some("Running") => 2,
        Some("Pending") => 1,
        _ => 0,
    };
    let conditions = pod.pointer("/status/conditions").and_then(Value::as_array);
    let ready = conditions.into_iter().flatten().any(|condition| {
        let is = |name, value| condition.get(name).and_then(Value::as_str) == Some(value);
        is("type", "Ready") && is("status", "True")
    });
    (pod.pointer("/metadata/deletionTimestamp").is_none(), phase, ready)
}

/// The object's selector as a query has it. `None`: it has none, or one that matches everything.
fn selector(object: &Value) -> Option<String> {
    let spec = object.pointer("/spec/selector")?;
    let text = |value: &Value| value.as_str().map(str::to_owned);
    // Services and replication controllers have the labels bare.
    let bare = spec.get("matchLabels").is_none() && spec.get("matchExpressions").is_none();
    let labels = if bare { Some(spec) } else { spec.get("matchLabels") }.and_then(Value::as_object);
    let mut terms = Vec::new();
    for (key, value) in labels.into_iter().flatten() {
        terms.push(format!("{key}={}", text(value)?));
    }
    for expression in spec.get("matchExpressions").and_then(Value::as_array).into_iter().flatten() {
        let key = text(expression.get("key")?)?;
        let values = expression.get("values").and_then(Value::as_array).into_iter().flatten();
        let values = values.map(text).collect::<Option<Vec<_>>>()?.join(",");
        terms.push(match expression.get("operator")?.as_str()? {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "Exists" => key,
            "DoesNotExist" => format!("!{key}"),
            _ => return None,
        });
    }
    (!terms.is_empty()).then(|| terms.join(","))
}
