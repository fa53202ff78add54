use super::*;

fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in lines {
        headers.append(*name, HeaderValue::from_static(value));
    }
    headers
}

const REQUEST: [(&str, &str); 4] = [
    ("upgrade", "WebSocket"),
    ("connection", "keep-alive, Upgrade"),
    ("sec-websocket-version", "13"),
    ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
];

fn check(lines: &[(&'static str, &'static str)]) -> Option<RequestError> {
    check_request(&Method::GET, Version::HTTP_11, &headers(lines)).err()
}

#[test]
fn the_key_of_the_rfc_is_accepted_as_the_rfc_says() {
    let headers = headers(&REQUEST);
    let key = check_request(&Method::GET, Version::HTTP_11, &headers).expect("valid");
    assert_eq!(accept_key(key), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
}

#[test]
fn each_broken_request_is_named() {
    assert_eq!(check(&REQUEST), None);
    let without = |name| REQUEST.iter().copied().filter(|line| line.0 != name).collect::<Vec<_>>();
    let with = |name, value| [without(name), vec![(name, value)]].concat();
    for (lines, error) in [
        (without("upgrade"), RequestError::Upgrade),
        (with("upgrade", "websockets"), RequestError::Upgrade),
        (without("connection"), RequestError::Connection),
        (with("connection", "upgraded"), RequestError::Connection),
        (without("sec-websocket-version"), RequestError::Version),
        (with("sec-websocket-version", "8"), RequestError::Version),
        (without("sec-websocket-key"), RequestError::Key),
        (with("sec-websocket-key", "c2hvcnQ="), RequestError::Key),
        (with("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ"), RequestError::Key),
        ([&REQUEST[..], &[("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")]].concat(), RequestError::Key),
    ] {
        assert_eq!(check(&lines), Some(error), "{lines:?}");
        assert_eq!(error.status(), StatusCode::BAD_REQUEST);
    }
    let request = headers(&REQUEST);
    let error = check_request(&Method::POST, Version::HTTP_11, &request).expect_err("a POST");
    assert_eq!((error, error.status().as_u16()), (RequestError::Method, 405));
    assert_eq!(check_request(&Method::GET, Version::HTTP_2, &request).err(), Some(RequestError::HttpVersion));
}

#[test]
fn offers_are_split_and_the_first_line_stands_alone() {
    let headers = headers(&[("sec-websocket-protocol", " a,, b "), ("sec-websocket-protocol", "v5.channel.k8s.io")]);
    assert_eq!(offers(&headers).collect::<Vec<_>>(), ["a", "b", "v5.channel.k8s.io"]);
    assert_eq!(offers_in_first_line(&headers).collect::<Vec<_>>(), ["a", "b"]);
}

const RESPONSE: [(&str, &str); 4] = [
    ("upgrade", "websocket"),
    ("connection", "Upgrade"),
    ("sec-websocket-accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="),
    ("sec-websocket-protocol", "v5"),
];

fn check_101(
    lines: &[(&'static str, &'static str)],
    offered: &[&'static str],
) -> Result<Option<&'static str>, ResponseError> {
    let key = HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ==");
    check_response(StatusCode::SWITCHING_PROTOCOLS, &headers(lines), &key, offered)
}

#[test]
fn a_response_must_echo_exactly_one_offer() {
    assert_eq!(check_101(&RESPONSE, &["v4", "v5"]), Ok(Some("v5")));
    assert_eq!(check_101(&RESPONSE, &["v4"]), Err(ResponseError::Protocol));
    assert_eq!(check_101(&RESPONSE, &[]), Err(ResponseError::Protocol));
    assert_eq!(check_101(&RESPONSE[..3], &["v5"]), Err(ResponseError::Protocol));
    assert_eq!(check_101(&RESPONSE[..3], &[]), Ok(None));
    let empty = [&RESPONSE[..3], &[("sec-websocket-protocol", "")]].concat();
    assert_eq!(check_101(&empty, &[]), Ok(None));
    let twice = [&RESPONSE[..], &[("sec-websocket-protocol", "v5")]].concat();
    assert_eq!(check_101(&twice, &["v5"]), Err(ResponseError::Protocol));
}

#[test]
fn each_broken_response_is_named() {
    let with = |name, value| {
        let mut lines: Vec<_> = RESPONSE.iter().copied().filter(|line| line.0 != name).collect();
        lines.push((name, value));
        lines
    };
    for (lines, error) in [
        (with("upgrade", "SPDY/3.1"), ResponseError::Upgrade),
        (with("connection", "close"), ResponseError::Connection),
        (with("sec-websocket-accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOO="), ResponseError::Accept),
        (with("sec-websocket-extensions", "permessage-deflate"), ResponseError::Extension),
    ] {
        assert_eq!(check_101(&lines, &["v5"]), Err(error));
    }
    let key = HeaderValue::from_static("x");
    assert_eq!(
        check_response(StatusCode::FORBIDDEN, &HeaderMap::new(), &key, &[]),
        Err(ResponseError::Status(StatusCode::FORBIDDEN))
    );
}
