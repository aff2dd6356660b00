//! Tests responses with a content coding, which the search for the key cannot read.

use super::support::{Relay, Upstream, ok, post};

/// An upstream that gives this response, and what a client gets of it.
fn answer(head: &str, args: &[&str]) -> super::support::Response {
    let upstream = Upstream::answering(format!("HTTP/1.1 {head}\r\n\r\n"));
    let relay = Relay::to(&upstream.url()).args(args).start();
    relay.connect().send(post("", "{}")).response()
}

#[test]
fn the_upstream_is_asked_for_plain_bytes_whatever_the_client_asks_for() {
    for args in [&[][..], &["--allow-encoded-responses"]] {
        let upstream = Upstream::answering(ok("hello"));
        let relay = Relay::to(&upstream.url()).args(args).start();
        let sent = "Accept-Encoding: gzip\r\naccept-encoding: br\r\nACCEPT-CHARSET: utf-16\r\n\
                    Range: bytes=1-\r\nIf-Range: \"x\"\r\nAccept_Encoding: gzip\r\nA-IM: gzip\r\nX-A: 1\r\n";
        assert_eq!(relay.connect().send(post(sent, "{}")).response().status, 200);
        let request = upstream.requests().remove(0);
        assert_eq!(request.fields("accept-encoding"), ["identity"]);
        for name in ["accept-charset", "range", "if-range", "accept_encoding", "a-im"] {
            assert!(request.fields(name).is_empty(), "{name}");
        }
        assert_eq!(request.fields("x-a"), ["1"]);
    }
}

#[test]
fn an_encoded_response_is_withheld() {
    for fields in [
        "Content-Encoding: gzip",
        "content-ENCODING: GZIP",
        "Content-Encoding: br",
        "Content-Encoding:\tdeflate ",
        "Content-Encoding: x-unknown",
        "Content-Encoding: identity, gzip",
        "Content-Encoding: identity\r\nContent-Encoding: gzip",
        "Content-Encoding: gzip\r\nContent-Encoding: identity",
        "Content-Encoding: ,,gzip",
        "Content-Encoding: \"identity\"",
        "Content-Encoding: identity;q=1",
        "IM: gzip",
        "im: vcdiff, range",
        "Content-Type: text/plain; charset=utf-16",
        "Content-Type: text/plain;x=\"y\";CHARSET=\"UTF-16LE\"",
        "Content-Type: application/json ; charset=utf-32",
        "Content-Type: text/plain; charset=ibm037",
        "Content-Type: text/plain; charset=utf-7",
    ] {
        for framing in ["Content-Length: 5", "Transfer-Encoding: chunked"] {
            let body = if framing.ends_with('5') { "hello" } else { "5\r\nhello\r\n0\r\n\r\n" };
            let head = format!("HTTP/1.1 200 OK\r\n{fields}\r\n{framing}\r\n\r\n{body}");
            let upstream = Upstream::answering(head);
            let relay = Relay::to(&upstream.url()).start();
            let got = relay.connect().send(post("", "{}")).response();
            assert_eq!((got.status, got.code()), (502, "upstream_encoded"), "{fields}");
            drop(relay);
            let relay = Relay::to(&upstream.url()).args(["--allow-encoded-responses"]).start();
            let got = relay.connect().send(post("", "{}")).response();
            assert_eq!((got.status, got.text()), (200, "hello"), "{fields}");
            for line in fields.split("\r\n") {
                assert!(got.head.contains(&format!("\r\n{line}\r\n")), "{}", got.head);
            }
        }
    }
}

#[test]
fn a_response_that_is_not_encoded_passes_whatever_it_calls_itself() {
    for fields in [
        "",
        "Content-Encoding: identity\r\n",
        "Content-Encoding: IDENTITY , identity\r\n",
        "Content-Encoding:\r\n",
        "Content-Encoding: ,\r\n",
        "Content-Type: text/plain; charset=utf-8\r\n",
        "Content-Type: text/html; charset=\"ISO-8859-1\"\r\n",
        "Content-Type: text/plain; charset=shift_jis\r\n",
        "Content-Type: text/plain; xcharset=utf-16\r\n",
        "Content-Type: x\r\n",
        "Content-Type: \r\n",
    ] {
        let got = answer(&format!("200 OK\r\n{fields}Content-Length: 0"), &[]);
        assert_eq!(got.status, 200, "{fields}");
        assert!(got.head.contains(fields.trim_end()), "{}", got.head);
    }
    // These have no body that could hold anything.
    for head in [
        "204 No Content\r\nContent-Encoding: gzip",
        "304 Not Modified\r\nContent-Encoding: gzip",
        "200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 0",
        "103 Early Hints\r\nContent-Encoding: gzip\r\n\r\nHTTP/1.1 204 No Content",
    ] {
        let upstream = Upstream::answering(format!("HTTP/1.1 {head}\r\n\r\n"));
        let relay = Relay::to(&upstream.url()).start();
        let mut client = relay.connect();
        let mut got = client.send(post("", "{}")).response();
        if got.status == 103 {
            got = client.response();
        }
        assert!(matches!(got.status, 200 | 204 | 304), "{head}");
    }
}

#[test]
fn an_encoded_error_is_withheld_too() {
    let got = answer("401 No\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\nhi", &[]);
    assert_eq!((got.status, got.code()), (502, "upstream_encoded"));
}
