#![allow(clippy::unwrap_used, reason = "a test that panics has failed, as it should")]

use rcgen::{CertificateParams, KeyPair};
use tokio::io::{AsyncWriteExt as _, DuplexStream, duplex, split};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{RootCertStore, ServerConfig, SupportedProtocolVersion, crypto::ring, pki_types::PrivateKeyDer, version},
    server,
};

use super::*;

type Client = TlsStream<DuplexStream>;
type Server = server::TlsStream<DuplexStream>;

/// Both ends of a connection whose pipe holds `pipe` bytes.
async fn connected(
    version: &'static SupportedProtocolVersion,
    pipe: usize,
    fragment: Option<usize>,
) -> (Client, Server) {
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec!["server".to_owned()]).unwrap().self_signed(&key).unwrap();
    let provider = Arc::new(ring::default_provider());
    let server = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[version])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], PrivateKeyDer::try_from(key.serialize_der()).unwrap())
        .unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(certificate.der().clone()).unwrap();
    let mut client = trusting(roots, &[version]);
    client.max_fragment_size = fragment;
    let (near, far) = duplex(pipe);
    let (client, server) = tokio::join!(dial(client, near), TlsAcceptor::from(Arc::new(server)).accept(far));
    (client.unwrap(), server.unwrap())
}

fn trusting(roots: RootCertStore, versions: &[&'static SupportedProtocolVersion]) -> ClientConfig {
    ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth()
}

/// One that gets no further than the handshake.
fn trusting_nobody() -> ClientConfig {
    trusting(RootCertStore::empty(), &[&version::TLS13, &version::TLS12])
}

async fn dial<Io: AsyncRead + AsyncWrite + Unpin>(config: ClientConfig, io: Io) -> io::Result<TlsStream<Io>> {
    TlsStream::connect(Arc::new(config), ServerName::try_from("server").unwrap(), io).await
}

async fn send(io: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) {
    io.write_all(bytes).await.unwrap();
    io.flush().await.unwrap();
}

async fn receive(io: &mut (impl AsyncRead + Unpin), length: usize) -> Vec<u8> {
    let mut got = vec![0; length];
    io.read_exact(&mut got).await.unwrap();
    got
}

/// Bytes that differ wherever they are.
fn bytes(length: usize) -> Vec<u8> {
    (0..length as u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

#[tokio::test]
async fn bytes_cross_both_ways_at_once_whatever_the_pieces() {
    for (version, pipe, fragment) in [
        (&version::TLS13, 1 << 20, None),
        (&version::TLS13, 700, None),
        (&version::TLS13, 100_000, Some(32)),
        (&version::TLS12, 1 << 20, None),
        (&version::TLS12, 1000, Some(1000)),
    ] {
        let (client, server) = connected(version, pipe, fragment).await;
        let all = bytes(if pipe < 1 << 20 || fragment.is_some() { 200_001 } else { 5_000_001 });
        let (mut from_server, mut to_server) = split(client);
        let (mut from_client, mut to_client) = split(server);
        let send = async {
            for piece in all.chunks(99_991) {
                to_server.write_all(piece).await.unwrap();
            }
            to_server.shutdown().await.unwrap();
        };
        let answer = async {
            for piece in all.chunks(333) {
                to_client.write_all(piece).await.unwrap();
            }
            to_client.shutdown().await.unwrap();
        };
        let receive = async {
            let (mut got, mut room) = (Vec::new(), vec![0; 70_000]);
            for size in (1..).map(|turn| turn * 977 % 70_000 + 1) {
                match from_server.read(&mut room[..size]).await.unwrap() {
                    0 => break,
                    read => got.extend_from_slice(&room[..read]),
                }
            }
            got
        };
        let mut arrived = Vec::new();
        let (.., got, read) = tokio::join!(send, answer, receive, from_client.read_to_end(&mut arrived));
        read.unwrap();
        assert!(got == all && arrived == all, "{version:?}, {pipe}, {fragment:?}");
    }
}

#[tokio::test]
async fn a_connection_that_ends_without_a_word_is_no_end_of_the_data() {
    let (mut client, mut server) = connected(&version::TLS13, 1 << 20, None).await;
    send(&mut server, b"half").await;
    drop(server.into_inner());
    let mut got = Vec::new();
    let error = client.read_to_end(&mut got).await.unwrap_err();
    assert_eq!((error.kind(), &got[..]), (io::ErrorKind::UnexpectedEof, &b"half"[..]));
}

#[tokio::test]
async fn each_direction_ends_for_itself() {
    for version in [&version::TLS13, &version::TLS12] {
        let (mut client, mut server) = connected(version, 1 << 20, None).await;
        server.write_all(b"bye").await.unwrap();
        server.shutdown().await.unwrap();
        let mut got = Vec::new();
        client.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, b"bye");
        assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
        client.write_all(b"and you").await.unwrap();
        client.shutdown().await.unwrap();
        assert_eq!(client.write(b"!").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        let mut said = Vec::new();
        server.read_to_end(&mut said).await.unwrap();
        assert_eq!(said, b"and you");
    }
}

#[tokio::test]
async fn what_is_no_record_is_an_error_behind_the_data_and_the_server_is_told() {
    let (mut client, mut server) = connected(&version::TLS13, 1 << 20, None).await;
    send(&mut server, b"data").await;
    server.get_mut().0.write_all(&[0x17, 3, 3, 0, 32]).await.unwrap();
    server.get_mut().0.write_all(&[9; 32]).await.unwrap();
    let mut got = [0; 100];
    assert_eq!(client.read(&mut got).await.unwrap(), 4);
    for _ in 0..2 {
        assert_eq!(client.read(&mut got).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
    assert!(client.write(b"more").await.is_err());
    let told = server.read(&mut got).await.unwrap_err().to_string();
    assert!(told.contains("BadRecordMac"), "{told}");
}

#[tokio::test]
async fn a_server_may_change_its_keys() {
    let (mut client, mut server) = connected(&version::TLS13, 1 << 20, None).await;
    for _ in 0..10 {
        server.get_mut().1.refresh_traffic_keys().unwrap();
        send(&mut server, b"ping").await;
        assert_eq!(receive(&mut client, 4).await, b"ping");
        // With its own new keys: it was asked to.
        send(&mut client, b"pong").await;
        assert_eq!(receive(&mut server, 4).await, b"pong");
    }
}

#[tokio::test]
async fn one_direction_does_not_wait_for_the_other() {
    let (client, mut server) = connected(&version::TLS13, 64 * 1024, None).await;
    let (mut read, mut write) = split(client);
    let all = bytes(1 << 20);
    // The server reads nothing yet.
    let mut stuck = pin!(async {
        write.write_all(&all).await?;
        write.flush().await
    });
    assert!(std::future::poll_fn(|cx| Poll::Ready(stuck.as_mut().poll(cx))).await.is_pending());
    send(&mut server, b"news").await;
    assert_eq!(receive(&mut read, 4).await, b"news");
    let (sent, arrived) = tokio::join!(stuck, receive(&mut server, all.len()));
    sent.unwrap();
    assert!(arrived == all);
}

#[tokio::test]
async fn a_connection_on_which_little_is_said_keeps_no_buffers() {
    let (mut client, mut server) = connected(&version::TLS13, 1 << 20, None).await;
    let much = bytes(1 << 20);
    // Much, and then little, each way.
    for length in [1 << 20, 100, 100] {
        tokio::join!(send(&mut client, &much[..length]), receive(&mut server, length));
        tokio::join!(send(&mut server, &much[..length]), receive(&mut client, length));
    }
    let mut room = [0];
    let mut idle = pin!(client.read(&mut room));
    assert!(std::future::poll_fn(|cx| Poll::Ready(idle.as_mut().poll(cx))).await.is_pending());
    assert_eq!(client.incoming.capacity() + client.plaintext.capacity() + client.outgoing.bytes.capacity(), 0);
}

#[tokio::test]
async fn a_handshake_that_ends_too_soon_is_an_error() {
    for answer in [&b""[..], b"\x16\x03\x03\x40\x00", b"HTTP/1.0 400 Bad Request\r\n\r\n", &[0x16; 100_000]] {
        let (near, mut far) = duplex(1 << 20);
        far.write_all(answer).await.unwrap();
        far.shutdown().await.unwrap();
        let kind = dial(trusting_nobody(), near).await.unwrap_err().kind();
        assert!(matches!(kind, io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData), "{answer:?}: {kind}");
    }
}

#[tokio::test]
async fn a_handshake_reaches_a_server_behind_a_buffer() {
    let (near, mut far) = duplex(1 << 20);
    let near = tokio::io::BufWriter::with_capacity(1 << 20, near);
    let mut connect = pin!(dial(trusting_nobody(), near));
    assert!(std::future::poll_fn(|cx| Poll::Ready(connect.as_mut().poll(cx))).await.is_pending());
    let hello = std::future::poll_fn(|cx| {
        let mut room = [0; 1];
        let mut buf = ReadBuf::new(&mut room);
        Poll::Ready(Pin::new(&mut far).poll_read(cx, &mut buf).map_ok(|()| buf.filled().to_vec()))
    });
    assert!(matches!(hello.await, Poll::Ready(Ok(bytes)) if bytes == [0x16]));
}

#[tokio::test]
async fn a_handshake_message_in_crumbs_is_not_kept_without_end() {
    let (near, mut far) = duplex(1 << 20);
    // A ServerHello of the greatest length, a byte a record.
    for byte in [2, 0, 0xff, 0xff].into_iter().chain([0; 50_000]) {
        far.write_all(&[0x16, 3, 3, 0, 1, byte]).await.unwrap();
    }
    far.shutdown().await.unwrap();
    assert_eq!(dial(trusting_nobody(), near).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
}

#[tokio::test(start_paused = true)]
async fn a_writer_that_waits_is_woken_though_the_reader_failed() {
    let (client, mut server) = connected(&version::TLS13, 4096, None).await;
    let (mut read, mut write) = split(client);
    let stuck = tokio::spawn(async move { write.write_all(&bytes(2 << 20)).await });
    // It has filled the pipe.
    let mut first = [0];
    server.get_mut().0.read_exact(&mut first).await.unwrap();
    tokio::task::yield_now().await;
    server.get_mut().0.write_all(&[0x17, 3, 3, 0, 32]).await.unwrap();
    server.get_mut().0.write_all(&[9; 32]).await.unwrap();
    let mut failing = tokio_test::task::spawn(async { read.read(&mut [0]).await });
    let failed = failing.poll();
    assert!(matches!(failed, Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::InvalidData));
    let drain = async {
        let mut room = [0; 4096];
        while server.get_mut().0.read(&mut room).await.unwrap() > 0 {}
    };
    tokio::select! {
        written = stuck => assert!(written.unwrap().is_err()),
        () = drain => panic!("the reading half is still there"),
        () = tokio::time::sleep(std::time::Duration::from_secs(5)) => panic!("the writer was not woken"),
    }
}
