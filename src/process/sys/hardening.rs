//! Further walls of the kernel's, and what it says of those that stand.

use std::ffi::CStr;
use std::io;
use std::mem::MaybeUninit;
use std::ptr;

use libc::c_int;

use super::{check, environ};
use crate::http1::digits;

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

/// The kernel's version: the first two numbers.
pub fn kernel_version() -> Option<(u32, u32)> {
    let mut name = MaybeUninit::<libc::utsname>::uninit();
    // SAFETY: the kernel fills one struct that outlives the call.
    check(unsafe { libc::uname(name.as_mut_ptr()) }).ok()?;
    // SAFETY: the kernel has filled it.
    let name = unsafe { name.assume_init() };
    let mut numbers = name.release.split(|c| !(*c as u8).is_ascii_digit()).map(|digits| {
        digits.iter().fold(0u32, |n, c| n.wrapping_mul(10).wrapping_add(u32::from(*c as u8 - b'0')))
    });
    Some((numbers.next()?, numbers.next()?))
}

/// The user that the process runs as.
pub fn user_id() -> u32 {
    // SAFETY: no memory is involved.
    unsafe { libc::geteuid() }
}

/// The id of the thread that calls.
pub fn thread_id() -> u32 {
    // SAFETY: no memory is involved.
    unsafe { libc::gettid() as u32 }
}

/// The limit on the size of files that the process makes.
pub fn file_size_limit() -> u64 {
    let mut limit = MaybeUninit::<libc::rlimit>::uninit();
    // SAFETY: the kernel fills one struct that outlives the call.
    match unsafe { libc::getrlimit(libc::RLIMIT_FSIZE, limit.as_mut_ptr()) } {
        // SAFETY: the kernel has filled it.
        0 => unsafe { limit.assume_init() }.rlim_cur,
        _ => u64::MAX,
    }
}

/// A file that grows beyond the limit makes an error, and no signal that ends the process.
pub fn ignore_file_size_signal() {
    // SAFETY: no handler is installed and no memory is involved.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// Overwrites what lies where the kernel put the environment and is not one of its variables any
/// more. glibc's own copy of `GLIBC_TUNABLES`, for example, leaves the original behind in pieces.
/// Only while the process has one thread. Nothing, where `/proc` cannot be read.
pub fn wipe_former_variables() {
    let Some((start, end)) = environment_block() else {
        return;
    };
    let mut kept = Vec::new();
    // SAFETY: the list is the C library's own, ends with null, and nobody changes it: there is no
    // other thread. Each entry is a C string.
    unsafe {
        let mut entry = environ;
        while !entry.is_null() && !(*entry).is_null() {
            let at = (*entry).expose_provenance();
            kept.push(at..at + CStr::from_ptr(*entry).to_bytes().len());
            entry = entry.add(1);
        }
    }
    kept.sort_unstable_by_key(|string| string.start);
    let mut at = start;
    for string in kept.iter().filter(|string| (start..end).contains(&string.start)) {
        wipe(at, string.start);
        at = string.end.clamp(start, end);
    }
    wipe(at, end);

    fn wipe(from: usize, to: usize) {
        if from < to {
            let at = ptr::with_exposed_provenance_mut::<u8>(from);
            // SAFETY: the kernel says that the block is the process's own environment, which is
            // writable, and no string that is in use lies in this part of it.
            zeroize::Zeroize::zeroize(unsafe { std::slice::from_raw_parts_mut(at, to - from) });
        }
    }
}

/// Where the kernel put the environment: fields 50 and 51 of `/proc/self/stat`.
fn environment_block() -> Option<(usize, usize)> {
    let text = std::fs::read("/proc/self/stat").ok()?;
    // The second field may hold anything, spaces and parentheses too.
    let behind = text.iter().rposition(|byte| *byte == b')')? + 1;
    let mut fields = text[behind..].split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    let mut number = |skip| {
        let value =
            digits::decimal(fields.nth(skip)?, 20).and_then(|value| usize::try_from(value).ok());
        value.filter(|value| *value != 0)
    };
    let (start, end) = (number(47)?, number(0)?);
    (start < end).then_some((start, end))
}
