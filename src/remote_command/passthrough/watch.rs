//! Knows whether a SPDY exec or attach has had its status.

use super::splitter::{Found, Splitter, Then};
use crate::{
    remote_command::{
        Exit, Version,
        status::{self, MAX_STATUS, Outcome},
    },
    spdy::{
        Error,
        codec::{self, Decoder, Event, HeaderMode},
        frame::{self, ResetCode, StreamId},
    },
    upgrade::{
        Cause, End, SessionLimits,
        clock::{Due, Hearing},
        outbox::Outbox,
    },
};

/// A control frame's first word: version 3, type 7.
const GOAWAY: u32 = 0x8003_0007;
const RST_STREAM: u32 = 0x8003_0003;
const SYN_STREAM: u32 = 0x8003_0001;
const SYN_REPLY: u32 = 0x8003_0002;
const PING: u32 = 0x8003_0006;
const HEADERS: u32 = 0x8003_0008;

/// Upstream went away without a status.
pub(super) const LOST: &str = "the connection to the next hop was lost before the status of the command";

/// Our pings: odd as a client's, and far from where clients count.
const OUR_PING: u32 = 0x7fff_ff01;

/// Streams of the client's whose reply is watched for; a session has five.
const MAX_UNANSWERED: usize = 16;

/// What the frames of one session have told.
#[derive(Debug)]
pub(super) struct Watch {
    version: Version,
    up: Splitter,
    down: Splitter,
    /// Reads the client's headers until the error stream is found.
    headers: Option<Box<Decoder>>,
    error: Option<StreamId>,
    /// Streams that upstream has not replied to.
    unanswered: Vec<StreamId>,
    /// What upstream said on the error stream, and whether it has ended it.
    status: Vec<u8>,
    error_ended: bool,
    /// Upstream's GOAWAY. The client reads nothing behind it, so it waits for the status.
    goaway: Option<Vec<u8>>,
    /// A failure was written in upstream's place.
    lost: bool,
    hearing: Hearing,
}

impl Watch {
    pub(super) fn new(version: Version, limits: &SessionLimits) -> Self {
        Self {
            version,
            up: Splitter::default(),
            down: Splitter::default(),
            headers: Some(Box::new(Decoder::new(codec::Limits::default(), HeaderMode::Inflate))),
            error: None,
            unanswered: Vec::new(),
            status: Vec::new(),
            error_ended: false,
            goaway: None,
            lost: false,
            hearing: Hearing::new(limits),
        }
    }

    pub(super) fn client_says(&mut self, buf: &mut [u8], out: &mut Outbox) -> Result<(), Error> {
        let (headers, error, unanswered) = (&mut self.headers, &mut self.error, &mut self.unanswered);
        self.up.split(buf, out, |found| {
            let Found::Control(frame) = found else { return Ok(Then::Pass) };
            if word(frame, 0) == SYN_STREAM && unanswered.len() < MAX_UNANSWERED {
                unanswered.extend(StreamId::new(word(frame, 8)));
            }
            // All header blocks of a direction share one compression.
            if matches!(word(frame, 0), SYN_STREAM | HEADERS)
                && let Some(decoder) = headers
                && let Event::SynStream { stream, headers: of, .. } = decoder.step(frame)?.event
                && of.get("streamtype") == Some(b"error")
            {
                *error = Some(stream);
                *headers = None;
            }
            Ok(Then::Pass)
        })
    }

    pub(super) fn upstream_says(&mut self, buf: &mut [u8], out: &mut Outbox) -> Result<(), Error> {
        self.hearing.heard();
        let error = self.error.map(StreamId::get);
        let has_status = self.version.has_status();
        let (status, error_ended, goaway) = (&mut self.status, &mut self.error_ended, &mut self.goaway);
        let unanswered = &mut self.unanswered;
        // Upstream ends the error stream and has said nothing: the client would take that for a success.
        let mut unsaid = false;
        let split = self.down.split(buf, out, |found| {
            match found {
                Found::Data { stream, payload, fin } if Some(stream) == error => {
                    let room = MAX_STATUS.saturating_sub(status.len());
                    status.extend_from_slice(&payload[..payload.len().min(room)]);
                    if fin && has_status && status.is_empty() {
                        unsaid = true;
                        return Ok(Then::Swallow);
                    }
                    *error_ended |= fin;
                }
                Found::Data { .. } => {}
                Found::Control(frame) => match word(frame, 0) {
                    SYN_REPLY => unanswered.retain(|stream| stream.get() != word(frame, 8)),
                    RST_STREAM if Some(word(frame, 8)) == error => {
                        if has_status && status.is_empty() && !*error_ended {
                            unsaid = true;
                            return Ok(Then::Swallow);
                        }
                        *error_ended = true;
                    }
                    GOAWAY => {
                        *goaway = Some(frame.to_vec());
                        return Ok(Then::Swallow);
                    }
                    PING if word(frame, 8) == OUR_PING => return Ok(Then::Swallow),
                    _ => {}
                },
            }
            Ok(Then::Pass)
        });
        if unsaid || self.goaway.is_some() {
            self.write_lost_status(LOST, out);
        }
        if let Some(frame) = self.goaway.as_mut().map(std::mem::take) {
            self.reset_unanswered(out);
            out.push_tail(&frame);
        }
        split
    }

    /// Upstream will reply to no more streams: who waits for that is told. Go's client waits for 30 s, even if its
    /// connection is closed.
    pub(super) fn reset_unanswered(&mut self, out: &mut Outbox) {
        for stream in std::mem::take(&mut self.unanswered) {
            out.push_tail(&frame::rst(stream, ResetCode::INTERNAL_ERROR));
        }
    }

    /// Upstream has ended, or is given up: if it owes a status, writes one that says why there will be none.
    pub(super) fn write_lost_status(&mut self, why: &str, out: &mut Outbox) {
        let Some(error) = self.error else { return };
        if self.lost || self.error_ended {
            return;
        }
        if !self.version.has_status() {
            if self.goaway.is_some() || !self.status.is_empty() {
                return;
            }
        } else if !matches!(status::decode(&self.status), Outcome::Invalid(_)) {
            return;
        }
        self.lost = true;
        if self.status.is_empty() {
            let status = status::encode_failure(self.version, why);
            out.push_tail(&frame::data_head(error, status.len(), false));
            out.push_tail(status.as_bytes());
        }
        // A status that was cut off is no success either: it only has to end.
        out.push_tail(&frame::data_head(error, 0, true));
    }

    pub(super) fn tick(&mut self, listening: bool) -> Due {
        self.hearing.tick_if_listening(listening)
    }

    pub(super) fn ping(&mut self, out: &mut Outbox) {
        out.push_front(&frame::ping(OUR_PING));
    }

    /// Upstream has said how the command ended.
    pub(super) fn has_ended(&self) -> bool {
        self.has_whole_status() || !self.lost && !self.status.is_empty()
    }

    /// Upstream has said how the command ended, and will add nothing to it.
    pub(super) fn has_whole_status(&self) -> bool {
        !self.lost && (self.error_ended || self.goaway.is_some())
    }

    /// How the session ended, as far as frames tell.
    pub(super) fn end(&self) -> (End, Cause, &'static str) {
        if self.lost {
            return (End::Error, Cause::UpstreamLost, LOST);
        }
        if !self.version.has_status() {
            return match self.status.is_empty() {
                true => (End::Success, Cause::Finished, "the command ended"),
                false => (End::Error, Cause::UpstreamFailed, "the command failed"),
            };
        }
        match status::decode(&self.status) {
            Outcome::Exited(Exit::Success) => (End::Success, Cause::Finished, "the command ended"),
            Outcome::Exited(Exit::Code(code)) => (End::ExitCode(code), Cause::Finished, "the command ended"),
            Outcome::Failed(_) => (End::Error, Cause::UpstreamFailed, "the next hop could not run the command"),
            // The client had not even opened its error stream.
            Outcome::Invalid(_) if self.status.is_empty() => (End::Error, Cause::UpstreamLost, LOST),
            Outcome::Invalid(_) => (End::Error, Cause::UpstreamProtocol, "the next hop sent no valid status"),
        }
    }
}

fn word(frame: &[u8], at: usize) -> u32 {
    frame
        .get(at..at + 4)
        .map_or(0, |bytes| u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) & !(u32::from(at == 8) << 31))
}
