//! Pages for who comes from elsewhere, and for who operates what is here.

#[doc = include_str!("fallback.md")]
pub mod fallback {}

#[doc = include_str!("from_kube_rs.md")]
pub mod from_kube_rs {}
