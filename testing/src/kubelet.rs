//! A kubelet that speaks SPDY by a script, and dies in the middle of it.
//!
//! The script is the command: `exec demo -- CUT DEATH [v1]`. It says `hello` on stdout, and ends with exit code 3: a
//! session whose status was told before the death is no success either. `never` cuts nothing and ends with success.

use std::{io, net::SocketAddr};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::{AbortHandle, JoinSet},
};
use tower_kube_streaming::spdy::{
    StreamId,
    codec::{Decoder, Event, HeaderMode, Limits},
    frame::{GoAwayCode, HeaderEncoder, data_head, goaway, ping},
};

use crate::{Death, http};

/// What the command writes to stdout.
pub const HELLO: &str = "hello\n";

/// The exit code of the scripted command.
pub const CODE: i32 = 3;

const SUCCESS: &str = r#"{"metadata":{},"status":"Success"}"#;
const FAILURE: &str = r#"{"metadata":{},"status":"Failure","message":"command terminated with non-zero exit code","reason":"NonZeroExitCode","details":{"causes":[{"reason":"ExitCode","message":"3"}]}}"#;

/// Where the kubelet dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cut {
    /// Inside the head of the 101.
    ResponseHead,
    After101,
    /// Behind so many SYN_REPLYs.
    AfterReply(usize),
    /// Inside a DATA frame of stdout.
    MidFrame,
    /// Behind whole frames of stdout.
    BeforeFin,
    /// Stdout and stderr have ended.
    BeforeStatus,
    /// Inside the status's frame.
    MidStatus,
    /// Behind a frame that holds half of the status.
    HalfStatus,
    /// Behind a whole status and all FINs.
    BeforeClose,
    Never,
}

impl Cut {
    /// The cut points of a command with stdout and stderr, in order.
    pub const ALL: [Self; 11] = [
        Self::ResponseHead,
        Self::After101,
        Self::AfterReply(1),
        Self::AfterReply(2),
        Self::AfterReply(3),
        Self::MidFrame,
        Self::BeforeFin,
        Self::BeforeStatus,
        Self::MidStatus,
        Self::HalfStatus,
        Self::BeforeClose,
    ];

    /// As the test names it in a command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::ResponseHead => "response-head",
            Self::After101 => "after-101",
            Self::AfterReply(1) => "after-reply-1",
            Self::AfterReply(2) => "after-reply-2",
            Self::AfterReply(_) => "after-reply-3",
            Self::MidFrame => "mid-frame",
            Self::BeforeFin => "before-fin",
            Self::BeforeStatus => "before-status",
            Self::MidStatus => "mid-status",
            Self::HalfStatus => "half-status",
            Self::BeforeClose => "before-close",
            Self::Never => "never",
        }
    }

    fn from_name(name: &str) -> Self {
        Self::ALL.into_iter().find(|cut| cut.name() == name).unwrap_or(Self::Never)
    }
}

/// A listening kubelet. Dropped, it ends with all its connections.
#[derive(Debug)]
pub struct ScriptedKubelet {
    address: SocketAddr,
    task: AbortHandle,
}

impl ScriptedKubelet {
    /// Listens on a free port of the loopback address.
    ///
    /// # Errors
    ///
    /// Those of binding.
    pub async fn start() -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let task = tokio::spawn(async move {
            let mut sessions = JoinSet::new();
            loop {
                tokio::select! {
                    Ok((tcp, _)) = listener.accept() => {
                        let _ = tcp.set_nodelay(true);
                        sessions.spawn(async move {
                            // A client that leaves early is no fault of the script.
                            let _ = Session { tcp, out: Vec::new() }.serve().await;
                        });
                    }
                    Some(_) = sessions.join_next() => {}
                }
            }
        });
        Ok(Self { address, task: task.abort_handle() })
    }

    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for ScriptedKubelet {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Session {
    tcp: TcpStream,
    out: Vec<u8>,
}

/// The streams of a session by what they are for.
#[derive(Default)]
struct Streams {
    error: Option<StreamId>,
    stdout: Option<StreamId>,
    stderr: Option<StreamId>,
}

impl Session {
    async fn serve(mut self) -> io::Result<()> {
        let head = http::read_head(&mut self.tcp).await?;
        let words: Vec<&str> = http::parameters(&head, "command").collect();
        let cut = Cut::from_name(words.first().copied().unwrap_or_default());
        let death = words.get(1).and_then(|name| Death::from_name(name)).unwrap_or(Death::Fin);
        let v1 = words.get(2) == Some(&"v1");
        let asked =
            ["input", "output", "error", "tty"].map(|name| http::parameters(&head, name).any(|value| value == "1"));
        let streams = 1 + asked.iter().filter(|asked| **asked).count();

        let version = if v1 { "channel.k8s.io" } else { "v4.channel.k8s.io" };
        let answer = format!(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\
             X-Stream-Protocol-Version: {version}\r\n\r\n"
        );
        if cut == Cut::ResponseHead {
            self.out.extend_from_slice(&answer.as_bytes()[..40]);
            return self.die(death).await;
        }
        self.out.extend_from_slice(answer.as_bytes());
        if cut == Cut::After101 {
            return self.die(death).await;
        }
        self.flush().await?;
        match self.reply(cut, streams).await? {
            Some(known) => self.play(cut, death, v1, &known).await,
            None => self.die(death).await,
        }
    }

    /// Replies to `streams` streams as they come. `None`: here it dies.
    async fn reply(&mut self, cut: Cut, streams: usize) -> io::Result<Option<Streams>> {
        let mut decoder = Decoder::new(Limits::default(), HeaderMode::Inflate);
        let mut encoder = HeaderEncoder::new();
        let mut known = Streams::default();
        let mut replied = 0;
        let mut buffer = [0; 4096];
        loop {
            let read = self.tcp.read(&mut buffer).await?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let mut at = 0;
            loop {
                let step = decoder.step(&buffer[at..read]).map_err(io::Error::other)?;
                at += step.consumed;
                match step.event {
                    Event::NeedMore => break,
                    Event::Ping(id) => self.out.extend_from_slice(&ping(id)),
                    Event::SynStream { stream, headers, .. } => {
                        match headers.get("streamtype") {
                            Some(b"error") => known.error = Some(stream),
                            Some(b"stdout") => known.stdout = Some(stream),
                            Some(b"stderr") => known.stderr = Some(stream),
                            _ => {}
                        }
                        encoder.syn_reply(stream, &[], false, &mut self.out);
                        replied += 1;
                        if cut == Cut::AfterReply(replied) {
                            return Ok(None);
                        }
                    }
                    _ => {}
                }
            }
            self.flush().await?;
            if replied == streams {
                return Ok(Some(known));
            }
        }
    }

    async fn play(mut self, cut: Cut, death: Death, v1: bool, known: &Streams) -> io::Result<()> {
        let error = known.error.ok_or_else(|| io::Error::other("no error stream"))?;
        if let Some(stdout) = known.stdout {
            self.data(stdout, HELLO.as_bytes(), false);
            if cut == Cut::MidFrame {
                self.out.extend_from_slice(&data_head(stdout, 1000, false));
                self.out.extend_from_slice(&[b'x'; 400]);
                return self.die(death).await;
            }
            if cut == Cut::BeforeFin {
                return self.die(death).await;
            }
            self.data(stdout, b"", true);
        }
        if let Some(stderr) = known.stderr {
            self.data(stderr, b"", true);
        }
        if cut == Cut::BeforeStatus {
            return self.die(death).await;
        }
        let status = match (cut == Cut::Never, v1) {
            (true, true) => "",
            (true, false) => SUCCESS,
            (false, true) => "command terminated with exit code 3",
            (false, false) => FAILURE,
        };
        let half = &status.as_bytes()[..status.len() / 2];
        if cut == Cut::MidStatus {
            self.out.extend_from_slice(&data_head(error, status.len(), false));
            self.out.extend_from_slice(half);
            return self.die(death).await;
        }
        if cut == Cut::HalfStatus {
            self.data(error, half, false);
            return self.die(death).await;
        }
        self.data(error, status.as_bytes(), true);
        if cut == Cut::Never {
            self.out.extend_from_slice(&goaway(Some(error), GoAwayCode::OK));
        }
        self.die(death).await
    }

    fn data(&mut self, stream: StreamId, payload: &[u8], fin: bool) {
        self.out.extend_from_slice(&data_head(stream, payload.len(), fin));
        self.out.extend_from_slice(payload);
    }

    async fn flush(&mut self) -> io::Result<()> {
        self.tcp.write_all(&self.out).await?;
        self.out.clear();
        Ok(())
    }

    async fn die(mut self, death: Death) -> io::Result<()> {
        self.flush().await?;
        death.of(self.tcp).await;
        Ok(())
    }
}
