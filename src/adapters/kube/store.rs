//! What a watch has found, for as long as it can be trusted.

use std::{
    collections::HashMap,
    mem,
    sync::{PoisonError, RwLock},
};

use kube::runtime::watcher::Event;
use tokio::sync::watch;

/// Objects by `namespace/name`, or by name. Nothing is blocked for longer than it takes to insert or to read one.
pub(super) struct Store<V> {
    objects: RwLock<Objects<V>>,
    filled: watch::Sender<bool>,
    /// Most objects that are kept. What finds no room is asked for when it is needed.
    room: usize,
}

struct Objects<V> {
    known: HashMap<Box<str>, V>,
    /// Of a list that is not whole yet.
    coming: HashMap<Box<str>, V>,
    /// The watch is open: what is known is what is there.
    live: bool,
}

impl<V: Clone> Store<V> {
    pub(super) fn new(room: usize) -> Self {
        let objects = Objects { known: HashMap::new(), coming: HashMap::new(), live: false };
        Self { objects: RwLock::new(objects), filled: watch::Sender::new(false), room }
    }

    /// What is known of that object, if it can be trusted.
    pub(super) fn get(&self, key: &str) -> Option<V> {
        let objects = self.objects.read().unwrap_or_else(PoisonError::into_inner);
        objects.known.get(key).filter(|_| objects.live && self.is_filled()).cloned()
    }

    /// Takes in what the watch has to say. `None` in the place of an object that is not worth keeping.
    pub(super) fn hear(&self, event: Event<(Box<str>, Option<V>)>) {
        let mut objects = self.objects.write().unwrap_or_else(PoisonError::into_inner);
        let Objects { known, coming, .. } = &mut *objects;
        match event {
            Event::Init => coming.clear(),
            Event::InitApply((key, value)) => put(coming, key, value, self.room),
            Event::InitDone => {
                *known = mem::take(coming);
                drop(objects);
                self.filled.send_replace(true);
            }
            Event::Apply((key, value)) => put(known, key, value, self.room),
            Event::Delete((key, _)) => drop(known.remove(&key)),
        }
    }

    /// Whether the watch is open.
    pub(super) fn set_live(&self, live: bool) {
        self.objects.write().unwrap_or_else(PoisonError::into_inner).live = live;
    }

    /// Whether it was listed once.
    pub(super) fn is_filled(&self) -> bool {
        *self.filled.borrow()
    }

    /// Waits for that.
    pub(super) async fn filled(&self) {
        // An error would say that the sender is gone, and it is here.
        let _ = self.filled.subscribe().wait_for(|filled| *filled).await;
    }

    pub(super) fn len(&self) -> usize {
        self.objects.read().unwrap_or_else(PoisonError::into_inner).known.len()
    }
}

fn put<V>(objects: &mut HashMap<Box<str>, V>, key: Box<str>, value: Option<V>, room: usize) {
    match value {
        Some(value) if objects.len() < room || objects.contains_key(&key) => drop(objects.insert(key, value)),
        // An old state must not outlive the new one.
        _ => drop(objects.remove(&key)),
    }
}
