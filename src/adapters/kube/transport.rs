//! How a kubeconfig's API server is reached.

use std::env;

use crate::client::transport::{Proxies, Proxy, ProxyError};

/// The proxies of a client with that configuration: the kubeconfig's `proxy-url` for every server, else those of the
/// environment, as kubectl has it.
///
/// kube's loader takes `HTTPS_PROXY` for the kubeconfig's when that has none, whatever `NO_PROXY` says. Here a
/// [`proxy_url`](kube::Config::proxy_url) that is the variable's counts as the variable, with `NO_PROXY` and without this
/// host.
///
/// ```no_run
/// use tower_kube_streaming::{adapters::kube::proxies, client::transport::ProxyConnect};
///
/// # async {
/// let config = kube::Config::infer().await?;
/// let transport = ProxyConnect::new(proxies(&config)?);
/// // With kube's feature `rustls-tls`: TlsConnect::over(transport, Arc::new(config.rustls_client_config()?)).
/// # let _ = transport; Ok::<_, Box<dyn std::error::Error>>(()) };
/// ```
///
/// # Errors
///
/// What is configured is no proxy.
pub fn proxies(config: &kube::Config) -> Result<Proxies, ProxyError> {
    proxies_with(config, |name| env::var(name).ok())
}

fn proxies_with(config: &kube::Config, variable: impl Fn(&str) -> Option<String>) -> Result<Proxies, ProxyError> {
    let of_variables = |proxy: &http::Uri| {
        ["HTTPS_PROXY", "https_proxy"]
            .into_iter()
            .filter_map(&variable)
            .any(|value| value.parse().ok().as_ref() == Some(proxy))
    };
    match &config.proxy_url {
        Some(proxy) if !of_variables(proxy) => Ok(Proxies::explicit(Proxy::new(&proxy.to_string())?)),
        _ => Proxies::from_variables(variable),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that panics has failed, as it should")]
mod tests {
    use http::Uri;

    use super::*;

    #[test]
    fn a_kubeconfigs_proxy_is_for_every_server_and_a_variables_is_not() {
        let variable = |name: &str| match name {
            "HTTPS_PROXY" => Some("http://variable:1".to_owned()),
            "NO_PROXY" => Some("excluded".to_owned()),
            _ => None,
        };
        let mut config = kube::Config::new(Uri::from_static("https://cluster"));
        for (proxy, here, excluded, other) in [
            (Some("http://me:secret@own:2"), Some("http://own:2"), Some("http://own:2"), Some("http://own:2")),
            (Some("http://variable:1"), None, None, Some("http://variable:1")),
            (None, None, None, Some("http://variable:1")),
        ] {
            config.proxy_url = proxy.map(Uri::from_static);
            let proxies = proxies_with(&config, variable).unwrap();
            for (uri, through) in [("https://localhost", here), ("https://excluded", excluded), ("https://a", other)] {
                let found = proxies.of(&Uri::from_static(uri)).map(ToString::to_string);
                assert_eq!(found.as_deref(), through, "{proxy:?} {uri}");
            }
        }
        config.proxy_url = Some(Uri::from_static("ftp://own"));
        proxies_with(&config, variable).unwrap_err();
    }
}
