//! One exchange after another on a client connection, as a state machine without I/O.
//!
//! | state | the client's side | the upstream's side |
//! |---|---|---|
//! | [`State::Idle`] | head not complete | – |
//! | [`State::Waiting`] | head accepted | a connection is needed |
//! | [`State::Uploading`] | body on its way | final head awaited |
//! | [`State::Awaiting`] | request sent | final head awaited |
//! | [`State::Responding`] | see [`Rest`] | body on its way |
//! | [`State::Complete`] | see [`Rest`] | response forwarded |
//!
//! ```text
//! Idle ──► Waiting ──► Uploading ──► Awaiting ──► Responding ──► Complete ──► Idle
//! ```
//!
//! | from | to | on |
//! |---|---|---|
//! | `Idle` | `Waiting` | an acceptable head, but no connection that can take it |
//! | `Idle`, `Waiting` | `Uploading`; without a body `Awaiting` | the head is sent |
//! | `Uploading` | `Awaiting` | the end of the request body |
//! | `Uploading`, `Awaiting` | `Responding`; without a body `Complete` | a final response head |
//! | `Responding` | `Complete` | the end of the response |
//! | `Idle`, `Waiting`, `Uploading`, `Awaiting` | `Complete` | a refusal or a fault |
//! | `Complete` | `Idle` | [`Exchange::next`] |
//!
//! Bytes are never stored here: the output is a list of ranges of the caller's input
//! ([`GatherList`]).

mod request_side;
mod response_side;

use super::chunked::ChunkFault;
use super::framing::{Body, Coding, Framing};
use super::gather::GatherList;
use super::head::ScanProgress;
use super::limits;
use super::local_response::{LocalResponse, Reject, UpstreamFault};
use super::logged_fields::LoggedFields;
use super::refused_route::RefusedRoute;
use super::request::{Policy, Request};
use super::target::Route;

/// The state of an exchange.
#[derive(Clone, Debug)]
pub enum State {
    /// No request has been accepted yet.
    Idle,
    /// The head at the front of the input is acceptable and waits for an upstream connection.
    Waiting(Request),
    /// The head has been forwarded; the body follows.
    Uploading(Transfer),
    /// The whole request has been forwarded; no final response head has arrived.
    Awaiting,
    /// The final response head has been forwarded; its body follows.
    Responding {
        /// The response body.
        body: Transfer,
        /// The rest of the request.
        rest: Rest,
    },
    /// The whole response has been forwarded.
    Complete {
        /// The rest of the request.
        rest: Rest,
    },
}

impl State {
    /// A request body is on its way upstream.
    pub fn is_uploading(&self) -> bool {
        match self {
            State::Uploading(_) => true,
            State::Responding { rest, .. } | State::Complete { rest } => rest.is_upload(),
            State::Idle | State::Waiting(_) | State::Awaiting => false,
        }
    }
}

/// What is left of a request whose response has begun.
#[derive(Clone, Debug)]
pub enum Rest {
    /// Nothing: the request has been read to its end.
    None,
    /// The body still goes upstream. This happens only after a status below 400: an error ends the
    /// upload (RFC 9112 §9.5).
    Upload(Transfer),
    /// This number of bytes is read and dropped; then the connection can be used again.
    Drop(u64),
    /// All further bytes are dropped; the connection will not be used again.
    Discard,
}

impl Rest {
    /// The treatment of the rest of a body that is not forwarded. A short rest is dropped and the
    /// connection stays; otherwise the connection ends. A client that waits for a 100 may never
    /// send the body, so the meaning of its next byte would be unclear.
    fn of(left: &Body, expectation: Continue) -> Rest {
        match left {
            Body::End => Rest::None,
            Body::Length(left) if *left <= limits::DROP && expectation != Continue::Owed => {
                Rest::Drop(*left)
            }
            Body::Length(_) | Body::Chunked(_) | Body::UntilClose => Rest::Discard,
        }
    }

    /// The body still goes upstream.
    pub fn is_upload(&self) -> bool {
        matches!(self, Rest::Upload(_))
    }

    /// The request has been read to its end.
    pub fn is_none(&self) -> bool {
        matches!(self, Rest::None)
    }
}

/// A body on its way through the relay: the rest of it, and how it is written.
#[derive(Clone, Debug)]
pub struct Transfer {
    left: Body,
    coding: Coding,
}

/// Whether a body has been forwarded completely.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BodyProgress {
    Ended,
    Continues,
}

impl Transfer {
    /// A body of which nothing has been read; `None` when it is empty.
    fn new(framing: Framing, coding: Coding) -> Option<Transfer> {
        let left = Body::new(framing);
        (!left.is_end()).then_some(Transfer { left, coding })
    }

    /// Forwards `input` from `at` on: up to the end of the body, or until `out` is full. `inspect`
    /// is shown each range of data before it is added. `forwarded` counts bytes of data.
    fn forward<F: From<ChunkFault>>(
        &mut self,
        input: &[u8],
        at: &mut usize,
        forwarded: &mut u64,
        out: &mut GatherList,
        mut inspect: impl FnMut(&[u8]) -> Result<(), F>,
    ) -> Result<BodyProgress, F> {
        let is_chunked = self.coding == Coding::Chunked;
        while *at < input.len() && !out.is_full() {
            let step = self.left.step(&input[*at..])?;
            *at += step.framing;
            if step.data > 0 {
                let data = *at..*at + step.data;
                inspect(&input[data.clone()])?;
                *forwarded += step.data as u64;
                if is_chunked {
                    out.hexadecimal(step.data as u64);
                    out.text(b"\r\n");
                }
                out.input(input, data);
                if is_chunked {
                    out.text(b"\r\n");
                }
                *at += step.data;
            }
            if step.end {
                self.write_end(out);
                return Ok(BodyProgress::Ended);
            }
        }
        Ok(BodyProgress::Continues)
    }

    fn write_end(&self, out: &mut GatherList) {
        if self.coding == Coding::Chunked {
            out.text(b"0\r\n\r\n");
        }
    }
}

/// The client's expectation of a 100 (Continue). It never reaches the upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Continue {
    /// The client does not wait for it, or has stopped waiting.
    NotExpected,
    /// The client waits for it.
    Owed,
    /// [`Exchange::send_continue`] has sent it.
    SentByUs,
}

/// The result of reading bytes from the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestStep {
    /// The input has been parsed as far as possible; more bytes are needed.
    NeedMore,
    /// The head is acceptable: call again with a connection that can take it.
    NeedUpstream,
    /// The output is for the upstream.
    Forward,
    /// The output is a local response.
    Respond,
    /// The output is the response to `GET /shutdown`; the relay shuts down now.
    RespondAndShutDown,
    /// The request has been read. No input is needed until its response is complete.
    Idle,
    /// The body is malformed, and a final response has begun. The caller must give up the upstream
    /// connection and, unless the response is complete, reset the client's connection.
    Broken,
}

/// The result of reading bytes from the upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResponseStep {
    /// The output, if any, is for the client.
    Forward,
    /// There is no usable response: call [`Exchange::fault`].
    Fault(UpstreamFault),
}

/// How a fault or a refusal reaches the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum FaultOutcome {
    /// The output is a local response.
    Responded {
        /// The number of consumed bytes of input: the length of the head if it was waiting,
        /// otherwise 0.
        used: usize,
    },
    /// A final response has begun, or no request has been read. Only a reset of the client's
    /// connection can report the error.
    MustReset,
}

/// The state of one client connection's current exchange.
#[derive(Clone, Debug)]
#[allow(
    clippy::struct_excessive_bools,
    reason = "each is a fact of one message; the state is an enum"
)]
pub struct Exchange {
    policy: Policy,
    state: State,
    request_progress: ScanProgress,
    response_progress: ScanProgress,
    http10: bool,
    is_head: bool,
    is_last: bool,
    upstream_closes: bool,
    expectation: Continue,
    interim: u8,
    /// The route of the request, once its head has been read.
    pub route: Option<Route>,
    /// The route of a request that was refused, once its head has been read.
    pub refused_route: Option<RefusedRoute>,
    /// The final status that was sent to the client.
    pub status: Option<u16>,
    /// The `error.code` of a local response.
    pub code: Option<&'static str>,
    /// The fields of the upstream's response that the access log may repeat.
    pub logged: LoggedFields,
    /// Request body bytes that were forwarded to the upstream.
    pub bytes_in: u64,
    /// Response body bytes that were forwarded to the client.
    pub bytes_out: u64,
}

impl Exchange {
    /// A connection on which no request has begun.
    pub fn new(policy: Policy) -> Exchange {
        Exchange {
            policy,
            state: State::Idle,
            request_progress: ScanProgress::default(),
            response_progress: ScanProgress::default(),
            http10: false,
            is_head: false,
            is_last: false,
            upstream_closes: false,
            expectation: Continue::NotExpected,
            interim: 0,
            route: None,
            refused_route: None,
            status: None,
            code: None,
            logged: LoggedFields::default(),
            bytes_in: 0,
            bytes_out: 0,
        }
    }

    /// The state.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The connection ends after this exchange.
    pub fn is_last(&self) -> bool {
        self.is_last
    }

    /// Ends the connection after this exchange. The response says so, unless its head has been sent
    /// already.
    pub fn make_last(&mut self) {
        self.is_last = true;
    }

    /// The upstream connection is at the end of a whole exchange and can take another.
    pub fn is_upstream_reusable(&self) -> bool {
        matches!(self.state, State::Complete { rest: Rest::None }) && !self.upstream_closes
    }

    /// Whether the client waits for a 100. If it does, the caller calls [`Exchange::send_continue`]
    /// after it has sent the head.
    pub fn expectation(&self) -> Continue {
        self.expectation
    }

    /// Writes the 100 (Continue) that the client waits for.
    pub fn send_continue(&mut self, out: &mut GatherList) {
        if self.expectation == Continue::Owed {
            self.expectation = Continue::SentByUs;
            out.text(b"HTTP/1.1 100 Continue\r\n\r\n");
        }
    }

    /// Ends the upload of a request whose response is complete. The rest of the body is dropped, as
    /// after a refusal.
    pub fn stop_upload(&mut self) {
        if let State::Complete { rest: Rest::Upload(body) } = &self.state {
            let rest = Rest::of(&body.left, self.expectation);
            self.is_last |= matches!(rest, Rest::Discard);
            self.state = State::Complete { rest };
        }
    }

    /// Begins the next exchange on the connection.
    pub fn next(&mut self) {
        *self = Exchange::new(self.policy);
    }

    /// Responds in place of an upstream that gives no usable response.
    pub fn fault(&mut self, fault: UpstreamFault, out: &mut GatherList) -> FaultOutcome {
        let (used, rest) = match &self.state {
            State::Waiting(request) => (request.len, request.unread_body()),
            State::Uploading(body) => (0, Rest::of(&body.left, self.expectation)),
            State::Awaiting => (0, Rest::None),
            State::Idle | State::Responding { .. } | State::Complete { .. } => {
                return FaultOutcome::MustReset;
            }
        };
        out.clear();
        self.respond(&fault.response(), rest, out);
        FaultOutcome::Responded { used }
    }

    /// Refuses the request and ends the connection.
    pub fn refuse(&mut self, reject: Reject, out: &mut GatherList) -> FaultOutcome {
        match self.state {
            State::Idle | State::Waiting(_) | State::Uploading(_) | State::Awaiting => {}
            State::Responding { .. } | State::Complete { .. } => return FaultOutcome::MustReset,
        }
        out.clear();
        self.respond(&reject.response(), Rest::Discard, out);
        FaultOutcome::Responded { used: 0 }
    }

    fn respond(&mut self, response: &LocalResponse, rest: Rest, out: &mut GatherList) {
        self.is_last |= matches!(rest, Rest::Discard);
        self.expectation = Continue::NotExpected;
        self.upstream_closes = true;
        self.status = Some(response.status());
        self.code = Some(response.code);
        self.state = State::Complete { rest };
        response.write(self.is_last, self.is_head, out);
    }
}

impl Request {
    /// The treatment of a body of which nothing has been read.
    fn unread_body(&self) -> Rest {
        let expectation =
            if self.expects_continue { Continue::Owed } else { Continue::NotExpected };
        Rest::of(&Body::new(self.framing), expectation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http1::request::RequestContext;

    const HEAD: &str = "POST /v1/responses HTTP/1.1\r\nHost: localhost\r\n";

    /// What went to each side, with `<block>` in place of the credential block.
    #[derive(Default, Debug, PartialEq)]
    struct Seen {
        to_upstream: String,
        to_client: String,
        used: usize,
        fault: Option<UpstreamFault>,
    }

    fn text(list: &GatherList, input: &[u8]) -> String {
        let block = if list.has_credential() { "<block>" } else { "" };
        let bytes: Vec<u8> = list.slices(input).flatten().copied().collect();
        block.to_owned() + &String::from_utf8(bytes).unwrap()
    }

    /// Feeds a request in cuts of `cut` bytes, with an upstream that is ready.
    fn ask(exchange: &mut Exchange, input: &str, cut: usize) -> Seen {
        let (mut seen, mut list) = (Seen::default(), GatherList::default());
        let mut end = 0;
        loop {
            list.clear();
            let rest = &input.as_bytes()[seen.used..end];
            let (used, step) =
                exchange.receive_request(rest, &RequestContext::ready(true), &mut list);
            match step {
                RequestStep::Forward => seen.to_upstream += &text(&list, rest),
                RequestStep::Respond | RequestStep::RespondAndShutDown => {
                    seen.to_client += &text(&list, rest);
                }
                _ => assert!(list.is_empty()),
            }
            seen.used += used;
            let done = step == RequestStep::Idle || is_complete(exchange);
            if done || (used == 0 && end == input.len()) {
                return seen;
            }
            if used == 0 || seen.used == end {
                end = (end + cut).min(input.len());
                if seen.used == input.len() {
                    return seen;
                }
            }
        }
    }

    /// Feeds a response in cuts of `cut` bytes.
    fn respond(exchange: &mut Exchange, input: &[u8], cut: usize) -> Seen {
        let (mut seen, mut list) = (Seen::default(), GatherList::default());
        let mut end = 0;
        while awaits_response(exchange) {
            list.clear();
            let rest = &input[seen.used..end];
            let (used, step) = exchange.receive_response(rest, &mut list, &mut |_| false);
            if let ResponseStep::Fault(fault) = step {
                seen.fault = Some(fault);
                return seen;
            }
            seen.to_client += &text(&list, rest);
            seen.used += used;
            if used == 0 || seen.used == end {
                if end == input.len() {
                    return seen;
                }
                end = (end + cut).min(input.len());
            }
        }
        seen
    }

    fn is_complete(exchange: &Exchange) -> bool {
        matches!(exchange.state(), State::Complete { .. })
    }

    fn awaits_response(exchange: &Exchange) -> bool {
        let state = exchange.state();
        matches!(state, State::Uploading(_) | State::Awaiting | State::Responding { .. })
    }

    /// The state, and the rest of the request.
    fn state(exchange: &Exchange) -> &'static str {
        match exchange.state() {
            State::Idle => "idle",
            State::Waiting(_) => "waiting",
            State::Uploading(_) => "uploading",
            State::Awaiting => "awaiting",
            State::Responding { rest: Rest::None, .. } => "responding",
            State::Responding { rest: Rest::Upload(_), .. } => "responding, uploading",
            State::Responding { rest: Rest::Drop(_), .. } => "responding, dropping",
            State::Responding { rest: Rest::Discard, .. } => "responding, discarding",
            State::Complete { rest: Rest::None } => "complete",
            State::Complete { rest: Rest::Upload(_) } => "complete, uploading",
            State::Complete { rest: Rest::Drop(_) } => "complete, dropping",
            State::Complete { rest: Rest::Discard } => "complete, discarding",
        }
    }

    /// An exchange in each state, with the rest of the request.
    fn in_each_state() -> Vec<Exchange> {
        let mut waiting = Exchange::new(Policy::default());
        let head = format!("{HEAD}Content-Length: 2\r\n\r\n");
        let mut list = GatherList::default();
        waiting.receive_request(head.as_bytes(), &RequestContext::ready(false), &mut list);
        let responding = |body: &str, status: &str| {
            let mut exchange = begun(&format!("{HEAD}Content-Length: 2\r\n\r\n{body}"));
            let head = format!("HTTP/1.1 {status} X\r\nContent-Length: 2\r\n\r\n");
            respond(&mut exchange, head.as_bytes(), 99);
            exchange
        };
        let complete = |mut exchange: Exchange| {
            respond(&mut exchange, b"ab", 99);
            exchange
        };
        let discarding = |mut exchange: Exchange| {
            exchange.state = match exchange.state {
                State::Responding { body, .. } => State::Responding { body, rest: Rest::Discard },
                _ => State::Complete { rest: Rest::Discard },
            };
            exchange
        };
        vec![
            Exchange::new(Policy::default()),
            waiting,
            begun(&head),
            begun(&format!("{head}ab")),
            responding("ab", "200"),
            responding("a", "200"),
            responding("a", "400"),
            discarding(responding("a", "200")),
            complete(responding("ab", "200")),
            complete(responding("a", "200")),
            complete(responding("a", "400")),
            discarding(complete(responding("a", "200"))),
        ]
    }

    #[test]
    fn a_fault_or_a_refusal_is_answered_until_the_response_has_begun() {
        let exchanges = in_each_state();
        let states: Vec<&str> = exchanges.iter().map(state).collect();
        assert_eq!(
            states,
            [
                "idle",
                "waiting",
                "uploading",
                "awaiting",
                "responding",
                "responding, uploading",
                "responding, dropping",
                "responding, discarding",
                "complete",
                "complete, uploading",
                "complete, dropping",
                "complete, discarding",
            ]
        );
        for (before, exchange) in states.into_iter().zip(exchanges) {
            let mut list = GatherList::default();
            let mut failed = exchange.clone();
            let answer = failed.fault(UpstreamFault::Timeout, &mut list);
            let (want, after) = match before {
                "waiting" => {
                    let used = HEAD.len() + "Content-Length: 2\r\n\r\n".len();
                    (FaultOutcome::Responded { used }, "complete, dropping")
                }
                "uploading" => (FaultOutcome::Responded { used: 0 }, "complete, dropping"),
                "awaiting" => (FaultOutcome::Responded { used: 0 }, "complete"),
                before => (FaultOutcome::MustReset, before),
            };
            assert_eq!((answer, state(&failed)), (want, after), "{before}");
            assert_eq!(list.is_empty(), answer == FaultOutcome::MustReset);
            assert!(!failed.is_upstream_reusable() || before == "complete");

            list.clear();
            let mut refused = exchange.clone();
            let answer = refused.refuse(Reject::Timeout, &mut list);
            let (want, after) = match before {
                "idle" | "waiting" | "uploading" | "awaiting" => {
                    (FaultOutcome::Responded { used: 0 }, "complete, discarding")
                }
                before => (FaultOutcome::MustReset, before),
            };
            assert_eq!((answer, state(&refused)), (want, after), "{before}");
            assert_eq!(list.is_empty(), answer == FaultOutcome::MustReset);
            assert!(answer == FaultOutcome::MustReset || refused.is_last());
        }
    }

    #[test]
    fn each_state_says_whether_a_body_goes_upstream_and_what_the_client_may_send() {
        for mut exchange in in_each_state() {
            let before = state(&exchange);
            assert_eq!(exchange.state().is_uploading(), before.ends_with("uploading"), "{before}");
            let context = RequestContext::ready(true);
            let (used, step) = exchange.receive_request(b"x", &context, &mut GatherList::default());
            let want = match before {
                "idle" => (0, RequestStep::NeedMore),
                "waiting" => (0, RequestStep::NeedMore),
                "awaiting" | "responding" | "complete" => (0, RequestStep::Idle),
                _ if before.ends_with("uploading") => (1, RequestStep::Forward),
                // One byte was left.
                _ if before.ends_with("dropping") => (1, RequestStep::Idle),
                _ => (1, RequestStep::NeedMore),
            };
            assert_eq!((used, step), want, "{before}");
        }
    }

    fn begun(request: &str) -> Exchange {
        let mut exchange = Exchange::new(Policy::default());
        let seen = ask(&mut exchange, request, usize::MAX / 2);
        assert!(seen.to_upstream.starts_with("<block>") && awaits_response(&exchange));
        exchange
    }

    fn code(response: &str) -> &str {
        let at = response.find("\"code\":\"").unwrap() + 8;
        &response[at..at + response[at..].find('"').unwrap()]
    }

    /// Chunk sizes differ with the cuts; what they add up to does not.
    fn dechunked(text: &str) -> String {
        let (head, mut rest) = text.split_once("\r\n\r\n").unwrap();
        let mut body = String::new();
        while let Some((size, more)) = rest.split_once("\r\n") {
            let size = usize::from_str_radix(size, 16).unwrap();
            body += &more[..size];
            rest = &more[size + 2..];
        }
        format!("{head}|{body}|{rest}")
    }

    #[test]
    fn a_request_goes_up_the_same_however_it_is_cut() {
        for (request, want) in [
            (
                format!("{HEAD}Content-Length: 5\r\n\r\nhello"),
                "<block>Via: 1.1 relay\r\nContent-Length: 5\r\n\r\nhello",
            ),
            (
                format!("{HEAD}X: y\r\n\r\n"),
                "<block>X: y\r\nVia: 1.1 relay\r\nContent-Length: 0\r\n\r\n",
            ),
        ] {
            for cut in 1..=request.len() {
                let mut exchange = Exchange::new(Policy::default());
                let seen = ask(&mut exchange, &request, cut);
                assert_eq!(
                    (seen.to_upstream.as_str(), seen.used),
                    (want, request.len()),
                    "cut {cut}"
                );
            }
        }
        let chunked = format!(
            "{HEAD}Transfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n2\r\nde\r\n0\r\nT: 1\r\n\r\n"
        );
        for cut in 1..=chunked.len() {
            let mut exchange = Exchange::new(Policy::default());
            let seen = ask(&mut exchange, &chunked, cut);
            assert_eq!(
                dechunked(&seen.to_upstream),
                "<block>Via: 1.1 relay\r\nTransfer-Encoding: chunked|abcde|"
            );
            assert_eq!(exchange.bytes_in, 5);
        }
    }

    #[test]
    fn a_response_goes_down_the_same_however_it_is_cut() {
        let sized = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX: y\r\n\r\n{}";
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x\r\nabc\r\n2\r\nde\r\n0\r\nT: 1\r\n\r\n";
        let hints = "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n";
        for cut in 1..=chunked.len() {
            let mut exchange = begun(&format!("{HEAD}\r\n"));
            let seen = respond(&mut exchange, format!("{hints}{sized}").as_bytes(), cut);
            assert_eq!(
                seen.to_client,
                format!("{hints}HTTP/1.1 200 OK\r\nX: y\r\nContent-Length: 2\r\n\r\n{{}}")
            );
            assert!(exchange.is_upstream_reusable() && !exchange.is_last());

            let mut exchange = begun(&format!("{HEAD}\r\n"));
            let seen = respond(&mut exchange, chunked.as_bytes(), cut);
            assert_eq!(
                dechunked(&seen.to_client),
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked|abcde|"
            );
            assert!(exchange.is_upstream_reusable() && exchange.bytes_out == 5);
        }
    }

    #[test]
    fn without_a_connection_the_head_waits_and_is_sent_once_there_is_one() {
        let request = format!("{HEAD}Content-Length: 2\r\n\r\n{{}}");
        let (mut exchange, mut list) = (Exchange::new(Policy::default()), GatherList::default());
        let step =
            exchange.receive_request(request.as_bytes(), &RequestContext::ready(false), &mut list);
        assert_eq!(step, (0, RequestStep::NeedUpstream));
        assert!(list.is_empty());
        assert_eq!(state(&exchange), "waiting");
        let (used, step) =
            exchange.receive_request(request.as_bytes(), &RequestContext::ready(true), &mut list);
        assert_eq!((used, step), (request.len(), RequestStep::Forward));
        assert_eq!(state(&exchange), "awaiting");
    }

    #[test]
    fn a_head_that_waited_in_vain_is_answered_and_used_up() {
        let request = format!("{HEAD}Content-Length: 2\r\n\r\n{{}}");
        let (mut exchange, mut list) = (Exchange::new(Policy::default()), GatherList::default());
        exchange.receive_request(request.as_bytes(), &RequestContext::ready(false), &mut list);
        let used = request.len() - 2;
        let answer = exchange.fault(UpstreamFault::Refused, &mut list);
        assert_eq!(answer, FaultOutcome::Responded { used });
        assert_eq!(state(&exchange), "complete, dropping");
        assert_eq!(code(&text(&list, &[])), "upstream_refused");
        list.clear();
        let rest = &request.as_bytes()[used..];
        assert_eq!(
            exchange.receive_request(rest, &RequestContext::ready(false), &mut list),
            (2, RequestStep::Idle)
        );
        assert_eq!(state(&exchange), "complete");
        assert!(!exchange.is_last());
    }

    #[test]
    fn an_early_final_response_ends_the_upload_and_the_upstream_connection() {
        let rests = [(limits::DROP, false), (limits::DROP + 1, true)];
        let cases = [400, 401, 500, 503].map(|status| rests.map(|rest| (status, rest)));
        for (status, (length, closes)) in cases.into_iter().flatten() {
            let mut exchange = begun(&format!("{HEAD}Content-Length: {length}\r\n\r\n"));
            assert_eq!(state(&exchange), "uploading");
            let head = format!("HTTP/1.1 {status} No\r\nContent-Length: 0\r\n\r\n");
            let seen = respond(&mut exchange, head.as_bytes(), 100);
            assert_eq!(seen.to_client.contains("Connection: close\r\n"), closes);
            let rest = if closes { "complete, discarding" } else { "complete, dropping" };
            assert_eq!((state(&exchange), exchange.is_last()), (rest, closes));
            let body = vec![b'x'; limits::DROP as usize];
            let (used, _) = exchange.receive_request(
                &body,
                &RequestContext::ready(true),
                &mut GatherList::default(),
            );
            assert_eq!(used, body.len());
            assert_eq!(state(&exchange), if closes { rest } else { "complete" });
            assert!(!exchange.is_upstream_reusable());
        }
    }

    #[test]
    fn an_early_success_or_redirect_lets_the_upload_go_on_in_any_order() {
        for status in [200, 204, 302, 399] {
            // The response ends first, or the request does.
            for response_first in [true, false] {
                let mut exchange = begun(&format!("{HEAD}Content-Length: 4\r\n\r\nab"));
                let response = if status == 204 {
                    "HTTP/1.1 204 X\r\n\r\n".to_owned()
                } else {
                    format!("HTTP/1.1 {status} X\r\nContent-Length: 3\r\n\r\nxyz")
                };
                let (begin, rest) =
                    response.split_at(response.len() - if status == 204 { 0 } else { 2 });
                let seen = respond(&mut exchange, begin.as_bytes(), 7);
                assert!(!seen.to_client.contains("Connection: close"));
                assert!(exchange.state().is_uploading() && !exchange.is_last());
                if response_first {
                    respond(&mut exchange, rest.as_bytes(), 7);
                    assert_eq!(state(&exchange), "complete, uploading");
                }
                for byte in [b"c", b"d"] {
                    let mut list = GatherList::default();
                    let step =
                        exchange.receive_request(byte, &RequestContext::ready(true), &mut list);
                    assert_eq!(step, (1, RequestStep::Forward));
                    assert_eq!(text(&list, byte).as_bytes(), byte);
                }
                assert!(!exchange.state().is_uploading());
                if !response_first {
                    respond(&mut exchange, rest.as_bytes(), 7);
                }
                assert_eq!(state(&exchange), "complete");
                assert!(!exchange.is_upstream_reusable());
                assert_eq!((exchange.bytes_in, exchange.status), (4, Some(status)));
            }
        }
    }

    #[test]
    fn an_upload_that_nobody_wants_any_more_is_dropped_or_ends_the_connection() {
        for (length, closes) in [(limits::DROP, false), (limits::DROP + 1, true)] {
            let mut exchange = begun(&format!("{HEAD}Content-Length: {length}\r\n\r\n"));
            respond(&mut exchange, b"HTTP/1.1 204 X\r\n\r\n", 9);
            assert_eq!(state(&exchange), "complete, uploading");
            exchange.stop_upload();
            let rest = if closes { "complete, discarding" } else { "complete, dropping" };
            assert_eq!((state(&exchange), exchange.is_last()), (rest, closes));
            let body = vec![b'x'; limits::DROP as usize];
            exchange.receive_request(
                &body,
                &RequestContext::ready(true),
                &mut GatherList::default(),
            );
            assert_eq!(state(&exchange), if closes { rest } else { "complete" });
        }
    }

    #[test]
    fn a_broken_chunk_behind_an_early_response_is_told_as_such() {
        for complete in [true, false] {
            let mut exchange =
                begun(&format!("{HEAD}Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n"));
            let length = if complete { 0 } else { 1 };
            let head = format!("HTTP/1.1 200 X\r\nContent-Length: {length}\r\n\r\n");
            respond(&mut exchange, head.as_bytes(), 9);
            let mut list = GatherList::default();
            let (used, step) =
                exchange.receive_request(b"zz\r\n", &RequestContext::ready(true), &mut list);
            assert_eq!((used, step), (4, RequestStep::Broken));
            assert!(list.is_empty() && exchange.is_last());
            let want = if complete { "complete, discarding" } else { "responding, discarding" };
            assert_eq!(state(&exchange), want);
        }
    }

    #[test]
    fn an_encoded_response_is_a_fault_unless_it_is_allowed() {
        let head = b"HTTP/1.1 200 X\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nxyz";
        let seen = respond(&mut begun(&format!("{HEAD}\r\n")), head, 100);
        assert_eq!(seen.fault, Some(UpstreamFault::Encoded));
        let policy = Policy { allow_encoded_responses: true, ..Policy::default() };
        let mut exchange = Exchange::new(policy);
        ask(&mut exchange, &format!("{HEAD}\r\n"), 1000);
        let seen = respond(&mut exchange, head, 100);
        assert!(seen.to_client.ends_with("xyz") && seen.fault.is_none());
    }

    #[test]
    fn close_delimited_bodies_end_only_when_the_upstream_says_so() {
        for clean in [true, false] {
            let mut exchange = begun(&format!("{HEAD}\r\n"));
            let seen = respond(&mut exchange, b"HTTP/1.1 200 OK\r\n\r\nabc", 100);
            assert!(seen.to_client.ends_with("\r\n\r\n3\r\nabc\r\n"));
            let mut list = GatherList::default();
            let step = exchange.receive_end(clean, &mut list);
            if clean {
                assert_eq!((step, text(&list, &[])), (ResponseStep::Forward, "0\r\n\r\n".into()));
                assert_eq!(state(&exchange), "complete");
                assert!(!exchange.is_upstream_reusable());
            } else {
                assert_eq!(step, ResponseStep::Fault(UpstreamFault::Closed));
                assert!(list.is_empty());
                assert_eq!(
                    exchange.fault(UpstreamFault::Closed, &mut list),
                    FaultOutcome::MustReset
                );
            }
        }
    }

    #[test]
    fn truncated_bodies_are_faults() {
        for head in ["Content-Length: 5", "Transfer-Encoding: chunked"] {
            let mut exchange = begun(&format!("{HEAD}\r\n"));
            respond(
                &mut exchange,
                format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n1\r\nx").as_bytes(),
                9,
            );
            let step = exchange.receive_end(true, &mut GatherList::default());
            assert_eq!(step, ResponseStep::Fault(UpstreamFault::Closed));
            let answer = exchange.fault(UpstreamFault::Closed, &mut GatherList::default());
            assert_eq!(answer, FaultOutcome::MustReset);
        }
    }

    #[test]
    fn interim_responses_are_bounded_and_never_101() {
        let hints = |n: usize| "HTTP/1.1 103 E\r\n\r\n".repeat(n) + "HTTP/1.1 204 No\r\n\r\n";
        let most = usize::from(limits::INTERIM);
        let seen = respond(&mut begun(&format!("{HEAD}\r\n")), hints(most).as_bytes(), 50);
        assert_eq!((seen.fault, seen.to_client), (None, hints(most)));
        let seen = respond(&mut begun(&format!("{HEAD}\r\n")), hints(most + 1).as_bytes(), 50);
        assert_eq!(seen.fault, Some(UpstreamFault::BadResponse));
        let switch = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n";
        let seen = respond(&mut begun(&format!("{HEAD}\r\n")), switch, 50);
        assert_eq!(seen.fault, Some(UpstreamFault::SwitchedProtocols));
    }

    #[test]
    fn a_client_that_waits_for_100_gets_it_once() {
        let request = format!("{HEAD}Expect: 100-continue\r\nContent-Length: 2\r\n\r\n");
        let mut exchange = begun(&request);
        assert_eq!(exchange.expectation(), Continue::Owed);
        let mut list = GatherList::default();
        exchange.send_continue(&mut list);
        assert_eq!(text(&list, &[]), "HTTP/1.1 100 Continue\r\n\r\n");
        list.clear();
        exchange.send_continue(&mut list);
        assert!(list.is_empty());
        let seen = respond(&mut exchange, b"HTTP/1.1 100 Continue\r\n\r\n", 100);
        assert_eq!(seen.to_client, "");

        // One that sends does not wait.
        let mut exchange = begun(&(request + "{}"));
        assert_eq!(exchange.expectation(), Continue::NotExpected);
        let seen = respond(&mut exchange, b"HTTP/1.1 100 Continue\r\n\r\n", 100);
        assert_eq!(seen.to_client, "HTTP/1.1 100 Continue\r\n\r\n");
    }

    #[test]
    fn a_broken_chunk_is_a_400_and_the_end_of_the_connection() {
        let request = format!("{HEAD}Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\nzz\r\n");
        for cut in [1, 7, request.len()] {
            let mut exchange = Exchange::new(Policy::default());
            let seen = ask(&mut exchange, &request, cut);
            assert!(seen.to_client.starts_with("HTTP/1.1 400 Bad Request\r\n"));
            assert_eq!(code(&seen.to_client), "invalid_chunk");
            assert_eq!(state(&exchange), "complete, discarding");
            assert!(exchange.is_last());
        }
    }

    #[test]
    fn a_refusal_keeps_the_connection_only_where_the_rest_is_short_and_sure() {
        for (fields, closes) in [
            ("".to_owned(), false),
            (format!("Content-Length: {}\r\n", limits::DROP), false),
            (format!("Content-Length: {}\r\n", limits::DROP + 1), true),
            ("Transfer-Encoding: chunked\r\n".into(), true),
            ("Expect: 100-continue\r\nContent-Length: 2\r\n".into(), true),
            ("Connection: close\r\n".into(), true),
        ] {
            let mut exchange = Exchange::new(Policy::default());
            let request = format!("POST /x HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n");
            let seen = ask(&mut exchange, &request, 1000);
            assert_eq!(code(&seen.to_client), "route_not_allowed");
            assert_eq!(exchange.is_last(), closes, "{fields}");
            assert_eq!(seen.to_client.contains("Connection: close\r\n"), closes, "{fields}");
        }
    }

    #[test]
    fn a_response_that_reflects_the_key_is_stopped() {
        let shown = |input: &str, secret: &str| {
            let mut exchange = begun(&format!("{HEAD}\r\n"));
            let mut list = GatherList::default();
            let mut reflects = |piece: &[u8]| {
                piece.windows(secret.len()).any(|window| window == secret.as_bytes())
            };
            exchange.receive_response(input.as_bytes(), &mut list, &mut reflects).1
        };
        let fault = ResponseStep::Fault(UpstreamFault::CredentialReflected);
        for input in [
            "HTTP/1.1 200 SECRET\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nX: SECRET\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nSECRET",
            "HTTP/1.1 103 E\r\nX: SECRET\r\n\r\n",
        ] {
            assert_eq!(shown(input, "SECRET"), fault);
            assert_eq!(shown(input, "OTHER"), ResponseStep::Forward);
        }
    }
}
