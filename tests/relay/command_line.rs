//! Tests the command line: names and forms of the flags, and the messages for wrong use.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use codex_responses_api_proxy::cli::flags::{FLAGS, Section};

use super::key::terminal;
use super::support::port::free_port;
use super::support::relay::emulated;
use super::support::upstream::memory_file;
use super::support::{Client, Relay, Upstream, certs, ok, post, skipped};

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
        let build = out
            .strip_prefix(concat!("codex-responses-api-proxy ", env!("CARGO_PKG_VERSION"), " ("))
            .and_then(|rest| rest.strip_suffix(", rustls 0.23 with ring)\n"));
        let (commit, target) = build.and_then(|build| build.split_once(", ")).expect(&out);
        let is_commit = commit.len() >= 7 && commit.bytes().all(|b| b.is_ascii_hexdigit());
        assert!(commit == "unknown" || is_commit, "{out}");
        assert!(
            (emulated() || target.starts_with(std::env::consts::ARCH)) && target.contains("linux"),
            "{out}"
        );
        // Whenever HEAD moves, the program is built again.
        let head = Command::new("git")
            .args(["rev-parse", "HEAD"])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output();
        if let Ok(head) = head
            && Path::new(env!("CARGO_MANIFEST_DIR")).join(".git").exists()
            && head.status.success()
            && std::env::var_os("RELAY_BINARY").is_none()
        {
            assert!(head.stdout.starts_with(commit.as_bytes()), "{out}");
        }
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
        (&["--user", "no such user here"], "--user: there is no user named"),
    ] {
        // Stdin stays open and empty: a read of it never ends.
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
fn a_ca_file_that_cannot_be_used_is_named_with_the_line() {
    let good = certs().ca_pem();
    let one = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let lines = good.lines().count();
    for (pem, want) in [
        (String::new(), "contains no certificate".to_owned()),
        ("no PEM at all".into(), "contains no certificate".into()),
        (one.into(), "line 1 begins a certificate that cannot be a root".into()),
        (
            good.replace("-----END", "!\n-----END"),
            format!("line {lines} is not Base64, or begins a section that is not"),
        ),
        (
            one.replace("AAAA", "AA=A"),
            "line 1 is not Base64, or begins a section that is not".into(),
        ),
        (good.clone() + &one[..33], format!("line {} begins a section that does", lines + 1)),
        (good[28..].to_owned(), format!("line {} ends a section that has not", lines - 1)),
    ] {
        let file = memory_file(pem.as_bytes());
        let path = file.to_str().unwrap();
        for name in ["--ca-file", "SSL_CERT_FILE", "CODEX_CA_CERTIFICATE"] {
            let starter = match name {
                "--ca-file" => Relay::bare().args([name, path]),
                _ => Relay::bare().env(name, path),
            };
            let (code, _, err) = starter.run(b"key\n");
            assert_eq!(code, 1, "{err}");
            assert!(err.contains(&format!("error: {name}: {path} {want}")), "{err}");
        }
    }
    let (code, _, err) = Relay::bare().args(["--ca-file", "/nonexistent/ca.pem"]).run(b"key\n");
    assert_eq!(code, 1);
    assert!(err.contains("--ca-file: /nonexistent/ca.pem cannot be read: No such file"), "{err}");
    let (code, _, err) = Relay::bare().args(["--ca-file", "/dev/zero"]).run(b"key\n");
    assert_eq!(code, 1);
    assert!(err.contains("--ca-file: /dev/zero is longer than 16 MiB"), "{err}");
}

#[test]
fn bundles_of_hundreds_of_certificates_are_trusted() {
    let upstream = Upstream::answering(ok("fine"));
    let works = |bundle: String| {
        let file = memory_file(bundle.as_bytes());
        let relay = Relay::bare()
            .args(["--upstream-url", &upstream.url()])
            .env("SSL_CERT_FILE", file.to_str().unwrap())
            .start();
        assert_eq!(relay.connect().send(post("", "{}")).response().status, 200);
        relay.output_line("protections: ")
    };
    let good = certs().ca_pem();
    let many = certs().other_roots(300);
    assert!(!works(format!("{many}{good}")).contains("certificates skipped"));
    // Twice the same, comments, another kind of section, one that cannot be a root.
    let odd = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let crl = "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n";
    let line = works(format!("# some\r\n{good}{many}\n{odd}{crl}{good}"));
    assert!(
        line.contains("; SSL_CERT_FILE: certificates skipped because they cannot be roots: 1"),
        "{line}"
    );
    match std::fs::read_to_string("/etc/ssl/certs/ca-certificates.crt") {
        Ok(system) => drop(works(system + &good)),
        Err(_) => skipped("there is no system bundle here"),
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
    let port = free_port().to_string();
    let relay = Relay::bare().args(["--port", &port]).start();
    assert_eq!(relay.port.to_string(), port);
    let (code, _, err) = Relay::bare().args(["--port", &port]).run(b"key\n");
    assert_eq!(code, 1);
    assert!(err.contains(&format!("cannot listen on 127.0.0.1:{port}: ")), "{err}");
    assert!(err.contains("choose another --port"), "{err}");
    drop(relay);
    let relay = Relay::bare().args(["--port", &port]).start();
    assert_eq!(relay.port.to_string(), port);
}

#[test]
fn only_loopback_is_listened_on() {
    let relay = Relay::bare().start();
    Client::connect(relay.port);
    let address = std::net::SocketAddr::from(([127, 0, 0, 2], relay.port));
    assert!(std::net::TcpStream::connect_timeout(&address, Duration::from_secs(5)).is_err());
}

/// Flags, each with the name of its value, which is empty where it takes none.
type Flags = BTreeSet<(String, String)>;

#[test]
fn every_flag_stands_in_help_documents_and_parser_with_the_same_value() {
    let (_, help, _) = Relay::bare().args(["--help"]).run(b"");
    let in_help: Flags = help
        .lines()
        .filter(|line| line.starts_with("  -"))
        .map(|line| {
            let (_, line) = line.split_once("--").unwrap();
            let (name, rest) = line.split_once(' ').unwrap_or((line, ""));
            let value = rest.strip_prefix('<').and_then(|rest| rest.split_once('>'));
            (format!("--{name}"), value.map_or("", |(value, _)| value).to_owned())
        })
        .collect();
    assert!(help.lines().all(|line| line.len() < 80), "{help}");
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(root.join("docs/flags.md")).unwrap();
    let in_page: Vec<(String, String)> = page
        .lines()
        .filter_map(|line| line.strip_prefix("### `--")?.strip_suffix('`'))
        .map(|flag| {
            let (name, value) = flag.split_once(' ').unwrap_or((flag, ""));
            (format!("--{name}"), value.to_owned())
        })
        .collect();
    let readme = std::fs::read_to_string(root.join("README.md")).unwrap();
    let in_readme: Flags = readme
        .lines()
        .filter_map(|line| line.strip_prefix("| `--")?.split("` | ").next())
        .map(|flag| {
            let (name, value) = flag.split_once(' ').unwrap_or((flag, ""));
            (format!("--{name}"), value.replace("\\|", "|"))
        })
        .collect();
    let in_table: Flags =
        FLAGS.iter().map(|flag| (format!("--{}", flag.name), flag.value.to_owned())).collect();
    assert_eq!(in_help, in_table);
    assert!(in_readme.len() == 8 && in_readme.is_subset(&in_table), "{in_readme:?}");
    assert_eq!(in_table.len(), FLAGS.len());
    // The page has the sections of --help, each with its flags, in any order.
    let titles = |title: &str| page.split_once(&format!("\n## {title}\n")).map(|(_, rest)| rest);
    for section in Section::ALL {
        let rest = titles(section.title()).unwrap_or_else(|| panic!("{}", section.title()));
        let text = rest.split("\n## ").next().unwrap();
        for flag in FLAGS.iter().filter(|flag| flag.section == section) {
            let name = format!("\n### `--{}", flag.name);
            assert!(text.contains(&name), "{} has no {name}", section.title());
            let letter = flag.letter.map_or(String::new(), |letter| format!("`-{letter}`"));
            assert!(text.contains(&letter), "{letter}");
        }
    }
    assert_eq!(in_page.len(), FLAGS.len(), "a flag occurs twice in docs/flags.md");
    assert_eq!(in_page.into_iter().collect::<Flags>(), in_table);

    // A request for help or the version is met, whatever else is typed.
    let ends = |name: &str| ["--help", "--version"].contains(&name);
    for (name, value) in in_help.iter().filter(|(name, _)| !ends(name)) {
        let (typed, want) = match value.as_str() {
            "" => (format!("{name}=x"), format!("unexpected argument for option '{name}'")),
            _ => (name.clone(), format!("missing argument for option '{name}'")),
        };
        let (code, _, err) = Relay::bare().args([&typed]).run(b"");
        assert!(code == 2 && err.contains(&want), "{typed}: {err}");
    }
}

#[test]
fn colour_is_for_terminals_that_show_it_and_for_who_wants_it() {
    let (bold, red, plain) = ("\x1b[1m", "\x1b[1;31merror:\x1b[0m ", "error: ");
    for (variables, shown) in [
        (&[("TERM", "xterm")][..], true),
        (&[("TERM", "xterm"), ("NO_COLOR", "")], true),
        (&[("TERM", "xterm"), ("NO_COLOR", "1")], false),
        (&[("TERM", "dumb")], false),
        (&[("TERM", "")], false),
        (&[], false),
    ] {
        let start = |args: &[&str]| {
            let (ours, theirs) = terminal();
            let mut starter = Relay::bare().args(args);
            for (name, value) in variables {
                starter = starter.env(name, value);
            }
            (starter.spawn(theirs.into()), BufReader::new(ours))
        };
        let line = |terminal: &mut BufReader<File>| {
            let mut line = String::new();
            terminal.read_line(&mut line).unwrap();
            line.trim_end().to_owned()
        };
        let (mut relay, mut terminal) = start(&["--nonsense"]);
        assert_eq!(relay.exit_code(), 2);
        let want = if shown { red } else { plain };
        let want = format!("codex-responses-api-proxy: {want}invalid option '--nonsense'");
        assert_eq!(line(&mut terminal), want, "{variables:?}");

        let (mut relay, mut terminal) = start(&[]);
        let listening = line(&mut terminal);
        assert_eq!(listening.starts_with(bold), shown, "{listening:?}");
        assert_eq!(listening.ends_with("\x1b[0m"), shown, "{listening:?}");
        let digits = listening.trim_end_matches("\x1b[0m").rsplit(':').next().unwrap();
        relay.port = digits.parse().unwrap();
        assert!(line(&mut terminal).starts_with("relay: "));
        assert!(line(&mut terminal).starts_with("clients: "));
        assert!(line(&mut terminal).starts_with("protections: "));
        // The sandbox has nothing against it.
        let response = relay.connect().send("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").response();
        assert_eq!(response.status, 403);
    }
    // No terminal, no colour, whatever the variables say.
    let (_, _, err) = Relay::bare().env("TERM", "xterm").args(["--nonsense"]).run(b"");
    assert!(!err.contains('\x1b'), "{err:?}");
    let relay = Relay::bare().env("TERM", "xterm").start();
    assert!(!relay.output().contains(&0x1b));
}

#[test]
fn what_keeps_it_from_starting_is_told_with_what_to_do() {
    let start = |args: &[&str]| Relay::bare().args(args);
    let without = |call, first: Option<i32>| start(&[]).refusing(call, first, libc::EPERM);
    let prctl = |option| without(libc::SYS_prctl, Some(option));
    let taken = Relay::bare().start();
    let port = taken.port.to_string();
    let empty = memory_file(b"\n");
    let empty = empty.to_str().unwrap();
    for (starter, code, want) in [
        (start(&["--port", &port]), 1, "; choose another --port"),
        (start(&["--server-info", "/proc/none/info"]), 1, "; name a file in a folder that"),
        (start(&["--client-token-file", "/nonexistent"]), 1, "; name a file that the relay's user"),
        (start(&["--client-token-file", empty]), 1, "; write a random token into it"),
        (start(&["--user", "no such user"]), 2, "; correct the name, or give the user's number"),
        (prctl(libc::PR_SET_DUMPABLE), 5, "; let prctl(2) through"),
        (without(libc::SYS_prlimit64, None), 7, "; let setrlimit(2) and prlimit(2) through"),
        (prctl(libc::PR_SET_NO_NEW_PRIVS), 8, "; let prctl(2) through"),
        (prctl(libc::PR_SET_PDEATHSIG), 17, "(PR_SET_PDEATHSIG); let prctl(2) through"),
        (start(&["--user", "1"]).refusing(libc::SYS_setgroups, None, libc::EPERM), 9, "as root"),
        (without(libc::SYS_capset, None), 10, "; let capset(2) and prctl(2) through"),
        (without(libc::SYS_signalfd4, None), 1, "; raise ulimit -n"),
        (without(libc::SYS_epoll_create1, None), 1, "; raise ulimit -n and ulimit -u"),
    ] {
        let (got, _, err) = starter.run(b"key\n");
        assert_eq!(got, code, "{err}");
        let line = err.lines().next().unwrap();
        assert!(line.contains("error: ") && line.contains(want), "{line}");
        assert_eq!(err.lines().count(), if code == 2 { 2 } else { 1 }, "{err}");
    }
}

#[test]
fn the_start_says_what_to_tell_clients() {
    let relay = Relay::bare().start();
    let base = format!("clients: base URL http://127.0.0.1:{}/v1, ", relay.port);
    assert_eq!(relay.output_line("clients"), base + "anything as API key");
    let file = memory_file(b"open-sesame-0001\n");
    let relay = Relay::bare().args(["--client-token-file", file.to_str().unwrap()]).start();
    let line = relay.output_line("clients");
    assert!(line.ends_with("/v1, the client token as API key"), "{line}");
}
