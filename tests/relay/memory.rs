//! Searches for the key in the memory of the relay, as an attacker with root would.

use std::io::{Read, Write};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use super::support::relay::{Starter, emulated, marker_key};
use super::support::upstream::Kind;
use super::support::{
    Client, Gate, Peer, Relay, Upstream, certs, needs_root, ok, post, skipped, wait_for,
};

#[path = "../../examples/memory/mod.rs"]
pub mod scanner;

use scanner::{Clean, Hit, Needles, Scan, scan, scan_again};

/// Root, and a kernel that lets root read memory; says so where that is not given.
pub fn may_read(relay: &Relay) -> bool {
    if emulated() {
        return false;
    }
    let may = std::fs::File::open(format!("/proc/{}/mem", relay.pid())).is_ok();
    if !may {
        skipped("reading the memory of another process needs root and ptrace");
    }
    may
}

#[track_caller]
pub fn none(scan: &Scan) {
    let places: Vec<&str> = scan.hits.iter().map(|hit| hit.place.as_str()).collect();
    assert!(places.is_empty(), "the key, or pieces of it, in {places:?}");
    assert!(scan.bytes > 500_000, "only {} bytes were read", scan.bytes);
}

/// What the upstream does is in a field of the request.
fn obey(peer: &mut Peer) {
    while let Some(head) = peer.head() {
        let fields = super::support::client::fields(&head, "x-do");
        let chunked = head.contains("Transfer-Encoding: chunked");
        if fields.first() == Some(&"read-nothing") || chunked {
            peer.closed();
            return;
        }
        let length: usize =
            super::support::client::fields(&head, "content-length")[0].parse().unwrap();
        peer.take(length);
        match fields.first() {
            Some(&"400") => peer.write("HTTP/1.1 400 No\r\nContent-Length: 2\r\n\r\nno"),
            Some(&"500") => peer.write("HTTP/1.1 500 No\r\nContent-Length: 2\r\n\r\nno"),
            Some(&"interim") => {
                peer.write("HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n".repeat(30));
                peer.write(ok("fine"));
            }
            Some(&"close") => {
                peer.write("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok");
                peer.close();
                return;
            }
            Some(&"cut") => {
                peer.write("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok");
                peer.cut();
                return;
            }
            Some(&"big") => peer.write(ok(&"b".repeat(200_000))),
            _ => peer.write(ok("fine")),
        }
    }
}

fn ask(client: &mut Client, what: &str, body: &str) -> u16 {
    client.send(post(&format!("X-Do: {what}\r\n"), body)).response().status
}

/// A thousand requests of every kind; the number of those that went through.
fn work(relay: &Relay) -> usize {
    let mut done = 0;
    let mut client = relay.connect();
    for turn in 0..400 {
        let (what, status) =
            [("", 200), ("400", 400), ("500", 500), ("interim", 0), ("close", 200)][turn % 5];
        if what == "interim" {
            client.send(post("X-Do: interim\r\n", "{}"));
            while client.response().status == 103 {}
        } else {
            assert_eq!(ask(&mut client, what, &"x".repeat(turn * 100)), status);
        }
        done += 1;
    }
    for _ in 0..50 {
        let mut client = relay.connect();
        client.send(post("X-Do: cut\r\n", "{}"));
        client.rest();
        // An upload that is broken off, and one that is not read.
        let mut client = relay.connect();
        client.send(
            "POST /v1/responses HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999\r\n\r\n",
        );
        client.try_send("x".repeat(20_000));
        let mut client = relay.connect();
        client.send("POST /v1/responses HTTP/1.1\r\nHost: localhost\r\nX-Do: read-nothing\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n");
        done += 3;
    }
    let port = relay.port;
    thread::scope(|scope| {
        for _ in 0..64 {
            scope.spawn(|| {
                let mut client = Client::connect(port);
                for what in ["", "big", "400", "close", "500", ""] {
                    ask(&mut client, what, "{}");
                }
            });
        }
    });
    done + 64 * 6
}

fn upstreams() -> [Upstream; 2] {
    [Upstream::tls(obey), Upstream::plain(obey)]
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn no_copy_of_the_key_is_readable_after_a_thousand_requests() {
    for upstream in upstreams() {
        let relay = Relay::to(&upstream.url()).args(["--access-log"]).start();
        if !may_read(&relay) {
            return;
        }
        let needles = Needles::new(relay.key.as_bytes());
        let mut clean = Clean::default();
        none(&scan_again(relay.pid(), &needles, &mut clean).unwrap());
        assert!(work(&relay) >= 900);
        let after = scan_again(relay.pid(), &needles, &mut clean).unwrap();
        none(&after);
        let secret = relay.output_line("protections: ").contains("memfd_secret");
        let refused = after.refused;
        assert!(!secret || refused > 0, "the pages of the key can be read");
    }
}

/// Tells the threads that look at this flag to end when the value is dropped.
struct EndsThem<'a>(&'a AtomicBool);

impl Drop for EndsThem<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn no_copy_of_the_key_is_readable_while_64_are_under_way() {
    for upstream in upstreams() {
        let relay = Relay::to(&upstream.url()).start();
        if !may_read(&relay) {
            return;
        }
        let needles = Needles::new(relay.key.as_bytes());
        let (ended, port) = (AtomicBool::new(false), relay.port);
        thread::scope(|scope| {
            // Whether the test fails or not, its threads end.
            let ending = EndsThem(&ended);
            for _ in 0..64 {
                scope.spawn(|| {
                    let mut client = Client::connect(port);
                    while !ended.load(Ordering::SeqCst) {
                        ask(&mut client, "", "{}");
                    }
                });
            }
            let mut clean = Clean::default();
            let hits: Vec<Hit> = (0..200)
                .flat_map(|_| scan_again(relay.pid(), &needles, &mut clean).unwrap().hits)
                .collect();
            drop(ending);
            // While a record is sealed, rustls has it in a buffer of its own, where the ciphertext
            // takes its place: a microsecond, and some more in a debug build. See SECURITY.md.
            let sealing = upstream.url().starts_with("https") && hits.len() <= 20;
            let passing = |hit: &Hit| {
                hit.form == "plain" && ["[heap]", "anonymous memory"].contains(&hit.place.as_str())
            };
            assert!(hits.is_empty() || sealing, "{} hits in 200 scans under load", hits.len());
            assert!(hits.iter().all(passing), "a copy that is no record");
        });
        none(&scan(relay.pid(), &needles).unwrap());
    }
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn no_copy_of_the_key_is_readable_after_tls_has_failed() {
    for kind in [Kind::UnknownIssuer, Kind::Expired] {
        let upstream = Upstream::new(Some(certs().config(kind, rustls::ALL_VERSIONS)), |_| {});
        let relay = Relay::to(&upstream.url()).start();
        if !may_read(&relay) {
            return;
        }
        let mut client = relay.connect();
        for _ in 0..20 {
            assert_eq!(ask(&mut client, "", "{}"), 502);
        }
        none(&scan(relay.pid(), &Needles::new(relay.key.as_bytes())).unwrap());
    }
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn no_copy_of_a_secret_is_readable_in_a_detached_relay_or_in_its_parent() {
    let (key, password) = (marker_key(), marker_key());
    let starter = Relay::bare().env("https_proxy", &format!("http://user:{password}@127.0.0.1:1"));
    super::detach::with_parent_stopped(starter, &key, |parent, relay| {
        if emulated() {
            return;
        }
        if std::fs::File::open(format!("/proc/{relay}/mem")).is_err() {
            skipped("reading the memory of another process needs root and ptrace");
            return;
        }
        let refused = [&key, &password].map(|secret| {
            let needles = Needles::new(secret.as_bytes());
            [relay, parent].map(|pid| {
                let scan = scan(pid, &needles).unwrap();
                none(&scan);
                scan.refused
            })
        });
        // Other mappings that the kernel never shows.
        assert!(refused.iter().all(|[relay, parent]| relay > parent), "secret pages can be read");
    });
}

/// A starter of relays whose kernel has no memfd_secret(2).
fn without_secret_memory(starter: Starter) -> Starter {
    starter.refusing(libc::SYS_memfd_secret, None, libc::ENOSYS)
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn without_secret_memory_there_is_exactly_one_copy_and_the_start_line_says_so() {
    for upstream in upstreams() {
        let relay = without_secret_memory(Relay::to(&upstream.url())).start();
        let line = relay.output_line("protections: ");
        assert!(line.contains("key in locked pages (no memfd_secret here)"), "{line}");
        if !may_read(&relay) {
            return;
        }
        let needles = Needles::new(relay.key.as_bytes());
        for worked in [false, true] {
            if worked {
                work(&relay);
            }
            let hits = scan(relay.pid(), &needles).unwrap().hits;
            assert_eq!(hits.len(), 1, "copies; after a thousand requests: {worked}");
            assert_eq!(hits[0].length, relay.key.len());
            assert!(hits[0].address > 0 && hits[0].form == "plain");
        }
        let smaps = std::fs::read_to_string(format!("/proc/{}/smaps", relay.pid())).unwrap();
        // Locked, not in core files, wiped in children.
        assert!(smaps.lines().any(|line| {
            let has = |flag| line.split_whitespace().any(|word| word == flag);
            line.starts_with("VmFlags:") && has("lo") && has("dd") && has("wf")
        }));
    }
}

/// Writes a line to a relay with `--rotate` and waits until it is the key.
fn replace(relay: &Relay, mut stdin: &ChildStdin, key: &str) {
    writeln!(stdin, "{key}").unwrap();
    relay.line_with("requests carry key ");
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn no_copy_of_any_key_is_readable_after_rotations() {
    for upstream in upstreams() {
        let (relay, mut stdin) = Relay::to(&upstream.url()).args(["--rotate"]).start_with_stdin();
        if !may_read(&relay) {
            return;
        }
        let mut keys = vec![relay.key.clone()];
        for _ in 0..12 {
            ask(&mut relay.connect(), "", "{}");
            let key = marker_key();
            // In pieces, with a line that is refused before it.
            write!(stdin, "{} is no key\n{}", marker_key(), &key[..20]).unwrap();
            relay.line_with("is refused");
            replace(&relay, &stdin, &key[20..]);
            keys.push(key);
        }
        ask(&mut relay.connect(), "", "{}");
        for key in &keys {
            none(&scan(relay.pid(), &Needles::new(key.as_bytes())).unwrap());
        }
    }
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn a_key_that_was_replaced_is_wiped_when_the_last_exchange_that_carried_it_has_ended() {
    let (go, gate) = Gate::pair();
    let upstream = Upstream::tls(move |peer| {
        while let Some(request) = peer.request() {
            if !request.fields("x-stream").is_empty() {
                peer.write("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nbe");
                gate.wait();
                peer.write("come");
            } else {
                peer.write(ok("fine"));
            }
        }
    });
    // Locked pages can be read, so that it shows what lies there.
    let starter = without_secret_memory(Relay::to(&upstream.url()).args(["--rotate"]));
    let (relay, stdin) = starter.start_with_stdin();
    if !may_read(&relay) {
        return;
    }
    let copies = |key: &str| scan(relay.pid(), &Needles::new(key.as_bytes())).unwrap().hits.len();
    let keys = [relay.key.clone(), marker_key(), marker_key()];
    assert_eq!(copies(&keys[0]), 1);
    let mut stream = relay.connect();
    stream.send(post("X-Stream: 1\r\n", "{}")).head();
    replace(&relay, &stdin, &keys[1]);
    assert_eq!((copies(&keys[0]), copies(&keys[1])), (1, 1), "both are needed");
    // The second is carried by none when the third comes.
    assert_eq!(ask(&mut relay.connect(), "", "{}"), 200);
    replace(&relay, &stdin, &keys[2]);
    assert_eq!((copies(&keys[0]), copies(&keys[1]), copies(&keys[2])), (1, 0, 1));
    go.signal();
    assert_eq!(stream.take(6), b"become");
    // In the same pass, though nothing else happens.
    wait_for(|| copies(&keys[0]) == 0);
    assert_eq!((copies(&keys[1]), copies(&keys[2])), (0, 1));
}

#[test]
fn secret_memory_that_is_required_and_missing_ends_the_start() {
    let starter = Relay::bare().args(["--require-secret-memory"]);
    let (code, _, err) = without_secret_memory(starter).run(b"sk-a-key-that-goes-nowhere\n");
    assert_eq!(code, 13, "{err}");
    assert!(err.contains("memfd_secret"), "{err}");
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn a_core_made_by_root_does_not_hold_the_key() {
    let upstream = Upstream::tls(obey);
    let relay = Relay::to(&upstream.url()).start();
    assert_eq!(ask(&mut relay.connect(), "", "{}"), 200);
    if emulated() {
        return;
    }
    let folder = std::env::temp_dir().join(format!("core-{}", relay.pid()));
    std::fs::create_dir(&folder).unwrap();
    let made = Command::new("gcore")
        .args(["-a", "-o", folder.join("core").to_str().unwrap(), &relay.pid().to_string()])
        .stdin(Stdio::null())
        .output();
    let file = folder.join(format!("core.{}", relay.pid()));
    let core = std::fs::read(&file);
    std::fs::remove_dir_all(&folder).unwrap();
    match (made, core) {
        (Ok(_), Ok(core)) => {
            let mut hits = 0;
            Needles::new(relay.key.as_bytes()).find(&core, |_, _, _| hits += 1);
            assert_eq!(hits, 0, "pieces of the key in the core");
            assert!(core.len() > 500_000);
        }
        _ => skipped("gcore is not installed, or may not attach"),
    }
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn the_same_user_can_neither_read_its_memory_nor_attach() {
    needs_root();
    let relay = Relay::bare().open_files(1_024).start();
    for file in ["mem", "environ", "maps", "auxv"] {
        let path = format!("/proc/{}/{file}", relay.pid());
        let mut command = Command::new("cat");
        std::os::unix::process::CommandExt::uid(&mut command, 65_534);
        let output = command.arg(&path).output().unwrap();
        assert!(!output.status.success() && output.stdout.is_empty(), "{file} was read");
    }
    let core = std::env::temp_dir().join(format!("core-of-{}", relay.pid()));
    let mut command = Command::new("gcore");
    std::os::unix::process::CommandExt::uid(&mut command, 65_534);
    let made = command.arg("-o").arg(&core).arg(relay.pid().to_string()).output();
    let file = core.with_extension(relay.pid().to_string());
    match made {
        Ok(made) => assert!(!made.status.success() && !file.exists(), "a core was made"),
        Err(_) => skipped("gcore is not installed"),
    }
}

#[test]
fn a_scan_finds_what_is_there() {
    let secret = b"sk-EXAMPLE_0123456789abcdef";
    let needles = Needles::new(secret);
    for at in 0..9 {
        for (text, want) in [
            (&secret[..], 27),
            (&secret[7..19], 12),
            (&secret[3..14], 0),
            (b"c2stRVhBTVBMRV8wMTIzNDU2Nzg5YWJjZGVm", 36),
            (b"eHNrLUVYQU1QTEVfMDEyMzQ1Njc4OWFiY2RlZg", 34),
        ] {
            let bytes = [&vec![b'.'; at], text, b"......"].concat();
            let mut found = 0;
            needles.find(&bytes, |_, length, _| found += length);
            assert!(found == want || (want == 34 && found >= 30), "{found} of {want} at {at}");
        }
    }
    // In a process: a shell that has read a secret.
    let secret = b"sk-EXAMPLE_that_no_program_has_in_itself";
    let needles = Needles::new(secret);
    let mut shell = Command::new("sh")
        .args(["-c", "read -r secret; echo; read -r end"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = shell.id();
    let (mut stdin, mut stdout) = (shell.stdin.take().unwrap(), shell.stdout.take().unwrap());
    // A mapping of a file for reading is told apart: that of the shell's own first text.
    let file = std::fs::read(format!("/proc/{pid}/exe")).unwrap();
    let text = file.windows(24).find(|window| !window.contains(&0)).unwrap();
    let ours = Needles::new(text);
    let mut clean = Clean::default();
    let before = scan_again(pid, &needles, &mut clean);
    stdin.write_all(&[secret, &b"\n"[..]].concat()).unwrap();
    stdout.read_exact(&mut [0]).unwrap();
    match (before, scan(pid, &ours)) {
        (Ok(before), Ok(of_file)) => {
            assert!(before.hits.is_empty());
            assert!(of_file.hits.iter().any(|hit| hit.is_of_file));
            let again = scan_again(pid, &needles, &mut clean).unwrap();
            let fresh = scan(pid, &needles).unwrap();
            let places = |scan: &Scan| scan.hits.iter().map(|hit| hit.address).collect::<Vec<_>>();
            assert!(!fresh.hits.is_empty() && places(&again) == places(&fresh));
            assert!(fresh.hits.iter().all(|hit| !hit.is_of_file));
        }
        (Err(error), _) | (_, Err(error)) => skipped(&error.to_string()),
    }
    drop(stdin);
    assert!(shell.wait().is_ok());
}
