//! What the access log is told of an exchange, and when it is called slow.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::{LoopState, Session};
use crate::http1::target::Route;
use crate::net::access_log::{Line, Stage};
use crate::net::admission::Admission;
use crate::net::timeouts::SLOW;

/// What an exchange's line tells apart from its bytes.
#[derive(Clone, Copy)]
pub(super) struct Times {
    /// When the first byte of the request came.
    pub(super) begun: Instant,
    /// How long the upstream connection took to make.
    pub(super) connect: Option<Duration>,
    /// When the first byte of the response came.
    pub(super) first_byte: Option<Instant>,
    /// The upstream connection had served before.
    pub(super) reused: bool,
    /// Its TLS session was resumed.
    pub(super) tls_resumed: Option<bool>,
    /// What the upstream connection leads to.
    pub(super) address: Option<SocketAddr>,
    /// When the exchange is next called slow.
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
            slow_at: begun + SLOW,
        }
    }
}

impl Session {
    pub(super) fn log(&mut self, end: &'static str, state: &mut LoopState, now: Instant) {
        let end = if end == "complete" { self.exchange.code.unwrap_or(end) } else { end };
        self.log_line(Stage::Ended, end, state, now);
    }

    pub(super) fn log_line(
        &self,
        stage: Stage,
        end: &'static str,
        state: &mut LoopState,
        now: Instant,
    ) {
        let log = &mut state.log;
        // Connections of refused users are counted, and logged together.
        if !log.has_exchanges() || self.client.admission == Admission::UserRefused {
            return;
        }
        let exchange = &self.exchange;
        log.exchange(&Line {
            stage,
            connection: self.client.number,
            request: self.request,
            since_last_byte: self.times.first_byte.map(|_| self.clocks.upstream_silence(now)),
            route: match exchange.route {
                Some(Route::Responses) => "responses",
                Some(Route::Shutdown) => "shutdown",
                _ => "refused",
            },
            status: exchange.status,
            bytes_in: exchange.bytes_in,
            bytes_out: exchange.bytes_out,
            connect: self.times.connect,
            first_byte: self
                .times
                .first_byte
                .map(|t| t.saturating_duration_since(self.times.begun)),
            total: now.saturating_duration_since(self.times.begun),
            reused: self.times.reused,
            tls_resumed: self.times.tls_resumed,
            address: self.times.address,
            request_id: exchange.logged.request_id(),
            retry_after: exchange.logged.retry_after().filter(|_| exchange.status == Some(429)),
            error_code: exchange.code,
            refused_route: exchange.refused_route,
            uid: self.client.uid,
            end,
        });
    }
}
