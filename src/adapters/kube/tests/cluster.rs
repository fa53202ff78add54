use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::header::RETRY_AFTER;
use serde_json::{Value, json};
use tokio::{
    task::AbortHandle,
    time::{Instant, sleep, timeout},
};

use super::{
    objects::{node, pod, target},
    script::{Script, State},
};
use crate::{
    adapters::kube::{Cluster, store::Store},
    layers::{Hop, Resolve},
    upgrade::{Dialect, Refusal, Subresource},
};

/// A cluster that is watched. Stops with the handle.
struct Watched {
    script: Script,
    cluster: Cluster,
    watches: AbortHandle,
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.watches.abort();
    }
}

impl Watched {
    /// One node, one pod, and both watches open.
    async fn start() -> Self {
        let script = Script::new();
        script.put_silently(node("n1", "10.0.0.1", &[]));
        script.put_silently(pod("demo", "n1", &["app"]));
        let (cluster, watches) = Cluster::watch(script.client());
        assert!(!cluster.is_ready());
        let watches = tokio::spawn(watches).abort_handle();
        timeout(Duration::from_secs(5), cluster.ready()).await.expect("the lists are answered");
        assert!(cluster.is_ready());
        let watched = Self { script, cluster, watches };
        watched.until_seen("demo", "10.0.0.1:10255").await;
        watched
    }

    async fn exec(&self, pod: &str, container: Option<&str>) -> Result<Hop, Refusal> {
        self.cluster.resolve(Arc::new(target(Subresource::Exec, pod, container))).await
    }

    /// Where exec into that pod goes, by what the watches have seen alone.
    async fn seen(&self, pod: &str) -> Option<String> {
        self.script.asked();
        let found = self.exec(pod, None).await.ok()?.uri.authority()?.to_string();
        self.script.asked().is_empty().then_some(found)
    }

    /// Waits until the watches have seen it. Returns after which time.
    async fn until_seen(&self, pod: &str, at: &str) -> Duration {
        let started = Instant::now();
        while self.seen(pod).await.as_deref() != Some(at) {
            assert!(started.elapsed() < Duration::from_secs(600), "{pod} was never seen");
            sleep(Duration::from_millis(10)).await;
        }
        started.elapsed()
    }

    /// Waits until this is asked, a request that was not looked at yet included.
    async fn until_asked(&self, what: &str) -> Duration {
        let started = Instant::now();
        while !self.script.asked().iter().any(|asked| asked == what) {
            assert!(started.elapsed() < Duration::from_secs(600), "{what} was never asked");
            sleep(Duration::from_millis(10)).await;
        }
        started.elapsed()
    }

    /// Waits until streams are answered so.
    async fn until_answered(&self, code: u16) -> Duration {
        let started = Instant::now();
        loop {
            let answer = self.exec("demo", None).await;
            if answer.as_ref().map_or_else(|refusal| refusal.code().as_u16(), |_| 101) == code {
                return started.elapsed();
            }
            assert!(started.elapsed() < Duration::from_secs(600), "{answer:?}");
            sleep(Duration::from_millis(10)).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_watches_have_seen_is_not_asked_for() {
    let watched = Watched::start().await;
    watched.script.asked();
    for _ in 0..3 {
        assert_eq!(watched.exec("demo", Some("app")).await.unwrap().uri.path(), "/exec/default/demo/app");
    }
    assert_eq!(watched.script.asked(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn what_changes_is_seen() {
    let watched = Watched::start().await;
    watched.script.put(pod("second", "n2", &["app"]));
    watched.script.put(node("n2", "10.0.0.2", &[]));
    watched.until_seen("second", "10.0.0.2:10255").await;
    watched.script.put(node("n2", "10.0.0.22", &["ExtendWebSocketsToKubelet"]));
    watched.until_seen("second", "10.0.0.22:10255").await;
    assert!(watched.exec("second", None).await.unwrap().speaks_websocket);
    // On another node under the same name.
    watched.script.delete(pod("second", "n2", &["app"]));
    watched.script.put(pod("second", "n1", &["app"]));
    watched.until_seen("second", "10.0.0.1:10255").await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_of_a_moment_ago_is_asked_for_and_one_that_is_not_there_is_refused() {
    let watched = Watched::start().await;
    watched.script.put_silently(node("n2", "10.0.0.2", &[]));
    watched.script.put_silently(pod("new", "n2", &["app"]));
    watched.script.asked();
    assert_eq!(watched.exec("new", None).await.unwrap().uri.host(), Some("10.0.0.2"));
    assert_eq!(watched.script.asked(), ["GET /api/v1/namespaces/default/pods/new", "GET /api/v1/nodes/n2"]);
    let refusal = watched.exec("nosuch", None).await.unwrap_err();
    assert_eq!(refusal, Refusal::not_found("pods", "nosuch"));
    assert_eq!(watched.script.asked(), ["GET /api/v1/namespaces/default/pods/nosuch"]);
    watched.script.put_silently(pod("lost", "n3", &["app"]));
    assert_eq!(watched.exec("lost", None).await.unwrap_err(), Refusal::not_found("nodes", "n3"));
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_never_the_stores() {
    let watched = Watched::start().await;
    let refused = watched.exec("demo", Some("debug")).await.unwrap_err();
    assert_eq!(refused.message(), "container debug is not valid for pod demo");
    let mut debugged = pod("demo", "n1", &["app"]);
    debugged["spec"]["ephemeralContainers"] = json!([{ "name": "debug" }]);
    watched.script.put_silently(debugged);
    assert_eq!(watched.exec("demo", Some("debug")).await.unwrap().uri.path(), "/exec/default/demo/debug");
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_is_deleted_is_gone() {
    let watched = Watched::start().await;
    watched.script.delete(pod("demo", "n1", &["app"]));
    assert!(watched.until_answered(404).await < Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn names_that_are_none_are_not_asked_for() {
    let watched = Watched::start().await;
    watched.script.put_silently(pod("strange", "../namespaces/kube-system/secrets/x", &["app"]));
    watched.script.asked();
    for pod in ["../secrets/x", "..", "a/b", "a?b", "", "Demo"] {
        assert_eq!(watched.exec(pod, None).await.unwrap_err(), Refusal::not_found("pods", pod));
    }
    for namespace in ["..", "a/b", "", "default/pods/demo"] {
        let mut target = target(Subresource::Exec, "demo", None);
        target.namespace = namespace.into();
        let refusal = watched.cluster.resolve(Arc::new(target)).await.unwrap_err();
        assert_eq!(refusal, Refusal::not_found("pods", "demo"));
    }
    assert_eq!(watched.script.asked(), [""; 0]);
    assert_eq!(watched.exec("strange", None).await.unwrap_err().code(), 404);
    assert_eq!(watched.script.asked(), ["GET /api/v1/namespaces/default/pods/strange"]);
}

#[tokio::test(start_paused = true)]
async fn while_the_api_is_away_streams_are_refused_and_soon_after_its_return_all_is_well() {
    let watched = Watched::start().await;
    for away in [1, 60, 3600] {
        watched.script.set(State::Away);
        watched.until_answered(503).await;
        let refusal = watched.exec("demo", None).await.unwrap_err();
        let response = refusal.into_response::<http_body_util::Full<Bytes>>(Dialect::ApiServer);
        assert_eq!((response.status().as_u16(), &response.headers()[RETRY_AFTER]), (503, &"1".parse().unwrap()));
        sleep(Duration::from_secs(away)).await;
        // What happens meanwhile is not seen.
        watched.script.delete_silently(&pod("demo", "n1", &["app"]));
        watched.script.put_silently(pod("demo", "n1", &["app"]));
        watched.script.set(State::Well);
        assert_eq!(watched.exec("demo", None).await.unwrap().uri.host(), Some("10.0.0.1"), "at once, by asking");
        let after = watched.until_seen("demo", "10.0.0.1:10255").await;
        assert!(after < Duration::from_secs(3), "{after:?} after {away} s");
    }
    // Resumed, not listed again.
    assert!(!watched.script.asked().contains(&"GET /api/v1/pods".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn an_api_that_says_nothing_costs_a_stream_ten_seconds() {
    let watched = Watched::start().await;
    watched.script.set(State::Away);
    watched.until_answered(503).await;
    watched.script.set(State::Silent);
    let started = Instant::now();
    assert_eq!(watched.exec("demo", None).await.unwrap_err().code(), 503);
    assert_eq!(started.elapsed().as_secs(), 10);
    watched.script.set(State::Well);
    assert!(
        watched.until_seen("demo", "10.0.0.1:10255").await < Duration::from_secs(7),
        "a watch that does not open is given up"
    );
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_ends_is_resumed() {
    let watched = Watched::start().await;
    watched.script.asked();
    watched.script.end_watches();
    watched.until_asked("WATCH /api/v1/pods").await;
    watched.script.put(pod("second", "n1", &["app"]));
    watched.until_seen("second", "10.0.0.1:10255").await;
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_is_lost_without_a_word_is_found_out() {
    let watched = Watched::start().await;
    watched.script.asked();
    sleep(Duration::from_secs(64)).await;
    assert_eq!(watched.script.asked(), [""; 0]);
    sleep(Duration::from_secs(2)).await;
    let mut asked = watched.script.asked();
    asked.sort();
    assert_eq!(asked, ["WATCH /api/v1/nodes", "WATCH /api/v1/pods"]);
}

#[tokio::test(start_paused = true)]
async fn a_version_that_is_too_old_leads_to_a_list() {
    let watched = Watched::start().await;
    watched.script.delete_silently(&pod("demo", "n1", &["app"]));
    watched.script.put_silently(pod("other", "n1", &["app"]));
    watched.script.tell_at("/api/v1/pods", &error(410, "Expired"));
    watched.until_seen("other", "10.0.0.1:10255").await;
    assert_eq!(watched.exec("demo", None).await.unwrap_err().code(), 404);
}

/// It knows a newer version than it has, and says so for as long as it has less.
#[tokio::test(start_paused = true)]
async fn an_api_that_was_set_back_leads_to_a_list() {
    let watched = Watched::start().await;
    watched.script.watches_begin_with(Some(error(504, "Too large resource version")));
    watched.script.put_silently(pod("other", "n1", &["app"]));
    watched.script.asked();
    watched.script.end_watches();
    let listed = watched.until_asked("GET /api/v1/pods").await;
    assert!(listed < Duration::from_secs(10), "{listed:?}");
    watched.script.watches_begin_with(None);
    assert!(watched.until_seen("other", "10.0.0.1:10255").await < Duration::from_secs(5));
}

#[tokio::test(start_paused = true)]
async fn an_api_that_refuses_us_is_told_apart_from_one_that_is_away() {
    let watched = Watched::start().await;
    watched.script.set(State::Away);
    watched.until_answered(503).await;
    for (answers, code) in [(401, 500), (403, 500), (429, 503), (500, 503), (503, 503), (404, 500)] {
        watched.script.set(State::Answers(answers));
        let refusal = watched.exec("demo", None).await.unwrap_err();
        assert_eq!(refusal.code(), code, "{answers}");
        assert!(!refusal.message().contains("scripted"), "the API's words are for the log: {refusal}");
    }
}

#[tokio::test(start_paused = true)]
async fn without_its_future_everything_is_asked() {
    let watched = Watched::start().await;
    watched.watches.abort();
    let closed = async {
        while watched.seen("demo").await.is_some() {
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(Duration::from_secs(5), closed).await.expect("the store is not believed any more");
    watched.script.asked();
    assert!(watched.exec("demo", None).await.is_ok());
    assert_eq!(watched.script.asked(), ["GET /api/v1/namespaces/default/pods/demo", "GET /api/v1/nodes/n1"]);
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_would_take_too_much_room_is_asked_for_instead() {
    let watched = Watched::start().await;
    let names: Vec<String> = (0..100).map(|at| format!("container-{at:0>60}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    watched.script.put(pod("huge", "n1", &names));
    watched.script.put(pod("last", "n1", &["app"]));
    watched.until_seen("last", "10.0.0.1:10255").await;
    watched.script.asked();
    assert!(watched.exec("huge", Some(names[99])).await.is_ok());
    assert_eq!(watched.script.asked(), ["GET /api/v1/namespaces/default/pods/huge"]);
}

#[test]
fn a_store_holds_what_it_has_room_for_and_never_an_old_state() {
    use kube::runtime::watcher::Event;
    let store = Store::new(2);
    let put = |key: &str, value: Option<u8>| store.hear(Event::Apply((key.into(), value)));
    store.hear(Event::Init);
    for key in ["a", "b", "c"] {
        store.hear(Event::InitApply((key.into(), Some(1))));
    }
    store.hear(Event::InitDone);
    assert_eq!((store.len(), store.get("a")), (2, None), "no watch is open");
    store.set_live(true);
    assert_eq!((store.get("a"), store.get("c")), (Some(1), None));
    put("b", Some(2));
    put("c", Some(2));
    assert_eq!((store.get("b"), store.get("c")), (Some(2), None));
    put("a", None);
    put("c", Some(3));
    assert_eq!((store.get("a"), store.get("c")), (None, Some(3)));
    // A list that breaks off changes nothing.
    store.hear(Event::Init);
    store.hear(Event::InitApply(("x".into(), Some(9))));
    store.hear(Event::Init);
    assert_eq!((store.get("b"), store.get("x")), (Some(2), None));
    store.hear(Event::InitDone);
    assert_eq!(store.len(), 0);
}

fn error(code: u16, message: &str) -> Value {
    json!({ "type": "ERROR", "object": {
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "reason": message, "code": code,
    } })
}
