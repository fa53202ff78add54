#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::{future::Future, sync::Arc, time::Duration};

use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions, pidfd_open, waitid};
use sha2::{Digest, Sha256};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, DuplexStream, duplex},
    sync::watch,
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    remote_command::{Input, Output, TerminalSize},
    upgrade::Dialect,
};

/// A test that hangs fails here.
const LIMIT: Duration = Duration::from_secs(60);

async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(LIMIT, future).await.expect("does not hang")
}

fn target(subresource: Subresource, container: Option<&str>, options: StreamOptions) -> Target {
    Target {
        subresource,
        namespace: "default".into(),
        pod: "demo".into(),
        uid: None,
        container: container.map(Into::into),
        options,
        dialect: Dialect::Kubelet,
    }
}

fn main_of(command: &[&str], tty: bool) -> Main {
    Main { command: command.iter().map(|part| (*part).to_owned()).collect(), tty, stdin: true }
}

fn runtime() -> ProcessRuntime {
    ProcessRuntime::new().container("default", "demo", "shell", Main::default())
}

fn all() -> StreamOptions {
    StreamOptions { stdin: true, stdout: true, stderr: true, ..StreamOptions::default() }
}

fn script(script: &str) -> Target {
    let command = vec!["sh".into(), "-c".into(), script.into()];
    target(Subresource::Exec, None, StreamOptions { command, ..all() })
}

fn on_terminal(mut target: Target) -> Target {
    target.options.tty = true;
    target.options.stderr = false;
    target
}

/// A client's ends of a running session.
struct Client {
    stdin: Option<DuplexStream>,
    stdout: BufReader<DuplexStream>,
    stderr: BufReader<DuplexStream>,
    size: watch::Sender<Option<TerminalSize>>,
    gone: CancellationToken,
    session: JoinHandle<Result<Exit, BoxError>>,
}

async fn start(runtime: &ProcessRuntime, target: &Target) -> Client {
    start_sized(runtime, target, None).await
}

async fn start_sized(runtime: &ProcessRuntime, target: &Target, size: Option<(u16, u16)>) -> Client {
    let session = runtime.open(target).await.expect("opens");
    let options = &target.options;
    let (stdin, input) = duplex(CAPACITY);
    let (stdout, output) = duplex(CAPACITY);
    let (stderr, errors) = duplex(CAPACITY);
    let (size, sizes) = watch::channel(size.map(cells));
    let gone = CancellationToken::new();
    let mut stdio = Stdio::new(gone.clone());
    stdio.stdin = options.stdin.then(|| Input::new(input));
    stdio.stdout = options.stdout.then(|| Output::new(output));
    stdio.stderr = options.stderr.then(|| Output::new(errors));
    stdio.resize = options.tty.then_some(sizes);
    let session = tokio::spawn(session.run(stdio));
    let (stdout, stderr) = (BufReader::new(stdout), BufReader::new(stderr));
    Client { stdin: Some(stdin), stdout, stderr, size, gone, session }
}

const CAPACITY: usize = 4096;

fn cells((width, height): (u16, u16)) -> TerminalSize {
    TerminalSize { width, height }
}

impl Client {
    async fn type_in(&mut self, text: &str) {
        let stdin = self.stdin.as_mut().expect("not ended");
        within(stdin.write_all(text.as_bytes())).await.unwrap();
    }

    /// The next line of the output, without its end.
    async fn line(&mut self) -> String {
        let mut line = String::new();
        within(self.stdout.read_line(&mut line)).await.unwrap();
        line.trim_end().to_owned()
    }

    async fn pid(&mut self) -> Pid {
        Pid::from_raw(self.line().await.parse().expect("a pid")).unwrap()
    }

    /// All that is left of both outputs, and the end.
    async fn finish(self) -> (String, String, Result<Exit, String>) {
        let Self { mut stdout, mut stderr, session, stdin, .. } = self;
        let (mut out, mut err) = (String::new(), String::new());
        let (o, e) =
            within(async { tokio::join!(stdout.read_to_string(&mut out), stderr.read_to_string(&mut err)) }).await;
        o.unwrap();
        e.unwrap();
        let exit = within(session).await.unwrap().map_err(|error| error.to_string());
        drop(stdin);
        (out, err, exit)
    }
}

/// Waits until the process has ended, whosever child it is.
async fn ended(pid: Pid) {
    if let Ok(fd) = pidfd_open(pid, PidfdFlags::empty()) {
        let _ready = within(group::registered(fd).unwrap().readable()).await.unwrap();
    }
}

/// Waits until a child of ours is no zombie either.
async fn reaped(pid: Pid) {
    ended(pid).await;
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    within(async {
        while waitid(WaitId::Pid(pid), options).is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

fn runs(pid: Pid) -> bool {
    rustix::process::test_kill_process(pid).is_ok()
}

mod opening {
    use super::*;

    async fn refused(runtime: &ProcessRuntime, target: &Target) -> (u16, String) {
        let refusal = runtime.open(target).await.expect_err("is refused");
        (refusal.code().as_u16(), refusal.message().to_owned())
    }

    #[tokio::test]
    async fn an_unknown_pod_and_an_unknown_container_are_refused_in_upstreams_words() {
        let mut elsewhere = script("true");
        elsewhere.namespace = "kube-system".into();
        assert_eq!(refused(&runtime(), &elsewhere).await, (404, "pod does not exist".into()));

        let exec = Target { container: Some("zz".into()), ..script("true") };
        assert_eq!(refused(&runtime(), &exec).await, (500, "container not found (\"zz\")".into()));

        let attach = target(Subresource::Attach, Some("zz"), all());
        assert_eq!(refused(&runtime(), &attach).await, (500, "container zz not found in pod demo_default".into()));
    }

    #[tokio::test]
    async fn a_request_without_streams_or_command_is_refused() {
        let silent = StreamOptions { command: vec!["true".into()], ..StreamOptions::default() };
        let silent = target(Subresource::Exec, None, silent);
        let expected = "you must specify at least 1 of stdin, stdout, stderr";
        assert_eq!(refused(&runtime(), &silent).await, (400, expected.into()));
        for command in [vec![], vec![String::new()], vec!["a\0b".to_owned()]] {
            let asked = target(Subresource::Exec, None, StreamOptions { command, ..all() });
            assert_eq!(refused(&runtime(), &asked).await.0, 400);
        }
        assert_eq!(refused(&runtime(), &target(Subresource::PortForward, None, all())).await.0, 400);
    }

    #[tokio::test]
    async fn an_attach_that_is_wrong_about_the_terminal_is_refused() {
        let runtime = ProcessRuntime::new()
            .container("default", "demo", "shell", main_of(&["sh"], true))
            .container("default", "demo", "plain", main_of(&["cat"], false))
            .container("default", "demo", "none", Main::default());
        let plain = target(Subresource::Attach, None, all());
        assert_eq!(refused(&runtime, &plain).await.0, 400);
        let tty = on_terminal(target(Subresource::Attach, Some("plain"), all()));
        assert_eq!(refused(&runtime, &tty).await.0, 400);
        assert_eq!(refused(&runtime, &target(Subresource::Attach, Some("none"), all())).await.0, 400);
        assert!(runtime.open(&on_terminal(plain)).await.is_ok());
    }

    #[tokio::test]
    async fn opening_does_not_start_the_command() {
        let file = std::env::temp_dir().join(format!("opened-{}", std::process::id()));
        let session = runtime().open(&script(&format!("touch {}", file.display()))).await.unwrap();
        drop(session);
        assert!(!file.exists());
    }
}

mod exec {
    use super::*;

    #[tokio::test]
    async fn exit_codes_and_signals_are_told() {
        for (command, expected) in [
            ("exit 0", Exit::Success),
            ("exit 1", Exit::Code(1)),
            ("exit 7", Exit::Code(7)),
            ("exit 255", Exit::Code(255)),
            ("kill -9 $$", Exit::Code(137)),
            ("kill -TERM $$", Exit::Code(143)),
        ] {
            let (.., exit) = start(&runtime(), &script(command)).await.finish().await;
            assert_eq!(exit, Ok(expected.clone()), "{command}");
            let (.., exit) = start(&runtime(), &on_terminal(script(command))).await.finish().await;
            assert_eq!(exit, Ok(expected), "{command} on a terminal");
        }
    }

    #[tokio::test]
    async fn output_and_errors_are_kept_apart() {
        let client = start(&runtime(), &script("echo out; echo err >&2; echo $HOSTNAME; exit 3")).await;
        assert_eq!(client.finish().await, ("out\ndemo\n".into(), "err\n".into(), Ok(Exit::Code(3))));
    }

    #[tokio::test]
    async fn streams_that_were_not_asked_for_lead_nowhere() {
        let mut asked = script("cat; echo out; echo err >&2");
        asked.options.stdin = false;
        asked.options.stdout = false;
        assert_eq!(start(&runtime(), &asked).await.finish().await, (String::new(), "err\n".into(), Ok(Exit::Success)));
    }

    #[tokio::test]
    async fn the_end_of_input_ends_cat() {
        let mut client = start(&runtime(), &script("cat; echo done")).await;
        client.type_in("typed\n").await;
        assert_eq!(client.line().await, "typed");
        client.stdin = None;
        assert_eq!(client.finish().await, ("done\n".into(), String::new(), Ok(Exit::Success)));
    }

    #[tokio::test]
    async fn lost_input_is_not_an_end() {
        struct Lost;
        impl tokio::io::AsyncRead for Lost {
            fn poll_read(
                self: std::pin::Pin<&mut Self>,
                _: &mut std::task::Context<'_>,
                _: &mut tokio::io::ReadBuf<'_>,
            ) -> std::task::Poll<std::io::Result<()>> {
                std::task::Poll::Ready(Err(std::io::ErrorKind::ConnectionReset.into()))
            }
        }
        let gone = CancellationToken::new();
        let (stdout, output) = duplex(CAPACITY);
        let mut stdio = Stdio::new(gone.clone());
        stdio.stdin = Some(Input::new(Lost));
        stdio.stdout = Some(Output::new(output));
        let session = runtime().open(&script("echo begun; cat; echo false end")).await.unwrap();
        let session = tokio::spawn(session.run(stdio));
        let mut lines = BufReader::new(stdout).lines();
        assert_eq!(within(lines.next_line()).await.unwrap().as_deref(), Some("begun"));
        gone.cancel();
        assert_eq!(within(lines.next_line()).await.unwrap(), None);
        assert_eq!(within(session).await.unwrap().unwrap(), Exit::Code(137));
    }

    #[tokio::test]
    async fn a_process_that_closes_its_input_goes_on_and_the_rest_is_thrown_away() {
        let mut client = start(&runtime(), &script("exec <&-; echo closed; sleep 1000")).await;
        assert_eq!(client.line().await, "closed");
        for _ in 0..200 {
            client.type_in(&"x".repeat(1024)).await;
        }
        assert!(!client.session.is_finished());
        client.gone.cancel();
        assert_eq!(client.finish().await.2, Ok(Exit::Code(137)));
    }

    #[tokio::test]
    async fn much_data_passes_through_cat_unchanged() {
        const CHUNKS: usize = 64 * 16;
        let mut client = start(&runtime(), &script("cat")).await;
        let mut stdin = client.stdin.take().unwrap();
        let writer = tokio::spawn(async move {
            let mut chunk = vec![0_u8; 64 * 1024];
            let (mut hash, mut state) = (Sha256::new(), 1_u32);
            for _ in 0..CHUNKS {
                for byte in &mut chunk {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    *byte = (state >> 24) as u8;
                }
                hash.update(&chunk);
                stdin.write_all(&chunk).await.unwrap();
            }
            hash.finalize()
        });
        let (mut hash, mut read, mut buffer) = (Sha256::new(), 0, vec![0; 64 * 1024]);
        loop {
            let n = within(client.stdout.read(&mut buffer)).await.unwrap();
            if n == 0 {
                break;
            }
            hash.update(&buffer[..n]);
            read += n;
        }
        assert_eq!(read, CHUNKS * 64 * 1024);
        assert_eq!(hash.finalize(), writer.await.unwrap());
        assert_eq!(client.finish().await.2, Ok(Exit::Success));
    }

    #[tokio::test]
    async fn output_before_an_immediate_exit_is_complete() {
        for _ in 0..20 {
            let client = start(&runtime(), &script("head -c 2000000 /dev/zero | tr '\\0' x; exit 5")).await;
            let (out, _, exit) = client.finish().await;
            assert_eq!((out.len(), exit), (2_000_000, Ok(Exit::Code(5))));
            let client = start(&runtime(), &on_terminal(script("head -c 200000 /dev/zero | tr '\\0' x; exit 5"))).await;
            let (out, _, exit) = client.finish().await;
            assert_eq!((out.len(), exit), (200_000, Ok(Exit::Code(5))), "on a terminal");
        }
    }

    #[tokio::test]
    async fn a_reader_that_stalls_stops_the_process_and_loses_nothing() {
        // More than 4 KiB of ours, 32 KiB on the way and 64 KiB of the kernel's: `blocked` is never reached.
        let mut client = start(&runtime(), &script("head -c 400000 /dev/zero; echo blocked >&2; exit 4")).await;
        let mut first = [0];
        within(client.stdout.read_exact(&mut first)).await.unwrap();
        client.type_in(&"x".repeat(CAPACITY)).await;
        let mut stderr = String::new();
        tokio::select! {
            biased;
            _ = client.stderr.read_line(&mut stderr) => panic!("400,000 bytes went somewhere"),
            () = async { for _ in 0..10_000 { tokio::task::yield_now().await } } => {}
        }
        let (out, err, exit) = client.finish().await;
        assert_eq!((out.len(), err.as_str(), exit), (399_999, "blocked\n", Ok(Exit::Code(4))));
    }

    #[tokio::test]
    async fn a_stream_taken_no_more_is_a_broken_pipe_for_the_process() {
        let mut client = start(&runtime(), &script("yes; echo ended >&2")).await;
        assert_eq!(client.line().await, "y");
        client.stdout = BufReader::new(duplex(1).0);
        let mut line = String::new();
        within(client.stderr.read_line(&mut line)).await.unwrap();
        assert!(line.contains("ended") || line.contains("Broken pipe"), "{line}");
    }

    #[tokio::test]
    async fn programs_that_cannot_be_run_are_told_in_containerds_words() {
        for (program, expected) in [
            ("nosuch", "exec: \"nosuch\": executable file not found in $PATH"),
            ("/nosuch", "exec: \"/nosuch\": stat /nosuch: no such file or directory"),
            ("/etc/passwd", "exec: \"/etc/passwd\": permission denied"),
        ] {
            let asked = target(Subresource::Exec, None, StreamOptions { command: vec![program.into()], ..all() });
            assert_eq!(start(&runtime(), &asked).await.finish().await.2, Err(expected.into()));
            assert_eq!(start(&runtime(), &on_terminal(asked)).await.finish().await.2, Err(expected.into()));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_background_job_that_keeps_the_pipe_does_not_keep_the_session() {
        // No limit on the waits here: with the time paused, theirs would be the next timer to fire.
        let mut client = start(&runtime(), &script("sleep 1000 & echo $!; exit 6")).await;
        let mut line = String::new();
        client.stdout.read_line(&mut line).await.unwrap();
        let job = Pid::from_raw(line.trim().parse().unwrap()).unwrap();
        let began = tokio::time::Instant::now();
        assert_eq!(client.session.await.unwrap().unwrap(), Exit::Code(6));
        assert_eq!(began.elapsed().as_secs(), copy::QUIET.as_secs());
        assert!(runs(job), "as in a container, it lives on");
        rustix::process::kill_process(job, rustix::process::Signal::KILL).unwrap();
    }

    #[tokio::test]
    async fn a_client_that_goes_takes_the_whole_group_along() {
        for asked in [script(GROUP), on_terminal(script(GROUP))] {
            let mut client = start(&runtime(), &asked).await;
            let (child, leader) = (client.pid().await, client.pid().await);
            assert!(runs(child) && runs(leader));
            client.gone.cancel();
            let (.., exit) = client.finish().await;
            assert!(matches!(exit, Ok(Exit::Code(137 | 129))), "{exit:?}");
            ended(child).await;
            reaped(leader).await;
        }
    }

    #[tokio::test]
    async fn a_client_that_goes_while_its_output_is_stalled_ends_the_session() {
        let mut client = start(&runtime(), &script("echo $$; exec yes")).await;
        let leader = client.pid().await;
        client.gone.cancel();
        assert_eq!(within(client.session).await.unwrap().unwrap(), Exit::Code(137));
        reaped(leader).await;
    }

    #[tokio::test]
    async fn a_dropped_session_leaves_no_process() {
        for asked in [script(GROUP), on_terminal(script(GROUP))] {
            let mut client = start(&runtime(), &asked).await;
            let (child, leader) = (client.pid().await, client.pid().await);
            client.session.abort();
            assert!(within(client.session).await.unwrap_err().is_cancelled());
            ended(child).await;
            reaped(leader).await;
        }
    }

    #[tokio::test]
    async fn a_process_whose_client_went_never_takes_its_input_for_complete() {
        let file = std::env::temp_dir().join(format!("complete-{}", std::process::id()));
        for abort in [false, true].repeat(50) {
            let asked = script(&format!("echo $$; while read line; do :; done; : >{}", file.display()));
            let mut client = start(&runtime(), &asked).await;
            let leader = client.pid().await;
            if abort {
                client.session.abort();
                assert!(within(client.session).await.is_err());
            } else {
                client.gone.cancel();
                assert_eq!(within(client.session).await.unwrap().unwrap(), Exit::Code(137));
            }
            reaped(leader).await;
            assert!(!file.exists(), "aborted: {abort}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_reader_still_gets_all_long_after_the_end() {
        // No limit on the waits here either.
        let mut client = start(&runtime(), &script("echo $$ >&2; head -c 60000 /dev/zero; exit 3")).await;
        let mut line = String::new();
        client.stderr.read_line(&mut line).await.unwrap();
        let leader = Pid::from_raw(line.trim().parse().unwrap()).unwrap();
        if let Ok(fd) = pidfd_open(leader, PidfdFlags::empty()) {
            let _ready = group::registered(fd).unwrap().readable().await.unwrap();
        }
        tokio::time::sleep(copy::QUIET * 10).await;
        let mut out = Vec::new();
        client.stdout.read_to_end(&mut out).await.unwrap();
        assert_eq!((out.len(), client.session.await.unwrap().unwrap()), (60_000, Exit::Code(3)));
    }

    #[tokio::test]
    async fn a_client_that_is_gone_already_starts_nothing() {
        let stdio = Stdio::new(CancellationToken::new());
        stdio.gone.cancel();
        let session = runtime().open(&script("exit 0")).await.unwrap();
        assert!(session.run(stdio).await.is_err());
    }

    /// Prints the pid of a child and its own, and stays.
    const GROUP: &str = "sleep 1000 & echo $!; echo $$; wait";
}

mod terminal {
    use super::*;

    #[tokio::test]
    async fn the_size_told_before_the_start_is_there_from_the_start() {
        let asked = on_terminal(script("stty size; echo $TERM; test -t 0 && test -t 1 && test -t 2"));
        let client = start_sized(&runtime(), &asked, Some((101, 33))).await;
        assert_eq!(client.finish().await, ("33 101\r\nxterm\r\n".into(), String::new(), Ok(Exit::Success)));
    }

    #[tokio::test]
    async fn a_new_size_is_a_signal_and_a_size_of_zero_is_nothing() {
        let asked = on_terminal(script("trap 'stty size; exit 9' WINCH; echo ready; while :; do read line; done"));
        let mut client = start_sized(&runtime(), &asked, Some((101, 33))).await;
        assert_eq!(client.line().await, "ready");
        client.size.send_replace(Some(cells((0, 10))));
        client.type_in("\n").await;
        assert_eq!(client.line().await, "");
        client.size.send_replace(Some(cells((132, 44))));
        let (out, _, exit) = client.finish().await;
        assert_eq!((out.as_str(), exit), ("44 132\r\n", Ok(Exit::Code(9))));
    }

    #[tokio::test]
    async fn the_end_of_input_is_typed_also_within_a_line() {
        for typed in ["whole\n", "partial"] {
            let mut client = start(&runtime(), &on_terminal(script("stty -echo; echo ready; cat; echo done"))).await;
            assert_eq!(client.line().await, "ready");
            client.type_in(typed).await;
            client.stdin = None;
            let (out, _, exit) = client.finish().await;
            assert_eq!(
                (out.replace("\r\n", "\n").replace('\n', ""), exit),
                (typed.trim().to_owned() + "done", Ok(Exit::Success))
            );
        }
    }

    #[tokio::test]
    async fn a_control_c_interrupts_what_runs() {
        // Commands inherit what is ignored here, and a script that starts the tests behind `&` has SIGINT ignored. What
        // is handled is theirs to begin anew.
        let _handled = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt()).unwrap();
        let mut client = start(&runtime(), &on_terminal(script("echo ready; exec sleep 1000"))).await;
        assert_eq!(client.line().await, "ready");
        client.type_in("\x03").await;
        assert_eq!(client.finish().await.2, Ok(Exit::Code(130)));
    }

    #[tokio::test]
    async fn a_job_of_an_interactive_shell_goes_with_the_client() {
        let mut asked = on_terminal(script(""));
        asked.options.command = vec!["sh".into(), "-i".into()];
        let mut client = start(&runtime(), &asked).await;
        // The job has a process group of its own.
        client.type_in("stty -echo; PS1=; sh -c 'echo pid; echo $$; exec sleep 1000'\n").await;
        while !client.line().await.ends_with("pid") {}
        let job = client.pid().await;
        client.gone.cancel();
        client.finish().await.2.unwrap();
        ended(job).await;
    }
}

mod attach {
    use super::*;

    fn plain() -> Target {
        target(Subresource::Attach, None, all())
    }

    fn with(command: &[&str], tty: bool) -> ProcessRuntime {
        ProcessRuntime::new().container("default", "demo", "main", main_of(command, tty))
    }

    #[tokio::test]
    async fn all_who_are_attached_see_the_same() {
        let runtime = with(&["cat"], false);
        let (mut one, mut two) = (start(&runtime, &plain()).await, start(&runtime, &plain()).await);
        one.type_in("1\n").await;
        assert_eq!(one.line().await, "1");
        // Whether the second was there for the first line is not told.
        two.type_in("2\n").await;
        assert_eq!(one.line().await, "2");
        while two.line().await != "2" {}
        one.type_in("3\n").await;
        assert_eq!((one.line().await, two.line().await), ("3".into(), "3".into()));
    }

    #[tokio::test]
    async fn one_who_detaches_leaves_the_process_and_the_others_running() {
        let runtime = with(&["sh", "-c", "while read line; do echo $$ $line; done"], false);
        let (mut one, mut two) = (start(&runtime, &plain()).await, start(&runtime, &plain()).await);
        one.type_in("1\n").await;
        while !one.line().await.ends_with(" 1") {}
        two.type_in("2\n").await;
        let mut line = String::new();
        while !line.ends_with(" 2") {
            line = two.line().await;
        }
        one.gone.cancel();
        assert_eq!(one.finish().await.2, Ok(Exit::Success));
        // Its input ends, which ends nothing.
        two.stdin = None;
        let mut three = start(&runtime, &plain()).await;
        three.type_in("3\n").await;
        let expected = line.replace(" 2", " 3");
        assert_eq!((three.line().await, two.line().await), (expected.clone(), expected));
    }

    #[tokio::test]
    async fn a_dropped_session_only_detaches() {
        let runtime = with(&["sh", "-c", "while read line; do echo $$; done"], false);
        let mut one = start(&runtime, &plain()).await;
        one.type_in("\n").await;
        let pid = one.pid().await;
        one.session.abort();
        assert!(within(one.session).await.is_err());
        let mut two = start(&runtime, &plain()).await;
        two.type_in("\n").await;
        assert_eq!(two.pid().await, pid);
    }

    #[tokio::test]
    async fn a_process_that_ends_ends_the_sessions_and_is_started_again() {
        let runtime = with(&["sh", "-c", "read line; echo $$; echo last; exit 3"], false);
        let mut one = start(&runtime, &plain()).await;
        one.type_in("\n").await;
        let first = one.pid().await;
        assert_eq!(one.finish().await, ("last\n".into(), String::new(), Ok(Exit::Success)));
        let mut two = start(&runtime, &plain()).await;
        two.type_in("\n").await;
        assert_ne!(two.pid().await, first);
        assert_eq!(two.finish().await.2, Ok(Exit::Success));
    }

    #[tokio::test]
    async fn what_a_main_process_started_ends_with_it() {
        let runtime = with(&["sh", "-c", "read line; sleep 1000 & echo $!"], false);
        let mut client = start(&runtime, &plain()).await;
        client.type_in("\n").await;
        let child = client.pid().await;
        let began = std::time::Instant::now();
        assert_eq!(client.finish().await.2, Ok(Exit::Success));
        ended(child).await;
        assert!(began.elapsed() < copy::QUIET, "it was killed at once, not left behind");
    }

    #[tokio::test]
    async fn a_main_process_that_ticks_is_started_without_anyone_and_heard_by_who_comes() {
        let runtime = with(&["sh", "-c", "n=0; while :; do n=$((n+1)); echo tick $n; echo err >&2; done"], false);
        runtime.start();
        for _ in 0..2 {
            let mut client = start(&runtime, &plain()).await;
            let first = client.line().await;
            let number = |line: &str| line.strip_prefix("tick ").and_then(|n| n.parse::<u64>().ok());
            // What it joined may have been within a line.
            let mut last = number(&first);
            let mut errors = String::new();
            within(client.stderr.read_line(&mut errors)).await.unwrap();
            for _ in 0..5 {
                let next = number(&client.line().await);
                assert!(last.is_none() || next == last.map(|n| n + 1), "{last:?} {next:?}");
                last = next;
            }
            client.gone.cancel();
            within(client.session).await.unwrap().unwrap();
        }
    }

    #[tokio::test]
    async fn the_slowest_who_is_attached_sets_the_pace_until_it_is_gone() {
        let command = "read line; echo $line; read line; head -c 1000000 /dev/zero; read line";
        let runtime = with(&["sh", "-c", command], false);
        let (mut slow, mut quick) = (start(&runtime, &plain()).await, start(&runtime, &plain()).await);
        slow.type_in("attached\n").await;
        assert_eq!(slow.line().await, "attached");
        quick.type_in("\n").await;
        let (mut zeros, mut buffer) = (0, vec![0; 64 * 1024]);
        let mut yields = 0;
        while zeros < 1_000_000 {
            let read = tokio::select! {
                biased;
                read = quick.stdout.read(&mut buffer) => Some(read.unwrap()),
                () = tokio::task::yield_now(), if yields < 10_000 => None,
                () = tokio::time::sleep(LIMIT) => panic!("{zeros} bytes came"),
            };
            match read {
                Some(read) => zeros += buffer[..read].iter().filter(|byte| **byte == 0).count(),
                None => yields += 1,
            }
            if yields == 10_000 {
                yields += 1;
                assert!(zeros < 500_000, "the slow one was left behind");
                slow.gone.cancel();
            }
        }
        within(slow.session).await.unwrap().unwrap();
        quick.type_in("\n").await;
        assert_eq!(quick.finish().await.2, Ok(Exit::Success));
    }

    #[tokio::test]
    async fn the_terminal_is_the_containers_and_takes_the_size_of_who_attaches() {
        let runtime = with(&["sh", "-c", "stty -echo; while read line; do stty size; done"], true);
        let mut client = start_sized(&runtime, &on_terminal(plain()), Some((101, 33))).await;
        client.type_in("\n").await;
        while client.line().await != "33 101" {
            client.type_in("\n").await;
        }
        client.size.send_replace(Some(cells((132, 44))));
        client.type_in("\n").await;
        while client.line().await != "44 132" {
            client.type_in("\n").await;
        }
    }

    #[tokio::test]
    async fn one_who_leaves_a_shell_finds_a_fresh_one() {
        let runtime = with(&["sh"], true);
        for _ in 0..2 {
            let mut client = start(&runtime, &on_terminal(plain())).await;
            client.type_in("exit\n").await;
            assert_eq!(client.finish().await.2, Ok(Exit::Success));
        }
    }

    #[tokio::test]
    async fn a_main_process_that_cannot_start_is_told_to_who_attaches() {
        let runtime = with(&["nosuch"], false);
        let (.., exit) = start(&runtime, &plain()).await.finish().await;
        assert_eq!(exit, Err("exec: \"nosuch\": executable file not found in $PATH".into()));
    }

    #[tokio::test]
    async fn a_dropped_runtime_kills_its_main_processes() {
        let runtime = with(&["sh", "-c", "read line; sleep 1000 & echo $!; echo $$; wait"], false);
        let mut client = start(&runtime, &plain()).await;
        client.type_in("\n").await;
        let (child, leader) = (client.pid().await, client.pid().await);
        drop(runtime);
        assert_eq!(client.finish().await.2, Ok(Exit::Success));
        ended(child).await;
        reaped(leader).await;
    }
}

#[test]
fn the_runtime_can_be_shared() {
    fn shared<T: Runtime>(_: T) {}
    shared(Arc::new(ProcessRuntime::default()));
}
