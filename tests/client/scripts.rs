//! Servers that answer as they are told.

use std::{
    collections::VecDeque,
    future::Ready,
    io,
    sync::{Arc, Mutex},
};

use http::Uri;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    sync::{Notify, oneshot},
};
use tower_kube_streaming::{spdy, websocket::handshake::accept_key};

use crate::commands::Kept;

/// What a server does with one connection.
pub(crate) enum Script {
    /// Reads the head, writes this with `{accept}` replaced and then those bytes, and reads on to the end.
    Answer(String, &'static [u8]),
    /// Reads the head and hangs up.
    HangUp,
    /// Reads the head and then nothing more.
    Silence,
    /// Cannot be reached.
    Unreachable,
    /// A connection to somebody else.
    Serve(DuplexStream),
    /// Accepts SPDY's streams, says `partial` on stdout, and then ends them all; or, when told, loses the connection.
    SpdyWithoutStatus(Option<oneshot::Receiver<()>>),
}

/// Servers that are dialled one after the other.
#[derive(Clone, Default)]
pub(crate) struct Scripts {
    left: Arc<Mutex<VecDeque<Script>>>,
    /// The heads of the requests.
    pub(crate) heads: Arc<Mutex<Vec<String>>>,
    /// All that came behind a head to a server that answered.
    pub(crate) behind: Kept,
    /// A server has the request that it does not answer, or the first byte behind its answer.
    pub(crate) reached: Arc<Notify>,
    /// The client has closed the connection.
    pub(crate) closed: Arc<Notify>,
}

impl Scripts {
    pub(crate) fn new(scripts: impl IntoIterator<Item = Script>) -> Self {
        Self { left: Arc::new(Mutex::new(scripts.into_iter().collect())), ..Self::default() }
    }

    pub(crate) fn dial(&self) -> impl Fn(Uri) -> Ready<io::Result<DuplexStream>> + Clone + Send + Sync + 'static {
        let this = self.clone();
        move |_| {
            let script = this.left.lock().expect("not poisoned").pop_front().expect("a script for each connection");
            std::future::ready(match script {
                Script::Unreachable => {
                    this.heads.lock().expect("not poisoned").push("unreachable".into());
                    Err(io::ErrorKind::ConnectionRefused.into())
                }
                Script::Serve(io) => {
                    this.heads.lock().expect("not poisoned").push("served".into());
                    Ok(io)
                }
                script => {
                    let (near, far) = duplex(256 * 1024);
                    tokio::spawn(this.clone().play(script, far));
                    Ok(near)
                }
            })
        }
    }

    async fn play(self, script: Script, mut io: DuplexStream) {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(io.read_u8().await.expect("a head"));
        }
        let head = String::from_utf8(head).expect("text");
        self.heads.lock().expect("not poisoned").push(head.clone());
        match script {
            Script::Answer(answer, behind) => {
                let key = head.lines().find_map(|line| line.strip_prefix("sec-websocket-key: "));
                let accept = key.map(|key| accept_key(&key.parse().expect("a value")));
                let accept = accept.as_ref().map_or("", |accept| accept.to_str().expect("text"));
                let answer = [answer.replace("{accept}", accept).as_bytes(), behind].concat();
                io.write_all(&answer).await.expect("taken");
                let mut buffer = [0; 4096];
                while let Ok(read @ 1..) = io.read(&mut buffer).await {
                    self.behind.0.lock().expect("not poisoned").extend_from_slice(&buffer[..read]);
                    self.reached.notify_one();
                }
                self.closed.notify_one();
            }
            Script::SpdyWithoutStatus(cut) => spdy_without_status(io, cut).await,
            Script::Silence => {
                self.reached.notify_one();
                let _ = io.read(&mut [0; 1]).await;
                self.closed.notify_one();
            }
            _ => drop(io),
        }
    }

    /// The first words of the requests.
    pub(crate) fn methods(&self) -> Vec<String> {
        let heads = self.heads.lock().expect("not poisoned");
        heads.iter().map(|head| head.split(' ').next().unwrap_or_default().to_owned()).collect()
    }
}

async fn spdy_without_status(mut io: DuplexStream, cut: Option<oneshot::Receiver<()>>) {
    io.write_all(
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\
          X-Stream-Protocol-Version: v4.channel.k8s.io\r\n\r\n",
    )
    .await
    .expect("taken");
    let (mut incoming, handle, connection) = spdy::server(io, spdy::Config::new());
    let streams = async move {
        let mut streams = Vec::new();
        for _ in 0..4 {
            let stream = incoming.accept().await.expect("a stream");
            stream.reply();
            streams.push(stream);
        }
        streams[2].write_all(b"partial").await.expect("taken");
        match cut {
            Some(cut) => cut.await.expect("told"),
            None => {
                for stream in &mut streams {
                    stream.shutdown().await.expect("ended");
                }
                handle.close();
                handle.closed().await.expect("in order");
            }
        }
    };
    tokio::select! {
        _ = connection => {}
        () = streams => {}
    }
}

pub(crate) fn answer(code: &str, body: &str) -> Script {
    raw(&format!(
        "HTTP/1.1 {code}\r\nX-Gateway: squid\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    ))
}

pub(crate) fn raw(answer: &str) -> Script {
    Script::Answer(answer.to_owned(), b"")
}

/// A `101` to a WebSocket handshake, with what comes behind it.
pub(crate) fn websocket(protocol: &str, frames: &'static [u8]) -> Script {
    let answer = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {{accept}}\r\nSec-WebSocket-Protocol: {protocol}\r\n\r\n"
    );
    Script::Answer(answer, frames)
}

pub(crate) fn status(code: u16, reason: &str, message: &str) -> String {
    format!(
        r#"{{"kind":"Status","apiVersion":"v1","metadata":{{}},"status":"Failure","message":"{message}","reason":"{reason}","details":{{"name":"demo","kind":"pods"}},"code":{code}}}"#
    )
}
