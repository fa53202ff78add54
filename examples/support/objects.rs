//! Nodes and Pods, in memory, as the JSON that clients see; and the roles that say who may.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Mutex,
};

use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::sync::broadcast;

use super::{Context, Error, features, policy::Policy, random_hex};

/// The demo cluster.
pub const DEMO: &str = include_str!("../manifests/demo.yaml");

/// The roles that are there whatever is given.
const BUILT_IN: &str = include_str!("../manifests/built-in.yaml");

/// Changes a slow watcher may be behind before it is cut off, as upstream does.
const WATCH_BACKLOG: usize = 100;

/// The kinds of object there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Node,
    Pod,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Node => "Node",
            Self::Pod => "Pod",
        }
    }

    /// As in URLs.
    pub fn plural(self) -> &'static str {
        match self {
            Self::Node => "nodes",
            Self::Pod => "pods",
        }
    }
}

/// Names one object; a Node's namespace is empty.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    pub kind: Kind,
    pub namespace: String,
    pub name: String,
}

impl Key {
    pub fn node(name: &str) -> Self {
        Self { kind: Kind::Node, namespace: String::new(), name: name.to_owned() }
    }

    pub fn pod(namespace: &str, name: &str) -> Self {
        Self { kind: Kind::Pod, namespace: namespace.to_owned(), name: name.to_owned() }
    }

    fn of(object: &Value) -> Result<Self, String> {
        let name = text(object, "/metadata/name").ok_or("metadata.name is missing")?;
        match text(object, "/kind") {
            Some("Node") => Ok(Self::node(name)),
            Some("Pod") => Ok(Self::pod(text(object, "/metadata/namespace").unwrap_or("default"), name)),
            Some(kind) => {
                Err(format!("kind {kind} is not supported; Node, Pod, Role, ClusterRole and their bindings are"))
            }
            None => Err("kind is missing".to_owned()),
        }
    }
}

/// What a watcher is told.
#[derive(Clone, Debug)]
pub struct Change {
    /// `ADDED` or `MODIFIED`.
    pub event: &'static str,
    pub kind: Kind,
    pub object: Value,
}

/// All objects, and a version that grows with every change.
#[derive(Debug)]
pub struct Store {
    state: Mutex<State>,
    changes: broadcast::Sender<Change>,
    policy: Policy,
    declared_features: bool,
}

#[derive(Debug)]
struct State {
    objects: BTreeMap<Key, Value>,
    version: u64,
}

impl State {
    fn put(&mut self, key: Key, mut object: Value) -> Value {
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        self.objects.insert(key, object.clone());
        object
    }
}

impl Store {
    /// The objects of these files, or the demo's where none is given.
    pub fn from_manifests(files: &[PathBuf]) -> Result<Self, Error> {
        let mut store = Self::empty()?;
        if files.is_empty() {
            store.load(DEMO, Path::new("demo.yaml"))?;
        }
        for file in files {
            store.load(&fs::read_to_string(file).context(file.display())?, file)?;
        }
        Ok(store)
    }

    /// Nothing but the roles that are always there.
    pub fn empty() -> Result<Self, Error> {
        // Versions of an earlier run are smaller, so that a watch which outlived it starts from the beginning.
        let version = OffsetDateTime::now_utc().unix_timestamp().unsigned_abs();
        let state = State { objects: BTreeMap::new(), version };
        let mut store = Self {
            state: Mutex::new(state),
            changes: broadcast::channel(WATCH_BACKLOG).0,
            policy: Policy::default(),
            declared_features: true,
        };
        store.load(BUILT_IN, Path::new("built-in.yaml"))?;
        Ok(store)
    }

    /// Obeys the gate `NodeDeclaredFeatures`: off, what a node says of its features is dropped. What is here already stays.
    pub fn declared_features(mut self, on: bool) -> Self {
        self.declared_features = on;
        self
    }

    fn load(&mut self, yaml: &str, file: &Path) -> Result<(), Error> {
        let documents: Vec<Value> = serde_saphyr::from_multiple(yaml).context(file.display())?;
        for object in documents.into_iter().filter(|document| !document.is_null()) {
            let added = if Policy::takes(&object) {
                self.policy.add(object)
            } else {
                self.create(object).map(drop).map_err(|why| why.message())
            };
            added.map_err(|why| format!("{}: {why}", file.display()))?;
        }
        Ok(())
    }

    /// The roles and bindings. They come from manifests, and stay as they are.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    pub fn get(&self, key: &Key) -> Option<Value> {
        self.lock().objects.get(key).cloned()
    }

    /// All objects of a kind, and the version at which this was so.
    pub fn list(&self, kind: Kind) -> (Vec<Value>, u64) {
        let state = self.lock();
        let objects = state.objects.iter().filter(|(key, _)| key.kind == kind).map(|(_, object)| object.clone());
        (objects.collect(), state.version)
    }

    /// The same, and every change from then on.
    pub fn watch(&self, kind: Kind) -> (Vec<Value>, broadcast::Receiver<Change>) {
        // Subscribed first: a change in between is then seen twice, never missed.
        let changes = self.changes.subscribe();
        (self.list(kind).0, changes)
    }

    /// Adds an object and returns it with all that a server adds.
    pub fn create(&self, object: Value) -> Result<Value, Refused> {
        let key = Key::of(&object).map_err(Refused::Invalid)?;
        let mut object = completed(object, &key).map_err(Refused::Invalid)?;
        self.check_features(&key, &mut object, None)?;
        let mut state = self.lock();
        if state.objects.contains_key(&key) {
            return Err(Refused::Exists(key));
        }
        let object = state.put(key.clone(), object);
        // Sent under the lock, so that watchers see versions in order.
        let _ = self.changes.send(Change { event: "ADDED", kind: key.kind, object: object.clone() });
        Ok(object)
    }

    /// Changes an object; `None` if there is none. Name, kind and uid stay what they are.
    pub fn update(&self, key: &Key, change: impl FnOnce(&mut Value)) -> Result<Option<Value>, Refused> {
        let mut state = self.lock();
        let Some(before) = state.objects.get(key) else { return Ok(None) };
        let mut object = before.clone();
        change(&mut object);
        for fixed in ["apiVersion", "kind"] {
            object[fixed] = before[fixed].clone();
        }
        if !object["metadata"].is_object() {
            object["metadata"] = json!({});
        }
        for fixed in ["name", "namespace", "uid", "creationTimestamp"] {
            if let Some(value) = before["metadata"].get(fixed) {
                object["metadata"][fixed] = value.clone();
            }
        }
        self.check_features(key, &mut object, Some(before))?;
        let object = state.put(key.clone(), object);
        let _ = self.changes.send(Change { event: "MODIFIED", kind: key.kind, object: object.clone() });
        Ok(Some(object))
    }

    /// What a node declares is checked, or dropped.
    fn check_features(&self, key: &Key, object: &mut Value, before: Option<&Value>) -> Result<(), Refused> {
        if key.kind != Kind::Node {
            return Ok(());
        }
        if !self.declared_features && before.is_none_or(|before| features::of(before).next().is_none()) {
            features::drop_from(object);
        }
        features::check(object).map_err(|why| Refused::Invalid(format!("Node {:?} is invalid: {why}", key.name)))
    }

    /// Puts every Pod on this node: a kubelet's static Pods are its own.
    pub fn assign_all_pods(&self, node: &str) {
        for pod in self.list(Kind::Pod).0 {
            if let Ok(key) = Key::of(&pod) {
                // Only what a node says of its features may be refused.
                let _ = self.update(&key, |pod| pod["spec"]["nodeName"] = node.into());
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds the objects")
    }
}

/// Why an object was not added.
#[derive(Debug)]
pub enum Refused {
    Invalid(String),
    Exists(Key),
}

impl Refused {
    pub fn message(&self) -> String {
        match self {
            Self::Invalid(why) => why.clone(),
            Self::Exists(key) => format!("{} {:?} already exists", key.kind.plural(), key.name),
        }
    }
}

/// The string at a JSON pointer.
pub fn text<'v>(object: &'v Value, pointer: &str) -> Option<&'v str> {
    object.pointer(pointer).and_then(Value::as_str).filter(|text| !text.is_empty())
}

/// The list at a JSON pointer; what is not there is empty.
pub fn items<'v>(object: &'v Value, pointer: &str) -> &'v [Value] {
    object.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// A container of a Pod: a process of this host.
#[derive(Clone, Debug)]
pub struct Container {
    pub namespace: String,
    pub pod: String,
    pub name: String,
    /// Program and arguments of the main process.
    pub command: Vec<String>,
    pub tty: bool,
    pub stdin: bool,
}

/// The containers of all Pods on a node.
pub fn containers_on(store: &Store, node: &str) -> Vec<Container> {
    let (pods, _) = store.list(Kind::Pod);
    let here = pods.iter().filter(|pod| text(pod, "/spec/nodeName") == Some(node));
    here.flat_map(|pod| {
        let words = |list| items_as_text(list).map(str::to_owned);
        items(pod, "/spec/containers").iter().map(move |container| Container {
            namespace: text(pod, "/metadata/namespace").unwrap_or_default().to_owned(),
            pod: text(pod, "/metadata/name").unwrap_or_default().to_owned(),
            name: text(container, "/name").unwrap_or_default().to_owned(),
            command: words(items(container, "/command")).chain(words(items(container, "/args"))).collect(),
            tty: container["tty"] == true,
            stdin: container["stdin"] == true,
        })
    })
    .collect()
}

fn items_as_text(list: &[Value]) -> impl Iterator<Item = &str> {
    list.iter().filter_map(Value::as_str)
}

/// Adds what a server adds. A Pod that has a node and no status runs: nobody here would report it.
fn completed(mut object: Value, key: &Key) -> Result<Value, String> {
    let now = timestamp(OffsetDateTime::now_utc());
    object["apiVersion"] = "v1".into();
    let metadata = &mut object["metadata"];
    metadata["uid"] = uuid().into();
    metadata["creationTimestamp"] = now.as_str().into();
    if key.kind == Kind::Node {
        return Ok(object);
    }
    metadata["namespace"] = key.namespace.as_str().into();
    let containers = items(&object, "/spec/containers");
    if containers.is_empty() || containers.iter().any(|container| text(container, "/name").is_none()) {
        return Err("spec.containers needs at least one container, and each a name".to_owned());
    }
    if object.get("status").is_none() {
        let status = if text(&object, "/spec/nodeName").is_some() {
            running(containers, &now)
        } else {
            json!({ "phase": "Pending" })
        };
        object["status"] = status;
    }
    Ok(object)
}

fn running(containers: &[Value], now: &str) -> Value {
    let statuses = containers.iter().map(|container| {
        json!({
            "name": container["name"], "image": container["image"], "imageID": "", "ready": true, "started": true,
            "restartCount": 0, "state": { "running": { "startedAt": now } },
        })
    });
    json!({
        "phase": "Running",
        "conditions": [{ "type": "Ready", "status": "True", "lastTransitionTime": now }],
        "hostIP": "127.0.0.1",
        "podIP": "127.0.0.1",
        "podIPs": [{ "ip": "127.0.0.1" }],
        "startTime": now,
        "containerStatuses": statuses.collect::<Vec<_>>(),
    })
}

/// RFC 3339 in whole seconds, as Kubernetes writes it.
pub fn timestamp(at: OffsetDateTime) -> String {
    let (date, time) = (at.date(), at.time());
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z",
        date.year(),
        u8::from(date.month()),
        date.day(),
        time.hour(),
        time.minute(),
        time.second()
    )
}

fn uuid() -> String {
    let hex = random_hex::<16>();
    // The 4 and the 8 say "version 4, variant 1": all other digits are random.
    format!("{}-{}-4{}-8{}-{}", &hex[..8], &hex[8..12], &hex[13..16], &hex[17..20], &hex[20..])
}
