//! Which web pages may open a stream with a browser's cookie.
//!
//! A browser sends its cookies along with a WebSocket handshake of any page, and no same-origin policy keeps the page from
//! reading what comes back (cross-site WebSocket hijacking; RFC 6455, 10.2). A bearer token has no such trouble: the page
//! must know it. kubectl sends neither header.

use http::{
    HeaderMap, Uri,
    header::{COOKIE, HOST, HeaderName, ORIGIN},
};

/// Whether a request carries a cookie and comes from a page that is neither the server's own nor in `allowed`.
///
/// A page is the server's own if its origin names the host and port of the request. The schemes are not compared: behind
/// something that ends TLS the server does not know its own.
pub(super) fn is_cross_site(allowed: &[String], uri: &Uri, headers: &HeaderMap) -> bool {
    if !headers.contains_key(ORIGIN) || !headers.contains_key(COOKIE) {
        return false;
    }
    let Some(origin) = only(headers, &ORIGIN) else { return true };
    let host = uri.authority().map(|authority| authority.as_str()).or_else(|| only(headers, &HOST));
    let known = allowed.iter().any(|allowed| allowed.eq_ignore_ascii_case(origin));
    !known && !host.is_some_and(|host| is_own(origin, host))
}

fn is_own(origin: &str, host: &str) -> bool {
    let Some((scheme, authority)) = origin.split_once("://") else { return false };
    // A browser leaves the default port out of `Origin`; who wrote `Host` may not.
    let default = match scheme {
        "https" => ":443",
        "http" => ":80",
        _ => return false,
    };
    let [authority, host] = [authority, host].map(|given| given.strip_suffix(default).unwrap_or(given));
    !authority.is_empty() && authority.eq_ignore_ascii_case(host)
}

/// The value of a header that must not be repeated.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut lines = headers.get_all(name).into_iter();
    let line = lines.next().filter(|_| lines.next().is_none())?;
    line.to_str().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether a page is refused; lines are `name: value`.
    fn refused(uri: &str, lines: &[&str]) -> bool {
        let mut headers = HeaderMap::new();
        for line in lines {
            let (name, value) = line.split_once(": ").expect("a header line");
            headers.append(HeaderName::from_bytes(name.as_bytes()).expect("a name"), value.parse().expect("a value"));
        }
        is_cross_site(&["https://console.example".to_owned()], &uri.parse().expect("a URI"), &headers)
    }

    #[test]
    fn a_cookie_counts_only_from_pages_of_this_host_or_of_an_allowed_origin() {
        let cookie = "cookie: session=1";
        for (host, origin) in [
            ("api.example", "https://api.example"),
            ("API.example:443", "https://api.example"),
            ("api.example:6443", "https://api.example:6443"),
            ("api.example", "http://api.example:80"),
            ("[::1]:8080", "http://[::1]:8080"),
            ("api.example", "https://console.example"),
            ("api.example", "https://Console.Example"),
        ] {
            let (host, origin) = (format!("host: {host}"), format!("origin: {origin}"));
            assert!(!refused("/", &[&host, &origin, cookie]), "{host}, {origin}");
        }
        for (host, origin) in [
            ("api.example", "https://evil.example"),
            ("api.example", "https://api.example.evil"),
            ("api.example", "https://evil.api.example"),
            ("api.example", "https://api.example:8443"),
            ("api.example:80", "https://api.example"),
            ("api.example", "null"),
            ("api.example", "api.example"),
            ("api.example", "chrome-extension://api.example"),
            ("", "https://"),
            ("api.example", "https://console.example/"),
            ("api.example", "http://console.example"),
        ] {
            let (host, origin) = (format!("host: {host}"), format!("origin: {origin}"));
            assert!(refused("/", &[&host, &origin, cookie]), "{host}, {origin}");
        }
    }

    #[test]
    fn without_a_cookie_or_without_a_page_nothing_is_refused() {
        assert!(!refused("/", &["host: api.example", "origin: https://evil.example"]));
        assert!(!refused("/", &["host: api.example", "cookie: session=1"]));
    }

    #[test]
    fn headers_that_are_repeated_or_missing_prove_nothing() {
        let (own, evil) = ("origin: https://api.example", "origin: https://evil.example");
        for lines in [&[own, evil, "host: api.example"][..], &[own], &[own, "host: api.example", "host: evil.example"]]
        {
            assert!(refused("/", &[lines, &["cookie: session=1"]].concat()), "{lines:?}");
        }
        // The authority of the request line counts before `Host` (RFC 9112, 3.2.2).
        let lines = ["host: api.example", own, "cookie: session=1"];
        assert!(refused("https://other.example/", &lines));
        assert!(!refused("https://api.example/", &lines));
    }
}
