//! Signals: read from a descriptor, ignored, or sent.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use libc::c_int;

use super::result::check;

/// Signals that are read from a descriptor and interrupt no code.
pub struct SignalFd {
    fd: OwnedFd,
}

impl SignalFd {
    /// Blocks the signals in this thread and the threads that it will start, and opens a descriptor
    /// from which they are read.
    pub fn block(signals: &[c_int]) -> io::Result<SignalFd> {
        let set = signal_set(signals);
        // SAFETY: the kernel reads a set that outlives the call.
        match unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set, ptr::null_mut()) } {
            0 => {}
            error => return Err(io::Error::from_raw_os_error(error)),
        }
        // SAFETY: as above; -1 asks for a new descriptor.
        let fd =
            check(unsafe { libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) })?;
        // SAFETY: the descriptor has just been created, and no other code owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(SignalFd { fd })
    }

    /// Reads the number of the next signal that has arrived. Does not block.
    pub fn take(&mut self) -> Option<c_int> {
        // SAFETY: plain memory for the kernel to fill.
        let mut info: libc::signalfd_siginfo = unsafe { std::mem::zeroed() };
        let size = size_of_val(&info);
        // SAFETY: the kernel writes at most one struct, which no other code refers to.
        let n = unsafe { libc::read(self.fd.as_raw_fd(), ptr::from_mut(&mut info).cast(), size) };
        (usize::try_from(n) == Ok(size)).then_some(info.ssi_signo as c_int)
    }
}

impl AsRawFd for SignalFd {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// A set of signals.
fn signal_set(signals: &[c_int]) -> libc::sigset_t {
    // SAFETY: a zeroed sigset_t is plain memory, which sigemptyset then makes an empty set.
    let mut set = unsafe { std::mem::zeroed() };
    // SAFETY: no other code refers to `set`.
    unsafe { libc::sigemptyset(&mut set) };
    for signal in signals {
        // SAFETY: as above; the signals are valid constants.
        unsafe { libc::sigaddset(&mut set, *signal) };
    }
    set
}

/// Unblocks the signals in this thread.
pub fn unblock(signals: &[c_int]) {
    let set = signal_set(signals);
    // SAFETY: the kernel reads a set that outlives the call.
    unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, &set, ptr::null_mut()) };
}

/// Ignores these signals, for all threads.
pub fn ignore_signals(signals: &[c_int]) -> io::Result<()> {
    for signal in signals {
        // SAFETY: an ignored signal runs no code of this process.
        if unsafe { libc::signal(*signal, libc::SIG_IGN) } == libc::SIG_ERR {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Whether the signal is ignored.
pub fn is_ignored(signal: c_int) -> bool {
    // SAFETY: plain memory for the C library to fill.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: without a new action, the C library only fills one struct, which no other code
    // refers to.
    let known = unsafe { libc::sigaction(signal, ptr::null(), &mut action) } == 0;
    known && action.sa_sigaction == libc::SIG_IGN
}

/// Sends a signal to this process.
pub fn raise(signal: c_int) {
    // SAFETY: no memory is involved.
    unsafe { libc::raise(signal) };
}

/// Sends a signal to every process of this process's group, as the kernel does for a signal from
/// the terminal.
pub fn raise_in_group(signal: c_int) {
    // SAFETY: no memory is involved.
    unsafe { libc::kill(0, signal) };
}

/// Ignores SIGXFSZ, so that a write beyond the limit on file sizes returns an error and does not
/// end the process.
pub fn ignore_file_size_signal() {
    // SAFETY: no handler is installed and no memory is involved.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// The limit on the size of files that the process writes, in bytes; [`u64::MAX`] without a limit.
pub fn file_size_limit() -> u64 {
    let mut limit = MaybeUninit::<libc::rlimit>::uninit();
    // SAFETY: the kernel fills one struct that outlives the call.
    match unsafe { libc::getrlimit(libc::RLIMIT_FSIZE, limit.as_mut_ptr()) } {
        // SAFETY: the kernel has filled it.
        0 => unsafe { limit.assume_init() }.rlim_cur,
        _ => u64::MAX,
    }
}
