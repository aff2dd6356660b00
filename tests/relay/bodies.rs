//! Tests that bodies of every size pass in both directions, and that memory use stays constant.

use std::io::{BufRead, BufReader, Read, Write};
use std::time::{Duration, Instant};

use super::support::relay::emulated;
use super::support::{Client, DEADLINE, Gate, Peer, Relay, Upstream, client, pattern};

const MIB: usize = 1 << 20;
/// What the relay may grow by, in KiB, however much passes through it.
const GROWTH: usize = 1024;
/// The period of a long body: no cut at a round number falls twice on the same place.
const PERIOD: usize = 65_521;

#[track_caller]
fn held_little(before: usize, after: usize) {
    assert!(emulated() || after <= before + GROWTH, "{before} KiB before, {after} KiB after");
}

const REQUEST: &str = "POST /v1/responses HTTP/1.1\r\nHost: localhost\r\n";

#[derive(Clone, Copy, Debug, PartialEq)]
enum Framing {
    Length,
    Chunked,
}

use Framing::{Chunked, Length};

impl Framing {
    fn field(self, len: usize) -> String {
        match self {
            Length => format!("Content-Length: {len}\r\n\r\n"),
            Chunked => "Transfer-Encoding: chunked\r\n\r\n".into(),
        }
    }

    /// Writes a body of so many bytes of the long pattern; `write` is false when the other side
    /// reads no further.
    fn write(self, len: usize, mut write: impl FnMut(&[u8]) -> bool) {
        let period = pattern(PERIOD);
        let mut left = len;
        while left > 0 {
            let part = &period[..left.min(PERIOD)];
            left -= part.len();
            let sent = match self {
                Length => write(part),
                Chunked => {
                    write(&[format!("{:x}\r\n", part.len()).as_bytes(), part, b"\r\n"].concat())
                }
            };
            assert!(sent, "{left} bytes are still to come");
        }
        if self == Chunked {
            assert!(write(b"0\r\n\r\n"));
        }
    }

    /// Reads such a body and compares every byte.
    fn check(self, len: usize, from: &mut impl BufRead) {
        let period = pattern(PERIOD);
        let mut at = 0;
        let mut run = |from: &mut dyn BufRead, mut left: usize| {
            let mut buffer = vec![0; PERIOD];
            while left > 0 {
                let expected = &period[at % PERIOD..];
                let expected = &expected[..left.min(expected.len())];
                from.read_exact(&mut buffer[..expected.len()]).unwrap();
                assert!(buffer[..expected.len()] == *expected, "bytes after {at} differ");
                at += expected.len();
                left -= expected.len();
            }
        };
        match self {
            Length => run(from, len),
            Chunked => loop {
                let mut line = String::new();
                from.read_line(&mut line).unwrap();
                let size = usize::from_str_radix(line.strip_suffix("\r\n").unwrap(), 16).unwrap();
                run(from, size);
                let mut end = [0; 2];
                from.read_exact(&mut end).unwrap();
                assert_eq!(&end, b"\r\n");
                if size == 0 {
                    break;
                }
            },
        }
        assert_eq!(at, len);
    }
}

/// A message as it is read.
fn head(from: &mut impl BufRead) -> String {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert!(from.read_line(&mut head).unwrap() > 0, "the end inside a head");
    }
    head
}

/// Reads a head and the body behind it.
fn check(framing: Framing, len: usize, from: impl Read) {
    let mut from = BufReader::with_capacity(PERIOD, from);
    let head = head(&mut from);
    let (name, value) = match framing {
        Length => ("content-length", len.to_string()),
        Chunked => ("transfer-encoding", "chunked".into()),
    };
    assert_eq!(client::fields(&head, name), [value]);
    framing.check(len, &mut from);
    assert!(from.buffer().is_empty(), "more than was sent");
}

#[test]
fn bodies_of_every_size_and_framing_pass_both_ways() {
    // The upstream sends back what it got, framed as it is asked to.
    let upstream = Upstream::tls(|peer| {
        while let Some(request) = peer.request() {
            let body = &request.body;
            let mut response = b"HTTP/1.1 200 OK\r\n".to_vec();
            if request.fields("x-answer") == ["Length"] {
                response.extend(Length.field(body.len()).bytes());
                response.extend(body);
            } else {
                response.extend(Chunked.field(0).bytes());
                for part in body.chunks(7_000) {
                    response.extend(format!("{:x}\r\n", part.len()).bytes());
                    response.extend(part);
                    response.extend(b"\r\n");
                }
                response.extend(b"0\r\n\r\n");
            }
            peer.write(response);
        }
    });
    let relay = Relay::to(&upstream.url()).start();
    let mut client = relay.connect();
    for len in [0, 1, 2, 16_383, 16_384, 16_385, 65_535, 65_536, 65_537, 200_000] {
        for up in [Length, Chunked] {
            for down in [Length, Chunked] {
                let what = format!("{len} bytes, {up:?} up, {down:?} down");
                let mut request =
                    format!("{REQUEST}X-Answer: {down:?}\r\n{}", up.field(len)).into_bytes();
                up.write(len, |bytes| {
                    request.extend(bytes);
                    true
                });
                // At the same time, so that neither side has to hold it all.
                let mut writer = client.stream.try_clone().unwrap();
                let sender = std::thread::spawn(move || writer.write_all(&request));
                let response = client.response();
                sender.join().unwrap().unwrap();
                assert_eq!(response.status, 200, "{what}");
                let mut body = &response.body[..];
                assert_eq!(body.len(), len, "{what}");
                Length.check(len, &mut body);
                assert_eq!(upstream.requests().last().unwrap().body, response.body, "{what}");
            }
        }
    }
    assert_eq!(upstream.connections(), 1);
}

#[test]
fn a_body_in_very_many_chunks_passes_both_ways() {
    let body = pattern(30_000);
    let mut chunks = Vec::new();
    for byte in &body {
        chunks.extend([b'1', b'\r', b'\n', *byte, b'\r', b'\n']);
    }
    chunks.extend(b"0\r\n\r\n");
    let answer = [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", &chunks[..]].concat();
    let upstream = Upstream::answering(answer);
    let relay = Relay::to(&upstream.url()).start();
    let mut client = relay.connect();
    client.send([format!("{REQUEST}{}", Chunked.field(0)).as_bytes(), &chunks].concat());
    assert!(client.response().body == body);
    assert!(upstream.requests()[0].body == body);
}

#[test]
fn requests_sent_ahead_wait_in_constant_memory() {
    let (tell, told) = Gate::pair();
    let upstream = Upstream::tls(move |peer: &mut Peer| {
        peer.request().unwrap();
        told.wait();
        peer.write("HTTP/1.1 204 No Content\r\n\r\n");
    });
    let relay = Relay::to(&upstream.url()).start();
    let mut client = relay.connect();
    let refused = format!("GET / HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", "x".repeat(60_000));
    client.send(&refused);
    assert_eq!(client.response().status, 403);
    let before = relay.memory("VmHWM");
    client.send(format!("{REQUEST}\r\n"));
    let mut stream = client.stream.try_clone().unwrap();
    let (counter, sent) = Gate::pair();
    let count = HELD / refused.len();
    let sender = std::thread::spawn(move || {
        for _ in 0..count {
            counter.pass(refused.len());
            stream.write_all(refused.as_bytes()).unwrap();
        }
    });
    let waiting = at_rest(&sent);
    assert!(waiting < HELD / 2, "{waiting} bytes were taken in");
    let after = relay.memory("VmHWM");
    held_little(before, after);
    tell.signal();
    assert_eq!(client.response().status, 204);
    for _ in 0..count {
        assert_eq!(client.response().status, 403);
    }
    sender.join().unwrap();
}

/// An upstream that wants a body of the length in X-Up and gives one of the length in X-Down.
fn big(framing: Framing) -> Upstream {
    Upstream::tls(move |peer| {
        loop {
            let down = {
                let mut from = BufReader::with_capacity(PERIOD, &mut *peer);
                if from.fill_buf().is_ok_and(<[u8]>::is_empty) {
                    return;
                }
                let head = head(&mut from);
                let length = |name| client::fields(&head, name)[0].parse().unwrap();
                framing.check(length("x-up"), &mut from);
                length("x-down")
            };
            peer.write(format!("HTTP/1.1 200 OK\r\n{}", framing.field(down)));
            framing.write(down, |bytes| peer.try_write(bytes));
        }
    })
}

fn exchange(client: &mut Client, framing: Framing, up: usize, down: usize) {
    let head = format!("{REQUEST}X-Up: {up}\r\nX-Down: {down}\r\n{}", framing.field(up));
    client.send(head);
    framing.write(up, |bytes| client.stream.write_all(bytes).is_ok());
    check(framing, down, &client.stream);
}

/// 64 MiB each way leave the peak of memory where 1 MiB had it.
fn pass_in_constant_memory(framing: Framing, up: usize, down: usize) {
    let upstream = big(framing);
    let relay = Relay::to(&upstream.url()).start();
    let mut client = relay.connect();
    exchange(&mut client, framing, up / 64, down / 64);
    let before = relay.memory("VmHWM");
    exchange(&mut client, framing, up, down);
    let after = relay.memory("VmHWM");
    held_little(before, after);
}

#[test]
fn sixty_four_mib_up_with_a_length_in_constant_memory() {
    pass_in_constant_memory(Length, 64 * MIB, 0);
}

#[test]
fn sixty_four_mib_up_in_chunks_in_constant_memory() {
    pass_in_constant_memory(Chunked, 64 * MIB, 0);
}

#[test]
fn sixty_four_mib_down_with_a_length_in_constant_memory() {
    pass_in_constant_memory(Length, 0, 64 * MIB);
}

#[test]
fn sixty_four_mib_down_in_chunks_in_constant_memory() {
    pass_in_constant_memory(Chunked, 0, 64 * MIB);
}

#[test]
fn a_body_streams_as_it_arrives() {
    for (framing, parts, end) in [
        (Length, ["first", "second", "third"], ""),
        (Chunked, ["5\r\nfirst\r\n", "6\r\nsecond\r\n", "5\r\nthird\r\n"], "0\r\n\r\n"),
    ] {
        let (tell, told) = Gate::pair();
        let upstream = Upstream::tls(move |peer| {
            tell.pass(peer.head().unwrap());
            for part in parts {
                tell.pass(String::from_utf8(peer.take(part.len())).unwrap());
            }
            peer.take(end.len());
            peer.write("HTTP/1.1 204 No Content\r\n\r\n");
        });
        let relay = Relay::to(&upstream.url()).start();
        let mut client = relay.connect();
        // Each part arrives before the rest is sent.
        let next = || told.wait();
        client.send(format!("{REQUEST}{}", framing.field(16)));
        assert!(next().starts_with("POST "));
        for part in parts {
            client.send(part);
            assert_eq!(next(), part);
        }
        assert_eq!(client.send(end).response().status, 204);
    }
}

/// Waits until no more is sent, and returns how much it was.
pub fn at_rest(sent: &Gate<usize>) -> usize {
    let start = Instant::now();
    let mut sum = sent.wait();
    while let Some(more) = sent.wait_within(Duration::from_millis(400)) {
        assert!(start.elapsed() < DEADLINE, "it never rests");
        sum += more;
    }
    sum
}

const LONG: usize = 64 * MIB;
/// More than all socket buffers on the way hold together.
const HELD: usize = 48 * MIB;

#[test]
fn a_slow_reader_holds_constant_memory_and_the_upstream_waits() {
    let (counter, sent) = Gate::pair();
    let upstream = Upstream::tls(move |peer: &mut Peer| {
        while peer.request().is_some() {
            peer.write(format!("HTTP/1.1 200 OK\r\n{}", Length.field(LONG)));
            Length.write(LONG, |bytes| {
                counter.pass(bytes.len());
                peer.try_write(bytes)
            });
        }
    });
    let relay = Relay::to(&upstream.url()).start();
    let request = format!("{REQUEST}\r\n");
    let mut client = relay.connect();
    client.send(&request);
    check(Length, LONG, &client.stream);
    sent.drain();
    let before = relay.memory("VmHWM");
    client.send(&request);
    let waiting = at_rest(&sent);
    assert!(waiting < HELD, "{waiting} bytes went out, and none was read");
    let after = relay.memory("VmHWM");
    held_little(before, after);
    // Others are served meanwhile, and nothing was lost.
    let response = relay.connect().send("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").response();
    assert_eq!(response.status, 403);
    check(Length, LONG, &client.stream);
}

#[test]
fn a_slow_upstream_holds_constant_memory_and_the_client_waits() {
    let (tell, told) = Gate::pair();
    let upstream = Upstream::tls(move |peer: &mut Peer| {
        for _ in 0..2 {
            let mut from = BufReader::with_capacity(PERIOD, &mut *peer);
            head(&mut from);
            told.wait();
            Length.check(LONG, &mut from);
            peer.write("HTTP/1.1 204 No Content\r\n\r\n");
        }
    });
    let relay = Relay::to(&upstream.url()).start();
    let mut client = relay.connect();
    let upload = |client: &Client, counter: Gate<usize>| {
        let mut stream = client.stream.try_clone().unwrap();
        std::thread::spawn(move || {
            stream.write_all(format!("{REQUEST}{}", Length.field(LONG)).as_bytes()).unwrap();
            Length.write(LONG, |bytes| {
                counter.pass(bytes.len());
                stream.write_all(bytes).is_ok()
            });
        })
    };
    tell.signal();
    let sender = upload(&client, Gate::pair().0);
    assert_eq!(client.response().status, 204);
    sender.join().unwrap();
    let before = relay.memory("VmHWM");
    let (counter, sent) = Gate::pair();
    let sender = upload(&client, counter);
    let waiting = at_rest(&sent);
    assert!(waiting < HELD, "{waiting} bytes went out, and none was read");
    let after = relay.memory("VmHWM");
    held_little(before, after);
    tell.signal();
    assert_eq!(client.response().status, 204);
    sender.join().unwrap();
}
