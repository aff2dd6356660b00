//! Why the relay ends, and how long it waits.

use std::time::Instant;

use crate::process::signals::EndSignal;

/// Why the relay drains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// A signal.
    Signal(EndSignal),
    /// `GET /shutdown`.
    Shutdown,
    /// The connector has ended.
    ConnectorFailed,
}

impl Cause {
    /// Its name in the log.
    pub(super) fn name(self) -> &'static str {
        match self {
            Cause::Signal(signal) => signal.name(),
            Cause::Shutdown => "GET /shutdown",
            Cause::ConnectorFailed => "connector_failed",
        }
    }
}

/// A drain that has begun.
#[derive(Clone, Copy)]
pub(super) struct Drain {
    pub(super) cause: Cause,
    /// When exchanges that are still under way are cut off.
    pub(super) by: Instant,
    /// How many exchanges were under way when it began.
    pub(super) exchanges: usize,
}
