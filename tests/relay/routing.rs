//! Tests which requests are forwarded and which are refused.

use super::support::{Client, End, Relay, Response, Upstream, ok, post};

/// Occurs in every refused request, and must occur in no response.
const MARKER: &str = "sm0ke";

fn start() -> (Upstream, Relay) {
    let upstream = Upstream::answering(ok("hello"));
    let relay = Relay::to(&upstream.url()).start();
    (upstream, relay)
}

/// A refusal in the one shape that all have.
fn assert_refused(answer: &Response, status: u16, code: &str, what: &str) {
    assert_eq!((answer.status, answer.code()), (status, code), "{what}");
    let text = answer.text();
    let message = text
        .strip_prefix("{\"error\":{\"message\":\"")
        .and_then(|rest| {
            rest.strip_suffix(&format!("\",\"type\":\"proxy_error\",\"code\":\"{code}\"}}}}\n"))
        })
        .unwrap_or_else(|| panic!("{text}"));
    assert!(!message.is_empty() && !message.contains(['"', '\\', '\n']), "{text}");
    assert!(!format!("{}{text}", answer.head).contains(MARKER), "{text}");
}

/// Asks for a refusal that leaves the connection usable.
fn refused(client: &mut Client, start_line: &str, fields: &str, status: u16, code: &str) {
    let request =
        format!("{start_line} HTTP/1.1\r\nHost: localhost\r\n{fields}X-Marker: {MARKER}\r\n\r\n");
    let response = client.send(&request).response();
    assert_refused(&response, status, code, &request);
    assert!(response.fields("connection").iter().all(|value| *value != "close"), "{request}");
}

#[test]
fn post_v1_responses_is_forwarded() {
    let (upstream, relay) = start();
    let mut client = relay.connect();
    let response = client.send(post("X-A: b\r\n", "{}")).response();
    assert_eq!((response.status, response.text()), (200, "hello"));
    let requests = upstream.requests();
    assert_eq!(requests.len(), 1);
    assert_eq!(
        requests[0].head_without_key(&relay.key),
        format!(
            "POST /v1/responses HTTP/1.1\r\nHost: localhost:{}\r\nX-A: b\r\nContent-Length: 2\r\n\r\n",
            upstream.port
        )
    );
    assert_eq!(requests[0].body, b"{}");
}

#[test]
fn any_other_target_is_403_and_the_connection_stays() {
    let (upstream, relay) = start();
    let mut client = relay.connect();
    for target in [
        "/v1/responses?",
        "/v1/responses?sm0ke=1",
        "/v1/responses#",
        "/v1/responses#sm0ke",
        "/v1/responses/",
        "/v1/responses/sm0ke",
        "/v1/responses;a",
        "/v1/response",
        "/V1/responses",
        "/v1/Responses",
        "//v1/responses",
        "/v1//responses",
        "/./v1/responses",
        "/v1/x/../responses",
        "/v1%2fresponses",
        "/v1%2Fresponses",
        "/v1/response%73",
        "/v1\\responses",
        "v1/responses",
        "http://localhost/v1/responses",
        "https://sm0ke.example/v1/responses",
        "localhost:443",
        "*",
        "/",
        "/v1/chat/completions",
        "/shutdown",
    ] {
        refused(&mut client, &format!("POST {target}"), "", 403, "route_not_allowed");
    }
    assert_eq!(client.send(post("", "{}")).response().status, 200);
    assert_eq!(upstream.requests().len(), 1);
}

#[test]
fn any_other_method_is_403() {
    let (upstream, relay) = start();
    let mut client = relay.connect();
    for method in
        ["GET", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT", "post", "Post", "POSTS"]
    {
        let line = format!("{method} /v1/responses");
        refused(&mut client, &line, "", 403, "route_not_allowed");
    }
    assert_eq!(upstream.requests().len(), 0);
}

#[test]
fn head_is_403_without_a_body() {
    let (_upstream, relay) = start();
    let mut client = relay.connect();
    let head = client.send("HEAD /v1/responses HTTP/1.1\r\nHost: localhost\r\n\r\n").head();
    assert!(head.starts_with("HTTP/1.1 403 Forbidden\r\n"), "{head}");
    // If there were a body, it would be where the next response begins.
    assert_eq!(client.send(post("", "{}")).response().text(), "hello");
}

#[test]
fn a_websocket_is_426_and_says_what_would_do() {
    let (upstream, relay) = start();
    let mut client = relay.connect();
    let key = "Sec-WebSocket-Key: sm0kesm0kesm0kesm0ke==\r\nSec-WebSocket-Version: 13\r\n";
    for fields in [
        "Connection: Upgrade\r\nUpgrade: websocket\r\n",
        "connection: keep-alive, UPGRADE\r\nupgrade: h2c, WebSocket\r\n",
    ] {
        let request = format!(
            "GET /v1/responses HTTP/1.1\r\nHost: 127.0.0.1:{}\r\n{fields}{key}\r\n",
            relay.port
        );
        let response = client.send(&request).response();
        assert_refused(&response, 426, "websocket_not_supported", &request);
        assert_eq!(response.fields("upgrade"), ["HTTP/1.1"]);
        assert_eq!(response.fields("connection"), ["Upgrade"]);
    }
    // Without both halves of the upgrade, or elsewhere, it is a wrong route like any other.
    for (line, fields) in [
        ("GET /v1/responses", "Upgrade: websocket\r\n"),
        ("GET /v1/responses", "Connection: Upgrade\r\n"),
        ("GET /v1/responses", "Connection: Upgrade\r\nUpgrade: h2c\r\n"),
        ("GET /v1/realtime", "Connection: Upgrade\r\nUpgrade: websocket\r\n"),
    ] {
        refused(&mut client, line, fields, 403, "route_not_allowed");
    }
    assert_eq!(upstream.requests().len(), 0);
}

#[test]
fn shutdown_without_its_flag_is_403() {
    let (_upstream, mut relay) = start();
    refused(&mut relay.connect(), "GET /shutdown", "", 403, "route_not_allowed");
    assert!(relay.is_running());
}

#[test]
fn shutdown_with_its_flag_is_only_the_exact_get() {
    let upstream = Upstream::answering(ok("hello"));
    let mut relay = Relay::to(&upstream.url()).args(["--http-shutdown"]).start();
    let mut client = relay.connect();
    for line in
        ["POST /shutdown", "GET /shutdown?", "GET /shutdown/", "GET //shutdown", "GET /Shutdown"]
    {
        refused(&mut client, line, "", 403, "route_not_allowed");
    }
    refused(
        &mut client,
        "GET /shutdown",
        "Origin: http://sm0ke.example\r\n",
        403,
        "origin_not_allowed",
    );
    let response = client.send("GET /shutdown HTTP/1.1\r\nHost: localhost\r\n\r\n").response();
    assert_eq!((response.status, &response.body[..]), (200, &b""[..]));
    assert_eq!(relay.exit_code(), 0);
}

#[test]
fn a_foreign_host_is_403_on_every_route() {
    let upstream = Upstream::answering(ok("hello"));
    let mut relay = Relay::to(&upstream.url()).args(["--http-shutdown"]).start();
    let mut client = relay.connect();
    for line in ["POST /v1/responses", "GET /v1/responses", "GET /shutdown", "GET /sm0ke"] {
        for host in ["sm0ke.example", "127.0.0.1.sm0ke.example:80", "10.0.0.1", "[::2]:80"] {
            let request = format!("{line} HTTP/1.1\r\nHost: {host}\r\n\r\n");
            let response = client.send(&request).response();
            assert_refused(&response, 403, "host_not_allowed", &request);
        }
    }
    for host in ["localhost", "LOCALHOST:1", "127.0.0.1", "127.9.9.9:65535", "[::1]:80"] {
        let request = format!("POST /v1/responses HTTP/1.1\r\nHost: {host}\r\n\r\n");
        assert_eq!(client.send(&request).response().status, 200, "{host}");
    }
    assert!(relay.is_running());
}

#[test]
fn a_web_page_is_403() {
    let (upstream, relay) = start();
    let mut client = relay.connect();
    for (fields, code) in [
        ("Origin: https://sm0ke.example\r\n", "origin_not_allowed"),
        ("Origin: null\r\n", "origin_not_allowed"),
        ("Origin: http://localhost\r\n", "origin_not_allowed"),
        ("origin:\r\n", "origin_not_allowed"),
        ("Sec-Fetch-Site: cross-site\r\n", "cross_site_request"),
        ("sec-fetch-site: same-site\r\n", "cross_site_request"),
        ("Sec-Fetch-Site:\r\n", "cross_site_request"),
        ("Sec-Fetch-Site: none\r\nSec-Fetch-Site: sm0ke\r\n", "cross_site_request"),
    ] {
        refused(&mut client, "POST /v1/responses", fields, 403, code);
    }
    assert_eq!(upstream.requests().len(), 0);
    for site in ["none", "same-origin"] {
        let request = post(&format!("Sec-Fetch-Site: {site}\r\n"), "{}");
        assert_eq!(client.send(request).response().status, 200);
    }
}

#[test]
fn what_is_not_well_formed_http_is_refused_and_the_connection_ends() {
    let (upstream, relay) = start();
    let line = "POST /v1/responses HTTP/1.1\r\n";
    let host = "Host: localhost\r\n";
    for (request, status, code) in [
        ("POST /v1/responses HTTP/1.1\nHost: sm0ke\r\n\r\n".into(), 400, "malformed_request"),
        (format!("\r\n\r\n{line}{host}\r\n"), 400, "malformed_request"),
        (format!("POST  /v1/responses HTTP/1.1\r\n{host}\r\n"), 400, "malformed_request"),
        (format!("POST /v1/responses\r\n{host}\r\n"), 400, "malformed_request"),
        (format!("{line}{host}X : sm0ke\r\n\r\n"), 400, "malformed_request"),
        (format!("{line}{host}X: a\r\n sm0ke\r\n\r\n"), 400, "malformed_request"),
        (format!("{line}{host}X: a\0sm0ke\r\n\r\n"), 400, "malformed_request"),
        (format!("{line}{host}X: a\rsm0ke\r\n\r\n"), 400, "malformed_request"),
        (format!("{line}{host}: sm0ke\r\n\r\n"), 400, "malformed_request"),
        (format!("{line}{host}sm0ke\r\n\r\n"), 400, "malformed_request"),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into(), 505, "version_not_supported"),
        (format!("POST /v1/responses HTTP/1.2\r\n{host}\r\n"), 505, "version_not_supported"),
        (format!("{line}\r\n"), 400, "invalid_host"),
        (format!("{line}{host}{host}\r\n"), 400, "invalid_host"),
        (format!("{line}Host: sm0ke/\r\n\r\n"), 400, "invalid_host"),
        (
            format!("{line}{host}Content-Length: 1\r\nContent-Length: 1\r\n\r\nx"),
            400,
            "invalid_framing",
        ),
        (format!("{line}{host}Content-Length: 1, 1\r\n\r\nx"), 400, "invalid_framing"),
        (format!("{line}{host}Content-Length: +1\r\n\r\nx"), 400, "invalid_framing"),
        (
            format!("{line}{host}Content-Length: 18446744073709551616\r\n\r\n"),
            400,
            "invalid_framing",
        ),
        (
            format!("{line}{host}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
            400,
            "invalid_framing",
        ),
        (format!("{line}{host}Transfer-Encoding: gzip, chunked\r\n\r\n"), 400, "invalid_framing"),
        (format!("{line}{host}Transfer-Encoding: xchunked\r\n\r\n"), 400, "invalid_framing"),
        (
            "POST /v1/responses HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".into(),
            400,
            "invalid_framing",
        ),
        (format!("{line}{host}Expect: sm0ke\r\n\r\n"), 417, "expectation_failed"),
    ] {
        let mut client = relay.connect();
        // A second request behind it must never be taken for one.
        client.try_send(format!("{request}{}", post("", "{}")));
        let response = client.response();
        assert_refused(&response, status, code, &request);
        assert_eq!(response.fields("connection"), ["close"], "{request}");
        client.expect_end(End::Fin);
    }
    assert_eq!(upstream.requests().len(), 0);
}

#[test]
fn http_0_9_is_refused() {
    let (upstream, relay) = start();
    let mut client = relay.connect();
    let response = client.send("GET /v1/responses\r\n").response();
    assert_refused(&response, 400, "malformed_request", "HTTP/0.9");
    client.expect_end(End::Fin);
    assert_eq!(upstream.requests().len(), 0);
}

#[test]
fn a_refused_body_is_dropped_and_the_connection_stays_or_ends_in_order() {
    let (upstream, relay) = start();
    let mut client = relay.connect();
    // Up to 64 KiB are worth reading for a connection that can go on.
    let body = "x".repeat(65_536);
    let request = |length: usize, body: &str| {
        format!("POST /sm0ke HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n{body}")
    };
    let response = client.send(request(body.len(), &body)).response();
    assert_refused(&response, 403, "route_not_allowed", "64 KiB");
    assert_eq!(client.send(post("", "{}")).response().status, 200);
    // More are not. The response arrives all the same, while the client still sends.
    let response = client.send(request(16 << 20, &body)).response();
    assert_refused(&response, 403, "route_not_allowed", "16 MiB");
    assert_eq!(response.fields("connection"), ["close"]);
    for _ in 0..255 {
        client.send(&body);
    }
    client.finish().expect_end(End::Fin);
    assert_eq!(upstream.requests().len(), 1);
}
