//! Tests which fields the relay drops because an upstream might take them for others, and which it
//! adds.

use super::support::{Relay, Request, Upstream, ok, post};

fn forwarded(args: &[&str], sent: &str) -> Request {
    let upstream = Upstream::answering(ok("hello"));
    let relay = Relay::to(&upstream.url()).args(args).start();
    assert_eq!(relay.connect().send(post(sent, "{}")).response().status, 200);
    upstream.requests().remove(0)
}

#[test]
fn names_that_look_like_those_that_count_end_here() {
    for name in [
        "Transfer_Encoding",
        "transfer_encoding",
        "Content_Length",
        "CONTENT_LENGTH",
        "Content.Length",
        "Keep_Alive",
        "Proxy_Authorization",
        "PROXY_CONNECTION",
        "Proxy-Authenticate_Info",
        "Accept_Encoding",
        "If_Range",
        "Sec_Fetch_Site",
        "X-HTTP-Method-Override",
        "x-http-method",
        "X-Method-Override",
        "X-Original-URL",
        "X-Rewrite-Url",
        "X-Original-URI",
        "X-Original-Method",
        "X-Forwarded-Host",
        "X-Forwarded-Method",
        "X-Forwarded-Uri",
        "X-Envoy-Original-Path",
        "X_HTTP_Method_Override",
        "X_HTTP_METHOD",
        "X_Method_Override",
        "X_Original_URL",
        "X-Rewrite_URL",
    ] {
        let request = forwarded(&[], &format!("X-A: 1\r\n{name}: chunked\r\nX_B: 2\r\n"));
        assert!(request.fields(name).is_empty(), "{name}");
        assert_eq!((request.fields("x-a"), request.fields("x_b")), (vec!["1"], vec!["2"]));
    }
}

#[test]
fn names_that_look_like_the_field_of_the_key_end_here() {
    for (header, disguises) in [
        ("api-key: {}", &["api_key", "API_KEY", "Api.Key", "api~key"][..]),
        ("X_Api_Key: {}", &["x-api-key", "X-API_KEY"]),
    ] {
        let sent: String = disguises.iter().map(|name| format!("{name}: other\r\n")).collect();
        let request = forwarded(&["--auth-header", header], &(sent + "X-Api: 1\r\n"));
        assert!(!request.head.contains("other"));
        assert_eq!(request.fields("x-api"), ["1"]);
    }
}

#[test]
fn what_the_operator_drops_does_not_reach_the_upstream() {
    let args = ["--drop-header", "OpenAI-Project", "--drop-header=cookie"];
    let request = forwarded(
        &args,
        "openai-PROJECT: p\r\nOpenAI_Project: p\r\nCookie: c\r\ncookie: d\r\nX-Cookie: e\r\n\
         OpenAI-Organization: o\r\nOpenAI-Projects: f\r\n",
    );
    for name in ["openai-project", "openai_project", "cookie"] {
        assert!(request.fields(name).is_empty(), "{name}");
    }
    assert_eq!(request.fields("x-cookie"), ["e"]);
    assert_eq!(request.fields("openai-organization"), ["o"]);
    assert_eq!(request.fields("openai-projects"), ["f"]);
}

#[test]
fn a_name_to_drop_is_a_token() {
    for value in ["", "a b", "a:", "x\u{e9}", "a,b"] {
        let (code, _, err) = Relay::bare().args(["--drop-header", value]).run(b"key\n");
        assert_eq!(code, 2, "{err}");
        assert!(err.contains("--drop-header takes the name of a field"), "{err}");
    }
}

#[test]
fn via_names_this_hop_behind_those_before_it() {
    let request = forwarded(&[], "Via: 1.1 me\r\n");
    assert_eq!(request.fields("via"), ["1.1 me", "1.1 relay"]);
    let upstream = Upstream::answering(ok("hello"));
    let relay = Relay::to(&upstream.url()).start();
    let mut client = relay.connect();
    client.send("POST /v1/responses HTTP/1.0\r\nContent-Length: 2\r\n\r\n{}");
    let response = client.response();
    assert!(response.fields("via").is_empty());
    assert_eq!(upstream.requests().remove(0).fields("via"), ["1.0 relay"]);
}

#[test]
fn a_host_that_the_operator_allows_is_served_and_no_other() {
    let upstream = Upstream::answering(ok("hello"));
    let relay = Relay::to(&upstream.url())
        .args(["--allow-host", "Host.Docker.Internal", "--allow-host", "10.0.0.7"])
        .start();
    let ask = |host: &str| {
        let text = post("", "{}").replace("Host: localhost", &format!("Host: {host}"));
        relay.connect().send(text).response()
    };
    for host in [
        "host.docker.internal",
        "HOST.docker.internal:8080",
        "10.0.0.7:1",
        "localhost",
        "127.0.0.1:9",
    ] {
        assert_eq!(ask(host).status, 200, "{host}");
    }
    for host in [
        "docker.internal",
        "a.host.docker.internal",
        "host.docker.internal.",
        "host.docker.internal.evil.example",
        "10.0.0.70",
        "evil.example",
    ] {
        let answer = ask(host);
        assert_eq!((answer.status, answer.code()), (403, "host_not_allowed"), "{host}");
    }
    // A web page stays out by whatever name it comes.
    let text = post("Origin: http://host.docker.internal\r\n", "{}")
        .replace("Host: localhost", "Host: host.docker.internal");
    assert_eq!(relay.connect().send(text).response().code(), "origin_not_allowed");
}

#[test]
fn a_host_to_allow_is_one_name_without_a_port() {
    for value in ["", "a:80", "*", "*.example", "http://a", "a b", "a/b", "[::1", "::1"] {
        let (code, _, err) = Relay::bare().args(["--allow-host", value]).run(b"key\n");
        assert_eq!(code, 2, "{err}");
        assert!(err.contains("--allow-host takes the name or address of a host"), "{err}");
    }
}
