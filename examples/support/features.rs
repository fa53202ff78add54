//! What a node declares that it can do: `status.declaredFeatures`.

use serde_json::Value;

use super::objects::items;

/// Bytes of a name.
const LONGEST: usize = 253;

/// The names, as far as they are names.
pub fn of(node: &Value) -> impl Iterator<Item = &str> {
    items(node, "/status/declaredFeatures").iter().filter_map(Value::as_str)
}

/// Takes them away.
pub fn drop_from(node: &mut Value) {
    if let Some(status) = node.get_mut("status").and_then(Value::as_object_mut) {
        status.remove("declaredFeatures");
    }
}

/// Upstream's `validateNodeDeclaredFeatures` (pkg/apis/core/validation/validation.go), in its words: each a name, sorted,
/// and none twice.
pub fn check(node: &Value) -> Result<(), String> {
    let list = match node.pointer("/status/declaredFeatures") {
        None | Some(Value::Null) => return Ok(()),
        Some(Value::Array(list)) => list,
        Some(_) => return Err("status.declaredFeatures: must be a list".to_owned()),
    };
    let mut before = "";
    for (at, feature) in list.iter().enumerate() {
        let field = format!("status.declaredFeatures[{at}]");
        let Some(name) = feature.as_str() else { return Err(format!("{field}: must be a string")) };
        if name.len() > LONGEST {
            return Err(format!("{field}: Invalid value: must be no more than {LONGEST} characters"));
        }
        if !is_name(name) {
            return Err(format!(
                "{field}: Invalid value: {name:?}: must start with an UpperCamelCase segment, with subsequent segments \
                 separated by '/' (e.g., MyFeature or MyFeature/mySubFeature), and contain only alphanumeric characters \
                 and slashes"
            ));
        }
        if at > 0 && name == before {
            return Err(format!("{field}: Duplicate value: {name:?}"));
        }
        if name < before {
            return Err(format!("{field}: Invalid value: {name:?}: list must be sorted alphabetically"));
        }
        before = name;
    }
    Ok(())
}

/// `^[A-Z][a-zA-Z0-9]*(\/[a-zA-Z][a-zA-Z0-9]*)*$`
fn is_name(name: &str) -> bool {
    name.starts_with(|first: char| first.is_ascii_uppercase())
        && name.split('/').all(|segment| {
            segment.starts_with(|first: char| first.is_ascii_alphabetic())
                && segment.bytes().all(|byte| byte.is_ascii_alphanumeric())
        })
}
