//! Nodes, Pods and Leases, in memory, as the JSON that clients see; and the roles that say who may.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::sync::watch;

use super::{
    Context, Error,
    defaults::{completed, running},
    features,
    history::{Change, History},
    policy::Policy,
};
pub use super::{
    defaults::timestamp,
    kinds::{Key, Kind, is_name},
};

/// The demo cluster.
pub const DEMO: &str = include_str!("../manifests/demo.yaml");

/// The roles that are there whatever is given.
const BUILT_IN: &str = include_str!("../manifests/built-in.yaml");

/// All objects, and a version that grows with every change.
#[derive(Debug)]
pub struct Store {
    state: Mutex<State>,
    /// The version, for who waits for the next one.
    newest: watch::Sender<u64>,
    policy: Policy,
    declared_features: bool,
}

#[derive(Debug)]
struct State {
    objects: BTreeMap<Key, Arc<Value>>,
    version: u64,
    history: History,
}

impl State {
    /// Puts an object in the place of what is there, or takes it away. Returns what is there then, or was there.
    fn put(&mut self, key: &Key, after: Option<Value>) -> Option<Value> {
        self.version += 1;
        let after = after.map(|mut object| {
            object["metadata"]["resourceVersion"] = self.version.to_string().into();
            Arc::new(object)
        });
        let before = match &after {
            Some(object) => self.objects.insert(key.clone(), object.clone()),
            None => self.objects.remove(key),
        };
        let there = after.as_ref().or(before.as_ref()).map(|object| (**object).clone());
        self.history.push(Change { version: self.version, kind: key.kind, before, after });
        there
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
        // Versions of an earlier run are smaller, so that a watch which outlived it is told to start again.
        let version = OffsetDateTime::now_utc().unix_timestamp_nanos() / 1000;
        let version = u64::try_from(version).context("this machine's clock is before 1970")?;
        let state = State { objects: BTreeMap::new(), version, history: History::since(version) };
        let mut store = Self {
            state: Mutex::new(state),
            newest: watch::Sender::new(version),
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
        self.lock().objects.get(key).map(|object| (**object).clone())
    }

    /// All objects of a kind, and the version at which this was so.
    pub fn list(&self, kind: Kind) -> (Vec<Value>, u64) {
        let state = self.lock();
        let objects = state.objects.iter().filter(|(key, _)| key.kind == kind).map(|(_, object)| (**object).clone());
        (objects.collect(), state.version)
    }

    /// The changes of all kinds since that version, in their order; `None` where they are not all known.
    pub fn changes_after(&self, version: u64) -> Option<Vec<Arc<Change>>> {
        self.lock().history.after(version)
    }

    /// The newest version, and how to wait for the next one.
    pub fn newest(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
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
        Ok(self.put(&mut state, &key, Some(object)).unwrap_or_default())
    }

    /// Changes an object; `None` if there is none. Name, kind and uid stay what they are. A change that names another
    /// version than the object has is refused.
    pub fn update(&self, key: &Key, change: impl FnOnce(&mut Value)) -> Result<Option<Value>, Refused> {
        let mut state = self.lock();
        let Some(before) = state.objects.get(key).cloned() else { return Ok(None) };
        let mut object = (*before).clone();
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
        let version = &mut object["metadata"]["resourceVersion"];
        if version.is_null() || version == "" {
            *version = before["metadata"]["resourceVersion"].clone();
        } else if *version != before["metadata"]["resourceVersion"] {
            return Err(Refused::Conflict(key.clone()));
        }
        self.check_features(key, &mut object, Some(&before))?;
        if object == *before {
            return Ok(Some(object));
        }
        Ok(self.put(&mut state, key, Some(object)))
    }

    /// Takes an object away and returns it; `None` if there is none. One that is not as `expected` is left.
    pub fn remove(&self, key: &Key, expected: impl FnOnce(&Value) -> bool) -> Result<Option<Value>, Refused> {
        let mut state = self.lock();
        match state.objects.get(key) {
            None => Ok(None),
            Some(object) if !expected(object) => Err(Refused::Conflict(key.clone())),
            Some(_) => Ok(self.put(&mut state, key, None)),
        }
    }

    fn put(&self, state: &mut State, key: &Key, object: Option<Value>) -> Option<Value> {
        let object = state.put(key, object);
        self.newest.send_replace(state.version);
        object
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

    /// Puts every Pod on this node, where it runs: a kubelet's static Pods are its own.
    pub fn assign_all_pods(&self, node: &str) {
        for pod in self.list(Kind::Pod).0 {
            if let Ok(key) = Key::of(&pod) {
                // Only what a node says of its features may be refused.
                let _ = self.update(&key, |pod| {
                    pod["spec"]["nodeName"] = node.into();
                    if pod["status"]["phase"] == "Pending" {
                        pod["status"] = running(items(pod, "/spec/containers"));
                    }
                });
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds the objects")
    }
}

/// Why an object was not added or changed.
#[derive(Debug)]
pub enum Refused {
    Invalid(String),
    Exists(Key),
    /// It is not what the client takes it for.
    Conflict(Key),
}

impl Refused {
    pub fn message(&self) -> String {
        match self {
            Self::Invalid(why) => why.clone(),
            Self::Exists(key) => format!("{} {:?} already exists", key.kind.qualified(), key.name),
            Self::Conflict(key) => format!(
                "Operation cannot be fulfilled on {} {:?}: the object has been modified; please apply your changes to the \
                 latest version and try again",
                key.kind.qualified(),
                key.name
            ),
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
