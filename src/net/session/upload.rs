//! From the client to the upstream.

use std::io::ErrorKind;
use std::time::Instant;

use super::{Closed, LoopState, Progress, ResponseStart, Session, Times};
use crate::http1::exchange::{Continue, RequestStep, Rest, State};
use crate::http1::local_response::Reject;
use crate::http1::local_response::UpstreamFault;
use crate::http1::request::RequestContext;
use crate::net::buffer::Scratch;
use crate::net::limits::CLIENT_READ;
use crate::net::slots::{DeadlineSlot, Side};
use crate::net::socket::Got;
use crate::net::timeouts::CONNECT;
use crate::net::upstream::Upstream;
use crate::process::credential::SearchPosition;

impl Session {
    /// From the client to the upstream.
    pub(super) fn pump_request(
        &mut self,
        state: &mut LoopState,
        now: Instant,
    ) -> Result<Progress, Closed> {
        if let Some(up) = self.upstream.and_then(|key| state.upstreams.get(key)) {
            if let State::Waiting(_) = self.exchange.state() {
                if !up.is_ready() {
                    return Ok(Progress::Waiting);
                }
            } else {
                // Every byte that the upstream takes extends its time.
                let unsent = up.unsent();
                up.flush();
                if unsent > 0 {
                    // Until now the client waited for the upstream.
                    self.clocks.client_acted(now);
                }
                if up.unsent() < unsent {
                    self.clocks.upstream_acted(now);
                }
            }
            if self.exchange.state().is_uploading() && !up.is_drained() {
                return Ok(Progress::Waiting);
            }
        }
        let may_read = match self.exchange.state() {
            State::Idle => self.output.is_empty(),
            State::Waiting(_) | State::Uploading(_) => true,
            State::Awaiting => false,
            State::Responding { rest, .. } | State::Complete { rest } => !rest.is_none(),
        };
        if !may_read {
            return Ok(Progress::Waiting);
        }
        if !self.input.is_empty() && !self.needs_more {
            let bytes = self.input.take();
            let used = self.request_bytes(&bytes, state, now)?;
            self.input.put_back(bytes, used);
            return Ok(if used > 0 { Progress::Moved } else { Progress::Waiting });
        }
        state.client_scratch.clear();
        match self.socket.read(&mut state.client_scratch.room(CLIENT_READ)[..CLIENT_READ]) {
            Got::Bytes(n) => {
                state.moved += n;
                state.client_scratch.add(n);
                match self.exchange.state() {
                    // A head has its whole time once.
                    State::Idle => self.clocks.restore_patience(&state.timeouts),
                    _ => self.clocks.body_came(n, &state.timeouts, now),
                }
            }
            Got::Nothing => return Ok(Progress::Waiting),
            Got::End | Got::Broken => {
                return match self.exchange.state() {
                    State::Uploading(_) | State::Awaiting | State::Responding { .. } => {
                        Err(self.abort("client_closed", state, now))
                    }
                    // The response is with the client; the request is incomplete.
                    State::Complete { rest: Rest::Upload(_) } => {
                        self.log("client_closed", state, now);
                        Err(Closed)
                    }
                    State::Idle | State::Waiting(_) | State::Complete { .. } => Err(Closed),
                };
            }
        }
        match self.exchange.state() {
            State::Idle if self.input.is_empty() => {
                self.times = Times::new(now);
                // The first head is timed from the moment of accept.
                if self.served {
                    self.clocks.client_acted(now);
                }
            }
            // A head has its whole time once.
            State::Idle => {}
            _ => self.clocks.client_acted(now),
        }
        self.needs_more = false;
        let read = std::mem::replace(&mut state.client_scratch, Scratch::new(0));
        let result = if self.input.is_empty() {
            let used = self.request_bytes(read.bytes(), state, now);
            used.map(|used| self.input.push(&read.bytes()[used..]))
        } else {
            self.input.push(read.bytes());
            let bytes = self.input.take();
            let used = self.request_bytes(&bytes, state, now);
            used.map(|used| self.input.put_back(bytes, used))
        };
        state.client_scratch = read;
        result.map(|()| Progress::Moved)
    }

    /// Shows bytes to the exchange and sends on what it says; returns how many are used up.
    pub(super) fn request_bytes(
        &mut self,
        bytes: &[u8],
        state: &mut LoopState,
        now: Instant,
    ) -> Result<usize, Closed> {
        let mut at = 0;
        // A request may be read in the same pass that learns of its client's end. For such a client
        // no connection counts as ready, so its head is parsed but never sent.
        let has_left = self.socket.is_read_closed();
        while at < bytes.len() {
            let ready = match self.upstream {
                _ if has_left => false,
                Some(key) => state.upstreams.get(key).is_some_and(|up| up.is_ready()),
                None => state.pool.is_ready(self.client.user, &mut state.upstreams, now),
            };
            // If a pooled connection proves dead, the head is parsed again for another one.
            let rollback = match self.exchange.state() {
                State::Idle | State::Waiting(_) => Some(self.exchange.clone()),
                _ => None,
            };
            state.outgoing.clear();
            let is_token = state.token.as_ref().map(|token| |shown: &[u8]| token.matches(shown));
            let context = RequestContext {
                upstream_ready: ready,
                exhausted: state.requests_left == 0,
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
                    return Err(self.abort("client_closed", state, now));
                }
                RequestStep::Broken => {
                    if let State::Complete { .. } = self.exchange.state() {
                        self.release(state);
                        return Ok(at + used);
                    }
                    let end = Reject::InvalidChunk.response().code;
                    return Err(self.abort(end, state, now));
                }
                RequestStep::NeedUpstream => {
                    return Ok(at + self.connect(state, now)?);
                }
                RequestStep::Forward => {
                    let rest = &bytes[at..];
                    match self.send_to_upstream(rest, state, now) {
                        Sent::Flushed => {
                            self.send_continue(state, now)?;
                            at += used;
                        }
                        Sent::Queued => {
                            self.send_continue(state, now)?;
                            return Ok(at + used);
                        }
                        // Nothing was taken, so nothing can be done twice: another connection.
                        Sent::ConnectionStale => {
                            if let Some(rollback) = rollback {
                                self.exchange = rollback;
                            }
                        }
                        Sent::ConnectionFailed => {
                            self.answer_fault(UpstreamFault::Closed, state, now)?;
                            return Ok(at + used);
                        }
                    }
                }
                RequestStep::Respond | RequestStep::RespondAndShutDown => {
                    state.shutdown |= step == RequestStep::RespondAndShutDown;
                    self.release(state);
                    self.send_to_client(&bytes[at..], state, now)?;
                    return Ok(at + used);
                }
            }
        }
        Ok(at)
    }

    /// The head is on its way upstream: now the body is wanted.
    fn send_continue(&mut self, state: &mut LoopState, now: Instant) -> Result<(), Closed> {
        if self.exchange.expectation() != Continue::Owed {
            return Ok(());
        }
        state.outgoing.clear();
        self.exchange.send_continue(&mut state.outgoing);
        self.send_to_client(&[], state, now)
    }

    /// Sends the pieces, runs of `input`, upstream.
    pub(super) fn send_to_upstream(
        &mut self,
        input: &[u8],
        state: &mut LoopState,
        now: Instant,
    ) -> Sent {
        let first = state.outgoing.has_credential();
        let key = match self.upstream {
            Some(key) => key,
            None => {
                match state.pool.take(self.client.user, &mut state.upstreams, &mut state.space, now)
                {
                    Some(key) => key,
                    None => return Sent::ConnectionStale,
                }
            }
        };
        let Some(up) = state.upstreams.get(key) else {
            return Sent::ConnectionStale;
        };
        if first {
            up.wake(self.key);
            let sent =
                up.send_head(&state.outgoing, input, &mut state.credential, &mut state.space);
            if let Err(error) = sent {
                // A write that stopped half-way has taken bytes.
                let untouched = up.rested && error.kind() != ErrorKind::WriteZero;
                state.upstreams.remove(key);
                self.upstream = None;
                return if untouched { Sent::ConnectionStale } else { Sent::ConnectionFailed };
            }
            self.upstream = Some(key);
            state.requests_left -= 1;
            self.search = SearchPosition::default();
            self.response_start = ResponseStart::AfterRequest;
            self.clocks.restore_patience(&state.timeouts);
            up.used_by = Some(self.client.user);
            self.times.reused = std::mem::replace(&mut up.reused, true);
            self.times.tls_resumed = up.is_resumed();
            self.times.address = up.address;
            self.clocks.client_acted(now);
        } else {
            if up.has_news() {
                self.response_start = ResponseStart::DuringRequest;
            }
            up.send_body(&state.outgoing, input, &mut state.space);
        }
        self.clocks.upstream_acted(now);
        if up.is_drained() { Sent::Flushed } else { Sent::Queued }
    }

    /// Takes over the connection that is being made, or begins one, for the head that waits;
    /// returns the bytes used up, should it fail at once.
    pub(super) fn connect(&mut self, state: &mut LoopState, now: Instant) -> Result<usize, Closed> {
        let limit = state.timeouts.upstream.map_or(CONNECT, |limit| limit.min(CONNECT));
        let owner = self.key;
        self.upstream = state.pool.take_preconnect();
        match self.upstream.and_then(|key| state.upstreams.get(key)) {
            Some(preconnect) => preconnect.adopt(owner, now, limit),
            None => {
                self.upstream = state.upstreams.insert(|key| {
                    Some(Upstream::new(key.token(Side::Upstream), Some(owner), now, limit))
                });
            }
        }
        match self.advance(state, now) {
            Ok(()) => Ok(0),
            Err(fault) => self.answer_fault(fault, state, now),
        }
    }

    pub(super) fn advance(
        &mut self,
        state: &mut LoopState,
        now: Instant,
    ) -> Result<(), UpstreamFault> {
        let key = self.upstream.ok_or(UpstreamFault::Unreachable)?;
        let up = state.upstreams.get(key).ok_or(UpstreamFault::Unreachable)?;
        if up.is_ready() {
            return Ok(());
        }
        up.flush();
        let advanced = up.advance(&mut state.origin, &state.registry, &mut state.space, now);
        self.times.address = up.address;
        advanced?;
        if up.is_ready() {
            self.times.connect = Some(now.saturating_duration_since(up.since));
        } else if let Some(when) = up.wakes_at() {
            state.deadlines.set(DeadlineSlot::new(key, Side::Upstream), when);
        }
        Ok(())
    }
}

/// How much of some pieces went to the upstream connection.
pub(super) enum Sent {
    /// All of them; it takes more.
    Flushed,
    /// All of them, but some wait for room.
    Queued,
    /// None; the connection had grown old and is gone.
    ConnectionStale,
    /// None; the connection was new and is gone.
    ConnectionFailed,
}
