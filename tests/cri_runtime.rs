//! The example `cri_runtime`, which serves CRI and streams by this library: by itself, as kubelets' Go clients ask it, and
//! with real kubectl through the example API server and the example kubelet.

mod support;

#[path = "../examples/cri_runtime/messages.rs"]
#[allow(unreachable_pub, dead_code, reason = "the example's own file")]
mod messages;
#[path = "cri_runtime/toy.rs"]
#[allow(unreachable_pub, reason = "shorter to read than pub(crate)")]
mod toy;

use std::{fs, io::Cursor, time::Duration};

use http::{Request, header};
use messages::{
    AttachRequest, ContainerFilter, ContainerStatusRequest, ContainerStatusResponse, CreateContainerRequest, Id,
    ListContainersRequest, ListContainersResponse, Nothing, PortForwardRequest, StreamingResponse, VersionResponse,
};
use support::{
    Outcome, Scratch,
    forward::Forward,
    http::{Login, url},
    kubectl::{Client, Input, Run, client, forwarder},
    lab::{Lab, Session, Settings, Topology, example, sessions_in},
    noise,
    pod::Pod,
    process::Process,
    sha256,
    terminal::Terminal,
    through,
};
use tokio::{
    io::{AsyncReadExt, duplex},
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};
use tower_kube_streaming::{
    client::{ExecRequest, Execute, SpdyExecutor},
    remote_command::{Exit, Input as Stdin, Output as Out, Stdio, Version},
    services::TcpConnect,
    upgrade::StreamOptions,
};
use toy::{Toy, ask};

const LIMIT: Duration = Duration::from_secs(30);

/// The lab's Pod, as this runtime runs it.
const POD: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: demo, namespace: default}
spec:
  containers:
    - {name: shell, image: this-host, command: [/bin/sh], stdin: true, tty: true}
    - {name: sidecar, image: this-host, command: [/bin/sh, -c], args: ['n=0; while sleep 0.1; do n=$((n+1)); echo "line $n"; done']}
"#;

/// The API server, and a kubelet that runs the Pod there.
async fn lab(toy: &Toy, speaks_websocket: bool, manifests: &Scratch) -> Outcome<Lab> {
    let file = manifests.path().join("pod.yaml");
    fs::write(&file, POD).map_err(|error| error.to_string())?;
    let (endpoint, pods) = (toy.flag(), format!("--pod-manifest-path={}", file.display()));
    let mut flags = vec![endpoint.as_str(), &pods];
    if speaks_websocket {
        flags.push("--container-runtime-speaks-websocket");
    }
    Lab::start_with(Topology::TwoProcesses, Settings { kubelet: &flags, ..Settings::default() }).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_streams_through_a_runtime_that_offers_what_containerd_does() -> Outcome {
    kubectl_streams(false).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_streams_to_a_runtime_that_speaks_v5_and_the_tunnel_itself() -> Outcome {
    kubectl_streams(true).await
}

async fn kubectl_streams(speaks_websocket: bool) -> Outcome {
    let toy = Toy::start(if speaks_websocket { &["--offer-websocket"] } else { &[] }).await?;
    let (manifests, pod) = (Scratch::new("pods"), Pod::start().await?);
    let lab = lab(&toy, speaks_websocket, &manifests).await?;
    for (version, websocket) in [("1.28", false), ("1.37", true)] {
        let Some(client) = client(version, websocket) else { continue };
        let all = Whole { run: Run { lab: &lab, client: &client }, toy: &toy, speaks_websocket };
        let case = |result: Outcome| {
            let log = || format!("{}--- cri_runtime's stderr\n{}", lab.logs(), toy.process.stderr.text());
            result.map_err(|why| format!("{client}: {why}\n{}", log()))
        };
        case(all.exec().await)?;
        case(all.terminal().await)?;
        case(all.attach().await)?;
        case(all.copy().await)?;
        let Some(client) = forwarder(version, websocket) else { continue };
        let run = Run { lab: &lab, client: &client };
        case(Whole { run, toy: &toy, speaks_websocket }.forward(&pod).await)?;
    }
    lab.stop().await?;
    toy.stop().await
}

/// The sessions of that kind that have ended, by a log.
fn of_kind(log: &str, subresource: &str) -> Vec<Session> {
    let ended = sessions_in(log).into_iter();
    ended.filter(|session| session.field("subresource").is_some_and(|kind| kind.starts_with(subresource))).collect()
}

/// One client, against all three processes.
struct Whole<'a> {
    run: Run<'a>,
    toy: &'a Toy,
    speaks_websocket: bool,
}

impl Whole<'_> {
    /// How many sessions of that kind have ended at the kubelet and at the runtime.
    fn ended(&self, subresource: &str) -> [usize; 2] {
        let kubelet = self.run.lab.kubelet.as_ref().expect("two processes");
        [kubelet, &self.toy.process].map(|process| of_kind(&process.stderr.text(), subresource).len())
    }

    /// What the next session after those was spoken in: from the kubelet's client, to the runtime, and as the runtime has
    /// it.
    async fn spoke(&self, subresource: &str, before: [usize; 2]) -> Outcome<[String; 3]> {
        let mut sessions = Vec::new();
        let kubelet = self.run.lab.kubelet.as_ref().expect("two processes");
        for (process, before) in [(kubelet, before[0]), (&self.toy.process, before[1])] {
            let ended = |text: &str| of_kind(text, subresource).len() > before;
            let text = process.stderr.until(LIMIT, "the session's line", ended).await?;
            sessions.push(of_kind(&text, subresource).swap_remove(before));
        }
        let field = |session: &Session, name| session.field(name).unwrap_or_default().to_owned();
        let (kubelet, runtime) = (&sessions[0], &sessions[1]);
        Ok([field(kubelet, "protocol.in"), field(kubelet, "protocol.out"), field(runtime, "protocol.in")])
    }

    /// Checks what was spoken: by this client, and to the runtime if it speaks only SPDY, or `websocket` itself.
    fn check_spoken(&self, spoke: &[String; 3], websocket: &str, spdy: &str) -> Outcome {
        let client = if self.run.client.websocket { websocket } else { spdy };
        let runtime = if self.speaks_websocket { client } else { spdy };
        ensure!(*spoke == [client, runtime, runtime], "{spoke:?}, not {:?}", [client, runtime, runtime]);
        Ok(())
    }

    async fn exec(&self) -> Outcome {
        let run = &self.run;
        let sh = |script| ["exec", "demo", "-c", "sidecar", "--", "sh", "-c", script];
        let before = self.ended("exec");
        run.kubectl(&sh("exit 7")).await?.exits(7)?;
        self.check_spoken(&self.spoke("exec", before).await?, "v5.channel.k8s.io", "v4.channel.k8s.io")?;

        let output = run.kubectl(&sh("echo out; echo err >&2; exit 3")).await?.exits(3)?.says("err")?;
        ensure!(output.stdout == "out\n", "{output:?}");
        let nosuch = ["exec", "demo", "-c", "sidecar", "--", "/nosuch"];
        run.kubectl(&nosuch).await?.exits(1)?.says("no such file or directory")?;
        let (block, times) = (noise(5, 1 << 20), 8);
        let args = ["exec", "-i", "demo", "-c", "sidecar", "--", "sha256sum"];
        let output = run.kubectl_fed(&args, Input(&block, times)).await?.exits(0)?;
        ensure!(output.stdout.starts_with(&sha256(&block, times)), "{output:?}");
        let output = run.kubectl(&sh("head -c 33554432 /dev/zero")).await?.exits(0)?;
        ensure!(output.stdout_sha256 == sha256(&[0; 1 << 20], 32), "{} bytes", output.stdout_bytes);
        Ok(())
    }

    async fn terminal(&self) -> Outcome {
        let args = ["exec", "-it", "demo", "-c", "sidecar", "--", "sh"];
        let mut terminal = Terminal::start((33, 101), |pty| self.run.command_on(pty, &args))?;
        for (size, marker) in [((33, 101), "first"), ((44, 132), "then")] {
            terminal.resize(size)?;
            let (rows, columns) = size;
            // The size travels beside the data, so the first look may be too early.
            terminal.types(&format!(
                "until [ \"$(stty size)\" = '{rows} {columns}' ]; do sleep 0.05; done; echo \"{marker}:$(stty size).\""
            ))?;
            terminal.shows(&format!("{marker}:{rows} {columns}.")).await?;
        }
        terminal.types("exit 5")?;
        let code = terminal.exit_code().await?;
        ensure!(code == 5, "exit code {code}, not 5");
        Ok(())
    }

    async fn attach(&self) -> Outcome {
        let watch = ["attach", "demo", "-c", "sidecar"];
        let attached = Process::start("kubectl", &mut self.run.command(&watch))?;
        attached.stdout.until(LIMIT, "two lines", |text| text.matches("line ").count() > 1).await?;
        drop(attached);
        let args = ["attach", "-it", "demo", "-c", "shell"];
        let mut terminal = Terminal::start((33, 101), |pty| self.run.command_on(pty, &args))?;
        terminal.types("echo \"attached $((40+2))\"")?;
        terminal.shows("attached 42").await
    }

    async fn copy(&self) -> Outcome {
        let dir = self.run.lab.scratch.path();
        let [here, there, back] = ["here", "there", "back"].map(|name| dir.join(name).display().to_string());
        let bytes = noise(7, 3 << 20);
        fs::write(&here, &bytes).map_err(|error| error.to_string())?;
        // The container's files are this host's.
        let there = format!("demo:{there}");
        self.run.kubectl(&["cp", &here, &there, "-c", "sidecar"]).await?.exits(0)?;
        self.run.kubectl(&["cp", &there, &back, "-c", "sidecar"]).await?.exits(0)?;
        ensure!(fs::read(&back).is_ok_and(|copied| copied == bytes), "the file came back changed");
        Ok(())
    }

    async fn forward(&self, pod: &Pod) -> Outcome {
        let before = self.ended("portforward");
        let forward = Forward::start(&self.run, &[pod.web]).await?;
        for _ in 0..3 {
            through::page(forward.to(pod.web)).await?;
        }
        through::download(forward.to(pod.web), 4).await?;
        forward.stop().await?;
        self.check_spoken(
            &self.spoke("portforward", before).await?,
            "SPDY/3.1+portforward.k8s.io",
            "portforward.k8s.io",
        )
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_that_is_stopped_ends_its_execs() -> Outcome {
    let Some(client): Option<Client> = client("1.37", true) else { return Ok(()) };
    let (toy, manifests) = (Toy::start(&[]).await?, Scratch::new("pods"));
    let lab = lab(&toy, false, &manifests).await?;
    let run = Run { lab: &lab, client: &client };
    let args = ["exec", "demo", "-c", "sidecar", "--", "sh", "-c", "echo begun; sleep 600"];
    let exec = Process::start("kubectl", &mut run.command(&args))?;
    exec.stdout.until(LIMIT, "its first line", |text| text.contains("begun")).await?;
    let labels = [("io.kubernetes.container.name".to_owned(), "sidecar".to_owned())].into();
    let filter = ContainerFilter { label_selector: labels, ..ContainerFilter::default() };
    let listed = toy.call("ListContainers", ListContainersRequest { filter: Some(filter) }).await;
    let ListContainersResponse { containers } = listed.map_err(|status| status.to_string())?;
    ensure!(containers.len() == 1, "{containers:?}");
    let id = containers[0].id.clone();
    let Nothing {} = toy.call("StopContainer", Id { id }).await.map_err(|status| status.to_string())?;
    let status = exec.ended().await?;
    ensure!(status.code() == Some(137), "{status}");
    lab.stop().await?;
    toy.stop().await
}

fn code<T: std::fmt::Debug>(answer: Result<T, Status>) -> (Code, String) {
    answer
        .map_or_else(|status| (status.code(), status.message().to_owned()), |answer| (Code::Ok, format!("{answer:?}")))
}

/// The head of the answer; the connection is closed. A drain would wait for a session on it.
async fn head_of(url: &str, head: &str) -> Outcome<http::Response<()>> {
    Ok(ask(url, head).await?.0)
}

/// What kubelets' and crictl's Go clients send: each protocol in a header line of its own, `v4` first.
fn go(method: &str, target: &str, protocols: &[&str]) -> String {
    let protocols = protocols.iter().map(|protocol| format!("\nX-Stream-Protocol-Version: {protocol}"));
    let length = if method == "POST" { "\nContent-Length: 0" } else { "" };
    format!(
        "{method} {target} HTTP/1.1\nHost: 127.0.0.1\nUser-Agent: Go-http-client/1.1{length}\nConnection: Upgrade\n\
         Upgrade: SPDY/3.1{}",
        protocols.collect::<String>()
    )
}

const V4_TO_V1: [&str; 4] = ["v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"];

#[tokio::test]
async fn urls_are_absolute_and_go_clients_are_served_as_by_containerd() -> Outcome {
    let toy = Toy::start(&[]).await?;
    let text = |status: Status| status.to_string();
    let (sandbox, container) = toy.container().await.map_err(text)?;
    for method in ["POST", "GET"] {
        for (absolute, protocols, chosen) in [
            (false, &V4_TO_V1[..], "v4.channel.k8s.io"),
            (true, &V4_TO_V1, "v4.channel.k8s.io"),
            (false, &V4_TO_V1[1..], "v3.channel.k8s.io"),
            (false, &["v9.channel.k8s.io", "channel.k8s.io"], "channel.k8s.io"),
        ] {
            let url = toy.exec(&container, "exit 0").await.map_err(text)?;
            let path = url.strip_prefix("http://127.0.0.1:").and_then(|rest| rest.find('/').map(|at| &rest[at..]));
            let path = path.ok_or_else(|| format!("{url} is not absolute"))?;
            ensure!(path.starts_with("/exec/"), "{path}");
            let target = if absolute { &*url } else { path };
            let answer = head_of(&url, &go(method, target, protocols)).await?;
            ensure!(answer.status() == 101, "{method} {protocols:?}: {answer:?}");
            let headers = answer.headers();
            ensure!(headers[header::CONNECTION] == "Upgrade" && headers[header::UPGRADE] == "SPDY/3.1", "{headers:?}");
            let spoken: Vec<_> = headers.get_all("x-stream-protocol-version").iter().collect();
            ensure!(spoken == [chosen], "{spoken:?}");
        }
    }
    let request = PortForwardRequest { pod_sandbox_id: sandbox, port: vec![8080] };
    let StreamingResponse { url } = toy.call("PortForward", request).await.map_err(text)?;
    ensure!(url.contains("/portforward/"), "{url}");
    let answer = head_of(&url, &go("POST", &url, &["portforward.k8s.io"])).await?;
    ensure!(answer.status() == 101, "{answer:?}");
    toy.stop().await
}

#[tokio::test]
async fn our_own_client_runs_commands_at_the_urls_in_every_version() -> Outcome {
    let toy = Toy::start(&[]).await?;
    let text = |status: Status| status.to_string();
    let (_, container) = toy.container().await.map_err(text)?;
    let options = StreamOptions { stdin: true, stdout: true, stderr: true, ..StreamOptions::default() };
    for version in [Version::V4, Version::V3, Version::V2, Version::V1] {
        // v1 cannot end stdin.
        let url = toy.exec(&container, "head -n 1").await.map_err(text)?;
        let stdout = run(&url, &options, version, "hello\n").await?;
        ensure!(stdout == (Exit::Success, "hello\n".to_owned()), "{version}: {stdout:?}");
    }
    let url = toy.exec(&container, "cat; exit 9").await.map_err(text)?;
    let stdout = run(&url, &options, Version::V4, "").await?;
    ensure!(stdout == (Exit::Code(9), String::new()), "{stdout:?}");
    toy.stop().await
}

async fn run(url: &str, options: &StreamOptions, version: Version, stdin: &'static str) -> Outcome<(Exit, String)> {
    let mut stdio = Stdio::new(CancellationToken::new());
    let ((mut out, stdout), (mut err, stderr)) = (duplex(4096), duplex(4096));
    stdio.stdin = Some(Stdin::new(Cursor::new(stdin.as_bytes())));
    stdio.stdout = Some(Out::new(stdout));
    stdio.stderr = Some(Out::new(stderr));
    let request = ExecRequest::new(url, options.clone()).map_err(|error| error.to_string())?;
    let executor = SpdyExecutor::new(TcpConnect).versions([version]);
    let (mut said, mut complained) = (String::new(), String::new());
    let run = async { executor.execute(&request, stdio).await.map_err(|error| error.to_string()) };
    let read = async { out.read_to_string(&mut said).await.map_err(|error| error.to_string()) };
    let ignore = async { err.read_to_string(&mut complained).await.map_err(|error| error.to_string()) };
    let joined = async { tokio::try_join!(run, read, ignore) };
    let joined = timeout(LIMIT, joined).await.map_err(|_| format!("{version}: it does not end"))?;
    let (exit, ..) = joined?;
    ensure!(complained.is_empty(), "{complained}");
    Ok((exit, said))
}

#[tokio::test]
async fn tokens_that_are_used_guessed_or_of_another_kind_are_not_found() -> Outcome {
    let toy = Toy::start(&[]).await?;
    let text = |status: Status| status.to_string();
    let (_, container) = toy.container().await.map_err(text)?;
    let refused = async |url: &str| -> Outcome {
        let (answer, mut io) = ask(url, &go("POST", url, &V4_TO_V1)).await?;
        ensure!(answer.status() == 404, "{answer:?}");
        let mut body = String::new();
        let length = "404 page not found\n".len() as u64;
        (&mut io).take(length).read_to_string(&mut body).await.map_err(|error| error.to_string())?;
        ensure!(body == "404 page not found\n", "{body}");
        Ok(())
    };
    let url = toy.exec(&container, "exit 0").await.map_err(text)?;
    let answer = head_of(&url, &go("POST", &url, &V4_TO_V1)).await?;
    ensure!(answer.status() == 101, "{answer:?}");
    refused(&url).await?;

    let url = toy.exec(&container, "exit 0").await.map_err(text)?;
    refused(&url.replace("/exec/", "/attach/")).await?;
    refused(&url).await?;

    let guess = format!("{}/{}", url.rsplit_once('/').unwrap_or_default().0, "A".repeat(22));
    refused(&guess).await?;

    // Issued for a container that has been removed since: the runtime says so.
    let url = toy.exec(&container, "exit 0").await.map_err(text)?;
    let Nothing {} = toy.call("RemoveContainer", Id { id: container }).await.map_err(text)?;
    let answer = head_of(&url, &go("POST", &url, &V4_TO_V1)).await?;
    ensure!(answer.status() == 404, "{answer:?}");
    refused(&url).await?;
    toy.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_thousand_and_one_urls_the_last_is_refused_and_the_kubelet_says_when_to_come_again() -> Outcome {
    const FULL: &str = "maximum number of in-flight requests exceeded";
    let (toy, manifests) = (Toy::start(&[]).await?, Scratch::new("pods"));
    let lab = lab(&toy, false, &manifests).await?;
    let text = |status: Status| status.to_string();
    let (sandbox, container) = toy.container().await.map_err(text)?;
    let mut last = String::new();
    for _ in 0..1_000 {
        last = toy.exec(&container, "exit 0").await.map_err(text)?;
    }
    let attach = AttachRequest { container_id: container.clone(), stdout: true, ..AttachRequest::default() };
    let forward = PortForwardRequest { pod_sandbox_id: sandbox, port: vec![] };
    for refused in [
        code(toy.exec(&container, "exit 0").await),
        code(toy.call::<_, StreamingResponse>("Attach", attach).await),
        code(toy.call::<_, StreamingResponse>("PortForward", forward).await),
    ] {
        ensure!(refused == (Code::ResourceExhausted, FULL.to_owned()), "{refused:?}");
    }

    let ask_kubelet = async || -> Outcome<http::Response<String>> {
        let read = |name: &str| fs::read(lab.data.join(name)).map_err(|error| format!("{name}: {error}"));
        let (cert, key) = (read("apiserver-kubelet-client.crt")?, read("apiserver-kubelet-client.key")?);
        let kubelet = url(lab.kubelet.as_ref().expect("two processes"))?;
        let request = Request::post(format!("{kubelet}/exec/default/demo/sidecar?command=true&output=1"))
            .header(header::CONNECTION, "Upgrade")
            .header(header::UPGRADE, "SPDY/3.1")
            .header("x-stream-protocol-version", "v4.channel.k8s.io");
        let request = request.body(()).map_err(|error| error.to_string())?;
        support::http::ask(&lab.ca(), Login::Certificate(&cert, &key), request).await
    };
    let answer = ask_kubelet().await?;
    ensure!(answer.status() == 429 && answer.headers()[header::RETRY_AFTER] == "60", "{answer:?}");
    ensure!(*answer.body() == format!("rpc error: code = ResourceExhausted desc = {FULL}\n"), "{answer:?}");

    // One that is used makes room for one.
    let answer = head_of(&last, &go("POST", &last, &V4_TO_V1)).await?;
    ensure!(answer.status() == 101, "{answer:?}");
    let answer = ask_kubelet().await?;
    ensure!(answer.status() == 101, "{answer:?}");
    lab.stop().await?;
    toy.stop().await
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_by_the_rpc() -> Outcome {
    let toy = Toy::start(&[]).await?;
    let text = |status: Status| status.to_string();
    let (sandbox, container) = toy.container().await.map_err(text)?;
    let version: VersionResponse = toy.call("Version", Nothing {}).await.map_err(text)?;
    ensure!(version.runtime_api_version == "v1", "{version:?}");
    let request = ContainerStatusRequest { container_id: container.clone(), verbose: true };
    let status: ContainerStatusResponse = toy.call("ContainerStatus", request).await.map_err(text)?;
    ensure!(status.info["info"] == r#"{"runtimeSpec":{"process":{"terminal":false}}}"#, "{status:?}");

    let attach = |container_id: &str, stdout| {
        let request = AttachRequest { container_id: container_id.to_owned(), stdout, ..AttachRequest::default() };
        toy.call::<_, StreamingResponse>("Attach", request)
    };
    let forward = |sandbox: &str, port| {
        let request = PortForwardRequest { pod_sandbox_id: sandbox.to_owned(), port: vec![port] };
        toy.call::<_, StreamingResponse>("PortForward", request)
    };
    let create = CreateContainerRequest { pod_sandbox_id: sandbox.clone(), config: None };
    for (answer, refused) in [
        (code(toy.exec("nosuch", "exit 0").await), Code::NotFound),
        (code(attach("", true).await), Code::NotFound),
        (code(forward("nosuch", 80).await), Code::NotFound),
        (code(attach(&container, false).await), Code::InvalidArgument),
        (code(forward(&sandbox, 65_536).await), Code::InvalidArgument),
        (code(toy.call::<_, Id>("CreateContainer", create).await), Code::InvalidArgument),
        (code(toy.call::<_, Nothing>("StartContainer", Id { id: container }).await), Code::FailedPrecondition),
        (code(toy.call::<_, Nothing>("PullImage", Nothing {}).await), Code::Unimplemented),
    ] {
        ensure!(answer.0 == refused, "{answer:?}, not {refused:?}");
    }
    toy.stop().await
}

#[tokio::test]
async fn a_socket_that_is_served_is_not_taken_and_one_that_was_left_over_is() -> Outcome {
    let mut toy = Toy::start(&[]).await?;
    let endpoint = toy.endpoint.clone();
    let start = || Process::start("cri_runtime", example("cri_runtime").arg("--listen").arg(&endpoint));
    let second = start()?;
    let stderr = second.stderr.clone();
    let status = second.ended().await?;
    ensure!(status.code() == Some(2) && stderr.text().contains("Address already in use"), "{}", stderr.text());
    toy.process.kill().await?;
    let third = start()?;
    third.ready().await?;
    let status = third.stop().await?;
    ensure!(status.success(), "{status}");
    let path = endpoint.trim_start_matches("unix://");
    ensure!(!fs::exists(path).map_err(|error| error.to_string())?, "{path} was left behind");
    Ok(())
}

#[tokio::test]
async fn what_is_no_socket_is_not_taken_for_one_that_was_left_over() -> Outcome {
    let scratch = Scratch::new("toy");
    let file = scratch.path().join("notes");
    fs::write(&file, "mine").map_err(|error| error.to_string())?;
    let link = scratch.path().join("link");
    std::os::unix::fs::symlink(&file, &link).map_err(|error| error.to_string())?;
    for path in [&file, &link] {
        let mut command = example("cri_runtime");
        let process = Process::start("cri_runtime", command.arg(format!("--listen=unix://{}", path.display())))?;
        let stderr = process.stderr.clone();
        let status = timeout(Duration::from_secs(20), process.ended()).await.map_err(|_| "it was taken")??;
        ensure!(status.code() == Some(2) && stderr.text().contains("Address already in use"), "{}", stderr.text());
        ensure!(path.symlink_metadata().is_ok(), "{} is gone", path.display());
    }
    ensure!(fs::read(&file).map_err(|error| error.to_string())? == b"mine", "it was changed");
    Ok(())
}

#[tokio::test]
async fn flags_that_make_no_sense_end_the_programs() -> Outcome {
    for (program, flags, why) in [
        ("cri_runtime", &["--listen=tcp://127.0.0.1:1"][..], "--listen takes unix:///absolute/path"),
        ("cri_runtime", &["--listen=unix://c.sock"], "--listen takes unix:///absolute/path"),
        (
            "cri_runtime",
            &["--listen=unix:///nosuch/c.sock", "--streaming-listen=0.0.0.0:0"],
            "--streaming-listen is plain HTTP: only on a loopback address",
        ),
        ("cri_runtime", &["--listen=unix:///nosuch/c.sock"], "No such file or directory"),
        (
            "kubelet",
            &["--insecure", "--container-runtime-speaks-websocket"],
            "--container-runtime-speaks-websocket is of a runtime that speaks CRI",
        ),
    ] {
        let done = example(program).args(flags).output().await.map_err(|error| error.to_string())?;
        let said = String::from_utf8_lossy(&done.stderr);
        ensure!(done.status.code() == Some(2) && said.contains(why), "{flags:?}: {done:?}");
    }
    Ok(())
}
