//! The environment and the arguments, at the addresses where the kernel put them in this process.

use std::ffi::{CStr, c_char};
use std::ptr;

use crate::http1::digits;

unsafe extern "C" {
    /// The environment (environ(7)): pointers to `NAME=value`, ended by a null pointer.
    pub(super) static mut environ: *mut *mut c_char;
}

/// Calls `look` with the value of a variable in place, without a copy. Returns `None` if there is
/// no such variable. Call this only while the process has one thread.
pub fn with_variable<R>(name: &CStr, look: impl FnOnce(&[u8]) -> R) -> Option<R> {
    // SAFETY: the name is a string that outlives the call.
    let value = unsafe { libc::getenv(name.as_ptr()) };
    // SAFETY: this is a string of the environment, which nothing changes while `look` runs: there
    // is no other thread, and the reference does not outlive the call.
    (!value.is_null()).then(|| look(unsafe { CStr::from_ptr(value) }.to_bytes()))
}

/// Removes the variables whose name `is_unwanted`, and overwrites them where the kernel put them,
/// so that `/proc/PID/environ` no longer shows them. Call this only while the process has one
/// thread.
pub fn wipe_variables(is_unwanted: impl Fn(&[u8]) -> bool) {
    wipe_unwanted(&is_unwanted);
}

fn wipe_unwanted(is_unwanted: &dyn Fn(&[u8]) -> bool) {
    // SAFETY: the list is the C library's own, ends with null, and nothing else reads or writes it:
    // there is no other thread. Each string is writable memory of this process, and the reference
    // to it has ended when it is overwritten. The remaining pointers move up, as in unsetenv(3).
    unsafe {
        let mut to = environ;
        let mut from = environ;
        while !from.is_null() && !(*from).is_null() {
            let entry = CStr::from_ptr(*from).to_bytes();
            let (len, name) = (entry.len(), entry.split(|byte| *byte == b'=').next());
            if name.is_some_and(is_unwanted) {
                let entry = std::slice::from_raw_parts_mut((*from).cast::<u8>(), len);
                zeroize::Zeroize::zeroize(entry);
            } else {
                *to = *from;
                to = to.add(1);
            }
            from = from.add(1);
        }
        if !to.is_null() {
            *to = ptr::null_mut();
        }
    }
}

/// Overwrites and removes each variable whose value `is_secret`, and calls `found` with its name.
/// Call this only while the process has one thread.
pub fn wipe_values(is_secret: impl Fn(&[u8]) -> bool, mut found: impl FnMut(&[u8])) {
    // SAFETY: the list is the C library's own, ends with null, and nothing else changes it: there
    // is no other thread. The references end with the call.
    unsafe {
        let mut at = environ;
        while !at.is_null() && !(*at).is_null() {
            let entry = CStr::from_ptr(*at).to_bytes();
            if let Some(equals) = entry.iter().position(|byte| *byte == b'=')
                && is_secret(&entry[equals + 1..])
            {
                found(&entry[..equals]);
                let entry = std::slice::from_raw_parts_mut((*at).cast::<u8>(), entry.len());
                zeroize::Zeroize::zeroize(entry);
            }
            at = at.add(1);
        }
    }
    // An overwritten entry has an empty name.
    wipe_variables(<[u8]>::is_empty);
}

/// Overwrites the parts of the kernel's block for the environment that no variable uses any more.
/// glibc copies `GLIBC_TUNABLES`, for example, and leaves the original in pieces. Does nothing
/// where `/proc` cannot be read. Call this only while the process has one thread.
pub fn wipe_former_variables() {
    let Some((start, end)) = environment_block() else {
        return;
    };
    let mut kept = Vec::new();
    // SAFETY: the list is the C library's own, ends with null, and nothing changes it: there is no
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
            // SAFETY: the kernel reports that the block is the process's own environment, which is
            // writable. No string that is in use lies in this part of it.
            zeroize::Zeroize::zeroize(unsafe { std::slice::from_raw_parts_mut(at, to - from) });
        }
    }
}

/// The start and end address of the environment: fields 50 and 51 of `/proc/self/stat`
/// (proc_pid_stat(5)).
fn environment_block() -> Option<(usize, usize)> {
    let text = std::fs::read("/proc/self/stat").ok()?;
    // The second field is the program's name, which may contain spaces and parentheses.
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

/// Calls `look` with the arguments where the kernel put them, each followed by a zero byte. Returns
/// `None` where `/proc` cannot be read. Call this only while the process has one thread.
pub fn with_arguments<R>(look: impl FnOnce(&mut [u8]) -> R) -> Option<R> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The addresses are fields 48 and 49 (proc_pid_stat(5)). The program's name, field 2, may
    // contain any character. It ends with the last parenthesis, so field 3 comes next.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(45);
    let mut number = || digits::decimal(fields.next()?.as_bytes(), 20)?.try_into().ok();
    let (start, end): (usize, usize) = (number()?, number()?);
    if start == 0 || start >= end {
        return None;
    }
    let start = ptr::with_exposed_provenance_mut::<u8>(start);
    // SAFETY: the kernel reports its own copy of the arguments, which is writable memory of this
    // process for as long as it runs. Nothing else refers to it while `look` runs: there is no
    // other thread.
    Some(look(unsafe { std::slice::from_raw_parts_mut(start, end - start.addr()) }))
}
