//! From the upstream to the client.

use std::io::{self, IoSlice};
use std::time::Instant;

use super::{Over, Progress, Relay, ResponseStart, Shared, WIRE};
use crate::http1::exchange::{Answer, ResponseStep, Rest, State};
use crate::http1::limits;
use crate::http1::local_response::Reject;
use crate::http1::local_response::UpstreamFault;
use crate::net::buffer::{Backlog, Scratch};
use crate::net::event_loop::place;
use crate::net::gather_io::{fill, keep_rest, send};
use crate::net::slots::{Key, Side};
use crate::net::upstream::Flow;

impl Relay {
    /// From the upstream to the client.
    pub(super) fn pump_response(
        &mut self,
        shared: &mut Shared,
        now: Instant,
    ) -> Result<Progress, Over> {
        let Some(key) = self.upstream else {
            return Ok(Progress::Waiting);
        };
        let awaits_head = match self.exchange.state() {
            State::Waiting(_) => {
                if let Err(fault) = self.advance(shared, now) {
                    self.fault(fault, shared, now)?;
                }
                return Ok(Progress::Waiting);
            }
            State::Complete { rest: Rest::Upload(_) } => return Ok(self.watch_upload(key, shared)),
            State::Idle | State::Complete { .. } => return Ok(Progress::Waiting),
            State::Uploading(_) | State::Awaiting => true,
            State::Responding { .. } => false,
        };
        if !self.output.is_empty() {
            return Ok(Progress::Waiting);
        }
        let Some(up) = shared.ups.get(key) else {
            return Ok(Progress::Waiting);
        };
        if !up.has_news() {
            return Ok(Progress::Waiting);
        }
        let is_early = awaits_head && (self.exchange.state().is_uploading() || !up.is_drained());
        let flow = up.read(&mut shared.space, WIRE);
        shared.moved += shared.space.plain.bytes().len();
        if shared.space.plain.bytes().is_empty() && flow == Flow::Open {
            return Ok(Progress::Moved);
        }
        if is_early {
            self.response_start = ResponseStart::DuringRequest;
        }
        let plain = std::mem::replace(&mut shared.space.plain, Scratch::new(0));
        let result = if self.head.is_empty() {
            let used = self.response_bytes(plain.bytes(), flow, shared, now);
            used.map(|used| self.head.push(&plain.bytes()[used..]))
        } else {
            self.head.push(plain.bytes());
            let bytes = self.head.take();
            let used = self.response_bytes(&bytes, flow, shared, now);
            used.map(|used| self.head.put_back(bytes, used))
        };
        shared.space.plain = plain;
        // A final head is what is waited for: interim answers and pieces of a head are not it.
        match self.exchange.state() {
            State::Uploading(_) | State::Awaiting => {
                if self.head.is_empty() {
                    self.response_start = ResponseStart::AfterRequest;
                }
            }
            _ => self.heard = now,
        }
        result.map(|()| Progress::Moved)
    }

    /// While the rest of a request goes up behind its response: an upstream that ends, or that says
    /// more, wants no more.
    fn watch_upload(&mut self, key: Key, shared: &mut Shared) -> Progress {
        let Some(up) = shared.ups.get(key).filter(|up| up.has_news()) else {
            return Progress::Waiting;
        };
        let flow = up.read(&mut shared.space, WIRE);
        shared.moved += shared.space.plain.bytes().len();
        if flow != Flow::Open || !shared.space.plain.bytes().is_empty() {
            self.stop_upload(shared);
        }
        Progress::Moved
    }

    /// Shows bytes to the exchange and sends on what it says. Returns from where on they are kept:
    /// the beginning of a head.
    pub(super) fn response_bytes(
        &mut self,
        bytes: &[u8],
        flow: Flow,
        shared: &mut Shared,
        now: Instant,
    ) -> Result<usize, Over> {
        let mut at = 0;
        while at < bytes.len() && self.awaits_response() {
            shared.outgoing.clear();
            let (credential, search) = (&mut shared.credential, &mut self.search);
            let (used, step) =
                self.exchange.receive_response(&bytes[at..], &mut shared.outgoing, &mut |piece| {
                    credential.reflected(search, piece)
                });
            if let ResponseStep::Fault(fault) = step {
                return self.fault(fault, shared, now).map(|()| bytes.len());
            }
            self.times.first_byte = self.times.first_byte.or(Some(now));
            self.send_downstream(&bytes[at..], shared, now)?;
            if used == 0 {
                break;
            }
            at += used;
        }
        if self.awaits_response() {
            if let Flow::Refused(fault) = flow {
                return self.fault(fault, shared, now).map(|()| bytes.len());
            }
            if flow != Flow::Open {
                shared.outgoing.clear();
                let clean = flow == Flow::Ended;
                let ended = match self.exchange.receive_end(clean, &mut shared.outgoing) {
                    ResponseStep::Fault(fault) => self.fault(fault, shared, now),
                    ResponseStep::Forward => {
                        if let Some(key) = self.upstream.take() {
                            shared.ups.remove(key);
                        }
                        self.send_downstream(&[], shared, now)
                    }
                };
                return ended.map(|()| bytes.len());
            }
            return Ok(at);
        }
        if self.exchange.state().is_uploading() {
            if at < bytes.len() || flow != Flow::Open {
                self.stop_upload(shared);
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
            || shared.ups.get(key).is_none_or(|up| !up.is_drained() || !up.is_between_records())
        {
            // The upstream may still wait for the rest of the request, which is not sent.
            if !matches!(self.exchange.state(), State::Complete { rest: Rest::None })
                && let Some(up) = shared.ups.get(key)
            {
                up.cancel();
            }
            shared.ups.remove(key);
        } else if let Some(when) = shared.pool.put(key, &mut shared.ups, now) {
            shared.deadlines.set(place(key, Side::Upstream), when);
        }
        Ok(bytes.len())
    }

    /// No usable response comes from the upstream: see [`Relay::answer_fault`].
    pub(super) fn fault(
        &mut self,
        fault: UpstreamFault,
        shared: &mut Shared,
        now: Instant,
    ) -> Result<(), Over> {
        let used = self.answer_fault(fault, shared, now)?;
        self.input.consume(used);
        Ok(())
    }

    /// Answers for an upstream that gives no usable response, or resets the client's connection if
    /// a response has begun. Returns the bytes of client input that are used up.
    pub(super) fn answer_fault(
        &mut self,
        fault: UpstreamFault,
        shared: &mut Shared,
        now: Instant,
    ) -> Result<usize, Over> {
        shared.outgoing.clear();
        match self.exchange.fault(fault, &mut shared.outgoing) {
            Answer::Answered { used } => {
                self.release(shared);
                self.head = Backlog::default();
                self.stall = now;
                self.send_downstream(&[], shared, now)?;
                Ok(used)
            }
            Answer::MustReset => {
                let end = match fault {
                    UpstreamFault::Closed => "upstream_truncated",
                    fault => fault.response().code,
                };
                Err(self.abort(end, shared, now))
            }
        }
    }

    /// Refuses the request, or resets the client's connection if a response has begun.
    pub(super) fn refuse(
        &mut self,
        reject: Reject,
        shared: &mut Shared,
        now: Instant,
    ) -> Result<(), Over> {
        shared.outgoing.clear();
        match self.exchange.refuse(reject, &mut shared.outgoing) {
            Answer::Answered { .. } => {
                self.release(shared);
                let _ = self.write_pieces(&[], shared);
                Ok(())
            }
            Answer::MustReset => Err(self.abort(reject.response().code, shared, now)),
        }
    }

    /// The request has begun to go upstream, and its response is not complete.
    fn awaits_response(&self) -> bool {
        let state = self.exchange.state();
        matches!(state, State::Uploading(_) | State::Awaiting | State::Responding { .. })
    }

    /// Sends the gathered output, ranges of `input`, to the client.
    pub(super) fn send_downstream(
        &mut self,
        input: &[u8],
        shared: &mut Shared,
        now: Instant,
    ) -> Result<(), Over> {
        if shared.outgoing.is_empty() {
            return Ok(());
        }
        self.write_pieces(input, shared).map_err(|_| self.abort("client_closed", shared, now))
    }

    pub(super) fn write_pieces(&mut self, input: &[u8], shared: &mut Shared) -> io::Result<()> {
        if let [segment] = shared.outgoing.segments() {
            let bytes = shared.outgoing.bytes(*segment, input);
            return send(&mut self.socket, &mut self.output, bytes);
        }
        let mut slices = [IoSlice::new(&[]); limits::GATHER_SEGMENTS];
        let count = fill(&mut slices, &shared.outgoing, input);
        let slices = &mut slices[..count];
        let sent = if self.output.is_empty() { self.socket.write_vectored(slices) } else { Ok(0) };
        sent.map(|sent| keep_rest(slices, sent, &mut self.output))
    }
}
