//! When a second executor is asked, and what is remembered of it.

use std::sync::atomic::Ordering;

use tower_kube_streaming::{
    client::{Carrier, Execute, ExecuteError, FallbackExecutor, FallbackPolicy},
    remote_command::Exit,
};

use crate::{
    commands::{Commands, EXTEND, NONE, exec, exec_at_kubelet, kubelet, user},
    scripts::{Script, Scripts, answer, raw, status, websocket},
};

#[tokio::test]
async fn after_a_fallback_all_of_stdin_is_there_and_the_server_is_remembered() {
    let commands = Commands::default();
    let spdy = || Script::Serve(kubelet(&commands, NONE, false));
    let scripts = Scripts::new([answer("403 Forbidden", ""), spdy(), spdy()]);
    let executor = FallbackExecutor::new(scripts.dial());
    let opened = executor.open(&exec_at_kubelet("cat")).await.expect("SPDY");
    let why = opened.fell_back().expect("a fallback").to_string();
    assert_eq!(why, "unable to upgrade streaming request: websocket: bad handshake (403 Forbidden)");
    let (stdio, stdout, _) = user(b"every byte");
    assert_eq!(opened.run(stdio).await.expect("a status"), Exit::Code(7));
    assert_eq!(stdout.bytes(), b"every byte");
    assert!(scripts.behind.bytes().is_empty(), "stdin was not touched");
    // The second goes straight to SPDY.
    let (stdio, ..) = user(b"");
    assert_eq!(executor.execute(&exec_at_kubelet("cat"), stdio).await.expect("a status"), Exit::Code(7));
    assert_eq!(scripts.methods(), ["GET", "served", "served"]);
    assert_eq!(commands.0.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn a_server_that_refuses_both_is_not_remembered_and_the_error_is_the_seconds() {
    let refused = |message| answer("403 Forbidden", &status(403, "Forbidden", message));
    let scripts = Scripts::new([refused("first"), refused("second"), refused("third"), refused("fourth")]);
    let executor = FallbackExecutor::new(scripts.dial());
    for words in ["second", "fourth"] {
        let error = executor.open(&exec("demo", "cat")).await.expect_err("refused");
        assert_eq!(error.to_string(), format!("unable to upgrade connection: {words}"));
    }
    assert_eq!(scripts.methods(), ["GET", "POST", "GET", "POST"]);
}

#[tokio::test]
async fn a_remembered_server_that_refuses_spdy_is_asked_over_websocket_and_forgotten_if_that_is_taken() {
    let commands = Commands::default();
    let serve = || Script::Serve(kubelet(&commands, EXTEND, false));
    let refused = || answer("403 Forbidden", "");
    let scripts = Scripts::new([refused(), serve(), refused(), refused(), refused(), serve(), serve()]);
    let executor = FallbackExecutor::new(scripts.dial());
    let request = exec_at_kubelet("cat");
    assert_eq!(executor.open(&request).await.expect("SPDY").carrier(), Carrier::Spdy);
    let error = executor.open(&request).await.expect_err("both refuse");
    assert_eq!(error.rejection().map(|rejection| rejection.carrier()), Some(Carrier::Spdy));
    for _ in 0..2 {
        assert_eq!(executor.open(&request).await.expect("WebSocket").carrier(), Carrier::WebSocket);
    }
    assert_eq!(scripts.methods(), ["GET", "served", "POST", "GET", "POST", "served", "served"]);
}

#[tokio::test(start_paused = true)]
async fn what_is_no_refusal_is_not_tried_again() {
    for script in [
        Script::Unreachable,
        Script::HangUp,
        Script::Silence,
        raw("SSH-2.0-OpenSSH\r\n\r\n"),
        // The 101 was right: the command may run, and then the connection breaks in the middle of a frame.
        websocket("v5.channel.k8s.io", b"\x82\x7f"),
    ] {
        let scripts = Scripts::new([script]);
        let executor = FallbackExecutor::new(scripts.dial())
            .policy(FallbackPolicy::new().retry_if(|error| error.rejection().is_some()));
        let error = executor.execute(&exec("demo", "cat"), user(b"").0).await.expect_err("no session");
        assert!(error.rejection().is_none(), "{error:?}");
        assert_eq!(scripts.heads.lock().expect("not poisoned").len(), 1, "{error:?}");
    }
    // Not even a policy that retries everything retries behind a 101 that was right.
    let all = FallbackPolicy::new().retry_if(|_| true);
    assert!(!all.retries(&ExecuteError::NoStatus(String::new())) && !all.retries(&ExecuteError::Failed(String::new())));
    // One that retries dial errors does so once.
    let scripts = Scripts::new([Script::Unreachable, Script::Unreachable]);
    let executor = FallbackExecutor::new(scripts.dial()).policy(all);
    assert!(matches!(executor.open(&exec("demo", "cat")).await, Err(ExecuteError::Dial(_))));
}
