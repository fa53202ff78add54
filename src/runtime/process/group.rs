//! A process and the group it leads.

use std::{io, os::fd::OwnedFd, process::ExitStatus};

use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, WaitIdStatus, kill_process, kill_process_group, pidfd_open, waitid,
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    process::Child,
};

use crate::remote_command::Exit;

/// A process group that is killed when this is dropped.
///
/// Its leader stays unreaped until then: as long as it does, its number names this group and no other.
#[derive(Debug)]
pub(super) struct Group {
    child: Child,
    leader: Pid,
    /// Readable once the leader has ended. `None` where the kernel has no such thing (Linux before 5.3): the leader is
    /// reaped as soon as it ends, and its group cannot be reached any more.
    ended: Option<AsyncFd<OwnedFd>>,
    /// The leader's number may be somebody else's.
    reaped: bool,
}

impl Group {
    /// Takes a child that was just started as the leader of a group.
    pub(super) fn new(child: Child) -> Self {
        let id = child.id().expect("nobody has waited for this child yet");
        let leader = i32::try_from(id).ok().and_then(Pid::from_raw).expect("the kernel's pids are positive i32");
        let ended = pidfd_open(leader, PidfdFlags::empty()).map_err(io::Error::from).and_then(registered);
        let ended = ended.inspect_err(|error| tracing::debug!(%error, "no pidfd for a process")).ok();
        Self { child, leader, ended, reaped: false }
    }

    /// Waits until the leader has ended, without reaping it.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when this is dropped; after the end it returns the same again.
    pub(super) async fn exited(&mut self) -> io::Result<Exit> {
        let Some(ended) = &self.ended else {
            let status = self.child.wait().await;
            self.reaped = true;
            return status.map(exit_of);
        };
        loop {
            let mut ready = ended.readable().await?;
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
            match waitid(WaitId::Pid(self.leader), options) {
                Ok(Some(status)) => return Ok(exit_of_unreaped(&status)),
                Ok(None) => ready.clear_ready(),
                Err(error) => {
                    // Somebody else in this program waits for any child.
                    self.reaped = true;
                    return Err(error.into());
                }
            }
        }
    }

    /// Sends a signal to every process of the group.
    pub(super) fn signal(&self, signal: Signal) {
        if self.reaped {
            return;
        }
        // That they are all gone is no error, and nothing else can be wrong with processes of our own. The leader is
        // told apart because it may have moved to another group.
        let _ = kill_process_group(self.leader, signal);
        let _ = kill_process(self.leader, signal);
    }

    /// Lets go of a group whose leader has ended: what it left behind lives on.
    pub(super) fn release(mut self) {
        let _ = self.child.try_wait();
        self.reaped = true;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Tokio reaps the leader, now if it has ended and in the background otherwise.
        self.signal(Signal::KILL);
    }
}

#[expect(
    deprecated,
    reason = "its successor is unsafe for the sake of types that lie about their fd; OwnedFd does not"
)]
pub(super) fn registered(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(fd, Interest::READABLE)
}

fn exit_of(status: ExitStatus) -> Exit {
    use std::os::unix::process::ExitStatusExt;
    from_parts(status.code(), status.signal())
}

fn exit_of_unreaped(status: &WaitIdStatus) -> Exit {
    from_parts(status.exit_status(), status.terminating_signal())
}

/// A shell's rule: 128 + the signal.
fn from_parts(code: Option<i32>, signal: Option<i32>) -> Exit {
    match code.unwrap_or_else(|| 128 + signal.unwrap_or_default()) {
        0 => Exit::Success,
        code => Exit::Code(u8::try_from(code).unwrap_or(u8::MAX)),
    }
}
