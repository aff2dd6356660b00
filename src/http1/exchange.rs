//! One exchange after another on a downstream connection, as a state machine without I/O.
//!
//! Two machines, joined: the request side reads what the client sends and says what goes upstream;
//! the response side reads what the upstream sends and says what goes downstream. Bytes are never
//! stored here: what goes out is a list of runs of the caller's input ([`GatherList`]).

mod downstream;
mod upstream;

use super::framing::Body;
use super::gather::GatherList;
use super::head::ScanProgress;
use super::local_response::{LocalResponse, Reject, UpstreamFault};
use super::logged_fields::LoggedFields;
use super::refused_route::RefusedRoute;
use super::request::{Policy, Request};
use super::response::Coding;
use super::target::Route;

/// What came of reading downstream bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestStep {
    /// The input has been parsed as far as possible; more bytes are needed.
    NeedMore,
    /// The head is acceptable: call again with a connection that can take it.
    NeedUpstream,
    /// The output is for the upstream.
    Forward,
    /// The output is a response of the relay's own.
    Respond,
    /// The output is the response to `GET /shutdown`; the relay shuts down now.
    RespondAndShutDown,
    /// The request has been read; no input is needed until its response is complete.
    Idle,
    /// The body cannot be read on, and a final response has begun. The upstream connection is to be
    /// given up and, unless the response is complete, the client's reset.
    Broken,
}

/// What came of reading upstream bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResponseStep {
    /// The output, if any, is for the client. See [`Exchange::is_complete`].
    Forward,
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

/// What the client's expectation of a 100 (Continue) has come to. It never reaches the upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Continue {
    NotExpected,
    /// The client waits for it.
    Owed,
    SentByUs,
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
    request_progress: ScanProgress,
    response_progress: ScanProgress,
    http10: bool,
    is_head: bool,
    close: bool,
    upstream_close: bool,
    expectation: Continue,
    interim: u8,
    coding: Coding,
    /// What the request asked for, once its head has been read.
    pub route: Option<Route>,
    /// What a request that was refused asked for, once its head has been read.
    pub refused_route: Option<RefusedRoute>,
    /// The request body goes upstream in chunks.
    chunked: bool,
    /// The final status that was sent downstream.
    pub status: Option<u16>,
    /// `error.code`, when the answer was our own.
    pub code: Option<&'static str>,
    /// What the access log may repeat of the upstream's response.
    pub logged: LoggedFields,
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
            request_progress: ScanProgress::default(),
            response_progress: ScanProgress::default(),
            http10: false,
            is_head: false,
            close: false,
            upstream_close: false,
            expectation: Continue::NotExpected,
            interim: 0,
            coding: Coding::Plain,
            route: None,
            refused_route: None,
            chunked: false,
            status: None,
            code: None,
            logged: LoggedFields::default(),
            bytes_in: 0,
            bytes_out: 0,
        }
    }

    /// No byte of a request head has been accepted.
    pub fn is_idle(&self) -> bool {
        matches!((&self.request, &self.response), (RequestSide::Head, ResponseSide::Idle))
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
        !matches!(self.request, RequestSide::Complete | RequestSide::Waiting(_))
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

    /// The request goes upstream and the client waits for a 100 before it sends the body: now is the
    /// time for [`Exchange::send_continue`].
    pub fn owes_continue(&self) -> bool {
        self.expectation == Continue::Owed
    }

    /// The upstream takes no more of the request, whose response is complete. What is left of the
    /// body is dropped as behind a refusal.
    pub fn stop_upload(&mut self) {
        if let RequestSide::Body(body) = &self.request {
            let body = body.clone();
            self.drop_body(&body, self.owes_continue());
        }
    }

    /// Makes ready for the next request on the connection.
    pub fn next(&mut self) {
        *self = Exchange::new(self.policy);
    }

    /// Answers for the upstream. Only while [`Exchange::may_answer`]. Returns how many bytes of the
    /// unused downstream input are used up: the head, where it was still waiting.
    pub fn fail(&mut self, fault: UpstreamFault, out: &mut GatherList) -> usize {
        out.clear();
        let mut used = 0;
        match &self.request {
            RequestSide::Body(body) => {
                let (body, unsure) = (body.clone(), self.owes_continue());
                self.drop_body(&body, unsure);
            }
            RequestSide::Waiting(request) => {
                let request = *request;
                used = request.len;
                self.leave_body(&request);
            }
            _ => {}
        }
        self.answer(&fault.response(), out);
        used
    }

    /// Answers that the request will not be served, and gives the connection up. Only while
    /// [`Exchange::may_answer`].
    pub fn refuse(&mut self, reject: Reject, out: &mut GatherList) {
        out.clear();
        self.close = true;
        self.request = RequestSide::Discard;
        self.answer(&reject.response(), out);
    }

    fn answer(&mut self, response: &LocalResponse, out: &mut GatherList) {
        self.expectation = Continue::NotExpected;
        self.upstream_close = true;
        self.status = Some(response.status());
        self.code = Some(response.code);
        self.response = ResponseSide::Complete;
        response.write(self.close, self.is_head, out);
    }

    /// Gives the client the 100 that it waits for.
    pub fn send_continue(&mut self, out: &mut GatherList) {
        if self.owes_continue() {
            self.expectation = Continue::SentByUs;
            out.text(b"HTTP/1.1 100 Continue\r\n\r\n");
        }
    }
}

fn add_data(input: &[u8], at: usize, len: usize, chunked: bool, out: &mut GatherList) {
    if chunked {
        out.hexadecimal(len as u64);
        out.text(b"\r\n");
    }
    out.input(input, at..at + len);
    if chunked {
        out.text(b"\r\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http1::limits;
    use crate::http1::request::RequestContext;

    const HEAD: &str = "POST /v1/responses HTTP/1.1\r\nHost: localhost\r\n";

    /// What went to each side, with `<block>` in place of the credential block.
    #[derive(Default, Debug, PartialEq)]
    struct Seen {
        upstream: String,
        downstream: String,
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
                RequestStep::Forward => seen.upstream += &text(&list, rest),
                RequestStep::Respond | RequestStep::RespondAndShutDown => {
                    seen.downstream += &text(&list, rest);
                }
                _ => assert!(list.is_empty()),
            }
            seen.used += used;
            let done = step == RequestStep::Idle || exchange.is_complete();
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
    fn answer(exchange: &mut Exchange, input: &[u8], cut: usize) -> Seen {
        let (mut seen, mut list) = (Seen::default(), GatherList::default());
        let mut end = 0;
        while exchange.is_under_way() {
            list.clear();
            let rest = &input[seen.used..end];
            let (used, step) = exchange.receive_response(rest, &mut list, &mut |_| false);
            if let ResponseStep::Fault(fault) = step {
                seen.fault = Some(fault);
                return seen;
            }
            seen.downstream += &text(&list, rest);
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

    fn begun(request: &str) -> Exchange {
        let mut exchange = Exchange::new(Policy::default());
        let seen = ask(&mut exchange, request, usize::MAX / 2);
        assert!(seen.upstream.starts_with("<block>") && exchange.is_under_way());
        exchange
    }

    fn code(answer: &str) -> &str {
        let at = answer.find("\"code\":\"").unwrap() + 8;
        &answer[at..at + answer[at..].find('"').unwrap()]
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
                assert_eq!((seen.upstream.as_str(), seen.used), (want, request.len()), "cut {cut}");
            }
        }
        let chunked = format!(
            "{HEAD}Transfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n2\r\nde\r\n0\r\nT: 1\r\n\r\n"
        );
        for cut in 1..=chunked.len() {
            let mut exchange = Exchange::new(Policy::default());
            let seen = ask(&mut exchange, &chunked, cut);
            assert_eq!(
                dechunked(&seen.upstream),
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
            let seen = answer(&mut exchange, format!("{hints}{sized}").as_bytes(), cut);
            assert_eq!(
                seen.downstream,
                format!("{hints}HTTP/1.1 200 OK\r\nX: y\r\nContent-Length: 2\r\n\r\n{{}}")
            );
            assert!(exchange.upstream_reusable() && !exchange.closes());

            let mut exchange = begun(&format!("{HEAD}\r\n"));
            let seen = answer(&mut exchange, chunked.as_bytes(), cut);
            assert_eq!(
                dechunked(&seen.downstream),
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked|abcde|"
            );
            assert!(exchange.upstream_reusable() && exchange.bytes_out == 5);
        }
    }

    #[test]
    fn without_a_connection_the_head_waits_and_is_sent_once_there_is_one() {
        let request = format!("{HEAD}Content-Length: 2\r\n\r\n{{}}");
        let (mut exchange, mut list) = (Exchange::new(Policy::default()), GatherList::default());
        let step =
            exchange.receive_request(request.as_bytes(), &RequestContext::ready(false), &mut list);
        assert_eq!(step, (0, RequestStep::NeedUpstream));
        assert!(list.is_empty() && exchange.is_waiting() && !exchange.is_idle());
        let (used, step) =
            exchange.receive_request(request.as_bytes(), &RequestContext::ready(true), &mut list);
        assert_eq!((used, step), (request.len(), RequestStep::Forward));
        assert!(exchange.is_under_way() && !exchange.is_uploading());
    }

    #[test]
    fn a_head_that_waited_in_vain_is_answered_and_used_up() {
        let request = format!("{HEAD}Content-Length: 2\r\n\r\n{{}}");
        let (mut exchange, mut list) = (Exchange::new(Policy::default()), GatherList::default());
        exchange.receive_request(request.as_bytes(), &RequestContext::ready(false), &mut list);
        let used = exchange.fail(UpstreamFault::Refused, &mut list);
        assert_eq!(used, request.len() - 2);
        assert_eq!(code(&text(&list, &[])), "upstream_refused");
        list.clear();
        let rest = &request.as_bytes()[used..];
        assert_eq!(
            exchange.receive_request(rest, &RequestContext::ready(false), &mut list),
            (2, RequestStep::Idle)
        );
        assert!(exchange.is_over() && !exchange.closes());
    }

    #[test]
    fn an_early_final_response_ends_the_upload_and_the_upstream_connection() {
        for (length, closes) in [(limits::DROP, false), (limits::DROP + 1, true)] {
            let mut exchange = begun(&format!("{HEAD}Content-Length: {length}\r\n\r\n"));
            assert!(exchange.is_uploading());
            let seen = answer(&mut exchange, b"HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n", 100);
            assert_eq!(seen.downstream.contains("Connection: close\r\n"), closes);
            assert!(!exchange.is_uploading() && !exchange.upstream_reusable());
            assert_eq!(exchange.closes(), closes);
            let body = vec![b'x'; limits::DROP as usize];
            let (used, _) = exchange.receive_request(
                &body,
                &RequestContext::ready(true),
                &mut GatherList::default(),
            );
            assert_eq!(used, body.len());
            assert_eq!(exchange.is_over(), !closes);
        }
    }

    #[test]
    fn an_early_success_or_redirect_lets_the_upload_go_on_in_any_order() {
        for status in [200, 204, 302] {
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
                let seen = answer(&mut exchange, begin.as_bytes(), 7);
                assert!(!seen.downstream.contains("Connection: close"));
                assert!(exchange.is_uploading() && !exchange.closes());
                if response_first {
                    answer(&mut exchange, rest.as_bytes(), 7);
                    assert!(exchange.is_complete() && exchange.is_uploading());
                    assert!(!exchange.is_over());
                }
                for byte in [b"c", b"d"] {
                    let mut list = GatherList::default();
                    let step =
                        exchange.receive_request(byte, &RequestContext::ready(true), &mut list);
                    assert_eq!(step, (1, RequestStep::Forward));
                    assert_eq!(text(&list, byte).as_bytes(), byte);
                }
                assert!(!exchange.is_uploading());
                if !response_first {
                    answer(&mut exchange, rest.as_bytes(), 7);
                }
                assert!(exchange.is_over() && !exchange.upstream_reusable());
                assert_eq!((exchange.bytes_in, exchange.status), (4, Some(status)));
            }
        }
    }

    #[test]
    fn an_upload_that_nobody_wants_any_more_is_dropped_or_ends_the_connection() {
        for (length, closes) in [(limits::DROP, false), (limits::DROP + 1, true)] {
            let mut exchange = begun(&format!("{HEAD}Content-Length: {length}\r\n\r\n"));
            answer(&mut exchange, b"HTTP/1.1 204 X\r\n\r\n", 9);
            assert!(exchange.is_complete() && exchange.is_uploading());
            exchange.stop_upload();
            assert!(!exchange.is_uploading());
            assert_eq!(exchange.closes(), closes);
            let body = vec![b'x'; limits::DROP as usize];
            exchange.receive_request(
                &body,
                &RequestContext::ready(true),
                &mut GatherList::default(),
            );
            assert_eq!(exchange.is_over(), !closes);
        }
    }

    #[test]
    fn a_broken_chunk_behind_an_early_response_is_told_as_such() {
        for complete in [true, false] {
            let mut exchange =
                begun(&format!("{HEAD}Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n"));
            let length = if complete { 0 } else { 1 };
            let head = format!("HTTP/1.1 200 X\r\nContent-Length: {length}\r\n\r\n");
            answer(&mut exchange, head.as_bytes(), 9);
            let mut list = GatherList::default();
            let (used, step) =
                exchange.receive_request(b"zz\r\n", &RequestContext::ready(true), &mut list);
            assert_eq!((used, step), (4, RequestStep::Broken));
            assert!(list.is_empty() && exchange.closes());
            assert_eq!(exchange.is_complete(), complete);
        }
    }

    #[test]
    fn an_encoded_response_is_a_fault_unless_it_is_allowed() {
        let head = b"HTTP/1.1 200 X\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nxyz";
        let seen = answer(&mut begun(&format!("{HEAD}\r\n")), head, 100);
        assert_eq!(seen.fault, Some(UpstreamFault::Encoded));
        let policy = Policy { allow_encoded_responses: true, ..Policy::default() };
        let mut exchange = Exchange::new(policy);
        ask(&mut exchange, &format!("{HEAD}\r\n"), 1000);
        let seen = answer(&mut exchange, head, 100);
        assert!(seen.downstream.ends_with("xyz") && seen.fault.is_none());
    }

    #[test]
    fn close_delimited_bodies_end_only_when_the_peer_says_so() {
        for clean in [true, false] {
            let mut exchange = begun(&format!("{HEAD}\r\n"));
            let seen = answer(&mut exchange, b"HTTP/1.1 200 OK\r\n\r\nabc", 100);
            assert!(seen.downstream.ends_with("\r\n\r\n3\r\nabc\r\n"));
            let mut list = GatherList::default();
            let step = exchange.receive_end(clean, &mut list);
            if clean {
                assert_eq!((step, text(&list, &[])), (ResponseStep::Forward, "0\r\n\r\n".into()));
                assert!(exchange.is_over() && !exchange.upstream_reusable());
            } else {
                assert_eq!(step, ResponseStep::Fault(UpstreamFault::Closed));
                assert!(!exchange.may_answer() && list.is_empty());
            }
        }
    }

    #[test]
    fn truncated_bodies_are_faults() {
        for head in ["Content-Length: 5", "Transfer-Encoding: chunked"] {
            let mut exchange = begun(&format!("{HEAD}\r\n"));
            answer(&mut exchange, format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n1\r\nx").as_bytes(), 9);
            let step = exchange.receive_end(true, &mut GatherList::default());
            assert_eq!(step, ResponseStep::Fault(UpstreamFault::Closed));
            assert!(!exchange.may_answer());
        }
    }

    #[test]
    fn interim_responses_are_bounded_and_never_101() {
        let hints = |n: usize| "HTTP/1.1 103 E\r\n\r\n".repeat(n) + "HTTP/1.1 204 No\r\n\r\n";
        let most = usize::from(limits::INTERIM);
        let seen = answer(&mut begun(&format!("{HEAD}\r\n")), hints(most).as_bytes(), 50);
        assert_eq!((seen.fault, seen.downstream), (None, hints(most)));
        let seen = answer(&mut begun(&format!("{HEAD}\r\n")), hints(most + 1).as_bytes(), 50);
        assert_eq!(seen.fault, Some(UpstreamFault::BadResponse));
        let switch = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n";
        let seen = answer(&mut begun(&format!("{HEAD}\r\n")), switch, 50);
        assert_eq!(seen.fault, Some(UpstreamFault::SwitchedProtocols));
    }

    #[test]
    fn a_client_that_waits_for_100_gets_it_once() {
        let request = format!("{HEAD}Expect: 100-continue\r\nContent-Length: 2\r\n\r\n");
        let mut exchange = begun(&request);
        assert!(exchange.owes_continue());
        let mut list = GatherList::default();
        exchange.send_continue(&mut list);
        assert_eq!(text(&list, &[]), "HTTP/1.1 100 Continue\r\n\r\n");
        list.clear();
        exchange.send_continue(&mut list);
        assert!(list.is_empty());
        let seen = answer(&mut exchange, b"HTTP/1.1 100 Continue\r\n\r\n", 100);
        assert_eq!(seen.downstream, "");

        // One that sends does not wait.
        let mut exchange = begun(&(request + "{}"));
        assert!(!exchange.owes_continue());
        let seen = answer(&mut exchange, b"HTTP/1.1 100 Continue\r\n\r\n", 100);
        assert_eq!(seen.downstream, "HTTP/1.1 100 Continue\r\n\r\n");
    }

    #[test]
    fn a_broken_chunk_is_a_400_and_the_end_of_the_connection() {
        let request = format!("{HEAD}Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\nzz\r\n");
        for cut in [1, 7, request.len()] {
            let mut exchange = Exchange::new(Policy::default());
            let seen = ask(&mut exchange, &request, cut);
            assert!(seen.downstream.starts_with("HTTP/1.1 400 Bad Request\r\n"));
            assert_eq!(code(&seen.downstream), "invalid_chunk");
            assert!(exchange.closes() && exchange.is_complete());
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
            assert_eq!(code(&seen.downstream), "route_not_allowed");
            assert_eq!(exchange.closes(), closes, "{fields}");
            assert_eq!(seen.downstream.contains("Connection: close\r\n"), closes, "{fields}");
        }
    }

    #[test]
    fn an_answer_that_reflects_the_key_is_stopped() {
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
