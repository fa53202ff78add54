//! What it refuses, in the words of the real one.

use std::fs;

use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    net::{TcpListener, TcpStream},
};

use super::support::{
    Outcome,
    http::url,
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
    &["--context=", "exec", "demo", "--", "echo", "found"],
    &["--cluster=", "--user=", "exec", "demo", "--", "echo", "found"],
    &["--cluster=nope", "exec", "demo", "--", "true"],
    &["--user=nope", "exec", "demo", "--", "true"],
    &["--user=nope", "--cluster=nope", "exec", "demo", "--", "true"],
    &["--server=", "exec", "demo", "--", "echo", "found"],
    &["--kubeconfig=/nope", "exec", "demo", "--", "true"],
    &["--as=nobody", "exec", "demo", "--", "true"],
    &["exec", "demo", "--as=nobody", "--as-group=system:masters", "--as-group=x", "--", "echo", "found"],
    &["exec", "demo", "--as=nobody", "--as-uid=1", "--as-user-extra=a=b", "--as-user-extra=c", "--", "true"],
    &["exec", "demo", "--as=", "--as-group=g", "--", "true"],
    &["exec", "demo", "--as-uid=1", "--", "true"],
    &["exec", "demo", "--client-certificate=/nope", "--", "true"],
    &["exec", "demo", "--client-certificate=/nope", "--client-key=/nope", "--", "true"],
    &["exec", "demo", "--client-key=/nope", "--", "echo", "found"],
    &["exec", "demo", "--certificate-authority=/nope", "--", "true"],
    &["exec", "demo", "--certificate-authority=/nope", "--client-certificate=/nope", "--as-uid=1", "--", "true"],
    &["exec", "demo", "--insecure-skip-tls-verify", "--certificate-authority=/etc/passwd", "--", "true"],
    &["exec", "demo", "--insecure-skip-tls-verify", "--", "echo", "found"],
    &["exec", "demo", "--tls-server-name=localhost", "--", "echo", "found"],
    &["exec", "demo", "--proxy-url=foo://x", "--", "true"],
    &["exec", "demo", "--request-timeout=x", "--", "true"],
    &["exec", "demo", "--request-timeout=-1", "--", "true"],
    &["exec", "demo", "--request-timeout=99999999999", "--", "echo", "found"],
    &["exec", "demo", "--request-timeout=5", "--", "echo", "found"],
    &["exec", "demo", "--request-timeout=1m", "--", "echo", "found"],
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

/// Nothing but flags: who asks, and whom to trust.
#[tokio::test]
async fn a_command_line_does_without_a_kubeconfig() -> Outcome {
    let lab = Lab::start(Topology::AllInOne).await?;
    let file = |name: &str| lab.data.join(name).to_string_lossy().into_owned();
    let nothing = lab.scratch.path().join("nothing.kubeconfig");
    fs::write(&nothing, "apiVersion: v1\nkind: Config\n").map_err(|error| error.to_string())?;
    let (server, token) = (format!("--server={}", url(&lab.apiserver)?), format!("--token={}", lab.admin_token()?));
    let (trust, any) = (format!("--certificate-authority={}", file("ca.crt")), "--insecure-skip-tls-verify");
    let cert = format!("--client-certificate={}", file("apiserver-kubelet-client.crt"));
    let key = format!("--client-key={}", file("apiserver-kubelet-client.key"));
    let exec = ["exec", "demo", "-c", "shell", "--", "sh", "-c", "exit 3"];
    for (flags, code, says) in [
        (&[&*token, &*trust][..], 3, "exit code 3"),
        (&[&token, any], 3, "exit code 3"),
        (&[&token], 1, "certificate"),
        (&[&trust], 1, ""),
        (&[&trust, &cert, &key], 3, "exit code 3"),
        (&[&token, &trust, "--tls-server-name=wrong.example"], 1, "certificate"),
        (&[&token, &trust, "--tls-server-name=localhost"], 3, "exit code 3"),
        (&[&token, &trust, "--proxy-url=http://127.0.0.1:1"], 1, "refused"),
        (&[&token, &trust, "--as=nobody"], 1, "\"nobody\" cannot"),
    ] {
        for client in [Some(ours(true)), client("1.37", true)].into_iter().flatten() {
            let mut command = client.command(&nothing, &lab.scratch, &[&[&*server], flags, &exec[..]].concat());
            let done = command.output().await.map_err(|error| error.to_string())?;
            let said = String::from_utf8_lossy(&done.stderr);
            ensure!(done.status.code() == Some(code) && said.contains(says), "{client}, {flags:?}: {done:?}");
        }
    }
    lab.stop().await
}

/// Kubeconfigs that name no cluster or user, or one that is not there; lists of files, of which some are not.
#[tokio::test]
async fn it_reads_kubeconfigs_as_kubectl_1_37_does() -> Outcome {
    let Some(real) = client("1.37", true) else { return Ok(()) };
    let lab = Lab::start(Topology::AllInOne).await?;
    let text = fs::read(&lab.kubeconfig).map_err(|error| error.to_string())?;
    let whole: Value = serde_json::from_slice(&text).map_err(|error| error.to_string())?;
    let file = |name: &str, change: &dyn Fn(&mut Value)| {
        let mut config = whole.clone();
        change(&mut config);
        let path = lab.scratch.path().join(name).to_string_lossy().into_owned();
        fs::write(&path, config.to_string()).map(|()| path).map_err(|error| error.to_string())
    };
    let current = |name: &'static str| move |config: &mut Value| config["current-context"] = name.into();
    let ca = lab.ca().to_string_lossy().into_owned();
    let with_ca = |path: &str| {
        let path = path.to_owned();
        move |config: &mut Value| {
            config["clusters"][0]["cluster"]["certificate-authority-data"].take();
            config["clusters"][0]["cluster"]["certificate-authority"] = path.clone().into();
        }
    };
    let none = file("none", &current(""))?;
    let gone = file("gone", &current("gone"))?;
    let viewer = file("viewer", &current("viewer"))?;
    let lost = file("lost", &with_ca("/nope/ca"))?;
    let found = file("found", &with_ca(&ca))?;
    let trust = format!("--certificate-authority={ca}");
    let (first, second) = (format!("/nope:{viewer}:{none}"), format!("{none}::{viewer}"));
    let named = |path: &str| format!("--kubeconfig={path}");
    let cases = [
        ("", vec![named(&none), "--context=admin".into()]),
        ("", vec![named(&none), "--cluster=demo".into(), "--user=admin".into()]),
        ("", vec![named(&none), "--cluster=nope".into()]),
        ("", vec![named(&gone)]),
        ("", vec![named(&gone), "--context=".into(), "--cluster=demo".into()]),
        ("", vec![named(&gone), "--context=admin".into()]),
        ("", vec![named(&lost)]),
        ("", vec![named(&lost), "--insecure-skip-tls-verify".into()]),
        ("", vec![named(&lost), trust]),
        ("", vec![named(&found)]),
        (&first, vec![named("")]),
        (&second, vec![named("")]),
        (&first, vec![named(""), "--context=admin".into()]),
        (&first, vec![named(&gone)]),
    ];
    let mut differ = Vec::new();
    for (list, flags) in cases {
        let args: Vec<_> = flags.iter().map(String::as_str).chain(["exec", "demo", "--", "echo", "found"]).collect();
        let mut said = Vec::new();
        for client in [&real, &ours(true)] {
            let mut command = client.command(&lab.kubeconfig, &lab.scratch, &args);
            let done = command.env("KUBECONFIG", list).output().await.map_err(|error| error.to_string())?;
            said.push((
                done.status.code(),
                [done.stdout, done.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()),
            ));
        }
        if said[0] != said[1] {
            differ.push(format!("{list} {flags:?}\n  kubectl: {:?}\n  ours: {:?}", said[0], said[1]));
        }
    }
    ensure!(differ.is_empty(), "{}", differ.join("\n"));
    lab.stop().await
}

/// Behind `kubectl proxy`, say: without `--as` the command would have the proxy's rights.
#[tokio::test]
async fn plain_http_is_told_for_whom_and_no_secret() -> Outcome {
    let lab = Lab::start(Topology::AllInOne).await?;
    let nothing = lab.scratch.path().join("nothing.kubeconfig");
    fs::write(&nothing, "apiVersion: v1\nkind: Config\n").map_err(|error| error.to_string())?;
    for client in [Some(ours(true)), client("1.37", true)].into_iter().flatten() {
        let server = TcpListener::bind("127.0.0.1:0").await.map_err(|error| error.to_string())?;
        let url = format!("--server=http://{}", server.local_addr().map_err(|error| error.to_string())?);
        let args = [&*url, "--as=nobody", "--token=secret", "exec", "demo", "--", "true"];
        let mut child =
            client.command(&nothing, &lab.scratch, &args).spawn().map_err(|error| format!("{client}: {error}"))?;
        let (stream, _) = server.accept().await.map_err(|error| error.to_string())?;
        let mut lines = BufReader::new(stream).lines();
        let mut head = String::new();
        while let Some(line) = lines.next_line().await.map_err(|error| error.to_string())?.filter(|it| !it.is_empty()) {
            head += &(line.to_lowercase() + "\n");
        }
        child.kill().await.map_err(|error| error.to_string())?;
        ensure!(head.contains("impersonate-user: nobody\n") && !head.contains("secret"), "{client}: {head}");
    }
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
