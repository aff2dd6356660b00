//! The key, typed at a terminal: asked for on stderr, with echo off, which is undone whatever
//! happens.

use std::io::{self, Write};
use std::os::fd::{AsRawFd, BorrowedFd};

use libc::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP, SIGTTOU, c_int};

use super::sys::{self, QuietTerminal, SignalFd};

/// Bytes of a line, its end among them, from which on the kernel drops what is typed (termios(3)).
const LINE: usize = 4096;

/// What would otherwise end or stop the process with the echo still off. While SIGTTOU is blocked, a
/// process in the background may turn it on: with `--detach`, the one that the shell waits for may be
/// gone before that.
const SIGNALS: [c_int; 6] = [SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP, SIGTTOU];

/// A prompt that stands until this goes.
pub struct Prompt<'a> {
    quiet: Option<QuietTerminal>,
    signals: SignalFd,
    fd: BorrowedFd<'a>,
}

impl Prompt<'_> {
    /// Turns echo off and asks.
    pub fn new(fd: BorrowedFd<'_>) -> io::Result<Prompt<'_>> {
        let signals = SignalFd::block(&SIGNALS)?;
        let quiet = Some(QuietTerminal::new(fd)?);
        let _ = io::stderr().write_all(b"API key (not shown as you type): ");
        Ok(Prompt { quiet, signals, fd })
    }

    /// Reads what was typed; a signal restores the terminal first and then does what it does.
    pub fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let [signalled, readable] =
                sys::wait_readable([self.signals.as_raw_fd(), self.fd.as_raw_fd()])?;
            if signalled && let Some(signal) = self.signals.take() {
                self.quiet = None;
                let _ = io::stderr().write_all(b"\n");
                sys::raise(signal);
                sys::unblock(&SIGNALS);
                // Still here: it was a stop, and the process goes on.
                let _again = SignalFd::block(&SIGNALS)?;
                self.quiet = Some(QuietTerminal::new(self.fd)?);
            } else if readable {
                return match sys::read(self.fd, buffer) {
                    Ok(LINE..) => Err(io::Error::other("a terminal takes 4094 bytes on a line")),
                    read => read,
                };
            }
        }
    }
}

impl Drop for Prompt<'_> {
    fn drop(&mut self) {
        self.quiet = None;
        let _ = io::stderr().write_all(b"\n");
        sys::unblock(&SIGNALS);
    }
}
