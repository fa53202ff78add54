//! Eight commands a second, by our own client, through the example kubelet into a container of a real containerd: none fails,
//! and nothing is left of them.

mod support;

use std::{
    fs, io,
    sync::Arc,
    time::{Duration, Instant},
};

use support::{
    Outcome, Scratch,
    containerd::{Containerd, POD, manifest},
    count,
    http::url,
    lab::{Session, example, sessions_in},
    proc::{descriptors, held},
    process::Process,
};
use tokio::{
    io::{AsyncReadExt, duplex},
    task::JoinSet,
    time::{interval, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tower_kube_streaming::{
    client::{ExecRequest, Execute, FallbackExecutor},
    remote_command::{Exit, Input, Output, Stdio},
    services::TcpConnect,
    upgrade::StreamOptions,
};

const EVERY: Duration = Duration::from_millis(125);
const LIMIT: Duration = Duration::from_secs(60);

/// What there is of everything that a command brings along.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Left {
    kubelet_descriptors: usize,
    kubelet_children: usize,
    own_descriptors: usize,
    shims: usize,
    /// Processes below the shims: the pod's, and those of commands.
    of_shims: usize,
    runcs: usize,
}

fn left(kubelet: &Process, containerd: &Containerd) -> Outcome<Left> {
    let kubelet = held(kubelet)?;
    let own = fs::read_dir("/proc/self/fd").map_err(|error| error.to_string())?.count();
    let dir = containerd.dir.display().to_string();
    let (mut shims, mut of_shims, mut runcs) = (0, 0, 0);
    for process in fs::read_dir("/proc").map_err(|error| error.to_string())?.flatten() {
        // One that ends while we look is none.
        let Ok(line) = fs::read(process.path().join("cmdline")) else { continue };
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if !line.contains(&dir) {
            continue;
        }
        let program = line.split(' ').next().unwrap_or_default();
        if program.ends_with("containerd-shim-runc-v2") {
            shims += 1;
            let tasks = fs::read_dir(process.path().join("task")).into_iter().flatten().flatten();
            let children = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
            of_shims += children.map(|all| all.split_whitespace().count()).sum::<usize>();
        } else if program.ends_with("runc") {
            runcs += 1;
        }
    }
    Ok(Left {
        kubelet_descriptors: kubelet.descriptors,
        kubelet_children: kubelet.children,
        own_descriptors: own,
        shims,
        of_shims,
        runcs,
    })
}

/// One command: it echoes its stdin to the end, and says 3.
async fn once(executor: &impl Execute, request: &ExecRequest, number: usize) -> Outcome<Duration> {
    let begun = Instant::now();
    let typed = format!("command {number}\n");
    let ((mut stdout, out), (mut stderr, err)) = (duplex(1024), duplex(1024));
    let mut stdio = Stdio::new(CancellationToken::new());
    stdio.stdin = Some(Input::new(io::Cursor::new(typed.clone())));
    (stdio.stdout, stdio.stderr) = (Some(Output::new(out)), Some(Output::new(err)));
    let (mut said, mut complained) = (String::new(), String::new());
    let (read, also) = (stdout.read_to_string(&mut said), stderr.read_to_string(&mut complained));
    let all = async { tokio::join!(executor.execute(request, stdio), read, also) };
    let (exit, ..) = timeout(LIMIT, all).await.map_err(|_| format!("command {number} hangs"))?;
    let exit = exit.map_err(|error| format!("command {number}: {error}"))?;
    ensure!((&exit, &said, &*complained) == (&Exit::Code(3), &typed, ""), "{exit:?} {said:?} {complained:?}");
    Ok(begun.elapsed())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eight_commands_a_second_leave_nothing_behind() -> Outcome {
    let Some(containerd) = Containerd::start()? else { return Ok(()) };
    let manifests = Scratch::new("cri-steady");
    let flags = [containerd.endpoint(), manifest(&manifests, POD)?];
    let mut command = example("kubelet");
    let kubelet = Process::start("kubelet", command.args(["--listen=127.0.0.1:0", "--insecure"]).args(flags))?;
    kubelet.ready().await?;

    let query = "command=sh&command=-c&command=cat;exit%203&input=1&output=1&error=1";
    let uri = format!("{}/exec/default/demo/sidecar?{query}", url(&kubelet)?);
    let options = StreamOptions { stdin: true, stdout: true, stderr: true, ..StreamOptions::default() };
    let request = Arc::new(ExecRequest::new(uri, options).map_err(|error| error.to_string())?);
    let executor = Arc::new(FallbackExecutor::new(TcpConnect));
    once(&executor, &request, 0).await?;
    let settled = |wanted: Option<Left>| {
        let (kubelet, containerd) = (&kubelet, &containerd);
        async move {
            let mut last = left(kubelet, containerd)?;
            // Nobody is told when a descriptor is closed. What is there at first is settled when it stays.
            let same = async {
                loop {
                    sleep(Duration::from_millis(200)).await;
                    let now = left(kubelet, containerd)?;
                    if now == wanted.unwrap_or(last) {
                        return Ok(now);
                    }
                    last = now;
                }
            };
            let limit = timeout(LIMIT, same).await;
            limit.unwrap_or_else(|_| Err(format!("{last:?} instead of {wanted:?}; {}", descriptors(kubelet))))
        }
    };
    let before = settled(None).await?;
    ensure!((before.shims, before.of_shims) == (1, 3), "a sandbox and two containers: {before:?}");

    let commands = usize::try_from(count(5, 60) * 1000 / EVERY.as_millis()).expect("a few hundred");
    let (mut running, mut ticks) = (JoinSet::new(), interval(EVERY));
    for number in 1..=commands {
        ticks.tick().await;
        let (executor, request) = (executor.clone(), request.clone());
        running.spawn(async move { once(&executor, &request, number).await });
    }
    let mut times = Vec::new();
    for ran in running.join_all().await {
        times.push(ran?);
    }
    times.sort();
    println!("{commands} commands: median {:?}, slowest {:?}", times[commands / 2], times[commands - 1]);
    settled(Some(before)).await?;
    let sessions = sessions_in(&kubelet.stderr.text());
    let protocols = (Some("v5.channel.k8s.io"), Some("v4.channel.k8s.io"));
    let usual = |of: &&Session| (of.field("protocol.in"), of.field("protocol.out")) == protocols;
    let sessions = sessions.iter().filter(usual).count();
    ensure!(sessions == commands + 1, "{sessions} sessions of {commands} commands");
    let ended = kubelet.stop().await?;
    ensure!(ended.success(), "{ended}");
    Ok(())
}
