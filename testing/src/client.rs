//! Clients that send and read exactly when they are told to.
//!
//! [`connect`] makes the bare connection of either protocol. On it stand [`V5`], which the library's codec reads, and
//! [`Spdy`], which is the library's own client role.

use std::{fmt::Write as _, io, net::SocketAddr};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpSocket, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::mpsc,
};
use tower_kube_streaming::{
    spdy::{self, Stream},
    websocket::{
        Close, ControlFrame, Decoder, Event, Head, Limits, Opcode, Role,
        channel::{ChannelEvent, Demux, ERROR, Encoding, STDERR, STDIN, STDOUT},
    },
};

use crate::http;

/// Masks that are visible in a capture; nothing checks that they are random.
const MASK: [u8; 4] = [0x6b, 0x75, 0x62, 0x65];

/// What to run, and with which streams.
#[derive(Clone, Copy, Debug)]
pub struct Exec<'a> {
    pub command: &'a [&'a str],
    pub stdin: bool,
}

impl Exec<'_> {
    /// Path and query at the API server, for the demo's shell container.
    #[must_use]
    pub fn path(&self) -> String {
        let mut path = "/api/v1/namespaces/default/pods/demo/exec?container=shell&stdout=true&stderr=true".to_owned();
        if self.stdin {
            path.push_str("&stdin=true");
        }
        for word in self.command {
            path.push_str("&command=");
            for byte in word.bytes() {
                match byte {
                    b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' => path.push(char::from(byte)),
                    _ => write!(path, "%{byte:02X}").expect("a string takes everything"),
                }
            }
        }
        path
    }

    /// A WebSocket client's request, with its subprotocol.
    #[must_use]
    pub fn websocket_head(&self, protocol: &str) -> String {
        format!(
            "GET {} HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: {protocol}\r\n\r\n",
            self.path()
        )
    }

    /// A SPDY client's request.
    #[must_use]
    pub fn spdy_head(&self) -> String {
        format!(
            "POST {} HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nContent-Length: 0\r\n\
             X-Stream-Protocol-Version: v4.channel.k8s.io\r\n\r\n",
            self.path()
        )
    }
}

/// Connects with a small receive buffer, so that who does not read is noticed soon.
///
/// # Errors
///
/// Those of connecting.
pub async fn tcp(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(128 << 10)?;
    socket.set_send_buffer_size(128 << 10)?;
    let tcp = socket.connect(address).await?;
    tcp.set_nodelay(true)?;
    Ok(tcp)
}

/// Sends `head` and waits for a 101.
///
/// # Errors
///
/// Those of the connection; any other answer.
pub async fn connect(address: SocketAddr, head: &str) -> io::Result<TcpStream> {
    let mut tcp = tcp(address).await?;
    tcp.write_all(head.as_bytes()).await?;
    let answer = http::read_head(&mut tcp).await?;
    if !answer.starts_with("HTTP/1.1 101 ") {
        let length = http::header(&answer, "content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
        let mut body = String::new();
        tcp.take(length).read_to_string(&mut body).await?;
        return Err(io::Error::other(format!("no 101: {answer}{body}")));
    }
    Ok(tcp)
}

/// A message of a client, masked.
#[must_use]
pub fn message(channel: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = Head::new(Opcode::Binary, 1 + payload.len(), Some(MASK)).to_vec();
    let body = std::iter::once(&channel).chain(payload);
    frame.extend(body.zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

/// How a session ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ended {
    /// What came on the error channel.
    pub status: String,
    /// The code of the server's Close; SPDY has none.
    pub close: Option<u16>,
    pub stderr: String,
}

impl Ended {
    /// The exit code that the status tells. `None`: the command is not known to have ended.
    #[must_use]
    pub fn code(&self) -> Option<i32> {
        if self.status.contains(r#""status":"Success""#) {
            return Some(0);
        }
        let (_, rest) = self.status.split_once(r#""reason":"ExitCode","message":""#)?;
        rest.split('"').next()?.parse().ok()
    }
}

/// A session over `v5.channel.k8s.io`. Both halves go on without each other.
#[derive(Debug)]
pub struct V5 {
    pub input: Input,
    pub output: Output,
}

impl V5 {
    /// # Errors
    ///
    /// Those of the connection, and a refusal.
    pub async fn open(address: SocketAddr, exec: &Exec<'_>) -> io::Result<Self> {
        let tcp = connect(address, &exec.websocket_head("v5.channel.k8s.io")).await?;
        let (read, write) = tcp.into_split();
        let (frames, taken) = mpsc::channel(1);
        let (control, urgent) = mpsc::unbounded_channel();
        tokio::spawn(write_frames(write, taken, urgent));
        let output = Output {
            read,
            decoder: Decoder::new(Role::Client, Limits::default()),
            demux: Demux::new(Encoding::Binary, true),
            control,
            ended: Ended::default(),
        };
        Ok(Self { input: Input { frames }, output })
    }
}

/// Writes one frame after another; control goes first.
async fn write_frames(
    mut write: OwnedWriteHalf,
    mut frames: mpsc::Receiver<Vec<u8>>,
    mut urgent: mpsc::UnboundedReceiver<Vec<u8>>,
) {
    loop {
        let frame = tokio::select! {
            biased;
            Some(frame) = urgent.recv() => frame,
            Some(frame) = frames.recv() => frame,
            else => return,
        };
        if write.write_all(&frame).await.is_err() {
            return;
        }
    }
}

/// What a V5 client sends.
#[derive(Clone, Debug)]
pub struct Input {
    frames: mpsc::Sender<Vec<u8>>,
}

impl Input {
    /// Sends stdin. It waits as long as the server takes none.
    ///
    /// # Errors
    ///
    /// If the connection broke.
    pub async fn send(&self, payload: &[u8]) -> io::Result<()> {
        for piece in payload.chunks(32 << 10) {
            self.frames.send(message(STDIN, piece)).await.map_err(|_| io::ErrorKind::BrokenPipe)?;
        }
        Ok(())
    }

    /// Ends stdin.
    ///
    /// # Errors
    ///
    /// If the connection broke.
    pub async fn end(&self) -> io::Result<()> {
        self.frames.send(message(255, &[STDIN])).await.map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// What a V5 client reads, when it reads.
#[derive(Debug)]
pub struct Output {
    read: OwnedReadHalf,
    decoder: Decoder,
    demux: Demux,
    control: mpsc::UnboundedSender<Vec<u8>>,
    ended: Ended,
}

impl Output {
    /// Reads to the end, and hands stdout to `sink` as it comes.
    ///
    /// # Errors
    ///
    /// Those of the connection; one that ends without Close.
    pub async fn finish<F, Fut>(mut self, mut sink: F) -> io::Result<Ended>
    where
        F: FnMut(Vec<u8>) -> Fut,
        Fut: Future<Output = ()>,
    {
        let mut buffer = vec![0; 32 << 10];
        loop {
            let read = self.read.read(&mut buffer).await?;
            if read == 0 {
                return Err(io::Error::other("the connection ended without a Close"));
            }
            for stdout in self.take(&mut buffer[..read])? {
                sink(stdout).await;
            }
            if self.ended.close.is_some() {
                return Ok(self.ended);
            }
        }
    }

    /// Takes what was read apart, and returns what is stdout.
    fn take(&mut self, buf: &mut [u8]) -> io::Result<Vec<Vec<u8>>> {
        let mut stdout = Vec::new();
        let mut at = 0;
        while at < buf.len() {
            let step = self.decoder.step(&mut buf[at..]).map_err(io::Error::other)?;
            match step.event {
                Some(Event::Data(mut data)) => {
                    data.range = data.range.start + at..data.range.end + at;
                    if let Some(ChannelEvent::Data { id, range }) =
                        self.demux.data(&data, buf).map_err(io::Error::other)?
                    {
                        let payload = &buf[range];
                        match id {
                            STDOUT => stdout.push(payload.to_vec()),
                            STDERR => self.ended.stderr.push_str(&String::from_utf8_lossy(payload)),
                            ERROR => self.ended.status.push_str(&String::from_utf8_lossy(payload)),
                            _ => {}
                        }
                    }
                }
                Some(Event::Ping(payload)) => {
                    let _ = self.control.send(ControlFrame::pong(&payload, Some(MASK)).to_vec());
                }
                Some(Event::Close(Close { code, .. })) => {
                    self.ended.close = Some(code.unwrap_or(1005));
                    let _ = self.control.send(ControlFrame::close(1000, "", Some(MASK)).to_vec());
                }
                Some(Event::Pong(_)) | None => {}
            }
            at += step.consumed;
        }
        Ok(stdout)
    }
}

/// A session over SPDY v4.
#[derive(Debug)]
pub struct Spdy {
    pub error: Stream,
    pub stdin: Option<Stream>,
    pub stdout: Stream,
    pub stderr: Stream,
    handle: spdy::Handle,
}

impl Spdy {
    /// # Errors
    ///
    /// Those of the connection, and a refusal.
    pub async fn open(address: SocketAddr, exec: &Exec<'_>) -> io::Result<Self> {
        let tcp = connect(address, &exec.spdy_head()).await?;
        let (handle, connection) = spdy::client(tcp, spdy::Config::default());
        tokio::spawn(connection);
        let open = |name| handle.open_unreplied(&[("streamtype", name)]).map_err(io::Error::other);
        let error = open("error")?;
        let stdin = exec.stdin.then(|| open("stdin")).transpose()?;
        let (stdout, stderr) = (open("stdout")?, open("stderr")?);
        let error = error.await.map_err(io::Error::other)?;
        let stdin = match stdin {
            Some(stdin) => Some(stdin.await.map_err(io::Error::other)?),
            None => None,
        };
        let stdout = stdout.await.map_err(io::Error::other)?;
        let stderr = stderr.await.map_err(io::Error::other)?;
        Ok(Self { error, stdin, stdout, stderr, handle })
    }

    /// As [`Output::finish`].
    ///
    /// # Errors
    ///
    /// Those of the connection.
    pub async fn finish<F, Fut>(mut self, mut sink: F) -> io::Result<Ended>
    where
        F: FnMut(Vec<u8>) -> Fut,
        Fut: Future<Output = ()>,
    {
        let mut ended = Ended::default();
        let mut buffer = vec![0; 32 << 10];
        loop {
            let read = self.stdout.read(&mut buffer).await?;
            if read == 0 {
                break;
            }
            sink(buffer[..read].to_vec()).await;
        }
        self.stderr.read_to_string(&mut ended.stderr).await?;
        self.error.read_to_string(&mut ended.status).await?;
        self.handle.close();
        Ok(ended)
    }
}
