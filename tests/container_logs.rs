//! What containers of a real containerd say, by real kubectl through the example API server and the example kubelet; and
//! their Pods as mirror Pods.

mod support;

use std::{process::Stdio, time::Duration};

use support::{
    Outcome, Scratch,
    containerd::{Containerd, manifest},
    kubectl::{Client, Run, client},
    lab::{Lab, Settings, Topology},
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    time::timeout,
};

const LIMIT: Duration = Duration::from_secs(30);
const PODS: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: chatty}
spec:
  hostNetwork: true
  restartPolicy: Never
  containers:
    - name: counts
      image: localhost/busybox:test
      command: [/bin/sh, -c, 'for n in 1 2 3 4 5; do echo "line $n"; done; printf end']
    - name: complains
      image: localhost/busybox:test
      command: [/bin/sh, -c, 'echo trouble >&2']
    - name: waits
      image: localhost/busybox:test
      command: [/bin/sh, -c, 'echo first; while [ ! -e /go ]; do sleep 0.1; done; echo last']
"#;

const NAME: &str = "chatty-demo-node";

async fn says(run: &Run<'_>, args: &[&str], wanted: &str) -> Outcome {
    let args: Vec<&str> = ["logs", NAME].into_iter().chain(args.iter().copied()).collect();
    let output = run.kubectl(&args).await?.exits(0)?;
    ensure!(output.stdout == wanted, "{args:?}: {output:?}");
    Ok(())
}

/// Waits for a field of the mirror Pod.
async fn until(run: &Run<'_>, condition: &str) -> Outcome {
    let wait = format!("--for=jsonpath={condition}");
    run.kubectl(&["wait", "pod", NAME, &wait, "--timeout=30s"]).await?.exits(0).map(drop)
}

async fn logs(run: &Run<'_>) -> Outcome {
    let lines = "line 1\nline 2\nline 3\nline 4\nline 5\n";
    let counts = ["-c", "counts"];
    says(run, &counts, &format!("{lines}end")).await?;
    says(run, &["-c", "complains"], "trouble\n").await?;
    says(run, &[&counts[..], &["--tail=2"]].concat(), "line 5\nend").await?;
    says(run, &[&counts[..], &["--limit-bytes=8"]].concat(), "line 1\nl").await?;
    says(run, &[&counts[..], &["--tail=0"]].concat(), "").await?;
    let timed = run.kubectl(&["logs", NAME, "-c", "counts", "--timestamps"]).await?.exits(0)?.stdout;
    ensure!(timed.lines().next().is_some_and(|line| line.starts_with("20") && line.ends_with(" line 1")), "{timed:?}");
    for (args, why) in [
        (&["-c", "counts", "--previous"][..], "not supported here"),
        (&["-c", "nosuch"], "container nosuch is not valid for pod"),
        (&["-c", "counts", "--since=1m"], "not supported here"),
    ] {
        let args: Vec<&str> = ["logs", NAME].into_iter().chain(args.iter().copied()).collect();
        run.kubectl(&args).await?.exits(1)?.says(why)?;
    }
    Ok(())
}

/// What is said later is told as it is said, and the end of the container ends it.
async fn follows(lab: &Lab, client: &Client) -> Outcome {
    let run = Run { lab, client };
    let mut kubectl = run.command(&["logs", "-f", NAME, "-c", "waits"]);
    let mut kubectl = kubectl.stdout(Stdio::piped()).spawn().map_err(|error| error.to_string())?;
    let mut lines = BufReader::new(kubectl.stdout.take().expect("stdout is piped")).lines();
    let mut next = async || match timeout(LIMIT, lines.next_line()).await {
        Ok(Ok(line)) => Ok(line),
        other => Err(format!("{other:?}")),
    };
    ensure!(next().await?.as_deref() == Some("first"), "the first line");
    run.kubectl(&["exec", NAME, "-c", "waits", "--", "touch", "/go"]).await?.exits(0)?;
    ensure!(next().await?.as_deref() == Some("last"), "the last line");
    ensure!(next().await?.is_none(), "the end");
    let status = timeout(LIMIT, kubectl.wait()).await.map_err(|_| "kubectl goes on")?;
    ensure!(status.as_ref().is_ok_and(std::process::ExitStatus::success), "{status:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_reads_and_follows_logs_of_a_mirror_pod_and_sees_its_containers() -> Outcome {
    let Some(containerd) = Containerd::start()? else { return Ok(()) };
    let Some(client) = client("1.37", true) else { return Ok(()) };
    let files = Scratch::new("logs");
    let written = files.dir("written");
    let logs_dir = format!("--pod-logs-dir={}", written.display());
    let flags = [containerd.endpoint(), manifest(&files, PODS)?, logs_dir];
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let lab = Lab::start_with(Topology::TwoProcesses, Settings { kubelet: &flags, ..Settings::default() }).await?;
    let run = Run { lab: &lab, client: &client };
    let all = async {
        for container in 0..2 {
            let ended = format!("{{.status.containerStatuses[{container}].state.terminated.exitCode}}=0");
            until(&run, &ended).await?;
        }
        until(&run, "{.status.hostIP}=127.0.0.1").await?;
        until(&run, "{.status.podIP}=127.0.0.1").await?;
        logs(&run).await?;
        if let Some(old) = support::kubectl::client("1.28", false) {
            logs(&Run { lab: &lab, client: &old }).await?;
        }
        follows(&lab, &client).await?;
        until(&run, "{.status.phase}=Succeeded").await
    };
    all.await.map_err(|why| format!("{why}\n{}", lab.logs()))?;
    lab.stop().await?;
    let left = std::fs::read_dir(&written).map_err(|error| error.to_string())?.count();
    ensure!(left == 0, "{left} folders are left");
    ensure!(containerd.containers()? == 0, "containers are left");
    Ok(())
}
