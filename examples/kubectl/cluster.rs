//! From a kubeconfig, or a pod's service account, to requests.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use clap::Args;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use kube::{Config, client::ConfigExt as _};
use serde_json::Value;
use tokio::time::{Instant, timeout};
use tokio_rustls::rustls::pki_types::ServerName;
use tower::{Layer, ServiceExt as _, service_fn};
use tower_kube_streaming::{
    adapters::{kube::proxies, rustls::TlsConnect},
    client::transport::ProxyConnect,
    upgrade::Connect as _,
};

use super::{
    failure::{Failure, chain, printable},
    log::klog,
    overrides::{Overrides, without_credentials},
    selection::SelectionFlags,
};
use crate::provider::provider;

/// Bytes of an answer. etcd holds no object of more than 1.5 MiB; a list of a workload's pods may be longer.
const ANSWER: usize = 32 << 20;
/// The kubectl whose flags and words these are. Servers go by it: an older one must be given time after a `101`.
const USER_AGENT: &str = concat!("kubectl/v1.37.0 tower-kube-streaming/", env!("CARGO_PKG_VERSION"));

#[derive(Args, Debug)]
pub(crate) struct ClusterFlags {
    #[command(flatten)]
    selection: SelectionFlags,
    /// The namespace.
    #[arg(short, long, value_name = "NAME", global = true)]
    namespace: Option<String>,
    #[command(flatten)]
    overrides: Overrides,
}

/// TLS to the API server, through the proxy that the kubeconfig or the environment names.
pub(crate) type Connect = TlsConnect<ProxyConnect<TlsConnect>>;

/// Where an API server is, and who asks there.
pub(crate) struct Cluster {
    /// Scheme, host, port and path, without a slash at the end.
    base: String,
    /// Host and port, for messages.
    pub(crate) server: String,
    pub(crate) namespace: String,
    /// Whether the command line names it.
    namespace_given: bool,
    pub(crate) headers: HeaderMap,
    pub(crate) connect: Connect,
    /// How long a plain request may take, dialling and answer included.
    patience: Duration,
}

impl Cluster {
    pub(crate) async fn load(flags: &ClusterFlags) -> Result<Self, Failure> {
        let patience = flags.overrides.patience()?;
        let (mut config, selected) = flags.selection.load().await?;
        flags.overrides.apply(&mut config, &selected)?;
        let authority = config.cluster_url.authority().map(ToString::to_string).unwrap_or_default();
        let plain = config.cluster_url.scheme_str() == Some("http");
        // Without a CA these are the system's roots, which take time to load: plain HTTP needs none.
        if plain {
            config.root_cert.get_or_insert_default();
            // As kubectl: no credentials where everybody can read them.
            config.auth_info = without_credentials(&mut config.auth_info);
        }
        // Which kube-rs takes then.
        let _ = Arc::unwrap_or_clone(provider()).install_default();
        let tls = config.rustls_client_config().map_err(|error| Failure::error(chain(&error)))?;
        let tls = Arc::new(tls);
        let proxies = proxies(&config).map_err(|error| Failure::error(chain(&error)))?;
        let to_proxy = TlsConnect::new(tls.clone()).allow_plain_http();
        let mut connect = TlsConnect::over(ProxyConnect::over(proxies, to_proxy), tls);
        if let Some(name) = &config.tls_server_name {
            let name = ServerName::try_from(name.clone());
            connect = connect.server_name(name.map_err(|error| Failure::error(chain(&error)))?);
        }
        Ok(Self {
            base: config.cluster_url.to_string().trim_end_matches('/').to_owned(),
            server: authority,
            namespace: flags.namespace.clone().unwrap_or_else(|| config.default_namespace.clone()),
            namespace_given: flags.namespace.is_some(),
            headers: headers(&config).await?,
            connect: if plain { connect.allow_plain_http() } else { connect },
            patience,
        })
    }

    /// Where an object is that says so of itself, or does not. It must not contradict the command line.
    pub(crate) fn namespace_of<'a>(&'a self, own: Option<&'a str>) -> Result<&'a str, Failure> {
        match own {
            Some(own) if self.namespace_given && own != self.namespace => Err(Failure::error(format!(
                "the namespace from the provided object {own:?} does not match the namespace {:?}. You must pass \
                 '--namespace={}' to perform this operation.",
                self.namespace,
                printable(own)
            ))),
            own => Ok(own.unwrap_or(&self.namespace)),
        }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    /// Gets an object or a list. A refusal is told as kubectl does.
    pub(crate) async fn get(&self, path: &str) -> Result<Value, Failure> {
        let (code, value) = self.ask(path).await?;
        if code.is_success() { Ok(value) } else { Err(Failure::refused(code.as_u16(), &value)) }
    }

    /// Whatever is answered; `Null` if it is no JSON.
    pub(crate) async fn ask(&self, path: &str) -> Result<(StatusCode, Value), Failure> {
        let url = self.url(path);
        klog!(6, "GET {}", url.split('?').next().unwrap_or_default());
        let began = Instant::now();
        let (code, body) = match timeout(self.patience, self.exchange(&url)).await {
            Ok(answer) => answer?,
            Err(_) => return Err(Failure::error(format!("no answer from {} in {:?}", self.server, self.patience))),
        };
        klog!(6, "Response Status: {code} in {} milliseconds", began.elapsed().as_millis());
        Ok((code, serde_json::from_slice(&body).unwrap_or_default()))
    }

    async fn exchange(&self, url: &str) -> Result<(StatusCode, Bytes), Failure> {
        let uri: Uri = url.parse().map_err(|error: http::uri::InvalidUri| Failure::error(error.to_string()))?;
        let io = self.connect.connect(uri.clone()).await.map_err(|error| Failure::unreachable(&self.server, &error))?;
        let failed = |error: hyper::Error| Failure::error(chain(&error));
        let (mut sender, connection) = http1::handshake(TokioIo::new(io)).await.map_err(failed)?;
        let driven = tokio::spawn(connection);
        let mut request = Request::new(Empty::<Bytes>::new());
        *request.headers_mut() = self.headers.clone();
        let host = HeaderValue::from_str(&self.server).map_err(|error| Failure::error(error.to_string()))?;
        request.headers_mut().insert(header::HOST, host);
        request.headers_mut().insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        *request.uri_mut() = path.parse().expect("path and query of a URI");
        let (head, body) = sender.send_request(request).await.map_err(failed)?.into_parts();
        let body = Limited::new(body, ANSWER).collect().await.map_err(|error| Failure::error(chain(&*error)))?;
        driven.abort();
        Ok((head.status, body.to_bytes()))
    }
}

fn common_headers() -> HeaderMap {
    HeaderMap::from_iter([(header::USER_AGENT, HeaderValue::from_static(USER_AGENT))])
}

/// The headers that kube-rs's layers add to a request: credentials, where a plug-in gives them too, and impersonation.
async fn headers(config: &Config) -> Result<HeaderMap, Failure> {
    let told = |error: kube::Error| Failure::error(chain(&error));
    let end = service_fn(|request: Request<Empty<Bytes>>| async move {
        let mut answer = Response::new(());
        *answer.headers_mut() = request.into_parts().0.headers;
        Ok::<_, tower::BoxError>(answer)
    });
    let extra = config.extra_headers_layer().map_err(told)?.layer(end);
    let mut request = Request::new(Empty::new());
    *request.headers_mut() = common_headers();
    let answer = match config.auth_layer().map_err(told)? {
        Some(auth) => auth.layer(extra).oneshot(request).await,
        None => extra.oneshot(request).await,
    };
    answer.map(|answer| answer.into_parts().0.headers).map_err(|error| Failure::error(chain(&*error)))
}
