//! A stream into a container.

use std::{env, fmt};

use http::{StatusCode, Uri};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::time::Instant;
use tower_kube_streaming::{
    client::{
        Carrier, ExecRequest, Execute, ExecuteError, FallbackExecutor, FallbackPolicy, Opened, SpdyExecutor,
        WebSocketExecutor,
    },
    upgrade::StreamOptions,
};

use super::{
    cluster::{Cluster, Connect},
    failure::{Failure, chain},
    log::klog,
    moderate::Moderate,
    pod::Pod,
};

/// Turns WebSocket off, as in kubectl.
const WEBSOCKETS: &str = "KUBECTL_REMOTE_COMMAND_WEBSOCKETS";

/// Opens streams at a cluster: over WebSocket and then SPDY, or over SPDY alone.
pub(crate) struct Remote<'a> {
    cluster: &'a Cluster,
    executor: Executor,
}

enum Executor {
    Fallback(FallbackExecutor<OverWebSocket, OverSpdy>),
    Spdy(OverSpdy),
}

type OverWebSocket = Asked<WebSocketExecutor<Moderate<Connect>>>;
type OverSpdy = Asked<SpdyExecutor<Moderate<Connect>>>;

impl<'a> Remote<'a> {
    pub(crate) fn new(cluster: &'a Cluster) -> Self {
        let connect = Moderate(cluster.connect.clone());
        let spdy = Asked("POST", SpdyExecutor::new(connect.clone()));
        let off = env::var(WEBSOCKETS).is_ok_and(|value| value.eq_ignore_ascii_case("false"));
        let executor = if off {
            Executor::Spdy(spdy)
        } else {
            let websocket = Asked("GET", WebSocketExecutor::new(connect));
            let policy = FallbackPolicy::new().retry_if(|error| {
                // kubectl's predicate.
                let refused = error.rejection().is_some();
                if refused {
                    klog!(4, "RemoteCommand fallback: {}", chain(error));
                }
                refused
            });
            Executor::Fallback(FallbackExecutor::of(websocket, spdy).policy(policy))
        };
        Self { cluster, executor }
    }

    /// Asks for `subresource`, `exec` or `attach`, of a container.
    pub(crate) async fn open(
        &self,
        subresource: &str,
        pod: &Pod,
        container: &str,
        options: StreamOptions,
    ) -> Result<Opened, ExecuteError> {
        let request = self.request(subresource, pod, container, options)?;
        match &self.executor {
            Executor::Fallback(executor) => executor.open(&request).await,
            Executor::Spdy(executor) => executor.open(&request).await,
        }
    }

    /// How a stream's error is told.
    pub(crate) fn failure(&self, error: &ExecuteError) -> Failure {
        Failure::stream(&self.cluster.server, error)
    }

    fn request(
        &self,
        subresource: &str,
        pod: &Pod,
        container: &str,
        options: StreamOptions,
    ) -> Result<ExecRequest, ExecuteError> {
        let mut query: Vec<String> = options.command.iter().map(|word| format!("command={}", segment(word))).collect();
        query.push(format!("container={}", segment(container)));
        let StreamOptions { stdin, stdout, stderr, tty, .. } = options;
        let flags = [("stderr", stderr), ("stdin", stdin), ("stdout", stdout), ("tty", tty)];
        query.extend(flags.iter().filter(|(_, on)| *on).map(|(name, _)| format!("{name}=true")));
        let path = format!("/api/v1/namespaces/{}/pods/{}", segment(&pod.namespace), segment(&pod.name));
        let url = self.cluster.url(&format!("{path}/{subresource}?{}", query.join("&")));
        let mut request = ExecRequest::new(url, options)?;
        for (name, value) in &self.cluster.headers {
            request = request.header(name, value)?;
        }
        Ok(request)
    }
}

/// Part of a path, or a value of a query.
pub(crate) fn segment(text: &str) -> impl fmt::Display + '_ {
    utf8_percent_encode(text, NON_ALPHANUMERIC)
}

/// An executor or a dialer whose requests and answers are logged, with the method it asks by.
pub(crate) struct Asked<E>(pub(crate) &'static str, pub(crate) E);

impl<E> Asked<E> {
    /// A request goes out. Its query stays untold: the command is there.
    pub(crate) fn asks(&self, uri: &Uri) {
        let authority = uri.authority().map_or("", |authority| authority.as_str());
        klog!(6, "{} {}://{authority}{}", self.0, uri.scheme_str().unwrap_or_default(), uri.path());
    }

    /// Its answer came, the upgrade unless there is an error.
    pub(crate) fn answered(&self, began: Instant, error: Option<&ExecuteError>) {
        let code = match error {
            None => Some(StatusCode::SWITCHING_PROTOCOLS),
            Some(error) => error.rejection().map(|rejection| rejection.code()),
        };
        let code = code.map_or_else(|| "none".to_owned(), |code| code.to_string());
        klog!(6, "Response Status: {code} in {} milliseconds", began.elapsed().as_millis());
    }
}

impl<E: Execute> Execute for Asked<E> {
    async fn open(&self, request: &ExecRequest) -> Result<Opened, ExecuteError> {
        self.asks(request.uri());
        let began = Instant::now();
        let opened = self.1.open(request).await;
        self.answered(began, opened.as_ref().err());
        if let Ok(opened) = &opened {
            match opened.carrier() {
                Carrier::Spdy => klog!(4, "The subprotocol is {} over SPDY/3.1", opened.protocol()),
                _ => klog!(4, "The subprotocol is {}", opened.protocol()),
            }
        }
        opened
    }
}
