//! When the next exchange begins.

use std::time::Duration;

/// How long before its end a token is renewed, at most.
const AHEAD: Duration = Duration::from_secs(1200);
/// The shortest time between two exchanges: endpoints that respond slowly and give short lifetimes
/// must not be asked without a pause.
const BETWEEN: Duration = Duration::from_secs(1);
/// The pause after the first failed attempt; it doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// How long from now on a token of this lifetime is renewed, which was asked for so long ago.
pub(super) fn due(lifetime: Duration, age: Duration) -> Duration {
    (lifetime - AHEAD.min(lifetime / 2)).saturating_sub(age).max(BETWEEN)
}

/// The pause after so many failed attempts in a row: half of it is random, so that many relays do
/// not come back at the same moment.
pub(super) fn pause(attempts: u32, random: u8) -> Duration {
    let whole = FIRST_PAUSE * (1 << attempts.saturating_sub(1).min(16));
    let whole = whole.min(LONGEST_PAUSE);
    whole / 2 + whole / 2 * u32::from(random) / 255
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_renewed_20_minutes_or_half_its_life_before_its_end() {
        for (lifetime, age, want) in [
            (2, 0, 1000),
            (900, 0, 450_000),
            (2400, 0, 1_200_000),
            (2401, 0, 1_201_000),
            (3600, 0, 2_400_000),
            (3600, 9, 2_391_000),
        ] {
            let due = due(Duration::from_secs(lifetime), Duration::from_secs(age));
            assert_eq!(due, Duration::from_millis(want), "{lifetime} {age}");
        }
    }

    #[test]
    fn exchanges_are_a_second_apart_however_slow_the_responses_and_short_the_lifetimes() {
        for (lifetime, age) in [(1, 0), (1, 1), (2, 1), (3, 1), (1, 20), (3600, 3000)] {
            let due = due(Duration::from_secs(lifetime), Duration::from_secs(age));
            assert_eq!(due, Duration::from_secs(1), "{lifetime} {age}");
        }
    }

    #[test]
    fn pauses_double_up_to_a_bound_and_half_of_each_is_random() {
        for (attempts, want) in
            [(1, 500), (2, 1000), (3, 2000), (6, 16_000), (7, 30_000), (99, 30_000)]
        {
            let want = Duration::from_millis(want);
            assert_eq!((pause(attempts, 0), pause(attempts, 255)), (want / 2, want), "{attempts}");
            assert!((want / 2..want).contains(&pause(attempts, 128)));
        }
    }
}
