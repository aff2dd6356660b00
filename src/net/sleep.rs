//! Detects that the machine has slept. [`Instant`] does not count that time, so idle connections
//! would look younger than they are, although the network on the way may have dropped them.

use std::time::{Duration, Instant};

use super::timeouts::SHORTEST_SLEEP;
use crate::process::sys;

/// Compares the clock that stops while the machine sleeps with the clock that does not.
pub struct SleepWatch {
    awake: Instant,
    passed: Duration,
}

impl SleepWatch {
    /// Begins now.
    pub fn new(now: Instant) -> SleepWatch {
        SleepWatch { awake: now, passed: sys::time_since_boot() }
    }

    /// How long the machine has slept since the last sleep that was returned. `now` must have been
    /// read just before.
    pub fn slept(&mut self, now: Instant) -> Option<Duration> {
        self.compare(now, sys::time_since_boot())
    }

    fn compare(&mut self, now: Instant, passed: Duration) -> Option<Duration> {
        let awake = now.saturating_duration_since(self.awake);
        let slept = passed.saturating_sub(self.passed).saturating_sub(awake);
        if slept < SHORTEST_SLEEP {
            return None;
        }
        (self.awake, self.passed) = (now, passed);
        Some(slept)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_sleep_is_told_once_and_time_awake_is_none() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let mut watch = SleepWatch { awake: start, passed: 1000 * second };
        let mut at = |awake: u32, passed: u32| {
            watch.compare(start + awake * second, passed * second).map(|slept| slept.as_secs())
        };
        assert_eq!(at(0, 1000), None);
        assert_eq!(at(100, 1100), None);
        assert_eq!(at(101, 1161), Some(60));
        assert_eq!(at(101, 1161), None);
        assert_eq!(at(201, 1261), None);
        assert_eq!(at(202, 1263), Some(1));
    }

    #[test]
    fn a_sleep_counts_from_the_shortest_one_on() {
        let start = Instant::now();
        let moment = Duration::from_nanos(1);
        for (slept, want) in
            [(SHORTEST_SLEEP - moment, None), (SHORTEST_SLEEP, Some(SHORTEST_SLEEP))]
        {
            let mut watch = SleepWatch { awake: start, passed: Duration::ZERO };
            assert_eq!(watch.compare(start, slept), want);
        }
    }

    #[test]
    fn short_sleeps_add_up() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let mut watch = SleepWatch { awake: start, passed: second };
        let mut slept = Duration::ZERO;
        for n in 1..=20 {
            let passed = second + n * (second / 10);
            slept += watch.compare(start, passed).unwrap_or_default();
        }
        assert_eq!(slept, 2 * second);
    }

    #[test]
    fn the_clocks_of_this_machine_agree_while_it_is_awake() {
        let mut watch = SleepWatch::new(Instant::now());
        for _ in 0..1000 {
            assert_eq!(watch.slept(Instant::now()), None);
        }
    }
}
