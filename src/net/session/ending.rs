//! After a response: the rest of its request, the next exchange, or the end of the connection.

use super::{Closed, End, LoopState, Phase, Progress, Session, Times, Turn};
use crate::http1::exchange::State;
use crate::net::buffer::{Backlog, Scratch};
use crate::net::limits::CLIENT_READ;
use crate::net::socket::ReadOutcome;

impl Session {
    /// Ends the upload of a request whose response is complete, because the upstream reads no more
    /// of it.
    pub(super) fn stop_upload(&mut self, state: &mut LoopState) {
        self.exchange.stop_upload();
        self.release_upstream(state);
    }

    /// Ends the exchange once its response has been sent and its request has been read.
    pub(super) fn pump_end(&mut self, turn: &mut Turn<'_>) -> Result<Progress, Closed> {
        let State::Complete { rest } = self.exchange.state() else {
            return Ok(Progress::Waiting);
        };
        if !self.output.is_empty() {
            return Ok(Progress::Waiting);
        }
        let has_whole_request = rest.is_none();
        if rest.is_upload() {
            // The response was early. Some clients see the end of a response only when the
            // connection ends, so the relay ends its side now and not after the upload.
            if self.exchange.is_last() && self.phase == Phase::Serving {
                self.phase = Phase::WriteEnded;
                self.socket.shutdown_write();
            }
            return Ok(Progress::Waiting);
        }
        // After an early response, the last bytes of the request may still be queued.
        if let Some(up) = self.upstream.and_then(|id| turn.state.upstreams.get(id)) {
            up.flush();
            if !up.is_drained() {
                return Ok(Progress::Waiting);
            }
        }
        if let Some(id) = self.upstream.take() {
            turn.state.upstreams.remove(id);
        }
        if self.exchange.is_last() {
            self.linger(turn);
            return Ok(Progress::Moved);
        }
        if !has_whole_request {
            return Ok(Progress::Waiting);
        }
        self.begin_next(turn);
        Ok(Progress::Moved)
    }

    /// Ends the connection in an orderly way.
    fn linger(&mut self, turn: &mut Turn<'_>) {
        self.log_end(End::Complete, turn);
        self.phase = Phase::Lingering;
        self.clocks.client_acted(turn.now);
        self.socket.shutdown_write();
        self.input = Backlog::default();
    }

    /// Makes the session ready for another request.
    fn begin_next(&mut self, turn: &mut Turn<'_>) {
        self.log_end(End::Complete, turn);
        self.exchange.next();
        self.response_head = Backlog::default();
        self.served = true;
        self.request += 1;
        self.idle_since = turn.now;
        self.needs_more = false;
        self.clocks.restore_patience(&turn.state.timeouts);
        self.clocks.client_acted(turn.now);
        self.times = Times::new(turn.now);
    }

    /// Reads and drops input. A socket that is closed with unread input sends a reset, which
    /// destroys a response that the client has not read yet.
    pub(super) fn drop_input(
        &mut self,
        turn: &mut Turn<'_>,
        read: &mut Scratch,
    ) -> Result<Progress, Closed> {
        match self.socket.read(&mut read.unfilled(CLIENT_READ)[..CLIENT_READ]) {
            ReadOutcome::Bytes(n) => {
                turn.bytes_read += n;
                Ok(Progress::Moved)
            }
            ReadOutcome::Nothing => Ok(Progress::Waiting),
            ReadOutcome::End | ReadOutcome::Broken => Err(Closed),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::http1::exchange::{Rest, State};
    use crate::net::loop_state::testing::{MOMENT, SECOND};
    use crate::net::session::testing::{HEAD, REQUEST, RESPONSE, Served};
    use crate::net::session::{AfterTurn, Phase, Session};
    use crate::net::timeouts::LINGER;

    const LAST: &str =
        "POST /v1/responses HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";

    #[test]
    fn behind_the_last_response_input_is_dropped_for_linger_and_no_longer() {
        let (mut served, mut upstream) = Served::asked(LAST);
        served.pass(SECOND);
        upstream.send(RESPONSE);
        served.until(Session::is_lingering);
        assert!(served.client.rest().unwrap().ends_with("\r\n\r\nfine"));
        served.net.now += LINGER - MOMENT;
        served.client.send([b'x'; 100_000]);
        served.until(|session| !session.socket.is_readable());
        assert_eq!(served.pass(Duration::ZERO), AfterTurn::Wait, "one moment is left");
        assert_eq!(served.pass(MOMENT), AfterTurn::Close, "what is dropped gives no time");
    }

    #[test]
    fn a_client_that_ends_a_connection_that_lingers_closes_it() {
        let (mut served, mut upstream) = Served::asked(LAST);
        upstream.send(RESPONSE);
        served.until(Session::is_lingering);
        served.client.0.shutdown(std::net::Shutdown::Write).unwrap();
        served.until_closed();
    }

    #[test]
    fn each_exchange_on_a_connection_begins_with_nothing_of_the_last_one() {
        let (mut served, mut upstream) = Served::kept();
        for number in 2..4 {
            assert!(matches!(served.session.exchange.state(), State::Idle));
            assert_eq!((served.session.request, served.session.upstream), (number, None));
            assert_eq!(served.session.idle_since, served.net.now);
            served.net.now += SECOND;
            served.client.send(REQUEST);
            served.until(|session| session.upstream.is_some());
            upstream.read_until("\r\n\r\n");
            upstream.send(RESPONSE);
            served.until(|session| session.request > number);
            served.client.read_until("fine");
        }
    }

    #[test]
    fn a_response_before_the_end_of_its_request_is_not_kept_back() {
        let head = HEAD.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n");
        let (mut served, mut upstream) = Served::asked(&(head + "12345"));
        upstream.read_until("12345");
        upstream.send(RESPONSE);
        served.until(|session| session.phase == Phase::WriteEnded);
        assert!(served.client.rest().unwrap().ends_with("\r\n\r\nfine"));
        // The rest of the request still goes to the upstream.
        served.client.send("67890");
        served.until(Session::is_lingering);
        upstream.read_until("67890");
    }

    #[test]
    fn the_short_rest_of_a_refused_body_is_dropped_and_the_connection_kept() {
        let mut served = Served::new();
        let refused = HEAD.replace("/v1/responses", "/v1/other");
        served.client.send(refused + "12345");
        let is_dropping = |session: &Session| {
            matches!(session.exchange.state(), State::Complete { rest: Rest::Drop(5) })
        };
        served.until(is_dropping);
        served.client.read_until("}}");
        served.client.send("67890");
        served.until(|session| session.served);
        assert!(!served.session.exchange.is_last());
    }
}
