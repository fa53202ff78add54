//! A lane is a channel on one side and a stream on the other.

use crate::{
    remote_command::Version,
    spdy::frame::{HeaderEncoder, StreamId},
    upgrade::StreamOptions,
    websocket::channel::{ERROR, RESIZE, STDERR, STDIN, STDOUT},
};

/// Channel, `streamtype`; in the order in which Go's clients create the streams.
const CREATION_ORDER: [(u8, &str); 5] =
    [(ERROR, "error"), (STDIN, "stdin"), (STDOUT, "stdout"), (STDERR, "stderr"), (RESIZE, "resize")];

/// A set of channels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Set(u8);

impl Set {
    pub(super) fn insert(&mut self, channel: u8) {
        self.0 |= 1 << channel;
    }

    pub(super) fn remove(&mut self, channel: u8) {
        self.0 &= !(1 << channel);
    }

    pub(super) fn contains(self, channel: u8) -> bool {
        self.0 & (1 << channel) != 0
    }

    pub(super) fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// The streams of one session. Ids are 1, 3, 5, … in the order of creation.
#[derive(Debug)]
pub(super) struct Lanes {
    /// The channel of stream 1, 3, 5, …
    channels: [u8; 5],
    count: u8,
    /// Streams whose SYN_REPLY has not come.
    pub(super) unreplied: Set,
    /// Streams that upstream may still send on: stdout, stderr, error.
    pub(super) receiving: Set,
    /// Streams that we may still send on: stdin, resize.
    pub(super) sending: Set,
    /// Streams that neither side has reset.
    open: Set,
}

impl Lanes {
    pub(super) fn new(version: Version, options: &StreamOptions) -> Self {
        let mut lanes = Self {
            channels: [0; 5],
            count: 0,
            unreplied: Set::default(),
            receiving: Set::default(),
            sending: Set::default(),
            open: Set::default(),
        };
        let asked = [
            (ERROR, true),
            (STDIN, options.stdin),
            (STDOUT, options.stdout),
            (STDERR, options.stderr && !options.tty),
            (RESIZE, options.tty && version.has_resize()),
        ];
        for (channel, _) in asked.into_iter().filter(|(_, asked)| *asked) {
            lanes.channels[usize::from(lanes.count)] = channel;
            lanes.count += 1;
            lanes.unreplied.insert(channel);
            lanes.open.insert(channel);
            match channel {
                STDIN | RESIZE => lanes.sending.insert(channel),
                _ => lanes.receiving.insert(channel),
            }
        }
        lanes
    }

    /// The SYN_STREAMs of all lanes: they go out together (contract d).
    pub(super) fn syn_streams(&self) -> Vec<u8> {
        let mut encoder = HeaderEncoder::new();
        let mut out = Vec::new();
        for (index, channel) in self.channels[..usize::from(self.count)].iter().enumerate() {
            let name = CREATION_ORDER.iter().find(|(of, _)| of == channel).map_or("", |(_, name)| name);
            encoder.syn_stream(id(index), &[("streamtype", name)], false, &mut out);
        }
        out
    }

    /// The channel of a stream of ours.
    pub(super) fn channel(&self, stream: StreamId) -> Option<u8> {
        let index = usize::try_from(stream.get() / 2).ok()?;
        let known = stream.is_client() && index < usize::from(self.count);
        known.then(|| self.channels[index])
    }

    /// The stream of a channel that was asked for.
    pub(super) fn stream(&self, channel: u8) -> Option<StreamId> {
        self.channels[..usize::from(self.count)].iter().position(|of| *of == channel).map(id)
    }

    /// Where the client is told that it is connected: the lowest channel it reads.
    pub(super) fn lowest_readable(&self) -> u8 {
        [STDOUT, STDERR].into_iter().find(|channel| self.receiving.contains(*channel)).unwrap_or(ERROR)
    }

    /// Upstream reset the stream.
    pub(super) fn reset(&mut self, channel: u8) {
        self.open.remove(channel);
        self.receiving.remove(channel);
        self.sending.remove(channel);
    }

    /// Upstream's stream ended with FIN.
    pub(super) fn finished(&mut self, channel: u8) {
        self.receiving.remove(channel);
    }

    /// Streams to reset when we leave.
    pub(super) fn to_reset(&self) -> impl Iterator<Item = StreamId> {
        let channels = &self.channels[..usize::from(self.count)];
        channels.iter().enumerate().filter(|(_, channel)| self.open.contains(**channel)).map(|(index, _)| id(index))
    }
}

fn id(index: usize) -> StreamId {
    StreamId::new(2 * index as u32 + 1).expect("at most five streams")
}
