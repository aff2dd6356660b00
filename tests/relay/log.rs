//! Tests `--access-log`: its contents, the data that it must not contain, and that the relay never
//! waits for a reader.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::Stdio;
use std::time::Duration;

use super::bodies::at_rest;
use super::pooling::Clock;
use super::support::relay::port_of_start;
use super::support::upstream::Kind;
use super::support::{DEADLINE, End, Gate, Relay, Upstream, ok, post, quiet};

/// The names of a line of an exchange, in order, and whether a line may lack them.
const NAMES: [(&str, bool); 22] = [
    ("time", false),
    ("start", false),
    ("connection", false),
    ("request", false),
    ("route", false),
    ("status", false),
    ("bytes_in", false),
    ("bytes_out", false),
    ("connect_ms", false),
    ("first_byte_ms", false),
    ("last_byte", false),
    ("total_ms", false),
    ("reused", false),
    ("tls_resumed", true),
    ("upstream", true),
    ("upstream_request_id", true),
    ("retry_after", true),
    ("error_code", true),
    ("refused_route", true),
    ("uid", true),
    ("end", false),
    ("lost", true),
];

/// The fields of a line, after it was checked that it has these names in order and no others.
fn fields(line: &str) -> Vec<(&'static str, String)> {
    let mut rest = line.strip_prefix('{').unwrap().strip_suffix('}').unwrap();
    let mut fields = Vec::new();
    for (name, may_lack) in NAMES {
        let tag = format!("{}\"{name}\":", if fields.is_empty() { "" } else { "," });
        let Some(behind) = rest.strip_prefix(&tag) else {
            assert!(may_lack, "no {name} in {line}");
            continue;
        };
        let end = match behind.strip_prefix('"') {
            Some(text) => text.find('"').unwrap() + 2,
            None => behind.find(',').unwrap_or(behind.len()),
        };
        fields.push((name, behind[..end].trim_matches('"').to_owned()));
        rest = &behind[end..];
    }
    assert_eq!(rest, "", "{line}");
    fields
}

fn find(line: &str, name: &str) -> Option<String> {
    let field = fields(line).into_iter().find(|(other, _)| *other == name);
    field.map(|(_, value)| value)
}

fn get(line: &str, name: &str) -> String {
    find(line, name).unwrap_or_else(|| panic!("no {name} in {line}"))
}

/// route, status, bytes_in, bytes_out, reused, end
fn gist(line: &str) -> [String; 6] {
    ["route", "status", "bytes_in", "bytes_out", "reused", "end"].map(|name| get(line, name))
}

#[test]
fn each_exchange_is_one_line() {
    let upstream = Upstream::answering(ok("hello"));
    let relay = Relay::to(&upstream.url()).args(["--access-log", "--http-shutdown"]).start();
    let mut client = relay.connect();
    client.send(post("", "{}!")).response();
    let line = relay.line();
    assert_eq!(gist(&line), ["responses", "200", "3", "5", "false", "complete"]);
    let time = &get(&line, "time");
    assert!(time.len() == 24 && time.ends_with('Z') && &time[10..11] == "T", "{time}");
    assert_ne!(get(&line, "connect_ms"), "null", "a connection had to be made");
    client.send(post("", "{}!")).response();
    let line = relay.line();
    assert_eq!(gist(&line), ["responses", "200", "3", "5", "true", "complete"]);
    assert_eq!(get(&line, "connect_ms"), "null", "none had to be made");
    client.send("GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n").response();
    assert_eq!(gist(&relay.line()), ["refused", "403", "0", "0", "false", "route_not_allowed"]);
    client.send("GET /shutdown HTTP/1.1\r\nHost: localhost\r\n\r\n").response();
    assert_eq!(gist(&relay.line()), ["shutdown", "200", "0", "0", "false", "complete"]);
}

#[test]
fn how_an_exchange_ended_is_said() {
    let upstream = Upstream::tls(|peer| {
        let Some(request) = peer.request() else { return };
        match request.body.as_slice() {
            b"cut" => {
                peer.write("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc");
                peer.close();
            }
            b"bad" => peer.write("HTTP/1.1 2000 OK\r\n\r\n"),
            b"gone" => {
                peer.write("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc");
                peer.closed();
            }
            _ => peer.close(),
        }
    });
    let relay = Relay::to(&upstream.url()).args(["--access-log", "--grace", "60"]).start();
    let ask = |body: &str| {
        let mut client = relay.connect();
        client.send(post("", body));
        client
    };
    ask("cut").rest();
    assert_eq!(gist(&relay.line()), ["responses", "200", "3", "3", "false", "upstream_truncated"]);
    ask("bad").response();
    assert_eq!(gist(&relay.line())[1..], ["502", "3", "0", "false", "upstream_bad_response"]);
    ask("close").response();
    assert_eq!(gist(&relay.line())[1..], ["502", "5", "0", "false", "upstream_closed"]);
    let mut client = ask("gone");
    client.head();
    drop(client);
    assert_eq!(gist(&relay.line())[1..], ["200", "4", "3", "false", "client_closed"]);
    let mut client = relay.connect();
    client.send("\0\r\n\r\n").response();
    assert_eq!(gist(&relay.line()), ["refused", "400", "0", "0", "false", "malformed_request"]);
    let mut client = ask("gone");
    client.head();
    relay.signal(libc::SIGTERM);
    let line = relay.line();
    let event = ",\"cause\":\"SIGTERM\",\"exchanges\":1,\"grace_s\":60}";
    assert!(line.contains("\"event\":\"drain\"") && line.ends_with(event), "{line}");
    assert_eq!(client.take(3), b"abc");
    // Right behind the first signal it counts as the same.
    while quiet(&client.stream, Duration::from_millis(50)) {
        relay.signal(libc::SIGINT);
    }
    assert_eq!(client.rest().1, End::Reset);
    assert_eq!(gist(&relay.line())[5], "shutdown");
    let line = relay.line();
    let event = ",\"cause\":\"SIGINT\",\"cut_off\":1}";
    assert!(line.contains("\"event\":\"end\"") && line.ends_with(event), "{line}");
}

#[test]
fn nothing_that_a_peer_chose_is_in_it() {
    let upstream =
        Upstream::answering("HTTP/1.1 299 CANARY\r\nX: CANARY\r\nContent-Length: 6\r\n\r\nCANARY");
    let relay = Relay::to(&upstream.url()).args(["--access-log"]).start();
    let mut client = relay.connect();
    client.send(post("X: CANARY\r\n", "CANARY")).response();
    client.send("GET /CANARY?CANARY HTTP/1.1\r\nHost: localhost\r\n\r\n").response();
    client.send("CANARY").finish();
    client.rest();
    relay.connect().send("CANARY /x HTTP/9.9\r\n\r\n").rest();
    relay.line_with("299");
    relay.line_with("403");
    relay.line_with("505");
    assert!(!String::from_utf8(relay.output()).unwrap().contains("CANARY"));
}

/// A pipe: its reading end, its writing end, which is small.
pub fn pipe() -> (OwnedFd, OwnedFd) {
    let mut ends = [0; 2];
    // SAFETY: the kernel writes two new descriptors into the array; nothing else owns them.
    unsafe {
        assert_eq!(libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC), 0);
        libc::fcntl(ends[1], libc::F_SETPIPE_SZ, 4096);
        (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1]))
    }
}

#[test]
fn a_stderr_that_is_not_read_holds_nothing_up_and_the_lost_lines_are_counted() {
    let upstream = Upstream::answering(ok("fine"));
    let (reader, writer) = pipe();
    let kept = writer.try_clone().unwrap();
    let relay = Relay::to(&upstream.url()).args(["--access-log"]).spawn(Stdio::from(writer));
    let mut lines = BufReader::new(File::from(reader));
    let mut line = String::new();
    lines.read_line(&mut line).unwrap();
    let port = port_of_start(&line);
    // More lines than the pipe and the relay's own buffer hold together.
    let count = 1000;
    let mut client = super::support::Client::connect(port);
    for _ in 0..count {
        assert_eq!(client.send(post("", "{}")).response().status, 200);
    }
    // SAFETY: asks for flags.
    let flags = unsafe { libc::fcntl(kept.as_raw_fd(), libc::F_GETFL) };
    assert_eq!(flags & libc::O_NONBLOCK, 0, "the description is shared with others");
    drop(kept);
    // Somebody reads again: what waited comes, then the next line counts what was lost.
    let (mut seen, mut lost) = (0, 0);
    while lost == 0 {
        client.send(post("", "{}")).response();
        line.clear();
        lines.read_line(&mut line).unwrap();
        seen += 1;
        lost = find(line.trim_end(), "lost").map_or(0, |lost| lost.parse().unwrap());
        assert!(seen < 2 * count, "no line counts the lost ones");
    }
    assert!(lost > 100, "{lost}");
    drop(relay);
    let mut rest = String::new();
    lines.read_to_string(&mut rest).unwrap();
    assert!(rest.lines().all(|line| fields(line).len() >= 14));
}

#[test]
fn a_closed_stderr_stops_nothing() {
    let upstream = Upstream::answering(ok("fine"));
    let (reader, writer) = pipe();
    let relay = Relay::to(&upstream.url()).args(["--access-log"]).spawn(Stdio::from(writer));
    let mut lines = BufReader::new(File::from(reader));
    let mut line = String::new();
    lines.read_line(&mut line).unwrap();
    let port = port_of_start(&line);
    drop(lines);
    let mut client = super::support::Client::connect(port);
    for _ in 0..20 {
        assert_eq!(client.send(post("", "{}")).response().status, 200);
    }
    drop(relay);
}

#[test]
fn with_it_stderr_is_json_from_the_first_line_to_the_last() {
    let json = |text: &str| {
        assert!(text.ends_with('\n'), "{text}");
        for line in text.lines() {
            let form = line.starts_with("{\"time\":\"20") && line.ends_with('}');
            assert!(form && !line.contains('\u{1b}'), "{line}");
        }
    };
    let upstream = Upstream::answering(ok("fine"));
    let mut relay = Relay::to(&upstream.url()).args(["--access-log"]).start();
    relay.connect().send(post("", "{}")).response();
    relay.connect().send("GET /x HTTP/1.1\r\nHost: localhost\r\n\r\n").response();
    relay.line_with("route_not_allowed");
    relay.signal(libc::SIGTERM);
    assert_eq!(relay.exit_code(), 0);
    let output = String::from_utf8(relay.output()).unwrap();
    json(&output);
    let start = output.lines().next().unwrap();
    for part in [
        ",\"event\":\"start\",\"message\":\"codex-responses-api-proxy listening on ".to_owned(),
        format!(",\"version\":\"{}\",\"pid\":{},", env!("CARGO_PKG_VERSION"), relay.pid()),
        format!(",\"port\":{},\"upstream\":\"{}\",", relay.port, upstream.url()),
        ",\"open_to\":\"every local user\",\"grace_s\":1,\"protections\":\"key in ".to_owned(),
    ] {
        assert!(start.contains(&part), "no {part} in {start}");
    }
    let end = output.lines().last().unwrap();
    for part in [",\"event\":\"end\",", ",\"cause\":\"SIGTERM\",\"exchanges\":0,"] {
        assert!(end.contains(part), "{end}");
    }

    // What is wrong with the command line and with the key is an event as well.
    for (arguments, stdin, code) in
        [(["--access-log", "--prot"], "key", 2), (["--access-log", "--http-shutdown"], "no key", 1)]
    {
        let (got, _, err) = Relay::bare().args(arguments).run(stdin.as_bytes());
        assert_eq!(got, code, "{err}");
        json(&err);
        let (_, rest) = err.split_once(',').unwrap();
        assert!(rest.starts_with("\"event\":\"error\",\"message\":\""), "{err}");
        assert!(err.ends_with(&format!(",\"exit_code\":{code}}}\n")) && err.lines().count() == 1);
    }
}

#[test]
fn without_it_the_start_lines_are_text() {
    let relay = Relay::bare().start();
    let text = String::from_utf8(relay.output()).unwrap();
    assert!(text.lines().count() == 4 && !text.contains('{'), "{text}");
}

#[test]
fn connections_and_requests_are_numbered_and_a_line_says_when_the_exchange_began() {
    let upstream = Upstream::answering(ok("fine"));
    let relay = Relay::to(&upstream.url()).args(["--access-log"]).start();
    for connection in ["1", "2"] {
        let mut client = relay.connect();
        for request in ["1", "2"] {
            client.send(post("", "{}")).response();
            let line = relay.line();
            assert_eq!([get(&line, "connection"), get(&line, "request")], [connection, request]);
            // Of one form, so that they can be compared as texts.
            let [start, last, end] = ["start", "last_byte", "time"].map(|name| get(&line, name));
            assert!(start <= last && last <= end, "{line}");
        }
    }
}

#[test]
fn a_line_says_for_whom_and_from_where_and_has_the_upstreams_request_id() {
    let upstream = Upstream::tls(|peer| {
        while let Some(request) = peer.request() {
            match request.body.as_slice() {
                b"slow down" => peer.write(
                    "HTTP/1.1 429 Slow\r\nX-Request-ID: req_0aZ-9\r\nRetry-After: 20\r\n\
                     Content-Length: 2\r\n\r\nno",
                ),
                b"leave" => {
                    peer.write(
                        "HTTP/1.1 200 OK\r\nretry-after: 7\r\nConnection: close\r\n\
                         Content-Length: 0\r\n\r\n",
                    );
                    return peer.close();
                }
                _ => peer.write(ok("fine")),
            }
        }
    });
    // SAFETY: no memory is involved.
    let uid = unsafe { libc::geteuid() }.to_string();
    let relay = Relay::to(&upstream.url()).args(["--access-log", "--allow-uid", &uid]).start();
    let mut client = relay.connect();
    let mut ask = |body: &str| {
        client.send(post("", body)).response();
        relay.line()
    };
    let slow_down = ask("slow down");
    for (name, want) in [
        ("uid", uid.as_str()),
        ("upstream", &upstream.address().to_string()),
        ("upstream_request_id", "req_0aZ-9"),
        ("retry_after", "20"),
        ("tls_resumed", "false"),
        ("end", "complete"),
    ] {
        assert_eq!(get(&slow_down, name), want, "{slow_down}");
    }
    // It is the upstream's response and not one of the relay's own.
    assert_eq!((find(&slow_down, "error_code"), find(&slow_down, "refused_route")), (None, None));
    let leave = ask("leave");
    let names = ["upstream_request_id", "retry_after"];
    assert_eq!(names.map(|name| find(&leave, name)), [None, None], "{leave}");
    let after = ask("again");
    assert_eq!(
        (get(&after, "reused"), get(&after, "tls_resumed")),
        ("false".into(), "true".into())
    );
    assert_eq!(get(&after, "upstream"), upstream.address().to_string());
}

#[test]
fn what_the_upstream_says_is_not_in_the_log_unless_each_byte_of_it_is_harmless() {
    let key = super::support::relay::marker_key();
    let fields = [
        "X-Request-Id: a b".to_owned(),
        "X-Request-Id: a\"b".to_owned(),
        "X-Request-Id: a\\u0000".to_owned(),
        format!("X-Request-Id: {}", "a".repeat(65)),
        "X-Request-Id:".to_owned(),
        "X-Request-Id: a\r\nx-request-id: a".to_owned(),
        "X_Request_Id: a".to_owned(),
        "Retry-After: 1000000".to_owned(),
        "Retry-After: -1".to_owned(),
        "Retry-After: 1\r\nRetry-After: 1".to_owned(),
        "Retry-After: Wed, 21 Oct 2026 07:28:00 GMT".to_owned(),
        format!("X-Request-Id: {key}"),
    ];
    let last = fields.len() - 1;
    let upstream = Upstream::tls(move |peer| {
        while let Some(request) = peer.request() {
            let field =
                &fields[std::str::from_utf8(&request.body).unwrap().parse::<usize>().unwrap()];
            peer.write(format!("HTTP/1.1 429 Slow\r\n{field}\r\nContent-Length: 0\r\n\r\n"));
        }
    });
    let relay = Relay::to(&upstream.url()).key(&key).args(["--access-log"]).start();
    let mut client = relay.connect();
    for index in 0..=last {
        client.send(post("", &index.to_string())).response();
        let line = relay.line();
        let names = ["upstream_request_id", "retry_after"];
        assert_eq!(names.map(|name| find(&line, name)), [None, None], "{index}");
        let code = (index == last).then(|| "credential_reflected".to_owned());
        assert_eq!(find(&line, "error_code"), code, "{index}");
    }
    let longest = "a".repeat(64);
    let response =
        format!("HTTP/1.1 200 OK\r\nX-Request-Id: {longest}\r\nContent-Length: 0\r\n\r\n");
    let upstream = Upstream::answering(response);
    let relay = Relay::to(&upstream.url()).args(["--access-log"]).start();
    relay.connect().send(post("", "{}")).response();
    assert_eq!(get(&relay.line(), "upstream_request_id"), longest);
}

#[test]
fn a_refused_request_is_logged_by_the_name_of_a_known_route_and_its_error_code() {
    let relay = Relay::bare().args(["--access-log", "--max-requests", "1"]).start();
    for (request, route, code) in [
        ("GET /v1/models?client_version=CANARY", Some("models"), "route_not_allowed"),
        ("POST /v1/chat/completions", Some("chat_completions"), "route_not_allowed"),
        ("GET /v1/responses/CANARY", Some("responses_id"), "route_not_allowed"),
        ("POST /v1/responses/compact", Some("compact"), "route_not_allowed"),
        ("POST /v1/responses/input_tokens", Some("input_tokens"), "route_not_allowed"),
        ("POST /v1/responses?beta=CANARY", Some("responses_query"), "route_not_allowed"),
        ("PUT /v1/responses", Some("responses"), "route_not_allowed"),
        ("GET /shutdown", Some("shutdown"), "route_not_allowed"),
        ("GET /healthz", Some("health"), "route_not_allowed"),
        ("GET /", Some("root"), "route_not_allowed"),
        ("GET /CANARY", Some("other"), "route_not_allowed"),
        (
            "POST /v1/responses HTTP/1.1\r\nOrigin: CANARY\r\nX:",
            Some("responses"),
            "origin_not_allowed",
        ),
        ("CANARY", None, "malformed_request"),
    ] {
        relay.connect().send(format!("{request} HTTP/1.1\r\nHost: localhost\r\n\r\n")).head();
        let line = relay.line();
        assert_eq!(get(&line, "route"), "refused", "{line}");
        assert_eq!(find(&line, "refused_route").as_deref(), route, "{line}");
        assert_eq!((get(&line, "error_code"), get(&line, "end")), (code.into(), code.into()));
    }
    assert!(!String::from_utf8(relay.output()).unwrap().contains("CANARY"));
}

#[test]
fn a_connection_that_fails_in_tls_is_logged_with_its_address() {
    let config = super::support::certs().config(Kind::Expired, rustls::ALL_VERSIONS);
    let upstream = Upstream::new(Some(config), |_| {});
    let relay = Relay::to(&upstream.url()).args(["--access-log"]).start();
    relay.connect().send(post("", "{}")).response();
    let line = relay.line();
    assert_eq!(get(&line, "error_code"), "upstream_tls_expired");
    assert_eq!(get(&line, "upstream"), upstream.address().to_string());
    assert_eq!(find(&line, "tls_resumed"), None);
}

/// The first line that calls the exchange slow, and how old the exchange was then.
fn slow_line(relay: &Relay) -> (String, u64) {
    let line = relay.line();
    assert!(
        line.contains("\",\"event\":\"slow\",\"start\":\"") && !line.contains("\"end\""),
        "{line}"
    );
    let age = line.split_once("\"total_ms\":").unwrap().1.split(',').next().unwrap();
    let age = age.parse().unwrap();
    assert!((60_000..75_000).contains(&age), "{line}");
    (line, age)
}

#[test]
#[ignore = "takes a minute"]
fn an_exchange_that_hangs_is_called_slow_while_it_lasts() {
    let upstream = Upstream::tls(|peer| {
        peer.request();
        peer.write("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc");
        super::support::pace(std::time::Duration::from_secs(80));
    });
    let relay = Relay::to(&upstream.url()).args(["--access-log"]).start();
    let mut client = relay.connect();
    client.send(post("", "{}")).head();
    super::support::pace(std::time::Duration::from_secs(55));
    let (line, _) = slow_line(&relay);
    assert!(line.contains("\"status\":200,") && line.contains("\"bytes_out\":3,"), "{line}");
    assert!(line.contains("\"last_byte\":\"20"), "{line}");
    drop(client);
    assert_eq!(gist(&relay.line())[5], "client_closed");
}

#[test]
fn an_exchange_that_goes_on_is_called_slow_after_a_minute_and_then_every_five() {
    let Some(clock) = Clock::new("CLOCK_MONOTONIC") else {
        return;
    };
    let (go, may_go) = Gate::pair();
    let upstream = Upstream::tls(move |peer| {
        peer.request();
        peer.write("HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n");
        while may_go.wait_within(DEADLINE).is_some() {
            peer.write("x");
        }
    });
    let relay = clock.of(Relay::to(&upstream.url()).args(["--access-log"])).start();
    let mut client = relay.connect();
    client.send(post("", "{}")).head();
    // The exchange is called slow at about 70, 380 and 690 s, and not 30 s too early.
    for (passed, is_slow) in
        [(30, false), (70, true), (340, false), (380, true), (650, false), (690, true)]
    {
        clock.set_forward(passed);
        // The byte wakes the relay, which then looks at its clock.
        go.signal();
        assert_eq!(client.take(1), b"x");
        if is_slow {
            let line = relay.line();
            assert!(line.contains("\"event\":\"slow\"") && !line.contains("\"end\""), "{line}");
            let age: u64 = line
                .split("\"total_ms\":")
                .nth(1)
                .unwrap()
                .split(',')
                .next()
                .unwrap()
                .parse()
                .unwrap();
            assert!((passed..passed + 25).contains(&(age / 1000)), "{line}");
        }
    }
    drop(client);
    assert_eq!(gist(&relay.line())[5], "client_closed");
}

#[test]
fn the_time_of_the_last_byte_is_the_upstreams_though_the_client_does_not_read() {
    let Some(clock) = Clock::new("CLOCK_MONOTONIC") else {
        return;
    };
    let (counter, sent) = Gate::pair();
    let upstream = Upstream::tls(move |peer| {
        peer.request();
        peer.write("HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n");
        while peer.try_write([b'x'; 65_536]) {
            counter.pass(65_536);
        }
    });
    let arguments = ["--access-log", "--upstream-timeout", "100"];
    let relay = clock.of(Relay::to(&upstream.url()).args(arguments)).start();
    let mut client = relay.connect();
    client.send(post("", "{}"));
    at_rest(&sent);
    // The upstream's time passes, and it is the client who holds things up.
    for passed in [150, 160] {
        clock.set_forward(passed);
        relay.connect().send("GET /x HTTP/1.1\r\nHost: localhost\r\n\r\n").response();
        relay.line_with("route_not_allowed");
    }
    drop(client);
    let line = relay.line_with("client_closed");
    let [last, time] = ["last_byte", "time"].map(|name| {
        let moment = get(&line, name);
        let mut parts = moment[11..19].split(':').map(|part| part.parse::<u64>().unwrap());
        parts.by_ref().fold(0, |sum, part| 60 * sum + part)
    });
    // In a day, which may have ended meanwhile.
    let silence = (86_400 + time - last) % 86_400;
    assert!((155..200).contains(&silence), "{silence} s of silence: {line}");
}

#[test]
#[ignore = "takes a minute"]
fn a_request_that_waits_for_a_connection_is_called_slow_too() {
    // It accepts and says nothing, so that the handshake never ends.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://{}/v1/responses", silent.local_addr().unwrap());
    let relay = Relay::to(&url).args(["--access-log", "--client-timeout", "90"]).start();
    let mut client = relay.connect();
    let (head, rest) = ("POST /v1/responses HTTP/1.1\r\n", "Host: localhost\r\n\r\n");
    client.send(head);
    super::support::pace(std::time::Duration::from_secs(55));
    client.send(rest);
    let (line, _) = slow_line(&relay);
    assert!(line.contains("\"status\":null,") && line.contains("\"connect_ms\":null,"), "{line}");
    let address = silent.local_addr().unwrap();
    assert!(line.contains(&format!("\"upstream\":\"{address}\"")), "{line}");
    assert_eq!(client.response().code(), "upstream_connect_timeout");
    assert_eq!(get(&relay.line(), "error_code"), "upstream_connect_timeout");
}

/// The recipes of docs/access-log.md, each a line that begins with jq.
#[test]
fn every_jq_recipe_of_the_documentation_works() {
    use std::io::Write;
    use std::process::Command;
    if Command::new("jq").arg("--version").output().is_err() {
        super::support::skipped("jq is not installed");
        return;
    }
    let upstream = Upstream::answering(
        "HTTP/1.1 429 Slow\r\nX-Request-Id: req_1\r\nRetry-After: 20\r\nContent-Length: 2\r\n\r\nno",
    );
    let relay = Relay::to(&upstream.url()).args(["--access-log", "--max-requests", "1"]).start();
    for _ in 0..2 {
        relay.connect().send(post("", "{}")).response();
    }
    relay.line_with("request_limit_reached");
    relay.connect().send("GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n").response();
    relay.line_with("route_not_allowed");
    let log = std::env::temp_dir().join(super::support::relay::random_hex());
    // What takes minutes, or a user of its own, to come about.
    let written = "{\"event\":\"slow\",\"connection\":9,\"request\":1,\"total_ms\":60001,\"bytes_out\":3}\n\
                   {\"event\":\"slow\",\"connection\":9,\"request\":1,\"total_ms\":90001,\"bytes_out\":4}\n\
                   {\"event\":\"slow\",\"connection\":8,\"request\":1,\"total_ms\":60001}\n\
                   {\"connection\":8,\"request\":1,\"total_ms\":70001,\"end\":\"complete\"}\n\
                   {\"event\":\"user_refused\",\"uid\":7,\"count\":2}\n\
                   {\"event\":\"user_refused\",\"uid\":7,\"count\":3}\n";
    let mut file = File::create(&log).unwrap();
    file.write_all(&relay.output()).unwrap();
    file.write_all(written.as_bytes()).unwrap();
    let page = include_str!("../../docs/access-log.md");
    let recipes: Vec<&str> = page.lines().filter(|line| line.starts_with("jq ")).collect();
    // Under each recipe, what its lines of output hold.
    let wanted: [&[&[&str]]; 7] = [
        &[&["\"connection\":8,", "\"total_ms\":70001,", "\"end\":\"complete\""]],
        &[&["\"connection\":9,", "\"bytes_out\":4,"]],
        &[
            &["\"status\":429,\"error_code\":null,\"count\":1}"],
            &["\"status\":429,\"error_code\":\"request_limit_reached\",\"count\":1}"],
        ],
        &[&["\"retry_after\":20,\"upstream_request_id\":\"req_1\"}"]],
        &[
            &["\"request_limit_reached\",\"refused_route\":\"responses\",\"count\":1}"],
            &["\"route_not_allowed\",\"refused_route\":\"models\",\"count\":1}"],
        ],
        &[&["{\"uid\":7,\"count\":5}"]],
        &[&["codex-responses-api-proxy listening on"]],
    ];
    assert_eq!(recipes.len(), wanted.len());
    for (recipe, wanted) in recipes.iter().zip(wanted) {
        let command = recipe.replace("relay.log", log.to_str().unwrap());
        let output = Command::new("sh").args(["-c", &command]).output().unwrap();
        assert!(output.status.success(), "{recipe}: {}", String::from_utf8_lossy(&output.stderr));
        let output = String::from_utf8(output.stdout).unwrap();
        // The message of the start has several lines.
        let lines: Vec<&str> = match recipe.starts_with("jq -r") {
            true => vec![&output],
            false => output.lines().collect(),
        };
        assert_eq!(lines.len(), wanted.len(), "{recipe}: {output}");
        for (line, texts) in lines.iter().zip(wanted) {
            assert!(texts.iter().all(|text| line.contains(text)), "{recipe}: {output}");
        }
    }
    std::fs::remove_file(&log).unwrap();
}

#[test]
fn after_copytruncate_the_log_goes_on_at_its_new_end() {
    let folder = super::lifecycle::Folder::new("rotated");
    let (path, moved) = (folder.file("log"), folder.file("log.1"));
    let file = File::options().create(true).append(true).open(&path).unwrap();
    let upstream = Upstream::answering(ok("fine"));
    let relay = Relay::to(&upstream.url()).args(["--access-log"]).spawn(Stdio::from(file));
    folder.wait_for("log", |text| text.ends_with("}\n"));
    let text = std::fs::read_to_string(&path).unwrap();
    let port = port_of_start(text.lines().next().unwrap());
    let ask = || super::support::Client::connect(port).send(post("", "{}")).response();
    std::fs::copy(&path, &moved).unwrap();
    File::options().write(true).open(&path).unwrap().set_len(0).unwrap();
    ask();
    folder.wait_for("log", |text| text.starts_with("{\"time\"") && text.lines().count() == 1);
    // Moved away, the file is written to all the same.
    std::fs::rename(&path, &moved).unwrap();
    ask();
    folder.wait_for("log.1", |text| text.lines().count() == 2);
    assert!(!path.exists());
    drop(relay);
}
