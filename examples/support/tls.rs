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

/// A server that asks nobody for a certificate.
pub fn server_config_without_clients(own: &CertAndKey) -> Result<ServerConfig, Error> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .context("TLS")?
        .with_no_client_auth()
        .with_single_cert(chain(&own.cert)?, key(&own.key)?)
        .context(own.cert.display())?;
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
