//! Which signals end the relay, and which do nothing.
//!
//! A signal that was ignored when the program was executed stays ignored: `nohup` ignores SIGHUP
//! for its command, and a shell ignores SIGINT for a command in the background.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use libc::c_int;

use super::sys::{self, SignalFd};

/// Signals that tools send for reasons of their own (log rotation, timers, supervisors). By default
/// each would kill the process and leave its server-info file behind. They are ignored, by the
/// connector too: tools that signal by name reach both processes.
pub const HARMLESS: [c_int; 8] = [
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGALRM,
    libc::SIGQUIT,
    libc::SIGVTALRM,
    libc::SIGPROF,
    libc::SIGIO,
    libc::SIGPWR,
];

/// A signal that ends the relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndSignal {
    /// SIGTERM
    Terminate,
    /// SIGINT
    Interrupt,
    /// SIGHUP: the terminal was closed.
    HangUp,
}

impl EndSignal {
    const ALL: [EndSignal; 3] = [EndSignal::Terminate, EndSignal::Interrupt, EndSignal::HangUp];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            EndSignal::Terminate => "SIGTERM",
            EndSignal::Interrupt => "SIGINT",
            EndSignal::HangUp => "SIGHUP",
        }
    }

    fn number(self) -> c_int {
        match self {
            EndSignal::Terminate => libc::SIGTERM,
            EndSignal::Interrupt => libc::SIGINT,
            EndSignal::HangUp => libc::SIGHUP,
        }
    }
}

/// Whether the terminal that the relay was started at can end it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionOrigin {
    /// It stays in the session of its starter.
    Inherited,
    /// It will have a session of its own, without a terminal.
    Own,
}

/// Collects the signals that end the relay.
pub struct Signals {
    fd: SignalFd,
}

impl Signals {
    /// Takes the signals over, for this thread and those that it will start.
    pub fn take_over(session: SessionOrigin) -> io::Result<Signals> {
        // Without a terminal SIGHUP is no reason to end.
        let hangs_up = session == SessionOrigin::Inherited && sys::has_terminal();
        sys::ignore_signals(&HARMLESS)?;
        if !hangs_up {
            sys::ignore_signals(&[libc::SIGHUP])?;
        }
        let numbers = EndSignal::ALL.map(EndSignal::number);
        let taken: Vec<c_int> =
            numbers.into_iter().filter(|signal| !sys::is_ignored(*signal)).collect();
        Ok(Signals { fd: SignalFd::block(&taken)? })
    }

    /// All signals that have come, in no order.
    pub fn take(&mut self) -> impl Iterator<Item = EndSignal> {
        let taken = std::iter::from_fn(|| self.fd.take());
        taken.filter_map(|number| EndSignal::ALL.into_iter().find(|end| end.number() == number))
    }
}

impl AsRawFd for Signals {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}
