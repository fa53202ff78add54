//! One request and the session that comes of it, each counted once.

use std::{
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use http::Request;
use tokio::time::Instant;

use super::{Answer, Protocol, Record, Stream};
use crate::upgrade::{Cause, End, Report, Route, Session, StreamRequest, Subresource};

/// A request that waits for its answer. Dropped before that, it was abandoned.
pub(super) struct Waiting {
    session: Session,
    counted: Arc<Counted>,
}

impl Waiting {
    pub(super) fn of<B>(record: &Arc<dyn Record>, request: &Request<B>) -> Option<Self> {
        let subresource = request.extensions().get::<StreamRequest>()?.target().subresource;
        let session = request.extensions().get::<Session>()?.clone();
        let counted = Arc::new(Counted {
            record: Arc::clone(record),
            subresource,
            protocol: Protocol::of(subresource, request.headers()),
            asked: Instant::now(),
            phase: Mutex::new(Phase::Asked),
        });
        // Told before the inner service is asked: in one process a session can end before its `101` comes by here.
        let ending = Ending(Arc::clone(&counted));
        session.on_end(move |report| ending.0.ended(report));
        Some(Self { session, counted })
    }

    pub(super) fn answered(&self, answer: Answer) {
        self.counted.answered(self.session.route(), answer);
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        // Does nothing once it was answered.
        self.answered(Answer::Abandoned);
    }
}

/// Rides in the session, so that its end is counted also where nobody reports it.
struct Ending(Arc<Counted>);

impl Drop for Ending {
    fn drop(&mut self) {
        // Does nothing once the end was reported.
        self.0.ended(&Report::new(End::Error, Cause::Aborted, "dropped"));
    }
}

/// One request and the session that comes of it, each counted once.
struct Counted {
    record: Arc<dyn Record>,
    subresource: Subresource,
    protocol: Protocol,
    asked: Instant,
    phase: Mutex<Phase>,
}

enum Phase {
    /// Not answered yet.
    Asked,
    /// Not answered yet, and the session has ended.
    Over(Report),
    /// The session lives since then.
    Open(Stream, Instant),
    /// All is counted.
    Done,
}

impl Counted {
    fn answered(&self, route: Route, answer: Answer) {
        // The lock is held while the record is told: an end must not overtake its beginning.
        let mut phase = self.lock();
        let over = match mem::replace(&mut *phase, Phase::Done) {
            Phase::Asked => None,
            Phase::Over(report) => Some(report),
            counted => return *phase = counted,
        };
        let now = Instant::now();
        let stream = Stream { subresource: self.subresource, protocol: self.protocol, route };
        self.record.answered(stream, answer, now.saturating_duration_since(self.asked));
        match over {
            _ if answer != Answer::Switched => {}
            None => *phase = Phase::Open(stream, now),
            Some(report) => self.record.ended(stream, &report, Duration::ZERO),
        }
    }

    fn ended(&self, report: &Report) {
        let mut phase = self.lock();
        match mem::replace(&mut *phase, Phase::Done) {
            Phase::Asked => *phase = Phase::Over(report.clone()),
            Phase::Open(stream, since) => self.record.ended(stream, report, since.elapsed()),
            counted => *phase = counted,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Phase> {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
