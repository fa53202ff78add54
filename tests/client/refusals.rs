//! What is no upgrade, and what a client says of it.

use tower_kube_streaming::{
    client::{ExecRequest, Execute, ExecuteError, FallbackPolicy, SpdyExecutor, WebSocketExecutor},
    remote_command::Version,
};

use crate::{
    commands::{STREAMS, exec},
    scripts::{Script, Scripts, answer, raw, status, websocket},
};

#[tokio::test]
async fn a_refusal_keeps_code_headers_and_status_and_reads_as_kubectls() {
    let forbidden = status(403, "Forbidden", "pods is forbidden");
    for (code, body, websocket, spdy) in [
        ("400 Bad Request", "bad", "websocket: bad handshake (400 Bad Request): bad", "bad"),
        ("403 Forbidden", "", "websocket: bad handshake (403 Forbidden)", "empty server response"),
        ("403 Forbidden", &*forbidden, "pods is forbidden", "pods is forbidden"),
        (
            "404 Not Found",
            "pods \"x\" not found\n",
            "websocket: bad handshake (404 Not Found): pods \"x\" not found",
            "pods \"x\" not found",
        ),
        (
            "500 Internal Server Error",
            r#"{"error":"boom"}"#,
            "websocket: bad handshake (500 Internal Server Error): {\"error\":\"boom\"}",
            "boom",
        ),
        ("302 Found", "\x1b[2J", "websocket: bad handshake (302 Found): \\u{1b}[2J", "\\u{1b}[2J"),
        ("200 OK", "hello", "websocket: bad handshake (200 OK): hello", "hello"),
    ] {
        let scripts = Scripts::new([answer(code, body), answer(code, body)]);
        let request = exec("demo", "cat");
        let (ws, over_spdy) = (WebSocketExecutor::new(scripts.dial()), SpdyExecutor::new(scripts.dial()));
        for (refused, prefix, words) in [
            (ws.open(&request).await, "unable to upgrade streaming request: ", websocket),
            (over_spdy.open(&request).await, "unable to upgrade connection: ", spdy),
        ] {
            let error = refused.expect_err("refused");
            assert_eq!(error.to_string(), format!("{prefix}{words}"));
            let rejection = error.rejection().expect("a rejection");
            assert_eq!(rejection.code().as_str(), &code[..3]);
            assert_eq!(rejection.headers()["x-gateway"], "squid");
            assert_eq!(&rejection.body()[..], body.as_bytes());
            let decoded = rejection.status();
            assert_eq!(decoded.is_some(), body.contains("Failure"));
            if let Some(status) = decoded {
                assert_eq!((status.code, &*status.reason, &*status.name), (403, "Forbidden", "demo"));
            }
        }
        assert!(scripts.behind.bytes().is_empty(), "nothing is sent behind a refused request");
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_of_any_length_is_one_and_64_kib_of_it_are_kept() {
    // More than is kept, less than was promised, and a body that never ends.
    let long = "x".repeat(100_000);
    let scripts = Scripts::new([
        answer("500 Internal Server Error", &long),
        raw("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 10\r\n\r\nhalf"),
    ]);
    let executor = SpdyExecutor::new(scripts.dial());
    for (code, kept) in [(500, 64 << 10), (503, 4)] {
        let error = executor.open(&exec("demo", "cat")).await.expect_err("refused");
        let rejection = error.rejection().expect("a rejection");
        assert_eq!((rejection.code().as_u16(), rejection.body().len()), (code, kept));
        assert!(error.to_string().len() < 1100, "not all of it is shown");
    }
}

#[tokio::test]
async fn a_101_that_is_not_the_upgrade_asked_for_says_what_is_wrong() {
    let no_upgrade = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\r\n";
    let other_key = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                     Sec-WebSocket-Accept: AAAA\r\nSec-WebSocket-Protocol: v5.channel.k8s.io\r\n\r\n";
    for (script, words) in [
        (
            websocket("v4.channel.k8s.io", b""),
            r#"invalid protocol, expected one of ["v5.channel.k8s.io"], got "v4.channel.k8s.io""#,
        ),
        (websocket("", b""), r#"invalid protocol, expected one of ["v5.channel.k8s.io"], got """#),
        (raw(no_upgrade), "`websocket` not found in the server's `Upgrade` header"),
        (raw(other_key), "`Sec-WebSocket-Accept` does not answer our key"),
    ] {
        let executor = WebSocketExecutor::new(Scripts::new([script]).dial());
        let error = executor.open(&exec("demo", "cat")).await.expect_err("no upgrade");
        assert!(error.to_string().ends_with(words), "{error}");
        assert_eq!(error.rejection().map(|rejection| rejection.code().as_u16()), Some(101));
        assert!(FallbackPolicy::new().retries(&error) && !FallbackPolicy::refusals_only().retries(&error));
    }
    let spdy = |headers: &str| raw(&format!("HTTP/1.1 101 Switching Protocols\r\n{headers}\r\n"));
    for (headers, words) in [
        ("Upgrade: SPDY/3.1\r\n", "`upgrade` not found in the server's `Connection` header"),
        ("Connection: Upgrade\r\nUpgrade: websocket\r\n", "`SPDY/3.1` not found in the server's `Upgrade` header"),
        (
            "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v5.channel.k8s.io\r\n",
            r#"invalid protocol, expected one of ["v4.channel.k8s.io"], got "v5.channel.k8s.io""#,
        ),
    ] {
        let executor = SpdyExecutor::new(Scripts::new([spdy(headers)]).dial()).versions([Version::V4]);
        let error = executor.open(&exec("demo", "cat")).await.expect_err("no upgrade");
        assert!(error.to_string().ends_with(words), "{error}");
    }
    // No version named is v1, if that was offered.
    let executor = SpdyExecutor::new(Scripts::new([spdy("Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\n")]).dial());
    assert_eq!(executor.open(&exec("demo", "cat")).await.expect("v1").protocol(), "channel.k8s.io");
}

#[tokio::test]
async fn the_handshakes_are_those_of_kubectl_whatever_headers_are_added() {
    let scripts = Scripts::new([Script::HangUp, Script::HangUp]);
    let request = exec("demo", "cat").header("authorization", "Bearer secret").expect("a header");
    let request = request.header("upgrade", "h2c").expect("a header").header("Content-Length", "5").expect("a header");
    let lost = WebSocketExecutor::new(scripts.dial()).open(&request).await.expect_err("hung up");
    assert!(matches!(lost, ExecuteError::NoAnswer(_)), "{lost:?}");
    assert!(SpdyExecutor::new(scripts.dial()).open(&request).await.is_err());
    assert!(!format!("{request:?}").contains("secret") && !format!("{request:?}").contains("cat"));
    let heads = scripts.heads.lock().expect("not poisoned").clone();
    let path =
        "/api/v1/namespaces/ns/pods/demo/exec?command=cat&container=c&stdin=true&stdout=true&stderr=true HTTP/1.1\r\n";
    for (head, method, has) in [
        (
            &heads[0],
            "GET",
            &[
                "upgrade: websocket\r\n",
                "sec-websocket-version: 13\r\n",
                "sec-websocket-protocol: v5.channel.k8s.io\r\n",
            ][..],
        ),
        (
            &heads[1],
            "POST",
            &[
                "upgrade: SPDY/3.1\r\n",
                "content-length: 0\r\n",
                "x-stream-protocol-version: v5.channel.k8s.io\r\nx-stream-protocol-version: v4.channel.k8s.io\r\n\
             x-stream-protocol-version: v3.channel.k8s.io\r\nx-stream-protocol-version: v2.channel.k8s.io\r\n\
             x-stream-protocol-version: channel.k8s.io\r\n",
            ],
        ),
    ] {
        assert!(head.starts_with(&format!("{method} {path}")), "{head}");
        for line in ["host: api\r\n", "connection: Upgrade\r\n", "authorization: Bearer secret\r\n"].iter().chain(has) {
            assert!(head.contains(line), "{line} is not in {head}");
        }
        assert!(!head.contains("h2c") && !head.contains("content-length: 5"), "{head}");
    }
}

#[test]
fn a_url_that_cannot_be_asked_for_is_an_error() {
    for url in ["", "/exec/ns/pod/c", "ftp://host/", "wss://host/", "http://user:secret@host/", "http://"] {
        let error = ExecRequest::new(url, STREAMS).expect_err(url);
        assert!(matches!(error, ExecuteError::Request(_)) && !error.to_string().contains("secret"), "{error}");
    }
}

#[tokio::test]
async fn a_header_that_was_dropped_on_the_way_is_named_where_the_answer_shows_it() {
    let unasked = status(400, "BadRequest", "Upgrade request required");
    for (code, body, websocket, spdy) in [
        ("400 Bad Request", &*unasked, Some("Upgrade: websocket"), Some("Upgrade: SPDY/3.1")),
        (
            "400 Bad Request",
            "unable to upgrade: missing upgrade headers in request\n",
            Some("Upgrade: websocket"),
            Some("Upgrade: SPDY/3.1"),
        ),
        (
            "403 Forbidden",
            "unable to upgrade: unable to negotiate protocol: client supports [], server accepts [v4.channel.k8s.io]",
            Some("X-Stream-Protocol-Version"),
            Some("X-Stream-Protocol-Version"),
        ),
        (
            "403 Forbidden",
            "unable to upgrade: unable to negotiate protocol: client supports [v9], server accepts [v4.channel.k8s.io]",
            None,
            None,
        ),
        ("200 OK", "Upgrade request required", None, None),
    ] {
        let scripts = Scripts::new([answer(code, body), answer(code, body)]);
        let request = exec("demo", "cat");
        let (ws, over_spdy) = (WebSocketExecutor::new(scripts.dial()), SpdyExecutor::new(scripts.dial()));
        for (refused, dropped) in [(ws.open(&request).await, websocket), (over_spdy.open(&request).await, spdy)] {
            let error = refused.expect_err("refused");
            assert_eq!(error.rejection().expect("a rejection").dropped_header(), dropped);
            assert_eq!(error.to_string().contains("a proxy on the way has dropped it"), dropped.is_some());
        }
    }
}
