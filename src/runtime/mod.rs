//! What runs a session: the seam [`Runtime`], and [`ProcessRuntime`] (feature `process`).

use std::future::Future;

use crate::{
    port_forward::Dial,
    remote_command::{Exit, Stdio},
    upgrade::{Refusal, Target},
};

#[cfg(feature = "process")]
mod process;
#[cfg(feature = "process")]
pub use process::{Loopback, Main, ProcessRuntime, ProcessSession};

/// Runs commands, or attaches to them, on the streams of a session, and dials into pods.
///
/// Two phases, so that a refusal is an HTTP answer and never a stream that breaks: [`open`](Self::open) before the
/// `101`, [`Session::run`] after it.
pub trait Runtime: Send + Sync + 'static {
    /// What was opened.
    type Session: Session;

    /// What dials into a pod.
    type Forward: Dial;

    /// Looks the target up and checks that it can run. Must not start the command: a client whose `101` got lost asks
    /// again, and would run it twice.
    fn open(&self, target: &Target) -> impl Future<Output = Result<Self::Session, Refusal>> + Send;

    /// Looks up the pod of a port-forward. Dials nothing yet: each connection of the client is dialled when it comes.
    fn port_forward(&self, target: &Target) -> impl Future<Output = Result<Self::Forward, Refusal>> + Send;
}

impl<R: Runtime> Runtime for std::sync::Arc<R> {
    type Session = R::Session;
    type Forward = R::Forward;

    fn open(&self, target: &Target) -> impl Future<Output = Result<Self::Session, Refusal>> + Send {
        (**self).open(target)
    }

    fn port_forward(&self, target: &Target) -> impl Future<Output = Result<Self::Forward, Refusal>> + Send {
        (**self).port_forward(target)
    }
}

/// An opened target, ready to run.
pub trait Session: Send + 'static {
    /// Runs until the process has ended and all its output is written, or until [`Stdio::gone`] fires: an exec then
    /// kills its whole process group, an attach only detaches.
    ///
    /// An exit code is not an error; `Err` is why the command could not be run or watched.
    fn run(self, stdio: Stdio) -> impl Future<Output = Result<Exit, crate::BoxError>> + Send;
}
