//! Why the relay drains, and until when.

use std::time::Instant;

use crate::net::timeouts::SAME_REQUEST;
use crate::process::signals::EndSignal;

/// Why the relay drains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DrainCause {
    /// A signal.
    Signal(EndSignal),
    /// `GET /shutdown`.
    Shutdown,
    /// The connector has ended.
    ConnectorFailed,
}

impl DrainCause {
    /// Its name in the log.
    pub(super) fn name(self) -> &'static str {
        match self {
            DrainCause::Signal(signal) => signal.name(),
            DrainCause::Shutdown => "GET /shutdown",
            DrainCause::ConnectorFailed => "connector_failed",
        }
    }
}

/// A drain that has begun.
#[derive(Clone, Copy)]
pub(super) struct Drain {
    pub(super) cause: DrainCause,
    pub(super) begun: Instant,
    /// When exchanges that are still under way are cut off.
    pub(super) by: Instant,
    /// How many exchanges were under way when it began.
    pub(super) exchanges: usize,
}

impl Drain {
    /// Whether a further cause ends the relay at once. Only SIGTERM and SIGINT do, and not right
    /// behind the first cause: Ctrl-C goes to all processes of a terminal, and a launcher passes it
    /// on to a relay that has it already; timeout(1) signals its child, and then its whole group. A
    /// terminal that hangs up signals twice too, from the kernel and from the shell.
    pub(super) fn is_cut_short_by(&self, cause: DrainCause, now: Instant) -> bool {
        match cause {
            DrainCause::Signal(EndSignal::Terminate | EndSignal::Interrupt) => {
                now.saturating_duration_since(self.begun) > SAME_REQUEST
            }
            DrainCause::Signal(EndSignal::HangUp)
            | DrainCause::Shutdown
            | DrainCause::ConnectorFailed => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_second_signal_counts_a_moment_after_the_first() {
        let now = Instant::now();
        let terminate = DrainCause::Signal(EndSignal::Terminate);
        let interrupt = DrainCause::Signal(EndSignal::Interrupt);
        let drain = Drain { cause: interrupt, begun: now, by: now, exchanges: 1 };
        let later = now + SAME_REQUEST + Duration::from_millis(1);
        for second in [terminate, interrupt] {
            assert!(!drain.is_cut_short_by(second, now));
            assert!(!drain.is_cut_short_by(second, now + SAME_REQUEST));
            assert!(drain.is_cut_short_by(second, later));
        }
        for other in [
            DrainCause::Signal(EndSignal::HangUp),
            DrainCause::Shutdown,
            DrainCause::ConnectorFailed,
        ] {
            assert!(!drain.is_cut_short_by(other, later));
        }
    }
}
