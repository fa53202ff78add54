//! Port-forward over SPDY, the server's side: it pairs the client's streams, dials, and carries.
//!
//! An error of one pair touches that pair alone. Everything is polled in the session's own task.

mod forward;
mod pump;

use std::{
    borrow::Cow,
    future::pending,
    pin::{Pin, pin},
    sync::atomic::{AtomicU64, Ordering},
    task::{Context, Waker},
    time::Duration,
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    join, select,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use self::forward::{Forwarding, finish};
use super::{
    Dial, DialErrors, Limits, PROTOCOL,
    pair::{Added, Half, Pair, Pairing, Role, StreamHeaders},
};
use crate::{
    spdy::{self, Config, Error, ResetCode, Stream},
    upgrade::{Cause, End, Report, SessionLimits, Target, clock::quiet},
};

/// How long pods may take the last of what a client sent before it went.
const GRACE: Duration = Duration::from_secs(10);

/// Streams that are on their way out, beyond those of the pairs: 2,048 for the default of 1,000 pairs.
const LEAVING: usize = 48;

/// A stream's inflated headers, which it keeps. Clients send under 100 bytes.
const HEADERS: usize = 4 * 1024;

/// Payload bytes of the session.
#[derive(Debug, Default)]
struct Traffic {
    /// From the client.
    up: AtomicU64,
    /// To the client.
    down: AtomicU64,
}

impl Traffic {
    fn get(&self) -> (u64, u64) {
        (self.up.load(Ordering::Relaxed), self.down.load(Ordering::Relaxed))
    }
}

/// Serves a port-forward on a connection whose `101` has been sent, until the client goes.
///
/// When `drain` fires, every connection is reset and the client is told to go. A client that goes leaves its pods an
/// end of file where it had said so, and else a reset.
///
/// # Cancel safety
///
/// Dropping the future drops the connection and resets the pods'.
pub(crate) async fn serve<Io, D>(
    io: Io,
    dial: &D,
    target: &Target,
    errors: DialErrors,
    limits: Limits,
    session: &SessionLimits,
    drain: CancellationToken,
) -> Report
where
    Io: AsyncRead + AsyncWrite + Unpin,
    D: Dial,
{
    let clocks = spdy::session::Limits::default().ping_after(session.ping_after).dead_after(session.dead_after);
    let config = Config::new().session(clocks).streams(2 * limits.pairs + LEAVING).header_bytes(HEADERS);
    let (mut incoming, handle, connection) = spdy::server(
        io,
        match errors {
            DialErrors::Report => config,
            DialErrors::Isolate => config.reset_stalled_after(limits.stall),
        },
    );
    let traffic = Traffic::default();
    let forwarding = Forwarding { dial, target, errors, traffic: &traffic };
    let session = async {
        let mut waiting = Waiting { pairing: Pairing::new(limits.pairing), limits, errors };
        let mut running = FuturesUnordered::new();
        let (mut closed, mut idle) = (pin!(handle.closed()), pin!(quiet(session.idle, || traffic.get())));
        let (end, cause, detail) = loop {
            select! {
                biased;
                result = &mut closed => break client_ended(result),
                () = drain.cancelled() => break (End::Error, Cause::Drain, "the server is shutting down".into()),
                () = &mut idle => break (End::Error, Cause::Idle, "nothing was sent for too long".into()),
                Some(()) = running.next(), if !running.is_empty() => {}
                () = until(waiting.pairing.deadline()) => waiting.expire(),
                Some(stream) = incoming.accept() => {
                    running.extend(waiting.add(stream, running.len()).map(|pair| forwarding.run(pair)));
                }
            }
        };
        handle.close();
        drop(waiting);
        // They see that the connection is over. Those whose pod does not take the last of it are reset.
        let _ = timeout(GRACE, running.by_ref().for_each(|()| std::future::ready(()))).await;
        Report::new(end, cause, detail)
    };
    let (mut report, _) = join!(session, connection);
    report.protocol_in = PROTOCOL.into();
    (report.bytes.data_in, report.bytes.data_out) = traffic.get();
    report
}

/// A forward has no other end than that its client goes.
fn client_ended(result: Result<(), Error>) -> (End, Cause, Cow<'static, str>) {
    match result {
        Ok(()) => (End::Carried, Cause::ClientClosed, "the client closed the connection".into()),
        Err(error) if error.is_lost() => (End::ClientGone, Cause::ClientLost, "the client went away".into()),
        Err(error) if error.is_timeout() => (End::Error, Cause::ClientSilent, error.to_string().into()),
        Err(error) => (End::Error, Cause::ClientProtocol, error.to_string().into()),
    }
}

/// Streams that are not yet a pair.
struct Waiting {
    pairing: Pairing<Stream>,
    limits: Limits,
    errors: DialErrors,
}

impl Waiting {
    /// Takes a stream of the client's, or refuses it. `running`: how many pairs there are.
    fn add(&mut self, stream: Stream, running: usize) -> Option<Pair<Stream>> {
        let headers = match StreamHeaders::read(stream.id(), |name| stream.header(name)) {
            Ok(headers) => headers,
            Err(bad) => {
                tracing::debug!(stream.id = %stream.id(), %bad, "stream refused");
                stream.refuse(ResetCode::CANCEL);
                return None;
            }
        };
        if self.pairing.is_new(&headers.request) && !self.has_room(running) {
            tracing::debug!(stream.id = %stream.id(), "stream refused: too many connections");
            stream.refuse(ResetCode::REFUSED_STREAM);
            return None;
        }
        stream.reply();
        match self.pairing.add(headers, stream, Instant::now()) {
            Added::Waiting => None,
            Added::Complete(pair) => Some(pair),
            Added::Duplicate { first, stream } => {
                let role = if first.role == Role::Error { "error" } else { "data" };
                let request = &first.request;
                let why = format!("error processing stream for request {request}: {role} stream already assigned");
                tracing::debug!(stream.id = %stream.id(), "{why}");
                if self.errors == DialErrors::Report && first.role == Role::Error {
                    write_now(&mut first.stream, &why);
                }
                stream.reset(ResetCode::CANCEL);
                None
            }
        }
    }

    fn has_room(&mut self, running: usize) -> bool {
        if self.pairing.len() + running >= self.limits.pairs {
            // A client that gave up need not wait for the time-out.
            self.pairing.retain(|stream| stream.poll_aborted(&mut Context::from_waker(Waker::noop())).is_pending());
        }
        self.pairing.len() + running < self.limits.pairs
    }

    /// Gives streams up that have waited too long. Upstream leaves the data stream hanging.
    fn expire(&mut self) {
        while let Some(Half { request, role, mut stream, .. }) = self.pairing.expired(Instant::now()) {
            // Upstream's text has the address of its connection in memory before the request.
            let why = format!("(request={request}) timed out waiting for streams");
            tracing::debug!(stream.id = %stream.id(), "{why}");
            if self.errors == DialErrors::Report && role == Role::Error {
                write_now(&mut stream, &why);
                finish(&mut stream);
            } else {
                stream.reset(ResetCode::CANCEL);
            }
        }
    }
}

/// Writes as much as there is room for, which is all, unless the client does not read.
fn write_now(stream: &mut Stream, text: &str) {
    let _ = Pin::new(stream).poll_write(&mut Context::from_waker(Waker::noop()), text.as_bytes());
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => pending().await,
    }
}

#[cfg(test)]
#[cfg(feature = "client")]
mod tests;
