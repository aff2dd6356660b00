//! Steps that a forked process takes for itself: when it ends, which signals reach it, and which
//! descriptors, arguments and libraries it keeps.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;
use std::time::Duration;

use libc::{c_char, c_int};

use super::environment::environ;
use super::result::check;

/// Makes the kernel kill this process when its parent ends (PR_SET_PDEATHSIG). A change of user
/// cancels this, so call this function after such a change. `parent` is the parent's process id.
/// Fails with [`io::ErrorKind::NotFound`] if the parent has already ended.
pub fn end_with(parent: u32) -> io::Result<()> {
    // SAFETY: prctl with plain numbers.
    check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) })?;
    match std::os::unix::process::parent_id() == parent {
        true => Ok(()),
        false => Err(io::ErrorKind::NotFound.into()),
    }
}

/// The disposition of a signal (signal(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disposition {
    /// The signal is ignored.
    Ignored,
    /// The kernel takes the default action.
    Default,
}

/// Sets the disposition of a signal. If SIGCHLD is ignored, the kernel also reaps children that
/// end.
pub fn set_disposition(signal: c_int, disposition: Disposition) {
    let handler = match disposition {
        Disposition::Ignored => libc::SIG_IGN,
        Disposition::Default => libc::SIG_DFL,
    };
    // SAFETY: no function of this program becomes a handler.
    unsafe { libc::signal(signal, handler) };
}

/// Makes the kernel kill this process after this many seconds (timer_settime(2)). The process
/// cannot block SIGKILL. Once its seccomp filter forbids timers, the process cannot postpone the
/// end.
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

/// Tests whether [`end_after`] can create a timer.
pub fn try_timer() -> io::Result<()> {
    let timer = kill_timer()?;
    // SAFETY: the timer was created here, and no other code knows it.
    unsafe { libc::syscall(libc::SYS_timer_delete, timer) };
    Ok(())
}

/// Creates a timer that kills this process (timer_create(2)). The timer is not armed yet.
fn kill_timer() -> io::Result<c_int> {
    // SAFETY: plain memory, of which zero is a legal value.
    let mut event: libc::sigevent = unsafe { std::mem::zeroed() };
    event.sigev_notify = libc::SIGEV_SIGNAL;
    event.sigev_signo = libc::SIGKILL;
    // This is the kernel's number for the timer. Some C libraries use other numbers.
    let mut timer: c_int = 0;
    let (clock, event, at) =
        (libc::CLOCK_MONOTONIC, ptr::from_ref(&event), ptr::from_mut(&mut timer));
    // SAFETY: the kernel reads one struct and fills one number, which outlive the call.
    let made = unsafe { libc::syscall(libc::SYS_timer_create, clock, event, at) };
    check(c_int::try_from(made).unwrap_or(-1)).map(|_| timer)
}

/// Ends the process at once (_exit(2)). No buffer is flushed and no exit handler runs.
pub fn end_now(code: c_int) -> ! {
    // SAFETY: no memory is involved.
    unsafe { libc::_exit(code) }
}

/// Sets the name that ps(1) shows, cut at 15 bytes (PR_SET_NAME).
pub fn set_name(name: &CStr) {
    // SAFETY: the kernel reads a string that outlives the call.
    unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr(), 0, 0, 0) };
}

/// Whether the process runs as root.
pub fn is_root() -> bool {
    // SAFETY: no memory is involved.
    unsafe { libc::geteuid() == 0 }
}

/// Lowers the limit on the processes of this user (RLIMIT_NPROC), for this process and its
/// children. If the kernel refuses, the limit stays as it was.
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

/// Moves a descriptor to number 3 and closes every higher descriptor. The caller guarantees that no
/// other code uses a descriptor from 3 on. Without close_range(2) (Linux 5.9), only descriptors
/// below the limit on open files and below 65,536 are closed.
pub fn keep_only(fd: OwnedFd) -> io::Result<OwnedFd> {
    const KEPT: c_int = 3;
    let fd = if fd.as_raw_fd() == KEPT {
        fd
    } else {
        // SAFETY: any other descriptor with this number is no longer used, as the caller
        // guarantees.
        check(unsafe { libc::dup3(fd.as_raw_fd(), KEPT, libc::O_CLOEXEC) })?;
        std::mem::forget(fd);
        // SAFETY: the descriptor has just received this number.
        unsafe { OwnedFd::from_raw_fd(KEPT) }
    };
    // SAFETY: descriptors with these numbers are no longer used, as the caller guarantees.
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

/// Overwrites the arguments where the kernel put them, so that `/proc/PID/cmdline` no longer shows
/// them. Call this only while the process has one thread, and after the arguments have been read
/// for the last time.
pub fn wipe_arguments() {
    let count = std::env::args_os().len();
    // SAFETY: on Linux the kernel lays out, one after the other: the number of arguments, a pointer
    // to each argument, a null pointer, and the pointers to the environment. `environ` points to
    // the latter as long as setenv(3) is not called, and no code here calls it. The number is
    // compared before a pointer is followed.
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

/// Loads a shared library for the rest of the process, if the C library supports this. Runs the
/// library's initialisers and no other code of it.
pub fn load_library(name: &CStr) {
    #[cfg(target_env = "gnu")]
    // SAFETY: the caller names a library that the C library would load by itself later.
    unsafe {
        libc::dlopen(name.as_ptr(), libc::RTLD_LAZY)
    };
    #[cfg(not(target_env = "gnu"))]
    let _ = name;
}

/// poll(2), up to the timeout; `None` waits without a limit. After an interruption by a signal, no
/// descriptor is ready.
pub fn poll(fds: &mut [libc::pollfd], timeout: Option<Duration>) -> io::Result<()> {
    // The timeout is rounded up to milliseconds: a shorter timeout must not become 0, which would
    // spin.
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

/// Empties a file if it holds exactly these bytes. Errors are ignored.
pub fn empty_if_it_holds(file: BorrowedFd<'_>, bytes: &[u8]) {
    let mut content = vec![0; bytes.len() + 1];
    // SAFETY: the kernel writes at most `len` bytes into memory that no other code refers to.
    let n = unsafe { libc::pread(file.as_raw_fd(), content.as_mut_ptr().cast(), content.len(), 0) };
    if usize::try_from(n) == Ok(bytes.len()) && content[..bytes.len()] == *bytes {
        // SAFETY: no memory is involved.
        unsafe { libc::ftruncate(file.as_raw_fd(), 0) };
    }
}
