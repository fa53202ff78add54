//! The cryptography. Only here is a provider named.

use std::sync::Arc;

use tokio_rustls::rustls::crypto::{CryptoProvider, ring};

/// What all randomness and cryptography of the examples comes from. AES-128 is preferred, as in Go and so by kubectl;
/// rustls' own preference, AES-256, computes two fifths more rounds.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    let mut provider = ring::default_provider();
    provider.cipher_suites.sort_by_key(|suite| suite.suite().as_str().is_none_or(|name| !name.contains("AES_128")));
    #[cfg(target_arch = "x86_64")]
    if encrypts_four_blocks_at_once() {
        use rustls_graviola::suites::TLS13_AES_128_GCM_SHA256 as WIDE;
        for suite in provider.cipher_suites.iter_mut().filter(|suite| suite.suite() == WIDE.suite()) {
            *suite = WIDE;
        }
    }
    Arc::new(provider)
}

/// Whether the processor has what graviola needs to be half as fast again as ring, which takes two blocks.
#[cfg(target_arch = "x86_64")]
fn encrypts_four_blocks_at_once() -> bool {
    is_x86_feature_detected!("adx")
        && is_x86_feature_detected!("aes")
        && is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("bmi1")
        && is_x86_feature_detected!("pclmulqdq")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("vaes")
        && is_x86_feature_detected!("vpclmulqdq")
}
