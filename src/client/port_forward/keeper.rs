//! Keeps one connection to the server, and dials again when it is lost.

use std::{
    fmt,
    future::Future,
    num::NonZeroU16,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    select,
    sync::watch,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{Connection, ConnectionError, DialError, Event, OpenForward, PortForwardRequest, Upstream};
use crate::BoxError;

/// Pauses between attempts: upstream's dialer has none. The longest keeps a server that comes back from waiting.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Longest time for finding the pod.
const RESOLVE: Duration = Duration::from_secs(30);

/// Finds the pod.
pub(super) type Resolve = Box<dyn Fn() -> Pin<Box<dyn Future<Output = Resolved> + Send>> + Send + Sync>;
type Resolved = Result<PortForwardRequest, BoxError>;

/// Hears of what happens.
pub(super) type Listener = Box<dyn Fn(&Event<'_>) + Send + Sync>;

/// What the connections know of the one to the server.
pub(super) struct Keeper {
    current: watch::Sender<Option<Arc<Slot>>>,
    /// Connections that wait for it.
    waiting: watch::Sender<usize>,
    listener: Listener,
}

/// A connection to the server, until nothing new can go over it.
struct Slot {
    upstream: Upstream,
    retired: CancellationToken,
    /// A connection was opened over it.
    used: AtomicBool,
}

impl Keeper {
    pub(super) fn new(listener: Listener) -> Self {
        Self { current: watch::Sender::new(None), waiting: watch::Sender::new(0), listener }
    }

    pub(super) fn tell(&self, event: &Event<'_>) {
        (self.listener)(event);
    }

    /// A connection into the pod, once there is one to the server. The caller bounds the time.
    pub(super) async fn connect(&self, port: NonZeroU16) -> Result<Connection, ConnectionError> {
        let mut current = self.current.subscribe();
        loop {
            let slot = {
                let _waits = Waits::new(&self.waiting);
                let usable = current.wait_for(|slot| slot.as_ref().is_some_and(|slot| !slot.retired.is_cancelled()));
                // The sender is ours.
                usable.await.ok().and_then(|slot| slot.clone())
            };
            let slot = slot.ok_or(ConnectionError::Stopped)?;
            match slot.upstream.connect(port).await {
                // Nothing was sent: it is asked for again.
                Err(ConnectionError::Lost) => slot.retired.cancel(),
                done => {
                    slot.used.store(true, Ordering::Relaxed);
                    return done;
                }
            }
        }
    }

    /// Keeps a connection to the server. `first` is told as the first one.
    pub(super) async fn keep(&self, dialer: &impl OpenForward, resolve: &Resolve, first: Upstream) {
        let mut upstream = first;
        self.tell(&Event::Opened { carrier: upstream.carrier(), fell_back: upstream.fell_back() });
        let mut failures = 0;
        loop {
            let since = Instant::now();
            let was_used = self.hold(upstream).await;
            // One that is lost at once counts as a failed attempt, or dialling would never pause.
            failures = if was_used || since.elapsed() >= LONGEST_PAUSE { 0 } else { failures + 1 };
            let attempts;
            (upstream, attempts) = self.redial(dialer, resolve, failures).await;
            failures += attempts - 1;
            self.tell(&Event::Redialled { carrier: upstream.carrier(), attempts });
        }
    }

    /// Ready when `upstream` takes no more connections; whether it took any. Those may go on.
    async fn hold(&self, upstream: Upstream) -> bool {
        let slot = Arc::new(Slot { upstream, retired: CancellationToken::new(), used: AtomicBool::new(false) });
        self.current.send_replace(Some(Arc::clone(&slot)));
        let ended = select! {
            ended = slot.upstream.closed() => ended,
            () = slot.retired.cancelled() => Ok(()),
        };
        slot.retired.cancel();
        self.current.send_replace(None);
        tracing::debug!(error = ended.as_ref().err().map(tracing::field::display), "lost connection to pod");
        self.tell(&Event::Lost(ended.as_ref().err()));
        slot.used.load(Ordering::Relaxed)
    }

    /// The first attempt is made at once, unless there was a failure before; the others when somebody waits.
    async fn redial(&self, dialer: &impl OpenForward, resolve: &Resolve, failures: u32) -> (Upstream, u32) {
        let (mut attempts, mut failures) = (0, failures);
        let mut waiting = self.waiting.subscribe();
        loop {
            attempts += 1;
            if failures > 1 || attempts > 1 {
                let at = Instant::now() + pause(failures);
                sleep_until(at).await;
                // The sender is ours.
                let _ = waiting.wait_for(|waiting| *waiting > 0).await;
            }
            match dial(dialer, resolve).await {
                Ok(upstream) => return (upstream, attempts),
                Err(error) => {
                    failures += 1;
                    tracing::debug!(%error, attempts, "dialling again failed");
                    self.tell(&Event::DialFailed { error: &error, pause: pause(failures) });
                }
            }
        }
    }

    /// Closes the connection to the server in order, if there is one.
    pub(super) async fn close(&self) {
        let slot = self.current.send_replace(None);
        if let Some(slot) = slot {
            slot.upstream.close();
            let _ = slot.upstream.closed().await;
        }
    }
}

impl fmt::Debug for Keeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keeper").field("waiting", &*self.waiting.borrow()).finish_non_exhaustive()
    }
}

/// Finds the pod, and dials its server.
pub(super) async fn dial(dialer: &impl OpenForward, resolve: &Resolve) -> Result<Upstream, DialError> {
    let request = match timeout(RESOLVE, resolve()).await {
        Ok(request) => request.map_err(DialError::Resolve)?,
        Err(_) => return Err(DialError::Resolve("finding the pod took too long".into())),
    };
    dialer.dial(&request).await.map_err(DialError::Dial)
}

fn pause(failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    (FIRST_PAUSE * 2_u32.pow(doublings)).min(LONGEST_PAUSE)
}

/// Counts one that waits.
struct Waits<'a>(&'a watch::Sender<usize>);

impl<'a> Waits<'a> {
    fn new(waiting: &'a watch::Sender<usize>) -> Self {
        waiting.send_modify(|waiting| *waiting += 1);
        Self(waiting)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|waiting| *waiting -= 1);
    }
}
