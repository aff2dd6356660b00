//! Who waits for whom, and how long.

use std::time::{Duration, Instant};

use super::{AfterTurn, Closed, LoopState, Session};
use crate::http1::exchange::State;
use crate::http1::limits;
use crate::http1::local_response::Reject;
use crate::http1::local_response::UpstreamFault;
use crate::net::access_log::Stage;
use crate::net::event_loop::place;
use crate::net::slots::Side;
use crate::net::timeouts::{KEEP_ALIVE, LINGER, SLOW_AGAIN};

impl Session {
    /// A deadline may have come.
    pub fn on_deadline(&mut self, state: &mut LoopState, now: Instant) -> AfterTurn {
        if self.expire(state, now).is_err() {
            self.release(state);
            return AfterTurn::Close;
        }
        if self.slow_by(state).is_some_and(|when| now >= when) {
            self.log_line(Stage::Slow, "", state, now);
            self.times.slow_at = now + SLOW_AGAIN;
        }
        self.turn(state, now)
    }

    /// When the exchange is to be called slow in the log.
    fn slow_by(&self, state: &LoopState) -> Option<Instant> {
        let is_told = state.log.has_exchanges() && self.is_busy();
        is_told.then_some(self.times.slow_at)
    }

    pub(super) fn expire(&mut self, state: &mut LoopState, now: Instant) -> Result<(), Closed> {
        if self.client_by(state).is_some_and(|when| now >= when) {
            let blocked = !self.is_drained(state);
            match self.exchange.state() {
                _ if self.lingering => return Err(Closed),
                State::Idle if self.input.is_empty() => return Err(Closed),
                // The rest of the body does not arrive, or the upstream does not take it.
                State::Complete { .. } => {
                    self.stop_upload(state);
                    self.exchange.make_last();
                }
                _ if blocked => self.client_active_at = now,
                // If the response has begun, it cannot be relied on without the rest of its
                // request.
                State::Idle
                | State::Waiting(_)
                | State::Uploading(_)
                | State::Awaiting
                | State::Responding { .. } => self.refuse(Reject::Timeout, state, now)?,
            }
        }
        if self.upstream_by(state).is_some_and(|when| now >= when) {
            if !self.output.is_empty() {
                // It is the client that holds things up.
                self.upstream_active_at = now;
            } else {
                self.fault(UpstreamFault::Timeout, state, now)?;
            }
        }
        Ok(())
    }

    /// Until when the client has to do its part.
    pub(super) fn client_by(&self, state: &LoopState) -> Option<Instant> {
        let limit = match self.exchange.state() {
            _ if self.lingering => LINGER,
            State::Idle if self.served && self.input.is_empty() => KEEP_ALIVE,
            State::Idle => state.client_timeout,
            State::Complete { .. } if !self.exchange.is_last() || self.upstream.is_some() => {
                self.patience.min(state.client_timeout)
            }
            exchange if exchange.is_uploading() => self.patience.min(state.client_timeout),
            _ => return None,
        };
        Some(self.client_active_at + limit)
    }

    /// Bytes have come. Those of a body buy back some of the time for which the relay waited for
    /// them; a head has its whole time once.
    pub(super) fn note_upload(&mut self, bytes: usize, client_timeout: Duration, now: Instant) {
        let limit = client_timeout * limits::UPLOAD_PATIENCE;
        if matches!(self.exchange.state(), State::Idle) {
            self.patience = limit;
            return;
        }
        let waited = now.saturating_duration_since(self.client_active_at);
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let bought = Duration::from_secs(1) * bytes / limits::UPLOAD_RATE;
        self.patience = (self.patience.saturating_sub(waited) + bought).min(limit);
    }

    /// Until when the upstream has to do its part. It has none to do while it has taken everything
    /// that the client has sent so far and the client has not sent all.
    pub(super) fn upstream_by(&self, state: &mut LoopState) -> Option<Instant> {
        let exchange = self.exchange.state();
        let (State::Uploading(_) | State::Awaiting | State::Responding { .. }) = exchange else {
            return None;
        };
        let limit = state.upstream_timeout?;
        let waits_for_client = exchange.is_uploading() && self.is_drained(state);
        (!waits_for_client).then(|| self.upstream_active_at + limit)
    }

    fn is_drained(&self, state: &mut LoopState) -> bool {
        self.upstream.and_then(|key| state.upstreams.get(key)).is_none_or(|up| up.is_drained())
    }

    pub(super) fn set_deadline(&self, state: &mut LoopState) {
        let times = [self.client_by(state), self.upstream_by(state), self.slow_by(state)];
        if let Some(when) = times.into_iter().flatten().min() {
            state.deadlines.set(place(self.key, Side::Client), when);
        }
    }
}
