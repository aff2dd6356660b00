//! The vectors through the pure state machine: whole, cut in two everywhere, and byte by byte.

mod vector_file;

use std::collections::HashSet;

use codex_responses_api_proxy::http1::exchange::{
    Exchange, FaultOutcome, RequestStep, ResponseStep, Rest, State,
};
use codex_responses_api_proxy::http1::gather::GatherList;
use codex_responses_api_proxy::http1::request::{Policy, RequestContext};

use vector_file::{Case, End, Outcome};

/// The bytes that a body's chunks hold; a body that is not whole has what came of it.
fn dechunked(message: &[u8]) -> Vec<u8> {
    const HEAD_END: &[u8] = b"\r\n\r\n";
    let mut at = 0;
    // Interim responses precede the head that says how the body is framed.
    let (head, body) = loop {
        let Some(length) = message[at..].windows(4).position(|w| w == HEAD_END) else {
            return message.to_vec();
        };
        let end = at + length + 4;
        let interim = message[at..].starts_with(b"HTTP/1.1 1");
        if !interim || end == message.len() {
            break (&message[..end], &message[end..]);
        }
        at = end;
    };
    if !head.ends_with(b"Transfer-Encoding: chunked\r\n\r\n") {
        return message.to_vec();
    }
    let (mut out, mut rest) = (head.to_vec(), body);
    while let Some(line) = rest.windows(2).position(|w| w == b"\r\n") {
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..line]).unwrap(), 16).unwrap();
        out.extend(&rest[line + 2..line + 2 + size]);
        rest = &rest[line + 2 + size + 2..];
    }
    assert!(rest.is_empty());
    out
}

fn bytes(list: &GatherList, input: &[u8]) -> Vec<u8> {
    list.slices(input).flatten().copied().collect()
}

fn code(answer: &[u8]) -> (u16, String) {
    let text = std::str::from_utf8(answer).unwrap();
    let status = text["HTTP/1.1 ".len()..][..3].parse().unwrap();
    let code = text.split_once("\"code\":\"").unwrap().1.split('"').next().unwrap();
    (status, code.to_owned())
}

/// What comes of the client's bytes, arriving in these pieces.
fn ask(input: &[u8], ends: &[usize]) -> Vec<Outcome> {
    let mut exchange = Exchange::new(Policy::default());
    let (mut outcomes, mut upstream, mut at) = (Vec::new(), Vec::new(), 0);
    for end in ends {
        loop {
            let mut list = GatherList::default();
            let rest = &input[at..*end];
            let (used, step) =
                exchange.receive_request(rest, &RequestContext::ready(true), &mut list);
            match step {
                RequestStep::Forward => {
                    assert_eq!(list.has_credential(), upstream.is_empty(), "the key, once");
                    upstream.extend(bytes(&list, rest));
                }
                RequestStep::Respond => {
                    let (status, code) = code(&bytes(&list, rest));
                    outcomes.push(Outcome::Refused { status, code, keep: !exchange.is_last() });
                }
                _ => assert!(list.is_empty()),
            }
            at += used;
            if exchange.is_last() && matches!(exchange.state(), State::Complete { .. }) {
                return outcomes;
            }
            if let State::Awaiting = exchange.state() {
                outcomes.push(Outcome::Forward(dechunked(&std::mem::take(&mut upstream))));
                let response = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
                exchange.receive_response(response, &mut GatherList::default(), &mut |_| false);
            }
            let next = matches!(exchange.state(), State::Complete { rest: Rest::None });
            if next {
                exchange.next();
            }
            if !next && (used == 0 || at == *end) {
                break;
            }
        }
    }
    if outcomes.is_empty() {
        outcomes.push(Outcome::Wait);
    }
    outcomes
}

fn is_under_way(exchange: &Exchange) -> bool {
    let state = exchange.state();
    matches!(state, State::Uploading(_) | State::Awaiting | State::Responding { .. })
}

/// What comes of the upstream's bytes, arriving in these pieces.
fn answer(case: &Case, ends: &[usize]) -> Vec<Outcome> {
    let mut exchange = Exchange::new(Policy::default());
    let request = b"POST /v1/responses HTTP/1.1\r\nHost: localhost\r\n\r\n";
    exchange.receive_request(request, &RequestContext::ready(true), &mut GatherList::default());
    let (mut downstream, mut at, mut fault) = (Vec::new(), 0, None);
    let mut turn = |exchange: &mut Exchange, list: &GatherList, rest: &[u8], step| match step {
        ResponseStep::Forward => downstream.extend(bytes(list, rest)),
        ResponseStep::Fault(said) => {
            fault = Some(match exchange.fault(said, &mut GatherList::default()) {
                FaultOutcome::Responded { .. } => {
                    let response = said.response();
                    Outcome::Fault { status: response.status(), code: response.code.to_owned() }
                }
                FaultOutcome::MustReset => Outcome::Reset(Vec::new()),
            });
        }
    };
    let mut broken = false;
    for end in ends {
        while is_under_way(&exchange) && !broken {
            let mut list = GatherList::default();
            let rest = &case.bytes[at..*end];
            let (used, step) = exchange.receive_response(rest, &mut list, &mut |_| false);
            broken = matches!(step, ResponseStep::Fault(_));
            turn(&mut exchange, &list, rest, step);
            at += used;
            if used == 0 || at == *end {
                break;
            }
        }
    }
    if is_under_way(&exchange) && !broken && case.end != End::Open {
        let mut list = GatherList::default();
        let step = exchange.receive_end(case.end == End::Fin, &mut list);
        turn(&mut exchange, &list, &[], step);
    }
    vec![match fault {
        None => {
            assert!(
                matches!(exchange.state(), State::Complete { .. }),
                "{}: it waits for ever",
                case.name
            );
            Outcome::Pass(dechunked(&downstream))
        }
        Some(Outcome::Reset(_)) => Outcome::Reset(dechunked(&downstream)),
        Some(fault) => fault,
    }]
}

/// Every cut in two of a short message, some cuts of a long one, and byte by byte.
fn cuts(len: usize) -> Vec<Vec<usize>> {
    let step = if len < 2_000 { 1 } else { 1_021 };
    let near_the_end = (len.saturating_sub(200)..len).filter(|_| step > 1);
    let mut cuts: Vec<Vec<usize>> =
        (0..len).step_by(step).chain(near_the_end).map(|cut| vec![cut, len]).collect();
    cuts.push(vec![len]);
    cuts.push((1..len).step_by(if len < 2_000 { 1 } else { 97 }).chain([len]).collect());
    cuts
}

#[test]
fn every_vector_comes_out_as_it_says_however_it_is_cut() {
    let mut wrong = Vec::new();
    for case in vector_file::load() {
        for ends in cuts(case.bytes.len()) {
            let got = if case.is_answer { answer(&case, &ends) } else { ask(&case.bytes, &ends) };
            if !is_as_wanted(&got, &case.outcomes) {
                let (got, want) = (shown(&got), shown(&case.outcomes));
                let cut = &ends[..ends.len().min(3)];
                wrong.push(format!("{} cut at {cut:?}\n got {got}\nwant {want}", case.name));
                break;
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// If a response breaks in the piece that begins it, less of it goes out before the reset.
fn is_as_wanted(got: &[Outcome], want: &[Outcome]) -> bool {
    match (got, want) {
        ([Outcome::Reset(got)], [Outcome::Reset(want)]) => want.starts_with(got),
        _ => got == want,
    }
}

fn shown(outcomes: &[Outcome]) -> String {
    let text = outcomes.iter().map(|outcome| match outcome {
        Outcome::Forward(bytes) => format!("forward {}", bytes.escape_ascii()),
        Outcome::Pass(bytes) => format!("pass {}", bytes.escape_ascii()),
        Outcome::Reset(bytes) => format!("reset {}", bytes.escape_ascii()),
        other => format!("{other:?}"),
    });
    text.map(|text| text.chars().take(400).collect::<String>()).collect::<Vec<_>>().join(" ; ")
}

#[test]
fn there_are_many_and_each_has_a_name_of_its_own() {
    let cases = vector_file::load();
    let names: HashSet<&str> = cases.iter().map(|case| case.name.as_str()).collect();
    assert_eq!(names.len(), cases.len());
    assert!(cases.iter().filter(|case| !case.is_answer).count() >= 200);
    assert!(cases.iter().filter(|case| case.is_answer).count() >= 80);
}
