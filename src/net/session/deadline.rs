//! What happens when a side does not act in time.

use std::time::Instant;

use super::clocks::ClientDuty;
use super::{AfterTurn, Closed, LoopState, Phase, Session};
use crate::http1::exchange::State;
use crate::http1::local_response::{Reject, UpstreamFault};
use crate::net::access_log::Stage;
use crate::net::slots::{DeadlineSlot, Side};
use crate::net::timeouts::SLOW_AGAIN;

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
                _ if self.phase == Phase::Lingering => return Err(Closed),
                State::Idle if self.input.is_empty() => return Err(Closed),
                // The rest of the body does not arrive, or the upstream does not take it.
                State::Complete { .. } => {
                    self.stop_upload(state);
                    self.exchange.make_last();
                }
                _ if blocked => self.clocks.client_acted(now),
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
                self.clocks.upstream_held_up(now);
            } else {
                self.fault(UpstreamFault::Timeout, state, now)?;
            }
        }
        Ok(())
    }

    fn client_by(&self, state: &LoopState) -> Option<Instant> {
        self.clocks.client_by(self.client_duty(), &state.timeouts)
    }

    fn client_duty(&self) -> ClientDuty {
        match self.exchange.state() {
            _ if self.phase == Phase::Lingering => ClientDuty::End,
            State::Idle if self.served && self.input.is_empty() => ClientDuty::NextRequest,
            State::Idle => ClientDuty::Head,
            // The response is on its way to the client, or its request upstream.
            State::Complete { .. } if !self.exchange.is_last() || self.upstream.is_some() => {
                ClientDuty::Body
            }
            state if state.is_uploading() => ClientDuty::Body,
            State::Waiting(_)
            | State::Uploading(_)
            | State::Awaiting
            | State::Responding { .. }
            | State::Complete { .. } => ClientDuty::Nothing,
        }
    }

    /// The upstream has nothing to do while it has taken everything that the client has sent so far
    /// and the client has not sent all.
    fn upstream_by(&self, state: &mut LoopState) -> Option<Instant> {
        let exchange = self.exchange.state();
        let is_waited_for = match exchange {
            State::Uploading(_) | State::Awaiting | State::Responding { .. } => {
                !exchange.is_uploading() || !self.is_drained(state)
            }
            State::Idle | State::Waiting(_) | State::Complete { .. } => false,
        };
        is_waited_for.then(|| self.clocks.upstream_by(&state.timeouts)).flatten()
    }

    fn is_drained(&self, state: &mut LoopState) -> bool {
        self.upstream.and_then(|key| state.upstreams.get(key)).is_none_or(|up| up.is_drained())
    }

    pub(super) fn set_deadline(&self, state: &mut LoopState) {
        let times = [self.client_by(state), self.upstream_by(state), self.slow_by(state)];
        if let Some(when) = times.into_iter().flatten().min() {
            state.deadlines.set(DeadlineSlot::new(self.key, Side::Client), when);
        }
    }
}
