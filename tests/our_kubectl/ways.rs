//! WebSocket, SPDY, and the one where the other is refused.

use std::time::Duration;

use super::support::{
    Outcome, count,
    kubectl::{Input, Run, ours},
    lab::{Lab, NO_WEBSOCKETS, Settings, Topology, sessions_in},
    noise, sha256,
};
use crate::ensure;

const MIB: usize = 1 << 20;
const OFF: &[&str] = &["--feature-gates=AllBeta=false"];

/// Flags of API server and kubelet, and whether WebSocket is asked for: passed through, translated, refused, never asked for.
pub(crate) const GATES: [(&[&str], &[&str], bool); 4] =
    [(&[], &[], true), (&[], NO_WEBSOCKETS, true), (OFF, OFF, true), (&[], &[], false)];

/// Which way it is to go.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    WebSocket,
    Spdy,
    Fallback,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_way_through_one_process_carries_every_byte_and_is_told() -> Outcome {
    for way in [Way::WebSocket, Way::Spdy, Way::Fallback] {
        goes(Topology::AllInOne, way).await.map_err(|why| format!("{way:?}: {why}"))?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_way_through_an_apiserver_and_a_kubelet_carries_every_byte_and_is_told() -> Outcome {
    for way in [Way::WebSocket, Way::Spdy, Way::Fallback] {
        goes(Topology::TwoProcesses, way).await.map_err(|why| format!("{way:?}: {why}"))?;
    }
    Ok(())
}

async fn goes(topology: Topology, way: Way) -> Outcome {
    let flags = if way == Way::Fallback { OFF } else { &[] };
    let lab = Lab::start_with(topology, Settings { apiserver: flags, kubelet: flags, ..Settings::default() }).await?;
    let client = ours(way != Way::Spdy);
    let run = Run { lab: &lab, client: &client };

    let exec = ["-v=7", "exec", "-i", "demo", "-c", "shell", "--"];
    let secret = "a command that is nobody's business";
    let script = [&exec[..], &["sh", "-c", "cat; exit 7", secret]].concat();
    let output = run.kubectl_fed(&script, Input(b"typed", 1)).await?.exits(7)?;
    ensure!(output.stdout == "typed", "{output:?}");
    let upgraded = "Response Status: 101 Switching Protocols in ";
    let output = output.says(upgraded)?.says("/exec\n")?.says("command terminated with exit code 7\n")?;
    let output = match way {
        Way::WebSocket => output.says("The subprotocol is v5.channel.k8s.io\n")?,
        Way::Spdy => output.says("The subprotocol is v4.channel.k8s.io over SPDY/3.1\n")?,
        Way::Fallback => output
            .says("Response Status: 4")?
            .says("RemoteCommand fallback: unable to upgrade streaming request: ")?
            .says("The subprotocol is v4.channel.k8s.io over SPDY/3.1\n")?,
    };
    let said = &output.stderr;
    ensure!(way == Way::Fallback || !said.contains("fallback"), "it fell back: {said}");
    ensure!(!said.contains("nobody") && !said.contains("Bearer") && !said.contains("typed"), "the log tells: {said}");

    // 16 MiB, `full` 1 GiB, both ways at once.
    let (block, times) = (noise(7, MIB), count(16, 1024));
    let output = run.kubectl_fed(&[&exec[1..], &["cat"]].concat(), Input(&block, times)).await?.exits(0)?;
    let wanted = (block.len() * times) as u64;
    ensure!(output.stdout_bytes == wanted, "{} of {wanted} bytes came: {}", output.stdout_bytes, output.stderr);
    ensure!(output.stdout_sha256 == sha256(&block, times), "the hash differs");

    let wanted = if way == Way::WebSocket { "v5.channel.k8s.io" } else { "v4.channel.k8s.io" };
    // In one process the kubelet's half logs too.
    let log = &lab.apiserver.stderr;
    let sessions = |text: &str| {
        let sessions = sessions_in(text);
        sessions.iter().filter(|session| session.field("protocol.in") == Some(wanted)).count() >= 2
    };
    log.until(Duration::from_secs(10), &format!("two sessions over {wanted}"), sessions).await?;
    lab.stop().await
}
