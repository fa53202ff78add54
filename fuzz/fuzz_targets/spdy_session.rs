//! Two sessions, one of each role, joined by the bytes they write; and a stranger who writes frames at either of them.
//! Whatever is done in whatever order, each tells its caller a story that can be true.
//!
//! Input: operations of 3 bytes each: what and on which side, which stream, how much.
#![no_main]

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

use libfuzzer_sys::fuzz_target;
use tower_kube_streaming::spdy::{
    ResetCode, StreamId,
    codec::{self, Decoder, HeaderMode},
    frame::{self, GoAwayCode},
    header_block::Headers,
    session::{Event, Limits, Role, Session},
};
use tower_kube_streaming_fuzz::Input;

const STREAMS: usize = 4;

/// What one side was told and has done about one stream.
#[derive(Clone, Copy, Debug, Default)]
struct Told {
    ours: bool,
    replied: bool,
    finished: bool,
    over: bool,
    sent_fin: bool,
    reset: bool,
    discarded: bool,
}

struct Side {
    role: Role,
    session: Session,
    decoder: Decoder,
    /// Written, and not read by the other side.
    wire: VecDeque<u8>,
    told: HashMap<StreamId, Told>,
    /// In the order in which they came to be.
    ids: Vec<StreamId>,
    last_of_peer: u32,
    goaway: bool,
    dead: bool,
}

impl Side {
    fn new(role: Role, now: Instant) -> Self {
        let limits = Limits::default().streams(STREAMS);
        Self {
            role,
            session: Session::new(role, limits, now),
            decoder: Decoder::new(codec::Limits::default(), HeaderMode::Inflate),
            wire: VecDeque::new(),
            told: HashMap::new(),
            ids: Vec::new(),
            last_of_peer: 0,
            goaway: false,
            dead: false,
        }
    }

    fn pick(&self, which: u8) -> Option<StreamId> {
        let index = usize::from(which).checked_rem(self.ids.len())?;
        // The latest are the most interesting.
        self.ids.iter().rev().nth(index).copied()
    }

    fn add(&mut self, stream: StreamId, told: Told) {
        assert!(self.told.insert(stream, told).is_none(), "{stream} was opened twice");
        self.ids.push(stream);
    }

    fn told(&mut self, stream: StreamId) -> &mut Told {
        self.told.get_mut(&stream).expect("an event of a stream that nobody opened")
    }

    fn open(&mut self, now: Instant) {
        let Ok(stream) = self.session.open(&[("streamtype", "data"), ("port", "80")], now) else { return };
        assert_eq!(stream.is_client(), self.role == Role::Client);
        self.add(stream, Told { ours: true, ..Told::default() });
    }

    fn write_control(&mut self, max: usize) {
        let had = self.session.has_control();
        let mut out = Vec::new();
        self.session.encode_control(&mut out, max);
        assert_eq!(out.is_empty(), !had || max == 0);
        self.wire.extend(out);
    }

    /// As `connection` does it: behind all control, and only where it may.
    fn write_data(&mut self, stream: StreamId, len: usize, fin: bool) {
        if !self.session.can_send(stream) {
            return;
        }
        self.write_control(usize::MAX);
        self.wire.extend(frame::data_head(stream, len, fin));
        self.wire.extend(std::iter::repeat_n(b'x', len));
        if fin {
            self.session.finish(stream);
            self.told(stream).sent_fin = true;
            assert!(!self.session.can_send(stream));
        }
    }

    fn read(&mut self, bytes: &[u8], now: Instant, honest: bool) {
        self.session.handle_read(now);
        let mut rest = bytes;
        while !self.dead {
            let step = self.decoder.step(rest).expect("a session writes what a decoder reads");
            rest = &rest[step.consumed..];
            if step.event == codec::Event::NeedMore {
                break;
            }
            self.handle(step.event, honest);
        }
    }

    fn handle(&mut self, event: codec::Event, honest: bool) {
        let data = match &event {
            codec::Event::Data { stream, range, .. } => Some((*stream, range.len())),
            _ => None,
        };
        match self.session.handle_frame(event) {
            Ok(true) => {
                let (stream, len) = data.expect("only payload is delivered");
                let told = *self.told(stream);
                assert!(len > 0 && (told.replied || !told.ours), "payload of a stream that was not taken");
                assert!(!told.finished && !told.over && !told.reset && !told.discarded, "{told:?}");
            }
            Ok(false) => {}
            Err(error) => {
                assert!(!honest, "{error}");
                self.dead = true;
            }
        }
        self.drain();
    }

    fn drain(&mut self) {
        while let Some(event) = self.session.poll_event() {
            let stream = match &event {
                Event::Opened { stream, .. } => {
                    assert_ne!(stream.is_client(), self.role == Role::Client);
                    assert!(stream.get() > self.last_of_peer, "the peer's streams go up");
                    self.last_of_peer = stream.get();
                    self.add(*stream, Told::default());
                    continue;
                }
                Event::GoAway(_) => {
                    assert!(!self.goaway, "once is enough");
                    self.goaway = true;
                    continue;
                }
                Event::Replied(stream)
                | Event::OpenFailed(stream, _)
                | Event::Finished(stream)
                | Event::Reset(stream, _) => *stream,
            };
            let told = self.told(stream);
            assert!(!told.over && !told.reset, "{event:?} behind the end: {told:?}");
            match event {
                Event::Replied(_) => {
                    assert!(told.ours && !told.replied);
                    told.replied = true;
                }
                Event::OpenFailed(..) => {
                    assert!(told.ours && !told.replied);
                    told.over = true;
                }
                Event::Finished(_) => {
                    assert!(!told.finished && (told.replied || !told.ours));
                    told.finished = true;
                }
                Event::Reset(..) => {
                    assert!(told.replied || !told.ours);
                    told.over = true;
                }
                Event::Opened { .. } | Event::GoAway(_) => unreachable!("taken above"),
            }
            let told = *told;
            assert!(!self.session.can_send(stream) || !told.over);
        }
        for (stream, told) in &self.told {
            let may = told.replied && !told.sent_fin && !told.over && !told.reset;
            assert_eq!(self.session.can_send(*stream), may, "{stream}: {told:?}");
        }
    }

    fn advance(&mut self, now: Instant) {
        if self.session.handle_timeout(now).is_err() {
            self.dead = true;
            return;
        }
        assert!(self.session.poll_timeout().is_none_or(|at| at > now), "a clock that is due for ever");
        self.drain();
    }
}

/// A frame that no session of ours would write.
fn strange(kind: u8, stream: StreamId, how: u8) -> codec::Event {
    let fin = how & 1 != 0;
    match kind % 8 {
        0 => codec::Event::SynStream {
            stream,
            associated: 0,
            priority: 0,
            fin,
            unidirectional: how & 2 != 0,
            headers: Headers::default(),
        },
        1 => codec::Event::SynReply { stream, fin, headers: Headers::default() },
        2 => codec::Event::Data { stream, range: 0..usize::from(how >> 1 & 3), fin },
        3 => codec::Event::Rst { stream, code: ResetCode(u32::from(how).max(1)) },
        4 => codec::Event::Headers { stream, fin, headers: Headers::default() },
        5 => codec::Event::Ping(stream.get()),
        6 => {
            codec::Event::GoAway { last_good: StreamId::new(u32::from(how >> 2)), code: GoAwayCode(u32::from(how & 3)) }
        }
        _ => codec::Event::WindowUpdate { stream, delta: u32::from(how) },
    }
}

fuzz_target!(|input: &[u8]| {
    let mut input = Input(input);
    let mut now = Instant::now();
    let mut sides = [Side::new(Role::Client, now), Side::new(Role::Server, now)];
    let mut honest = true;
    while !input.is_empty() && !sides.iter().any(|side| side.dead) {
        let (what, which, how) = (input.byte(), input.byte(), input.byte());
        let at = usize::from(what >> 7);
        let side = &mut sides[at];
        let picked = side.pick(which);
        match (what & 0x0f, picked) {
            (0, _) => side.open(now),
            (1, Some(stream)) => {
                let told = side.told(stream);
                if !told.ours && !told.over && !told.reset {
                    told.replied = true;
                }
                side.session.reply(stream);
            }
            (2, Some(stream)) => side.write_data(stream, usize::from(how), false),
            (3, Some(stream)) => side.write_data(stream, usize::from(how), true),
            (4, Some(stream)) => {
                side.session.reset(stream, ResetCode(u32::from(how).max(1)));
                side.told(stream).reset = true;
            }
            (5, Some(stream)) => {
                side.session.discard(stream);
                side.told(stream).discarded = true;
            }
            (6, _) => side.session.go_away(GoAwayCode(u32::from(how))),
            (7, _) => side.write_control(usize::from(how)),
            (8 | 9, _) => {
                // What one has written the other reads, cut anywhere.
                side.write_control(usize::MAX);
                let len = if how == 0 { side.wire.len() } else { usize::from(how).min(side.wire.len()) };
                let bytes: Vec<u8> = side.wire.drain(..len).collect();
                sides[1 - at].read(&bytes, now, honest);
            }
            (10, _) => {
                now += Duration::from_millis(u64::from(how) * 100);
                for side in &mut sides {
                    side.advance(now);
                }
            }
            (11, _) => side.session.set_listening(how & 1 == 0, now),
            (12, _) => {
                if let Some(due) = side.session.poll_timeout() {
                    now = now.max(due);
                    side.advance(now);
                }
            }
            (13 | 14, _) => {
                honest = false;
                let id = u32::from(which) + if how & 0x80 != 0 { side.last_of_peer } else { 0 };
                if let Some(stream) = StreamId::new(id) {
                    side.handle(strange(what >> 4, stream, how & 0x7f), false);
                }
            }
            _ => {}
        }
        sides[at].drain();
    }
    if sides.iter().any(|side| side.dead) {
        return;
    }
    // Everybody gives up everything, and nothing is left that anybody waits for.
    for side in &mut sides {
        for stream in side.ids.clone() {
            side.session.reset(stream, ResetCode::CANCEL);
            side.told(stream).reset = true;
        }
        side.drain();
        assert!(side.session.is_idle(), "a stream that was given up is not forgotten");
    }
});
