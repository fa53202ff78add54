//! Which proxy a server is reached through.

use std::{env, error, fmt, net::IpAddr};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use http::{HeaderValue, Uri};
use percent_encoding::percent_decode_str;

use super::no_proxy::NoProxy;
use crate::upgrade::default_port;

/// Longest user name and password of SOCKS5 (RFC 1929).
const SOCKS_CREDENTIAL: usize = 255;

/// A proxy: `http://`, `https://` or `socks5://`, with or without credentials, which neither `Display` nor `Debug` shows.
#[derive(Clone)]
pub struct Proxy {
    pub(super) kind: Kind,
    /// Host and port, without credentials.
    pub(super) authority: String,
    pub(super) credentials: Option<Credentials>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Http,
    Https,
    Socks5,
}

#[derive(Clone, PartialEq, Eq)]
pub(super) struct Credentials {
    pub(super) user: String,
    pub(super) password: String,
}

impl Proxy {
    /// Reads a URL. Without a scheme it is `http`; ports are 80, 443 and 1080 unless named. Credentials are percent-decoded.
    ///
    /// # Errors
    ///
    /// What is wrong with it, without repeating it.
    pub fn new(url: &str) -> Result<Self, ProxyError> {
        let wrong = |why| Err(ProxyError { place: None, why });
        let (scheme, _) = url.split_once("://").unwrap_or(("http", ""));
        let (kind, port) = match scheme.to_ascii_lowercase().as_str() {
            "http" => (Kind::Http, 80),
            "https" => (Kind::Https, 443),
            // Names are left to the proxy in both, as Go does.
            "socks5" | "socks5h" => (Kind::Socks5, 1080),
            _ => return wrong("its scheme is not http, https or socks5"),
        };
        let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
        let Ok(uri) = format!("http://{rest}").parse::<Uri>() else { return wrong("it is no URL") };
        let Some(authority) = uri.authority().filter(|authority| !authority.host().is_empty()) else {
            return wrong("it has no host");
        };
        let host = authority.host();
        // `Uri` takes a port that is none for no port.
        let named = authority.as_str().rsplit_once('@').map_or(authority.as_str(), |(_, host)| host) != host;
        let port = match authority.port_u16() {
            Some(port) => port,
            None if named => return wrong("its port is none"),
            None => port,
        };
        let credentials = match authority.as_str().rsplit_once('@') {
            Some((credentials, _)) => Some(Credentials::read(credentials, kind)?),
            None => None,
        };
        Ok(Self { kind, authority: format!("{host}:{port}"), credentials })
    }

    /// What a CONNECT tells of the credentials.
    pub(super) fn basic(&self) -> Option<HeaderValue> {
        let Credentials { user, password } = self.credentials.as_ref()?;
        let basic = format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}")));
        let mut basic = HeaderValue::from_str(&basic).expect("base64 is a header value");
        basic.set_sensitive(true);
        Some(basic)
    }
}

impl Credentials {
    fn read(text: &str, kind: Kind) -> Result<Self, ProxyError> {
        let (user, password) = text.split_once(':').unwrap_or((text, ""));
        let decode = |text| percent_decode_str(text).decode_utf8().map(std::borrow::Cow::into_owned);
        let (Ok(user), Ok(password)) = (decode(user), decode(password)) else {
            return Err(ProxyError { place: None, why: "its credentials are not UTF-8" });
        };
        if kind == Kind::Socks5 && user.len().max(password.len()) > SOCKS_CREDENTIAL {
            return Err(ProxyError { place: None, why: "its credentials are longer than SOCKS5 can say" });
        }
        Ok(Self { user, password })
    }
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.kind {
            Kind::Http => "http",
            Kind::Https => "https",
            Kind::Socks5 => "socks5",
        };
        write!(f, "{scheme}://{}", self.authority)
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proxy({self})")
    }
}

/// Which proxy a server is reached through, if any.
#[derive(Clone, Debug, Default)]
pub struct Proxies {
    http: Option<Proxy>,
    https: Option<Proxy>,
    no: NoProxy,
    /// It was asked for by name: this host is no exception.
    explicit: bool,
}

impl Proxies {
    /// None at all.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// That one for every server, this host included, as Go does with a kubeconfig's `proxy-url`. Environment variables
    /// do not count.
    #[must_use]
    pub fn explicit(proxy: Proxy) -> Self {
        Self { http: Some(proxy.clone()), https: Some(proxy), no: NoProxy::default(), explicit: true }
    }

    /// As Go's `http.ProxyFromEnvironment`: `HTTPS_PROXY` for `https` servers, `HTTP_PROXY` for `http`, `NO_PROXY` for
    /// those that have none, or their names in lower case; `ALL_PROXY` is not looked at. `localhost` and loopback addresses
    /// are never reached through a proxy. `HTTP_PROXY` is ignored where `REQUEST_METHOD` is set, for in a CGI script it
    /// is the client's.
    ///
    /// `NO_PROXY` is a list that is separated by commas: `*` for all; networks such as `10.0.0.0/8`; addresses and names,
    /// with or without a port. A name is for its subdomains too, and with `.` in front for those alone.
    ///
    /// # Errors
    ///
    /// A variable is no URL of a proxy. Go goes without one then.
    pub fn from_env() -> Result<Self, ProxyError> {
        Self::from_variables(|name| env::var(name).ok())
    }

    /// As [`from_env`](Self::from_env), with variables from elsewhere.
    ///
    /// # Errors
    ///
    /// As [`from_env`](Self::from_env).
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Self, ProxyError> {
        let first = |names: [&'static str; 2]| {
            let set = |name| variable(name).filter(|value| !value.is_empty()).map(|value| (name, value));
            names.into_iter().find_map(set)
        };
        let proxy = |names| {
            let Some((name, url)) = first(names) else { return Ok(None) };
            Proxy::new(&url).map(Some).map_err(|error| ProxyError { place: Some(name), ..error })
        };
        let https = proxy(["HTTPS_PROXY", "https_proxy"])?;
        let in_cgi = variable("REQUEST_METHOD").is_some_and(|value| !value.is_empty());
        let http = if in_cgi { None } else { proxy(["HTTP_PROXY", "http_proxy"])? };
        let no = first(["NO_PROXY", "no_proxy"]).map(|(_, list)| NoProxy::read(&list)).unwrap_or_default();
        Ok(Self { http, https, no, explicit: false })
    }

    /// Excludes what the list says as well, which is written as `NO_PROXY`.
    #[must_use]
    pub fn except(mut self, list: &str) -> Self {
        self.no = NoProxy::read(list);
        self
    }

    /// The proxy for `uri`.
    #[must_use]
    pub fn of(&self, uri: &Uri) -> Option<&Proxy> {
        let proxy = if uri.scheme_str() == Some("https") { &self.https } else { &self.http };
        let host = uri.host()?;
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let excluded = !self.explicit && is_here(host)
            || self.no.excludes(host, uri.port_u16().unwrap_or_else(|| default_port(uri)));
        proxy.as_ref().filter(|_| !excluded)
    }
}

/// Whether that is this host.
fn is_here(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost") || host.parse().is_ok_and(|address: IpAddr| address.is_loopback())
}

/// Why a proxy cannot be used. What was written is not repeated, for it may hold a password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyError {
    /// The variable that it is in.
    place: Option<&'static str>,
    why: &'static str,
}

impl fmt::Display for ProxyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.place {
            Some(place) => write!(f, "invalid proxy in {place}: {}", self.why),
            None => write!(f, "invalid proxy: {}", self.why),
        }
    }
}

impl error::Error for ProxyError {}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that panics has failed, as it should")]
mod tests {
    use super::*;

    fn through(variables: &[(&str, &str)], uri: &str) -> Option<String> {
        let variable =
            |name: &str| variables.iter().find(|(set, _)| *set == name).map(|(_, value)| (*value).to_owned());
        let proxies = Proxies::from_variables(variable).unwrap();
        proxies.of(&uri.parse().unwrap()).map(ToString::to_string)
    }

    #[test]
    fn variables_are_read_as_go_does() {
        let both = [("HTTP_PROXY", "http.example"), ("https_proxy", "socks5h://[::1]"), ("ALL_PROXY", "http://x")];
        assert_eq!(through(&both, "http://a").unwrap(), "http://http.example:80");
        assert_eq!(through(&both, "https://a").unwrap(), "socks5://[::1]:1080");
        assert_eq!(through(&[("ALL_PROXY", "http://x")], "http://a"), None);
        let upper = [("http_proxy", "lower"), ("HTTP_PROXY", "HTTPS://upper:1")];
        assert_eq!(through(&upper, "http://a").unwrap(), "https://upper:1");
        assert_eq!(through(&[("HTTP_PROXY", ""), ("http_proxy", "lower:8")], "http://a").unwrap(), "http://lower:8");
        assert_eq!(through(&[("HTTP_PROXY", "evil"), ("REQUEST_METHOD", "GET")], "http://a"), None);
        let no = [("HTTPS_PROXY", "p"), ("no_proxy", "a:6443,::2")];
        assert_eq!(through(&no, "https://a:6443"), None);
        assert_eq!(through(&no, "https://[::2]"), None);
        assert_eq!(through(&no, "https://a").unwrap(), "http://p:80");
    }

    #[test]
    fn this_host_is_reached_directly_unless_a_proxy_was_asked_for_by_name() {
        for uri in ["http://localhost:1", "http://127.8.0.1", "http://[::1]:1"] {
            assert_eq!(through(&[("HTTP_PROXY", "p")], uri), None);
            let explicit = Proxies::explicit(Proxy::new("p").unwrap());
            assert!(explicit.of(&uri.parse().unwrap()).is_some());
            assert!(explicit.except("127.0.0.0/8,[::1]:1,localhost").of(&uri.parse().unwrap()).is_none());
        }
    }

    #[test]
    fn credentials_are_decoded_and_never_shown() {
        let proxy = Proxy::new("http://us%65r:p%40ss%3A@proxy:3128/ignored").unwrap();
        let Credentials { user, password } = proxy.credentials.clone().unwrap();
        assert_eq!((user.as_str(), password.as_str()), ("user", "p@ss:"));
        let header = proxy.basic().unwrap();
        assert_eq!(header, "Basic dXNlcjpwQHNzOg==");
        let shown = format!("{proxy} {proxy:?} {header:?} {:?}", Proxies::explicit(proxy.clone()));
        assert!(!shown.contains("user") && !shown.contains("p@ss") && !shown.contains("dXNl"), "{shown}");
        assert_eq!(Proxy::new("http://user@p").unwrap().basic().unwrap(), "Basic dXNlcjo=");
    }

    #[test]
    fn what_is_no_proxy_is_an_error_that_does_not_repeat_it() {
        let long = format!("socks5://{}@p", "s".repeat(256));
        for url in ["ftp://s:s@p", "http://", "http://s s", "http://s:s@", "http://s@p:99999", "http://%ff:s@p", &long]
        {
            let error = Proxies::from_variables(|name| (name == "HTTP_PROXY").then(|| url.to_owned())).unwrap_err();
            let text = error.to_string();
            assert!(text.starts_with("invalid proxy in HTTP_PROXY: ") && !text.contains("://"), "{text}");
        }
    }
}
