//! The client's port-forward: the dialers against our own stacks in every setting of the gates, what one connection's
//! failure does to the others, and a forwarder whose server goes away.

#[path = "forwarder/heartbeats.rs"]
mod heartbeats;
#[path = "forwarder/restarts.rs"]
mod restarts;
#[path = "forwarder/server.rs"]
mod server;
mod support;

use std::{io, num::NonZeroU16, time::Duration};

use http::StatusCode;
use support::{
    noise,
    pod::{self, Pod},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tower_kube_streaming::{
    Gate,
    client::{
        Carrier, ExecuteError,
        port_forward::{
            Connection, ConnectionError, FallbackDialer, OpenForward, PodError, PortForwardRequest, SpdyDialer,
            TunnelDialer, Upstream,
        },
    },
};

use self::server::{Server, Side};

pub(crate) const NONE: &[Gate] = &[];
pub(crate) const TUNNEL: &[Gate] = &[Gate::PortForwardWebsockets];
pub(crate) const EXTEND: &[Gate] = &[Gate::ExtendWebSocketsToKubelet, Gate::NodeDeclaredFeatures];
const BOTH: &[Gate] = &[Gate::PortForwardWebsockets, Gate::ExtendWebSocketsToKubelet, Gate::NodeDeclaredFeatures];

pub(crate) fn port(port: u16) -> NonZeroU16 {
    NonZeroU16::new(port).expect("a port")
}

pub(crate) fn at_api_server(pod: &str) -> PortForwardRequest {
    PortForwardRequest::new(format!("http://api/api/v1/namespaces/default/pods/{pod}/portforward")).expect("a URL")
}

pub(crate) fn at_kubelet() -> PortForwardRequest {
    PortForwardRequest::new("http://node/portForward/default/demo").expect("a URL")
}

/// Sends bytes to an echoing port, ends, and gets the very same back.
async fn echo(upstream: &Upstream, to: u16, bytes: &[u8]) -> io::Result<()> {
    let connection = upstream.connect(port(to)).await.map_err(io::Error::other)?;
    let (mut read, mut write) = tokio::io::split(connection);
    let send = async {
        write.write_all(bytes).await?;
        write.shutdown().await
    };
    let mut back = Vec::new();
    let (sent, came) = tokio::join!(send, read.read_to_end(&mut back));
    sent?;
    came?;
    assert!(back == bytes, "{} of {} bytes came back", back.len(), bytes.len());
    Ok(())
}

#[tokio::test]
async fn ports_are_forwarded_whatever_the_gates_say_over_websocket_where_that_is_spoken() {
    let pod = Pod::start().await.expect("a pod");
    let bytes = noise(1, 1 << 20);
    for (side, request, websocket) in [
        (Side::ApiServer(TUNNEL, NONE), at_api_server("demo"), true),
        (Side::ApiServer(BOTH, EXTEND), at_api_server("demo"), true),
        (Side::ApiServer(BOTH, NONE), at_api_server("demo"), true),
        (Side::ApiServer(NONE, EXTEND), at_api_server("demo"), true),
        (Side::ApiServer(NONE, NONE), at_api_server("demo"), false),
        (Side::Kubelet(EXTEND), at_kubelet(), true),
        (Side::Kubelet(NONE), at_kubelet(), false),
    ] {
        let server = Server::new(side);
        let carried = if websocket { Carrier::WebSocket } else { Carrier::Spdy };
        let fallback = FallbackDialer::new(server.dial());
        for round in 0..2 {
            let upstream = fallback.dial(&request).await.expect("a connection");
            assert_eq!(upstream.carrier(), carried, "{side:?}");
            // The second time it is remembered.
            assert_eq!(upstream.fell_back().is_some(), !websocket && round == 0, "{side:?}");
            echo(&upstream, pod.echo, &bytes).await.expect("an echo");
        }
        let upstream = SpdyDialer::new(server.dial()).dial(&request).await.expect("SPDY");
        assert_eq!(upstream.carrier(), Carrier::Spdy);
        echo(&upstream, pod.echo, &bytes).await.expect("an echo");
        match TunnelDialer::new(server.dial()).dial(&request).await {
            Ok(upstream) => {
                assert!(websocket, "{side:?}");
                assert_eq!(upstream.carrier(), Carrier::WebSocket);
                echo(&upstream, pod.echo, &bytes).await.expect("an echo");
            }
            Err(error) => {
                assert!(!websocket, "{side:?}: {error}");
                assert_eq!(error.rejection().expect("a refusal").carrier(), Carrier::WebSocket);
            }
        }
    }
}

#[tokio::test]
async fn a_pod_that_is_not_there_is_the_servers_answer_over_either_carrier() {
    let server = Server::new(Side::ApiServer(TUNNEL, NONE));
    let request = at_api_server("nosuch");
    for error in [
        TunnelDialer::new(server.dial()).dial(&request).await.expect_err("no pod"),
        SpdyDialer::new(server.dial()).dial(&request).await.expect_err("no pod"),
        FallbackDialer::new(server.dial()).dial(&request).await.expect_err("no pod"),
    ] {
        let rejection = error.rejection().expect("a refusal");
        assert_eq!(rejection.code(), StatusCode::NOT_FOUND, "{error}");
    }
    server.stop().await;
    let error = FallbackDialer::new(server.dial()).dial(&request).await.expect_err("nobody there");
    assert!(matches!(error, ExecuteError::Dial(_)), "{error:?}");
}

/// Both carriers to one kubelet.
async fn upstreams() -> [Upstream; 2] {
    let server = Server::new(Side::Kubelet(EXTEND));
    [
        TunnelDialer::new(server.dial()).dial(&at_kubelet()).await.expect("a tunnel"),
        SpdyDialer::new(server.dial()).dial(&at_kubelet()).await.expect("SPDY"),
    ]
}

#[tokio::test]
async fn a_connection_that_fails_is_an_error_of_its_own_in_the_servers_words_and_the_others_live_on() {
    let pod = Pod::start().await.expect("a pod");
    for upstream in upstreams().await {
        let mut lives = upstream.connect(port(pod.echo)).await.expect("a connection");
        for _ in 0..3 {
            let mut refused = upstream.connect(port(pod.closed)).await.expect("it is dialled behind the reply");
            let error = refused.read_u8().await.expect_err("nobody listens");
            let said = error.get_ref().and_then(|error| error.downcast_ref::<PodError>()).expect("the server's words");
            assert!(said.0.contains("Connection refused"), "{said}");
            assert_eq!(refused.error(), Some(said.0.as_str()));
            torn(upstream.connect(port(pod.resetting)).await.expect("a connection")).await;
            // What this side gives up is no affair of the others either.
            drop(upstream.connect(port(pod.echo)).await.expect("a connection"));
            lives.write_all(b"still").await.expect("written");
            let mut back = [0; 5];
            lives.read_exact(&mut back).await.expect("an echo");
            assert_eq!(&back, b"still");
        }
        assert_eq!(lives.error(), None);
    }
}

/// What the pod sent before it reset the connection is all there; then there is an error, not an end.
async fn torn(mut connection: Connection) {
    let mut came = vec![0; pod::BEFORE_RESET];
    connection.read_exact(&mut came).await.expect("what came before");
    assert!(came == noise(6, pod::BEFORE_RESET));
    connection.write_u8(b'!').await.expect("written");
    let error = connection.read_u8().await.expect_err("a reset");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}");
    assert_eq!(connection.error(), None);
}

#[tokio::test]
async fn one_direction_ends_and_the_other_goes_on() {
    let pod = Pod::start().await.expect("a pod");
    for upstream in upstreams().await {
        let mut connection = upstream.connect(port(pod.patient)).await.expect("a connection");
        connection.write_u8(2).await.expect("written");
        connection.shutdown().await.expect("half-closed");
        let mut all = Vec::new();
        connection.read_to_end(&mut all).await.expect("an end");
        assert!(all == [pod::block(), pod::block()].concat(), "{} bytes", all.len());
        drop(connection);
        while upstream.streams() > 0 {
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn a_lost_server_resets_what_is_open_and_new_connections_are_told() {
    let pod = Pod::start().await.expect("a pod");
    for spdy in [false, true] {
        let server = Server::new(Side::Kubelet(EXTEND));
        let upstream = match spdy {
            false => TunnelDialer::new(server.dial()).dial(&at_kubelet()).await,
            true => SpdyDialer::new(server.dial()).dial(&at_kubelet()).await,
        };
        let upstream = upstream.expect("a connection");
        let mut open = upstream.connect(port(pod.echo)).await.expect("a connection");
        server.stop().await;
        let ended = tokio::time::timeout(Duration::from_secs(10), upstream.closed()).await.expect("in time");
        ended.expect_err("it was lost");
        assert_eq!(open.read_u8().await.expect_err("lost").kind(), io::ErrorKind::ConnectionReset);
        let error = upstream.connect(port(pod.echo)).await.expect_err("lost");
        assert!(matches!(error, ConnectionError::Lost), "{error:?}");
    }
}
