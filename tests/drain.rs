//! SIGTERM: what ends soon ends by itself, everybody else is told, and the process is gone within 30 s.

mod support;

use std::{
    process::Stdio,
    time::{Duration, Instant},
};

use support::{
    Outcome,
    kubectl::{Client, Run, client},
    lab::{Lab, NO_WEBSOCKETS, Settings, Topology},
    process::Written,
    terminal::Terminal,
};
use tokio::process::Child;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_of_one_process_tells_every_session() -> Outcome {
    for client in [("1.37", true), ("1.28", false)].into_iter().filter_map(|(of, ws)| client(of, ws)) {
        drain(&client, Topology::AllInOne, false).await.map_err(|why| format!("{client}: {why}"))?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_of_an_apiserver_tells_every_session() -> Outcome {
    for client in [("1.37", true), ("1.28", false)].into_iter().filter_map(|(of, ws)| client(of, ws)) {
        drain(&client, Topology::TwoProcesses, false).await.map_err(|why| format!("{client}: {why}"))?;
    }
    Ok(())
}

/// It reads no frames of it, so it cannot put a word into it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_of_an_apiserver_ends_the_websockets_that_it_passes_on() -> Outcome {
    let Some(client) = client("1.37", true) else { return Ok(()) };
    drain(&client, Topology::TwoProcesses, true).await
}

struct Running {
    child: Child,
    stdout: Written,
    stderr: Written,
}

fn start(run: &Run<'_>, script: &str) -> Outcome<Running> {
    let mut command = run.command(&["exec", "demo", "-c", "shell", "--", "sh", "-c", script]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| error.to_string())?;
    let stdout = Written::collect(child.stdout.take().expect("stdout is piped"));
    let stderr = Written::collect(child.stderr.take().expect("stderr is piped"));
    Ok(Running { child, stdout, stderr })
}

async fn drain(client: &Client, topology: Topology, passed: bool) -> Outcome {
    let settings = Settings { kubelet: if passed { &[] } else { NO_WEBSOCKETS }, ..Settings::default() };
    let lab = Lab::start_with(topology, settings).await?;
    let run = Run { lab: &lab, client };
    let limit = Duration::from_secs(20);
    let shell = ["exec", "-it", "demo", "-c", "shell", "--", "sh"];
    let mut interactive = Terminal::start((24, 80), |pty| run.command_on(pty, &shell))?;
    interactive.types("echo ready-$((40+2))")?;
    interactive.shows("ready-42").await?;
    // Bulk is real output, but not more than a test should hold.
    let mut bulk = start(&run, "echo started; while :; do head -c 20000 /dev/zero; sleep 0.01; done")?;
    bulk.stdout.until(limit, "bulk output", |text| text.contains("started")).await?;
    let mut quiet = start(&run, "echo started; sleep 1000")?;
    quiet.stdout.until(limit, "the quiet one's start", |text| text.contains("started")).await?;
    let mut short = start(&run, "echo started; sleep 2; echo done")?;
    short.stdout.until(limit, "the short one's start", |text| text.contains("started")).await?;

    let begun = Instant::now();
    let logs = lab.logs();
    lab.stop().await.map_err(|why| format!("{why}\n{logs}"))?;
    let took = begun.elapsed();
    println!("{client}, {topology}: the drain took {took:?}");
    ensure!(took < Duration::from_secs(30), "the drain took {took:?}");

    let code = short.child.wait().await.map_err(|error| error.to_string())?.code();
    ensure!(code == Some(0), "a short command was not let end: {code:?}, {}", short.stderr.text());
    short.stdout.until(limit, "the short one's last line", |text| text.contains("done")).await?;
    for (name, running) in [("bulk", &mut bulk), ("quiet", &mut quiet)] {
        let code = running.child.wait().await.map_err(|error| error.to_string())?.code();
        ensure!(code.is_some_and(|code| code != 0), "{name}: exit code {code:?}");
        let message = if passed { "close 1006" } else { "shutting down" };
        running.stderr.until(limit, "a message", |text| text.contains(message)).await?;
    }
    let code = interactive.exit_code().await?;
    ensure!(code != 0, "the terminal's kubectl exits with 0");
    Ok(())
}
