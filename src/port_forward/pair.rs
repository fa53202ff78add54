//! Which two streams belong together.
//!
//! A connection of the client's is two streams, `error` and `data`, with the same `requestid`. Upstream: `httpstream.go`
//! of cri-streaming, with its words.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    num::NonZeroU16,
    time::Duration,
};

use tokio::time::Instant;

use crate::{spdy::StreamId, upgrade::parse_port};

/// The longest `requestid`. client-go counts from 0; one that is kept may not be as long as a header block.
const MAX_REQUEST: usize = 64;

/// What a stream of a pair is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Error,
    Data,
}

/// What a stream's headers say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StreamHeaders {
    pub(crate) role: Role,
    pub(crate) port: NonZeroU16,
    /// Streams with the same one belong together.
    pub(crate) request: String,
}

/// Why a stream is not taken, in upstream's words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum BadHeaders {
    NoPort,
    Port { text: String, why: String },
    PortZero(String),
    NoRole,
    Role(String),
    LongRequest,
}

impl fmt::Display for BadHeaders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoPort => f.write_str(r#""port" header is required"#),
            Self::Port { text, why } => {
                write!(f, "unable to parse {text:?} as a port: {why}")
            }
            Self::PortZero(text) => write!(f, "port {text:?} must be > 0"),
            Self::NoRole => f.write_str(r#""streamType" header is required"#),
            Self::Role(text) => write!(f, "invalid stream type {text:?}"),
            Self::LongRequest => write!(f, "request id longer than {MAX_REQUEST} bytes"),
        }
    }
}

impl StreamHeaders {
    /// Reads the headers of stream `id`, in upstream's order. `header` finds a value, whatever the case of its name.
    pub(crate) fn read<'a>(id: StreamId, header: impl Fn(&str) -> Option<&'a str>) -> Result<Self, BadHeaders> {
        let header = |name| header(name).filter(|value| !value.is_empty());
        let text = header("port").ok_or(BadHeaders::NoPort)?;
        let port = parse_port(text).map_err(|why| BadHeaders::Port { text: text.to_owned(), why })?;
        let port = NonZeroU16::new(port).ok_or_else(|| BadHeaders::PortZero(text.to_owned()))?;
        // A known bug for the fuzz target `pair_headers` to find: a stream that does not say what it is for is data.
        let role = header("streamtype").or(cfg!(planted).then_some("data"));
        let role = match role.ok_or(BadHeaders::NoRole)? {
            "error" => Role::Error,
            "data" => Role::Data,
            other => return Err(BadHeaders::Role(other.to_owned())),
        };
        let request = match (header("requestid"), role) {
            (Some(request), _) if request.len() > MAX_REQUEST => return Err(BadHeaders::LongRequest),
            (Some(request), _) => request.to_owned(),
            // Clients older than request ids create the error stream, then the data stream (httpstream.go: requestID).
            (None, Role::Error) => id.to_string(),
            (None, Role::Data) => (i64::from(id.get()) - 2).to_string(),
        };
        Ok(Self { role, port, request })
    }
}

/// Streams that wait for their other half. Bounded by whoever adds: see [`Pairing::is_new`].
#[derive(Debug)]
pub(crate) struct Pairing<S> {
    timeout: Duration,
    /// In the order in which they came, which is that of their deadlines.
    halves: BTreeMap<u64, Half<S>>,
    by_request: HashMap<String, u64>,
    next: u64,
}

/// One stream without its other.
#[derive(Debug)]
pub(crate) struct Half<S> {
    pub(crate) request: String,
    pub(crate) role: Role,
    pub(crate) stream: S,
    port: NonZeroU16,
    deadline: Instant,
}

/// Both streams.
#[derive(Debug)]
pub(crate) struct Pair<S> {
    pub(crate) request: String,
    /// The data stream's.
    pub(crate) port: NonZeroU16,
    pub(crate) error: S,
    pub(crate) data: S,
}

/// What a new stream means.
#[derive(Debug)]
pub(crate) enum Added<'a, S> {
    /// It waits for the other.
    Waiting,
    Complete(Pair<S>),
    /// Its place is taken by the first. The stream is given back.
    Duplicate {
        first: &'a mut Half<S>,
        stream: S,
    },
}

impl<S> Pairing<S> {
    /// Nobody waits yet, and nobody longer than `timeout`.
    pub(crate) fn new(timeout: Duration) -> Self {
        Self { timeout, halves: BTreeMap::new(), by_request: HashMap::new(), next: 0 }
    }

    /// How many streams wait.
    pub(crate) fn len(&self) -> usize {
        self.halves.len()
    }

    /// Nobody waits for a stream with that request id.
    pub(crate) fn is_new(&self, request: &str) -> bool {
        !self.by_request.contains_key(request)
    }

    /// Takes a stream.
    pub(crate) fn add(&mut self, headers: StreamHeaders, stream: S, now: Instant) -> Added<'_, S> {
        let StreamHeaders { role, port, request } = headers;
        let Some(&place) = self.by_request.get(&request) else {
            self.by_request.insert(request.clone(), self.next);
            let half = Half { request, role, stream, port, deadline: now + self.timeout };
            self.halves.insert(self.next, half);
            self.next += 1;
            return Added::Waiting;
        };
        if self.halves.get(&place).is_some_and(|first| first.role != role) {
            let first = self.remove(place).expect("it was there a line ago");
            return Added::Complete(match role {
                Role::Data => Pair { request, port, error: first.stream, data: stream },
                Role::Error => Pair { request, port: first.port, error: stream, data: first.stream },
            });
        }
        let first = self.halves.get_mut(&place).expect("both maps have the same streams");
        Added::Duplicate { first, stream }
    }

    /// When to call [`Self::expired`].
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.halves.first_key_value().map(|(_, half)| half.deadline)
    }

    /// A stream that has waited too long.
    pub(crate) fn expired(&mut self, now: Instant) -> Option<Half<S>> {
        let (&place, _) = self.halves.first_key_value().filter(|(_, half)| half.deadline <= now)?;
        self.remove(place)
    }

    /// Forgets the streams of which `keep` is false.
    pub(crate) fn retain(&mut self, keep: impl Fn(&S) -> bool) {
        self.halves.retain(|_, half| keep(&half.stream));
        self.by_request.retain(|_, place| self.halves.contains_key(place));
    }

    fn remove(&mut self, place: u64) -> Option<Half<S>> {
        let half = self.halves.remove(&place)?;
        self.by_request.remove(&half.request);
        Some(half)
    }
}

#[cfg(test)]
mod tests;
