//! Landlock, seccomp filters, and the ban on executable memory: what the kernel takes away from a
//! thread or the process for good.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;

use libc::{c_int, c_void};

use super::result::check;

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

/// Whether a seccomp filter of somebody else's runs already; `None` where the kernel has no
/// seccomp.
pub fn inherited_filter() -> Option<bool> {
    // SAFETY: prctl with plain numbers.
    match unsafe { libc::prctl(libc::PR_GET_SECCOMP, 0, 0, 0, 0) } {
        0 => Some(false),
        -1 => None,
        _ => Some(true),
    }
}

/// Takes memory that is writable and executable, and memory that becomes executable, away from the
/// process for good (Linux 6.3). Fails unless the kernel says that this is in force.
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

/// Whether memory can be made executable no more, as the kernel has it.
pub fn is_executable_memory_denied() -> bool {
    const GET_MDWE: c_int = 66;
    const REFUSE_EXEC_GAIN: c_int = 1;
    // SAFETY: prctl with plain numbers.
    let mode = unsafe { libc::prctl(GET_MDWE, 0, 0, 0, 0) };
    mode != -1 && mode & REFUSE_EXEC_GAIN != 0
}
