//! A kubelet's static Pods at its API server: a mirror Pod for each, `NAME-NODE`, so that clients see it and may stream.
//!
//! Upstream: `pkg/kubelet/pod/mirror_client.go`, `pkg/kubelet/config/common.go`. There a static Pod itself is called
//! `NAME-NODE`; here it keeps the name that its file gives it, and has the other one besides.

use std::{
    collections::HashMap,
    fmt::Write,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::extract::Request;
use http::{StatusCode, Uri, uri::PathAndQuery};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::time::{sleep, timeout};

use super::{
    Error,
    client::{ApiClient, Ask, complaint},
    node::owner,
    objects::{Key, Kind, Store, is_name, text},
    told::Told,
};

/// Between two looks at the API server. Upstream learns from a watch that a mirror Pod has gone.
const LOOK: Duration = Duration::from_secs(3);
/// What taking them away may take when the kubelet stops.
const FAREWELL: Duration = Duration::from_secs(5);

const MIRROR: &str = "kubernetes.io/config.mirror";
const HASH: &str = "kubernetes.io/config.hash";
const SOURCE: &str = "kubernetes.io/config.source";

/// The static Pods of a node, and what the API server knows of them.
pub struct Mirrors {
    api: Arc<ApiClient>,
    store: Arc<Store>,
    node: String,
    host_ip: String,
    pods: Vec<Static>,
    /// The uid of each mirror Pod, by its name.
    uids: Mutex<HashMap<Key, String>>,
}

#[derive(Debug)]
struct Static {
    key: Key,
    uid: String,
    mirror: Key,
    /// What the API server is to have, but for the owner.
    object: Value,
    hash: String,
}

impl Mirrors {
    /// For the Pods that are in the store now. Their statuses are reported as they are there then.
    pub fn new(api: Arc<ApiClient>, store: Arc<Store>, node: &str, host: IpAddr) -> Result<Self, Error> {
        let pods = store.list(Kind::Pod).0.iter().map(|pod| Static::of(pod, node)).collect::<Result<_, _>>()?;
        let (node, host_ip) = (node.to_owned(), host.to_string());
        Ok(Self { api, store, node, host_ip, pods, uids: Mutex::default() })
    }

    /// Keeps them there, with their statuses, until dropped.
    pub async fn keep(&self) {
        let mut told = Told::new("reporting the static Pods");
        let mut newest = self.store.newest();
        loop {
            newest.mark_unchanged();
            let mut result = Ok(());
            for pod in &self.pods {
                let done = self.report(pod).await;
                result = result.and(done);
            }
            let failed = result.is_err();
            let wait = sleep(told.wait(result, LOOK));
            // A status has changed. After a failure that waits too.
            let changed = async { if failed { std::future::pending().await } else { newest.changed().await } };
            tokio::select! { () = wait => {}, _ = changed => {} }
        }
    }

    async fn report(&self, pod: &Static) -> Result<(), Error> {
        let path = url(&pod.mirror);
        let (code, there) = self.api.ask(&path, Ask::Get).await?;
        let there = match code {
            StatusCode::NOT_FOUND => self.create(pod).await?,
            StatusCode::OK if annotation(&there, MIRROR).is_none() => {
                return Err(format!("{path}: there is a Pod of that name which is no mirror Pod").into());
            }
            StatusCode::OK if annotation(&there, MIRROR) == Some(&pod.hash) && !is_leaving(&there) => there,
            StatusCode::OK => {
                self.delete(pod, text(&there, "/metadata/uid").unwrap_or_default()).await?;
                self.create(pod).await?
            }
            _ => return Err(format!("GET {path}: {}", complaint(code, &there)).into()),
        };
        let uid = text(&there, "/metadata/uid").unwrap_or_default().to_owned();
        self.uids().insert(pod.mirror.clone(), uid);

        let Some(own) = self.store.get(&pod.key) else { return Ok(()) };
        let mut status = own["status"].clone();
        status["hostIP"] = self.host_ip.as_str().into();
        status["hostIPs"] = json!([{ "ip": self.host_ip }]);
        if own["spec"]["hostNetwork"] == true && status["podIP"].is_null() {
            status["podIP"] = self.host_ip.as_str().into();
            status["podIPs"] = json!([{ "ip": self.host_ip }]);
        }
        if there["status"] == status {
            return Ok(());
        }
        let path = format!("{path}/status");
        let (code, answer) = self.api.ask(&path, Ask::MergePatch(&json!({ "status": status }))).await?;
        if code.is_success() { Ok(()) } else { Err(format!("PATCH {path}: {}", complaint(code, &answer)).into()) }
    }

    async fn create(&self, pod: &Static) -> Result<Value, Error> {
        let mut owner = owner(&self.api, &self.node).await?;
        owner["controller"] = true.into();
        let mut object = pod.object.clone();
        object["metadata"]["ownerReferences"] = json!([owner]);
        let path = format!("/api/v1/namespaces/{}/pods", pod.mirror.namespace);
        let (code, created) = self.api.ask(&path, Ask::Post(&object)).await?;
        if code != StatusCode::CREATED {
            return Err(format!("POST {path}: {}", complaint(code, &created)).into());
        }
        tracing::info!(pod.namespace = pod.mirror.namespace, pod.name = pod.mirror.name, "mirror Pod created");
        Ok(created)
    }

    /// Deletes it at once, if it is still the one of that uid.
    async fn delete(&self, pod: &Static, uid: &str) -> Result<(), Error> {
        let path = url(&pod.mirror);
        let options = json!({
            "apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0, "preconditions": { "uid": uid },
        });
        let (code, answer) = self.api.ask(&path, Ask::Delete(&options)).await?;
        if code.is_success() || code == StatusCode::NOT_FOUND {
            return Ok(());
        }
        Err(format!("DELETE {path}: {}", complaint(code, &answer)).into())
    }

    /// Takes them all away, as far as that is possible in 5 seconds: the API server may be gone too.
    pub async fn remove(&self) {
        let all = async {
            for pod in &self.pods {
                let uid = self.uids().get(&pod.mirror).cloned();
                if let Some(uid) = uid
                    && let Err(error) = self.delete(pod, &uid).await
                {
                    tracing::warn!(%error, "a mirror Pod was left behind");
                }
            }
        };
        if timeout(FAREWELL, all).await.is_err() {
            tracing::warn!("mirror Pods were left behind: the API server does not answer");
        }
    }

    /// Leads a request for a mirror Pod to the static Pod that it stands for, by name and, where one is given, by uid.
    pub fn redirect(&self, mut request: Request) -> Request {
        if let Some(path) = self.redirected(request.uri().path()) {
            let mut parts = request.uri().clone().into_parts();
            let query = request.uri().query().map(|query| format!("?{query}")).unwrap_or_default();
            // Names and uids are plain, and all else was there before.
            parts.path_and_query = format!("{path}{query}").parse::<PathAndQuery>().ok();
            if let Ok(uri) = Uri::from_parts(parts) {
                *request.uri_mut() = uri;
            }
        }
        request
    }

    /// `/exec/NAMESPACE/NAME[/UID]/CONTAINER`, and the same of `attach` and `containerLogs`; `/portForward/NAMESPACE/NAME[/UID]`.
    fn redirected(&self, path: &str) -> Option<String> {
        let mut words: Vec<&str> = path.split('/').collect();
        let &["", what, namespace, name, ..] = &words[..] else { return None };
        let pod = self.pods.iter().find(|pod| pod.mirror.namespace == namespace && pod.mirror.name == name)?;
        words[3] = &pod.key.name;
        let longest = if what == "portForward" { 5 } else { 6 };
        let of_mirror = self.uids().get(&pod.mirror).cloned();
        if words.len() == longest && of_mirror.as_deref() == Some(words[4]) {
            words[4] = &pod.uid;
        }
        Some(words.join("/"))
    }

    fn uids(&self) -> std::sync::MutexGuard<'_, HashMap<Key, String>> {
        self.uids.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Static {
    fn of(pod: &Value, node: &str) -> Result<Self, Error> {
        let key = Key::of(pod)?;
        let mirror = Key::pod(&key.namespace, &format!("{}-{node}", key.name));
        if !is_name(&mirror.name) {
            return Err(format!("Pod {:?}: with the node's name behind it, its name is too long", key.name).into());
        }
        let mut object = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": { "name": mirror.name, "namespace": mirror.namespace },
            "spec": pod["spec"],
        });
        for kept in ["labels", "annotations"] {
            if pod["metadata"][kept].is_object() {
                object["metadata"][kept] = pod["metadata"][kept].clone();
            }
        }
        let digest = Sha256::digest(object.to_string());
        // As long as upstream's, which is an MD5.
        let hash = digest.iter().take(16).fold(String::new(), |mut hash, byte| {
            let _ = write!(hash, "{byte:02x}");
            hash
        });
        if !object["metadata"]["annotations"].is_object() {
            object["metadata"]["annotations"] = json!({});
        }
        for (name, value) in [(MIRROR, &*hash), (HASH, &hash), (SOURCE, "file")] {
            object["metadata"]["annotations"][name] = value.into();
        }
        let uid = text(pod, "/metadata/uid").unwrap_or_default().to_owned();
        Ok(Self { key, uid, mirror, object, hash })
    }
}

fn url(key: &Key) -> String {
    format!("/api/v1/namespaces/{}/pods/{}", key.namespace, key.name)
}

fn annotation<'v>(pod: &'v Value, name: &str) -> Option<&'v str> {
    pod.get("metadata")?.get("annotations")?.get(name)?.as_str()
}

fn is_leaving(pod: &Value) -> bool {
    text(pod, "/metadata/deletionTimestamp").is_some()
}
