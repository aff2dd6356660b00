//! The times of one exchange, for the access log.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::net::timeouts::{SLOW, SLOW_AGAIN};

/// The times of one exchange, and the upstream connection that carried it.
#[derive(Clone, Copy)]
pub(super) struct Times {
    /// When the first byte of the request came.
    pub(super) begun: Instant,
    /// How long the upstream connection took to make.
    pub(super) connect: Option<Duration>,
    /// When the first byte of the response came.
    pub(super) first_byte: Option<Instant>,
    /// The upstream connection had carried an exchange before.
    pub(super) reused: bool,
    /// Its TLS session was resumed.
    pub(super) tls_resumed: Option<bool>,
    /// The address that the upstream connection leads to.
    pub(super) address: Option<SocketAddr>,
    /// The generation of the key that the request carried, with `--rotate`.
    pub(super) key_generation: Option<u64>,
    /// When the log next reports the exchange as slow.
    pub(super) slow_at: Instant,
}

impl Times {
    pub(super) fn new(begun: Instant) -> Times {
        Times {
            begun,
            connect: None,
            first_byte: None,
            reused: false,
            tls_resumed: None,
            address: None,
            key_generation: None,
            slow_at: begun + SLOW,
        }
    }

    /// The log has reported the exchange as slow.
    pub(super) fn reported_as_slow(&mut self, now: Instant) {
        self.slow_at = now + SLOW_AGAIN;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exchange_is_slow_after_a_minute_and_then_each_time_that_slow_again_has_passed() {
        let begun = Instant::now();
        let mut times = Times::new(begun);
        assert_eq!(times.slow_at, begun + SLOW);
        let reported = begun + SLOW + Duration::from_secs(1);
        times.reported_as_slow(reported);
        assert_eq!(times.slow_at, reported + SLOW_AGAIN);
    }
}
