//! Tests `--check`: the faults that it finds, its messages, and that the upstream sees no more than
//! a handshake.

use std::fs;
use std::io::Read;
use std::net::TcpListener;
use std::process::Stdio;

use super::lifecycle::Folder;
use super::proxy::{ESTABLISHED, HERE, fake, join};
use super::support::port::closed_port;
use super::support::relay::Starter;
use super::support::skip::is_root;
use super::support::upstream::Kind;
use super::support::{Gate, Relay, Upstream, certs, skipped};

/// An upstream that tells what comes after the handshake; `None` when that does not end as it
/// should.
fn listening(kind: Option<Kind>) -> (Upstream, Gate<Option<Vec<u8>>>) {
    let (tell, told) = Gate::pair();
    let config = kind.map(|kind| certs().config(kind, rustls::ALL_VERSIONS));
    let upstream = Upstream::new(config, move |peer| {
        let mut bytes = Vec::new();
        tell.pass(peer.read_to_end(&mut bytes).is_ok().then_some(bytes));
    });
    (upstream, told)
}

/// Runs it: exit code, what it found out as steps and texts, what it says is wrong.
fn check(starter: Starter) -> (i32, Vec<(String, String)>, String) {
    let (code, out, err) = starter.args(["--check"]).run(b"");
    let lines = out.lines().map(|line| {
        let (step, text) = line.split_once(' ').unwrap_or((line, ""));
        assert_eq!(line.trim_end(), line);
        (step.to_owned(), text.trim().to_owned())
    });
    (code, lines.collect(), err)
}

#[track_caller]
fn text<'a>(lines: &'a [(String, String)], step: &str) -> &'a str {
    let mut found = lines.iter().filter(|line| line.0 == step);
    let line = found.next().unwrap_or_else(|| panic!("no {step} in {lines:?}"));
    assert!(found.next().is_none());
    &line.1
}

/// It fails at this step and says this.
#[track_caller]
fn fails(starter: Starter, step: &str, want: &str) -> Vec<(String, String)> {
    let (code, lines, err) = check(starter);
    assert_eq!(code, 1, "{err}");
    let start = format!("codex-responses-api-proxy: error: {step}: ");
    assert!(err.starts_with(&start) && err.contains(want), "{err}");
    assert_eq!(err.lines().count(), 1);
    assert!(lines.iter().all(|line| line.0 != "ok"));
    lines
}

#[test]
fn it_says_whether_the_key_may_be_replaced() {
    let (upstream, _told) = listening(Some(Kind::Good));
    for (args, want) in [
        (&[][..], None),
        (&["--rotate"], Some("each further line on stdin replaces the key")),
        (
            &["--rotate", "--key-max-age", "60"],
            Some("each further line on stdin replaces the key; a key is used for 60 s"),
        ),
    ] {
        let (code, lines, err) = check(Relay::to(&upstream.url()).args(args));
        assert_eq!(code, 0, "{err}");
        let found = lines.iter().find(|line| line.0 == "rotation").map(|line| line.1.as_str());
        assert_eq!(found, want);
    }
}

/// How much locked memory is enough, as the message says.
pub fn enough(err: &str) -> Option<u64> {
    let (_, rest) = err.split_once("(ulimit -l) to ")?;
    rest.split_once(" KiB or more")?.0.parse().ok()
}

#[test]
fn it_needs_as_much_locked_memory_as_a_start_and_the_message_names_enough() {
    let (upstream, _told) = listening(None);
    let page = 4;
    for args in [&[][..], &["--allow-token68"], &["--rotate"], &["--rotate", "--allow-token68"]] {
        let to = ["--upstream-url", &upstream.url()];
        let limited = |kib| Relay::bare().args(to).args(args).locked_memory(kib);
        // A start without a key ends, but not before it has the memory.
        let start = |kib| limited(kib).run(b"").2;
        let err = start(0);
        let named = enough(&err).unwrap_or_else(|| panic!("{args:?}: {err}"));
        assert_eq!(enough(&start(named)), None, "{args:?}: {named} KiB are not enough");
        let (mut fails, mut starts) = (0, named);
        while starts - fails > page {
            let middle = (fails + starts) / 2 / page * page;
            match enough(&start(middle)) {
                Some(_) => fails = middle,
                None => starts = middle,
            }
        }
        let (code, _, err) = check(limited(starts));
        assert_eq!(code, 0, "{args:?}: {starts} KiB: {err}");
        let (code, _, err) = check(limited(fails));
        assert_eq!((code, enough(&err)), (1, Some(named)), "{args:?}: {fails} KiB: {err}");
    }
}

#[test]
fn no_memory_for_the_client_token_is_told_with_what_all_secrets_need() {
    let folder = Folder::new("no-memory");
    let token = folder.file("token");
    fs::write(&token, "0123456789abcdef").unwrap();
    for args in [&[][..], &["--rotate"]] {
        let token = ["--client-token-file", token.to_str().unwrap()];
        let start = |args: &[&str]| Relay::bare().args(args).locked_memory(0).run(b"").2;
        let err = start(&[args, &token[..]].concat());
        assert!(err.contains("--client-token-file"), "{err}");
        assert_eq!(enough(&err), enough(&start(args)), "{err}");
    }
}

#[test]
fn it_says_what_is_in_force_and_nothing_but_a_handshake_reaches_the_upstream() {
    let (upstream, told) = listening(Some(Kind::Good));
    let (code, lines, err) = check(Relay::to(&upstream.url()));
    assert_eq!((code, err.as_str()), (0, ""));
    let steps: Vec<&str> = lines.iter().map(|line| line.0.as_str()).collect();
    let want = "upstream roots memory sandbox protections addresses connected tls certificate ok";
    assert_eq!(steps.join(" "), want);
    assert_eq!(text(&lines, "upstream"), upstream.url());
    assert!(text(&lines, "memory").starts_with("key in "));
    assert!(text(&lines, "addresses").split(", ").any(|address| address == "127.0.0.1"));
    let connected = text(&lines, "connected");
    assert!(connected.starts_with(&format!("127.0.0.1:{} in ", upstream.port)), "{connected}");
    assert_eq!(text(&lines, "tls"), "TLS 1.3, X25519");
    let certificate = text(&lines, "certificate");
    assert!(certificate.starts_with("issuer test CA, expires 4096-01-01 (in "), "{certificate}");
    assert_eq!(told.wait(), Some(Vec::new()));
    assert_eq!(upstream.connections(), 1);
}

#[test]
fn it_reads_no_key_and_touches_no_file_and_no_port() {
    let (upstream, _told) = listening(Some(Kind::Good));
    let taken = Relay::bare().start();
    let folder = Folder::new("checked");
    let info = folder.file("info");
    // Stdin stays open and empty: a read of it never ends.
    let (mut relay, _stdin) = Relay::to(&upstream.url())
        .args(["--check", "--detach", "--server-info", info.to_str().unwrap()])
        .args(["--port", &taken.port.to_string()])
        .spawn_without_key(Stdio::piped());
    assert_eq!(relay.exit_code(), 0);
    assert!(!info.exists());
}

#[test]
fn tls_1_2_is_told_from_1_3() {
    let config = certs().config(Kind::Good, &[&rustls::version::TLS12]);
    let upstream = Upstream::new(Some(config), |peer| peer.closed());
    let (code, lines, err) = check(Relay::to(&upstream.url()));
    assert_eq!(code, 0, "{err}");
    assert_eq!(text(&lines, "tls"), "TLS 1.2, X25519");
}

#[test]
fn a_plain_upstream_on_loopback_is_connected_to() {
    let (upstream, told) = listening(None);
    let (code, lines, err) = check(Relay::to(&upstream.url()));
    assert_eq!((code, err.as_str()), (0, ""));
    assert_eq!(text(&lines, "tls"), "none: the upstream is plain HTTP");
    // What it cannot tell.
    assert!(text(&lines, "ok").contains("only a request tests the key"), "{lines:?}");
    assert_eq!(told.wait(), Some(Vec::new()));
}

#[test]
fn a_certificate_that_does_not_hold_is_named_with_its_issuer_and_what_to_do() {
    for (kind, want, shown) in [
        (Kind::UnknownIssuer, "--ca-file", "issuer another CA, expires 4096-01-01 (in "),
        (Kind::SelfSigned, "--ca-file", "issuer rcgen self signed cert, expires 4096-01-01 (in "),
        (Kind::WrongName, "name in --upstream-url", "issuer test CA, expires 4096-01-01 (in "),
        (Kind::Expired, "Check the clock", "issuer test CA, expires 2020-02-01 ("),
    ] {
        for version in rustls::ALL_VERSIONS {
            let upstream = Upstream::new(Some(certs().config(kind, &[version])), |_| {});
            let lines = fails(Relay::to(&upstream.url()), "certificate", want);
            let certificate = text(&lines, "certificate");
            assert!(certificate.starts_with(shown), "{certificate}");
            assert_eq!(certificate.ends_with(" days ago)"), kind == Kind::Expired);
            assert!(lines.iter().all(|line| line.0 != "tls"));
        }
    }
}

#[test]
fn what_cannot_be_reached_is_named() {
    let closed = closed_port();
    let lines =
        fails(Relay::to(&format!("https://127.0.0.1:{}/", closed.port)), "connect", "refused");
    assert_eq!(text(&lines, "addresses"), "127.0.0.1");
    let lines = fails(Relay::to("https://name.invalid/"), "addresses", "could not be resolved");
    assert!(lines.iter().all(|line| !["addresses", "connected"].contains(&line.0.as_str())));
    // Speaks something else, and closes.
    let upstream = Upstream::plain(|peer| peer.write("HTTP/1.1 400 Bad Request\r\n\r\n"));
    let url = format!("https://127.0.0.1:{}/", upstream.port);
    fails(Relay::to(&url), "tls", "speaks TLS 1.2 or 1.3");
}

#[test]
fn an_egress_proxy_is_gone_through_and_named() {
    let (upstream, told) = listening(Some(Kind::Good));
    let port = upstream.port;
    let proxy = fake(move |stream| {
        std::io::Write::write_all(stream, ESTABLISHED.as_bytes()).unwrap();
        join(stream, port);
    });
    let url = upstream.url_at(HERE);
    let through = |port: u16| {
        Relay::to(&url).env("HTTPS_PROXY", &format!("http://user:pass-MARKER@127.0.0.1:{port}"))
    };
    let (code, lines, err) = check(through(proxy.port));
    assert_eq!((code, err.as_str()), (0, ""));
    assert_eq!(text(&lines, "proxy"), format!("127.0.0.1:{}", proxy.port));
    let connected = text(&lines, "connected");
    assert!(connected.starts_with(&format!("127.0.0.1:{} in ", proxy.port)), "{connected}");
    assert!(text(&lines, "certificate").starts_with("issuer test CA"));
    let sandbox = text(&lines, "sandbox");
    let port = format!("TCP to port {} only", proxy.port);
    assert_eq!(sandbox.contains("TCP to port"), sandbox.contains(&port), "{sandbox}");
    assert!(!format!("{lines:?}").contains("MARKER"));
    assert_eq!(told.wait(), Some(Vec::new()));
    for (answer, want) in [
        ("HTTP/1.1 407 No\r\nContent-Length: 0\r\n\r\n", "USER:PASSWORD@HOST:PORT"),
        ("HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n", "NO_PROXY"),
        ("SSH-2.0\r\n", "HTTPS_PROXY"),
    ] {
        let proxy = fake(move |stream| {
            let _ = std::io::Write::write_all(stream, answer.as_bytes());
        });
        let lines = fails(through(proxy.port), "proxy", want);
        assert!(!format!("{lines:?}").contains("MARKER"));
    }
    fails(through(closed_port().port), "connect", "HTTPS_PROXY");
    let (code, _, err) = check(Relay::to(&url).env("HTTPS_PROXY", "socks5://127.0.0.1:1"));
    assert!(code == 2 && err.contains("HTTPS_PROXY: SOCKS"), "{err}");
}

#[test]
fn it_is_as_confined_as_the_relay_while_it_connects() {
    // Takes the connection and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://127.0.0.1:{}/", silent.local_addr().unwrap().port());
    let (mut checking, _stdin) =
        Relay::to(&url).args(["--check"]).spawn_without_key(Stdio::piped());
    let (stream, _) = silent.accept().unwrap();
    let relay = Relay::to(&url).start();
    let confined = |pid: u32| -> Vec<String> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let names = ["NoNewPrivs", "Seccomp:", "Cap"];
        let lines = status.lines().filter(|line| names.iter().any(|name| line.starts_with(name)));
        lines.map(str::to_owned).collect()
    };
    assert_eq!(confined(checking.pid()), confined(relay.pid()));
    drop(stream);
    assert_eq!(checking.exit_code(), 1);
    let said = checking.output_line("sandbox ");
    let in_force = said.strip_prefix("sandbox").unwrap().trim();
    let line = relay.output_line("protections: ");
    assert!(line.contains(in_force), "{line} and {in_force}");
}

#[test]
fn each_layer_is_tried_for_real() {
    let (upstream, _told) = listening(Some(Kind::Good));
    let to = || Relay::to(&upstream.url());
    let (code, lines, _) = check(to().args(["--no-sandbox"]));
    assert_eq!(code, 0);
    assert!(text(&lines, "sandbox").starts_with("SANDBOX OFF"));
    let without = |starter: Starter| starter.refusing(libc::SYS_memfd_secret, None, libc::ENOSYS);
    let (code, lines, _) = check(without(to()));
    assert_eq!(code, 0);
    assert_eq!(text(&lines, "memory"), "key in locked pages (no memfd_secret here)");
    let (code, _, err) = check(without(to().args(["--require-secret-memory"])));
    assert!(code == 13 && err.contains("memfd_secret"), "{err}");
    let landlock = to().refusing(libc::SYS_landlock_restrict_self, None, libc::EPERM);
    let (code, lines, err) = check(landlock);
    match code {
        0 => assert!(text(&lines, "sandbox").contains("no Landlock")),
        code => assert!(code == 11 && err.contains("Landlock"), "{err}"),
    }
    let (code, _, err) = check(to().args(["--client-token-file", "/nonexistent"]));
    assert!(code == 1 && err.contains("--client-token-file"), "{err}");
    if is_root() {
        let (code, lines, err) = check(to().args(["--user", "65534:65534"]));
        assert_eq!(code, 0, "{err}");
        assert_eq!(text(&lines, "user"), "65534:65534");
    } else {
        skipped("--user needs root");
    }
}

#[test]
fn a_url_that_ends_in_v1_is_pointed_out_and_taken_as_it_stands() {
    let upstream = Upstream::answering(super::support::ok("hello"));
    for (path, hinted) in [
        ("/v1", true),
        ("/v1/", true),
        ("/api/v1", true),
        ("/v1?a=b", true),
        ("/v1/responses", false),
        ("/openai/v11", false),
        ("", false),
    ] {
        let url = format!("https://localhost:{}{path}", upstream.port);
        let (code, lines, err) = check(Relay::to(&url));
        assert_eq!(code, 0, "{err}");
        let warnings: Vec<_> = lines.iter().filter(|line| line.0 == "warning").collect();
        assert_eq!(warnings.len(), usize::from(hinted), "{path}");
        assert!(warnings.iter().all(|line| line.1.contains("/v1/responses")));

        let relay = Relay::to(&url).start();
        let response = relay.connect().send(super::support::post("", "{}")).response();
        assert_eq!(response.status, 200);
        // Everything that it prints at its start comes before the first exchange.
        relay.signal(libc::SIGTERM);
        let mut relay = relay;
        assert_eq!(relay.exit_code(), 0);
        let output = String::from_utf8(relay.output()).unwrap();
        let warned = output.contains("warning: --upstream-url ends in /v1");
        assert_eq!(warned, hinted, "{path}: {output}");
    }
    let request = upstream.requests().remove(0);
    assert!(request.head.starts_with("POST /v1 HTTP/1.1\r\n"));
}
