//! Moves the response to the client, and sends local responses to refusals and faults.

use std::io::{self, IoSlice};

use super::{Buffers, Closed, End, LoopState, Progress, ResponseStart, Session, Turn};
use crate::http1::exchange::{FaultOutcome, ResponseStep, Rest, State};
use crate::http1::limits;
use crate::http1::local_response::{Reject, UpstreamFault};
use crate::net::buffer::{Backlog, TlsScratch};
use crate::net::gather_io::{fill, keep_rest, send};
use crate::net::limits::UPSTREAM_READ;
use crate::net::slots::{DeadlineSlot, Side, SlotId};
use crate::net::upstream::StreamEnd;

impl Session {
    /// Reads from the upstream once, unless earlier bytes still wait for the client. While the
    /// request waits for its connection, advances that connection.
    pub(super) fn pump_response(
        &mut self,
        turn: &mut Turn<'_>,
        buffers: &mut Buffers,
    ) -> Result<Progress, Closed> {
        let scratch = &mut buffers.upstream;
        let Some(id) = self.upstream else {
            return Ok(Progress::Waiting);
        };
        let awaits_head = match self.exchange.state() {
            State::Waiting(_) => {
                if let Err(fault) = self.advance_upstream(turn, scratch) {
                    self.consume_and_respond_to_fault(fault, turn)?;
                }
                return Ok(Progress::Waiting);
            }
            State::Complete { rest: Rest::Upload(_) } => {
                return Ok(self.watch_upload(id, turn, scratch));
            }
            State::Idle | State::Complete { .. } => return Ok(Progress::Waiting),
            State::Uploading(_) | State::Awaiting => true,
            State::Responding { .. } => false,
        };
        if !self.output.is_empty() {
            return Ok(Progress::Waiting);
        }
        let Some(up) = turn.state.upstreams.connection(id).filter(|up| up.has_news()) else {
            return Ok(Progress::Waiting);
        };
        let is_early = awaits_head && (self.exchange.state().is_uploading() || !up.is_drained());
        let end = up.read(scratch, UPSTREAM_READ);
        let read = scratch.plaintext_in.bytes();
        turn.bytes_read += read.len();
        if read.is_empty() && end == StreamEnd::NotYet {
            return Ok(Progress::Moved);
        }
        if is_early {
            self.response_start = ResponseStart::DuringRequest;
        }
        if self.response_head.is_empty() {
            let used = self.response_bytes(read, end, turn)?;
            self.response_head.push(&read[used..]);
        } else {
            self.response_head.push(read);
            let bytes = self.response_head.take();
            let used = self.response_bytes(&bytes, end, turn)?;
            self.response_head.put_back(bytes, used);
        }
        match self.exchange.state() {
            // The final head is still awaited: neither an interim response nor a part of a head
            // resets the clock. After an interim response, the final head has not begun.
            State::Uploading(_) | State::Awaiting => {
                if self.response_head.is_empty() {
                    self.response_start = ResponseStart::AfterRequest;
                }
            }
            State::Idle | State::Waiting(_) | State::Responding { .. } | State::Complete { .. } => {
                self.clocks.upstream_acted(turn.now)
            }
        }
        Ok(Progress::Moved)
    }

    /// Watches the upstream while the rest of a request is uploaded after its response. An upstream
    /// that ends the connection, or sends more bytes, reads no more of the request: the upload
    /// stops.
    fn watch_upload(
        &mut self,
        id: SlotId,
        turn: &mut Turn<'_>,
        scratch: &mut TlsScratch,
    ) -> Progress {
        let Some(up) = turn.state.upstreams.connection(id).filter(|up| up.has_news()) else {
            return Progress::Waiting;
        };
        let end = up.read(scratch, UPSTREAM_READ);
        turn.bytes_read += scratch.plaintext_in.bytes().len();
        if end != StreamEnd::NotYet || !scratch.plaintext_in.bytes().is_empty() {
            self.stop_upload(turn.state);
        }
        Progress::Moved
    }

    /// Gives bytes from the upstream to the exchange and sends its output. Returns the number of
    /// consumed bytes. The remaining bytes are the beginning of a head.
    fn response_bytes(
        &mut self,
        bytes: &[u8],
        end: StreamEnd,
        turn: &mut Turn<'_>,
    ) -> Result<usize, Closed> {
        let mut at = 0;
        while at < bytes.len() && self.awaits_response() {
            let state = &mut *turn.state;
            state.outgoing.clear();
            let (keys, search) = (&mut state.keys, &mut self.search);
            let mut is_reflected = |segment: &[u8]| keys.reflected(search, segment);
            let (used, step) = self.exchange.receive_response(
                &bytes[at..],
                &mut state.outgoing,
                &mut is_reflected,
            );
            if let ResponseStep::Fault(fault) = step {
                return self.consume_and_respond_to_fault(fault, turn).map(|()| bytes.len());
            }
            self.times.first_byte = self.times.first_byte.or(Some(turn.now));
            self.send_to_client(&bytes[at..], turn)?;
            if used == 0 {
                break;
            }
            at += used;
        }
        if self.awaits_response() {
            return match end {
                StreamEnd::NotYet => Ok(at),
                StreamEnd::Orderly | StreamEnd::CutOff | StreamEnd::Refused(_) => {
                    self.response_ended(end, turn).map(|()| bytes.len())
                }
            };
        }
        // Bytes after the end of a response belong to no request.
        let is_exact = at == bytes.len() && end == StreamEnd::NotYet;
        if self.exchange.state().is_uploading() {
            if !is_exact {
                self.stop_upload(turn.state);
            }
        } else if is_exact {
            self.pool_upstream(turn);
        } else {
            self.close_upstream(turn.state);
        }
        Ok(bytes.len())
    }

    /// The upstream has ended the connection, inside the response or to mark its end.
    fn response_ended(&mut self, end: StreamEnd, turn: &mut Turn<'_>) -> Result<(), Closed> {
        if let StreamEnd::Refused(fault) = end {
            return self.consume_and_respond_to_fault(fault, turn);
        }
        turn.state.outgoing.clear();
        match self.exchange.receive_end(end == StreamEnd::Orderly, &mut turn.state.outgoing) {
            ResponseStep::Fault(fault) => self.consume_and_respond_to_fault(fault, turn),
            ResponseStep::Forward => {
                if let Some(id) = self.upstream.take() {
                    turn.state.upstreams.remove(id);
                }
                self.send_to_client(&[], turn)
            }
        }
    }

    /// Puts the upstream connection into the pool if it can carry another exchange; otherwise
    /// closes it.
    fn pool_upstream(&mut self, turn: &mut Turn<'_>) {
        let is_reusable = self.exchange.is_upstream_reusable()
            && self.response_start == ResponseStart::AfterRequest;
        let state = &mut *turn.state;
        if is_reusable
            && let Some(id) = self.upstream
            && let Some(up) = state.upstreams.connection(id)
            && up.is_drained()
            && up.is_between_records()
        {
            self.upstream = None;
            if let Some(when) = state.pool.put(id, &mut state.upstreams, turn.now) {
                state.deadlines.set(DeadlineSlot::new(id, Side::Upstream), when);
            }
        } else {
            self.close_upstream(state);
        }
    }

    /// Closes the upstream connection after a response.
    fn close_upstream(&mut self, state: &mut LoopState) {
        let Some(id) = self.upstream.take() else {
            return;
        };
        // The upstream may still wait for the rest of the request, which is not sent.
        if !matches!(self.exchange.state(), State::Complete { rest: Rest::None })
            && let Some(up) = state.upstreams.get(id)
        {
            up.cancel();
        }
        state.upstreams.remove(id);
    }

    /// The request has begun to go upstream, and its response is not complete.
    pub(super) fn awaits_response(&self) -> bool {
        match self.exchange.state() {
            State::Uploading(_) | State::Awaiting | State::Responding { .. } => true,
            State::Idle | State::Waiting(_) | State::Complete { .. } => false,
        }
    }

    /// Calls [`Session::respond_to_fault`] and consumes the input. Not for a caller that has taken
    /// the input out of the session.
    pub(super) fn consume_and_respond_to_fault(
        &mut self,
        fault: UpstreamFault,
        turn: &mut Turn<'_>,
    ) -> Result<(), Closed> {
        let used = self.respond_to_fault(fault, turn)?;
        self.input.consume(used);
        Ok(())
    }

    /// Sends the local response to a fault of the upstream. If a response has begun, resets the
    /// client's connection instead. Returns the number of consumed bytes of client input.
    pub(super) fn respond_to_fault(
        &mut self,
        fault: UpstreamFault,
        turn: &mut Turn<'_>,
    ) -> Result<usize, Closed> {
        turn.state.outgoing.clear();
        match self.exchange.fault(fault, &mut turn.state.outgoing) {
            FaultOutcome::Responded { used } => {
                self.release_upstream(turn.state);
                self.response_head = Backlog::default();
                self.clocks.client_acted(turn.now);
                self.send_to_client(&[], turn)?;
                Ok(used)
            }
            FaultOutcome::MustReset => {
                let end = match fault {
                    UpstreamFault::Closed => End::UpstreamTruncated,
                    fault => End::Failed(fault.response().code),
                };
                Err(self.abort(end, turn))
            }
        }
    }

    /// Refuses the request. If a response has begun, resets the client's connection instead.
    pub(super) fn refuse(&mut self, reject: Reject, turn: &mut Turn<'_>) -> Result<(), Closed> {
        turn.state.outgoing.clear();
        match self.exchange.refuse(reject, &mut turn.state.outgoing) {
            FaultOutcome::Responded { .. } => {
                self.release_upstream(turn.state);
                // The write fails only if the client has left.
                let _ = self.write_output(&[], turn.state);
                Ok(())
            }
            FaultOutcome::MustReset => Err(self.abort(End::Failed(reject.response().code), turn)),
        }
    }

    /// Sends the gathered output to the client. Its segments may be ranges of `input`.
    pub(super) fn send_to_client(
        &mut self,
        input: &[u8],
        turn: &mut Turn<'_>,
    ) -> Result<(), Closed> {
        if turn.state.outgoing.is_empty() {
            return Ok(());
        }
        self.clocks.client_took(turn.now);
        self.write_output(input, turn.state).map_err(|_| self.abort(End::ClientClosed, turn))
    }

    /// Writes the gathered output to the client's socket, and keeps the bytes that do not fit.
    fn write_output(&mut self, input: &[u8], state: &LoopState) -> io::Result<()> {
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::net::loop_state::testing::arrives;
    use crate::net::session::testing::{HEAD, REQUEST, RESPONSE, Served};

    /// Whether the upstream connection is in the pool after this exchange.
    fn is_pooled(request: &str, response: &str) -> bool {
        let (mut served, mut upstream) = Served::asked(request);
        upstream.read_until("\r\n\r\n");
        upstream.send(response);
        served.until(|session| session.served || session.is_lingering());
        let text = served.client.read_until("fine");
        assert!(text.contains("HTTP/1.1 200 "), "{text}");
        !served.net.state.pool.is_empty()
    }

    #[test]
    fn an_upstream_connection_is_kept_behind_a_response_that_ends_exactly_and_says_nothing_else() {
        let but = |from: &str, to: &str| RESPONSE.replace(from, to);
        let whole_body = HEAD.to_owned() + "0123456789";
        assert!(is_pooled(REQUEST, RESPONSE));
        assert!(is_pooled(&whole_body, RESPONSE));
        assert!(is_pooled(REQUEST, &("HTTP/1.1 103 Early Hints\r\n\r\n".to_owned() + RESPONSE)));
        for response in [
            but("Content", "Connection: close\r\nContent"),
            but("HTTP/1.1", "HTTP/1.0"),
            but("fine", "fine\r\n"),
            but("fine", "fineHTTP/1.1 200 OK\r\n"),
        ] {
            assert!(!is_pooled(REQUEST, &response), "{response}");
        }
    }

    #[test]
    fn an_upstream_connection_is_not_kept_if_the_response_began_before_the_request_had_ended() {
        let (mut served, mut upstream) = Served::asked(HEAD);
        upstream.read_until("\r\n\r\n");
        upstream.send(RESPONSE);
        served.until(|session| matches!(session.exchange.state(), State::Complete { .. }));
        served.client.read_until("fine");
        served.client.send("0123456789");
        served.until(|session| session.served);
        upstream.read_until("0123456789");
        assert!(served.net.state.pool.is_empty() && served.net.state.upstreams.is_empty());
    }

    #[test]
    fn a_head_that_begins_before_the_end_of_the_request_counts_as_early_to_its_end() {
        let (mut served, mut upstream) = Served::asked(HEAD);
        upstream.read_until("\r\n\r\n");
        let (first, rest) = RESPONSE.split_at(10);
        upstream.send(first);
        served.until(|session| !session.response_head.is_empty());
        served.client.send("0123456789");
        served.until(|session| !session.exchange.state().is_uploading());
        upstream.send(rest);
        served.until(|session| session.served);
        assert!(served.net.state.pool.is_empty());
    }

    #[test]
    fn a_response_that_breaks_off_resets_the_client_and_one_that_never_began_is_502() {
        for (response, has_begun) in [
            ("", false),
            ("HTTP/1.1 200 OK\r\n", false),
            ("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfin", true),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nfine\r\n", true),
        ] {
            let (mut served, mut upstream) = Served::asked(REQUEST);
            upstream.read_until("\r\n\r\n");
            upstream.send(response);
            upstream.0.shutdown(std::net::Shutdown::Write).unwrap();
            if has_begun {
                let (_, mut client) = served.until_closed();
                assert_eq!(client.rest(), None, "{response}");
            } else {
                served.until(|session| session.served);
                served.client.read_until("\"upstream_closed\"}}");
                assert!(!served.session.exchange.is_last(), "the connection stays");
            }
        }
    }

    #[test]
    fn the_upstream_is_read_only_while_the_client_takes_what_came() {
        let (mut served, mut upstream) = Served::asked(REQUEST);
        upstream.read_until("\r\n\r\n");
        let filled = served.fill_client();
        upstream.send("HTTP/1.1 200 OK\r\nContent-Length: 9999999\r\n\r\n");
        served.until(|session| !session.output.is_empty());
        let waiting = served.session.output.bytes().len();
        upstream.send([b'x'; 100_000]);
        arrives(&mut served.net.state.upstreams, served.session.upstream.unwrap());
        served.net.events(Duration::ZERO, Some(&mut served.session.socket));
        for _ in 0..10 {
            served.turn();
        }
        assert_eq!(served.session.output.bytes().len(), waiting);
        served.drain_client(filled);
        served.until(|session| session.exchange.bytes_out == 100_000);
    }

    #[test]
    fn a_response_with_the_key_is_cut_off_before_the_key_is_whole() {
        const KEY: &str = "sk-0123456789abcdef";
        let (mut served, mut upstream) = Served::asked(REQUEST);
        upstream.read_until("\r\n\r\n");
        upstream.send("HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n");
        upstream.send(&KEY[..5]);
        served.until(|session| session.exchange.bytes_out == 5);
        upstream.send(&KEY[5..]);
        let (_, mut client) = served.until_closed();
        let (mut seen, mut buffer) = (Vec::<u8>::new(), [0; 4096]);
        while let Ok(n @ 1..) = std::io::Read::read(&mut client.0, &mut buffer) {
            seen.extend(&buffer[..n]);
        }
        assert!(!seen.windows(KEY.len()).any(|window| window == KEY.as_bytes()));
    }
}
