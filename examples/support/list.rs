//! Lists and watches: selectors, tables, and a body that stays open.

use std::{collections::VecDeque, convert::Infallible, time::Duration};

use axum::{
    Json,
    body::Body,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{
    sync::broadcast::{Receiver, error::RecvError},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tower_kube_streaming::upgrade::Refusal;

use super::{
    at::At,
    objects::{Change, Kind, Store, text},
    table,
};

/// How long a watch is held open where the client does not say: half of the shortest that upstream picks.
const WATCH: Duration = Duration::from_secs(15 * 60);

/// Query of a list.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ListQuery {
    watch: Option<String>,
    resource_version: Option<String>,
    send_initial_events: Option<String>,
    timeout_seconds: Option<u64>,
    field_selector: Option<String>,
    label_selector: Option<String>,
}

impl ListQuery {
    /// Whether changes are asked for, not the list itself.
    pub fn is_watch(&self) -> bool {
        self.watch.as_deref().is_some_and(|watch| watch != "0" && watch != "false")
    }

    /// The one name that is asked for.
    pub fn exact_name(&self) -> Option<&str> {
        let mut terms = split(self.field_selector.as_deref()).filter_map(|term| parse_term(term).ok());
        terms.find_map(|(field, equal, value)| (equal && field == "metadata.name").then_some(value))
    }
}

/// Answers `GET` of a collection.
pub fn list(
    store: &Store,
    at: &At,
    query: &ListQuery,
    headers: &HeaderMap,
    stop: &CancellationToken,
) -> Result<Response, Refusal> {
    let selector = Selector::parse(at, query)?;
    let as_table = table::is_wanted(headers);
    if query.is_watch() {
        return watch(store, selector, query, as_table, stop.clone());
    }
    let (mut objects, version) = store.list(at.kind);
    objects.retain(|object| selector.takes(object));
    let version = version.to_string();
    if as_table {
        return Ok(Json(table::of(at.kind, &objects, &version)).into_response());
    }
    let list = json!({
        "kind": format!("{}List", at.kind.name()),
        "apiVersion": "v1",
        "metadata": { "resourceVersion": version },
        "items": objects,
    });
    Ok(Json(list).into_response())
}

/// One line of JSON for each object newer than the client's version, then one for each change.
fn watch(
    store: &Store,
    selector: Selector,
    query: &ListQuery,
    as_table: bool,
    stop: CancellationToken,
) -> Result<Response, Refusal> {
    if query.send_initial_events.is_some() {
        // Clients that would like it list and watch instead when they read this.
        let message = "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled";
        return Err(Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", message));
    }
    let kind = selector.kind;
    let (objects, changes) = store.watch(kind);
    let seen = query.resource_version.as_deref().unwrap_or_default().parse().unwrap_or(0);
    let mut first: Vec<Value> = objects.into_iter().filter(|object| version(object) > seen).collect();
    first.sort_by_key(version);
    let last = first.last().map_or(seen, version);
    let first = first.into_iter().map(|object| Change { event: "ADDED", kind, object }).collect();
    let until = Instant::now() + query.timeout_seconds.map_or(WATCH, Duration::from_secs).min(WATCH);
    let watch = Watch { first, last, changes, selector, as_table, stop, until };
    let lines = futures_util::stream::unfold(watch, |mut watch| async {
        let line = watch.next().await?;
        Some((Ok::<_, Infallible>(Bytes::from(format!("{line}\n"))), watch))
    });
    Ok(([(header::CONTENT_TYPE, "application/json")], Body::from_stream(lines)).into_response())
}

struct Watch {
    first: VecDeque<Change>,
    /// Version of the newest object in `first`: the channel may repeat it.
    last: u64,
    changes: Receiver<Change>,
    selector: Selector,
    as_table: bool,
    stop: CancellationToken,
    until: Instant,
}

impl Watch {
    async fn next(&mut self) -> Option<Value> {
        loop {
            let change = match self.first.pop_front() {
                Some(change) => change,
                None => tokio::select! {
                    change = self.changes.recv() => match change {
                        Ok(change) if version(&change.object) <= self.last => continue,
                        Ok(change) => change,
                        // Too slow: the client starts again.
                        Err(RecvError::Lagged(_) | RecvError::Closed) => return None,
                    },
                    () = self.stop.cancelled() => return None,
                    () = sleep_until(self.until) => return None,
                },
            };
            if change.kind == self.selector.kind && self.selector.takes(&change.object) {
                let object = match self.as_table {
                    true => table::of(change.kind, &[change.object], ""),
                    false => change.object,
                };
                return Some(json!({ "type": change.event, "object": object }));
            }
        }
    }
}

fn version(object: &Value) -> u64 {
    text(object, "/metadata/resourceVersion").and_then(|version| version.parse().ok()).unwrap_or(0)
}

/// Which objects of a kind are asked for.
struct Selector {
    kind: Kind,
    namespace: Option<String>,
    /// JSON pointer, whether it must be equal, value.
    terms: Vec<(String, bool, String)>,
}

impl Selector {
    /// A selector that is not understood is refused: to ignore it would show too much.
    fn parse(at: &At, query: &ListQuery) -> Result<Self, Refusal> {
        let mut terms = Vec::new();
        for term in split(query.field_selector.as_deref()) {
            let (field, equal, value) = parse_term(term)?;
            let pointer = match field {
                "metadata.name" | "metadata.namespace" | "spec.nodeName" | "status.phase" => {
                    format!("/{}", field.replace('.', "/"))
                }
                _ => return Err(Refusal::bad_request(format!("field label not supported: {field}"))),
            };
            terms.push((pointer, equal, value.to_owned()));
        }
        for term in split(query.label_selector.as_deref()) {
            let (label, equal, value) = parse_term(term)?;
            let label = label.replace('~', "~0").replace('/', "~1");
            terms.push((format!("/metadata/labels/{label}"), equal, value.to_owned()));
        }
        Ok(Self { kind: at.kind, namespace: at.namespace.clone(), terms })
    }

    fn takes(&self, object: &Value) -> bool {
        let namespace = text(object, "/metadata/namespace");
        self.namespace.as_deref().is_none_or(|wanted| namespace == Some(wanted))
            && self
                .terms
                .iter()
                .all(|(pointer, equal, value)| (text(object, pointer).unwrap_or_default() == value) == *equal)
    }
}

fn split(selector: Option<&str>) -> impl Iterator<Item = &str> {
    selector.unwrap_or_default().split(',').filter(|term| !term.is_empty())
}

/// `a=b`, `a==b` or `a!=b`.
fn parse_term(term: &str) -> Result<(&str, bool, &str), Refusal> {
    let (name, value) =
        term.split_once('=').ok_or_else(|| Refusal::bad_request(format!("unable to parse requirement: {term:?}")))?;
    match name.strip_suffix('!') {
        Some(name) => Ok((name, false, value)),
        None => Ok((name, true, value.strip_prefix('=').unwrap_or(value))),
    }
}
