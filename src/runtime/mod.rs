//! What runs a session: the seam [`Runtime`], and [`ProcessRuntime`] (feature `process`).

use std::future::Future;

use crate::{
    remote_command::{Exit, Stdio},
    upgrade::{Refusal, Target},
};

#[cfg(feature = "process")]
mod process;
#[cfg(feature = "process")]
pub use process::{Main, ProcessRuntime, ProcessSession};

/// Runs commands, or attaches to them, on the streams of a session.
///
/// Two phases, so that a refusal is an HTTP answer and never a stream that breaks: [`open`](Self::open) before the
/// `101`, [`Session::run`] after it.
pub trait Runtime: Send + Sync + 'static {
    /// What was opened.
    type Session: Session;

    /// Looks the target up and checks that it can run. Must not start the command: a client whose `101` got lost asks
    /// again, and would run it twice.
    fn open(&self, target: &Target) -> impl Future<Output = Result<Self::Session, Refusal>> + Send;
}

impl<R: Runtime> Runtime for std::sync::Arc<R> {
    type Session = R::Session;

    fn open(&self, target: &Target) -> impl Future<Output = Result<Self::Session, Refusal>> + Send {
        (**self).open(target)
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
