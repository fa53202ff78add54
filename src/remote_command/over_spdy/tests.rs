use std::{sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    sync::{Mutex, oneshot},
};

use super::*;
use crate::{
    remote_command::{Input, Output, fixtures::LIMITS, over_spdy_client, status::Outcome},
    spdy::{RecvEnd, client, frame::HeaderEncoder},
};

static BOTH: StreamOptions =
    StreamOptions { stdin: true, stdout: true, stderr: true, tty: false, command: Vec::new(), ports: Vec::new() };

static TERMINAL: StreamOptions =
    StreamOptions { stdin: true, stdout: true, stderr: false, tty: true, command: Vec::new(), ports: Vec::new() };

/// Runs a whole session: the server's `run` against our client with `stdin`. Returns both reports and the outputs.
async fn session<F, Fut>(
    version: Version,
    options: &StreamOptions,
    stdin: &[u8],
    run: F,
) -> (Report, Result<Outcome, crate::Error>, Vec<u8>, Vec<u8>)
where
    F: FnOnce(Stdio) -> Fut,
    Fut: Future<Output = Result<Exit, BoxError>>,
{
    let (near, far) = duplex(4096);
    let (mut stdout_read, stdout) = duplex(1 << 22);
    let (mut stderr_read, stderr) = duplex(1 << 22);
    let mut stdio = Stdio::new(CancellationToken::new());
    stdio.stdin = Some(Input::new(std::io::Cursor::new(stdin.to_vec())));
    stdio.stdout = Some(Output::new(stdout));
    stdio.stderr = Some(Output::new(stderr));
    let server = serve(far, version, options, &LIMITS, CancellationToken::new(), run);
    let (report, outcome) = join!(server, over_spdy_client::run(near, version, options, stdio));
    let (mut out, mut err) = (Vec::new(), Vec::new());
    stdout_read.read_to_end(&mut out).await.unwrap();
    stderr_read.read_to_end(&mut err).await.unwrap();
    (report, outcome, out, err)
}

async fn echo(mut stdio: Stdio) -> Result<Exit, BoxError> {
    let (mut stdin, mut stdout) = (stdio.stdin.take().unwrap(), stdio.stdout.take().unwrap());
    let copied = tokio::io::copy(&mut stdin, &mut stdout).await?;
    stdio.stderr.take().unwrap().write_all(copied.to_string().as_bytes()).await?;
    Ok(Exit::Code(42))
}

#[tokio::test]
async fn a_mebibyte_goes_there_and_back_with_the_exit_code_behind_it() {
    let sent: Vec<u8> = (0..1 << 20).map(|i: u32| (i * 7 + i / 251) as u8).collect();
    for version in [Version::V4, Version::V5] {
        let (report, outcome, out, err) = session(version, &BOTH, &sent, echo).await;
        assert_eq!(outcome.unwrap(), Outcome::Exited(Exit::Code(42)));
        assert!(out == sent, "what came back differs");
        assert_eq!(err, b"1048576");
        assert_eq!(
            (report.end, report.bytes.from_client(), report.bytes.to_client()),
            (End::ExitCode(42), 1 << 20, (1 << 20) + 7)
        );
        assert_eq!(report.protocol_in, version.name());
    }
}

#[tokio::test]
async fn before_v4_an_exit_code_is_text_and_success_is_silence() {
    for version in [Version::V2, Version::V3] {
        let (_, outcome, ..) = session(version, &BOTH, b"x", echo).await;
        let Outcome::Failed(text) = outcome.unwrap() else { panic!("a code is a failure") };
        assert!(text.ends_with("exit code 42"), "{text}");
        let (_, outcome, ..) = session(version, &BOTH, b"", async |_| Ok(Exit::Success)).await;
        assert_eq!(outcome.unwrap(), Outcome::Exited(Exit::Success));
    }
    let (_, outcome, ..) = session(Version::V1, &BOTH, b"", async |_| Ok(Exit::Success)).await;
    assert_eq!(outcome.unwrap(), Outcome::Exited(Exit::Success));
}

#[tokio::test]
async fn what_the_runtime_wrote_arrives_though_it_dropped_its_ends_at_once() {
    let (report, outcome, out, _) = session(Version::V4, &BOTH, b"", async |mut stdio: Stdio| {
        stdio.stdout.take().unwrap().write_all(&[7; 50_000]).await?;
        Ok(Exit::Success)
    })
    .await;
    assert_eq!(outcome.unwrap(), Outcome::Exited(Exit::Success));
    assert_eq!((out.len(), report.end), (50_000, End::Success));
}

#[tokio::test]
async fn a_runtime_that_fails_is_an_internal_error_at_the_client() {
    let (report, outcome, ..) = session(Version::V4, &BOTH, b"", async |_| Err("no such program".into())).await;
    assert_eq!(outcome.unwrap(), Outcome::Failed("Internal error occurred: no such program".into()));
    assert_eq!(report.end, End::Error);
}

#[tokio::test]
async fn the_latest_size_of_a_terminal_reaches_the_runtime() {
    let (near, far) = duplex(4096);
    let (size, sizes) = watch::channel(Some(TerminalSize { width: 80, height: 24 }));
    let mut stdio = Stdio::new(CancellationToken::new());
    stdio.resize = Some(sizes);
    let run = async |mut stdio: Stdio| {
        let mut sizes = stdio.resize.take().unwrap();
        sizes.wait_for(|size| *size == Some(TerminalSize { width: 80, height: 24 })).await?;
        size.send_replace(Some(TerminalSize { width: 132, height: 44 }));
        sizes.wait_for(|size| *size == Some(TerminalSize { width: 132, height: 44 })).await?;
        Ok(Exit::Success)
    };
    let server = serve(far, Version::V4, &TERMINAL, &LIMITS, CancellationToken::new(), run);
    let (_, outcome) = join!(server, over_spdy_client::run(near, Version::V4, &TERMINAL, stdio));
    assert_eq!(outcome.unwrap(), Outcome::Exited(Exit::Success));
}

/// A client by hand: its streams are opened one by one.
fn by_hand(version: Version, options: StreamOptions) -> (Handle, Served, oneshot::Receiver<Stdio>) {
    by_hand_within(LIMITS, version, options)
}

fn by_hand_within(
    limits: SessionLimits,
    version: Version,
    options: StreamOptions,
) -> (Handle, Served, oneshot::Receiver<Stdio>) {
    let (near, far) = duplex(4096);
    let (handle, connection) = client(near, Config::new());
    let (ran, stdio) = oneshot::channel();
    let ran = Arc::new(Mutex::new(Some(ran)));
    let drain = CancellationToken::new();
    let server = tokio::spawn({
        let drain = drain.clone();
        async move {
            serve(far, version, &options, &limits, drain, async |stdio: Stdio| {
                let gone = stdio.gone.clone();
                let _ = ran.lock().await.take().unwrap().send(stdio);
                gone.cancelled().await;
                Ok(Exit::Success)
            })
            .await
        }
    });
    (handle, Served { server, connection: tokio::spawn(connection), drain }, stdio)
}

struct Served {
    server: tokio::task::JoinHandle<Report>,
    connection: tokio::task::JoinHandle<Result<(), spdy::Error>>,
    drain: CancellationToken,
}

async fn open(handle: &Handle, name: &str) -> Result<spdy::Stream, spdy::Error> {
    handle.open(&[("streamType", name)]).await
}

#[tokio::test]
async fn a_stream_twice_or_of_another_kind_is_refused_and_the_session_goes_on() {
    let (handle, served, stdio) = by_hand(Version::V4, StreamOptions { stdout: true, ..StreamOptions::default() });
    assert!(open(&handle, "stdin").await.is_err(), "it was not asked for");
    let _error = open(&handle, "error").await.unwrap();
    assert_eq!(open(&handle, "error").await.unwrap_err().reset_code(), Some(ResetCode::REFUSED_STREAM));
    assert!(open(&handle, "nonsense").await.is_err());
    let _stdout = open(&handle, "stdout").await.unwrap();
    stdio.await.expect("the session has begun");
    assert!(open(&handle, "stdout").await.is_err(), "streams are complete");
    handle.close();
    assert_eq!(served.server.await.unwrap().end, End::ClientGone);
    let _ = served.connection.await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_create_its_streams_is_told_so() {
    let (handle, served, _stdio) = by_hand(Version::V4, BOTH.clone());
    let mut error = open(&handle, "error").await.unwrap();
    let mut status = String::new();
    error.read_to_string(&mut status).await.unwrap();
    assert!(status.contains("timed out waiting for the client to create streams"), "{status}");
    assert_eq!(error.ended(), Some(RecvEnd::Fin));
    let report = served.server.await.unwrap();
    assert_eq!(report.end, End::Error);
}

#[tokio::test]
async fn stdin_of_a_lost_or_resetting_client_fails_rather_than_ends() {
    for reset in [true, false] {
        let (handle, served, stdio) = by_hand(Version::V4, StreamOptions { stdin: true, ..StreamOptions::default() });
        let _error = open(&handle, "error").await.unwrap();
        let mut stdin = open(&handle, "stdin").await.unwrap();
        stdin.write_all(b"half a l").await.unwrap();
        let mut stdio = stdio.await.unwrap();
        let mut got = [0; 8];
        let mut input = stdio.stdin.take().unwrap();
        input.read_exact(&mut got).await.unwrap();
        if reset {
            stdin.reset(ResetCode::CANCEL);
        } else {
            served.connection.abort();
        }
        assert!(input.read(&mut got).await.is_err(), "the input was not over");
        handle.close();
        assert_eq!(served.server.await.unwrap().end, End::ClientGone);
    }
}

#[tokio::test]
async fn a_command_that_ends_because_its_client_does_is_no_other_cause() {
    for (closes, cause) in [(true, Cause::ClientClosed), (false, Cause::ClientLost)] {
        let (near, far) = duplex(4096);
        let (handle, connection) = client(near, Config::new());
        let options = StreamOptions { stdin: true, ..StreamOptions::default() };
        let server = tokio::spawn(async move {
            serve(far, Version::V4, &options, &LIMITS, CancellationToken::new(), async |mut stdio: Stdio| {
                let _ = stdio.stdin.take().unwrap().read(&mut [0]).await;
                Ok(Exit::Success)
            })
            .await
        });
        let connection = tokio::spawn(connection);
        let _streams = (open(&handle, "error").await.unwrap(), open(&handle, "stdin").await.unwrap());
        if closes {
            handle.close();
        } else {
            connection.abort();
        }
        let report = server.await.unwrap();
        assert_eq!((report.end, report.cause), (End::ClientGone, cause));
    }
}

#[tokio::test]
async fn a_drain_ends_the_session_with_a_failure_that_says_why() {
    let (handle, served, stdio) = by_hand(Version::V4, StreamOptions { stdout: true, ..StreamOptions::default() });
    let mut error = open(&handle, "error").await.unwrap();
    let _stdout = open(&handle, "stdout").await.unwrap();
    stdio.await.unwrap();
    served.drain.cancel();
    let mut status = String::new();
    error.read_to_string(&mut status).await.unwrap();
    assert!(status.contains("the server is shutting down"), "{status}");
    assert_eq!(served.server.await.unwrap().end, End::Error);
}

#[tokio::test(start_paused = true)]
async fn a_session_without_payload_ends_after_four_hours_whatever_is_pinged() {
    let (handle, served, stdio) = by_hand(Version::V4, StreamOptions { stdout: true, ..StreamOptions::default() });
    let mut error = open(&handle, "error").await.unwrap();
    let _stdout = open(&handle, "stdout").await.unwrap();
    stdio.await.unwrap();
    let started = tokio::time::Instant::now();
    let mut status = String::new();
    error.read_to_string(&mut status).await.unwrap();
    assert!(status.contains("too long"), "{status}");
    let hours = started.elapsed().as_secs_f64() / 3600.0;
    assert!((4.0..4.1).contains(&hours), "{hours}");
    served.server.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_session_is_idle_when_the_limit_says_and_never_without_one() {
    for (limit, idle) in [(20, 20..=40), (150, 150..=240)] {
        let limits = LIMITS.idle(Duration::from_secs(limit));
        let options = StreamOptions { stdout: true, ..StreamOptions::default() };
        let (handle, served, stdio) = by_hand_within(limits, Version::V4, options);
        let mut error = open(&handle, "error").await.unwrap();
        let mut stdout = open(&handle, "stdout").await.unwrap();
        let mut stdio = stdio.await.unwrap();
        // Payload puts it off.
        tokio::time::sleep(Duration::from_secs(limit - 1)).await;
        stdio.stdout.as_mut().unwrap().write_all(b"x").await.unwrap();
        let moved = tokio::time::Instant::now();
        stdout.read_exact(&mut [0]).await.unwrap();
        let mut status = String::new();
        error.read_to_string(&mut status).await.unwrap();
        assert!(status.contains("nothing was sent"), "{status}");
        assert!(idle.contains(&moved.elapsed().as_secs()), "{:?}", moved.elapsed());
        served.server.await.unwrap();
    }

    let options = StreamOptions { stdout: true, ..StreamOptions::default() };
    let (handle, served, stdio) = by_hand_within(LIMITS.idle(Duration::ZERO), Version::V4, options);
    let _error = open(&handle, "error").await.unwrap();
    let _stdout = open(&handle, "stdout").await.unwrap();
    let _stdio = stdio.await.unwrap();
    tokio::time::sleep(Duration::from_secs(24 * 3600)).await;
    assert!(!served.server.is_finished());
}

#[tokio::test(start_paused = true)]
async fn streams_are_waited_for_as_long_as_the_limit_says() {
    let limits = LIMITS.creation(Duration::from_secs(7));
    let (handle, served, _stdio) = by_hand_within(limits, Version::V4, BOTH.clone());
    let before = tokio::time::Instant::now();
    let mut error = open(&handle, "error").await.unwrap();
    error.read_to_string(&mut String::new()).await.unwrap();
    assert_eq!(before.elapsed().as_secs(), 7);
    served.server.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_silent_client_is_asked_and_given_up_when_the_limits_say() {
    let (mut near, far) = duplex(4096);
    let limits = LIMITS.ping_after(Duration::from_secs(7)).dead_after(Duration::from_secs(16));
    let options = StreamOptions { stdout: true, ..StreamOptions::default() };
    let server = tokio::spawn(async move {
        let run = async |stdio: Stdio| {
            stdio.gone.cancelled().await;
            Ok(Exit::Success)
        };
        serve(far, Version::V4, &options, &limits, CancellationToken::new(), run).await
    });
    let mut created = Vec::new();
    let mut headers = HeaderEncoder::new();
    for (id, name) in [(1, "error"), (3, "stdout")] {
        headers.syn_stream(spdy::StreamId::new(id).unwrap(), &[("streamtype", name)], false, &mut created);
    }
    near.write_all(&created).await.unwrap();
    let before = tokio::time::Instant::now();
    assert_eq!(server.await.unwrap().end, End::ClientGone);
    assert_eq!(before.elapsed().as_secs(), 16);
    let mut heard = Vec::new();
    near.read_to_end(&mut heard).await.unwrap();
    let pings = heard.windows(4).filter(|word| *word == [0x80, 3, 0, 6]).count();
    assert_eq!(pings, 2);
}

#[tokio::test]
async fn a_client_that_reads_late_loses_nothing_and_has_its_status_last() {
    let (near, far) = duplex(4096);
    let (go, wait) = oneshot::channel::<()>();
    let (slow_read, slow) = duplex(64);
    let mut stdio = Stdio::new(CancellationToken::new());
    stdio.stdout = Some(Output::new(slow));
    let options = StreamOptions { stdout: true, ..StreamOptions::default() };
    let run = async |mut stdio: Stdio| {
        let mut stdout = stdio.stdout.take().unwrap();
        for _ in 0..100 {
            stdout.write_all(&[1; 10_000]).await?;
        }
        Ok(Exit::Code(3))
    };
    let reader = async |mut from: DuplexStream| {
        wait.await.unwrap();
        let mut got = Vec::new();
        from.read_to_end(&mut got).await.unwrap();
        got.len()
    };
    let released = async {
        tokio::time::timeout(Duration::from_millis(50), pending::<()>()).await.unwrap_err();
        go.send(()).unwrap();
    };
    let (report, outcome, got, ()) = join!(
        serve(far, Version::V4, &options, &LIMITS, CancellationToken::new(), run),
        over_spdy_client::run(near, Version::V4, &options, stdio),
        reader(slow_read),
        released,
    );
    assert_eq!(got, 1_000_000);
    assert_eq!(outcome.unwrap(), Outcome::Exited(Exit::Code(3)));
    assert_eq!(report.end, End::ExitCode(3));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_take_what_is_left_has_as_long_as_a_quiet_session() {
    let (near, far) = duplex(4096);
    let (handle, mut connection) = client(near, Config::new());
    let limits = LIMITS.idle(Duration::from_secs(600)).dead_after(Duration::MAX);
    let options = StreamOptions { stdout: true, ..StreamOptions::default() };
    let (write, ready) = oneshot::channel::<()>();
    let server = tokio::spawn(async move {
        serve(far, Version::V4, &options, &limits, CancellationToken::new(), async |mut stdio: Stdio| {
            let _ = ready.await;
            // It fits into what a stream takes, so the command ends.
            stdio.stdout.take().unwrap().write_all(&[b'x'; 20_000]).await?;
            Ok(Exit::Success)
        })
        .await
    });
    let streams = async { (open(&handle, "error").await.unwrap(), open(&handle, "stdout").await.unwrap()) };
    let _streams = tokio::select! {
        streams = streams => streams,
        _ = &mut connection => unreachable!("nobody closes it"),
    };
    // From here on the client neither reads nor writes.
    write.send(()).unwrap();
    let begun = tokio::time::Instant::now();
    let report = server.await.unwrap();
    assert_eq!((report.end, report.cause), (End::ClientGone, Cause::ClientSilent));
    assert!((600..800).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
    drop(connection);
}
