//! The W3C Trace Context that a request brings along: passed on as it came, or not at all.

use http::{HeaderMap, HeaderName};

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// The id of the trace that the request is a part of: 32 hexadecimal digits. `None` without a valid `traceparent`.
pub(crate) fn trace_id(headers: &HeaderMap) -> Option<&str> {
    let mut lines = headers.get_all(TRACEPARENT).iter();
    let (Some(line), None) = (lines.next(), lines.next()) else { return None };
    parse(line.to_str().ok()?)
}

/// Takes the trace context out unless it is valid, so that nobody behind us is told what we could not read.
pub(crate) fn drop_malformed(headers: &mut HeaderMap) {
    if trace_id(headers).is_none() {
        headers.remove(TRACEPARENT);
        // It means nothing alone.
        headers.remove(TRACESTATE);
    }
}

/// The trace id of `version-traceid-parentid-flags`, in lower case (Trace Context, 3.2). A version that we do not know
/// may have more behind these; we cannot vouch for that, so it is malformed to us.
fn parse(traceparent: &str) -> Option<&str> {
    let mut parts = traceparent.split('-');
    let mut hex = |digits: usize| {
        let is_hex = |part: &&str| part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        parts.next().filter(|part| part.len() == digits).filter(is_hex)
    };
    let (version, trace, parent, _flags) = (hex(2)?, hex(32)?, hex(16)?, hex(2)?);
    let is_zero = |id: &str| id.bytes().all(|digit| digit == b'0');
    (parts.next().is_none() && version != "ff" && !is_zero(trace) && !is_zero(parent)).then_some(trace)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    const ID: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

    fn headers(lines: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(TRACESTATE, HeaderValue::from_static("vendor=1"));
        for line in lines {
            headers.append(TRACEPARENT, HeaderValue::from_bytes(line.as_bytes()).unwrap());
        }
        headers
    }

    #[test]
    fn a_valid_context_is_kept_as_it_came_and_names_its_trace() {
        for (version, flags) in [("00", "01"), ("00", "00"), ("cc", "ff")] {
            let line = format!("{version}-{ID}-00f067aa0ba902b7-{flags}");
            let mut headers = headers(&[&line]);
            assert_eq!(trace_id(&headers), Some(ID));
            drop_malformed(&mut headers);
            assert_eq!(headers[TRACEPARENT], line);
            assert_eq!(headers[TRACESTATE], "vendor=1");
        }
    }

    #[test]
    fn a_malformed_context_is_taken_out_with_its_state() {
        let valid = format!("00-{ID}-00f067aa0ba902b7-01");
        let zero = "0".repeat(32);
        let malformed = [
            String::new(),
            "x".repeat(55),
            format!("ff-{ID}-00f067aa0ba902b7-01"),
            format!("00-{zero}-00f067aa0ba902b7-01"),
            format!("00-{ID}-0000000000000000-01"),
            format!("00-{}-00f067aa0ba902b7-01", ID.to_uppercase()),
            format!("00-{ID}-00f067aa0ba902b7-0g"),
            format!("00-{ID}-00f067aa0ba902b7-1"),
            format!("00-{ID}-00f067aa0ba902b7"),
            format!("0-{ID}0-00f067aa0ba902b7-01"),
            format!("00_{ID}-00f067aa0ba902b7-01"),
            format!("{valid}-more"),
            format!("{valid}-"),
            format!(" {valid}"),
            format!("{valid},{valid}"),
            "00-4bf92f3577b34da6a3ce929d0e0e473\u{e9}-00f067aa0ba902b7-01".to_owned(),
        ];
        for line in &malformed {
            let mut headers = headers(&[line]);
            assert_eq!(trace_id(&headers), None, "{line:?}");
            drop_malformed(&mut headers);
            assert!(headers.is_empty(), "{line:?}");
        }
        for lines in [&[][..], &[&*valid, &*valid]] {
            let mut headers = headers(lines);
            assert_eq!(trace_id(&headers), None, "{lines:?}");
            drop_malformed(&mut headers);
            assert!(headers.is_empty(), "{lines:?}");
        }
    }
}
