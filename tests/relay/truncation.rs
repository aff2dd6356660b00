//! Tests that a response that breaks off, or whose framing is malformed, never looks complete.

use super::support::upstream::{CLOSE, CUT, RESET, Way};
use super::support::{End, Gate, Relay, Upstream, post};

const LENGTH: &str = "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n";
const CHUNKED: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
const UNTIL_CLOSE: &str = "HTTP/1.1 200 OK\r\n\r\n";

const HTTP_1_0: &str = "POST /v1/responses HTTP/1.0\r\nContent-Length: 2\r\n\r\n{}";

/// The client has the head, then the upstream says this and ends: the client is reset.
#[track_caller]
fn resets(head: &'static str, rest: &'static str, (what, end): Way) {
    for request in [&*post("", "{}"), HTTP_1_0] {
        let (tell, told) = Gate::pair();
        let upstream = Upstream::once(move |peer| {
            peer.write(head);
            told.wait();
            peer.try_write(rest);
            end(peer);
        });
        let relay = Relay::to(&upstream.url()).start();
        let mut client = relay.connect();
        assert!(client.send(request).head().starts_with("HTTP/1.1 200 OK\r\n"));
        tell.signal();
        let (got, end) = client.rest();
        assert_eq!(end, End::Reset, "{head}{rest}, then {what}, after {request}");
        assert!(!got.ends_with(b"0\r\n\r\n"), "{head}{rest}, then {what}: a false end");
    }
}

#[test]
fn a_truncated_response_of_known_length_resets_the_client() {
    for rest in ["", "hello", "123456789"] {
        for way in [CLOSE, CUT, RESET] {
            resets(LENGTH, rest, way);
        }
    }
}

#[test]
fn a_truncated_chunked_response_resets_the_client() {
    for rest in [
        "",
        "5",
        "5\r\n",
        "5\r\nhel",
        "5\r\nhello",
        "5\r\nhello\r\n",
        "5\r\nhello\r\n0",
        "5\r\nhello\r\n0\r\n",
        "5\r\nhello\r\n0\r\nX: 1\r\n",
        "5\r\nhello\r\n0\r\nX: 1\r\n\r",
    ] {
        resets(CHUNKED, rest, CLOSE);
    }
    resets(CHUNKED, "5\r\nhello\r\n", CUT);
    resets(CHUNKED, "5\r\nhello\r\n", RESET);
}

#[test]
fn a_close_delimited_response_without_close_notify_resets_the_client() {
    for rest in ["", "hello"] {
        resets(UNTIL_CLOSE, rest, CUT);
        resets(UNTIL_CLOSE, rest, RESET);
    }
}

#[test]
fn broken_chunks_in_a_response_reset_the_client() {
    for rest in [
        "x\r\n",
        "+5\r\nhello\r\n0\r\n\r\n",
        "5\nhello\r\n0\r\n\r\n",
        "5\r\nhellox\r\n0\r\n\r\n",
        "5\r\nhello\n0\r\n\r\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
        "\r\n",
        "-1\r\n",
        "10000000000000000\r\nhello",
        "5\r\nhello\r\n0\r\nX : 1\r\n\r\n",
        "5\r\nhello\r\n0\r\n X: 1\r\n\r\n",
    ] {
        resets(CHUNKED, rest, ("nothing", |peer| peer.closed()));
    }
}

#[test]
fn a_plain_upstream_ends_a_close_delimited_response_with_fin_and_no_other_way() {
    for (way, whole) in [(CUT, true), (RESET, false)] {
        let (tell, told) = Gate::pair();
        let upstream = Upstream::plain(move |peer| {
            peer.request().unwrap();
            peer.write("HTTP/1.1 200 OK\r\n\r\nhello");
            told.wait();
            way.1(peer);
        });
        let relay = Relay::to(&upstream.url()).start();
        let mut client = relay.connect();
        let head = client.send(post("", "{}")).head();
        assert!(head.contains("Transfer-Encoding: chunked\r\n"));
        assert_eq!(client.take(10), b"5\r\nhello\r\n");
        tell.signal();
        if whole {
            assert_eq!(client.take(5), b"0\r\n\r\n");
        } else {
            client.expect_end(End::Reset);
        }
    }
}
