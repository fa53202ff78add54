//! Sessions that end before their time.

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, duplex},
    sync::oneshot,
};
use tower_kube_streaming::{
    client::{Execute, ExecuteError, SpdyExecutor, WebSocketExecutor},
    remote_command::{Input, Output},
};

use crate::{
    commands::{exec, user},
    scripts::{Script, Scripts, websocket},
};

#[tokio::test]
async fn a_session_without_a_status_is_an_error_and_what_was_said_is_kept() {
    // stdout, and Close 1000 or 1011; then a status that is torn.
    for frames in [
        &b"\x82\x08\x01partial\x88\x02\x03\xe8"[..],
        b"\x82\x08\x01partial\x88\x02\x03\xf3",
        b"\x82\x08\x01partial\x82\x03\x03{}\x88\x02\x03\xe8",
    ] {
        let scripts = Scripts::new([websocket("v5.channel.k8s.io", frames)]);
        let (stdio, stdout, _) = user(b"");
        let error = WebSocketExecutor::new(scripts.dial()).execute(&exec("demo", "cat"), stdio).await;
        match error.expect_err("no status") {
            ExecuteError::NoStatus(_) => assert!(frames.ends_with(&[0xe8])),
            ExecuteError::Session(error) => assert!(error.is_lost() && frames.ends_with(&[0xf3])),
            other => panic!("{other:?}"),
        }
        assert_eq!(stdout.bytes(), b"partial");
    }
    for orderly in [true, false] {
        let (cut, told) = oneshot::channel();
        let scripts = Scripts::new([Script::SpdyWithoutStatus((!orderly).then_some(told))]);
        let (mut stdio, ..) = user(b"");
        let (stdout, mut said) = duplex(64);
        stdio.stdout = Some(Output::new(stdout));
        let executor = SpdyExecutor::new(scripts.dial());
        let request = exec("demo", "cat");
        let user = async {
            let mut partial = [0; 7];
            said.read_exact(&mut partial).await.expect("what was said");
            let _ = cut.send(());
            partial
        };
        let (ran, partial) = tokio::join!(executor.execute(&request, stdio), user);
        match ran.expect_err("no status") {
            ExecuteError::NoStatus(_) => assert!(orderly),
            ExecuteError::Session(error) => assert!(error.is_lost() && !orderly),
            other => panic!("{other:?}"),
        }
        assert_eq!(partial, *b"partial");
    }
}

#[tokio::test]
async fn dropping_the_future_closes_the_connection() {
    for script in [Script::Silence, websocket("v5.channel.k8s.io", b"")] {
        let scripts = Scripts::new([script]);
        let executor = WebSocketExecutor::new(scripts.dial());
        let (mut stdio, ..) = user(b"");
        let (mut typed, stdin) = duplex(1);
        typed.write_all(b"x").await.expect("room for one");
        stdio.stdin = Some(Input::new(stdin));
        let request = exec("demo", "cat");
        tokio::select! {
            ran = executor.execute(&request, stdio) => panic!("it would have gone on: {ran:?}"),
            () = scripts.reached.notified() => {}
        }
        scripts.closed.notified().await;
    }
}

#[tokio::test]
async fn a_session_that_is_cancelled_says_so() {
    let scripts = Scripts::new([websocket("v5.channel.k8s.io", b"")]);
    let (mut stdio, ..) = user(b"");
    let (_kept, stdin) = duplex(1);
    stdio.stdin = Some(Input::new(stdin));
    stdio.gone.cancel();
    let error = WebSocketExecutor::new(scripts.dial()).execute(&exec("demo", "cat"), stdio).await;
    assert!(matches!(error, Err(ExecuteError::Session(error)) if error.is_cancelled()));
}
