//! Tests how responses reach the client: status, fields, events, framing.

use std::sync::{Arc, Barrier};

use super::support::{Client, End, Gate, Relay, Response, Upstream, body, ok, post};

/// An upstream that sends each of these responses once, in order, and a relay to it.
fn answers<const N: usize>(answers: [&str; N]) -> (Upstream, Relay) {
    let answers = answers.map(str::to_owned);
    let upstream = Upstream::tls(move |peer| {
        for answer in answers.iter().skip(peer.number - 1) {
            if peer.request().is_none() {
                return;
            }
            peer.write(answer);
        }
    });
    let relay = Relay::to(&upstream.url()).start();
    (upstream, relay)
}

/// What a client gets when the upstream sends this response.
fn answer(text: &str) -> Response {
    let (_upstream, relay) = answers([text]);
    relay.connect().send(post("", "{}")).response()
}

const HTTP_1_0: &str = "POST /v1/responses HTTP/1.0\r\nContent-Length: 2\r\n\r\n{}";

#[test]
fn status_reason_and_fields_pass() {
    for status_line in [
        "200 OK",
        "200 Fine, thanks (really)",
        "201 ",
        "299 gr\u{fc}n",
        "400 Bad Request",
        "401 Unauthorized",
        "403 Forbidden",
        "404 Not Found",
        "429 Too Many Requests",
        "500 Internal Server Error",
        "503 Service Unavailable",
        "599 \tx",
    ] {
        let fields = "Server: up\r\nSet-Cookie: a=1\r\nset-cookie: b=2\r\nX-Empty:\r\n\
                      Retry-After:  3 \r\nx-request-id: r\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\n\
                      Openai-Version: 2020-10-01\r\nWWW-Authenticate: Bearer\r\nX-T: gr\u{fc}n\r\n";
        let got = answer(&format!("HTTP/1.1 {status_line}\r\n{fields}Content-Length: 2\r\n\r\nhi"));
        assert_eq!(
            got.head,
            format!("HTTP/1.1 {status_line}\r\n{fields}Content-Length: 2\r\n\r\n")
        );
        assert_eq!(got.text(), "hi");
    }
}

#[test]
fn a_response_without_a_date_gets_one_and_every_local_response_has_one() {
    let end = "Content-Length: 2\r\n\r\nhi";
    for (status, fields) in
        [("200 OK", ""), ("302 F", "X-Date: x\r\n"), ("500 E", "Connection: date\r\nDate: x\r\n")]
    {
        let got = answer(&format!("HTTP/1.1 {status}\r\n{fields}{end}"));
        assert!(got.date.is_some(), "{}", got.head);
        assert_eq!(got.fields("date"), [""; 0], "one alone");
    }
    for date in ["Thu, 01 Jan 1970 00:00:00 GMT", "yesterday", ""] {
        let got = answer(&format!("HTTP/1.1 200 OK\r\ndate: {date}\r\n{end}"));
        assert_eq!((got.date.as_deref(), got.fields("date")), (None, vec![date]));
    }
    let (_upstream, relay) = answers(["no response\r\n\r\n"]);
    let shutdown = "GET /shutdown HTTP/1.1\r\nHost: localhost\r\n\r\n".to_owned();
    for (request, status) in [
        (post("", "{}"), 502),
        (shutdown.clone(), 403),
        (post("Content-Length: 1\r\n", "{}"), 400),
        (" ".into(), 400),
    ] {
        let got = relay.connect().send(request).response();
        assert_eq!((got.status, got.date.is_some()), (status, true), "{}", got.head);
    }
    let (upstream, _) = answers([]);
    let relay = Relay::to(&upstream.url()).args(["--http-shutdown"]).start();
    let got = relay.connect().send(shutdown).response();
    assert_eq!((got.status, got.date.is_some()), (200, true), "{}", got.head);
}

#[test]
fn hop_by_hop_and_nominated_fields_end_here() {
    let got = answer(
        "HTTP/1.1 200 OK\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\nX-A: 1\r\n\
         Keep-Alive: timeout=5\r\nProxy-Authenticate: Basic\r\nProxy-Connection: close\r\n\
         Proxy-Authentication-Info: x\r\nTE: trailers\r\nTrailer: X-T\r\nUpgrade: h2\r\n\
         connection: x-HOP2\r\nX-Hop2: 1\r\nX-B: 2\r\nContent-Length: 2\r\n\r\nhi",
    );
    assert_eq!(got.head, "HTTP/1.1 200 OK\r\nX-A: 1\r\nX-B: 2\r\nContent-Length: 2\r\n\r\n");
}

#[test]
fn fields_that_would_be_taken_for_framing_or_for_a_hop_end_here_and_others_pass() {
    let got = answer(
        "HTTP/1.1 200 OK\r\nContent_Length: 7\r\nTransfer.Encoding: chunked\r\nX-A: 1\r\n\
         TRANSFER_ENCODING: gzip\r\nKeep_Alive: 1\r\nProxy_Authenticate: Basic\r\n\
         Content_Encoding: gzip\r\nAccept-Encoding: gzip\r\nContent_Lengths: 1\r\n\
         Content-Length: 2\r\n\r\nhi",
    );
    assert_eq!(
        got.head,
        "HTTP/1.1 200 OK\r\nX-A: 1\r\nAccept-Encoding: gzip\r\nContent_Lengths: 1\r\n\
         Content-Length: 2\r\n\r\n"
    );
}

#[test]
fn long_fields_between_fields_that_end_here_pass_whole() {
    let long = |i: usize| format!("X-{i}: {}\r\n", "v".repeat(900));
    let sent: String = (0..62).map(|i| format!("{}Keep-Alive: {i}\r\n", long(i))).collect();
    let kept: String = (0..62).map(long).collect();
    let body = "b".repeat(5_000);
    let end = "Content-Length: 5000\r\n\r\n";
    let got = answer(&format!("HTTP/1.1 200 OK\r\n{sent}{end}{body}"));
    assert_eq!(got.head, format!("HTTP/1.1 200 OK\r\n{kept}{end}"));
    assert_eq!(got.text(), body);
}

#[test]
fn connection_cannot_nominate_the_length() {
    let got = answer(
        "HTTP/1.1 200 OK\r\nConnection: content-length, date\r\nDate: x\r\nContent-Length: 2\r\n\r\nhi",
    );
    assert_eq!(got.head, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n");
    assert_eq!(got.text(), "hi");
}

#[test]
fn a_redirect_is_passed_on_and_not_followed() {
    let target = Upstream::answering(ok("followed"));
    for status in ["301 Moved Permanently", "302 Found", "307 Temporary Redirect", "308 Moved"] {
        let text =
            format!("HTTP/1.1 {status}\r\nLocation: {}\r\nContent-Length: 0\r\n\r\n", target.url());
        assert_eq!(answer(&text).head, text);
    }
    assert_eq!(target.connections(), 0);
}

#[test]
fn responses_without_a_body_have_none() {
    let (upstream, relay) = answers([
        "HTTP/1.1 204 No Content\r\nX-A: 1\r\n\r\n",
        "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n",
        "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\n\r\n",
        "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi",
    ]);
    let mut client = relay.connect();
    for want in [
        "HTTP/1.1 204 No Content\r\nX-A: 1\r\n\r\n",
        "HTTP/1.1 204 No Content\r\n\r\n",
        "HTTP/1.1 204 No Content\r\n\r\n",
        "HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\n\r\n",
        "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n",
    ] {
        assert_eq!(client.send(post("", "{}")).response().head, want);
    }
    // Both connections went on: the end of each response was never in doubt.
    assert_eq!(upstream.connections(), 1);
}

#[test]
fn every_event_arrives_before_the_next_is_sent() {
    // Chunked, as the API does it; close-delimited; of known length.
    for (head, chunked) in [
        ("Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n", true),
        ("Content-Type: text/event-stream\r\n\r\n", false),
        ("Content-Type: text/event-stream\r\nContent-Length: 740\r\n\r\n", false),
        // A stream is one whatever its type is.
        ("Transfer-Encoding: chunked\r\n\r\n", true),
        ("\r\n", false),
        ("Content-Type: x/unknown; q\r\nTransfer-Encoding: chunked\r\n\r\n", true),
        ("Content-Type:\r\nContent-Length: 740\r\n\r\n", false),
    ] {
        let (tell, told) = Gate::pair();
        let event = |i: usize| format!("event: e\ndata: {{\"n\":{i:04}}}\n\n{}\n\n", ":".repeat(8));
        let upstream = Upstream::tls(move |peer| {
            peer.request().unwrap();
            peer.write(format!("HTTP/1.1 200 OK\r\n{head}"));
            for i in 0..20 {
                told.wait();
                let event = event(i);
                peer.write(if chunked {
                    format!("{:x}\r\n{event}\r\n", event.len())
                } else {
                    event
                });
            }
            told.wait();
            if chunked {
                peer.write("0\r\n\r\n");
            }
            peer.close();
        });
        let relay = Relay::to(&upstream.url()).start();
        let mut client = relay.connect();
        let answer = client.send(post("", "{}")).head();
        let content_type = head.lines().find(|line| line.starts_with("Content-Type"));
        assert!(answer.contains(content_type.unwrap_or_default()));
        let framed = answer.contains("Transfer-Encoding: chunked\r\n");
        assert_eq!(framed, !head.contains("Content-Length"));
        for i in 0..20 {
            tell.signal();
            let event = event(i);
            let want = if framed { format!("{:x}\r\n{event}\r\n", event.len()) } else { event };
            assert_eq!(String::from_utf8(client.take(want.len())).unwrap(), want);
        }
        tell.signal();
        if framed {
            assert_eq!(client.take(5), b"0\r\n\r\n");
        }
        assert!(client.buffer.is_empty());
        // The event that is more than the last: the connection can be used again.
        assert_eq!(client.send("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").response().status, 403);
    }
}

#[test]
fn a_head_goes_out_before_its_body_has_begun() {
    let (tell, told) = Gate::pair();
    let upstream = Upstream::tls(move |peer| {
        peer.request().unwrap();
        peer.write("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n");
        told.wait();
        peer.write("hi");
    });
    let relay = Relay::to(&upstream.url()).start();
    let mut client = relay.connect();
    assert!(client.send(post("", "{}")).head().starts_with("HTTP/1.1 200 OK\r\n"));
    tell.signal();
    assert_eq!(client.take(2), b"hi");
}

const INTERIM: &str = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nConnection: x-hop\r\nX-Hop: 1\r\n\r\n\
                       HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n";

#[test]
fn interim_responses_go_to_http_1_1_clients_as_they_come() {
    let (tell, told) = Gate::pair();
    let upstream = Upstream::tls(move |peer| {
        peer.request().unwrap();
        peer.write(INTERIM);
        told.wait();
        peer.write(ok("hello"));
    });
    let relay = Relay::to(&upstream.url()).start();
    let mut client = relay.connect();
    assert_eq!(
        client.send(post("", "{}")).head(),
        "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
    );
    assert_eq!(client.head(), "HTTP/1.1 102 Processing\r\n\r\n");
    assert_eq!(client.head(), "HTTP/1.1 100 Continue\r\n\r\n");
    tell.signal();
    assert_eq!(client.response().text(), "hello");
}

#[test]
fn interim_responses_do_not_go_to_http_1_0_clients() {
    let (_upstream, relay) = answers([&(INTERIM.to_owned() + &ok("hello"))]);
    let mut client = relay.connect();
    let response = client.send(HTTP_1_0).response();
    assert_eq!((response.status, response.text()), (200, "hello"));
}

/// Ways to write the same body.
const SAME: [&str; 3] = [
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n",
    "HTTP/1.1 200 OK\r\ntransfer-encoding: CHUNKED\r\n\r\n03;a=\"b;c\";d\r\nhel\r\n2 ; e\r\nlo\r\n\
     000;f\r\nX-Trailer: 1\r\nAuthorization: x\r\n\r\n",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-T\r\n\r\n5\r\nhello\r\n0\r\nX-T: 1\r\n\r\n",
];

#[test]
fn chunked_stays_chunked_and_extensions_and_trailers_are_dropped() {
    let (upstream, relay) = answers(SAME);
    let mut client = relay.connect();
    for _ in SAME {
        client.send(post("", "{}"));
        assert_eq!(client.head(), "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        // `body` takes plain chunk sizes and an empty trailer section, and nothing else.
        let got = body("\r\nTransfer-Encoding: chunked\r\n", &mut |n| client.take(n)).unwrap();
        assert_eq!(got, b"hello");
        assert!(client.buffer.is_empty());
    }
    assert_eq!(upstream.connections(), 1);
}

#[test]
fn an_http_1_0_client_gets_a_body_that_ends_with_the_connection() {
    let (_upstream, relay) = answers(SAME);
    for _ in SAME {
        let mut client = relay.connect();
        assert_eq!(client.send(HTTP_1_0).head(), "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n");
        assert_eq!(client.rest(), (b"hello".to_vec(), End::Fin));
    }
}

#[test]
fn a_close_delimited_response_is_chunked_for_http_1_1_and_not_for_1_0() {
    for head in [
        "HTTP/1.1 200 OK\r\n\r\n",
        "HTTP/1.0 200 OK\r\n\r\n",
        "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n",
    ] {
        let upstream = Upstream::tls(move |peer| {
            peer.request().unwrap();
            peer.write(format!("{head}hello"));
            peer.close();
        });
        let relay = Relay::to(&upstream.url()).start();
        let mut client = relay.connect();
        for _ in 0..2 {
            let response = client.send(post("", "{}")).response();
            assert_eq!(response.head, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
            assert_eq!(response.text(), "hello");
        }
        let mut old = relay.connect();
        assert_eq!(old.send(HTTP_1_0).head(), "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n");
        assert_eq!(old.rest(), (b"hello".to_vec(), End::Fin));
    }
}

#[test]
fn a_close_delimited_response_may_be_empty() {
    let upstream = Upstream::tls(|peer| {
        peer.request().unwrap();
        peer.write("HTTP/1.1 200 OK\r\n\r\n");
        peer.close();
    });
    let relay = Relay::to(&upstream.url()).start();
    let response = relay.connect().send(post("", "{}")).response();
    assert_eq!((response.status, response.text()), (200, ""));
}

#[test]
fn an_http_1_0_upstream_is_understood() {
    let (upstream, relay) = answers([
        "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nhi",
        "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi",
    ]);
    let mut client = relay.connect();
    for _ in 0..3 {
        let response = client.send(post("", "{}")).response();
        assert_eq!(response.head, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n");
        assert_eq!(response.text(), "hi");
    }
    // It keeps its connection only where it says so.
    assert_eq!(upstream.connections(), 2);
}

#[test]
fn a_response_during_the_upload_is_passed_on_at_once() {
    let (tell, told) = Gate::pair();
    let upstream = Upstream::tls(move |peer| {
        peer.head().unwrap();
        assert_eq!(peer.take(5), b"first");
        peer.write("HTTP/1.1 413 Content Too Large\r\nContent-Length: 2\r\n\r\nno");
        peer.closed();
        tell.signal();
    });
    let relay = Relay::to(&upstream.url()).start();
    // What is left of the upload decides whether the connection goes on.
    for (length, stays) in [(1000, true), (1 << 20, false)] {
        let mut client = relay.connect();
        client.send(format!(
            "POST /v1/responses HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\nfirst"
        ));
        let response = client.response();
        assert_eq!((response.status, response.text()), (413, "no"));
        told.wait();
        assert_eq!(response.fields("connection").is_empty(), stays);
        client.send("x".repeat(length - 5));
        if stays {
            let next = client.send("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").response();
            assert_eq!(next.status, 403);
        } else {
            client.finish().expect_end(End::Fin);
        }
    }
}

#[test]
fn two_hundred_streams_at_once_are_not_mixed() {
    const STREAMS: usize = 200;
    const EVENTS: usize = 20;
    let event = |name: &str, i: usize| format!("data: {name} {i} {}\n\n", "z".repeat(i * 7));
    // No response is sent before all requests have come, so all are open at once.
    let all = Arc::new(Barrier::new(STREAMS));
    let upstream = Upstream::tls(move |peer| {
        let request = peer.request().unwrap();
        let name = String::from_utf8(request.body.clone()).unwrap();
        assert_eq!(request.fields("x-name"), [&name]);
        all.wait();
        peer.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        for i in 0..EVENTS {
            let event = event(&name, i);
            peer.write(format!("{:x}\r\n{event}\r\n", event.len()));
            // Step by step, so that the streams interleave.
            all.wait();
        }
        peer.write("0\r\n\r\n");
    });
    let relay = Relay::to(&upstream.url()).start();
    let name = |i: usize| format!("stream-{i:03}");
    let mut clients: Vec<Client> = (0..STREAMS).map(|_| relay.connect()).collect();
    for (i, client) in clients.iter_mut().enumerate() {
        client.send(post(&format!("X-Name: {}\r\n", name(i)), &name(i)));
    }
    for (i, client) in clients.iter_mut().enumerate() {
        let response = client.response();
        let want: String = (0..EVENTS).map(|n| event(&name(i), n)).collect();
        assert_eq!((response.status, response.text()), (200, &*want));
    }
    let mut bodies: Vec<_> = upstream.requests().into_iter().map(|request| request.body).collect();
    bodies.sort();
    assert!(bodies.into_iter().eq((0..STREAMS).map(|i| name(i).into_bytes())), "one each");
    assert_eq!(upstream.connections(), STREAMS);
}

#[test]
fn a_client_connection_is_kept_until_the_client_says_close() {
    let upstream = Upstream::answering(ok("hello"));
    let relay = Relay::to(&upstream.url()).start();
    let mut client = relay.connect();
    for fields in ["", "Connection: keep-alive\r\n", "Connection: x\r\n"] {
        let response = client.send(post(fields, "{}")).response();
        assert!(response.fields("connection").is_empty());
    }
    let response = client.send(post("Connection: x, CLOSE\r\n", "{}")).response();
    assert_eq!(response.fields("connection"), ["close"]);
    client.expect_end(End::Fin);
    // A response that has no known length still has its end.
    let mut client = relay.connect();
    client.send(post("connection: close\r\n", "{}"));
    assert_eq!(client.response().text(), "hello");
    client.expect_end(End::Fin);
}

#[test]
fn pipelined_requests_are_answered_in_order_one_at_a_time() {
    let upstream = Upstream::tls(|peer| {
        while let Some(request) = peer.request() {
            peer.write(ok(std::str::from_utf8(&request.body).unwrap()));
        }
    });
    let relay = Relay::to(&upstream.url()).start();
    let mut client = relay.connect();
    let chunked = "POST /v1/responses HTTP/1.1\r\nHost: localhost\r\n\
                   Transfer-Encoding: chunked\r\n\r\n1\r\nc\r\n0\r\n\r\n";
    client.send([&*post("", "a"), "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", chunked].concat());
    client.send((0..50).map(|i| post("", &i.to_string())).collect::<String>());
    assert_eq!(client.response().text(), "a");
    assert_eq!(client.response().status, 403);
    assert_eq!(client.response().text(), "c");
    for i in 0..50 {
        assert_eq!(client.response().text(), i.to_string());
    }
    // Two at a time would have taken two connections.
    assert_eq!((upstream.requests().len(), upstream.connections()), (52, 1));
    // Bytes behind a request that ends the connection are not read.
    client.send(post("Connection: close\r\n", "last") + &post("", "never"));
    assert_eq!(client.response().text(), "last");
    client.expect_end(End::Fin);
    assert_eq!(upstream.requests().len(), 53);
}
