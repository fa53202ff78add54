//! The measuring client: blocking sockets, big reads, frames made once.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    time::Duration,
};

use tower_kube_streaming::{
    port_forward,
    spdy::{
        StreamId,
        codec::{self, HeaderMode},
        frame::{HeaderEncoder, data_head, ping},
    },
    websocket::{
        self, ControlFrame, Head, Opcode, Payload, Role,
        channel::{CLOSE_SIGNAL, ChannelEvent, Demux, ERROR, Encoding, STDIN, STDOUT},
    },
};

use crate::Result;

const READ: usize = 128 * 1024;

/// A client may use any key; with one the message of a given payload is always the same.
const MASK: [u8; 4] = [0x5a, 0xa5, 0x3c, 0xc3];

/// It does what kubectl 1.37 does.
const AGENT: &str = "User-Agent: kubectl/v1.37.0 (linux/amd64) kubernetes/bench";

/// Nothing here takes so long, unless it hangs.
const HANGS: Duration = Duration::from_secs(60);

/// What is spoken with the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Carrier {
    /// Bare TCP, the command in a line.
    Raw,
    /// `v5.channel.k8s.io`.
    V5,
    /// `v4.channel.k8s.io` over SPDY.
    Spdy,
    /// `portforward.k8s.io` over SPDY: the command is a line to a port.
    Forward,
    /// The same inside WebSocket messages.
    Tunnel,
}

/// Whose path is asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Dialect {
    ApiServer,
    Kubelet,
}

/// Whom to ask, and how.
#[derive(Clone, Copy, Debug)]
pub(crate) struct To {
    pub(crate) addr: SocketAddr,
    pub(crate) dialect: Dialect,
    pub(crate) carrier: Carrier,
}

/// One session.
#[derive(Debug)]
pub(crate) struct Session {
    tcp: TcpStream,
    buf: Vec<u8>,
    wire: Wire,
    status: Vec<u8>,
    /// Streams that the peer has not ended; of [`Carrier::V5`] the connection.
    open: usize,
    /// Bytes of stdout that came together with the replies.
    early: u64,
}

#[derive(Debug)]
enum Wire {
    Raw,
    V5(Box<(websocket::Decoder, Demux)>),
    Spdy(Box<Spdy>),
}

/// SPDY, bare or in a tunnel.
#[derive(Debug)]
struct Spdy {
    decoder: codec::Decoder,
    unreplied: usize,
    /// Streams are a pair of port-forward.
    forward: bool,
    tunnel: Option<websocket::Decoder>,
}

impl To {
    /// Opens a session that runs `command`.
    pub(crate) fn exec(self, command: &[&str], stdin: bool) -> Result<Session> {
        let tcp = TcpStream::connect(self.addr)?;
        tcp.set_nodelay(true)?;
        tcp.set_read_timeout(Some(HANGS))?;
        let mut session = Session { wire: Wire::Raw, buf: vec![0; READ], status: Vec::new(), open: 1, early: 0, tcp };
        let tcp = &mut session.tcp;
        match self.carrier {
            Carrier::Raw => writeln!(tcp, "{}", command.join(" "))?,
            Carrier::V5 => {
                upgrade_websocket(tcp, &self.exec_path(command, stdin), "v5.channel.k8s.io")?;
                session.wire = Wire::V5(Box::new((decoder(), Demux::new(Encoding::Binary, true))));
            }
            Carrier::Spdy => {
                upgrade_spdy(tcp, &self.exec_path(command, stdin), "v4.channel.k8s.io")?;
                let names: &[&str] = if stdin { &["error", "stdin", "stdout"] } else { &["error", "stdout"] };
                session.open_streams(names, false, None)?;
            }
            Carrier::Forward => {
                upgrade_spdy(tcp, self.forward_path(), port_forward::PROTOCOL)?;
                session.open_streams(&["error", "data"], true, None)?;
                session.command(command, stdin)?;
            }
            Carrier::Tunnel => {
                upgrade_websocket(tcp, self.forward_path(), port_forward::TUNNEL)?;
                session.open_streams(&["error", "data"], true, Some(decoder()))?;
                session.command(command, stdin)?;
            }
        }
        Ok(session)
    }

    fn forward_path(self) -> &'static str {
        match self.dialect {
            Dialect::ApiServer => "/api/v1/namespaces/default/pods/bench/portforward",
            Dialect::Kubelet => "/portForward/default/bench",
        }
    }

    fn exec_path(self, command: &[&str], stdin: bool) -> String {
        let words: String = command.iter().map(|word| format!("command={word}&")).collect();
        match self.dialect {
            Dialect::ApiServer => {
                format!("/api/v1/namespaces/default/pods/bench/exec?container=c&{words}stdin={stdin}&stdout=true")
            }
            Dialect::Kubelet => format!("/exec/default/bench/c?{words}input={}&output=1", u8::from(stdin)),
        }
    }
}

fn upgrade_websocket(tcp: &mut TcpStream, path: &str, protocol: &str) -> Result<()> {
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: ";
    write!(tcp, "GET {path} HTTP/1.1\r\nHost: bench\r\n{AGENT}\r\n{upgrade}{protocol}\r\n\r\n")?;
    read_head(tcp)
}

fn upgrade_spdy(tcp: &mut TcpStream, path: &str, protocol: &str) -> Result<()> {
    let upgrade = "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nContent-Length: 0\r\nX-Stream-Protocol-Version: ";
    write!(tcp, "POST {path} HTTP/1.1\r\nHost: bench\r\n{AGENT}\r\n{upgrade}{protocol}\r\n\r\n")?;
    read_head(tcp)
}

fn decoder() -> websocket::Decoder {
    websocket::Decoder::new(Role::Client, websocket::Limits::default())
}

/// Up to its end and no further: frames may follow at once.
fn read_head(tcp: &mut TcpStream) -> Result<()> {
    let mut head = Vec::new();
    let mut here = [0; 1024];
    while !head.ends_with(b"\r\n\r\n") {
        let peeked = tcp.peek(&mut here)?;
        if peeked == 0 {
            return Err("no answer".into());
        }
        let before = head.len();
        head.extend_from_slice(&here[..peeked]);
        let from = before.saturating_sub(3);
        if let Some(end) = head[from..].windows(4).position(|four| four == b"\r\n\r\n") {
            head.truncate(from + end + 4);
        }
        tcp.read_exact(&mut here[..head.len() - before])?;
    }
    if !head.starts_with(b"HTTP/1.1 101 ") {
        return Err(String::from_utf8_lossy(&head).into_owned().into());
    }
    Ok(())
}

/// Streams in the order in which Go creates them.
fn stream(index: u32) -> StreamId {
    StreamId::new(2 * index + 1).expect("an odd number is not 0")
}

const ERROR_STREAM: u32 = 0;

impl Session {
    fn open_streams(&mut self, names: &[&str], forward: bool, tunnel: Option<websocket::Decoder>) -> Result<()> {
        let mut encoder = HeaderEncoder::new();
        let mut frames = Vec::new();
        for (index, name) in (0..).zip(names) {
            let all = [("streamtype", *name), ("port", "1"), ("requestid", "0")];
            let headers = if forward { &all[..] } else { &all[..1] };
            encoder.syn_stream(stream(index), headers, false, &mut frames);
        }
        let decoder = codec::Decoder::new(codec::Limits::default(), HeaderMode::Skip);
        self.wire = Wire::Spdy(Box::new(Spdy { decoder, unreplied: names.len(), forward, tunnel }));
        self.send(&self.wrapped(frames))?;
        self.open = 2;
        while matches!(&self.wire, Wire::Spdy(spdy) if spdy.unreplied > 0) {
            self.early += self.receive()?;
        }
        Ok(())
    }

    /// Asks what listens at the port for its work. client-go has ended its half of the error stream by then.
    fn command(&mut self, command: &[&str], stdin: bool) -> Result<()> {
        let end = data_head(stream(ERROR_STREAM), 0, true).to_vec();
        self.send(&self.wrapped(end))?;
        self.send(&self.message(format!("{}\n", command.join(" ")).as_bytes()))?;
        if stdin { Ok(()) } else { self.finish_stdin() }
    }

    /// SPDY bytes as they are sent.
    fn wrapped(&self, bytes: Vec<u8>) -> Vec<u8> {
        match &self.wire {
            Wire::Spdy(spdy) if spdy.tunnel.is_some() => masked(&[&bytes]),
            _ => bytes,
        }
    }

    /// The bytes that carry `payload` to stdin.
    pub(crate) fn message(&self, payload: &[u8]) -> Vec<u8> {
        match self.wire {
            Wire::Raw => payload.to_vec(),
            Wire::V5(_) => masked(&[&[STDIN], payload]),
            Wire::Spdy(_) => {
                let head = data_head(stream(1), payload.len(), false);
                // Go writes a frame field by field, and each becomes a message.
                [&head[..4], &head[4..], payload].map(|field| self.wrapped(field.to_vec())).concat()
            }
        }
    }

    pub(crate) fn send(&mut self, message: &[u8]) -> Result<()> {
        Ok(self.tcp.write_all(message)?)
    }

    /// Half-closes stdin.
    pub(crate) fn finish_stdin(&mut self) -> Result<()> {
        match self.wire {
            Wire::Raw => Ok(self.tcp.shutdown(Shutdown::Write)?),
            Wire::V5(_) => self.send(&masked(&[&[CLOSE_SIGNAL, STDIN]])),
            Wire::Spdy(_) => self.send(&self.wrapped(data_head(stream(1), 0, true).to_vec())),
        }
    }

    /// A Ping, as kubectl sends them.
    pub(crate) fn ping(&mut self) -> Result<()> {
        match &self.wire {
            Wire::V5(_) => self.send(&ControlFrame::ping(&Payload::default(), Some(MASK))),
            Wire::Spdy(spdy) if spdy.forward => self.send(&self.wrapped(ping(1).to_vec())),
            Wire::Raw | Wire::Spdy(_) => Ok(()),
        }
    }

    /// From now on [`read`](Self::receive) returns 0 where it would wait.
    pub(crate) fn set_nonblocking(&mut self) -> Result<()> {
        // An idle session reads a few bytes only, and there are thousands.
        self.buf = vec![0; 256];
        Ok(self.tcp.set_nonblocking(true)?)
    }

    pub(crate) fn is_over(&self) -> bool {
        self.open == 0
    }

    /// Reads once. Returns how many bytes of stdout there were.
    pub(crate) fn receive(&mut self) -> Result<u64> {
        let Self { tcp, buf, wire, status, open, .. } = self;
        let read = match tcp.read(buf) {
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(0),
            Err(error) => return Err(error.into()),
        };
        let mut reply = Vec::new();
        let mut stdout = 0;
        match wire {
            Wire::Raw => {
                stdout = read as u64;
                *open = usize::from(read > 0);
            }
            _ if read == 0 => return Err("the connection ended before the session".into()),
            Wire::V5(codec) => {
                let (decoder, demux) = &mut **codec;
                let mut at = 0;
                while at < read {
                    let step = decoder.step(&mut buf[at..read])?;
                    match step.event {
                        Some(websocket::Event::Data(data)) => match demux.data(&data, &mut buf[at..read])? {
                            Some(ChannelEvent::Data { id: STDOUT, range }) => stdout += range.len() as u64,
                            Some(ChannelEvent::Data { id: ERROR, range }) => {
                                status.extend_from_slice(&buf[at..][range])
                            }
                            _ => {}
                        },
                        Some(websocket::Event::Ping(payload)) => {
                            reply.extend_from_slice(&ControlFrame::pong(&payload, Some(MASK)));
                        }
                        Some(websocket::Event::Close(_)) => {
                            reply.extend_from_slice(&ControlFrame::close(1000, "", Some(MASK)));
                            *open = 0;
                        }
                        Some(websocket::Event::Pong(_)) | None => {}
                    }
                    at += step.consumed;
                }
            }
            Wire::Spdy(spdy) => {
                let Spdy { decoder, unreplied, tunnel, .. } = &mut **spdy;
                let mut streams = Streams { decoder, unreplied, status, open, pings: Vec::new() };
                if let Some(tunnel) = tunnel {
                    let mut at = 0;
                    while at < read {
                        let step = tunnel.step(&mut buf[at..read])?;
                        match step.event {
                            Some(websocket::Event::Data(data)) => stdout += streams.take(&buf[at..][data.range])?,
                            Some(websocket::Event::Ping(payload)) => {
                                reply.extend_from_slice(&ControlFrame::pong(&payload, Some(MASK)));
                            }
                            Some(websocket::Event::Close(_)) => return Err("the tunnel ended before the pair".into()),
                            Some(websocket::Event::Pong(_)) | None => {}
                        }
                        at += step.consumed;
                    }
                    if !streams.pings.is_empty() {
                        reply.extend_from_slice(&masked(&[&streams.pings]));
                    }
                } else {
                    stdout = streams.take(&buf[..read])?;
                    reply = streams.pings;
                }
            }
        }
        if !reply.is_empty() {
            tcp.write_all(&reply)?;
        }
        Ok(stdout)
    }

    /// Reads to the end, which must be a success. Returns how many bytes of stdout there were.
    pub(crate) fn finish(mut self) -> Result<u64> {
        let mut stdout = self.early;
        while !self.is_over() {
            stdout += self.receive()?;
        }
        let status = String::from_utf8_lossy(&self.status);
        let success = match &self.wire {
            Wire::Raw => true,
            Wire::Spdy(spdy) if spdy.forward => status.is_empty(),
            Wire::V5(_) | Wire::Spdy(_) => status.contains("Success"),
        };
        if !success {
            return Err(format!("the command failed: {status:?}").into());
        }
        Ok(stdout)
    }
}

/// What SPDY bytes change.
struct Streams<'a> {
    decoder: &'a mut codec::Decoder,
    unreplied: &'a mut usize,
    status: &'a mut Vec<u8>,
    open: &'a mut usize,
    /// Echoes that are owed.
    pings: Vec<u8>,
}

impl Streams<'_> {
    /// Takes what was read. Returns how many bytes of stdout there were.
    fn take(&mut self, bytes: &[u8]) -> Result<u64> {
        let (mut at, mut stdout) = (0, 0);
        loop {
            let step = self.decoder.step(&bytes[at..])?;
            match step.event {
                codec::Event::NeedMore => return Ok(stdout),
                codec::Event::Data { stream: id, range, fin } => {
                    if id == stream(ERROR_STREAM) {
                        self.status.extend_from_slice(&bytes[at..][range]);
                    } else {
                        stdout += range.len() as u64;
                    }
                    *self.open -= usize::from(fin);
                }
                codec::Event::SynReply { .. } => *self.unreplied -= 1,
                codec::Event::Ping(id) if id % 2 == 0 => self.pings.extend_from_slice(&ping(id)),
                // Resets and GOAWAY come at the end, or else the connection ends before its streams.
                _ => {}
            }
            at += step.consumed;
        }
    }
}

/// One binary message.
fn masked(parts: &[&[u8]]) -> Vec<u8> {
    let payload = parts.concat();
    let mut message = Head::new(Opcode::Binary, payload.len(), Some(MASK)).to_vec();
    message.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, key)| byte ^ key));
    message
}
