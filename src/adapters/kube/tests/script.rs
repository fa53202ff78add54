//! An API server that answers by a script: objects with versions, watches that can be cut, and reviews.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    sync::{Arc, Mutex, MutexGuard},
};

use bytes::Bytes;
use futures_util::stream;
use http::{Method, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use kube::{Client, client::Body};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tower::service_fn;

use crate::error::BoxError;

type Reply = Response<UnsyncBoxBody<Bytes, io::Error>>;
type Review = dyn Fn(&Value) -> (u16, Value) + Send + Sync;

/// How the server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Well,
    /// Nobody answers at its port.
    Away,
    /// Takes connections, and says nothing.
    Silent,
    /// Answers everything so.
    Answers(u16),
}

#[derive(Clone)]
pub(super) struct Script(Arc<Mutex<Inner>>);

struct Inner {
    state: State,
    version: u64,
    /// By path.
    objects: BTreeMap<String, Value>,
    /// By the path of the collection.
    watches: HashMap<String, mpsc::UnboundedSender<Result<Bytes, io::Error>>>,
    /// What watches that begin are told first, before they end.
    first: Option<Value>,
    asked: Vec<String>,
    bodies: Vec<Value>,
    review: Arc<Review>,
}

impl Script {
    pub(super) fn new() -> Self {
        Self::reviewing(|_| (404, json!({ "kind": "Status", "message": "no reviews here" })))
    }

    /// A server that answers reviews so: code and body.
    pub(super) fn reviewing(review: impl Fn(&Value) -> (u16, Value) + Send + Sync + 'static) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            state: State::Well,
            version: 1,
            objects: BTreeMap::new(),
            watches: HashMap::new(),
            first: None,
            asked: Vec::new(),
            bodies: Vec::new(),
            review: Arc::new(review),
        })))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap()
    }

    /// A client of this server. Needs a runtime.
    pub(super) fn client(&self) -> Client {
        let script = self.clone();
        let service = service_fn(move |request: Request<Body>| {
            let script = script.clone();
            async move {
                let (head, body) = request.into_parts();
                let body = body.collect().await?.to_bytes();
                let state = script.note(&head.method, &head.uri.to_string(), &body);
                match state {
                    State::Away => return Err(BoxError::from(io::Error::from(io::ErrorKind::ConnectionRefused))),
                    State::Silent => std::future::pending().await,
                    State::Answers(code) => return Ok(status(code, "scripted")),
                    State::Well => {}
                }
                Ok(script.answer(head.uri.path(), head.uri.query().unwrap_or_default(), &body))
            }
        });
        Client::new(service, "default")
    }

    fn note(&self, method: &Method, uri: &str, body: &[u8]) -> State {
        let mut inner = self.inner();
        let query = uri.split_once('?').map_or("", |(_, query)| query);
        let kind = if query.contains("watch=true") { "WATCH" } else { method.as_str() };
        inner.asked.push(format!("{kind} {}", uri.split('?').next().unwrap_or_default()));
        inner.bodies.extend(serde_json::from_slice::<Value>(body));
        inner.state
    }

    fn answer(&self, path: &str, query: &str, body: &[u8]) -> Reply {
        let mut inner = self.inner();
        if path.ends_with("reviews") {
            let asked = serde_json::from_slice(body).unwrap();
            let review = inner.review.clone();
            drop(inner);
            let (code, answer) = review(&asked);
            return reply(code, &answer);
        }
        if query.contains("watch=true") {
            let (lines, from) = mpsc::unbounded_channel();
            if let Some(first) = &inner.first {
                lines.send(Ok(line(first))).unwrap();
            } else {
                inner.watches.insert(path.to_owned(), lines);
            }
            let frames = stream::unfold(from, |mut from| async {
                let line = from.recv().await?;
                Some((line.map(Frame::data), from))
            });
            return Response::new(StreamBody::new(frames).boxed_unsync());
        }
        if let Some(object) = inner.objects.get(path) {
            return reply(200, object);
        }
        if matches!(path, "/api/v1/pods" | "/api/v1/nodes") {
            let kind = path.rsplit('/').next().unwrap();
            let of_kind = |path: &String| path.rsplit('/').nth(1) == Some(kind);
            let items: Vec<&Value> =
                inner.objects.iter().filter(|(path, _)| of_kind(path)).map(|(_, object)| object).collect();
            return reply(
                200,
                &json!({ "metadata": { "resourceVersion": inner.version.to_string() }, "items": items }),
            );
        }
        let mut parts = path.rsplit('/');
        let (name, kind) = (parts.next().unwrap(), parts.next().unwrap_or_default());
        let answer = json!({
            "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404,
            "message": format!("{kind} {name:?} not found"), "details": { "name": name, "kind": kind },
        });
        reply(404, &answer)
    }

    /// Puts an object there, without a word to any watch.
    pub(super) fn put_silently(&self, mut object: Value) -> Value {
        let mut inner = self.inner();
        inner.version += 1;
        object["metadata"]["resourceVersion"] = inner.version.to_string().into();
        inner.objects.insert(path_of(&object), object.clone());
        object
    }

    pub(super) fn put(&self, object: Value) {
        let object = self.put_silently(object);
        self.tell(&json!({ "type": "MODIFIED", "object": object }));
    }

    pub(super) fn delete_silently(&self, object: &Value) {
        self.inner().objects.remove(&path_of(object));
    }

    pub(super) fn delete(&self, mut object: Value) {
        self.delete_silently(&object);
        let mut inner = self.inner();
        inner.version += 1;
        object["metadata"]["resourceVersion"] = inner.version.to_string().into();
        drop(inner);
        self.tell(&json!({ "type": "DELETED", "object": object }));
    }

    /// Tells the watch of the object's kind. An object with a `namespace` is a Pod.
    fn tell(&self, event: &Value) {
        let pod = event["object"]["metadata"].get("namespace").is_some();
        self.tell_at(if pod { "/api/v1/pods" } else { "/api/v1/nodes" }, event);
    }

    pub(super) fn tell_at(&self, collection: &str, event: &Value) {
        let inner = self.inner();
        inner.watches.get(collection).expect("a watch is open").send(Ok(line(event))).unwrap();
    }

    /// From now on every watch is told that first, and ends.
    pub(super) fn watches_begin_with(&self, first: Option<Value>) {
        self.inner().first = first;
    }

    /// From now on; a server that goes away takes its connections with it.
    pub(super) fn set(&self, state: State) {
        let mut inner = self.inner();
        inner.state = state;
        if state == State::Away {
            for (_, watch) in inner.watches.drain() {
                let _ = watch.send(Err(io::ErrorKind::ConnectionReset.into()));
            }
        }
    }

    /// Watches end, as a server ends them after a while.
    pub(super) fn end_watches(&self) {
        self.inner().watches.clear();
    }

    /// What was asked since this was called last.
    pub(super) fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.inner().asked)
    }

    pub(super) fn bodies(&self) -> Vec<Value> {
        std::mem::take(&mut self.inner().bodies)
    }
}

fn path_of(object: &Value) -> String {
    let metadata = &object["metadata"];
    let name = metadata["name"].as_str().unwrap();
    match metadata["namespace"].as_str() {
        Some(namespace) => format!("/api/v1/namespaces/{namespace}/pods/{name}"),
        None => format!("/api/v1/nodes/{name}"),
    }
}

fn line(event: &Value) -> Bytes {
    format!("{event}\n").into()
}

fn reply(code: u16, body: &Value) -> Reply {
    let body = Full::new(Bytes::from(body.to_string())).map_err(|never| match never {});
    Response::builder().status(code).body(body.boxed_unsync()).unwrap()
}

fn status(code: u16, message: &str) -> Reply {
    reply(code, &json!({ "kind": "Status", "status": "Failure", "message": message, "code": code }))
}
