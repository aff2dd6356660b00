//! Tests the requests that the upstream receives.

use std::io::{Read, copy};
use std::net::{Ipv6Addr, Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::support::port::closed_port;
use super::support::upstream::{Kind, memory_file};
use super::support::{End, Gate, Peer, Relay, Request, Upstream, certs, ok, post, quiet, wait_for};

/// An upstream that responds, and a relay to it.
fn start() -> (Upstream, Relay) {
    let upstream = Upstream::answering(ok("hello"));
    let relay = Relay::to(&upstream.url()).start();
    (upstream, relay)
}

/// Sends this on a connection of its own and returns what the upstream saw.
fn forwarded(upstream: &Upstream, relay: &Relay, request: impl AsRef<[u8]>) -> Request {
    let before = upstream.requests().len();
    assert_eq!(relay.connect().send(request).head()[..12], *"HTTP/1.1 200");
    let requests = upstream.requests();
    assert_eq!(requests.len(), before + 1);
    requests.into_iter().last().unwrap()
}

/// The field lines after Host, without the key's.
fn fields(request: &Request, relay: &Relay) -> String {
    let head = request.head_without_key(&relay.key);
    head.splitn(3, "\r\n").nth(2).unwrap().to_owned()
}

#[test]
fn all_fields_travel_in_order_and_spelling() {
    let (upstream, relay) = start();
    let sent = "User-Agent: codex_cli_rs/0.1\r\nACCEPT: text/event-stream\r\nx-b: 2\r\nX-A:1\r\n\
                X-B:  two  words \t \r\nx-empty:\r\nCookie: a=b; c=d\r\ncookie: e=f\r\n\
                OpenAI-Beta: responses=v1\r\nConTent-TYPE: application/json\r\n\
                x-utf8: gr\u{fc}n\r\nX!#$%&'*+-.^_`|~9: t\r\nVia: 1.1 me\r\n\
                Authorization-Info: x\r\nX-Authorization: y\r\nX-Forwarded-For: 1.2.3.4\r\n\
                Sec-Fetch-Site: none\r\nX_Under_Score: 1\r\n";
    let request = forwarded(&upstream, &relay, post(sent, "{}"));
    assert_eq!(fields(&request, &relay), format!("{sent}Content-Length: 2\r\n\r\n"));
}

#[test]
fn a_head_of_many_records_travels_whole() {
    let (upstream, relay) = start();
    let sent: String = (0..100).map(|i| format!("X-{i}: {}\r\n", "v".repeat(600))).collect();
    let request = forwarded(&upstream, &relay, post(&sent, "{}"));
    assert_eq!(fields(&request, &relay), format!("{sent}Content-Length: 2\r\n\r\n"));
}

#[test]
fn long_fields_between_fields_that_end_here_travel_whole() {
    let (upstream, relay) = start();
    let long = |i: usize| format!("X-{i}: {}\r\n", "v".repeat(900));
    let sent: String = (0..62).map(|i| format!("{}Keep-Alive: {i}\r\n", long(i))).collect();
    let body = "b".repeat(5_000);
    let request = forwarded(&upstream, &relay, post(&sent, &body));
    let kept: String = (0..62).map(long).collect();
    assert_eq!(fields(&request, &relay), format!("{kept}Content-Length: 5000\r\n\r\n"));
    assert!(request.body == body.as_bytes());
}

#[test]
fn authorization_in_every_spelling_and_number_gives_way_to_ours() {
    let (upstream, relay) = start();
    let (bearer, other) = ("Bearer sk-other", "sk-other");
    for sent in [
        format!("Authorization: {bearer}\r\n"),
        format!("authorization: {bearer}\r\n"),
        format!("AUTHORIZATION:{bearer}\r\n"),
        format!("aUtHoRiZaTiOn:\t {bearer} \r\n"),
        format!("Authorization: {bearer}\r\nAuthorization: Basic {other}\r\n"),
        format!("authorization:\r\nX-A: 1\r\nAUTHORIZATION: {bearer}\r\nAuthorization: a\r\n"),
        format!("Authorization: Bearer {}\r\n", relay.key),
        "Authorization:\r\n".to_owned(),
    ] {
        let request = forwarded(&upstream, &relay, post(&sent, "{}"));
        let head = request.head_without_key(&relay.key);
        assert!(!head.to_ascii_lowercase().contains("authorization"));
        assert!(!head.contains(other) && !head.contains("Basic"));
    }
    // In a trailer section it is dropped with the section.
    let chunked = format!(
        "POST /v1/responses HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\
         Trailer: Authorization\r\n\r\n2\r\n{{}}\r\n0\r\nAuthorization: {bearer}\r\n\r\n"
    );
    let request = forwarded(&upstream, &relay, chunked);
    assert_eq!(fields(&request, &relay), "Transfer-Encoding: chunked\r\n\r\n");
    assert_eq!(request.body, b"{}");
}

#[test]
fn another_field_carries_the_key_and_a_clients_own_gives_way_in_every_spelling() {
    for (header, before) in [
        ("api-key: {}", "api-key: "),
        ("Ocp-Apim-Subscription-Key: {}", "Ocp-Apim-Subscription-Key: "),
        ("X-Auth: Token {}", "X-Auth: Token "),
    ] {
        let upstream = Upstream::answering(ok("hello"));
        let relay = Relay::to(&upstream.url()).args(["--auth-header", header]).start();
        let name = header.split(':').next().unwrap();
        let (lower, upper) = (name.to_lowercase(), name.to_uppercase());
        let start = format!(
            "POST /v1/responses HTTP/1.1\r\nHost: localhost:{}\r\nAccept-Encoding: identity\r\n",
            upstream.port
        );
        let block = format!("{start}{before}{}\r\n", relay.key);
        for (sent, kept) in [
            ("".to_owned(), String::new()),
            (format!("{name}: other\r\n"), String::new()),
            (format!("{lower}: other\r\n{upper}:\r\n{name}:other\r\n"), String::new()),
            ("Authorization: Bearer other\r\nauthorization: a\r\n".into(), String::new()),
            // What Connection names are the client's fields, never ours.
            (format!("Connection: {name}, {upper}\r\nX-A: 1\r\n"), "X-A: 1\r\n".into()),
            (
                format!("X-{name}: a\r\n{upper}: other\r\n{name}2: b\r\n"),
                format!("X-{name}: a\r\n{name}2: b\r\n"),
            ),
        ] {
            let request = forwarded(&upstream, &relay, post(&sent, "{}"));
            let rest = request.head.strip_prefix(&block).expect("our block");
            assert_eq!(rest, format!("{kept}Via: 1.1 relay\r\nContent-Length: 2\r\n\r\n"));
        }
    }
}

#[test]
fn a_client_token_is_shown_in_authorization_whatever_field_carries_the_key() {
    let upstream = Upstream::answering(ok("hello"));
    let file = memory_file(b"open-sesame-0001\n");
    let relay = Relay::to(&upstream.url())
        .args(["--auth-header", "api-key: {}", "--client-token-file", file.to_str().unwrap()])
        .start();
    let response = relay.connect().send(post("api-key: open-sesame-0001\r\n", "{}")).response();
    assert_eq!((response.status, response.code()), (401, "client_token_required"));
    let request =
        forwarded(&upstream, &relay, post("Authorization: Bearer open-sesame-0001\r\n", "{}"));
    assert!(!request.head.contains("sesame") && request.fields("authorization").is_empty());
    assert!(request.fields("api-key") == [relay.key.as_str()]);
}

#[test]
fn authorization_in_disguise_is_refused() {
    let (upstream, relay) = start();
    for sent in [
        "Authorization : Bearer sk-other\r\n",
        " Authorization: Bearer sk-other\r\n",
        "X-A: 1\r\n Authorization: Bearer sk-other\r\n",
        "X-A: 1\nAuthorization: Bearer sk-other\r\n",
        "X-A: 1\rAuthorization: Bearer sk-other\r\n",
        "Authorization\t: Bearer sk-other\r\n",
        "Authorization\0: Bearer sk-other\r\n",
    ] {
        let mut client = relay.connect();
        let response = client.send(post(sent, "{}")).response();
        assert_eq!((response.status, response.code()), (400, "malformed_request"), "{sent}");
        client.expect_end(End::Fin);
    }
    assert_eq!(upstream.requests().len(), 0);
}

#[test]
fn host_is_the_upstreams() {
    let (upstream, relay) = start();
    let version_1_0 = "POST /v1/responses HTTP/1.0\r\nContent-Length: 2\r\n\r\n{}".to_owned();
    for request in [
        "POST /v1/responses HTTP/1.1\r\nX-A: 1\r\nhOST: 127.0.0.1:9\r\nContent-Length: 2\r\n\r\n{}"
            .to_owned(),
        post("", "{}"),
        version_1_0,
    ] {
        let request = forwarded(&upstream, &relay, request);
        assert_eq!(request.fields("host"), [format!("localhost:{}", upstream.port)]);
        let head = request.head_without_key(&relay.key);
        assert_eq!(head.lines().nth(1), Some(&*format!("Host: localhost:{}", upstream.port)));
    }
}

#[test]
fn hop_by_hop_and_nominated_fields_end_here() {
    let (upstream, relay) = start();
    let sent = "Connection: keep-alive, X-Hop ,,\t x-other-hop\r\nX-Hop: 1\r\nx-HOP: 2\r\n\
                Keep-Alive: timeout=5\r\nTE: trailers\r\nTrailer: X-T\r\nUpgrade: h2c\r\n\
                Proxy-Connection: keep-alive\r\nProxy-Authorization: Basic eDp5\r\n\
                proxy-authorization: Bearer z\r\nProxy-Authenticate: Basic\r\n\
                PROXY-Whatever: 1\r\nconnection: X-Third\r\nX-Third: 1\r\nX-Other-Hop: 1\r\n\
                X-Stays: 1\r\n";
    let request = forwarded(&upstream, &relay, post(sent, "{}"));
    assert_eq!(fields(&request, &relay), "X-Stays: 1\r\nContent-Length: 2\r\n\r\n");
}

#[test]
fn connection_cannot_nominate_what_we_write() {
    let (upstream, relay) = start();
    for name in ["authorization", "Host", "Content-Length", "transfer-encoding", "close, host"] {
        let request = forwarded(
            &upstream,
            &relay,
            post(&format!("Connection: {name}\r\nAuthorization: x\r\nX-Stays: 1\r\n"), "{}"),
        );
        assert_eq!(request.fields("host"), [format!("localhost:{}", upstream.port)]);
        let want = "X-Stays: 1\r\nContent-Length: 2\r\n\r\n";
        assert_eq!(fields(&request, &relay), want, "{name}");
        assert_eq!(request.body, b"{}");
    }
    let request = forwarded(
        &upstream,
        &relay,
        "POST /v1/responses HTTP/1.1\r\nHost: localhost\r\nConnection: transfer-encoding\r\n\
         Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    );
    assert_eq!(fields(&request, &relay), "Transfer-Encoding: chunked\r\n\r\n");
    assert_eq!(request.body, b"{}");
}

#[test]
fn an_unreadable_connection_field_is_refused() {
    let (upstream, relay) = start();
    for value in ["x y", "\"a\"", "a;b", "x\u{fc}"] {
        let response =
            relay.connect().send(post(&format!("Connection: {value}\r\n"), "{}")).response();
        assert_eq!((response.status, response.code()), (400, "malformed_request"), "{value}");
    }
    assert_eq!(upstream.requests().len(), 0);
}

#[test]
fn framing_is_written_by_the_relay() {
    let (upstream, relay) = start();
    let head = "POST /v1/responses HTTP/1.1\r\nHost: localhost\r\n";
    for (sent, want, body) in [
        ("\r\n", "Content-Length: 0\r\n\r\n", ""),
        ("Content-Length: 0002\r\nX: 1\r\n\r\nab", "X: 1\r\nContent-Length: 2\r\n\r\n", "ab"),
        ("content-length:\t2 \r\n\r\nab", "Content-Length: 2\r\n\r\n", "ab"),
        (
            "transfer-ENCODING: Chunked\r\n\r\n01;ext=1\r\na\r\n1 ; x=\"y\"\r\nb\r\n000;z\r\n\
             Host: evil.example\r\nContent-Length: 9\r\n\r\n",
            "Transfer-Encoding: chunked\r\n\r\n",
            "ab",
        ),
    ] {
        let request = forwarded(&upstream, &relay, format!("{head}{sent}"));
        assert_eq!(fields(&request, &relay), want);
        assert_eq!(request.body, body.as_bytes());
    }
}

#[test]
fn broken_chunks_do_not_reach_the_upstream_as_a_whole_request() {
    let (tell, told) = Gate::pair();
    // Plain, since a reset may meet a TLS server within its handshake, and it would see nothing.
    let upstream = Upstream::plain(move |peer| {
        let mut seen = Vec::new();
        let _ = peer.read_to_end(&mut seen);
        tell.pass(String::from_utf8(seen).unwrap());
    });
    let relay = Relay::to(&upstream.url()).start();
    for chunks in ["+2\r\n{}\r\n", "2\n{}\r\n", "0x2\r\n{}\r\n", "2\r\n{}x\r\n", "\r\n", "2_0\r\n"]
    {
        let mut client = relay.connect();
        client.send(
            "POST /v1/responses HTTP/1.1\r\nHost: localhost\r\n\
             Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n",
        );
        let response = client.try_send(format!("{chunks}0\r\n\r\n{}", post("", ""))).response();
        assert_eq!((response.status, response.code()), (400, "invalid_chunk"), "{chunks}");
        client.expect_end(End::Fin);
    }
    // A preconnect ends with the relay.
    drop(relay);
    for _ in 0..upstream.connections() {
        let seen = told.wait();
        assert!(seen.matches("POST ").count() <= 1, "a second request");
        assert!(!seen.ends_with("0\r\n\r\n"), "an end that the client did not send");
    }
}

#[test]
fn path_and_query_are_those_of_the_url() {
    let upstream = Upstream::answering(ok("hello"));
    let base = format!("https://localhost:{}", upstream.port);
    for (tail, want) in [
        ("", "/"),
        ("/", "/"),
        ("/v1/responses", "/v1/responses"),
        (
            "/openai/deployments/d/responses?api-version=2025-04-01-preview",
            "/openai/deployments/d/responses?api-version=2025-04-01-preview",
        ),
        ("/a%2Fb/../c//d?x=1&y=%20?", "/a%2Fb/../c//d?x=1&y=%20?"),
        ("?api-version=1", "/?api-version=1"),
    ] {
        let relay = Relay::to(&format!("{base}{tail}")).start();
        let request = forwarded(&upstream, &relay, post("", "{}"));
        assert!(request.head.starts_with(&format!("POST {want} HTTP/1.1\r\n")), "{tail}");
        request.head_without_key(&relay.key);
    }
}

/// A way from [::1] to a port of 127.0.0.1.
fn bridge(port: u16) -> u16 {
    let listener = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).expect("IPv6 on loopback");
    let own = listener.local_addr().unwrap().port();
    let pass = |mut from: TcpStream, mut to: TcpStream| {
        std::thread::spawn(move || {
            let _ = copy(&mut from, &mut to);
            let _ = to.shutdown(Shutdown::Write);
        })
    };
    std::thread::spawn(move || {
        for near in listener.incoming().map_while(Result::ok) {
            let far = TcpStream::connect(("127.0.0.1", port)).unwrap();
            pass(near.try_clone().unwrap(), far.try_clone().unwrap());
            pass(far, near);
        }
    });
    own
}

#[test]
fn an_upstream_is_a_name_or_an_address_of_either_family() {
    let tls = Upstream::answering(ok("hello"));
    let plain = Upstream::plain(|peer| {
        while peer.request().is_some() {
            peer.write(ok("hello"));
        }
    });
    let v6 = Ipv6Addr::LOCALHOST;
    let v6_works = TcpListener::bind((v6, 0)).is_ok();
    for (scheme, upstream) in [("https", &tls), ("http", &plain)] {
        for host in ["localhost", "127.0.0.1", "[::1]"] {
            let port = match host {
                "[::1]" if !v6_works => {
                    eprintln!("no IPv6 on loopback here: [::1] is not tried");
                    continue;
                }
                "[::1]" => bridge(upstream.port),
                _ => upstream.port,
            };
            let relay = Relay::to(&format!("{scheme}://{host}:{port}/v1/responses")).start();
            let request = forwarded(upstream, &relay, post("X-A: 1\r\n", "{}"));
            let want = "X-A: 1\r\nContent-Length: 2\r\n\r\n";
            assert_eq!(fields(&request, &relay), want, "{host}");
            assert_eq!(request.fields("host"), [format!("{host}:{port}")]);
        }
    }
}

#[test]
fn tls_1_2_and_1_3_are_spoken() {
    use rustls::version::{TLS12, TLS13};
    for version in [&TLS12, &TLS13] {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let versions = seen.clone();
        let config = certs().config(Kind::Good, &[version]);
        let upstream = Upstream::new(Some(config), move |peer| {
            versions.lock().unwrap().push((peer.version(), peer.resumed));
            peer.request().unwrap();
            peer.write("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
            peer.closed();
        });
        let relay = Relay::to(&upstream.url()).start();
        for _ in 0..2 {
            forwarded(&upstream, &relay, post("", "{}"));
        }
        let version = Some(version.version);
        assert_eq!(*seen.lock().unwrap(), [(version, false), (version, true)]);
    }
}

#[test]
fn an_http_1_0_client_is_served_and_the_upstream_sees_1_1() {
    let (upstream, relay) = start();
    let mut client = relay.connect();
    client.send(
        "POST /v1/responses HTTP/1.0\r\nX-A: 1\r\nConnection: keep-alive\r\nKeep-Alive: 5\r\n\
         Content-Length: 2\r\n\r\n{}",
    );
    let response = client.response();
    assert_eq!((response.status, response.text()), (200, "hello"));
    assert_eq!(response.fields("connection"), ["close"]);
    client.expect_end(End::Fin);
    let request = upstream.requests().remove(0);
    assert!(request.head.starts_with("POST /v1/responses HTTP/1.1\r\n"));
    assert_eq!(fields(&request, &relay), "X-A: 1\r\nContent-Length: 2\r\n\r\n");
}

const EXPECT: &str = "POST /v1/responses HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n\
                      Content-Length: 2\r\n\r\n";

#[test]
fn a_client_that_waits_for_100_gets_it_here_and_the_upstream_does_not_see_the_expectation() {
    let upstream = Upstream::tls(|peer| {
        let head = peer.head().unwrap();
        assert!(super::support::client::fields(&head, "expect").is_empty());
        // This upstream only speaks once it has the body, and then of its own accord.
        assert_eq!(peer.take(2), b"{}");
        peer.write("HTTP/1.1 100 Continue\r\n\r\n");
        peer.write(ok("hello"));
    });
    let relay = Relay::to(&upstream.url()).start();
    let mut client = relay.connect();
    assert_eq!(client.send(EXPECT).head(), "HTTP/1.1 100 Continue\r\n\r\n");
    let response = client.send("{}").response();
    assert_eq!((response.status, response.text()), (200, "hello"));
}

#[test]
fn a_client_that_expects_100_and_sends_all_the_same_needs_none() {
    let (upstream, relay) = start();
    let request = forwarded(&upstream, &relay, format!("{EXPECT}{{}}"));
    assert_eq!(fields(&request, &relay), "Content-Length: 2\r\n\r\n");
    assert_eq!(request.body, b"{}");
}

#[test]
fn a_client_that_waits_for_100_is_not_told_to_go_on_where_the_upstream_is_not_there() {
    let closed = closed_port();
    let relay = Relay::to(&format!("https://localhost:{}/", closed.port)).start();
    let mut client = relay.connect();
    let response = client.send(EXPECT).response();
    assert_eq!((response.status, response.code()), (502, "upstream_refused"));
    // What the client's next byte means is not known any more.
    assert_eq!(response.fields("connection"), ["close"]);
    client.expect_end(End::Fin);
}

#[test]
fn an_upstream_may_refuse_a_body_before_it_is_sent() {
    let upstream = Upstream::tls(|peer| {
        peer.head().unwrap();
        peer.write("HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\nno");
        peer.closed();
    });
    let relay = Relay::to(&upstream.url()).start();
    let mut client = relay.connect();
    assert_eq!(client.send(EXPECT).head(), "HTTP/1.1 100 Continue\r\n\r\n");
    let response = client.response();
    assert_eq!((response.status, response.text()), (401, "no"));
    // It was told to send the body, so its next bytes are the body.
    assert!(response.fields("connection").is_empty());
    let next = client.send("{}GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").response();
    assert_eq!(next.status, 403);
}

#[test]
fn an_expectation_of_an_http_1_0_client_means_nothing() {
    let (upstream, relay) = start();
    let request = forwarded(
        &upstream,
        &relay,
        "POST /v1/responses HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n{}",
    );
    assert_eq!(fields(&request, &relay), "Content-Length: 2\r\n\r\n");
    // No interim response comes, though the body does not either.
    let mut client = relay.connect();
    client.send("POST /v1/responses HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n");
    assert!(quiet(&client.stream, Duration::from_millis(100)));
    assert_eq!(client.send("{}").response().status, 200);
    // Nor does one that cannot be met count.
    let odd = "POST /v1/responses HTTP/1.0\r\nExpect: tea\r\nContent-Length: 2\r\n\r\n{}";
    assert_eq!(relay.connect().send(odd).response().status, 200);
}

#[test]
fn an_idle_upstream_connection_is_used_again() {
    for upstream in [
        Upstream::answering(ok("hello")),
        Upstream::plain(|peer| {
            while peer.request().is_some() {
                peer.write(ok("hello"));
            }
        }),
    ] {
        let relay = Relay::to(&upstream.url()).start();
        for _ in 0..3 {
            // From one client and from another.
            let mut client = relay.connect();
            for _ in 0..3 {
                assert_eq!(client.send(post("", "{}")).response().text(), "hello");
            }
        }
        assert_eq!((upstream.requests().len(), upstream.connections()), (9, 1));
        for request in upstream.requests() {
            assert_eq!(fields(&request, &relay), "Content-Length: 2\r\n\r\n");
        }
    }
}

#[test]
fn an_upstream_that_says_close_is_not_used_again_and_its_session_is_resumed() {
    let resumed = Arc::new(Mutex::new(Vec::new()));
    let seen = resumed.clone();
    let upstream = Upstream::tls(move |peer| {
        seen.lock().unwrap().push(peer.resumed);
        peer.request().unwrap();
        peer.write("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
        peer.closed();
    });
    let relay = Relay::to(&upstream.url()).start();
    let mut client = relay.connect();
    for _ in 0..3 {
        let response = client.send(post("", "{}")).response();
        assert_eq!(response.status, 200);
        // That is between the relay and its upstream.
        assert!(response.fields("connection").is_empty());
    }
    assert_eq!(*resumed.lock().unwrap(), [false, true, true]);
}

#[test]
fn bytes_after_a_response_end_the_upstream_connection() {
    let upstream = Upstream::tls(|peer| {
        peer.request().unwrap();
        peer.write(ok("hello") + "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil");
        peer.closed();
    });
    let relay = Relay::to(&upstream.url()).start();
    let mut client = relay.connect();
    for _ in 0..2 {
        assert_eq!(client.send(post("", "{}")).response().text(), "hello");
    }
    assert_eq!(upstream.connections(), 2);
}

#[test]
fn a_post_is_never_sent_twice() {
    // The first request of a connection gets a response, the second is read and then dropped.
    let drops: [fn(&mut Peer); 3] = [Peer::close, Peer::cut, Peer::reset];
    for drop in drops {
        let upstream = Upstream::tls(move |peer| {
            peer.request().unwrap();
            peer.write(ok("hello"));
            peer.request().unwrap();
            drop(peer);
        });
        let relay = Relay::to(&upstream.url()).start();
        let mut client = relay.connect();
        assert_eq!(client.send(post("", "1")).response().status, 200);
        let response = client.send(post("", "2")).response();
        assert_eq!((response.status, response.code()), (502, "upstream_closed"));
        assert_eq!(client.send(post("", "3")).response().status, 200);
        let bodies: Vec<_> = upstream.requests().into_iter().map(|request| request.body).collect();
        assert_eq!(
            (bodies, upstream.connections()),
            (vec![b"1".into(), b"2".into(), b"3".into()], 2)
        );
    }
}

/// The relay's end of a connection to this port is open, and nothing waits there to be read.
fn stands_quiet(port: u16) -> bool {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    table.lines().skip(1).any(|line| {
        let column: Vec<_> = line.split_whitespace().collect();
        column[2] == format!("0100007F:{port:04X}")
            && column[3] == "01"
            && column[4].ends_with(":00000000")
    })
}

#[test]
fn a_pooled_connection_that_died_gives_way_to_a_fresh_one() {
    type Death = fn(&mut Peer);
    let deaths: [(Death, &str); 4] = [
        (Peer::close, "close_notify"),
        (Peer::cut, "FIN"),
        (Peer::reset, "RST"),
        (|peer| peer.write(ok("evil")), "a response without a request"),
    ];
    for (death, what) in deaths {
        let (tell, told) = Gate::pair();
        let upstream = Upstream::tls(move |peer| {
            peer.request().unwrap();
            peer.write(ok("hello"));
            if peer.number == 1 {
                told.wait();
                death(peer);
                if what.starts_with("a response") {
                    peer.closed();
                }
            }
        });
        let relay = Relay::to(&upstream.url()).start();
        let mut client = relay.connect();
        assert_eq!(client.send(post("", "1")).response().status, 200);
        // The relay learns of the request and of the connection's end in the same moment.
        relay.stop();
        client.send(post("", "2"));
        tell.signal();
        wait_for(|| !stands_quiet(upstream.port));
        relay.signal(libc::SIGCONT);
        assert_eq!(client.response().text(), "hello", "{what}");
        assert_eq!((upstream.requests().len(), upstream.connections()), (2, 2), "{what}");
    }
}
