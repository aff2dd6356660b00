//! Ends the tests if one of them hangs: each step of a test has a deadline, but a panic in one
//! thread can leave another waiting for ever, and a blocking read of a file or pipe has none.

use std::cell::RefCell;
use std::io::Write;
use std::sync::{Mutex, Once, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::pace;
use super::relay::descendants;

/// The longest time that a whole test may take. The longest ones take 90 s; under an emulator all
/// take longer.
const LONGEST: Duration = Duration::from_secs(600);

/// The tests under way: name and beginning.
static RUNNING: Mutex<Vec<(String, Instant)>> = Mutex::new(Vec::new());

/// Removes the entry of its thread when the thread ends.
struct Entry(String);

impl Drop for Entry {
    fn drop(&mut self) {
        let mut running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        running.retain(|(name, _)| *name != self.0);
    }
}

thread_local! {
    static ENTRY: RefCell<Option<Entry>> = const { RefCell::new(None) };
}

/// Watches the test of this thread from now on. Threads that no test of `tests/relay` runs on, by
/// their name, are not watched.
pub fn watch() {
    let this = thread::current();
    let Some(name) = this.name().filter(|name| name.starts_with("relay::")) else {
        return;
    };
    ENTRY.with_borrow_mut(|entry| {
        if entry.is_none() {
            let mut running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
            running.push((name.to_owned(), Instant::now()));
            *entry = Some(Entry(name.to_owned()));
        }
    });
    static ONCE: Once = Once::new();
    ONCE.call_once(|| drop(thread::spawn(end_if_one_hangs)));
}

fn end_if_one_hangs() {
    loop {
        pace(Duration::from_secs(1));
        let running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((name, _)) = running.iter().find(|(_, begun)| begun.elapsed() > LONGEST) else {
            continue;
        };
        // libtest captures the output of the print macros.
        let _ = writeln!(std::io::stderr(), "{name} hangs: it has not ended after {LONGEST:?}");
        for pid in descendants(std::process::id()) {
            // SAFETY: no memory is involved; the process is one that the tests have started.
            unsafe { libc::kill(pid as i32, libc::SIGKILL) };
        }
        // SAFETY: ends the process without waiting for its other threads.
        unsafe { libc::_exit(101) };
    }
}
