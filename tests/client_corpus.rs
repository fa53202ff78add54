//! The client of this crate against real servers over real sockets: the example API server in all settings of its gates and
//! its kubelet's, that kubelet itself, and servers that refuse a WebSocket in every way. Which carrier it was is asserted of
//! the client and from the servers' session logs.

#[path = "client_corpus/commands.rs"]
mod commands;
#[path = "client_corpus/refuser.rs"]
mod refuser;
mod support;

use std::{fs, sync::Arc, time::Duration};

use commands::corpus;
use refuser::{Refuser, Refuses};
use support::{
    Outcome,
    http::{Login, tls_config, url},
    lab::{Lab, NO_WEBSOCKETS, Settings, Topology, sessions_in},
    process::Process,
};
use tower_kube_streaming::{
    adapters::rustls::TlsConnect,
    client::{Carrier, Execute, ExecuteError, FallbackExecutor, SpdyExecutor, WebSocketExecutor},
    upgrade::TcpConnect,
};

const PATIENCE: Duration = Duration::from_secs(20);
const V5: &str = "v5.channel.k8s.io";
const V4: &str = "v4.channel.k8s.io";

/// Where a pod's `exec` is at an API server, and at a kubelet.
const POD: &str = "/api/v1/namespaces/default/pods/demo/exec?container=shell&";
const CONTAINER: &str = "/exec/default/demo/shell?";

/// What a client asks at.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    /// Up to the query.
    pub(crate) exec: String,
    /// Whether options are called as at a kubelet.
    pub(crate) kubelet: bool,
    pub(crate) token: Option<String>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_websocket_passed_through() {
    let settings = Settings::default();
    at_apiserver(settings, WebSocketExecutor::new, false, [(V5, V5), (V5, V4)])
        .await
        .unwrap_or_else(|why| panic!("{why}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_websocket_translated_at_the_api_server() {
    let settings = Settings { kubelet: NO_WEBSOCKETS, ..Settings::default() };
    at_apiserver(settings, WebSocketExecutor::new, false, [(V5, V4), (V4, "")])
        .await
        .unwrap_or_else(|why| panic!("{why}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_spdy() {
    let settings = Settings::default();
    at_apiserver(settings, SpdyExecutor::new, false, [(V4, V4), (V4, "")]).await.unwrap_or_else(|why| panic!("{why}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_spdy_after_a_fallback_where_every_gate_is_off() {
    let off = &["--feature-gates=AllBeta=false"][..];
    let settings = Settings { apiserver: off, kubelet: off, ..Settings::default() };
    at_apiserver(settings, FallbackExecutor::new, true, [(V4, V4), (V4, "")])
        .await
        .unwrap_or_else(|why| panic!("{why}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_a_kubelet_directly_over_websocket_and_spdy() {
    at_kubelet().await.unwrap_or_else(|why| panic!("{why}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_servers_that_refuse_a_websocket_in_every_way() {
    at_refusers().await.unwrap_or_else(|why| panic!("{why}"));
}

/// The corpus at an API server over TLS, as its administrator. `spoken`: protocols in and out by the session logs of API
/// server and kubelet.
async fn at_apiserver<E: Execute>(
    settings: Settings<'_>,
    executor: impl FnOnce(TlsConnect) -> E,
    falls_back: bool,
    spoken: [(&str, &str); 2],
) -> Outcome {
    let lab = Lab::start_with(Topology::TwoProcesses, settings).await?;
    let exec = format!("{}{POD}", url(&lab.apiserver)?);
    let server = Server { exec, kubelet: false, token: Some(lab.admin_token()?) };
    let connect = TlsConnect::new(Arc::new(tls_config(&lab.ca(), Login::Nobody)?));
    let checked = async {
        let carriers = corpus(&executor(connect), &server).await?;
        let kubelet = lab.kubelet.as_ref().expect("a process of its own");
        for (process, spoken) in [&lab.apiserver, kubelet].into_iter().zip(spoken) {
            logged(process, carriers.len(), spoken).await?;
        }
        // Remembered from the first on: only that one was refused before it was accepted.
        let fell_back = carriers.iter().filter(|(_, fell_back)| *fell_back).count();
        ensure!(fell_back == usize::from(falls_back), "{fell_back} sessions fell back: {carriers:?}");
        Ok(())
    };
    checked.await.map_err(|why| format!("{why}\n{}", lab.logs()))?;
    lab.stop().await
}

/// Waits until this many sessions have ended there; all of them spoke that.
async fn logged(process: &Process, sessions: usize, (into, out): (&str, &str)) -> Outcome {
    let log = process.stderr.until(PATIENCE, "the sessions' ends", |text| sessions_in(text).len() >= sessions).await?;
    let ended = sessions_in(&log);
    ensure!(ended.len() == sessions, "{sessions} sessions were expected: {ended:#?}");
    for session in ended {
        let spoken = (session.field("protocol.in"), session.field("protocol.out"));
        ensure!(spoken == (Some(into), Some(out)), "({into}, {out}) was expected: {session:?}");
    }
    Ok(())
}

/// The kubelet takes who shows the API server's certificate.
async fn at_kubelet() -> Outcome {
    let lab = Lab::start(Topology::TwoProcesses).await?;
    let kubelet = lab.kubelet.as_ref().expect("a process of its own");
    let read = |name| fs::read(lab.data.join(name)).map_err(|error| format!("{name}: {error}"));
    let (cert, key) = (read("apiserver-kubelet-client.crt")?, read("apiserver-kubelet-client.key")?);
    let connect = TlsConnect::new(Arc::new(tls_config(&lab.ca(), Login::Certificate(&cert, &key))?));
    let server = Server { exec: format!("{}{CONTAINER}", url(kubelet)?), kubelet: true, token: None };
    let checked = async {
        let over_websocket = corpus(&WebSocketExecutor::new(connect.clone()), &server).await?;
        ensure!(over_websocket.iter().all(|(carrier, _)| *carrier == Carrier::WebSocket), "{over_websocket:?}");
        let over_spdy = corpus(&SpdyExecutor::new(connect), &server).await?;
        ensure!(over_spdy.iter().all(|(carrier, _)| *carrier == Carrier::Spdy), "{over_spdy:?}");
        ensure!(lab.sessions().is_empty(), "the API server saw them: {:?}", lab.sessions());
        Ok(())
    };
    checked.await.map_err(|why| format!("{why}\n{}", lab.logs()))?;
    lab.stop().await
}

async fn at_refusers() -> Outcome {
    let lab = Lab::plain().await?;
    for refuses in Refuses::ALL {
        let refuser = Refuser::before(lab.address(), refuses).await?;
        let server = Server { exec: format!("http://{}{POD}", refuser.address), kubelet: false, token: None };
        let executor = FallbackExecutor::new(TcpConnect);
        let checked = match refuses {
            // Whether the server began is not known, so nothing is asked again.
            Refuses::Dropped => match executor.open(&server.request("true", &[])?).await {
                Err(ExecuteError::NoAnswer(_)) => Ok(()),
                other => Err(format!("it was not told: {other:?}")),
            },
            _ => corpus(&executor, &server).await.and_then(|carriers| {
                ensure!(carriers.iter().all(|(carrier, _)| *carrier == Carrier::Spdy), "{carriers:?}");
                ensure!(carriers.iter().filter(|(_, fell_back)| *fell_back).count() == 1, "{carriers:?}");
                Ok(())
            }),
        };
        checked.map_err(|why| format!("{refuses:?}: {why}\n{}", lab.logs()))?;
        ensure!(refuser.refused() == 1, "{refuses:?}: asked {} times over WebSocket", refuser.refused());
    }
    lab.stop().await
}
