//! The lines of the access log.

use super::{End, Session, Turn};
use crate::http1::target::Route;
use crate::net::access_log::{Line, Stage};
use crate::net::admission::Admission;

impl Session {
    /// Writes the line of an exchange that has ended.
    pub(super) fn log_end(&self, end: End, turn: &mut Turn<'_>) {
        let end = match end {
            End::Complete => self.exchange.code.unwrap_or("complete"),
            End::ClientClosed => "client_closed",
            End::UpstreamTruncated => "upstream_truncated",
            End::Shutdown => "shutdown",
            End::Failed(code) => code,
        };
        self.log_line(Stage::Ended, end, turn);
    }

    /// Writes a line about the exchange.
    pub(super) fn log_line(&self, stage: Stage, end: &'static str, turn: &mut Turn<'_>) {
        let (log, now) = (&mut turn.state.log, turn.now);
        // Connections of refused users are counted, and logged together.
        if !log.has_exchanges() || self.client.admission == Admission::UserRefused {
            return;
        }
        let (exchange, times) = (&self.exchange, &self.times);
        log.exchange(&Line {
            stage,
            connection: self.client.number,
            request: self.request,
            since_last_byte: times.first_byte.map(|_| self.clocks.upstream_silence(now)),
            route: match exchange.route {
                Some(Route::Responses) => "responses",
                Some(Route::Shutdown) => "shutdown",
                Some(Route::ResponsesSocket | Route::Other) | None => "refused",
            },
            status: exchange.status,
            bytes_in: exchange.bytes_in,
            bytes_out: exchange.bytes_out,
            connect: times.connect,
            first_byte: times.first_byte.map(|at| at.saturating_duration_since(times.begun)),
            total: now.saturating_duration_since(times.begun),
            reused: times.reused,
            tls_resumed: times.tls_resumed,
            address: times.address,
            request_id: exchange.logged.request_id(),
            retry_after: exchange.logged.retry_after().filter(|_| exchange.status == Some(429)),
            error_code: exchange.code,
            refused_route: exchange.refused_route,
            uid: self.client.uid,
            key_generation: times.key_generation,
            end,
        });
    }
}
