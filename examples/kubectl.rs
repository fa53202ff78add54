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
//! | `selection`, `overrides` | which cluster and user of it are meant; what the command line says in its place |
//! | `pod`, `locate` | which pod and container a command line means; which pod a Deployment or a Service means |
//! | `object` | the object in a file, for `exec -f` |
//! | `remote` | a stream into a container, with the fallback and its log |
//! | `moderate` | reading seldom where much comes |
//! | `exec`, `attach` | the two commands that need a terminal |
//! | `detach` | keys that leave a terminal which was attached to |
//! | `terminal`, `stdio` | raw mode that is always undone; the standard streams without a thread between |
//! | `cp`, `pack`, `unpack` | copies, by `tar` in the container; a tree as an archive, an archive as a tree |
//! | `bridge`, `progress` | between what is polled and what blocks; a bar on a terminal |
//! | `port_forward`, `ports` | local ports that outlive the connection behind them; which port leads where |
//! | `failure`, `log`, `flags` | what is said on stderr, with which exit code; klog's lines; durations and file specifications |

#[path = "support/provider.rs"]
mod provider;

mod kubectl {
    pub(crate) mod attach;
    pub(crate) mod bridge;
    pub(crate) mod cluster;
    pub(crate) mod cp;
    pub(crate) mod detach;
    pub(crate) mod exec;
    pub(crate) mod failure;
    pub(crate) mod flags;
    pub(crate) mod locate;
    pub(crate) mod log;
    pub(crate) mod moderate;
    pub(crate) mod object;
    pub(crate) mod overrides;
    pub(crate) mod pack;
    pub(crate) mod pod;
    pub(crate) mod port_forward;
    pub(crate) mod ports;
    pub(crate) mod progress;
    pub(crate) mod remote;
    pub(crate) mod selection;
    pub(crate) mod stdio;
    pub(crate) mod terminal;
    pub(crate) mod unpack;
}

use std::{
    env,
    error::Error,
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
#[command(name = "kubectl", version, args_override_self = true)]
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
        ErrorKind::UnknownArgument => misused(&unknown_flag(&named(&error, ContextKind::InvalidArg))),
        ErrorKind::InvalidValue | ErrorKind::ValueValidation => misused(&wrong_value(&error)),
        // clap begins with `error: ` as kubectl does.
        _ => Failure::verbatim(error.to_string().trim_end().to_owned(), 1),
    })
}

/// A flag that cannot be read, in kubectl's words.
fn misused(why: &str) -> Failure {
    let commands = Flags::command();
    let asked = |name: &String| commands.get_subcommands().any(|command| command.get_name() == name);
    let command = env::args().skip(1).find(asked).map(|name| format!(" {name}")).unwrap_or_default();
    Failure::error(format!("{why}\nSee 'kubectl{command} --help' for usage."))
}

fn named(error: &clap::Error, what: ContextKind) -> String {
    error.get(what).map(ToString::to_string).unwrap_or_default()
}

/// Where a letter is no flag it is told with what follows it, `z` in `-iz`.
fn unknown_flag(flag: &str) -> String {
    let shorthand = flag.strip_prefix('-').and_then(|letter| letter.chars().next()).filter(|letter| *letter != '-');
    let found = shorthand
        .and_then(|letter| Some((letter, letters().find_map(|all| Some(all[all.find(letter)?..].to_owned()))?)));
    match found {
        Some((letter, rest)) => format!("unknown shorthand flag: '{letter}' in -{rest}"),
        None => format!("unknown flag: {flag}"),
    }
}

/// A value that is missing or means nothing.
fn wrong_value(error: &clap::Error) -> String {
    let (flag, value) = (named(error, ContextKind::InvalidArg), named(error, ContextKind::InvalidValue));
    let long = flag.split([' ', '=', '[']).next().unwrap_or_default();
    let commands = Flags::command();
    let flags = commands.get_arguments().chain(commands.get_subcommands().flat_map(clap::Command::get_arguments));
    let short = flags.filter(|flag| flag.get_long() == long.strip_prefix("--")).find_map(clap::Arg::get_short);
    match (Error::source(error), short) {
        (None, Some(short)) if letters().any(|all| all.ends_with(short)) => {
            format!("flag needs an argument: '{short}' in -{short}")
        }
        (None, _) => format!("flag needs an argument: {long}"),
        (Some(why), Some(short)) => format!("invalid argument {value:?} for \"-{short}, {long}\" flag: {why}"),
        (Some(why), None) => format!("invalid argument {value:?} for {long:?} flag: {why}"),
    }
}

/// Flags of one letter, as they are written, some together.
fn letters() -> impl Iterator<Item = String> {
    let flags = env::args().skip(1).take_while(|arg| arg != "--");
    flags.filter_map(|arg| arg.strip_prefix('-').filter(|rest| !rest.starts_with('-')).map(str::to_owned))
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
