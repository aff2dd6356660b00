//! Asks for the key at a terminal, on stderr, with echo off. Echo is restored in every case: after
//! the key has been typed, before a signal ends the process, and before a signal stops it.

use std::io::{self, Write};
use std::os::fd::{AsRawFd, BorrowedFd};

use libc::{SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP, SIGTTIN, SIGTTOU, c_int};

use super::sys::{self, QuietTerminal, SignalFd};

/// The length of a line in bytes, with its end, from which on the kernel drops further input
/// (termios(3)).
const LINE: usize = 4096;

/// Signals that would otherwise end or stop the process with the echo still off. A background
/// process that blocks SIGTTOU may turn the echo back on. With `--detach` this matters: the process
/// that the shell waits for may end first, which leaves this process in the background. SIGCONT
/// shows that the process has been stopped.
const SIGNALS: [c_int; 8] = [SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP, SIGTTIN, SIGTTOU, SIGCONT];

/// A prompt with echo off. Dropping it restores the echo.
pub struct Prompt<'a> {
    quiet: Option<QuietTerminal>,
    signals: SignalFd,
    fd: BorrowedFd<'a>,
}

/// The effect of a signal that was delivered and did not end the process.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Effect {
    /// None: the signal is ignored, or another signal comes first.
    None,
    /// The signal has stopped the process for a while.
    Stopped,
}

impl Prompt<'_> {
    /// Turns echo off and asks for the key. Fails if the terminal belongs to another job and
    /// SIGTTIN does not stop this process.
    pub fn new(fd: BorrowedFd<'_>) -> io::Result<Prompt<'_>> {
        let signals = SignalFd::block(&SIGNALS)?;
        let mut prompt = Prompt { quiet: None, signals, fd };
        prompt.ask()?;
        Ok(prompt)
    }

    /// Turns echo off and asks for the key. A job in the background stops first, as every job does
    /// that reads from the terminal. Until the shell puts this job into the foreground, the
    /// terminal belongs to another job.
    fn ask(&mut self) -> io::Result<()> {
        while !sys::is_in_foreground(self.fd) {
            sys::raise_in_group(SIGTTIN);
            if self.let_through(SIGTTIN)? == Effect::None {
                return Err(io::Error::other(
                    "the terminal belongs to another job; start the relay in the foreground, or give \
                     it the key through a pipe",
                ));
            }
        }
        self.quiet = Some(QuietTerminal::new(self.fd)?);
        let _ = io::stderr().write_all(b"API key (not shown as you type): ");
        Ok(())
    }

    /// Delivers a pending signal, with its usual effect. Returns if the signal did not end the
    /// process.
    fn let_through(&mut self, signal: c_int) -> io::Result<Effect> {
        sys::unblock(&[signal]);
        // The signal did not end the process.
        let _again = SignalFd::block(&[signal])?;
        let mut effect = Effect::None;
        while let Some(signal) = self.signals.take() {
            if signal == SIGCONT {
                effect = Effect::Stopped;
            } else {
                // Another signal has arrived meanwhile. The caller handles it next.
                sys::raise(signal);
                break;
            }
        }
        Ok(effect)
    }

    /// Reads typed input, at most one line. When a signal arrives, the terminal is restored before
    /// the signal is delivered. A line of 4,095 bytes or more is an error.
    pub fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let [signalled, readable] =
                sys::wait_readable([self.signals.as_raw_fd(), self.fd.as_raw_fd()])?;
            if signalled && let Some(signal) = self.signals.take() {
                if signal == SIGCONT {
                    continue;
                }
                self.quiet = None;
                let _ = io::stderr().write_all(b"\n");
                sys::raise(signal);
                self.let_through(signal)?;
                // The signal did not end the process: the process was stopped and continues.
                self.ask()?;
            } else if readable && sys::is_in_foreground(self.fd) {
                return match sys::read(self.fd, buffer) {
                    Ok(LINE..) => Err(io::Error::other(
                        "a terminal takes 4094 bytes on a line; give a longer key through a pipe",
                    )),
                    read => read,
                };
            } else if readable {
                self.quiet = None;
                self.ask()?;
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
