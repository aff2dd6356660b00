//! Privileges that the process gives up: core dumps, capabilities, new privileges, its user.

use std::io;
use std::ptr;

use libc::c_int;

use super::result::check;

/// Makes the process non-dumpable, so that other processes of the same user cannot read its memory.
/// Fails if the kernel does not confirm it.
pub fn deny_dumps() -> io::Result<()> {
    // SAFETY: prctl with plain numbers.
    check(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) })?;
    // SAFETY: as above.
    match check(unsafe { libc::prctl(libc::PR_GET_DUMPABLE, 0, 0, 0, 0) })? {
        0 => Ok(()),
        _ => Err(io::Error::other("still dumpable")),
    }
}

/// Sets the limit on core files to 0, which cannot be undone. Fails if the kernel does not confirm
/// it.
pub fn disable_core_dumps() -> io::Result<()> {
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

/// Gives up gaining privileges by execve(2), which cannot be undone. Landlock and seccomp require
/// it. Fails if the kernel does not confirm it.
pub fn deny_new_privileges() -> io::Result<()> {
    // SAFETY: prctl with plain numbers.
    check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })?;
    // SAFETY: as above.
    match check(unsafe { libc::prctl(libc::PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) })? {
        1 => Ok(()),
        _ => Err(io::Error::other("new privileges are still possible")),
    }
}

/// Becomes another user, which cannot be undone: sets the real, effective and saved ids of the user
/// and of the group, and leaves no supplementary group. Call this only while the process has one
/// thread.
///
/// When a process changes its user, the kernel sets its dumpable flag from `fs.suid_dumpable`. So
/// the process keeps its capabilities until it is non-dumpable again: a process of the new user,
/// which has no capabilities, may not attach to one that has some. The caller drops them.
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
    // SAFETY: the kernel fills three numbers that no other code refers to.
    check(unsafe { libc::getresuid(a, b, c) })?;
    let [a, b, c] = &mut groups;
    // SAFETY: as above.
    check(unsafe { libc::getresgid(a, b, c) })?;
    if ids == [uid; 3] && groups == [gid; 3] { Ok(()) } else { Err(io::ErrorKind::Other.into()) }
}

/// Removes every capability from the bounding set, if the process may do so.
pub fn empty_bounding_set() -> io::Result<()> {
    for capability in 0..64 {
        // SAFETY: prctl with plain numbers.
        match check(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) }) {
            Ok(_) => {}
            // This number is beyond the kernel's last capability.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => break,
            // A process that may not remove them has none and, with no_new_privs, gains none.
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

/// Gives up every capability of this thread. Fails if the kernel does not confirm it.
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
