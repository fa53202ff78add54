//! Names and values of SYN_STREAM, SYN_REPLY and HEADERS (SPDY/3 draft, section 2.6.10).

use std::fmt;

use super::error::Error;

/// Which headers a peer may not send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Request,
    Reply,
}

const CONNECTION_HEADERS: [&[u8]; 4] = [b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding"];

/// The headers of one frame, in the peer's order. They were checked when they came in: names are in lower case, and
/// every length was inside the block.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Headers {
    /// The block without its count: length, name, length, value, ...
    block: Box<[u8]>,
}

impl Headers {
    /// Checks a whole inflated block.
    pub(crate) fn parse(mut plain: Vec<u8>, max_headers: usize, direction: Direction) -> Result<Self, Error> {
        let mut rest = plain.as_slice();
        let count = take_u32(&mut rest)? as usize;
        if count > max_headers {
            return Err(Error::limit("too many headers"));
        }
        for _ in 0..count {
            let name = take_string(&mut rest)?;
            take_string(&mut rest)?;
            if name.iter().any(u8::is_ascii_uppercase) {
                return Err(Error::protocol("header name with upper-case letters"));
            }
            if CONNECTION_HEADERS.contains(&name) || direction == Direction::Request && name == b"host" {
                return Err(Error::protocol("header that belongs to an HTTP connection"));
            }
        }
        if !rest.is_empty() {
            return Err(Error::protocol("header block longer than its headers"));
        }
        plain.drain(..4);
        Ok(Self { block: plain.into() })
    }

    /// The first value of `name`, in any case of letters.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        let name = name.as_bytes();
        let (_, values) = self.iter().find(|(candidate, _)| candidate.eq_ignore_ascii_case(name))?;
        values.split(|&byte| byte == 0).next()
    }

    /// Names and values. Several values of one name are joined by NUL.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let mut rest = &*self.block;
        std::iter::from_fn(move || {
            let name = take_string(&mut rest).ok()?;
            let value = take_string(&mut rest).ok()?;
            Some((name, value))
        })
    }

    /// There are none, or they were not read.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.block.is_empty()
    }
}

impl fmt::Debug for Headers {
    /// Names only: values may be the user's.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter().map(|(name, _)| String::from_utf8_lossy(name))).finish()
    }
}

fn take_u32(rest: &mut &[u8]) -> Result<u32, Error> {
    let (bytes, after) = rest.split_first_chunk().ok_or_else(truncated)?;
    *rest = after;
    Ok(u32::from_be_bytes(*bytes))
}

fn take_string<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], Error> {
    let len = take_u32(rest)? as usize;
    // A known bug for the fuzz target `spdy_header_block` to find: a length beyond the block is cut, not refused.
    #[cfg(planted)]
    let len = len.min(rest.len());
    let (bytes, after) = rest.split_at_checked(len).ok_or_else(truncated)?;
    *rest = after;
    Ok(bytes)
}

fn truncated() -> Error {
    Error::protocol("header block shorter than its headers")
}

/// Writes the plain block. Names are written in lower case.
pub(crate) fn write_plain(headers: &[(&str, &str)], out: &mut Vec<u8>) {
    out.extend_from_slice(&(headers.len() as u32).to_be_bytes());
    for (name, value) in headers {
        out.extend_from_slice(&(name.len() as u32).to_be_bytes());
        out.extend(name.bytes().map(|byte| byte.to_ascii_lowercase()));
        out.extend_from_slice(&(value.len() as u32).to_be_bytes());
        out.extend_from_slice(value.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(plain: &[u8]) -> Result<Headers, Error> {
        Headers::parse(plain.to_vec(), 256, Direction::Request)
    }

    #[test]
    fn names_are_written_in_lower_case_and_found_in_any() {
        let mut plain = Vec::new();
        write_plain(&[("streamType", "data"), ("requestID", "7")], &mut plain);
        let headers = parse(&plain).unwrap();
        assert_eq!(headers.get("STREAMTYPE"), Some(&b"data"[..]));
        assert_eq!(headers.get("requestid"), Some(&b"7"[..]));
        assert_eq!(headers.get("port"), None);
        assert_eq!(format!("{headers:?}"), r#"["streamtype", "requestid"]"#);
    }

    #[test]
    fn of_several_values_the_first_is_got() {
        let mut plain = Vec::new();
        write_plain(&[("port", "80\x0081")], &mut plain);
        assert_eq!(parse(&plain).unwrap().get("port"), Some(&b"80"[..]));
    }

    #[test]
    fn a_count_of_four_billion_allocates_nothing() {
        assert!(parse(&[0xff; 4]).unwrap_err().is_limit());
    }

    #[test]
    fn a_length_beyond_the_block_is_an_error() {
        assert!(parse(&[0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff, b'a']).unwrap_err().is_protocol());
        assert!(parse(&[0, 0, 0, 1, 0, 0, 0, 2, b'a']).unwrap_err().is_protocol());
        assert!(parse(&[0, 0, 0, 1]).unwrap_err().is_protocol());
        assert!(parse(&[]).unwrap_err().is_protocol());
    }

    #[test]
    fn bytes_behind_the_headers_are_an_error() {
        assert!(parse(&[0, 0, 0, 0, 0]).unwrap_err().is_protocol());
    }

    #[test]
    fn forbidden_names_are_errors() {
        for name in ["connection", "keep-alive", "proxy-connection", "transfer-encoding", "host"] {
            let mut plain = Vec::new();
            write_plain(&[(name, "x")], &mut plain);
            assert!(parse(&plain).unwrap_err().is_protocol(), "{name}");
            let reply = Headers::parse(plain, 256, Direction::Reply);
            assert_eq!(reply.is_ok(), name == "host", "{name}");
        }
        assert!(parse(b"\0\0\0\x01\0\0\0\x01A\0\0\0\0").unwrap_err().is_protocol());
    }
}
