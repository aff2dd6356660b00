//! Runs the vectors against the real program, over sockets and with real TLS to the upstream.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use super::support::{Client, End, Gate, Peer, Relay, Upstream, body, ok};

use super::vector_file::{self, Case, Outcome};

/// Runs the cases on a few threads; every failure is told with its name.
fn each(cases: Vec<Case>, run: impl Fn(&Case) + Sync) {
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::SeqCst)) {
                    let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(case)));
                    assert!(done.is_ok(), "{} failed, see above", case.name);
                }
            });
        }
    });
}

fn cases(is_answer: bool) -> Vec<Case> {
    vector_file::load().into_iter().filter(|case| case.is_answer == is_answer).collect()
}

/// Reads one request, whole or not, and responds to a whole one.
fn note(peer: &mut Peer) -> Option<(String, Option<Vec<u8>>)> {
    let head = peer.head()?;
    let read = std::panic::AssertUnwindSafe(|| body(&head, &mut |n| peer.take(n)).unwrap());
    let body = std::panic::catch_unwind(read).ok();
    if body.is_some() {
        peer.try_write(ok(""));
    }
    Some((head, body))
}

#[test]
fn every_request_comes_out_as_it_says() {
    each(cases(false), |case| {
        let (tell, told) = Gate::pair();
        let upstream = Upstream::tls(move |peer| {
            while let Some((head, body)) = note(peer) {
                let whole = body.is_some();
                tell.pass((head, body));
                if !whole {
                    return;
                }
            }
        });
        let relay = Relay::to(&upstream.url()).start();
        let mut client = relay.connect();
        client.try_send(&case.bytes);
        let mut open = true;
        for outcome in &case.outcomes {
            assert!(open, "{}: nothing comes after the end", case.name);
            match outcome {
                Outcome::Refused { status, code, keep } => {
                    let response = client.response();
                    assert_eq!((response.status, response.code()), (*status, code.as_str()));
                    let closes = response.fields("connection").contains(&"close");
                    assert_eq!(closes, !keep, "{}", response.head);
                    open = *keep;
                }
                Outcome::Forward(want) => {
                    let mut response = client.response();
                    if response.status == 100 {
                        response = client.response();
                    }
                    assert_eq!(response.status, 200);
                    open = !response.fields("connection").contains(&"close");
                    let (head, body) = told.wait();
                    let key = format!("Authorization: Bearer {}\r\n", relay.key);
                    let (block, rest) = head.split_once(&key).expect("our key");
                    let start = format!(
                        "POST /v1/responses HTTP/1.1\r\nHost: localhost:{}\r\n\
                         Accept-Encoding: identity\r\n",
                        upstream.port
                    );
                    assert!(block == start, "{block}");
                    let fields: Vec<u8> = rest.chars().map(|c| c as u8).collect();
                    let got = [fields, body.unwrap()].concat();
                    assert!(got == *want, "{} got {}", case.name, got.escape_ascii());
                }
                Outcome::Wait => {
                    client.stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
                    assert_eq!(client.rest(), (Vec::new(), End::Open), "{}", case.name);
                    return;
                }
                other => panic!("{other:?} is no outcome of a request"),
            }
        }
        if open {
            client.send("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
            assert_eq!(client.response().code(), "route_not_allowed");
        } else {
            client.try_send("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
            assert!(client.rest().0.is_empty(), "{}: a response after the end", case.name);
        }
        let whole = case.outcomes.iter().filter(|o| matches!(o, Outcome::Forward(_))).count();
        drop(client);
        // Nothing more has reached the upstream: at most a request that never became whole.
        assert!(
            told.drain().into_iter().all(|(_, body)| body.is_none()),
            "{}: {whole} are enough",
            case.name
        );
    });
}

/// The bytes of a response and its body free of framing, from a client that reads strictly.
fn whole_answer(client: &mut Client) -> Vec<u8> {
    let mut out = Vec::new();
    loop {
        let answer = client.response();
        out.extend(answer.head.as_bytes());
        out.extend(&answer.body);
        if !(100..200).contains(&answer.status) {
            return out;
        }
    }
}

#[test]
fn every_response_comes_out_as_it_says() {
    each(cases(true), |case| {
        let answer = case.clone();
        let (tell, told) = Gate::pair();
        let upstream = Upstream::tls(move |peer| {
            if peer.number > 1 {
                while peer.request().is_some() {
                    peer.write(ok("next"));
                }
                return;
            }
            peer.request();
            peer.try_write(&answer.bytes);
            match answer.end {
                vector_file::End::Open => {
                    // The connection stays open until the outcome is known.
                    told.wait();
                }
                vector_file::End::Fin => peer.close(),
                vector_file::End::Cut => peer.cut(),
            }
        });
        let relay = Relay::to(&upstream.url()).start();
        let mut client = relay.connect();
        let request = "POST /v1/responses HTTP/1.1\r\nHost: localhost\r\n\r\n";
        client.send(request);
        match &case.outcomes[0] {
            Outcome::Pass(want) => {
                let got = whole_answer(&mut client);
                assert!(got == *want, "{} got {}", case.name, got.escape_ascii());
            }
            Outcome::Fault { status, code } => {
                let mut answer = client.response();
                while (100..200).contains(&answer.status) {
                    answer = client.response();
                }
                assert_eq!((answer.status, answer.code()), (*status, code.as_str()));
            }
            Outcome::Reset(_) => {
                let (got, end) = client.rest();
                tell.signal();
                assert_eq!(end, End::Reset, "{}", case.name);
                assert!(!got.ends_with(b"0\r\n\r\n"), "{}: a false end", case.name);
                return;
            }
            other => panic!("{other:?} is no outcome of a response"),
        }
        tell.signal();
        // The connection can be used again, with a fresh upstream connection where need be.
        let again = client.send("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").response();
        assert_eq!(again.code(), "route_not_allowed", "{}", case.name);
    });
}
