//! What happens when a side of a session does not act in time.

use std::time::Instant;

use super::clocks::ClientDuty;
use super::{AfterTurn, Buffers, Closed, LoopState, Session, Turn};
use crate::http1::exchange::{Rest, State};
use crate::http1::local_response::{Reject, UpstreamFault};
use crate::net::access_log::Stage;
use crate::net::slots::{DeadlineSlot, Side};
use crate::net::timeouts::SLOW_AGAIN;

impl Session {
    /// A deadline may have passed.
    pub fn on_deadline(&mut self, turn: &mut Turn<'_>, buffers: &mut Buffers) -> AfterTurn {
        if self.expire(turn).is_err() {
            return self.close(turn.state);
        }
        if self.slow_by(turn.state).is_some_and(|when| turn.now >= when) {
            self.log_line(Stage::Slow, "", turn);
            self.times.slow_at = turn.now + SLOW_AGAIN;
        }
        self.take_turn(turn, buffers)
    }

    /// Acts on each side that has exceeded its time.
    fn expire(&mut self, turn: &mut Turn<'_>) -> Result<(), Closed> {
        if self.client_by(turn.state).is_some_and(|when| turn.now >= when) {
            self.expire_client(turn)?;
        }
        if self.upstream_by(turn.state).is_some_and(|when| turn.now >= when) {
            if self.output.is_empty() {
                self.fault(UpstreamFault::Timeout, turn)?;
            } else {
                // The client has not taken all of the response, so the upstream is not read.
                self.clocks.upstream_held_up(turn.now);
            }
        }
        Ok(())
    }

    fn expire_client(&mut self, turn: &mut Turn<'_>) -> Result<(), Closed> {
        match self.exchange.state() {
            _ if self.is_lingering() => Err(Closed),
            State::Idle if self.input.is_empty() => Err(Closed),
            // The rest of the body does not come, or the upstream does not take it, or the client
            // does not take the response. The response stays whole.
            State::Complete { .. } => {
                self.stop_upload(turn.state);
                self.exchange.make_last();
                Ok(())
            }
            // The upstream has not taken all of the request, so the client is not read.
            State::Idle
            | State::Waiting(_)
            | State::Uploading(_)
            | State::Awaiting
            | State::Responding { .. }
                if !self.is_drained(turn.state) =>
            {
                self.clocks.client_acted(turn.now);
                Ok(())
            }
            // A response that has begun is cut off too: it may be wrong without the rest of its
            // request.
            State::Idle
            | State::Waiting(_)
            | State::Uploading(_)
            | State::Awaiting
            | State::Responding { .. } => self.refuse(Reject::Timeout, turn),
        }
    }

    /// When the log next reports the exchange as slow.
    fn slow_by(&self, state: &LoopState) -> Option<Instant> {
        let is_logged = state.log.has_exchanges() && self.is_busy();
        is_logged.then_some(self.times.slow_at)
    }

    fn client_by(&self, state: &LoopState) -> Option<Instant> {
        self.clocks.client_by(self.client_duty(), &state.timeouts)
    }

    fn client_duty(&self) -> ClientDuty {
        match self.exchange.state() {
            _ if self.is_lingering() => ClientDuty::End,
            State::Idle if self.served && self.input.is_empty() => ClientDuty::NextRequest,
            State::Idle => ClientDuty::Head,
            // The rest of the request still goes to the upstream.
            state if state.is_uploading() => ClientDuty::Body,
            State::Complete { .. } if self.upstream.is_some() => ClientDuty::Body,
            // Without a next request there is no reason to hurry the client.
            State::Complete { .. } if self.exchange.is_last() => ClientDuty::Nothing,
            State::Complete { rest: Rest::None } => ClientDuty::TakeResponse,
            State::Complete { .. } => ClientDuty::Body,
            State::Waiting(_)
            | State::Uploading(_)
            | State::Awaiting
            | State::Responding { .. } => ClientDuty::Nothing,
        }
    }

    fn upstream_by(&self, state: &mut LoopState) -> Option<Instant> {
        let exchange = self.exchange.state();
        let is_waited_for = match exchange {
            // An upstream that has taken all that the client has sent so far waits for the client.
            State::Uploading(_) | State::Awaiting | State::Responding { .. } => {
                !exchange.is_uploading() || !self.is_drained(state)
            }
            State::Idle | State::Waiting(_) | State::Complete { .. } => false,
        };
        is_waited_for.then(|| self.clocks.upstream_by(&state.timeouts)).flatten()
    }

    /// The upstream has taken all that was sent to it.
    fn is_drained(&self, state: &mut LoopState) -> bool {
        self.upstream.and_then(|id| state.upstreams.get(id)).is_none_or(|up| up.is_drained())
    }

    /// Sets the earliest deadline, at which the loop calls [`Session::on_deadline`].
    pub(super) fn set_deadline(&self, state: &mut LoopState) {
        let times = [self.client_by(state), self.upstream_by(state), self.slow_by(state)];
        if let Some(when) = times.into_iter().flatten().min() {
            state.deadlines.set(DeadlineSlot::new(self.id, Side::Client), when);
        }
    }
}
