//! Watches: a body that stays open, with a line of JSON for each change.

use std::{collections::VecDeque, convert::Infallible, sync::Arc, time::Duration};

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http::header;
use serde_json::{Value, json};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{history::Change, objects::Store, selector::Selector, table};

/// How long a watch is held open where the client does not say: half of the shortest that upstream picks.
const WATCH: Duration = Duration::from_secs(15 * 60);
/// Between two bookmarks, as upstream.
const BOOKMARK: Duration = Duration::from_secs(60);

/// What a client asks for.
pub struct Asked {
    pub selector: Selector,
    /// The version that it knows; `None`: it wants to be told all that there is first.
    pub since: Option<u64>,
    pub as_table: bool,
    /// Whether it wants to be told of versions that change nothing for it.
    pub bookmarks: bool,
    pub seconds: Option<u64>,
}

/// The answer to a watch. It ends when its time is over or the server stops; with an `Expired`, where not all is known
/// of what came after the client's version.
pub fn answer(store: Arc<Store>, asked: Asked, stop: CancellationToken) -> Response {
    let newest = store.newest();
    let (mut lines, seen) = (VecDeque::new(), asked.since);
    let seen = seen.unwrap_or_else(|| {
        let (mut objects, version) = store.list(asked.selector.kind);
        objects.retain(|object| asked.selector.takes(object));
        lines.extend(objects.into_iter().map(|object| event("ADDED", object, &asked)));
        version
    });
    let until = Instant::now() + asked.seconds.map_or(WATCH, Duration::from_secs).min(WATCH);
    let watch =
        Watch { store, asked, lines, seen, newest, until, bookmark: Instant::now() + BOOKMARK, stop, ended: false };
    let lines = futures_util::stream::unfold(watch, |mut watch| async {
        let line = watch.next().await?;
        Some((Ok::<_, Infallible>(Bytes::from(format!("{line}\n"))), watch))
    });
    ([(header::CONTENT_TYPE, "application/json")], Body::from_stream(lines)).into_response()
}

struct Watch {
    store: Arc<Store>,
    asked: Asked,
    lines: VecDeque<Value>,
    /// Everything up to that version is in `lines`, or was.
    seen: u64,
    newest: watch::Receiver<u64>,
    until: Instant,
    bookmark: Instant,
    stop: CancellationToken,
    ended: bool,
}

impl Watch {
    async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(line) = self.lines.pop_front() {
                return Some(line);
            }
            if self.ended {
                return None;
            }
            // Marked as seen before it is read: what comes in between wakes us again.
            let newest = *self.newest.borrow_and_update();
            match self.store.changes_after(self.seen) {
                Some(changes) if !changes.is_empty() => {
                    self.seen = changes.last().map_or(self.seen, |change| change.version);
                    self.lines.extend(changes.iter().filter_map(|change| seen_by(change, &self.asked)));
                    continue;
                }
                Some(_) => {}
                None => {
                    self.ended = true;
                    return Some(expired(self.seen, newest));
                }
            }
            let bookmark = self.asked.bookmarks;
            tokio::select! {
                changed = self.newest.changed() => changed.ok()?,
                () = self.stop.cancelled() => return None,
                () = sleep_until(self.until) => {
                    self.ended = true;
                    if bookmark {
                        return Some(self.bookmark());
                    }
                }
                () = sleep_until(self.bookmark), if bookmark => return Some(self.bookmark()),
            }
        }
    }

    fn bookmark(&mut self) -> Value {
        self.bookmark = Instant::now() + BOOKMARK;
        let kind = self.asked.selector.kind;
        let metadata = json!({ "resourceVersion": self.seen.to_string(), "creationTimestamp": null });
        let object = json!({ "kind": kind.name(), "apiVersion": kind.api_version(), "metadata": metadata });
        json!({ "type": "BOOKMARK", "object": object })
    }
}

/// What a change is to a client: an object that no longer fits its selector is gone for it.
fn seen_by(change: &Change, asked: &Asked) -> Option<Value> {
    if change.kind != asked.selector.kind {
        return None;
    }
    let fits = |object: &&Arc<Value>| asked.selector.takes(object);
    let (before, after) = (change.before.as_ref().filter(fits), change.after.as_ref().filter(fits));
    let (kind, object) = match (before, after) {
        (None, Some(after)) => ("ADDED", (**after).clone()),
        (Some(_), Some(after)) => ("MODIFIED", (**after).clone()),
        (Some(before), None) => {
            let mut gone = (**before).clone();
            gone["metadata"]["resourceVersion"] = change.version.to_string().into();
            ("DELETED", gone)
        }
        (None, None) => return None,
    };
    Some(event(kind, object, asked))
}

fn event(kind: &str, object: Value, asked: &Asked) -> Value {
    let object = match asked.as_table {
        true => table::of(asked.selector.kind, &[object], ""),
        false => object,
    };
    json!({ "type": kind, "object": object })
}

/// As an event, not as the answer's code, as upstream.
fn expired(seen: u64, newest: u64) -> Value {
    json!({ "type": "ERROR", "object": {
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": "Expired", "code": 410,
        "message": format!("too old resource version: {seen} ({newest})"),
    } })
}
