//! `PATCH` bodies: RFC 7386 merge patches, and as much of Kubernetes' strategic merge as Nodes and Pods need.

use serde_json::{Map, Value};

/// Lists that a strategic merge joins by a key instead of replacing them: `conditions` and `addresses` by `type`, the
/// lists of containers by `name`.
fn merge_key(list: &str) -> Option<&'static str> {
    match list {
        "conditions" | "addresses" => Some("type"),
        "containers" | "initContainers" | "ephemeralContainers" | "containerStatuses" => Some("name"),
        _ => None,
    }
}

/// Applies a patch. `strategic` joins the lists above, and leaves out directives such as `$setElementOrder`.
pub fn apply(object: &mut Value, patch: Value, strategic: bool) {
    let Value::Object(patch) = patch else {
        *object = patch;
        return;
    };
    if !object.is_object() {
        *object = Value::Object(Map::new());
    }
    let Value::Object(object) = object else { return };
    for (name, value) in patch {
        match (value, merge_key(&name)) {
            (Value::Null, _) => drop(object.remove(&name)),
            (_, _) if strategic && name.starts_with('$') => {}
            (Value::Array(patches), Some(key)) if strategic => {
                let list = object.entry(name).or_insert_with(|| Value::Array(Vec::new()));
                join(list, patches, key);
            }
            (value, _) => apply(object.entry(name).or_insert(Value::Null), value, strategic),
        }
    }
}

fn join(list: &mut Value, patches: Vec<Value>, key: &str) {
    if !list.is_array() {
        *list = Value::Array(Vec::new());
    }
    let Value::Array(list) = list else { return };
    for patch in patches {
        match list.iter_mut().find(|item| !patch[key].is_null() && item[key] == patch[key]) {
            Some(item) => apply(item, patch, true),
            None => list.push(patch),
        }
    }
}
