//! Asks for the key at a terminal, on stderr, with echo off. Echo is restored in any case: when the
//! key was typed, when the process ends by a signal, and whenever it stops.

use std::io::{self, Write};
use std::os::fd::{AsRawFd, BorrowedFd};

use libc::{SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP, SIGTTIN, SIGTTOU, c_int};

use super::sys::{self, QuietTerminal, SignalFd};

/// Bytes of a line, its end among them, from which on the kernel drops what is typed (termios(3)).
const LINE: usize = 4096;

/// Signals that would otherwise end or stop the process with the echo still off. While SIGTTOU is
/// blocked, a process in the background may turn it on: with `--detach`, the one that the shell
/// waits for may be gone before that. SIGCONT tells that the process has been stopped.
const SIGNALS: [c_int; 8] = [SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP, SIGTTIN, SIGTTOU, SIGCONT];

/// A prompt with echo off. Dropping it restores the echo.
pub struct Prompt<'a> {
    quiet: Option<QuietTerminal>,
    signals: SignalFd,
    fd: BorrowedFd<'a>,
}

/// What a signal that was let through has done to the process, which is still there.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Effect {
    /// Nothing: it is ignored, or another comes first.
    None,
    /// It has stopped the process for a while.
    Stopped,
}

impl Prompt<'_> {
    /// Turns echo off and asks.
    pub fn new(fd: BorrowedFd<'_>) -> io::Result<Prompt<'_>> {
        let signals = SignalFd::block(&SIGNALS)?;
        let mut prompt = Prompt { quiet: None, signals, fd };
        prompt.ask()?;
        Ok(prompt)
    }

    /// Turns echo off and asks. A job in the background stops first, as any other that reads from
    /// the terminal does: until the shell has put it into the foreground, the terminal is
    /// another's.
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

    /// Lets a pending signal do what it does.
    fn let_through(&mut self, signal: c_int) -> io::Result<Effect> {
        sys::unblock(&[signal]);
        // Still here.
        let _again = SignalFd::block(&[signal])?;
        let mut effect = Effect::None;
        while let Some(signal) = self.signals.take() {
            if signal == SIGCONT {
                effect = Effect::Stopped;
            } else {
                // It has come meanwhile: its turn is next.
                sys::raise(signal);
                break;
            }
        }
        Ok(effect)
    }

    /// Reads what was typed; a signal restores the terminal first and then does what it does.
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
                // Still here: it was a stop, and the process goes on.
                self.ask()?;
            } else if readable && sys::is_in_foreground(self.fd) {
                return match sys::read(self.fd, buffer) {
                    Ok(LINE..) => Err(io::Error::other("a terminal takes 4094 bytes on a line")),
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
