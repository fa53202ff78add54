//! rustls configurations from PEM files.

use std::{path::Path, sync::Arc};

use tokio_rustls::rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem::PemObject},
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
};

use super::{Context, Error, pki::CertAndKey, provider::provider};

/// A server that speaks HTTP/2 and HTTP/1.1, and asks its clients for a certificate of `client_ca`, but takes those without one:
/// they may have a token. A certificate of somebody else's fails the handshake.
pub fn server_config(own: &CertAndKey, client_ca: &Path) -> Result<ServerConfig, Error> {
    serve(own, verifier(Arc::new(roots(client_ca)?)).context(client_ca.display())?)
}

/// The same, and it takes the certificates of a front proxy too. Whose they are is [`FrontProxies`]' to say: the handshake
/// does not tell.
pub fn server_config_with(own: &CertAndKey, client_ca: &Path, proxies: &Path) -> Result<ServerConfig, Error> {
    let mut both = roots(client_ca)?;
    both.roots.extend(roots(proxies)?.roots);
    serve(own, verifier(Arc::new(both))?)
}

/// A server that asks nobody for a certificate.
pub fn server_config_without_clients(own: &CertAndKey) -> Result<ServerConfig, Error> {
    serve(own, WebPkiClientVerifier::no_client_auth())
}

/// Tells the certificates of front proxies from those of clients.
#[derive(Debug)]
pub struct FrontProxies {
    clients: Arc<dyn ClientCertVerifier>,
    proxies: Arc<dyn ClientCertVerifier>,
    names: Vec<String>,
}

impl FrontProxies {
    /// `names` are the common names that count; if there is none, any does. As upstream, that takes an authority that
    /// signs no clients: each of them could call itself whatever it likes.
    pub fn new(client_ca: &Path, proxies: &Path, names: Vec<String>) -> Result<Self, Error> {
        let of_clients = chain(client_ca)?;
        if names.is_empty() && chain(proxies)?.iter().any(|ca| of_clients.contains(ca)) {
            return Err("front proxies have an authority of the clients': say which names are theirs".into());
        }
        let signed_by = |ca: &Path| verifier(Arc::new(roots(ca)?)).context(ca.display());
        Ok(Self { clients: signed_by(client_ca)?, proxies: signed_by(proxies)?, names })
    }

    /// Whether the client CA has signed it.
    pub fn is_client(&self, chain: &[CertificateDer<'_>]) -> bool {
        verified(&*self.clients, chain)
    }

    /// Whether the front proxies' CA has signed it, for one of the names.
    pub fn is_proxy(&self, chain: &[CertificateDer<'_>], name: &str) -> bool {
        (self.names.is_empty() || self.names.iter().any(|allowed| allowed == name)) && verified(&*self.proxies, chain)
    }
}

fn verified(by: &dyn ClientCertVerifier, chain: &[CertificateDer<'_>]) -> bool {
    let Some((own, rest)) = chain.split_first() else { return false };
    by.verify_client_cert(own, rest, UnixTime::now()).is_ok()
}

fn verifier(roots: Arc<RootCertStore>) -> Result<Arc<dyn ClientCertVerifier>, Error> {
    let builder = WebPkiClientVerifier::builder_with_provider(roots, provider());
    builder.allow_unauthenticated().build().context("certificate authority")
}

fn serve(own: &CertAndKey, clients: Arc<dyn ClientCertVerifier>) -> Result<ServerConfig, Error> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .context("TLS")?
        .with_client_cert_verifier(clients)
        .with_single_cert(chain(&own.cert)?, key(&own.key)?)
        .context(own.cert.display())?;
    // An upgrade is HTTP/1.1's, so clients that dial for one offer nothing else.
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// A client that trusts `ca` and shows `own`.
pub fn client_config(ca: &Path, own: &CertAndKey) -> Result<ClientConfig, Error> {
    ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .context("TLS")?
        .with_root_certificates(roots(ca)?)
        .with_client_auth_cert(chain(&own.cert)?, key(&own.key)?)
        .context(own.cert.display())
}

/// A client that trusts `ca` and shows `own`, certificate and key, all in PEM. Without `ca` it trusts nobody.
pub fn client_config_of_pem(ca: Option<&[u8]>, own: Option<(&[u8], &[u8])>) -> Result<ClientConfig, Error> {
    let mut roots = RootCertStore::empty();
    for cert in CertificateDer::pem_slice_iter(ca.unwrap_or_default()) {
        roots.add(cert.context("certificate authority")?).context("certificate authority")?;
    }
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .context("TLS")?
        .with_root_certificates(roots);
    let Some((cert, key)) = own else { return Ok(builder.with_no_client_auth()) };
    let chain: Vec<_> = CertificateDer::pem_slice_iter(cert).collect::<Result<_, _>>().context("client certificate")?;
    let key = PrivateKeyDer::from_pem_slice(key).context("client key")?;
    builder.with_client_auth_cert(chain, key).context("client certificate")
}

fn roots(path: &Path) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    for cert in chain(path)? {
        roots.add(cert).context(path.display())?;
    }
    Ok(roots)
}

fn chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let certs: Vec<_> = CertificateDer::pem_file_iter(path).and_then(Iterator::collect).context(path.display())?;
    if certs.is_empty() { Err(format!("{}: no certificate in it", path.display()).into()) } else { Ok(certs) }
}

fn key(path: &Path) -> Result<PrivateKeyDer<'static>, Error> {
    PrivateKeyDer::from_pem_file(path).context(path.display())
}
