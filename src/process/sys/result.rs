//! How a system call reports an error.

use std::io;

use libc::c_int;

/// Turns the -1 of a failed system call into the error that errno holds.
pub(super) fn check(result: c_int) -> io::Result<c_int> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
