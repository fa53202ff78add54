//! The client's executors: against our own stacks in every setting of the gates, and against servers that refuse.

#[path = "client/commands.rs"]
mod commands;
#[path = "client/endings.rs"]
mod endings;
#[path = "client/fallback.rs"]
mod fallback;
#[path = "client/refusals.rs"]
mod refusals;
#[path = "client/scripts.rs"]
mod scripts;

use std::sync::atomic::Ordering;

use http::{StatusCode, Uri};
use tokio::{
    io::{AsyncReadExt, duplex},
    sync::watch,
};
use tower_kube_streaming::{
    client::{Carrier, ExecRequest, Execute, ExecuteError, FallbackExecutor, SpdyExecutor, WebSocketExecutor},
    remote_command::{Exit, Output, TerminalSize, Version, over_websocket::WsProtocol},
    upgrade::StreamOptions,
};

use self::commands::{BOTH, Commands, EXTEND, NONE, TRANSLATE, api_server, exec, exec_at_kubelet, kubelet, user};

/// Runs `cat` over a megabyte; how it was carried.
async fn cat(executor: &impl Execute, request: &ExecRequest) -> Result<Carrier, ExecuteError> {
    let megabyte: Vec<u8> = (0..1 << 20).map(|at: u32| (at / 999) as u8).collect();
    let opened = executor.open(request).await?;
    let carrier = opened.carrier();
    let (stdio, stdout, stderr) = user(&megabyte);
    assert_eq!(opened.run(stdio).await?, Exit::Code(7));
    assert!(stdout.bytes() == megabyte, "{} bytes of stdout", stdout.bytes().len());
    assert_eq!(stderr.bytes(), b"done");
    Ok(carrier)
}

#[tokio::test]
async fn a_command_runs_once_whatever_the_gates_say_over_websocket_where_that_is_spoken() {
    for (api, kubelet, v5, carrier) in [
        (TRANSLATE, NONE, false, Carrier::WebSocket),
        (BOTH, EXTEND, false, Carrier::WebSocket),
        (BOTH, NONE, false, Carrier::WebSocket),
        (NONE, EXTEND, false, Carrier::WebSocket),
        (NONE, NONE, true, Carrier::WebSocket),
        (NONE, NONE, false, Carrier::Spdy),
    ] {
        let setting = format!("{api:?} {kubelet:?} {v5}");
        let commands = Commands::default();
        let server = commands.clone();
        let dial = move |_: Uri| std::future::ready(Ok(api_server(&server, api, kubelet, v5)));
        let request = exec("demo", "cat");
        let fallback = FallbackExecutor::new(dial.clone());
        for _ in 0..2 {
            assert_eq!(cat(&fallback, &request).await.expect(&setting), carrier, "{setting}");
        }
        assert_eq!(commands.0.swap(0, Ordering::Relaxed), 2, "{setting}");
        assert_eq!(cat(&SpdyExecutor::new(dial.clone()), &request).await.expect(&setting), Carrier::Spdy);
        let websocket = cat(&WebSocketExecutor::new(dial), &request).await;
        match carrier {
            Carrier::WebSocket => assert_eq!(websocket.expect(&setting), carrier),
            _ => {
                let error = websocket.expect_err(&setting);
                assert_eq!(error.rejection().map(|rejection| rejection.code()), Some(StatusCode::FORBIDDEN));
                assert_eq!(commands.0.load(Ordering::Relaxed), 1, "refused before anything ran");
            }
        }
    }
}

#[tokio::test]
async fn a_kubelet_is_asked_directly_in_every_version() {
    let commands = Commands::default();
    for (on, carrier) in [(EXTEND, Carrier::WebSocket), (NONE, Carrier::Spdy)] {
        let server = commands.clone();
        let dial = move |_: Uri| std::future::ready(Ok(kubelet(&server, on, false)));
        assert_eq!(cat(&FallbackExecutor::new(dial), &exec_at_kubelet("cat")).await.expect("runs"), carrier);
    }
    let server = commands.clone();
    let dial = move |_: Uri| std::future::ready(Ok(kubelet(&server, NONE, false)));
    for version in [Version::V4, Version::V3, Version::V2] {
        let opened = SpdyExecutor::new(dial.clone()).versions([version]).open(&exec_at_kubelet("cat")).await;
        let opened = opened.expect("a version it speaks");
        assert_eq!(opened.protocol(), version.name());
        let (stdio, stdout, _) = user(b"x");
        let exit = opened.run(stdio).await;
        assert_eq!(stdout.bytes(), b"x");
        // Before v4 an exit code is a sentence.
        match version {
            Version::V4 => assert_eq!(exit.expect("a status"), Exit::Code(7)),
            _ => assert!(matches!(&exit, Err(ExecuteError::Failed(why)) if why.ends_with("exit code 7")), "{exit:?}"),
        }
    }
    let opened = WebSocketExecutor::new(dial).protocols([WsProtocol::V5, WsProtocol::Base64V4]);
    let opened = opened.open(&exec_at_kubelet("true")).await.expect("v4");
    assert_eq!(opened.protocol(), "v4.base64.channel.k8s.io");
    assert_eq!(opened.run(user(b"").0).await.expect("a status"), Exit::Success);
}

#[tokio::test]
async fn sizes_of_the_terminal_arrive_and_there_is_no_stderr() {
    let commands = Commands::default();
    let dial = move |_: Uri| std::future::ready(Ok(api_server(&commands, TRANSLATE, NONE, false)));
    let url = "http://api/api/v1/namespaces/ns/pods/demo/exec?container=c&command=size&stdout=1&tty=1";
    let options = StreamOptions { stdout: true, stderr: true, tty: true, ..StreamOptions::default() };
    let request = ExecRequest::new(url, options).expect("a URL");
    for carrier in [Carrier::WebSocket, Carrier::Spdy] {
        let opened = match carrier {
            Carrier::WebSocket => WebSocketExecutor::new(dial.clone()).open(&request).await,
            _ => SpdyExecutor::new(dial.clone()).open(&request).await,
        };
        let (tell, sizes) = watch::channel(Some(TerminalSize { width: 80, height: 24 }));
        let (mut stdio, ..) = user(b"not asked for");
        let (stdout, mut said) = duplex(64);
        stdio.stdout = Some(Output::new(stdout));
        stdio.resize = Some(sizes);
        let user = async {
            let mut first = [0; 6];
            said.read_exact(&mut first).await.expect("the first size");
            tell.send_replace(Some(TerminalSize { width: 132, height: 44 }));
            let mut rest = String::new();
            // The second size may be the last word.
            while !rest.ends_with(' ') {
                rest.push(char::from(said.read_u8().await.expect("the second size")));
            }
            tell.send_replace(Some(TerminalSize { width: 1, height: 1 }));
            (String::from_utf8_lossy(&first).into_owned(), rest)
        };
        let (exit, said) = tokio::join!(opened.expect("opened").run(stdio), user);
        assert_eq!(exit.expect("a status"), Exit::Success, "{carrier}");
        assert_eq!(said, ("80x24 ".to_owned(), "132x44 ".to_owned()), "{carrier}");
    }
}

#[tokio::test]
async fn a_command_that_cannot_be_run_is_an_error_in_the_servers_words() {
    let commands = Commands::default();
    let dial = move |_: Uri| std::future::ready(Ok(api_server(&commands, TRANSLATE, NONE, false)));
    let (websocket, spdy) = (WebSocketExecutor::new(dial.clone()), SpdyExecutor::new(dial));
    let request = exec("demo", "nosuch");
    for failed in [websocket.execute(&request, user(b"").0).await, spdy.execute(&request, user(b"").0).await] {
        let failed = failed.expect_err("not found");
        assert!(matches!(failed, ExecuteError::Failed(_)), "{failed:?}");
        assert!(failed.to_string().ends_with("executable file not found in $PATH"), "{failed}");
    }
}
