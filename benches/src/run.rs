//! Starts the peers, measures, and prints the table.

use std::{
    thread,
    time::{Duration, Instant},
};

use clap::{Args, ValueEnum};

use crate::{
    Result,
    client::{Carrier, Dialect, Session, To},
    process::Peer,
    table::{self, Limit, Row, Unit},
};

/// What kubectl writes at a time.
const PIECE: usize = 32 * 1024;

/// How often kubectl pings.
const PING: Duration = Duration::from_secs(5);

/// Sessions in the rows about idle ones.
const IDLE: usize = 1000;

#[derive(Clone, Debug, Args)]
pub(crate) struct Flags {
    /// A smoke test: small amounts, figures without worth.
    #[arg(long)]
    quick: bool,
    /// Fail if a bar is missed.
    #[arg(long)]
    check: bool,
    /// Only these rows; may be repeated.
    #[arg(long, value_enum)]
    only: Vec<Group>,
}

/// Rows that are measured together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Group {
    Moving,
    Forwarding,
    Echoing,
    ShortExecs,
    Idling,
}

/// How much is done of everything.
#[derive(Clone, Copy, Debug)]
struct Amounts {
    /// Relay and proxy take turns this often; medians are printed.
    rounds: usize,
    /// Bytes of one transfer.
    transfer: usize,
    echoes: usize,
    execs: usize,
    idle: Duration,
}

const FULL: Amounts =
    Amounts { rounds: 9, transfer: 512 << 20, echoes: 6000, execs: 800, idle: Duration::from_secs(30) };
const QUICK: Amounts = Amounts { rounds: 3, transfer: 32 << 20, echoes: 500, execs: 80, idle: Duration::from_secs(5) };

pub(crate) fn run(flags: &Flags) -> Result<()> {
    let amounts = if flags.quick { QUICK } else { FULL };
    raise_descriptors()?;
    let peers = Peers::start()?;
    let mut rows = Vec::new();
    for group in Group::value_variants() {
        if flags.only.is_empty() || flags.only.contains(group) {
            match group {
                Group::Moving => moving(&peers, amounts, &mut rows)?,
                Group::Forwarding => forwarding(&peers, amounts, &mut rows)?,
                Group::Echoing => echoing(&peers, amounts, &mut rows)?,
                Group::ShortExecs => short_execs(&peers, amounts, &mut rows)?,
                Group::Idling => idling(&peers, amounts, &mut rows)?,
            }
        }
    }
    let missed = table::print(&rows);
    match missed {
        1.. if flags.check => Err(format!("{missed} bars are missed").into()),
        _ => Ok(()),
    }
}

/// A thousand sessions are two thousand sockets at the proxy. Children inherit the limit.
fn raise_descriptors() -> Result<()> {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    let enough = 3 * IDLE as u64;
    if limit.current.is_some_and(|current| current < enough) {
        limit.current = limit.maximum.map_or(Some(enough), |maximum| Some(maximum.min(enough)));
        setrlimit(Resource::Nofile, limit)?;
    }
    Ok(())
}

struct Peers {
    raw: Peer,
    runtime: Peer,
    /// Before `raw`.
    relay: Peer,
    /// Before `runtime`.
    runtime_relay: Peer,
    translating: Peer,
    passing: Peer,
}

impl Peers {
    fn start() -> Result<Self> {
        let raw = Peer::start(&["runtime", "--raw"])?;
        let runtime = Peer::start(&["runtime"])?;
        Ok(Self {
            relay: Peer::start(&["relay", "--to", &raw.addr.to_string()])?,
            runtime_relay: Peer::start(&["relay", "--to", &runtime.addr.to_string()])?,
            translating: translating(&runtime)?,
            passing: passing(&runtime)?,
            raw,
            runtime,
        })
    }

    fn relayed(&self) -> Way<'_> {
        Way::new(&self.relay, Dialect::Kubelet, Carrier::Raw)
    }

    fn relayed_spdy(&self) -> Way<'_> {
        Way::new(&self.runtime_relay, Dialect::Kubelet, Carrier::Spdy)
    }

    fn translated(&self) -> Way<'_> {
        Way::new(&self.translating, Dialect::ApiServer, Carrier::V5)
    }

    fn passed_spdy(&self) -> Way<'_> {
        Way::new(&self.translating, Dialect::ApiServer, Carrier::Spdy)
    }

    fn passed_v5(&self) -> Way<'_> {
        Way::new(&self.passing, Dialect::ApiServer, Carrier::V5)
    }

    fn tunnelled(&self) -> Way<'_> {
        Way::new(&self.translating, Dialect::ApiServer, Carrier::Tunnel)
    }

    fn passed_forward(&self) -> Way<'_> {
        Way::new(&self.translating, Dialect::ApiServer, Carrier::Forward)
    }

    fn passed_tunnel(&self) -> Way<'_> {
        Way::new(&self.passing, Dialect::ApiServer, Carrier::Tunnel)
    }
}

fn translating(runtime: &Peer) -> Result<Peer> {
    Peer::start(&["proxy", "--to", &runtime.url()])
}

fn passing(runtime: &Peer) -> Result<Peer> {
    Peer::start(&["proxy", "--speaks-websocket", "--to", &runtime.url()])
}

/// A way to the runtime, and whoever stands on it.
#[derive(Clone, Copy)]
struct Way<'a> {
    peer: &'a Peer,
    to: To,
}

impl<'a> Way<'a> {
    fn new(peer: &'a Peer, dialect: Dialect, carrier: Carrier) -> Self {
        Self { peer, to: To { addr: peer.addr, dialect, carrier } }
    }

    fn transfer(self, direction: Direction, bytes: usize) -> Result<Transfer> {
        let before = self.peer.cpu()?;
        let started = Instant::now();
        match direction {
            Direction::Out => {
                let got = self.to.exec(&["source", &bytes.to_string()], false)?.finish()?;
                if got != bytes as u64 {
                    return Err(format!("{got} of {bytes} bytes came by {:?}", self.to).into());
                }
            }
            Direction::In => {
                let mut session = self.to.exec(&["sink"], true)?;
                let message = session.message(&[b'x'; PIECE]);
                for _ in 0..bytes / PIECE {
                    session.send(&message)?;
                }
                session.finish_stdin()?;
                session.finish()?;
            }
        }
        let gibibytes = bytes as f64 / f64::from(1 << 30);
        Ok(Transfer {
            cpu: (self.peer.cpu()? - before).as_secs_f64() / gibibytes,
            speed: gibibytes * 1024.0 / started.elapsed().as_secs_f64(),
        })
    }
}

#[derive(Clone, Copy)]
enum Direction {
    Out,
    In,
}

#[derive(Clone, Copy)]
struct Transfer {
    /// Seconds per GiB.
    cpu: f64,
    /// MiB per second.
    speed: f64,
}

/// What each way took in each round, first outward, then inward.
fn take_turns<const N: usize>(ways: [Way<'_>; N], amounts: Amounts) -> Result<[[Vec<Transfer>; N]; 2]> {
    let mut done = [const { [const { Vec::new() }; N] }; 2];
    for round in 0..=amounts.rounds {
        for (direction, done) in [Direction::Out, Direction::In].into_iter().zip(&mut done) {
            for (way, done) in ways.iter().zip(done) {
                let transfer = way.transfer(direction, amounts.transfer)?;
                // The first one warms up.
                if round > 0 {
                    done.push(transfer);
                }
            }
        }
    }
    Ok(done)
}

fn cpu(work: &'static str, of: &[Transfer], relay: &[Transfer], go: &'static str, limit: Limit) -> Row {
    Row {
        work,
        unit: Unit::Times,
        ours: ratio(of, relay, |transfer| transfer.cpu),
        measured: format!("{:.2} s, relay {:.2} s", middle(of, |t| t.cpu), middle(relay, |t| t.cpu)),
        go,
        limit,
    }
}

fn speed(work: &'static str, of: &[Transfer], relay: &[Transfer], go: &'static str, limit: Limit) -> Row {
    Row {
        work,
        unit: Unit::Times,
        ours: ratio(of, relay, |transfer| transfer.speed),
        measured: format!("{:.0} of {:.0} MiB/s", middle(of, |t| t.speed), middle(relay, |t| t.speed)),
        go,
        limit,
    }
}

/// What is carried unread.
const PASSED: Limit = Limit::AtMost(1.15, 0.45);

fn moving(peers: &Peers, amounts: Amounts, rows: &mut Vec<Row>) -> Result<()> {
    let ways = [peers.relayed(), peers.relayed_spdy(), peers.translated(), peers.passed_spdy(), peers.passed_v5()];
    let [outward, inward] = &take_turns(ways, amounts)?;
    let [relay, relayed, translated, spdy, v5] = outward;
    let [relay_in, relayed_in, translated_in, spdy_in, v5_in] = inward;
    rows.extend([
        cpu("exec out, translated: CPU per GiB", translated, relay, "3.8 x", Limit::AtMost(1.5, 1.15)),
        cpu("exec in, translated: CPU per GiB", translated_in, relay_in, "8.5 x", Limit::AtMost(1.6, 1.25)),
        cpu("SPDY passed through, out: CPU per GiB", spdy, relay, "0.41 x", PASSED),
        cpu("SPDY passed through, in: CPU per GiB", spdy_in, relay_in, "0.41 x", PASSED),
        cpu("WebSocket passed through, out: CPU per GiB", v5, relay, "0.41 x", PASSED),
        cpu("WebSocket passed through, in: CPU per GiB", v5_in, relay_in, "0.41 x", PASSED),
        speed("throughput, translated, out", translated, relay, "0.35 x", Limit::AtLeast(0.7, 0.9)),
        speed("throughput, translated, in", translated_in, relay_in, "0.15 x", Limit::AtLeast(0.7, 0.9)),
        speed("the same against a relay before the same runtime, out", translated, relayed, "", Limit::None),
        speed("the same against a relay before the same runtime, in", translated_in, relayed_in, "", Limit::None),
        speed("WebSocket against SPDY, both through the proxy: throughput out", translated, spdy, "–", KEP_SPEED),
        speed("WebSocket against SPDY, both through the proxy: throughput in", translated_in, spdy_in, "–", KEP_SPEED),
    ]);
    Ok(())
}

fn forwarding(peers: &Peers, amounts: Amounts, rows: &mut Vec<Row>) -> Result<()> {
    let ways = [peers.relayed(), peers.tunnelled(), peers.passed_forward(), peers.passed_tunnel()];
    let [[relay, tunnelled, spdy, websocket], [relay_in, tunnelled_in, spdy_in, websocket_in]] =
        &take_turns(ways, amounts)?;
    let limit = Limit::AtMost(1.3, 1.1);
    rows.extend([
        cpu("port-forward tunnelled, out: CPU per GiB", tunnelled, relay, "1.3 x", limit),
        cpu("port-forward tunnelled, in: CPU per GiB", tunnelled_in, relay_in, "1.8 x", limit),
        cpu("port-forward, SPDY passed through, out: CPU per GiB", spdy, relay, "0.41 x", PASSED),
        cpu("port-forward, SPDY passed through, in: CPU per GiB", spdy_in, relay_in, "0.41 x", PASSED),
        cpu("port-forward, WebSocket passed through, out: CPU per GiB", websocket, relay, "0.41 x", PASSED),
        cpu("port-forward, WebSocket passed through, in: CPU per GiB", websocket_in, relay_in, "0.41 x", PASSED),
        speed("throughput, port-forward tunnelled, out", tunnelled, relay, "", Limit::None),
        speed("throughput, port-forward tunnelled, in", tunnelled_in, relay_in, "", Limit::None),
        speed(
            "port-forward tunnelled against SPDY, both through the proxy: throughput out",
            tunnelled,
            spdy,
            "–",
            KEP_SPEED,
        ),
        speed(
            "port-forward tunnelled against SPDY, both through the proxy: throughput in",
            tunnelled_in,
            spdy_in,
            "–",
            KEP_SPEED,
        ),
    ]);
    Ok(())
}

/// What KEP-4006 names as a risk.
const KEP_SPEED: Limit = Limit::AtLeast(0.9, 0.95);

fn middle(of: &[Transfer], figure: impl Fn(&Transfer) -> f64) -> f64 {
    median(of.iter().map(figure).collect())
}

/// The median of what each round says.
fn ratio(of: &[Transfer], to: &[Transfer], figure: impl Fn(&Transfer) -> f64) -> f64 {
    median(of.iter().zip(to).map(|(of, to)| figure(of) / figure(to)).collect())
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

fn echoing(peers: &Peers, amounts: Amounts, rows: &mut Vec<Row>) -> Result<()> {
    /// Echoes of one way before the next has its turn.
    const BLOCK: usize = 50;
    let kubelet = |carrier| Way::new(&peers.runtime, Dialect::Kubelet, carrier);
    let relayed = |carrier| Way::new(&peers.runtime_relay, Dialect::Kubelet, carrier);
    let ways = [
        Way::new(&peers.raw, Dialect::Kubelet, Carrier::Raw),
        peers.relayed(),
        kubelet(Carrier::Spdy),
        relayed(Carrier::Spdy),
        peers.passed_spdy(),
        peers.translated(),
        kubelet(Carrier::V5),
        relayed(Carrier::V5),
        peers.passed_v5(),
    ];
    let mut sessions = Vec::new();
    for way in ways {
        let session = way.to.exec(&["echo"], true)?;
        let message = session.message(b"x");
        sessions.push((session, message, Vec::new()));
    }
    for block in 0..=amounts.echoes / BLOCK {
        for (session, message, times) in &mut sessions {
            for _ in 0..BLOCK {
                let sent = Instant::now();
                session.send(message)?;
                while session.receive()? == 0 {}
                if block > 0 {
                    times.push(sent.elapsed().as_secs_f64() * 1e6);
                }
            }
        }
    }
    let mut medians = Vec::new();
    for (mut session, _, times) in sessions {
        session.finish_stdin()?;
        session.finish()?;
        medians.push(median(times));
    }
    let [raw, relay, spdy, relayed_spdy, passed_spdy, translated, v5, relayed_v5, passed_v5] = medians[..] else {
        return Err("one median for each way".into());
    };
    // What a relay adds depends on what stands behind it: the proxy is held to one in its own place.
    let added = |work, through: f64, relayed: f64, direct: f64, go| Row {
        work,
        unit: Unit::Times,
        ours: (through - direct) / (relayed - direct),
        measured: format!(
            "adds {:.0} us, a relay in its place {:.0} us, one without HTTP {:.0} us",
            through - direct,
            relayed - direct,
            relay - raw
        ),
        go,
        limit: Limit::AtMost(1.5, 1.0),
    };
    rows.extend([
        added("1-byte echo, translated: p50 added", translated, relayed_spdy, spdy, "2.1 x"),
        added("1-byte echo, SPDY passed through: p50 added", passed_spdy, relayed_spdy, spdy, ""),
        added("1-byte echo, WebSocket passed through: p50 added", passed_v5, relayed_v5, v5, ""),
        Row {
            work: "WebSocket against SPDY, both through the proxy: p50 of an echo",
            unit: Unit::Times,
            ours: translated / passed_spdy,
            measured: format!("{translated:.0} against {passed_spdy:.0} us"),
            go: "–",
            limit: Limit::AtMost(1.2, 1.1),
        },
    ]);
    Ok(())
}

fn short_execs(peers: &Peers, amounts: Amounts, rows: &mut Vec<Row>) -> Result<()> {
    let ways = [
        ("proxy CPU for one short exec, translated, 1 at a time", peers.translated(), 1, "3.8 ms"),
        ("proxy CPU for one short exec, translated, 8 at a time", peers.translated(), 8, "2.0 ms"),
        ("proxy CPU for one short exec, SPDY passed through, 1 at a time", peers.passed_spdy(), 1, ""),
        ("proxy CPU for one short exec, WebSocket passed through, 1 at a time", peers.passed_v5(), 1, ""),
    ];
    for (work, way, at_a_time, go) in ways {
        let mut figures = Vec::new();
        for _ in 0..5 {
            let before = way.peer.cpu()?;
            let each = amounts.execs / 5 / at_a_time;
            thread::scope(|scope| {
                let one_by_one = || (0..each).try_for_each(|_| way.to.exec(&["true"], false)?.finish().map(drop));
                let threads: Vec<_> = (0..at_a_time).map(|_| scope.spawn(one_by_one)).collect();
                threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| "a client panicked")?)
            })?;
            // The last ones still say good-bye.
            thread::sleep(Duration::from_millis(100));
            figures.push((way.peer.cpu()? - before).as_secs_f64() * 1e3 / (each * at_a_time) as f64);
        }
        rows.push(Row {
            work,
            unit: Unit::Milliseconds,
            ours: median(figures),
            measured: String::new(),
            go,
            limit: Limit::AtMost(1.0, 0.4),
        });
    }
    Ok(())
}

fn idling(peers: &Peers, amounts: Amounts, rows: &mut Vec<Row>) -> Result<()> {
    let limit = Limit::AtMost(16.0, 8.0);
    let rows_of = [
        ("one idle session, translated: RSS", Carrier::V5, false, "707 kB", Limit::AtMost(32.0, 12.0)),
        ("one idle session, SPDY passed through: RSS", Carrier::Spdy, false, "39 kB", limit),
        ("one idle session, WebSocket passed through: RSS", Carrier::V5, true, "39 kB", limit),
        ("one idle port-forward, tunnelled: RSS", Carrier::Tunnel, false, "55 kB", limit),
        ("one idle port-forward, SPDY passed through: RSS", Carrier::Forward, false, "39 kB", limit),
        ("one idle port-forward, WebSocket passed through: RSS", Carrier::Tunnel, true, "39 kB", limit),
    ];
    for (work, carrier, passes_websocket, go, limit) in rows_of {
        // Memory that a process has had once it keeps: each figure has a process of its own.
        let peer = &if passes_websocket { passing(&peers.runtime)? } else { translating(&peers.runtime)? };
        let way = Way::new(peer, Dialect::ApiServer, carrier);
        for _ in 0..20 {
            way.to.exec(&["true"], false)?.finish()?;
        }
        let before = peer.rss()?;
        let mut sessions = Vec::new();
        for _ in 0..IDLE {
            let mut session = way.to.exec(&["idle"], true)?;
            session.set_nonblocking()?;
            sessions.push(session);
        }
        keep_idle(&mut sessions, PING)?;
        let after = peer.rss()?;
        rows.push(Row {
            work,
            unit: Unit::Kilobytes,
            ours: (after - before) as f64 / 1e3 / IDLE as f64,
            measured: format!("{:.1} MB, {:.1} MB before", after as f64 / 1e6, before as f64 / 1e6),
            go,
            limit,
        });
        if carrier == Carrier::V5 && !passes_websocket {
            let (cpu, started) = (peer.cpu()?, Instant::now());
            keep_idle(&mut sessions, amounts.idle)?;
            rows.push(Row {
                work: "1,000 idle translated sessions, the clients ping as kubectl: cores",
                unit: Unit::Cores,
                ours: (peer.cpu()? - cpu).as_secs_f64() / started.elapsed().as_secs_f64(),
                measured: String::new(),
                go: "0.064",
                limit: Limit::AtMost(0.02, 0.005),
            });
        }
    }
    Ok(())
}

/// Does what kubectl does in an idle session: pings every five seconds, and reads.
fn keep_idle(sessions: &mut [Session], how_long: Duration) -> Result<()> {
    const STEP: Duration = Duration::from_millis(50);
    let steps = (PING.as_millis() / STEP.as_millis()) as usize;
    let started = Instant::now();
    for part in (0..steps).cycle() {
        for session in sessions.iter_mut().skip(part).step_by(steps) {
            session.ping()?;
            session.receive()?;
            if session.is_over() {
                return Err("an idle session ended".into());
            }
        }
        if started.elapsed() >= how_long {
            return Ok(());
        }
        thread::sleep(STEP);
    }
    Ok(())
}
