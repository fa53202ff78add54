use std::{convert::Infallible, future::pending, panic::AssertUnwindSafe};

use futures_util::FutureExt;
use http::{StatusCode, header::RETRY_AFTER};
use http_body_util::{BodyExt, Full};
use tower::{ServiceBuilder, ServiceExt, service_fn};

use super::*;
use crate::{
    layers::{
        MetricsLayer, Record, SyntheticAuthzLayer, UpgradeDetectLayer,
        danger::PermitAllLayer,
        metrics::{Answer, Stream},
        synthetic_authz::Decision,
    },
    upgrade::{Cause, End, Report, Sessions, accept, take},
};

type Body = Full<Bytes>;

const EXEC: &str = "/api/v1/namespaces/default/pods/demo/exec?command=date&stdout=true";

/// What the leaf does with a stream.
#[derive(Clone, Copy)]
enum Leaf {
    /// Answers 101; the session lasts until it is asked to end.
    Serves,
    /// As `Serves`, but the session panics when it begins.
    SessionPanics,
    /// Answers 101, and forgets the session.
    Forgets,
    Refuses,
    Panics,
    Hangs,
}

async fn leaf(mut request: Request<Leaf>) -> Result<Response<Body>, Infallible> {
    let mut response = Response::new(Body::default());
    match *request.body() {
        Leaf::Refuses => *response.status_mut() = StatusCode::NOT_FOUND,
        Leaf::Panics => panic!("a leaf that panics"),
        Leaf::Hangs => pending().await,
        Leaf::Forgets => *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS,
        served => {
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            accept(request.extensions_mut(), response.extensions_mut()).spawn(move |_io, drain| async move {
                assert!(matches!(served, Leaf::Serves), "a session that panics");
                drain.cancelled().await;
                Report::new(End::Success, Cause::Drain, "asked to")
            });
        }
    }
    Ok(response)
}

struct Lab {
    sessions: Sessions,
    quota: QuotaLayer,
}

impl Lab {
    fn new(quota: QuotaLayer) -> Self {
        Self { sessions: Sessions::new(), quota }
    }

    fn stack(
        &self,
    ) -> impl Service<Request<Leaf>, Response = Response<Body>, Error = Infallible, Future: Send> + use<> {
        ServiceBuilder::new()
            .layer(UpgradeDetectLayer::new(Dialect::ApiServer, self.sessions.clone()))
            .layer(PermitAllLayer)
            .layer(self.quota.clone())
            .service(service_fn(leaf))
    }

    async fn ask(&self, user: &str, leaf: Leaf) -> Response<Body> {
        self.stack().oneshot(exec(user, leaf)).await.unwrap()
    }

    async fn code(&self, user: &str, leaf: Leaf) -> u16 {
        self.ask(user, leaf).await.status().as_u16()
    }

    /// All sessions end.
    async fn drain(&self) {
        assert_eq!(self.sessions.drain(Duration::ZERO, Duration::from_secs(60)).await, 0);
    }

    /// How many places are taken, and by how many users.
    fn taken(&self) -> (usize, usize) {
        let places = lock(&self.quota.places);
        assert_eq!(places.taken, places.of_users.values().sum::<usize>());
        (places.taken, places.of_users.len())
    }
}

/// A request of `user`, or of nobody.
fn exec(user: &str, leaf: Leaf) -> Request<Leaf> {
    let mut request = Request::post(EXEC).body(leaf).unwrap();
    if !user.is_empty() {
        request.extensions_mut().insert(Caller::new(user, ["dev"]));
    }
    request
}

#[tokio::test(start_paused = true)]
async fn the_session_over_a_users_limit_is_refused_until_another_of_that_user_has_ended() {
    let lab = Lab::new(QuotaLayer::new().max_sessions_per_user(2));
    for user in ["jane", "joe", "jane", "", "joe", ""] {
        assert_eq!(lab.code(user, Leaf::Serves).await, 101, "{user}");
    }
    assert_eq!(lab.taken(), (6, 3));
    for user in ["jane", "joe", "", "system:anonymous"] {
        assert_eq!(lab.code(user, Leaf::Serves).await, 429, "{user}");
    }
    assert_eq!(lab.code("jill", Leaf::Serves).await, 101);
    lab.drain().await;
    assert_eq!(lab.taken(), (0, 0));
    assert_eq!(lab.code("jane", Leaf::Serves).await, 101);
}

#[tokio::test(start_paused = true)]
async fn the_limit_of_all_counts_every_user() {
    let lab = Lab::new(QuotaLayer::new().max_sessions(3).max_sessions_per_user(0));
    for user in ["jane", "joe", "jane"] {
        assert_eq!(lab.code(user, Leaf::Serves).await, 101);
    }
    for user in ["jane", "joe", "jill"] {
        assert_eq!(lab.code(user, Leaf::Serves).await, 429);
    }
    assert_eq!(lab.taken(), (3, 2));
    lab.drain().await;
    assert_eq!(lab.taken(), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn without_limits_nobody_is_refused() {
    let lab = Lab::new(QuotaLayer::default().max_sessions(0));
    for _ in 0..1000 {
        assert_eq!(lab.code("jane", Leaf::Serves).await, 101);
    }
    assert_eq!(lab.taken(), (1000, 1));
    lab.drain().await;
    assert_eq!(lab.taken(), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_place_is_given_back_once_on_every_path() {
    let lab = Lab::new(QuotaLayer::new().max_sessions(1));
    assert_eq!(lab.code("jane", Leaf::Refuses).await, 404);
    assert_eq!(lab.taken(), (0, 0), "refused");
    assert_eq!(lab.code("jane", Leaf::Forgets).await, 101);
    assert_eq!(lab.taken(), (0, 0), "no session came of it");
    let panicked = AssertUnwindSafe(lab.ask("jane", Leaf::Panics)).catch_unwind().await;
    assert!(panicked.is_err());
    assert_eq!(lab.taken(), (0, 0), "the leaf panicked");
    {
        let mut abandoned = Box::pin(lab.stack().oneshot(exec("jane", Leaf::Hangs)));
        assert!(abandoned.as_mut().now_or_never().is_none());
        assert_eq!(lab.taken(), (1, 1));
        assert_eq!(lab.code("jane", Leaf::Serves).await, 429, "a request that waits has a place");
    }
    assert_eq!(lab.taken(), (0, 0), "nobody waited");
    assert_eq!(lab.code("jane", Leaf::SessionPanics).await, 101);
    lab.drain().await;
    assert_eq!(lab.taken(), (0, 0), "the session panicked");
    assert_eq!(lab.code("jane", Leaf::Serves).await, 101);
    assert_eq!(lab.sessions.drain(Duration::ZERO, Duration::ZERO).await, 1);
    assert_eq!(lab.taken(), (0, 0), "the session was cut");
}

#[tokio::test(start_paused = true)]
async fn the_session_keeps_the_place_when_a_layer_below_took_the_clients_side() {
    let quota = QuotaLayer::new().max_sessions(1);
    let lab = Lab::new(quota.clone());
    let stack = ServiceBuilder::new()
        .layer(UpgradeDetectLayer::new(Dialect::ApiServer, lab.sessions.clone()))
        .layer(PermitAllLayer)
        .layer(quota)
        .service(service_fn(|mut request: Request<Leaf>| async move {
            let client = take(request.extensions_mut()).expect("the client's side");
            client.spawn(|_io, drain| async move {
                drain.cancelled().await;
                Report::new(End::Success, Cause::Drain, "asked to")
            });
            Ok::<_, Infallible>(Response::builder().status(101).body(Body::default()).unwrap())
        }));
    let mut request = exec("jane", Leaf::Serves);
    let _client = accept(&mut Extensions::new(), request.extensions_mut());
    assert_eq!(stack.oneshot(request).await.unwrap().status(), 101);
    assert_eq!(lab.taken(), (1, 1));
    lab.drain().await;
    assert_eq!(lab.taken(), (0, 0));
}

/// The codes of refusals.
#[derive(Default)]
struct Refusals(Mutex<Vec<Answer>>);

impl Record for Refusals {
    fn answered(&self, _: Stream, answer: Answer, _: Duration) {
        self.0.lock().unwrap().push(answer);
    }

    fn ended(&self, _: Stream, _: &Report, _: Duration) {}
}

#[tokio::test(start_paused = true)]
async fn a_layer_above_that_counts_sees_the_refusal() {
    let (quota, refusals) = (QuotaLayer::new().max_sessions(1), Arc::new(Refusals::default()));
    let lab = Lab::new(quota.clone());
    let stack = ServiceBuilder::new()
        .layer(UpgradeDetectLayer::new(Dialect::ApiServer, lab.sessions.clone()))
        .layer((MetricsLayer::new(Arc::clone(&refusals)), PermitAllLayer, quota))
        .service(service_fn(leaf));
    for _ in 0..2 {
        stack.clone().oneshot(exec("jane", Leaf::Serves)).await.unwrap();
    }
    let seen = refusals.0.lock().unwrap().clone();
    assert_eq!(seen, [Answer::Switched, Answer::Refused(StatusCode::TOO_MANY_REQUESTS)]);
    lab.drain().await;
    assert_eq!(lab.taken(), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn who_may_not_is_told_so_and_takes_no_place() {
    let quota = QuotaLayer::new().max_sessions(1);
    let lab = Lab::new(quota.clone());
    let authorize = SyntheticAuthzLayer::new(|asked: crate::layers::synthetic_authz::Attributes| async move {
        Ok(if asked.caller.name == "jane" { Decision::allow() } else { Decision::deny() })
    });
    // As `ApiServer::new` takes them: the first of a pair is the outer one.
    let stack = ServiceBuilder::new()
        .layer(UpgradeDetectLayer::new(Dialect::ApiServer, lab.sessions.clone()))
        .layer((authorize, quota))
        .service(service_fn(leaf));
    for (user, leaf, code) in [
        ("mallory", Leaf::Serves, 403),
        ("jane", Leaf::Serves, 101),
        ("jane", Leaf::Serves, 429),
        ("mallory", Leaf::Serves, 403),
    ] {
        assert_eq!(stack.clone().oneshot(exec(user, leaf)).await.unwrap().status(), code, "{user}");
    }
    lab.drain().await;
}

#[tokio::test]
async fn a_refusal_reads_as_kubernetes_has_it_in_either_dialect() {
    let head =
        r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"too many streaming sessions"#;
    let tail = r#"please try again later","reason":"TooManyRequests","details":{"retryAfterSeconds":7},"code":429}"#;
    let api_server = (Dialect::ApiServer, EXEC, "application/json");
    let kubelet = (Dialect::Kubelet, "/exec/default/demo/c?command=date&output=1", "text/plain; charset=utf-8");
    for (dialect, uri, kind) in [api_server, kubelet] {
        for (user, whose) in [("jane", r#" of user \"jane\", "#), ("joe", ", ")] {
            let quota = QuotaLayer::new().max_sessions(1).retry_after(Duration::from_millis(7900));
            let quota = if user == "jane" { quota.max_sessions_per_user(1) } else { quota };
            let stack = ServiceBuilder::new()
                .layer(UpgradeDetectLayer::new(dialect, Sessions::new()))
                .layer(PermitAllLayer)
                .layer(quota)
                .service(service_fn(leaf));
            let ask = || {
                let mut request = exec(user, Leaf::Serves);
                *request.uri_mut() = uri.parse().unwrap();
                stack.clone().oneshot(request)
            };
            assert_eq!(ask().await.unwrap().status(), 101);
            let refused = ask().await.unwrap();
            assert_eq!(refused.status(), 429);
            assert_eq!(refused.headers()[RETRY_AFTER], "7");
            assert_eq!(refused.headers()[http::header::CONTENT_TYPE], kind);
            let body = refused.into_body().collect().await.unwrap().to_bytes();
            let json = format!("{head}{whose}{tail}\n");
            let text = format!("too many streaming sessions{}please try again later\n", whose.replace('\\', ""));
            assert_eq!(body, if dialect == Dialect::ApiServer { json } else { text });
        }
    }
}

#[tokio::test]
async fn a_quota_in_a_wrong_place_lets_nothing_pass() {
    // Above the layer that authorizes.
    let detect = UpgradeDetectLayer::new(Dialect::ApiServer, Sessions::new());
    let quota = QuotaLayer::new();
    let above = ServiceBuilder::new()
        .layer(detect.clone())
        .layer(quota.clone())
        .layer(PermitAllLayer)
        .service(service_fn(leaf));
    assert_eq!(above.oneshot(exec("jane", Leaf::Serves)).await.unwrap().status(), 500);
    // Below a layer that takes the client's side, and the session with it.
    let adapt = tower::util::MapRequestLayer::new(|mut request: Request<Leaf>| {
        take(request.extensions_mut());
        request
    });
    let below =
        ServiceBuilder::new().layer(detect).layer(PermitAllLayer).layer(adapt).layer(quota).service(service_fn(leaf));
    let mut request = exec("jane", Leaf::Serves);
    let _client = accept(&mut Extensions::new(), request.extensions_mut());
    assert_eq!(below.oneshot(request).await.unwrap().status(), 500);
}

#[tokio::test]
async fn what_is_no_stream_takes_no_place() {
    let lab = Lab::new(QuotaLayer::new().max_sessions(1));
    assert_eq!(lab.code("jane", Leaf::Serves).await, 101);
    let mut request = exec("jane", Leaf::Refuses);
    *request.uri_mut() = "/api/v1/namespaces/default/pods".parse().unwrap();
    assert_eq!(lab.stack().oneshot(request).await.unwrap().status(), 404);
    assert_eq!(lab.taken(), (1, 1));
}
