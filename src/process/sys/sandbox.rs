//! Landlock, seccomp filters, and the ban on new executable memory. A thread or process cannot
//! undo any of them.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;

use libc::{c_int, c_void};

use super::result::check;

/// The kernel's version of Landlock, or the error of the system call.
pub fn landlock() -> io::Result<u32> {
    let version: *const c_void = ptr::null();
    // SAFETY: with this flag the kernel reads no memory and returns a number.
    let abi = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, version, 0, 1) };
    u32::try_from(abi).map_err(|_| io::Error::last_os_error())
}

/// The rights that a Landlock ruleset takes away from the thread, unless a rule gives them back
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

/// A Landlock ruleset that is not in force yet.
pub struct Ruleset {
    fd: OwnedFd,
}

impl Ruleset {
    /// Makes a ruleset that takes these rights away. Fields that the kernel's version of Landlock
    /// does not know must be 0.
    pub fn new(rights: &Rights) -> io::Result<Ruleset> {
        let (start, len) = (ptr::from_ref(rights), size_of::<Rights>());
        // SAFETY: the kernel reads `len` bytes that outlive the call.
        let fd = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, start, len, 0) };
        let fd = check(c_int::try_from(fd).unwrap_or(-1))?;
        // SAFETY: the descriptor has just been created, and no other code owns it.
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

    /// Puts the ruleset in force for this thread and the threads that it will start.
    pub fn restrict_thread(self) -> io::Result<()> {
        // SAFETY: no memory is involved.
        check(unsafe { libc::syscall(libc::SYS_landlock_restrict_self, self.fd.as_raw_fd(), 0) }
            as c_int)
        .map(|_| ())
    }
}

/// Fails unless the kernel has seccomp filters that can kill the process.
pub fn seccomp() -> io::Result<()> {
    const GET_ACTION_AVAIL: c_int = 2;
    let action: u32 = libc::SECCOMP_RET_KILL_PROCESS;
    // SAFETY: the kernel reads one number that outlives the call.
    let result =
        unsafe { libc::syscall(libc::SYS_seccomp, GET_ACTION_AVAIL, 0, ptr::from_ref(&action)) };
    check(c_int::try_from(result).unwrap_or(-1)).map(|_| ())
}

/// Puts a seccomp filter in force for the calling thread and the threads that it will start. The
/// thread must already have given up new privileges ([`deny_new_privileges`]).
///
/// [`deny_new_privileges`]: super::deny_new_privileges
pub fn filter_thread(program: &[libc::sock_filter]) -> io::Result<()> {
    let len = program.len().try_into().map_err(|_| io::ErrorKind::InvalidInput)?;
    let program = libc::sock_fprog { len, filter: program.as_ptr().cast_mut() };
    let (mode, program) = (libc::SECCOMP_SET_MODE_FILTER, ptr::from_ref(&program));
    // SAFETY: the kernel reads `len` instructions, and writes none; they outlive the call.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, mode, 0, program) };
    check(c_int::try_from(result).unwrap_or(-1)).map(|_| ())
}

/// Whether this thread has a seccomp filter. Before the relay installs its own, that is an
/// inherited one. `None` where the kernel has no seccomp.
pub fn inherited_filter() -> Option<bool> {
    // SAFETY: prctl with plain numbers.
    match unsafe { libc::prctl(libc::PR_GET_SECCOMP, 0, 0, 0, 0) } {
        0 => Some(false),
        -1 => None,
        _ => Some(true),
    }
}

/// Makes the kernel refuse memory that is both writable and executable, and memory that becomes
/// executable later (Linux 6.3). This cannot be undone. Fails if the kernel does not confirm it.
pub fn deny_executable_memory() -> io::Result<()> {
    const SET_MDWE: c_int = 65;
    const REFUSE_EXEC_GAIN: c_int = 1;
    // SAFETY: prctl with plain numbers.
    check(unsafe { libc::prctl(SET_MDWE, REFUSE_EXEC_GAIN, 0, 0, 0) })?;
    match is_executable_memory_denied() {
        true => Ok(()),
        false => Err(io::ErrorKind::Unsupported.into()),
    }
}

/// Whether the kernel refuses new executable memory to this process.
pub fn is_executable_memory_denied() -> bool {
    const GET_MDWE: c_int = 66;
    const REFUSE_EXEC_GAIN: c_int = 1;
    // SAFETY: prctl with plain numbers.
    let mode = unsafe { libc::prctl(GET_MDWE, 0, 0, 0, 0) };
    mode != -1 && mode & REFUSE_EXEC_GAIN != 0
}
