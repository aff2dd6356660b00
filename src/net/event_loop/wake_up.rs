//! How long poll may wait for an event.

use std::time::{Duration, Instant};

use super::listener::Accepting;
use crate::net::timeouts::RESEND_TO_CONNECTOR;

/// The work of the loop that no event announces.
pub(super) struct WakeUp {
    pub(super) accepting: Accepting,
    /// Sessions are queued for a turn.
    pub(super) has_turns: bool,
    /// Messages to the connector wait to be sent.
    pub(super) has_unsent: bool,
    /// When something is due: the next deadline of a connection, the end of the drain, the log of
    /// refusals, the read or the end of a key.
    pub(super) times: [Option<Instant>; 4],
}

impl WakeUp {
    /// How long poll may wait; `None` means until an event.
    pub(super) fn timeout(self, now: Instant) -> Option<Duration> {
        let paused = match self.accepting {
            Accepting::Due => return Some(Duration::ZERO),
            Accepting::AfterEvent => None,
            Accepting::PausedUntil(until) => Some(until),
        };
        if self.has_turns {
            return Some(Duration::ZERO);
        }
        let unsent = self.has_unsent.then_some(now + RESEND_TO_CONNECTOR);
        let next = self.times.into_iter().chain([paused, unsent]).flatten().min()?;
        Some(next.saturating_duration_since(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn nothing() -> WakeUp {
        let accepting = Accepting::AfterEvent;
        WakeUp { accepting, has_turns: false, has_unsent: false, times: [None; 4] }
    }

    #[test]
    fn poll_waits_until_the_earliest_cause_and_for_ever_without_one() {
        let now = Instant::now();
        assert_eq!(nothing().timeout(now), None);
        for causes in [
            WakeUp { accepting: Accepting::Due, ..nothing() },
            WakeUp { has_turns: true, ..nothing() },
            WakeUp { times: [None, Some(now - SECOND), None, None], ..nothing() },
        ] {
            assert_eq!(causes.timeout(now), Some(Duration::ZERO));
        }
        let times = [Some(now + 3 * SECOND), None, Some(now + 2 * SECOND), None];
        let accepting = Accepting::PausedUntil(now + SECOND);
        assert_eq!(WakeUp { times, ..nothing() }.timeout(now), Some(2 * SECOND));
        assert_eq!(WakeUp { times, accepting, ..nothing() }.timeout(now), Some(SECOND));
    }

    #[test]
    fn messages_that_found_no_room_are_sent_again_after_a_moment() {
        let now = Instant::now();
        let times = [Some(now + SECOND), None, None, None];
        let causes = WakeUp { has_unsent: true, times, ..nothing() };
        assert_eq!(causes.timeout(now), Some(RESEND_TO_CONNECTOR));
    }
}
