//! The times of one exchange, for the access log.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::net::timeouts::SLOW;

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
}
