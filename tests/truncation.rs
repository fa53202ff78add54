//! No truncation: the last byte before an exit arrives, and so does the exit code, however slow the reader is.

mod support;

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use futures_util::{StreamExt, TryStreamExt, stream};
use sha2::{Digest, Sha256};
use support::{
    Outcome, count, hex,
    kubectl::{Run, client},
    lab::Lab,
    noise, sha256,
};
use tokio::time::{Instant, sleep_until};
use tower_kube_streaming_testing::client::{Ended, Exec, Spdy, V5};

const MIB: usize = 1 << 20;

/// What the slow reader reads in a second.
const SLOW: u64 = 10_000_000;

#[derive(Clone, Copy, Debug)]
enum Over {
    V5,
    Spdy,
}

/// Runs `cat FILE; exit 7`, reads no faster than `rate`, and checks what came.
async fn cat(lab: &Lab, over: Over, file: &Path, wanted: &str, rate: Option<u64>) -> Outcome {
    let script = format!("cat '{}'; exit 7", file.display());
    let exec = Exec { command: &["sh", "-c", &script], stdin: false };
    let (mut hash, mut length, start) = (Sha256::new(), 0, Instant::now());
    let sink = |bytes: Vec<u8>| {
        hash.update(&bytes);
        length += bytes.len() as u64;
        let due = rate.map(|rate| start + Duration::from_micros(length * 1_000_000 / rate));
        async move {
            if let Some(due) = due {
                sleep_until(due).await;
            }
        }
    };
    let ended: Ended = match over {
        Over::V5 => V5::open(lab.address(), &exec).await.map_err(|e| e.to_string())?.output.finish(sink).await,
        Over::Spdy => Spdy::open(lab.address(), &exec).await.map_err(|e| e.to_string())?.finish(sink).await,
    }
    .map_err(|error| format!("{over:?}, after {length} bytes: {error}"))?;
    ensure!(hex(&hash.finalize()) == wanted, "{over:?}: {length} bytes came, and their hash differs: {ended:?}");
    ensure!(ended.code() == Some(7), "{over:?}: exit code 7 was expected: {ended:?}");
    Ok(())
}

fn file_of(lab: &Lab, mib: usize) -> Outcome<(PathBuf, String)> {
    let block = noise(mib as u64, mib * MIB);
    let file = lab.scratch.path().join(format!("{mib}-mib"));
    fs::write(&file, &block).map_err(|error| error.to_string())?;
    Ok((file, sha256(&block, 1)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_writes_and_exits_at_once_loses_nothing() -> Outcome {
    let lab = Lab::plain().await?;
    let (file, wanted) = file_of(&lab, 2)?;
    let runs = count(20, 1000);
    for over in [Over::V5, Over::Spdy] {
        let all = stream::iter(0..runs).map(|_| cat(&lab, over, &file, &wanted, None)).buffer_unordered(4);
        all.try_collect::<Vec<()>>().await.map_err(|why| format!("{why}\n{}", lab.logs()))?;
        println!("{runs} runs of 2 MiB over {over:?}: every hash equal, every exit code right");
    }
    lab.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_gets_the_last_byte_of_a_command_that_exits_at_once() -> Outcome {
    let lab = Lab::plain().await?;
    let (file, wanted) = file_of(&lab, 2)?;
    let script = format!("cat '{}'; exit 7", file.display());
    let runs = count(5, 1000);
    for client in [("1.37", true), ("1.28", false)].into_iter().filter_map(|(of, ws)| client(of, ws)) {
        let run = Run { lab: &lab, client: &client };
        let one = async || {
            let output = run.kubectl(&["exec", "demo", "-c", "shell", "--", "sh", "-c", &script]).await?.exits(7)?;
            ensure!(output.stdout_sha256 == wanted, "{} bytes came", output.stdout_bytes);
            Ok(())
        };
        let all = stream::iter(0..runs).map(|_| one()).buffer_unordered(4);
        all.try_collect::<Vec<()>>().await.map_err(|why| format!("{client}: {why}\n{}", lab.logs()))?;
        println!("{runs} runs of 2 MiB with {client}: every hash equal, every exit code right");
    }
    lab.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_gets_everything() -> Outcome {
    let lab = Lab::plain().await?;
    let (file, wanted) = file_of(&lab, count(20, 200))?;
    let runs = count(1, 20);
    for over in [Over::V5, Over::Spdy] {
        let all = stream::iter(0..runs).map(|_| cat(&lab, over, &file, &wanted, Some(SLOW))).buffer_unordered(4);
        all.try_collect::<Vec<()>>().await.map_err(|why| format!("{why}\n{}", lab.logs()))?;
        println!("{runs} runs of {} MiB at 10 MB/s over {over:?}: every hash equal", count(20, 200));
    }
    lab.stop().await
}
