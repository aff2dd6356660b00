//! Tests the egress proxy: which one is used and when, the request that it receives, and the effect
//! of its responses.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};

use super::memory::scanner::{Needles, scan};
use super::memory::{may_read, none};
use super::support::port::closed_port;
use super::support::relay::{Starter, random_hex};
use super::support::upstream::memory_file;
use super::support::{Client, DEADLINE, Gate, Relay, Upstream, ok, post, read_until, skipped};

/// An address of this machine that is not loopback as the rules go, but leads there.
pub const HERE: &str = "0.0.0.0";
/// A name that nothing here resolves.
const ELSEWHERE: &str = "upstream.test";

/// A real tinyproxy; `None` where it is not installed.
struct Tinyproxy {
    child: Child,
    port: u16,
}

impl Tinyproxy {
    fn start(credentials: Option<&str>) -> Option<Tinyproxy> {
        for _ in 0..20 {
            let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let auth = credentials.map_or(String::new(), |c| format!("BasicAuth {c}\n"));
            let config = memory_file(
                format!(
                    "Port {free}\nListen 127.0.0.1\nTimeout 60\nMaxClients 50\nLogLevel Info\n\
                     {auth}"
                )
                .as_bytes(),
            );
            let child = Command::new("tinyproxy")
                .args(["-d", "-c", config.to_str().unwrap()])
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn();
            let Ok(child) = child else {
                skipped("tinyproxy is not installed");
                return None;
            };
            let mut proxy = Tinyproxy { child, port: free };
            let log = proxy.child.stdout.as_mut().unwrap();
            if read_until(log, "Accepting connections").is_some() {
                return Some(proxy);
            }
            // Somebody else was given that port.
        }
        panic!("tinyproxy does not start");
    }

    /// Ends it; its log.
    fn log(mut self) -> String {
        // SAFETY: the child has not been waited for, so the pid is its own.
        unsafe { libc::kill(self.child.id() as i32, libc::SIGTERM) };
        let mut log = String::new();
        self.child.stdout.take().unwrap().read_to_string(&mut log).unwrap();
        self.child.wait().unwrap();
        log
    }
}

impl Drop for Tinyproxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A proxy that does with each connection, once CONNECT has come, what the script says.
pub struct Fake {
    pub port: u16,
    pub requests: Gate<String>,
}

pub fn fake(script: impl Fn(&mut TcpStream) + Send + Sync + 'static) -> Fake {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (tell, requests) = Gate::pair();
    std::thread::spawn(move || {
        let script = std::sync::Arc::new(script);
        for stream in listener.incoming().map_while(Result::ok) {
            let (script, tell) = (script.clone(), tell.clone());
            std::thread::spawn(move || {
                let mut client = Client { stream, buffer: Vec::new(), date: None };
                client.stream.set_read_timeout(Some(DEADLINE)).unwrap();
                let head = client.head();
                assert!(client.buffer.is_empty(), "more than CONNECT");
                tell.pass(head);
                script(&mut client.stream);
            });
        }
    });
    Fake { port, requests }
}

pub const ESTABLISHED: &str = "HTTP/1.1 200 Connection established\r\n\r\n";

/// Joins the connection with one to this port.
pub fn join(stream: &mut TcpStream, port: u16) {
    let upstream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let pass = |mut from: TcpStream, mut to: TcpStream| {
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut from, &mut to);
            let _ = to.shutdown(Shutdown::Write);
        })
    };
    pass(stream.try_clone().unwrap(), upstream.try_clone().unwrap());
    let _ = pass(upstream, stream.try_clone().unwrap()).join();
}

fn through(port: u16, upstream: &str) -> Starter {
    Relay::to(upstream).env("https_proxy", &format!("http://127.0.0.1:{port}"))
}

#[track_caller]
fn fails(client: &mut Client, status: u16, code: &str) {
    let response = client.send(post("", "{}")).response();
    assert_eq!((response.status, response.code()), (status, code));
    assert_eq!(client.send("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").response().status, 403);
}

#[test]
fn a_real_proxy_is_gone_through() {
    let Some(proxy) = Tinyproxy::start(None) else { return };
    let upstream = Upstream::answering(ok("hello"));
    let relay = through(proxy.port, &upstream.url_at(HERE)).start();
    let line = relay.output_line("protections: ");
    let want = format!("upstream through the proxy 127.0.0.1:{}", proxy.port);
    assert!(line.contains(&want), "{line}");
    let mut client = relay.connect();
    for _ in 0..3 {
        assert_eq!(client.send(post("", "{}")).response().text(), "hello");
    }
    let seen = upstream.requests()[0].head_without_key(&relay.key);
    assert!(seen.contains(&format!("Host: {HERE}:{}\r\n", upstream.port)), "{seen}");
    assert!(!seen.contains("Proxy"), "{seen}");
    let log = proxy.log();
    assert!(log.contains(&format!("CONNECT {HERE}:{} HTTP/1.1", upstream.port)), "{log}");
}

#[test]
fn a_real_proxy_is_shown_the_credentials_and_refuses_others() {
    let secret = random_hex();
    let Some(proxy) = Tinyproxy::start(Some(&format!("agent {secret}"))) else { return };
    let upstream = Upstream::answering(ok("hello"));
    let relay = |userinfo: &str| {
        Relay::to(&upstream.url_at(HERE))
            .env("HTTPS_PROXY", &format!("http://{userinfo}127.0.0.1:{}/", proxy.port))
            .start()
    };
    let right = relay(&format!("agent:{secret}@"));
    assert_eq!(right.connect().send(post("", "{}")).response().text(), "hello");
    assert!(!String::from_utf8(right.output()).unwrap().contains(&secret));
    // tinyproxy says 407 where there are no credentials, and 401 where they are wrong.
    fails(&mut relay("").connect(), 502, "proxy_auth_required");
    fails(&mut relay("agent:wrong@").connect(), 502, "proxy_refused");
}

#[test]
fn a_real_proxy_that_cannot_reach_the_upstream_is_502() {
    let Some(proxy) = Tinyproxy::start(None) else { return };
    let closed = closed_port();
    for url in [format!("https://{HERE}:{}/", closed.port), format!("https://{ELSEWHERE}/")] {
        fails(&mut through(proxy.port, &url).start().connect(), 502, "proxy_refused");
    }
}

#[test]
fn the_proxy_resolves_the_name_and_the_certificate_is_the_upstreams() {
    let upstream = Upstream::answering(ok("hello"));
    let port = upstream.port;
    let proxy = fake(move |stream| {
        stream.write_all(ESTABLISHED.as_bytes()).unwrap();
        join(stream, port);
    });
    let proxy_url = format!("http://u%40corp:p%3Aw@localhost:{}", proxy.port);
    let to = |host: &str| Relay::to(&upstream.url_at(host)).env("all_proxy", &proxy_url).start();
    let relay = to(ELSEWHERE);
    assert_eq!(relay.connect().send(post("", "{}")).response().text(), "hello");
    let request = proxy.requests.wait();
    // Base64 of u@corp:p:w.
    assert_eq!(
        request,
        format!(
            "CONNECT {ELSEWHERE}:{port} HTTP/1.1\r\nHost: {ELSEWHERE}:{port}\r\n\
             Proxy-Authorization: Basic dUBjb3JwOnA6dw==\r\n\r\n"
        )
    );
    fails(&mut to("other.test").connect(), 502, "upstream_tls_wrong_name");
}

#[test]
fn the_variables_are_read_as_curl_reads_them() {
    let (https, http) = ("https://api.example.com/", "http://api.example.com/");
    for (url, variables, want) in [
        (https, &[][..], None),
        (https, &[("https_proxy", "a:1"), ("HTTPS_PROXY", "b:1")][..], Some("a:1")),
        (https, &[("https_proxy", ""), ("HTTPS_PROXY", "b:1")], Some("b:1")),
        (https, &[("HTTPS_PROXY", "b:1"), ("all_proxy", "c:1")], Some("b:1")),
        (https, &[("all_proxy", "c"), ("ALL_PROXY", "d:1")], Some("c:1080")),
        (https, &[("all_proxy", ""), ("ALL_PROXY", "http://[::2]:1/")], Some("[::2]:1")),
        (https, &[("http_proxy", "e:1"), ("HTTP_PROXY", "e:1"), ("Https_Proxy", "e:1")], None),
        (https, &[("https_proxy", "a:1"), ("no_proxy", "example.com")], None),
        (https, &[("https_proxy", "a:1"), ("NO_PROXY", "x, .example.com")], None),
        (https, &[("https_proxy", "a:1"), ("NO_PROXY", "*")], None),
        (https, &[("https_proxy", "a:1"), ("no_proxy", "x"), ("NO_PROXY", "*")], Some("a:1")),
        (https, &[("https_proxy", "a:1"), ("no_proxy", ""), ("NO_PROXY", "*")], None),
        (https, &[("https_proxy", "https://a:1"), ("no_proxy", "*")], None),
        ("https://10.1.2.3/", &[("https_proxy", "a:1"), ("no_proxy", "10.0.0.0/8")], None),
        ("https://[fd00::1]/", &[("https_proxy", "a:1"), ("no_proxy", "[fd00::1]")], None),
        ("https://[fd00::1]/", &[("https_proxy", "a:1"), ("no_proxy", "fd00::2")], Some("a:1")),
        // Neither loopback nor plain HTTP goes through a proxy.
        ("https://localhost/", &[("https_proxy", "a:1")], None),
        ("https://127.9.9.9/", &[("https_proxy", "a:1")], None),
        ("https://[::1]/", &[("all_proxy", "socks5://a:1")], None),
        ("http://localhost/", &[("http_proxy", "a:1"), ("all_proxy", "a:1")], None),
        (http, &[("http_proxy", "a:1"), ("https_proxy", "a:1"), ("all_proxy", "a:1")], None),
    ] {
        let mut starter = Relay::bare().args(["--upstream-url", url, "--allow-plaintext-upstream"]);
        for (name, value) in variables {
            starter = starter.env(name, value);
        }
        let line = starter.start().output_line("protections: ");
        let used = line.split_once("; upstream through the proxy ").map(|(_, rest)| rest);
        let used =
            used.map(|rest| rest.split_once(". NOT in force").map_or(rest, |(used, _)| used));
        assert_eq!(used, want, "{url} {variables:?}");
    }
}

#[test]
fn a_loopback_upstream_is_reached_without_the_proxy() {
    let upstream = Upstream::answering(ok("hello"));
    let dead = closed_port();
    for host in ["localhost", "127.0.0.1"] {
        let relay = through(dead.port, &upstream.url_at(host)).start();
        assert_eq!(relay.connect().send(post("", "{}")).response().text(), "hello");
    }
}

#[test]
fn a_proxy_that_cannot_be_used_is_refused_at_start_with_the_reason() {
    for (name, value, want) in [
        ("https_proxy", "https://MARKER:MARKER@p:1", "https:// proxies are not supported"),
        ("HTTPS_PROXY", "socks5h://MARKER:MARKER@p:1", "SOCKS proxies are not supported"),
        ("ALL_PROXY", "socks4://MARKER@p", "SOCKS proxies are not supported"),
        ("all_proxy", "ftp://MARKER:MARKER@p", "must begin with http://"),
        ("https_proxy", "http://MARKER:MAR/KER@p:1", "write a / in a password as %2F"),
        ("https_proxy", "http://MARKER:MAR@KER@p:1", "must be percent-encoded"),
        ("https_proxy", "MARKER:MARKER%0a@p:1", "must be percent-encoded"),
        ("https_proxy", "http://MARKER:MARKER@p:x", "the port must be a number"),
        ("https_proxy", "http://MARKER:MARKER@", "the URL needs a host"),
    ] {
        let (code, out, err) = Relay::bare().env(name, value).run(b"key\n");
        assert_eq!((code, out.as_str()), (2, ""), "{err}");
        let start = format!("codex-responses-api-proxy: error: {name}: ");
        let line = err.lines().next().unwrap();
        assert!(line.starts_with(&start) && line.contains(want), "{line}");
        assert!(!err.contains("MAR") && !err.contains("KER"), "{line}");
    }
}

#[test]
fn what_the_proxy_says_to_connect_is_told_apart() {
    let long = format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(70_000));
    let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "X: 1\r\n".repeat(129));
    let early = format!("{ESTABLISHED}\x16\x03\x03");
    for (response, code) in [
        ("HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", "proxy_auth_required"),
        (
            "HTTP/1.0 407 No\r\nProxy-Authenticate: Basic realm=\"x\"\r\n\r\n<html>",
            "proxy_auth_required",
        ),
        ("HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno", "proxy_refused"),
        ("HTTP/1.1 302 Found\r\nLocation: http://login.example/\r\n\r\n", "proxy_refused"),
        ("HTTP/1.1 503 Service Unavailable\r\n\r\n", "proxy_refused"),
        ("HTTP/1.1 100 Continue\r\n\r\n", "proxy_bad_response"),
        ("", "proxy_bad_response"),
        ("HTTP/1.1 200 Connection estab", "proxy_bad_response"),
        ("SSH-2.0-OpenSSH_9.6\r\n", "proxy_bad_response"),
        ("\x05\x00", "proxy_bad_response"),
        ("HTTP/2 200\r\n\r\n", "proxy_bad_response"),
        ("HTTP/1.1 200 OK\n\n", "proxy_bad_response"),
        ("HTTP/1.1 200 OK\r\nA: b\r\n folded\r\n\r\n", "proxy_bad_response"),
        (&early, "proxy_bad_response"),
        (&long, "proxy_bad_response"),
        (&many, "proxy_bad_response"),
    ] {
        let say = response.to_owned();
        let proxy = fake(move |stream| {
            let _ = stream.write_all(say.as_bytes());
            let _ = stream.shutdown(Shutdown::Write);
            let _ = stream.read(&mut [0; 1]);
        });
        let relay = through(proxy.port, "https://upstream.test/").start();
        let shown = &response[..response.len().min(60)];
        let response = relay.connect().send(post("", "{}")).response();
        assert_eq!((response.status, response.code()), (502, code), "{shown:?}");
        // A refusal carries its status number.
        if code == "proxy_refused" {
            let said = format!("Its status is {}.\"", &shown[9..12]);
            assert!(response.text().contains(&said), "{}", response.text());
        }
    }
}

#[test]
fn a_response_to_connect_may_come_byte_by_byte() {
    let upstream = Upstream::answering(ok("hello"));
    let port = upstream.port;
    let proxy = fake(move |stream| {
        stream.set_nodelay(true).unwrap();
        for byte in "HTTP/1.0 200 Fine\r\nVia: x\r\nContent-Length: 5\r\n\r\n".bytes() {
            stream.write_all(&[byte]).unwrap();
        }
        join(stream, port);
    });
    let relay = through(proxy.port, &upstream.url_at(ELSEWHERE)).start();
    assert_eq!(relay.connect().send(post("", "{}")).response().text(), "hello");
}

#[test]
fn a_proxy_that_is_silent_or_out_of_reach_is_told_apart_from_the_upstream() {
    let silent = fake(|stream| drop(stream.read(&mut [0; 1])));
    let relay =
        through(silent.port, "https://upstream.test/").args(["--upstream-timeout", "1"]).start();
    fails(&mut relay.connect(), 504, "proxy_timeout");
    let port = silent.port;
    drop(relay);

    // Behind the tunnel it is the upstream again.
    let mute = fake(|stream| {
        stream.write_all(ESTABLISHED.as_bytes()).unwrap();
        while stream.read(&mut [0; 512]).is_ok_and(|n| n > 0) {}
    });
    assert_ne!(port, mute.port);
    let relay =
        through(mute.port, "https://upstream.test/").args(["--upstream-timeout", "1"]).start();
    fails(&mut relay.connect(), 504, "upstream_connect_timeout");

    let dead = closed_port();
    fails(
        &mut through(dead.port, "https://upstream.test/").start().connect(),
        502,
        "proxy_unreachable",
    );

    let relay = Relay::to("https://upstream.test/")
        .env("https_proxy", "http://no-such-host.invalid:3128")
        .env("RES_OPTIONS", "timeout:1 attempts:1")
        .start();
    fails(&mut relay.connect(), 502, "proxy_dns_failed");
}

#[test]
fn a_proxy_that_recovers_is_used_again() {
    let upstream = Upstream::answering(ok("hello"));
    let port = upstream.port;
    let refuse = std::sync::atomic::AtomicBool::new(true);
    let proxy = fake(move |stream| {
        if refuse.swap(false, std::sync::atomic::Ordering::SeqCst) {
            stream.write_all(b"HTTP/1.1 503 Busy\r\n\r\n").unwrap();
        } else {
            stream.write_all(ESTABLISHED.as_bytes()).unwrap();
            join(stream, port);
        }
    });
    let relay = through(proxy.port, &upstream.url_at(ELSEWHERE)).start();
    let mut client = relay.connect();
    // The connection made in advance may be the one that is refused.
    let first = client.send(post("", "{}")).response();
    assert!(first.status == 200 || first.code() == "proxy_refused");
    assert_eq!(client.send(post("", "{}")).response().text(), "hello");
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn the_proxys_credentials_are_nowhere_to_be_read() {
    // So long that a piece of any stray copy outlives what is put in its place.
    let secret: String = (0..60).map(|_| random_hex()).collect();
    let upstream = Upstream::answering(ok("hello"));
    let port = upstream.port;
    let turn = std::sync::atomic::AtomicUsize::new(0);
    let proxy = fake(move |stream| {
        if turn.fetch_add(1, std::sync::atomic::Ordering::SeqCst).is_multiple_of(2) {
            stream.write_all(b"HTTP/1.1 407 No\r\n\r\n").unwrap();
        } else {
            stream.write_all(ESTABLISHED.as_bytes()).unwrap();
            join(stream, port);
        }
    });
    let url = format!("http://agent:{secret}@127.0.0.1:{}", proxy.port);
    let mut starter = Relay::to(&upstream.url_at(ELSEWHERE)).args(["--access-log"]);
    // Used or not, they are the same in all of them.
    for name in ["HTTPS_PROXY", "https_proxy", "all_proxy", "http_proxy", "HTTP_PROXY", "ftp_proxy"]
    {
        starter = starter.env(name, &url);
    }
    let relay = starter.env("no_proxy", "kept.example").start();
    for _ in 0..20 {
        let response = relay.connect().send(post("Connection: close\r\n", "{}")).response();
        assert!(response.status == 200 || response.code() == "proxy_auth_required");
        assert!(!response.text().contains(&secret));
    }
    let shown = proxy.requests.wait();
    assert!(shown.contains("Proxy-Authorization: Basic "), "no credentials");
    assert!(!String::from_utf8(relay.output()).unwrap().contains(&secret), "in the output");
    if !may_read(&relay) {
        return;
    }
    let environment = std::fs::read(format!("/proc/{}/environ", relay.pid())).unwrap();
    let environment = String::from_utf8_lossy(&environment);
    assert!(environment.contains("no_proxy=kept.example"), "the environment cannot be read");
    assert!(!environment.contains("agent") && !environment.contains(&secret), "in environ");
    none(&scan(relay.pid(), &Needles::new(secret.as_bytes())).unwrap());
}
