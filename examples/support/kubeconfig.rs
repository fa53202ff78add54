//! The file that kubectl reads, with one context for every bearer token; and the ones that a kubelet and a gateway's users read.

use std::path::{Path, absolute};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use super::{Context, Error, pki::CertAndKey, tokens::Token, write_private};

/// Writes it. `ca` is the PEM file to trust, `None` for plain HTTP. The current context is `admin`, or else the first.
pub fn write(path: &Path, server: &str, ca: Option<&str>, tokens: &[Token]) -> Result<(), Error> {
    let user = |token: &Token| json!({ "name": token.caller.name, "user": { "token": token.secret } });
    let context = |token: &Token| {
        let name = &token.caller.name;
        json!({ "name": name, "context": { "cluster": "demo", "user": name, "namespace": "default" } })
    };
    let current = tokens.iter().find(|token| token.caller.name == "admin").or(tokens.first());
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": "demo", "cluster": cluster(server, ca) }],
        "users": tokens.iter().map(user).collect::<Vec<Value>>(),
        "contexts": tokens.iter().map(context).collect::<Vec<Value>>(),
        "current-context": current.map_or("", |token| &token.caller.name),
    });
    // JSON is YAML, and kubectl reads it as such.
    write_private(path, &format!("{config:#}\n"))
}

/// Writes the one for a kubelet: one cluster, one user, one context. Without TLS there is nothing to log in with, and
/// nothing to log in for.
pub fn write_for_kubelet(path: &Path, server: &str, ca: Option<&str>, own: &CertAndKey) -> Result<(), Error> {
    // Absolute: a relative path would be relative to the file, and the kubelet may be started anywhere.
    let file = |file: &Path| absolute(file).context(file.display());
    let user = match ca {
        Some(_) => json!({ "client-certificate": file(&own.cert)?, "client-key": file(&own.key)? }),
        None => json!({}),
    };
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": "demo", "cluster": cluster(server, ca) }],
        "users": [{ "name": "kubelet", "user": user }],
        "contexts": [{ "name": "kubelet", "context": { "cluster": "demo", "user": "kubelet" } }],
        "current-context": "kubelet",
    });
    write_private(path, &format!("{config:#}\n"))
}

/// Writes the one for users of a gateway. Who they are it cannot say: they add their own token or certificate.
pub fn write_for_gateway(path: &Path, server: &str, ca: &str) -> Result<(), Error> {
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": "gateway", "cluster": cluster(server, Some(ca)) }],
        "contexts": [{ "name": "gateway", "context": { "cluster": "gateway", "user": "", "namespace": "default" } }],
        "current-context": "gateway",
    });
    write_private(path, &format!("{config:#}\n"))
}

fn cluster(server: &str, ca: Option<&str>) -> Value {
    let mut cluster = json!({ "server": server });
    if let Some(ca) = ca {
        cluster["certificate-authority-data"] = STANDARD.encode(ca).into();
    }
    cluster
}
