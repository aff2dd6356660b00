//! Arguments: names, forms, and what wrong use is told.

use std::io::Write;
use std::process::Stdio;
use std::time::Duration;

use super::support::upstream::memory_file;
use super::support::{Client, Relay, Upstream, certs, ok, post};

const HINT: &str = "Try 'codex-responses-api-proxy --help'.\n";

#[test]
fn flags_take_their_value_behind_a_space_or_an_equals_sign() {
    let upstream = Upstream::answering(ok("fine"));
    let url = format!("--upstream-url={}", upstream.url());
    let ca = format!("--ca-file={}", certs().ca_file());
    for args in [
        vec![url.as_str(), ca.as_str(), "--port=0", "--http-shutdown"],
        vec!["--port", "0", "--upstream-url", &url[15..], "--ca-file", &ca[10..]],
    ] {
        let relay = Relay::bare().args(args).start();
        assert_eq!(relay.connect().send(post("", "{}")).response().text(), "fine");
    }
}

#[test]
fn help_and_version_go_to_stdout_and_need_no_key() {
    for flag in ["--help", "-h"] {
        let (code, out, err) = Relay::bare().args([flag]).run(b"");
        assert_eq!((code, err.as_str()), (0, ""));
        assert!(out.contains("Usage: codex-responses-api-proxy"), "{out}");
        assert!(out.lines().all(|line| line.len() <= 80), "{out}");
    }
    for flag in ["--version", "-V"] {
        let (code, out, err) = Relay::bare().args([flag]).run(b"");
        assert_eq!((code, err.as_str()), (0, ""));
        assert!(out.starts_with(concat!("codex-responses-api-proxy ", env!("CARGO_PKG_VERSION"))));
    }
}

#[test]
fn wrong_use_is_one_line_and_a_hint_before_stdin_is_read() {
    for (args, want) in [
        (&["--nonsense"][..], "invalid option '--nonsense'"),
        (&["-x"], "invalid option '-x'"),
        (&["stray"], "unexpected argument \"stray\""),
        (&["--port"], "missing argument for option '--port'"),
        (&["--port", "65536"], "--port takes a whole number from 0 to 65535"),
        (&["--port", "-1"], "--port takes a whole number from 0 to 65535"),
        (&["--port", "1", "--port=1"], "--port is given twice"),
        (&["--http-shutdown=yes"], "unexpected argument for option '--http-shutdown': \"yes\""),
        (&["--max-connections", "0"], "--max-connections takes a whole number from 1 to 65536"),
        (&["--upstream-url", "https://u:p@h/"], "--upstream-url: "),
        (&["--upstream-url", "https://h/#f"], "--upstream-url: "),
        (&["--upstream-url", "ftp://h/"], "--upstream-url: "),
        (&["--upstream-url", "h"], "--upstream-url: "),
        (&["--upstream-url", ""], "--upstream-url: "),
        (&["--upstream-url", "http://10.0.0.1/"], "--upstream-url: http:// would send the key"),
        (&["--auth-header", "api-key"], "--auth-header: write 'NAME: {}' or 'NAME: SCHEME {}'"),
        (&["--auth-header", "api-key:{}"], "--auth-header: write "),
        (&["--auth-header", "api-key: {}{}"], "--auth-header: write "),
        (&["--auth-header", "a: x\r\nX-A: {}"], "--auth-header: write "),
        (&["--auth-header", "Host: {}"], "--auth-header: this field means something else"),
        (&["--auth-header", "Transfer-Encoding: {}"], "--auth-header: this field means"),
        (&["--auth-header", &"x".repeat(129)], "--auth-header: it is longer than 128 bytes"),
        (&["--user", "no such user here"], "--user: there is no user of that name"),
    ] {
        // Stdin stays open and empty: whoever reads it waits for ever.
        let (mut relay, mut stdin) = Relay::bare().args(args).spawn_without_key(Stdio::piped());
        assert_eq!(relay.exit_code(), 2, "{args:?}");
        let line = relay.line();
        assert!(line.starts_with("codex-responses-api-proxy: error: "), "{line}");
        assert!(line.contains(want), "{line}");
        assert_eq!(relay.line() + "\n", HINT);
        let _ = stdin.write_all(b"\n");
    }
}

#[test]
fn what_was_typed_wrong_cannot_paint_the_terminal() {
    let (code, _, err) = Relay::bare().args(["--\u{1b}[31mred\n"]).run(b"");
    assert_eq!(code, 2);
    assert!(!err.contains('\u{1b}') && err.lines().count() == 2, "{err:?}");
}

#[test]
fn a_ca_file_that_cannot_be_used_is_named() {
    let empty = memory_file(b"");
    let broken = memory_file(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    for (path, want) in [
        ("/nonexistent/ca.pem", "cannot read certificates"),
        (empty.to_str().unwrap(), "no certificate in"),
        (broken.to_str().unwrap(), "certificate 1 in"),
    ] {
        let (code, _, err) = Relay::bare().args(["--ca-file", path]).run(b"key\n");
        assert_eq!(code, 1, "{err}");
        assert!(err.contains(want) && err.contains(path), "{err}");
    }
}

#[test]
fn the_variables_name_roots_too_and_the_flag_wins() {
    let upstream = Upstream::answering(ok("fine"));
    let good = certs().ca_file();
    let bad = "/nonexistent/ca.pem";
    for (flag, ssl, codex) in [
        (None, Some(good.as_str()), Some(bad)),
        (None, None, Some(good.as_str())),
        (None, Some(""), Some(good.as_str())),
        (Some(good.as_str()), Some(bad), Some(bad)),
    ] {
        let mut starter = Relay::bare().args(["--upstream-url", &upstream.url()]);
        for (name, value) in [("SSL_CERT_FILE", ssl), ("CODEX_CA_CERTIFICATE", codex)] {
            if let Some(value) = value {
                starter = starter.env(name, value);
            }
        }
        if let Some(flag) = flag {
            starter = starter.args(["--ca-file", flag]);
        }
        let relay = starter.start();
        assert_eq!(relay.connect().send(post("", "{}")).response().status, 200);
    }
}

#[test]
fn a_port_that_is_asked_for_is_taken_and_one_in_use_is_told() {
    let relay = Relay::bare().start();
    let port = relay.port.to_string();
    let (code, _, err) = Relay::bare().args(["--port", &port]).run(b"key\n");
    assert_eq!(code, 1);
    assert!(err.contains(&format!("cannot listen on 127.0.0.1:{port}: ")), "{err}");
    drop(relay);
    let relay = Relay::bare().args(["--port", &port]).start();
    assert_eq!(relay.port.to_string(), port);
}

#[test]
fn only_127_0_0_1_is_listened_on() {
    let relay = Relay::bare().start();
    Client::connect(relay.port);
    for other in ["127.0.0.2", "::1"] {
        let address = std::net::SocketAddr::new(other.parse().unwrap(), relay.port);
        let refused = std::net::TcpStream::connect_timeout(&address, Duration::from_secs(5));
        assert!(refused.is_err(), "{other}");
    }
}

#[test]
fn every_flag_stands_in_help_readme_and_parser() {
    let (_, help, _) = Relay::bare().args(["--help"]).run(b"");
    let flags = |text: &str| {
        let mut flags: Vec<String> = text
            .split(|c: char| !c.is_ascii_lowercase() && c != '-')
            .filter(|word| word.starts_with("--") && word.len() > 4)
            .map(|word| word.trim_end_matches('-').to_owned())
            .collect();
        flags.sort();
        flags.dedup();
        flags
    };
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let source = std::fs::read_to_string(root.join("src/cli.rs")).unwrap();
    let mut parsed: Vec<String> = source
        .split("Arg::Long(\"")
        .skip(1)
        .map(|rest| format!("--{}", rest.split('"').next().unwrap()))
        .collect();
    parsed.sort();
    assert_eq!(flags(&help), parsed);
    let readme = std::fs::read_to_string(root.join("README.md")).unwrap();
    for flag in parsed {
        assert!(readme.contains(&format!("`{flag}")), "{flag} is not in README.md");
    }
}
