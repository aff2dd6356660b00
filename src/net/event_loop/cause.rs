//! Why the relay ends, and how long it waits.

use std::time::Instant;

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
    /// When exchanges that are still under way are cut off.
    pub(super) by: Instant,
    /// How many exchanges were under way when it began.
    pub(super) exchanges: usize,
}
