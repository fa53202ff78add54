//! Pods that the example kubelet runs in a real containerd: what becomes of their containers, and what it says of them.

mod support;

use std::time::Duration;

use serde_json::Value;
use support::{
    Outcome, Scratch,
    containerd::{Containerd, POD, manifest},
    count,
    kubectl::{Run, client},
    lab::{Lab, Settings, Topology},
};
use tokio::time::{sleep, timeout};

/// Containers that end by themselves, under each restart policy.
const ENDING: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: crashing, namespace: default}
spec:
  containers: [{name: main, image: "localhost/busybox:test", command: [/bin/sh, -c, exit 7]}]
---
apiVersion: v1
kind: Pod
metadata: {name: tried, namespace: default}
spec:
  restartPolicy: Never
  containers:
    - {name: well, image: "localhost/busybox:test", command: ["true"]}
    - {name: badly, image: "localhost/busybox:test", command: [/bin/sh, -c, exit 3]}
---
apiVersion: v1
kind: Pod
metadata: {name: done, namespace: default}
spec:
  restartPolicy: OnFailure
  containers: [{name: main, image: "localhost/busybox:test", command: ["true"]}]
"#;

/// The status of a Pod by the kubelet's `/pods`, as soon as it is so. Nobody is told when it changes.
async fn status(lab: &Lab, pod: &str, holds: impl Fn(&Value) -> bool) -> Outcome<Value> {
    let mut last = Value::Null;
    let seen = async {
        loop {
            let answer = lab.get_from_kubelet("/pods").await?;
            let list: Value = serde_json::from_str(answer.body()).map_err(|error| error.to_string())?;
            let pods = list["items"].as_array().map_or(&[][..], Vec::as_slice);
            let status = pods.iter().find(|of| of["metadata"]["name"] == pod).map(|of| of["status"].clone());
            last = status.unwrap_or_default();
            if holds(&last) {
                return Ok(());
            }
            sleep(Duration::from_millis(100)).await;
        }
    };
    let limit = Duration::from_secs(60);
    timeout(limit, seen)
        .await
        .unwrap_or_else(|_| Err("it never became so".into()))
        .map_err(|why: String| format!("{pod}: {why}; its status is {last:#}\n{}", lab.logs()))?;
    Ok(last)
}

async fn lab(containerd: &Containerd, pods: &str) -> Outcome<Lab> {
    let manifests = Scratch::new("cri-pods");
    let flags = [containerd.endpoint(), manifest(&manifests, pods)?];
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    Lab::start_with(Topology::TwoProcesses, Settings { kubelet: &flags, ..Settings::default() }).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containers_that_end_are_started_again_as_their_pod_says() -> Outcome {
    let Some(containerd) = Containerd::start()? else { return Ok(()) };
    let lab = lab(&containerd, &format!("{POD}---{ENDING}")).await?;

    let restarts = count(1, 2);
    let crashing = status(&lab, "crashing", |status| {
        let main = &status["containerStatuses"][0];
        main["restartCount"] == restarts && main["state"]["waiting"]["reason"] == "CrashLoopBackOff"
    });
    let crashing = crashing.await?;
    let main = &crashing["containerStatuses"][0];
    let delay = format!("back-off {}s restarting failed container=main pod=crashing_default", 10 * restarts);
    ensure!(main["state"]["waiting"]["message"] == delay.as_str(), "{main:#}");
    let last = &main["lastState"]["terminated"];
    ensure!((&last["exitCode"], &last["reason"]) == (&7.into(), &"Error".into()), "{main:#}");
    ensure!(last["finishedAt"].is_string() && main["ready"] == false, "{main:#}");
    // One that is to run again has not failed.
    ensure!(crashing["phase"] == "Running" && crashing["conditions"][0]["status"] == "False", "{crashing:#}");

    let tried = status(&lab, "tried", |status| status["phase"] == "Failed").await?;
    let codes: Vec<_> = tried["containerStatuses"].as_array().into_iter().flatten().collect();
    ensure!(codes.len() == 2 && codes.iter().all(|of| of["restartCount"] == 0), "{tried:#}");
    let (well, badly) = (&codes[0]["state"]["terminated"], &codes[1]["state"]["terminated"]);
    ensure!((&well["exitCode"], &well["reason"]) == (&0.into(), &"Completed".into()), "{tried:#}");
    ensure!(badly["exitCode"] == 3, "{tried:#}");
    status(&lab, "done", |status| status["phase"] == "Succeeded").await?;

    let demo = status(&lab, "demo", |status| status["phase"] == "Running").await?;
    let shell = &demo["containerStatuses"][0];
    ensure!(shell["name"] == "shell" && shell["state"]["running"]["startedAt"].is_string(), "{demo:#}");
    let id = shell["containerID"].as_str().and_then(|id| id.strip_prefix("containerd://")).unwrap_or_default();
    ensure!(containerd.ctr(&["containers", "ls", "--quiet"])?.lines().any(|there| there == id), "{id}");
    ensure!(demo["conditions"][0]["status"] == "True", "{demo:#}");
    lab.stop().await?;
    ensure!(containerd.containers()? == 0, "{}", containerd.containers()?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_that_was_killed_comes_back() -> Outcome {
    let Some(containerd) = Containerd::start()? else { return Ok(()) };
    let Some(client) = client("1.37", true) else { return Ok(()) };
    let lab = lab(&containerd, POD).await?;
    let id = |status: &Value| {
        let id = status["containerStatuses"][1]["containerID"].as_str().unwrap_or_default();
        id.trim_start_matches("containerd://").to_owned()
    };
    let first = status(&lab, "demo", |status| status["phase"] == "Running").await?;
    containerd.ctr(&["tasks", "kill", "--signal", "KILL", &id(&first)])?;
    let again = |restarts: u32| {
        move |status: &Value| {
            let sidecar = &status["containerStatuses"][1];
            sidecar["restartCount"] == restarts && sidecar["ready"] == true
        }
    };
    let second = status(&lab, "demo", again(1)).await?;
    ensure!(second["containerStatuses"][1]["lastState"]["terminated"]["exitCode"] == 137, "{second:#}");
    ensure!(second["containerStatuses"][0]["restartCount"] == 0 && id(&first) != id(&second), "{second:#}");
    let run = Run { lab: &lab, client: &client };
    let said = run.kubectl(&["exec", "demo", "-c", "sidecar", "--", "echo", "back"]).await?.exits(0)?;
    ensure!(said.stdout == "back\n", "{said:?}");
    lab.stop().await?;
    ensure!(containerd.containers()? == 0, "{}", containerd.containers()?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_kubelet_has_left_is_removed_by_the_next() -> Outcome {
    let Some(containerd) = Containerd::start()? else { return Ok(()) };
    let manifests = Scratch::new("cri-pods");
    let flags = [containerd.endpoint(), manifest(&manifests, POD)?];
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let mut lab = Lab::start_with(Topology::TwoProcesses, Settings { kubelet: &flags, ..Settings::default() }).await?;
    let listed = || containerd.ctr(&["containers", "ls", "--quiet"]);
    let before = listed()?;
    lab.kubelet.as_mut().expect("two processes").kill().await?;
    ensure!(listed()? == before, "they went with the kubelet");
    lab.restart_kubelet(&flags).await?;
    let after = listed()?;
    ensure!(after.lines().count() == 3 && !before.lines().any(|id| after.contains(id)), "{before}\n{after}");
    lab.stop().await?;
    ensure!(containerd.containers()? == 0, "{}", containerd.containers()?);
    Ok(())
}
