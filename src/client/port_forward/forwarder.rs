//! Local ports that lead into a pod for as long as they are wanted.

use std::{fmt, future::Future, io, net::SocketAddr, num::NonZeroU16, sync::Arc, time::Duration};

use tokio::{
    io::copy_bidirectional_with_sizes,
    net::{TcpListener, TcpStream},
    select,
    sync::Semaphore,
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument as _;

use super::{
    ConnectionError, DialError, Event, OpenForward, PortForwardRequest,
    keeper::{Keeper, Listener, Resolve, dial},
};
use crate::BoxError;

/// Connections at once, those included that wait.
const CONNECTIONS: usize = 1_000;

/// How long a connection waits for the one to the server.
const HOLD: Duration = Duration::from_secs(10);

/// Pause of a listener that cannot accept, mostly because there are no file descriptors left.
const ACCEPT: Duration = Duration::from_millis(100);

/// How long the goodbye to the server may take.
const FAREWELL: Duration = Duration::from_secs(2);

/// Bytes that are moved at once, each way.
const BUFFER: usize = 16 * 1024;

/// Forwards local ports into a pod, and goes on when the connection to the server is lost. See the
/// [module docs](super).
pub struct Forwarder<D> {
    dialer: D,
    resolve: Resolve,
    listener: Listener,
    connections: usize,
    hold: Duration,
}

impl<D: OpenForward + 'static> Forwarder<D> {
    /// Forwards into one pod.
    pub fn new(dialer: D, request: PortForwardRequest) -> Self {
        Self::resolving(dialer, move || std::future::ready(Ok(request.clone())))
    }

    /// Forwards into whichever pod `resolve` says, such as a ready one of a Service. It is asked before each dialling, for
    /// 30 s at most; what is open stays with its pod.
    pub fn resolving<F, Fut>(dialer: D, resolve: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<PortForwardRequest, BoxError>> + Send + 'static,
    {
        Self {
            dialer,
            resolve: Box::new(move || Box::pin(resolve())),
            listener: Box::new(|_| {}),
            connections: CONNECTIONS,
            hold: HOLD,
        }
    }

    /// Tells `listener` what happens. It must not block.
    #[must_use]
    pub fn on_event(mut self, listener: impl Fn(&Event<'_>) + Send + Sync + 'static) -> Self {
        self.listener = Box::new(listener);
        self
    }

    /// Most connections at a time, those included that wait for the server; 1,000 by default. Of more, each listener
    /// accepts one and leaves the others to the system.
    #[must_use]
    pub fn connections(mut self, count: usize) -> Self {
        self.connections = count.clamp(1, Semaphore::MAX_PERMITS);
        self
    }

    /// How long a new connection waits while there is none to the server, or the server does not answer; 10 s by default.
    #[must_use]
    pub fn hold(mut self, limit: Duration) -> Self {
        self.hold = limit;
        self
    }

    /// Dials. What is lost later is dialled again: at once, and then after 100 ms to 2 s, while connections wait for it.
    ///
    /// # Errors
    ///
    /// Why there is no connection to the server; nothing is tried again here.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future closes the connection.
    pub async fn start(self) -> Result<Forwarding, DialError> {
        let Self { dialer, resolve, listener, connections, hold } = self;
        let first = dial(&dialer, &resolve).await?;
        let shared = Arc::new(Shared {
            keeper: Keeper::new(listener),
            places: Arc::new(Semaphore::new(connections)),
            hold,
            stop: CancellationToken::new(),
            cut: CancellationToken::new(),
            tasks: TaskTracker::new(),
        });
        let keeping = Arc::clone(&shared);
        let kept = async move {
            select! {
                () = keeping.keeper.keep(&dialer, &resolve, first) => {}
                () = keeping.stop.cancelled() => {}
            }
        };
        tokio::spawn(kept.in_current_span());
        Ok(Forwarding { shared })
    }
}

impl<D> fmt::Debug for Forwarder<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Forwarder")
            .field("connections", &self.connections)
            .field("hold", &self.hold)
            .finish_non_exhaustive()
    }
}

/// A [`Forwarder`] at work. Dropped, it resets all that is open.
#[derive(Debug)]
pub struct Forwarding {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    keeper: Keeper,
    places: Arc<Semaphore>,
    hold: Duration,
    /// Nothing new.
    stop: CancellationToken,
    /// Nothing more.
    cut: CancellationToken,
    tasks: TaskTracker,
}

impl Forwarding {
    /// Listens at `address`, and forwards what connects there to `port` of the pod. Returns the address, with the port that
    /// the system chose if it was 0. It ends with the forwarder only.
    ///
    /// # Errors
    ///
    /// The address cannot be listened at.
    pub async fn listen(&self, address: SocketAddr, port: NonZeroU16) -> io::Result<SocketAddr> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let shared = Arc::clone(&self.shared);
        let accepting = async move {
            select! {
                () = shared.accept(listener, address, port) => {}
                () = shared.stop.cancelled() => {}
            }
        };
        self.shared.tasks.spawn(accepting.in_current_span());
        Ok(address)
    }

    /// Stops: listens no more, lets what is open come to its end for `grace`, resets the rest, and closes the connection
    /// to the server. Returns how many were reset.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future resets what is open.
    pub async fn stop(self, grace: Duration) -> usize {
        let shared = &self.shared;
        shared.stop.cancel();
        shared.tasks.close();
        let left = match timeout(grace, shared.tasks.wait()).await {
            Ok(()) => 0,
            Err(_) => shared.tasks.len(),
        };
        shared.cut.cancel();
        shared.tasks.wait().await;
        let _ = timeout(FAREWELL, shared.keeper.close()).await;
        left
    }
}

impl Drop for Forwarding {
    fn drop(&mut self) {
        self.shared.stop.cancel();
        self.shared.cut.cancel();
    }
}

impl Shared {
    async fn accept(self: &Arc<Self>, listener: TcpListener, local: SocketAddr, port: NonZeroU16) {
        loop {
            let (tcp, peer) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::debug!(%error, "a local connection was not accepted");
                    sleep(ACCEPT).await;
                    continue;
                }
            };
            let Ok(place) = Arc::clone(&self.places).acquire_owned().await else { return };
            let shared = Arc::clone(self);
            let served = async move {
                let _place = place;
                shared.serve(tcp, peer, local, port).await;
            };
            self.tasks.spawn(served.in_current_span());
        }
    }

    async fn serve(&self, mut tcp: TcpStream, peer: SocketAddr, local: SocketAddr, port: NonZeroU16) {
        self.keeper.tell(&Event::Accepted { local, peer, port });
        let carried = select! {
            biased;
            () = self.cut.cancelled() => Err(ConnectionError::Stopped),
            carried = self.carry(&mut tcp, port) => carried,
        };
        if let Err(error) = carried {
            // The program must not take a part for the whole. If it fails the connection is gone already.
            let _ = tcp.set_zero_linger();
            tracing::debug!(%peer, port, %error, "a forwarded connection failed");
            self.keeper.tell(&Event::ConnectionFailed { local, peer, port, error: &error });
        }
    }

    async fn carry(&self, tcp: &mut TcpStream, port: NonZeroU16) -> Result<(), ConnectionError> {
        tcp.set_nodelay(true).map_err(ConnectionError::Local)?;
        let mut connection = select! {
            biased;
            connection = timeout(self.hold, self.keeper.connect(port)) => {
                connection.unwrap_or(Err(ConnectionError::NoUpstream))?
            }
            // What waits has not begun.
            () = self.stop.cancelled() => return Err(ConnectionError::Stopped),
        };
        match copy_bidirectional_with_sizes(tcp, &mut connection, BUFFER, BUFFER).await {
            Ok(_) => Ok(()),
            Err(error) => Err(connection.why_cut().unwrap_or(ConnectionError::Local(error))),
        }
    }
}
