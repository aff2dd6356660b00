//! Every unsafe call of the program, behind wrappers that are safe to call.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::{self, NonNull};

use libc::{c_int, c_void};

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
        let page = page_size();
        let len = len.next_multiple_of(page);
        let whole = len + 2 * page;
        // SAFETY: a new anonymous mapping at an address of the kernel's choice touches nothing else.
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

fn page_size() -> usize {
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

/// Sets the limit on core files to nothing, for good.
pub fn deny_cores() -> io::Result<()> {
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel reads one struct that outlives the call.
    check(unsafe { libc::setrlimit(libc::RLIMIT_CORE, &none) }).map(|_| ())
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

/// Removes a variable from the environment. Only while the process has one thread.
pub fn remove_variable(name: &OsStr) {
    // SAFETY: called at the very start, before any other thread exists that could read the
    // environment at the same time.
    unsafe { std::env::remove_var(name) };
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

/// Has the kernel look after a silent peer: after a minute, then every 15 seconds, four times.
pub fn keep_alive(fd: BorrowedFd<'_>) -> io::Result<()> {
    set_option::<c_int>(fd, libc::SOL_SOCKET, libc::SO_KEEPALIVE, &1)?;
    set_option::<c_int>(fd, libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, &60)?;
    set_option::<c_int>(fd, libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, &15)?;
    set_option::<c_int>(fd, libc::IPPROTO_TCP, libc::TCP_KEEPCNT, &4)
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

/// Lets the signals through again.
pub fn unblock(signals: &[c_int]) {
    let set = signal_set(signals);
    // SAFETY: the kernel reads a set that outlives the call.
    unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, &set, ptr::null_mut()) };
}

/// Sends a signal to this process.
pub fn raise(signal: c_int) {
    // SAFETY: no memory is involved.
    unsafe { libc::raise(signal) };
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
