use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use proptest::prelude::*;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadBuf, duplex},
    sync::mpsc,
    task::JoinHandle,
    time::Instant,
};

use super::*;
use crate::{
    BoxError,
    port_forward::{
        Connection,
        over_websocket_client::{Client, Said},
    },
    upgrade::{Dialect, End, Subresource},
    websocket::{ControlFrame, Head, Opcode, Payload},
};

/// One end of a pipe that notes whether it was reset.
struct Pod {
    io: DuplexStream,
    reset: Arc<AtomicBool>,
}

impl AsyncRead for Pod {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Pod {
    fn poll_write(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        std::pin::Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: std::pin::Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: std::pin::Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

impl Connection for Pod {
    fn reset(self) {
        self.reset.store(true, Ordering::SeqCst);
    }
}

/// Pods that a test plays: what is dialled comes out of the channel. A port that is not there refuses.
struct Pods {
    ports: Mutex<HashMap<u16, mpsc::UnboundedSender<PodEnd>>>,
    room: usize,
}

impl Dial for Pods {
    type Connection = Pod;

    async fn dial(&self, port: u16) -> Result<Pod, BoxError> {
        let port = self.ports.lock().unwrap().remove(&port).ok_or("connection refused")?;
        let (io, theirs) = duplex(self.room);
        let reset = Arc::new(AtomicBool::new(false));
        assert!(port.send(PodEnd { io: theirs, reset: reset.clone() }).is_ok());
        Ok(Pod { io, reset })
    }
}

fn target(ports: &[u16]) -> Target {
    Target {
        subresource: Subresource::PortForward,
        namespace: "ns".into(),
        pod: "demo".into(),
        uid: Some("u1".into()),
        container: None,
        options: StreamOptions { ports: ports.to_vec(), ..StreamOptions::default() },
        dialect: Dialect::Kubelet,
    }
}

struct Forward {
    client: Client<DuplexStream>,
    pods: Vec<Option<PodEnd>>,
    session: JoinHandle<Report>,
    drain: CancellationToken,
}

struct PodEnd {
    io: DuplexStream,
    reset: Arc<AtomicBool>,
}

impl PodEnd {
    fn was_reset(&self) -> bool {
        self.reset.load(Ordering::SeqCst)
    }

    async fn rest(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.io.read_to_end(&mut bytes).await.unwrap();
        bytes
    }
}

/// A session of those ports; the pod listens on those that are `true`.
async fn start(protocol: WsProtocol, ports: &[(u16, bool)], room: usize) -> Forward {
    let numbers: Vec<u16> = ports.iter().map(|(port, _)| *port).collect();
    let (client, ours) = duplex(room);
    let mut open = HashMap::new();
    let mut dialled = Vec::new();
    for (port, listens) in ports {
        let (give, take) = mpsc::unbounded_channel();
        if *listens {
            open.insert(*port, give);
        }
        dialled.push(take);
    }
    let (drain, pods) = (CancellationToken::new(), Pods { ports: Mutex::new(open), room });
    let session = tokio::spawn({
        let (drain, target) = (drain.clone(), target(&numbers));
        async move { serve(ours, protocol, &pods, &target, &SessionLimits::new(), drain).await }
    });
    let mut pods = Vec::new();
    for mut dialled in dialled {
        pods.push(dialled.recv().await);
    }
    Forward { client: Client::new(client, protocol, &numbers), pods, session, drain }
}

#[test]
fn ports_are_checked_in_upstreams_words() {
    let check = |ports: &[u16]| check_ports(&target(ports).options).map_err(|bad| bad.message().to_owned());
    assert_eq!(check(&[1, 65535, 1]), Ok(()));
    assert_eq!(check(&[7; MAX_PORTS]), Ok(()));
    assert_eq!(check(&[]), Err("query parameter \"port\" is required".into()));
    assert_eq!(check(&[80, 0]), Err("port \"0\" must be > 0".into()));
    assert!(check(&[7; MAX_PORTS + 1]).is_err());
}

#[tokio::test(start_paused = true)]
async fn each_port_announces_itself_on_both_channels_before_anything_else() {
    let forward = start(WsProtocol::V4, &[(7000, true), (80, true)], 1024).await;
    let mut raw = forward.client.into_io();
    let mut announced = [0; 4 * 5];
    raw.read_exact(&mut announced).await.unwrap();
    assert_eq!(announced, *b"\x82\x03\x00\x58\x1b\x82\x03\x01\x58\x1b\x82\x03\x02\x50\x00\x82\x03\x03\x50\x00");

    let forward = start(WsProtocol::Base64V4, &[(7000, true)], 1024).await;
    let mut raw = forward.client.into_io();
    let mut announced = [0; 2 * 7];
    raw.read_exact(&mut announced).await.unwrap();
    assert_eq!(announced, *b"\x81\x050WBs=\x81\x051WBs=");
}

#[tokio::test(start_paused = true)]
async fn bytes_go_both_ways_and_the_connection_is_closed_when_all_ports_have_ended() {
    for protocol in WsProtocol::ALL {
        let mut forward = start(protocol, &[(7000, true), (80, true)], 64 * 1024).await;
        for (at, pod) in forward.pods.iter_mut().enumerate() {
            let pod = pod.as_mut().unwrap();
            forward.client.send(at, b"hello").await.unwrap();
            let mut bytes = [0; 5];
            pod.io.read_exact(&mut bytes).await.unwrap();
            assert_eq!(&bytes, b"hello");
            pod.io.write_all(b"world").await.unwrap();
            assert_eq!(forward.client.next().await.unwrap(), Said::Data(at, b"world".to_vec()));
        }
        assert!(forward.client.is_announced());
        // One port ends; the client is not told, and the other goes on.
        let mut first = forward.pods[0].take().unwrap();
        first.io.shutdown().await.unwrap();
        assert_eq!(first.rest().await, b"");
        let mut second = forward.pods[1].take().unwrap();
        forward.client.send(0, b"to nobody").await.unwrap();
        second.io.write_all(b"last").await.unwrap();
        drop(second);
        assert_eq!(forward.client.next().await.unwrap(), Said::Data(1, b"last".to_vec()));
        assert_eq!(forward.client.next().await.unwrap(), Said::Closed(Some(1000)));
        forward.client.close().await.unwrap();
        let report = forward.session.await.unwrap();
        assert_eq!((report.end, report.bytes.from_client(), report.bytes.to_client()), (End::Carried, 10, 14));
        assert_eq!((&*report.protocol_in, &*report.protocol_out), (protocol.name(), ""));
        assert!(!first.was_reset());
    }
}

#[tokio::test(start_paused = true)]
async fn a_failed_dial_is_told_on_its_error_channel_and_touches_no_other_port() {
    let mut forward = start(WsProtocol::V4, &[(81, false), (80, true)], 1024).await;
    forward.client.send(0, b"to nobody").await.unwrap();
    let text = "error forwarding port 81 to pod demo, uid u1: connection refused";
    assert_eq!(forward.client.next().await.unwrap(), Said::Error(0, text.into()));
    forward.pods[1].as_mut().unwrap().io.write_all(b"fine").await.unwrap();
    assert_eq!(forward.client.next().await.unwrap(), Said::Data(1, b"fine".to_vec()));
    forward.pods.clear();
    assert_eq!(forward.client.next().await.unwrap(), Said::Closed(Some(1000)));
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_takes_no_more_fails_its_port_alone() {
    let mut forward = start(WsProtocol::V4, &[(80, true), (81, true)], 1024).await;
    forward.pods[0].take();
    // The end of what it says and the failed write race; either way the port is over and the other lives.
    forward.client.send(0, &[7; 5000]).await.unwrap();
    forward.pods[1].as_mut().unwrap().io.write_all(b"fine").await.unwrap();
    loop {
        match forward.client.next().await.unwrap() {
            Said::Error(0, _) => {}
            said => break assert_eq!(said, Said::Data(1, b"fine".to_vec())),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_clients_close_ends_the_pods_behind_what_it_sent() {
    let mut forward = start(WsProtocol::V4, &[(80, true)], 16).await;
    let mut pod = forward.pods[0].take().unwrap();
    let reading = tokio::spawn(async move {
        let bytes = pod.rest().await;
        (bytes, pod.was_reset())
    });
    forward.client.send(0, &[7; 5000]).await.unwrap();
    forward.client.close().await.unwrap();
    assert_eq!(reading.await.unwrap(), (vec![7; 5000], false));
    assert_eq!(forward.client.next().await.unwrap(), Said::Closed(Some(1000)));
    assert_eq!(forward.session.await.unwrap().end, End::Carried);
}

#[tokio::test(start_paused = true)]
async fn a_lost_client_and_a_drain_are_no_end_of_file_for_the_pod() {
    for drained in [false, true] {
        let mut forward = start(WsProtocol::V4, &[(80, true)], 1024).await;
        forward.client.send(0, b"half of it").await.unwrap();
        let mut pod = forward.pods[0].take().unwrap();
        let mut bytes = [0; 10];
        pod.io.read_exact(&mut bytes).await.unwrap();
        if drained {
            forward.drain.cancel();
            assert_eq!(forward.client.next().await.unwrap(), Said::Closed(Some(1001)));
            forward.client.close().await.unwrap();
        } else {
            drop(forward.client);
        }
        let end = forward.session.await.unwrap().end;
        assert_eq!(end, if drained { End::Error } else { End::ClientGone });
        assert!(pod.was_reset());
    }
}

#[tokio::test(start_paused = true)]
async fn a_breach_of_the_protocol_closes_with_its_code_and_resets_the_pods() {
    for (protocol, wrong, code) in [
        (WsProtocol::V4, b"\x82\x01x".to_vec(), 1002),
        (WsProtocol::Base64V4, [&Head::new(Opcode::Text, 6, Some([0; 4]))[..], b"0QUJ!!"].concat(), 1007),
    ] {
        let mut forward = start(protocol, &[(80, true)], 1024).await;
        let pod = forward.pods[0].take().unwrap();
        let mut raw = forward.client.into_io();
        // In two pieces, so that the good beginning of the text is taken first.
        let (first, second) = wrong.split_at(wrong.len() - 2);
        raw.write_all(first).await.unwrap();
        tokio::time::sleep(Duration::from_millis(1)).await;
        raw.write_all(second).await.unwrap();
        let announced = if protocol == WsProtocol::V4 { 10 } else { 14 };
        let mut received = vec![0; announced + 4];
        raw.read_exact(&mut received).await.unwrap();
        assert_eq!(received[announced..], ControlFrame::close(code, "", None)[..]);
        drop(raw);
        assert_eq!(forward.session.await.unwrap().end, End::Error);
        assert!(pod.was_reset());
    }
}

#[tokio::test(start_paused = true)]
async fn a_stalled_port_holds_at_most_two_reads_and_loses_nothing() {
    let mut forward = start(WsProtocol::V4, &[(80, true), (81, true)], 1024).await;
    let (client_read, client_write) = tokio::io::split(forward.client.into_io());
    let mut reader = Client::new(tokio::io::join(client_read, tokio::io::sink()), WsProtocol::V4, &[80, 81]);
    let sent = Arc::new(AtomicUsize::new(0));
    let sending = tokio::spawn({
        let sent = sent.clone();
        async move {
            let mut writer = Client::new(tokio::io::join(tokio::io::empty(), client_write), WsProtocol::V4, &[80, 81]);
            while sent.load(Ordering::SeqCst) < 200_000 {
                writer.send(0, &[7; 1000]).await.unwrap();
                sent.fetch_add(1000, Ordering::SeqCst);
            }
        }
    });
    tokio::time::sleep(Duration::from_secs(300)).await;
    let waiting = sent.load(Ordering::SeqCst);
    assert!((32_000..70_000).contains(&waiting), "{waiting}");
    assert!(!forward.session.is_finished(), "a client that is not read is not dead");
    // Meanwhile the pods are heard.
    forward.pods[1].as_mut().unwrap().io.write_all(b"fine").await.unwrap();
    assert_eq!(reader.next().await.unwrap(), Said::Data(1, b"fine".to_vec()));
    let mut bytes = vec![0; 200_000];
    forward.pods[0].as_mut().unwrap().io.read_exact(&mut bytes).await.unwrap();
    assert!(bytes.iter().all(|byte| *byte == 7));
    sending.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_silent_client_is_pinged_and_dead_after_sixty_seconds_and_one_that_answers_lives() {
    let mut forward = start(WsProtocol::V4, &[(80, true)], 1024).await;
    let before = Instant::now();
    let report = forward.session.await.unwrap();
    assert_eq!((report.end, &*report.detail), (End::ClientGone, "the client was silent for too long"));
    assert!((60..=70).contains(&before.elapsed().as_secs()));
    let mut raw = Vec::new();
    forward.client.into_io().read_to_end(&mut raw).await.unwrap();
    let ping = ControlFrame::ping(&Payload::default(), None);
    assert_eq!(raw.len(), 10 + 5 * ping.len());

    forward = start(WsProtocol::V4, &[(80, true)], 1024).await;
    let before = Instant::now();
    // Answers its pings.
    assert_eq!(forward.client.next().await.unwrap(), Said::Closed(Some(1001)));
    assert!((14_395..=14_410).contains(&before.elapsed().as_secs()), "{:?}", before.elapsed());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn all_ports_carry_all_bytes_at_the_same_time(
        sizes in proptest::collection::vec((0_usize..100_000, 0_usize..100_000), 1..6),
        room in prop_oneof![Just(100_usize), Just(4096), Just(200_000)],
        base64: bool,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let scale = if room < 1000 { 20 } else { 1 };
            let protocol = if base64 { WsProtocol::Base64V4 } else { WsProtocol::V4 };
            let ports: Vec<_> = (0..sizes.len()).map(|at| (1000 + at as u16, true)).collect();
            let mut forward = start(protocol, &ports, room).await;
            let bytes = |seed: usize, len: usize| -> Vec<u8> { (0..len).map(|at| (at ^ (at >> 8) ^ seed) as u8).collect() };
            let pods: Vec<_> = forward.pods.iter_mut().zip(&sizes).enumerate().map(|(at, (pod, (up, down)))| {
                let (mut read, mut write) = tokio::io::split(pod.take().unwrap().io);
                let (up, down) = (up / scale, bytes(at + 100, down / scale));
                tokio::spawn(async move {
                    let mut got = vec![0; up];
                    let (read, ()) = tokio::join!(read.read_exact(&mut got), async { write.write_all(&down).await.unwrap() });
                    read.unwrap();
                    got
                })
            }).collect();
            let (client_read, client_write) = tokio::io::split(forward.client.into_io());
            let numbers: Vec<u16> = ports.iter().map(|(port, _)| *port).collect();
            let mut writer = Client::new(tokio::io::join(tokio::io::empty(), client_write), protocol, &numbers);
            let mut reader = Client::new(tokio::io::join(client_read, tokio::io::sink()), protocol, &numbers);
            let expected: usize = sizes.iter().map(|(_, down)| down / scale).sum();
            let sending = async {
                for (at, (up, _)) in sizes.iter().enumerate() {
                    writer.send(at, &bytes(at, up / scale)).await.unwrap();
                }
            };
            let receiving = async {
                let mut got = vec![Vec::new(); sizes.len()];
                while got.iter().map(Vec::len).sum::<usize>() < expected {
                    match reader.next().await.unwrap() {
                        Said::Data(at, bytes) => got[at].extend(bytes),
                        said => panic!("{said:?}"),
                    }
                }
                got
            };
            let ((), got) = tokio::join!(sending, receiving);
            for (at, (pod, (up, down))) in pods.into_iter().zip(&sizes).enumerate() {
                assert!(pod.await.unwrap() == bytes(at, up / scale), "port {at} got other bytes");
                assert!(got[at] == bytes(at + 100, down / scale), "port {at} said other bytes");
            }
            drop(writer);
            drop(reader);
            forward.session.await.unwrap();
        });
    }
}
