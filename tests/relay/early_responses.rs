//! Tests final responses that begin before the request has ended.

use std::io::{Read, Write};
use std::time::Duration;

use super::support::relay::emulated;
use super::support::{Client, End, Gate, Peer, Relay, Upstream, ok, pace, pattern, post};

const MIB: usize = 1 << 20;
const CHUNKED: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";

/// A request head for a body of this length.
fn head(length: usize, more: &str) -> String {
    format!(
        "POST /v1/responses HTTP/1.1\r\nHost: localhost\r\n{more}Content-Length: {length}\r\n\r\n"
    )
}

fn chunk(text: &str) -> String {
    format!("{:x}\r\n{text}\r\n", text.len())
}

/// The first connection runs the script; later ones respond to whole requests.
fn first(script: impl Fn(&mut Peer) + Send + Sync + 'static) -> Upstream {
    Upstream::tls(move |peer| {
        if peer.number == 1 {
            return script(peer);
        }
        while peer.request().is_some() {
            peer.write(ok("next"));
        }
    })
}

/// An upstream that reads "first", sends this response, and passes on the next bytes of the body,
/// so many of them.
fn early(response: String, rest: usize) -> (Upstream, Gate<Vec<u8>>) {
    let (tell, told) = Gate::pair();
    let upstream = first(move |peer| {
        peer.head().unwrap();
        assert_eq!(peer.take(5), b"first");
        peer.write(&response);
        if rest > 0 {
            tell.pass(peer.take(rest));
        }
        peer.closed();
    });
    (upstream, told)
}

fn next_is_served(client: &mut Client) {
    assert_eq!(client.send(post("", "{}")).response().text(), "next");
}

#[test]
fn a_success_or_redirect_during_the_upload_lets_both_go_on() {
    for status in ["200 OK", "202 Accepted", "307 Temporary Redirect"] {
        let upstream = first(move |peer| {
            peer.head().unwrap();
            assert_eq!(peer.take(5), b"first");
            peer.write(format!("HTTP/1.1 {status}\r\nTransfer-Encoding: chunked\r\n\r\n"));
            peer.write(chunk("one"));
            assert_eq!(peer.take(6), b"second");
            peer.write(chunk("two"));
            assert_eq!(peer.take(5), b"third");
            peer.write(chunk("three"));
            peer.write("0\r\n\r\n");
            peer.closed();
        });
        let relay = Relay::to(&upstream.url()).start();
        let mut client = relay.connect();
        let begin = client.send(head(16, "") + "first").head();
        assert!(begin.starts_with(&format!("HTTP/1.1 {status}\r\n")));
        assert_eq!(client.take(8), chunk("one").as_bytes());
        assert_eq!(client.send("second").take(8), chunk("two").as_bytes());
        assert_eq!(client.send("third").take(10), chunk("three").as_bytes());
        assert_eq!(client.take(5), b"0\r\n\r\n");
        // The client's connection goes on; the upstream's is not used again.
        next_is_served(&mut client);
        assert_eq!(upstream.connections(), 2);
    }
}

#[test]
fn a_response_that_is_complete_first_waits_for_the_rest_of_the_request() {
    for end in ["", "Connection: close\r\n"] {
        let (upstream, told) = early(ok("early"), 200_000);
        let relay = Relay::to(&upstream.url()).start();
        let mut client = relay.connect();
        client.send(head(200_005, end) + "first");
        assert_eq!(client.response().text(), "early");
        let rest = pattern(200_000);
        client.send(&rest[..100_000]).send(&rest[100_000..]);
        assert!(told.wait() == rest);
        if end.is_empty() {
            next_is_served(&mut client);
            assert_eq!(upstream.connections(), 2);
        } else {
            client.finish().expect_end(End::Fin);
        }
    }
}

#[test]
fn an_http_1_0_client_sees_the_end_of_the_response_and_may_still_send() {
    let (upstream, told) = early(format!("{CHUNKED}{}0\r\n\r\n", chunk("one")), 6);
    let relay = Relay::to(&upstream.url()).start();
    let mut client = relay.connect();
    client.send("POST /v1/responses HTTP/1.0\r\nContent-Length: 11\r\n\r\nfirst");
    let (got, end) = client.rest();
    assert!(got.ends_with(b"Connection: close\r\n\r\none"), "{}", got.escape_ascii());
    assert_eq!(end, End::Fin);
    client.send("second");
    assert_eq!(told.wait(), b"second");
}

#[test]
fn an_upstream_that_ends_after_an_early_response_needs_no_more_of_the_request() {
    for (length, stays) in [(1_000, true), (1 << 20, false)] {
        let upstream = first(|peer| {
            peer.head().unwrap();
            peer.take(5);
            peer.write(ok("early"));
            peer.close();
            peer.closed();
        });
        let relay = Relay::to(&upstream.url()).start();
        let mut client = relay.connect();
        client.send(head(length, "") + "first");
        assert_eq!(client.response().text(), "early");
        client.try_send("x".repeat(length - 5));
        if stays {
            next_is_served(&mut client);
        } else {
            client.finish().expect_end(End::Fin);
        }
    }
}

#[test]
fn an_upload_behind_its_response_keeps_its_place_when_the_table_is_full() {
    let (upstream, told) = early(ok("early"), 6);
    let relay = Relay::to(&upstream.url()).args(["--max-connections", "1"]).start();
    let mut client = relay.connect();
    client.send(head(11, "") + "first");
    assert_eq!(client.response().text(), "early");
    pace(Duration::from_millis(1_200));
    let mut other = relay.connect();
    assert_eq!(other.response().code(), "too_many_connections");
    client.send("second");
    assert_eq!(told.wait(), b"second");
    next_is_served(&mut client);
}

#[test]
fn a_response_that_breaks_off_during_the_upload_resets_the_client() {
    let (tell, told) = Gate::pair();
    let upstream = first(move |peer| {
        peer.head().unwrap();
        peer.take(5);
        peer.write(CHUNKED.to_owned() + &chunk("one"));
        told.wait();
        peer.cut();
    });
    let relay = Relay::to(&upstream.url()).start();
    let mut client = relay.connect();
    client.send(head(1_000, "") + "first");
    assert_eq!(client.head(), CHUNKED);
    assert_eq!(client.take(8), chunk("one").as_bytes());
    tell.signal();
    client.expect_end(End::Reset);
}

#[test]
fn a_client_that_leaves_during_the_upload_is_seen_by_the_upstream() {
    for complete in [false, true] {
        let (tell, told) = Gate::pair();
        let upstream = first(move |peer| {
            peer.head().unwrap();
            peer.take(5);
            peer.write(if complete { ok("early") } else { CHUNKED.to_owned() + &chunk("one") });
            let mut rest = Vec::new();
            let _ = peer.read_to_end(&mut rest);
            tell.pass(rest);
        });
        let relay = Relay::to(&upstream.url()).start();
        let mut client = relay.connect();
        client.send(head(1_000, "") + "first").head();
        client.send("second");
        drop(client);
        let rest = told.wait();
        assert!(b"second".starts_with(&rest), "{} bytes", rest.len());
    }
}

#[test]
fn a_broken_chunk_behind_an_early_response_ends_both() {
    let (tell, told) = Gate::pair();
    let upstream = first(move |peer| {
        peer.head().unwrap();
        assert_eq!(peer.take(8), b"3\r\none\r\n");
        peer.write(CHUNKED.to_owned() + &chunk("one"));
        let mut rest = Vec::new();
        let _ = peer.read_to_end(&mut rest);
        tell.pass(rest);
    });
    let relay = Relay::to(&upstream.url()).args(["--access-log"]).start();
    let mut client = relay.connect();
    client.send(
        "POST /v1/responses HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n\
         3\r\none\r\n",
    );
    client.head();
    client.take(8);
    client.send("zz\r\n");
    client.expect_end(End::Reset);
    assert_eq!(told.wait(), b"", "an end that the client did not send");
    relay.line_with("\"end\":\"invalid_chunk\"");
}

#[test]
fn a_client_that_stops_sending_behind_an_early_response_is_not_waited_for() {
    let (upstream, _) = early(ok("early"), 0);
    let relay = Relay::to(&upstream.url()).args(["--client-timeout", "1"]).start();
    let mut client = relay.connect();
    client.send(head(1_000, "") + "first");
    assert_eq!(client.response().text(), "early");
    client.expect_end(End::Fin);

    let (upstream, _) = early(CHUNKED.to_owned() + &chunk("one"), 0);
    let args = ["--client-timeout", "1", "--access-log"];
    let relay = Relay::to(&upstream.url()).args(args).start();
    let mut client = relay.connect();
    client.send(head(1_000, "") + "first").head();
    client.take(8);
    client.expect_end(End::Reset);
    relay.line_with("\"end\":\"request_timeout\"");
}

#[test]
fn both_directions_flow_at_once_in_constant_memory() {
    const LENGTH: usize = 24 * MIB;
    // What arrives goes back at once.
    let echo = |peer: &mut Peer| {
        while peer.head().is_some() {
            peer.write(format!("HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n\r\n"));
            for _ in 0..LENGTH / 65_536 {
                let part = peer.take(65_536);
                peer.write(part);
            }
        }
    };
    for upstream in [Upstream::tls(echo), Upstream::plain(echo)] {
        let relay = Relay::to(&upstream.url()).start();
        let part = pattern(65_536);
        let round = |relay: &Relay| {
            let mut client = relay.connect();
            let mut writer = client.stream.try_clone().unwrap();
            let sent = part.clone();
            let sender = std::thread::spawn(move || {
                writer.write_all(head(LENGTH, "").as_bytes()).unwrap();
                for _ in 0..LENGTH / sent.len() {
                    writer.write_all(&sent).unwrap();
                }
            });
            assert!(client.head().starts_with("HTTP/1.1 200 OK\r\n"));
            for at in 0..LENGTH / part.len() {
                assert!(client.take(part.len()) == part, "part {at} differs");
            }
            sender.join().unwrap();
        };
        round(&relay);
        let before = relay.memory("VmHWM");
        round(&relay);
        let after = relay.memory("VmHWM");
        assert!(emulated() || after <= before + 1024, "{before} KiB before, {after} KiB after");
    }
}
