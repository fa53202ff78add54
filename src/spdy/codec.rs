//! Bytes into frames, without I/O.
//!
//! [`Decoder::step`] takes everything it is given, so that nobody has to keep unread bytes: parts of heads are kept
//! inside (ten bytes at most), header blocks go straight into the inflater, and payload is handed out as ranges into
//! the caller's buffer as it comes. Nothing is allocated from a claimed length.

use std::ops::Range;

use super::{
    error::Error,
    frame::{self, GoAwayCode, HEAD_LEN, ResetCode, StreamId},
    header_block::{Direction, Headers},
    zlib::Inflater,
};

/// What a peer may ask of a [`Decoder`].
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    header_bytes: usize,
    headers: usize,
}

impl Limits {
    /// The longest inflated header block, in bytes. The default is 64 KiB: Kubernetes sends under 100 bytes, and
    /// compression turns one byte into a thousand.
    #[must_use]
    pub fn header_bytes(mut self, bytes: usize) -> Self {
        self.header_bytes = bytes;
        self
    }

    /// The most headers in a block. The default is 256; Kubernetes sends three.
    #[must_use]
    pub fn headers(mut self, count: usize) -> Self {
        self.headers = count;
        self
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self { header_bytes: 64 * 1024, headers: 256 }
    }
}

/// What becomes of header blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderMode {
    /// They are read. Takes 47 KB from the first block on.
    Inflate,
    /// They are discarded unread, and all headers are empty: a client need not know what is in a SYN_REPLY.
    Skip,
}

/// What [`Decoder::step`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// How many bytes of the buffer are done with. Call again with the rest, even if it is empty, until
    /// [`Event::NeedMore`]: then all are.
    pub consumed: usize,
    /// What they said.
    pub event: Event,
}

/// One frame, or a part of a DATA frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// As much payload as is here; a frame may take many steps. An empty DATA frame has one step.
    Data {
        /// Not checked: it may be unknown.
        stream: StreamId,
        /// Into the buffer that was passed in.
        range: Range<usize>,
        /// The last byte of the stream is in `range`, or came before.
        fin: bool,
    },
    /// The peer opens a stream.
    SynStream {
        /// The new stream.
        stream: StreamId,
        /// 0 if there is none; always so in Kubernetes.
        associated: u32,
        /// 0 to 7, 0 is the highest.
        priority: u8,
        /// The peer will send no data.
        fin: bool,
        /// The peer takes no data.
        unidirectional: bool,
        /// What the stream is for.
        headers: Headers,
    },
    /// The peer took a stream.
    SynReply {
        /// A stream of this side's.
        stream: StreamId,
        /// The peer will send no data.
        fin: bool,
        /// Empty in Kubernetes.
        headers: Headers,
    },
    /// Both directions of a stream are over.
    Rst {
        /// Which.
        stream: StreamId,
        /// Why. Never 0.
        code: ResetCode,
    },
    /// Its entries were skipped: there are none that matter here.
    Settings,
    /// To be echoed if the id has the peer's parity. Never 0.
    Ping(u32),
    /// The peer takes no more streams.
    GoAway {
        /// The last stream it took.
        last_good: Option<StreamId>,
        /// Why.
        code: GoAwayCode,
    },
    /// More headers.
    Headers {
        /// Of which stream.
        stream: StreamId,
        /// The peer will send no more data.
        fin: bool,
        /// The headers.
        headers: Headers,
    },
    /// Nobody in Kubernetes sends it.
    WindowUpdate {
        /// Which stream.
        stream: StreamId,
        /// Bytes, 31 bits.
        delta: u32,
    },
    /// The buffer is used up.
    NeedMore,
}

/// Reads one direction of a connection. After an error every step is that error.
#[derive(Debug)]
pub struct Decoder {
    limits: Limits,
    /// `None` means to skip.
    headers: Option<HeaderReader>,
    state: State,
    /// The beginning of a head, or of a body of fixed size.
    partial: [u8; MAX_FIXED],
    filled: usize,
    failed: Option<Error>,
}

#[derive(Debug, Default)]
struct HeaderReader {
    /// From the first block on.
    inflater: Option<Box<Inflater>>,
    plain: Vec<u8>,
}

/// The longest body of fixed size: SYN_STREAM before its header block.
const MAX_FIXED: usize = 10;

#[derive(Clone, Copy, Debug)]
enum State {
    /// Between frames, or inside the eight bytes of a head.
    Head,
    /// Inside a DATA frame with at least one byte to come.
    Data { stream: StreamId, left: usize, fin: bool },
    /// Before the end of a control frame's fixed part.
    Fixed { kind: Kind, flags: u8, len: usize },
    /// Inside a header block.
    Block { frame: BlockFrame, fin: bool, left: usize },
    /// Inside SETTINGS, whose entries nobody needs.
    Settings { left: usize },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    SynStream,
    SynReply,
    Rst,
    Settings,
    Ping,
    GoAway,
    Headers,
    WindowUpdate,
}

#[derive(Clone, Copy, Debug)]
enum BlockFrame {
    SynStream { stream: StreamId, associated: u32, priority: u8, unidirectional: bool },
    SynReply { stream: StreamId },
    Headers { stream: StreamId },
}

impl Decoder {
    /// At the beginning of a connection.
    #[must_use]
    pub fn new(limits: Limits, mode: HeaderMode) -> Self {
        let headers = match mode {
            HeaderMode::Inflate => Some(HeaderReader::default()),
            HeaderMode::Skip => None,
        };
        Self { limits, headers, state: State::Head, partial: [0; MAX_FIXED], filled: 0, failed: None }
    }

    /// No frame is half read: a connection may end here.
    #[must_use]
    pub fn at_frame_boundary(&self) -> bool {
        matches!(self.state, State::Head) && self.filled == 0
    }

    /// Reads up to and including the next event.
    ///
    /// # Errors
    ///
    /// If the peer broke the protocol or passed a limit. The connection cannot go on.
    pub fn step(&mut self, buf: &[u8]) -> Result<Step, Error> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        self.try_step(buf).inspect_err(|error| {
            self.failed = Some(error.clone());
            self.headers = None;
        })
    }

    fn try_step(&mut self, buf: &[u8]) -> Result<Step, Error> {
        let mut at = 0;
        loop {
            let event = match self.state {
                State::Head => match self.fill(HEAD_LEN, buf, &mut at) {
                    Some(head) => self.handle_head(head.first_chunk().expect("eight bytes were filled"), at)?,
                    None => Some(Event::NeedMore),
                },
                State::Data { stream, left, fin } => {
                    let here = left.min(buf.len() - at);
                    if here == 0 {
                        Some(Event::NeedMore)
                    } else {
                        let range = at..at + here;
                        at = range.end;
                        self.state = match left - here {
                            0 => State::Head,
                            left => State::Data { stream, left, fin },
                        };
                        Some(Event::Data { stream, range, fin: fin && here == left })
                    }
                }
                State::Fixed { kind, flags, len } => match self.fill(kind.fixed_len(), buf, &mut at) {
                    Some(fixed) => self.handle_fixed(kind, flags, len, &fixed)?,
                    None => Some(Event::NeedMore),
                },
                State::Block { frame, fin, left } => {
                    let here = left.min(buf.len() - at);
                    if let Some(reader) = &mut self.headers {
                        reader.push(&buf[at..at + here], &self.limits)?;
                    }
                    at += here;
                    if here == left {
                        self.state = State::Head;
                        Some(self.handle_block(frame, fin)?)
                    } else {
                        self.state = State::Block { frame, fin, left: left - here };
                        Some(Event::NeedMore)
                    }
                }
                State::Settings { left } => {
                    let here = left.min(buf.len() - at);
                    at += here;
                    if here == left {
                        self.state = State::Head;
                        Some(Event::Settings)
                    } else {
                        self.state = State::Settings { left: left - here };
                        Some(Event::NeedMore)
                    }
                }
            };
            if let Some(event) = event {
                return Ok(Step { consumed: at, event });
            }
        }
    }

    /// Collects `len` bytes. `None`: the buffer ended before.
    fn fill(&mut self, len: usize, buf: &[u8], at: &mut usize) -> Option<[u8; MAX_FIXED]> {
        let here = (len - self.filled).min(buf.len() - *at);
        self.partial[self.filled..self.filled + here].copy_from_slice(&buf[*at..*at + here]);
        self.filled += here;
        *at += here;
        if self.filled < len {
            return None;
        }
        self.filled = 0;
        Some(self.partial)
    }

    /// `None` if there is no event yet.
    fn handle_head(&mut self, head: &[u8; HEAD_LEN], at: usize) -> Result<Option<Event>, Error> {
        let first = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
        let flags = head[4];
        let len = u32::from_be_bytes([0, head[5], head[6], head[7]]) as usize;
        if first >> 31 == 0 {
            let stream = stream_id(first)?;
            let fin = flags & frame::FIN != 0;
            if len == 0 {
                return Ok(Some(Event::Data { stream, range: at..at, fin }));
            }
            self.state = State::Data { stream, left: len, fin };
            return Ok(None);
        }
        // The version is not looked at, as in spdystream (spdy/read.go: parseControlFrame), deliberately.
        let kind = Kind::of(first as u16).ok_or_else(|| Error::protocol("unknown type of control frame"))?;
        kind.check(flags, len)?;
        self.state = State::Fixed { kind, flags, len };
        Ok(None)
    }

    fn handle_fixed(
        &mut self,
        kind: Kind,
        flags: u8,
        len: usize,
        fixed: &[u8; MAX_FIXED],
    ) -> Result<Option<Event>, Error> {
        let first = u32::from_be_bytes([fixed[0], fixed[1], fixed[2], fixed[3]]);
        let second = u32::from_be_bytes([fixed[4], fixed[5], fixed[6], fixed[7]]);
        // Checked by `Kind::check`.
        let left = len - kind.fixed_len();
        let fin = flags & frame::FIN != 0;
        let block = |frame| Ok((State::Block { frame, fin, left }, None));
        let event = |event| Ok((State::Head, Some(event)));
        let next: Result<_, Error> = match kind {
            Kind::SynStream => block(BlockFrame::SynStream {
                stream: stream_id(first)?,
                associated: second & frame::MAX_STREAM_ID,
                priority: fixed[8] >> 5,
                unidirectional: flags & frame::UNIDIRECTIONAL != 0,
            }),
            Kind::SynReply => block(BlockFrame::SynReply { stream: stream_id(first)? }),
            Kind::Headers => block(BlockFrame::Headers { stream: stream_id(first)? }),
            Kind::Rst if second == 0 => Err(Error::protocol("RST_STREAM without a reason")),
            Kind::Rst => event(Event::Rst { stream: stream_id(first)?, code: ResetCode(second) }),
            Kind::Settings if u64::from(first) * 8 != left as u64 => {
                Err(Error::protocol("SETTINGS whose count is not its length"))
            }
            Kind::Settings => Ok((State::Settings { left }, None)),
            Kind::Ping if first == 0 => Err(Error::protocol("PING 0")),
            Kind::Ping => event(Event::Ping(first)),
            Kind::GoAway => event(Event::GoAway {
                last_good: StreamId::new(first & frame::MAX_STREAM_ID),
                code: GoAwayCode(second),
            }),
            Kind::WindowUpdate => {
                event(Event::WindowUpdate { stream: stream_id(first)?, delta: second & frame::MAX_STREAM_ID })
            }
        };
        let (state, event) = next?;
        self.state = state;
        Ok(event)
    }

    fn handle_block(&mut self, frame: BlockFrame, fin: bool) -> Result<Event, Error> {
        let direction = match frame {
            BlockFrame::SynStream { .. } => Direction::Request,
            BlockFrame::SynReply { .. } => Direction::Reply,
            // As in spdystream, which takes an even stream's headers for a request's.
            BlockFrame::Headers { stream } if stream.is_client() => Direction::Reply,
            BlockFrame::Headers { .. } => Direction::Request,
        };
        let headers = match &mut self.headers {
            Some(reader) => Headers::parse(std::mem::take(&mut reader.plain), self.limits.headers, direction)?,
            None => Headers::default(),
        };
        Ok(match frame {
            BlockFrame::SynStream { stream, associated, priority, unidirectional } => {
                Event::SynStream { stream, associated, priority, fin, unidirectional, headers }
            }
            BlockFrame::SynReply { stream } => Event::SynReply { stream, fin, headers },
            BlockFrame::Headers { stream } => Event::Headers { stream, fin, headers },
        })
    }
}

impl HeaderReader {
    fn push(&mut self, compressed: &[u8], limits: &Limits) -> Result<(), Error> {
        let inflater = self.inflater.get_or_insert_with(|| Box::new(Inflater::borrow()));
        inflater.inflate(compressed, &mut self.plain, limits.header_bytes)
    }
}

impl Drop for HeaderReader {
    fn drop(&mut self) {
        if let Some(inflater) = self.inflater.take() {
            inflater.give_back();
        }
    }
}

impl Kind {
    fn of(number: u16) -> Option<Self> {
        Some(match number {
            frame::SYN_STREAM => Self::SynStream,
            frame::SYN_REPLY => Self::SynReply,
            frame::RST_STREAM => Self::Rst,
            frame::SETTINGS => Self::Settings,
            frame::PING => Self::Ping,
            frame::GOAWAY => Self::GoAway,
            frame::HEADERS => Self::Headers,
            frame::WINDOW_UPDATE => Self::WindowUpdate,
            _ => return None,
        })
    }

    /// How much of the body has a fixed size.
    fn fixed_len(self) -> usize {
        match self {
            Self::SynStream => 10,
            Self::Rst | Self::GoAway | Self::WindowUpdate => 8,
            Self::SynReply | Self::Settings | Self::Ping | Self::Headers => 4,
        }
    }

    /// The length is checked before it is used.
    fn check(self, flags: u8, len: usize) -> Result<(), Error> {
        let open_ended = matches!(self, Self::SynStream | Self::SynReply | Self::Headers | Self::Settings);
        // A known bug for the fuzz target `spdy_frame` to find: off by one.
        #[cfg(planted)]
        let len = if open_ended { len + 1 } else { len };
        if len < self.fixed_len() || !open_ended && len != self.fixed_len() {
            return Err(Error::protocol("wrong length of a control frame"));
        }
        if flags != 0 && matches!(self, Self::Ping | Self::GoAway | Self::WindowUpdate) {
            return Err(Error::protocol("flags on a frame that has none"));
        }
        Ok(())
    }
}

fn stream_id(word: u32) -> Result<StreamId, Error> {
    StreamId::new(word & frame::MAX_STREAM_ID).ok_or_else(|| Error::protocol("stream 0"))
}

#[cfg(test)]
mod tests;
