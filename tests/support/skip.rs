//! Reports the tests that cannot run on this machine, and why. A test that needs root has the
//! attribute `#[cfg_attr(not(root), ignore = "needs root")]`: libtest ignores it for an ordinary
//! user and runs it for root (`build.rs` sets `root`). A test that needs something else that the
//! machine lacks calls [`skipped`]. libtest cannot capture that report, and a summary is printed at
//! the end.

use std::io::Write;
use std::path::PathBuf;
use std::sync::{Mutex, Once, PoisonError};

static SKIPPED: Mutex<Vec<String>> = Mutex::new(Vec::new());
static FILES: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// The tests run as root.
pub fn is_root() -> bool {
    // SAFETY: no memory is involved.
    unsafe { libc::geteuid() == 0 }
}

/// Fails with an explanation if a test that needs root runs as another user.
#[track_caller]
pub fn needs_root() {
    assert!(
        is_root(),
        "this test needs root. It was built by root, or asked for with --ignored; build the tests as the \
         user who runs them, for instance after `touch build.rs`"
    );
}

/// Reports that a test, or a part of one, does not run, and why.
pub fn skipped(reason: &str) {
    at_exit();
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    // libtest captures the output of the print macros.
    let _ = writeln!(std::io::stderr(), "skipped: {test}: {reason}");
    SKIPPED.lock().unwrap_or_else(PoisonError::into_inner).push(format!("{test}: {reason}"));
}

/// Removes this file when the tests have ended.
pub fn remove_at_exit(file: PathBuf) {
    at_exit();
    FILES.lock().unwrap_or_else(PoisonError::into_inner).push(file);
}

fn at_exit() {
    extern "C" fn end() {
        for file in FILES.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let _ = std::fs::remove_file(file);
        }
        let skipped = SKIPPED.lock().unwrap_or_else(PoisonError::into_inner);
        if !skipped.is_empty() {
            let lines = skipped.join("\n    ");
            let _ = writeln!(
                std::io::stderr(),
                "skipped, in whole or in part, though libtest says ok: {}\n    {lines}",
                skipped.len()
            );
        }
    }
    static ONCE: Once = Once::new();
    // SAFETY: `end` is safe to call while the process exits: it only takes locks, removes files and
    // writes to stderr.
    ONCE.call_once(|| assert_eq!(unsafe { libc::atexit(end) }, 0));
}
