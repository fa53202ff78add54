//! A network that is slow, far away, and stands still for a while: the basic cases pass as on a good one.

mod support;

use std::{fs, time::Duration};

use support::{
    Outcome, count,
    kubectl::{Client, Input, Run, client},
    lab::Lab,
    noise, sha256,
};
use tower_kube_streaming_testing::relay::{FaultRelay, Faults};

const MIB: usize = 1 << 20;

fn faults() -> Faults {
    Faults {
        delay: count(Duration::from_millis(50), Duration::from_millis(200)),
        bytes_per_second: count(4_000_000, 1_000_000),
        // In the middle of the large cases; the small ones are over before.
        stall: Some((MIB as u64, count(Duration::from_secs(2), Duration::from_secs(20)))),
        cut: None,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_websocket_client_works_over_a_bad_network() -> Outcome {
    match client("1.37", true) {
        Some(client) => corpus(&client).await,
        None => Ok(()),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_spdy_client_works_over_a_bad_network() -> Outcome {
    match client("1.28", false) {
        Some(client) => corpus(&client).await,
        None => Ok(()),
    }
}

/// The bad network is before the API server, and behind it.
async fn corpus(client: &Client) -> Outcome {
    let far_client = async {
        let lab = Lab::plain().await?;
        let relay = FaultRelay::start(lab.address(), faults()).await.map_err(|error| error.to_string())?;
        cases(&lab, client, Some(&relay)).await.map_err(|why| format!("before the API server: {why}"))?;
        ensure!(relay.stalls() >= 3, "only {} connections stalled", relay.stalls());
        lab.stop().await
    };
    let far_kubelet = async {
        let near = Lab::plain().await?;
        let relay = FaultRelay::start(near.kubelet_address(), faults()).await.map_err(|error| error.to_string())?;
        let lab = Lab::before(relay.address().port()).await?;
        cases(&lab, client, None).await.map_err(|why| format!("behind the API server: {why}"))?;
        ensure!(relay.stalls() >= 3, "only {} connections stalled", relay.stalls());
        lab.stop().await?;
        near.stop().await
    };
    tokio::try_join!(far_client, far_kubelet).map(drop)
}

async fn cases(lab: &Lab, client: &Client, relay: Option<&FaultRelay>) -> Outcome {
    let run = Run { lab, client };
    let server = relay.map(|relay| format!("--server=http://{}", relay.address()));
    let args = |rest: &[&str]| -> Vec<String> {
        server.iter().cloned().chain(rest.iter().map(|word| (*word).to_owned())).collect()
    };
    let kubectl = async |rest: &[&str], input: Input<'_>| {
        let args = args(rest);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        run.kubectl_fed(&args, input).await.map_err(|why| format!("{client}: {why}\n{}", lab.logs()))
    };
    let none = Input(b"", 0);
    let exec = ["exec", "-i", "demo", "-c", "shell", "--"];

    let output = kubectl(&[&exec[..], &["sh", "-c", "echo out; echo err >&2; exit 7"]].concat(), none).await?;
    let output = output.exits(7)?;
    ensure!(output.stdout == "out\n" && output.stderr.starts_with("err\n"), "{output:?}");

    let output = kubectl(&[&exec[..], &["cat"]].concat(), Input(b"line\n", 1)).await?.exits(0)?;
    ensure!(output.stdout == "line\n", "{output:?}");

    let mib = count(2, 8);
    let block = noise(5, MIB);
    let output = kubectl(&[&exec[..], &["sha256sum"]].concat(), Input(&block, mib)).await?.exits(0)?;
    ensure!(output.stdout.starts_with(&sha256(&block, mib)), "stdin's hash differs: {output:?}");

    let file = lab.scratch.path().join("file");
    fs::write(&file, block.repeat(mib)).map_err(|error| error.to_string())?;
    let name = file.to_str().expect("paths are text");
    let output = kubectl(&[&exec[..], &["cat", name]].concat(), none).await?.exits(0)?;
    ensure!(output.stdout_sha256 == sha256(&block, mib), "stdout's hash differs: {} bytes", output.stdout_bytes);

    let back = lab.scratch.path().join("back");
    let (from, to) = (format!("demo:{name}"), back.to_str().expect("paths are text"));
    kubectl(&["cp", "-c", "shell", &from, to], none).await?.exits(0)?;
    let copied = fs::read(&back).map_err(|error| error.to_string())?;
    ensure!(sha256(&copied, 1) == sha256(&block, mib), "the copy differs");
    Ok(())
}
