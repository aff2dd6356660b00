//! `--access-log`: what it says, what it never says, and that nobody waits for it.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::Stdio;

use super::support::relay::port_of_start;
use super::support::{End, Relay, Upstream, ok, post};

/// The values of a line, in order, after it was checked that these are its names and no others.
fn values(line: &str) -> Vec<String> {
    const NAMES: [&str; 14] = [
        "time",
        "start",
        "connection",
        "request",
        "route",
        "status",
        "bytes_in",
        "bytes_out",
        "connect_ms",
        "first_byte_ms",
        "last_byte",
        "total_ms",
        "reused",
        "end",
    ];
    let inner = line.strip_prefix('{').unwrap().strip_suffix('}').unwrap();
    let mut rest = inner;
    let mut values = Vec::new();
    for (at, name) in NAMES.iter().enumerate() {
        let tag = format!("{}\"{name}\":", if at == 0 { "" } else { "," });
        rest = rest.strip_prefix(&tag).unwrap_or_else(|| panic!("no {name} in {line}"));
        let end = match rest.strip_prefix('"') {
            Some(text) => text.find('"').unwrap() + 2,
            None => rest.find(',').unwrap_or(rest.len()),
        };
        values.push(rest[..end].trim_matches('"').to_owned());
        rest = &rest[end..];
    }
    if let Some(lost) = rest.strip_prefix(",\"lost\":") {
        values.push(lost.to_owned());
        rest = "";
    }
    assert_eq!(rest, "", "{line}");
    values
}

/// route, status, bytes_in, bytes_out, reused, end
fn gist(line: &str) -> [String; 6] {
    let values = values(line);
    [4, 5, 6, 7, 12, 13].map(|at| values[at].clone())
}

#[test]
fn each_exchange_is_one_line() {
    let upstream = Upstream::answering(ok("hello"));
    let relay = Relay::to(&upstream.url()).args(["--access-log", "--http-shutdown"]).start();
    let mut client = relay.connect();
    client.send(post("", "{}!")).response();
    let line = relay.line();
    assert_eq!(gist(&line), ["responses", "200", "3", "5", "false", "complete"]);
    let time = &values(&line)[0];
    assert!(time.len() == 24 && time.ends_with('Z') && &time[10..11] == "T", "{time}");
    assert_ne!(values(&line)[8], "null", "a connection had to be made");
    client.send(post("", "{}!")).response();
    let line = relay.line();
    assert_eq!(gist(&line), ["responses", "200", "3", "5", "true", "complete"]);
    assert_eq!(values(&line)[8], "null", "none had to be made");
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
    let relay = Relay::to(&upstream.url()).args(["--access-log"]).start();
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
    let event = ",\"cause\":\"SIGTERM\",\"exchanges\":1,\"grace_s\":1}";
    assert!(line.contains("\"event\":\"drain\"") && line.ends_with(event), "{line}");
    relay.signal(libc::SIGINT);
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
fn pipe() -> (OwnedFd, OwnedFd) {
    let mut ends = [0; 2];
    // SAFETY: two descriptors are written into an array of ours, and nobody else has them.
    unsafe {
        assert_eq!(libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC), 0);
        libc::fcntl(ends[1], libc::F_SETPIPE_SZ, 4096);
        (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1]))
    }
}

#[test]
fn a_stderr_that_nobody_reads_holds_nothing_up_and_the_lost_lines_are_counted() {
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
        lost = values(line.trim_end()).get(14).map_or(0, |lost| lost.parse().unwrap());
        assert!(seen < 2 * count, "no line counts the lost ones");
    }
    assert!(lost > 100, "{lost}");
    drop(relay);
    let mut rest = String::new();
    lines.read_to_string(&mut rest).unwrap();
    assert!(rest.lines().all(|line| values(line).len() >= 14));
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
    json(&String::from_utf8(relay.output()).unwrap());

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
            let values = values(&relay.line());
            assert_eq!([&values[2], &values[3]], [connection, request]);
            // Of one form, so that they can be compared as texts.
            assert!(values[1] <= values[10] && values[10] <= values[0], "{values:?}");
        }
    }
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
    let line = relay.line();
    assert!(line.contains("\",\"event\":\"slow\",\"start\":\""), "{line}");
    assert!(line.contains("\"bytes_out\":3,") && !line.contains("\"end\""), "{line}");
    drop(client);
    assert_eq!(gist(&relay.line())[5], "client_closed");
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
    let upstream = Upstream::answering("HTTP/1.1 429 Slow\r\nContent-Length: 2\r\n\r\nno");
    let relay = Relay::to(&upstream.url()).args(["--access-log"]).start();
    relay.connect().send(post("", "{}")).response();
    relay.connect().send("GET /x HTTP/1.1\r\nHost: localhost\r\n\r\n").response();
    relay.line_with("route_not_allowed");
    let log = std::env::temp_dir().join(super::support::relay::random_hex());
    let slow = "{\"event\":\"slow\",\"connection\":9,\"request\":1,\"total_ms\":60001,\"bytes_out\":3,\
                \"last_byte\":\"x\"}\n{\"event\":\"user_refused\",\"uid\":7,\"count\":2}\n";
    let mut file = File::create(&log).unwrap();
    file.write_all(&relay.output()).unwrap();
    file.write_all(slow.as_bytes()).unwrap();
    let page = include_str!("../../docs/access-log.md");
    let recipes: Vec<&str> = page.lines().filter(|line| line.starts_with("jq ")).collect();
    let mut outputs = Vec::new();
    for recipe in &recipes {
        let command = recipe.replace("relay.log", log.to_str().unwrap());
        let output = Command::new("sh").args(["-c", &command]).output().unwrap();
        assert!(output.status.success(), "{recipe}: {}", String::from_utf8_lossy(&output.stderr));
        outputs
            .push(String::from_utf8(output.stdout).unwrap().split_whitespace().collect::<String>());
    }
    std::fs::remove_file(&log).unwrap();
    assert_eq!(
        outputs,
        [
            "",
            "[9,1,\"x\",3]",
            "[{\"status\":429,\"count\":1}]",
            "[{\"end\":\"route_not_allowed\",\"count\":1}]",
            "[{\"uid\":7,\"count\":2}]",
        ]
    );
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
