//! Feature-gated implementations of the seams on other people's crates.

#[cfg(feature = "cri")]
pub mod cri;
#[cfg(feature = "kube")]
pub mod kube;
#[cfg(feature = "prometheus")]
pub mod prometheus;
#[cfg(feature = "rustls")]
pub mod rustls;
