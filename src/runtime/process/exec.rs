//! Runs one command on the streams of a session.

use std::time::Duration;

use rustix::process::Signal;
use tokio::{join, time::timeout};

use super::{
    copy::{drain, feed, follow_size},
    spawn::{Recipe, Started},
};
use crate::{
    BoxError,
    remote_command::{Exit, Stdio},
};

/// What a hung-up terminal's processes have to save their work, and a killed one to disappear.
const GRACE: Duration = Duration::from_secs(1);

/// Starts the command and carries its streams until it has ended, its output too.
///
/// # Cancel safety
///
/// None: dropped, it kills the process group.
pub(super) async fn run(recipe: &Recipe, stdio: Stdio) -> Result<Exit, BoxError> {
    let Stdio { stdin, stdout, stderr, resize, gone } = stdio;
    if gone.is_cancelled() {
        return Err("the client was gone before the command started".into());
    }
    let size = resize.as_ref().and_then(|sizes| *sizes.borrow());
    let started = recipe.spawn(size)?;
    // The group comes last, so that it is killed first if this is dropped: see `Started`.
    let Started { stdin: mut into, stdout: mut out, stderr: mut err, terminal, exited, mut group } = started;

    let ended = async {
        let leader = async {
            let exit = group.exited().await;
            exited.cancel();
            exit
        };
        let (exit, (), ()) = join!(leader, drain(&mut out, stdout), drain(&mut err, stderr));
        exit
    };
    tokio::select! {
        biased;
        () = gone.cancelled() => {}
        exit = ended => {
            group.release();
            return Ok(exit?);
        }
        never = feed(stdin, &mut into) => match never {},
        never = follow_size(&terminal, resize) => match never {},
    }
    if recipe.tty {
        // A closed terminal is a hang-up already, but only for its foreground. An interactive shell passes ours on to
        // its jobs, which are groups of their own.
        group.signal(Signal::HUP);
        drop((into, out, terminal));
        let _ = timeout(GRACE, group.exited()).await;
    }
    group.signal(Signal::KILL);
    match timeout(GRACE, group.exited()).await {
        Ok(exit) => Ok(exit?),
        // In the kernel's hands; reaped in the background.
        Err(_) => Err("the command does not end".into()),
    }
}
