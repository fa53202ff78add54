//! What a real kube-apiserver and a real kubelet said on the wire, asked again of ours.
//!
//! The recordings lie in `tests/transcripts/`. The client's side is sent as it was recorded, to the real example
//! programs; behind the API server the recorded kubelet's side is played. Status line, headers, body, WebSocket messages
//! and the request to the kubelet are compared. Where ours deviates, DESIGN.md says why.

#[path = "replay/client.rs"]
mod client;
#[path = "replay/deviations.rs"]
mod deviations;
#[path = "replay/kubelet.rs"]
mod kubelet;
#[path = "replay/objects.rs"]
mod objects;
#[path = "replay/said.rs"]
mod said;
mod support;
#[path = "replay/tls.rs"]
mod tls;
#[path = "replay/transcript.rs"]
mod transcript;
#[path = "replay/wire.rs"]
mod wire;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::SocketAddr,
    path::Path,
};

use futures_util::future::join_all;
use kubelet::Kubelet;
use objects::{ROLES, TOKENS, cluster};
use said::Said;
use support::{Outcome, Scratch, lab::example, process::Process};
use tls::text_of;
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::{client::TlsStream, rustls::pki_types::ServerName};
use transcript::{Transcript, Who};

/// Where the recorded kubelets were: the one that answers, and the port where nothing listens.
const RECORDED_KUBELET: &str = "127.0.0.1:10350";
const RECORDED_NOTHING: &str = "127.0.0.1:10399";

async fn connect(address: SocketAddr) -> Outcome<TcpStream> {
    TcpStream::connect(address).await.map_err(text_of("connect"))
}

/// Where a ready server listens.
fn address(server: &Process) -> Outcome<SocketAddr> {
    let said = server.stdout.text();
    let url = said.lines().find_map(|line| line.strip_prefix("listening on http")).unwrap_or_default();
    url.trim_start_matches('s').trim_start_matches("://").parse().map_err(text_of("its address"))
}

async fn secure(data: &Path, user: Option<&str>, address: SocketAddr) -> Outcome<TlsStream<TcpStream>> {
    let name = ServerName::IpAddress(address.ip().into());
    tls::connector(data, user)?.connect(name, connect(address).await?).await.map_err(text_of("TLS"))
}

/// A port of this host that is taken, and where nothing listens.
fn closed_port() -> Outcome<(TcpSocket, u16)> {
    let socket = TcpSocket::new_v4().map_err(text_of("socket"))?;
    socket.bind(SocketAddr::from(([127, 0, 0, 1], 0))).map_err(text_of("bind"))?;
    let port = socket.local_addr().map_err(text_of("bind"))?.port();
    Ok((socket, port))
}

/// Replays these recordings to an API server with those gates: what it said, and what was recorded.
async fn through_api_server(gates: &str, all: &[Transcript]) -> Outcome<BTreeMap<String, (Said, Said)>> {
    let scratch = Scratch::new("replay");
    let data = scratch.dir("data");
    let write = |name: &str, text: &str| {
        let path = scratch.path().join(name);
        fs::write(&path, text).map(|()| path).map_err(text_of(name))
    };
    let mut kubelet = Kubelet::start().await.map_err(text_of("kubelet"))?;
    let (_reserved, nothing) = closed_port()?;
    let mut command = example("apiserver");
    command.args(["--listen", "127.0.0.1:0", "--kubelet-insecure-http", "--data-dir"]).arg(&data);
    command.arg("--manifest").arg(write("cluster.yaml", &cluster(kubelet.address.port(), nothing))?);
    command.arg("--token-auth-file").arg(write("tokens.csv", TOKENS)?);
    if !gates.is_empty() {
        command.args(["--feature-gates", gates]);
    }
    let server = Process::start("apiserver", &mut command)?;
    server.ready().await?;
    let address = address(&server)?;
    let mut said = BTreeMap::new();
    for transcript in all {
        let name = &transcript.name;
        kubelet.play(transcript);
        let io = secure(&data, None, address).await?;
        let mut ours = client::replay(io, Who::ApiServer, transcript).await.map_err(text_of(name))?;
        kubelet.said(transcript, &mut ours).await;
        let here =
            [(kubelet.address.to_string(), RECORDED_KUBELET), (format!("127.0.0.1:{nothing}"), RECORDED_NOTHING)];
        for value in ours.0.values_mut() {
            here.iter().for_each(|(ours, recorded)| *value = value.replace(ours, recorded));
        }
        said.insert(name.clone(), (ours, transcript.said(Who::ApiServer)));
    }
    let status = server.stop().await?;
    crate::ensure!(status.success(), "apiserver ended with {status} on SIGTERM");
    Ok(said)
}

#[tokio::test]
async fn the_api_server_answers_as_kube_apiserver_does() {
    let all = transcript::load("apiserver");
    let mut said = BTreeMap::new();
    for gates in all.iter().map(|transcript| &transcript.gates).collect::<BTreeSet<_>>() {
        let these: Vec<_> = all.iter().filter(|transcript| transcript.gates == *gates).cloned().collect();
        said.append(&mut through_api_server(gates, &these).await.unwrap_or_else(|why| panic!("{why}")));
    }
    assert_eq!(said.len(), all.len());
    deviations::check("apiserver", &said);
}

/// The recording's pods and containers by the names that the demo's have.
fn demo(mut transcript: Transcript) -> Transcript {
    let steps = transcript.steps.iter_mut().filter(|step| step.from == Who::Client);
    for step in steps {
        if let transcript::What::Http(request) = &mut step.what {
            let line = request.line.replace("/sdemo-127.0.0.1", "/demo").replace("/real/", "/demo/");
            request.line = line.replace("/demo/c1", "/demo/sidecar").replace("/demo/tty", "/demo/shell");
        }
    }
    transcript
}

/// Replays these recordings to a kubelet with those gates, all at once.
async fn through_kubelet(gates: &str, all: &[Transcript]) -> Outcome<BTreeMap<String, (Said, Said)>> {
    let mut command = example("kubelet");
    command.args(["--listen", "127.0.0.1:0", "--insecure"]);
    if !gates.is_empty() {
        command.args(["--feature-gates", gates]);
    }
    let server = Process::start("kubelet", &mut command)?;
    server.ready().await?;
    let address = address(&server)?;
    let one = async |transcript: &Transcript| {
        let transcript = demo(transcript.clone());
        let io = connect(address).await?;
        let ours = client::replay(io, Who::Kubelet, &transcript).await.map_err(text_of(&transcript.name))?;
        Ok((transcript.name.clone(), (ours, transcript.said(Who::Kubelet))))
    };
    let said: Outcome<_> = join_all(all.iter().map(one)).await.into_iter().collect();
    let status = server.stop().await?;
    crate::ensure!(status.success(), "kubelet ended with {status} on SIGTERM");
    said
}

/// Recordings of a kubelet that asks its API server who may come in.
const REVIEWED: &str = "kubelet/authz-webhook-";

/// Replays these recordings to a kubelet that asks an API server.
async fn through_reviewing_kubelet(all: &[Transcript]) -> Outcome<BTreeMap<String, (Said, Said)>> {
    let scratch = Scratch::new("replay");
    let data = scratch.dir("data");
    let manifest = scratch.path().join("roles.yaml");
    fs::write(&manifest, ROLES).map_err(text_of("roles.yaml"))?;
    let mut command = example("apiserver");
    command.args(["--listen", "127.0.0.1:0", "--data-dir"]).arg(&data).arg("--manifest").arg(&manifest);
    let apiserver = Process::start("apiserver", &mut command)?;
    apiserver.ready().await?;
    let mut command = example("kubelet");
    command.args(["--listen", "127.0.0.1:0", "--register-node", "false", "--data-dir"]).arg(&data);
    let kubelet = Process::start("kubelet", &mut command)?;
    kubelet.ready().await?;
    let address = address(&kubelet)?;
    let mut said = BTreeMap::new();
    for transcript in all {
        let mut transcript = demo(transcript.clone());
        // Our kubelet takes no tokens: who had one shows a certificate of that name.
        let user = transcript.take_token();
        let io = secure(&data, user.as_deref(), address).await?;
        let ours = client::replay(io, Who::Kubelet, &transcript).await.map_err(text_of(&transcript.name))?;
        said.insert(transcript.name.clone(), (ours, transcript.said(Who::Kubelet)));
    }
    for server in [kubelet, apiserver] {
        let status = server.stop().await?;
        crate::ensure!(status.success(), "a server ended with {status} on SIGTERM");
    }
    Ok(said)
}

#[tokio::test]
async fn the_kubelet_answers_as_the_real_one_does() {
    let all = transcript::load("kubelet");
    let (reviewed, open): (Vec<_>, Vec<_>) = all.into_iter().partition(|all| all.name.starts_with(REVIEWED));
    let mut said = through_reviewing_kubelet(&reviewed).await.unwrap_or_else(|why| panic!("{why}"));
    for gates in open.iter().map(|transcript| &transcript.gates).collect::<BTreeSet<_>>() {
        let these: Vec<_> = open.iter().filter(|transcript| transcript.gates == *gates).cloned().collect();
        said.append(&mut through_kubelet(gates, &these).await.unwrap_or_else(|why| panic!("{why}")));
    }
    assert_eq!(said.len(), reviewed.len() + open.len());
    deviations::check("kubelet", &said);
}

#[test]
fn what_ours_says_instead_is_kept_for_recordings_that_are_there() {
    let all = ["apiserver", "kubelet"].into_iter().flat_map(transcript::load);
    deviations::check_no_leftovers(&all.map(|transcript| transcript.name).collect());
}
