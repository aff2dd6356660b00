//! Numbers and times that the operator chooses for the event loop.

use std::time::Duration;

use super::timeouts::{self, Timeouts};
use crate::http1::limits;

/// The settings of the event loop. The command line fills them in, and the start hands them over
/// whole.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// `--max-connections`: client connections at one time.
    pub max_connections: usize,
    /// `--max-requests`: requests to forward in all.
    pub max_requests: Option<u64>,
    /// `--client-timeout` and `--upstream-timeout`.
    pub timeouts: Timeouts,
    /// `--grace`: how long exchanges under way may go on once the relay is to end.
    pub grace: Duration,
}

impl Default for Settings {
    /// What the loop does unless a flag says otherwise.
    fn default() -> Settings {
        Settings {
            max_connections: limits::CONNECTIONS,
            max_requests: None,
            timeouts: Timeouts { client: timeouts::CLIENT, upstream: None },
            grace: timeouts::GRACE,
        }
    }
}
