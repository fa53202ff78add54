//! What it refuses, in the words of the real one.

use std::fs;

use tokio::net::{TcpListener, TcpStream};

use super::support::{
    Outcome,
    kubectl::{Client, Output, Run, client, ours},
    lab::{Lab, Topology},
};
use crate::ensure;

/// Command lines whose exit code, stdout and stderr are those of kubectl 1.37, to the byte.
const SAME: &[&[&str]] = &[
    &["exec"],
    &["exec", "demo"],
    &["exec", "demo", "--"],
    &["exec", "demo", "ls"],
    &["exec", "demo", "other", "--", "true"],
    &["exec", "demo", "--bogus", "--", "true"],
    &["exec", "-zx", "demo", "--", "true"],
    &["exec", "-f"],
    &["exec", "demo", "--filename"],
    &["exec", "-i=false", "demo", "-tq=T", "--", "echo", "found"],
    &["exec", "-itq=false", "-i", "demo", "--", "echo", "found"],
    &["exec", "demo", "--stdin=maybe", "--", "true"],
    &["exec", "-i", "false", "demo", "--", "true"],
    &["exec", "-n", "nope", "-n", "default", "demo", "--", "echo", "found"],
    &["exec", "demo", "--pod-running-timeout=1.5h3µs", "--", "echo", "found"],
    &["exec", "demo", "--pod-running-timeout=0", "--", "true"],
    &["exec", "demo", "--pod-running-timeout=x", "--", "true"],
    &["exec", "demo", "--pod-running-timeout=5", "--", "true"],
    &["exec", "demo", "--pod-running-timeout=5x", "--", "true"],
    &["exec", "demo", "--pod-running-timeout=99999999h", "--", "true"],
    &["exec", "nope", "--", "true"],
    &["exec", "pod/nope", "--", "true"],
    &["exec", "pods/demo", "--", "echo", "found"],
    &["exec", "deployment/x", "--", "true"],
    &["exec", "service/x", "--", "true"],
    &["exec", "nonsense/x", "--", "true"],
    &["exec", "a/b/c", "--", "true"],
    &["exec", "demo", "-c", "nope", "--", "true"],
    &["exec", "demo", "-c", "shell", "--", "sh", "-c", "echo out; echo err >&2; exit 3"],
    &["exec", "demo", "--", "no-such-command"],
    &["exec", "several", "--", "echo", "first"],
    &["exec", "several", "-q", "--", "echo", "first"],
    &["exec", "-it", "demo", "--", "echo", "no", "terminal"],
    &["exec", "-itq", "demo", "--", "echo", "no", "terminal"],
    &["exec", "-t", "demo", "--", "echo", "no", "terminal"],
    &["--context", "nope", "exec", "demo", "--", "true"],
    &["--context", "viewer", "exec", "demo", "--", "true"],
    &["attach"],
    &["attach", "-f", "pod.yaml"],
    &["attach", "--filename", "pod.yaml"],
    &["attach", "demo", "-c"],
    &["attach", "--pod-running-timeout=0s"],
    &["attach", "nope"],
    &["attach", "demo", "-c", "nope"],
    &["attach", "-i", "demo"],
    &["cp"],
    &["cp", "-f", "a", "b"],
    &["cp", "a", "b", "--retries"],
    &["cp", "a", "b", "--no-preserve=x"],
    &["cp", "a"],
    &["cp", "a", "b"],
    &["cp", ":a", "b"],
    &["cp", "a/b/c:d", "e"],
    &["cp", "demo:", "b"],
    &["cp", "demo:/a", "demo:/b"],
    &["cp", "/nonexistent", "demo:/tmp/x"],
    &["cp", "nope:/x", "x"],
    &["cp", "demo:/x", "x", "-c", "nope"],
    &["port-forward", "demo"],
    &["port-forward", "demo", "80", "--pod-running-timeout=0h"],
    &["port-forward", "demo", "--address"],
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_says_what_kubectl_1_37_says() -> Outcome {
    let Some(real) = client("1.37", true) else { return Ok(()) };
    let lab = Lab::start(Topology::TwoProcesses).await?;
    let mut differ = Vec::new();
    for args in SAME {
        let (real, ours) = (said(&lab, &real, args).await?, said(&lab, &ours(true), args).await?);
        if real != ours {
            differ.push(format!("{args:?}\n  kubectl: {real:?}\n  ours: {ours:?}"));
        }
    }
    ensure!(differ.is_empty(), "{}", differ.join("\n"));
    lab.stop().await
}

async fn said(lab: &Lab, client: &Client, args: &[&str]) -> Outcome<(Option<i32>, String, String)> {
    let Output { code, stdout, stderr, .. } = Run { lab, client }.kubectl(args).await?;
    Ok((code, stdout, stderr))
}

/// Where kubectl says nothing: tar's failure is no exit code there.
#[tokio::test]
async fn a_copy_of_what_is_not_there_fails() -> Outcome {
    let lab = Lab::start(Topology::AllInOne).await?;
    let client = ours(true);
    let run = Run { lab: &lab, client: &client };
    let target = lab.scratch.path().join("copy");
    let target = target.to_str().expect("paths are text");
    let output = run.kubectl(&["cp", "demo:/nonexistent", target]).await?.exits(2)?;
    output.says("Cannot stat: No such file or directory")?.says("command terminated with exit code 2")?;
    lab.stop().await
}

/// A kubeconfig's `tls-server-name` is its own server's: another's certificate must be for that one.
#[tokio::test]
async fn a_server_that_is_named_is_not_taken_for_the_kubeconfigs() -> Outcome {
    let lab = Lab::start(Topology::AllInOne).await?;
    let text = fs::read(&lab.kubeconfig).map_err(|error| error.to_string())?;
    let mut config: serde_json::Value = serde_json::from_slice(&text).map_err(|error| error.to_string())?;
    let cluster = &mut config["clusters"][0]["cluster"];
    let named = format!("--server={}", cluster["server"].as_str().ok_or("no server")?);
    let there = named.rsplit("//").next().unwrap_or_default().to_owned();
    // The certificate is for `localhost`, and not for this address of this host.
    let other = TcpListener::bind("127.0.0.2:0").await.map_err(|error| error.to_string())?;
    let elsewhere = format!("--server=https://{}", other.local_addr().map_err(|error| error.to_string())?);
    let relay = tokio::spawn(async move {
        while let Ok((mut near, _)) = other.accept().await {
            let there = there.clone();
            tokio::spawn(async move {
                let mut far = TcpStream::connect(there).await?;
                tokio::io::copy_bidirectional(&mut near, &mut far).await
            });
        }
    });
    let exec = ["exec", "demo", "-c", "shell", "--", "sh", "-c", "exit 3"];
    for (name, server, code) in [("wrong.example", &named, 3), ("localhost", &elsewhere, 1)] {
        config["clusters"][0]["cluster"]["tls-server-name"] = name.into();
        let file = lab.scratch.path().join("named.kubeconfig");
        fs::write(&file, config.to_string()).map_err(|error| error.to_string())?;
        for client in [Some(ours(true)), client("1.37", true)].into_iter().flatten() {
            let mut command = client.command(&file, &lab.scratch, &[&[server.as_str()], &exec[..]].concat());
            let done = command.output().await.map_err(|error| error.to_string())?;
            ensure!(done.status.code() == Some(code), "{client}, {name} at {server}: {done:?}");
        }
    }
    relay.abort();
    lab.stop().await
}

#[tokio::test]
async fn the_commands_exit_code_comes_though_nobody_reads_what_is_said() -> Outcome {
    let lab = Lab::start(Topology::AllInOne).await?;
    let client = ours(true);
    let (read, write) = std::io::pipe().map_err(|error| error.to_string())?;
    drop(read);
    let mut command = Run { lab: &lab, client: &client }.command(&["exec", "demo", "--", "sh", "-c", "exit 3"]);
    let status = command.stderr(write).status().await.map_err(|error| error.to_string())?;
    ensure!(status.code() == Some(3), "{status}");
    lab.stop().await
}

#[tokio::test]
async fn a_server_that_is_away_is_told_as_kubectl_tells_it() -> Outcome {
    let lab = Lab::start(Topology::AllInOne).await?;
    let (real, own) = (client("1.37", true), ours(true));
    // Nobody listens at port 1.
    let args = ["--server=https://127.0.0.1:1", "exec", "demo", "--", "true"];
    let ours = said(&lab, &own, &args).await?;
    ensure!(
        ours.0 == Some(1) && ours.2.starts_with("The connection to the server 127.0.0.1:1 was refused"),
        "{ours:?}"
    );
    if let Some(real) = real {
        let real = said(&lab, &real, &args).await?;
        // The real one repeats itself in its log before.
        let last = |text: &str| text.lines().last().map(str::to_owned);
        ensure!(last(&real.2) == last(&ours.2), "{real:?} {ours:?}");
    }
    lab.stop().await
}
