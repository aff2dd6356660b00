//! The controlling terminal, and its echo.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use super::result::check;

/// Whether the process has a controlling terminal.
pub fn has_terminal() -> bool {
    let flags = libc::O_RDONLY | libc::O_NOCTTY | libc::O_NONBLOCK | libc::O_CLOEXEC;
    // SAFETY: the path is a C string; this name always means the controlling terminal.
    let fd = unsafe { libc::open(c"/dev/tty".as_ptr(), flags) };
    if fd != -1 {
        // SAFETY: the descriptor has just been created, and no other code owns it.
        drop(unsafe { OwnedFd::from_raw_fd(fd) });
        return true;
    }
    // Without that file, a standard descriptor may be the terminal.
    // SAFETY: no memory is involved.
    (0..3).any(|fd| unsafe { libc::tcgetsid(fd) } != -1)
}

/// Whether this process may read from the terminal: its group is in the foreground, or this is not
/// its controlling terminal.
pub fn is_in_foreground(terminal: BorrowedFd<'_>) -> bool {
    // SAFETY: no memory is involved.
    let (foreground, own) = unsafe { (libc::tcgetpgrp(terminal.as_raw_fd()), libc::getpgrp()) };
    foreground == -1 || foreground == own
}

/// A terminal whose echo is off until this is dropped.
pub struct QuietTerminal {
    fd: RawFd,
    before: libc::termios,
}

impl QuietTerminal {
    /// Turns echo off.
    pub fn new(fd: BorrowedFd<'_>) -> io::Result<QuietTerminal> {
        let fd = fd.as_raw_fd();
        // SAFETY: plain memory for the kernel to fill.
        let mut before: libc::termios = unsafe { std::mem::zeroed() };
        // SAFETY: the kernel fills one struct that no other code refers to.
        check(unsafe { libc::tcgetattr(fd, &mut before) })?;
        let mut quiet = before;
        quiet.c_lflag &= !(libc::ECHO | libc::ECHONL);
        // SAFETY: the kernel reads one struct that outlives the call.
        check(unsafe { libc::tcsetattr(fd, libc::TCSAFLUSH, &quiet) })?;
        Ok(QuietTerminal { fd, before })
    }
}

impl Drop for QuietTerminal {
    fn drop(&mut self) {
        // SAFETY: the kernel reads one struct that outlives the call.
        unsafe { libc::tcsetattr(self.fd, libc::TCSAFLUSH, &self.before) };
    }
}
