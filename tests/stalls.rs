//! Stalled ends (contract b of DESIGN.md): who does not read loses nothing, stops nobody else, and costs little memory.
//!
//! Quick mode stalls for seconds, with clients of ours. `full` stalls as long as kubectl can bear, and longer.

mod support;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use sha2::{Digest, Sha256};
use support::{
    Outcome, count, full, hex,
    kubectl::{Client, Run, client},
    lab::Lab,
    noise,
    proc::held,
    process::{Process, Written},
    sha256,
};
use tokio::{
    fs::File,
    io::{AsyncReadExt, AsyncWriteExt},
    net::unix::pipe,
    process::{Child, ChildStdout},
    time::{sleep, timeout},
};
use tower_kube_streaming_testing::client::{Exec, Output, V5};

const MIB: usize = 1 << 20;

/// More than all sockets between two ends take.
const BULK: usize = 64;

/// What one stalled session may cost a process, sockets aside: a few buffers, and what a drained burst left behind.
const COST_KIB: u64 = 8 << 10;

/// What a session at full speed may take for [`BULK`], on a machine that others use too.
const FULL_SPEED: Duration = Duration::from_secs(30);

/// A lab with a file of noise, and pipes by which the command and the test talk past the session.
struct Stage {
    lab: Lab,
    bulk: PathBuf,
    block: Vec<u8>,
}

impl Stage {
    async fn new() -> Outcome<Self> {
        let lab = Lab::plain().await?;
        let block = noise(7, MIB);
        let bulk = lab.scratch.path().join("bulk");
        fs::write(&bulk, block.repeat(BULK)).map_err(|error| error.to_string())?;
        Ok(Self { lab, bulk, block })
    }

    fn wanted(&self) -> String {
        sha256(&self.block, BULK)
    }

    /// A named pipe.
    async fn pipe(&self, name: &str) -> Outcome<PathBuf> {
        let path = self.lab.scratch.path().join(name);
        let made = tokio::process::Command::new("mkfifo").arg(&path).status().await;
        ensure!(made.is_ok_and(|status| status.success()), "mkfifo {}", path.display());
        Ok(path)
    }

    /// Whether another session runs at full speed, and what this one costs, as long as it stalls.
    async fn others_are_well(&self, before: u64) -> Outcome {
        let script = format!("cat '{}'", self.bulk.display());
        let exec = Exec { command: &["sh", "-c", &script], stdin: false };
        let begun = Instant::now();
        let session = V5::open(self.lab.address(), &exec).await.map_err(|error| error.to_string())?;
        let hash = hash_of(session.output).await?;
        let took = begun.elapsed();
        ensure!(hash == self.wanted(), "the second session's hash differs");
        ensure!(took < FULL_SPEED, "the second session took {took:?}");
        let now = self.rss()?;
        println!("meanwhile {BULK} MiB took {took:?}; RSS {before} KiB before, {now} KiB while stalled");
        ensure!(now <= before + 2 * COST_KIB, "RSS of both processes grew from {before} to {now} KiB");
        Ok(())
    }

    /// Of both processes, behind a first session that has warmed them up.
    async fn warm_rss(&self) -> Outcome<u64> {
        let script = format!("cat '{}'", self.bulk.display());
        let exec = Exec { command: &["sh", "-c", &script], stdin: false };
        let session = V5::open(self.lab.address(), &exec).await.map_err(|error| error.to_string())?;
        hash_of(session.output).await?;
        self.rss()
    }

    fn rss(&self) -> Outcome<u64> {
        let of = |process: &Process| held(process).map(|held| held.rss_kib);
        Ok(of(&self.lab.apiserver)? + of(self.lab.kubelet.as_ref().expect("it has one"))?)
    }
}

/// Reads a session to its end: exit code 0, and the hash of its stdout.
async fn hash_of(output: Output) -> Outcome<String> {
    let mut hash = Sha256::new();
    let ended = output
        .finish(|bytes| {
            hash.update(bytes);
            std::future::ready(())
        })
        .await
        .map_err(|error| error.to_string())?;
    ensure!(ended.code() == Some(0), "{ended:?}");
    Ok(hex(&hash.finalize()))
}

/// The reading end of a named pipe. It has to be there before the command is: a shell waits for it.
fn listen(path: &Path) -> Outcome<pipe::Receiver> {
    pipe::OpenOptions::new().read_write(true).open_receiver(path).map_err(|error| error.to_string())
}

/// What a command says through a named pipe.
async fn said(mut pipe: pipe::Receiver, limit: Duration) -> Outcome<String> {
    let mut text = Vec::new();
    let read = async {
        while !text.ends_with(b"\n") {
            pipe.read_buf(&mut text).await.map_err(|error| error.to_string())?;
        }
        Ok::<_, String>(())
    };
    timeout(limit, read).await.map_err(|_| "the command said nothing past the session".to_owned())??;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

async fn say(path: &Path) -> Outcome {
    let mut pipe = pipe::OpenOptions::new().read_write(true).open_sender(path).map_err(|error| error.to_string())?;
    pipe.write_all(b"go\n").await.map_err(|error| error.to_string())
}

/// Writes the bulk to stdout while a second process hashes stdin, and tells the hash past the session.
fn both_ways(bulk: &Path, told: &Path) -> String {
    format!("exec 3<&0; sha256sum <&3 >'{}' & cat '{}'; wait", told.display(), bulk.display())
}

/// Writes the bulk to stdout; reads stdin only when told to, and says its hash on stdout.
fn waits(bulk: &Path, go: &Path) -> String {
    format!("cat '{}'; read go <'{}'; sha256sum", bulk.display(), go.display())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stdin_flows_while_stdout_is_unread() -> Outcome {
    let stage = Stage::new().await?;
    let before = stage.warm_rss().await?;
    let told = stage.pipe("told").await?;
    let ear = listen(&told)?;
    let script = both_ways(&stage.bulk, &told);
    let exec = Exec { command: &["sh", "-c", &script], stdin: true };
    let V5 { input, output } = V5::open(stage.lab.address(), &exec).await.map_err(|error| error.to_string())?;
    let begun = Instant::now();
    for _ in 0..BULK {
        input.send(&stage.block).await.map_err(|error| error.to_string())?;
    }
    input.end().await.map_err(|error| error.to_string())?;
    let hash = said(ear, Duration::from_secs(60)).await?;
    ensure!(hash.starts_with(&stage.wanted()), "stdin's hash differs");
    println!("{BULK} MiB of stdin were taken in {:?} with stdout unread", begun.elapsed());
    stage.others_are_well(before).await?;
    sleep(count(Duration::from_secs(8), Duration::from_secs(120)).saturating_sub(begun.elapsed())).await;
    let hash = hash_of(output).await?;
    ensure!(hash == stage.wanted(), "stdout's hash differs");
    stage.lab.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stdout_flows_while_stdin_is_not_taken() -> Outcome {
    let stage = Stage::new().await?;
    let before = stage.warm_rss().await?;
    let go = stage.pipe("go").await?;
    let script = waits(&stage.bulk, &go);
    let exec = Exec { command: &["sh", "-c", &script], stdin: true };
    let V5 { input, output } = V5::open(stage.lab.address(), &exec).await.map_err(|error| error.to_string())?;
    let (first, mut came) = tokio::sync::watch::channel(0);
    let reading = tokio::spawn(async move {
        let (mut hash, mut text) = (Sha256::new(), Vec::new());
        let ended = output
            .finish(|bytes| {
                let left = BULK * MIB - *first.borrow();
                let bulk = &bytes[..bytes.len().min(left)];
                hash.update(bulk);
                text.extend_from_slice(&bytes[bulk.len()..]);
                first.send_modify(|so_far| *so_far += bulk.len());
                std::future::ready(())
            })
            .await;
        ended.map(|ended| (ended, hex(&hash.finalize()), String::from_utf8_lossy(&text).into_owned()))
    });
    let block = stage.block.clone();
    let writing = tokio::spawn(async move {
        for _ in 0..BULK {
            input.send(&block).await?;
        }
        input.end().await
    });
    let begun = Instant::now();
    let all = timeout(Duration::from_secs(60), came.wait_for(|came| *came == BULK * MIB)).await.is_ok();
    ensure!(all, "{} bytes of stdout came", *came.borrow());
    ensure!(!writing.is_finished(), "stdin was taken by somebody; nothing stalled");
    stage.others_are_well(before).await?;
    sleep(count(Duration::from_secs(10), Duration::from_secs(120)).saturating_sub(begun.elapsed())).await;
    ensure!(!reading.is_finished(), "the session ended while stdin stalled: {:?}", reading.await);
    say(&go).await?;
    writing.await.expect("no panic").map_err(|error| error.to_string())?;
    let (ended, hash, text) = reading.await.expect("no panic").map_err(|error| error.to_string())?;
    ensure!(hash == stage.wanted() && text.starts_with(&stage.wanted()), "a hash differs: {ended:?}");
    ensure!(ended.code() == Some(0), "{ended:?}");
    stage.lab.stop().await
}

/// kubectl with stdin and stdout of its own, neither of which is touched before it is asked for.
struct Kubectl {
    child: Child,
    stdout: ChildStdout,
    stderr: Written,
}

impl Kubectl {
    /// Its stdin is a file, so that kubectl reads it whenever it wants.
    async fn start(stage: &Stage, client: &Client, script: &str) -> Outcome<Self> {
        let run = Run { lab: &stage.lab, client };
        let mut command = run.command(&["exec", "-i", "demo", "-c", "shell", "--", "sh", "-c", script]);
        let stdin = File::open(&stage.bulk).await.map_err(|error| error.to_string())?.into_std().await;
        command.stdin(Stdio::from(stdin)).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|error| error.to_string())?;
        let stdout = child.stdout.take().expect("stdout is piped");
        let stderr = Written::collect(child.stderr.take().expect("stderr is piped"));
        Ok(Self { child, stdout, stderr })
    }

    /// Reads stdout to its end: hash of the bulk, what came behind it, exit code.
    async fn finish(mut self) -> Outcome<(String, String, Option<i32>)> {
        let (mut hash, mut left, mut text) = (Sha256::new(), BULK * MIB, Vec::new());
        let mut buffer = vec![0; 64 << 10];
        loop {
            let read = self.stdout.read(&mut buffer).await.map_err(|error| error.to_string())?;
            if read == 0 {
                break;
            }
            let bulk = read.min(left);
            hash.update(&buffer[..bulk]);
            text.extend_from_slice(&buffer[bulk..read]);
            left -= bulk;
        }
        let code = self.child.wait().await.map_err(|error| error.to_string())?.code();
        if code != Some(0) {
            println!("exit code {code:?}, {left} bytes did not come: {}", self.stderr.text());
        }
        Ok((hex(&hash.finalize()), String::from_utf8_lossy(&text).into_owned(), code))
    }
}

/// kubectl 1.28 knows no deadline; 1.37 gives up 61 s after it last read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_whose_stdout_is_unread_loses_nothing() -> Outcome {
    if !full() {
        return Ok(()); // The same with a client of ours is above; these take minutes.
    }
    for (version, websocket, lasting) in [("1.28", false, 120), ("1.37", true, 50)] {
        let Some(client) = client(version, websocket) else { continue };
        let stage = Stage::new().await?;
        let before = stage.warm_rss().await?;
        let told = stage.pipe("told").await?;
        let ear = listen(&told)?;
        let begun = Instant::now();
        let kubectl = Kubectl::start(&stage, &client, &both_ways(&stage.bulk, &told)).await?;
        let hash = said(ear, Duration::from_secs(40)).await.map_err(|why| format!("{client}: {why}"))?;
        ensure!(hash.starts_with(&stage.wanted()), "{client}: stdin's hash differs");
        stage.others_are_well(before).await?;
        sleep(Duration::from_secs(lasting).saturating_sub(begun.elapsed())).await;
        let (hash, _, code) = kubectl.finish().await?;
        ensure!(hash == stage.wanted() && code == Some(0), "{client}: stdout's hash differs, or exit code {code:?}");
        stage.lab.stop().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_whose_stdin_is_not_taken_loses_nothing() -> Outcome {
    if !full() {
        return Ok(());
    }
    for (version, websocket) in [("1.28", false), ("1.37", true)] {
        let Some(client) = client(version, websocket) else { continue };
        let stage = Stage::new().await?;
        let before = stage.warm_rss().await?;
        let go = stage.pipe("go").await?;
        let begun = Instant::now();
        let kubectl = Kubectl::start(&stage, &client, &waits(&stage.bulk, &go)).await?;
        let finish = tokio::spawn(kubectl.finish());
        stage.others_are_well(before).await?;
        sleep(Duration::from_secs(50).saturating_sub(begun.elapsed())).await;
        ensure!(!finish.is_finished(), "{client}: it ended while stdin stalled");
        say(&go).await?;
        let (hash, text, code) = finish.await.expect("no panic")?;
        ensure!(hash == stage.wanted() && text.starts_with(&stage.wanted()), "{client}: a hash differs");
        ensure!(code == Some(0), "{client}: exit code {code:?}");
        stage.lab.stop().await?;
    }
    Ok(())
}

/// Its own write deadline of 60 s ends stdin for good. The rest must not look like a whole one to anybody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_that_is_blocked_too_long_fails_and_the_process_sees_no_eof() -> Outcome {
    if !full() {
        return Ok(());
    }
    let Some(client) = client("1.37", true) else { return Ok(()) };
    let stage = Stage::new().await?;
    let go = stage.pipe("go").await?;
    let eof = stage.lab.scratch.path().join("eof");
    let script = format!(
        "cat '{}'; read go <'{}'; cat >/dev/null; touch '{}'",
        stage.bulk.display(),
        go.display(),
        eof.display()
    );
    let kubectl = Kubectl::start(&stage, &client, &script).await?;
    let finish = tokio::spawn(kubectl.finish());
    sleep(Duration::from_secs(90)).await;
    say(&go).await?;
    let released = Instant::now();
    let (_, _, code) =
        timeout(Duration::from_secs(70), finish).await.map_err(|_| "kubectl did not end")?.expect("no panic")?;
    println!("{client}: ended {:?} after its release, exit code {code:?}", released.elapsed());
    ensure!(code.is_some_and(|code| code != 0), "exit code {code:?}");
    // The drain waits for the process, so that what it would have done is done.
    let logs = stage.lab.logs();
    let lab = stage.lab;
    let log = lab.apiserver.stderr.clone();
    let ended =
        log.until(Duration::from_secs(70), "the session's end", |text| text.matches("session ended").count() >= 1);
    ended.await.map_err(|why| format!("{why}\n{logs}"))?;
    ensure!(!eof.exists(), "the process saw an end of stdin that kubectl never sent");
    lab.stop().await
}
