//! What is run, and what must come of it.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use sha2::{Digest, Sha256};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf, duplex},
    sync::watch,
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tower_kube_streaming::{
    client::{Carrier, ExecRequest, Execute, ExecuteError},
    remote_command::{Exit, Input, Output, Stdio, TerminalSize},
    upgrade::StreamOptions,
};

use crate::{
    Server, ensure,
    support::{Outcome, count, hex, noise, sha256},
};

const BLOCK: usize = 1 << 20;

impl Server {
    /// Asks for a shell's command line. `streams`: of `stdin`, `stdout`, `stderr`, `tty`.
    pub(crate) fn request(&self, line: &str, streams: &[&str]) -> Outcome<ExecRequest> {
        let mut query: Vec<String> =
            ["sh", "-c", line].iter().map(|word| format!("command={}", encoded(word))).collect();
        query.extend(streams.iter().map(|stream| match *stream {
            "stdin" if self.kubelet => "input=1".to_owned(),
            "stdout" if self.kubelet => "output=1".to_owned(),
            "stderr" if self.kubelet => "error=1".to_owned(),
            "tty" if self.kubelet => "tty=1".to_owned(),
            stream => format!("{stream}=true"),
        }));
        let has = |name| streams.contains(&name);
        let (stdin, stdout, stderr, tty) = (has("stdin"), has("stdout"), has("stderr"), has("tty"));
        let options = StreamOptions { stdin, stdout, stderr, tty, ..StreamOptions::default() };
        let request = ExecRequest::new(format!("{}{}", self.exec, query.join("&")), options);
        let request = request.map_err(|error| error.to_string())?;
        match &self.token {
            Some(token) => {
                request.header("authorization", format!("Bearer {token}")).map_err(|error| error.to_string())
            }
            None => Ok(request),
        }
    }
}

fn encoded(word: &str) -> String {
    word.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

/// Runs all of it, one after the other. Tells of each session what carried it and whether it fell back.
pub(crate) async fn corpus<E: Execute>(executor: &E, server: &Server) -> Outcome<Vec<(Carrier, bool)>> {
    let mut sessions = Vec::new();
    for code in [0, 3, 255] {
        let line = format!("echo out; echo err >&2; exit {code}");
        let done = run(executor, server, &line, &["stdout", "stderr"], b"", 0).await?;
        ensure!(done.exit == Ok(code), "exit code {code} was expected: {done:?}");
        ensure!(done.out.text == "out\n" && done.err.text == "err\n", "the output differs: {done:?}");
        sessions.push(done.session);
    }

    let done = run(executor, server, "cat; echo ended", &["stdin", "stdout"], b"fed", 1).await?;
    ensure!(done.exit == Ok(0) && done.out.text == "fedended\n", "stdin and its end: {done:?}");
    sessions.push(done.session);

    let done = run(executor, server, "cat", &["stdin", "stdout"], b"", 0).await?;
    ensure!(done.exit == Ok(0) && done.out.length == 0, "no stdin at all: {done:?}");
    sessions.push(done.session);

    // Both ways at once: each byte goes in, and comes back.
    let (block, blocks) = (noise(11, BLOCK), count(8, 1024));
    let done = run(executor, server, "cat", &["stdin", "stdout"], &block, blocks).await?;
    ensure!(done.exit == Ok(0), "{done:?}");
    ensure!(done.out.sum == sha256(&block, blocks), "{} bytes of {} came back", done.out.length, BLOCK * blocks);
    sessions.push(done.session);

    sessions.push(resized(executor, server).await?);

    // Not found by the runtime, told by the status.
    let request = server.request("exec /no/such/program", &["stdout", "stderr"])?;
    let opened = executor.open(&request).await.map_err(|error| format!("no such program: {error}"))?;
    let session = (opened.carrier(), opened.fell_back().is_some());
    let exit = opened.run(Stdio::new(CancellationToken::new())).await;
    ensure!(matches!(exit, Ok(Exit::Code(126 | 127))), "no such program: {exit:?}");
    sessions.push(session);
    Ok(sessions)
}

/// How a command ended.
#[derive(Debug)]
struct Done {
    exit: Result<u8, String>,
    out: Seen,
    err: Seen,
    session: (Carrier, bool),
}

#[derive(Clone, Debug, Default)]
struct Seen {
    /// The first KiB.
    text: String,
    length: usize,
    sum: String,
}

async fn run<E: Execute>(
    executor: &E,
    server: &Server,
    line: &str,
    streams: &[&str],
    block: &[u8],
    blocks: usize,
) -> Outcome<Done> {
    let limit = Duration::from_secs(count(60, 600));
    let work = async {
        let opened =
            executor.open(&server.request(line, streams)?).await.map_err(|error| format!("{line}: {error}"))?;
        let session = (opened.carrier(), opened.fell_back().is_some());
        let (out, err) = (Hashed::default(), Hashed::default());
        let mut stdio = Stdio::new(CancellationToken::new());
        if streams.contains(&"stdin") {
            stdio.stdin = Some(Input::new(Repeated { block: block.to_vec(), left: block.len() * blocks }));
        }
        stdio.stdout = streams.contains(&"stdout").then(|| Output::new(out.clone()));
        stdio.stderr = streams.contains(&"stderr").then(|| Output::new(err.clone()));
        let exit = code(opened.run(stdio).await);
        Ok(Done { exit, out: out.seen(), err: err.seen(), session })
    };
    timeout(limit, work).await.unwrap_or_else(|_| Err(format!("{line}: did not end")))
}

fn code(exit: Result<Exit, ExecuteError>) -> Result<u8, String> {
    match exit {
        Ok(Exit::Success) => Ok(0),
        Ok(Exit::Code(code)) => Ok(code),
        Ok(other) => Err(format!("{other:?}")),
        Err(error) => Err(error.to_string()),
    }
}

/// A terminal says its size, and the new one after it was changed.
async fn resized<E: Execute>(executor: &E, server: &Server) -> Outcome<(Carrier, bool)> {
    let size = |width, height| Some(TerminalSize { width, height });
    let line = "trap 'stty size; exit 5' WINCH; stty size; while :; do read line; done";
    let opened = executor.open(&server.request(line, &["stdin", "stdout", "tty"])?).await;
    let opened = opened.map_err(|error| format!("a terminal: {error}"))?;
    let session = (opened.carrier(), opened.fell_back().is_some());
    let (sizes, resize) = watch::channel(size(101, 31));
    let (mut typed, stdin) = duplex(64);
    let out = Hashed::default();
    let mut stdio = Stdio::new(CancellationToken::new());
    (stdio.stdin, stdio.stdout, stdio.resize) = (Some(Input::new(stdin)), Some(Output::new(out.clone())), Some(resize));
    let change = async {
        out.until("31 101").await;
        sizes.send_replace(size(102, 32));
        out.until("32 102").await;
        // dash runs a trap once `read` is over.
        typed.write_all(b"\n").await
    };
    let both = async { tokio::join!(opened.run(stdio), change) };
    let (exit, _) = timeout(Duration::from_secs(30), both)
        .await
        .map_err(|_| format!("the size did not arrive; the terminal shows {:?}", out.seen().text))?;
    ensure!(code(exit) == Ok(5), "a terminal: {:?}", out.seen());
    Ok(session)
}

/// A block, over and over.
struct Repeated {
    block: Vec<u8>,
    left: usize,
}

impl AsyncRead for Repeated {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let length = self.block.len();
        let at = if length == 0 { 0 } else { (length - self.left % length) % length };
        let take = buf.remaining().min(self.left).min(length - at);
        buf.put_slice(&self.block[at..at + take]);
        self.left -= take;
        Poll::Ready(Ok(()))
    }
}

/// Hashes what is written to it. Its clones are one.
#[derive(Clone)]
struct Hashed(Arc<Mutex<(Sha256, String, usize)>>, Arc<watch::Sender<String>>);

impl Default for Hashed {
    fn default() -> Self {
        Self(Arc::default(), Arc::new(watch::channel(String::new()).0))
    }
}

impl Hashed {
    fn seen(&self) -> Seen {
        let hashed = self.0.lock().expect("not poisoned");
        Seen { text: hashed.1.clone(), length: hashed.2, sum: hex(&hashed.0.clone().finalize()) }
    }

    async fn until(&self, part: &str) {
        let mut text = self.1.subscribe();
        text.wait_for(|text| text.contains(part)).await.expect("the sender lives in self");
    }
}

impl AsyncWrite for Hashed {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut hashed = self.0.lock().expect("not poisoned");
        hashed.0.update(bytes);
        hashed.2 += bytes.len();
        if hashed.1.len() < 1024 {
            let text = String::from_utf8_lossy(&bytes[..bytes.len().min(1024)]).into_owned();
            hashed.1.push_str(&text);
            self.1.send_replace(hashed.1.clone());
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
