//! The head of a request or an answer, and nothing behind it.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt};

/// Reads a head byte by byte: what follows belongs to another protocol.
///
/// # Errors
///
/// Those of the connection; its end, and a head of more than 64 KiB.
pub async fn read_head<Io: AsyncRead + Unpin>(io: &mut Io) -> io::Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(io.read_u8().await?);
        if head.len() > 64 << 10 {
            return Err(io::Error::other("a head without an end"));
        }
    }
    String::from_utf8(head).map_err(io::Error::other)
}

/// The first value of a header.
#[must_use]
pub fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().skip(1).find_map(|line| {
        let (of, value) = line.split_once(':')?;
        of.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

/// All values of a parameter in the query of a request's head. Percent signs are left as they are.
pub fn parameters<'a>(head: &'a str, name: &'a str) -> impl Iterator<Item = &'a str> {
    let target = head.split_whitespace().nth(1).unwrap_or_default();
    let query = target.split_once('?').map_or("", |(_, query)| query);
    query.split('&').filter_map(move |pair| pair.split_once('=').filter(|(of, _)| *of == name).map(|(_, value)| value))
}
