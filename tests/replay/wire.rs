//! HTTP heads and WebSocket and SPDY frames, by hand: what is replayed must not pass through the code that is tested.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
};

use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncRead, AsyncReadExt};

use super::transcript::{Frame, Http, Spdy};

/// The bytes of a request or an answer.
pub(crate) fn http(http: &Http) -> Vec<u8> {
    let headers: String = http.headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    [format!("{}\r\n{headers}\r\n", http.line).as_bytes(), &http.body].concat()
}

/// Reads a head, without the body.
pub(crate) async fn read_head(from: &mut (impl AsyncBufRead + Unpin)) -> io::Result<Http> {
    let mut head = Http::default();
    loop {
        let mut line = String::new();
        if from.read_line(&mut line).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let line = line.trim_end();
        match line.split_once(':') {
            _ if line.is_empty() => return Ok(head),
            _ if head.line.is_empty() => line.clone_into(&mut head.line),
            Some((name, value)) => head.headers.push((name.to_owned(), value.trim().to_owned())),
            None => return Err(io::Error::new(io::ErrorKind::InvalidData, line.to_owned())),
        }
    }
}

/// Reads what follows an answer's head: as many bytes as it says, or all.
pub(crate) async fn read_body(from: &mut (impl AsyncBufRead + Unpin), head: &Http) -> io::Result<Vec<u8>> {
    let length = head.headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    let mut body = Vec::new();
    match length.and_then(|(_, value)| value.parse::<u64>().ok()) {
        Some(length) => from.take(length).read_to_end(&mut body).await?,
        None => from.read_to_end(&mut body).await?,
    };
    Ok(body)
}

/// The bytes of a WebSocket frame.
pub(crate) fn frame(frame: &Frame) -> Vec<u8> {
    const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
    let length = u8::try_from(frame.payload.len()).ok().filter(|length| *length < 126);
    let mut bytes = vec![
        (u8::from(frame.fin) << 7) | frame.opcode,
        length.expect("recorded messages are short") | (u8::from(frame.masked) << 7),
    ];
    if frame.masked {
        bytes.extend(MASK);
        bytes.extend(frame.payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    } else {
        bytes.extend(&frame.payload);
    }
    bytes
}

/// Reads a WebSocket frame of a server, which masks nothing.
pub(crate) async fn read_frame(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Frame> {
    let first = from.read_u8().await?;
    let length = match from.read_u8().await? {
        126 => usize::from(from.read_u16().await?),
        length @ ..126 => usize::from(length),
        _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "a masked or a very long frame")),
    };
    let mut payload = vec![0; length];
    from.read_exact(&mut payload).await?;
    Ok(Frame { opcode: first & 0x0f, fin: first >> 7 == 1, masked: false, payload })
}

/// The bytes of a SPDY frame that a server sends. `first` of the connection's header blocks also begins the zlib stream:
/// its header, and the checksum of the dictionary.
pub(crate) fn spdy(frame: &Spdy, first: &mut bool) -> Vec<u8> {
    const ZLIB: &[u8] = &[0x78, 0xbb, 0xe3, 0xc6, 0xa7, 0xc2];
    // A stored block of four bytes: the number of headers, which is none.
    const NONE: &[u8] = &[0x00, 0x04, 0x00, 0xfb, 0xff, 0, 0, 0, 0];
    match frame {
        Spdy::SynStream(_) => unreachable!("servers open no streams here"),
        Spdy::SynReply(stream) => {
            let block = if std::mem::take(first) { [ZLIB, NONE].concat() } else { NONE.to_vec() };
            let length = u32::try_from(block.len() + 4).expect("it is short");
            [&[0x80, 3, 0, 2], &length.to_be_bytes()[..], &stream.to_be_bytes(), &block].concat()
        }
        Spdy::Data { stream, flags, payload } => {
            let length = u32::try_from(payload.len()).expect("it is short") | (u32::from(*flags) << 24);
            [&stream.to_be_bytes()[..], &length.to_be_bytes(), payload].concat()
        }
    }
}

/// What came on a SPDY connection so far.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    opened: BTreeSet<u32>,
    data: BTreeMap<u32, (Vec<u8>, bool)>,
}

impl Streams {
    /// Reads frames until one of them opens that stream.
    pub(crate) async fn until_open(&mut self, from: &mut (impl AsyncRead + Unpin), stream: u32) -> io::Result<()> {
        while !self.opened.contains(&stream) {
            self.read(from).await?;
        }
        Ok(())
    }

    /// Reads frames until as much data came on that stream as on the recorded one, and its end if that came too.
    pub(crate) async fn until_heard(
        &mut self,
        from: &mut (impl AsyncRead + Unpin),
        stream: u32,
        recorded: &Self,
    ) -> io::Result<()> {
        let heard = |streams: &Self| streams.data.get(&stream).map_or((0, false), |(bytes, end)| (bytes.len(), *end));
        let (length, end) = heard(recorded);
        while heard(self).0 < length || (end && !heard(self).1) {
            self.read(from).await?;
        }
        Ok(())
    }

    /// Reads one frame.
    pub(crate) async fn read(&mut self, from: &mut (impl AsyncRead + Unpin)) -> io::Result<()> {
        let head = from.read_u32().await?;
        let length = from.read_u32().await?;
        let mut payload = vec![0; usize::try_from(length & 0x00ff_ffff).expect("24 bits")];
        from.read_exact(&mut payload).await?;
        if head >> 31 == 0 {
            self.add(head, length >> 24 == 1, &payload);
        } else if head == 0x8003_0001 {
            let stream = payload.first_chunk().ok_or(io::ErrorKind::InvalidData)?;
            self.opened.insert(u32::from_be_bytes(*stream));
        }
        Ok(())
    }

    pub(crate) fn add(&mut self, stream: u32, end: bool, payload: &[u8]) {
        let (bytes, ended) = self.data.entry(stream).or_default();
        bytes.extend(payload);
        *ended |= end;
    }

    /// The streams on which something came: their bytes, and whether they ended.
    pub(crate) fn data(&self) -> impl Iterator<Item = (u32, &[u8], bool)> {
        self.data.iter().map(|(stream, (bytes, end))| (*stream, bytes.as_slice(), *end))
    }
}
