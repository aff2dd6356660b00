//! Moves the request to the upstream.

use super::{Buffers, Closed, End, Progress, ResponseStart, Session, Times, Turn};
use crate::http1::exchange::{Continue, RequestStep, Rest, State};
use crate::http1::local_response::{Reject, UpstreamFault};
use crate::http1::request::RequestContext;
use crate::net::buffer::TlsScratch;
use crate::net::limits::CLIENT_READ;
use crate::net::slots::{DeadlineSlot, Side, SlotId};
use crate::net::socket::ReadOutcome;
use crate::net::timeouts::CONNECT;
use crate::net::tls::Tls;
use crate::net::upstream::{Sent, Upstream};
use crate::process::credential::SearchPosition;

impl Session {
    /// Reads from the client once, unless earlier bytes still wait for the upstream.
    pub(super) fn pump_request(
        &mut self,
        turn: &mut Turn<'_>,
        buffers: &mut Buffers,
    ) -> Result<Progress, Closed> {
        self.flush_upstream(turn);
        if self.is_upstream_blocked(turn) || !self.takes_input() {
            return Ok(Progress::Waiting);
        }
        if !self.input.is_empty() && !self.needs_more {
            let bytes = self.input.take();
            let used = self.request_bytes(&bytes, turn, &mut buffers.upstream)?;
            self.input.put_back(bytes, used);
            return Ok(if used > 0 { Progress::Moved } else { Progress::Waiting });
        }
        let Buffers { client: read, upstream: scratch } = buffers;
        read.clear();
        match self.socket.read(&mut read.unfilled(CLIENT_READ)[..CLIENT_READ]) {
            ReadOutcome::Bytes(n) => {
                read.add(n);
                turn.bytes_read += n;
                self.note_input(n, turn);
            }
            ReadOutcome::Nothing => return Ok(Progress::Waiting),
            ReadOutcome::End | ReadOutcome::Broken => return Err(self.client_left(turn)),
        }
        self.needs_more = false;
        if self.input.is_empty() {
            let used = self.request_bytes(read.bytes(), turn, scratch)?;
            self.input.push(&read.bytes()[used..]);
        } else {
            self.input.push(read.bytes());
            let bytes = self.input.take();
            let used = self.request_bytes(&bytes, turn, scratch)?;
            self.input.put_back(bytes, used);
        }
        Ok(Progress::Moved)
    }

    /// Sends the bytes that the upstream connection could not accept before.
    fn flush_upstream(&mut self, turn: &mut Turn<'_>) {
        // While the request waits for its connection, `advance_upstream` flushes the handshake.
        if matches!(self.exchange.state(), State::Waiting(_)) {
            return;
        }
        let Some(up) = self.upstream.and_then(|id| turn.state.upstreams.get(id)) else {
            return;
        };
        let unsent = up.unsent();
        if unsent == 0 {
            return;
        }
        up.flush();
        // Until now the client could not send, because the upstream had not taken these bytes.
        self.clocks.client_acted(turn.now);
        if up.unsent() < unsent {
            self.clocks.upstream_acted(turn.now);
        }
    }

    /// The upstream connection cannot take bytes yet.
    fn is_upstream_blocked(&self, turn: &mut Turn<'_>) -> bool {
        let Some(up) = self.upstream.and_then(|id| turn.state.upstreams.get(id)) else {
            return false;
        };
        match self.exchange.state() {
            State::Waiting(_) => !up.is_ready(),
            state => state.is_uploading() && !up.is_drained(),
        }
    }

    /// The exchange can use more bytes from the client.
    fn takes_input(&self) -> bool {
        match self.exchange.state() {
            State::Idle => self.output.is_empty(),
            State::Waiting(_) | State::Uploading(_) => true,
            State::Awaiting => false,
            State::Responding { rest, .. } | State::Complete { rest } => !rest.is_none(),
        }
    }

    /// Sets the clocks, because bytes have come from the client.
    fn note_input(&mut self, bytes: usize, turn: &mut Turn<'_>) {
        let timeouts = &turn.state.timeouts;
        match self.exchange.state() {
            // One limit covers a whole head. It begins with the first byte of the head, or at
            // accept for the first head of the connection.
            State::Idle => {
                self.clocks.restore_patience(timeouts);
                if self.input.is_empty() {
                    self.times = Times::new(turn.now);
                    if self.served {
                        self.clocks.client_acted(turn.now);
                    }
                }
            }
            State::Waiting(_)
            | State::Uploading(_)
            | State::Awaiting
            | State::Responding { .. }
            | State::Complete { .. } => {
                self.clocks.body_came(bytes, timeouts, turn.now);
                self.clocks.client_acted(turn.now);
            }
        }
    }

    /// The client has ended the connection, or the connection is broken.
    fn client_left(&mut self, turn: &mut Turn<'_>) -> Closed {
        match self.exchange.state() {
            State::Uploading(_) | State::Awaiting | State::Responding { .. } => {
                self.abort(End::ClientClosed, turn)
            }
            // The client has its response; the request is not whole.
            State::Complete { rest: Rest::Upload(_) } => {
                self.log_end(End::ClientClosed, turn);
                Closed
            }
            State::Idle | State::Waiting(_) | State::Complete { .. } => Closed,
        }
    }

    /// Gives bytes from the client to the exchange and sends its output. Returns the number of
    /// consumed bytes.
    fn request_bytes(
        &mut self,
        bytes: &[u8],
        turn: &mut Turn<'_>,
        scratch: &mut TlsScratch,
    ) -> Result<usize, Closed> {
        let mut at = 0;
        // The end of the client's connection and its request may arrive in the same pass. No
        // connection counts as ready for such a client, so that its head is parsed but never sent.
        let has_left = self.socket.is_read_closed();
        while at < bytes.len() {
            let is_ready = !has_left && self.has_ready_upstream(turn);
            // If a pooled connection proves dead, the head is parsed again for another one.
            let rollback = match self.exchange.state() {
                State::Idle | State::Waiting(_) => Some(self.exchange.clone()),
                State::Uploading(_)
                | State::Awaiting
                | State::Responding { .. }
                | State::Complete { .. } => None,
            };
            let state = &mut *turn.state;
            state.outgoing.clear();
            let is_token =
                state.client_token.as_ref().map(|token| |shown: &[u8]| token.matches(shown));
            let context = RequestContext {
                upstream_ready: is_ready,
                closed: state.closed(),
                token: is_token.as_ref().map(|is_token| is_token as _),
            };
            let (used, step) =
                self.exchange.receive_request(&bytes[at..], &context, &mut state.outgoing);
            match step {
                RequestStep::NeedMore => {
                    self.needs_more = true;
                    return Ok(at + used);
                }
                RequestStep::Idle => return Ok(at + used),
                RequestStep::NeedUpstream if has_left => {
                    return Err(self.abort(End::ClientClosed, turn));
                }
                RequestStep::NeedUpstream => {
                    return Ok(at + self.connect(turn, scratch)?);
                }
                RequestStep::Forward => match self.send_to_upstream(&bytes[at..], turn, scratch) {
                    Sent::Flushed => {
                        self.send_continue(turn)?;
                        at += used;
                    }
                    Sent::Queued => {
                        self.send_continue(turn)?;
                        return Ok(at + used);
                    }
                    // Nothing was sent, so the request can be sent on another connection.
                    Sent::ConnectionStale => {
                        if let Some(rollback) = rollback {
                            self.exchange = rollback;
                        }
                    }
                    Sent::ConnectionFailed => {
                        self.respond_to_fault(UpstreamFault::Closed, turn)?;
                        return Ok(at + used);
                    }
                },
                RequestStep::Broken => {
                    if let State::Complete { .. } = self.exchange.state() {
                        self.release_upstream(turn.state);
                        return Ok(at + used);
                    }
                    let end = End::Failed(Reject::InvalidChunk.response().code);
                    return Err(self.abort(end, turn));
                }
                RequestStep::Respond | RequestStep::RespondAndShutDown => {
                    turn.state.shutdown |= step == RequestStep::RespondAndShutDown;
                    self.release_upstream(turn.state);
                    self.send_to_client(&bytes[at..], turn)?;
                    return Ok(at + used);
                }
            }
        }
        Ok(at)
    }

    /// A head could be sent at once.
    fn has_ready_upstream(&self, turn: &mut Turn<'_>) -> bool {
        let state = &mut *turn.state;
        match self.upstream {
            Some(id) => state.upstreams.get(id).is_some_and(|up| up.is_ready()),
            None => state.pool.is_ready(self.client.user, &mut state.upstreams, turn.now),
        }
    }

    /// Sends the 100 (Continue) that the client waits for, once the head is on its way upstream.
    fn send_continue(&mut self, turn: &mut Turn<'_>) -> Result<(), Closed> {
        if self.exchange.expectation() != Continue::Owed {
            return Ok(());
        }
        turn.state.outgoing.clear();
        self.exchange.send_continue(&mut turn.state.outgoing);
        self.send_to_client(&[], turn)
    }

    /// Sends the gathered output to the upstream. Its segments may be ranges of `input`. A head
    /// without a connection takes one from the pool.
    fn send_to_upstream(
        &mut self,
        input: &[u8],
        turn: &mut Turn<'_>,
        scratch: &mut TlsScratch,
    ) -> Sent {
        let (state, now) = (&mut *turn.state, turn.now);
        let id = match self.upstream {
            Some(id) => Some(id),
            None => state.pool.take(self.client.user, &mut state.upstreams, scratch, now),
        };
        let Some(id) = id else {
            return Sent::ConnectionStale;
        };
        if state.outgoing.has_credential() {
            return self.send_head(id, input, turn, scratch);
        }
        let Some(up) = state.upstreams.connection(id) else {
            return Sent::ConnectionStale;
        };
        if up.has_news() {
            self.response_start = ResponseStart::DuringRequest;
        }
        self.clocks.upstream_acted(now);
        up.send_body(&state.outgoing, input, scratch)
    }

    /// Sends a head, and the part of the body that has arrived, on this connection.
    fn send_head(
        &mut self,
        id: SlotId,
        input: &[u8],
        turn: &mut Turn<'_>,
        scratch: &mut TlsScratch,
    ) -> Sent {
        let (state, now) = (&mut *turn.state, turn.now);
        let Some(up) = state.upstreams.connection(id) else {
            return Sent::ConnectionStale;
        };
        up.assign(self.id);
        let sent = up.send_head(&state.outgoing, input, state.keys.current(), scratch);
        match sent {
            Sent::Flushed | Sent::Queued => {}
            Sent::ConnectionStale | Sent::ConnectionFailed => {
                state.upstreams.remove(id);
                self.upstream = None;
                return sent;
            }
        }
        self.upstream = Some(id);
        state.requests_left -= 1;
        self.search = SearchPosition::default();
        self.carried = Some(state.keys.carry());
        if state.keys.is_rotating() {
            self.times.key_generation = Some(state.keys.carry().generation());
        }
        self.response_start = ResponseStart::AfterRequest;
        self.times.reused = up.used_before();
        up.used_by = Some(self.client.user);
        self.times.tls_resumed = up.tls().map(Tls::is_resumed);
        self.times.address = up.address;
        self.clocks.restore_patience(&state.timeouts);
        self.clocks.client_acted(now);
        self.clocks.upstream_acted(now);
        sent
    }

    /// Takes over the preconnect, or begins a connection. If that fails at once, sends the local
    /// response. Returns the number of consumed bytes of input.
    fn connect(&mut self, turn: &mut Turn<'_>, scratch: &mut TlsScratch) -> Result<usize, Closed> {
        let (state, now, owner) = (&mut *turn.state, turn.now, self.id);
        let limit = state.timeouts.upstream.map_or(CONNECT, |limit| limit.min(CONNECT));
        self.upstream = state.pool.take_preconnect();
        match self.upstream.and_then(|id| state.upstreams.get(id)) {
            Some(preconnect) => preconnect.adopt(owner, now, limit),
            None => {
                self.upstream = state.upstreams.insert(|id| {
                    Some(Upstream::new(id.token(Side::Upstream), Some(owner), now, limit))
                });
            }
        }
        match self.advance_upstream(turn, scratch) {
            Ok(()) => Ok(0),
            Err(fault) => self.respond_to_fault(fault, turn),
        }
    }

    /// Advances the connection that the request waits for.
    pub(super) fn advance_upstream(
        &mut self,
        turn: &mut Turn<'_>,
        scratch: &mut TlsScratch,
    ) -> Result<(), UpstreamFault> {
        let (state, now) = (&mut *turn.state, turn.now);
        let id = self.upstream.ok_or(UpstreamFault::Unreachable)?;
        let up = state.upstreams.get(id).ok_or(UpstreamFault::Unreachable)?;
        if up.is_ready() {
            return Ok(());
        }
        up.flush();
        let advanced = up.advance(&mut state.origin, &state.registry, scratch, now);
        self.times.address = up.address();
        advanced?;
        if let Some(up) = up.connection() {
            self.times.connect = Some(now.saturating_duration_since(up.requested_at));
        } else if let Some(when) = up.wakes_at() {
            state.deadlines.set(DeadlineSlot::new(id, Side::Upstream), when);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::net::Shutdown;
    use std::os::fd::AsFd;

    use super::*;
    use crate::net::loop_state::testing::{FarEnd, arrives};
    use crate::net::session::testing::{HEAD, REQUEST, RESPONSE, Served};
    use crate::net::session::{AfterTurn, Session};
    use crate::process::sys;

    fn is_waiting(session: &Session) -> bool {
        matches!(session.exchange.state(), State::Waiting(_))
    }

    fn head_count(upstream: &FarEnd) -> usize {
        upstream.0.set_nonblocking(true).unwrap();
        let mut bytes = [0; 4096];
        let n = std::io::Read::read(&mut &upstream.0, &mut bytes).unwrap_or(0);
        String::from_utf8_lossy(&bytes[..n]).matches("POST ").count()
    }

    #[test]
    fn a_request_goes_out_once_on_another_connection_if_a_pooled_one_proves_dead() {
        let mut served = Served::new();
        let (alive, other) = served.net.idle_upstream();
        let (dead, reset) = served.net.idle_upstream();
        served.client.send(REQUEST);
        served.client_comes();
        // No event tells of this end before the head is written.
        sys::reset_on_close(reset.0.as_fd()).unwrap();
        drop(reset);
        arrives(&mut served.net.state.upstreams, dead);
        served.turn();
        assert_eq!(served.session.upstream, Some(alive));
        assert!(served.net.state.upstreams.get(dead).is_none());
        assert_eq!(served.net.state.requests_left, u64::MAX - 1);
        assert_eq!(head_count(&other), 1);
    }

    #[test]
    fn a_request_without_a_connection_waits_and_a_fault_is_told() {
        let mut served = Served::new();
        served.client.send(REQUEST);
        served.until(is_waiting);
        let id = served.session.upstream.unwrap();
        let up = served.net.state.upstreams.get(id).unwrap();
        assert!(up.is_dialing() && up.owner() == Some(served.session.id));
        up.dialed(Err(UpstreamFault::Refused));
        served.turn();
        served.client.read_until("\"upstream_refused\"}}");
        assert!(served.net.state.upstreams.is_empty());
        assert!(served.session.input.is_empty(), "the head is used up");
    }

    #[test]
    fn a_connection_that_is_made_ahead_is_taken_over_with_the_whole_time_for_a_new_one() {
        let mut served = Served::new();
        let begun = served.net.now;
        let state = &mut served.net.state;
        let preconnect = state
            .upstreams
            .insert(|id| Some(Upstream::new(id.token(Side::Upstream), None, begun, CONNECT)));
        state.pool.set_preconnect(preconnect);
        served.net.now += CONNECT / 2;
        served.client.send(REQUEST);
        served.until(is_waiting);
        assert_eq!(served.session.upstream, preconnect);
        let up = served.net.state.upstreams.get(preconnect.unwrap()).unwrap();
        assert_eq!(up.owner(), Some(served.session.id));
        assert_eq!(up.wakes_at(), Some(served.net.now + CONNECT));
        assert!(!served.net.state.pool.is_preconnecting());
    }

    #[test]
    fn a_connection_may_take_no_longer_than_the_upstream_may_be_silent() {
        let mut served = Served::new();
        let limit = CONNECT / 2;
        served.net.state.timeouts.upstream = Some(limit);
        served.client.send(REQUEST);
        served.until(is_waiting);
        let id = served.session.upstream.unwrap();
        let wakes_at = served.net.state.upstreams.get(id).unwrap().wakes_at();
        assert_eq!(wakes_at, Some(served.net.now + limit));
    }

    #[test]
    fn a_client_that_leaves_while_its_request_waits_leaves_its_connection_to_the_next() {
        let mut served = Served::new();
        served.client.send(REQUEST);
        served.until(is_waiting);
        let id = served.session.upstream.unwrap();
        served.client.0.shutdown(Shutdown::Write).unwrap();
        let (mut net, _client) = served.until_closed();
        assert!(net.state.pool.is_preconnect(id));
        assert_eq!(net.state.upstreams.get(id).unwrap().owner(), None);
    }

    #[test]
    fn a_client_that_leaves_while_its_request_is_under_way_cancels_it() {
        for request in [REQUEST, HEAD] {
            let (served, mut upstream) = Served::asked(request);
            upstream.read_until("\r\n\r\n");
            served.client.0.shutdown(Shutdown::Write).unwrap();
            let (net, mut client) = served.until_closed();
            assert!(net.state.upstreams.is_empty() && net.state.pool.is_empty());
            assert_eq!((upstream.rest(), client.rest()), (None, None), "both ends by a reset");
        }
    }

    #[test]
    fn a_client_that_waits_for_a_100_gets_it_when_its_head_is_on_its_way() {
        let mut served = Served::new();
        served.client.send(HEAD.replace("\r\n\r\n", "\r\nExpect: 100-continue\r\n\r\n"));
        served.until(is_waiting);
        assert!(served.client.is_silent(), "no upstream has the head");
        let (mut served, mut upstream) =
            Served::asked(&HEAD.replace("\r\n\r\n", "\r\nExpect: 100-continue\r\n\r\n"));
        upstream.read_until("\r\n\r\n");
        served.client.read_until("HTTP/1.1 100 Continue\r\n\r\n");
        served.client.send("0123456789");
        served.until(|session| !session.exchange.state().is_uploading());
        upstream.read_until("0123456789");
        upstream.send(RESPONSE);
        served.until(|session| session.served);
        served.client.read_until("fine");
    }

    #[test]
    fn the_next_request_is_not_read_before_the_response_is_with_the_client() {
        let (mut served, mut upstream) = Served::asked(REQUEST);
        upstream.read_until("\r\n\r\n");
        let filled = served.fill_client();
        served.client.send(REQUEST);
        served.client_comes();
        served.turn();
        assert!(served.session.socket.is_readable() && served.session.input.is_empty());
        upstream.send(RESPONSE);
        served.until(|session| !session.output.is_empty());
        while served.turn() == AfterTurn::Again {}
        assert_eq!(head_count(&upstream), 0);
        served.drain_client(filled);
        served.until(|session| session.request == 2 && session.upstream.is_some());
        assert_eq!(head_count(&upstream), 1);
    }
}
