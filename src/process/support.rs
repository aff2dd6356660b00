//! Whether the kernel has a part of the sandbox, and if not, why.

use std::fmt;
use std::fs;

use super::sys;

/// Whether the kernel has a part of the sandbox, and if not, why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Support {
    /// The kernel has it, in this version.
    Present(u32),
    /// This kernel does not have it.
    NotInKernel,
    /// This kernel has it, and it was switched off at boot.
    SwitchedOff,
    /// A seccomp filter that was in force before, such as a container's, refuses it. The kernel may
    /// have it.
    Refused,
    /// [`Support::NotInKernel`] or [`Support::Refused`]: the error is the same for both.
    Missing,
}

impl Support {
    /// Its version, if the kernel has it.
    pub fn version(self) -> Option<u32> {
        match self {
            Support::Present(version) => Some(version),
            _ => None,
        }
    }

    /// The kernel's support for Landlock.
    pub fn of_landlock() -> Support {
        let error = match sys::landlock() {
            Ok(0) => return Support::NotInKernel,
            Ok(version) => return Support::Present(version),
            Err(error) => error.raw_os_error().unwrap_or_default(),
        };
        match error {
            libc::EOPNOTSUPP => Support::SwitchedOff,
            // The error of a kernel that does not know the call, and of many filters.
            libc::ENOSYS => {
                if sys::inherited_filter() != Some(true)
                    || sys::kernel_version().is_some_and(|version| version < (5, 13))
                {
                    return Support::NotInKernel;
                }
                match fs::read("/sys/kernel/security/lsm") {
                    Ok(list)
                        if list
                            .split(|byte| *byte == b',')
                            .any(|lsm| lsm.trim_ascii() == b"landlock") =>
                    {
                        Support::Refused
                    }
                    Ok(_) => Support::NotInKernel,
                    Err(_) => Support::Missing,
                }
            }
            // No kernel returns another error when it is asked for its version.
            _ => Support::Refused,
        }
    }

    /// The kernel's support for seccomp.
    pub fn of_seccomp() -> Support {
        let error = match sys::seccomp() {
            Ok(()) => return Support::Present(1),
            Err(error) => error.raw_os_error().unwrap_or_default(),
        };
        match (error, sys::inherited_filter()) {
            // Linux before 4.14, which cannot kill a process by it.
            (libc::EOPNOTSUPP | libc::EINVAL, _) => Support::NotInKernel,
            (libc::ENOSYS, Some(false) | None) => Support::NotInKernel,
            // A kernel that runs a filter has seccomp.
            _ => Support::Refused,
        }
    }
}

/// Why it is missing.
impl fmt::Display for Support {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Support::Present(_) => "this kernel has it",
            Support::NotInKernel => "this kernel has none",
            Support::SwitchedOff => "switched off when this kernel was booted (lsm=)",
            Support::Refused => "refused by the container's profile",
            Support::Missing => "missing from this kernel, or refused by the container's profile",
        })
    }
}
