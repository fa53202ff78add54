//! One plain request to a server of a lab, over TLS or not, as somebody or as nobody.

use std::{path::Path, sync::Arc, time::Duration};

use http::{Request, Response, Uri, header::HOST};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::time::timeout;
use tokio_rustls::rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use tower_kube_streaming::{adapters::rustls::TlsConnect, services::Connect};

use super::{Outcome, lab::Lab, process::Process};
use crate::ensure;

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub enum Login<'a> {
    Nobody,
    Token(&'a str),
    /// Certificate and key, in PEM.
    Certificate(&'a [u8], &'a [u8]),
}

/// Sends one request on a connection of its own and reads the whole answer. A `101` has no body here.
pub async fn ask(ca: &Path, login: Login<'_>, request: Request<()>) -> Outcome<Response<String>> {
    let uri = request.uri().clone();
    timeout(Duration::from_secs(20), asked(ca, login, request))
        .await
        .unwrap_or_else(|_| Err("no answer in 20 s".to_owned()))
        .map_err(|why| format!("{uri}: {why}"))
}

async fn asked(ca: &Path, login: Login<'_>, request: Request<()>) -> Outcome<Response<String>> {
    let uri = request.uri().clone();
    let connect = TlsConnect::new(Arc::new(tls_config(ca, login)?)).allow_plain_http();
    let io = TokioIo::new(connect.connect(uri.clone()).await.map_err(|error| error.to_string())?);
    let (mut sender, connection) = http1::handshake(io).await.map_err(|error| error.to_string())?;
    // It ends with the answer.
    tokio::spawn(connection.with_upgrades());
    let mut request = request.map(|()| Empty::<bytes::Bytes>::new());
    *request.uri_mut() = uri.path_and_query().map_or("/", |path| path.as_str()).parse().expect("a path of a URI");
    let host = uri.authority().ok_or("the URI has no host")?.as_str();
    request.headers_mut().insert(HOST, host.parse().expect("a host is a header's value"));
    if let Login::Token(token) = login {
        let bearer = format!("Bearer {token}").parse().map_err(|_| "no token")?;
        request.headers_mut().insert("authorization", bearer);
    }
    let (head, body) = sender.send_request(request).await.map_err(|error| error.to_string())?.into_parts();
    let body = if head.status == 101 {
        String::new()
    } else {
        let body = body.collect().await.map_err(|error| error.to_string())?.to_bytes();
        String::from_utf8_lossy(&body).into_owned()
    };
    Ok(Response::from_parts(head, body))
}

/// Trusts that CA, and logs in if it is by certificate.
pub fn tls_config(ca: &Path, login: Login<'_>) -> Outcome<ClientConfig> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let mut roots = RootCertStore::empty();
    for cert in CertificateDer::pem_file_iter(ca).map_err(|error| text(&error))? {
        roots.add(cert.map_err(|error| text(&error))?).map_err(|error| text(&error))?;
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| text(&error))?
        .with_root_certificates(roots);
    let Login::Certificate(cert, key) = login else { return Ok(builder.with_no_client_auth()) };
    let chain = CertificateDer::pem_slice_iter(cert).collect::<Result<_, _>>().map_err(|error| text(&error))?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| text(&error))?;
    builder.with_client_auth_cert(chain, key).map_err(|error| text(&error))
}

impl Lab {
    /// A GET at the API server, as its administrator.
    pub async fn get_from_apiserver(&self, path: &str) -> Outcome<Response<String>> {
        let token = self.admin_token()?;
        ask(&self.ca(), Login::Token(&token), get(&self.apiserver, path)?).await
    }

    /// A GET at the kubelet, as the API server.
    pub async fn get_from_kubelet(&self, path: &str) -> Outcome<Response<String>> {
        let read = |name| std::fs::read(self.data.join(name)).map_err(|error| format!("{name}: {error}"));
        let (cert, key) = (read("apiserver-kubelet-client.crt")?, read("apiserver-kubelet-client.key")?);
        let kubelet = self.kubelet.as_ref().ok_or("this lab has no kubelet of its own")?;
        ask(&self.ca(), Login::Certificate(&cert, &key), get(kubelet, path)?).await
    }

    /// The API server's `/metrics`.
    pub async fn metrics_of_apiserver(&self) -> Outcome<String> {
        metrics(self.get_from_apiserver("/metrics").await?)
    }

    /// The kubelet's `/metrics`.
    pub async fn metrics_of_kubelet(&self) -> Outcome<String> {
        metrics(self.get_from_kubelet("/metrics").await?)
    }

    /// Who signs all certificates of this lab.
    pub fn ca(&self) -> std::path::PathBuf {
        self.data.join("ca.crt")
    }

    /// The administrator's bearer token.
    pub fn admin_token(&self) -> Outcome<String> {
        let tokens = std::fs::read_to_string(self.data.join("tokens.csv")).map_err(|error| error.to_string())?;
        let admin = tokens.lines().filter_map(|line| line.split_once(',')).find(|(_, of)| of.starts_with("admin,"));
        Ok(admin.ok_or("there is no admin")?.0.to_owned())
    }
}

/// Where a ready process says that it listens.
pub fn url(process: &Process) -> Outcome<String> {
    let said = process.stdout.text();
    let url = said.lines().find_map(|line| line.strip_prefix("listening on "));
    Ok(url.ok_or_else(|| format!("stdout names no URL:\n{said}"))?.to_owned())
}

fn get(process: &Process, path: &str) -> Outcome<Request<()>> {
    let uri: Uri = format!("{}{path}", url(process)?).parse().map_err(|error| format!("{path}: {error}"))?;
    Ok(Request::get(uri).body(()).expect("a URI is all there is"))
}

fn metrics(answer: Response<String>) -> Outcome<String> {
    ensure!(answer.status() == 200, "/metrics: {}: {}", answer.status(), answer.body());
    Ok(answer.into_body())
}
