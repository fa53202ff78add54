//! What the driver, the handles and the streams of one connection share: the session and the streams' bytes.
//!
//! Nobody does I/O under the lock, and wakers are called behind it.

mod driver;
mod handles;
mod streams;

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
    task::Waker,
    time::Instant,
};

use tokio::sync::watch;

use super::{
    codec::HeaderMode,
    connection::Config,
    error::{Error, Kind},
    frame::StreamId,
    header_block::Headers,
    session::{Role, Session},
    stream::RecvEnd,
};

#[derive(Debug)]
pub(in crate::spdy) struct Shared {
    state: Mutex<State>,
    /// The connection is over.
    done: watch::Sender<bool>,
}

/// Keeps the connection open: every handle, stream and opener has one.
#[derive(Debug)]
pub(in crate::spdy) struct User(Arc<Shared>);

#[derive(Debug)]
pub(in crate::spdy) struct State {
    pub(in crate::spdy) session: Session,
    config: Config,
    bodies: HashMap<StreamId, Body>,
    /// Streams with something to write, each once. Round robin.
    ready: VecDeque<StreamId>,
    /// Bytes that came and were not read, in all streams.
    unread: usize,
    /// Streams above their bound, and not yet back at half of it.
    full_streams: usize,
    /// The connection is above its bound, and not yet back at half of it.
    full: bool,
    /// Reading pauses since then, because of unread bytes.
    paused_since: Option<Instant>,
    /// Streams that the peer opened and nobody accepted. `None`: nobody will.
    incoming: Option<VecDeque<StreamId>>,
    acceptor: Option<Waker>,
    users: usize,
    /// The last batch has more than control frames.
    batch_has_data: bool,
    /// Somebody closed the connection, or nobody uses it.
    closing: bool,
    /// The peer broke the protocol.
    fatal: Option<Error>,
    /// How it ended.
    result: Option<Result<(), Error>>,
    driver: Option<Waker>,
    /// To be called when the lock is released.
    wakers: Vec<Waker>,
}

/// A stream's bytes. It lives as long as somebody reads or writes, or has something left to send.
#[derive(Debug)]
pub(in crate::spdy) struct Body {
    recv: VecDeque<u8>,
    end: Option<RecvEnd>,
    reader: Option<Waker>,
    has_reader: bool,
    /// Counted in `full_streams`.
    full: bool,
    /// It was cut off: reset, or the connection is over. Unlike `end`, also behind FIN.
    aborted: Option<RecvEnd>,
    watcher: Option<Waker>,
    send: VecDeque<u8>,
    fin: Fin,
    /// Nothing more can be written.
    stopped: Option<Stop>,
    writer: Option<Waker>,
    has_writer: bool,
    /// It is in `ready`.
    queued: bool,
    /// What became of SYN_STREAM, if it was this side's.
    opened: Option<Result<(), Error>>,
    headers: Option<Headers>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fin {
    No,
    /// To be sent behind what is queued.
    Wanted,
    Sent,
}

/// Why nothing more can be written.
#[derive(Clone, Debug)]
pub(in crate::spdy) enum Stop {
    /// The stream was reset.
    Reset,
    /// The connection is over, or about to be.
    Over,
}

impl Body {
    fn new(headers: Option<Headers>) -> Self {
        Self {
            recv: VecDeque::new(),
            end: None,
            reader: None,
            has_reader: true,
            full: false,
            aborted: None,
            watcher: None,
            send: VecDeque::new(),
            fin: Fin::No,
            stopped: None,
            writer: None,
            has_writer: true,
            queued: false,
            opened: None,
            headers,
        }
    }

    fn has_output(&self) -> bool {
        self.stopped.is_none() && (!self.send.is_empty() || self.fin == Fin::Wanted)
    }

    /// Nothing more goes out.
    fn stop(&mut self, stop: &Stop, wakers: &mut Vec<Waker>) {
        if self.stopped.is_none() && self.fin != Fin::Sent {
            self.stopped = Some(stop.clone());
            self.send = VecDeque::new();
        }
        wakers.extend(self.writer.take());
    }

    /// Nothing more comes in.
    fn end(&mut self, end: RecvEnd, wakers: &mut Vec<Waker>) {
        if end != RecvEnd::Fin {
            self.aborted.get_or_insert(end);
            wakers.extend(self.watcher.take());
        }
        self.end.get_or_insert(end);
        wakers.extend(self.reader.take());
    }
}

impl Shared {
    pub(in crate::spdy) fn new(role: Role, config: Config, now: Instant, users: usize) -> Arc<Self> {
        let state = State {
            session: Session::new(role, config.session, now),
            config,
            bodies: HashMap::new(),
            ready: VecDeque::new(),
            unread: 0,
            full_streams: 0,
            full: false,
            paused_since: None,
            incoming: (role == Role::Server).then(VecDeque::new),
            acceptor: None,
            users,
            batch_has_data: false,
            closing: false,
            fatal: None,
            result: None,
            driver: None,
            wakers: Vec::new(),
        };
        Arc::new(Self { state: Mutex::new(state), done: watch::Sender::new(false) })
    }

    /// Does something under the lock, then wakes whom it concerns.
    pub(in crate::spdy) fn with<T>(&self, run: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let value = run(&mut state);
        let wakers = std::mem::take(&mut state.wakers);
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
        value
    }

    /// The connection is over. The first result counts.
    pub(in crate::spdy) fn finish(&self, result: Result<(), Error>, cut: bool) {
        self.with(|state| state.finish(result, cut));
        self.done.send_replace(true);
    }

    pub(in crate::spdy) async fn done(&self) -> Result<(), Error> {
        // The sender lives as long as `self`.
        let _ = self.done.subscribe().wait_for(|done| *done).await;
        self.with(|state| state.result.clone().unwrap_or(Ok(())))
    }
}

impl User {
    /// One of those counted in [`Shared::new`].
    pub(in crate::spdy) fn counted(shared: &Arc<Shared>) -> Self {
        Self(Arc::clone(shared))
    }

    pub(in crate::spdy) fn shared(&self) -> &Arc<Shared> {
        &self.0
    }

    pub(in crate::spdy) fn with<T>(&self, run: impl FnOnce(&mut State) -> T) -> T {
        self.0.with(run)
    }
}

impl Clone for User {
    fn clone(&self) -> Self {
        self.0.with(|state| state.users += 1);
        Self(Arc::clone(&self.0))
    }
}

impl Drop for User {
    fn drop(&mut self) {
        self.0.with(|state| {
            state.users -= 1;
            if state.users == 0 {
                state.close();
            }
        });
    }
}

pub(in crate::spdy) fn header_mode(role: Role) -> HeaderMode {
    match role {
        // Replies have no headers, and streams of the server's are refused.
        Role::Client => HeaderMode::Skip,
        Role::Server => HeaderMode::Inflate,
    }
}

fn closed() -> Error {
    Error::new(Kind::Closed, "the connection is closed")
}

pub(in crate::spdy) fn lost() -> Error {
    Error::new(Kind::Lost, "connection lost")
}
