//! Bytes from the client.

use super::{BodyProgress, Continue, Exchange, RequestStep, Rest, State, Transfer};
use crate::http1::chunked::ChunkFault;
use crate::http1::framing::Coding;
use crate::http1::gather::GatherList;
use crate::http1::head::{self, ScanProgress};
use crate::http1::local_response::Reject;
use crate::http1::request::{self, RequestContext};
use crate::http1::target::Route;

impl Exchange {
    /// Takes bytes from the client. `input` is everything that has arrived and is not consumed.
    /// Returns the number of bytes that are consumed now. `out` must be empty; it is filled with
    /// ranges of `input`.
    pub fn receive_request(
        &mut self,
        input: &[u8],
        context: &RequestContext<'_>,
        out: &mut GatherList,
    ) -> (usize, RequestStep) {
        match &mut self.state {
            State::Idle | State::Waiting(_) => self.request_head(input, context, out),
            State::Uploading(body) => {
                let body = body.clone();
                self.upload(body, input, 0, out)
            }
            State::Awaiting => (0, RequestStep::Idle),
            State::Responding { rest, .. } | State::Complete { rest } => {
                let before = self.bytes_in;
                let (used, step) = rest.receive(input, &mut self.bytes_in, out);
                self.is_last |= step == RequestStep::Broken;
                if self.bytes_in > before {
                    self.client_sends();
                }
                (used, step)
            }
        }
    }

    fn request_head(
        &mut self,
        input: &[u8],
        context: &RequestContext<'_>,
        out: &mut GatherList,
    ) -> (usize, RequestStep) {
        let policy = self.policy;
        let mut progress = self.request_progress;
        let head =
            head::request(input, &mut progress, |head| request::judge(&head, policy, context, out));
        let request = match head {
            Ok(None) => {
                self.request_progress = progress;
                return (0, RequestStep::NeedMore);
            }
            Ok(Some(request)) => request,
            Err(reject) => {
                self.is_head = input.strip_prefix(b"\r\n").unwrap_or(input).starts_with(b"HEAD ");
                out.clear();
                self.respond(&reject.response(), Rest::Discard, out);
                return (input.len(), RequestStep::Respond);
            }
        };
        self.http10 = request.http10;
        self.is_head = request.is_head;
        self.is_last |= request.close;
        self.route = request.verdict.ok();
        self.refused_route = request.refused_route;
        match request.verdict {
            Ok(Route::Responses) if context.upstream_ready => {
                if request.expects_continue {
                    self.expectation = Continue::Owed;
                }
                // An HTTP/1.1 upstream understands chunks, whatever the client speaks.
                let coding = Coding::of(request.framing, false);
                match Transfer::new(request.framing, coding) {
                    Some(body) => self.upload(body, input, request.len, out),
                    None => {
                        self.state = State::Awaiting;
                        (request.len, RequestStep::Forward)
                    }
                }
            }
            Ok(Route::Responses) => {
                out.clear();
                // The next call parses the same head again from its beginning.
                self.state = State::Waiting(request);
                self.request_progress = ScanProgress::default();
                (0, RequestStep::NeedUpstream)
            }
            Ok(_) => {
                self.is_last = true;
                self.status = Some(200);
                self.state = State::Complete { rest: request.unread_body() };
                out.text(b"HTTP/1.1 200 OK\r\n");
                out.date();
                out.text(b"Connection: close\r\nContent-Length: 0\r\n\r\n");
                (request.len, RequestStep::RespondAndShutDown)
            }
            Err(reject) => {
                self.is_last |= !reject.keeps_framing();
                self.respond(&reject.response(), request.unread_body(), out);
                (request.len, RequestStep::Respond)
            }
        }
    }

    /// Forwards a body from `at` on. No final response has begun.
    fn upload(
        &mut self,
        mut body: Transfer,
        input: &[u8],
        mut at: usize,
        out: &mut GatherList,
    ) -> (usize, RequestStep) {
        let before = self.bytes_in;
        let progress = body.forward(input, &mut at, &mut self.bytes_in, out, no_inspection);
        if self.bytes_in > before {
            self.client_sends();
        }
        self.state = match progress {
            Ok(BodyProgress::Continues) => State::Uploading(body),
            Ok(BodyProgress::Ended) => State::Awaiting,
            Err(ChunkFault) => {
                out.clear();
                self.respond(&Reject::InvalidChunk.response(), Rest::Discard, out);
                return (input.len(), RequestStep::Respond);
            }
        };
        (at, if out.is_empty() { RequestStep::NeedMore } else { RequestStep::Forward })
    }

    /// A client that sends its body does not wait for a 100 (RFC 9110 §10.1.1).
    fn client_sends(&mut self) {
        if self.expectation == Continue::Owed {
            self.expectation = Continue::NotExpected;
        }
    }
}

impl Rest {
    /// Takes bytes from a client whose response has begun.
    fn receive(
        &mut self,
        input: &[u8],
        forwarded: &mut u64,
        out: &mut GatherList,
    ) -> (usize, RequestStep) {
        match self {
            Rest::None => (0, RequestStep::Idle),
            Rest::Upload(body) => {
                let mut at = 0;
                match body.forward(input, &mut at, forwarded, out, no_inspection) {
                    Ok(BodyProgress::Continues) => {}
                    Ok(BodyProgress::Ended) => *self = Rest::None,
                    Err(ChunkFault) => {
                        out.clear();
                        *self = Rest::Discard;
                        return (input.len(), RequestStep::Broken);
                    }
                }
                (at, if out.is_empty() { RequestStep::NeedMore } else { RequestStep::Forward })
            }
            Rest::Drop(left) => {
                let dropped = input.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= dropped as u64;
                if *left == 0 {
                    *self = Rest::None;
                    return (dropped, RequestStep::Idle);
                }
                (dropped, RequestStep::NeedMore)
            }
            Rest::Discard => (input.len(), RequestStep::NeedMore),
        }
    }
}

/// A request body is not inspected: the client chooses it, and only the upstream gets it.
fn no_inspection(_: &[u8]) -> Result<(), ChunkFault> {
    Ok(())
}
