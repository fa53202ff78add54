//! Forwards: which way they go, and that they outlive what kubectl's do not. The corpus that is shared with real kubectls is
//! in `tests/port_forward.rs`.

use std::{process::Stdio, time::Duration};

use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    net::TcpListener,
};

use super::{
    support::{
        Outcome,
        forward::Forward,
        kubectl::{Run, client, ours},
        lab::{Lab, Settings, Topology},
        pod::Pod,
        through,
    },
    ways::GATES,
};
use crate::ensure;

const PATIENCE: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_way_of_a_forward_carries_200_requests_together_and_is_told() -> Outcome {
    let pod = Pod::start().await.map_err(|error| error.to_string())?;
    for (apiserver, kubelet, websocket) in GATES {
        let settings = Settings { apiserver, kubelet, ..Settings::default() };
        let lab = Lab::start_with(Topology::TwoProcesses, settings).await?;
        let client = ours(websocket);
        let run = Run { lab: &lab, client: &client };
        let spec = format!(":{}", pod.web);
        let mut command = run.command(&["-v=7", "port-forward", "demo", &spec]);
        let forward = Forward::spawn(&mut command, &[pod.web]).await?;
        through::together(forward.to(pod.web)).await?;
        let said = forward.stop().await?;
        let refused = !apiserver.is_empty();
        let carrier = if websocket && !refused { "" } else { " over SPDY/3.1" };
        let wanted = format!("negotiated protocol: portforward.k8s.io{carrier}\n");
        ensure!(said.contains("Response Status: 101 Switching Protocols in ") && said.contains(&wanted), "{said}");
        let fell_back = said.contains("fallback to secondary dialer from primary dialer err: ");
        ensure!(fell_back == refused, "{said}");
        lab.stop().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forward_outlives_a_refused_port_and_the_kubelet_behind_it() -> Outcome {
    let pod = Pod::start().await.map_err(|error| error.to_string())?;
    for websocket in [true, false] {
        let mut lab = Lab::start(Topology::TwoProcesses).await?;
        let client = ours(websocket);
        let run = Run { lab: &lab, client: &client };
        let mut forward = Forward::start(&run, &[pod.web, pod.closed]).await?;
        through::page(forward.to(pod.web)).await?;
        through::refused(forward.to(pod.closed)).await?;
        let refused = |text: &str| text.contains("Connection refused");
        forward.stderr().until(PATIENCE, "the reason", refused).await?;
        through::page(forward.to(pod.web)).await?;

        lab.kubelet.as_mut().expect("two processes").kill().await?;
        let lost = |text: &str| text.contains("lost connection to pod");
        forward.stderr().until(PATIENCE, "the loss", lost).await?;
        lab.restart_kubelet(&[]).await?;
        through::page(forward.to(pod.web)).await?;
        ensure!(forward.runs(), "it ended");
        forward.stop().await?;
        lab.stop().await?;
    }
    Ok(())
}

/// As in a script: `kubectl port-forward … | grep -m1 Forwarding`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forward_goes_on_when_nobody_reads_what_it_says() -> Outcome {
    let told = |error: std::io::Error| error.to_string();
    let pod = Pod::start().await.map_err(|error| error.to_string())?;
    let mut lab = Lab::start(Topology::TwoProcesses).await?;
    let client = ours(true);
    let mut command = Run { lab: &lab, client: &client }.command(&["port-forward", "demo", &format!("0:{}", pod.web)]);
    let mut kubectl = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().map_err(told)?;
    let mut line = String::new();
    BufReader::new(kubectl.stdout.take().expect("piped")).read_line(&mut line).await.map_err(told)?;
    drop(kubectl.stderr.take());
    let port = line.strip_prefix("Forwarding from 127.0.0.1:").and_then(|rest| rest.split_once(' '));
    let port = port.and_then(|(port, _)| port.parse().ok()).ok_or_else(|| format!("{line:?}"))?;
    through::page(port).await?;
    // That is told too.
    lab.restart_kubelet(&[]).await?;
    through::page(port).await?;
    kubectl.kill().await.map_err(told)?;
    lab.stop().await
}

/// What is refused, in the words of the real one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_forwarded_is_told_as_kubectl_tells_it() -> Outcome {
    let Some(real) = client("1.37", true) else { return Ok(()) };
    let lab = Lab::start(Topology::TwoProcesses).await?;
    let taken = TcpListener::bind("127.0.0.1:0").await.map_err(|error| error.to_string())?;
    let port = taken.local_addr().map_err(|error| error.to_string())?.port();
    for args in [
        &["port-forward"][..],
        &["port-forward", "demo"],
        &["port-forward", "nope", "80"],
        &["port-forward", "demo", "99999"],
        &["port-forward", "demo", "0:99999"],
        &["port-forward", "demo", ":0"],
        &["port-forward", "demo", "1:name"],
        &["port-forward", "demo", "80", "--address", "1.2.3"],
        &["port-forward", "deployment/x", "80"],
        &["--context", "viewer", "port-forward", "demo", ":80"],
    ] {
        let real = Run { lab: &lab, client: &real }.kubectl(args).await?;
        let own = Run { lab: &lab, client: &ours(true) }.kubectl(args).await?;
        let [real, own] = [real, own].map(|output| (output.code, output.stdout, output.stderr));
        ensure!(real == own, "{args:?}\n  kubectl: {real:?}\n  ours: {own:?}");
    }
    // The system's sentence is another in Go.
    let spec = format!("{port}:80");
    let args = ["port-forward", "demo", &*spec, "--address", "127.0.0.1"];
    for client in [real, ours(true)] {
        let output = Run { lab: &lab, client: &client }.kubectl(&args).await?.exits(1)?;
        let output = output.says(&format!("Unable to listen on port {port}: Listeners failed to create with"))?;
        output.says(&format!("error: unable to listen on any of the requested ports: [{{{port} 80}}]\n"))?;
    }
    lab.stop().await
}
