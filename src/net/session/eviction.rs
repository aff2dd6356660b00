//! Eviction: the session gives up its place, or its buffered request head, for other sessions.

use std::time::Instant;

use super::{AfterTurn, Buffers, End, Session, Turn};
use crate::http1::exchange::{Rest, State};
use crate::http1::local_response::Reject;
use crate::net::admission::IdleConnection;
use crate::net::buffer::Backlog;
use crate::net::slots::SlotId;

impl Session {
    /// This session as one that can be closed for another: no request is under way or waits to be
    /// read, and no response waits for the client. `None` if that is not so.
    pub fn as_idle(&self) -> Option<IdleConnection<SlotId>> {
        let since = match self.exchange.state() {
            _ if self.is_lingering() => self.clocks.client_active_at(),
            _ if self.socket.is_readable() || !self.output.is_empty() => return None,
            State::Idle => self.idle_since,
            // The upstream still reads the request.
            State::Complete { rest: Rest::Upload(_) } => return None,
            // A client that has its response cannot keep the place by sending more of its request.
            State::Complete { .. } => self.times.begun,
            State::Waiting(_)
            | State::Uploading(_)
            | State::Awaiting
            | State::Responding { .. } => {
                return None;
            }
        };
        Some(IdleConnection { id: self.id, user: self.client.user, since })
    }

    fn has_unfinished_head(&self) -> bool {
        matches!(self.exchange.state(), State::Idle) && !self.input.is_empty()
    }

    /// Bytes of a buffered request head: an unfinished one, or one that waits for an upstream
    /// connection.
    pub fn buffered_head(&self) -> usize {
        match self.exchange.state() {
            State::Idle | State::Waiting(_) => self.input.bytes().len(),
            State::Uploading(_)
            | State::Awaiting
            | State::Responding { .. }
            | State::Complete { .. } => 0,
        }
    }

    /// Since when an unfinished head has been buffered.
    pub fn head_since(&self) -> Option<Instant> {
        self.has_unfinished_head().then_some(self.clocks.client_active_at())
    }

    /// Refuses the request whose head is buffered, because all heads together are too large. An
    /// unfinished head gets 408; a whole one, which waits for the upstream, gets 503.
    pub fn drop_head(&mut self, turn: &mut Turn<'_>, buffers: &mut Buffers) -> AfterTurn {
        let reject = match self.exchange.state() {
            State::Idle => Reject::Timeout,
            State::Waiting(_)
            | State::Uploading(_)
            | State::Awaiting
            | State::Responding { .. }
            | State::Complete { .. } => Reject::TooManyConnections,
        };
        self.input = Backlog::default();
        self.refuse_connection(reject, turn, buffers)
    }

    /// Closes the session for another one. A client in the middle of a request head gets a response
    /// that says so.
    pub fn evict(&mut self, turn: &mut Turn<'_>) -> AfterTurn {
        if self.has_unfinished_head() && self.refuse(Reject::Timeout, turn).is_ok() {
            self.log_end(End::Complete, turn);
        }
        self.close(turn.state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::loop_state::testing::SECOND;
    use crate::net::session::testing::{HEAD, REQUEST, RESPONSE, Served};

    /// Since when the session counts as idle.
    fn idle_since(served: &Served) -> Option<Instant> {
        served.session.as_idle().map(|idle| idle.since)
    }

    #[test]
    fn a_connection_can_be_closed_for_another_unless_a_request_is_under_way() {
        let mut served = Served::new();
        let accepted = served.net.now;
        let (_, mut upstream) = served.net.idle_upstream();
        assert_eq!(idle_since(&served), Some(accepted));
        served.client.send(&REQUEST[..9]);
        served.until(|session| !session.input.is_empty());
        assert_eq!(idle_since(&served), Some(accepted), "half a head is no request");
        served.client.send(&REQUEST[9..]);
        served.until(|session| session.upstream.is_some());
        assert_eq!(idle_since(&served), None, "a response is awaited");
        let filled = served.fill_client();
        upstream.send(RESPONSE);
        served.until(|session| !session.output.is_empty());
        assert_eq!(idle_since(&served), None, "a response waits for the client");
        served.net.now += SECOND;
        served.drain_client(filled);
        served.until(|session| session.served);
        assert_eq!(idle_since(&served), Some(served.net.now));
    }

    #[test]
    fn a_request_that_has_come_and_is_not_read_yet_keeps_the_connection() {
        let mut served = Served::new();
        served.client.send("P");
        served.client_comes();
        assert_eq!(idle_since(&served), None);
    }

    #[test]
    fn the_rest_of_a_refused_request_keeps_no_place() {
        let mut served = Served::new();
        let begun = served.net.now + SECOND;
        served.net.now = begun;
        served.client.send(HEAD.replace("/v1/responses", "/v1/other"));
        served.until(|session| session.exchange.status.is_some());
        served.net.now += SECOND;
        assert_eq!(idle_since(&served), Some(begun));
    }

    #[test]
    fn a_request_that_is_still_uploaded_behind_its_response_keeps_its_place() {
        let (mut served, mut upstream) = Served::asked(HEAD);
        upstream.send(RESPONSE);
        let is_complete = |session: &Session| {
            matches!(session.exchange.state(), State::Complete { rest: Rest::Upload(_) })
        };
        served.until(is_complete);
        served.client.read_until("fine");
        assert_eq!(idle_since(&served), None);
    }

    /// Closes a session for another one. Returns what its client reads.
    fn evicted(mut served: Served) -> String {
        assert_eq!(served.act(|session, turn, _| session.evict(turn)), AfterTurn::Close);
        let Served { session, mut client, .. } = served;
        drop(session);
        client.rest().unwrap()
    }

    #[test]
    fn a_client_that_loses_its_place_within_a_head_is_told_so_and_any_other_is_not() {
        assert_eq!(evicted(Served::new()), "");
        assert_eq!(evicted(Served::kept().0), "");
        let mut served = Served::new();
        served.client.send("POST /");
        served.until(|session| !session.input.is_empty());
        assert!(evicted(served).contains("\"request_timeout\""));
    }

    #[test]
    fn heads_that_are_buffered_count_while_they_wait_and_can_be_dropped() {
        let mut served = Served::new();
        served.client.send(&REQUEST[..9]);
        served.until(|session| !session.input.is_empty());
        assert_eq!(served.session.buffered_head(), 9);
        assert_eq!(served.session.head_since(), Some(served.net.now));
        served.act(|session, turn, buffers| session.drop_head(turn, buffers));
        assert_eq!(served.session.buffered_head(), 0);
        served.client.read_until("\"request_timeout\"}}");

        // A whole head that waits for an upstream connection.
        let mut served = Served::new();
        served.client.send(REQUEST);
        served.until(|session| matches!(session.exchange.state(), State::Waiting(_)));
        assert_eq!(served.session.buffered_head(), REQUEST.len());
        assert_eq!(served.session.head_since(), None, "the client has done its part");
        served.act(|session, turn, buffers| session.drop_head(turn, buffers));
        served.client.read_until("\"too_many_connections\"}}");

        let (served, _upstream) = Served::asked(HEAD);
        assert_eq!(served.session.buffered_head(), 0, "a head that was sent");
    }
}
