//! What a forked process does to itself: when it ends, which signals reach it, and which
//! descriptors, arguments and libraries it keeps.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;
use std::time::Duration;

use libc::{c_char, c_int};

use super::environment::environ;
use super::result::check;

/// Has the kernel kill this process when its parent ends. A change of user cancels that, so call
/// this afterwards. Fails when the parent, whose id is given, is gone already.
pub fn end_with(parent: u32) -> io::Result<()> {
    // SAFETY: prctl with plain numbers.
    check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) })?;
    match std::os::unix::process::parent_id() == parent {
        true => Ok(()),
        false => Err(io::ErrorKind::NotFound.into()),
    }
}

/// What a signal does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disposition {
    /// Nothing.
    Ignored,
    /// The default action of the kernel.
    Default,
}

/// Sets what a signal does. If SIGCHLD is ignored, the kernel also reaps children that end.
pub fn set_disposition(signal: c_int, disposition: Disposition) {
    let handler = match disposition {
        Disposition::Ignored => libc::SIG_IGN,
        Disposition::Default => libc::SIG_DFL,
    };
    // SAFETY: no code of ours becomes a handler.
    unsafe { libc::signal(signal, handler) };
}

/// Has the kernel kill this process after so many seconds. The process cannot block SIGKILL, and
/// once its filter forbids timers it cannot postpone it.
pub fn end_after(seconds: u32) -> io::Result<()> {
    let timer = kill_timer()?;
    // SAFETY: plain memory, of which zero is a legal value.
    let mut once: libc::itimerspec = unsafe { std::mem::zeroed() };
    once.it_value.tv_sec = seconds.into();
    let none: *const libc::itimerspec = ptr::null();
    // SAFETY: the kernel reads one struct that outlives the call, and fills none.
    let set =
        unsafe { libc::syscall(libc::SYS_timer_settime, timer, 0, ptr::from_ref(&once), none) };
    check(c_int::try_from(set).unwrap_or(-1)).map(|_| ())
}

/// Tests whether [`end_after`] could create a timer.
pub fn try_timer() -> io::Result<()> {
    let timer = kill_timer()?;
    // SAFETY: the timer was made here, and nothing else knows it.
    unsafe { libc::syscall(libc::SYS_timer_delete, timer) };
    Ok(())
}

/// A timer that kills this process, not set yet.
fn kill_timer() -> io::Result<c_int> {
    // SAFETY: plain memory, of which zero is a legal value.
    let mut event: libc::sigevent = unsafe { std::mem::zeroed() };
    event.sigev_notify = libc::SIGEV_SIGNAL;
    event.sigev_signo = libc::SIGKILL;
    // The kernel's number for the timer, which is not that of every C library.
    let mut timer: c_int = 0;
    let (clock, event, at) =
        (libc::CLOCK_MONOTONIC, ptr::from_ref(&event), ptr::from_mut(&mut timer));
    // SAFETY: the kernel reads one struct and fills one number, which outlive the call.
    let made = unsafe { libc::syscall(libc::SYS_timer_create, clock, event, at) };
    check(c_int::try_from(made).unwrap_or(-1)).map(|_| timer)
}

/// Ends the process at once: nothing is flushed, nothing is run.
pub fn end_now(code: c_int) -> ! {
    // SAFETY: no memory is involved.
    unsafe { libc::_exit(code) }
}

/// The name that ps(1) shows.
pub fn set_name(name: &CStr) {
    // SAFETY: the kernel reads a string that outlives the call.
    unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr(), 0, 0, 0) };
}

/// The process runs as root.
pub fn is_root() -> bool {
    // SAFETY: no memory is involved.
    unsafe { libc::geteuid() == 0 }
}

/// Lowers how many processes the user of this one may have, for this one and its children. Where
/// that is refused the limit stays as it was.
pub fn limit_processes(count: u64) {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel fills one struct, and reads one, that outlive the calls.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NPROC, &mut limit) == 0 {
            let count = limit.rlim_max.min(count);
            let lower = libc::rlimit { rlim_cur: limit.rlim_cur.min(count), rlim_max: count };
            libc::setrlimit(libc::RLIMIT_NPROC, &lower);
        }
    }
}

/// Moves a descriptor to number 3 and closes all others from 3 on.
pub fn keep_only(fd: OwnedFd) -> io::Result<OwnedFd> {
    const KEPT: c_int = 3;
    let fd = if fd.as_raw_fd() == KEPT {
        fd
    } else {
        // SAFETY: whatever has this number is not used any more, as the caller says.
        check(unsafe { libc::dup3(fd.as_raw_fd(), KEPT, libc::O_CLOEXEC) })?;
        std::mem::forget(fd);
        // SAFETY: the number was just given to it.
        unsafe { OwnedFd::from_raw_fd(KEPT) }
    };
    // SAFETY: whatever has these numbers is not used any more, as the caller says.
    if unsafe { libc::syscall(libc::SYS_close_range, KEPT + 1, u32::MAX, 0) } != 0 {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: the kernel fills one struct that outlives the call.
        unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) };
        for fd in KEPT + 1..c_int::try_from(limit.rlim_cur).unwrap_or(c_int::MAX).min(1 << 16) {
            // SAFETY: as above.
            unsafe { libc::close(fd) };
        }
    }
    Ok(fd)
}

/// Overwrites the arguments where the kernel put them, so that `/proc/PID/cmdline` shows them no
/// more. Only while the process has one thread, and after the last look at them.
pub fn wipe_arguments() {
    let count = std::env::args_os().len();
    // SAFETY: on Linux the kernel lays out, one after the other: the number of arguments, a pointer
    // to each, null, and the environment's pointers, where `environ` points for as long as nobody
    // calls setenv(3), which nothing here does. The number is compared before a pointer is
    // followed.
    unsafe {
        let variables = environ;
        if variables.is_null() || !(*variables.sub(1)).is_null() {
            return;
        }
        let arguments = variables.sub(1 + count);
        if arguments.sub(1).cast::<usize>().read() != count {
            return;
        }
        for at in 0..count {
            let argument: *mut c_char = *arguments.add(at);
            let len = CStr::from_ptr(argument).count_bytes();
            zeroize::Zeroize::zeroize(std::slice::from_raw_parts_mut(argument.cast::<u8>(), len));
        }
    }
}

/// Loads a shared library for good, where the C library can; runs what it does at its start, and
/// nothing else of it.
pub fn load_library(name: &CStr) {
    #[cfg(target_env = "gnu")]
    // SAFETY: the caller names a library that the C library would load by itself later.
    unsafe {
        libc::dlopen(name.as_ptr(), libc::RTLD_LAZY)
    };
    #[cfg(not(target_env = "gnu"))]
    let _ = name;
}

/// poll(2), up to the timeout. After an interruption no descriptor is ready.
pub fn poll(fds: &mut [libc::pollfd], timeout: Option<Duration>) -> io::Result<()> {
    // Rounded up: a timeout below a millisecond must not become 0, which would spin.
    let timeout = timeout.map_or(-1, |timeout| {
        c_int::try_from(timeout.as_micros().div_ceil(1000)).unwrap_or(c_int::MAX)
    });
    // SAFETY: the kernel fills the structs, which outlive the call.
    match check(unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, timeout) }) {
        Err(error) if error.kind() == io::ErrorKind::Interrupted => {
            fds.iter_mut().for_each(|fd| fd.revents = 0);
            Ok(())
        }
        result => result.map(|_| ()),
    }
}

/// Empties a file if it still holds these bytes, and no others.
pub fn empty_if_it_holds(file: BorrowedFd<'_>, bytes: &[u8]) {
    let mut content = vec![0; bytes.len() + 1];
    // SAFETY: the kernel writes at most `len` bytes into memory that is ours alone.
    let n = unsafe { libc::pread(file.as_raw_fd(), content.as_mut_ptr().cast(), content.len(), 0) };
    if usize::try_from(n) == Ok(bytes.len()) && content[..bytes.len()] == *bytes {
        // SAFETY: no memory is involved.
        unsafe { libc::ftruncate(file.as_raw_fd(), 0) };
    }
}
