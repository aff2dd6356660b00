//! What is done before anything else, so that the process is closed when the key arrives.

use std::fmt;
use std::os::unix::ffi::OsStrExt;

use super::sys;

/// A step that failed. Each has its exit code, those of the reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HardenError {
    /// The process is still dumpable.
    Dumpable,
    /// Core files are still possible.
    Cores,
}

impl HardenError {
    /// The exit code; 6 stays with the reference's macOS step.
    pub fn exit_code(self) -> u8 {
        match self {
            HardenError::Dumpable => 5,
            HardenError::Cores => 7,
        }
    }
}

impl fmt::Display for HardenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            HardenError::Dumpable => "cannot make the process non-dumpable (PR_SET_DUMPABLE)",
            HardenError::Cores => "cannot forbid core files (RLIMIT_CORE)",
        })
    }
}

/// Non-dumpable, no core files, no variable that steers a dynamic loader. Only while the process
/// has one thread.
pub fn base() -> Result<(), HardenError> {
    sys::deny_dumps().map_err(|_| HardenError::Dumpable)?;
    sys::deny_cores().map_err(|_| HardenError::Cores)?;
    for (name, _) in std::env::vars_os() {
        if [&b"LD_"[..], b"DYLD_"].iter().any(|prefix| name.as_bytes().starts_with(prefix)) {
            sys::remove_variable(&name);
        }
    }
    Ok(())
}
