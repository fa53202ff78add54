//! What the driver, the handles and the streams of one connection share: the session and the streams' bytes.
//!
//! Nobody does I/O under the lock, and wakers are called behind it.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Waker},
    time::Instant,
};

use tokio::sync::watch;

use super::{
    codec::{Decoder, Event as Frame, HeaderMode},
    connection::Config,
    error::{Error, Kind},
    frame::{self, GoAwayCode, ResetCode, StreamId},
    header_block::Headers,
    session::{Event, Role, Session},
    stream::RecvEnd,
};

/// The longest DATA frame: Go's buffers end there, and longer ones are unfair.
const MAX_DATA: usize = 32 * 1024;

/// A batch to write is full at this length. It may be passed by one DATA frame.
const MAX_BATCH: usize = 32 * 1024;

#[derive(Debug)]
pub(super) struct Shared {
    state: Mutex<State>,
    /// The connection is over.
    done: watch::Sender<bool>,
}

/// Keeps the connection open: every handle, stream and opener has one.
#[derive(Debug)]
pub(super) struct User(Arc<Shared>);

#[derive(Debug)]
pub(super) struct State {
    pub(super) session: Session,
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
pub(super) struct Body {
    recv: VecDeque<u8>,
    end: Option<RecvEnd>,
    reader: Option<Waker>,
    has_reader: bool,
    /// Counted in `full_streams`.
    full: bool,
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
pub(super) enum Stop {
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
        self.end.get_or_insert(end);
        wakers.extend(self.reader.take());
    }
}

impl Shared {
    pub(super) fn new(role: Role, config: Config, now: Instant, users: usize) -> Arc<Self> {
        let state = State {
            session: Session::new(role, config.session, now),
            config,
            bodies: HashMap::new(),
            ready: VecDeque::new(),
            unread: 0,
            full_streams: 0,
            full: false,
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
    pub(super) fn with<T>(&self, run: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let value = run(&mut state);
        let wakers = std::mem::take(&mut state.wakers);
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
        value
    }

    /// The connection is over. The first result counts.
    pub(super) fn finish(&self, result: Result<(), Error>, cut: bool) {
        self.with(|state| state.finish(result, cut));
        self.done.send_replace(true);
    }

    pub(super) async fn done(&self) -> Result<(), Error> {
        // The sender lives as long as `self`.
        let _ = self.done.subscribe().wait_for(|done| *done).await;
        self.with(|state| state.result.clone().unwrap_or(Ok(())))
    }
}

impl User {
    /// One of those counted in [`Shared::new`].
    pub(super) fn counted(shared: &Arc<Shared>) -> Self {
        Self(Arc::clone(shared))
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.0
    }

    pub(super) fn with<T>(&self, run: impl FnOnce(&mut State) -> T) -> T {
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

/// For the driver.
impl State {
    pub(super) fn set_driver(&mut self, waker: &Waker) {
        match &mut self.driver {
            Some(driver) => driver.clone_from(waker),
            None => self.driver = Some(waker.clone()),
        }
    }

    /// Takes what came from the peer.
    pub(super) fn handle_bytes(&mut self, decoder: &mut Decoder, mut bytes: &[u8], now: Instant) {
        self.session.handle_read(now);
        while self.fatal.is_none() {
            match self.handle_step(decoder, &mut bytes) {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => self.fail(error),
            }
        }
    }

    /// `false`: the bytes are used up.
    fn handle_step(&mut self, decoder: &mut Decoder, bytes: &mut &[u8]) -> Result<bool, Error> {
        let step = decoder.step(bytes)?;
        let payload = match &step.event {
            Frame::NeedMore => return Ok(false),
            Frame::Data { stream, range, .. } => Some((*stream, &bytes[range.clone()])),
            _ => None,
        };
        *bytes = &bytes[step.consumed..];
        if self.session.handle_frame(step.event)?
            && let Some((stream, payload)) = payload
        {
            self.deliver(stream, payload);
        }
        self.handle_events();
        Ok(true)
    }

    fn deliver(&mut self, stream: StreamId, payload: &[u8]) {
        // Closing, nobody will read; the peer is drained all the same.
        let Some(body) = self.bodies.get_mut(&stream).filter(|body| body.has_reader && body.end.is_none()) else {
            return;
        };
        body.recv.extend(payload);
        self.unread += payload.len();
        if !body.full && body.recv.len() >= self.config.stream_unread {
            body.full = true;
            self.full_streams += 1;
        }
        self.full |= self.unread >= self.config.connection_unread;
        self.wakers.extend(body.reader.take());
    }

    pub(super) fn handle_events(&mut self) {
        while let Some(event) = self.session.poll_event() {
            match event {
                Event::Opened { stream, headers } => match &mut self.incoming {
                    Some(incoming) if !self.closing => {
                        incoming.push_back(stream);
                        self.bodies.insert(stream, Body::new(Some(headers)));
                        self.wakers.extend(self.acceptor.take());
                    }
                    _ => self.session.reset(stream, ResetCode::REFUSED_STREAM),
                },
                Event::Replied(stream) => {
                    if let Some(body) = self.bodies.get_mut(&stream) {
                        body.opened = Some(Ok(()));
                        self.wakers.extend(body.reader.take());
                    }
                    self.schedule(stream);
                }
                Event::OpenFailed(stream, failure) => {
                    if let Some(body) = self.bodies.get_mut(&stream) {
                        body.opened = Some(Err(failure.into()));
                        self.wakers.extend(body.reader.take());
                    }
                }
                Event::Finished(stream) => {
                    if let Some(body) = self.bodies.get_mut(&stream) {
                        body.end(RecvEnd::Fin, &mut self.wakers);
                    }
                }
                Event::Reset(stream, code) => {
                    let Some(body) = self.bodies.get_mut(&stream) else { continue };
                    body.end(RecvEnd::Reset(code), &mut self.wakers);
                    body.stop(&Stop::Reset, &mut self.wakers);
                    if body.headers.is_some() {
                        // Nobody accepted it. A peer that opens and resets without end fills no queue.
                        self.incoming.iter_mut().for_each(|incoming| incoming.retain(|id| *id != stream));
                        self.drop_reader(stream);
                        self.drop_writer(stream);
                    }
                    self.clean(stream);
                }
                // It opens no more streams.
                Event::GoAway(_) => self.wakers.extend(self.acceptor.take()),
            }
        }
    }

    /// Reads pause for the whole connection: SPDY as Kubernetes speaks it has no other way.
    pub(super) fn wants_read(&self) -> bool {
        self.closing || self.full_streams == 0 && !self.full && !self.session.is_backed_up()
    }

    /// Fills an empty batch: control frames first, then one DATA frame of each stream in turn.
    pub(super) fn fill(&mut self, out: &mut Vec<u8>) {
        self.session.encode_control(out, MAX_BATCH);
        self.batch_has_data = false;
        while out.len() < MAX_BATCH
            && let Some(stream) = self.ready.pop_front()
        {
            let Some(body) = self.bodies.get_mut(&stream) else { continue };
            body.queued = false;
            if !body.has_output() || !self.session.can_send(stream) {
                continue;
            }
            self.batch_has_data = true;
            let len = body.send.len().min(MAX_DATA);
            if len > 0 {
                out.reserve(len + 2 * frame::HEAD_LEN);
                out.extend_from_slice(&frame::data_head(stream, len, false));
                let (first, second) = body.send.as_slices();
                let from_first = len.min(first.len());
                out.extend_from_slice(&first[..from_first]);
                out.extend_from_slice(&second[..len - from_first]);
                body.send.drain(..len);
            }
            if !body.send.is_empty() {
                body.queued = true;
                self.ready.push_back(stream);
            } else {
                body.send = VecDeque::new();
                if body.fin == Fin::Wanted {
                    // A frame of its own, as Go writes it.
                    out.extend_from_slice(&frame::data_head(stream, 0, true));
                    body.fin = Fin::Sent;
                    self.session.finish(stream);
                }
            }
            self.wakers.extend(body.writer.take());
            self.clean(stream);
        }
        if self.ready.is_empty() && out.is_empty() && self.must_end() {
            // Everything that was accepted is out. As Go's `Close`: RST what is open, then GOAWAY.
            let streams: Vec<_> = self.bodies.keys().copied().collect();
            for stream in streams {
                self.session.reset(stream, ResetCode::CANCEL);
            }
            self.session.go_away(match self.fatal {
                Some(_) => GoAwayCode::PROTOCOL_ERROR,
                None => GoAwayCode::OK,
            });
            self.session.encode_control(out, usize::MAX);
        }
    }

    /// The connection has no purpose any more.
    pub(super) fn must_end(&self) -> bool {
        self.closing || self.session.is_peer_gone() && self.session.is_idle()
    }

    /// All is written, GOAWAY too: time to close the socket.
    pub(super) fn is_flushed(&self) -> bool {
        self.must_end() && self.ready.is_empty() && !self.session.has_control()
    }

    /// The peer broke the protocol: its streams end here, and GOAWAY says why.
    pub(super) fn fail(&mut self, error: Error) {
        self.fatal.get_or_insert(error);
        self.end_all(RecvEnd::Lost);
        self.close();
    }

    pub(super) fn fatal(&self) -> Option<Error> {
        self.fatal.clone()
    }

    /// If the connection ends here, that is in order: nothing is lost but control frames.
    pub(super) fn may_end(&self, batch_unwritten: bool) -> bool {
        let all_written = self.ready.is_empty() && !(batch_unwritten && self.batch_has_data);
        self.session.is_peer_gone() || all_written && (self.closing || self.session.is_idle())
    }

    fn finish(&mut self, result: Result<(), Error>, cut: bool) {
        if self.result.is_some() {
            return;
        }
        let gone = self.session.is_peer_gone() && !cut;
        self.result = Some(result);
        self.closing = true;
        self.end_all(if gone { RecvEnd::GoAway } else { RecvEnd::Lost });
        self.wakers.extend(self.acceptor.take());
        self.driver = None;
    }

    fn end_all(&mut self, end: RecvEnd) {
        self.ready.clear();
        for body in self.bodies.values_mut() {
            body.queued = false;
            body.end(end, &mut self.wakers);
            body.stop(&Stop::Over, &mut self.wakers);
        }
        self.bodies.retain(|_, body| body.has_reader || body.has_writer);
    }

    /// Forgets a stream that nobody uses and that has nothing left to send.
    fn clean(&mut self, stream: StreamId) {
        if self.bodies.get(&stream).is_some_and(|body| !body.has_reader && !body.has_writer && !body.has_output()) {
            self.bodies.remove(&stream);
        }
    }

    fn schedule(&mut self, stream: StreamId) {
        let Some(body) = self.bodies.get_mut(&stream) else { return };
        if body.has_output() && !body.queued && self.session.can_send(stream) {
            body.queued = true;
            self.ready.push_back(stream);
        }
        self.wake_driver();
    }

    pub(super) fn wake_driver(&mut self) {
        self.wakers.extend(self.driver.take());
    }
}

/// For handles.
impl State {
    pub(super) fn open(&mut self, headers: &[(&str, &str)], now: Instant) -> Result<StreamId, Error> {
        if let Some(Err(error)) = &self.result {
            return Err(error.clone());
        }
        if self.closing {
            return Err(closed());
        }
        let stream = self.session.open(headers, now)?;
        self.bodies.insert(stream, Body::new(None));
        self.wake_driver();
        Ok(stream)
    }

    /// `None`: not yet.
    pub(super) fn poll_opened(&mut self, stream: StreamId, cx: &Context<'_>) -> Option<Result<(), Error>> {
        let Some(body) = self.bodies.get_mut(&stream) else { return Some(Err(closed())) };
        if let Some(opened) = &body.opened {
            return Some(opened.clone());
        }
        if body.end.is_some() {
            return Some(Err(match &self.result {
                Some(Err(error)) => error.clone(),
                Some(Ok(())) | None => self.fatal.clone().unwrap_or_else(closed),
            }));
        }
        body.reader = Some(cx.waker().clone());
        None
    }

    /// Nobody waits for a stream any more, or nobody wants it.
    pub(super) fn abandon(&mut self, stream: StreamId, code: ResetCode) {
        self.reset(stream, code);
        self.drop_reader(stream);
        self.drop_writer(stream);
    }

    /// `Some(None)`: there will be no more.
    pub(super) fn poll_accept(&mut self, cx: &Context<'_>) -> Option<Option<(StreamId, Headers)>> {
        while let Some(stream) = self.incoming.as_mut().and_then(VecDeque::pop_front) {
            if let Some(headers) = self.bodies.get_mut(&stream).and_then(|body| body.headers.take()) {
                return Some(Some((stream, headers)));
            }
        }
        if self.closing || self.session.is_peer_gone() {
            return Some(None);
        }
        self.acceptor = Some(cx.waker().clone());
        None
    }

    /// Nobody will accept streams.
    pub(super) fn stop_accepting(&mut self) {
        for stream in self.incoming.take().into_iter().flatten() {
            self.abandon(stream, ResetCode::REFUSED_STREAM);
        }
    }

    pub(super) fn close(&mut self) {
        if self.closing {
            return;
        }
        self.closing = true;
        self.full = false;
        for body in self.bodies.values_mut() {
            body.end(RecvEnd::Reset(ResetCode::CANCEL), &mut self.wakers);
            // What was accepted goes out; a writer is told that no more is.
            self.wakers.extend(body.writer.take());
        }
        self.wakers.extend(self.acceptor.take());
        self.wake_driver();
    }
}

/// For streams.
impl State {
    pub(super) fn reply(&mut self, stream: StreamId) {
        self.session.reply(stream);
        self.schedule(stream);
    }

    pub(super) fn reset(&mut self, stream: StreamId, code: ResetCode) {
        self.session.reset(stream, code);
        if let Some(body) = self.bodies.get_mut(&stream) {
            body.end(RecvEnd::Reset(code), &mut self.wakers);
            body.stop(&Stop::Reset, &mut self.wakers);
        }
        self.discard_unread(stream);
        self.wake_driver();
    }

    pub(super) fn ended(&self, stream: StreamId) -> Option<RecvEnd> {
        self.bodies.get(&stream).filter(|body| body.recv.is_empty()).and_then(|body| body.end)
    }

    /// `None`: nothing came yet. Nothing in `buf`: the end.
    pub(super) fn read(
        &mut self,
        stream: StreamId,
        buf: &mut tokio::io::ReadBuf<'_>,
        cx: &Context<'_>,
    ) -> Option<Result<(), Error>> {
        let Some(body) = self.bodies.get_mut(&stream) else { return Some(Ok(())) };
        if body.recv.is_empty() && buf.remaining() > 0 {
            return match body.end {
                Some(RecvEnd::Lost) => Some(Err(match &self.result {
                    Some(Err(error)) => error.clone(),
                    Some(Ok(())) | None => self.fatal.clone().unwrap_or_else(lost),
                })),
                Some(RecvEnd::Fin | RecvEnd::Reset(_) | RecvEnd::GoAway) => Some(Ok(())),
                None => {
                    body.reader = Some(cx.waker().clone());
                    None
                }
            };
        }
        let (first, second) = body.recv.as_slices();
        let from_first = first.len().min(buf.remaining());
        buf.put_slice(&first[..from_first]);
        let from_second = second.len().min(buf.remaining());
        buf.put_slice(&second[..from_second]);
        self.took(stream, from_first + from_second);
        Some(Ok(()))
    }

    /// The reader took `len` bytes.
    fn took(&mut self, stream: StreamId, len: usize) {
        let Some(body) = self.bodies.get_mut(&stream) else { return };
        let paused = self.full || self.full_streams > 0;
        body.recv.drain(..len);
        if body.recv.is_empty() {
            // A stream at rest keeps nothing.
            body.recv = VecDeque::new();
        }
        self.unread -= len;
        if body.full && body.recv.len() <= self.config.stream_unread / 2 {
            body.full = false;
            self.full_streams -= 1;
        }
        self.full &= self.unread > self.config.connection_unread / 2;
        if paused && !self.full && self.full_streams == 0 {
            self.wake_driver();
        }
    }

    fn discard_unread(&mut self, stream: StreamId) {
        if let Some(len) = self.bodies.get(&stream).map(|body| body.recv.len()) {
            self.took(stream, len);
        }
    }

    /// `None`: there is no room yet.
    pub(super) fn write(&mut self, stream: StreamId, bytes: &[u8], cx: &Context<'_>) -> Option<Result<usize, Stop>> {
        let Some(body) = self.bodies.get_mut(&stream) else { return Some(Err(Stop::Over)) };
        if let Some(stop) = &body.stopped {
            return Some(Err(stop.clone()));
        }
        if body.fin != Fin::No || self.closing {
            return Some(Err(Stop::Over));
        }
        let len = bytes.len().min(self.config.stream_unsent - body.send.len());
        if len == 0 && !bytes.is_empty() {
            body.writer = Some(cx.waker().clone());
            return None;
        }
        body.send.extend(&bytes[..len]);
        self.schedule(stream);
        Some(Ok(len))
    }

    /// `None`: not everything is out.
    pub(super) fn flush(&mut self, stream: StreamId, cx: &Context<'_>) -> Option<Result<(), Stop>> {
        let Some(body) = self.bodies.get_mut(&stream) else { return Some(Err(Stop::Over)) };
        match &body.stopped {
            Some(stop) => Some(Err(stop.clone())),
            None if body.has_output() => {
                body.writer = Some(cx.waker().clone());
                None
            }
            None => Some(Ok(())),
        }
    }

    /// FIN goes out behind what is queued. `None`: not yet.
    pub(super) fn shut_down(&mut self, stream: StreamId, cx: &Context<'_>) -> Option<Result<(), Stop>> {
        let Some(body) = self.bodies.get_mut(&stream) else { return Some(Err(Stop::Over)) };
        if body.fin == Fin::No && body.stopped.is_none() {
            if self.closing {
                return Some(Err(Stop::Over));
            }
            body.fin = Fin::Wanted;
            self.schedule(stream);
        }
        self.flush(stream, cx)
    }

    pub(super) fn drop_reader(&mut self, stream: StreamId) {
        self.discard_unread(stream);
        self.session.discard(stream);
        if let Some(body) = self.bodies.get_mut(&stream) {
            body.has_reader = false;
            body.reader = None;
        }
        self.clean(stream);
        // The connection may be done.
        self.wake_driver();
    }

    pub(super) fn drop_writer(&mut self, stream: StreamId) {
        let Some(body) = self.bodies.get_mut(&stream) else { return };
        body.has_writer = false;
        body.writer = None;
        // Without FIN the peer must not take what it has for everything. Without a reply FIN would never go out.
        let finishes = body.fin == Fin::Sent || body.fin == Fin::Wanted && self.session.can_send(stream);
        if !finishes && body.stopped.is_none() && !self.closing {
            self.reset(stream, ResetCode::CANCEL);
        }
        self.clean(stream);
        self.wake_driver();
    }
}

pub(super) fn header_mode(role: Role) -> HeaderMode {
    match role {
        // Replies have no headers, and streams of the server's are refused.
        Role::Client => HeaderMode::Skip,
        Role::Server => HeaderMode::Inflate,
    }
}

fn closed() -> Error {
    Error::new(Kind::Closed, "the connection is closed")
}

pub(super) fn lost() -> Error {
    Error::new(Kind::Lost, "connection lost")
}
