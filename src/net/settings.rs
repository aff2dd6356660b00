//! The limits and durations that the operator chooses for the event loop.

use std::time::Duration;

use super::timeouts::{self, Timeouts};
use crate::http1::limits;

/// The settings of the event loop. The command line sets them; the start passes them to the loop as
/// one value.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// `--max-connections`: the maximum number of client connections at one time.
    pub max_connections: usize,
    /// `--max-requests`: the total number of requests to forward; `None` is unlimited.
    pub max_requests: Option<u64>,
    /// `--client-timeout` and `--upstream-timeout`: how long each side may be silent.
    pub timeouts: Timeouts,
    /// `--grace`: how long exchanges under way may continue once the relay shuts down.
    pub grace: Duration,
}

impl Default for Settings {
    /// The defaults of the flags.
    fn default() -> Settings {
        Settings {
            max_connections: limits::CONNECTIONS,
            max_requests: None,
            timeouts: Timeouts { client: timeouts::CLIENT, upstream: None },
            grace: timeouts::GRACE,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http1::limits::CONNECTIONS;
    use crate::net::timeouts::{CLIENT, GRACE};

    #[test]
    fn the_defaults_are_those_of_the_limits_and_timeouts() {
        let Settings { max_connections, max_requests, timeouts, grace } = Settings::default();
        assert_eq!((max_connections, max_requests), (CONNECTIONS, None));
        assert_eq!((timeouts.client, timeouts.upstream, grace), (CLIENT, None, GRACE));
    }
}
