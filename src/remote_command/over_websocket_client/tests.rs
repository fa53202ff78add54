use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Response, StatusCode, header};
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{DuplexStream, duplex},
    sync::watch,
    task::JoinHandle,
};

use super::*;
use crate::{
    BoxError,
    remote_command::{Exit, Input, TerminalSize, over_websocket},
    upgrade::StreamOptions,
    websocket::{ControlFrame, Head, Opcode, handshake},
};

/// A writer whose bytes can be looked at.
#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Vec<u8>>>);

impl Kept {
    fn bytes(&self) -> Vec<u8> {
        self.0.lock().expect("not poisoned").clone()
    }
}

impl AsyncWrite for Kept {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.0.lock().expect("not poisoned").extend_from_slice(buf);
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

fn request() -> Request<()> {
    Request::builder().uri("/exec/ns/pod/c?command=x").header("host", "node").body(()).expect("valid")
}

/// A server that speaks `protocol` and runs `run`, on hyper.
fn serve<F, Fut>(protocol: WsProtocol, run: F) -> DuplexStream
where
    F: Fn(Stdio) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = Result<Exit, BoxError>> + Send + 'static,
{
    let (near, far) = duplex(64 * 1024);
    let service = service_fn(move |mut request: Request<hyper::body::Incoming>| {
        let key = handshake::check_request(request.method(), request.version(), request.headers()).cloned();
        let accept = handshake::accept_key(&key.expect("a handshake"));
        let upgrade = hyper::upgrade::on(&mut request);
        let run = run.clone();
        tokio::spawn(async move {
            let io = TokioIo::new(upgrade.await.expect("upgraded"));
            let all = StreamOptions { stdin: true, stdout: true, stderr: true, ..StreamOptions::default() };
            let limits = &crate::upgrade::SessionLimits::new();
            over_websocket::serve(io, protocol, &all, limits, CancellationToken::new(), run).await
        });
        let mut response = Response::builder()
            .status(StatusCode::SWITCHING_PROTOCOLS)
            .header(header::UPGRADE, "websocket")
            .header(header::CONNECTION, "Upgrade")
            .header(header::SEC_WEBSOCKET_ACCEPT, accept);
        if !protocol.name().is_empty() {
            response = response.header(header::SEC_WEBSOCKET_PROTOCOL, protocol.name());
        }
        std::future::ready(response.body(Full::<Bytes>::default()))
    });
    tokio::spawn(
        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(near), service).with_upgrades(),
    );
    far
}

async fn exec(io: DuplexStream, protocols: &[WsProtocol], stdin: &[u8]) -> (Result<Outcome, Error>, Vec<u8>, Vec<u8>) {
    exec_reading(io, protocols, io::Cursor::new(stdin.to_vec())).await
}

async fn exec_reading(
    io: DuplexStream,
    protocols: &[WsProtocol],
    stdin: impl AsyncRead + Send + Unpin + 'static,
) -> (Result<Outcome, Error>, Vec<u8>, Vec<u8>) {
    let (connected, protocol) = connect(io, request(), protocols).await.expect("connected");
    assert!(protocols.contains(&protocol) || protocol == WsProtocol::Unnamed);
    let (stdout, stderr) = (Kept::default(), Kept::default());
    let mut stdio = Stdio::new(CancellationToken::new());
    stdio.stdin = Some(Input::new(stdin));
    stdio.stdout = Some(Output::new(stdout.clone()));
    stdio.stderr = Some(Output::new(stderr.clone()));
    (run(connected, protocol, stdio).await, stdout.bytes(), stderr.bytes())
}

#[tokio::test(start_paused = true)]
async fn all_of_stdin_comes_back_through_a_command_that_reads_to_the_end() {
    let sent: Vec<u8> = (0..4 << 20).map(|at: u32| (at / 999) as u8).collect();
    let io = serve(WsProtocol::V5, |stdio| async move {
        let (mut stdin, mut stdout) = (stdio.stdin.expect("stdin"), stdio.stdout.expect("stdout"));
        tokio::io::copy(&mut stdin, &mut stdout).await?;
        Ok(Exit::Code(3))
    });
    let (outcome, stdout, _) = exec(io, &[WsProtocol::V5, WsProtocol::V4], &sent).await;
    assert_eq!(outcome.expect("a status"), Outcome::Exited(Exit::Code(3)));
    assert!(stdout == sent);
}

/// A message of up to 125 bytes has a shorter head, one of 64 KiB a longer one, alone, behind others and before them.
#[tokio::test(start_paused = true)]
async fn pieces_of_any_length_leave_together_in_their_order() {
    let sent: Vec<u8> = (0..10 << 20).map(|at: u32| (at / 99) as u8).collect();
    let short = [1, 2, 123, 124, 125, 126, 32_000, 1, 61_440, 61_441, 3];
    let long = [4_000_000, 65_534, 9, 999_999, 65_535, 999_999, 65_536, 124, 999_999, 1_044_480, 1, 1_044_481];
    for protocol in [WsProtocol::V5, WsProtocol::Base64V4] {
        let mut stdin: Box<dyn AsyncRead + Send + Unpin> = Box::new(tokio::io::empty());
        let mut rest = &sent[..];
        for length in short.into_iter().chain(long).cycle() {
            let (piece, behind) = rest.split_at(length.min(rest.len()));
            stdin = Box::new(stdin.chain(io::Cursor::new(piece.to_vec())));
            rest = behind;
            if rest.is_empty() {
                break;
            }
        }
        let io = serve(protocol, |stdio| async move {
            let (mut got, mut stdin) = (vec![0; 10 << 20], stdio.stdin.expect("stdin"));
            stdin.read_exact(&mut got).await?;
            stdio.stdout.expect("stdout").write_all(&got).await?;
            Ok(Exit::Success)
        });
        let (outcome, stdout, _) = exec_reading(io, &[protocol], stdin).await;
        assert_eq!(outcome.expect("a status"), Outcome::Exited(Exit::Success), "{protocol:?}");
        assert!(stdout == sent, "{protocol:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn every_protocol_is_understood() {
    for protocol in WsProtocol::ALL {
        let io = serve(protocol, |stdio| async move {
            let mut line = [0; 6];
            stdio.stdin.expect("stdin").read_exact(&mut line).await?;
            stdio.stdout.expect("stdout").write_all(&line).await?;
            stdio.stderr.expect("stderr").write_all(b"err").await?;
            if line == *b"wrong!" { Ok(Exit::Code(9)) } else { Ok(Exit::Success) }
        });
        let (outcome, stdout, stderr) = exec(io, &[protocol], b"right!").await;
        assert_eq!(outcome.expect("a status"), Outcome::Exited(Exit::Success), "{protocol:?}");
        assert_eq!((&stdout[..], &stderr[..]), (&b"right!"[..], &b"err"[..]));
    }
    let io = serve(WsProtocol::V1, |_| async { Err("no such command".into()) });
    let (outcome, ..) = exec(io, &[WsProtocol::V1], b"").await;
    assert!(matches!(outcome, Ok(Outcome::Failed(why)) if why.contains("no such command")));
}

/// A server that answers the handshake with `protocol` and then writes `wire` in the same write.
fn scripted(protocol: &'static str, wire: Vec<u8>) -> (DuplexStream, JoinHandle<DuplexStream>) {
    let (mut near, far) = duplex(64 * 1024);
    let server = tokio::spawn(async move {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(near.read_u8().await.expect("a head"));
        }
        let head = String::from_utf8(head).expect("text");
        let key = head.lines().find_map(|line| line.strip_prefix("sec-websocket-key: ")).expect("a key");
        let accept = handshake::accept_key(&key.parse().expect("a value"));
        let accept = accept.to_str().expect("text");
        let mut answer = format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {accept}\r\nSec-WebSocket-Protocol: {protocol}\r\n\r\n"
        )
        .into_bytes();
        answer.extend(wire);
        near.write_all(&answer).await.expect("written");
        near
    });
    (far, server)
}

fn message(id: u8, payload: &[u8]) -> Vec<u8> {
    [&channel::head(Encoding::Binary, id, payload.len())[..], payload].concat()
}

const SUCCESS: &[u8] = br#"{"metadata":{},"status":"Success"}"#;

#[tokio::test(start_paused = true)]
async fn what_comes_with_the_handshake_is_not_lost() {
    let close = ControlFrame::close(1000, "", None);
    let wire = [&message(1, b""), &message(1, b"early"), &message(3, SUCCESS), &close[..]].concat();
    let (io, _server) = scripted("v5.channel.k8s.io", wire);
    let (outcome, stdout, _) = exec(io, &[WsProtocol::V5], b"").await;
    assert_eq!((outcome.expect("a status"), &stdout[..]), (Outcome::Exited(Exit::Success), &b"early"[..]));
}

#[tokio::test(start_paused = true)]
async fn a_session_without_a_whole_status_is_never_a_success() {
    let close = ControlFrame::close(1000, "", None).to_vec();
    for (wire, dropped) in [
        (vec![], true),
        (message(3, b"{\"status\":\"Succ"), true),
        (ControlFrame::close(1001, "", None).to_vec(), false),
        (message(3, SUCCESS)[..9].to_vec(), true),
    ] {
        let (io, server) = scripted("v5.channel.k8s.io", wire);
        let server = async {
            let near = server.await.expect("no panic");
            // Kept or dropped: the connection ends after the script, or waits.
            (!dropped).then_some(near)
        };
        let ((outcome, ..), _near) = tokio::join!(exec(io, &[WsProtocol::V5], b""), server);
        assert!(outcome.expect_err("lost").is_lost());
    }
    let (io, _server) = scripted("v5.channel.k8s.io", close.clone());
    assert!(matches!(exec(io, &[WsProtocol::V5], b"").await.0, Ok(Outcome::Invalid(_))));
    let (io, _server) = scripted("channel.k8s.io", close);
    assert_eq!(exec(io, &[WsProtocol::V1], b"").await.0.expect("told"), Outcome::Exited(Exit::Success));
}

#[tokio::test(start_paused = true)]
async fn a_whole_status_stands_even_if_the_close_is_lost() {
    let (io, server) = scripted("v5.channel.k8s.io", message(3, SUCCESS));
    let ((outcome, ..), _) = tokio::join!(exec(io, &[WsProtocol::V5], b""), async { drop(server.await) });
    assert_eq!(outcome.expect("a status"), Outcome::Exited(Exit::Success));
}

#[tokio::test(start_paused = true)]
async fn broken_frames_are_protocol_errors() {
    let fragment = |opcode| {
        let mut head = Head::new(opcode, 1, None).to_vec();
        head[0] &= 0x7f;
        [&head[..], b"\x01"].concat()
    };
    for wire in [
        vec![0xc2, 0x00],
        vec![0x83, 0x00],
        fragment(Opcode::Continuation),
        [fragment(Opcode::Binary), fragment(Opcode::Binary)].concat(),
        [&b"\x8a\x7e\x00\xff"[..], &[0; 255]].concat(),
        b"\x82\x7f\x00\x00\x00\x00\x01\x00\x00\x00".to_vec(),
        vec![0x88, 0x01, 0x00],
    ] {
        let (io, _server) = scripted("v5.channel.k8s.io", wire.clone());
        assert!(exec(io, &[WsProtocol::V5], b"").await.0.expect_err("broken").is_protocol(), "{wire:x?}");
    }
}

#[tokio::test(start_paused = true)]
async fn pings_are_answered_and_a_silent_server_is_asked_and_given_up() {
    let ping = ControlFrame::ping(&Payload::truncated(b"there?"), None).to_vec();
    let (io, server) = scripted("v5.channel.k8s.io", ping);
    let before = Instant::now();
    let (connected, protocol) = connect(io, request(), &[WsProtocol::V5]).await.expect("connected");
    let session = run(connected, protocol, Stdio::new(CancellationToken::new()));
    let heard = async {
        let mut near = server.await.expect("no panic");
        let mut heard = Vec::new();
        near.read_to_end(&mut heard).await.expect("read");
        heard
    };
    let (outcome, heard) = tokio::join!(session, heard);
    assert!(outcome.expect_err("silent").is_timeout());
    assert_eq!(before.elapsed(), DEAD_AFTER);
    let mut decoder = crate::websocket::Decoder::new(crate::websocket::Role::Server, Default::default());
    let (mut at, mut events, mut heard) = (0, Vec::new(), heard);
    while at < heard.len() {
        let step = decoder.step(&mut heard[at..]).expect("valid and masked");
        at += step.consumed;
        events.extend(step.event);
    }
    use crate::websocket::Event;
    assert_eq!(events[0], Event::Pong(Payload::truncated(b"there?")));
    assert!(events[1..].len() >= 5, "{events:?}");
    assert!(events[1..].iter().all(|event| matches!(event, Event::Ping(_) | Event::Close(_))), "{events:?}");
}

#[tokio::test(start_paused = true)]
async fn sizes_and_cancellation_reach_the_server() {
    let gone = CancellationToken::new();
    let (sizes, receiver) = watch::channel(Some(TerminalSize { width: 80, height: 24 }));
    let (io, server) = scripted("v4.channel.k8s.io", Vec::new());
    let (connected, protocol) = connect(io, request(), &[WsProtocol::V4]).await.expect("connected");
    let mut stdio = Stdio::new(gone.clone());
    stdio.resize = Some(receiver);
    let session = tokio::spawn(run(connected, protocol, stdio));
    let near = server.await.expect("no panic");
    let mut peer = tokio_tungstenite::WebSocketStream::from_raw_socket(
        near,
        tokio_tungstenite::tungstenite::protocol::Role::Server,
        None,
    )
    .await;
    use futures_util::StreamExt as _;
    let mut next = async || peer.next().await.expect("open").expect("valid");
    assert_eq!(&next().await.into_data()[..], b"\x04{\"Width\":80,\"Height\":24}\n");
    sizes.send_replace(Some(TerminalSize { width: 100, height: 50 }));
    assert_eq!(&next().await.into_data()[..], b"\x04{\"Width\":100,\"Height\":50}\n");
    gone.cancel();
    assert!(next().await.is_close());
    assert!(session.await.expect("no panic").expect_err("cancelled").is_cancelled());
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_session_does_not_wait_for_a_server_that_takes_nothing() {
    let gone = CancellationToken::new();
    let (io, server) = scripted("v5.channel.k8s.io", Vec::new());
    let (connected, protocol) = connect(io, request(), &[WsProtocol::V5]).await.expect("connected");
    let mut stdio = Stdio::new(gone.clone());
    stdio.stdin = Some(Input::new(tokio::io::repeat(7)));
    let session = tokio::spawn(run(connected, protocol, stdio));
    let _near = server.await.expect("no panic");
    tokio::time::sleep(Duration::from_secs(30)).await;
    gone.cancel();
    assert!(session.await.expect("no panic").expect_err("cancelled").is_cancelled());
}

#[tokio::test(start_paused = true)]
async fn a_refusal_comes_with_its_body_and_a_wrong_protocol_is_an_error() {
    let (near, far) = duplex(4096);
    let service = service_fn(|_| async {
        let mut response = Response::new(Full::<Bytes>::from("pods \"x\" not found"));
        *response.status_mut() = StatusCode::NOT_FOUND;
        Ok::<_, Infallible>(response)
    });
    tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(near), service));
    match connect(far, request(), &[WsProtocol::V5]).await {
        Err(ConnectError::Refused(response)) => {
            assert_eq!((response.status().as_u16(), &response.body()[..]), (404, &b"pods \"x\" not found"[..]));
        }
        other => panic!("{other:?}"),
    }
    let (io, _server) = scripted("v4.channel.k8s.io", Vec::new());
    let error = connect(io, request(), &[WsProtocol::V5]).await.expect_err("another protocol");
    assert!(matches!(error, ConnectError::Response(handshake::ResponseError::Protocol)));
    let (near, far) = duplex(4096);
    drop(near);
    assert!(matches!(connect(far, request(), &[]).await, Err(ConnectError::Http(_))));
}
