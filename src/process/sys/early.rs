//! What runs before the standard library does: it calls the C library alone, and neither allocates
//! nor panics.

use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicU8, Ordering};

use libc::c_int;

/// Less than this and the standard library or this program may run out of stack without a word.
const STACK_NEEDED: libc::rlim_t = 256 * 1024;
/// What the stack may grow to where the limit was lower and can be raised.
const STACK_WANTED: libc::rlim_t = 8 * 1024 * 1024;

/// What the first steps found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FirstSteps {
    /// They did not run: this is not the relay's own program.
    NotRun,
    /// execve(2) had left the process closed: its user may not read the program's file.
    Closed,
    /// Until then a process of the same user could attach to this one.
    Open,
}

static FOUND: AtomicU8 = AtomicU8::new(0);

/// What the first steps found.
pub fn found_first() -> FirstSteps {
    match FOUND.load(Ordering::Relaxed) {
        0 => FirstSteps::NotRun,
        1 => FirstSteps::Closed,
        _ => FirstSteps::Open,
    }
}

/// Closes the process to others of its user at once, and ends it with a message where it would die
/// without one. Run by the C library before `main`, by way of [`crate::run_first`].
pub extern "C" fn first_steps() {
    // SAFETY: prctl with plain numbers.
    let dumpable = unsafe { libc::prctl(libc::PR_GET_DUMPABLE, 0, 0, 0, 0) };
    // SAFETY: as above. A failure is found out and reported by `harden::base`.
    unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) };
    FOUND.store(if dumpable == 1 { 2 } else { 1 }, Ordering::Relaxed);

    let mut limit = MaybeUninit::<libc::rlimit>::uninit();
    // SAFETY: the kernel fills one struct that outlives the call.
    if unsafe { libc::getrlimit(libc::RLIMIT_STACK, limit.as_mut_ptr()) } == 0 {
        // SAFETY: the kernel has filled it.
        let limit = unsafe { limit.assume_init() };
        let too_low = limit.rlim_cur < STACK_NEEDED;
        let raise = || {
            raise_stack(limit.rlim_max.max(STACK_WANTED)).or_else(|()| raise_stack(limit.rlim_max))
        };
        if too_low && raise().is_err() {
            end(b"the limit on the stack is too low; raise it to 256 KiB or more (ulimit -s 256)");
        }
    }
    for fd in 0..3 {
        // SAFETY: asks for flags; no memory is involved.
        if unsafe { libc::fcntl(fd, libc::F_GETFD) } == -1 {
            // The lowest number that is free, so this one. SAFETY: the path is a C string.
            let opened = unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_RDWR) };
            if opened != fd {
                end(b"stdin, stdout or stderr is closed and /dev/null cannot be opened; leave them \
                      open, or make /dev/null");
            }
        }
    }
}

/// The stack of the first thread grows as far as the limit in force allows.
fn raise_stack(hard: libc::rlim_t) -> Result<(), ()> {
    let raised = libc::rlimit { rlim_cur: hard.min(STACK_WANTED), rlim_max: hard };
    // SAFETY: the kernel reads one struct that outlives the call.
    match unsafe { libc::setrlimit(libc::RLIMIT_STACK, &raised) } {
        0 if raised.rlim_cur >= STACK_NEEDED => Ok(()),
        _ => Err(()),
    }
}

/// Says why the program does not start, where stderr is open, and ends it.
fn end(reason: &'static [u8]) -> ! {
    const FAILED: c_int = 1;
    for part in [b"codex-responses-api-proxy: error: ".as_slice(), reason, b"\n"] {
        // SAFETY: the kernel reads bytes that outlive the call.
        unsafe { libc::write(libc::STDERR_FILENO, part.as_ptr().cast(), part.len()) };
    }
    // SAFETY: ends the process; nothing of it runs any more.
    unsafe { libc::_exit(FAILED) }
}

/// Has the C library run a function before `main`. The function must not count on the standard
/// library.
#[macro_export]
macro_rules! run_first {
    ($function:path) => {
        const _: () = {
            // SAFETY: the C library calls what stands in this section, and it is a function that
            // takes nothing and needs nothing that is not there yet.
            #[used]
            #[unsafe(link_section = ".init_array")]
            static FIRST: extern "C" fn() = $function;
        };
    };
}
