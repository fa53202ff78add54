//! A kubectl that does nothing but stream: `exec`, `attach`, `cp` and `port-forward`, with kubectl's flags, words and exit codes.
//!
//! ```sh
//! cargo run --release --example apiserver                              # a demo cluster, in another shell
//! cargo run --release --example kubectl -- --kubeconfig target/demo/kubeconfig exec -it demo -- sh
//! ```
//!
//! It asks over WebSocket, and over SPDY where that is refused. `KUBECTL_REMOTE_COMMAND_WEBSOCKETS=false`, and for
//! port-forward `KUBECTL_PORT_FORWARD_WEBSOCKETS=false`, have it ask over SPDY alone. `-v=7` shows the steps. One GET of the pod precedes a stream, and none where `-f` has it: no discovery, no cache on disk.
//!
//! | file | one idea |
//! |---|---|
//! | `cluster` | from a kubeconfig to requests |
//! | `pod`, `locate` | which pod and container a command line means; which pod a Deployment or a Service means |
//! | `object` | the object in a file, for `exec -f` |
//! | `remote` | a stream into a container, with the fallback and its log |
//! | `exec`, `attach` | the two commands that need a terminal |
//! | `terminal`, `stdio` | raw mode that is always undone; the standard streams without a thread between |
//! | `cp`, `pack`, `unpack` | copies, by `tar` in the container; a tree as an archive, an archive as a tree |
//! | `bridge`, `progress` | between what is polled and what blocks; a bar on a terminal |
//! | `port_forward`, `ports` | local ports that outlive the connection behind them; which port leads where |
//! | `failure`, `log`, `flags` | what is said on stderr, with which exit code; klog's lines; durations and file specifications |

mod kubectl {
    pub(crate) mod attach;
    pub(crate) mod bridge;
    pub(crate) mod cluster;
    pub(crate) mod cp;
    pub(crate) mod exec;
    pub(crate) mod failure;
    pub(crate) mod flags;
    pub(crate) mod locate;
    pub(crate) mod log;
    pub(crate) mod object;
    pub(crate) mod pack;
    pub(crate) mod pod;
    pub(crate) mod port_forward;
    pub(crate) mod ports;
    pub(crate) mod progress;
    pub(crate) mod remote;
    pub(crate) mod stdio;
    pub(crate) mod terminal;
    pub(crate) mod unpack;
}

use std::{
    env,
    io::{self, Write as _},
    process,
};

use clap::{
    CommandFactory as _, Parser, Subcommand,
    error::{ContextKind, ErrorKind},
};
use kubectl::{
    attach::Attach,
    cluster::{Cluster, ClusterFlags},
    cp::Cp,
    exec::Exec,
    failure::Failure,
    log,
    port_forward::PortForward,
};

/// Streams into pods, with kubectl's flags.
#[derive(Debug, Parser)]
#[command(name = "kubectl", version)]
struct Flags {
    #[command(flatten)]
    cluster: ClusterFlags,
    /// Level of the log: 6 shows requests and answers, 7 also how a stream is negotiated.
    #[arg(short, long = "v", value_name = "LEVEL", global = true, default_value_t = 0)]
    verbosity: u8,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a command in a container.
    Exec(Exec),
    /// Attach to a process that already runs in a container.
    Attach(Attach),
    /// Copy files and folders into a container, or out of it.
    Cp(Cp),
    /// Forward local ports to a pod.
    PortForward(PortForward),
}

fn main() {
    let code = match parse().and_then(run) {
        Ok(()) => 0,
        Err(failure) => failure.report(),
    };
    // Not by `return`: a read of stdin may be under way in a thread, and nobody waits for what is typed next.
    process::exit(code);
}

fn parse() -> Result<Flags, Failure> {
    Flags::try_parse().map_err(|error| match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            let _ = write!(io::stdout(), "{error}");
            Failure::silent(0)
        }
        ErrorKind::UnknownArgument => unknown_flag(&error),
        // clap begins with `error: ` as kubectl does.
        _ => Failure::verbatim(error.to_string().trim_end().to_owned(), 1),
    })
}

/// A flag that is not known, in kubectl's words.
fn unknown_flag(error: &clap::Error) -> Failure {
    let flag = error.get(ContextKind::InvalidArg).map(ToString::to_string).unwrap_or_default();
    let flag = unknown_shorthand(&flag).unwrap_or_else(|| format!("unknown flag: {flag}"));
    let commands = Flags::command();
    let asked = |name: &String| commands.get_subcommands().any(|command| command.get_name() == name);
    let command = env::args().skip(1).find(asked).map(|name| format!(" {name}")).unwrap_or_default();
    Failure::error(format!("{flag}\nSee 'kubectl{command} --help' for usage."))
}

/// `-z`, where it is, in `-iz` perhaps.
fn unknown_shorthand(flag: &str) -> Option<String> {
    let letter = flag.strip_prefix('-')?.chars().next().filter(|letter| *letter != '-')?;
    let flags = env::args().skip(1).take_while(|arg| arg != "--");
    let mut clusters =
        flags.filter_map(|arg| arg.strip_prefix('-').filter(|rest| !rest.starts_with('-')).map(str::to_owned));
    let rest = clusters.find_map(|letters| letters.find(letter).map(|at| letters[at..].to_owned()))?;
    Some(format!("unknown shorthand flag: '{letter}' in -{rest}"))
}

fn run(flags: Flags) -> Result<(), Failure> {
    log::set(flags.verbosity);
    // One thread: there is one stream to move.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::error(format!("cannot start: {error}")))?;
    let done = runtime.block_on(async {
        match flags.command {
            Command::Exec(exec) => {
                exec.check()?;
                exec.run(&Cluster::load(&flags.cluster).await?).await
            }
            Command::Attach(attach) => {
                attach.check()?;
                attach.run(&Cluster::load(&flags.cluster).await?).await
            }
            Command::Cp(cp) => {
                cp.check()?;
                cp.run(&Cluster::load(&flags.cluster).await?).await
            }
            Command::PortForward(forward) => {
                forward.check()?;
                forward.run(Cluster::load(&flags.cluster).await?).await
            }
        }
    });
    runtime.shutdown_background();
    done
}
