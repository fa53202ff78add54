//! WebSocket clients from before v5 and before the tunnel, and such as name no protocol: the API server passes them
//! through to the kubelet.
//!
//! The client is tokio-tungstenite, which shares no code with us.

mod support;

use std::collections::BTreeMap;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use futures_util::{SinkExt, StreamExt};
use support::{Outcome, lab::Lab};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
};
use tokio_tungstenite::{
    client_async,
    tungstenite::{Message, client::IntoClientRequest, http::HeaderValue},
};
use tower_kube_streaming_testing::client::Exec;

/// What the command said: by channel, and the server's Close.
#[derive(Debug, Default)]
struct Said {
    channels: BTreeMap<u8, Vec<u8>>,
    closed: bool,
}

impl Said {
    fn text(&self, channel: u8) -> String {
        String::from_utf8_lossy(self.channels.get(&channel).map_or(&[], Vec::as_slice)).into_owned()
    }
}

/// Runs a command whose stdin is `input`, in the dialect of that subprotocol.
async fn run(lab: &Lab, protocol: Option<&'static str>, exec: &Exec<'_>, input: &[u8]) -> Outcome<Said> {
    talk(lab, protocol, &exec.path(), input).await.map_err(|why| format!("{why}\n{}", lab.logs()))
}

/// Opens the stream at `path`, sends `input` on channel 0, and hears it to its end.
async fn talk(lab: &Lab, protocol: Option<&'static str>, path: &str, input: &[u8]) -> Outcome<Said> {
    let said = |error: &dyn std::fmt::Display| format!("{protocol:?}: {error}");
    let url = format!("ws://{}{path}", lab.address());
    let mut request = url.into_client_request().map_err(|error| said(&error))?;
    if let Some(protocol) = protocol {
        request.headers_mut().insert("Sec-WebSocket-Protocol", HeaderValue::from_static(protocol));
    }
    let tcp = TcpStream::connect(lab.address()).await.map_err(|error| said(&error))?;
    let (mut socket, answer) = client_async(request, tcp).await.map_err(|error| said(&error))?;
    let chosen = answer.headers().get("sec-websocket-protocol").and_then(|value| value.to_str().ok());
    ensure!(chosen.unwrap_or_default() == protocol.unwrap_or_default(), "{protocol:?}: the answer names {chosen:?}");
    let base64 = protocol.is_some_and(|name| name.contains("base64"));
    if !input.is_empty() {
        let message = match base64 {
            true => Message::text(format!("0{}", BASE64_STANDARD.encode(input))),
            false => Message::binary([&[0], input].concat()),
        };
        socket.send(message).await.map_err(|error| said(&error))?;
    }
    let mut all = Said::default();
    while let Some(message) = socket.next().await {
        let (channel, payload) = match message.map_err(|error| said(&error))? {
            Message::Binary(bytes) if !base64 => match bytes.split_first() {
                Some((channel, payload)) => (*channel, payload.to_vec()),
                None => continue,
            },
            Message::Text(text) if base64 => match text.as_bytes().split_first() {
                Some((digit, payload)) => {
                    (digit.wrapping_sub(b'0'), BASE64_STANDARD.decode(payload).map_err(|error| said(&error))?)
                }
                None => continue,
            },
            Message::Close(_) => {
                all.closed = true;
                continue;
            }
            Message::Ping(_) | Message::Pong(_) => continue,
            other => return Err(format!("{protocol:?}: {other:?}")),
        };
        all.channels.entry(channel).or_default().extend(payload);
    }
    Ok(all)
}

/// Stdin cannot be ended before v5, so the command reads as much as it wants.
const SCRIPT: &str = "head -c 5; echo; echo err >&2; exit 3";

#[tokio::test]
async fn a_client_from_before_v5_runs_a_command() -> Outcome {
    let lab = Lab::plain().await?;
    let exec = Exec { command: &["sh", "-c", SCRIPT], stdin: true };
    for protocol in ["v4.channel.k8s.io", "v4.base64.channel.k8s.io"] {
        let said = run(&lab, Some(protocol), &exec, b"input").await?;
        ensure!(said.text(1) == "input\n" && said.text(2) == "err\n", "{protocol}: {said:?}");
        ensure!(said.text(3).contains(r#""reason":"ExitCode","message":"3""#), "{protocol}: {said:?}");
        ensure!(said.closed, "{protocol}: no Close");
    }
    lab.stop().await
}

#[tokio::test]
async fn a_client_that_names_v1_or_nothing_runs_a_command() -> Outcome {
    let lab = Lab::plain().await?;
    let exec = Exec { command: &["sh", "-c", SCRIPT], stdin: true };
    for protocol in [None, Some("channel.k8s.io"), Some("base64.channel.k8s.io")] {
        let said = run(&lab, protocol, &exec, b"input").await?;
        ensure!(said.text(1) == "input\n" && said.text(2) == "err\n", "{protocol:?}: {said:?}");
        ensure!(said.text(3).contains('3') && !said.text(3).contains('{'), "{protocol:?}: the error is text: {said:?}");
        ensure!(said.closed, "{protocol:?}: no Close");
    }
    lab.stop().await
}

#[tokio::test]
async fn a_client_from_before_the_tunnel_forwards_ports() -> Outcome {
    let lab = Lab::plain().await?;
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.map_err(|error| error.to_string())?;
    let open = listener.local_addr().map_err(|error| error.to_string())?.port();
    // Bound, so that nobody else takes it, and nobody listens.
    let reserved = TcpSocket::new_v4().map_err(|error| error.to_string())?;
    reserved.bind(([127, 0, 0, 1], 0).into()).map_err(|error| error.to_string())?;
    let closed = reserved.local_addr().map_err(|error| error.to_string())?.port();
    let server = tokio::spawn(async move {
        for _ in 0..3 {
            let (mut tcp, _) = listener.accept().await?;
            let mut asked = [0; 5];
            tcp.read_exact(&mut asked).await?;
            tcp.write_all(&[b"you said ", &asked[..]].concat()).await?;
        }
        Ok::<_, std::io::Error>(())
    });
    let path = format!("/api/v1/namespaces/default/pods/demo/portforward?ports={open},{closed}");
    for protocol in [None, Some("v4.channel.k8s.io"), Some("v4.base64.channel.k8s.io")] {
        let said = talk(&lab, protocol, &path, b"input").await.map_err(|why| format!("{why}\n{}", lab.logs()))?;
        // Each channel begins with the number of its port.
        let number = |port: u16| port.to_le_bytes().to_vec();
        let data = [number(open), b"you said input".to_vec()].concat();
        ensure!(said.channels.get(&0) == Some(&data), "{protocol:?}: {said:?}");
        ensure!(said.channels.get(&1) == Some(&number(open)), "{protocol:?}: {said:?}");
        ensure!(said.channels.get(&2) == Some(&number(closed)), "{protocol:?}: {said:?}");
        let why = format!("error forwarding port {closed} to pod demo");
        ensure!(said.text(3).contains(&why), "{protocol:?}: {said:?}");
        ensure!(said.closed, "{protocol:?}: no Close");
    }
    server.await.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
    lab.stop().await
}
