//! Clients of a forwarded port.

use std::{convert::Infallible, io, time::Duration};

use axum::body::Body;
use futures_util::{SinkExt, StreamExt, stream};
use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use sha2::{Digest, Sha256};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
    time::timeout,
};
use tokio_tungstenite::{client_async, tungstenite::Message};

use super::{Outcome, count, hex, noise, pod, sha256};
use crate::ensure;

/// A connection to a local port.
pub async fn tcp(port: u16) -> Outcome<TcpStream> {
    TcpStream::connect(("127.0.0.1", port)).await.map_err(|error| format!("connecting to {port}: {error}"))
}

/// Nothing here takes longer, unless it hangs.
pub async fn soon<T>(what: &str, work: impl Future<Output = Outcome<T>>) -> Outcome<T> {
    let limit = Duration::from_secs(count(60, 900));
    timeout(limit, work)
        .await
        .unwrap_or_else(|_| Err(format!("still not done after {limit:?}")))
        .map_err(|why| format!("{what}: {why}"))
}

/// One request on a connection of its own.
async fn ask(port: u16, request: http::request::Builder, body: Body) -> Outcome<Response<Incoming>> {
    let io = TokioIo::new(tcp(port).await?);
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(io).await.map_err(|error| error.to_string())?;
    // It ends with the body.
    tokio::spawn(connection);
    let request: Request<Body> = request.header("Host", "pod").body(body).map_err(|error| error.to_string())?;
    let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
    ensure!(response.status() == 200, "{}", response.status());
    Ok(response)
}

async fn collected(response: Response<Incoming>) -> Outcome<bytes::Bytes> {
    Ok(response.into_body().collect().await.map_err(|error| error.to_string())?.to_bytes())
}

pub async fn page(port: u16) -> Outcome {
    let page = collected(ask(port, Request::get("/page"), Body::empty()).await?).await?;
    ensure!(page == pod::PAGE, "the page is {page:?}");
    Ok(())
}

pub async fn download(port: u16, blocks: usize) -> Outcome {
    let mut body = ask(port, Request::get(format!("/download?blocks={blocks}")), Body::empty()).await?.into_body();
    let (mut hash, mut length) = (Sha256::new(), 0);
    while let Some(frame) = body.frame().await {
        let data = frame.map_err(|error| format!("after {length} bytes: {error}"))?.into_data();
        let data = data.map_err(|_| "trailers were not sent")?;
        length += data.len();
        hash.update(&data);
    }
    ensure!(hex(&hash.finalize()) == sha256(&pod::block(), blocks), "the hash of {length} bytes differs");
    Ok(())
}

pub async fn upload(port: u16, blocks: usize) -> Outcome {
    let body = Body::from_stream(stream::repeat(pod::block()).take(blocks).map(Ok::<_, Infallible>));
    let hash = collected(ask(port, Request::post("/upload"), body).await?).await?;
    ensure!(hash == sha256(&pod::block(), blocks), "the pod got something else: {hash:?}");
    Ok(())
}

/// Requests of which none is answered before all are there.
pub async fn together(port: u16) -> Outcome {
    let mut requests = JoinSet::new();
    for number in 0..pod::TOGETHER as u64 {
        requests.spawn(async move {
            let request = Request::get(format!("/together?number={number}"));
            let answer = collected(ask(port, request, Body::empty()).await?).await?;
            ensure!(answer == pod::answer(number), "request {number} was answered something else");
            Ok(())
        });
    }
    let all = requests.join_all().await;
    let failed: Vec<String> = all.into_iter().filter_map(Result::err).collect();
    ensure!(failed.is_empty(), "{} requests failed, the first with: {}", failed.len(), failed[0]);
    Ok(())
}

pub async fn websocket(port: u16) -> Outcome {
    let socket = client_async("ws://pod/echo", tcp(port).await?).await;
    let (mut socket, _) = socket.map_err(|error| error.to_string())?;
    for message in [Message::text("hello"), Message::binary(noise(7, 300_000)), Message::binary(Vec::new())] {
        socket.send(message.clone()).await.map_err(|error| error.to_string())?;
        let echo = socket.next().await.ok_or("the WebSocket ended")?.map_err(|error| error.to_string())?;
        ensure!(echo == message, "{} bytes came back otherwise, {} of them", message.len(), echo.len());
    }
    socket.close(None).await.map_err(|error| error.to_string())?;
    while let Some(message) = socket.next().await {
        let message = message.map_err(|error| format!("after Close: {error}"))?;
        ensure!(message.is_close(), "after Close: {message:?}");
    }
    Ok(())
}

/// Ends its own direction first, and reads only then.
pub async fn half_closed(port: u16, blocks: u8) -> Outcome {
    let mut tcp = tcp(port).await?;
    tcp.write_all(&[blocks]).await.map_err(|error| error.to_string())?;
    tcp.shutdown().await.map_err(|error| error.to_string())?;
    let (mut hash, mut length) = (Sha256::new(), 0);
    let mut buffer = vec![0; 64 << 10];
    loop {
        let read = tcp.read(&mut buffer).await.map_err(|error| format!("after {length} bytes: {error}"))?;
        if read == 0 {
            break;
        }
        length += read;
        hash.update(&buffer[..read]);
    }
    let wanted = usize::from(blocks) * pod::BLOCK;
    ensure!(length == wanted, "{length} of {wanted} bytes came");
    ensure!(hex(&hash.finalize()) == sha256(&pod::block(), blocks.into()), "the hash differs");
    Ok(())
}

/// Sends `bytes` to an echoing server, and gets the very same back.
pub async fn echoed(tcp: &mut TcpStream, bytes: &[u8]) -> Outcome {
    let mut back = vec![0; bytes.len()];
    let (mut read, mut write) = tcp.split();
    let (sent, came) = tokio::join!(write.write_all(bytes), read.read_exact(&mut back));
    sent.map_err(|error| format!("sending: {error}"))?;
    came.map_err(|error| format!("reading the echo: {error}"))?;
    ensure!(back == bytes, "the echo differs");
    Ok(())
}

/// Ends our direction; the other must end too, with nothing more in it.
pub async fn ended(mut tcp: TcpStream) -> Outcome {
    tcp.shutdown().await.map_err(|error| error.to_string())?;
    let rest = rest(&mut tcp).await.map_err(|error| format!("instead of an end: {error}"))?;
    ensure!(rest == 0, "{rest} bytes came instead of an end");
    Ok(())
}

/// How many bytes come before the end.
pub async fn rest(tcp: &mut TcpStream) -> io::Result<usize> {
    let mut rest = Vec::new();
    tcp.read_to_end(&mut rest).await
}

/// A connection to a port where nobody listens: it ends, and has nothing in it.
pub async fn refused(port: u16) -> Outcome {
    // kubectl accepts before it asks, and the reset may be there before a program that is slow looks at its connection.
    let mut tcp = match TcpStream::connect(("127.0.0.1", port)).await {
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(()),
        connected => connected.map_err(|error| format!("connecting to {port}: {error}"))?,
    };
    // An end or an error, as kubectl likes.
    let rest = rest(&mut tcp).await.unwrap_or(0);
    ensure!(rest == 0, "{rest} bytes came out of a closed port");
    Ok(())
}

/// A connection whose server goes away in the middle of it: what came before is all there, then it ends.
pub async fn torn(port: u16) -> Outcome {
    let mut tcp = tcp(port).await?;
    let mut came = vec![0; pod::BEFORE_RESET];
    tcp.read_exact(&mut came).await.map_err(|error| format!("before the reset: {error}"))?;
    ensure!(came == noise(6, pod::BEFORE_RESET), "the bytes before the reset differ");
    tcp.write_u8(b'!').await.map_err(|error| error.to_string())?;
    let rest = rest(&mut tcp).await.unwrap_or(0);
    ensure!(rest == 0, "{rest} bytes came after the reset");
    Ok(())
}
