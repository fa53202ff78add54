//! Real kubectl against the examples, started as real processes.
//!
//! Every client of the matrix (`support/kubectl.rs`), and the example kubectl over WebSocket and over SPDY, runs every case:
//! in one process, through a kubelet that translates WebSocket itself, through one that leaves it to the API server, and
//! through a gateway in front (`support/lab.rs`). A failure names client, topology and case. `KUBECTL_VERSIONS`,
//! `KUBECTL_DIR`, `REQUIRE_REAL` and `TEST_COUNTS` are explained there and in CONTRIBUTING.md.

mod support;

use std::{
    fs,
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream};
use support::{
    Outcome, count,
    kubectl::{Client, Input, Run, clients, ours, tree},
    lab::{Lab, NO_WEBSOCKETS, Settings, Topology, sessions_in},
    noise, sha256,
    terminal::Terminal,
};
use tokio::{io::AsyncReadExt, time::timeout};

const MIB: usize = 1 << 20;

/// Cases of one client at a time; kubectl is mostly start-up, so more than the cores pay.
const CASES_AT_ONCE: usize = 4;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_works_through_the_demo_in_one_process() {
    corpus(Topology::AllInOne, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_works_through_an_apiserver_and_a_kubelet_over_tls() {
    corpus(Topology::TwoProcesses, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_works_through_a_kubelet_that_speaks_websocket() {
    corpus(Topology::TwoProcesses, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_works_through_a_gateway_in_front_of_a_cluster() {
    corpus(Topology::Gateway, true).await;
}

/// `passed`: the API server passes WebSocket on to the kubelet, which translates it.
async fn corpus(topology: Topology, passed: bool) {
    let settings = Settings { kubelet: if passed { &[] } else { NO_WEBSOCKETS }, ..Settings::default() };
    let mut failures = Vec::new();
    let wanted = |client: &Client| topology != Topology::Gateway || client.is_at_an_end();
    for client in clients().into_iter().filter(wanted).chain([true, false].map(ours)) {
        let started = Instant::now();
        // A lab for each client, so that every session in its log is this client's.
        let lab = match Lab::start_with(topology, settings).await {
            Ok(lab) => lab,
            Err(why) => panic!("{topology}: {why}"),
        };
        let run = Run { lab: &lab, client: &client };
        let mut failed: Vec<String> = stream::iter(cases(&run))
            .map(|(name, case)| async move {
                let started = Instant::now();
                let result = case.await;
                println!("  {name}: {:.1?}", started.elapsed());
                result.err().map(|why| (name, why))
            })
            .buffer_unordered(CASES_AT_ONCE)
            .filter_map(|failed| async { failed.map(|(name, why)| format!("{name}: {why}")) })
            .collect()
            .await;
        failed.extend(session_log(&run, passed).await.err().map(|why| format!("session log: {why}")));
        if !failed.is_empty() {
            failures.push(format!("{client}, {topology}:\n  {}\n{}", failed.join("\n  "), lab.logs()));
        }
        failures.extend(lab.stop().await.err().map(|why| format!("{client}, {topology}: drain: {why}")));
        println!("{client}, {topology}: {:.1?}", started.elapsed());
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Every case, by name. None has run yet.
fn cases<'a>(run: &'a Run<'a>) -> Vec<(&'static str, BoxFuture<'a, Outcome>)> {
    vec![
        ("echo", echo(run).boxed()),
        ("large output", large_output(run).boxed()),
        ("large input", large_input(run).boxed()),
        ("exit codes", exit_codes(run).boxed()),
        ("stdout and stderr apart", outputs_apart(run).boxed()),
        ("cat ends at EOF", cat_ends_at_eof(run).boxed()),
        ("terminal", terminal(run).boxed()),
        ("attach to a terminal", attach_terminal(run).boxed()),
        ("attach without a terminal", attach_plain(run).boxed()),
        ("cp of a file", cp_file(run).boxed()),
        ("cp of a tree", cp_tree(run).boxed()),
        ("unknown pod", unknown_pod(run).boxed()),
        ("unknown container", unknown_container(run).boxed()),
        ("several containers, none named", none_named(run).boxed()),
        ("bad token", bad_token(run).boxed()),
    ]
}

/// `exec` in the demo's shell container.
async fn exec(run: &Run<'_>, command: &[&str]) -> Outcome<support::kubectl::Output> {
    run.kubectl(&[&["exec", "demo", "-c", "shell", "--"], command].concat()).await
}

async fn echo(run: &Run<'_>) -> Outcome {
    let output = exec(run, &["echo", "hello,", "wörld  &?%+"]).await?.exits(0)?;
    ensure!(output.stdout == "hello, wörld  &?%+\n" && output.stderr.is_empty(), "{output:?}");
    Ok(())
}

async fn exit_codes(run: &Run<'_>) -> Outcome {
    for code in [0, 1, 7, 137] {
        let output = exec(run, &["sh", "-c", &format!("exit {code}")]).await?.exits(code)?;
        let output = if code == 0 { output } else { output.says(&format!("exit code {code}"))? };
        ensure!(output.stdout.is_empty(), "{output:?}");
    }
    Ok(())
}

async fn outputs_apart(run: &Run<'_>) -> Outcome {
    let output = exec(run, &["sh", "-c", "echo out; echo err >&2"]).await?.exits(0)?;
    ensure!(output.stdout == "out\n" && output.stderr == "err\n", "{output:?}");
    Ok(())
}

async fn cat_ends_at_eof(run: &Run<'_>) -> Outcome {
    let args = ["exec", "-i", "demo", "-c", "shell", "--", "cat"];
    let output = run.kubectl_fed(&args, Input(b"line 1\nline 2\n", 1)).await?.exits(0)?;
    ensure!(output.stdout == "line 1\nline 2\n", "{output:?}");
    // An empty stdin ends too.
    let output = run.kubectl(&args).await?.exits(0)?;
    ensure!(output.stdout.is_empty(), "{output:?}");
    Ok(())
}

/// 8 MiB of noise, `full` 64 MiB, hashed by the command.
async fn large_input(run: &Run<'_>) -> Outcome {
    let block = noise(1, MIB);
    let times = count(8, 64);
    let args = ["exec", "-i", "demo", "-c", "shell", "--", "sha256sum"];
    let output = run.kubectl_fed(&args, Input(&block, times)).await?.exits(0)?;
    ensure!(output.stdout.starts_with(&sha256(&block, times)), "the hash differs: {output:?}");
    Ok(())
}

/// 64 MiB of noise, `full` 1 GiB, hashed here.
async fn large_output(run: &Run<'_>) -> Outcome {
    let block = noise(2, 4 * MIB);
    let times = count(16, 256);
    let file = run.lab.scratch.path().join("block");
    fs::write(&file, &block).map_err(|error| error.to_string())?;
    let script = format!("i=0; while [ $i -lt {times} ]; do cat '{}'; i=$((i+1)); done", file.display());
    let output = exec(run, &["sh", "-c", &script]).await?.exits(0)?;
    let wanted = (times * block.len()) as u64;
    ensure!(output.stdout_bytes == wanted, "{} of {wanted} bytes came: {}", output.stdout_bytes, output.stderr);
    ensure!(output.stdout_sha256 == sha256(&block, times), "the hash differs");
    Ok(())
}

/// Types what waits, in the remote shell, until the terminal has `size` there, and then prints `marker:size.`
fn type_size_probe(terminal: &mut Terminal, marker: &str, size: &str) -> Outcome {
    // The size travels beside the data, so the first look may be too early, as in a real cluster.
    terminal
        .types(&format!("until [ \"$(stty size)\" = '{size}' ]; do sleep 0.05; done; echo \"{marker}:$(stty size).\""))
}

async fn terminal(run: &Run<'_>) -> Outcome {
    let args = ["exec", "-it", "demo", "-c", "shell", "--", "sh"];
    let mut terminal = Terminal::start((33, 101), |pty| run.command_on(pty, &args))?;
    type_size_probe(&mut terminal, "first", "33 101")?;
    terminal.shows("first:33 101.").await?;
    terminal.resize((44, 132))?;
    type_size_probe(&mut terminal, "then", "44 132")?;
    terminal.shows("then:44 132.").await?;
    terminal.types("tty; exit 5")?;
    terminal.shows("/dev/pts/").await?;
    let code = terminal.exit_code().await?;
    ensure!(code == 5, "exit code {code}, not 5");
    Ok(())
}

/// Twice: the first kubectl is killed, which detaches and must leave the shell alive.
async fn attach_terminal(run: &Run<'_>) -> Outcome {
    for round in ["40+1", "40+2"] {
        let args = ["attach", "-it", "demo", "-c", "shell"];
        let mut terminal = Terminal::start((33, 101), |pty| run.command_on(pty, &args))?;
        terminal.types(&format!("echo \"attached $(({round}))\""))?;
        terminal.shows(if round == "40+1" { "attached 41" } else { "attached 42" }).await?;
    }
    Ok(())
}

/// The sidecar prints a line a second; two of them prove that output flows before the process ends.
async fn attach_plain(run: &Run<'_>) -> Outcome {
    let mut command = run.command(&["attach", "demo", "-c", "sidecar"]);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| error.to_string())?;
    let mut out = child.stdout.take().expect("stdout is piped");
    let mut text = Vec::new();
    let read = timeout(Duration::from_secs(30), async {
        let mut buffer = [0; 1024];
        while text.iter().filter(|byte| **byte == b'\n').count() < 2 {
            match out.read(&mut buffer).await {
                Ok(length @ 1..) => text.extend_from_slice(&buffer[..length]),
                _ => return false,
            }
        }
        true
    })
    .await;
    child.kill().await.map_err(|error| error.to_string())?;
    let mut said = String::new();
    let mut err = child.stderr.take().expect("stderr is piped");
    err.read_to_string(&mut said).await.map_err(|error| error.to_string())?;
    let text = String::from_utf8_lossy(&text).into_owned();
    ensure!(read == Ok(true), "two lines were expected: {text:?}, and on stderr {said:?}");
    Ok(())
}

/// 8 MiB, `full` 64 MiB, there and back.
async fn cp_file(run: &Run<'_>) -> Outcome {
    let dir = run.lab.scratch.dir("cp-file");
    let (here, there, back) = (dir.join("here"), dir.join("there"), dir.join("back"));
    fs::write(&here, noise(3, count(8, 64) * MIB)).map_err(|error| error.to_string())?;
    round_trip(run, &here, &there, &back).await?;
    let wanted = fs::read(&here).map_err(|error| error.to_string())?;
    for copy in [there, back] {
        let got = fs::read(&copy).map_err(|error| format!("{}: {error}", copy.display()))?;
        ensure!(got == wanted, "{} differs", copy.display());
    }
    Ok(())
}

/// 200 small files, `full` 2,000, there and back.
async fn cp_tree(run: &Run<'_>) -> Outcome {
    let dir = run.lab.scratch.dir("cp-tree");
    let (here, there, back) = (dir.join("here"), dir.join("there"), dir.join("back"));
    for number in 0..count(200_usize, 2_000) {
        let folder = here.join(format!("folder {}", number % 7)).join((number % 3).to_string());
        fs::create_dir_all(&folder).map_err(|error| error.to_string())?;
        let bytes = noise(number as u64, number * 37 % 5_000);
        fs::write(folder.join(format!("file {number}")), bytes).map_err(|error| error.to_string())?;
    }
    round_trip(run, &here, &there, &back).await?;
    let wanted = tree(&here)?;
    for copy in [there, back] {
        ensure!(tree(&copy)? == wanted, "{} differs", copy.display());
    }
    Ok(())
}

async fn round_trip(run: &Run<'_>, here: &Path, there: &Path, back: &Path) -> Outcome {
    let text = |path: &Path| path.to_str().expect("paths are text").to_owned();
    let remote = format!("demo:{}", text(there));
    run.kubectl(&["cp", "-c", "shell", &text(here), &remote]).await?.exits(0)?;
    run.kubectl(&["cp", "-c", "shell", &remote, &text(back)]).await?.exits(0)?;
    Ok(())
}

async fn unknown_pod(run: &Run<'_>) -> Outcome {
    let output = run.kubectl(&["exec", "nope", "--", "true"]).await?.exits(1)?;
    output.says("Error from server (NotFound): pods \"nope\" not found")?;
    Ok(())
}

async fn unknown_container(run: &Run<'_>) -> Outcome {
    let output = run.kubectl(&["exec", "demo", "-c", "nope", "--", "true"]).await?.exits(1)?;
    output.says("container nope is not valid for pod demo")?;
    Ok(())
}

/// kubectl takes the first container, says so, and names it in the request; the server is never asked to choose.
async fn none_named(run: &Run<'_>) -> Outcome {
    if run.lab.topology == Topology::AllInOne {
        return Ok(()); // The demo's only Pod names its default container.
    }
    let output = run.kubectl(&["exec", "several", "--", "true"]).await?;
    let output = output.says("Default")?;
    output.says("first")?;
    Ok(())
}

async fn bad_token(run: &Run<'_>) -> Outcome {
    let args = ["--token", "nobody-has-this-token", "exec", "demo", "-c", "shell", "--", "true"];
    run.kubectl(&args).await?.exits(1)?.says("You must be logged in to the server")?;
    Ok(())
}

/// Who spoke what, by the API server's log: one line a session.
async fn session_log(run: &Run<'_>, passed: bool) -> Outcome {
    const V4: Option<&str> = Some("v4.channel.k8s.io");
    const V5: Option<&str> = Some("v5.channel.k8s.io");
    let wanted = if run.client.websocket { V5 } else { V4 };
    // The line is written when the session's task ends, which may be after kubectl did.
    let log = &run.lab.apiserver.stderr;
    log.until(Duration::from_secs(10), "a terminal's session", |text| text.contains("tty=true")).await?;
    let sessions = run.lab.sessions();
    let client_side: Vec<_> = match run.lab.topology {
        Topology::TwoProcesses | Topology::Gateway => sessions.iter().collect(),
        // In one process the kubelet's half may log too, and what comes in there is not what the client spoke.
        Topology::AllInOne => sessions.iter().filter(|session| session.field("protocol.in") == wanted).collect(),
    };
    ensure!(!client_side.is_empty(), "no session was served over {wanted:?}: {sessions:#?}");
    for session in client_side {
        ensure!(session.field("protocol.in") == wanted, "{wanted:?} was expected in: {session:?}");
        // SPDY that is passed through in one process is one session: the kubelet's, which has no next hop.
        let wanted = match (run.lab.topology, run.client.websocket) {
            (Topology::AllInOne, false) => Some(""),
            (_, true) if passed => V5,
            _ => V4,
        };
        let out = session.field("protocol.out").or(Some(""));
        ensure!(out == wanted, "{wanted:?} was expected out: {session:?}");
        ensure!(session.field("user") == Some("admin"), "the user is missing: {session:?}");
    }
    if run.client.websocket {
        // Only who translates reads the status.
        let translator = if passed { run.lab.kubelet.as_ref().expect("two processes") } else { &run.lab.apiserver };
        let told = |text: &str| sessions_in(text).iter().any(|session| session.field("exit") == Some("137"));
        translator.stderr.until(Duration::from_secs(10), "a session whose command ended with 137", told).await?;
    }
    Ok(())
}

/// The harness itself: were the pty no controlling terminal, no SIGWINCH would come, and the case above would prove
/// less than it says.
#[tokio::test]
async fn a_terminal_of_the_harness_tells_its_program_of_a_resize() -> Outcome {
    let mut terminal = Terminal::start((33, 101), |pty| {
        let stdio = || pty.try_clone().map(Stdio::from).map_err(|error| error.to_string());
        let mut command = tokio::process::Command::new("setsid");
        command.args(["--ctty", "sh", "-c", "trap 'stty size' WINCH; stty size; while :; do read line; done"]);
        command.stdin(stdio()?).stdout(stdio()?).stderr(stdio()?).kill_on_drop(true);
        Ok(command)
    })?;
    terminal.shows("33 101").await?;
    terminal.resize((44, 132))?;
    // A shell runs its trap between two commands.
    terminal.types("")?;
    terminal.shows("44 132").await
}
