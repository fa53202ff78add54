//! Request heads: what is asked is understood the same at the next hop, and what is refused is refused in order.
//!
//! Input: a request head as it is on the wire.
#![no_main]

use std::{
    convert::Infallible,
    future::Future,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http::{
    Extensions, HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version,
    header::{CONNECTION, CONTENT_TYPE, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_PROTOCOL, UPGRADE},
};
use libfuzzer_sys::fuzz_target;
use tokio::runtime::Runtime;
use tower::{Layer, Service, service_fn};
use tower_kube_streaming::{
    BoxError,
    layers::{TranslateLayer, TunnelLayer, UpgradeDetectLayer, danger::PermitAllLayer},
    port_forward,
    remote_command::{Exit, Stdio},
    runtime,
    services::StreamingServer,
    upgrade::{Dialect, Refusal, Sessions, StreamOptions, StreamRequest, Subresource, Target, accept},
    websocket::handshake,
};

#[derive(Clone, Debug)]
struct Head {
    method: Method,
    uri: http::Uri,
    headers: HeaderMap,
}

impl Head {
    fn parse(input: &[u8]) -> Option<Self> {
        let mut lines = input.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
        let mut words = lines.next()?.split(|byte| *byte == b' ');
        let method = Method::from_bytes(words.next()?).ok()?;
        let uri = http::Uri::try_from(words.next()?).ok()?;
        let mut headers = HeaderMap::new();
        for line in lines.take_while(|line| !line.is_empty()) {
            let colon = line.iter().position(|byte| *byte == b':')?;
            let name = HeaderName::from_bytes(&line[..colon]).ok()?;
            headers.append(name, HeaderValue::from_bytes(line[colon + 1..].trim_ascii()).ok()?);
        }
        Some(Self { method, uri, headers })
    }

    /// With the client's side of an upgrade in it, as a server hands it on.
    fn request(&self) -> Request<()> {
        let mut request = Request::new(());
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = self.headers.clone();
        let _ = accept(&mut Extensions::new(), request.extensions_mut());
        request
    }
}

/// What such a request asks for; `Err` is the answer of a layer that refused it.
fn detect(dialect: Dialect, request: Request<()>) -> Result<Option<Arc<Target>>, Box<Response<Bytes>>> {
    let found = Arc::new(Mutex::new(None));
    let mut service = UpgradeDetectLayer::new(dialect, Sessions::new()).layer(service_fn(|request: Request<()>| {
        let target = request.extensions().get::<StreamRequest>().map(|asked| Arc::new(asked.target().clone()));
        *found.lock().unwrap() = Some(target);
        std::future::ready(Ok::<_, Infallible>(Response::new(Bytes::new())))
    }));
    let mut future = Box::pin(service.call(request));
    let Poll::Ready(Ok(response)) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) else {
        panic!("nothing to wait for");
    };
    match found.lock().unwrap().take() {
        Some(target) => Ok(target.map(|target| Target::clone(&target)).map(Arc::new)),
        None => Err(Box::new(response)),
    }
}

fn check_refusal(dialect: Dialect, response: &Response<Bytes>) {
    assert!(response.status().is_client_error() || response.status().is_server_error(), "{response:?}");
    let body = std::str::from_utf8(response.body()).expect("refusals are text");
    assert!(body.ends_with('\n'));
    match dialect {
        Dialect::ApiServer => {
            assert_eq!(response.headers()[CONTENT_TYPE], "application/json");
            let status: serde_json::Value = serde_json::from_str(body).expect("a Status");
            assert_eq!((&status["kind"], &status["status"]), (&"Status".into(), &"Failure".into()));
            assert_eq!(status["code"], response.status().as_u16());
        }
        Dialect::Kubelet | Dialect::Runtime => {
            assert_eq!(response.headers()[CONTENT_TYPE], "text/plain; charset=utf-8");
        }
    }
}

/// The URL for the next hop asks for the very same.
fn check_rendering(target: &Target) {
    let uri = target.kubelet_path_and_query();
    let request = Request::get(&uri).body(()).unwrap_or_else(|error| panic!("{uri}: {error}"));
    if target.container.is_none() && target.subresource != Subresource::PortForward {
        // The resolver names the container before this is rendered.
        return;
    }
    let options = &target.options;
    let streams = options.stdin || options.stdout || options.stderr;
    match detect(Dialect::Kubelet, request) {
        Ok(found) => {
            let container = match target.subresource {
                Subresource::PortForward => None,
                _ => target.container.clone(),
            };
            let expected = Target { dialect: Dialect::Kubelet, uid: None, container, ..target.clone() };
            assert_eq!(found.as_deref(), Some(&expected), "the next hop is asked for something else: {uri}");
        }
        Err(response) => assert!(!streams, "{uri}: {response:?}"),
    }
}

/// Says what it would run, and runs nothing.
struct Nothing;

impl runtime::Runtime for Nothing {
    type Session = Nothing;
    type Forward = Nothing;

    async fn open(&self, target: &Target) -> Result<Nothing, Refusal> {
        match target.pod.as_str() {
            "gone" => Err(Refusal::not_found("pods", &target.pod)),
            _ => Ok(Nothing),
        }
    }

    async fn port_forward(&self, target: &Target) -> Result<Nothing, Refusal> {
        self.open(target).await
    }
}

impl port_forward::Dial for Nothing {
    type Connection = tokio::io::DuplexStream;

    async fn dial(&self, _: u16) -> Result<Self::Connection, BoxError> {
        Err("nobody listens".into())
    }
}

impl runtime::Session for Nothing {
    async fn run(self, _: Stdio) -> Result<Exit, BoxError> {
        Ok(Exit::Success)
    }
}

/// The whole negotiation, as an API server and as a kubelet: a switch is well formed, everything else a refusal.
fn negotiate(runtime: &Runtime, dialect: Dialect, head: &Head) {
    let leaf = || StreamingServer::new(Nothing).offer_v5().offer_tunnel();
    let asked = head.headers.clone();
    let response = runtime.block_on(async {
        let detect = UpgradeDetectLayer::new(dialect, Sessions::new());
        match dialect {
            Dialect::ApiServer => {
                let adapting = TranslateLayer::new().layer(TunnelLayer::new().layer(leaf()));
                detect.layer(PermitAllLayer.layer(adapting)).call(head.request()).await
            }
            Dialect::Kubelet | Dialect::Runtime => {
                detect.layer(PermitAllLayer.layer(leaf())).call(head.request()).await
            }
        }
    });
    let Ok(response) = response;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        assert!(response.status().is_client_error() || response.status().is_server_error(), "{response:?}");
        return;
    }
    let headers = response.headers();
    assert_eq!(headers[CONNECTION], "Upgrade");
    let chosen = |name: &str| headers.get(name).map(|value| value.to_str().expect("a name").to_owned());
    let offered: Vec<String>;
    let version;
    if headers[UPGRADE] == "SPDY/3.1" {
        offered = asked
            .get_all("x-stream-protocol-version")
            .iter()
            .flat_map(|line| line.to_str().unwrap_or_default().split(',').map(|name| name.trim().to_owned()))
            .collect();
        version = chosen("x-stream-protocol-version");
    } else {
        assert_eq!(headers[UPGRADE], "websocket");
        let key = handshake::check_request(&head.method, Version::HTTP_11, &asked).expect("a checked handshake");
        assert_eq!(headers[SEC_WEBSOCKET_ACCEPT], handshake::accept_key(key));
        offered = handshake::offers(&asked).map(str::to_owned).collect();
        version = chosen(SEC_WEBSOCKET_PROTOCOL.as_str());
    }
    if let Some(version) = version.filter(|version| !version.is_empty()) {
        assert!(offered.contains(&version), "{version:?} was not offered in {offered:?}");
    }
}

fn check_handshake(head: &Head) {
    let Head { method, headers, .. } = head;
    let first: Vec<&str> = handshake::offers_in_first_line(headers).collect();
    let all: Vec<&str> = handshake::offers(headers).collect();
    assert!(all.starts_with(&first));
    let Ok(key) = handshake::check_request(method, Version::HTTP_11, headers) else { return };
    assert_eq!(method, Method::GET);
    // An answer that picks the first offer is one that a client takes; any other subprotocol is not.
    let mut answer = HeaderMap::new();
    answer.insert(CONNECTION, HeaderValue::from_static("keep-alive, Upgrade"));
    answer.insert(UPGRADE, HeaderValue::from_static("WebSocket"));
    answer.insert(SEC_WEBSOCKET_ACCEPT, handshake::accept_key(key));
    let switching = StatusCode::SWITCHING_PROTOCOLS;
    if let Some(first) = all.first() {
        answer.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::try_from(*first).expect("it was one"));
    }
    assert_eq!(handshake::check_response(switching, &answer, key, &all), Ok(all.first().copied()));
    answer.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static("nobody, offers this"));
    assert!(handshake::check_response(switching, &answer, key, &all).is_err());
    // What this client sent is no answer to itself.
    assert!(
        handshake::check_response(switching, headers, key, &all).is_err() || headers.contains_key(SEC_WEBSOCKET_ACCEPT)
    );
}

thread_local! {
    static RUNTIME: Runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
}

fuzz_target!(|input: &[u8]| {
    let Some(head) = Head::parse(input) else { return };
    check_handshake(&head);
    for dialect in [Dialect::ApiServer, Dialect::Kubelet] {
        match detect(dialect, head.request()) {
            Ok(None) => {}
            Ok(Some(target)) => {
                assert!(head.method == Method::GET || head.method == Method::POST);
                for name in
                    [Some(&target.namespace), Some(&target.pod), target.container.as_ref()].into_iter().flatten()
                {
                    let path = name.contains(['/', '%']) || matches!(name.as_str(), "" | "." | "..");
                    assert!(!path, "{name:?} is no segment of a path");
                }
                let StreamOptions { tty, stderr, .. } = target.options;
                assert!(!(tty && stderr), "a terminal has one output");
                check_rendering(&target);
                RUNTIME.with(|runtime| negotiate(runtime, dialect, &head));
            }
            Err(response) => check_refusal(dialect, &response),
        }
    }
    // Names and words of anybody's are rendered safely.
    let text = String::from_utf8_lossy(input);
    for refusal in [Refusal::not_found("pods", &text), Refusal::forbidden("pods", &text, &text)] {
        for dialect in [Dialect::ApiServer, Dialect::Kubelet, Dialect::Runtime] {
            let response: Response<Bytes> = refusal.clone().into_response(dialect);
            check_refusal(dialect, &response);
            if dialect == Dialect::ApiServer {
                let status: serde_json::Value = serde_json::from_slice(response.body()).expect("a Status");
                assert_eq!(status["message"], refusal.message());
                assert_eq!(status["details"]["name"].as_str().unwrap_or_default(), text);
            }
        }
    }
});
