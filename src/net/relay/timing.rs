//! Who waits for whom, and how long.

use std::time::{Duration, Instant};

use super::logging::SLOW_AGAIN;
use super::{Over, Relay, Shared, Turn};
use crate::http1::exchange::State;
use crate::http1::limits;
use crate::http1::local_response::Reject;
use crate::http1::local_response::UpstreamFault;
use crate::net::access_log::Stage;
use crate::net::event_loop::place;
use crate::net::slots::Side;

/// How long a client may keep a connection without a request.
const IDLE: Duration = Duration::from_secs(75);
/// How long a connection is drained so that the last answer arrives.
const LINGER: Duration = Duration::from_secs(5);

impl Relay {
    /// A deadline may have come.
    pub fn time(&mut self, shared: &mut Shared, now: Instant) -> Turn {
        if self.out_of_time(shared, now).is_err() {
            self.release(shared);
            return Turn::Close;
        }
        if self.slow_by(shared).is_some_and(|when| now >= when) {
            self.log_line(Stage::Slow, "", shared, now);
            self.times.slow_at = now + SLOW_AGAIN;
        }
        self.turn(shared, now)
    }

    /// When the exchange is to be called slow in the log.
    fn slow_by(&self, shared: &Shared) -> Option<Instant> {
        let is_told = shared.log.has_exchanges() && self.is_busy();
        is_told.then_some(self.times.slow_at)
    }

    pub(super) fn out_of_time(&mut self, shared: &mut Shared, now: Instant) -> Result<(), Over> {
        if self.client_by(shared).is_some_and(|when| now >= when) {
            let blocked = !self.is_drained(shared);
            match self.exchange.state() {
                _ if self.lingering => return Err(Over),
                State::Idle if self.input.is_empty() => return Err(Over),
                // The rest of the body does not arrive, or the upstream does not take it.
                State::Complete { .. } => {
                    self.stop_upload(shared);
                    self.exchange.make_last();
                }
                _ if blocked => self.stall = now,
                // If the response has begun, it cannot be relied on without the rest of its
                // request.
                State::Idle
                | State::Waiting(_)
                | State::Uploading(_)
                | State::Awaiting
                | State::Responding { .. } => self.refuse(Reject::Timeout, shared, now)?,
            }
        }
        if self.upstream_by(shared).is_some_and(|when| now >= when) {
            if !self.output.is_empty() {
                // It is the client that holds things up.
                self.heard = now;
            } else {
                self.fault(UpstreamFault::Timeout, shared, now)?;
            }
        }
        Ok(())
    }

    /// Until when the client has to do its part.
    pub(super) fn client_by(&self, shared: &Shared) -> Option<Instant> {
        let limit = match self.exchange.state() {
            _ if self.lingering => LINGER,
            State::Idle if self.served && self.input.is_empty() => IDLE,
            State::Idle => shared.client_timeout,
            State::Complete { .. } if !self.exchange.is_last() || self.upstream.is_some() => {
                self.patience.min(shared.client_timeout)
            }
            state if state.is_uploading() => self.patience.min(shared.client_timeout),
            _ => return None,
        };
        Some(self.stall + limit)
    }

    /// Bytes have come. Those of a body buy back some of the time for which the relay waited for
    /// them; a head has its whole time once.
    pub(super) fn note_upload(&mut self, bytes: usize, client_timeout: Duration, now: Instant) {
        let limit = client_timeout * limits::UPLOAD_PATIENCE;
        if matches!(self.exchange.state(), State::Idle) {
            self.patience = limit;
            return;
        }
        let waited = now.saturating_duration_since(self.stall);
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let bought = Duration::from_secs(1) * bytes / limits::UPLOAD_RATE;
        self.patience = (self.patience.saturating_sub(waited) + bought).min(limit);
    }

    /// Until when the upstream has to do its part. It has none to do while it has taken everything
    /// that the client has sent so far and the client has not sent all.
    pub(super) fn upstream_by(&self, shared: &mut Shared) -> Option<Instant> {
        let state = self.exchange.state();
        let (State::Uploading(_) | State::Awaiting | State::Responding { .. }) = state else {
            return None;
        };
        let limit = shared.upstream_timeout?;
        let waits_for_client = state.is_uploading() && self.is_drained(shared);
        (!waits_for_client).then(|| self.heard + limit)
    }

    fn is_drained(&self, shared: &mut Shared) -> bool {
        self.upstream.and_then(|key| shared.ups.get(key)).is_none_or(|up| up.is_drained())
    }

    pub(super) fn set_deadline(&self, shared: &mut Shared) {
        let times = [self.client_by(shared), self.upstream_by(shared), self.slow_by(shared)];
        if let Some(when) = times.into_iter().flatten().min() {
            shared.deadlines.set(place(self.key, Side::Downstream), when);
        }
    }
}
