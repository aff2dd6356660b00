//! Tests that a message that is split at any byte boundary has the same effect as the whole
//! message.

use std::sync::{Arc, Mutex, OnceLock};

use super::support::client::{fields, without_dates};
use super::support::{Client, End, Gate, Peer, Relay, Upstream, body};

/// Tells when the relay has dealt with what reached it before: it does one thing at a time, in the
/// order in which it comes, so once it has refused this it has seen the part sent before.
struct Probe(Client);

impl Probe {
    fn settle(&mut self) {
        let refused = self.0.send("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").response();
        assert_eq!(refused.status, 403);
    }
}

/// Each way to cut so many bytes in two, and into single bytes.
fn cuts(len: usize) -> impl Iterator<Item = Vec<usize>> {
    (1..len).map(|at| vec![at]).chain([(1..len).collect()])
}

fn parts<'a>(bytes: &'a [u8], cuts: &[usize]) -> Vec<&'a [u8]> {
    let ends = cuts.iter().copied().chain([bytes.len()]);
    let mut start = 0;
    ends.map(|end| &bytes[std::mem::replace(&mut start, end)..end]).collect()
}

/// What a request led to: what the client got, how that ended, and what the upstream saw.
type Asked = (String, End, Vec<(String, Vec<u8>)>);

struct Asking {
    relay: Relay,
    seen: Gate<(String, Vec<u8>)>,
    probe: Probe,
    _upstream: Upstream,
}

impl Asking {
    fn start() -> Asking {
        let (tell, seen) = Gate::pair();
        let upstream = Upstream::tls(move |peer| {
            while let Some(head) = peer.head() {
                let body = body(&head, &mut |n| peer.take(n)).unwrap();
                let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
                let answer = [answer.as_bytes(), &body].concat();
                tell.pass((head, body));
                peer.write(answer);
            }
        });
        let relay = Relay::to(&upstream.url()).start();
        let probe = Probe(relay.connect());
        Asking { relay, seen, probe, _upstream: upstream }
    }

    fn ask(&mut self, request: &str, cuts: &[usize]) -> Asked {
        let mut client = self.relay.connect();
        for (i, part) in parts(request.as_bytes(), cuts).into_iter().enumerate() {
            if i > 0 {
                self.probe.settle();
            }
            client.try_send(part);
        }
        let (got, end) = client.rest();
        let seen = self.seen.drain().into_iter().map(|(head, body)| {
            // No assert_eq: it would print the key.
            assert!(fields(&head, "authorization") == [format!("Bearer {}", self.relay.key)]);
            (head.replace(&self.relay.key, "KEY"), body)
        });
        // Where the body comes later than the head, the client is told to send it.
        let got = without_dates(String::from_utf8(got).unwrap());
        let got = got.strip_prefix("HTTP/1.1 100 Continue\r\n\r\n").unwrap_or(&got);
        (got.to_owned(), end, seen.collect())
    }
}

/// The last request of each closes the connection, so that each has an end. In front: how many of
/// them reach the upstream, and the last status.
const REQUESTS: [(usize, u16, &str); 14] = [
    (
        1,
        200,
        "POST /v1/responses HTTP/1.1\r\nHost: localhost\r\nX-A: b\r\nAuthorization: x\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello",
    ),
    (1, 200, "\r\nPOST /v1/responses HTTP/1.1\r\nHost: [::1]:80\r\nConnection: close\r\n\r\n"),
    (
        1,
        200,
        "POST /v1/responses HTTP/1.1\r\nHost: localhost\r\nConnection: x, close\r\nX: 1\r\nTransfer-Encoding: chunked\r\n\r\n3;e=\"f\"\r\nhel\r\n02 ;g\r\nlo\r\n0;h\r\nX-T: 1\r\nHost: a\r\n\r\n",
    ),
    (
        1,
        200,
        "POST /v1/responses HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello",
    ),
    (1, 200, "POST /v1/responses HTTP/1.0\r\nX-A: b\r\nContent-Length: 5\r\n\r\nhello"),
    (
        3,
        200,
        "POST /v1/responses HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\naPOST /v1/responses HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nb\r\n0\r\n\r\nPOST /v1/responses HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    ),
    (
        1,
        200,
        "POST /x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nhelloPOST /v1/responses HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    ),
    (0, 403, "GET /v1/responses?a HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"),
    (0, 403, "POST /v1/responses HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n"),
    (
        0,
        426,
        "GET /v1/responses HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: upgrade, close\r\n\r\n",
    ),
    (
        0,
        400,
        "POST /v1/responses HTTP/1.1\r\nHost: localhost\r\nX : y\r\n\r\nPOST /v1/responses HTTP/1.1\r\nHost: a\r\n\r\n",
    ),
    (0, 400, "POST /v1/responses HTTP/1.1\r\nHost: localhost\r\nX: a\nb: c\r\n\r\n"),
    (
        0,
        400,
        "POST /v1/responses HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx",
    ),
    (0, 505, "POST /v1/responses HTTP/1.2\r\nHost: localhost\r\n\r\n"),
];

#[test]
fn a_request_cut_anywhere_is_the_same_request() {
    let mut asking = Asking::start();
    for (count, status, request) in REQUESTS {
        let whole = asking.ask(request, &[]);
        let (got, end, seen) = &whole;
        assert_eq!((*end, seen.len()), (End::Fin, count), "{request}: {got}");
        assert!(got.contains(&format!("HTTP/1.1 {status} ")), "{request}: {got}");
        for cut in cuts(request.len()) {
            let got = asking.ask(request, &cut);
            assert!(got == whole, "{request:?} cut at {cut:?}: {got:?}, not {whole:?}");
        }
    }
}

#[test]
fn a_broken_chunk_is_found_wherever_it_is_cut() {
    let mut asking = Asking::start();
    for chunks in
        ["5\r\nhellox\r\n0\r\n\r\n", "5\nhello\r\n0\r\n\r\n", "5\r\nhello\r\n0\r\nX : 1\r\n\r\n"]
    {
        let head =
            "POST /v1/responses HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n";
        let request = format!("{head}{chunks}");
        let whole = asking.ask(&request, &[]);
        assert!(whole.0.contains("invalid_chunk") && whole.2.is_empty());
        for cut in cuts(chunks.len()) {
            let cut: Vec<usize> = cut.into_iter().map(|at| head.len() + at).collect();
            let got = asking.ask(&request, &cut);
            assert!(got == whole, "{chunks:?} cut at {cut:?}: {got:?}, not {whole:?}");
        }
    }
}

/// What the client got of a response: heads, body, end.
type Answered = (Vec<String>, Vec<u8>, End);

/// What the upstream does when it has written its response.
#[derive(Clone, Copy, PartialEq)]
enum Then {
    Goes,
    Stays,
}

use Then::{Goes, Stays};

/// In front: the final status that an HTTP/1.1 client gets, the body, and how the connection ends.
const ANSWERS: [(u16, &str, End, Then, &str); 14] = [
    (
        200,
        "hello",
        End::Fin,
        Stays,
        "HTTP/1.1 200 OK\r\nX-A: b\r\nKeep-Alive: 5\r\nContent-Length: 5\r\n\r\nhello",
    ),
    (
        200,
        "hello",
        End::Fin,
        Stays,
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;e=\"f\"\r\nhel\r\n02 ;g\r\nlo\r\n0;h\r\nX-T: 1\r\n\r\n",
    ),
    (200, "hello", End::Fin, Goes, "HTTP/1.1 200 OK\r\nX-A: b\r\n\r\nhello"),
    (200, "hello", End::Fin, Goes, "HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello"),
    (
        200,
        "hello",
        End::Fin,
        Stays,
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    ),
    (204, "", End::Fin, Stays, "HTTP/1.1 204 No Content\r\nX-A: b\r\nContent-Length: 9\r\n\r\n"),
    (304, "", End::Fin, Stays, "HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n"),
    (
        200,
        "hello",
        End::Fin,
        Stays,
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhelloHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    ),
    (
        502,
        "upstream_bad_response",
        End::Fin,
        Stays,
        "HTTP/1.1 200 OK\r\nX: a\nSet-Cookie: b\r\n\r\n",
    ),
    (
        502,
        "upstream_bad_response",
        End::Fin,
        Stays,
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    (
        502,
        "upstream_switched_protocols",
        End::Fin,
        Stays,
        "HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\n",
    ),
    (502, "upstream_closed", End::Fin, Goes, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n"),
    (200, "", End::Reset, Goes, "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhello"),
    (
        200,
        "",
        End::Reset,
        Goes,
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r",
    ),
];

/// An upstream that sends the response that the test chooses, part by part.
struct Answering {
    relay: Relay,
    next: Arc<Mutex<(Then, Vec<Vec<u8>>)>>,
    /// The response has been written, whether or not the client got all of it.
    written: Gate,
    _upstream: Upstream,
}

impl Answering {
    fn start() -> Answering {
        let next = Arc::new(Mutex::new((Stays, Vec::<Vec<u8>>::new())));
        let port = Arc::new(OnceLock::new());
        let (todo, relay_port) = (next.clone(), port.clone());
        let probe: Mutex<Option<Probe>> = Mutex::new(None);
        let (tell, written) = Gate::pair();
        let upstream = Upstream::tls(move |peer: &mut Peer| {
            while peer.request().is_some() {
                let (then, parts) = todo.lock().unwrap().clone();
                let mut probe = probe.lock().unwrap();
                let probe =
                    probe.get_or_insert_with(|| Probe(Client::connect(*relay_port.get().unwrap())));
                // The relay may have seen enough before the last part.
                let sent = parts.iter().all(|part| {
                    let sent = peer.try_write(part);
                    probe.settle();
                    sent
                });
                let ends = !sent || then == Goes;
                if ends {
                    peer.close();
                }
                tell.signal();
                if ends {
                    return;
                }
            }
        });
        let relay = Relay::to(&upstream.url()).start();
        port.set(relay.port).unwrap();
        Answering { relay, next, written, _upstream: upstream }
    }

    fn answer(&self, then: Then, answer: &str, cuts: &[usize], http10: bool) -> Answered {
        let parts = parts(answer.as_bytes(), cuts).into_iter().map(<[u8]>::to_vec).collect();
        *self.next.lock().unwrap() = (then, parts);
        let mut client = self.relay.connect();
        if http10 {
            client.send("POST /v1/responses HTTP/1.0\r\n\r\n");
            let (got, end) = client.rest();
            self.written.wait();
            // What had come when the reset did is chance.
            let got = if end == End::Reset { Vec::new() } else { got };
            return (Vec::new(), without_dates(String::from_utf8(got).unwrap()).into(), end);
        }
        client.send("POST /v1/responses HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        let (got, end) = client.rest();
        self.written.wait();
        if end == End::Reset {
            return (Vec::new(), Vec::new(), end);
        }
        // All of it is here: read it again, so that chunks are told from their contents.
        let mut heads = Vec::new();
        let mut rest = &got[..];
        let mut take = |n: usize| {
            let (part, left) = rest.split_at(n);
            rest = left;
            part.to_vec()
        };
        let body = loop {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.extend(take(1));
            }
            heads.push(without_dates(String::from_utf8(head).unwrap()));
            let head = heads.last().unwrap();
            match head[9..12].parse().unwrap() {
                100..=199 => {}
                204 | 304 => break Vec::new(),
                _ => break body(head, &mut take).unwrap(),
            }
        };
        assert!(rest.is_empty(), "more than a response");
        (heads, body, end)
    }
}

#[test]
fn a_response_cut_anywhere_is_the_same_response() {
    let answering = Answering::start();
    for (status, want, end, then, answer) in ANSWERS {
        for http10 in [false, true] {
            let whole = answering.answer(then, answer, &[], http10);
            assert_eq!(whole.2, end, "{answer}");
            if !http10 && end == End::Fin {
                assert_eq!(whole.0.last().unwrap()[9..12], status.to_string(), "{answer}");
                let body = String::from_utf8(whole.1.clone()).unwrap();
                let fine = if status == 502 { body.contains(want) } else { body == want };
                assert!(fine, "{answer}: {body}");
            }
            for cut in cuts(answer.len()) {
                let got = answering.answer(then, answer, &cut, http10);
                assert!(got == whole, "{answer:?} cut at {cut:?}: {got:?}, not {whole:?}");
            }
        }
    }
}

/// A key cut anywhere is still found.
#[test]
fn a_reflected_key_is_found_wherever_it_is_cut() {
    let answering = Answering::start();
    let key = &answering.relay.key;
    let body = format!("xx{key}");
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
    for at in 0..body.len() {
        let text = format!("{head}{body}");
        let (_, _, end) = answering.answer(Stays, &text, &[head.len() + at], false);
        assert!(end == End::Reset, "cut after {at} bytes");
        let named = format!("HTTP/1.1 401 No\r\nX: {body}\r\nContent-Length: 0\r\n\r\n");
        let (heads, _, end) = answering.answer(Stays, &named, &[20 + at], false);
        assert!(end == End::Fin && heads[0].starts_with("HTTP/1.1 502 "), "cut after {at} bytes");
    }
}
