//! What the process gives up: dumps, capabilities, new privileges, its user.

use std::io;
use std::ptr;

use libc::c_int;

use super::result::check;

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

/// Sets the limit on core files to nothing, for good; reads back that it is.
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

/// Gives up every way to gain privileges by execve(2), for good: what Landlock and seccomp ask for.
/// Reads back that it is so.
pub fn deny_new_privileges() -> io::Result<()> {
    // SAFETY: prctl with plain numbers.
    check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })?;
    // SAFETY: as above.
    match check(unsafe { libc::prctl(libc::PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) })? {
        1 => Ok(()),
        _ => Err(io::Error::other("new privileges are still possible")),
    }
}

/// Becomes another user, for good: no supplementary group, all three ids of both kinds. Only while
/// the process has one thread.
///
/// The kernel makes a process that changes its user as dumpable as `fs.suid_dumpable` says. So it
/// keeps its capabilities until it is non-dumpable again: a process of the new user, which has
/// none, may not attach to one that has some. The caller drops them.
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
    // SAFETY: the kernel fills three numbers that are ours alone.
    check(unsafe { libc::getresuid(a, b, c) })?;
    let [a, b, c] = &mut groups;
    // SAFETY: as above.
    check(unsafe { libc::getresgid(a, b, c) })?;
    if ids == [uid; 3] && groups == [gid; 3] { Ok(()) } else { Err(io::ErrorKind::Other.into()) }
}

/// Takes every capability from the bounding set, where that is allowed.
pub fn empty_bounding_set() -> io::Result<()> {
    for capability in 0..64 {
        // SAFETY: prctl with plain numbers.
        match check(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) }) {
            Ok(_) => {}
            // Beyond the last one that this kernel has.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => break,
            // A process that may not drop them has none to bound: no_new_privs sees to that.
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

/// Gives up every capability that this thread has; reads back that none is left.
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
