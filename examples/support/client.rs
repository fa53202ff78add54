//! A client of the Kubernetes API: what a kubelet asks of its API server.
//!
//! The kubeconfig is read again for every request, so that an API server that came back at another port, or a
//! certificate that was renewed, needs no restart. Connections are kept for as long as the file says the same.

use std::{
    fs, io,
    io::Read,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{Arc, Mutex},
    task::{self, Poll},
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::{
    client::legacy::{
        Client,
        connect::{Connected, Connection},
    },
    rt::{TokioExecutor, TokioIo, TokioTimer},
};
use pin_project::pin_project;
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::timeout,
};
use tower::Service;
use tower_kube_streaming::{
    adapters::rustls::{TlsConnect, TlsIo},
    services::Connect,
};

use super::{Context, Error, is_loopback, objects::text, tls};

/// Time for a whole request, dialling and answer included.
const REQUEST: Duration = Duration::from_secs(10);
/// Bytes of an answer. A Node is a few kilobytes.
const ANSWER: usize = 1 << 20;
/// Bytes of a kubeconfig, and of each file that it names.
const FILE: u64 = 1 << 20;
/// An unused connection is closed before the example API server would do it, which allows 32 s.
const IDLE: Duration = Duration::from_secs(20);
/// Characters of a server's words that are worth a log line.
const WORDS: usize = 512;

/// A client of the API server that a kubeconfig file names.
pub struct ApiClient {
    path: PathBuf,
    current: Mutex<(Kubeconfig, Arc<Endpoint>)>,
}

/// What a request is about.
#[derive(Clone, Copy, Debug)]
pub enum Ask<'a> {
    Get,
    Post(&'a Value),
    Put(&'a Value),
    /// With `DeleteOptions`.
    Delete(&'a Value),
    /// RFC 7386.
    MergePatch(&'a Value),
}

impl ApiClient {
    /// Reads the file, so that a bad one is told at start-up. Dials nothing.
    pub fn new(path: &Path) -> Result<Self, Error> {
        let config = Kubeconfig::load(path)?;
        let endpoint = Endpoint::new(&config).context(path.display())?;
        Ok(Self { path: path.to_owned(), current: Mutex::new((config, Arc::new(endpoint))) })
    }

    /// Sends one request and returns whatever was answered, a refusal too. An error is that there was no answer in 10 s,
    /// or none in JSON.
    pub async fn ask(&self, path: &str, ask: Ask<'_>) -> Result<(StatusCode, Value), Error> {
        let endpoint = self.endpoint()?;
        timeout(REQUEST, endpoint.ask(path, ask))
            .await
            .unwrap_or_else(|_| Err(format!("no answer in {REQUEST:?}").into()))
            .context(format_args!("{}{path}", endpoint.server))
    }

    fn endpoint(&self) -> Result<Arc<Endpoint>, Error> {
        let config = Kubeconfig::load(&self.path)?;
        let mut current = self.current.lock().expect("nothing panics while it holds the client");
        if current.0 != config {
            let endpoint = Endpoint::new(&config).context(self.path.display())?;
            *current = (config, Arc::new(endpoint));
        }
        Ok(current.1.clone())
    }
}

/// A refusal for a log line: the code, and what the server says about it.
pub fn complaint(code: StatusCode, answer: &Value) -> String {
    // Quoted: a server's words may hold a line break.
    format!("{code}: {:?}", words(answer, "/message"))
}

/// The server's own words at a JSON pointer, as many as are worth keeping.
pub fn words(answer: &Value, pointer: &str) -> String {
    text(answer, pointer).unwrap_or_default().chars().take(WORDS).collect()
}

/// Where the API server is, and connections to it.
struct Endpoint {
    server: String,
    authorization: Option<HeaderValue>,
    http: Client<Dialer, Full<Bytes>>,
}

impl Endpoint {
    fn new(config: &Kubeconfig) -> Result<Self, Error> {
        let uri: Uri = config.server.parse().context("cluster.server")?;
        let plain = match uri.scheme_str() {
            Some("https") => false,
            Some("http") if is_loopback(&uri) => true,
            Some("http") => return Err("cluster.server: plain HTTP is for API servers of this machine only".into()),
            _ => return Err("cluster.server must be a URL".into()),
        };
        let own = config.own.as_ref().map(|(cert, key)| (cert.as_slice(), key.as_slice()));
        let tls = tls::client_config_of_pem(config.ca.as_deref(), own)?;
        let connect = TlsConnect::new(Arc::new(tls));
        let connect = if plain { connect.allow_plain_http() } else { connect };
        let bearer = |token: &String| {
            let mut value = HeaderValue::from_str(&format!("Bearer {token}")).map_err(|_| "user.token: not a token")?;
            value.set_sensitive(true);
            Ok::<_, Error>(value)
        };
        Ok(Self {
            server: config.server.trim_end_matches('/').to_owned(),
            authorization: config.token.as_ref().map(bearer).transpose()?,
            http: pool(connect),
        })
    }

    async fn ask(&self, path: &str, ask: Ask<'_>) -> Result<(StatusCode, Value), Error> {
        let (method, kind, body) = match ask {
            Ask::Get => (Method::GET, "application/json", String::new()),
            Ask::Post(body) => (Method::POST, "application/json", body.to_string()),
            Ask::Put(body) => (Method::PUT, "application/json", body.to_string()),
            Ask::Delete(body) => (Method::DELETE, "application/json", body.to_string()),
            Ask::MergePatch(body) => (Method::PATCH, "application/merge-patch+json", body.to_string()),
        };
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.server))
            .header(header::CONTENT_TYPE, kind)
            .header(header::ACCEPT, "application/json");
        if let Some(authorization) = &self.authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        let response = self.http.request(request.body(Full::from(body))?).await.map_err(with_sources)?;
        let code = response.status();
        let body = Limited::new(response.into_body(), ANSWER).collect().await.map_err(|error| error.to_string())?;
        let answer = serde_json::from_slice(&body.to_bytes());
        Ok((code, answer.context(format_args!("{code}, and the answer is not JSON"))?))
    }
}

/// hyper's own words end at "client error (Connect)".
fn with_sources(error: impl std::error::Error) -> Error {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text.into()
}

/// What a kubeconfig says of its current context. It holds secrets, so it has no `Debug`.
#[derive(PartialEq, Eq)]
struct Kubeconfig {
    server: String,
    /// PEM.
    ca: Option<Vec<u8>>,
    /// Certificate and key in PEM.
    own: Option<(Vec<u8>, Vec<u8>)>,
    token: Option<String>,
}

impl Kubeconfig {
    fn load(path: &Path) -> Result<Self, Error> {
        let yaml = String::from_utf8(read(path)?).context(path.display())?;
        // Not with the parser's words: they may quote a line of the file, and that may hold a secret.
        let config: Value =
            serde_saphyr::from_str(&yaml).map_err(|_| format!("{}: not a kubeconfig", path.display()))?;
        Self::of(&config, path.parent().unwrap_or(Path::new("."))).context(path.display())
    }

    /// File names in it are relative to the folder it is in.
    fn of(config: &Value, dir: &Path) -> Result<Self, Error> {
        let context = text(config, "/current-context").ok_or("current-context is missing")?;
        let context = named(config, "context", context)?;
        let cluster = named(config, "cluster", text(context, "/cluster").ok_or("context.cluster is missing")?)?;
        let user = named(config, "user", text(context, "/user").ok_or("context.user is missing")?)?;
        understood(cluster, "cluster", &["server", "certificate-authority", "certificate-authority-data"])?;
        let credentials = ["client-certificate", "client-certificate-data", "client-key", "client-key-data", "token"];
        understood(user, "user", &credentials)?;
        let own = match (pem(user, "client-certificate", dir)?, pem(user, "client-key", dir)?) {
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, None) => None,
            _ => return Err("client-certificate and client-key need each other".into()),
        };
        Ok(Self {
            server: text(cluster, "/server").ok_or("cluster.server is missing")?.to_owned(),
            ca: pem(cluster, "certificate-authority", dir)?,
            own,
            token: text(user, "/token").map(str::to_owned),
        })
    }
}

/// The entry of that name in `contexts`, `clusters` or `users`.
fn named<'v>(config: &'v Value, kind: &str, name: &str) -> Result<&'v Value, Error> {
    let all = config.get(format!("{kind}s")).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let found = all.iter().find(|entry| text(entry, "/name") == Some(name)).and_then(|entry| entry.get(kind));
    found.ok_or_else(|| format!("there is no {kind} {name:?}").into())
}

/// To pass over `exec` or `tls-server-name` would be somebody else's login, or somebody else's server.
fn understood(entry: &Value, kind: &str, known: &[&str]) -> Result<(), Error> {
    let mut names = entry.as_object().into_iter().flat_map(|entry| entry.keys());
    match names.find(|name| !known.contains(&name.as_str())) {
        Some(name) => Err(format!("{kind}.{name} is not supported").into()),
        None => Ok(()),
    }
}

/// What is in the entry itself as base64, which wins, or in the file that it names.
fn pem(entry: &Value, name: &str, dir: &Path) -> Result<Option<Vec<u8>>, Error> {
    if let Some(data) = text(entry, &format!("/{name}-data")) {
        return STANDARD.decode(data).map(Some).map_err(|_| format!("{name}-data is not base64").into());
    }
    text(entry, &format!("/{name}")).map(|file| read(&dir.join(file))).transpose()
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let mut content = Vec::new();
    let file = fs::File::open(path).context(path.display())?;
    file.take(FILE + 1).read_to_end(&mut content).context(path.display())?;
    if content.len() as u64 > FILE {
        return Err(format!("{}: more than {FILE} bytes", path.display()).into());
    }
    Ok(content)
}

/// A pool of connections that are dialled so.
pub fn pool(connect: TlsConnect) -> Client<Dialer, Full<Bytes>> {
    let mut builder = Client::builder(TokioExecutor::new());
    builder.pool_idle_timeout(IDLE).pool_timer(TokioTimer::new());
    builder.build(Dialer(Arc::new(connect)))
}

/// The library's dialer, for hyper's pool.
#[derive(Clone, Debug)]
pub struct Dialer(Arc<TlsConnect>);

impl Service<Uri> for Dialer {
    type Response = TokioIo<Conn>;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<Self::Response>>;

    fn poll_ready(&mut self, _: &mut task::Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connect = self.0.clone();
        Box::pin(async move { Ok(TokioIo::new(Conn(connect.connect(uri).await?))) })
    }
}

#[pin_project]
pub struct Conn(#[pin] TlsIo);

impl Connection for Conn {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl AsyncRead for Conn {
    fn poll_read(self: Pin<&mut Self>, cx: &mut task::Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.project().0.poll_read(cx, buf)
    }
}

impl AsyncWrite for Conn {
    fn poll_write(self: Pin<&mut Self>, cx: &mut task::Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.project().0.poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<io::Result<()>> {
        self.project().0.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<io::Result<()>> {
        self.project().0.poll_shutdown(cx)
    }
}
