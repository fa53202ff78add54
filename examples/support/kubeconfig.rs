//! The file that kubectl reads: one context for every bearer token.

use std::path::Path;

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use super::{Error, tokens::Token, write_private};

/// Writes it. `ca` is the PEM file to trust, `None` for plain HTTP. The current context is `admin`, or else the first.
pub fn write(path: &Path, server: &str, ca: Option<&str>, tokens: &[Token]) -> Result<(), Error> {
    let mut cluster = json!({ "server": server });
    if let Some(ca) = ca {
        cluster["certificate-authority-data"] = STANDARD.encode(ca).into();
    }
    let user = |token: &Token| json!({ "name": token.caller.name, "user": { "token": token.secret } });
    let context = |token: &Token| {
        let name = &token.caller.name;
        json!({ "name": name, "context": { "cluster": "demo", "user": name, "namespace": "default" } })
    };
    let current = tokens.iter().find(|token| token.caller.name == "admin").or(tokens.first());
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": "demo", "cluster": cluster }],
        "users": tokens.iter().map(user).collect::<Vec<Value>>(),
        "contexts": tokens.iter().map(context).collect::<Vec<Value>>(),
        "current-context": current.map_or("", |token| &token.caller.name),
    });
    // JSON is YAML, and kubectl reads it as such.
    write_private(path, &format!("{config:#}\n"))
}
