//! What the client sends: the request side of an exchange.

use super::{Continue, Exchange, RequestSide, RequestStep, ResponseSide, add_data};
use crate::http1::chunked::ChunkFault;
use crate::http1::framing::{Body, Framing};
use crate::http1::head::{self, Seen};
use crate::http1::limits;
use crate::http1::pieces::Pieces;
use crate::http1::refusal::Reject;
use crate::http1::request::{self, Access, Request};
use crate::http1::target::Route;

impl Exchange {
    /// Reads downstream bytes: all that are there and have not been used. Returns how many are used
    /// up now. `out` must be empty and is filled with runs of `input`.
    pub fn downstream(
        &mut self,
        input: &[u8],
        access: &Access<'_>,
        out: &mut Pieces,
    ) -> (usize, RequestStep) {
        match &mut self.request {
            RequestSide::Head | RequestSide::Waiting(_) => self.request_head(input, access, out),
            RequestSide::Body(_) => self.request_body(input, 0, out),
            RequestSide::Drop(left) => {
                let dropped = input.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= dropped as u64;
                if *left == 0 {
                    self.request = RequestSide::Complete;
                    return (dropped, RequestStep::Done);
                }
                (dropped, RequestStep::More)
            }
            RequestSide::Discard => (input.len(), RequestStep::More),
            RequestSide::Complete => (0, RequestStep::Done),
        }
    }

    fn request_head(
        &mut self,
        input: &[u8],
        access: &Access<'_>,
        out: &mut Pieces,
    ) -> (usize, RequestStep) {
        let policy = self.policy;
        let mut seen = self.request_seen;
        let head =
            head::request(input, &mut seen, |head| request::judge(&head, policy, access, out));
        let request = match head {
            Ok(None) => {
                self.request_seen = seen;
                return (0, RequestStep::More);
            }
            Ok(Some(request)) => request,
            Err(reject) => {
                self.is_head = input.strip_prefix(b"\r\n").unwrap_or(input).starts_with(b"HEAD ");
                self.refuse(reject, out);
                return (input.len(), RequestStep::Downstream);
            }
        };
        self.http10 = request.http10;
        self.is_head = request.is_head;
        self.close |= request.close;
        self.route = request.verdict.ok();
        self.refused_route = request.refused_route;
        match request.verdict {
            Ok(Route::Responses) if access.upstream_ready => {
                self.accept(&request);
                self.request_body(input, request.len, out)
            }
            Ok(Route::Responses) => {
                out.clear();
                // Asked again, the same head is parsed again from its beginning.
                self.request = RequestSide::Waiting(request);
                self.request_seen = Seen::default();
                (0, RequestStep::Connect)
            }
            Ok(_) => {
                self.leave_body(&request);
                self.close = true;
                self.status = Some(200);
                self.response = ResponseSide::Complete;
                out.text(b"HTTP/1.1 200 OK\r\n");
                out.date();
                out.text(b"Connection: close\r\nContent-Length: 0\r\n\r\n");
                (request.len, RequestStep::Shutdown)
            }
            Err(reject) => {
                self.leave_body(&request);
                self.close |= !reject.keeps_framing();
                self.answer(&reject.canned(), out);
                (request.len, RequestStep::Downstream)
            }
        }
    }

    fn accept(&mut self, request: &Request) {
        self.chunked = request.framing == Framing::Chunked;
        let body = Body::new(request.framing);
        self.request = if body.is_end() { RequestSide::Complete } else { RequestSide::Body(body) };
        self.response = ResponseSide::Head;
        if request.expects_continue {
            self.expectation = Continue::Owed;
        }
    }

    /// What becomes of a body that nobody will read: a short one is dropped and the connection
    /// stays, else the connection ends. A client that waits for 100 may never send it, which leaves
    /// the next byte without a meaning.
    pub(super) fn leave_body(&mut self, request: &Request) {
        let body = Body::new(request.framing);
        self.drop_body(&body, request.expects_continue);
    }

    pub(super) fn drop_body(&mut self, body: &Body, unsure: bool) {
        self.request = match body {
            Body::End => RequestSide::Complete,
            Body::Length(left) if *left <= limits::DROP && !unsure => RequestSide::Drop(*left),
            _ => RequestSide::Discard,
        };
        self.close |= matches!(self.request, RequestSide::Discard);
    }

    fn request_body(
        &mut self,
        input: &[u8],
        mut at: usize,
        out: &mut Pieces,
    ) -> (usize, RequestStep) {
        let RequestSide::Body(body) = &mut self.request else {
            return (at, RequestStep::Upstream);
        };
        while !out.is_full() {
            let step = match body.step(&input[at..]) {
                Ok(step) => step,
                Err(ChunkFault) => {
                    out.clear();
                    if self.may_answer() {
                        self.refuse(Reject::InvalidChunk, out);
                        return (input.len(), RequestStep::Downstream);
                    }
                    self.request = RequestSide::Discard;
                    self.close = true;
                    return (input.len(), RequestStep::Broken);
                }
            };
            at += step.framing;
            if step.data > 0 {
                // A client that sends does not wait (RFC 9110 §10.1.1).
                if self.expectation == Continue::Owed {
                    self.expectation = Continue::NotExpected;
                }
                self.bytes_in += step.data as u64;
                add_data(input, at, step.data, self.chunked, out);
                at += step.data;
            }
            if step.end {
                if self.chunked {
                    out.text(b"0\r\n\r\n");
                }
                self.request = RequestSide::Complete;
                break;
            }
            if at == input.len() {
                break;
            }
        }
        let step = if out.is_empty() { RequestStep::More } else { RequestStep::Upstream };
        (at, step)
    }
}
