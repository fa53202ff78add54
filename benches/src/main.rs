//! Peers and measuring client for `scripts/bench`: the proxy beside a plain copying TCP relay, each a process of its own.
//!
//! ```text
//! client ──> relay ──────────────> runtime, bare TCP
//! client ──> proxy ──> SPDY ─────> runtime, StreamingServer
//! ```

mod client;
mod peers;
mod process;
mod run;
mod table;

use std::{net::SocketAddr, process::ExitCode};

use clap::{Args, Parser, Subcommand};

type Error = Box<dyn std::error::Error + Send + Sync>;
type Result<T, E = Error> = std::result::Result<T, E>;

/// Measures the proxy against a plain copying TCP relay.
#[derive(Debug, Parser)]
#[command(name = "bench")]
struct Flags {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Runs everything and prints a table in Markdown.
    Run(run::Flags),
    /// Copies TCP connections, 32 KiB at a time.
    Relay {
        #[command(flatten)]
        listen: Listen,
        /// Where to.
        #[arg(long)]
        to: SocketAddr,
    },
    /// The streaming stack of an API server.
    Proxy {
        #[command(flatten)]
        listen: Listen,
        /// The kubelet.
        #[arg(long)]
        to: String,
        /// The kubelet speaks v5 itself, so nothing is translated.
        #[arg(long)]
        speaks_websocket: bool,
    },
    /// The streaming stack of a kubelet, whose commands are made up.
    Runtime {
        #[command(flatten)]
        listen: Listen,
        /// The same commands over bare TCP, asked for in a line.
        #[arg(long)]
        raw: bool,
    },
}

/// Where a peer listens; it prints the address.
#[derive(Clone, Copy, Debug, Args)]
struct Listen {
    /// Port 0 picks a free one.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
}

fn main() -> ExitCode {
    let done = match Flags::parse().what {
        What::Run(flags) => run::run(&flags),
        What::Relay { listen, to } => peers::relay(listen.listen, to),
        What::Proxy { listen, to, speaks_websocket } => peers::proxy(listen.listen, to, speaks_websocket),
        What::Runtime { listen, raw: true } => peers::raw_runtime(listen.listen),
        What::Runtime { listen, raw: false } => peers::runtime(listen.listen),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}
