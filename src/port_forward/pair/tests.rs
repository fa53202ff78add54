use super::*;

fn read(id: u32, headers: &[(&str, &'static str)]) -> Result<StreamHeaders, String> {
    let id = StreamId::new(id).unwrap();
    let header = |name: &str| headers.iter().find(|(known, _)| *known == name).map(|(_, value)| *value);
    StreamHeaders::read(id, header).map_err(|bad| bad.to_string())
}

fn headers(role: Role, port: u16, request: &str) -> StreamHeaders {
    StreamHeaders { role, port: NonZeroU16::new(port).unwrap(), request: request.to_owned() }
}

#[test]
fn headers_are_read_as_client_go_writes_them() {
    let error = read(1, &[("streamtype", "error"), ("port", "80"), ("requestid", "7")]);
    assert_eq!(error, Ok(headers(Role::Error, 80, "7")));
    let data = read(3, &[("streamtype", "data"), ("port", "65535"), ("requestid", "7")]);
    assert_eq!(data, Ok(headers(Role::Data, 65535, "7")));
}

#[test]
fn without_a_request_id_the_data_stream_belongs_to_the_stream_before_it() {
    assert_eq!(read(5, &[("streamtype", "error"), ("port", "80")]).unwrap().request, "5");
    assert_eq!(read(7, &[("streamtype", "data"), ("port", "80"), ("requestid", "")]).unwrap().request, "5");
    assert_eq!(read(1, &[("streamtype", "data"), ("port", "80")]).unwrap().request, "-1");
}

#[test]
fn bad_headers_are_refused_in_upstreams_words() {
    let port = |port| read(1, &[("streamtype", "data"), ("port", port)]).unwrap_err();
    let parsing = |text, why| format!("unable to parse {text:?} as a port: strconv.ParseUint: parsing {text:?}: {why}");
    assert_eq!(read(1, &[("streamtype", "data")]).unwrap_err(), r#""port" header is required"#);
    assert_eq!(port(""), r#""port" header is required"#);
    assert_eq!(port("0"), r#"port "0" must be > 0"#);
    assert_eq!(port("65536"), parsing("65536", "value out of range"));
    for text in ["http", "-1", "+80", "8 0", "0x50", "8_0", "٣"] {
        assert_eq!(port(text), parsing(text, "invalid syntax"));
    }
    assert_eq!(port("99999999999999999999999"), parsing("99999999999999999999999", "value out of range"));
    assert_eq!(read(1, &[("port", "80")]).unwrap_err(), r#""streamType" header is required"#);
    assert_eq!(read(1, &[("port", "80"), ("streamtype", "Data")]).unwrap_err(), r#"invalid stream type "Data""#);
    let long: &'static str = "1".repeat(MAX_REQUEST + 1).leak();
    let refused = read(1, &[("port", "80"), ("streamtype", "data"), ("requestid", long)]);
    assert_eq!(refused.unwrap_err(), "request id longer than 64 bytes");
    let longest: &'static str = &long[1..];
    assert!(read(1, &[("port", "80"), ("streamtype", "data"), ("requestid", longest)]).is_ok());
}

#[tokio::test(start_paused = true)]
async fn two_streams_are_a_pair_in_either_order_and_the_data_streams_port_counts() {
    for first in [Role::Error, Role::Data] {
        let mut pairing = Pairing::new(Duration::from_secs(30));
        let second = if first == Role::Error { Role::Data } else { Role::Error };
        let port = |role| if role == Role::Data { 80 } else { 81 };
        let now = Instant::now();
        assert!(matches!(pairing.add(headers(first, port(first), "0"), first, now), Added::Waiting));
        assert!(matches!(pairing.add(headers(first, 80, "1"), first, now), Added::Waiting));
        let Added::Complete(pair) = pairing.add(headers(second, port(second), "0"), second, now) else {
            panic!("not paired")
        };
        assert_eq!((pair.error, pair.data, pair.port.get()), (Role::Error, Role::Data, 80));
        assert_eq!(pair.request, "0");
        // Its id may be used again.
        assert!(pairing.is_new("0") && !pairing.is_new("1"));
        assert_eq!(pairing.len(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_duplicate_is_given_back_and_the_first_can_still_be_completed() {
    let mut pairing = Pairing::new(Duration::from_secs(30));
    let now = Instant::now();
    assert!(matches!(pairing.add(headers(Role::Error, 80, "0"), 'a', now), Added::Waiting));
    match pairing.add(headers(Role::Error, 80, "0"), 'b', now) {
        Added::Duplicate { first, stream } => assert_eq!((first.stream, stream), ('a', 'b')),
        other => panic!("{other:?}"),
    }
    assert!(matches!(pairing.add(headers(Role::Data, 80, "0"), 'c', now), Added::Complete(pair) if pair.error == 'a'));
}

#[tokio::test(start_paused = true)]
async fn streams_without_their_other_expire_in_their_order() {
    let mut pairing = Pairing::new(Duration::from_secs(30));
    let start = Instant::now();
    assert_eq!(pairing.deadline(), None);
    pairing.add(headers(Role::Error, 80, "a"), 'a', start);
    pairing.add(headers(Role::Data, 80, "b"), 'b', start + Duration::from_secs(1));
    pairing.add(headers(Role::Data, 80, "c"), 'c', start + Duration::from_secs(2));
    assert_eq!(pairing.deadline(), Some(start + Duration::from_secs(30)));
    pairing.retain(|stream| *stream != 'b');
    assert!(pairing.is_new("b"));
    assert!(pairing.expired(start + Duration::from_millis(29_999)).is_none());
    let late = pairing.expired(start + Duration::from_secs(40)).unwrap();
    assert_eq!((late.stream, late.role, late.request.as_str()), ('a', Role::Error, "a"));
    assert_eq!(pairing.expired(start + Duration::from_secs(40)).unwrap().stream, 'c');
    assert!(pairing.expired(start + Duration::from_secs(40)).is_none());
    assert_eq!((pairing.len(), pairing.deadline()), (0, None));
    assert!(pairing.is_new("a"));
}
