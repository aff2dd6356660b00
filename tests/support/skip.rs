//! What is not tested here, and why. A test that needs root has the attribute
//! `#[cfg_attr(not(root), ignore = "needs root")]`, so that libtest counts it as ignored for an
//! ordinary user and runs it for root (`root` is set by `build.rs`). For what else a machine may
//! lack there is [`skipped`], which libtest cannot swallow and which is summed up at the end.

use std::io::Write;
use std::path::PathBuf;
use std::sync::{Mutex, Once, PoisonError};

static SKIPPED: Mutex<Vec<String>> = Mutex::new(Vec::new());
static FILES: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// Whether the tests run as root.
pub fn is_root() -> bool {
    // SAFETY: no memory is involved.
    unsafe { libc::geteuid() == 0 }
}

/// For a test that needs root and is run all the same.
#[track_caller]
pub fn needs_root() {
    assert!(
        is_root(),
        "this test needs root. It was built by root, or asked for with --ignored; build the tests as the \
         user who runs them, for instance after `touch build.rs`"
    );
}

/// Says that a test, or a part of one, is not run, and why.
pub fn skipped(reason: &str) {
    at_exit();
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    // print macros would be swallowed.
    let _ = writeln!(std::io::stderr(), "skipped: {test}: {reason}");
    SKIPPED.lock().unwrap_or_else(PoisonError::into_inner).push(format!("{test}: {reason}"));
}

/// Removes a file when the tests have ended.
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
    // SAFETY: the function is safe to call once everything else has ended.
    ONCE.call_once(|| assert_eq!(unsafe { libc::atexit(end) }, 0));
}
