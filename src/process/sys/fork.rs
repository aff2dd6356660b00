//! Forking, and what ties a process to its parent and its session.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use super::result::check;

/// Forks; `None` is the child. Only while the process has one thread, so that the child finds no
/// lock held by a thread that it does not have.
pub fn fork() -> io::Result<Option<Child>> {
    // SAFETY: no other thread exists, as the caller says, so that the child may do what the parent
    // may.
    match check(unsafe { libc::fork() })? {
        0 => Ok(None),
        pid => Ok(Some(Child { pid })),
    }
}

/// A process that was forked and has not been waited for.
pub struct Child {
    pid: libc::pid_t,
}

impl Child {
    /// Waits for its end.
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

/// Whether the kernel ends this process, by SIGTERM, when its parent ends.
pub fn end_with_parent(does: bool) -> io::Result<()> {
    let signal = if does { libc::SIGTERM } else { 0 };
    // SAFETY: prctl with plain numbers.
    check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, signal, 0, 0, 0) }).map(|_| ())
}

/// Begins a session without a terminal.
pub fn new_session() -> io::Result<()> {
    // SAFETY: no memory is involved.
    check(unsafe { libc::setsid() }).map(|_| ())
}
