//! Descriptors: reading, the limit on their number, and the descriptors that the process inherited
//! from the program that started it.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use libc::c_int;

use super::result::check;
use crate::http1::digits;

/// read(2), once.
pub fn read(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the kernel writes at most `len` bytes into memory that no other code refers to.
    let n = unsafe { libc::read(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) };
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}

/// Waits until one of the descriptors can be read, and returns which of them can.
pub fn wait_readable(fds: [RawFd; 2]) -> io::Result<[bool; 2]> {
    let mut polls = fds.map(|fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 });
    // SAFETY: the kernel fills two structs that outlive the call.
    match check(unsafe { libc::poll(polls.as_mut_ptr(), 2, -1) }) {
        Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
        _ => Ok(polls.map(|poll| poll.revents != 0)),
    }
}

/// Raises the limit on open files towards `wanted`; returns the limit that is in force.
pub fn raise_open_files(wanted: u64) -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel fills one struct that outlives the call.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } == -1 {
        return 0;
    }
    if limit.rlim_cur >= wanted {
        return limit.rlim_cur;
    }
    let hard = limit.rlim_max;
    for hard in [hard.max(wanted), hard] {
        let raised = libc::rlimit { rlim_cur: wanted.min(hard), rlim_max: hard };
        // SAFETY: the kernel reads one struct that outlives the call.
        if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raised) } == 0 {
            return raised.rlim_cur;
        }
    }
    limit.rlim_cur
}

/// Makes the kernel enlarge the process's descriptor table for `count` descriptors. The table also
/// grows when it is needed. But when threads share it, the kernel then waits until no processor
/// uses the old table (`expand_fdtable` in fs/file.c), which delays the loop by 10 to 40 ms.
pub fn make_room_for_descriptors(count: u64) {
    let last = c_int::try_from(count).unwrap_or(c_int::MAX) - 1;
    // SAFETY: this makes a new descriptor, which no other code owns.
    let fd = unsafe { libc::fcntl(libc::STDERR_FILENO, libc::F_DUPFD_CLOEXEC, last) };
    if fd != -1 {
        // SAFETY: the descriptor has just been created, and no other code owns it.
        drop(unsafe { OwnedFd::from_raw_fd(fd) });
    }
}

/// The descriptors that every process has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Standard {
    /// stdin
    Input = libc::STDIN_FILENO,
    /// stdout
    Output = libc::STDOUT_FILENO,
    /// stderr
    Error = libc::STDERR_FILENO,
}

/// dup2(2): the standard descriptor refers to what `by` refers to.
pub fn replace(standard: Standard, by: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: no code of this process owns the standard descriptors, so none is closed while its
    // owner still uses it.
    check(unsafe { libc::dup2(by.as_raw_fd(), standard as c_int) }).map(|_| ())
}

/// What to do with inherited descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inherited {
    /// Leave them open, but have execve(2) close them.
    CloseOnExec,
    /// Close them.
    Close,
}

/// Which inherited descriptors were marked or closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reached {
    /// All of them.
    All,
    /// Those below this number. Higher ones may exist; the kernel did not list them.
    Below(RawFd),
}

/// Marks (close-on-exec) or closes all descriptors from `first` (3 or more) on, except those of
/// `but`. Close them only while no code of this process owns any of them.
pub fn inherited_descriptors(what: Inherited, first: usize, but: &[BorrowedFd<'_>]) -> Reached {
    let first = RawFd::try_from(first).unwrap_or(RawFd::MAX).max(3);
    let flags = match what {
        Inherited::CloseOnExec => libc::CLOSE_RANGE_CLOEXEC,
        Inherited::Close => 0,
    };
    let is_kept = |fd: RawFd| but.iter().any(|kept| kept.as_raw_fd() == fd);
    // The next one that is kept, from this number on. There are few.
    let next_kept = |from: RawFd| but.iter().map(AsRawFd::as_raw_fd).filter(|fd| *fd >= from).min();
    let in_range = |first: RawFd, last: u32| {
        // SAFETY: no code of this process owns a descriptor in this range, as documented above.
        first as u32 > last
            || unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) } == 0
    };
    let probe = Probe::new(first);
    let mut next = first;
    let mut reached = true;
    while let Some(kept) = next_kept(next) {
        reached &= in_range(next, kept as u32 - 1);
        next = kept + 1;
    }
    if reached && in_range(next, u32::MAX) && probe.was_reached(what) {
        return Reached::All;
    }
    // Linux before 5.11 lacks close_range(2) or this flag of it. A container may refuse the call,
    // or let it return 0 without effect.
    let mark_or_close = |fd: RawFd| {
        match what {
            _ if is_kept(fd) => 0,
            // SAFETY: this sets a flag; the descriptor need not exist.
            Inherited::CloseOnExec => unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) },
            // SAFETY: as above, no code of this process owns a descriptor from `first` on.
            Inherited::Close => unsafe { libc::close(fd) },
        };
    };
    if let Some(open) = open_descriptors() {
        open.into_iter().filter(|fd| *fd >= first).for_each(mark_or_close);
        return Reached::All;
    }
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel fills one struct that outlives the call.
    unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) };
    let end = RawFd::try_from(limit.rlim_cur).unwrap_or(RawFd::MAX).min(1 << 20);
    (first..end).for_each(mark_or_close);
    Reached::Below(end)
}

/// A descriptor of our own in the range, which shows whether close_range(2) really had an effect.
struct Probe(Option<RawFd>);

impl Probe {
    /// Opens a descriptor with the lowest free number from `first` on. If all numbers are taken,
    /// there is no probe.
    fn new(first: RawFd) -> Probe {
        // SAFETY: no memory is involved.
        let fd = unsafe { libc::fcntl(libc::STDERR_FILENO, libc::F_DUPFD, first) };
        Probe((fd >= first).then_some(fd))
    }

    /// Whether close_range(2) has closed or marked the probe. True if there is no probe.
    fn was_reached(self, what: Inherited) -> bool {
        let Some(fd) = self.0 else {
            return true;
        };
        // SAFETY: this reads a flag; the descriptor need not exist.
        let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
        match what {
            Inherited::Close => flags == -1,
            Inherited::CloseOnExec => flags & libc::FD_CLOEXEC != 0,
        }
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        if let Some(fd) = self.0 {
            // SAFETY: no other code uses this number. If close_range(2) has closed it, no
            // descriptor has been opened since.
            unsafe { libc::close(fd) };
        }
    }
}

/// The open descriptors, as /proc lists them. These include descriptors above the soft limit, which
/// stay open when the limit is lowered. `None` where /proc cannot be read.
fn open_descriptors() -> Option<Vec<RawFd>> {
    let entries = std::fs::read_dir("/proc/self/fd").ok()?;
    // The list includes the descriptor that the listing itself uses, which is closed on return.
    let number = |name: &str| digits::decimal(name.as_bytes(), 10)?.try_into().ok();
    entries.map(|entry| number(entry.ok()?.file_name().to_str()?)).collect()
}

/// Takes ownership of `count` inherited descriptors from `first` on. Returns `None` if one of them
/// is not open. Call this only before the process has opened any descriptor of its own.
pub fn take_descriptors(first: usize, count: usize) -> Option<Vec<OwnedFd>> {
    let fds: Vec<RawFd> = (first..first + count).map(|fd| fd as RawFd).collect();
    // SAFETY: this reads a flag; the descriptor need not exist.
    let is_open = |fd: &RawFd| unsafe { libc::fcntl(*fd, libc::F_GETFD) } != -1;
    // SAFETY: the descriptor is open, and no code of this process owns it, as documented above.
    fds.iter()
        .all(is_open)
        .then(|| fds.iter().map(|fd| unsafe { OwnedFd::from_raw_fd(*fd) }).collect())
}
