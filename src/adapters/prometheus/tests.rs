use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    future::{pending, ready},
    sync::Arc,
};

use bytes::Bytes;
use http::{Extensions, HeaderName, Request, Response, StatusCode};
use http_body_util::Full;
use tower::{ServiceBuilder, ServiceExt, service_fn};

use super::*;
use crate::{
    gates::{FeatureGates, Gate},
    layers::{Hop, MetricsLayer, UpgradeDetectLayer, danger::PermitAllLayer, metrics::Protocol},
    services::ApiServer,
    upgrade::{Dialect, Sessions, Target, Traffic, accept},
};

const EXEC: &str = "/api/v1/namespaces/default/pods/demo/exec?command=date&stdout=true";

/// All series and their values, in the order of the text.
fn series(text: &str) -> Vec<(&str, f64)> {
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    samples.map(|line| line.rsplit_once(' ').unwrap()).map(|(name, value)| (name, value.parse().unwrap())).collect()
}

fn names(text: &str) -> Vec<String> {
    series(text).into_iter().map(|(name, _)| name.to_owned()).collect()
}

/// The series that are not zero, without the buckets of histograms.
fn counted(metrics: &StreamingMetrics) -> BTreeMap<String, f64> {
    let text = metrics.render();
    let all = series(&text).into_iter();
    all.filter(|(name, value)| *value != 0.0 && !name.contains("_bucket{"))
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

fn exactly(metrics: &StreamingMetrics, wanted: &[(&str, f64)]) {
    let wanted: BTreeMap<String, f64> = wanted.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
    assert_eq!(counted(metrics), wanted);
}

fn stream(subresource: Subresource, protocol: Protocol, route: Route) -> Stream {
    Stream { subresource, protocol, route }
}

fn report(end: End) -> Report {
    let mut report = Report::new(end, Cause::Finished, "over");
    (report.bytes.stdin, report.bytes.stdout) = (5, 70);
    report
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_translated_session_counts_under_both_names_and_leaves_the_gauge_at_zero() {
    let metrics = StreamingMetrics::api_server();
    let exec = stream(Subresource::Exec, Protocol::V5, Route::Adapted);
    metrics.answered(exec, Answer::Switched, SECOND / 2);
    let begun = [
        (r#"num_ws_remote_command_v5_total{type="success"}"#, 1.0),
        (
            r#"apiserver_websocket_streaming_requests_total{subresource="exec",proxy_type="translated_at_apiserver"}"#,
            1.0,
        ),
        (r#"apiserver_streaming_upgrade_duration_seconds_sum{subresource="exec",result="success"}"#, 0.5),
        (r#"apiserver_streaming_upgrade_duration_seconds_count{subresource="exec",result="success"}"#, 1.0),
    ];
    let lives =
        (r#"apiserver_streaming_active_connections{subresource="exec",proxy_type="translated_or_tunneled"}"#, 1.0);
    exactly(&metrics, &[&begun[..], &[lives]].concat());
    metrics.ended(exec, &report(End::ExitCode(3)), SECOND * 7);
    let ended = [
        (r#"apiserver_stream_translator_requests_total{code="200"}"#, 1.0),
        (
            r#"apiserver_streaming_sessions_ended_total{subresource="exec",proxy_type="translated_or_tunneled",end="exit_code"}"#,
            1.0,
        ),
        (r#"apiserver_streaming_bytes_total{subresource="exec",stream="stdin",direction="in"}"#, 5.0),
        (r#"apiserver_streaming_bytes_total{subresource="exec",stream="stdout",direction="out"}"#, 70.0),
        (r#"apiserver_streaming_close_causes_total{cause="finished"}"#, 1.0),
        (r#"apiserver_streaming_session_duration_seconds_sum{proxy_type="translated_or_tunneled"}"#, 7.0),
        (r#"apiserver_streaming_session_duration_seconds_count{proxy_type="translated_or_tunneled"}"#, 1.0),
    ];
    exactly(&metrics, &[&begun[..], &ended].concat());
}

#[test]
fn the_translator_counts_an_error_as_500_and_a_refusal_by_its_code() {
    let metrics = StreamingMetrics::api_server();
    let attach = stream(Subresource::Attach, Protocol::V5, Route::Adapted);
    for end in [End::Success, End::ExitCode(1), End::ClientGone, End::Error] {
        metrics.answered(attach, Answer::Switched, SECOND);
        metrics.ended(attach, &report(end), SECOND);
    }
    for code in [StatusCode::BAD_REQUEST, StatusCode::NOT_FOUND, StatusCode::IM_A_TEAPOT] {
        metrics.answered(attach, Answer::Refused(code), SECOND);
    }
    metrics.answered(attach, Answer::Failed, SECOND);
    metrics.answered(attach, Answer::Abandoned, SECOND);
    let counted = counted(&metrics);
    for (code, times) in [("200", 3.0), ("500", 2.0), ("400", 1.0), ("404", 1.0), ("other", 1.0), ("499", 1.0)] {
        assert_eq!(
            counted[&format!(r#"apiserver_stream_translator_requests_total{{code="{code}"}}"#)],
            times,
            "{code}"
        );
    }
    for (code, times) in [("500", 1.0), ("400", 1.0), ("404", 1.0), ("other", 1.0), ("499", 1.0)] {
        let refused = format!(r#"apiserver_streaming_refused_requests_total{{subresource="attach",code="{code}"}}"#);
        assert_eq!(counted[&refused], times, "{code}");
    }
    assert_eq!(counted[r#"num_ws_remote_command_v5_total{type="success"}"#], 4.0);
    assert_eq!(counted[r#"num_ws_remote_command_v5_total{type="failure"}"#], 5.0);
}

#[test]
fn the_tunnel_counts_when_it_is_answered() {
    let metrics = StreamingMetrics::api_server();
    let forward = stream(Subresource::PortForward, Protocol::Tunnel, Route::Adapted);
    metrics.answered(forward, Answer::Switched, SECOND);
    metrics.answered(forward, Answer::Refused(StatusCode::BAD_GATEWAY), SECOND);
    metrics.ended(forward, &report(End::Carried), SECOND);
    let counted = counted(&metrics);
    for (name, value) in [
        (r#"apiserver_stream_tunnel_requests_total{code="101"}"#, 1.0),
        (r#"apiserver_stream_tunnel_requests_total{code="502"}"#, 1.0),
        (r#"num_ws_port_forward_v2_total{type="success"}"#, 1.0),
        (r#"num_ws_port_forward_v2_total{type="failure"}"#, 1.0),
        (
            r#"apiserver_websocket_streaming_requests_total{subresource="portforward",proxy_type="translated_at_apiserver"}"#,
            2.0,
        ),
    ] {
        assert_eq!(counted[name], value, "{name}");
    }
    assert!(!counted.keys().any(|name| name.contains("translator") || name.contains("active")), "{counted:?}");
}

#[test]
fn what_is_carried_on_is_no_translation_and_spdy_no_websocket() {
    let metrics = StreamingMetrics::api_server();
    // The gate is off: still an attempt at v5, for the KEP's objective.
    metrics.answered(
        stream(Subresource::Exec, Protocol::V5, Route::Unrouted),
        Answer::Refused(StatusCode::FORBIDDEN),
        SECOND,
    );
    metrics.answered(stream(Subresource::Exec, Protocol::V5, Route::WebSocketHop), Answer::Switched, SECOND);
    metrics.answered(stream(Subresource::Exec, Protocol::WebSocket, Route::SpdyHop), Answer::Switched, SECOND);
    metrics.answered(stream(Subresource::Exec, Protocol::Spdy, Route::SpdyHop), Answer::Switched, SECOND);
    metrics.answered(stream(Subresource::Exec, Protocol::Spdy, Route::WebSocketHop), Answer::Switched, SECOND);
    exactly(
        &metrics,
        &[
            (r#"num_ws_remote_command_v5_total{type="success"}"#, 1.0),
            (r#"num_ws_remote_command_v5_total{type="failure"}"#, 1.0),
            (
                r#"apiserver_websocket_streaming_requests_total{subresource="exec",proxy_type="proxied_to_kubelet"}"#,
                1.0,
            ),
            (
                r#"apiserver_websocket_streaming_requests_total{subresource="exec",proxy_type="translated_at_apiserver"}"#,
                1.0,
            ),
            (r#"apiserver_streaming_active_connections{subresource="exec",proxy_type="proxied"}"#, 4.0),
            (r#"apiserver_streaming_refused_requests_total{subresource="exec",code="403"}"#, 1.0),
            (r#"apiserver_streaming_upgrade_duration_seconds_sum{subresource="exec",result="success"}"#, 4.0),
            (r#"apiserver_streaming_upgrade_duration_seconds_count{subresource="exec",result="success"}"#, 4.0),
            (r#"apiserver_streaming_upgrade_duration_seconds_sum{subresource="exec",result="failure"}"#, 1.0),
            (r#"apiserver_streaming_upgrade_duration_seconds_count{subresource="exec",result="failure"}"#, 1.0),
        ],
    );
}

#[test]
fn a_kubelet_has_its_own_names() {
    let metrics = StreamingMetrics::kubelet();
    let exec = |protocol| stream(Subresource::Exec, protocol, Route::Unrouted);
    metrics.answered(exec(Protocol::V5), Answer::Switched, SECOND);
    metrics.answered(exec(Protocol::V5), Answer::Refused(StatusCode::FORBIDDEN), SECOND);
    metrics.answered(exec(Protocol::WebSocket), Answer::Switched, SECOND);
    metrics.answered(exec(Protocol::Spdy), Answer::Switched, SECOND);
    let adapted = stream(Subresource::PortForward, Protocol::Tunnel, Route::Adapted);
    metrics.answered(adapted, Answer::Refused(StatusCode::INTERNAL_SERVER_ERROR), SECOND);
    let counted = counted(&metrics);
    for (name, value) in [
        (r#"kubelet_streaming_websocket_requests_total{subresource="exec",result="success"}"#, 2.0),
        (r#"kubelet_streaming_websocket_requests_total{subresource="exec",result="failure"}"#, 1.0),
        (r#"kubelet_streaming_websocket_requests_total{subresource="portforward",result="failure"}"#, 1.0),
        (r#"kubelet_websocket_streaming_requests_total{subresource="exec"}"#, 1.0),
        (r#"kubelet_websocket_streaming_requests_total{subresource="portforward"}"#, 1.0),
        (r#"kubelet_streaming_active_connections{subresource="exec",proxy_type="proxied"}"#, 3.0),
    ] {
        assert_eq!(counted[name], value, "{name}");
    }
    assert!(counted.keys().all(|name| name.starts_with("kubelet_")), "{counted:?}");
}

/// A stack over `leaf`, asked once for exec over SPDY.
async fn ask<F, Fut>(metrics: &Arc<StreamingMetrics>, sessions: &Sessions, leaf: F)
where
    F: FnMut(Request<()>) -> Fut,
    Fut: Future<Output = Result<Response<Full<Bytes>>, Infallible>>,
{
    let stack = ServiceBuilder::new()
        .layer(UpgradeDetectLayer::new(Dialect::ApiServer, sessions.clone()))
        .layer((MetricsLayer::new(Arc::clone(metrics)), PermitAllLayer))
        .service(service_fn(leaf));
    let mut request =
        Request::post(EXEC).header("upgrade", "SPDY/3.1").header("connection", "upgrade").body(()).unwrap();
    drop(accept(&mut Extensions::new(), request.extensions_mut()));
    stack.oneshot(request).await.unwrap();
}

fn answer(code: u16) -> Response<Full<Bytes>> {
    Response::builder().status(code).body(Full::default()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_stack_counts_what_is_refused_what_ends_and_what_is_cut() {
    let (metrics, sessions) = (Arc::new(StreamingMetrics::api_server()), Sessions::new());
    ask(&metrics, &sessions, |_| ready(Ok(answer(429)))).await;
    let serve = |end: Option<End>| {
        move |mut request: Request<()>| {
            let mut response = answer(101);
            accept(request.extensions_mut(), response.extensions_mut()).spawn(move |_io, drain| async move {
                drain.cancelled().await;
                match end {
                    Some(end) => report(end),
                    None => pending().await,
                }
            });
            ready(Ok(response))
        }
    };
    ask(&metrics, &sessions, serve(Some(End::Success))).await;
    ask(&metrics, &sessions, serve(None)).await;
    let gauge = r#"apiserver_streaming_active_connections{subresource="exec",proxy_type="proxied"}"#;
    assert_eq!(counted(&metrics)[gauge], 2.0);
    assert_eq!(sessions.drain(SECOND * 2, SECOND * 40).await, 1);
    let ended = |end| {
        format!(r#"apiserver_streaming_sessions_ended_total{{subresource="exec",proxy_type="proxied",end="{end}"}}"#)
    };
    exactly(
        &metrics,
        &[
            (r#"apiserver_streaming_refused_requests_total{subresource="exec",code="429"}"#, 1.0),
            (&ended("success"), 1.0),
            (&ended("error"), 1.0),
            (r#"apiserver_streaming_close_causes_total{cause="finished"}"#, 1.0),
            (r#"apiserver_streaming_close_causes_total{cause="cut"}"#, 1.0),
            (r#"apiserver_streaming_bytes_total{subresource="exec",stream="stdin",direction="in"}"#, 5.0),
            (r#"apiserver_streaming_bytes_total{subresource="exec",stream="stdout",direction="out"}"#, 70.0),
            (r#"apiserver_streaming_session_duration_seconds_sum{proxy_type="proxied"}"#, 44.0),
            (r#"apiserver_streaming_session_duration_seconds_count{proxy_type="proxied"}"#, 2.0),
            (r#"apiserver_streaming_upgrade_duration_seconds_count{subresource="exec",result="success"}"#, 2.0),
            (r#"apiserver_streaming_upgrade_duration_seconds_count{subresource="exec",result="failure"}"#, 1.0),
        ],
    );
}

/// The KEP counts attempts, so neither a gate nor the way that an attempt goes changes what is counted.
#[tokio::test(start_paused = true)]
async fn every_attempt_at_v5_or_the_tunnel_counts_once_with_any_gates_on_any_route() {
    const FORWARD: &str = "/api/v1/namespaces/default/pods/demo/portforward?ports=80";
    let all_off = Gate::ALL.map(|gate| (gate, false));
    for gates in [FeatureGates::default(), FeatureGates::with(all_off).unwrap()] {
        for declares in [true, false] {
            for (uri, offer, name) in [
                (EXEC, "v5.channel.k8s.io", "num_ws_remote_command_v5_total"),
                (FORWARD, "SPDY/3.1+portforward.k8s.io", "num_ws_port_forward_v2_total"),
            ] {
                for code in [101, 403] {
                    let metrics = Arc::new(StreamingMetrics::api_server());
                    let resolve = move |target: Arc<Target>| {
                        ready(Hop::kubelet("http://kubelet", &target).map(|hop| hop.speaks_websocket(declares)))
                    };
                    let authorize = (MetricsLayer::new(Arc::clone(&metrics)), PermitAllLayer);
                    let leaf =
                        service_fn(move |request: Request<()>| ready(Ok::<_, Infallible>(switch(code, &request))));
                    let stack = ApiServer::builder().gates(gates).build(Sessions::new(), authorize, resolve, leaf);
                    let mut request = Request::get(uri)
                        .header("connection", "upgrade")
                        .header("upgrade", "websocket")
                        .header("sec-websocket-version", "13")
                        .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
                        .header("sec-websocket-protocol", offer)
                        .body(())
                        .unwrap();
                    let _client = accept(&mut Extensions::new(), request.extensions_mut());
                    assert_eq!(stack.oneshot(request).await.unwrap().status(), code);
                    let counted = counted(&metrics);
                    let attempts: Vec<_> = counted.iter().filter(|(series, _)| series.starts_with("num_ws_")).collect();
                    let kind = if code == 101 { "success" } else { "failure" };
                    let wanted = format!(r#"{name}{{type="{kind}"}}"#);
                    assert_eq!(attempts, [(&wanted, &1.0)], "{gates:?} {declares} {code}");
                }
            }
        }
    }
}

/// What a next hop answers to `request`, whichever protocol that asks for.
fn switch(code: u16, request: &Request<()>) -> Response<Full<Bytes>> {
    let mut response = answer(code);
    for name in ["connection", "upgrade", "x-stream-protocol-version"] {
        response
            .headers_mut()
            .extend(request.headers().get(name).map(|value| (HeaderName::from_static(name), value.clone())));
    }
    drop(accept(&mut Extensions::new(), response.extensions_mut()));
    response
}

#[test]
fn every_name_has_its_head_once_and_every_series_is_there_from_the_start() {
    let (api_server, kubelet) = (StreamingMetrics::api_server(), StreamingMetrics::kubelet());
    let before = api_server.render();
    let exec = stream(Subresource::Exec, Protocol::V5, Route::Adapted);
    for code in 100..=999 {
        api_server.answered(exec, Answer::Refused(StatusCode::from_u16(code).unwrap()), SECOND);
    }
    let after = api_server.render();
    assert_eq!(names(&before), names(&after), "what a next hop answers makes no series");
    assert_eq!((names(&before).len(), names(&kubelet.render()).len()), (301, 270));
    let text = before + &kubelet.render();
    let all = names(&text);
    assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len(), "a series is there twice");
    let (mut heads, mut kind) = (BTreeSet::new(), ("", ""));
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, help) = help.split_once(' ').unwrap();
            assert!(heads.insert(name) && help.len() > 20, "{line}");
        } else if let Some(head) = line.strip_prefix("# TYPE ") {
            kind = head.split_once(' ').unwrap();
            assert!(heads.contains(kind.0), "{line}");
            assert_eq!(kind.1 == "counter", kind.0.ends_with("_total"), "{line}");
        } else {
            let name = line.split_once('{').unwrap().0;
            let suffix = name.strip_prefix(kind.0).unwrap_or_else(|| panic!("{line} is below the head of {kind:?}"));
            let known: &[&str] = if kind.1 == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
            assert!(known.contains(&suffix), "{line}");
        }
    }
}

#[test]
fn a_histogram_is_cumulative_and_its_bounds_include_their_value() {
    let metrics = StreamingMetrics::kubelet();
    let exec = stream(Subresource::Exec, Protocol::Spdy, Route::Unrouted);
    for millis in [5, 6, 30_000, 60_001] {
        metrics.answered(exec, Answer::Switched, Duration::from_millis(millis));
    }
    let text = metrics.render();
    let head = r#"kubelet_streaming_upgrade_duration_seconds_bucket{subresource="exec",result="success",le=""#;
    let buckets: Vec<_> = text.lines().filter_map(|line| line.strip_prefix(head)).collect();
    assert_eq!(
        buckets,
        [
            "0.005\"} 1",
            "0.01\"} 2",
            "0.025\"} 2",
            "0.05\"} 2",
            "0.1\"} 2",
            "0.25\"} 2",
            "0.5\"} 2",
            "1\"} 2",
            "2.5\"} 2",
            "5\"} 2",
            "10\"} 2",
            "30\"} 3",
            "60\"} 3",
            "+Inf\"} 4",
        ]
    );
}

#[test]
fn a_tunnels_failed_dial_is_a_502_to_the_tunnel_and_what_the_client_got_elsewhere() {
    let metrics = StreamingMetrics::api_server();
    let failed = Answer::DialFailed(StatusCode::INTERNAL_SERVER_ERROR);
    metrics.answered(stream(Subresource::PortForward, Protocol::Tunnel, Route::Adapted), failed, SECOND);
    metrics.answered(stream(Subresource::Exec, Protocol::V5, Route::Adapted), failed, SECOND);
    let counted = counted(&metrics);
    for name in [
        r#"apiserver_stream_tunnel_requests_total{code="502"}"#,
        r#"apiserver_stream_translator_requests_total{code="500"}"#,
        r#"apiserver_streaming_refused_requests_total{subresource="portforward",code="500"}"#,
        r#"apiserver_streaming_refused_requests_total{subresource="exec",code="500"}"#,
        r#"num_ws_port_forward_v2_total{type="failure"}"#,
        r#"num_ws_remote_command_v5_total{type="failure"}"#,
    ] {
        assert_eq!(counted[name], 1.0, "{name}");
    }
}

#[test]
fn causes_streams_and_decisions_have_series_of_their_own() {
    let metrics = StreamingMetrics::kubelet();
    let exec = stream(Subresource::Exec, Protocol::Spdy, Route::Unrouted);
    let mut all = Traffic::default();
    (all.stdin, all.stdout, all.stderr) = (1, 2, 4);
    (all.data_in, all.data_out, all.carried_in, all.carried_out) = (8, 16, 32, 64);
    for cause in Cause::ALL {
        let mut report = Report::new(End::Error, cause, "free text");
        report.bytes = all;
        metrics.answered(exec, Answer::Switched, SECOND);
        metrics.ended(exec, &report, SECOND);
    }
    for verdict in [Some(Verdict::Allow), Some(Verdict::Deny), Some(Verdict::NoOpinion), None] {
        metrics.checked(Subresource::Attach, verdict);
    }
    let counted = counted(&metrics);
    for cause in Cause::ALL {
        assert_eq!(counted[&format!(r#"kubelet_streaming_close_causes_total{{cause="{cause}"}}"#)], 1.0, "{cause}");
    }
    for (of, bytes) in [
        (r#"stream="stdin",direction="in""#, 1.0),
        (r#"stream="stdout",direction="out""#, 2.0),
        (r#"stream="stderr",direction="out""#, 4.0),
        (r#"stream="data",direction="in""#, 8.0),
        (r#"stream="data",direction="out""#, 16.0),
        (r#"stream="carried",direction="in""#, 32.0),
        (r#"stream="carried",direction="out""#, 64.0),
    ] {
        let sessions = Cause::ALL.len() as f64;
        assert_eq!(
            counted[&format!(r#"kubelet_streaming_bytes_total{{subresource="exec",{of}}}"#)],
            bytes * sessions,
            "{of}"
        );
    }
    assert_eq!(counted.keys().filter(|name| name.contains("_bytes_total")).count(), 7);
    for decision in ["allow", "deny", "no_opinion", "error"] {
        let name = format!(
            r#"kubelet_streaming_synthetic_check_decisions_total{{subresource="attach",decision="{decision}"}}"#
        );
        assert_eq!(counted[&name], 1.0, "{decision}");
    }
    let text = metrics.render();
    assert!(!text.contains("free text"));
}
