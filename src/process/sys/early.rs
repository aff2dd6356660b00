//! Steps that run before the standard library starts. They call only the C library, and neither
//! allocate nor panic.

use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicU8, Ordering};

use libc::c_int;

/// The smallest usable limit on the stack, in bytes. With less, the standard library or this
/// program may overflow the stack without a message.
const STACK_NEEDED: libc::rlim_t = 256 * 1024;
/// The limit on the stack, in bytes, that is set where the limit was too low and can be raised.
const STACK_WANTED: libc::rlim_t = 8 * 1024 * 1024;

/// The state of the process before the first steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FirstSteps {
    /// The first steps did not run: this is not the relay's own program.
    NotRun,
    /// The process was already closed to others: execve(2) makes it so when its user may not read
    /// the program's file (PR_SET_DUMPABLE(2const)).
    Closed,
    /// A process of the same user could attach to this process before the first steps.
    Open,
}

static FOUND: AtomicU8 = AtomicU8::new(0);

/// Returns the state of the process before the first steps.
pub fn found_first() -> FirstSteps {
    match FOUND.load(Ordering::Relaxed) {
        0 => FirstSteps::NotRun,
        1 => FirstSteps::Closed,
        _ => FirstSteps::Open,
    }
}

/// Makes the process undumpable, so that no other process of its user can attach to it. Ends the
/// process with a message where it would otherwise die without one. The C library runs this
/// function before `main`, by way of [`crate::run_first`].
pub extern "C" fn first_steps() {
    // SAFETY: prctl with plain numbers.
    let dumpable = unsafe { libc::prctl(libc::PR_GET_DUMPABLE, 0, 0, 0, 0) };
    // SAFETY: as above. `harden::base` detects and reports a failure.
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
        // SAFETY: this reads flags; no memory is involved.
        if unsafe { libc::fcntl(fd, libc::F_GETFD) } == -1 {
            // open(2) returns the lowest free number, which is this one.
            // SAFETY: the path is a C string.
            let opened = unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_RDWR) };
            if opened != fd {
                end(b"stdin, stdout or stderr is closed and /dev/null cannot be opened; leave them \
                      open, or make /dev/null");
            }
        }
    }
}

/// Sets the limits on the stack. The stack of the first thread grows as far as the limit in force
/// allows. Fails if the limit stays below [`STACK_NEEDED`].
fn raise_stack(hard: libc::rlim_t) -> Result<(), ()> {
    let raised = libc::rlimit { rlim_cur: hard.min(STACK_WANTED), rlim_max: hard };
    // SAFETY: the kernel reads one struct that outlives the call.
    match unsafe { libc::setrlimit(libc::RLIMIT_STACK, &raised) } {
        0 if raised.rlim_cur >= STACK_NEEDED => Ok(()),
        _ => Err(()),
    }
}

/// Writes the reason to stderr, if stderr is open, and ends the program with status 1.
fn end(reason: &'static [u8]) -> ! {
    const FAILED: c_int = 1;
    for part in [b"codex-responses-api-proxy: error: ".as_slice(), reason, b"\n"] {
        // SAFETY: the kernel reads bytes that outlive the call.
        unsafe { libc::write(libc::STDERR_FILENO, part.as_ptr().cast(), part.len()) };
    }
    // SAFETY: this ends the process; no code runs afterwards.
    unsafe { libc::_exit(FAILED) }
}

/// Makes the C library run a function before `main`. The function must not rely on the standard
/// library.
#[macro_export]
macro_rules! run_first {
    ($function:path) => {
        const _: () = {
            // SAFETY: the C library calls each function in this section. The function takes no
            // argument and needs nothing that is not initialised yet.
            #[used]
            #[unsafe(link_section = ".init_array")]
            static FIRST: extern "C" fn() = $function;
        };
    };
}
