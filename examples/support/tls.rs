//! rustls configurations from PEM files. Only here is a cryptography provider named.

use std::{path::Path, sync::Arc};

use tokio_rustls::rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};

use super::{Context, Error, pki::CertAndKey};

/// What all randomness and cryptography of the examples comes from.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// A server that speaks HTTP/2 and HTTP/1.1, and asks its clients for a certificate of `client_ca`, but takes those without one:
/// they may have a token. A certificate of somebody else's fails the handshake.
pub fn server_config(own: &CertAndKey, client_ca: &Path) -> Result<ServerConfig, Error> {
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(client_ca)?), provider())
        .allow_unauthenticated()
        .build()
        .context(client_ca.display())?;
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
