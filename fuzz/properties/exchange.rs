//! The whole state machine between a client and an upstream that send any bytes in any order.
//!
//! An input consists of flags, the length of the client's stream (two bytes), the number of events
//! (one byte), then the client's stream, the events, and the upstream's stream.

use codex_responses_api_proxy::http1::exchange::{
    Continue, Exchange, FaultOutcome, RequestStep, ResponseStep, Rest, State,
};
use codex_responses_api_proxy::http1::gather::GatherList;
use codex_responses_api_proxy::http1::local_response::UpstreamFault;
use codex_responses_api_proxy::http1::request::{Policy, RequestContext};

use super::strict::{self, Field, Parsed};

const BLOCK: &[u8] = b"POST /x HTTP/1.1\r\nHost: up.example\r\n";
/// The fields that can carry the key.
const KEY_FIELDS: [(&str, &str); 2] = [("Authorization", "Bearer KEY"), ("api-key", "KEY")];
/// Fields that are never forwarded.
pub const HOP_BY_HOP: [&str; 9] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "trailer",
    "upgrade",
    "transfer-encoding",
];

/// Fields that are never forwarded, with any punctuation in their names.
pub const WITHHELD: [&str; 16] = [
    "a-im",
    "range",
    "if-range",
    "accept-charset",
    "accept-encoding",
    "x-http-method",
    "x-http-method-override",
    "x-method-override",
    "x-original-url",
    "x-rewrite-url",
    "x-original-uri",
    "x-original-method",
    "x-forwarded-host",
    "x-forwarded-method",
    "x-forwarded-uri",
    "x-envoy-original-path",
];

/// Fields that are forwarded, but not under a name with other punctuation.
const SPELLED: [&str; 3] = ["content-type", "content-encoding", "sec-fetch-site"];

/// The name with a hyphen for each byte that is neither letter nor digit, in lower case.
fn plain(name: &[u8]) -> Vec<u8> {
    name.iter()
        .map(|b| if b.is_ascii_alphanumeric() { b.to_ascii_lowercase() } else { b'-' })
        .collect()
}

/// The names of fields, for the message of a failure.
fn names(fields: &[&Field]) -> String {
    let names = fields.iter().map(|field| field.0.escape_ascii().to_string());
    names.collect::<Vec<_>>().join(", ")
}

/// The bytes of one side: all of them, how many have arrived, and how many have been used.
struct Stream<'a> {
    bytes: &'a [u8],
    arrived: usize,
    used: usize,
}

impl<'a> Stream<'a> {
    fn new(bytes: &'a [u8]) -> Stream<'a> {
        Stream { bytes, arrived: 0, used: 0 }
    }

    fn arrive(&mut self, n: usize) {
        self.arrived = (self.arrived + n).min(self.bytes.len());
    }

    fn waiting(&self) -> &'a [u8] {
        &self.bytes[self.used..self.arrived]
    }
}

struct Driver<'a> {
    exchange: Exchange,
    /// Which of [`KEY_FIELDS`] carries the key.
    key_field: (&'static str, &'static str),
    client: Stream<'a>,
    upstream: Stream<'a>,
    /// Where this exchange began in each stream.
    begun: (usize, usize),
    /// How the upstream's stream ended.
    ended: Option<bool>,
    ready: bool,
    to_upstream: Vec<u8>,
    to_client: Vec<u8>,
    /// The whole request has been sent upstream.
    whole: bool,
    over: bool,
    turns: usize,
}

/// Drives the state machine and checks the result of each exchange.
pub fn exchange(data: &[u8]) {
    let [flags, low, high, count, rest @ ..] = data else {
        return;
    };
    let length = usize::from(u16::from_le_bytes([*low, *high])).min(rest.len());
    let (client, rest) = rest.split_at(length);
    let (events, upstream) = rest.split_at(usize::from(*count).min(rest.len()));
    let key_field = KEY_FIELDS[usize::from(flags >> 3 & 1)];
    let other = (key_field.0 != "Authorization").then_some(key_field.0.as_bytes());
    let policy =
        Policy { http_shutdown: flags & 1 == 1, credential_field: other, ..Policy::default() };
    let mut driver = Driver {
        exchange: Exchange::new(policy),
        key_field,
        client: Stream::new(client),
        upstream: Stream::new(upstream),
        begun: (0, 0),
        ended: None,
        ready: flags & 2 == 0,
        to_upstream: Vec::new(),
        to_client: Vec::new(),
        whole: false,
        over: false,
        turns: 0,
    };
    for event in events {
        let n = usize::from(event >> 3) + 1;
        match event & 7 {
            0 | 1 => driver.client.arrive(n),
            2 => driver.client.arrive(n * 64),
            3 => driver.upstream.arrive(n),
            4 => driver.upstream.arrive(n * 64),
            6 if n == 32 => driver.time_out(),
            5 | 6 => {}
            _ => driver.ready = !driver.ready,
        }
        driver.pump();
    }
    // All bytes arrive, and then no more: every exchange must come to an end.
    driver.ready = true;
    driver.client.arrive(usize::MAX / 2);
    driver.pump();
    driver.upstream.arrive(usize::MAX / 2);
    driver.pump();
    driver.ended = Some(flags & 4 == 0);
    driver.pump();
    let state = driver.exchange.state();
    let ends = driver.over || matches!(state, State::Idle | State::Complete { .. });
    assert!(ends, "it waits for ever");
}

impl Driver<'_> {
    fn send(&mut self, list: &GatherList, input: &[u8]) {
        list.slices(input).for_each(|bytes| self.to_client.extend_from_slice(bytes));
    }

    fn go_on(&mut self) {
        if !self.over && self.exchange.expectation() == Continue::Owed {
            let mut list = GatherList::default();
            self.exchange.send_continue(&mut list);
            self.send(&list, &[]);
        }
    }

    /// Connecting takes too long, if the exchange waits for a connection.
    fn time_out(&mut self) {
        let state = self.exchange.state();
        if let State::Waiting(_) | State::Uploading(_) | State::Awaiting = state
            && !self.over
        {
            self.fault(UpstreamFault::ConnectTimeout);
            assert!(!self.over, "no response has begun");
        }
    }

    fn fault(&mut self, fault: UpstreamFault) {
        let mut list = GatherList::default();
        match self.exchange.fault(fault, &mut list) {
            FaultOutcome::Responded { used } => {
                self.client.used += used;
                self.send(&list, &[]);
            }
            // The client's connection is reset.
            FaultOutcome::MustReset => {
                assert!(list.is_empty());
                self.check(false);
                self.over = true;
            }
        }
    }

    fn pump(&mut self) {
        while !self.over && self.turn() {
            self.turns += 1;
            let most = 1_000 + 16 * (self.client.bytes.len() + self.upstream.bytes.len());
            assert!(self.turns < most, "it turns for ever");
        }
    }

    /// One turn, in the order of the real loop. Returns whether any byte moved.
    fn turn(&mut self) -> bool {
        let mut moved = false;
        let state = self.exchange.state();
        if let State::Uploading(_) | State::Awaiting | State::Responding { .. } = state {
            let input = self.upstream.waiting();
            let mut list = GatherList::default();
            if !input.is_empty() {
                let (used, step) = self.exchange.receive_response(input, &mut list, &mut |_| false);
                self.upstream.used += used;
                moved = used > 0 || step != ResponseStep::Forward;
                match step {
                    ResponseStep::Forward => self.send(&list, input),
                    ResponseStep::Fault(fault) => self.fault(fault),
                }
            }
            if !moved
                && !self.over
                && let Some(clean) = self.ended
            {
                moved = true;
                match self.exchange.receive_end(clean, &mut list) {
                    ResponseStep::Forward => self.send(&list, &[]),
                    ResponseStep::Fault(fault) => self.fault(fault),
                }
            }
        }
        if self.over {
            return moved;
        }
        let wants = match self.exchange.state() {
            State::Idle | State::Uploading(_) => true,
            State::Waiting(_) => self.ready,
            State::Awaiting => false,
            State::Responding { rest, .. } => !rest.is_none(),
            State::Complete { rest: Rest::Upload(_) } => {
                // An upstream that sends bytes after its response, or ends, needs no more of the
                // request.
                if !self.upstream.waiting().is_empty() || self.ended.is_some() {
                    self.exchange.stop_upload();
                    return true;
                }
                true
            }
            State::Complete { .. } if self.exchange.is_last() => {
                self.check(true);
                self.over = true;
                return true;
            }
            State::Complete { rest: Rest::None } => {
                self.check(true);
                self.exchange.next();
                self.begun = (self.client.used, self.upstream.used);
                return true;
            }
            State::Complete { .. } => true,
        };
        let input = self.client.waiting();
        if !wants || input.is_empty() {
            return moved;
        }
        let mut list = GatherList::default();
        let (used, step) =
            self.exchange.receive_request(input, &RequestContext::ready(self.ready), &mut list);
        match step {
            RequestStep::Forward => {
                assert_eq!(list.has_credential(), self.to_upstream.is_empty(), "the block, once");
                if list.has_credential() {
                    let (name, value) = self.key_field;
                    self.to_upstream.extend_from_slice(BLOCK);
                    self.to_upstream.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
                }
                let bytes = list.slices(input).flatten();
                self.to_upstream.extend(bytes);
                self.whole |= !self.exchange.state().is_uploading();
                // After the head, and before any byte of the response.
                self.go_on();
            }
            RequestStep::Broken => {
                assert!(list.is_empty() && self.exchange.is_last());
                if !matches!(self.exchange.state(), State::Complete { .. }) {
                    // The client's connection is reset.
                    self.check(false);
                    self.over = true;
                }
            }
            RequestStep::Respond | RequestStep::RespondAndShutDown => self.send(&list, input),
            _ => assert!(list.is_empty()),
        }
        self.client.used += used;
        moved || used > 0 || !matches!(step, RequestStep::NeedMore | RequestStep::NeedUpstream)
    }

    /// The bytes that one exchange has sent to each side.
    fn check(&mut self, complete: bool) {
        let to_upstream = std::mem::take(&mut self.to_upstream);
        let to_client = std::mem::take(&mut self.to_client);
        let whole = std::mem::take(&mut self.whole);
        let asked = &self.client.bytes[self.begun.0..];
        let is_head = asked.strip_prefix(b"\r\n").unwrap_or(asked).starts_with(b"HEAD ");
        let asked = strict::head(asked);
        if !to_upstream.is_empty() {
            self.check_request(&asked, &to_upstream, whole);
        }
        let (status, body) = response(&to_client, complete, is_head);
        if complete && self.exchange.code.is_none() && !to_upstream.is_empty() {
            assert_eq!(Some(status), self.exchange.status);
            let wanted = upstream_body(&self.upstream.bytes[self.begun.1..self.upstream.used]);
            assert!(body == wanted, "another body");
        }
    }

    /// Checks that there is exactly one request, with the relay's key and framing and the client's
    /// content.
    fn check_request(&self, asked: &Parsed, sent: &[u8], whole: bool) {
        let Parsed::Good { line, fields: asked, len } = asked else {
            panic!("forwarded, but it is {asked:?}");
        };
        assert!(line == b"POST /v1/responses HTTP/1.1" || line == b"POST /v1/responses HTTP/1.0");
        let Parsed::Good { line: start, fields, len: end } = strict::head(sent) else {
            panic!("what was sent is malformed");
        };
        assert_eq!(start, b"POST /x HTTP/1.1");
        let own: [Field; 2] = [
            (b"Host".to_vec(), b"up.example".to_vec()),
            (self.key_field.0.into(), self.key_field.1.into()),
        ];
        let never = ["host", "authorization", "content-length", self.key_field.0];
        assert_eq!(fields[..2], own);
        let (framing, travelled) = fields[2..].split_last().expect("a length");
        let (via, travelled) = travelled.split_last().expect("a Via");
        let version = if line.ends_with(b"0") { b"1.0 relay" } else { b"1.1 relay" };
        assert!(via.0 == b"Via" && via.1 == version);
        let is = |field: &Field, name: &str| field.0.eq_ignore_ascii_case(name.as_bytes());
        for field in travelled {
            for name in HOP_BY_HOP.iter().chain(&never).chain(&WITHHELD).chain(&["expect"]) {
                assert!(plain(&field.0) != plain(name.as_bytes()), "{name} has travelled");
            }
            assert!(asked.contains(field), "a field that the client did not send");
        }
        // Fields keep their order, and only those that must be are dropped.
        let is_named = |field: &Field| {
            asked.iter().filter(|other| is(other, "connection")).any(|other| {
                other
                    .1
                    .split(|byte| *byte == b',')
                    .any(|option| option.trim_ascii().eq_ignore_ascii_case(&field.0))
            })
        };
        let ends_here = |field: &&Field| {
            let never = HOP_BY_HOP.iter().chain(&never).chain(&WITHHELD);
            let mut never = never.chain(&["expect"]).chain(&SPELLED);
            let looks_like = never.any(|name| plain(&field.0) == plain(name.as_bytes()));
            let exact = SPELLED.iter().any(|name| is(field, name));
            let proxy = plain(&field.0).starts_with(b"proxy-");
            (looks_like && !exact) || proxy || is_named(field)
        };
        let kept: Vec<&Field> = asked.iter().filter(|field| !ends_here(field)).collect();
        let travelled: Vec<&Field> = travelled.iter().collect();
        assert!(kept == travelled, "to keep: {}; kept: {}", names(&kept), names(&travelled));

        let said = &self.client.bytes[self.begun.0 + len..];
        let sent = &sent[end..];
        if is(framing, "content-length") {
            let length = strict::decimal(&framing.1).expect("a number");
            let lengths: Vec<&Field> = asked.iter().filter(|f| is(f, "content-length")).collect();
            match lengths[..] {
                [] => assert_eq!(length, 0),
                [one] => assert_eq!(strict::decimal(&one.1), Some(length)),
                _ => panic!("two lengths were accepted"),
            }
            assert!(said.starts_with(sent), "other bytes");
            assert_eq!(whole, sent.len() as u64 == length, "whole or not");
        } else {
            assert!(is(framing, "transfer-encoding") && framing.1 == b"chunked");
            let (body, end) = strict::chunked(sent);
            let (want, want_end) = strict::chunked(said);
            assert!(want.starts_with(&body), "other bytes");
            assert_eq!(whole, end == Some(sent.len()), "whole or not");
            assert!(!whole || (want_end.is_some() && body == want), "a false end");
        }
    }
}

/// Parses the bytes that the client got: the final status and the body. No byte follows a complete
/// response; a truncated one never looks complete.
fn response(bytes: &[u8], complete: bool, is_head: bool) -> (u16, Vec<u8>) {
    let mut at = 0;
    loop {
        let Parsed::Good { line, fields, len } = strict::head(&bytes[at..]) else {
            assert!(!complete, "no response");
            return (0, Vec::new());
        };
        at += len;
        let status: u16 = std::str::from_utf8(&line[9..12]).unwrap().parse().unwrap();
        if status < 200 {
            continue;
        }
        let values = |name: &str| {
            let name = name.to_owned();
            fields.iter().filter(move |f| f.0.eq_ignore_ascii_case(name.as_bytes())).map(|f| &f.1)
        };
        let rest = &bytes[at..];
        let lengths: Vec<_> = values("content-length").collect();
        let codings: Vec<_> = values("transfer-encoding").collect();
        assert!(lengths.len() + codings.len() <= 1, "two lengths");
        if is_head || status == 204 || status == 304 {
            assert!(rest.is_empty());
            return (status, Vec::new());
        }
        if let [length] = lengths[..] {
            let length = strict::decimal(length).expect("a number");
            assert_eq!(complete, rest.len() as u64 == length, "whole or not");
            return (status, rest.to_vec());
        }
        if let [coding] = codings[..] {
            assert_eq!(coding, b"chunked");
            let (body, end) = strict::chunked(rest);
            assert_eq!(complete, end.is_some(), "whole or not");
            assert!(end.is_none_or(|end| end == rest.len()), "bytes behind the end");
            return (status, body);
        }
        // Only the end of the connection ends the body.
        let closes = values("connection").any(|value| value == b"close");
        assert!(closes, "a response without end on a connection that stays");
        return (status, rest.to_vec());
    }
}

/// The body of the final response in the upstream's bytes.
fn upstream_body(bytes: &[u8]) -> Vec<u8> {
    let mut at = 0;
    loop {
        let Parsed::Good { line, fields, len } = strict::head(&bytes[at..]) else {
            panic!("passed on, but it is malformed");
        };
        at += len;
        let status = &line[9..12];
        if status[0] == b'1' {
            continue;
        }
        let rest = &bytes[at..];
        if status == b"204" || status == b"304" {
            return Vec::new();
        }
        let has = |name: &str| fields.iter().any(|f| f.0.eq_ignore_ascii_case(name.as_bytes()));
        return if has("transfer-encoding") { strict::chunked(rest).0 } else { rest.to_vec() };
    }
}
