//! Every unsafe call of the program, behind wrappers that are safe to call.

pub mod child;
pub mod fd_passing;

use std::ffi::{CStr, c_char};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::ptr::{self, NonNull};

use libc::{c_int, c_void};

use crate::http1::digits;

mod early;
mod hardening;
mod page_lock;
pub mod paths;
mod program;
pub mod windows;

pub use early::{FirstSteps, first_steps, found_first};
pub use hardening::*;
pub use page_lock::{LockedPages, OpenPages, PageLock};
pub use program::{Sealed, bring_pages_in, seal_program};

/// Turns a system call's -1 into the error that it stands for.
fn check(result: c_int) -> io::Result<c_int> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Which memory the key lies in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SecretMemory {
    /// memfd_secret(2): out of reach even for root reading `/proc/PID/mem`.
    MemfdSecret,
    /// Ordinary pages, locked, left out of dumps and forks.
    Locked,
}

/// Pages of their own between two guard pages. The first part can be made read-only.
pub struct SecretPages {
    /// The first guard page.
    start: NonNull<c_void>,
    page: usize,
    /// Bytes between the guard pages.
    len: usize,
    /// Bytes from the first on that are read-only.
    sealed: usize,
    memory: SecretMemory,
}

impl SecretPages {
    /// At least `len` bytes, zeroed. Fails when the pages can neither be secret nor locked.
    pub fn new(len: usize) -> io::Result<SecretPages> {
        SecretPages::of(page_size(), len)
    }

    /// As [`SecretPages::new`], in pages of this size: the kernel's, or a multiple of it.
    pub fn of(page: usize, len: usize) -> io::Result<SecretPages> {
        let len = len.next_multiple_of(page);
        let whole = len + 2 * page;
        // SAFETY: a new anonymous mapping at an address of the kernel's choice touches nothing
        // else.
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                whole,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start).ok_or(io::ErrorKind::OutOfMemory)?;
        // From here on the drop of `pages` unmaps it all.
        let mut pages =
            SecretPages { start, page, len, sealed: 0, memory: SecretMemory::MemfdSecret };
        if pages.map_secret().is_err() {
            pages.memory = SecretMemory::Locked;
            pages.map_locked()?;
        }
        Ok(pages)
    }

    /// Bytes between the guard pages, a multiple of the page size.
    pub fn len(&self) -> usize {
        self.len
    }

    /// There is no byte between the guard pages.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Which memory it is.
    pub fn memory(&self) -> SecretMemory {
        self.memory
    }

    /// Bytes of one page.
    pub fn page(&self) -> usize {
        self.page
    }

    fn data(&self) -> *mut u8 {
        // SAFETY: the mapping is `len` and two pages long, so this stays inside it.
        unsafe { self.start.as_ptr().cast::<u8>().add(self.page) }
    }

    fn map_secret(&mut self) -> io::Result<()> {
        // SAFETY: takes a flag and gives a descriptor; no memory is involved.
        let fd = unsafe { libc::syscall(libc::SYS_memfd_secret, libc::O_CLOEXEC) };
        let fd = check(c_int::try_from(fd).unwrap_or(-1))?;
        // SAFETY: the descriptor was just made and nobody else has it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let len = libc::off_t::try_from(self.len).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: sets the size of our own descriptor's memory.
        check(unsafe { libc::ftruncate(fd.as_raw_fd(), len) })?;
        self.map(libc::MAP_SHARED, fd.as_raw_fd())?;
        // SAFETY: the range is the one just mapped. A child must not inherit it.
        check(unsafe { libc::madvise(self.data().cast(), self.len, libc::MADV_DONTFORK) })?;
        Ok(())
    }

    fn map_locked(&mut self) -> io::Result<()> {
        self.map(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1)?;
        // SAFETY: the range is the one just mapped, of our own.
        check(unsafe { libc::mlock(self.data().cast(), self.len) })?;
        for advice in [libc::MADV_DONTDUMP, libc::MADV_WIPEONFORK] {
            // SAFETY: as above; neither advice changes what this process sees.
            check(unsafe { libc::madvise(self.data().cast(), self.len, advice) })?;
        }
        Ok(())
    }

    fn map(&mut self, flags: c_int, fd: RawFd) -> io::Result<()> {
        // SAFETY: MAP_FIXED replaces pages of our own reservation and nothing else, before any
        // reference into them exists.
        let mapped = unsafe {
            libc::mmap(
                self.data().cast(),
                self.len,
                libc::PROT_READ | libc::PROT_WRITE,
                flags | libc::MAP_FIXED,
                fd,
                0,
            )
        };
        if mapped == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the pages are mapped readable for as long as self lives, initialised by the
        // kernel, and changed only through `&mut self`.
        unsafe { std::slice::from_raw_parts(self.data(), self.len) }
    }

    /// The bytes that are not sealed, for writing.
    pub fn open_mut(&mut self) -> &mut [u8] {
        // SAFETY: the range is inside the mapping and writable, as it lies behind the sealed part,
        // and `&mut self` keeps every other reference away.
        unsafe {
            std::slice::from_raw_parts_mut(self.data().add(self.sealed), self.len - self.sealed)
        }
    }

    /// The sealed bytes, and those that are not, for writing.
    pub fn split_mut(&mut self) -> (&[u8], &mut [u8]) {
        // SAFETY: the two ranges are inside the mapping and do not overlap; the second is writable,
        // and `&mut self` keeps every other reference away.
        unsafe {
            (
                std::slice::from_raw_parts(self.data(), self.sealed),
                std::slice::from_raw_parts_mut(
                    self.data().add(self.sealed),
                    self.len - self.sealed,
                ),
            )
        }
    }

    /// Puts the pages under this protection key. What may be done with them otherwise stays.
    #[cfg(target_arch = "x86_64")]
    fn tag(&self, key: u32) -> io::Result<()> {
        let both = libc::PROT_READ | libc::PROT_WRITE;
        let ranges = [(0, self.sealed, libc::PROT_READ), (self.sealed, self.len, both)];
        for (start, end, protection) in ranges.into_iter().filter(|(start, end, _)| start < end) {
            // SAFETY: the range is inside the mapping, and its protection is what it was.
            let result = unsafe {
                let at = self.data().add(start);
                libc::syscall(libc::SYS_pkey_mprotect, at, end - start, protection, key)
            };
            check(c_int::try_from(result).unwrap_or(-1))?;
        }
        Ok(())
    }

    /// Makes the first `len` bytes, a whole number of pages, read-only.
    pub fn seal(&mut self, len: usize) -> io::Result<()> {
        assert!(len.is_multiple_of(self.page) && len <= self.len);
        self.sealed = len;
        // SAFETY: takes write permission from pages of our own to which no reference exists.
        check(unsafe { libc::mprotect(self.data().cast(), len, libc::PROT_READ) }).map(|_| ())
    }
}

/// Wipes the pages before they go.
impl Drop for SecretPages {
    fn drop(&mut self) {
        let both = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: gives back write permission to pages of our own; no reference exists any more.
        if unsafe { libc::mprotect(self.data().cast(), self.len, both) } == 0 {
            self.sealed = 0;
            zeroize::Zeroize::zeroize(self.open_mut());
        }
        // SAFETY: unmaps our own mapping, which nobody refers to any more.
        unsafe { libc::munmap(self.start.as_ptr(), self.len + 2 * self.page) };
    }
}

/// Bytes of one of the kernel's pages.
pub fn page_size() -> usize {
    // SAFETY: asks for a constant.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(size).unwrap_or(4096)
}

/// read(2), once.
pub fn read(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the kernel writes at most `len` bytes into memory that is ours alone.
    let n = unsafe { libc::read(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) };
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}

/// Makes the process non-dumpable, so that its memory is closed to other processes of the same
/// user; reads back that it is.
pub fn deny_dumps() -> io::Result<()> {
    // SAFETY: prctl with plain numbers.
    check(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) })?;
    // SAFETY: as above.
    match check(unsafe { libc::prctl(libc::PR_GET_DUMPABLE, 0, 0, 0, 0) })? {
        0 => Ok(()),
        _ => Err(io::Error::other("still dumpable")),
    }
}

/// Sets the limit on core files to nothing, for good; reads back that it is.
pub fn deny_cores() -> io::Result<()> {
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel reads one struct that outlives the call.
    check(unsafe { libc::setrlimit(libc::RLIMIT_CORE, &none) })?;
    let mut limit = libc::rlimit { rlim_cur: 1, rlim_max: 1 };
    // SAFETY: the kernel fills one struct that outlives the call.
    check(unsafe { libc::getrlimit(libc::RLIMIT_CORE, &mut limit) })?;
    match (limit.rlim_cur, limit.rlim_max) {
        (0, 0) => Ok(()),
        _ => Err(io::Error::other("core files are still possible")),
    }
}

/// Raises the limit on open files towards `wanted`; answers with what is in force.
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

/// Fills `bytes` by getrandom(2), which waits until the kernel has been seeded.
pub fn random(mut bytes: &mut [u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        // SAFETY: the kernel writes at most `len` bytes into memory that is ours alone.
        let n = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
        match usize::try_from(n) {
            Ok(n) => bytes = &mut bytes[n..],
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => {}
                error => return Err(error),
            },
        }
    }
    Ok(())
}

/// Runs `work` compiled for 32-byte vectors where the processor has them, as nearly all have. It
/// must be inlined to gain from that.
#[inline]
pub fn with_wide_vectors<R>(work: impl FnOnce() -> R) -> R {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2")]
        fn wide<R>(work: impl FnOnce() -> R) -> R {
            work()
        }
        if std::arch::is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has just said that it knows these instructions.
            return unsafe { wide(work) };
        }
    }
    work()
}

unsafe extern "C" {
    /// The environment: pointers to `NAME=value`, the last one null.
    static mut environ: *mut *mut c_char;
}

/// Shows the value of a variable where it lies, without a copy. Only while the process has one
/// thread.
pub fn with_variable<R>(name: &CStr, look: impl FnOnce(&[u8]) -> R) -> Option<R> {
    // SAFETY: the name is a string that outlives the call.
    let value = unsafe { libc::getenv(name.as_ptr()) };
    // SAFETY: a string of the environment, which nothing changes while `look` runs: there is no
    // other thread, and the reference does not outlive the call.
    (!value.is_null()).then(|| look(unsafe { CStr::from_ptr(value) }.to_bytes()))
}

/// Removes the variables that are not wanted and overwrites them where the kernel put them, so that
/// `/proc/PID/environ` shows them no more. Only while the process has one thread.
pub fn wipe_variables(is_unwanted: impl Fn(&[u8]) -> bool) {
    // SAFETY: the list is the C library's own, ends with null, and nobody else reads or writes it:
    // there is no other thread. Each string is writable memory of this process, and the reference
    // to it has ended when it is overwritten. Those that stay move up, as in unsetenv(3).
    unsafe {
        let mut to = environ;
        let mut from = environ;
        while !from.is_null() && !(*from).is_null() {
            let entry = CStr::from_ptr(*from).to_bytes();
            let (len, name) = (entry.len(), entry.split(|byte| *byte == b'=').next());
            if name.is_some_and(&is_unwanted) {
                let entry = std::slice::from_raw_parts_mut((*from).cast::<u8>(), len);
                zeroize::Zeroize::zeroize(entry);
            } else {
                *to = *from;
                to = to.add(1);
            }
            from = from.add(1);
        }
        if !to.is_null() {
            *to = ptr::null_mut();
        }
    }
}

/// Overwrites each variable of the environment whose value `is_secret`, and removes it, and calls
/// back with its name. Only while the process has one thread.
pub fn wipe_values(is_secret: impl Fn(&[u8]) -> bool, mut found: impl FnMut(&[u8])) {
    // SAFETY: the list is the C library's own, ends with null, and nobody else changes it: there is
    // no other thread. The references end with the call.
    unsafe {
        let mut at = environ;
        while !at.is_null() && !(*at).is_null() {
            let entry = CStr::from_ptr(*at).to_bytes();
            if let Some(equals) = entry.iter().position(|byte| *byte == b'=')
                && is_secret(&entry[equals + 1..])
            {
                found(&entry[..equals]);
                let entry = std::slice::from_raw_parts_mut((*at).cast::<u8>(), entry.len());
                zeroize::Zeroize::zeroize(entry);
            }
            at = at.add(1);
        }
    }
    // An entry that was overwritten has no name.
    wipe_variables(<[u8]>::is_empty);
}

/// Shows the arguments where the kernel put them, each with its zero byte behind it, for changing.
/// Only while the process has one thread.
pub fn with_arguments<R>(look: impl FnOnce(&mut [u8]) -> R) -> Option<R> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // Fields 48 and 49 of proc_pid_stat(5); the name, which may hold anything, ends with the last
    // parenthesis, and what follows that is field 3.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(45);
    let mut number = || digits::decimal(fields.next()?.as_bytes(), 20)?.try_into().ok();
    let (start, end): (usize, usize) = (number()?, number()?);
    if start == 0 || start >= end {
        return None;
    }
    let start = ptr::with_exposed_provenance_mut::<u8>(start);
    // SAFETY: the kernel names its own copy of the arguments, which is writable memory of this
    // process for as long as it runs; nothing else refers to it while `look` runs, since there is
    // no other thread.
    Some(look(unsafe { std::slice::from_raw_parts_mut(start, end - start.addr()) }))
}

/// Gives up every way to gain privileges by execve(2), for good: what Landlock and seccomp ask for.
/// Reads back that it is so.
pub fn deny_new_privileges() -> io::Result<()> {
    // SAFETY: prctl with plain numbers.
    check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })?;
    // SAFETY: as above.
    match check(unsafe { libc::prctl(libc::PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) })? {
        1 => Ok(()),
        _ => Err(io::Error::other("new privileges are still possible")),
    }
}

/// What becomes of the descriptors that the starter of the process left open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inherited {
    /// They stay, but no other program gets them.
    CloseOnExec,
    /// They are closed.
    Close,
}

/// Which of the descriptors from 3 on were reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reached {
    /// All of them.
    All,
    /// Those below this number: the kernel says of no other whether they are there.
    Below(RawFd),
}

/// Sees to the descriptors from `first` on, which is 3 or more, but for one. Closing: only while no
/// other is our own.
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
    // What lists them is a descriptor itself, and closed when this returns.
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

/// The socket speaks TCP and listens.
pub fn is_tcp_listener(fd: BorrowedFd<'_>) -> bool {
    let option = |name: c_int| {
        let mut value: c_int = 0;
        let mut len = libc::socklen_t::try_from(size_of::<c_int>()).unwrap_or(0);
        let value_at = ptr::from_mut(&mut value).cast();
        // SAFETY: the kernel fills one number that outlives the call.
        let result =
            unsafe { libc::getsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, name, value_at, &mut len) };
        (result == 0).then_some(value)
    };
    option(libc::SO_ACCEPTCONN) == Some(1)
        && option(libc::SO_TYPE) == Some(libc::SOCK_STREAM)
        && option(libc::SO_PROTOCOL) == Some(libc::IPPROTO_TCP)
}

/// A process that was forked and has not been waited for.
pub struct Child {
    pid: libc::pid_t,
}

impl Child {
    /// Waits for its end.
    pub fn wait(self) -> io::Result<ExitStatus> {
        let mut status = 0;
        loop {
            // SAFETY: the kernel fills one number that outlives the call.
            match check(unsafe { libc::waitpid(self.pid, &mut status, 0) }) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result.map(|_| ExitStatus::from_raw(status)),
            }
        }
    }
}

/// Forks; `None` is the child. Only while the process has one thread, so that the child finds no
/// lock held by a thread that it does not have.
pub fn fork() -> io::Result<Option<Child>> {
    // SAFETY: no other thread exists, as the caller says, so that the child may do what the parent
    // may.
    match check(unsafe { libc::fork() })? {
        0 => Ok(None),
        pid => Ok(Some(Child { pid })),
    }
}

/// Whether the kernel ends this process, by SIGTERM, when its parent ends.
pub fn end_with_parent(does: bool) -> io::Result<()> {
    let signal = if does { libc::SIGTERM } else { 0 };
    // SAFETY: prctl with plain numbers.
    check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, signal, 0, 0, 0) }).map(|_| ())
}

/// Begins a session without a terminal.
pub fn new_session() -> io::Result<()> {
    // SAFETY: no memory is involved.
    check(unsafe { libc::setsid() }).map(|_| ())
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

/// Makes a standard descriptor mean what `by` means.
pub fn replace(standard: Standard, by: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the standard descriptors have no owner in this process: what is replaced is not
    // closed under anyone's hands.
    check(unsafe { libc::dup2(by.as_raw_fd(), standard as c_int) }).map(|_| ())
}

/// The user ids of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UserIds {
    /// Of the user that started it.
    pub real: u32,
    /// That the kernel goes by.
    pub effective: u32,
}

/// The user ids of this process.
pub fn user_ids() -> io::Result<UserIds> {
    let (mut real, mut effective, mut saved) = (0, 0, 0);
    // SAFETY: the kernel fills three numbers that are ours alone.
    check(unsafe { libc::getresuid(&mut real, &mut effective, &mut saved) })?;
    Ok(UserIds { real, effective })
}

/// The user id and its group, from the system's user database.
pub fn user_named(name: &CStr) -> Option<(u32, u32)> {
    let mut space = [0; 4096];
    // SAFETY: plain memory for libc to fill.
    let mut entry: libc::passwd = unsafe { std::mem::zeroed() };
    let mut found = ptr::null_mut();
    // SAFETY: libc writes into memory that is ours alone, as much as its length says.
    unsafe {
        libc::getpwnam_r(name.as_ptr(), &mut entry, space.as_mut_ptr(), space.len(), &mut found)
    };
    (!found.is_null()).then_some((entry.pw_uid, entry.pw_gid))
}

/// The group of a user id.
pub fn group_of(uid: u32) -> Option<u32> {
    let mut space = [0; 4096];
    // SAFETY: plain memory for libc to fill.
    let mut entry: libc::passwd = unsafe { std::mem::zeroed() };
    let mut found = ptr::null_mut();
    // SAFETY: libc writes into memory that is ours alone, as much as its length says.
    unsafe { libc::getpwuid_r(uid, &mut entry, space.as_mut_ptr(), space.len(), &mut found) };
    (!found.is_null()).then_some(entry.pw_gid)
}

/// Becomes another user, for good: no supplementary group, all three ids of both kinds. Only while
/// the process has one thread.
///
/// The kernel makes a process that changes its user as dumpable as `fs.suid_dumpable` says. So it
/// keeps its capabilities until it is non-dumpable again: a process of the new user, which has
/// none, may not attach to one that has some. The caller drops them.
pub fn become_user(uid: u32, gid: u32) -> io::Result<()> {
    // SAFETY: prctl with plain numbers.
    check(unsafe { libc::prctl(libc::PR_SET_KEEPCAPS, 1, 0, 0, 0) })?;
    // SAFETY: an empty list.
    check(unsafe { libc::setgroups(0, ptr::null()) })?;
    // SAFETY: plain numbers.
    check(unsafe { libc::setresgid(gid, gid, gid) })?;
    // SAFETY: plain numbers.
    check(unsafe { libc::setresuid(uid, uid, uid) })?;
    deny_dumps()?;
    // SAFETY: prctl with plain numbers.
    check(unsafe { libc::prctl(libc::PR_SET_KEEPCAPS, 0, 0, 0, 0) })?;
    let (mut ids, mut groups) = ([!uid; 3], [!gid; 3]);
    let [a, b, c] = &mut ids;
    // SAFETY: the kernel fills three numbers that are ours alone.
    check(unsafe { libc::getresuid(a, b, c) })?;
    let [a, b, c] = &mut groups;
    // SAFETY: as above.
    check(unsafe { libc::getresgid(a, b, c) })?;
    if ids == [uid; 3] && groups == [gid; 3] { Ok(()) } else { Err(io::ErrorKind::Other.into()) }
}

/// Takes every capability from the bounding set, where that is allowed.
pub fn empty_bounding_set() -> io::Result<()> {
    for capability in 0..64 {
        // SAFETY: prctl with plain numbers.
        match check(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) }) {
            Ok(_) => {}
            // Beyond the last one that this kernel has.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => break,
            // A process that may not drop them has none to bound: no_new_privs sees to that.
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The header and the two halves of the sets of capget(2) and capset(2).
#[repr(C)]
struct Capabilities {
    version: u32,
    pid: c_int,
    /// effective, permitted, inheritable; twice.
    sets: [u32; 6],
}

/// Gives up every capability that this thread has; reads back that none is left.
pub fn drop_capabilities() -> io::Result<()> {
    // SAFETY: prctl with plain numbers. Kernels before 4.3 have no ambient set to clear.
    unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) };
    let mut none = Capabilities { version: 0x2008_0522, pid: 0, sets: [0; 6] };
    let header = ptr::from_mut(&mut none).cast::<u32>();
    // SAFETY: the header is the first two fields; the sets have the size that version 3 asks for.
    check(unsafe { libc::syscall(libc::SYS_capset, header, none.sets.as_ptr()) as c_int })?;
    none.sets = [!0; 6];
    // SAFETY: as above; the kernel fills the sets.
    check(unsafe { libc::syscall(libc::SYS_capget, header, none.sets.as_mut_ptr()) as c_int })?;
    if none.sets == [0; 6] { Ok(()) } else { Err(io::ErrorKind::Other.into()) }
}

/// A connected netlink socket that answers questions about other sockets.
pub fn socket_diagnosis() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: no memory is involved.
    let fd = check(unsafe { libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_SOCK_DIAG) })?;
    // SAFETY: the descriptor was just made and nobody else has it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: plain memory; all zero is the kernel's own address.
    let mut kernel: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
    kernel.nl_family = libc::AF_NETLINK as libc::sa_family_t;
    let len = size_of_val(&kernel) as libc::socklen_t;
    // SAFETY: the kernel reads `len` bytes that outlive the call. From here on no other process can
    // send anything to this socket.
    check(unsafe { libc::connect(fd.as_raw_fd(), ptr::from_ref(&kernel).cast(), len) })?;
    Ok(fd)
}

/// Sends a question on a datagram socket.
pub fn send(fd: BorrowedFd<'_>, question: &[u8]) -> io::Result<usize> {
    let (start, len) = (question.as_ptr().cast(), question.len());
    // SAFETY: the kernel reads `len` bytes that outlive the call.
    let n = unsafe { libc::send(fd.as_raw_fd(), start, len, libc::MSG_NOSIGNAL) };
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}

/// Landlock's version on this kernel, or how the question for it was refused.
pub fn landlock() -> io::Result<u32> {
    let version: *const c_void = ptr::null();
    // SAFETY: with this flag the kernel reads nothing and answers with a number.
    let abi = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, version, 0, 1) };
    u32::try_from(abi).map_err(|_| io::Error::last_os_error())
}

/// What a Landlock ruleset takes away from the thread, unless a rule gives it back
/// (`struct landlock_ruleset_attr`).
#[repr(C)]
pub struct Rights {
    /// `LANDLOCK_ACCESS_FS_*`
    pub files: u64,
    /// `LANDLOCK_ACCESS_NET_*`
    pub net: u64,
    /// `LANDLOCK_SCOPE_*`
    pub scope: u64,
}

/// A Landlock ruleset on its way.
pub struct Ruleset {
    fd: OwnedFd,
}

impl Ruleset {
    /// Takes these rights away. The fields that the kernel's version does not know must be 0.
    pub fn new(rights: &Rights) -> io::Result<Ruleset> {
        let (start, len) = (ptr::from_ref(rights), size_of::<Rights>());
        // SAFETY: the kernel reads `len` bytes that outlive the call; those it does not know it
        // only compares with 0.
        let fd = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, start, len, 0) };
        let fd = check(c_int::try_from(fd).unwrap_or(-1))?;
        // SAFETY: the descriptor was just made and nobody else has it.
        Ok(Ruleset { fd: unsafe { OwnedFd::from_raw_fd(fd) } })
    }

    fn allow<T>(&self, kind: c_int, rule: &T) -> io::Result<()> {
        let (fd, rule) = (self.fd.as_raw_fd(), ptr::from_ref(rule));
        // SAFETY: the kernel reads one struct of this kind that outlives the call.
        check(unsafe { libc::syscall(libc::SYS_landlock_add_rule, fd, kind, rule, 0) } as c_int)
            .map(|_| ())
    }

    /// Gives rights on one file back.
    pub fn allow_file(&self, file: BorrowedFd<'_>, rights: u64) -> io::Result<()> {
        #[repr(C, packed)]
        struct PathBeneath {
            rights: u64,
            parent: c_int,
        }
        self.allow(1, &PathBeneath { rights, parent: file.as_raw_fd() })
    }

    /// Gives rights on one TCP port back.
    pub fn allow_port(&self, port: u16, rights: u64) -> io::Result<()> {
        #[repr(C)]
        struct Port {
            rights: u64,
            port: u64,
        }
        self.allow(2, &Port { rights, port: port.into() })
    }

    /// Puts the ruleset in force for this thread and those it will start.
    pub fn restrict_thread(self) -> io::Result<()> {
        // SAFETY: no memory is involved.
        check(unsafe { libc::syscall(libc::SYS_landlock_restrict_self, self.fd.as_raw_fd(), 0) }
            as c_int)
        .map(|_| ())
    }
}

/// Whether the kernel knows seccomp filters and can kill a process by them, or how the question was
/// refused.
pub fn seccomp() -> io::Result<()> {
    const GET_ACTION_AVAIL: c_int = 2;
    let action: u32 = libc::SECCOMP_RET_KILL_PROCESS;
    // SAFETY: the kernel reads one number that outlives the call.
    let answer =
        unsafe { libc::syscall(libc::SYS_seccomp, GET_ACTION_AVAIL, 0, ptr::from_ref(&action)) };
    check(c_int::try_from(answer).unwrap_or(-1)).map(|_| ())
}

/// Puts a seccomp filter in force for the thread that calls, and those that it starts. It has no
/// new privileges already.
pub fn filter_thread(program: &[libc::sock_filter]) -> io::Result<()> {
    let len = program.len().try_into().map_err(|_| io::ErrorKind::InvalidInput)?;
    let program = libc::sock_fprog { len, filter: program.as_ptr().cast_mut() };
    let (mode, program) = (libc::SECCOMP_SET_MODE_FILTER, ptr::from_ref(&program));
    // SAFETY: the kernel reads `len` instructions, and writes none; they outlive the call.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, mode, 0, program) };
    check(c_int::try_from(result).unwrap_or(-1)).map(|_| ())
}

/// Sets a socket option.
fn set_option<T>(fd: BorrowedFd<'_>, level: c_int, name: c_int, value: &T) -> io::Result<()> {
    let len = libc::socklen_t::try_from(size_of::<T>()).unwrap_or(0);
    // SAFETY: the kernel reads `len` bytes of a value that outlives the call.
    check(unsafe {
        libc::setsockopt(fd.as_raw_fd(), level, name, ptr::from_ref(value).cast(), len)
    })
    .map(|_| ())
}

/// Makes the coming close of a socket a reset, which no peer takes for an orderly end.
pub fn reset_on_close(fd: BorrowedFd<'_>) -> io::Result<()> {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    set_option(fd, libc::SOL_SOCKET, libc::SO_LINGER, &linger)
}

/// Lets more connections wait to be accepted than std asks for; a burst beyond would be told to try
/// again after a second.
pub fn listen_for_bursts(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: no memory is involved.
    check(unsafe { libc::listen(fd.as_raw_fd(), 4096) }).map(|_| ())
}

/// What every connection wants: nothing waits for more to be sent with it, urgent bytes stay in
/// their place among the others, and the kernel looks after a silent peer, after a minute, then
/// every 15 seconds, four times. Those that a listener accepts have it from the listener.
pub fn set_stream_options(fd: BorrowedFd<'_>) -> io::Result<()> {
    set_common_options(fd)?;
    set_option::<c_int>(fd, libc::IPPROTO_TCP, libc::TCP_KEEPCNT, &4)
}

fn set_common_options(fd: BorrowedFd<'_>) -> io::Result<()> {
    set_option::<c_int>(fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, &1)?;
    set_option::<c_int>(fd, libc::SOL_SOCKET, libc::SO_OOBINLINE, &1)?;
    set_option::<c_int>(fd, libc::SOL_SOCKET, libc::SO_KEEPALIVE, &1)?;
    set_option::<c_int>(fd, libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, &60)?;
    set_option::<c_int>(fd, libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, &15)
}

/// Connections to the upstream have further options: bytes that nobody acknowledges for two minutes
/// end the connection, as does a peer that keep-alive finds silent for as long: this bound stands
/// in place of a number of probes (tcp(7)). Without it a request on a connection that a network has
/// forgotten would wait for a quarter of an hour.
pub fn set_upstream_options(fd: BorrowedFd<'_>) -> io::Result<()> {
    set_common_options(fd)?;
    set_option::<c_int>(fd, libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, &120_000)?;
    set_option(fd, libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, &UPSTREAM_UNSENT)
}

/// Bounds the bytes that the kernel keeps for the upstream before it has sent them. The kernel
/// sizes the send buffer by the path, up to 4 MiB, and an upstream that takes nothing would have
/// all of it filled. Bytes on their way do not count, so this does not bound throughput.
pub const UPSTREAM_UNSENT: c_int = 512 * 1024;

/// Bytes that the kernel keeps for a client's connection in each direction, before it doubles them
/// for its own book-keeping. What a client does not read, or sends while the upstream takes
/// nothing, is bounded by that. Set on a listener: its connections have it from there.
pub const CLIENT_BUFFER: c_int = 208 * 1024;

/// Bounds what the kernel buffers for each connection of a listener.
pub fn bound_buffers(fd: BorrowedFd<'_>) -> io::Result<()> {
    set_option(fd, libc::SOL_SOCKET, libc::SO_RCVBUF, &CLIENT_BUFFER)?;
    set_option(fd, libc::SOL_SOCKET, libc::SO_SNDBUF, &CLIENT_BUFFER)
}

/// A set of signals.
fn signal_set(signals: &[c_int]) -> libc::sigset_t {
    // SAFETY: a zeroed sigset_t is plain memory, which sigemptyset then makes an empty set.
    let mut set = unsafe { std::mem::zeroed() };
    // SAFETY: `set` is ours alone.
    unsafe { libc::sigemptyset(&mut set) };
    for signal in signals {
        // SAFETY: as above; the signals are valid constants.
        unsafe { libc::sigaddset(&mut set, *signal) };
    }
    set
}

/// Signals that arrive as bytes on a descriptor instead of interrupting anything.
pub struct SignalFd {
    fd: OwnedFd,
}

impl SignalFd {
    /// Blocks the signals in this thread and those it will start, and collects them.
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
        // SAFETY: the descriptor was just made and nobody else has it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(SignalFd { fd })
    }

    /// The next signal that has come.
    pub fn take(&mut self) -> Option<c_int> {
        // SAFETY: plain memory for the kernel to fill.
        let mut info: libc::signalfd_siginfo = unsafe { std::mem::zeroed() };
        let size = size_of_val(&info);
        // SAFETY: the kernel writes at most one struct, which is ours alone.
        let n = unsafe { libc::read(self.fd.as_raw_fd(), ptr::from_mut(&mut info).cast(), size) };
        (usize::try_from(n) == Ok(size)).then_some(info.ssi_signo as c_int)
    }
}

impl AsRawFd for SignalFd {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// Lets these signals do nothing, for all threads.
pub fn ignore_signals(signals: &[c_int]) -> io::Result<()> {
    for signal in signals {
        // SAFETY: a disposition that runs no code of this process.
        if unsafe { libc::signal(*signal, libc::SIG_IGN) } == libc::SIG_ERR {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// The signal does nothing.
pub fn is_ignored(signal: c_int) -> bool {
    // SAFETY: plain memory for the C library to fill.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: without a new action, the C library fills one struct that is ours alone.
    let known = unsafe { libc::sigaction(signal, ptr::null(), &mut action) } == 0;
    known && action.sa_sigaction == libc::SIG_IGN
}

/// The process has a controlling terminal.
pub fn has_terminal() -> bool {
    let flags = libc::O_RDONLY | libc::O_NOCTTY | libc::O_NONBLOCK | libc::O_CLOEXEC;
    // SAFETY: the path is a C string; this name always means the controlling terminal.
    let fd = unsafe { libc::open(c"/dev/tty".as_ptr(), flags) };
    if fd != -1 {
        // SAFETY: the descriptor was just made and nobody else has it.
        drop(unsafe { OwnedFd::from_raw_fd(fd) });
        return true;
    }
    // Without that file, a standard descriptor may be the terminal.
    // SAFETY: no memory is involved.
    (0..3).any(|fd| unsafe { libc::tcgetsid(fd) } != -1)
}

/// Lets the signals through again.
pub fn unblock(signals: &[c_int]) {
    let set = signal_set(signals);
    // SAFETY: the kernel reads a set that outlives the call.
    unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, &set, ptr::null_mut()) };
}

/// This process may read from the terminal: its group is the one in the foreground, or the terminal
/// is not the one that controls it.
pub fn is_in_foreground(terminal: BorrowedFd<'_>) -> bool {
    // SAFETY: no memory is involved.
    let (foreground, own) = unsafe { (libc::tcgetpgrp(terminal.as_raw_fd()), libc::getpgrp()) };
    foreground == -1 || foreground == own
}

/// Sends a signal to this process and all others of its group, as the kernel does where a terminal
/// is the cause.
pub fn raise_in_group(signal: c_int) {
    // SAFETY: no memory is involved.
    unsafe { libc::kill(0, signal) };
}

/// Sends a signal to this process.
pub fn raise(signal: c_int) {
    // SAFETY: no memory is involved.
    unsafe { libc::raise(signal) };
}

/// The time since the machine has started, with the time that it has slept. Linux answers this
/// without a system call.
pub fn time_since_boot() -> std::time::Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel fills one struct that is ours alone.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &mut time) };
    std::time::Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Waits until one of the descriptors can be read; says which.
pub fn wait_readable(fds: [RawFd; 2]) -> io::Result<[bool; 2]> {
    let mut polls = fds.map(|fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 });
    // SAFETY: the kernel fills two structs that outlive the call.
    match check(unsafe { libc::poll(polls.as_mut_ptr(), 2, -1) }) {
        Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
        _ => Ok(polls.map(|poll| poll.revents != 0)),
    }
}

/// A terminal whose echo is off, until this goes.
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
        // SAFETY: the kernel fills one struct that is ours alone.
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
