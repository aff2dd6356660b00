//! Tests the local responses for an upstream that cannot be reached, that fails before its
//! response, or that sends a malformed one.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use super::support::port::closed_port;
use super::support::upstream::{CLOSE, CUT, Kind, RESET};
use super::support::{Client, End, Relay, Upstream, certs, ok, post};

/// A response of the relay's own, after which the client's connection can be used again.
#[track_caller]
fn fails(client: &mut Client, status: u16, code: &str) {
    let response = client.send(post("", "{}")).response();
    assert_eq!((response.status, response.code()), (status, code));
    assert!(response.fields("connection").is_empty());
    assert_eq!(client.send("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").response().status, 403);
}

#[test]
fn a_name_that_does_not_resolve_is_502() {
    let relay = Relay::to("https://no-such-host.invalid/v1/responses")
        .env("RES_OPTIONS", "timeout:1 attempts:1")
        .start();
    let mut client = relay.connect();
    // A failure is not remembered: each is asked for again.
    for _ in 0..2 {
        fails(&mut client, 502, "upstream_dns_failed");
    }
}

#[test]
fn a_refused_connection_is_502() {
    let closed = closed_port();
    let port = closed.port;
    for url in [format!("https://127.0.0.1:{port}/"), format!("http://localhost:{port}/")] {
        fails(&mut Relay::to(&url).start().connect(), 502, "upstream_refused");
    }
}

#[test]
fn an_address_that_no_route_leads_to_is_502() {
    // The kernel connects no TCP socket to a broadcast or multicast address.
    for address in ["255.255.255.255", "224.0.0.1"] {
        let relay = Relay::to(&format!("https://{address}/")).start();
        fails(&mut relay.connect(), 502, "upstream_unreachable");
    }
}

#[test]
fn a_certificate_that_does_not_hold_is_502_and_says_why() {
    for (kind, code) in [
        (Kind::UnknownIssuer, "upstream_tls_unknown_issuer"),
        (Kind::SelfSigned, "upstream_tls_unknown_issuer"),
        (Kind::WrongName, "upstream_tls_wrong_name"),
        (Kind::Expired, "upstream_tls_expired"),
    ] {
        for versions in [&[&rustls::version::TLS13][..], &[&rustls::version::TLS12]] {
            let config = certs().config(kind, versions);
            let upstream = Upstream::new(Some(config), |peer| {
                peer.request();
            });
            let relay = Relay::to(&upstream.url()).start();
            let mut client = relay.connect();
            fails(&mut client, 502, code);
            fails(&mut client, 502, code);
            assert!(upstream.requests().is_empty(), "the key went to another server");
        }
    }
}

#[test]
fn a_handshake_that_fails_is_502() {
    for say in ["HTTP/1.1 400 Bad Request\r\n\r\n", "", "\x15\x03\x03\x00\x02\x02\x28"] {
        let upstream = Upstream::plain(move |peer| {
            peer.write(say);
            peer.close();
            peer.closed();
        });
        let url = format!("https://localhost:{}/", upstream.port);
        fails(&mut Relay::to(&url).start().connect(), 502, "upstream_tls_failed");
    }
}

/// Any host on the way to the upstream can send this much: no key and no certificate is needed.
#[test]
fn nothing_that_is_said_in_place_of_a_handshake_ends_the_relay() {
    // A ServerHello that goes on for another 4 KiB, and one that is too long.
    let part = [b"\x16\x03\x03\x00\x20\x02\x00\x10\x00".as_slice(), &[b'a'; 28]].concat();
    let long = [b"\x16\x03\x03\x00\x20\x02\x01\x00\x00".as_slice(), &[b'a'; 28]].concat();
    let unsound = [b"\x16\x03\x03\x00\x24\x02\x00\x00\x20".as_slice(), &[b'a'; 32]].concat();
    let mut flights = vec![
        long.clone(),
        [&long[..9], b"\x16\x03\x03\x00\x10", &[b'a'; 16]].concat(),
        [&unsound[..], &part].concat(),
        [&part[..], &unsound].concat(),
    ];
    flights.extend(
        [
            b"\x15\x03\x03\x00\x02\x02\x28".as_slice(),
            b"\x15\x03\x03\x00\x02\x01\x00",
            b"\x14\x03\x03\x00\x01\x02",
            b"\x17\x03\x03\x00\x01a",
            b"\x63\x03\x03\x00\x01a",
            b"\x16\x03\x03\xff\xffa",
            b"\x16\x03\x03\x00\x00",
        ]
        .map(|then| [&part, then].concat()),
    );
    for flight in flights {
        for piece in [flight.len(), 1, 7] {
            let said = flight.clone();
            let upstream = Upstream::plain(move |peer| {
                said.chunks(piece).all(|bytes| peer.try_write(bytes));
                peer.close();
                peer.closed();
            });
            let url = format!("https://localhost:{}/", upstream.port);
            fails(&mut Relay::to(&url).start().connect(), 502, "upstream_tls_failed");
        }
    }
}

#[test]
fn an_upstream_that_speaks_tls_1_1_alone_is_502() {
    let hello = [&[2, 0, 0, 38, 3, 2][..], &[7; 32], &[0, 0xc0, 0x13, 0]].concat();
    for record in [
        // Such a server's alert to a client that offers 1.2 and 1.3: protocol_version, fatal.
        vec![0x15, 3, 2, 0, 2, 2, 70],
        // A ServerHello of TLS 1.1.
        [&[0x16, 3, 2, 0, hello.len() as u8][..], &hello].concat(),
    ] {
        // The preconnect fails as well, before the request or after its head.
        let upstream = Upstream::plain(move |peer| {
            // The header of the client's record.
            if peer.take_unless_closed(5).is_some() {
                peer.write(&record);
                peer.closed();
            }
        });
        let url = format!("https://localhost:{}/", upstream.port);
        fails(&mut Relay::to(&url).start().connect(), 502, "upstream_tls_failed");
    }
}

#[test]
fn no_usable_connection_within_ten_seconds_is_504() {
    // A listener whose queue is full: the kernel drops what comes.
    let full = TcpListener::bind("127.0.0.1:0").unwrap();
    // SAFETY: no memory is involved.
    unsafe { libc::listen(full.as_raw_fd(), 0) };
    let address: SocketAddr = full.local_addr().unwrap();
    let mut queue = Vec::new();
    while let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(300)) {
        queue.push(stream);
        assert!(queue.len() < 100, "the queue does not fill");
    }
    // An upstream that accepts and never speaks TLS.
    let silent = Upstream::plain(|peer| peer.closed());
    let relays = [address.port(), silent.port]
        .map(|port| Relay::to(&format!("https://127.0.0.1:{port}/")).start());
    let mut clients = relays.each_ref().map(|relay| {
        let mut client = relay.connect();
        client.send(post("", "{}"));
        client
    });
    let start = Instant::now();
    for client in &mut clients {
        let response = client.response();
        assert_eq!((response.status, response.code()), (504, "upstream_connect_timeout"));
        let took = start.elapsed();
        assert!(took > Duration::from_secs(9) && took < Duration::from_secs(18), "{took:?}");
    }
}

#[test]
fn an_upstream_that_closes_before_it_responds_is_502() {
    for (what, end) in [CLOSE, CUT, RESET] {
        for said in [
            "",
            "H",
            "HTTP/1.1 200 OK\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r",
            "HTTP/1.1 103 Early Hints\r\n\r\n",
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n",
        ] {
            let upstream = Upstream::once(move |peer| {
                peer.write(said);
                end(peer);
            });
            let relay = Relay::to(&upstream.url()).start();
            let mut client = relay.connect();
            client.send(post("", "{}"));
            if said.starts_with("HTTP/1.1 10") {
                assert!(client.head().starts_with("HTTP/1.1 10"));
            }
            let response = client.response();
            assert_eq!(
                (response.status, response.code()),
                (502, "upstream_closed"),
                "{what}: {said}"
            );
            // It is not asked a second time.
            assert_eq!(upstream.requests().len(), 1);
        }
    }
}

#[test]
fn an_upstream_that_closes_before_it_reads_is_502() {
    for (what, end) in [CLOSE, CUT, RESET] {
        let upstream = Upstream::tls(end);
        let relay = Relay::to(&upstream.url()).start();
        let response = relay.connect().send(post("", "{}")).response();
        // The end may come while the handshake is still going on.
        let codes = ["upstream_closed", "upstream_tls_failed"];
        assert_eq!(response.status, 502);
        assert!(codes.contains(&response.code()), "{what}: {}", response.code());
    }
}

#[test]
fn an_upstream_that_closes_during_the_upload_is_502() {
    for (what, end) in [CLOSE, CUT, RESET] {
        let upstream = Upstream::tls(move |peer| {
            peer.head().unwrap();
            assert_eq!(peer.take(5), b"first");
            end(peer);
        });
        let relay = Relay::to(&upstream.url()).start();
        let mut client = relay.connect();
        client.send(
            "POST /v1/responses HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\nfirst",
        );
        let response = client.response();
        assert_eq!((response.status, response.code()), (502, "upstream_closed"), "{what}");
        assert_eq!(response.fields("connection"), ["close"]);
        client.send(vec![b'x'; 999_995]).finish().expect_end(End::Fin);
    }
}

#[test]
fn a_malformed_response_is_502() {
    let ok = "HTTP/1.1 200 OK\r\n";
    let long = "x".repeat(70_000);
    let many = "X: 1\r\n".repeat(129);
    let responses: Vec<String> = [
        // Status lines.
        "ICY 200 OK\r\n\r\n",
        "200 OK\r\n\r\n",
        "HTTP/2 200\r\n\r\n",
        "HTTP/1.2 200 OK\r\n\r\n",
        "HTTP/1.1 2000 OK\r\n\r\n",
        "HTTP/1.1 20 OK\r\n\r\n",
        "HTTP/1.1 -20 OK\r\n\r\n",
        "HTTP/1.1 099 OK\r\n\r\n",
        "HTTP/1.1 600 OK\r\n\r\n",
        "HTTP/1.1  200 OK\r\n\r\n",
        "HTTP/1.1\t200 OK\r\n\r\n",
        "http/1.1 200 OK\r\n\r\n",
        " HTTP/1.1 200 OK\r\n\r\n",
        "\r\nHTTP/1.1 200 OK\r\n\r\n",
        "HTTP/1.1 200 O\0K\r\n\r\n",
        "HTTP/1.1 200 O\rK\r\n\r\n",
        "<html>no</html>",
    ]
    .into_iter()
    .map(str::to_owned)
    .chain(
        [
            // Field lines.
            "X : 1\r\n\r\n",
            " X: 1\r\n\r\n",
            "X: 1\r\n folded\r\n\r\n",
            ": 1\r\n\r\n",
            "X\r\n\r\n",
            "X: a\0b\r\n\r\n",
            "X: a\rb\r\n\r\n",
            "X: a\nSet-Cookie: b\r\n\r\n",
            "X: 1\n\n",
            "X: a\x7fb\r\n\r\n",
            "Connection: a b\r\n\r\n",
            // Lengths.
            "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
            "Content-Length: 2\r\nContent-Length: 2\r\n\r\nhi",
            "Content-Length: 2\r\nContent-Length: 3\r\n\r\nhi",
            "Content-Length: 2, 2\r\n\r\nhi",
            "Content-Length: +2\r\n\r\nhi",
            "Content-Length: -2\r\n\r\nhi",
            "Content-Length: 0x2\r\n\r\nhi",
            "Content-Length:\r\n\r\nhi",
            "Content-Length: 18446744073709551616\r\n\r\nhi",
            "Transfer-Encoding: gzip\r\n\r\nhi",
            "Transfer-Encoding: gzip, chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
            "Transfer-Encoding: chunked, chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            // Limits.
            &format!("X: {long}\r\n\r\n"),
            &format!("X: {long}"),
            &format!("{many}\r\n"),
        ]
        .into_iter()
        .map(|rest| format!("{ok}{rest}")),
    )
    .chain(["HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_owned()])
    .collect();
    let list = responses.clone();
    let upstream = Upstream::tls(move |peer| {
        let request = peer.request().unwrap();
        let n: usize = std::str::from_utf8(&request.body).unwrap().parse().unwrap();
        // A long response may be refused before it has been taken.
        peer.try_write(&list[n]);
        peer.closed();
    });
    let relay = Relay::to(&upstream.url()).start();
    let mut client = relay.connect();
    for (n, text) in responses.iter().enumerate() {
        let response = client.send(post("", &n.to_string())).response();
        let shown = &text[..text.len().min(80)];
        assert_eq!((response.status, response.code()), (502, "upstream_bad_response"), "{shown:?}");
    }
    assert_eq!(upstream.connections(), responses.len());
}

#[test]
fn switching_protocols_is_502() {
    let upstream = Upstream::once(|peer| {
        peer.write(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        );
        peer.closed();
    });
    let relay = Relay::to(&upstream.url()).start();
    fails(&mut relay.connect(), 502, "upstream_switched_protocols");
}

#[test]
fn interim_responses_are_bounded_in_number() {
    let upstream = Upstream::once(|peer| {
        peer.try_write("HTTP/1.1 102 Processing\r\n\r\n".repeat(65) + &ok("late"));
        peer.closed();
    });
    let relay = Relay::to(&upstream.url()).start();
    let mut client = relay.connect();
    client.send(post("", "{}"));
    for _ in 0..64 {
        assert_eq!(client.head(), "HTTP/1.1 102 Processing\r\n\r\n");
    }
    let response = client.response();
    assert_eq!((response.status, response.code()), (502, "upstream_bad_response"));
}
