//! What an API server allows: real kubectl over the number of sessions, and at a number of bytes per second.

mod support;

use std::{
    process::Stdio,
    time::{Duration, Instant},
};

use support::{
    Outcome,
    kubectl::{Client, Input, Run, client},
    lab::{Lab, example},
    noise,
    process::Process,
    sha256,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tower_kube_streaming_testing::{client as raw, http};

const LIMIT: Duration = Duration::from_secs(20);

fn kubectls() -> impl Iterator<Item = Client> {
    [("1.37", true), ("1.37", false)].into_iter().filter_map(|(version, websocket)| client(version, websocket))
}

/// A kubelet, and an API server with these flags before it, without TLS.
async fn lab(flags: &[&str]) -> Outcome<Lab> {
    let mut kubelet = example("kubelet");
    let kubelet = Process::start("kubelet", kubelet.args(["--listen", "127.0.0.1:0", "--insecure"]))?;
    kubelet.ready().await?;
    let said = kubelet.stdout.text();
    let port = said.split("127.0.0.1:").nth(1).and_then(|rest| rest.lines().next()?.trim().parse().ok());
    let port = port.ok_or_else(|| format!("kubelet's stdout names no port:\n{said}"))?;
    let mut lab = Lab::before_with(port, flags).await?;
    lab.kubelet = Some(kubelet);
    Ok(lab)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_users_second_session_is_refused_with_429_until_the_first_has_ended() -> Outcome {
    for client in kubectls() {
        let lab = lab(&["--max-sessions-per-user", "1", "--max-sessions", "9"]).await?;
        let outcome = second_session(&Run { lab: &lab, client: &client }).await;
        outcome.map_err(|why| format!("{client}: {why}\n{}", lab.logs()))?;
        lab.stop().await?;
    }
    Ok(())
}

async fn second_session(run: &Run<'_>) -> Outcome {
    let said = |error: std::io::Error| error.to_string();
    for (ended, killed) in [(1, false), (2, true)] {
        let mut first = run.command(&["exec", "-i", "demo", "-c", "shell", "--", "cat"]);
        let mut first = first.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().map_err(said)?;
        let (mut stdin, mut stdout) = (first.stdin.take().expect("piped"), first.stdout.take().expect("piped"));
        stdin.write_all(b"first\n").await.map_err(said)?;
        let mut echo = [0; 6];
        tokio::time::timeout(LIMIT, stdout.read_exact(&mut echo)).await.map_err(|_| "no echo")?.map_err(said)?;

        let second = ["exec", "demo", "-c", "shell", "--", "echo", "second"];
        run.kubectl(&second).await?.exits(1)?.says(r#"too many streaming sessions of user "insecure""#)?;
        refused(run).await?;

        if killed {
            first.kill().await.map_err(said)?;
        } else {
            drop(stdin);
            let ended = tokio::time::timeout(LIMIT, first.wait()).await.map_err(|_| "the first does not end")?;
            ensure!(ended.as_ref().is_ok_and(|status| status.success()), "{ended:?}");
        }
        // A refused stream is no session; the second one that is let in ends too.
        let all = |log: &str| log.matches("session ended").count() >= 2 * ended - 1;
        run.lab.apiserver.stderr.until(LIMIT, "the session's end", all).await?;
        let second = run.kubectl(&second).await?.exits(0)?;
        ensure!(second.stdout == "second\n", "{second:?}");
        let all = |log: &str| log.matches("session ended").count() >= 2 * ended;
        run.lab.apiserver.stderr.until(LIMIT, "the second session's end", all).await?;
        ensure!(run.lab.sessions().len() == 2 * ended, "a refused stream became a session: {:?}", run.lab.sessions());
    }
    Ok(())
}

/// Raw requests of each protocol get a 429 that says when to come again.
async fn refused(run: &Run<'_>) -> Outcome {
    let said = |error: std::io::Error| error.to_string();
    let exec = raw::Exec { command: &["true"], stdin: false };
    for request in
        [exec.websocket_head("v5.channel.k8s.io"), exec.websocket_head("v4.channel.k8s.io"), exec.spdy_head()]
    {
        let mut tcp = raw::tcp(run.lab.address()).await.map_err(said)?;
        tcp.write_all(request.as_bytes()).await.map_err(said)?;
        let answer = http::read_head(&mut tcp).await.map_err(said)?;
        ensure!(answer.starts_with("HTTP/1.1 429 Too Many Requests\r\n"), "{answer}");
        ensure!(http::header(&answer, "retry-after") == Some("60"), "{answer}");
        let length = http::header(&answer, "content-length").and_then(|length| length.parse().ok());
        let mut body = String::new();
        tcp.take(length.ok_or("no length")?).read_to_string(&mut body).await.map_err(said)?;
        let tail = r#""reason":"TooManyRequests","details":{"retryAfterSeconds":60},"code":429}"#;
        ensure!(body.trim_end().ends_with(tail), "{body}");
    }
    Ok(())
}

const RATE: usize = 900 << 10;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_throttled_connection_carries_everything_at_its_rate() -> Outcome {
    for client in kubectls() {
        let lab = lab(&["--max-connection-bytes-per-sec", &RATE.to_string()]).await?;
        let outcome = throttled(&Run { lab: &lab, client: &client }).await;
        outcome.map_err(|why| format!("{client}: {why}\n{}", lab.logs()))?;
        lab.stop().await?;
    }
    Ok(())
}

/// Translated or passed through, as the client is. The bytes are those of two seconds, each way.
async fn throttled(run: &Run<'_>) -> Outcome {
    let bytes = noise(7, 2 * RATE);
    let hash = sha256(&bytes, 1);
    let least = Duration::from_millis(1700);
    let exec = ["exec", "-i", "demo", "-c", "shell", "--"];
    let begun = Instant::now();
    let there = run.kubectl_fed(&[&exec[..], &["sha256sum"]].concat(), Input(&bytes, 1)).await?.exits(0)?;
    ensure!(there.stdout.starts_with(&hash), "stdin did not arrive whole: {there:?}");
    ensure!(begun.elapsed() > least, "stdin took {:?}", begun.elapsed());

    let file = run.lab.scratch.path().join("bytes");
    std::fs::write(&file, &bytes).map_err(|error| error.to_string())?;
    let file = file.to_string_lossy();
    let begun = Instant::now();
    let back = run.kubectl(&["exec", "demo", "-c", "shell", "--", "cat", &file]).await?.exits(0)?;
    ensure!(back.stdout_sha256 == hash, "stdout did not arrive whole: {} bytes", back.stdout_bytes);
    ensure!(begun.elapsed() > least, "stdout took {:?}", begun.elapsed());
    ensure!(begun.elapsed() < LIMIT, "stdout took {:?}", begun.elapsed());
    Ok(())
}

#[tokio::test]
async fn a_rate_at_which_pings_would_come_too_late_is_refused() {
    for rate in ["1", "1023", "many"] {
        let mut apiserver = example("apiserver");
        let manifest = "Cargo.toml";
        apiserver.args(["--manifest", manifest, "--max-connection-bytes-per-sec", rate]);
        let output = apiserver.output().await.expect("it runs");
        assert_eq!(output.status.code(), Some(2), "{rate}");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("--max-connection-bytes-per-sec"), "{said}");
    }
}
