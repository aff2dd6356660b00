//! Descriptors: reading, the limit on their number, and the descriptors that the starter of the
//! process left open.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use libc::c_int;

use super::result::check;
use crate::http1::digits;

/// read(2), once.
pub fn read(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the kernel writes at most `len` bytes into memory that is ours alone.
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

/// Makes the table of descriptors large enough for `count`. It grows by itself; but once a second
/// thread shares it, the kernel waits at each growth until every processor has let go of the old
/// one (`expand_fdtable` in fs/file.c), which holds the loop up for 10 to 40 ms.
pub fn make_room_for_descriptors(count: u64) {
    let last = c_int::try_from(count).unwrap_or(c_int::MAX) - 1;
    // SAFETY: makes a descriptor that nobody owns yet.
    let fd = unsafe { libc::fcntl(libc::STDERR_FILENO, libc::F_DUPFD_CLOEXEC, last) };
    if fd != -1 {
        // SAFETY: it was made above, and nobody else knows of it.
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
    // SAFETY: the standard descriptors have no owner in this process: what is replaced is not
    // closed under anyone's hands.
    check(unsafe { libc::dup2(by.as_raw_fd(), standard as c_int) }).map(|_| ())
}

/// What happens to the descriptors that the starter of the process left open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inherited {
    /// They stay open, but execve(2) closes them.
    CloseOnExec,
    /// They are closed.
    Close,
}

/// Which of the descriptors were dealt with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reached {
    /// All of them.
    All,
    /// Those below this number. Higher ones may exist; the kernel did not list them.
    Below(RawFd),
}

/// Marks or closes all descriptors from `first` (3 or more) on, except `but`. Close them only while
/// none of the others belongs to this program.
pub fn inherited_descriptors(
    what: Inherited,
    first: usize,
    but: Option<BorrowedFd<'_>>,
) -> Reached {
    let first = RawFd::try_from(first).unwrap_or(RawFd::MAX).max(3);
    let flags = match what {
        Inherited::CloseOnExec => libc::CLOSE_RANGE_CLOEXEC,
        Inherited::Close => 0,
    };
    let but = but.map(|fd| fd.as_raw_fd()).filter(|fd| *fd >= first).unwrap_or(first - 1);
    let in_range = |first: RawFd, last: u32| {
        // SAFETY: no descriptor in there has an owner in this process, as the caller says.
        first as u32 > last
            || unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) } == 0
    };
    let mark = Mark::new(first);
    if in_range(first, but as u32 - 1) && in_range(but + 1, u32::MAX) && mark.was_reached(what) {
        return Reached::All;
    }
    // Linux before 5.11 has no close_range(2) or not this flag of it; a container may refuse it, or
    // have it return 0 and do nothing.
    let see_to = |fd: RawFd| {
        match what {
            _ if fd == but => 0,
            // SAFETY: sets a flag, on a descriptor that may not exist.
            Inherited::CloseOnExec => unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) },
            // SAFETY: as above, no descriptor from `first` on has an owner.
            Inherited::Close => unsafe { libc::close(fd) },
        };
    };
    if let Some(open) = open_descriptors() {
        open.into_iter().filter(|fd| *fd >= first).for_each(see_to);
        return Reached::All;
    }
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel fills one struct that outlives the call.
    unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) };
    let end = RawFd::try_from(limit.rlim_cur).unwrap_or(RawFd::MAX).min(1 << 20);
    (first..end).for_each(see_to);
    Reached::Below(end)
}

/// A descriptor that shows whether close_range(2) has reached it.
struct Mark(Option<RawFd>);

impl Mark {
    /// Among the descriptors from `first` on. There is none when all numbers are taken.
    fn new(first: RawFd) -> Mark {
        // SAFETY: no memory is involved.
        let fd = unsafe { libc::fcntl(libc::STDERR_FILENO, libc::F_DUPFD, first) };
        Mark((fd >= first).then_some(fd))
    }

    /// close_range(2) has closed it, or will have execve(2) close it.
    fn was_reached(self, what: Inherited) -> bool {
        let Some(fd) = self.0 else {
            return true;
        };
        // SAFETY: asks for a flag; closes a descriptor that nothing else uses.
        let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
        match what {
            Inherited::Close => flags == -1,
            Inherited::CloseOnExec => flags & libc::FD_CLOEXEC != 0,
        }
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        if let Some(fd) = self.0 {
            // SAFETY: nothing else uses this number: where it was closed, nothing was opened since.
            unsafe { libc::close(fd) };
        }
    }
}

/// The descriptors that are open, as /proc lists them: those above the soft limit too, which they
/// stay when that is lowered.
fn open_descriptors() -> Option<Vec<RawFd>> {
    let entries = std::fs::read_dir("/proc/self/fd").ok()?;
    // The listing itself uses a descriptor, which is closed when this returns.
    let number = |name: &str| digits::decimal(name.as_bytes(), 10)?.try_into().ok();
    entries.map(|entry| number(entry.ok()?.file_name().to_str()?)).collect()
}

/// Takes over `count` descriptors from `first` on that the starter left open for this process;
/// `None` when one of them is not open. Only before this process has opened any of its own.
pub fn take_descriptors(first: usize, count: usize) -> Option<Vec<OwnedFd>> {
    let fds: Vec<RawFd> = (first..first + count).map(|fd| fd as RawFd).collect();
    // SAFETY: asks for a flag, of a descriptor that may not exist.
    let is_open = |fd: &RawFd| unsafe { libc::fcntl(*fd, libc::F_GETFD) } != -1;
    // SAFETY: it is open, and has no owner in this process, as the caller says.
    fds.iter()
        .all(is_open)
        .then(|| fds.iter().map(|fd| unsafe { OwnedFd::from_raw_fd(*fd) }).collect())
}
