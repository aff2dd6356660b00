//! What one request costs: instructions and system calls, which noise does not move.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};
use std::{fs, thread};

use super::support::upstream::memory_file;
use super::support::{Client, Relay, Upstream, skipped};
use super::worst_case::{worst, worst_bodies};
use super::{Watched, common, go_first};

/// Instructions for one request at one connection: a realistic head, 2 KiB up, 1 KiB down, TLS 1.3
/// with AES-128-GCM. In the static program, which brings its own libc, counted by valgrind, whose
/// processor is the same wherever the real one has AVX2. To renew it after a change that was meant
/// to change it, or with a new compiler, write here what the test prints.
const INSTRUCTIONS: u64 = 43_500;
const RENEW: &str =
    "where it is meant, write the new figure to INSTRUCTIONS in tests/load/guard.rs";
/// Percent that the count may differ by.
const SLACK: u64 = 5;
/// Calls for memory, for each request: musl's allocator gives pages back and takes them again now
/// and then, glibc's never does.
const MEMORY: f64 = 0.1;

fn upstream(framing: &str) -> Upstream {
    let head = String::from_utf8(common::answer_head()).unwrap();
    let head = head.replace("Transfer-Encoding: chunked", framing);
    Upstream::answering(head + &"a".repeat(1_024))
}

fn request() -> Vec<u8> {
    [common::codex_head(1_500), vec![b'j'; 2_048]].concat()
}

fn exchange(client: &mut Client, request: &[u8]) {
    let answer = client.send(request).response();
    assert_eq!((answer.status, answer.body.len()), (200, 1_024));
}

/// Works off so many requests at so many connections.
fn ask(port: u16, connections: usize, requests: usize) {
    let request = request();
    thread::scope(|scope| {
        for _ in 0..connections {
            scope.spawn(|| {
                let mut client = Client::connect(port);
                for _ in 0..requests / connections {
                    exchange(&mut client, &request);
                }
            });
        }
    });
}

/// Starts it, lets it serve, ends it.
fn serve(tool: &[&str], more: &[&str], upstream: &Upstream, work: impl FnOnce(u16)) {
    let relay = Watched::start(tool, upstream, |starter| starter.args(more));
    work(relay.0.port);
    relay.end();
}

fn kept() -> Upstream {
    upstream("Content-Length: 1024")
}

/// Everything that the program does in its life, by callgrind.
fn instructions(requests: usize) -> u64 {
    instructions_of(&kept(), |port| ask(port, 1, requests))
}

fn instructions_of(upstream: &Upstream, work: impl FnOnce(u16)) -> u64 {
    let log = memory_file(b"");
    let log_argument = format!("--log-file={}", log.display());
    let tool = [
        "valgrind",
        "--tool=callgrind",
        "--callgrind-out-file=/dev/null",
        // The relay's sum alone, not the connector's.
        "--child-silent-after-fork=yes",
        &log_argument,
    ];
    // valgrind knows nothing of seccomp, makes calls of its own and executes what it writes.
    serve(&tool, &["--no-sandbox"], upstream, work);
    let log = fs::read_to_string(&log).unwrap();
    let line = log.lines().find(|line| line.contains("Collected : "));
    line.expect("a sum").rsplit(' ').next().unwrap().parse().unwrap()
}

#[cfg(target_arch = "x86_64")]
#[test]
#[ignore = "needs valgrind and a static release build"]
fn a_request_takes_no_more_instructions_than_before() {
    if !std::is_x86_feature_detected!("avx2") {
        skipped("valgrind's processor has AVX2 only where the real one has");
        return;
    }
    // Start, handshake and end are in both; what 200 requests more cost is the difference.
    let found = (instructions(400) - instructions(200)) / 200;
    println!("{found} instructions for a request; {INSTRUCTIONS} committed");
    let worse = found > INSTRUCTIONS * (100 + SLACK) / 100;
    assert!(!worse, "more than {SLACK} % more: find out why; {RENEW}");
    let better = found < INSTRUCTIONS * (100 - SLACK) / 100;
    assert!(!better, "more than {SLACK} % fewer: hold what was won; {RENEW}");
}

/// Instructions that a byte of the worst message may take. Found are 126 where 64 options and 120
/// fields have names of 330 bytes that differ in the last letter alone, twice that in a request
/// that waits for its connection and is then parsed again, and 160 in a response of chunks of one
/// byte; 5,000 where the options are read again for each field. A byte of a plain message takes 2
/// to 4, by how many reads it comes in, so no ratio to that is held to.
const WORST: f64 = 400.0;

/// Instructions for one exchange of these two messages, on connections of its own, beyond those of
/// a relay that serves none. The relay may refuse either message.
fn instructions_for(request: &[u8], response: &[u8], none: u64) -> f64 {
    const TIMES: u64 = 4;
    let response = response.to_vec();
    let upstream = Upstream::plain(move |peer| {
        if peer.request().is_some() {
            peer.write(&response);
            peer.close();
        }
    });
    let send = |port| {
        for _ in 0..TIMES {
            Client::connect(port).try_send(request).response();
        }
    };
    instructions_of(&upstream, send).saturating_sub(none) as f64 / TIMES as f64
}

/// Holds messages to [`WORST`]. What an exchange takes without them is measured on `plain`, an
/// ordinary one.
fn hold_to_worst(
    messages: Vec<(&'static str, String)>,
    plain: &[u8],
    instructions: impl Fn(&[u8]) -> f64,
) {
    let least = instructions(plain);
    println!("{least} instructions for an exchange; for each byte beyond that:");
    for (name, message) in messages {
        let each = (instructions(message.as_bytes()) - least) / message.len() as f64;
        println!("{each:8.1} of {} bytes: {name}", message.len());
        assert!(each <= WORST, "{name}: {each} instructions for each byte, {WORST} allowed");
    }
}

#[test]
#[ignore = "needs valgrind and a static release build"]
fn the_worst_messages_take_a_bounded_number_of_instructions_for_each_byte() {
    if std::process::Command::new("valgrind").arg("--version").output().is_err() {
        skipped("valgrind is not installed");
        return;
    }
    let none = instructions_of(&Upstream::plain(|_| {}), |_| {});
    let with_bodies = |start: &str| {
        let bodies = worst_bodies().into_iter();
        let coding = "Transfer-Encoding: chunked\r\n\r\n";
        let bodies = bodies.map(|(name, body)| (name, format!("{start}{coding}{body}")));
        worst(start).into_iter().chain(bodies).collect()
    };
    let response = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    hold_to_worst(
        with_bodies("POST /v1/responses HTTP/1.1\r\nHost: localhost\r\n"),
        &[common::codex_head(600), vec![b'j'; 2_048]].concat(),
        |request| instructions_for(request, response, none),
    );
    hold_to_worst(
        with_bodies("HTTP/1.1 200 OK\r\n"),
        &[common::answer_head(), b"0\r\n\r\n".to_vec()].concat(),
        |response| instructions_for(&request(), response, none),
    );
}

/// The calls that the program makes in its life, by name.
fn calls(upstream: &Upstream, work: impl FnOnce(u16)) -> BTreeMap<String, u64> {
    let table = memory_file(b"");
    let tool = ["strace", "-f", "-c", "-U", "name,calls", "-o", table.to_str().unwrap()];
    serve(&tool, &[], upstream, work);
    parse(&table)
}

fn parse(table: &Path) -> BTreeMap<String, u64> {
    let table = fs::read_to_string(table).unwrap();
    let rows = table.lines().filter_map(|line| line.trim().split_once(' '));
    rows.filter(|(name, _)| *name != "total")
        .filter_map(|(name, calls)| Some((name.to_owned(), calls.trim().parse().ok()?)))
        .collect()
}

/// Prints the calls for each of 10,000 requests; returns how many there are, and how many of others
/// that are for memory.
fn calls_for_each(connections: usize) -> (f64, f64) {
    let requests = 10_000_usize.next_multiple_of(connections);
    let warm_up = 2 * connections;
    let before = calls(&kept(), |port| ask(port, connections, warm_up));
    let after = calls(&kept(), |port| ask(port, connections, warm_up + requests));
    println!("calls for a request with {connections} at a time:");
    let (mut all, mut memory) = (0.0, 0.0);
    for (name, count) in &after {
        let more = count.saturating_sub(*before.get(name).unwrap_or(&0));
        let each = more as f64 / requests as f64;
        match name.as_str() {
            "brk" | "mmap" | "munmap" | "mremap" | "madvise" => memory += each,
            _ => all += each,
        }
        if more > 0 {
            println!("{each:10.4} {name}");
        }
    }
    println!("{all:10.4} in all, and {memory:.4} for memory");
    (all, memory)
}

#[test]
#[ignore = "needs strace and a release build"]
fn a_request_takes_six_system_calls_at_one_connection() {
    let (calls, memory) = calls_for_each(1);
    assert!(calls <= 6.01, "{calls} calls for a request: see above which are new");
    assert!(memory <= MEMORY, "{memory} calls for memory for a request");
}

#[test]
#[ignore = "needs strace and a release build"]
fn a_request_takes_little_more_than_four_system_calls_at_64_connections() {
    let (calls, memory) = calls_for_each(64);
    assert!(calls <= 4.3, "{calls} calls for a request: see above which are new");
    assert!(memory <= MEMORY, "{memory} calls for memory for a request");
}

#[test]
#[ignore = "needs strace and a release build"]
fn a_connection_takes_no_more_system_calls_than_before() {
    let (few, many) = (10, 510);
    let count = |connections: usize| {
        calls(&upstream("Content-Length: 1024\r\nConnection: close"), |port| {
            let request = request();
            for _ in 0..connections {
                exchange(&mut Client::connect(port), &request);
            }
        })
    };
    let (before, after) = (count(few), count(many));
    let each = |name: &&str| {
        let [before, after] = [&before, &after].map(|calls| *calls.get(*name).unwrap_or(&0));
        after.saturating_sub(before) as f64 / (many - few) as f64
    };
    // How often it waits and reads depends on what comes together; how it sets up does not.
    for (name, most) in [
        // A process is made for a lookup alone.
        ("fork", 0.0),
        ("clone", 0.0),
        ("socket", 1.0),
        ("connect", 1.0),
        ("accept4", 2.0),
        ("epoll_ctl", 2.0),
        ("setsockopt", 7.0),
        ("getsockopt", 0.0),
        // One where it is made, one where it is taken.
        ("getpeername", 2.0),
        // One is the seed of ML-KEM.
        ("getrandom", 5.0),
        // One is the connector's, of the descriptor that it has handed over.
        ("close", 3.0),
        ("shutdown", 0.0),
    ] {
        let found = each(&name);
        println!("{found:10.4} {name}");
        assert!(found <= most + 0.02, "{found} calls of {name} for a connection, {most} before");
    }
}

/// Calls of both processes from the start to the end of a relay that serves one request, without
/// those for memory. To renew it after a change that was meant to change it, write here what the
/// test prints.
const START: u64 = 482;

#[test]
#[ignore = "needs strace and a release build"]
fn a_start_takes_no_more_system_calls_than_before() {
    let calls = calls(&kept(), |port| ask(port, 1, 1));
    let mut found = 0;
    for (name, count) in &calls {
        println!("{count:10} {name}");
        let is_memory = matches!(name.as_str(), "brk" | "mmap" | "munmap" | "mremap" | "madvise");
        found += if is_memory { 0 } else { *count };
    }
    println!("{found} calls in all, {START} committed");
    assert!(found <= START * (100 + SLACK) / 100, "see above which are new");
    assert!(found >= START * (100 - SLACK) / 100, "hold what was won: write it to START");
}

/// Percent of a start without the sandbox. The kernel compiles a filter and tries it with every
/// number of a system call when it is put in force: filters that are longer, or read from end to
/// end, show.
const SANDBOX: f64 = 130.0;

#[test]
#[ignore = "needs a release build"]
fn a_start_with_the_sandbox_takes_little_longer_than_one_without() {
    go_first(0);
    let upstream = kept();
    let mut took: [Vec<Duration>; 2] = Default::default();
    // Turn by turn, so that other work on the machine slows both.
    for _ in 0..60 {
        for (more, took) in [&[][..], &["--no-sandbox"]].into_iter().zip(&mut took) {
            let starter = Relay::to(&upstream.url()).args(more);
            let start = Instant::now();
            let relay = starter.start();
            took.push(start.elapsed());
            drop(relay);
        }
    }
    let [with, without] = took.map(|mut took| {
        took.sort_unstable();
        took[took.len() / 2]
    });
    let percent = 100.0 * with.as_secs_f64() / without.as_secs_f64();
    println!(
        "{with:.1?} with the sandbox, {without:.1?} without: {percent:.0} %, at most {SANDBOX}"
    );
    assert!(percent <= SANDBOX, "{percent} %");
}
