//! The cryptography. Only here is a provider named.

use std::sync::Arc;

use tokio_rustls::rustls::crypto::{CryptoProvider, ring};

/// What all randomness and cryptography of the examples comes from. AES-128 is preferred, as in Go and so by kubectl;
/// rustls' own preference, AES-256, computes two fifths more rounds.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    let mut provider = ring::default_provider();
    provider.cipher_suites.sort_by_key(|suite| suite.suite().as_str().is_none_or(|name| !name.contains("AES_128")));
    Arc::new(provider)
}
