//! Tests that a response that contains the key is cut off, and that no byte of any other response
//! is held back.

use std::io::Read;

use super::support::relay::{marker_key, random_hex};
use super::support::{End, Gate, Relay, Upstream, ok, post};

const CHUNKED: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";

/// The key goes in at each `KEY`; `|` begins another record.
fn reflecting(template: &'static str) -> (Upstream, Relay) {
    let key = marker_key();
    let text = template.replace("KEY", &key);
    // A cut inside the key, too.
    let text = text.replace("CUT", &format!("{}|{}", &key[..10], &key[10..]));
    let upstream = Upstream::tls(move |peer| {
        while peer.request().is_some() {
            for part in text.split('|') {
                if !peer.try_write(part) {
                    return;
                }
            }
        }
    });
    let relay = Relay::to(&upstream.url()).key(&key).start();
    (upstream, relay)
}

fn holds(bytes: &[u8], key: &str) -> bool {
    bytes.windows(key.len()).any(|window| window == key.as_bytes())
}

#[test]
fn a_head_that_reflects_the_key_is_withheld() {
    for template in [
        "HTTP/1.1 401 KEY\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 401 No\r\nX-You-Sent: Bearer KEY\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 401 No\r\nX-KEY: 1\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 302 Found\r\nLocation: /?k=xKEYx\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 401 No\r\nX: CUT\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 103 Early Hints\r\nLink: KEY\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n",
        "HTTP/1.1 401 No\r\nConnection: KEY\r\nContent-Length: 0\r\n\r\n",
    ] {
        let (_upstream, relay) = reflecting(template);
        let response = relay.connect().send(post("", "{}")).response();
        assert!(!holds(response.head.as_bytes(), &relay.key) && !holds(&response.body, &relay.key));
        assert_eq!((response.status, response.code()), (502, "credential_reflected"), "{template}");
    }
}

#[test]
fn a_body_that_reflects_the_key_is_cut_off() {
    for template in [
        "HTTP/1.1 401 No\r\nContent-Length: 200\r\n\r\n{\"error\":\"KEY\"}",
        "HTTP/1.1 401 No\r\nContent-Length: 200\r\n\r\n|{\"error\":\"KEY\"}",
        "HTTP/1.1 401 No\r\nContent-Length: 200\r\n\r\n{\"error\":\"CUT\"}",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n50\r\ndata: KEY",
        "HTTP/1.1 200 OK\r\n\r\nxKEY",
        "HTTP/1.1 200 OK\r\n\r\nxCUT",
    ] {
        let (_upstream, relay) = reflecting(template);
        let (got, end) = relay.connect().send(post("", "{}")).rest();
        assert_eq!(end, End::Reset, "{template}");
        assert!(!holds(&got, &relay.key), "{template}");
    }
}

#[test]
fn a_key_spread_over_chunks_is_cut_off() {
    let key = marker_key();
    let chunks: String = key.chars().map(|c| format!("1\r\n{c}\r\n")).collect();
    let (_upstream, relay) = {
        let upstream = Upstream::tls(move |peer| {
            peer.request().unwrap();
            peer.try_write(format!("{CHUNKED}{chunks}0\r\n\r\n"));
        });
        let relay = Relay::to(&upstream.url()).key(&key).start();
        (upstream, relay)
    };
    let (got, end) = relay.connect().send(post("", "{}")).rest();
    assert_eq!(end, End::Reset);
    let got = String::from_utf8_lossy(&got);
    let body = got.rsplit("\r\n\r\n").next().unwrap();
    let data: String = body.split("\r\n").skip(1).step_by(2).collect();
    assert!(data.len() <= 22, "{} bytes of the key have passed", data.len());
}

/// How many bytes of this part of a key of today's length reach the client, when the upstream puts
/// it into the reason, a field, or the body, there in chunks of so many bytes.
fn passed(part: std::ops::Range<usize>, place: &str, size: usize) -> usize {
    let key = format!("sk-proj-{}{}{}", random_hex(), random_hex(), random_hex());
    let part = key[part].to_owned();
    let chunks: Vec<String> = part
        .as_bytes()
        .chunks(size)
        .map(|text| format!("{:x}\r\n{}\r\n", text.len(), String::from_utf8_lossy(text)))
        .collect();
    let pieces = match place {
        "body" => [vec![CHUNKED.to_owned()], chunks, vec!["0\r\n\r\n".to_owned()]].concat(),
        "field" => vec![format!("HTTP/1.1 200 OK\r\nX: {part}\r\nContent-Length: 0\r\n\r\n")],
        _ => vec![format!("HTTP/1.1 200 {part}\r\nContent-Length: 0\r\n\r\n")],
    };
    let upstream = Upstream::tls(move |peer| {
        peer.request().unwrap();
        if pieces.iter().all(|piece| peer.try_write(piece)) {
            peer.closed();
        }
    });
    let relay = Relay::to(&upstream.url()).key(&key).start();
    let (got, _) = relay.connect().send(post("Connection: close\r\n", "{}")).rest();
    let got = String::from_utf8_lossy(&got);
    let (head, mut rest) = got.split_once("\r\n\r\n").unwrap_or_default();
    let mut seen = head.to_owned();
    while let Some((size, data)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap_or_default().min(data.len());
        seen += &data[..size];
        rest = data[size..].trim_start();
    }
    (1..=part.len()).rev().find(|n| seen.contains(&part[..*n])).unwrap_or_default()
}

#[test]
fn any_31_bytes_of_the_key_are_withheld_wherever_they_stand() {
    // The whole key; without its first or last byte; 31 bytes from its beginning, middle and end.
    for part in [0..152, 1..152, 0..151, 0..31, 70..101, 121..152] {
        for place in ["reason", "field"] {
            let passed = passed(part.clone(), place, 152);
            assert!(passed < 12, "{passed} bytes of {part:?} have passed in the {place}");
        }
        for size in [1, 7, 30, 31, 152] {
            let passed = passed(part.clone(), "body", size);
            assert!(passed <= 30, "{passed} bytes of {part:?} have passed, {size} at a time");
        }
    }
}

#[test]
fn no_byte_is_held_back_whatever_it_may_be_the_beginning_of() {
    let key = marker_key();
    let (go_on, may_go_on) = Gate::pair();
    // Each event ends in a longer beginning of the key, or in as many bytes of no key at all.
    let events: Vec<String> = (1..16)
        .flat_map(|n| [format!("data: {}", &key[..n]), format!("data: {}", "~".repeat(n))])
        .collect();
    let sent = events.clone();
    let upstream = Upstream::tls(move |peer| {
        peer.request();
        peer.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        may_go_on.wait();
        for event in &sent {
            peer.write(format!("{:x}\r\n{event}\r\n", event.len()));
            // The next is sent when this one has arrived to its last byte.
            may_go_on.wait();
            peer.write("1\r\n.\r\n");
            may_go_on.wait();
        }
        peer.write("0\r\n\r\n");
        peer.closed();
    });
    let relay = Relay::to(&upstream.url()).key(&key).start();
    let mut client = relay.connect();
    client.send(post("", "{}")).head();
    go_on.signal();
    let mut chunk = [0; 4096];
    for event in &events {
        for want in [format!("{:x}\r\n{event}\r\n", event.len()), "1\r\n.\r\n".into()] {
            let want = want.as_bytes();
            // One write of the upstream's is one write of the relay's.
            let whole = client.stream.read(&mut chunk).is_ok_and(|n| chunk[..n] == *want);
            assert!(whole, "an event of {} bytes has come in pieces", event.len());
            go_on.signal();
        }
    }
    assert_eq!(client.take(5), b"0\r\n\r\n");
}

#[test]
fn a_masked_key_and_what_is_too_little_of_it_pass() {
    let key = marker_key();
    // As APIs show a key that they refuse; its beginning; all of it but the end.
    let end = key.len() - 4;
    let text = format!("{}****{} {} {}", &key[..8], &key[end..], &key[..15], &key[end - 15..end]);
    let upstream = Upstream::answering(ok(&text));
    let relay = Relay::to(&upstream.url()).key(&key).start();
    let response = relay.connect().send(post("", "{}")).response();
    assert!(response.status == 200 && response.text() == text);
}
