//! What Prometheus' own checker says of `/metrics`, and of the rules in `deploy/prometheus`.

mod support;

use std::{
    collections::BTreeSet,
    env, fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use support::{
    Outcome,
    lab::{Lab, sessions_in},
    skip,
};
use tokio::{io::AsyncWriteExt, net::TcpStream, process::Command};
use tower_kube_streaming_testing::client::{Exec, Spdy, V5};

const FIVE: Exec<'_> = Exec { command: &["sh", "-c", "cat; echo no >&2; exit 5"], stdin: true };
const RULES: &str = "deploy/prometheus/rules.yaml";

/// Prometheus' checker. `None`: it is not there, which is a SKIP.
fn promtool() -> Option<PathBuf> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools");
    let path = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&path).chain([own]).map(|dir| dir.join("promtool")).find(|file| file.is_file());
    if found.is_none() {
        skip("there is no promtool; scripts/test fetches it");
    }
    found
}

/// Runs the checker; what it says if it is not content.
async fn check(promtool: &Path, args: &[&str], input: &str) -> Outcome<Option<String>> {
    let mut command = Command::new(promtool);
    command.args(args).current_dir(env!("CARGO_MANIFEST_DIR")).kill_on_drop(true);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("{}: {error}", promtool.display()))?;
    let mut stdin = child.stdin.take().expect("stdin is piped");
    // It reads all of it, or says why not.
    let _ = stdin.write_all(input.as_bytes()).await;
    drop(stdin);
    let output = child.wait_with_output().await.map_err(|error| error.to_string())?;
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    Ok((!output.status.success()).then_some(said))
}

async fn get(address: SocketAddr, path: &str) -> Outcome<(StatusCode, String)> {
    let failed = |error: &dyn std::fmt::Display| format!("GET {path}: {error}");
    let tcp = TcpStream::connect(address).await.map_err(|error| failed(&error))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(tcp)).await.map_err(|error| failed(&error))?;
    // It ends with the body.
    tokio::spawn(connection);
    let request = Request::get(path).header("Host", "test").body(Empty::<Bytes>::new()).expect("a request");
    let (head, body) = sender.send_request(request).await.map_err(|error| failed(&error))?.into_parts();
    let body = body.collect().await.map_err(|error| failed(&error))?.to_bytes();
    Ok((head.status, String::from_utf8_lossy(&body).into_owned()))
}

async fn metrics(address: SocketAddr) -> Outcome<String> {
    let (code, text) = get(address, "/metrics").await?;
    if code == StatusCode::OK { Ok(text) } else { Err(format!("/metrics: {code} {text}")) }
}

/// Sessions of both carriers, and requests that are refused.
async fn traffic(lab: &Lab) -> Outcome {
    let failed = |error: std::io::Error| error.to_string();
    let v5 = V5::open(lab.address(), &FIVE).await.map_err(failed)?;
    v5.input.send(b"hello").await.map_err(failed)?;
    v5.input.end().await.map_err(failed)?;
    let ended = v5.output.finish(|_| async {}).await.map_err(failed)?;
    ensure!(ended.code() == Some(5), "{ended:?}");
    let mut spdy = Spdy::open(lab.address(), &FIVE).await.map_err(failed)?;
    if let Some(mut stdin) = spdy.stdin.take() {
        stdin.write_all(b"hello").await.map_err(failed)?;
        stdin.shutdown().await.map_err(failed)?;
        let ended = spdy.finish(|_| async {}).await.map_err(failed)?;
        ensure!(ended.code() == Some(5), "{ended:?}");
    }
    let exec = FIVE.path();
    for (path, code) in [(exec.clone(), 400), (exec.replace("/demo/", "/nosuch/"), 404)] {
        let (answer, text) = get(lab.address(), &path).await?;
        ensure!(answer == code, "{path}: {answer} {text}");
    }
    // A session is counted before its line is written.
    for process in [Some(&lab.apiserver), lab.kubelet.as_ref()].into_iter().flatten() {
        let both = |text: &str| sessions_in(text).len() >= 2;
        process.stderr.until(Duration::from_secs(30), "the end of both sessions", both).await?;
    }
    Ok(())
}

/// The value of a series.
fn value(text: &str, series: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(series)?.trim().parse().ok())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_of_both_servers_pass_promtool_after_traffic() -> Outcome {
    let Some(promtool) = promtool() else { return Ok(()) };
    let lab = Lab::plain().await?;
    let quiet = metrics(lab.address()).await?;
    traffic(&lab).await.map_err(|why| format!("{why}\n{}", lab.logs()))?;
    let texts = [metrics(lab.address()).await?, metrics(lab.kubelet_address()).await?];
    ensure!(quiet.lines().count() == texts[0].lines().count(), "traffic has made series");
    for (text, wanted) in texts.iter().zip([
        [
            (r#"num_ws_remote_command_v5_total{type="success"}"#, 1.0),
            (r#"apiserver_streaming_close_causes_total{cause="finished"}"#, 2.0),
            (r#"apiserver_streaming_refused_requests_total{subresource="exec",code="404"}"#, 1.0),
            (r#"apiserver_streaming_bytes_total{subresource="exec",stream="stdin",direction="in"}"#, 5.0),
            (r#"apiserver_streaming_bytes_total{subresource="exec",stream="stderr",direction="out"}"#, 3.0),
        ],
        [
            (r#"kubelet_streaming_close_causes_total{cause="finished"}"#, 2.0),
            (r#"kubelet_streaming_bytes_total{subresource="exec",stream="stdin",direction="in"}"#, 10.0),
            (r#"kubelet_streaming_bytes_total{subresource="exec",stream="stdout",direction="out"}"#, 10.0),
            (r#"kubelet_streaming_bytes_total{subresource="exec",stream="stderr",direction="out"}"#, 6.0),
            (r#"kubelet_streaming_bytes_total{subresource="exec",stream="carried",direction="out"}"#, 0.0),
        ],
    ]) {
        for (series, wanted) in wanted {
            ensure!(value(text, series) == Some(wanted), "{series}: {:?}", value(text, series));
        }
    }
    for text in &texts {
        faults(&promtool, text).await?;
    }
    // One process serves both, and its text is both.
    faults(&promtool, &texts.concat()).await?;
    lab.stop().await
}

/// Fails on all that the checker says: it lints names as well, and finds no fault with the KEP's and upstream's.
async fn faults(promtool: &Path, text: &str) -> Outcome {
    let said = check(promtool, &["check", "metrics"], text).await?;
    ensure!(said.is_none(), "promtool check metrics:\n{}", said.unwrap_or_default());
    Ok(())
}

#[tokio::test]
async fn promtool_finds_fault_where_there_is_one() -> Outcome {
    let Some(promtool) = promtool() else { return Ok(()) };
    for (text, fault) in [
        ("# HELP a_total A counter.\n# TYPE a_total counter\na_total{x=\"1} 2\n", "error"),
        ("# HELP sessions A counter.\n# TYPE sessions counter\nsessions 2\n", "_total"),
    ] {
        let why = faults(&promtool, text).await.err().unwrap_or_default();
        ensure!(why.contains(fault), "{text:?} passed: {why:?}");
    }
    let wrong = check(&promtool, &["test", "rules", "/nonexistent.yaml"], "").await?;
    ensure!(wrong.is_some(), "promtool does not tell of its failures");
    Ok(())
}

#[tokio::test]
async fn the_rules_are_valid_and_fire_when_they_should() -> Outcome {
    let Some(promtool) = promtool() else { return Ok(()) };
    for args in [["check", "rules", RULES], ["test", "rules", "deploy/prometheus/rules_test.yaml"]] {
        let said = check(&promtool, &args, "").await?;
        ensure!(said.is_none(), "promtool {args:?}:\n{}", said.unwrap_or_default());
    }
    Ok(())
}

#[test]
fn the_rules_name_metrics_that_there_are() {
    use tower_kube_streaming::adapters::prometheus::StreamingMetrics;
    let text = StreamingMetrics::api_server().render() + &StreamingMetrics::kubelet().render();
    let there: BTreeSet<&str> =
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    let rules = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(RULES)).expect("the rules are there");
    let words = rules.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let named: BTreeSet<&str> = words
        .filter(|word| ["num_ws_", "apiserver_", "kubelet_"].iter().any(|of| word.starts_with(of)))
        .filter(|word| word.ends_with("_total"))
        .collect();
    assert!(named.len() >= 6, "{named:?}");
    let missing: Vec<_> = named.difference(&there).collect();
    assert!(missing.is_empty(), "{missing:?}");
}
