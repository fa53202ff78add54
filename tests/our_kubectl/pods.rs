//! Which pod a workload or a Service means, by a server that has such, or by the object in a file.

use std::{
    convert::Infallible,
    fs,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::support::{Outcome, Scratch, kubectl::ours};
use crate::ensure;

type Asked = Arc<Mutex<Vec<String>>>;

/// A server of Deployments, a Service and pods. It refuses streams, and keeps what it was asked.
async fn serve(listener: TcpListener, asked: Asked) {
    while let Ok((tcp, _)) = listener.accept().await {
        let asked = asked.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            let uri = request.uri().to_string();
            asked.lock().expect("not poisoned").push(format!("{} {uri}", request.method()));
            let (code, body) = answer(&uri);
            let mut response = Response::new(Full::new(Bytes::from(body.to_string())));
            *response.status_mut() = code;
            async { Ok::<_, Infallible>(response) }
        });
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(tcp), service));
    }
}

fn pod(name: &str, phase: &str, ready: &str) -> Value {
    json!({
        "metadata": { "name": name },
        "spec": { "containers": [{ "name": "main" }] },
        "status": { "phase": phase, "conditions": [{ "type": "Ready", "status": ready }] },
    })
}

fn answer(uri: &str) -> (StatusCode, Value) {
    let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
    let selector = json!({
        "matchLabels": { "app": "web" },
        "matchExpressions": [{ "key": "tier", "operator": "In", "values": ["a", "b"] }],
    });
    match path {
        "/apis/apps/v1/namespaces/ns/deployments/web" => (StatusCode::OK, json!({ "spec": { "selector": selector } })),
        "/api/v1/namespaces/ns/services/web" => {
            let ports = json!([
                { "port": 80, "name": "http", "targetPort": 8080 },
                { "port": 443, "targetPort": "tls" },
            ]);
            let spec = json!({ "selector": { "app": "web" }, "ports": ports });
            (StatusCode::OK, json!({ "metadata": { "name": "web" }, "spec": spec }))
        }
        "/api/v1/namespaces/ns/services/external" => (StatusCode::OK, json!({ "spec": { "externalName": "x" } })),
        "/api/v1/namespaces/ns/pods" | "/api/v1/namespaces/elsewhere/pods" if query.contains("app%3Dweb") => {
            let deleted = json!({ "metadata": { "name": "going", "deletionTimestamp": "now" }, "status": { "phase": "Running" } });
            let pods = [
                pod("new", "Pending", "False"),
                pod("right", "Running", "True"),
                pod("sick", "Running", "False"),
                deleted,
            ];
            (StatusCode::OK, json!({ "items": pods }))
        }
        _ if path.ends_with("/exec") || path.ends_with("/portforward") => {
            (StatusCode::IM_A_TEAPOT, json!({ "message": "no streams here" }))
        }
        _ => {
            let message = "deployments.apps \"none\" not found";
            (
                StatusCode::NOT_FOUND,
                json!({ "kind": "Status", "reason": "NotFound", "message": message, "details": { "name": "none" } }),
            )
        }
    }
}

#[tokio::test]
async fn a_workload_stands_for_its_best_pod_and_a_service_for_its_target_ports() -> Outcome {
    let listener = TcpListener::bind("127.0.0.1:0").await.map_err(|error| error.to_string())?;
    let address = listener.local_addr().map_err(|error| error.to_string())?;
    let asked = Asked::default();
    let server = tokio::spawn(serve(listener, asked.clone()));
    let scratch = Scratch::new("pods");
    let kubeconfig = scratch.path().join("kubeconfig");
    let config = json!({
        "clusters": [{ "name": "c", "cluster": { "server": format!("http://{address}") } }],
        "users": [{ "name": "u", "user": { "token": "not over plain HTTP" } }],
        "contexts": [{ "name": "x", "context": { "cluster": "c", "user": "u", "namespace": "ns" } }],
        "current-context": "x",
    });
    fs::write(&kubeconfig, config.to_string()).map_err(|error| error.to_string())?;
    let run = async |args: &[&str]| {
        let mut command = ours(true).command(&kubeconfig, &scratch, args);
        let output = command.output().await.map_err(|error| error.to_string())?;
        let asked = std::mem::take(&mut *asked.lock().expect("not poisoned"));
        Ok::<_, String>((output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned(), asked))
    };
    for target in ["deployment/web", "deploy/web", "svc/web"] {
        let (code, said, asked) = run(&["exec", target, "--", "true"]).await?;
        ensure!(code == Some(1) && said == "error: unable to upgrade connection: no streams here\n", "{said}");
        // The object, its pods, and the stream over WebSocket and over SPDY: nothing else.
        ensure!(asked.len() == 4 && asked[3].starts_with("POST /api/v1/namespaces/ns/pods/right/exec?"), "{asked:#?}");
    }
    // Out of a file the object is not asked for, and its own selector and namespace count.
    for (kind, version, selector) in [
        ("Deployment", "apps/v1", json!({ "matchLabels": { "app": "web" } })),
        ("Job", "batch/v1", json!({ "matchLabels": { "app": "web" } })),
        ("Service", "v1", json!({ "app": "web" })),
    ] {
        let metadata = json!({ "name": "unknown", "namespace": "elsewhere" });
        let spec = json!({ "selector": selector });
        let object = json!({ "apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec });
        let file = scratch.path().join("object.json");
        fs::write(&file, object.to_string()).map_err(|error| error.to_string())?;
        let file = file.to_str().expect("paths are text");
        let (code, said, asked) = run(&["exec", "-f", file, "--", "true"]).await?;
        ensure!(code == Some(1) && said == "error: unable to upgrade connection: no streams here\n", "{said}");
        ensure!(
            asked.len() == 3 && asked[2].starts_with("POST /api/v1/namespaces/elsewhere/pods/right/"),
            "{asked:#?}"
        );
    }
    let (code, said, _) = run(&["exec", "deploy/none", "--", "true"]).await?;
    let wanted = "Error from server (NotFound): deployments.apps \"none\" not found\n";
    ensure!(code == Some(1) && said == wanted, "{said}");
    let (code, said, _) = run(&["exec", "svc/external", "--", "true"]).await?;
    ensure!(code == Some(1) && said.contains("no selector"), "{said}");
    for (port, wanted) in [
        ("80", "error upgrading connection: unable to upgrade connection: no streams here"),
        ("5000:http", "error upgrading connection: unable to upgrade connection: no streams here"),
        ("81", "Service web does not have a service port 81"),
        ("web", "Service 'web' does not have a named port 'web'"),
        // The Service's port has a name that its pods do not know.
        ("443", "Pod 'right' does not have a named port 'tls'"),
    ] {
        let (code, said, _) = run(&["port-forward", "svc/web", port]).await?;
        ensure!(code == Some(1) && said == format!("error: {wanted}\n"), "{port}: {said}");
    }
    server.abort();
    Ok(())
}
