use std::{io, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty, Full};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    net::TcpListener,
    sync::Mutex,
};
use tower::ServiceExt;

use super::{TcpConnect, UpgradeProxy, handshake::strip_credentials};
use crate::{
    layers::Hop,
    upgrade::{ClientAddr, Dialect, Permit, StreamOptions, Subresource, Target, mark_taken, take},
};

fn request(uri: &str) -> Request<Empty<Bytes>> {
    let mut request = Request::post("/whatever/the/client/wrote")
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "SPDY/3.1")
        .header("x-stream-protocol-version", "v4.channel.k8s.io")
        .header(header::AUTHORIZATION, "Bearer secret")
        .header("impersonate-user", "root")
        .header("x-remote-user", "root")
        .header("X-Remote-Extra-Scopes", "secret")
        .header(header::COOKIE, "session=secret")
        .header("x-forwarded-for", "198.51.100.1")
        .body(Empty::new())
        .unwrap();
    let target = Target {
        subresource: Subresource::PortForward,
        namespace: "default".into(),
        pod: "demo".into(),
        uid: None,
        container: None,
        options: StreamOptions::default(),
        dialect: Dialect::ApiServer,
    };
    mark_taken(request.extensions_mut());
    request.extensions_mut().insert(Permit(Arc::new(target)));
    request.extensions_mut().insert(ClientAddr([192, 0, 2, 9].into()));
    request.extensions_mut().insert(Hop::new(uri.parse().unwrap()));
    request
}

/// Dials the one connection there is.
fn connect(io: DuplexStream) -> impl super::Connect<Io = DuplexStream> {
    let io = Arc::new(Mutex::new(Some(io)));
    move |_: Uri| {
        let io = Arc::clone(&io);
        async move { io.lock().await.take().ok_or_else(|| io::Error::other("dialled twice")) }
    }
}

/// Reads a request head.
async fn head(io: &mut DuplexStream) -> String {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        bytes.push(io.read_u8().await.unwrap());
    }
    String::from_utf8(bytes).unwrap()
}

/// What comes of a hop that answers so, and then closes.
async fn answered(answer: &[u8]) -> (String, Response<Full<Bytes>>) {
    let (near, mut hop) = duplex(64 * 1024);
    let proxy = UpgradeProxy::new(connect(near));
    let response = tokio::spawn(proxy.oneshot(request("http://10.0.0.7:10250/portForward/default/demo")));
    let asked = head(&mut hop).await;
    hop.write_all(answer).await.unwrap();
    drop(hop);
    (asked, response.await.unwrap().unwrap())
}

async fn text(response: Response<Full<Bytes>>) -> String {
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

fn status(message: &str) -> String {
    format!(
        r#"{{"kind":"Status","apiVersion":"v1","metadata":{{}},"status":"Failure","message":"{message}","code":500}}"#
    ) + "\n"
}

const SWITCH: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n";

#[tokio::test]
async fn bytes_right_behind_both_heads_are_not_lost() {
    let (near, mut hop) = duplex(64 * 1024);
    // The client: a real hyper server in front of the leaf, and its request with bytes behind it.
    let (mut client, server) = duplex(64 * 1024);
    let proxy = UpgradeProxy::new(connect(near));
    tokio::spawn(async move {
        let service = hyper::service::service_fn(move |client: Request<hyper::body::Incoming>| {
            let proxy = proxy.clone();
            async move {
                let mut carried = request("http://hop/x");
                let (parts, _) = client.into_parts();
                let permit = carried.extensions().get::<Permit>().unwrap().clone();
                let hop = carried.extensions().get::<Hop>().unwrap().clone();
                *carried.extensions_mut() = parts.extensions;
                carried.extensions_mut().insert(permit);
                carried.extensions_mut().insert(hop);
                proxy.oneshot(carried).await
            }
        });
        let connection = hyper::server::conn::http1::Builder::new();
        connection.serve_connection(hyper_util::rt::TokioIo::new(server), service).with_upgrades().await
    });
    client
        .write_all(b"POST /x HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nContent-Length: 0\r\n\r\nfrom the client")
        .await
        .unwrap();
    head(&mut hop).await;
    hop.write_all(&[SWITCH, b"from the hop"].concat()).await.unwrap();
    hop.shutdown().await.unwrap();
    let answer = head(&mut client).await;
    assert!(answer.starts_with("HTTP/1.1 101"), "{answer}");
    client.shutdown().await.unwrap();
    let (mut there, mut back) = (String::new(), String::new());
    hop.read_to_string(&mut there).await.unwrap();
    client.read_to_string(&mut back).await.unwrap();
    assert_eq!((&*there, &*back), ("from the client", "from the hop"));
}

#[tokio::test]
async fn the_hop_is_asked_by_its_own_url_without_the_callers_credentials() {
    let (asked, _) = answered(SWITCH).await;
    let mut lines = asked.lines();
    assert_eq!(lines.next(), Some("POST /portForward/default/demo HTTP/1.1"));
    let asked = asked.to_ascii_lowercase();
    for expected in [
        "host: 10.0.0.7:10250\r\n",
        "content-length: 0\r\n",
        "upgrade: spdy/3.1\r\n",
        "x-forwarded-for: 198.51.100.1, 192.0.2.9\r\n",
    ] {
        assert!(asked.contains(expected), "{asked}");
    }
    assert!(!asked.contains("secret") && !asked.contains("impersonate") && !asked.contains("x-remote"), "{asked}");
}

#[tokio::test]
async fn a_body_that_a_get_announces_is_not_announced_to_the_hop() {
    let (near, mut hop) = duplex(64 * 1024);
    let mut get = request("http://10.0.0.7:10250/portForward/default/demo");
    *get.method_mut() = http::Method::GET;
    get.headers_mut().insert(header::CONTENT_LENGTH, 10.into());
    tokio::spawn(UpgradeProxy::new(connect(near)).oneshot(get));
    let asked = head(&mut hop).await.to_ascii_lowercase();
    assert!(!asked.contains("content-length"), "{asked}");
}

#[tokio::test]
async fn bearer_subprotocols_are_taken_out_and_the_others_stay() {
    let bearer = "base64url.bearer.authorization.k8s.io.c2VjcmV0";
    let strip = |lines: &[&[u8]]| {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(header::SEC_WEBSOCKET_PROTOCOL, http::HeaderValue::from_bytes(line).unwrap());
        }
        strip_credentials(&mut headers);
        let left = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter();
        left.map(|line| String::from_utf8_lossy(line.as_bytes()).into_owned()).collect::<Vec<_>>()
    };
    assert_eq!(strip(&[b"v5.channel.k8s.io", b"v4.channel.k8s.io"]), ["v5.channel.k8s.io", "v4.channel.k8s.io"]);
    let both = format!("v5.channel.k8s.io, {bearer}");
    assert_eq!(strip(&[both.as_bytes()]), ["v5.channel.k8s.io"]);
    assert_eq!(strip(&[bearer.as_bytes(), b"v5.channel.k8s.io"]), ["v5.channel.k8s.io"]);
    assert_eq!(strip(&[bearer.as_bytes()]), [""; 0]);
    let odd = [bearer.as_bytes(), b", \xff"].concat();
    assert!(!strip(&[&odd, b"v4.channel.k8s.io"]).concat().contains("bearer"));
}

#[tokio::test]
async fn what_the_hop_refuses_keeps_its_status_and_body() {
    for (code, phrase) in [(400, "Bad Request"), (403, "Forbidden"), (404, "Not Found"), (503, "Service Unavailable")] {
        for framing in [
            "Content-Length: 18\r\n\r\npod does not exist",
            "Transfer-Encoding: chunked\r\n\r\n12\r\npod does not exist\r\n0\r\n\r\n",
            "Connection: close\r\n\r\npod does not exist",
        ] {
            let answer = format!("HTTP/1.1 {code} {phrase}\r\nContent-Type: text/plain\r\n{framing}");
            let (_, response) = answered(answer.as_bytes()).await;
            assert_eq!(response.status(), code);
            assert_eq!(response.headers()[header::CONTENT_TYPE], "text/plain");
            assert!(!response.headers().contains_key(header::TRANSFER_ENCODING));
            assert_eq!(text(response).await, "pod does not exist");
        }
    }
}

#[tokio::test]
async fn successes_and_redirects_are_no_answers_to_an_upgrade() {
    for code in [200, 204, 301, 302, 307] {
        let answer = format!("HTTP/1.1 {code} X\r\nLocation: http://evil/\r\nContent-Length: 0\r\n\r\n");
        let (_, response) = answered(answer.as_bytes()).await;
        assert_eq!(response.status(), 500);
        assert!(!response.headers().contains_key(header::LOCATION));
        assert_eq!(text(response).await, status(&format!("invalid upgrade response: status code {code}")));
    }
    let (_, response) = answered(b"HTTP/1.1 101 X\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n").await;
    assert_eq!(response.status(), 500);
}

#[tokio::test]
async fn a_hop_that_closes_before_it_answers_is_an_unexpected_eof() {
    for cut in [&b""[..], b"HTTP/1.1 10", b"HTTP/1.1 404 Not Found\r\nContent-Length: 10\r\n"] {
        let (_, response) = answered(cut).await;
        assert_eq!(response.status(), 500);
        assert_eq!(text(response).await, status("unexpected EOF"), "{cut:?}");
    }
    // Not even the request is taken.
    let (near, hop) = duplex(1024);
    drop(hop);
    let response = UpgradeProxy::new(connect(near)).oneshot(request("http://hop/")).await.unwrap();
    assert_eq!(response.status(), 500);
}

#[tokio::test]
async fn a_refused_dial_reads_as_gos() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let response = UpgradeProxy::new(TcpConnect).oneshot(request(&format!("http://{address}/x"))).await.unwrap();
    assert_eq!(response.status(), 500);
    let expected = format!("error dialing backend: dial tcp {address}: connect: connection refused");
    assert_eq!(text(response).await, status(&expected));
}

#[tokio::test(start_paused = true)]
async fn a_hop_that_does_not_answer_and_a_dial_that_hangs_are_bounded() {
    let (near, _hop) = duplex(1024);
    let proxy = UpgradeProxy::new(connect(near)).answer_timeout(Duration::from_secs(7));
    let started = tokio::time::Instant::now();
    assert_eq!(proxy.oneshot(request("http://hop/")).await.unwrap().status(), 500);
    assert_eq!(started.elapsed().as_secs(), 7);

    let proxy = UpgradeProxy::new(|_: Uri| std::future::pending::<io::Result<DuplexStream>>());
    let response = proxy.oneshot(request("http://hop/")).await.unwrap();
    assert_eq!(text(response).await, status("error dialing backend: dial tcp: i/o timeout"));
    assert_eq!(started.elapsed().as_secs(), 37);
}

#[tokio::test]
async fn a_request_without_permit_or_hop_or_upgrade_is_not_dialled() {
    type Spoil = fn(&mut Request<Empty<Bytes>>);
    let spoils: [(Spoil, u16); 3] = [
        (|request| drop(request.extensions_mut().remove::<Permit>()), 500),
        (|request| drop(request.extensions_mut().remove::<Hop>()), 500),
        (|request| drop(request.headers_mut().remove(header::CONNECTION)), 400),
    ];
    for (spoil, code) in spoils {
        let proxy = UpgradeProxy::new(|_: Uri| async { panic!("dialled") as io::Result<DuplexStream> });
        let mut request = request("http://hop/");
        spoil(&mut request);
        assert_eq!(proxy.oneshot(request).await.unwrap().status(), code);
    }
}

#[tokio::test]
async fn the_hops_side_rides_in_the_101_when_a_layer_above_took_the_clients() {
    let (near, mut hop) = duplex(64 * 1024);
    let response = tokio::spawn(UpgradeProxy::new(connect(near)).oneshot(request("http://hop/")));
    head(&mut hop).await;
    hop.write_all(&[SWITCH, b"early"].concat()).await.unwrap();
    let mut response = response.await.unwrap().unwrap();
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    let side = take(response.extensions_mut()).expect("the hop's side");
    let mut io = side.into_io().await.unwrap();
    let mut early = [0; 5];
    io.read_exact(&mut early).await.unwrap();
    assert_eq!(&early, b"early");
}
