//! Signals by which the threads of a test wait for each other.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use super::DEADLINE;

/// A queue of signals. Each signal ends one wait, now or later, and can pass a value to it. All
/// handles of a gate are alike: any thread may signal, and any may wait.
pub struct Gate<T = ()>(Arc<Signals<T>>);

struct Signals<T> {
    given: Mutex<VecDeque<T>>,
    changed: Condvar,
}

impl<T> Clone for Gate<T> {
    fn clone(&self) -> Gate<T> {
        Gate(self.0.clone())
    }
}

impl Gate {
    pub fn signal(&self) {
        self.pass(());
    }
}

impl<T> Gate<T> {
    /// Makes a gate and returns two handles: one for the thread that signals, one for the thread
    /// that waits.
    pub fn pair() -> (Gate<T>, Gate<T>) {
        let signals = Signals { given: Mutex::default(), changed: Condvar::new() };
        let gate = Gate(Arc::new(signals));
        (gate.clone(), gate)
    }

    /// Signals, and passes this value to the thread that waits.
    pub fn pass(&self, value: T) {
        self.0.given.lock().unwrap().push_back(value);
        self.0.changed.notify_one();
    }

    /// Waits for a signal. The test fails if no signal comes within [`DEADLINE`].
    #[track_caller]
    pub fn wait(&self) -> T {
        self.wait_within(DEADLINE).expect("no signal came in time")
    }

    /// Removes and returns the values of all signals that have not ended a wait.
    pub fn drain(&self) -> Vec<T> {
        self.0.given.lock().unwrap().drain(..).collect()
    }

    /// Waits for a signal for at most this time; `None` if no signal comes.
    pub fn wait_within(&self, time: Duration) -> Option<T> {
        let given = self.0.given.lock().unwrap();
        let is_empty = |given: &mut VecDeque<T>| given.is_empty();
        let (mut given, _) = self.0.changed.wait_timeout_while(given, time, is_empty).unwrap();
        given.pop_front()
    }
}
