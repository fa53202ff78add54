//! What listens in the pod: a web server, and servers of bad manners. A pod of the demo has this host's loopback.

use std::{convert::Infallible, future::Future, io, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::{Query, Request},
    http::{Response, StatusCode, header},
    routing::{get, post},
};
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt, stream};
use hyper_util::rt::TokioIo;
use sha2::{Digest, Sha256};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::Barrier,
    task::JoinSet,
    time::timeout,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{handshake::derive_accept_key, protocol::Role},
};

use super::{Outcome, hex, noise};

/// What `/page` says.
pub const PAGE: &str = "<title>a page</title>\n";

/// Requests that `/together` waits for before it answers any.
pub const TOGETHER: usize = 200;

/// What large transfers consist of.
pub const BLOCK: usize = 1 << 20;

/// What the resetting server sends before it waits for its cue.
pub const BEFORE_RESET: usize = 64 << 10;

/// Its servers end with it.
#[derive(Debug)]
pub struct Pod {
    /// A web server: `/page`, `/download?blocks=N`, `/upload`, `/together?number=N` and `/echo`, a WebSocket.
    pub web: u16,
    /// Echoes bytes, and ends when its client has.
    pub echo: u16,
    /// Says nothing before its client's end. Then sends as many blocks as the first byte said, and ends.
    pub patient: u16,
    /// Sends [`BEFORE_RESET`] bytes, waits for a byte, and resets the connection.
    pub resetting: u16,
    /// Nobody listens there, and nobody else can.
    pub closed: u16,
    _reserved: TcpSocket,
    _servers: JoinSet<()>,
}

/// The block of large transfers.
pub fn block() -> Bytes {
    noise(5, BLOCK).into()
}

/// What request `number` of those that are in flight together is answered.
pub fn answer(number: u64) -> Bytes {
    noise(number, 4096).into()
}

impl Pod {
    pub async fn start() -> Outcome<Self> {
        let mut servers = JoinSet::new();
        let listener = listen().await?;
        let web = port(&listener)?;
        servers.spawn(async move { axum::serve(listener, site()).await.unwrap_or_default() });
        let echo = serve(&mut servers, |mut tcp| async move {
            let (mut read, mut write) = tcp.split();
            tokio::io::copy(&mut read, &mut write).await?;
            write.shutdown().await
        })
        .await?;
        let patient = serve(&mut servers, |mut tcp| async move {
            let mut asked = Vec::new();
            tcp.read_to_end(&mut asked).await?;
            let block = block();
            for _ in 0..asked.first().copied().unwrap_or_default() {
                tcp.write_all(&block).await?;
            }
            tcp.shutdown().await
        })
        .await?;
        let resetting = serve(&mut servers, |mut tcp| async move {
            tcp.write_all(&noise(6, BEFORE_RESET)).await?;
            tcp.read_u8().await?;
            tcp.set_zero_linger()
        })
        .await?;
        // Bound and not listening: a refused port that no other program can take.
        let reserved = TcpSocket::new_v4().map_err(|error| error.to_string())?;
        reserved.bind(([127, 0, 0, 1], 0).into()).map_err(|error| error.to_string())?;
        let closed = reserved.local_addr().map_err(|error| error.to_string())?.port();
        Ok(Self { web, echo, patient, resetting, closed, _reserved: reserved, _servers: servers })
    }
}

async fn listen() -> Outcome<TcpListener> {
    TcpListener::bind("127.0.0.1:0").await.map_err(|error| error.to_string())
}

fn port(listener: &TcpListener) -> Outcome<u16> {
    Ok(listener.local_addr().map_err(|error| error.to_string())?.port())
}

/// Starts a TCP server. Returns its port.
async fn serve<F, Fut>(servers: &mut JoinSet<()>, handle: F) -> Outcome<u16>
where
    F: Fn(TcpStream) -> Fut + Send + 'static,
    Fut: Future<Output = io::Result<()>> + Send + 'static,
{
    let listener = listen().await?;
    let port = port(&listener)?;
    servers.spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                Ok((tcp, _)) = listener.accept() => {
                    let handled = handle(tcp);
                    // What its peer did to a connection is what the test looks at, from the other end.
                    connections.spawn(async move { drop(handled.await) });
                }
                Some(_) = connections.join_next() => {}
            }
        }
    });
    Ok(port)
}

fn site() -> Router {
    let together = Arc::new(Barrier::new(TOGETHER));
    Router::new()
        .route("/page", get(|| async { PAGE }))
        .route("/download", get(download))
        .route("/upload", post(upload))
        .route("/together", get(move |query| all_at_once(query, together.clone())))
        .route("/echo", get(echo))
}

#[derive(Debug, serde::Deserialize)]
struct Download {
    blocks: usize,
}

async fn download(Query(Download { blocks }): Query<Download>) -> Response<Body> {
    let body = Body::from_stream(stream::repeat(block()).take(blocks).map(Ok::<_, Infallible>));
    Response::builder().header(header::CONTENT_LENGTH, blocks * BLOCK).body(body).expect("valid headers")
}

async fn upload(body: Body) -> Result<String, StatusCode> {
    let mut hash = Sha256::new();
    let mut body = body.into_data_stream();
    while let Some(piece) = body.next().await {
        hash.update(piece.map_err(|_| StatusCode::BAD_REQUEST)?);
    }
    Ok(hex(&hash.finalize()))
}

#[derive(Debug, serde::Deserialize)]
struct Number {
    number: u64,
}

async fn all_at_once(Query(Number { number }): Query<Number>, all: Arc<Barrier>) -> Result<Bytes, StatusCode> {
    timeout(Duration::from_secs(60), all.wait()).await.map_err(|_| StatusCode::REQUEST_TIMEOUT)?;
    Ok(answer(number))
}

/// Takes a WebSocket and echoes its messages.
async fn echo(request: Request) -> Result<Response<Body>, StatusCode> {
    let key = request.headers().get(header::SEC_WEBSOCKET_KEY).ok_or(StatusCode::BAD_REQUEST)?;
    let accept = derive_accept_key(key.as_bytes());
    tokio::spawn(async move {
        let Ok(upgraded) = hyper::upgrade::on(request).await else { return };
        let mut socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await;
        while let Some(Ok(message)) = socket.next().await {
            let echoes = message.is_text() || message.is_binary();
            if echoes && socket.send(message).await.is_err() {
                return;
            }
        }
    });
    let response = Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .header(header::SEC_WEBSOCKET_ACCEPT, accept);
    Ok(response.body(Body::empty()).expect("valid headers"))
}
