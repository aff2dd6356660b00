//! The cost of a head, in steps of work (`http1::work`), is at most a small multiple of its length,
//! whatever it contains and however it is cut. Steps are counted only in debug builds.

use codex_responses_api_proxy::http1::exchange::{Exchange, RequestStep, ResponseStep, State};
use codex_responses_api_proxy::http1::gather::GatherList;
use codex_responses_api_proxy::http1::request::{Policy, RequestContext};
use codex_responses_api_proxy::http1::work::spent;

/// Steps for each byte of a message that arrives whole.
const WHOLE: u64 = 24;
/// Steps for each byte of a message that arrives in pieces. Its lines are parsed up to 16 times.
const DRIPPING: u64 = 64;
/// Further steps for each message, and for each piece of it.
const FIXED: u64 = 2_000;
const PIECE: u64 = 8;

/// An input consists of one byte that selects the side, the cuts, and the bytes of that side.
pub fn work(data: &[u8]) {
    let Some((flags, rest)) = data.split_first() else {
        return;
    };
    let (ends, input) = super::cuts(rest);
    let each_byte: Vec<usize> = (1..=input.len()).collect();
    for ends in [vec![input.len()], ends, each_byte] {
        let steps = if flags & 1 == 0 { ask(input, &ends) } else { respond(input, &ends) };
        let each = if ends.len() == 1 { WHOLE } else { DRIPPING };
        let most = FIXED + each * input.len() as u64 + PIECE * ends.len() as u64;
        assert!(steps <= most, "{steps} steps for {} bytes in {}", input.len(), ends.len());
    }
}

/// Steps for a client's bytes, before a connection is ready and with one.
pub fn ask(input: &[u8], ends: &[usize]) -> u64 {
    const DROPPED: &[&[u8]] = &[b"x-dropped", b"openai-project"];
    let policy = Policy { dropped_fields: DROPPED, ..Policy::default() };
    let mut exchange = Exchange::new(policy);
    let (mut used, mut list, before) = (0, GatherList::default(), spent());
    for end in ends {
        loop {
            list.clear();
            let rest = &input[used..*end];
            let is_waiting = matches!(exchange.state(), State::Waiting(_));
            let context = RequestContext::ready(is_waiting);
            let (n, step) = exchange.receive_request(rest, &context, &mut list);
            used += n;
            let is_complete = matches!(exchange.state(), State::Complete { .. });
            if is_complete || step == RequestStep::Broken {
                return spent() - before;
            }
            if step != RequestStep::NeedUpstream && (n == 0 || used == *end) {
                break;
            }
        }
    }
    spent() - before
}

/// Steps for an upstream's bytes.
pub fn respond(input: &[u8], ends: &[usize]) -> u64 {
    let mut exchange = Exchange::new(Policy::default());
    let request = b"POST /v1/responses HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let mut list = GatherList::default();
    exchange.receive_request(request, &RequestContext::ready(true), &mut list);
    let (mut used, before) = (0, spent());
    for end in ends {
        while !matches!(exchange.state(), State::Complete { .. }) {
            list.clear();
            let (n, step) =
                exchange.receive_response(&input[used..*end], &mut list, &mut |_| false);
            used += n;
            if step != ResponseStep::Forward {
                return spent() - before;
            }
            if n == 0 || used == *end {
                break;
            }
        }
    }
    spent() - before
}
