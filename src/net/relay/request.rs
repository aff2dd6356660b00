//! From the client to the upstream.

use std::io::ErrorKind;
use std::time::Instant;

use super::{Over, Progress, READ, Relay, ResponseStart, Shared, Times};
use crate::http1::exchange::{Continue, RequestStep, Rest, State};
use crate::http1::limits;
use crate::http1::local_response::Reject;
use crate::http1::local_response::UpstreamFault;
use crate::http1::request::RequestContext;
use crate::net::buffer::Scratch;
use crate::net::event_loop::place;
use crate::net::slots::Side;
use crate::net::socket::Got;
use crate::net::upstream::{CONNECT, Upstream};
use crate::process::credential::SearchPosition;

impl Relay {
    /// From the client to the upstream.
    pub(super) fn pump_request(
        &mut self,
        shared: &mut Shared,
        now: Instant,
    ) -> Result<Progress, Over> {
        if let Some(up) = self.upstream.and_then(|key| shared.ups.get(key)) {
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
                    self.stall = now;
                }
                if up.unsent() < unsent {
                    self.heard = now;
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
        if !self.input.is_empty() && !self.hungry {
            let bytes = self.input.take();
            let used = self.request_bytes(&bytes, shared, now)?;
            self.input.put_back(bytes, used);
            return Ok(if used > 0 { Progress::Moved } else { Progress::Waiting });
        }
        shared.downstream.clear();
        match self.socket.read(&mut shared.downstream.room(READ)[..READ]) {
            Got::Bytes(n) => {
                shared.moved += n;
                shared.downstream.add(n);
                self.note_upload(n, shared.client_timeout, now);
            }
            Got::Nothing => return Ok(Progress::Waiting),
            Got::End | Got::Broken => {
                return match self.exchange.state() {
                    State::Uploading(_) | State::Awaiting | State::Responding { .. } => {
                        Err(self.abort("client_closed", shared, now))
                    }
                    // The response is with the client; the request is incomplete.
                    State::Complete { rest: Rest::Upload(_) } => {
                        self.log("client_closed", shared, now);
                        Err(Over)
                    }
                    State::Idle | State::Waiting(_) | State::Complete { .. } => Err(Over),
                };
            }
        }
        match self.exchange.state() {
            State::Idle if self.input.is_empty() => {
                self.times = Times::new(now);
                // The first head is timed from the moment of accept.
                if self.served {
                    self.stall = now;
                }
            }
            // A head has its whole time once.
            State::Idle => {}
            _ => self.stall = now,
        }
        self.hungry = false;
        let read = std::mem::replace(&mut shared.downstream, Scratch::new(0));
        let result = if self.input.is_empty() {
            let used = self.request_bytes(read.bytes(), shared, now);
            used.map(|used| self.input.push(&read.bytes()[used..]))
        } else {
            self.input.push(read.bytes());
            let bytes = self.input.take();
            let used = self.request_bytes(&bytes, shared, now);
            used.map(|used| self.input.put_back(bytes, used))
        };
        shared.downstream = read;
        result.map(|()| Progress::Moved)
    }

    /// Shows bytes to the exchange and sends on what it says; returns how many are used up.
    pub(super) fn request_bytes(
        &mut self,
        bytes: &[u8],
        shared: &mut Shared,
        now: Instant,
    ) -> Result<usize, Over> {
        let mut at = 0;
        // A request may be read in the same pass that learns of its client's end. For such a client
        // no connection counts as ready, so its head is parsed but never sent.
        let has_left = self.socket.is_read_closed();
        while at < bytes.len() {
            let ready = match self.upstream {
                _ if has_left => false,
                Some(key) => shared.ups.get(key).is_some_and(|up| up.is_ready()),
                None => shared.pool.is_ready(self.user, &mut shared.ups, now),
            };
            // If a pooled connection proves dead, the head is parsed again for another one.
            let rollback = match self.exchange.state() {
                State::Idle | State::Waiting(_) => Some(self.exchange.clone()),
                _ => None,
            };
            shared.outgoing.clear();
            let is_token = shared.token.as_ref().map(|token| |shown: &[u8]| token.matches(shown));
            let context = RequestContext {
                upstream_ready: ready,
                exhausted: shared.requests_left == 0,
                token: is_token.as_ref().map(|is_token| is_token as _),
            };
            let (used, step) =
                self.exchange.receive_request(&bytes[at..], &context, &mut shared.outgoing);
            match step {
                RequestStep::NeedMore => {
                    self.hungry = true;
                    return Ok(at + used);
                }
                RequestStep::Idle => return Ok(at + used),
                RequestStep::NeedUpstream if has_left => {
                    return Err(self.abort("client_closed", shared, now));
                }
                RequestStep::Broken => {
                    if let State::Complete { .. } = self.exchange.state() {
                        self.release(shared);
                        return Ok(at + used);
                    }
                    let end = Reject::InvalidChunk.response().code;
                    return Err(self.abort(end, shared, now));
                }
                RequestStep::NeedUpstream => {
                    return Ok(at + self.connect(shared, now)?);
                }
                RequestStep::Forward => {
                    let rest = &bytes[at..];
                    match self.send_upstream(rest, shared, now) {
                        Sent::All => {
                            self.send_continue(shared, now)?;
                            at += used;
                        }
                        Sent::Some => {
                            self.send_continue(shared, now)?;
                            return Ok(at + used);
                        }
                        // Nothing was taken, so nothing can be done twice: another connection.
                        Sent::Nothing => {
                            if let Some(rollback) = rollback {
                                self.exchange = rollback;
                            }
                        }
                        Sent::Failed => {
                            self.answer_fault(UpstreamFault::Closed, shared, now)?;
                            return Ok(at + used);
                        }
                    }
                }
                RequestStep::Respond | RequestStep::RespondAndShutDown => {
                    shared.shutdown |= step == RequestStep::RespondAndShutDown;
                    self.release(shared);
                    self.send_downstream(&bytes[at..], shared, now)?;
                    return Ok(at + used);
                }
            }
        }
        Ok(at)
    }

    /// The head is on its way upstream: now the body is wanted.
    fn send_continue(&mut self, shared: &mut Shared, now: Instant) -> Result<(), Over> {
        if self.exchange.expectation() != Continue::Owed {
            return Ok(());
        }
        shared.outgoing.clear();
        self.exchange.send_continue(&mut shared.outgoing);
        self.send_downstream(&[], shared, now)
    }

    /// Sends the pieces, runs of `input`, upstream.
    pub(super) fn send_upstream(
        &mut self,
        input: &[u8],
        shared: &mut Shared,
        now: Instant,
    ) -> Sent {
        let first = shared.outgoing.has_credential();
        let key = match self.upstream {
            Some(key) => key,
            None => match shared.pool.take(self.user, &mut shared.ups, &mut shared.space, now) {
                Some(key) => key,
                None => return Sent::Nothing,
            },
        };
        let Some(up) = shared.ups.get(key) else {
            return Sent::Nothing;
        };
        if first {
            up.wake(self.key);
            let sent =
                up.send_head(&shared.outgoing, input, &mut shared.credential, &mut shared.space);
            if let Err(error) = sent {
                // A write that stopped half-way has taken bytes.
                let untouched = up.rested && error.kind() != ErrorKind::WriteZero;
                shared.ups.remove(key);
                self.upstream = None;
                return if untouched { Sent::Nothing } else { Sent::Failed };
            }
            self.upstream = Some(key);
            shared.requests_left -= 1;
            self.search = SearchPosition::default();
            self.response_start = ResponseStart::AfterRequest;
            self.patience = shared.client_timeout * limits::UPLOAD_PATIENCE;
            up.used_by = Some(self.user);
            self.times.reused = std::mem::replace(&mut up.reused, true);
            self.times.tls_resumed = up.is_resumed();
            self.times.address = up.address;
            self.stall = now;
        } else {
            if up.has_news() {
                self.response_start = ResponseStart::DuringRequest;
            }
            up.send_body(&shared.outgoing, input, &mut shared.space);
        }
        self.heard = now;
        if up.is_drained() { Sent::All } else { Sent::Some }
    }

    /// Takes over the connection that is being made, or begins one, for the head that waits;
    /// returns the bytes used up, should it fail at once.
    pub(super) fn connect(&mut self, shared: &mut Shared, now: Instant) -> Result<usize, Over> {
        let limit = shared.upstream_timeout.map_or(CONNECT, |limit| limit.min(CONNECT));
        let owner = self.key;
        self.upstream = shared.pool.take_spare();
        match self.upstream.and_then(|key| shared.ups.get(key)) {
            Some(spare) => spare.adopt(owner, now, limit),
            None => {
                self.upstream = shared.ups.insert(|key| {
                    Some(Upstream::new(key.token(Side::Upstream), Some(owner), now, limit))
                });
            }
        }
        match self.advance(shared, now) {
            Ok(()) => Ok(0),
            Err(fault) => self.answer_fault(fault, shared, now),
        }
    }

    pub(super) fn advance(
        &mut self,
        shared: &mut Shared,
        now: Instant,
    ) -> Result<(), UpstreamFault> {
        let key = self.upstream.ok_or(UpstreamFault::Unreachable)?;
        let up = shared.ups.get(key).ok_or(UpstreamFault::Unreachable)?;
        if up.is_ready() {
            return Ok(());
        }
        up.flush();
        let advanced = up.advance(&mut shared.origin, &shared.registry, &mut shared.space, now);
        self.times.address = up.address;
        advanced?;
        if up.is_ready() {
            self.times.connect = Some(now.saturating_duration_since(up.since));
        } else if let Some(when) = up.wakes_at() {
            shared.deadlines.set(place(key, Side::Upstream), when);
        }
        Ok(())
    }
}

/// How much of some pieces went to the upstream connection.
pub(super) enum Sent {
    /// All of them; it takes more.
    All,
    /// All of them, but some wait for room.
    Some,
    /// None; the connection had grown old and is gone.
    Nothing,
    /// None; the connection was new and is gone.
    Failed,
}
