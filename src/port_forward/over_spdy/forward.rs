//! One connection of the client's: dialled, carried, ended.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Waker},
    time::Duration,
};

use tokio::{
    io::{AsyncWrite, AsyncWriteExt},
    select,
    time::timeout,
};

use super::{
    Traffic,
    pump::{Outcome, Pump},
};
use crate::{
    BoxError,
    port_forward::{Dial, DialErrors, pair::Pair},
    spdy::{ResetCode, Stream},
    upgrade::Target,
};

/// How long a client may take the last bytes before a reset.
const LAST: Duration = Duration::from_secs(10);

/// The longest text on an error stream.
const MAX_TEXT: usize = 4 * 1024;

/// What all pairs of a session share.
pub(super) struct Forwarding<'a, D> {
    pub(super) dial: &'a D,
    pub(super) target: &'a Target,
    pub(super) errors: DialErrors,
    pub(super) traffic: &'a Traffic,
}

/// The pod took the connection and reset it before the dial knew: a failure in mid-transfer, not one of the dial.
fn was_reset(cause: &BoxError) -> bool {
    cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::ConnectionReset)
}

impl<D: Dial> Forwarding<'_, D> {
    /// Forwards one connection to its end.
    ///
    /// # Cancel safety
    ///
    /// Dropped, it resets both ends.
    pub(super) async fn run(&self, pair: Pair<Stream>) {
        let Pair { request, port, error, data } = pair;
        // The client half-closes it at once, and says nothing here.
        let (_, mut error) = error.into_split();
        let dialled = select! {
            biased;
            _ = poll_fn(|cx| data.poll_aborted(cx)) => return finish(&mut error),
            dialled = self.dial.dial(port.get()) => dialled,
        };
        match dialled {
            Ok(connection) => {
                let mut pump = Pump::new(data, connection, self.traffic);
                let carried = poll_fn(|cx| {
                    let carried = pump.poll(cx);
                    if pump.pod_has_ended() {
                        // No text can follow. kubectl up to 1.31 closes its local side only when it has seen this end,
                        // and a local client that waits for the close would never end its own direction.
                        finish(&mut error);
                    }
                    carried
                });
                match carried.await {
                    Outcome::Finished | Outcome::Aborted => finish(&mut error),
                    Outcome::PodFailed(cause) => {
                        tracing::debug!(request, port, %cause, "the pod's connection failed");
                        let mut data = pump.into_data();
                        // What the pod sent before it failed.
                        let _ = timeout(LAST, data.flush()).await;
                        data.reset(ResetCode::CANCEL);
                        error.reset(ResetCode::CANCEL);
                    }
                }
            }
            Err(cause) => {
                tracing::debug!(request, port, %cause, "dial failed");
                if self.errors == DialErrors::Report && !was_reset(&cause) {
                    let text = self.text(port.get(), &cause);
                    // Ahead of the reset, which would overtake it.
                    let _ = timeout(LAST, async {
                        error.write_all(text.as_bytes()).await?;
                        error.shutdown().await
                    })
                    .await;
                } else {
                    error.reset(ResetCode::CANCEL);
                }
                data.reset(ResetCode::CANCEL);
            }
        }
    }

    fn text(&self, port: u16, cause: &BoxError) -> String {
        let Target { pod, uid, .. } = self.target;
        let uid = uid.as_deref().unwrap_or_default();
        let mut text = format!("error forwarding port {port} to pod {pod}, uid {uid}: {cause}");
        while text.len() > MAX_TEXT {
            text.pop();
        }
        text
    }
}

/// Asks for the FIN, which goes out behind all that was written, also when the stream is dropped.
pub(super) fn finish(stream: &mut (impl AsyncWrite + Unpin)) {
    let _ = Pin::new(stream).poll_shutdown(&mut Context::from_waker(Waker::noop()));
}
