//! Tests `--probe`: which programs it takes for a relay, how long it waits, and that its only trace
//! is a line of the access log.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Stdio;
use std::time::{Duration, Instant};

use super::support::upstream::memory_file;
use super::support::{Client, Relay, Upstream, certs, ok, post};

/// Runs it: exit code, stdout, stderr.
fn probe(port: u16) -> (i32, String, String) {
    Relay::bare().args(["--probe", &port.to_string()]).run(b"")
}

#[track_caller]
fn answers(relay: &Relay) {
    let want = format!("a relay responds on 127.0.0.1:{}\n", relay.port);
    assert_eq!(probe(relay.port), (0, want, String::new()));
}

#[track_caller]
fn does_not_answer(port: u16, want: &str) {
    let (code, out, err) = probe(port);
    assert_eq!((code, out.as_str()), (1, ""));
    let start = "codex-responses-api-proxy: error: no relay responds on 127.0.0.1:";
    assert_eq!(err, format!("{start}{port}: {want}\n"));
}

/// A server of another kind; it serves one connection.
fn other_server(serve: impl FnOnce(TcpStream) + Send + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || serve(listener.accept().unwrap().0));
    port
}

fn saying(response: &str) -> u16 {
    let response = response.to_owned();
    other_server(move |mut stream| {
        let mut request = [0; 1024];
        let _ = stream.read(&mut request);
        let _ = stream.write_all(response.as_bytes());
    })
}

#[test]
fn a_relay_is_found_without_a_key_and_nothing_of_it_is_used_up() {
    let upstream = Upstream::answering(ok("fine"));
    let relay = Relay::to(&upstream.url()).args(["--max-requests", "1"]).start();
    for _ in 0..3 {
        // Stdin stays open and empty: a read of it would wait for ever.
        let port = relay.port.to_string();
        let mut starter = Relay::bare().args(["--probe", &port]);
        let (mut probe, _stdin) = starter.spawn_without_key(Stdio::piped());
        assert_eq!(probe.exit_code(), 0);
    }
    assert!(upstream.requests().is_empty());
    assert_eq!(relay.connect().send(post("", "{}")).response().text(), "fine");
}

#[test]
fn a_relay_that_refuses_this_caller_is_a_relay() {
    answers(&Relay::bare().args(["--allow-uid", "4242"]).start());
    let token = memory_file(b"open-sesame-0001\n");
    answers(&Relay::bare().args(["--client-token-file", token.to_str().unwrap()]).start());
}

#[test]
fn a_relay_whose_places_are_taken_is_a_relay() {
    let upstream = Upstream::answering(ok("fine"));
    let relay = Relay::to(&upstream.url()).args(["--max-connections", "1"]).start();
    let mut held = relay.connect();
    // Half a request: this connection is not idle, so it keeps its place.
    held.send("POST /v1/responses HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{");
    super::support::wait_for(|| upstream.connections() > 0);
    answers(&relay);
    assert_eq!(held.send("}").response().text(), "fine");
}

#[test]
fn the_access_log_names_a_probe_by_its_route() {
    let relay = Relay::bare().args(["--access-log"]).start();
    answers(&relay);
    relay.line_with("\"refused_route\":\"health\"");
}

#[test]
fn a_relay_that_drains_has_given_its_port_up() {
    let upstream = Upstream::tls(|peer| {
        peer.request();
        peer.closed();
    });
    let relay = Relay::to(&upstream.url()).args(["--grace", "60"]).start();
    let mut client = relay.connect();
    client.send(post("", "{}"));
    super::support::wait_for(|| !upstream.requests().is_empty());
    relay.signal(libc::SIGTERM);
    relay.line_with("ending: SIGTERM");
    does_not_answer(relay.port, "Connection refused (os error 111)");
}

#[test]
fn other_servers_are_no_relays() {
    let body = "{\"error\":{\"message\":\"No.\",\"type\":\"proxy_error\",\"code\":\"route_not_allowed\"}}\n";
    for response in [
        String::new(),
        "SSH-2.0-OpenSSH_9.2\r\n".into(),
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}".into(),
        "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n".into(),
        format!("HTTP/1.1 200 OK\r\n\r\n{body}"),
        // More than is read.
        format!("HTTP/1.1 403 Forbidden\r\nX: {}\r\n\r\n{body}", "x".repeat(5000)),
    ] {
        does_not_answer(saying(&response), "the response is another program's");
    }
    // What the cases above are near to.
    assert_eq!(probe(saying(&format!("HTTP/1.1 403 Forbidden\r\n\r\n{body}"))).0, 0);
}

#[test]
fn a_server_that_says_nothing_or_does_not_end_is_waited_for_two_seconds() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let endless = other_server(|mut stream| {
        while stream.write_all(b".").is_ok() {
            super::support::pace(Duration::from_millis(100));
        }
    });
    std::thread::scope(|scope| {
        for port in [silent.local_addr().unwrap().port(), endless] {
            scope.spawn(move || {
                let before = Instant::now();
                does_not_answer(port, "no complete response within 2 s");
                let waited = before.elapsed();
                let (least, most) = (Duration::from_secs(2), Duration::from_secs(8));
                assert!(waited >= least && waited < most, "{waited:?}");
            });
        }
    });
}

#[test]
fn it_goes_alone() {
    let ca = certs().ca_file();
    for more in [
        &["--port", "1"][..],
        &["--access-log"],
        &["--check"],
        &["--detach"],
        &["--ca-file", &ca],
        &["--upstream-url", "http://10.0.0.1/"],
    ] {
        for arguments in [[more, &["--probe", "1"]].concat(), [&["--probe", "1"], more].concat()] {
            let (code, out, err) = Relay::bare().args(arguments).run(b"");
            assert_eq!((code, out.as_str()), (2, ""), "{err}");
            let want = "--probe tests a running relay and starts none; remove the other flags";
            assert!(err.contains(want), "{err}");
        }
    }
    for value in ["0", "65536", "http", ""] {
        let (code, _, err) = Relay::bare().args(["--probe", value]).run(b"");
        assert_eq!(code, 2);
        assert!(err.contains("--probe takes a whole number from 1 to 65535"), "{err}");
    }
}

/// A proxy or a root store of the environment is not the probe's business.
#[test]
fn the_environment_does_not_matter() {
    let relay = Relay::bare().start();
    let starter = Relay::bare().args(["--probe", &relay.port.to_string()]);
    let starter = starter.env("HTTPS_PROXY", "nonsense").env("SSL_CERT_FILE", "/nonexistent");
    assert_eq!(starter.run(b"").0, 0);
    Client::connect(relay.port);
}
