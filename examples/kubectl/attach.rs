//! `kubectl attach`.

use std::io::{self, Write as _};

use clap::Args;
use tower_kube_streaming::upgrade::StreamOptions;

use super::{
    cluster::Cluster,
    detach,
    exec::{Streams, converse, may_be_terminal},
    failure::{Failure, of_exit},
    flags::must_wait,
    pod::{Container, Pod},
    remote::Remote,
};

const RECORDED: &str = "All commands and output from this session will be recorded in container logs, including \
                        credentials and sensitive information passed through the command prompt.";
const PROMPT: &str = "If you don't see a command prompt, try pressing enter.";

#[derive(Args, Debug)]
#[command(override_usage = "kubectl attach (POD | TYPE/NAME) [-c CONTAINER] [flags]")]
pub(crate) struct Attach {
    #[arg(value_name = "POD | TYPE/NAME")]
    pod: Vec<String>,
    #[command(flatten)]
    streams: Streams,
    /// Keys that leave the container's terminal, such as ctrl-x,x: the container goes on.
    #[arg(long, value_name = "KEYS", default_value = detach::DEFAULT)]
    detach_keys: String,
}

impl Attach {
    /// What can be said without a cluster.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        must_wait(self.streams.pod_running_timeout, "attach")?;
        match self.pod.len() {
            0 => Err(Failure::error("at least 1 argument is required for attach")),
            1 => Ok(()),
            more => {
                Err(Failure::error(format!("expected POD, TYPE/NAME, or (TYPE NAME) argument of attach, got {more}")))
            }
        }
    }

    pub(crate) async fn run(self, cluster: &Cluster) -> Result<(), Failure> {
        let streams = &self.streams;
        let pod = Pod::find(cluster, &self.pod[0], streams.pod_running_timeout).await?;
        pod.must_not_have_ended("attach")?;
        let container = pod
            .container(streams.container.as_deref(), streams.quiet)
            .map_err(|why| Failure::error(format!("cannot attach to the container: {why}")))?;
        if streams.tty && !container.tty && !streams.quiet {
            let _ = writeln!(
                io::stderr(),
                "error: Unable to use a TTY - container {} did not allocate one",
                container.name
            );
        }
        let tty = may_be_terminal(streams, container.tty);
        let options =
            StreamOptions { stdin: streams.stdin, stdout: true, stderr: !tty, tty, ..StreamOptions::default() };
        let remote = Remote::new(cluster);
        if !streams.quiet && streams.stdin {
            let _ = writeln!(io::stderr(), "{RECORDED}\n{PROMPT}");
        }
        let keys = if self.detach_keys.is_empty() { detach::DEFAULT } else { &self.detach_keys };
        let keys = tty.then(|| detach::sequence(keys)).transpose().map_err(Failure::error)?;
        let opened = remote.open("attach", &pod, container.name, options.clone()).await;
        let opened = opened.map_err(|error| remote.failure(&error))?;
        of_exit(&converse(&remote, opened, &options, keys).await?)?;
        if let Some(hint) = self.how_to_resume(&pod, container) {
            let _ = writeln!(io::stdout(), "{hint}");
        }
        Ok(())
    }

    fn how_to_resume(&self, pod: &Pod, container: Container<'_>) -> Option<String> {
        if self.streams.quiet || !self.streams.stdin || !container.stdin {
            return None;
        }
        // The API's default is Always; objects of a real server say so.
        if pod.text("/spec/restartPolicy") != "Always" {
            return None;
        }
        let tty = if container.tty { " -i -t" } else { " -i" };
        let (name, container) = (&pod.name, container.name);
        let command = format!("kubectl attach {name} -c {container}{tty}");
        Some(format!("Session ended, resume using '{command}' command when the pod is running"))
    }
}
