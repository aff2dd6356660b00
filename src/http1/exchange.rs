//! One exchange after another on a downstream connection, as a state machine without I/O.
//!
//! Two machines, joined: the request side reads what the client sends and says what goes upstream;
//! the response side reads what the upstream sends and says what goes downstream. Bytes are never
//! stored here: what goes out is a list of runs of the caller's input ([`Pieces`]).

use super::chunked::ChunkFault;
use super::framing::{Body, Framing};
use super::head::{self, Seen};
use super::limits;
use super::pieces::Pieces;
use super::request::{self, Policy, Reject, Request};
use super::response::{self, Coding, Manner, Response, UpstreamFault};
use super::target::Route;

/// What came of reading downstream bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestStep {
    /// More bytes are needed; there may be nothing to send.
    More,
    /// The head is acceptable: call again with a connection that can take it.
    Connect,
    /// The pieces are for the upstream.
    Upstream,
    /// The pieces are a response of our own.
    Downstream,
    /// The pieces are the answer to `GET /shutdown`, which is to be carried out.
    Shutdown,
    /// The request has been read; nothing more is wanted until its response is complete.
    Done,
}

/// What came of reading upstream bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResponseStep {
    /// The pieces, if any, are for the client. See [`Exchange::is_complete`].
    Downstream,
    /// There is no sound answer: [`Exchange::fail`] if [`Exchange::may_answer`], else abort.
    Fault(UpstreamFault),
}

#[derive(Clone, Debug)]
enum RequestSide {
    Head,
    /// The head at the front of the input is acceptable and waits for a connection.
    Waiting(Request),
    Body(Body),
    /// So many bytes are read and dropped, then the connection can be used again.
    Drop(u64),
    /// Whatever comes is dropped; the connection will not be used again.
    Discard,
    Complete,
}

#[derive(Clone, Debug)]
enum ResponseSide {
    /// No request has been accepted yet.
    Idle,
    /// The request has begun to go upstream.
    Head,
    Body(Body),
    Complete,
}

/// The state of one downstream connection's current exchange.
#[derive(Clone, Debug)]
pub struct Exchange {
    policy: Policy,
    request: RequestSide,
    response: ResponseSide,
    request_seen: Seen,
    response_seen: Seen,
    http10: bool,
    is_head: bool,
    close: bool,
    upstream_close: bool,
    continue_owed: bool,
    continue_sent: bool,
    interim: u8,
    coding: Coding,
    /// What the request asked for, once its head has been read.
    pub route: Option<Route>,
    /// The request body goes upstream in chunks.
    chunked: bool,
    /// The final status that was sent downstream.
    pub status: Option<u16>,
    /// `error.code`, when the answer was our own.
    pub code: Option<&'static str>,
    /// Request body bytes that went upstream.
    pub bytes_in: u64,
    /// Response body bytes that went downstream.
    pub bytes_out: u64,
}

impl Exchange {
    /// A connection on which no request has begun.
    pub fn new(policy: Policy) -> Exchange {
        Exchange {
            policy,
            request: RequestSide::Head,
            response: ResponseSide::Idle,
            request_seen: Seen::default(),
            response_seen: Seen::default(),
            http10: false,
            is_head: false,
            close: false,
            upstream_close: false,
            continue_owed: false,
            continue_sent: false,
            interim: 0,
            coding: Coding::Plain,
            route: None,
            chunked: false,
            status: None,
            code: None,
            bytes_in: 0,
            bytes_out: 0,
        }
    }

    /// No byte of a request head has been accepted.
    pub fn is_idle(&self) -> bool {
        matches!(
            (&self.request, &self.response),
            (RequestSide::Head, ResponseSide::Idle)
        )
    }

    /// The request head has gone upstream, or has begun to, and the response is not complete.
    pub fn is_under_way(&self) -> bool {
        matches!(self.response, ResponseSide::Head | ResponseSide::Body(_))
    }

    /// The request body is not at its end and goes upstream.
    pub fn is_uploading(&self) -> bool {
        matches!(self.request, RequestSide::Body(_))
    }

    /// Bytes that the client sends have somewhere to go.
    pub fn wants_downstream(&self) -> bool {
        !matches!(
            self.request,
            RequestSide::Complete | RequestSide::Waiting(_)
        )
    }

    /// The head waits for an upstream connection.
    pub fn is_waiting(&self) -> bool {
        matches!(self.request, RequestSide::Waiting(_))
    }

    /// The response has been handed over to its last byte.
    pub fn is_complete(&self) -> bool {
        matches!(self.response, ResponseSide::Complete)
    }

    /// No final response has begun, so one of our own can be sent.
    pub fn may_answer(&self) -> bool {
        matches!(self.response, ResponseSide::Idle | ResponseSide::Head)
    }

    /// The response is complete and so is the request, or what is left of it is being dropped: the
    /// exchange that follows may begin with [`Exchange::next`].
    pub fn is_over(&self) -> bool {
        self.is_complete() && matches!(self.request, RequestSide::Complete)
    }

    /// The connection ends after this exchange.
    pub fn closes(&self) -> bool {
        self.close
    }

    /// The connection shall end after this exchange; the response says so if its head is still to come.
    pub fn close(&mut self) {
        self.close = true;
    }

    /// The upstream connection is at the end of a whole exchange and can take another.
    pub fn upstream_reusable(&self) -> bool {
        self.is_over() && !self.upstream_close
    }

    /// The client waits for a 100 that nobody has given yet.
    pub fn owes_continue(&self) -> bool {
        self.continue_owed
    }

    /// Makes ready for the next request on the connection.
    pub fn next(&mut self) {
        *self = Exchange::new(self.policy);
    }

    /// Reads downstream bytes: all that are there and have not been used. Returns how many are used
    /// up now. `out` must be empty and is filled with runs of `input`.
    ///
    /// `upstream_ready`: a connection stands that takes the head now.
    pub fn downstream(
        &mut self,
        input: &[u8],
        upstream_ready: bool,
        out: &mut Pieces,
    ) -> (usize, RequestStep) {
        match &mut self.request {
            RequestSide::Head | RequestSide::Waiting(_) => {
                self.request_head(input, upstream_ready, out)
            }
            RequestSide::Body(_) => self.request_body(input, 0, out),
            RequestSide::Drop(left) => {
                let dropped = input
                    .len()
                    .min(usize::try_from(*left).unwrap_or(usize::MAX));
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
        upstream_ready: bool,
        out: &mut Pieces,
    ) -> (usize, RequestStep) {
        let policy = self.policy;
        let mut seen = self.request_seen;
        let head = head::request(input, &mut seen, |head| request::judge(&head, policy, out));
        let request = match head {
            Ok(None) => {
                self.request_seen = seen;
                return (0, RequestStep::More);
            }
            Ok(Some(request)) => request,
            Err(reject) => {
                self.refuse(reject, out);
                return (input.len(), RequestStep::Downstream);
            }
        };
        self.http10 = request.http10;
        self.is_head = request.is_head;
        self.close |= request.close;
        self.route = request.verdict.ok();
        match request.verdict {
            Ok(Route::Responses) if upstream_ready => {
                self.accept(&request);
                self.request_body(input, request.len, out)
            }
            Ok(Route::Responses) => {
                out.clear();
                // Asked again, the same head is parsed again from its beginning.
                self.request = RequestSide::Waiting(request);
                self.request_seen = Seen::default();
                self.continue_owed = request.expects_continue && !self.continue_sent;
                (0, RequestStep::Connect)
            }
            Ok(_) => {
                self.leave_body(&request);
                self.close = true;
                self.status = Some(200);
                self.response = ResponseSide::Complete;
                out.text(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
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
        self.request = if body.is_end() {
            RequestSide::Complete
        } else {
            RequestSide::Body(body)
        };
        self.response = ResponseSide::Head;
        self.continue_owed = request.expects_continue && !self.continue_sent;
    }

    /// What becomes of a body that nobody will read: a short one is dropped and the connection
    /// stays, else the connection ends. A client that waits for 100 may never send it, which leaves
    /// the next byte without a meaning.
    fn leave_body(&mut self, request: &Request) {
        let body = Body::new(request.framing);
        self.drop_body(&body, request.expects_continue);
    }

    fn drop_body(&mut self, body: &Body, unsure: bool) {
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
                    return (input.len(), RequestStep::More);
                }
            };
            at += step.framing;
            if step.data > 0 {
                self.continue_owed = false;
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
        let step = if out.is_empty() {
            RequestStep::More
        } else {
            RequestStep::Upstream
        };
        (at, step)
    }

    /// Reads upstream bytes and returns how many are used up: one interim head, or all that belongs
    /// to the response. `out` must be empty and is filled with runs of `input`. `reflects` is shown
    /// the reason, the field lines and the body as they come and answers true to stop the exchange.
    pub fn upstream(
        &mut self,
        input: &[u8],
        out: &mut Pieces,
        reflects: &mut impl FnMut(&[u8]) -> bool,
    ) -> (usize, ResponseStep) {
        let mut at = 0;
        if let ResponseSide::Head = self.response {
            let mut seen = self.response_seen;
            let head = head::response(input, &mut seen, |head| {
                Ok(self.judge_response(&head, out, reflects))
            });
            match head {
                Ok(None) => {
                    self.response_seen = seen;
                    return (0, ResponseStep::Downstream);
                }
                Ok(Some(Ok(response))) => {
                    self.response_seen = Seen::default();
                    at = response.len;
                    if response.status < 200 {
                        return (at, ResponseStep::Downstream);
                    }
                }
                Ok(Some(Err(fault))) => return (0, ResponseStep::Fault(fault)),
                Err(_) => return (0, ResponseStep::Fault(UpstreamFault::BadResponse)),
            }
        }
        match self.response_body(input, &mut at, out, reflects) {
            Ok(()) => (at, ResponseStep::Downstream),
            Err(fault) => (at, ResponseStep::Fault(fault)),
        }
    }

    fn judge_response(
        &mut self,
        head: &head::ResponseHead<'_, '_>,
        out: &mut Pieces,
        reflects: &mut impl FnMut(&[u8]) -> bool,
    ) -> Result<Response, UpstreamFault> {
        if head.status == 101 {
            return Err(UpstreamFault::SwitchedProtocols);
        }
        if reflects(&head.input[head.reason.clone()])
            || head
                .fields
                .iter()
                .any(|field| reflects(&head.input[field.line]))
        {
            return Err(UpstreamFault::CredentialReflected);
        }
        let interim = head.status < 200;
        // A request still on its way when its answer comes: the rest of it is not sent. Settled
        // before the head is written, which has to say so when the connection cannot go on.
        if !interim && let RequestSide::Body(body) = &self.request {
            let (body, unsure) = (body.clone(), self.continue_owed);
            self.upstream_close = true;
            self.drop_body(&body, unsure);
        }
        let manner = Manner {
            http10: self.http10,
            close: self.close,
        };
        let response =
            response::judge(head, manner, out).map_err(|_| UpstreamFault::BadResponse)?;
        if interim {
            if head.status == 100 && self.continue_sent {
                out.clear();
            }
            self.continue_owed &= head.status != 100;
            self.interim += 1;
            return if self.interim > limits::INTERIM {
                Err(UpstreamFault::BadResponse)
            } else {
                Ok(response)
            };
        }
        self.continue_owed = false;
        self.upstream_close |= response.close || response.framing == Framing::UntilClose;
        self.coding = response::coding(response.framing, self.http10);
        self.status = Some(response.status);
        let body = Body::new(response.framing);
        self.response = if body.is_end() {
            ResponseSide::Complete
        } else {
            ResponseSide::Body(body)
        };
        Ok(response)
    }

    fn response_body(
        &mut self,
        input: &[u8],
        at: &mut usize,
        out: &mut Pieces,
        reflects: &mut impl FnMut(&[u8]) -> bool,
    ) -> Result<(), UpstreamFault> {
        let ResponseSide::Body(body) = &mut self.response else {
            return Ok(());
        };
        let chunked = self.coding == Coding::Chunked;
        while *at < input.len() && !out.is_full() {
            let step = body
                .step(&input[*at..])
                .map_err(|_| UpstreamFault::BadResponse)?;
            *at += step.framing;
            if step.data > 0 {
                if reflects(&input[*at..*at + step.data]) {
                    return Err(UpstreamFault::CredentialReflected);
                }
                self.bytes_out += step.data as u64;
                add_data(input, *at, step.data, chunked, out);
                *at += step.data;
            }
            if step.end {
                if chunked {
                    out.text(b"0\r\n\r\n");
                }
                self.response = ResponseSide::Complete;
                break;
            }
        }
        Ok(())
    }

    /// The upstream will send no more. `clean`: it said so itself (close_notify, or a plain FIN).
    pub fn upstream_end(&mut self, clean: bool, out: &mut Pieces) -> ResponseStep {
        match &self.response {
            ResponseSide::Body(Body::UntilClose) if clean => {
                if self.coding == Coding::Chunked {
                    out.text(b"0\r\n\r\n");
                }
                self.response = ResponseSide::Complete;
                ResponseStep::Downstream
            }
            _ => ResponseStep::Fault(UpstreamFault::Closed),
        }
    }

    /// Answers for the upstream. Only while [`Exchange::may_answer`]. Returns how many bytes of the
    /// unused downstream input are used up: the head, where it was still waiting.
    pub fn fail(&mut self, fault: UpstreamFault, out: &mut Pieces) -> usize {
        out.clear();
        let mut used = 0;
        match &self.request {
            RequestSide::Body(body) => {
                let (body, unsure) = (body.clone(), self.continue_owed);
                self.drop_body(&body, unsure);
            }
            RequestSide::Waiting(request) => {
                let request = *request;
                used = request.len;
                self.leave_body(&request);
            }
            _ => {}
        }
        self.answer(&fault.canned(), out);
        used
    }

    /// Answers that the request will not be served, and gives the connection up. Only while
    /// [`Exchange::may_answer`].
    pub fn refuse(&mut self, reject: Reject, out: &mut Pieces) {
        out.clear();
        self.close = true;
        self.request = RequestSide::Discard;
        self.answer(&reject.canned(), out);
    }

    fn answer(&mut self, canned: &request::Canned, out: &mut Pieces) {
        self.continue_owed = false;
        self.upstream_close = true;
        self.status = Some(canned.status);
        self.code = Some(canned.code);
        self.response = ResponseSide::Complete;
        request::answer(canned, self.close, self.is_head, out);
    }

    /// Gives the client the 100 that it waits for, since the upstream did not in time.
    pub fn send_continue(&mut self, out: &mut Pieces) {
        if self.continue_owed {
            self.continue_owed = false;
            self.continue_sent = true;
            out.text(b"HTTP/1.1 100 Continue\r\n\r\n");
        }
    }
}

fn add_data(input: &[u8], at: usize, len: usize, chunked: bool, out: &mut Pieces) {
    if chunked {
        out.hexadecimal(len as u64);
        out.text(b"\r\n");
    }
    out.input(input, at..at + len);
    if chunked {
        out.text(b"\r\n");
    }
}
