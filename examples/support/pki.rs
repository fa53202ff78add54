//! A certificate authority of our own, in the data directory, and the certificates it signs.
//!
//! What is there and still fits is kept, so that a kubelet and a kubeconfig outlive a restart of the API server.

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PublicKeyData, SanType,
};
use time::{Duration, OffsetDateTime};
use tokio_rustls::rustls::pki_types::{CertificateDer, pem::PemObject};
use x509_parser::{certificate::X509Certificate, extensions::GeneralName, prelude::FromDer};

use super::{Context, Error, random_hex, write_private};

/// Both ends of a pair of files in PEM.
#[derive(Clone, Debug)]
pub struct CertAndKey {
    pub cert: PathBuf,
    pub key: PathBuf,
}

impl CertAndKey {
    /// The pair of files that a data directory calls `name`.
    pub fn in_dir(dir: &Path, name: &str) -> Self {
        Self { cert: dir.join(format!("{name}.crt")), key: dir.join(format!("{name}.key")) }
    }

    fn read(&self) -> Option<(String, KeyPair)> {
        let cert = fs::read_to_string(&self.cert).ok()?;
        let key = KeyPair::from_pem(&fs::read_to_string(&self.key).ok()?).ok()?;
        Some((cert, key))
    }

    fn write(&self, cert: &str, key: &KeyPair) -> Result<(), Error> {
        write_private(&self.key, &key.serialize_pem())?;
        write_private(&self.cert, cert)
    }
}

/// Where the files are; the same names in every data directory.
pub mod files {
    use super::{CertAndKey, Path, PathBuf};

    pub fn ca(dir: &Path) -> PathBuf {
        dir.join("ca.crt")
    }
    pub fn apiserver(dir: &Path) -> CertAndKey {
        CertAndKey::in_dir(dir, "apiserver")
    }
    pub fn kubelet_client(dir: &Path) -> CertAndKey {
        CertAndKey::in_dir(dir, "apiserver-kubelet-client")
    }
    pub fn kubelet(dir: &Path) -> CertAndKey {
        CertAndKey::in_dir(dir, "kubelet")
    }
    /// What a kubelet shows to the API server.
    pub fn node_client(dir: &Path) -> CertAndKey {
        CertAndKey::in_dir(dir, "kubelet-client")
    }
}

/// Makes sure that `dir` holds a CA, the API server's two certificates, and two for a kubelet on this machine: the one that
/// it serves with, and the one that it registers its node with.
pub fn prepare(dir: &Path, listen: IpAddr) -> Result<(), Error> {
    let ca = prepare_server(dir, listen)?;
    // The name and group that kubeadm gives it, and that kubelets are used to.
    let client = Subject { name: "kube-apiserver-kubelet-client", group: Some("system:masters"), hosts: &[] };
    ca.issue(&files::kubelet_client(dir), client)?;
    let here = hosts(listen);
    let node = |hosts| Subject { name: "system:node:demo-node", group: Some("system:nodes"), hosts };
    ca.issue(&files::kubelet(dir), node(&here))?;
    ca.issue(&files::node_client(dir), node(&[]))
}

/// Makes sure that `dir` holds a CA and the certificate that an API server serves with, and no certificate of a client.
pub fn prepare_server(dir: &Path, listen: IpAddr) -> Result<Ca, Error> {
    let ca = Ca::load_or_create(&CertAndKey::in_dir(dir, "ca"))?;
    ca.issue(&files::apiserver(dir), Subject { name: "kube-apiserver", group: None, hosts: &hosts(listen) })?;
    Ok(ca)
}

/// What this machine is called by its own clients.
fn hosts(listen: IpAddr) -> Vec<String> {
    let mut here = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    if !listen.is_unspecified() && !here.contains(&listen.to_string()) {
        here.push(listen.to_string());
    }
    here
}

/// Whom a certificate is for: a server if it has hosts, else a client.
struct Subject<'a> {
    name: &'a str,
    group: Option<&'a str>,
    hosts: &'a [String],
}

/// A certificate authority that can sign.
pub struct Ca {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Ca {
    fn load_or_create(files: &CertAndKey) -> Result<Self, Error> {
        if let Some((pem, key)) = files.read()
            && fits(&pem, &key, |_| true)
        {
            let issuer = Issuer::from_ca_cert_pem(&pem, key).context("reading the CA")?;
            return Ok(Self { pem, issuer });
        }
        let key = KeyPair::generate().context("making the CA's key")?;
        let mut params = CertificateParams::default();
        // A new CA is a new name, so that no certificate of an older one is taken for its own.
        let name = format!("tower-kube-streaming demo CA {}", random_hex::<4>());
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        (params.not_before, params.not_after) = validity(Duration::days(3650));
        let pem = params.self_signed(&key).context("making the CA")?.pem();
        files.write(&pem, &key)?;
        Ok(Self { pem, issuer: Issuer::new(params, key) })
    }

    fn issue(&self, files: &CertAndKey, subject: Subject<'_>) -> Result<(), Error> {
        let (_, ca) = x509_parser::pem::parse_x509_pem(self.pem.as_bytes()).context("reading the CA")?;
        let ca = ca.parse_x509().context("reading the CA")?;
        let ours = |cert: &X509Certificate<'_>| {
            cert.issuer() == ca.subject() && subject.hosts.iter().all(|host| is_for(cert, host))
        };
        if files.read().is_some_and(|(pem, key)| fits(&pem, &key, ours)) {
            return Ok(());
        }
        let what = files.cert.display();
        let mut params = CertificateParams::default();
        params.subject_alt_names = subject.hosts.iter().map(|host| san(host)).collect::<Result<_, _>>()?;
        params.distinguished_name.push(DnType::CommonName, subject.name);
        if let Some(group) = subject.group {
            params.distinguished_name.push(DnType::OrganizationName, group);
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![if subject.hosts.is_empty() {
            ExtendedKeyUsagePurpose::ClientAuth
        } else {
            ExtendedKeyUsagePurpose::ServerAuth
        }];
        params.use_authority_key_identifier_extension = true;
        (params.not_before, params.not_after) = validity(Duration::days(365));
        let key = KeyPair::generate().context(format_args!("making the key of {what}"))?;
        let cert = params.signed_by(&key, &self.issuer).context(format_args!("making {what}"))?;
        files.write(&cert.pem(), &key)
    }
}

/// An hour back, for clocks that are late.
fn validity(for_: Duration) -> (OffsetDateTime, OffsetDateTime) {
    let now = OffsetDateTime::now_utc();
    (now - Duration::hours(1), now + for_)
}

/// Can be read, is valid for another day, belongs to the key, and is what the caller wants.
fn fits(pem: &str, key: &KeyPair, wanted: impl FnOnce(&X509Certificate<'_>) -> bool) -> bool {
    let Ok(der) = CertificateDer::from_pem_slice(pem.as_bytes()) else { return false };
    let Ok((_, cert)) = X509Certificate::from_der(&der) else { return false };
    let (not_before, not_after) = (cert.validity().not_before.timestamp(), cert.validity().not_after.timestamp());
    let now = OffsetDateTime::now_utc();
    not_before <= now.unix_timestamp()
        && not_after > (now + Duration::days(1)).unix_timestamp()
        && cert.public_key().raw == key.subject_public_key_info()
        && wanted(&cert)
}

fn san(host: &str) -> Result<SanType, Error> {
    Ok(match host.parse::<IpAddr>() {
        Ok(address) => SanType::IpAddress(address),
        Err(_) => SanType::DnsName(host.try_into().context(host)?),
    })
}

fn is_for(cert: &X509Certificate<'_>, host: &str) -> bool {
    let Ok(Some(names)) = cert.subject_alternative_name() else { return false };
    names.value.general_names.iter().any(|name| match name {
        GeneralName::DNSName(name) => *name == host,
        GeneralName::IPAddress([a, b, c, d]) => host == IpAddr::from([*a, *b, *c, *d]).to_string(),
        GeneralName::IPAddress(bytes) => {
            <[u8; 16]>::try_from(*bytes).is_ok_and(|bytes| host == IpAddr::from(bytes).to_string())
        }
        _ => false,
    })
}
