//! Version skew: every kubectl through API servers and kubelets with their gates on and off.
//!
//! Each cell is one client, one pair of gates and one operation, run by real programs. That it works is the least: which way
//! it went is asserted from the session logs of both processes, and the change of every series of both `/metrics`, zeros
//! included (`skew/expected.rs`). The table is printed at the end. `KUBECTL_VERSIONS` chooses clients as in
//! `tests/kubectl.rs`.

#[path = "skew/expected.rs"]
mod expected;
#[path = "skew/series.rs"]
mod series;
mod support;

use std::{fs, process::Stdio, time::Duration};

use expected::{Gates, Operation, Path, Seen};
use futures_util::{StreamExt, stream};
use support::{
    Outcome,
    forward::Forward,
    kubectl::{Input, Run, SkewClient, skew_clients},
    lab::{Lab, Session, Settings, Topology, sessions_in},
    pod::Pod,
    process::Process,
    through,
};

/// For what takes a moment.
const PATIENCE: Duration = Duration::from_secs(20);

/// Pairs of gates at a time; kubectl is mostly start-up, and each pair runs one cell after the other.
const LABS_AT_ONCE: usize = 3;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_client_works_through_every_pair_of_gates_and_each_cell_goes_the_way_and_counts_as_it_should() {
    let clients = skew_clients();
    let columns: Vec<(Gates, Vec<Row>)> = stream::iter(Gates::ALL)
        .map(|gates| (gates, &clients))
        .map(|(gates, clients)| async move { (gates, column(gates, clients).await) })
        .buffered(LABS_AT_ONCE)
        .collect()
        .await;
    print(&clients, &columns);
    let failures: Vec<String> = columns
        .iter()
        .flat_map(|(gates, rows)| rows.iter().map(move |row| (gates, row)))
        .flat_map(|(gates, row)| row.iter().filter_map(move |cell| Some(format!("{gates}: {}", cell.as_ref().err()?))))
        .collect();
    assert!(failures.is_empty(), "{} cells failed:\n{}", failures.len(), failures.join("\n"));
}

/// One client's cells of one pair of gates, in the order of [`Operation::ALL`].
type Row = Vec<Outcome<Path>>;

async fn column(gates: Gates, clients: &[SkewClient]) -> Vec<Row> {
    match started(gates).await {
        Ok((lab, pod)) => {
            let mut rows = Vec::new();
            for client in clients {
                let mut row = Vec::new();
                for operation in Operation::ALL {
                    let cell = cell(&lab, &pod, gates, client, operation).await;
                    row.push(cell.map_err(|why| format!("{client}, {operation}: {why}")));
                }
                rows.push(row);
            }
            if let Err(why) = lab.stop().await {
                rows.push(vec![Err(why)]);
            }
            rows
        }
        Err(why) => vec![vec![Err(why)]],
    }
}

async fn started(gates: Gates) -> Outcome<(Lab, Pod)> {
    let (apiserver, kubelet) = gates.flags();
    let settings = Settings { apiserver: &[apiserver], kubelet: &[kubelet], ..Settings::default() };
    let lab = Lab::start_with(Topology::TwoProcesses, settings).await?;
    Ok((lab, Pod::start().await.map_err(|error| error.to_string())?))
}

async fn cell(lab: &Lab, pod: &Pod, gates: Gates, client: &SkewClient, operation: Operation) -> Outcome<Path> {
    let path = gates.path(client.of(operation == Operation::PortForward).websocket);
    let before = Seen::of(lab).await?;
    run(lab, pod, client, operation).await?;
    let kubelet = lab.kubelet.as_ref().expect("it is a process of its own");
    let sessions =
        [session_after(&lab.apiserver, before.sessions[0]).await?, session_after(kubelet, before.sessions[1]).await?];
    let wanted = path.protocols(operation);
    for (session, wanted) in sessions.iter().zip(wanted) {
        let spoken = (session.field("protocol.in"), session.field("protocol.out"));
        ensure!(spoken == (Some(wanted.0), Some(wanted.1)), "{path}: {wanted:?} was expected: {session:?}");
    }
    let after = Seen::of(lab).await?;
    let lines = [after.sessions[0] - before.sessions[0], after.sessions[1] - before.sessions[1]];
    ensure!(lines == [1, 1], "{path}: one session at each server was expected: {lines:?}");
    for (server, changed) in
        [("apiserver", before.series[0].until(&after.series[0])), ("kubelet", before.series[1].until(&after.series[1]))]
    {
        let wanted =
            if server == "apiserver" { gates.at_apiserver(path, operation) } else { gates.at_kubelet(path, operation) };
        // What is said of the first is said of the likeliest.
        let wrong: Vec<String> = wanted.iter().map_while(|wanted| changed.compare(wanted).err()).collect();
        ensure!(wrong.len() < wanted.len(), "{path}: {server}: {}", wrong[0]);
    }
    Ok(path)
}

/// The operation, and that it did what it is for.
async fn run(lab: &Lab, pod: &Pod, client: &SkewClient, operation: Operation) -> Outcome {
    let run = Run { lab, client: client.of(operation == Operation::PortForward) };
    match operation {
        Operation::Exec => {
            let said = expected::SAID.trim_end();
            let output = run.kubectl(&["exec", "demo", "-c", "shell", "--", "echo", said]).await?.exits(0)?;
            ensure!(output.stdout == expected::SAID, "{output:?}");
        }
        Operation::ExecStdin => {
            let fed = support::noise(3, expected::FED);
            let args = ["exec", "-i", "demo", "-c", "shell", "--", "cat"];
            let output = run.kubectl_fed(&args, Input(&fed, 1)).await?.exits(0)?;
            ensure!(output.stdout_sha256 == support::sha256(&fed, 1), "the hash differs: {output:?}");
        }
        Operation::Attach => {
            let mut command = run.command(&["attach", "demo", "-c", "sidecar"]);
            command.stdin(Stdio::null());
            let kubectl = Process::start("kubectl", &mut command)?;
            let (stdout, stderr) = (kubectl.stdout.clone(), kubectl.stderr.clone());
            let line = stdout.until(PATIENCE, "a line", |text| text.contains("line ") && text.ends_with('\n')).await;
            line.map_err(|why| format!("{why}; on stderr: {}", stderr.text()))?;
            // SIGTERM: kubectl just ends.
            kubectl.stop().await?;
        }
        Operation::Cp => {
            let dir = lab.scratch.dir("cp");
            let (there, back) = (dir.join("there"), dir.join("back"));
            fs::write(&there, "a small file").map_err(|error| error.to_string())?;
            let path = |path: &std::path::Path| path.to_str().expect("paths are text").to_owned();
            let from = format!("demo:{}", path(&there));
            run.kubectl(&["cp", "-c", "shell", &from, &path(&back)]).await?.exits(0)?;
            ensure!(fs::read(&back).is_ok_and(|bytes| bytes == b"a small file"), "the copy differs");
            fs::remove_file(&back).map_err(|error| error.to_string())?;
        }
        Operation::PortForward => {
            let forward = Forward::start(&run, &[pod.web]).await?;
            through::page(forward.to(pod.web)).await?;
            forward.stop().await?;
        }
    }
    Ok(())
}

/// Clients down, gates across: where all operations of a cell went the same way it is named once.
fn print(clients: &[SkewClient], columns: &[(Gates, Vec<Row>)]) {
    let mut header = format!("{:<28}", "apiserver/kubelet");
    for (gates, _) in columns {
        header += &format!(" {:<22}", gates.to_string());
    }
    println!("{header}");
    for (number, client) in clients.iter().enumerate() {
        let mut line = format!("{:<28}", client.to_string());
        for (_, rows) in columns {
            let cells: Vec<String> = rows
                .get(number)
                .into_iter()
                .flatten()
                .map(|cell| match cell {
                    Ok(path) => path.to_string(),
                    Err(_) => "FAILED".to_owned(),
                })
                .collect();
            let exec = cells.first().cloned().unwrap_or_else(|| "FAILED".to_owned());
            let same = cells.iter().take(4).all(|cell| *cell == exec);
            let exec = if same { exec } else { cells[..cells.len().min(4)].join(",") };
            line += &format!(" {:<22}", format!("{exec} | {}", cells.get(4).map_or("-", String::as_str)));
        }
        println!("{line}");
    }
    println!("exec, exec -i, attach and cp | port-forward");
}

/// The first session that has ended at this server after so many others.
async fn session_after(server: &Process, before: usize) -> Outcome<Session> {
    let log = server.stderr.until(PATIENCE, "the session's end", |text| sessions_in(text).len() > before).await?;
    Ok(sessions_in(&log).swap_remove(before))
}
