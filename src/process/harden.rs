//! The first steps of the program: before the key is read, they keep other processes out.

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::BorrowedFd;

use super::status::Status;
use super::sys::child;
use super::sys::{self, FirstSteps, Inherited, Reached};

/// A step that failed. Each has an exit code of its own; the reference uses the same codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HardenError {
    /// The process is still dumpable.
    Dumpable,
    /// Core files are still possible.
    Cores,
    /// `PR_SET_NO_NEW_PRIVS` failed.
    NewPrivileges,
    /// The process could not change to the user of `--user`.
    User,
    /// The process still has capabilities.
    Capabilities,
    /// The kernel has Landlock, but putting it in force failed.
    Landlock,
    /// The kernel has seccomp, but putting the filter in force failed.
    Seccomp,
    /// `--require-secret-memory` was given, and the kernel has no memfd_secret(2).
    SecretMemory,
    /// `--require-hardening` was given, and a protection is not in force.
    Incomplete,
    /// `--user` was given, and this kernel makes a process dumpable when its user changes.
    SuidDumpable,
    /// `PR_SET_PDEATHSIG` failed, so the connector might outlive the relay.
    ParentDeathSignal,
}

impl HardenError {
    /// The exit code. 6 is not used: the reference has it for a step on macOS. 16 is that of a
    /// connector that has ended.
    pub fn exit_code(self) -> u8 {
        match self {
            HardenError::Dumpable => 5,
            HardenError::Cores => 7,
            HardenError::NewPrivileges => 8,
            HardenError::User => 9,
            HardenError::Capabilities => 10,
            HardenError::Landlock => 11,
            HardenError::Seccomp => 12,
            HardenError::SecretMemory => 13,
            HardenError::Incomplete => 14,
            HardenError::SuidDumpable => 15,
            HardenError::ParentDeathSignal => 17,
        }
    }

    /// The inverse of [`HardenError::exit_code`].
    pub fn of_exit_code(code: u8) -> Option<HardenError> {
        [
            HardenError::Dumpable,
            HardenError::Cores,
            HardenError::NewPrivileges,
            HardenError::User,
            HardenError::Capabilities,
            HardenError::Landlock,
            HardenError::Seccomp,
            HardenError::SecretMemory,
            HardenError::Incomplete,
            HardenError::SuidDumpable,
            HardenError::ParentDeathSignal,
        ]
        .into_iter()
        .find(|error| error.exit_code() == code)
    }
}

impl fmt::Display for HardenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            HardenError::Dumpable => {
                "cannot make the process non-dumpable (PR_SET_DUMPABLE); let prctl(2) through in the \
                 container's seccomp profile"
            }
            HardenError::Cores => {
                "cannot forbid core files (RLIMIT_CORE); let setrlimit(2) and prlimit(2) through in \
                 the container's seccomp profile"
            }
            HardenError::NewPrivileges => {
                "cannot give up new privileges (PR_SET_NO_NEW_PRIVS); let prctl(2) through in the \
                 container's seccomp profile"
            }
            HardenError::User => "cannot become the user of --user; start the relay as root",
            HardenError::Capabilities => {
                "cannot give up capabilities; let capset(2) and prctl(2) through in the container's \
                 seccomp profile"
            }
            HardenError::Landlock => {
                "cannot put Landlock rules in force; --no-sandbox starts without them"
            }
            HardenError::Seccomp => {
                "cannot put seccomp filters in force; --no-sandbox starts without them"
            }
            HardenError::SecretMemory => {
                "--require-secret-memory: memfd_secret is not available; it needs Linux 6.5, or \
                 5.14 with secretmem.enable=1, and a container runtime that lets it through"
            }
            HardenError::Incomplete => "--require-hardening: some protections are not in force",
            HardenError::SuidDumpable => {
                "--user: with the sysctl fs.suid_dumpable=1 other processes can attach while the \
                 user changes; set it to 0 (sysctl -w fs.suid_dumpable=0), or start the relay as \
                 that user"
            }
            HardenError::ParentDeathSignal => {
                "cannot make the connector end with the relay (PR_SET_PDEATHSIG); let prctl(2) through \
                 in the container's seccomp profile"
            }
        })
    }
}

impl std::error::Error for HardenError {}

/// Facts about the process when it began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beginning {
    /// The uid that started the process, if other processes of this user could attach to it before
    /// it made itself non-dumpable.
    pub open_to: Option<u32>,
    /// The id of the process that traces this one.
    pub tracer: Option<u64>,
    /// No memory can be made executable.
    pub executable_memory_denied: bool,
}

/// Makes the process non-dumpable, disables core files and new privileges, removes the variables
/// that steer a dynamic loader or the allocator, and marks inherited descriptors close-on-exec.
/// Only while the process has one thread.
pub fn base() -> Result<Beginning, HardenError> {
    sys::deny_dumps().map_err(|_| HardenError::Dumpable)?;
    sys::disable_core_dumps().map_err(|_| HardenError::Cores)?;
    sys::deny_new_privileges().map_err(|_| HardenError::NewPrivileges)?;
    sys::ignore_file_size_signal();
    sys::inherited_descriptors(Inherited::CloseOnExec, 3, &[]);
    sys::wipe_variables(|name| {
        let prefixes: [&[u8]; 3] = [b"LD_", b"DYLD_", b"MALLOC_"];
        prefixes.iter().any(|prefix| name.starts_with(prefix)) || name == b"GLIBC_TUNABLES"
    });
    sys::wipe_former_variables();
    let user = sys::user_id();
    let was_open = sys::found_first() == FirstSteps::Open && user != 0 && !is_restricted_by_yama();
    Ok(Beginning {
        open_to: was_open.then_some(user),
        tracer: Status::read().ok().map(|status| status.tracer).filter(|tracer| *tracer != 0),
        executable_memory_denied: false,
    })
}

impl Beginning {
    /// From here on, no memory is both writable and executable, and none becomes executable, if the
    /// kernel can deny that. This is part of the sandbox, because a debugger such as valgrind
    /// translates the program into memory of this kind.
    pub fn deny_executable_memory(self) -> Beginning {
        Beginning { executable_memory_denied: sys::deny_executable_memory().is_ok(), ..self }
    }
}

/// Whether Yama lets a process attach to its own descendants only, or to no process.
fn is_restricted_by_yama() -> bool {
    let scope = fs::read("/proc/sys/kernel/yama/ptrace_scope");
    scope.is_ok_and(|scope| !matches!(scope.trim_ascii(), b"" | b"0"))
}

/// The lowest usable limit on the size of files. To the kernel, the memory of the key and of the
/// proxy's password is a file.
/// Tested by `hardening::a_start_without_room_for_files_or_stack_says_so`.
const SMALLEST_FILE_LIMIT: u64 = 1024 * 1024;

/// Tests steps that would otherwise fail only after the key has been read. The error says what to
/// do.
pub fn can_start() -> Result<(), String> {
    sys::random(&mut [0; 8]).map_err(|error| {
        format!(
            "the kernel returns no random numbers ({error}); let getrandom(2) through in the \
             container's seccomp profile"
        )
    })?;
    match sys::file_size_limit() {
        0..SMALLEST_FILE_LIMIT => {
            Err("the limit on the size of files is too low for the memory of the \
                                      key; raise it to 1 MiB or more (ulimit -f)"
                .into())
        }
        _ => Ok(()),
    }
}

/// Tests whether names can be looked up: each lookup is a process that a timer ends. The error says
/// what to do.
pub fn can_look_up() -> Result<(), String> {
    let refused = |call: &str, error: io::Error| {
        format!(
            "cannot look names up ({call}: {error}); raise ulimit -i and ulimit -n, or let {call} through \
             in the container's seccomp profile"
        )
    };
    child::try_timer().map_err(|error| refused("timer_create(2)", error))?;
    io::pipe().map(drop).map_err(|error| refused("pipe2(2)", error))
}

/// Closes the inherited descriptors from `first` on, except the links to other processes of this
/// program. Call this after the files of the command line have been read: `<(…)` in a shell is an
/// inherited descriptor. Returns a warning if some descriptors may still be open.
pub fn close_inherited(first: usize, links: &[BorrowedFd<'_>]) -> Option<String> {
    match sys::inherited_descriptors(Inherited::Close, first, links) {
        Reached::All => None,
        Reached::Below(end) => Some(format!(
            "inherited descriptors from {end} on may still be open: neither close_range(2) nor /proc \
             can be used; make one of them available to the relay"
        )),
    }
}

/// Empties the bounding set, so that execve(2) can give no capability. This takes a system call for
/// each capability, so it is done once, before the connector is forked, for both processes.
pub fn empty_bounding_set() -> Result<(), HardenError> {
    sys::empty_bounding_set().map_err(|_| HardenError::Capabilities)
}

/// Changes to another user if one is named, and gives up every capability in any case. Then makes
/// the process non-dumpable again, because a change of credentials may have undone that. Call this
/// only while the process has one thread.
pub fn drop_privileges(user: Option<(u32, u32)>) -> Result<(), HardenError> {
    if user.is_some() && is_suid_dumpable() {
        return Err(HardenError::SuidDumpable);
    }
    if let Some((uid, gid)) = user {
        sys::become_user(uid, gid).map_err(|_| HardenError::User)?;
    }
    sys::drop_capabilities().map_err(|_| HardenError::Capabilities)?;
    sys::deny_dumps().map_err(|_| HardenError::Dumpable)
}

/// With `fs.suid_dumpable=1` the kernel makes a process dumpable when its user changes.
fn is_suid_dumpable() -> bool {
    fs::read("/proc/sys/fs/suid_dumpable").is_ok_and(|value| value.trim_ascii() == b"1")
}
