//! An upstream that fails, and how the client is told; a client that leaves.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Mutex;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use super::support::relay::{marker_key, random_hex};
use super::support::upstream::Kind;
use super::support::{Client, DEADLINE, End, Peer, Relay, Upstream, certs, ok, post};

/// An answer of the relay's own, after which the client's connection can be used again.
#[track_caller]
fn fails(client: &mut Client, status: u16, code: &str) {
    let answer = client.send(post("", "{}")).response();
    assert_eq!((answer.status, answer.code()), (status, code));
    assert!(answer.fields("connection").is_empty());
    assert_eq!(client.send("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").response().status, 403);
}

/// An upstream that reads one request on each connection and then does this.
fn upstream(then: impl Fn(&mut Peer) + Send + Sync + 'static) -> (Upstream, Relay) {
    let upstream = Upstream::tls(move |peer| {
        if peer.request().is_some() {
            then(peer);
        }
    });
    let relay = Relay::to(&upstream.url()).start();
    (upstream, relay)
}

type Way = (&'static str, fn(&mut Peer));
/// How a connection can end.
const CLOSE: Way = ("close_notify and FIN", Peer::close);
const CUT: Way = ("FIN alone", Peer::cut);
const RESET: Way = ("RST", Peer::reset);

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
    let upstream = Upstream::answering(ok("hello"));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    assert_ne!(port, upstream.port);
    drop(listener);
    for url in [format!("https://127.0.0.1:{port}/"), format!("http://localhost:{port}/")] {
        fails(&mut Relay::to(&url).start().connect(), 502, "upstream_refused");
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
            assert!(upstream.requests().is_empty(), "the key went to a stranger");
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

/// Anybody on the way to the upstream can say this much: it needs no key and no certificate.
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
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://localhost:{}/", listener.local_addr().unwrap().port());
    std::thread::spawn(move || {
        for stream in listener.incoming().take(2) {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 4096]);
            // What such a server says to a client that offers 1.2 and 1.3: protocol_version, fatal.
            let _ = std::io::Write::write_all(&mut stream, &[0x15, 3, 2, 0, 2, 2, 70]);
        }
    });
    let relay = Relay::to(&url).start();
    fails(&mut relay.connect(), 502, "upstream_tls_failed");

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://localhost:{}/", listener.local_addr().unwrap().port());
    std::thread::spawn(move || {
        let mut stream = listener.accept().unwrap().0;
        let _ = stream.read(&mut [0; 4096]);
        // And a ServerHello of TLS 1.1.
        let hello = [&[2, 0, 0, 38, 3, 2][..], &[7; 32], &[0, 0xc0, 0x13, 0]].concat();
        let record = [&[0x16, 3, 2, 0, hello.len() as u8][..], &hello].concat();
        let _ = std::io::Write::write_all(&mut stream, &record);
        let _ = stream.read(&mut [0; 4096]);
    });
    let relay = Relay::to(&url).start();
    fails(&mut relay.connect(), 502, "upstream_tls_failed");
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
        let answer = client.response();
        assert_eq!((answer.status, answer.code()), (504, "upstream_connect_timeout"));
        let took = start.elapsed();
        assert!(took > Duration::from_secs(9) && took < Duration::from_secs(12), "{took:?}");
    }
}

#[test]
fn an_upstream_that_closes_before_it_answers_is_502() {
    for (what, end) in [CLOSE, CUT, RESET] {
        for said in [
            "",
            "H",
            "HTTP/1.1 200 OK\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r",
            "HTTP/1.1 103 Early Hints\r\n\r\n",
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n",
        ] {
            let (upstream, relay) = upstream(move |peer| {
                peer.write(said);
                end(peer);
            });
            let mut client = relay.connect();
            client.send(post("", "{}"));
            if said.starts_with("HTTP/1.1 10") {
                assert!(client.head().starts_with("HTTP/1.1 10"));
            }
            let answer = client.response();
            assert_eq!((answer.status, answer.code()), (502, "upstream_closed"), "{what}: {said}");
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
        let answer = relay.connect().send(post("", "{}")).response();
        // The end may come while the handshake is still going on.
        let codes = ["upstream_closed", "upstream_tls_failed"];
        assert_eq!(answer.status, 502);
        assert!(codes.contains(&answer.code()), "{what}: {}", answer.code());
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
        let answer = client.response();
        assert_eq!((answer.status, answer.code()), (502, "upstream_closed"), "{what}");
        assert_eq!(answer.fields("connection"), ["close"]);
        client.send(vec![b'x'; 999_995]).finish().expect_end(End::Fin);
    }
}

#[test]
fn an_unsound_answer_is_502() {
    let ok = "HTTP/1.1 200 OK\r\n";
    let long = "x".repeat(70_000);
    let many = "X: 1\r\n".repeat(129);
    let answers: Vec<String> = [
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
    let list = answers.clone();
    let upstream = Upstream::tls(move |peer| {
        let request = peer.request().unwrap();
        let n: usize = std::str::from_utf8(&request.body).unwrap().parse().unwrap();
        // A long answer may be refused before it has been taken.
        peer.try_write(&list[n]);
        peer.closed();
    });
    let relay = Relay::to(&upstream.url()).start();
    let mut client = relay.connect();
    for (n, text) in answers.iter().enumerate() {
        let answer = client.send(post("", &n.to_string())).response();
        let shown = &text[..text.len().min(80)];
        assert_eq!((answer.status, answer.code()), (502, "upstream_bad_response"), "{shown:?}");
    }
    assert_eq!(upstream.connections(), answers.len());
}

#[test]
fn switching_protocols_is_502() {
    let (_upstream, relay) = upstream(|peer| {
        peer.write(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        );
        peer.closed();
    });
    fails(&mut relay.connect(), 502, "upstream_switched_protocols");
}

#[test]
fn interim_answers_are_bounded_in_number() {
    let (_upstream, relay) = upstream(|peer| {
        peer.try_write("HTTP/1.1 102 Processing\r\n\r\n".repeat(65) + &ok("late"));
        peer.closed();
    });
    let mut client = relay.connect();
    client.send(post("", "{}"));
    for _ in 0..64 {
        assert_eq!(client.head(), "HTTP/1.1 102 Processing\r\n\r\n");
    }
    let answer = client.response();
    assert_eq!((answer.status, answer.code()), (502, "upstream_bad_response"));
}

const LENGTH: &str = "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n";
const CHUNKED: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
const UNTIL_CLOSE: &str = "HTTP/1.1 200 OK\r\n\r\n";

const HTTP_1_0: &str = "POST /v1/responses HTTP/1.0\r\nContent-Length: 2\r\n\r\n{}";

/// The client has the head, then the upstream says this and ends: the client is reset.
#[track_caller]
fn resets(head: &'static str, rest: &'static str, (what, end): Way) {
    for request in [&*post("", "{}"), HTTP_1_0] {
        let (tell, told) = channel::<()>();
        let told = Mutex::new(told);
        let (_upstream, relay) = upstream(move |peer| {
            peer.write(head);
            told.lock().unwrap().recv_timeout(DEADLINE).unwrap();
            peer.try_write(rest);
            end(peer);
        });
        let mut client = relay.connect();
        assert!(client.send(request).head().starts_with("HTTP/1.1 200 OK\r\n"));
        tell.send(()).unwrap();
        let (got, end) = client.rest();
        assert_eq!(end, End::Reset, "{head}{rest}, then {what}, after {request}");
        assert!(!got.ends_with(b"0\r\n\r\n"), "{head}{rest}, then {what}: a false end");
    }
}

#[test]
fn a_truncated_answer_of_known_length_resets_the_client() {
    for rest in ["", "hello", "123456789"] {
        for way in [CLOSE, CUT, RESET] {
            resets(LENGTH, rest, way);
        }
    }
}

#[test]
fn a_truncated_chunked_answer_resets_the_client() {
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
fn a_close_delimited_answer_without_close_notify_resets_the_client() {
    for rest in ["", "hello"] {
        resets(UNTIL_CLOSE, rest, CUT);
        resets(UNTIL_CLOSE, rest, RESET);
    }
}

#[test]
fn broken_chunks_in_an_answer_reset_the_client() {
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
fn a_plain_upstream_ends_a_close_delimited_answer_with_fin_and_no_other_way() {
    for (way, whole) in [(CUT, true), (RESET, false)] {
        let (tell, told) = channel::<()>();
        let told = Mutex::new(told);
        let upstream = Upstream::plain(move |peer| {
            peer.request().unwrap();
            peer.write("HTTP/1.1 200 OK\r\n\r\nhello");
            told.lock().unwrap().recv_timeout(DEADLINE).unwrap();
            way.1(peer);
        });
        let relay = Relay::to(&upstream.url()).start();
        let mut client = relay.connect();
        let head = client.send(post("", "{}")).head();
        assert!(head.contains("Transfer-Encoding: chunked\r\n"));
        assert_eq!(client.take(10), b"5\r\nhello\r\n");
        tell.send(()).unwrap();
        if whole {
            assert_eq!(client.take(5), b"0\r\n\r\n");
        } else {
            client.expect_end(End::Reset);
        }
    }
}

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
        let answer = relay.connect().send(post("", "{}")).response();
        assert!(!holds(answer.head.as_bytes(), &relay.key) && !holds(&answer.body, &relay.key));
        assert_eq!((answer.status, answer.code()), (502, "credential_reflected"), "{template}");
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
    let (go_on, wait) = channel::<()>();
    let wait = Mutex::new(wait);
    // Each event ends in a longer beginning of the key, or in as many bytes of no key at all.
    let events: Vec<String> = (1..16)
        .flat_map(|n| [format!("data: {}", &key[..n]), format!("data: {}", "~".repeat(n))])
        .collect();
    let sent = events.clone();
    let upstream = Upstream::tls(move |peer| {
        peer.request();
        peer.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        wait.lock().unwrap().recv_timeout(DEADLINE).expect("the client has the head");
        for event in &sent {
            peer.write(format!("{:x}\r\n{event}\r\n", event.len()));
            // The next is sent when this one has arrived to its last byte.
            wait.lock().unwrap().recv_timeout(DEADLINE).expect("the client has the event");
            peer.write("1\r\n.\r\n");
            wait.lock().unwrap().recv_timeout(DEADLINE).expect("the client has the byte");
        }
        peer.write("0\r\n\r\n");
        peer.closed();
    });
    let relay = Relay::to(&upstream.url()).key(&key).start();
    let mut client = relay.connect();
    client.send(post("", "{}")).head();
    go_on.send(()).unwrap();
    let mut chunk = [0; 4096];
    for event in &events {
        for want in [format!("{:x}\r\n{event}\r\n", event.len()), "1\r\n.\r\n".into()] {
            let want = want.as_bytes();
            // One write of the upstream's is one write of the relay's.
            let whole = client.stream.read(&mut chunk).is_ok_and(|n| chunk[..n] == *want);
            assert!(whole, "an event of {} bytes has come in pieces", event.len());
            go_on.send(()).unwrap();
        }
    }
    assert_eq!(client.take(5), b"0\r\n\r\n");
}

#[test]
fn a_masked_key_and_what_is_too_little_of_it_pass() {
    let key = marker_key();
    // As APIs show it to whom it is refused; its beginning; what stands before its end.
    let end = key.len() - 4;
    let text = format!("{}****{} {} {}", &key[..8], &key[end..], &key[..15], &key[end - 15..end]);
    let upstream = Upstream::answering(ok(&text));
    let relay = Relay::to(&upstream.url()).key(&key).start();
    let answer = relay.connect().send(post("", "{}")).response();
    assert!(answer.status == 200 && answer.text() == text);
}

/// How a client can leave.
fn leave(client: Client, way: &str) {
    match way {
        "FIN" => client.stream.shutdown(Shutdown::Write).unwrap(),
        "close" => return,
        _ => {
            let linger = libc::linger { l_onoff: 1, l_linger: 0 };
            // SAFETY: the kernel reads a struct that outlives the call.
            unsafe {
                libc::setsockopt(
                    client.stream.as_raw_fd(),
                    libc::SOL_SOCKET,
                    libc::SO_LINGER,
                    std::ptr::from_ref(&linger).cast(),
                    size_of::<libc::linger>() as libc::socklen_t,
                )
            };
            return;
        }
    }
    // With FIN alone the client still listens; there is nothing for it but the end.
    let mut client = client;
    let (got, end) = client.rest();
    assert!(got.is_empty() && end != End::Open);
}

/// At which point the client leaves.
#[derive(Clone, Copy, Debug)]
enum Point {
    Waiting,
    Streaming,
    Uploading,
}

#[test]
fn a_client_that_leaves_cancels_the_upstream_exchange_at_once() {
    for point in [Point::Waiting, Point::Streaming, Point::Uploading] {
        let (tell, told) = channel();
        let tell = Mutex::new(tell);
        let upstream = Upstream::tls(move |peer| {
            let tell = tell.lock().unwrap();
            match point {
                Point::Uploading => drop((peer.head().unwrap(), peer.take(5))),
                Point::Waiting | Point::Streaming => drop(peer.request().unwrap()),
            }
            if let Point::Streaming = point {
                peer.write(format!("{CHUNKED}5\r\nhello\r\n"));
            }
            tell.send(false).unwrap();
            peer.closed();
            tell.send(true).unwrap();
        });
        let relay = Relay::to(&upstream.url()).start();
        for way in ["FIN", "close", "RST"] {
            let mut client = relay.connect();
            match point {
                Point::Uploading => client.send(
                    "POST /v1/responses HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nfirst",
                ),
                Point::Waiting | Point::Streaming => client.send(post("", "{}")),
            };
            assert!(!told.recv_timeout(DEADLINE).unwrap());
            if let Point::Streaming = point {
                client.head();
                assert_eq!(client.take(10), b"5\r\nhello\r\n");
            }
            let start = Instant::now();
            leave(client, way);
            let cancelled = told.recv_timeout(DEADLINE);
            assert_eq!(cancelled, Ok(true), "{point:?}, {way}");
            assert!(start.elapsed() < Duration::from_secs(1), "{point:?}, {way}");
        }
    }
}

#[test]
fn of_two_clients_that_leave_while_the_upstream_is_being_connected_one_ends_that() {
    for way in ["FIN", "close", "RST"] {
        let (tell, told) = channel();
        let tell = Mutex::new(tell);
        // It accepts and never speaks TLS.
        let upstream = Upstream::plain(move |peer| {
            let tell = tell.lock().unwrap().clone();
            let mut hello = [0; 16];
            assert!(peer.read(&mut hello).is_ok_and(|n| n > 0));
            tell.send(false).unwrap();
            peer.closed();
            let _ = tell.send(true);
        });
        let relay = Relay::to(&format!("https://localhost:{}/", upstream.port)).start();
        let clients = ["first", "second"].map(|_| {
            let mut client = relay.connect();
            client.send(post("", "{}"));
            assert!(!told.recv_timeout(DEADLINE).unwrap());
            client
        });
        // The first one's connection is kept for the next request.
        let start = Instant::now();
        clients.into_iter().for_each(|client| leave(client, way));
        assert_eq!(told.recv_timeout(DEADLINE), Ok(true), "{way}");
        assert!(start.elapsed() < Duration::from_secs(1), "{way}");
        assert!(told.recv_timeout(Duration::from_millis(100)).is_err(), "{way}: none is kept");
    }
}

#[test]
fn a_client_that_leaves_while_it_reads_slowly_cancels_too() {
    let (tell, told) = channel();
    let tell = Mutex::new(tell);
    let upstream = Upstream::tls(move |peer| {
        let tell = tell.lock().unwrap();
        peer.request().unwrap();
        peer.write("HTTP/1.1 200 OK\r\n\r\n");
        tell.send(()).unwrap();
        // Without end: only the relay's leaving stops it.
        while peer.try_write([b'x'; 16_384]) {}
        tell.send(()).unwrap();
    });
    let relay = Relay::to(&upstream.url()).start();
    for way in ["close", "RST"] {
        let mut client = relay.connect();
        client.send(post("", "{}")).head();
        told.recv_timeout(DEADLINE).unwrap();
        let start = Instant::now();
        leave(client, way);
        told.recv_timeout(DEADLINE).expect("cancelled");
        assert!(start.elapsed() < Duration::from_secs(5), "{way}");
    }
}

#[test]
fn part_of_a_record_behind_an_answer_is_not_the_beginning_of_the_next() {
    let upstream = Upstream::tls(|peer| {
        let mut late = Vec::new();
        while peer.request().is_some() {
            if peer.number > 1 {
                peer.write(ok("second"));
            } else if late.is_empty() {
                let (answer, mut more) = (peer.seal(ok("first")), peer.seal(ok("stale")));
                late = more.split_off(20);
                peer.stream().write_all(&[answer, more].concat()).unwrap();
            } else {
                peer.stream().write_all(&late).unwrap();
            }
        }
    });
    let relay = Relay::to(&upstream.url()).start();
    for want in ["first", "second"] {
        assert_eq!(relay.connect().send(post("", "{}")).response().body, want.as_bytes());
    }
}

/// Sends one byte as TCP urgent data.
fn send_urgent(stream: &TcpStream, byte: u8) {
    // SAFETY: the kernel reads one byte that outlives the call.
    let sent = unsafe {
        libc::send(stream.as_raw_fd(), std::ptr::from_ref(&byte).cast(), 1, libc::MSG_OOB)
    };
    assert_eq!(sent, 1);
}

#[test]
fn urgent_data_of_a_client_is_data_like_any_other() {
    let upstream = Upstream::answering(ok("fine"));
    let relay = Relay::to(&upstream.url()).args(["--client-timeout", "3"]).start();
    for at in 1..post("", "hello").len() {
        let mut client = relay.connect();
        let request = post("", "hello");
        let (before, rest) = request.as_bytes().split_at(at);
        // All of it is there when the relay looks.
        relay.stop();
        client.send(before);
        send_urgent(&client.stream, rest[0]);
        client.send(&rest[1..]);
        relay.signal(libc::SIGCONT);
        assert_eq!(client.response().status, 200, "urgent byte {at}");
        assert_eq!(upstream.requests().last().unwrap().body, b"hello");
    }
}

#[test]
fn urgent_data_of_an_upstream_is_data_like_any_other() {
    let (tell, told) = channel();
    let (go, wait) = channel::<()>();
    let script = Mutex::new((tell, wait));
    let upstream = Upstream::plain(move |peer| {
        let (tell, wait) = &*script.lock().unwrap();
        while peer.request().is_some() {
            tell.send(()).unwrap();
            wait.recv_timeout(DEADLINE).unwrap();
            peer.write("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nh");
            send_urgent(peer.stream(), b'e');
            peer.write("llo");
            tell.send(()).unwrap();
        }
    });
    let relay = Relay::to(&upstream.url()).start();
    let mut client = relay.connect();
    for _ in 0..2 {
        client.send(post("", "{}"));
        told.recv_timeout(DEADLINE).unwrap();
        // All of it is there when the relay looks.
        relay.stop();
        go.send(()).unwrap();
        told.recv_timeout(DEADLINE).unwrap();
        relay.signal(libc::SIGCONT);
        assert_eq!(client.response().text(), "hello");
    }
}
