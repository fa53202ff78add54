//! Reaches servers through proxies: HTTP CONNECT, over TLS too, and SOCKS5.
//!
//! [`Proxies`] says which proxy a server is reached through, from the usual environment variables or an explicit URL.
//! [`ProxyConnect`] reaches it. For TLS to the server, put `adapters::rustls::TlsConnect` on top
//! (`TlsConnect::over(ProxyConnect::new(proxies), config)`): the proxy then sees nothing but bytes. A proxy that itself
//! wants TLS is dialled by a `TlsConnect` of its own ([`ProxyConnect::over`]).
//!
//! ```
//! use http::Uri;
//! use tower_kube_streaming::client::transport::{ProxyConnect, Proxies};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let variables = |name: &str| match name {
//!     "HTTPS_PROXY" => Some("http://me:secret@proxy.example:3128".to_owned()),
//!     "NO_PROXY" => Some("10.0.0.0/8,.internal,api.example:6443".to_owned()),
//!     _ => None,
//! };
//! let proxies = Proxies::from_variables(variables)?; // or `Proxies::from_env()?`
//! let through = |uri: &'static str| proxies.of(&Uri::from_static(uri)).map(ToString::to_string);
//! assert_eq!(through("https://cluster.example:6443").as_deref(), Some("http://proxy.example:3128"));
//! assert_eq!(through("https://api.example:6443"), None);
//! assert_eq!(through("https://10.1.2.3:6443"), None);
//! assert_eq!(through("https://127.0.0.1:6443"), None);
//! let connect = ProxyConnect::new(proxies);
//! # let _ = connect; Ok(()) }
//! ```

mod connect;
mod no_proxy;
mod proxies;

pub use connect::{ByteStream, ProxyConnect};
pub use proxies::{Proxies, Proxy, ProxyError};
