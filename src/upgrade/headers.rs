//! Facts of a `HeaderMap`.

use http::{
    Extensions, HeaderMap, Version,
    header::{AsHeaderName, CONNECTION, UPGRADE},
};

/// The elements of a comma-separated list: repeated lines and joined ones are the same list.
pub(crate) fn list(headers: &HeaderMap, name: impl AsHeaderName) -> impl Iterator<Item = &str> {
    headers
        .get_all(name)
        .into_iter()
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(','))
        .map(str::trim)
        .filter(|element| !element.is_empty())
}

/// Whether a request asks to switch protocols, and still can: HTTP/1.1, `Connection: upgrade`, and nobody has taken
/// the client's side out of it.
pub(crate) fn is_upgrade(version: Version, headers: &HeaderMap, extensions: &Extensions) -> bool {
    version == Version::HTTP_11
        && list(headers, CONNECTION).any(|token| token.eq_ignore_ascii_case("upgrade"))
        && headers.contains_key(UPGRADE)
        && super::io::has_side(extensions)
}

/// Whether a leaf can answer `101`: the request is an upgrade, or it was one until a layer above took the client's side
/// to adapt it.
pub(crate) fn can_switch(version: Version, headers: &HeaderMap, extensions: &Extensions) -> bool {
    let asks = list(headers, CONNECTION).any(|token| token.eq_ignore_ascii_case("upgrade"));
    is_upgrade(version, headers, extensions) || asks && super::io::was_taken(extensions)
}

/// Whether `Upgrade` names `websocket`, alone or in a list (RFC 6455, 4.2.1: "containing the value"). Upstream wants the
/// first line to be nothing else (`wsstream.IsWebSocketRequest`), and so refuses a list at every hop.
pub(crate) fn is_websocket(headers: &HeaderMap) -> bool {
    upgrade_names(headers, "websocket")
}

/// Whether `Upgrade` names that protocol, in any case.
pub(crate) fn upgrade_names(headers: &HeaderMap, protocol: &str) -> bool {
    list(headers, UPGRADE).any(|token| token.eq_ignore_ascii_case(protocol))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn websocket_is_told_by_any_element_of_upgrade() {
        for (lines, is) in [
            (&["websocket"][..], true),
            (&["WebSocket"], true),
            (&["websocket, foo"], true),
            (&["SPDY/3.1", "websocket"], true),
            (&["websockets"], false),
            (&["websocket/13"], false),
            (&["SPDY/3.1"], false),
            (&[""], false),
            (&[], false),
        ] {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append(UPGRADE, HeaderValue::from_static(line));
            }
            assert_eq!(is_websocket(&headers), is, "{lines:?}");
        }
    }
}
