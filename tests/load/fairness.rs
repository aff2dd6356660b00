//! A small request among big ones and among slow ones.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::{self, Read, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::support::client::fields;
use super::support::upstream::memory_file;
use super::support::{Client, Peer, Relay, Upstream, ok, pace, post};
use super::{Watched, go_first};

/// Reads from one side of one connection in one turn of the loop: what its source promises.
const ROUNDS: usize = 2;

/// Answers `X-Size` bytes, or a few; takes in a body that is announced to be without end.
fn obey(peer: &mut Peer) {
    let mut piece = vec![b'd'; 1 << 18];
    while let Some(head) = peer.head() {
        if fields(&head, "content-length") == [ENDLESS.to_string()] {
            while peer.read(&mut piece).is_ok_and(|n| n > 0) {}
            return;
        }
        peer.take(BODY.len());
        let Some(size) = fields(&head, "x-size").first().map(|n| n.parse().unwrap()) else {
            go_first(0);
            peer.write(ok("small"));
            continue;
        };
        let mut left: usize = size;
        if !peer.try_write(format!("HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n")) {
            return;
        }
        while left > 0 {
            let n = left.min(piece.len());
            if !peer.try_write(&piece[..n]) {
                return;
            }
            left -= n;
        }
    }
}

const BODY: &str = "{}";
const ENDLESS: usize = 1 << 40;

fn big(size: usize) -> String {
    post(&format!("X-Size: {size}\r\n"), BODY)
}

#[test]
#[ignore = "needs strace and a release build"]
fn no_connection_is_read_more_than_twice_before_others_get_their_turn() {
    let trace = memory_file(b"");
    let calls = "trace=recvfrom,epoll_wait,epoll_pwait";
    let tool = ["strace", "-f", "-s", "0", "-e", calls, "-o", trace.to_str().unwrap()];
    let upstream = Upstream::tls(obey);
    let relay = Watched::start(&tool, &upstream, |starter| starter);
    let (port, size) = (relay.0.port, 8 << 20);
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| Client::connect(port).send(big(size)).response());
        }
    });
    relay.end();

    let trace = fs::read_to_string(&trace).unwrap();
    let mut reads = HashMap::new();
    // Turns of the loop by the most reads from one connection, and the reads from all in each.
    let (mut most, mut all) = (BTreeMap::new(), Vec::new());
    for line in trace.lines() {
        if line.contains(" epoll_") {
            all.push(reads.values().sum::<usize>());
            *most.entry(reads.drain().map(|(_, count)| count).max().unwrap_or(0)).or_insert(0) += 1;
        } else if let Some((_, call)) = line.split_once("recvfrom(") {
            *reads.entry(call.split(',').next().unwrap()).or_insert(0) += 1;
        }
    }
    all.sort();
    let median = all[all.len() / 2];
    println!("turns of the loop by the most reads from one connection: {most:?}; of all: {median}");
    assert!(most.values().sum::<usize>() > 8 * size / (1 << 16), "nothing was big");
    assert!(most.keys().all(|reads| *reads <= ROUNDS), "more than {ROUNDS} in one turn");
    // While all are busy, one after the other: what comes meanwhile waits for one, not for eight.
    assert!(median <= ROUNDS, "{median} reads in one turn");
}

/// The time that 99 of 100 small requests do not exceed.
fn p99(client: &mut Client) -> Duration {
    go_first(0);
    client.times(1_000)[990]
}

/// Small requests alone and under this load, in turns, so that what others do on the machine hits
/// both; medians over the rounds, and the best of three attempts. The load runs while it is told
/// to.
#[track_caller]
fn holds(relay: &Relay, what: &str, load: impl Fn(&AtomicBool) + Sync) {
    go_first(relay.pid());
    let mut client = relay.connect();
    client.send(post("", "{}")).response();
    let mut attempt = || {
        let (mut alone, mut loaded) = ([Duration::ZERO; 5], [Duration::ZERO; 5]);
        for (alone, loaded) in alone.iter_mut().zip(&mut loaded) {
            *alone = thread::scope(|scope| scope.spawn(|| p99(&mut client)).join().unwrap());
            let running = AtomicBool::new(true);
            *loaded = thread::scope(|scope| {
                scope.spawn(|| load(&running));
                // Until the load is at its full speed, which nothing tells.
                pace(Duration::from_millis(200));
                let loaded = scope.spawn(|| p99(&mut client)).join().unwrap();
                running.store(false, Ordering::SeqCst);
                loaded
            });
        }
        alone.sort();
        loaded.sort();
        let (alone, loaded) = (alone[2], loaded[2]);
        let ratio = loaded.as_secs_f64() / alone.as_secs_f64();
        println!("p99 alone {alone:?}, with {what} {loaded:?}: {ratio:.2} times");
        ratio <= 3.0
    };
    assert!((0..3).any(|_| attempt()), "with {what}, p99 is more than 3 times what it is alone");
}

/// Eight connections that begin with `request` and go on with `transfer` as fast as they can.
#[track_caller]
fn eight(
    what: &str,
    request: &str,
    transfer: impl Fn(&mut Client, &mut [u8]) -> io::Result<usize> + Sync,
) {
    let upstream = Upstream::tls(obey);
    let relay = Relay::to(&upstream.url()).start();
    let port = relay.port;
    holds(&relay, what, |running| {
        let moved = AtomicU64::new(0);
        let start = Instant::now();
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let mut client = Client::connect(port);
                    client.send(request);
                    let mut buffer = vec![b'u'; 1 << 18];
                    while running.load(Ordering::SeqCst) {
                        let n = transfer(&mut client, &mut buffer).unwrap();
                        moved.fetch_add(n as u64, Ordering::Relaxed);
                    }
                });
            }
        });
        let rate = moved.into_inner() as f64 / start.elapsed().as_secs_f64() / f64::from(1 << 20);
        println!("{rate:.0} MiB/s meanwhile");
        assert!(rate > 50.0, "the transfers stood still");
    });
}

#[test]
#[ignore = "measures a release build"]
fn eight_big_answers_do_not_hold_small_requests_up() {
    eight("8 big responses", &big(ENDLESS), |client, buffer| client.stream.read(buffer));
}

#[test]
#[ignore = "measures a release build"]
fn eight_big_uploads_do_not_hold_small_requests_up() {
    let head = post("", "").replace("Length: 0", &format!("Length: {ENDLESS}"));
    eight("8 big uploads", &head, |client, buffer| client.stream.write(buffer));
}

#[test]
#[ignore = "measures a release build"]
fn a_thousand_slow_readers_do_not_hold_small_requests_up() {
    let upstream = Upstream::tls(obey);
    let relay = Relay::to(&upstream.url()).args(["--max-connections", "1100"]).start();
    // Each asks at once: on a busy machine the last ones would be too late for --client-timeout.
    let asking = |_| {
        let mut reader = relay.connect();
        reader.send(big(ENDLESS)).head();
        reader
    };
    let readers: Vec<Client> = (0..1_000).map(asking).collect();
    let readers = std::sync::Mutex::new(readers);
    holds(&relay, "1,000 slow readers", |running| {
        let mut buffer = [0; 1_024];
        while running.load(Ordering::SeqCst) {
            let sweep = Instant::now();
            for reader in readers.lock().unwrap().iter_mut() {
                assert!(reader.stream.read(&mut buffer).unwrap() > 0);
            }
            pace(Duration::from_millis(100).saturating_sub(sweep.elapsed()));
        }
    });
}
