//! The measuring client: blocking sockets, big reads, frames made once.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    time::Duration,
};

use tower_kube_streaming::{
    spdy::{
        StreamId,
        codec::{self, HeaderMode},
        frame::{HeaderEncoder, data_head},
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
    Spdy { decoder: Box<codec::Decoder>, unreplied: usize },
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
                let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                     Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: v5.channel.k8s.io\r\n";
                write!(tcp, "GET {} HTTP/1.1\r\nHost: bench\r\n{AGENT}\r\n{upgrade}\r\n", self.path(command, stdin))?;
                read_head(tcp)?;
                let decoder = websocket::Decoder::new(Role::Client, websocket::Limits::default());
                session.wire = Wire::V5(Box::new((decoder, Demux::new(Encoding::Binary, true))));
            }
            Carrier::Spdy => {
                let upgrade = "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nContent-Length: 0\r\n\
                     X-Stream-Protocol-Version: v4.channel.k8s.io\r\n";
                write!(tcp, "POST {} HTTP/1.1\r\nHost: bench\r\n{AGENT}\r\n{upgrade}\r\n", self.path(command, stdin))?;
                read_head(tcp)?;
                session.open_streams(stdin)?;
            }
        }
        Ok(session)
    }

    fn path(self, command: &[&str], stdin: bool) -> String {
        let words: String = command.iter().map(|word| format!("command={word}&")).collect();
        match self.dialect {
            Dialect::ApiServer => {
                format!("/api/v1/namespaces/default/pods/bench/exec?container=c&{words}stdin={stdin}&stdout=true")
            }
            Dialect::Kubelet => format!("/exec/default/bench/c?{words}input={}&output=1", u8::from(stdin)),
        }
    }
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
    fn open_streams(&mut self, stdin: bool) -> Result<()> {
        let names: &[&str] = if stdin { &["error", "stdin", "stdout"] } else { &["error", "stdout"] };
        let mut encoder = HeaderEncoder::new();
        let mut frames = Vec::new();
        for (index, name) in (0..).zip(names) {
            encoder.syn_stream(stream(index), &[("streamtype", name)], false, &mut frames);
        }
        self.tcp.write_all(&frames)?;
        let decoder = Box::new(codec::Decoder::new(codec::Limits::default(), HeaderMode::Skip));
        self.wire = Wire::Spdy { decoder, unreplied: names.len() };
        self.open = 2;
        while matches!(self.wire, Wire::Spdy { unreplied: 1.., .. }) {
            self.early += self.receive()?;
        }
        Ok(())
    }

    /// The bytes that carry `payload` to stdin.
    pub(crate) fn message(&self, payload: &[u8]) -> Vec<u8> {
        match self.wire {
            Wire::Raw => payload.to_vec(),
            Wire::V5(_) => masked(&[&[STDIN], payload]),
            Wire::Spdy { .. } => [&data_head(stream(1), payload.len(), false), payload].concat(),
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
            Wire::Spdy { .. } => self.send(&data_head(stream(1), 0, true)),
        }
    }

    /// A Ping, as kubectl sends one every five seconds.
    pub(crate) fn ping(&mut self) -> Result<()> {
        match self.wire {
            Wire::V5(_) => self.send(&ControlFrame::ping(&Payload::default(), Some(MASK))),
            Wire::Raw | Wire::Spdy { .. } => Ok(()),
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
            Wire::Spdy { decoder, unreplied } => {
                let mut at = 0;
                loop {
                    let step = decoder.step(&buf[at..read])?;
                    match step.event {
                        codec::Event::NeedMore => break,
                        codec::Event::Data { stream: id, range, fin } => {
                            if id == stream(ERROR_STREAM) {
                                status.extend_from_slice(&buf[at..][range]);
                            } else {
                                stdout += range.len() as u64;
                            }
                            *open -= usize::from(fin);
                        }
                        codec::Event::SynReply { .. } => *unreplied -= 1,
                        codec::Event::Ping(id) if id % 2 == 0 => {
                            reply.extend_from_slice(&tower_kube_streaming::spdy::frame::ping(id));
                        }
                        // Resets and GOAWAY come at the end, or else the connection ends before its streams.
                        _ => {}
                    }
                    at += step.consumed;
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
        if !matches!(self.wire, Wire::Raw) && !status.contains("Success") {
            return Err(format!("the command failed: {status:?}").into());
        }
        Ok(stdout)
    }
}

/// One binary message.
fn masked(parts: &[&[u8]]) -> Vec<u8> {
    let payload = parts.concat();
    let mut message = Head::new(Opcode::Binary, payload.len(), Some(MASK)).to_vec();
    message.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, key)| byte ^ key));
    message
}
