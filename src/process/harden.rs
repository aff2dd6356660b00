//! What is done before anything else, so that the process is closed when the key arrives.

use std::fmt;

use super::sys::{self, Inherited};

/// A step that failed. Each has its exit code, those of the reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HardenError {
    /// The process is still dumpable.
    Dumpable,
    /// Core files are still possible.
    Cores,
    /// `PR_SET_NO_NEW_PRIVS` failed.
    NewPrivileges,
    /// The user of `--user` could not be become.
    User,
    /// Capabilities are left.
    Capabilities,
    /// Landlock is there and failed.
    Landlock,
    /// seccomp is there and failed.
    Seccomp,
    /// `--require-secret-memory`, and the kernel has none.
    SecretMemory,
}

impl HardenError {
    /// The exit code; 6 stays with the reference's macOS step.
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
        }
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
                "--require-secret-memory: memfd_secret is not to be had; it needs Linux 6.5, or \
                 5.14 with secretmem.enable=1, and a container runtime that lets it through"
            }
        })
    }
}

impl std::error::Error for HardenError {}

/// Non-dumpable, no core files, no new privileges, no variable that steers a dynamic loader, nothing
/// inherited to pass on. Only while the process has one thread.
pub fn base() -> Result<(), HardenError> {
    sys::deny_dumps().map_err(|_| HardenError::Dumpable)?;
    sys::deny_cores().map_err(|_| HardenError::Cores)?;
    sys::deny_new_privileges().map_err(|_| HardenError::NewPrivileges)?;
    sys::inherited_descriptors(Inherited::CloseOnExec);
    sys::wipe_variables(|name| name.starts_with(b"LD_") || name.starts_with(b"DYLD_"));
    Ok(())
}

/// Closes what was inherited, once the files of the command line have been read (`<(…)` is such a
/// descriptor) and before anything of our own is opened.
pub fn close_inherited() {
    sys::inherited_descriptors(Inherited::Close);
}

/// Becomes another user if one is named, gives up every capability in any case, and is still
/// non-dumpable after that: a change of credentials may have changed it. Only while the process has
/// one thread.
pub fn drop_privileges(user: Option<(u32, u32)>) -> Result<(), HardenError> {
    sys::empty_bounding_set().map_err(|_| HardenError::Capabilities)?;
    if let Some((uid, gid)) = user {
        sys::become_user(uid, gid).map_err(|_| HardenError::User)?;
    }
    sys::drop_capabilities().map_err(|_| HardenError::Capabilities)?;
    sys::deny_dumps().map_err(|_| HardenError::Dumpable)
}
