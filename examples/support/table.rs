//! Objects as the table that `kubectl get` prints.

use http::{HeaderMap, header};
use serde_json::{Value, json};
use time::{OffsetDateTime, PrimitiveDateTime};

use super::objects::{Kind, items, text};

/// kubectl asks for a table, and takes plain objects where it gets none.
pub fn is_wanted(headers: &HeaderMap) -> bool {
    let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    let is_table =
        |kind: &str| ["as=Table", "v=v1"].iter().all(|wanted| kind.split(';').any(|word| word.trim() == *wanted));
    accept.split(',').any(is_table)
}

/// A row for each object.
pub fn of(kind: Kind, objects: &[Value], version: &str) -> Value {
    let columns = match kind {
        Kind::Pod => {
            json!([
                column("Name", "string", 0),
                column("Ready", "string", 0),
                column("Status", "string", 0),
                column("Restarts", "string", 0),
                column("Age", "string", 0),
                column("IP", "string", 1),
                column("Node", "string", 1),
            ])
        }
        Kind::Node => {
            json!([
                column("Name", "string", 0),
                column("Status", "string", 0),
                column("Roles", "string", 0),
                column("Age", "string", 0),
                column("Version", "string", 0),
                column("Internal-IP", "string", 1),
            ])
        }
        Kind::Lease => {
            json!([column("Name", "string", 0), column("Holder", "string", 0), column("Age", "string", 0)])
        }
    };
    let rows = objects.iter().map(|object| {
        let cells = match kind {
            Kind::Pod => pod(object),
            Kind::Node => node(object),
            Kind::Lease => json!([
                text(object, "/metadata/name"),
                text(object, "/spec/holderIdentity").unwrap_or_default(),
                age(object),
            ]),
        };
        let metadata = json!({
            "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"],
        });
        json!({ "cells": cells, "object": metadata })
    });
    json!({
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": { "resourceVersion": version },
        "columnDefinitions": columns,
        "rows": rows.collect::<Vec<_>>(),
    })
}

/// Priority 1 is for `-o wide`.
fn column(name: &str, kind: &str, priority: u8) -> Value {
    let format = if name == "Name" { "name" } else { "" };
    json!({ "name": name, "type": kind, "format": format, "description": "", "priority": priority })
}

fn pod(pod: &Value) -> Value {
    let statuses = items(pod, "/status/containerStatuses");
    let ready = statuses.iter().filter(|status| status["ready"] == true).count();
    let restarts = statuses.iter().filter_map(|status| status["restartCount"].as_u64()).fold(0, u64::saturating_add);
    json!([
        text(pod, "/metadata/name"),
        format!("{ready}/{}", items(pod, "/spec/containers").len()),
        text(pod, "/status/phase").unwrap_or("Unknown"),
        restarts.to_string(),
        age(pod),
        text(pod, "/status/podIP").unwrap_or("<none>"),
        text(pod, "/spec/nodeName").unwrap_or("<none>"),
    ])
}

fn node(node: &Value) -> Value {
    let ready = items(node, "/status/conditions").iter().find(|condition| condition["type"] == "Ready");
    let status = match ready.and_then(|condition| text(condition, "/status")) {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    };
    let internal = items(node, "/status/addresses").iter().find(|address| address["type"] == "InternalIP");
    json!([
        text(node, "/metadata/name"),
        status,
        "<none>",
        age(node),
        text(node, "/status/nodeInfo/kubeletVersion").unwrap_or_default(),
        internal.and_then(|address| text(address, "/address")).unwrap_or("<none>"),
    ])
}

/// `42s`, `7m`, `5h`, `3d`.
fn age(object: &Value) -> String {
    let Some(created) = text(object, "/metadata/creationTimestamp").and_then(parse) else { return "<unknown>".into() };
    let seconds = (OffsetDateTime::now_utc() - created).whole_seconds().max(0);
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// Reads `2026-11-22T10:56:24Z`.
fn parse(timestamp: &str) -> Option<OffsetDateTime> {
    let numbers: Vec<i32> =
        timestamp.strip_suffix('Z')?.split(['-', 'T', ':']).map(str::parse).collect::<Result<_, _>>().ok()?;
    let [year, month, day, hour, minute, second] = numbers[..] else { return None };
    let small = |number: i32| u8::try_from(number).ok();
    let month = time::Month::try_from(small(month)?).ok()?;
    let date = time::Date::from_calendar_date(year, month, small(day)?).ok()?;
    let time = time::Time::from_hms(small(hour)?, small(minute)?, small(second)?).ok()?;
    Some(PrimitiveDateTime::new(date, time).assume_utc())
}
