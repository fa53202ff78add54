//! Stands in for the library's types until they are merged; then this file goes.

use std::time::Duration;

use http::Uri;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower_kube_streaming::upgrade::{Subresource, Target};

#[derive(Clone, Debug, Default)]
pub struct Caller {
    pub name: String,
    pub uid: String,
    pub groups: Vec<String>,
}

#[derive(Clone, Debug)]
pub struct Hop {
    pub uri: Uri,
    pub speaks_websocket: bool,
}

#[derive(Clone, Debug, Default)]
pub struct Sessions {
    pub tasks: TaskTracker,
    pub cancel: CancellationToken,
}

impl Sessions {
    /// Tells every session to end, and waits until they have.
    pub async fn drain(&self, limit: Duration) {
        self.cancel.cancel();
        self.tasks.close();
        let _ = tokio::time::timeout(limit, self.tasks.wait()).await;
    }
}

pub fn kubelet_path_and_query(target: &Target) -> String {
    let encode = |word: &str| percent_encoding(word);
    let mut path = match target.subresource {
        Subresource::PortForward => "/portForward".to_owned(),
        other => format!("/{other}"),
    };
    path += &format!("/{}/{}", target.namespace, target.pod);
    if let Some(container) = &target.container {
        path += &format!("/{container}");
    }
    let options = &target.options;
    let mut query: Vec<String> = options.command.iter().map(|word| format!("command={}", encode(word))).collect();
    for (name, on) in
        [("error", options.stderr), ("input", options.stdin), ("output", options.stdout), ("tty", options.tty)]
    {
        if on {
            query.push(format!("{name}=1"));
        }
    }
    format!("{path}?{}", query.join("&"))
}

fn percent_encoding(word: &str) -> String {
    word.bytes()
        .map(|byte| match byte {
            b' ' => "+".to_owned(),
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect()
}
