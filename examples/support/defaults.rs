//! What a server adds to a new object.

use serde_json::{Value, json};
use time::OffsetDateTime;

use super::{
    kinds::{Key, Kind},
    objects::{items, text},
    random_hex,
};

/// Adds what a server adds. A Pod that has a node and no status runs: nobody here would report it.
pub fn completed(mut object: Value, key: &Key) -> Result<Value, String> {
    let now = timestamp(OffsetDateTime::now_utc());
    object["apiVersion"] = key.kind.api_version().into();
    let metadata = &mut object["metadata"];
    metadata["uid"] = uuid().into();
    metadata["creationTimestamp"] = now.as_str().into();
    if key.kind.is_namespaced() {
        metadata["namespace"] = key.namespace.as_str().into();
    }
    if key.kind != Kind::Pod {
        return Ok(object);
    }
    let containers = items(&object, "/spec/containers");
    if containers.is_empty() || containers.iter().any(|container| text(container, "/name").is_none()) {
        return Err("spec.containers needs at least one container, and each a name".to_owned());
    }
    if object.get("status").is_none() {
        let status =
            if text(&object, "/spec/nodeName").is_some() { running(containers) } else { json!({ "phase": "Pending" }) };
        object["status"] = status;
    }
    Ok(object)
}

/// The status of a Pod whose containers all run, since now.
pub fn running(containers: &[Value]) -> Value {
    let now = timestamp(OffsetDateTime::now_utc());
    let statuses = containers.iter().map(|container| {
        json!({
            "name": container["name"], "image": container["image"], "imageID": "", "ready": true, "started": true,
            "restartCount": 0, "state": { "running": { "startedAt": now } },
        })
    });
    json!({
        "phase": "Running",
        "conditions": [{ "type": "Ready", "status": "True", "lastTransitionTime": now }],
        "hostIP": "127.0.0.1",
        "podIP": "127.0.0.1",
        "podIPs": [{ "ip": "127.0.0.1" }],
        "startTime": now,
        "containerStatuses": statuses.collect::<Vec<_>>(),
    })
}

/// RFC 3339 in whole seconds, as Kubernetes writes it.
pub fn timestamp(at: OffsetDateTime) -> String {
    let (date, time) = (at.date(), at.time());
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z",
        date.year(),
        u8::from(date.month()),
        date.day(),
        time.hour(),
        time.minute(),
        time.second()
    )
}

/// The same in microseconds, as Kubernetes' `MicroTime`.
pub fn micro_timestamp(at: OffsetDateTime) -> String {
    format!("{}.{:06}Z", timestamp(at).trim_end_matches('Z'), at.microsecond())
}

fn uuid() -> String {
    let hex = random_hex::<16>();
    // The 4 and the 8 say "version 4, variant 1": all other digits are random.
    format!("{}-{}-4{}-8{}-{}", &hex[..8], &hex[8..12], &hex[13..16], &hex[17..20], &hex[20..])
}
