//! Lists of objects, and where a watch begins.

use axum::{
    Json,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, StatusCode};
use serde::Deserialize;
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tower_kube_streaming::upgrade::Refusal;

use super::{at::At, objects::Store, selector, selector::Selector, table, watch};

/// Query of a list. `limit` is not read: all that there is comes at once, which the protocol allows.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ListQuery {
    watch: Option<String>,
    resource_version: Option<String>,
    send_initial_events: Option<String>,
    allow_watch_bookmarks: Option<String>,
    timeout_seconds: Option<u64>,
    field_selector: Option<String>,
    label_selector: Option<String>,
    #[serde(rename = "continue")]
    next: Option<String>,
}

impl ListQuery {
    /// Whether changes are asked for, not the list itself.
    pub fn is_watch(&self) -> bool {
        is_set(&self.watch)
    }

    /// The one name that is asked for.
    pub fn exact_name(&self) -> Option<&str> {
        selector::exact_name(self.field_selector.as_deref().unwrap_or_default())
    }
}

fn is_set(flag: &Option<String>) -> bool {
    flag.as_deref().is_some_and(|flag| flag != "0" && flag != "false")
}

/// Answers `GET` of a collection.
pub fn list(
    store: &std::sync::Arc<Store>,
    at: &At,
    query: &ListQuery,
    headers: &HeaderMap,
    stop: &CancellationToken,
) -> Result<Response, Refusal> {
    let fields = query.field_selector.as_deref().unwrap_or_default();
    let labels = query.label_selector.as_deref().unwrap_or_default();
    let selector = Selector::parse(at, fields, labels)?;
    let as_table = table::is_wanted(headers);
    if query.is_watch() {
        if query.send_initial_events.is_some() {
            // Clients that would like it list and watch instead when they read this.
            let message = "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled";
            return Err(Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", message));
        }
        let since = match query.resource_version.as_deref().unwrap_or_default() {
            "" | "0" => None,
            version => {
                let number = version.parse().map_err(|_| invalid_version(version))?;
                Some(number)
            }
        };
        let bookmarks = is_set(&query.allow_watch_bookmarks) && !as_table;
        let asked = watch::Asked { selector, since, as_table, bookmarks, seconds: query.timeout_seconds };
        return Ok(watch::answer(store.clone(), asked, stop.clone()));
    }
    if query.next.as_deref().is_some_and(|next| !next.is_empty()) {
        // None was ever given out.
        return Err(Refusal::bad_request("continue key is not valid"));
    }
    let (mut objects, version) = store.list(at.kind);
    objects.retain(|object| selector.takes(object));
    let version = version.to_string();
    if as_table {
        return Ok(Json(table::of(at.kind, &objects, &version)).into_response());
    }
    let list = json!({
        "kind": format!("{}List", at.kind.name()),
        "apiVersion": at.kind.api_version(),
        "metadata": { "resourceVersion": version },
        "items": objects,
    });
    Ok(Json(list).into_response())
}

fn invalid_version(version: &str) -> Refusal {
    Refusal::bad_request(format!("Invalid value: {version:?}: resourceVersion must be a number"))
}
