//! Every request that is no stream of a pod goes to the cluster's API server, and its answer comes back as it is, while it
//! comes: a watch, a followed log and an upload are not held anywhere.

use std::{net::IpAddr, path::Path, sync::Arc, time::Duration};

use axum::body::{Body, HttpBody};
use futures_util::StreamExt;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header, uri::PathAndQuery,
};
use http_body_util::{BodyStream, StreamBody};
use hyper::upgrade::OnUpgrade;
use hyper_util::{
    client::legacy::{self, Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo, TokioTimer},
};
use kube::{Config, client::ConfigExt, config::AuthInfo};
use tokio::io::copy_bidirectional;
use tokio_util::sync::CancellationToken;
use tower::{ServiceExt, timeout::Timeout, util::BoxCloneSyncService};
use tower_kube_streaming::upgrade::{ClientAddr, Dialect, Refusal};

use super::super::{Context, Error, authn::REMOTE, impersonate, pki::CertAndKey};

/// Time to connect, TLS included. A request that has been sent may take as long as it likes: it may be a watch.
const DIAL: Duration = Duration::from_secs(10);
/// A silent connection is probed after so long, and so often, so that a watch notices a server that lost its power.
const PROBE: Duration = Duration::from_secs(15);
const PROBES: u32 = 4;
/// An unused connection is closed before the server would do it: the example API server allows 32 s, Go's 90 s.
const IDLE: Duration = Duration::from_secs(20);
/// What a client is told to wait before it asks again.
const AGAIN: Duration = Duration::from_secs(1);

/// Headers that are for one connection (RFC 9110, 7.6.1), and two that this server answers itself.
const HOP_BY_HOP: [HeaderName; 9] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("http2-settings"),
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::EXPECT,
];
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

type Pool = BoxCloneSyncService<Request<Body>, Response<Body>, legacy::Error>;

/// The cluster's API server, as the gateway's clients see it through the gateway. None of the gateway's own credentials
/// goes with their requests.
#[derive(Clone, Debug)]
pub struct Upstream(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    base: Uri,
    /// Connections that say nothing of who is behind them.
    plain: Pool,
    /// Connections that may say it: they show the front proxy's certificate.
    front_proxy: Option<Pool>,
    stop: CancellationToken,
}

/// Over which connections a request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    Plain,
    FrontProxy,
}

impl Upstream {
    /// The server that `config` names. `stop` ends watches when the gateway stops.
    pub fn new(config: &Config, front_proxy: Option<&CertAndKey>, stop: CancellationToken) -> Result<Self, Error> {
        let as_whom = |auth_info| {
            let mut config = config.clone();
            config.auth_info = auth_info;
            pool(&config)
        };
        let front_proxy = front_proxy.map(|own| {
            let file = |file: &Path| Some(file.display().to_string());
            let shown =
                AuthInfo { client_certificate: file(&own.cert), client_key: file(&own.key), ..AuthInfo::default() };
            as_whom(shown).context(own.cert.display())
        });
        Ok(Self(Arc::new(Inner {
            base: config.cluster_url.clone(),
            plain: as_whom(AuthInfo::default())?,
            front_proxy: front_proxy.transpose()?,
            stop,
        })))
    }

    /// Whether it believes the gateway who a caller is.
    pub fn trusts_us(&self) -> bool {
        self.0.front_proxy.is_some()
    }

    /// Sends the request on and returns what was answered.
    pub async fn forward(&self, mut request: Request<Body>, via: Via) -> Response<Body> {
        let uri = match self.uri_of(&request) {
            Ok(uri) => uri,
            Err(refusal) => return refusal.into_response(Dialect::ApiServer),
        };
        let pool = match via {
            Via::Plain => self.0.plain.clone(),
            Via::FrontProxy => self.0.front_proxy.clone().expect("it is asked for only where there is one"),
        };
        let upgrade = upgrade_of(request.headers());
        let client = upgrade.is_some().then(|| hyper::upgrade::on(&mut request));
        let (watch, repeatable) = (is_watch(&request), request.method().is_safe());
        let forwarded = prepare(request, uri, upgrade);
        match pool.oneshot(forwarded).await {
            Ok(response) if response.status() == StatusCode::SWITCHING_PROTOCOLS => join(response, client),
            Ok(mut response) => {
                strip(response.headers_mut());
                if watch { response.map(|body| until(body, self.0.stop.clone())) } else { response }
            }
            Err(error) => failed(&error, repeatable),
        }
    }

    fn uri_of(&self, request: &Request<Body>) -> Result<Uri, Refusal> {
        let base = &self.0.base;
        let path = request.uri().path_and_query().map_or("", PathAndQuery::as_str);
        if request.method() == Method::CONNECT || !path.starts_with('/') {
            return Err(Refusal::bad_request("the request names no path"));
        }
        let below = base.path().trim_end_matches('/');
        let path = format!("{below}{path}").parse::<PathAndQuery>();
        let mut parts = base.clone().into_parts();
        parts.path_and_query = Some(path.map_err(|_| Refusal::bad_request("the path is not one"))?);
        Uri::from_parts(parts).map_err(|_| Refusal::bad_request("the path is not one"))
    }
}

/// HTTP/1.1, a connection for each request in flight: one lost connection ends one watch, and an upgrade needs its own.
fn pool(config: &Config) -> Result<Pool, Error> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_keepalive(Some(PROBE));
    tcp.set_keepalive_interval(Some(PROBE));
    tcp.set_keepalive_retries(Some(PROBES));
    let connect = config.rustls_https_connector_with_connector(tcp).context("TLS to the cluster")?;
    let mut builder = Client::builder(TokioExecutor::new());
    builder.pool_idle_timeout(IDLE).pool_timer(TokioTimer::new());
    let client = builder.build::<_, Body>(BoxCloneSyncService::new(Timeout::new(connect, DIAL)));
    Ok(Pool::new(client.map_response(|response| response.map(Body::new))))
}

/// The request as it goes on: to another URL, without what was for our connection.
fn prepare(request: Request<Body>, uri: Uri, upgrade: Option<HeaderValue>) -> Request<Body> {
    let (mut head, body) = request.into_parts();
    let trailers = list(&head.headers, &header::TE).any(|coding| coding.eq_ignore_ascii_case("trailers"));
    strip(&mut head.headers);
    // The server's own name and not ours: hyper takes it from the URL.
    head.headers.remove(header::HOST);
    if trailers {
        head.headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    if let Some(protocol) = upgrade {
        head.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        head.headers.insert(header::UPGRADE, protocol);
    }
    if let Some(ClientAddr(client)) = head.extensions.get() {
        forwarded_for(&mut head.headers, *client);
    }
    head.uri = uri;
    head.version = Version::HTTP_11;
    head.extensions = http::Extensions::new();
    Request::from_parts(head, body)
}

/// Names the client behind those that are named already, as a reverse proxy of Go's does.
fn forwarded_for(headers: &mut HeaderMap, client: IpAddr) {
    let before: Vec<_> = headers.get_all(FORWARDED_FOR).iter().filter_map(|line| line.to_str().ok()).collect();
    let chain = before.into_iter().map(str::to_owned).chain([client.to_string()]).collect::<Vec<_>>().join(", ");
    let chain = HeaderValue::from_str(&chain).expect("it is made of header values and an address");
    headers.insert(FORWARDED_FOR, chain);
}

/// Takes out what is for one connection, also what `Connection` says is. But not who it is for: a client could make us
/// drop whom it acts as, or our own word of it, and the request would be somebody else's.
fn strip(headers: &mut HeaderMap) {
    let named = list(headers, &header::CONNECTION).filter_map(|name| name.parse().ok());
    let named: Vec<HeaderName> = named.filter(|name| !says_who(name)).collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
}

fn says_who(name: &HeaderName) -> bool {
    *name == header::AUTHORIZATION || [REMOTE, impersonate::PREFIX].iter().any(|own| name.as_str().starts_with(own))
}

/// The protocols that a client asks to change to.
fn upgrade_of(headers: &HeaderMap) -> Option<HeaderValue> {
    let asked = list(headers, &header::CONNECTION).any(|word| word.eq_ignore_ascii_case("upgrade"));
    headers.get(header::UPGRADE).filter(|_| asked).cloned()
}

fn list<'h>(headers: &'h HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'h str> {
    let lines = headers.get_all(name).into_iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(str::trim)
}

/// As upstream's `RequestInfo` reads it.
fn is_watch(request: &Request<Body>) -> bool {
    let words = request.uri().query().unwrap_or_default().split('&');
    request.method() == Method::GET && words.into_iter().any(|word| matches!(word, "watch=true" | "watch=1" | "watch"))
}

/// Ends an answer in order, before its end, when the gateway stops. For watches alone: who watches asks again, and
/// misses nothing. Of a log or a list this would be a lie.
fn until(body: Body, stop: CancellationToken) -> Body {
    if body.is_end_stream() {
        return body;
    }
    Body::new(StreamBody::new(BodyStream::new(body).take_until(stop.cancelled_owned())))
}

/// Carries the bytes of an upgrade that is no stream of a pod: of `proxy` subresources and aggregated APIs. These are
/// nobody's sessions: they are cut when the gateway stops.
fn join(mut response: Response<Body>, client: Option<OnUpgrade>) -> Response<Body> {
    let Some(client) = client else {
        tracing::warn!("the cluster's API server changed the protocol without being asked");
        return bad_gateway();
    };
    let server = hyper::upgrade::on(&mut response);
    tokio::spawn(async move {
        // The error of either side is the end of the other.
        let (Ok(client), Ok(server)) = tokio::join!(client, server) else { return };
        let _ = copy_bidirectional(&mut TokioIo::new(client), &mut TokioIo::new(server)).await;
    });
    response
}

/// `Retry-After` makes Go's clients repeat any request, so it is said only of one that did nothing.
fn failed(error: &legacy::Error, repeatable: bool) -> Response<Body> {
    tracing::warn!(error = error as &dyn std::error::Error, "the cluster's API server did not answer");
    if error.is_connect() || repeatable {
        unavailable("the cluster's API server cannot be reached")
    } else {
        bad_gateway()
    }
}

fn bad_gateway() -> Response<Body> {
    let why = "the cluster's API server did not answer a request that may have reached it";
    Refusal::new(StatusCode::BAD_GATEWAY, "", why).into_response(Dialect::ApiServer)
}

/// 503, and when to ask again.
pub fn unavailable(why: &str) -> Response<Body> {
    Refusal::unavailable(why, AGAIN).into_response(Dialect::ApiServer)
}
