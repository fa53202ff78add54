//! `kubectl cp`: by `tar` in the container.

use std::{
    io::BufReader,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use tokio::{
    io::{AsyncReadExt as _, duplex},
    runtime::Handle,
    time::sleep,
};
use tokio_util::sync::CancellationToken;
use tower_kube_streaming::{
    client::ExecuteError,
    remote_command::{Exit, Input, Output, Stdio},
    upgrade::StreamOptions,
};

use super::{
    bridge::{BUFFER, Blocking, Feed, aside},
    cluster::Cluster,
    failure::{Failure, of_exit},
    flags::{FilePlace, boolean, file_place},
    pack,
    pod::{Container, Pod},
    progress::Progress,
    remote::Remote,
    unpack::{self, unpack},
};

/// Longest wait before a broken copy is taken up again; the first is a tenth of it.
const PAUSE: Duration = Duration::from_secs(5);

#[derive(Args, Debug)]
#[command(override_usage = "kubectl cp <file-spec-src> <file-spec-dest>")]
pub(crate) struct Cp {
    /// A local path, or [namespace/]pod:path, as source and as destination.
    #[arg(value_name = "FILE-SPEC")]
    places: Vec<String>,
    /// Container name [default: the pod's default container, or its first].
    #[arg(short, long, value_name = "NAME")]
    container: Option<String>,
    /// Do not take over modes; when copying into a container, nor the owner.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value_t = false,
          default_missing_value = "true", action = clap::ArgAction::Set, value_parser = boolean)]
    no_preserve: bool,
    /// How often a copy is taken up again after its connection broke; -1: always. A copy out of a container goes on where
    /// it was, one into a container begins anew.
    #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true)]
    retries: i64,
}

impl Cp {
    /// What can be said without a cluster.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        self.places().map(|_| ())
    }

    fn places(&self) -> Result<(FilePlace, FilePlace), Failure> {
        let [source, target] = &self.places[..] else {
            return Err(Failure::error("source and destination are required"));
        };
        let (source, target) = (file_place(source)?, file_place(target)?);
        match (source.pod.is_some(), target.pod.is_some()) {
            (true, true) => Err(Failure::error("one of src or dest must be a local file specification")),
            _ if source.path.is_empty() || target.path.is_empty() => Err(Failure::error("filepath can not be empty")),
            (false, false) => Err(Failure::error("one of src or dest must be a remote file specification")),
            _ => Ok((source, target)),
        }
    }

    pub(crate) async fn run(self, cluster: &Cluster) -> Result<(), Failure> {
        let (source, target) = self.places()?;
        let upload = target.pod.is_some();
        if upload && Path::new(&source.path).symlink_metadata().is_err() {
            return Err(Failure::error(format!("{} doesn't exist in local filesystem", source.path)));
        }
        let remote = if upload { &target } else { &source };
        let namespace = remote.namespace.as_deref().unwrap_or(&cluster.namespace);
        let pod = Pod::get(cluster, namespace, remote.pod.as_deref().unwrap_or_default()).await?;
        pod.must_not_have_ended("exec into")?;
        let container = pod.container(self.container.as_deref(), false).map_err(Failure::error)?;
        let progress = Progress::new(Path::new(&source.path).file_name().and_then(|name| name.to_str()).unwrap_or("."));
        let copy = Copy {
            remote: Remote::new(cluster),
            pod: &pod,
            container,
            progress,
            tries: Tries { left: self.retries, made: 0 },
            preserve: !self.no_preserve,
        };
        let progress = copy.progress.clone();
        let done = if upload {
            copy.upload(Path::new(&source.path), &target.path).await
        } else {
            copy.download(source.path, target.path.into()).await
        };
        progress.end();
        done
    }
}

struct Copy<'a> {
    remote: Remote<'a>,
    pod: &'a Pod,
    container: Container<'a>,
    progress: Progress,
    tries: Tries,
    preserve: bool,
}

struct Tries {
    left: i64,
    made: u32,
}

impl Copy<'_> {
    /// Runs a command in the container; what it says on stderr is shown.
    async fn exec(&self, command: &[&str], stdin: Option<Input>, stdout: Output) -> Result<Exit, ExecuteError> {
        let options = StreamOptions {
            stdin: stdin.is_some(),
            stdout: true,
            stderr: true,
            command: command.iter().map(|word| (*word).to_owned()).collect(),
            ..StreamOptions::default()
        };
        let opened = self.remote.open("exec", self.pod, self.container.name, options).await?;
        let mut streams = Stdio::new(CancellationToken::new());
        streams.stdin = stdin;
        streams.stdout = Some(stdout);
        streams.stderr = Some(Output::new(self.progress.clone()));
        opened.run(streams).await
    }

    async fn download(mut self, source: String, target: PathBuf) -> Result<(), Failure> {
        let plan = unpack::Plan { source: source.clone(), target, modes: self.preserve };
        let (near, far) = duplex(BUFFER);
        let feed = Feed::new(near, self.progress.clone());
        // A thread that takes all that is there wakes the other one seldom.
        let from = BufReader::with_capacity(BUFFER, Blocking(far, Handle::current()));
        let progress = self.progress.clone();
        let unpacked = aside(move || unpack(from, &plan, &progress).map_err(Failure::error));
        let fetched = async {
            let fetched = self.fetch(&source, &feed).await;
            feed.end();
            fetched
        };
        let (fetched, unpacked) = tokio::join!(fetched, unpacked);
        // If it was we who stopped, the session's error is only the echo.
        if feed.refused() { unpacked.and(fetched) } else { fetched.and(unpacked) }
    }

    /// Has the archive written into `feed`, across sessions.
    async fn fetch(&mut self, source: &str, feed: &Feed) -> Result<(), Failure> {
        loop {
            let begin = (feed.bytes() + 1).to_string();
            let plain = ["tar", "cf", "-", source];
            let resumed = ["sh", "-c", unpack::REST, "sh", source, &begin];
            let command = if feed.bytes() == 0 { &plain[..] } else { &resumed[..] };
            let size = async {
                if self.progress.is_shown() && feed.bytes() == 0 {
                    self.measure(source).await;
                }
                std::future::pending().await
            };
            let ended = tokio::select! {
                ended = self.exec(command, None, Output::new(feed.clone())) => ended,
                never = size => match never {},
            };
            let error = match ended {
                Ok(exit) => return of_exit(&exit),
                Err(error) => error,
            };
            if feed.refused() || !self.tries.again(&error).await {
                return Err(self.remote.failure(&error));
            }
            let (at, tries, left) = (feed.bytes(), self.tries.made, self.tries.left);
            self.progress.say(&format!("Resuming copy at {at} bytes, retry {tries} ({left} left)"));
        }
    }

    /// Asks how large the source is, for the bar. Containers without `du` have a bar without an end.
    async fn measure(&self, source: &str) {
        let (near, mut far) = duplex(1024);
        let options = ["du", "-sk", source];
        let (ended, said) = tokio::join!(self.exec(&options, None, Output::new(near)), async {
            let mut said = String::new();
            let _ = (&mut far).take(1024).read_to_string(&mut said).await;
            said
        });
        let kib = said.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok());
        if let (Ok(Exit::Success), Some(kib)) = (ended, kib) {
            self.progress.total(kib.saturating_mul(1024));
        }
    }

    async fn upload(mut self, source: &Path, target: &str) -> Result<(), Failure> {
        let target = clean(target);
        let into = self.exec(&["test", "-d", &target], None, Output::new(tokio::io::sink())).await;
        let target = match into {
            Ok(Exit::Success) => clean(&format!("{target}/{}", base(source))),
            // No folder, or no `test`.
            Ok(_) | Err(ExecuteError::Failed(_)) => target,
            Err(error) => return Err(self.remote.failure(&error)),
        };
        let (folder, name) = match target.rsplit_once('/') {
            Some(("", name)) => ("/", name),
            Some((folder, name)) => (folder, name),
            None => (".", &*target),
        };
        let owner: &[&str] = if self.preserve { &[] } else { &["--no-same-permissions", "--no-same-owner"] };
        let command = [&["tar"], owner, &["-xmf", "-", "-C", folder]].concat();
        loop {
            let plan = pack::Plan::new(source, Path::new(name)).map_err(Failure::error)?;
            self.progress.total(plan.bytes());
            let (near, far) = duplex(BUFFER);
            let (to, progress) = (Blocking(near, Handle::current()), self.progress.clone());
            let packed = aside(move || plan.write(to, &progress));
            let output = Output::new(self.progress.clone());
            let (packed, ended) = tokio::join!(packed, self.exec(&command, Some(Input::new(far)), output));
            // A pipe that broke is the session's end; what else broke here has ended the session.
            if let Err(error) = packed.as_ref()
                && error.kind() != std::io::ErrorKind::BrokenPipe
            {
                return Err(Failure::error(error.to_string()));
            }
            let error = match ended {
                Ok(exit) => {
                    return of_exit(&exit)
                        .and_then(|()| packed.map_err(|_| Failure::error("tar ended before it had read everything")));
                }
                Err(error) => error,
            };
            if !self.tries.again(&error).await {
                return Err(self.remote.failure(&error));
            }
            let (tries, left) = (self.tries.made, self.tries.left);
            self.progress.restart();
            self.progress.say(&format!("Beginning the copy anew, retry {tries} ({left} left)"));
        }
    }
}

impl Tries {
    /// Whether to try again after this error. Waits before it says so.
    async fn again(&mut self, error: &ExecuteError) -> bool {
        let passing = match error.rejection() {
            Some(rejection) => rejection.code().is_server_error() || rejection.code() == 429,
            None => !matches!(error, ExecuteError::Request(_)),
        };
        if !passing || self.left == 0 {
            return false;
        }
        self.left -= i64::from(self.left > 0);
        self.made += 1;
        sleep((PAUSE / 10).saturating_mul(self.made).min(PAUSE)).await;
        true
    }
}

/// Go's `path.Clean`.
fn clean(path: &str) -> String {
    let rooted = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => drop(parts.pop()),
            ".." if rooted => {}
            part => parts.push(part),
        }
    }
    let joined = parts.join("/");
    match (rooted, joined.is_empty()) {
        (true, _) => format!("/{joined}"),
        (false, true) => ".".to_owned(),
        (false, false) => joined,
    }
}

/// The last name of a path; of `.` and `..` that is `.`: what is in the folder.
fn base(path: &Path) -> String {
    path.file_name().map_or_else(|| ".".to_owned(), |name| name.to_string_lossy().into_owned())
}
