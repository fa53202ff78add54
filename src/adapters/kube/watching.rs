//! Keeps a store as the API server has it: lists, watches, resumes, and lists again where it cannot resume.

use std::{
    fmt,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use futures_util::StreamExt;
use http::Request;
use kube::{
    Api, Client, Resource, ResourceExt,
    client::Body,
    runtime::watcher::{Config, Error, Event, watcher},
};
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep, timeout};
use tower::service_fn;

use super::{ask::words, store::Store};
use crate::error::BoxError;

/// Between two tries, at first and at most. New streams wait for no watch, so this only says how long the store is not used.
const FIRST: Duration = Duration::from_millis(200);
const LAST: Duration = Duration::from_secs(2);

/// After so long without a failure the waits begin at the first again.
const CALM: Duration = Duration::from_secs(10);

/// Seconds that one watch is asked to last. A connection that is lost without a word is found out 5 s after them.
const WATCH: u32 = 60;

/// Longest wait for a watch to open, and for a page of a list.
const OPENS: Duration = Duration::from_secs(5);
const LISTS: Duration = Duration::from_secs(30);

/// So many failures in a row that the API server itself reports, and the watch is not resumed: an API server that was
/// set back to a backup refuses to resume from what it does not know yet.
const HOPELESS: u32 = 3;

/// Watches all objects of a kind for as long as it is polled. `keeps` says what is kept of an object, if anything.
pub(super) async fn keep<K, V>(client: Client, kind: &'static str, store: Arc<Store<V>>, keeps: impl Fn(K) -> Option<V>)
where
    K: Resource<DynamicType = ()> + Clone + fmt::Debug + DeserializeOwned + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    // Whoever drops this must not leave a store behind that answers for ever.
    let _closes = Closes(&store);
    let failing = Arc::new(AtomicBool::new(false));
    let client = observed(client, store.clone(), kind, failing.clone());
    let (mut wait, mut failed, mut failures) = (FIRST, None::<Instant>, 0);
    loop {
        let mut events = pin!(watcher(Api::<K>::all(client.clone()), Config::default().timeout(WATCH)));
        while let Some(event) = events.next().await {
            let error = match event {
                Ok(event) => {
                    if !matches!(event, Event::Init) {
                        failures = 0;
                    }
                    store.hear(slim(event, &keeps));
                    continue;
                }
                Err(error) => error,
            };
            store.set_live(false);
            failures += 1;
            if !failing.swap(true, Relaxed) {
                tracing::warn!(kind, error = words(&error), "the watch failed; trying again");
            }
            // Each failure is followed by one wait, so that nothing the API server says can make this spin.
            wait = if failed.is_some_and(|at| at.elapsed() < CALM) { (wait * 2).min(LAST) } else { FIRST };
            sleep(wait).await;
            failed = Some(Instant::now());
            if failures % HOPELESS == 0 && was_answered(&error) {
                break;
            }
        }
    }
}

/// The client, with a limit on the time to each answer's head; and the store told when a watch is open. A watcher
/// says nothing when it was able to resume, until something changes.
fn observed<V>(client: Client, store: Arc<Store<V>>, kind: &'static str, failing: Arc<AtomicBool>) -> Client
where
    V: Clone + Send + Sync + 'static,
{
    let namespace = client.default_namespace().to_owned();
    let service = service_fn(move |request: Request<Body>| {
        let (client, store, failing) = (client.clone(), store.clone(), failing.clone());
        async move {
            let watches = request.uri().query().is_some_and(|query| query.split('&').any(|term| term == "watch=true"));
            if watches {
                store.set_live(false);
            }
            let limit = if watches { OPENS } else { LISTS };
            let answer = timeout(limit, client.send(request)).await;
            let response = answer.map_err(|_| format!("no answer in {limit:?}"))??;
            if watches && response.status().is_success() {
                store.set_live(true);
                if failing.swap(false, Relaxed) {
                    tracing::info!(kind, "the watch goes on");
                }
            }
            Ok::<_, BoxError>(response)
        }
    });
    Client::new(service, namespace)
}

/// Whether the API server itself said so.
fn was_answered(error: &Error) -> bool {
    match error {
        Error::WatchError(_) => true,
        Error::WatchStartFailed(error) | Error::WatchFailed(error) => matches!(error, kube::Error::Api(_)),
        _ => false,
    }
}

fn slim<K: Resource, V>(event: Event<K>, keeps: impl Fn(K) -> Option<V>) -> Event<(Box<str>, Option<V>)> {
    let slim = |object: K| {
        let name = object.name_any();
        let key = object.namespace().map_or_else(|| name.clone(), |namespace| format!("{namespace}/{name}"));
        (key.into(), keeps(object))
    };
    match event {
        Event::Init => Event::Init,
        Event::InitApply(object) => Event::InitApply(slim(object)),
        Event::InitDone => Event::InitDone,
        Event::Apply(object) => Event::Apply(slim(object)),
        Event::Delete(object) => Event::Delete(slim(object)),
    }
}

struct Closes<'a, V: Clone>(&'a Store<V>);

impl<V: Clone> Drop for Closes<'_, V> {
    fn drop(&mut self) {
        self.0.set_live(false);
    }
}
