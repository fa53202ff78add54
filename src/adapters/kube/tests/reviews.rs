use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU16, Ordering::Relaxed},
    },
    time::Duration,
};

use futures_util::future::join_all;
use k8s_openapi::api::authorization::v1::ResourceAttributes;
use serde_json::{Value, json};
use tokio::time::{Instant, advance};

use super::{
    objects::target,
    script::{Script, State},
};
use crate::{
    adapters::kube::{AccessReviews, TokenReviews, answers::Answers, ask::Failure},
    layers::synthetic_authz::{Attributes, Authorize, Decision, Verb, Verdict},
    upgrade::{Caller, Refusal, Subresource},
};

const ACCESS: &str = "POST /apis/authorization.k8s.io/v1/subjectaccessreviews";
const TOKEN: &str = "POST /apis/authentication.k8s.io/v1/tokenreviews";

/// Allows jane everything, denies eve, has no opinion on others.
fn access(review: &Value) -> (u16, Value) {
    let mut answer = review.clone();
    answer["status"] = match review["spec"]["user"].as_str() {
        Some("jane") => json!({ "allowed": true, "reason": "RBAC: allowed by a binding" }),
        Some("eve") => json!({ "allowed": false, "denied": true, "reason": "not eve" }),
        Some("both") => json!({ "allowed": true, "denied": true }),
        _ => json!({ "allowed": false, "evaluationError": "role not found" }),
    };
    (201, answer)
}

fn asked(verb: &str) -> ResourceAttributes {
    ResourceAttributes {
        verb: Some(verb.into()),
        resource: Some("users".into()),
        name: Some("root".into()),
        ..ResourceAttributes::default()
    }
}

fn caller(name: &str) -> Caller {
    Caller::new(name, ["dev", "system:authenticated"])
}

#[tokio::test(start_paused = true)]
async fn an_access_review_asks_what_upstream_asks() {
    let script = Script::reviewing(access);
    let reviews = AccessReviews::new(script.client());
    let mut jane = caller("jane");
    jane.uid = "u-1".into();
    jane.extra.insert("scopes".into(), vec!["a".into(), "b".into()]);
    let target = Arc::new(target(Subresource::Exec, "demo", None));
    let decision = reviews.authorize(Attributes::new(Arc::new(jane), Verb::Create, target, "")).await.unwrap();
    assert_eq!(decision, Decision::allow().because("RBAC: allowed by a binding"));
    let spec = json!({
        "user": "jane", "uid": "u-1", "groups": ["dev", "system:authenticated"], "extra": { "scopes": ["a", "b"] },
        "resourceAttributes": {
            "group": "", "version": "v1", "verb": "create", "resource": "pods", "subresource": "exec",
            "namespace": "default", "name": "demo",
        },
    });
    let body = json!({
        "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "metadata": {}, "spec": spec,
    });
    assert_eq!(script.bodies(), [body]);
    assert_eq!(script.asked(), [ACCESS]);
}

#[tokio::test(start_paused = true)]
async fn yes_counts_for_five_minutes_and_all_else_for_thirty_seconds() {
    let script = Script::reviewing(access);
    let reviews = AccessReviews::new(script.client());
    for (name, verdict, counts) in
        [("jane", Verdict::Allow, 300), ("eve", Verdict::Deny, 30), ("bob", Verdict::NoOpinion, 30)]
    {
        let may = || async { reviews.clone().may(&caller(name), asked("impersonate")).await.unwrap().verdict };
        let times = |count| vec![ACCESS.to_owned(); count];
        assert_eq!(may().await, verdict);
        assert_eq!(script.asked(), times(1));
        advance(Duration::from_secs(counts) - Duration::from_millis(1)).await;
        assert_eq!((may().await, script.asked()), (verdict, times(0)), "{name}");
        advance(Duration::from_millis(1)).await;
        assert_eq!((may().await, script.asked()), (verdict, times(1)), "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn whatever_may_change_an_answer_is_part_of_the_question() {
    let script = Script::reviewing(access);
    let reviews = AccessReviews::new(script.client());
    let jane = caller("jane");
    let mut callers = vec![
        jane.clone(),
        caller("jan"),
        Caller::new("jane", ["dev"]),
        Caller::new("jane", ["devsystem:authenticated"]),
    ];
    callers.push(Caller { uid: "u".into(), ..jane.clone() });
    callers.push(Caller { extra: [("a".into(), vec!["b".into()])].into(), ..jane.clone() });
    let plain = asked("get");
    let with = |change: fn(&mut ResourceAttributes)| {
        let mut asked = plain.clone();
        change(&mut asked);
        asked
    };
    let questions = [
        with(|asked| asked.verb = Some("create".into())),
        with(|asked| asked.group = Some("authentication.k8s.io".into())),
        with(|asked| asked.resource = Some("groups".into())),
        with(|asked| asked.subresource = Some("exec".into())),
        with(|asked| asked.namespace = Some("root".into())),
        with(|asked| asked.name = None),
    ];
    for round in [1, 0] {
        for caller in &callers {
            assert!(reviews.may(caller, plain.clone()).await.is_ok());
            assert_eq!(script.asked().len(), round, "{caller:?}");
        }
        for question in &questions {
            assert!(reviews.may(&jane, question.clone()).await.is_ok());
            assert_eq!(script.asked().len(), round, "{question:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn who_cannot_be_asked_about_is_refused_and_that_is_not_kept() {
    let script = Script::reviewing(access);
    let reviews = AccessReviews::new(script.client());
    for (state, code, tries, seconds) in [
        (State::Away, 503, 3, 0),
        (State::Answers(500), 503, 3, 0),
        (State::Answers(429), 503, 1, 0),
        (State::Answers(503), 503, 1, 0),
        (State::Answers(403), 500, 1, 0),
        (State::Answers(200), 500, 1, 0),
        (State::Silent, 503, 3, 10),
    ] {
        script.set(state);
        let started = Instant::now();
        let refusal = reviews.may(&caller("jane"), asked("get")).await.unwrap_err();
        assert_eq!((refusal.code().as_u16(), script.asked().len()), (code, tries), "{state:?}");
        assert_eq!(started.elapsed().as_secs(), seconds, "{state:?}");
        assert!(!refusal.message().contains("scripted"), "{refusal}");
    }
    script.set(State::Well);
    assert_eq!(reviews.may(&caller("jane"), asked("get")).await.unwrap().verdict, Verdict::Allow);
    assert_eq!(reviews.may(&caller("both"), asked("get")).await.unwrap_err().code(), 500);
}

#[tokio::test(start_paused = true)]
async fn the_seam_fails_with_the_refusal() {
    let script = Script::reviewing(access);
    script.set(State::Away);
    let target = Arc::new(target(Subresource::Exec, "demo", None));
    let asked = Attributes::new(Arc::new(caller("jane")), Verb::Create, target, "");
    let error = AccessReviews::new(script.client()).authorize(asked).await.unwrap_err();
    assert_eq!(error.downcast_ref::<Refusal>().expect("a refusal").code(), 503);
}

#[tokio::test(start_paused = true)]
async fn a_failure_that_passes_is_not_seen() {
    let codes = Arc::new(AtomicU16::new(2));
    let script = Script::reviewing({
        let codes = codes.clone();
        move |review| match codes.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)) {
            Ok(_) => (500, json!({})),
            Err(_) => access(review),
        }
    });
    let reviews = AccessReviews::new(script.client());
    assert_eq!(reviews.may(&caller("jane"), asked("get")).await.unwrap().verdict, Verdict::Allow);
    assert_eq!(script.asked().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn the_same_question_is_on_its_way_once_only() {
    let script = Script::reviewing(access);
    let reviews = AccessReviews::new(script.client());
    let jane = caller("jane");
    let all = join_all((0..100).map(|_| reviews.may(&jane, asked("get")))).await;
    assert!(all.iter().all(|answer| answer.as_ref().unwrap().verdict == Verdict::Allow));
    assert_eq!(script.asked().len(), 1);
}

/// One after the other they would wait for longer than there is time.
#[tokio::test(start_paused = true)]
async fn who_has_waited_for_a_failure_is_told_of_it_and_the_next_one_asks() {
    let script = Script::reviewing(access);
    let reviews = AccessReviews::new(script.client());
    script.set(State::Away);
    let jane = caller("jane");
    let started = Instant::now();
    let all = join_all((0..100).map(|_| reviews.may(&jane, asked("get")))).await;
    assert!(all.iter().all(|answer| answer.as_ref().is_err_and(|refusal| refusal.code() == 503)));
    assert_eq!(script.asked().len(), 3);
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
    script.set(State::Well);
    assert_eq!(reviews.may(&jane, asked("get")).await.unwrap().verdict, Verdict::Allow);
}

#[tokio::test(start_paused = true)]
async fn answers_find_no_more_room_than_there_is() {
    let answers = Answers::new(3);
    let ask = |question: u8, counts: u64| {
        let counts = move |_: &u8| Duration::from_secs(counts);
        let answers = &answers;
        async move { answers.of(&[question], counts, async { Ok(question) }).await.unwrap() }
    };
    let known = |question: u8| {
        let answers = &answers;
        async move { answers.of(&[question], |_| Duration::ZERO, async { Err(Failure::NotFound) }).await.is_ok() }
    };
    for (question, counts) in [(1, 100), (2, 10), (3, 100), (4, 100)] {
        ask(question, counts).await;
    }
    assert_eq!(answers.len(), 3);
    assert!(known(1).await && known(3).await && known(4).await, "who ends first goes first");
    assert!(!known(2).await);
    ask(5, 0).await;
    assert!(!known(5).await, "what counts for no time is not kept");
}

/// jane's token is `t-jane`.
fn tokens(review: &Value) -> (u16, Value) {
    let mut answer = review.clone();
    let user = json!({ "username": "jane", "uid": "u-1", "groups": ["dev"], "extra": { "scopes": ["a"] } });
    answer["status"] = match review["spec"]["token"].as_str() {
        Some("t-jane") => json!({ "authenticated": true, "user": user, "audiences": ["https://kubernetes"] }),
        Some("t-nameless") => json!({ "authenticated": true, "user": { "groups": ["system:masters"] } }),
        Some("t-half") => json!({ "user": user }),
        Some("t-anonymous") => json!({ "authenticated": true, "user": {
            "username": "system:anonymous", "groups": ["system:unauthenticated"],
        } }),
        _ => json!({ "error": "[invalid bearer token, Token has been invalidated]" }),
    };
    (201, answer)
}

#[tokio::test(start_paused = true)]
async fn a_token_s_caller_counts_for_two_minutes_and_nobody_for_ten_seconds() {
    let script = Script::reviewing(tokens);
    let reviews = TokenReviews::new(script.client());
    let mut jane = Caller::new("jane", ["dev", "system:authenticated"]);
    jane.uid = "u-1".into();
    jane.extra.insert("scopes".into(), vec!["a".into()]);
    for (token, caller, counts) in [("t-jane", Some(jane), 120), ("t-other", None, 10)] {
        let times = |count| vec![TOKEN.to_owned(); count];
        assert_eq!(reviews.caller(token).await.unwrap(), caller);
        assert_eq!(script.asked(), times(1));
        let body = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "metadata": {}, "spec": { "token": token },
        });
        assert_eq!(script.bodies().last(), Some(&body));
        advance(Duration::from_secs(counts) - Duration::from_millis(1)).await;
        assert_eq!((reviews.caller(token).await.unwrap(), script.asked()), (caller.clone(), times(0)));
        advance(Duration::from_millis(1)).await;
        assert_eq!((reviews.caller(token).await.unwrap(), script.asked()), (caller, times(1)));
    }
}

#[tokio::test(start_paused = true)]
async fn who_has_no_name_or_was_not_authenticated_is_nobody() {
    let script = Script::reviewing(tokens);
    let reviews = TokenReviews::new(script.client());
    for token in ["t-nameless", "t-half", "t"] {
        assert_eq!(reviews.caller(token).await.unwrap(), None, "{token}");
    }
    assert_eq!(reviews.caller("t-anonymous").await.unwrap(), Some(Caller::anonymous()));
    script.asked();
    let long = "t".repeat((64 << 10) + 1);
    for token in ["", &long] {
        assert_eq!(reviews.caller(token).await.unwrap(), None);
    }
    assert_eq!(script.asked(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_token_that_cannot_be_reviewed_is_refused_and_that_is_not_kept() {
    let script = Script::reviewing(tokens);
    let reviews = TokenReviews::new(script.client());
    for (state, code) in [(State::Away, 503), (State::Answers(401), 500), (State::Answers(503), 503)] {
        script.set(state);
        assert_eq!(reviews.caller("t-jane").await.unwrap_err().code(), code, "{state:?}");
    }
    script.set(State::Well);
    assert!(reviews.caller("t-jane").await.unwrap().is_some());
    // What is known lives on while the API is away.
    script.set(State::Away);
    assert!(reviews.caller("t-jane").await.unwrap().is_some());
    assert_eq!(reviews.caller("t-other").await.unwrap_err().code(), 503);
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_is_too_large_is_not_kept() {
    let large = Arc::new(AtomicBool::new(true));
    let script = Script::reviewing({
        let large = large.clone();
        move |_| {
            let groups = if large.load(Relaxed) { vec!["g".repeat(64); 1000] } else { vec!["g".into()] };
            (200, json!({ "status": { "authenticated": true, "user": { "username": "x", "groups": groups } } }))
        }
    });
    let reviews = TokenReviews::new(script.client());
    for _ in 0..2 {
        assert_eq!(reviews.caller("t").await.unwrap().unwrap().groups.len(), 1001);
        assert_eq!(script.asked().len(), 1);
    }
    large.store(false, Relaxed);
    for asked in [1, 0] {
        assert_eq!(reviews.caller("t").await.unwrap().unwrap().groups.len(), 2);
        assert_eq!(script.asked().len(), asked);
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_that_can_be_printed_shows_a_token() {
    let script = Script::reviewing(tokens);
    let reviews = TokenReviews::new(script.client());
    reviews.caller("t-jane").await.unwrap();
    assert_eq!(format!("{reviews:?}"), "TokenReviews { kept: 1, .. }");
}
