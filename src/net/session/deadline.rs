//! What happens when a side of a session does not act in time.

use std::time::Instant;

use super::clocks::ClientDuty;
use super::{AfterTurn, Buffers, Closed, LoopState, Session, Turn};
use crate::http1::exchange::{Rest, State};
use crate::http1::local_response::{Reject, UpstreamFault};
use crate::net::access_log::Stage;
use crate::net::slots::{DeadlineSlot, Side};

impl Session {
    /// A deadline may have passed.
    pub fn on_deadline(&mut self, turn: &mut Turn<'_>, buffers: &mut Buffers) -> AfterTurn {
        if self.expire(turn).is_err() {
            return self.close(turn.state);
        }
        if self.slow_by(turn.state).is_some_and(|when| turn.now >= when) {
            self.log_line(Stage::Slow, "", turn);
            self.times.reported_as_slow(turn.now);
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
                self.consume_and_respond_to_fault(UpstreamFault::Timeout, turn)?;
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::net::loop_state::testing::{MOMENT, SECOND};
    use crate::net::session::testing::{HEAD, REQUEST, RESPONSE, Served};
    use crate::net::timeouts::KEEP_ALIVE;

    fn client_time(served: &Served) -> Duration {
        served.net.state.timeouts.client
    }

    fn upstream_time(served: &Served) -> Duration {
        served.net.state.timeouts.upstream.unwrap()
    }

    #[test]
    fn a_client_without_a_request_keeps_the_connection_for_keep_alive_and_no_longer() {
        let (mut served, _upstream) = Served::kept();
        assert_eq!(served.pass(KEEP_ALIVE - MOMENT), AfterTurn::Wait);
        assert_eq!(served.pass(MOMENT), AfterTurn::Close);
        let Served { session, mut client, .. } = served;
        drop(session);
        assert_eq!(client.rest().as_deref(), Some(""), "an end without a word");
    }

    #[test]
    fn a_first_head_has_the_clients_time_from_accept_and_a_later_one_from_its_first_byte() {
        for (mut served, first_word) in [(Served::new(), ""), (Served::kept().0, "P")] {
            let limit = client_time(&served);
            assert_eq!(served.pass(limit - MOMENT), AfterTurn::Wait);
            served.client.send("P");
            served.until(|session| !session.input.is_empty());
            let rest = if first_word.is_empty() { MOMENT } else { limit };
            assert_eq!(served.pass(rest - MOMENT), AfterTurn::Wait);
            assert!(served.client.is_silent());
            served.client.send("O");
            served.until(|session| session.input.bytes().len() == 2);
            served.pass(MOMENT);
            served.client.read_until("\"request_timeout\"}}");
        }
    }

    #[test]
    fn a_body_that_pauses_is_408_after_the_clients_time() {
        let (mut served, mut upstream) = Served::asked(HEAD);
        let limit = client_time(&served);
        for byte in ["a", "b", "c"] {
            assert_eq!(served.pass(limit - MOMENT), AfterTurn::Wait);
            let before = served.session.exchange.bytes_in;
            served.client.send(byte);
            served.until(|session| session.exchange.bytes_in > before);
        }
        assert_eq!(served.pass(limit - MOMENT), AfterTurn::Wait);
        assert!(served.client.is_silent());
        served.pass(MOMENT);
        served.client.read_until("\"request_timeout\"}}");
        assert_eq!(upstream.rest(), None, "half a body is cut off by a reset");
    }

    #[test]
    fn a_client_is_not_blamed_for_an_upstream_that_takes_no_body() {
        let length = 1 << 30;
        let request = HEAD.replace(": 10", &format!(": {length}"));
        let (mut served, _upstream) = Served::asked(&request);
        let id = served.session.upstream.unwrap();
        while served.net.state.upstreams.get(id).unwrap().is_drained() {
            served.client.send([b'x'; 65_536]);
            while served.net.events(Duration::ZERO, Some(&mut served.session.socket)) {
                while served.turn() == AfterTurn::Again {}
            }
        }
        let limit = client_time(&served);
        served.pass(limit);
        let client_by = served.session.client_by(&served.net.state);
        assert_eq!(client_by, Some(served.net.now + limit), "its time begins again");
        assert!(served.client.is_silent());
        // The upstream is: half of its time has passed, and it gets no more.
        let left = upstream_time(&served) - limit;
        served.pass(left - MOMENT);
        assert!(served.client.is_silent());
        served.pass(MOMENT);
        served.client.read_until("\"upstream_timeout\"}}");
    }

    #[test]
    fn a_client_has_its_time_to_take_the_rest_of_a_response_however_late_the_response_was() {
        let (mut served, mut upstream) = Served::asked(REQUEST);
        let limit = client_time(&served);
        assert_eq!(served.pass(limit + SECOND), AfterTurn::Wait);
        let filled = served.fill_client();
        upstream.send(RESPONSE);
        served.until(|session| matches!(session.exchange.state(), State::Complete { .. }));
        assert!(served.session.output.bytes().ends_with(b"fine"));
        served.pass(limit - MOMENT);
        served.drain_client(filled);
        served.until(|session| session.served);
        assert!(!served.session.exchange.is_last());
        served.client.read_until("\r\n\r\nfine");
    }

    #[test]
    fn a_client_that_does_not_take_a_response_in_its_time_gets_all_of_it_and_the_end() {
        let (mut served, mut upstream) = Served::asked(REQUEST);
        let filled = served.fill_client();
        upstream.send(RESPONSE);
        served.until(|session| matches!(session.exchange.state(), State::Complete { .. }));
        let limit = client_time(&served);
        assert_eq!(served.pass(limit), AfterTurn::Wait);
        assert_eq!(served.session.client_by(&served.net.state), None, "it may take for ever");
        served.drain_client(filled);
        served.until(Session::is_lingering);
        assert!(served.client.rest().unwrap().ends_with("\r\n\r\nfine"));
    }

    #[test]
    fn an_upstream_that_is_silent_for_its_time_is_504() {
        let (mut served, mut upstream) = Served::asked(REQUEST);
        let limit = upstream_time(&served);
        served.pass(limit - MOMENT);
        assert!(served.client.is_silent());
        served.pass(MOMENT);
        served.client.read_until("\"upstream_timeout\"}}");
        upstream.read_until("\r\n\r\n");
        assert_eq!(upstream.rest(), None, "what is under way is cancelled by a reset");
    }

    #[test]
    fn an_upstream_that_is_not_read_because_of_the_client_is_not_blamed() {
        let (mut served, mut upstream) = Served::asked(REQUEST);
        let filled = served.fill_client();
        upstream.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n");
        served.until(|session| !session.output.is_empty());
        let limit = upstream_time(&served);
        assert_eq!(served.pass(limit), AfterTurn::Wait);
        assert_eq!(served.pass(limit - MOMENT), AfterTurn::Wait);
        served.drain_client(filled);
        upstream.send("fine");
        served.until(|session| session.served);
        assert!(served.client.read_until("fine").starts_with("HTTP/1.1 200 "));
    }
}
