//! Clients that trust an example's own CA, and may show a certificate of it.

use std::{fmt::Display, fs, path::Path, sync::Arc};

use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair};
use tokio_rustls::{
    TlsConnector,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    },
};

use crate::support::Outcome;

/// Why, after what was tried.
pub(crate) fn text_of<E: Display>(what: &str) -> impl Fn(E) -> String + '_ {
    move |error| format!("{what}: {error}")
}

/// A client that trusts the CA of an apiserver's data directory: as `user`, or as nobody.
pub(crate) fn connector(data: &Path, user: Option<&str>) -> Outcome<TlsConnector> {
    let read = |name: &str| fs::read_to_string(data.join(name)).map_err(text_of(name));
    let ca = read("ca.crt")?;
    let mut roots = RootCertStore::empty();
    for cert in CertificateDer::pem_slice_iter(ca.as_bytes()) {
        roots.add(cert.map_err(text_of("ca.crt"))?).map_err(text_of("ca.crt"))?;
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(text_of("TLS"))?
        .with_root_certificates(roots);
    let Some(user) = user else { return Ok(TlsConnector::from(Arc::new(config.with_no_client_auth()))) };
    let signer = KeyPair::from_pem(&read("ca.key")?).map_err(text_of("ca.key"))?;
    let signer = Issuer::from_ca_cert_pem(&ca, signer).map_err(text_of("ca.crt"))?;
    let key = KeyPair::generate().map_err(text_of("key"))?;
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, user);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let cert = params.signed_by(&key, &signer).map_err(text_of("certificate"))?;
    let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(text_of("key"))?;
    let config = config.with_client_auth_cert(vec![cert.der().clone()], key).map_err(text_of("certificate"))?;
    Ok(TlsConnector::from(Arc::new(config)))
}
