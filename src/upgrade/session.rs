//! Sessions outlive their request.

use std::{
    any::Any,
    fmt,
    future::Future,
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{
    Instrument, Span,
    field::{Empty, display},
};

use super::{Caller, Cause, End, Report, Target};

/// All sessions of one server: counts them, asks them to end, waits for them. Clones are the same server.
#[derive(Clone, Debug, Default)]
pub struct Sessions {
    tracker: TaskTracker,
    /// Asks every session to end and to tell its client why.
    drain: CancellationToken,
    /// Ends every session where it stands.
    kill: CancellationToken,
}

impl Sessions {
    /// No sessions yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// How many sessions live.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tracker.len()
    }

    /// Whether no session lives.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tracker.is_empty()
    }

    /// Ends all sessions: those that end by themselves within `patience` are left alone, the others are asked to end
    /// and to tell their clients why, and what still lives `farewell` later is cut. Returns how many were cut.
    ///
    /// Stop accepting connections before. Cancel safe: called again, it goes on.
    pub async fn drain(&self, patience: Duration, farewell: Duration) -> usize {
        self.tracker.close();
        if timeout(patience, self.tracker.wait()).await.is_ok() {
            return 0;
        }
        self.drain.cancel();
        if timeout(farewell, self.tracker.wait()).await.is_ok() {
            return 0;
        }
        let cut = self.tracker.len();
        self.kill.cancel();
        self.tracker.wait().await;
        cut
    }
}

/// What has to live as long as one session: rides with the client's side of the upgrade and is taken with it.
///
/// Layers put their guards here ([`hold`](Self::hold)): a gauge, a quota's permit, an inner server's count.
#[derive(Clone, Default)]
pub struct Session(Arc<Inner>);

/// Which way a stream went below the layers that adapt it: for who counts streams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Route {
    /// No adapting layer saw it: it was refused before, or the stack has none for its subresource.
    #[default]
    Unrouted,
    /// The next hop speaks SPDY only, and so does the client, or a WebSocket protocol that nobody adapts: carried on as
    /// it came.
    SpdyHop,
    /// The next hop speaks WebSocket itself: carried on as it came.
    WebSocketHop,
    /// Translated or tunnelled here, also where that was refused.
    Adapted,
}

type OnEnd = Box<dyn FnOnce(&Report) + Send>;

struct Inner {
    sessions: Sessions,
    route: Mutex<Route>,
    on_end: Mutex<Vec<OnEnd>>,
    guards: Mutex<Vec<Box<dyn Any + Send>>>,
    /// Who asked for what; absent for a session that nobody announced.
    about: Option<(Caller, Arc<Target>)>,
    span: Span,
}

impl Default for Inner {
    fn default() -> Self {
        Self {
            sessions: Sessions::default(),
            route: Mutex::default(),
            on_end: Mutex::default(),
            guards: Mutex::default(),
            about: None,
            span: Span::none(),
        }
    }
}

impl Session {
    /// A session of that server, for that caller and target. Its span names the trace that the request is a part of, if
    /// it is of one: the log lines of all processes that the stream goes through have it in common.
    pub(crate) fn new(sessions: Sessions, caller: Caller, target: Arc<Target>, trace_id: Option<&str>) -> Self {
        // Names are quoted, as a path may hold any character, a line break among them.
        let span = tracing::info_span!(
            "stream",
            subresource = %target.subresource,
            trace.id = Empty,
            pod.namespace = ?target.namespace,
            pod.name = ?target.pod,
            container = target.container.as_deref().unwrap_or_default(),
        );
        if let Some(id) = trace_id {
            span.record("trace.id", display(id));
        }
        Self(Arc::new(Inner { sessions, about: Some((caller, target)), span, ..Inner::default() }))
    }

    /// The session's span; none for a session that nobody announced.
    pub(crate) fn span(&self) -> &Span {
        &self.0.span
    }

    /// Whether it is a request's own; not so a session below another.
    pub(crate) fn is_announced(&self) -> bool {
        self.0.about.is_some()
    }

    /// A session below this one, of the same server: drained with it, and it leaves no line of its own.
    pub(super) fn inner(&self) -> Self {
        let (sessions, span) = (self.0.sessions.clone(), self.0.span.clone());
        Self(Arc::new(Inner { sessions, span, ..Inner::default() }))
    }

    /// Keeps `guard` until the session has ended.
    pub fn hold(&self, guard: impl Any + Send) {
        lock(&self.0.guards).push(Box::new(guard));
    }

    /// Calls `tell` with the session's report when it ends, before the guards are released and the end is logged.
    ///
    /// Once, also for a session that panics or is cut; never where no session comes of the request: `tell` is dropped
    /// then. It must not block and not panic, as it runs while the session is dropped.
    pub fn on_end(&self, tell: impl FnOnce(&Report) + Send + 'static) {
        lock(&self.0.on_end).push(Box::new(tell));
    }

    /// Lives as long as this session, and ends as it does: an outer stack's session whose stream is served here.
    pub(crate) fn hold_session(&self, outer: Session) {
        self.on_end(move |report| outer.tell(report));
    }

    /// Which way the stream went.
    pub(crate) fn route(&self) -> Route {
        *lock(&self.0.route)
    }

    pub(crate) fn set_route(&self, route: Route) {
        *lock(&self.0.route) = route;
    }

    fn tell(&self, report: &Report) {
        let on_end = mem::take(&mut *lock(&self.0.on_end));
        for tell in on_end {
            tell(report);
        }
    }

    pub(super) fn spawn<F>(self, run: impl FnOnce(CancellationToken) -> F + Send + 'static)
    where
        F: Future<Output = Report> + Send,
    {
        let Sessions { tracker, drain, kill } = self.0.sessions.clone();
        let span = self.0.span.clone();
        let task = async move {
            let mut log = Log { session: self, started: Instant::now(), report: None };
            tokio::select! {
                report = run(drain) => log.report = Some(report),
                () = kill.cancelled() => {
                    log.report = Some(Report::new(End::Error, Cause::Cut, "the server did not wait any longer"));
                }
            }
        };
        tracker.spawn(task.instrument(span));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Tells of the session's end and writes its line when it is dropped, so that a panic has both too.
struct Log {
    session: Session,
    started: Instant,
    report: Option<Report>,
}

impl Drop for Log {
    fn drop(&mut self) {
        let report = self
            .report
            .take()
            .unwrap_or_else(|| Report::new(End::Error, Cause::Aborted, "the session's task was dropped"));
        self.session.tell(&report);
        let Some((caller, target)) = &self.session.0.about else { return };
        let exit = match report.end {
            End::ExitCode(code) => Some(code),
            End::Success => Some(0),
            _ => None,
        };
        tracing::info!(
            target: "session",
            user = ?caller.name,
            subresource = %target.subresource,
            namespace = ?target.namespace,
            pod = ?target.pod,
            container = target.container.as_deref().unwrap_or_default(),
            tty = target.options.tty,
            protocol.in = %report.protocol_in,
            protocol.out = %report.protocol_out,
            bytes.in = report.bytes.from_client(),
            bytes.out = report.bytes.to_client(),
            end = ?report.end,
            exit,
            cause = %report.cause,
            leg = report.cause.leg().map(tracing::field::display),
            detail = ?report.detail,
            seconds = self.started.elapsed().as_secs_f64(),
            "session ended",
        );
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::atomic::{AtomicUsize, Ordering},
    };

    use tokio::time::sleep;

    use super::*;
    use crate::upgrade::{Dialect, StreamOptions, Subresource};

    const PATIENCE: Duration = Duration::from_secs(10);
    const FAREWELL: Duration = Duration::from_secs(20);

    fn report() -> Report {
        Report::new(End::Success, Cause::Finished, "over")
    }

    fn of(sessions: &Sessions) -> Session {
        Session(Arc::new(Inner { sessions: sessions.clone(), ..Inner::default() }))
    }

    /// Ends by itself after `seconds`, or `farewell` seconds after it was asked to.
    fn spawn(sessions: &Sessions, seconds: u64, farewell: u64) {
        of(sessions).spawn(move |drain| async move {
            tokio::select! {
                () = sleep(Duration::from_secs(seconds)) => {}
                () = drain.cancelled() => sleep(Duration::from_secs(farewell)).await,
            }
            report()
        });
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_without_sessions_is_over_at_once() {
        let begun = Instant::now();
        assert_eq!(Sessions::new().drain(PATIENCE, FAREWELL).await, 0);
        assert_eq!(begun.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn sessions_that_end_by_themselves_are_not_asked() {
        let sessions = Sessions::new();
        // Asked, it would stay for ever.
        spawn(&sessions, 9, u64::MAX / 4);
        let begun = Instant::now();
        assert_eq!((sessions.len(), sessions.is_empty()), (1, false));
        assert_eq!(sessions.drain(PATIENCE, FAREWELL).await, 0);
        assert_eq!(begun.elapsed().as_secs(), 9);
        assert!(sessions.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn the_others_are_asked_then_and_have_time_to_tell_their_clients() {
        let sessions = Sessions::new();
        spawn(&sessions, 3600, 5);
        spawn(&sessions, 3600, 19);
        let begun = Instant::now();
        assert_eq!(sessions.drain(PATIENCE, FAREWELL).await, 0);
        assert_eq!(begun.elapsed().as_secs(), 29);
    }

    #[tokio::test(start_paused = true)]
    async fn what_still_lives_is_cut_and_counted() {
        let sessions = Sessions::new();
        spawn(&sessions, 3600, 5);
        spawn(&sessions, 3600, 3600);
        let held = Arc::new(());
        let stubborn = of(&sessions);
        stubborn.hold(Arc::clone(&held));
        stubborn.spawn(|_| std::future::pending());
        let begun = Instant::now();
        assert_eq!(sessions.clone().drain(PATIENCE, FAREWELL).await, 2);
        assert_eq!(begun.elapsed().as_secs(), 30);
        assert!(sessions.is_empty());
        assert_eq!(Arc::strong_count(&held), 1, "guards end with their session");
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_that_was_dropped_goes_on_when_it_is_called_again() {
        let sessions = Sessions::new();
        spawn(&sessions, 3600, 5);
        let begun = Instant::now();
        assert!(timeout(Duration::from_secs(11), sessions.drain(PATIENCE, FAREWELL)).await.is_err());
        assert_eq!(sessions.drain(PATIENCE, FAREWELL).await, 0);
        assert_eq!(begun.elapsed().as_secs(), 15);
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_that_begins_during_a_drain_is_waited_for_and_asked() {
        let sessions = Sessions::new();
        spawn(&sessions, 3600, 5);
        let late = sessions.clone();
        tokio::spawn(async move {
            sleep(Duration::from_secs(12)).await;
            spawn(&late, 3600, 7);
        });
        let begun = Instant::now();
        assert_eq!(sessions.drain(PATIENCE, FAREWELL).await, 0);
        assert_eq!(begun.elapsed().as_secs(), 19);
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_that_panics_is_counted_out_and_releases_its_guards() {
        static RELEASED: AtomicUsize = AtomicUsize::new(0);
        struct Guard;
        impl Drop for Guard {
            fn drop(&mut self) {
                RELEASED.fetch_add(1, Ordering::Relaxed);
            }
        }
        let sessions = Sessions::new();
        let session = of(&sessions);
        session.hold(Guard);
        session.clone().hold(Guard);
        session.spawn(|_| async { panic!("a runtime that panics") });
        assert_eq!(sessions.drain(PATIENCE, FAREWELL).await, 0);
        assert_eq!(RELEASED.load(Ordering::Relaxed), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_is_told_once_on_every_path_before_the_guards_are_released() {
        let sessions = Sessions::new();
        let told = Arc::new(Mutex::new(Vec::new()));
        let announced = |name: &'static str| {
            let (session, told, guard) = (of(&sessions), Arc::clone(&told), Arc::new(()));
            let held = Arc::downgrade(&guard);
            session.hold(guard);
            session.on_end(move |report| lock(&told).push((name, report.end, held.strong_count())));
            session
        };
        announced("returns").spawn(|_| async { report() });
        announced("panics").spawn(|_| async { panic!("a runtime that panics") });
        announced("is cut").spawn(|_| std::future::pending());
        // Served by another session of this process.
        let serving = of(&sessions);
        serving.hold_session(announced("is held by another"));
        serving.spawn(|_| async { report() });
        // Refused.
        drop(announced("is none"));
        assert_eq!(sessions.drain(PATIENCE, FAREWELL).await, 1);
        let mut told = mem::take(&mut *lock(&told));
        told.sort_by_key(|(name, ..)| *name);
        let wanted = [
            ("is cut", End::Error, 1),
            ("is held by another", End::Success, 1),
            ("panics", End::Error, 1),
            ("returns", End::Success, 1),
        ];
        assert_eq!(told, wanted);
    }

    /// What is logged, whole.
    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            lock(&self.0).extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_writes_a_line_of_their_own_with_a_name() {
        let written = Written::default();
        let writer = written.clone();
        let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).with_ansi(false).finish();
        let _guard = tracing::subscriber::set_default(subscriber);
        let target = Target {
            subresource: Subresource::Exec,
            namespace: "default\nforged".into(),
            pod: "demo\nforged".into(),
            uid: None,
            container: Some("app\nforged".into()),
            options: StreamOptions::default(),
            dialect: Dialect::ApiServer,
        };
        let sessions = Sessions::new();
        let caller = Caller::new("jane\nforged", ["dev"]);
        Session::new(sessions.clone(), caller, Arc::new(target), None).spawn(|_| async { report() });
        assert_eq!(sessions.drain(PATIENCE, FAREWELL).await, 0);
        let log = String::from_utf8(lock(&written.0).clone()).unwrap();
        assert_eq!(log.lines().count(), 1, "{log}");
        assert!(log.contains(r#"user="jane\nforged""#) && log.contains("session ended"), "{log}");
    }

    #[tokio::test(start_paused = true)]
    async fn servers_do_not_count_each_others_sessions() {
        let (mine, others) = (Sessions::new(), Sessions::new());
        spawn(&others, 3600, 5);
        assert_eq!(mine.drain(PATIENCE, FAREWELL).await, 0);
        assert_eq!((mine.len(), others.len()), (0, 1));
    }
}
