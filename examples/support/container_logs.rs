//! `/containerLogs/NAMESPACE/NAME/CONTAINER` at a kubelet: what a container runtime has written of a container's output.
//!
//! A line of such a file is a time, `stdout` or `stderr`, `F` for a whole line or `P` for a part of one, and the text
//! (k8s.io/cri-api, `ContainerConfig.log_path`; k8s.io/cri-client pkg/logs/logs.go).

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use axum::{body::Body, http::Uri, response::Response};
use bytes::Bytes;
use futures_util::stream::unfold;
use http::StatusCode;
use percent_encoding::percent_decode_str;
use serde::Deserialize;
use serde_json::Value;
use tokio::{
    fs::File,
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
    time::sleep,
};
use tokio_util::sync::CancellationToken;
use tower_kube_streaming::upgrade::{Dialect, Refusal};

use super::{
    Error, create_private_dir,
    objects::{Key, Store, is_name, items, text},
};

/// Bytes of a line of the file; runtimes cut at 16 KiB.
const LINE: u64 = 1 << 20;
/// Between two looks at a file that is followed.
const LOOK: Duration = Duration::from_millis(200);

/// Where a runtime writes what the containers of a Pod say; in it each container has a folder.
pub fn directory(root: &Path, pod: &Value) -> PathBuf {
    let field = |pointer| text(pod, pointer).unwrap_or_default();
    let name = format!("{}_{}_{}", field("/metadata/namespace"), field("/metadata/name"), field("/metadata/uid"));
    root.join(name)
}

/// The file of a container, in its Pod's folder. All its lives write to one.
pub fn file(container: &str) -> String {
    format!("{container}/0.log")
}

/// Makes the folders of a Pod's containers, whose names become paths.
pub fn make(directory: &Path, pod: &Value) -> Result<(), Error> {
    create_private_dir(directory)?;
    for container in items(pod, "/spec/containers") {
        let name = text(container, "/name").unwrap_or_default();
        if !is_name(name) {
            return Err(format!("{name:?} is no name of a container").into());
        }
        create_private_dir(&directory.join(name))?;
    }
    Ok(())
}

/// The logs of the Pods in a store.
#[derive(Clone)]
pub struct ContainerLogs {
    pub store: Arc<Store>,
    /// `None`: nothing is written.
    pub root: Option<PathBuf>,
    pub stop: CancellationToken,
}

/// `PodLogOptions`, as far as they are served.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Options {
    follow: bool,
    limit_bytes: Option<u64>,
    previous: bool,
    since_seconds: Option<String>,
    since_time: Option<String>,
    tail_lines: Option<u64>,
    timestamps: bool,
}

impl ContainerLogs {
    pub async fn answer(self, uri: Uri) -> Response {
        match self.open(&uri).await {
            Ok(log) => {
                let chunks = unfold(log, |mut log| async { Some((log.next().await.transpose()?, log)) });
                Response::new(Body::from_stream(chunks))
            }
            Err(refusal) => refusal.into_response(Dialect::Kubelet),
        }
    }

    async fn open(self, uri: &Uri) -> Result<Log, Refusal> {
        let words: Vec<_> = uri.path().split('/').map(|word| percent_decode_str(word).decode_utf8_lossy()).collect();
        let [_, _, namespace, name, container] = &words[..] else {
            return Err(Refusal::new(StatusCode::NOT_FOUND, "NotFound", "404 page not found"));
        };
        let options = axum::extract::Query::<Options>::try_from_uri(uri);
        let options = options.map_err(|error| Refusal::bad_request(error.body_text()))?.0;
        if options.previous || options.since_seconds.is_some() || options.since_time.is_some() {
            return Err(Refusal::bad_request("previous, sinceSeconds and sinceTime are not supported here"));
        }
        let key = Key::pod(namespace, name);
        let missing = |message: String| Refusal::new(StatusCode::NOT_FOUND, "NotFound", message);
        let pod = self.store.get(&key).ok_or_else(|| missing(format!("pod {name:?} does not exist")))?;
        let is_there = items(&pod, "/spec/containers").iter().any(|of| text(of, "/name") == Some(container));
        if !is_there {
            return Err(missing(format!("container {container:?} not found in pod {name:?}")));
        }
        let root = self.root.as_ref().ok_or_else(|| {
            Refusal::bad_request("there are no logs: containers have to be a runtime's, and --pod-logs-dir be given")
        })?;
        let path = directory(root, &pod).join(file(container));
        let failed = |error: io::Error| {
            tracing::warn!(%error, path = %path.display(), "a log cannot be read");
            Refusal::internal(format!("failed to try resolving symlinks in path {:?}", path.display()))
        };
        let skip = match options.tail_lines {
            Some(wanted) => lines(&path).await.map_err(failed)?.saturating_sub(wanted),
            None => 0,
        };
        let file = BufReader::new(File::open(&path).await.map_err(failed)?);
        let left = options.limit_bytes.unwrap_or(u64::MAX);
        let container = container.to_string();
        Ok(Log { logs: self, key, container, options, file, line: Vec::new(), skip, left, last_look: false })
    }

    /// Whether more is to be expected of a container.
    fn runs(&self, key: &Key, container: &str) -> bool {
        let Some(pod) = self.store.get(key) else { return false };
        let statuses = items(&pod, "/status/containerStatuses");
        let status = statuses.iter().find(|status| text(status, "/name") == Some(container));
        status.is_some_and(|status| status["state"]["running"].is_object())
    }
}

/// The number of lines in a file.
async fn lines(path: &Path) -> io::Result<u64> {
    let mut file = BufReader::new(File::open(path).await?);
    let mut lines = 0;
    loop {
        let buffer = file.fill_buf().await?;
        let length = buffer.len();
        if length == 0 {
            return Ok(lines);
        }
        lines += buffer.iter().filter(|byte| **byte == b'\n').count() as u64;
        file.consume(length);
    }
}

/// A log that is being read.
struct Log {
    logs: ContainerLogs,
    key: Key,
    container: String,
    options: Options,
    file: BufReader<File>,
    /// Of the line that is not yet written to its end.
    line: Vec<u8>,
    /// Lines to pass over.
    skip: u64,
    /// Bytes that may be told.
    left: u64,
    last_look: bool,
}

impl Log {
    /// What is told next. `None`: that was all.
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        while self.left > 0 {
            let room = LINE.saturating_sub(self.line.len() as u64);
            let read = (&mut self.file).take(room).read_until(b'\n', &mut self.line).await?;
            if self.line.ends_with(b"\n") {
                let line = std::mem::take(&mut self.line);
                if self.skip > 0 {
                    self.skip -= 1;
                    continue;
                }
                let mut told = told(&line, self.options.timestamps);
                told.truncate(usize::try_from(self.left).unwrap_or(usize::MAX));
                self.left -= told.len() as u64;
                return Ok(Some(told.into()));
            }
            if room == 0 {
                return Err(io::Error::other("a line of the log is too long"));
            }
            if read > 0 {
                continue;
            }
            // Its end, for now. What a container said last is there when it is seen to have ended.
            if !self.options.follow || self.last_look || self.logs.stop.is_cancelled() {
                return Ok(None);
            }
            self.last_look = !self.logs.runs(&self.key, &self.container);
            let _ = self.logs.stop.run_until_cancelled(sleep(LOOK)).await;
        }
        Ok(None)
    }
}

/// A line as clients see it. One that is not in the format is told as it is.
fn told(line: &[u8], timestamps: bool) -> Vec<u8> {
    let mut words = line.splitn(4, |byte| *byte == b' ');
    let (Some(time), Some(b"stdout" | b"stderr"), Some(tag), Some(text)) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return line.to_vec();
    };
    let mut told = if timestamps { [time, b" "].concat() } else { Vec::new() };
    // A part of a line goes on with the next one.
    let is_part = tag.split(|byte| *byte == b':').next() == Some(b"P");
    told.extend_from_slice(if is_part { text.strip_suffix(b"\n").unwrap_or(text) } else { text });
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_line_are_joined_and_times_told_only_if_wanted() {
        let at = "2026-01-01T00:00:00.5Z";
        for (line, timestamps, seen) in [
            ("stdout F a b\n", false, "a b\n".to_owned()),
            ("stderr F \n", false, "\n".to_owned()),
            ("stdout P begin\n", false, "begin".to_owned()),
            ("stdout F a\n", true, format!("{at} a\n")),
        ] {
            assert_eq!(told(format!("{at} {line}").as_bytes(), timestamps), seen.as_bytes(), "{line}");
        }
        for line in ["", "x\n", "a stdout F\n", "a b c d\n"] {
            assert_eq!(told(line.as_bytes(), true), line.as_bytes());
        }
    }
}
