//! What the client sends: the request side of an exchange.

use super::{Continue, Exchange, RequestSide, RequestStep, ResponseSide, add_data};
use crate::http1::chunked::ChunkFault;
use crate::http1::framing::{Body, Framing};
use crate::http1::gather::GatherList;
use crate::http1::head::{self, ScanProgress};
use crate::http1::limits;
use crate::http1::local_response::Reject;
use crate::http1::request::{self, Request, RequestContext};
use crate::http1::target::Route;

impl Exchange {
    /// Reads downstream bytes: all that are there and have not been used. Returns how many are used
    /// up now. `out` must be empty and is filled with runs of `input`.
    pub fn receive_request(
        &mut self,
        input: &[u8],
        context: &RequestContext<'_>,
        out: &mut GatherList,
    ) -> (usize, RequestStep) {
        match &mut self.request {
            RequestSide::Head | RequestSide::Waiting(_) => self.request_head(input, context, out),
            RequestSide::Body(_) => self.request_body(input, 0, out),
            RequestSide::Drop(left) => {
                let dropped = input.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= dropped as u64;
                if *left == 0 {
                    self.request = RequestSide::Complete;
                    return (dropped, RequestStep::Idle);
                }
                (dropped, RequestStep::NeedMore)
            }
            RequestSide::Discard => (input.len(), RequestStep::NeedMore),
            RequestSide::Complete => (0, RequestStep::Idle),
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
                self.refuse(reject, out);
                return (input.len(), RequestStep::Respond);
            }
        };
        self.http10 = request.http10;
        self.is_head = request.is_head;
        self.close |= request.close;
        self.route = request.verdict.ok();
        self.refused_route = request.refused_route;
        match request.verdict {
            Ok(Route::Responses) if context.upstream_ready => {
                self.accept(&request);
                self.request_body(input, request.len, out)
            }
            Ok(Route::Responses) => {
                out.clear();
                // Asked again, the same head is parsed again from its beginning.
                self.request = RequestSide::Waiting(request);
                self.request_progress = ScanProgress::default();
                (0, RequestStep::NeedUpstream)
            }
            Ok(_) => {
                self.leave_body(&request);
                self.close = true;
                self.status = Some(200);
                self.response = ResponseSide::Complete;
                out.text(b"HTTP/1.1 200 OK\r\n");
                out.date();
                out.text(b"Connection: close\r\nContent-Length: 0\r\n\r\n");
                (request.len, RequestStep::RespondAndShutDown)
            }
            Err(reject) => {
                self.leave_body(&request);
                self.close |= !reject.keeps_framing();
                self.answer(&reject.response(), out);
                (request.len, RequestStep::Respond)
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
        out: &mut GatherList,
    ) -> (usize, RequestStep) {
        let RequestSide::Body(body) = &mut self.request else {
            return (at, RequestStep::Forward);
        };
        while !out.is_full() {
            let step = match body.step(&input[at..]) {
                Ok(step) => step,
                Err(ChunkFault) => {
                    out.clear();
                    if self.may_answer() {
                        self.refuse(Reject::InvalidChunk, out);
                        return (input.len(), RequestStep::Respond);
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
        let step = if out.is_empty() { RequestStep::NeedMore } else { RequestStep::Forward };
        (at, step)
    }
}
