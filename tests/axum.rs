//! Real kubectl against `examples/axum.rs`: the streaming stack under an axum router, beside the application's own routes
//! and below tower-http's layers, in front of the real `kubelet` example over plain HTTP.

mod support;

use std::time::Duration;

use support::{
    Outcome, Scratch,
    forward::Forward,
    kubectl::{Run, client, forwarder},
    lab::{Lab, Topology, example, port_in},
    noise,
    pod::Pod,
    process::Process,
    through,
};
use tokio::net::TcpListener;

/// The application's longest wait for an answer.
const TIMEOUT: u64 = 2;

/// The application in front of a kubelet at that port.
async fn application(kubelet_port: u16) -> Outcome<Lab> {
    let scratch = Scratch::new("axum");
    let data = scratch.dir("data");
    let mut command = example("axum");
    command.args(["--listen", "127.0.0.1:0", "--request-timeout", &TIMEOUT.to_string()]);
    command.arg("--kubelet").arg(format!("http://127.0.0.1:{kubelet_port}")).arg("--data-dir").arg(&data);
    let apiserver = Process::start("axum", &mut command)?;
    apiserver.ready().await?;
    let kubeconfig = data.join("kubeconfig");
    let (topology, always) = (Topology::TwoProcesses, Vec::new());
    Ok(Lab { topology, apiserver, kubelet: None, kubeconfig, data, scratch, always, behind: None })
}

async fn lab() -> Outcome<Lab> {
    let kubelet = Process::start("kubelet", example("kubelet").args(["--listen", "127.0.0.1:0", "--insecure"]))?;
    kubelet.ready().await?;
    let said = kubelet.stdout.text();
    let port = port_in(&said).ok_or_else(|| format!("kubelet's stdout names no port:\n{said}"))?;
    Ok(Lab { kubelet: Some(kubelet), ..application(port).await? })
}

/// The newest kubectl over WebSocket, and an old one over SPDY.
const CLIENTS: [(&str, bool); 2] = [("1.37", true), ("1.28", false)];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_works_against_an_application_of_somebody_else() -> Outcome {
    let lab = lab().await?;
    for (version, websocket) in CLIENTS {
        let Some(client) = client(version, websocket) else { continue };
        let run = Run { lab: &lab, client: &client };
        let output = run.kubectl(&["exec", "demo", "-c", "shell", "--", "sh", "-c", "echo out; exit 3"]).await?;
        let output = output.exits(3)?;
        ensure!(output.stdout == "out\n", "{client}: {output:?}");

        copy_there_and_back(&run).await?;

        let unknown = run.kubectl(&["--context", "viewer", "exec", "demo", "-c", "shell", "--", "true"]).await?;
        unknown.exits(1)?.says("pods \"demo\" is forbidden: User \"viewer\" cannot")?;
        let nobody = run.kubectl(&["--token", "nobody-has-this", "exec", "demo", "--", "true"]).await?;
        nobody.exits(1)?.says("You must be logged in to the server")?;
    }
    lab.stop().await
}

async fn copy_there_and_back(run: &Run<'_>) -> Outcome {
    let dir = run.lab.scratch.dir(&format!("cp-{}", run.client.version));
    let text = |name: &str| dir.join(name).to_string_lossy().into_owned();
    std::fs::write(dir.join("here"), noise(5, 1 << 20)).map_err(|error| error.to_string())?;
    let remote = format!("demo:{}", text("there"));
    run.kubectl(&["cp", "-c", "shell", &text("here"), &remote]).await?.exits(0)?;
    run.kubectl(&["cp", "-c", "shell", &remote, &text("back")]).await?.exits(0)?;
    let back = std::fs::read(dir.join("back")).map_err(|error| error.to_string())?;
    ensure!(back == noise(5, 1 << 20), "{}: the copy differs", run.client);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_forwards_ports_through_an_application_of_somebody_else() -> Outcome {
    let lab = lab().await?;
    let pod = Pod::start().await?;
    for (version, websocket) in CLIENTS {
        let Some(client) = forwarder(version, websocket) else { continue };
        let run = Run { lab: &lab, client: &client };
        let forward = Forward::start(&run, &[pod.web]).await?;
        through::page(forward.to(pod.web)).await?;
        forward.stop().await?;
    }
    lab.stop().await
}

/// A session lasts longer than the layers above allow an answer to take, and its log line has their request id.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_applications_layers_end_with_the_101_and_its_own_routes_have_them_too() -> Outcome {
    let lab = lab().await?;
    let Some(client) = client("1.37", true) else { return Ok(()) };
    let run = Run { lab: &lab, client: &client };
    let slow = format!("sleep {}; echo done", TIMEOUT + 1);
    let output = run.kubectl(&["exec", "demo", "-c", "shell", "--", "sh", "-c", &slow]).await?.exits(0)?;
    ensure!(output.stdout == "done\n", "{output:?}");
    let log = &lab.apiserver.stderr;
    log.until(Duration::from_secs(10), "the session's line", |text| text.contains("session ended")).await?;
    let log = log.text();
    let line = log.lines().find(|line| line.contains("session ended")).unwrap_or_default();
    ensure!(line.contains("request{id=") && line.contains("/pods/demo/exec"), "{line}");
    ensure!(!log.contains("echo done"), "the command is in the log:\n{log}");

    let output = run.kubectl(&["get", "--raw", "/healthz", "-v=8"]).await?.exits(0)?;
    ensure!(output.stdout == "ok", "{output:?}");
    output.says("X-Request-Id")?;
    lab.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kubelet_that_does_not_answer_is_given_up_by_the_applications_own_timeout() -> Outcome {
    let silent = TcpListener::bind("127.0.0.1:0").await.map_err(|error| error.to_string())?;
    let port = silent.local_addr().map_err(|error| error.to_string())?.port();
    let lab = application(port).await?;
    let Some(client) = client("1.28", false) else { return Ok(()) };
    let run = Run { lab: &lab, client: &client };
    let output = run.kubectl(&["exec", "demo", "-c", "shell", "--", "true"]).await?.exits(1)?;
    ensure!(output.stderr.contains("Error from server"), "{output:?}");
    let log = lab.apiserver.stderr.text();
    ensure!(log.contains("504"), "no answer was given up:\n{log}");
    ensure!(!log.contains("session ended"), "a session has begun:\n{log}");
    drop(silent);
    lab.stop().await
}
