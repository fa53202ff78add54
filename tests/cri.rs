//! Real kubectl through the example API server and the example kubelet to containers of a real containerd.

mod support;

use std::{fs, path::PathBuf, time::Duration};

use support::{
    Outcome, Scratch,
    containerd::{Containerd, POD, manifest},
    count,
    forward::Forward,
    kubectl::{Client, Input, Run, client, forwarder, tree},
    lab::{Lab, Session, Settings, Topology, example, sessions_in},
    noise,
    process::Process,
    sha256,
    terminal::Terminal,
    through,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const LIMIT: Duration = Duration::from_secs(30);

/// SPDY; v5 of a client that loses early output if it is told anything at once; and the newest.
const CLIENTS: [(&str, bool); 3] = [("1.28", false), ("1.33", true), ("1.37", true)];

/// What containerd says to a terminal with a stderr of its own.
const MISFIT: &str = "rpc error: code = InvalidArgument desc = tty and stderr cannot both be true";

/// Containers to be killed, two for each client.
fn victims() -> String {
    let names = (0..CLIENTS.len()).flat_map(|number| ["silent", "busy"].map(|victim| format!("{victim}-{number}")));
    let containers = names.map(|name| {
        format!("    - {{name: {name}, image: \"localhost/busybox:test\", command: [sleep, \"1000000\"]}}\n")
    });
    let containers: String = containers.collect();
    let head = "\napiVersion: v1\nkind: Pod\nmetadata: {name: victims, namespace: default}";
    format!("{head}\nspec:\n  nodeName: demo-node\n  restartPolicy: Never\n  containers:\n{containers}")
}

/// The line that the one session with a container leaves in a log.
async fn session_with(container: &str, process: &Process) -> Outcome<Session> {
    let named = format!("container=\"{container}\"");
    let of = |text: &str| text.lines().filter(|line| line.contains(&named)).flat_map(sessions_in).next();
    let text = process.stderr.until(LIMIT, "the session's line", |text| of(text).is_some()).await?;
    of(&text).ok_or_else(|| "it was there".to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_streams_to_containers_of_containerd() -> Outcome {
    let Some(containerd) = Containerd::start()? else { return Ok(()) };
    let manifests = Scratch::new("cri");
    let pods = format!("{POD}---{}", victims());
    let flags = [containerd.endpoint(), manifest(&manifests, &pods)?];
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let settings = Settings { kubelet: &flags, objects: &victims(), ..Settings::default() };
    let lab = Lab::start_with(Topology::TwoProcesses, settings).await?;
    for (number, (version, websocket)) in CLIENTS.into_iter().enumerate() {
        // One more only where kubectls are asked for: a plain `cargo test` is to stay short.
        if version == "1.33" && std::env::var_os("KUBECTL_VERSIONS").is_none() {
            continue;
        }
        let Some(client) = client(version, websocket) else { continue };
        let run = Run { lab: &lab, client: &client };
        let case = |result: Outcome| result.map_err(|why| format!("{client}: {why}\n{}", lab.logs()));
        case(protocols(&run, number).await)?;
        case(exec(&run).await)?;
        case(terminal(&run).await)?;
        case(attach(&run).await)?;
        case(copy(&run).await)?;
        case(killed(&run, &containerd, number).await)?;
        if let Some(client) = forwarder(version, websocket) {
            case(forward(&Run { lab: &lab, client: &client }).await)?;
        }
    }
    lab.stop().await
}

/// v5 reaches the kubelet, which speaks v4 to containerd.
async fn protocols(run: &Run<'_>, number: usize) -> Outcome {
    let container = format!("silent-{number}");
    run.kubectl(&["exec", "victims", "-c", &container, "--", "true"]).await?.exits(0)?;
    let (v4, v5) = (Some("v4.channel.k8s.io"), Some("v5.channel.k8s.io"));
    let client = if run.client.websocket { v5 } else { v4 };
    let kubelet = run.lab.kubelet.as_ref().expect("two processes");
    for (process, protocols) in [(&run.lab.apiserver, (client, client)), (kubelet, (client, v4))] {
        let session = session_with(&container, process).await?;
        ensure!((session.field("protocol.in"), session.field("protocol.out")) == protocols, "{session:?}");
    }
    Ok(())
}

async fn exec(run: &Run<'_>) -> Outcome {
    let sh = |script| ["exec", "demo", "-c", "sidecar", "--", "sh", "-c", script];
    let output = run.kubectl(&sh("echo $POD")).await?.exits(0)?;
    ensure!(output.stdout == "the pod\n", "{output:?}");
    run.kubectl(&sh("exit 7")).await?.exits(7)?;
    let output = run.kubectl(&sh("echo out; echo err >&2; exit 3")).await?.exits(3)?.says("err")?;
    ensure!(output.stdout == "out\n", "{output:?}");
    // containerd 1.6 makes an internal error of it, and no exit code.
    let nosuch = ["exec", "demo", "-c", "sidecar", "--", "/nosuch"];
    run.kubectl(&nosuch).await?.exits(1)?.says("no such file or directory")?;

    let (block, times) = (noise(5, 1 << 20), 8);
    let args = ["exec", "-i", "demo", "-c", "sidecar", "--", "sha256sum"];
    let output = run.kubectl_fed(&args, Input(&block, times)).await?.exits(0)?;
    ensure!(output.stdout.starts_with(&sha256(&block, times)), "{output:?}");
    // Not zeros: what is lost here and doubled there would be found by nobody.
    let mebibytes = count(64, 1024);
    let block: String = (0..1 << 17).map(|line| format!("{}\n", 1_000_000 + line)).collect();
    let cats = format!("n=0; while [ $n -lt {mebibytes} ]; do cat /tmp/block; n=$((n+1)); done");
    let script = format!("seq 1000000 1131071 >/tmp/block; {cats}");
    let output = run.kubectl(&sh(&script)).await?.exits(0)?;
    ensure!(output.stdout_sha256 == sha256(block.as_bytes(), mebibytes), "{} bytes", output.stdout_bytes);
    Ok(())
}

async fn terminal(run: &Run<'_>) -> Outcome {
    let args = ["exec", "-it", "demo", "-c", "sidecar", "--", "sh"];
    let mut terminal = Terminal::start((33, 101), |pty| run.command_on(pty, &args))?;
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

    let args = ["attach", "-it", "demo", "-c", "shell"];
    let mut terminal = Terminal::start((33, 101), |pty| run.command_on(pty, &args))?;
    terminal.types("echo \"attached $((40+2))\"")?;
    terminal.shows("attached 42").await
}

async fn attach(run: &Run<'_>) -> Outcome {
    let attached = Process::start("kubectl", &mut run.command(&["attach", "demo", "-c", "sidecar"]))?;
    attached.stdout.until(LIMIT, "two lines", |text| text.matches("line ").count() > 1).await?;
    drop(attached);
    // Without a terminal kubectl asks for none, but this container has one, and that is what the runtime is asked for. It
    // refuses that beside stderr. kubectl takes the words for a Status in YAML, and prints none of them.
    let log = || run.lab.kubelet.as_ref().map_or_else(String::new, |kubelet| kubelet.stderr.text());
    let before = log().matches(MISFIT).count();
    run.kubectl(&["attach", "-i", "demo", "-c", "shell"]).await?.exits(1)?;
    ensure!(log().matches(MISFIT).count() > before, "it was not refused for its terminal");
    Ok(())
}

async fn copy(run: &Run<'_>) -> Outcome {
    let (there, back) = (run.lab.scratch.path().join("there"), run.lab.scratch.path().join("back"));
    let bytes = noise(7, 3 << 20);
    fs::write(&there, &bytes).map_err(|error| error.to_string())?;
    let path = |path: &PathBuf| path.display().to_string();
    run.kubectl(&["cp", &path(&there), "demo:/tmp/file", "-c", "sidecar"]).await?.exits(0)?;
    run.kubectl(&["cp", "demo:/tmp/file", &path(&back), "-c", "sidecar"]).await?.exits(0)?;
    ensure!(fs::read(&back).is_ok_and(|copied| copied == bytes), "the file came back changed");

    let (there, back) = (run.lab.scratch.dir("tree"), run.lab.scratch.path().join("tree-back"));
    for (number, file) in ["a", "empty", "sub/b", "sub/sub/name with blanks", "sub/umlaut-ä"].into_iter().enumerate() {
        let path = there.join(file);
        fs::create_dir_all(path.parent().expect("in the tree")).map_err(|error| error.to_string())?;
        let length = if file == "empty" { 0 } else { 70_000 * (number + 1) };
        fs::write(path, noise(number as u64, length)).map_err(|error| error.to_string())?;
    }
    let _ = fs::remove_dir_all(&back);
    run.kubectl(&["exec", "demo", "-c", "sidecar", "--", "rm", "-rf", "/tmp/tree"]).await?.exits(0)?;
    run.kubectl(&["cp", &path(&there), "demo:/tmp/tree", "-c", "sidecar"]).await?.exits(0)?;
    run.kubectl(&["cp", "demo:/tmp/tree", &path(&back), "-c", "sidecar"]).await?.exits(0)?;
    ensure!(tree(&back)? == tree(&there)?, "the tree came back as {:?}", tree(&back)?);
    Ok(())
}

/// The container dies under a running command: kubectl neither hangs nor takes it for success.
async fn killed(run: &Run<'_>, containerd: &Containerd, number: usize) -> Outcome {
    for (victim, script) in [("silent", "echo up; exec sleep 600"), ("busy", "while :; do echo up; done")] {
        let victim = format!("{victim}-{number}");
        let args = ["exec", "victims", "-c", &victim, "--", "sh", "-c", script];
        let kubectl = Process::start("kubectl", &mut run.command(&args))?;
        let (stdout, stderr) = (kubectl.stdout.clone(), kubectl.stderr.clone());
        stdout.until(LIMIT, "output", |text| text.contains("up")).await?;
        let named = format!("labels.\"io.kubernetes.container.name\"=={victim}");
        let id = containerd.ctr(&["containers", "ls", "--quiet", &named])?;
        containerd.ctr(&["tasks", "kill", "--signal", "KILL", id.trim()])?;
        let ended = kubectl.ended().await?;
        ensure!(ended.code() == Some(137), "{victim}: {ended}: {}", stderr.text());
        ensure!(stderr.text().contains("command terminated with exit code 137"), "{victim}: {}", stderr.text());
    }
    Ok(())
}

async fn forward(run: &Run<'_>) -> Outcome {
    let forward = Forward::start(run, &[8080]).await?;
    for _ in 0..3 {
        let mut tcp = through::tcp(forward.to(8080)).await?;
        let mut page = String::new();
        let read = async {
            tcp.write_all(b"GET / HTTP/1.0\r\n\r\n").await?;
            tcp.read_to_string(&mut page).await
        };
        read.await.map_err(|error| error.to_string())?;
        ensure!(page.ends_with("\r\n\r\nfrom the pod\n"), "{page}");
    }
    forward.stop().await.map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_runtime_does_not_run_is_refused_in_the_kubelets_words() -> Outcome {
    /// Pods that the API server knows, and this runtime does not.
    const OBJECTS: &str = "
apiVersion: v1
kind: Pod
metadata: {name: demo2, namespace: default}
spec: {nodeName: demo-node, containers: [{name: shell, image: none}]}
";
    let Some(containerd) = Containerd::start()? else { return Ok(()) };
    let Some(client) = client("1.37", true) else { return Ok(()) };
    let manifests = Scratch::new("cri");
    let one = POD.split("    - name: sidecar").next().unwrap_or_default();
    let flags = [containerd.endpoint(), manifest(&manifests, one)?];
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let settings = Settings { kubelet: &flags, objects: OBJECTS, ..Settings::default() };
    let lab = Lab::start_with(Topology::TwoProcesses, settings).await?;
    let run = Run { lab: &lab, client: &client };
    let refused =
        async |args: &[&str], words: &str| -> Outcome { run.kubectl(args).await?.exits(1)?.says(words).map(drop) };
    refused(&["exec", "demo", "-c", "sidecar", "--", "true"], r#"container not found ("sidecar")"#).await?;
    refused(&["attach", "demo", "-c", "sidecar"], "container sidecar not found in pod demo_default").await?;
    refused(&["exec", "demo2", "--", "true"], "pod does not exist").await?;
    refused(&["port-forward", "pod/demo2", "0:80"], "pod does not exist").await?;
    lab.stop().await
}

async fn hello(lab: &Lab, client: &Client) -> Outcome {
    let run = Run { lab, client };
    let output = run.kubectl(&["exec", "demo", "-c", "sidecar", "--", "echo", "hello"]).await?.exits(0)?;
    ensure!(output.stdout == "hello\n", "{output:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containerd_may_restart_between_two_execs() -> Outcome {
    let Some(containerd) = Containerd::start()? else { return Ok(()) };
    let Some(client) = client("1.37", true) else { return Ok(()) };
    let manifests = Scratch::new("cri");
    let lab = containerd.lab(&manifests).await?;
    for _ in 0..2 {
        hello(&lab, &client).await?;
        containerd.run("restart")?;
    }
    hello(&lab, &client).await?;
    lab.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_go_with_their_kubelet_unless_they_are_kept() -> Outcome {
    let Some(containerd) = Containerd::start()? else { return Ok(()) };
    let Some(client) = client("1.37", true) else { return Ok(()) };
    let manifests = Scratch::new("cri");
    let flags = [containerd.endpoint(), manifest(&manifests, POD)?, "--keep-pods".to_owned()];
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let mut lab = Lab::start_with(Topology::TwoProcesses, Settings { kubelet: &flags, ..Settings::default() }).await?;
    hello(&lab, &client).await?;
    // The sandbox, and its two containers; those that were kept are replaced.
    ensure!(containerd.containers()? == 3, "{}", containerd.containers()?);
    lab.restart_kubelet(&flags).await?;
    ensure!(containerd.containers()? == 3, "{}", containerd.containers()?);
    lab.restart_kubelet(&flags[..2]).await?;
    hello(&lab, &client).await?;
    lab.stop().await?;
    ensure!(containerd.containers()? == 0, "{}", containerd.containers()?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_cannot_run_leaves_nothing_behind() -> Outcome {
    let Some(containerd) = Containerd::start()? else { return Ok(()) };
    let manifests = Scratch::new("cri");
    let pod = POD.replacen("localhost/busybox:test\n", "localhost/nosuch:image\n", 1);
    ensure!(pod != POD, "the image is not in there");
    let (endpoint, file) = (containerd.endpoint(), manifest(&manifests, &pod)?);
    let mut command = example("kubelet");
    let kubelet = Process::start("kubelet", command.args(["--listen=127.0.0.1:0", "--insecure", &endpoint, &file]))?;
    let stderr = kubelet.stderr.clone();
    let status = kubelet.ended().await?;
    ensure!(status.code() == Some(2), "{status}");
    let said = stderr.text();
    ensure!(said.contains(r#"Pod "demo": CreateContainer: "#) && said.contains("localhost/nosuch:image"), "{said}");
    ensure!(containerd.containers()? == 0, "{}", containerd.containers()?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flags_that_a_runtime_cannot_obey_end_the_kubelet() -> Outcome {
    for (flags, why) in [
        (
            &["--container-runtime-endpoint=unix:///run/nosuch.sock", "--port-forward-errors=report"][..],
            "--port-forward-errors is for `process`",
        ),
        (&["--container-runtime-endpoint=tcp://127.0.0.1:1"], "is no endpoint of a container runtime"),
        (&["--container-runtime-endpoint=unix:///run/nosuch.sock"], "ListPodSandbox: "),
    ] {
        let mut command = example("kubelet");
        let kubelet = Process::start("kubelet", command.args(["--listen=127.0.0.1:0", "--insecure"]).args(flags))?;
        let stderr = kubelet.stderr.clone();
        let status = kubelet.ended().await?;
        ensure!(status.code() == Some(2) && stderr.text().contains(why), "{flags:?}: {status}: {}", stderr.text());
    }
    Ok(())
}
