//! Facts of a `HeaderMap`.

use http::{
    Extensions, HeaderMap, Version,
    header::{AsHeaderName, CONNECTION, UPGRADE},
    request,
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
pub(crate) fn can_switch(request: &request::Parts) -> bool {
    let request::Parts { version, headers, extensions, .. } = request;
    let asks = list(headers, CONNECTION).any(|token| token.eq_ignore_ascii_case("upgrade"));
    is_upgrade(*version, headers, extensions) || asks && super::io::was_taken(extensions)
}

/// Whether `Upgrade` is exactly `websocket`.
pub(crate) fn is_websocket(headers: &HeaderMap) -> bool {
    upgrade_names(headers, "websocket")
}

/// Whether `Upgrade` names that protocol, in any case.
pub(crate) fn upgrade_names(headers: &HeaderMap, protocol: &str) -> bool {
    list(headers, UPGRADE).any(|token| token.eq_ignore_ascii_case(protocol))
}
