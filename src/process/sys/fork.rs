//! Forking, sessions, and the signal that a process receives when its parent ends.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use super::result::check;

/// Forks. Returns `None` in the child. Call this only while the process has one thread; otherwise a
/// lock could stay held in the child by a thread that the child does not have.
pub fn fork() -> io::Result<Option<Child>> {
    // SAFETY: there is no other thread, as documented above, so the child may do whatever the
    // parent may do.
    match check(unsafe { libc::fork() })? {
        0 => Ok(None),
        pid => Ok(Some(Child { pid })),
    }
}

/// A forked process for which nothing has waited yet.
pub struct Child {
    pid: libc::pid_t,
}

impl Child {
    /// Waits until the process ends, and returns its status.
    pub fn wait(self) -> io::Result<ExitStatus> {
        let mut status = 0;
        loop {
            // SAFETY: the kernel fills one number that outlives the call.
            match check(unsafe { libc::waitpid(self.pid, &mut status, 0) }) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result.map(|_| ExitStatus::from_raw(status)),
            }
        }
    }
}

/// Sets whether the kernel sends SIGTERM to this process when its parent ends.
pub fn end_with_parent(is_on: bool) -> io::Result<()> {
    let signal = if is_on { libc::SIGTERM } else { 0 };
    // SAFETY: prctl with plain numbers.
    check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, signal, 0, 0, 0) }).map(|_| ())
}

/// Starts a new session, without a terminal.
pub fn new_session() -> io::Result<()> {
    // SAFETY: no memory is involved.
    check(unsafe { libc::setsid() }).map(|_| ())
}
