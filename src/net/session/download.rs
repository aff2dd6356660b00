//! From the upstream to the client.

use std::io::{self, IoSlice};
use std::time::Instant;

use super::{Closed, LoopState, Progress, ResponseStart, Session};
use crate::http1::exchange::{Answer, ResponseStep, Rest, State};
use crate::http1::limits;
use crate::http1::local_response::Reject;
use crate::http1::local_response::UpstreamFault;
use crate::net::buffer::{Backlog, Scratch};
use crate::net::gather_io::{fill, keep_rest, send};
use crate::net::limits::UPSTREAM_READ;
use crate::net::slots::{DeadlineSlot, Key, Side};
use crate::net::upstream::Flow;

impl Session {
    /// From the upstream to the client.
    pub(super) fn pump_response(
        &mut self,
        state: &mut LoopState,
        now: Instant,
    ) -> Result<Progress, Closed> {
        let Some(key) = self.upstream else {
            return Ok(Progress::Waiting);
        };
        let awaits_head = match self.exchange.state() {
            State::Waiting(_) => {
                if let Err(fault) = self.advance(state, now) {
                    self.fault(fault, state, now)?;
                }
                return Ok(Progress::Waiting);
            }
            State::Complete { rest: Rest::Upload(_) } => return Ok(self.watch_upload(key, state)),
            State::Idle | State::Complete { .. } => return Ok(Progress::Waiting),
            State::Uploading(_) | State::Awaiting => true,
            State::Responding { .. } => false,
        };
        if !self.output.is_empty() {
            return Ok(Progress::Waiting);
        }
        let Some(up) = state.upstreams.get(key) else {
            return Ok(Progress::Waiting);
        };
        if !up.has_news() {
            return Ok(Progress::Waiting);
        }
        let is_early = awaits_head && (self.exchange.state().is_uploading() || !up.is_drained());
        let flow = up.read(&mut state.space, UPSTREAM_READ);
        state.moved += state.space.plain.bytes().len();
        if state.space.plain.bytes().is_empty() && flow == Flow::Open {
            return Ok(Progress::Moved);
        }
        if is_early {
            self.response_start = ResponseStart::DuringRequest;
        }
        let plain = std::mem::replace(&mut state.space.plain, Scratch::new(0));
        let result = if self.head.is_empty() {
            let used = self.response_bytes(plain.bytes(), flow, state, now);
            used.map(|used| self.head.push(&plain.bytes()[used..]))
        } else {
            self.head.push(plain.bytes());
            let bytes = self.head.take();
            let used = self.response_bytes(&bytes, flow, state, now);
            used.map(|used| self.head.put_back(bytes, used))
        };
        state.space.plain = plain;
        // A final head is what is waited for: interim answers and pieces of a head are not it.
        match self.exchange.state() {
            State::Uploading(_) | State::Awaiting => {
                if self.head.is_empty() {
                    self.response_start = ResponseStart::AfterRequest;
                }
            }
            _ => self.clocks.upstream_acted(now),
        }
        result.map(|()| Progress::Moved)
    }

    /// While the rest of a request goes up behind its response: an upstream that ends, or that says
    /// more, wants no more.
    fn watch_upload(&mut self, key: Key, state: &mut LoopState) -> Progress {
        let Some(up) = state.upstreams.get(key).filter(|up| up.has_news()) else {
            return Progress::Waiting;
        };
        let flow = up.read(&mut state.space, UPSTREAM_READ);
        state.moved += state.space.plain.bytes().len();
        if flow != Flow::Open || !state.space.plain.bytes().is_empty() {
            self.stop_upload(state);
        }
        Progress::Moved
    }

    /// Shows bytes to the exchange and sends on what it says. Returns from where on they are kept:
    /// the beginning of a head.
    pub(super) fn response_bytes(
        &mut self,
        bytes: &[u8],
        flow: Flow,
        state: &mut LoopState,
        now: Instant,
    ) -> Result<usize, Closed> {
        let mut at = 0;
        while at < bytes.len() && self.awaits_response() {
            state.outgoing.clear();
            let (credential, search) = (&mut state.credential, &mut self.search);
            let (used, step) =
                self.exchange.receive_response(&bytes[at..], &mut state.outgoing, &mut |piece| {
                    credential.reflected(search, piece)
                });
            if let ResponseStep::Fault(fault) = step {
                return self.fault(fault, state, now).map(|()| bytes.len());
            }
            self.times.first_byte = self.times.first_byte.or(Some(now));
            self.send_to_client(&bytes[at..], state, now)?;
            if used == 0 {
                break;
            }
            at += used;
        }
        if self.awaits_response() {
            if let Flow::Refused(fault) = flow {
                return self.fault(fault, state, now).map(|()| bytes.len());
            }
            if flow != Flow::Open {
                state.outgoing.clear();
                let clean = flow == Flow::Ended;
                let ended = match self.exchange.receive_end(clean, &mut state.outgoing) {
                    ResponseStep::Fault(fault) => self.fault(fault, state, now),
                    ResponseStep::Forward => {
                        if let Some(key) = self.upstream.take() {
                            state.upstreams.remove(key);
                        }
                        self.send_to_client(&[], state, now)
                    }
                };
                return ended.map(|()| bytes.len());
            }
            return Ok(at);
        }
        if self.exchange.state().is_uploading() {
            if at < bytes.len() || flow != Flow::Open {
                self.stop_upload(state);
            }
            return Ok(bytes.len());
        }
        // Bytes after the end of an answer belong to nothing that was asked.
        let whole = at == bytes.len() && flow == Flow::Open && self.exchange.is_upstream_reusable();
        let Some(key) = self.upstream.take() else {
            return Ok(bytes.len());
        };
        if !whole
            || self.response_start == ResponseStart::DuringRequest
            || state
                .upstreams
                .get(key)
                .is_none_or(|up| !up.is_drained() || !up.is_between_records())
        {
            // The upstream may still wait for the rest of the request, which is not sent.
            if !matches!(self.exchange.state(), State::Complete { rest: Rest::None })
                && let Some(up) = state.upstreams.get(key)
            {
                up.cancel();
            }
            state.upstreams.remove(key);
        } else if let Some(when) = state.pool.put(key, &mut state.upstreams, now) {
            state.deadlines.set(DeadlineSlot::new(key, Side::Upstream), when);
        }
        Ok(bytes.len())
    }

    /// No usable response comes from the upstream: see [`Session::answer_fault`].
    pub(super) fn fault(
        &mut self,
        fault: UpstreamFault,
        state: &mut LoopState,
        now: Instant,
    ) -> Result<(), Closed> {
        let used = self.answer_fault(fault, state, now)?;
        self.input.consume(used);
        Ok(())
    }

    /// Answers for an upstream that gives no usable response, or resets the client's connection if
    /// a response has begun. Returns the bytes of client input that are used up.
    pub(super) fn answer_fault(
        &mut self,
        fault: UpstreamFault,
        state: &mut LoopState,
        now: Instant,
    ) -> Result<usize, Closed> {
        state.outgoing.clear();
        match self.exchange.fault(fault, &mut state.outgoing) {
            Answer::Answered { used } => {
                self.release(state);
                self.head = Backlog::default();
                self.clocks.client_acted(now);
                self.send_to_client(&[], state, now)?;
                Ok(used)
            }
            Answer::MustReset => {
                let end = match fault {
                    UpstreamFault::Closed => "upstream_truncated",
                    fault => fault.response().code,
                };
                Err(self.abort(end, state, now))
            }
        }
    }

    /// Refuses the request, or resets the client's connection if a response has begun.
    pub(super) fn refuse(
        &mut self,
        reject: Reject,
        state: &mut LoopState,
        now: Instant,
    ) -> Result<(), Closed> {
        state.outgoing.clear();
        match self.exchange.refuse(reject, &mut state.outgoing) {
            Answer::Answered { .. } => {
                self.release(state);
                let _ = self.write_pieces(&[], state);
                Ok(())
            }
            Answer::MustReset => Err(self.abort(reject.response().code, state, now)),
        }
    }

    /// The request has begun to go upstream, and its response is not complete.
    fn awaits_response(&self) -> bool {
        let state = self.exchange.state();
        matches!(state, State::Uploading(_) | State::Awaiting | State::Responding { .. })
    }

    /// Sends the gathered output, ranges of `input`, to the client.
    pub(super) fn send_to_client(
        &mut self,
        input: &[u8],
        state: &mut LoopState,
        now: Instant,
    ) -> Result<(), Closed> {
        if state.outgoing.is_empty() {
            return Ok(());
        }
        self.write_pieces(input, state).map_err(|_| self.abort("client_closed", state, now))
    }

    pub(super) fn write_pieces(&mut self, input: &[u8], state: &mut LoopState) -> io::Result<()> {
        if let [segment] = state.outgoing.segments() {
            let bytes = state.outgoing.bytes(*segment, input);
            return send(&mut self.socket, &mut self.output, bytes);
        }
        let mut slices = [IoSlice::new(&[]); limits::GATHER_SEGMENTS];
        let count = fill(&mut slices, &state.outgoing, input);
        let slices = &mut slices[..count];
        let sent = if self.output.is_empty() { self.socket.write_vectored(slices) } else { Ok(0) };
        sent.map(|sent| keep_rest(slices, sent, &mut self.output))
    }
}
