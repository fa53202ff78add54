//! Refuses WebSockets, and lets everything else through.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

use crate::support::Outcome;

/// How a WebSocket is refused.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Refuses {
    With(&'static str),
    /// The connection ends without an answer.
    Dropped,
    /// A `101` with another subprotocol than was offered.
    WrongSubprotocol,
}

impl Refuses {
    pub(crate) const ALL: [Self; 6] = [
        Self::With("400 Bad Request"),
        Self::With("403 Forbidden"),
        Self::With("404 Not Found"),
        Self::With("500 Internal Server Error"),
        Self::Dropped,
        Self::WrongSubprotocol,
    ];

    fn answer(self, head: &str) -> String {
        match self {
            Self::With(status) => format!("HTTP/1.1 {status}\r\nContent-Length: 2\r\n\r\nno"),
            Self::Dropped => String::new(),
            Self::WrongSubprotocol => {
                let key = head.lines().find_map(|line| {
                    line.to_ascii_lowercase().starts_with("sec-websocket-key:").then(|| line.split_once(": "))
                });
                let key = key.flatten().map_or("", |(_, key)| key.trim());
                let accept = tokio_tungstenite::tungstenite::handshake::derive_accept_key(key.as_bytes());
                format!(
                    "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                     Sec-WebSocket-Accept: {accept}\r\nSec-WebSocket-Protocol: v4.channel.k8s.io\r\n\r\n"
                )
            }
        }
    }
}

/// Stands before a server; ends with its handle.
pub(crate) struct Refuser {
    pub(crate) address: SocketAddr,
    refused: Arc<AtomicUsize>,
    _task: JoinSet<()>,
}

impl Refuser {
    pub(crate) async fn before(server: SocketAddr, refuses: Refuses) -> Outcome<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.map_err(|error| error.to_string())?;
        let address = listener.local_addr().map_err(|error| error.to_string())?;
        let refused = Arc::new(AtomicUsize::new(0));
        let mut task = JoinSet::new();
        let counter = refused.clone();
        task.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let counter = counter.clone();
                // What goes wrong here, client and server see.
                connections
                    .spawn(async move { connection(client, server, refuses, &counter).await.unwrap_or_default() });
            }
        });
        Ok(Self { address, refused, _task: task })
    }

    /// How often a WebSocket was refused.
    pub(crate) fn refused(&self) -> usize {
        self.refused.load(Ordering::Relaxed)
    }
}

async fn connection(
    mut client: TcpStream,
    server: SocketAddr,
    refuses: Refuses,
    refused: &AtomicUsize,
) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(client.read_u8().await?);
    }
    let text = String::from_utf8_lossy(&head).into_owned();
    if text.to_ascii_lowercase().contains("upgrade: websocket") {
        refused.fetch_add(1, Ordering::Relaxed);
        return client.write_all(refuses.answer(&text).as_bytes()).await;
    }
    let mut upstream = TcpStream::connect(server).await?;
    upstream.write_all(&head).await?;
    copy_bidirectional(&mut client, &mut upstream).await.map(drop)
}
