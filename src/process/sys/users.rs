//! The user that the process runs as, and the system's user database.

use std::ffi::CStr;
use std::io;
use std::ptr;

use super::result::check;

/// The user that the process runs as.
pub fn user_id() -> u32 {
    // SAFETY: no memory is involved.
    unsafe { libc::geteuid() }
}

/// The user ids of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UserIds {
    /// The user that started the process.
    pub real: u32,
    /// The user whose permissions the process has.
    pub effective: u32,
}

/// The user ids of this process.
pub fn user_ids() -> io::Result<UserIds> {
    let (mut real, mut effective, mut saved) = (0, 0, 0);
    // SAFETY: the kernel fills three numbers that no other code refers to.
    check(unsafe { libc::getresuid(&mut real, &mut effective, &mut saved) })?;
    Ok(UserIds { real, effective })
}

/// The ids of a user and of its group, from the system's user database.
pub fn user_named(name: &CStr) -> Option<(u32, u32)> {
    let mut space = [0; 4096];
    // SAFETY: plain memory for libc to fill.
    let mut entry: libc::passwd = unsafe { std::mem::zeroed() };
    let mut found = ptr::null_mut();
    // SAFETY: libc writes at most `len` bytes into memory that no other code refers to.
    unsafe {
        libc::getpwnam_r(name.as_ptr(), &mut entry, space.as_mut_ptr(), space.len(), &mut found)
    };
    (!found.is_null()).then_some((entry.pw_uid, entry.pw_gid))
}

/// The group of a user, from the system's user database.
pub fn group_of(uid: u32) -> Option<u32> {
    let mut space = [0; 4096];
    // SAFETY: plain memory for libc to fill.
    let mut entry: libc::passwd = unsafe { std::mem::zeroed() };
    let mut found = ptr::null_mut();
    // SAFETY: libc writes at most `len` bytes into memory that no other code refers to.
    unsafe { libc::getpwuid_r(uid, &mut entry, space.as_mut_ptr(), space.len(), &mut found) };
    (!found.is_null()).then_some(entry.pw_gid)
}
