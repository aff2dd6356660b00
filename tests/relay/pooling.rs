//! Tests which upstream connections are reused, for which user, and for how long.

use std::io::Write;
use std::os::unix::fs::FileExt;
use std::process::Command;

use super::lifecycle::Folder;
use super::local_users::{AGENT, OTHER, allowing, connect_as};
use super::support::relay::{Starter, binary, random_hex};
use super::support::{Client, Gate, Peer, Relay, Upstream, needs_root, ok, post, skipped};

/// An upstream that takes the body of a request with an early response for the next request. It
/// responds to that one when a further one has come.
fn desynchronised(peer: &mut Peer) {
    while let Some(head) = peer.head() {
        if head.contains("X-Early: 1\r\n") {
            peer.write(ok("early"));
            if peer.head().is_some() && peer.head().is_some() {
                peer.take("{}".len());
                peer.write(ok("smuggled"));
            }
        } else {
            peer.take("{}".len());
            peer.write(ok("fine"));
        }
    }
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn a_pooled_connection_serves_only_the_user_who_used_it_before() {
    needs_root();
    let upstream = Upstream::plain(desynchronised);
    let relay = Relay::to(&upstream.url()).args(allowing(&[AGENT, OTHER])).start();
    for _ in 0..8 {
        let smuggled = "POST /v1/files HTTP/1.1\r\nHost: localhost\r\n\r\n";
        let mut attacker = connect_as(OTHER, relay.port);
        let early = attacker.send(post("X-Early: 1\r\n", smuggled)).response();
        assert_eq!(early.text(), "early");
        let mut victim = connect_as(AGENT, relay.port);
        for _ in 0..2 {
            assert_eq!(victim.send(post("", "{}")).response().text(), "fine");
        }
        // Had it kept the connection, the attacker would now get what was meant for the victim.
        let own = attacker.send(post("", "{}")).response();
        assert_eq!(own.text(), "smuggled");
    }
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn a_used_connection_serves_its_user_again_and_an_unused_one_serves_any_user() {
    needs_root();
    let upstream = Upstream::plain(|peer| {
        while peer.request().is_some() {
            let number = peer.number.to_string();
            peer.write(ok(&number));
        }
    });
    let relay = Relay::to(&upstream.url()).args(allowing(&[AGENT, OTHER])).start();
    let ask = |client: &mut Client| client.send(post("", "{}")).response().text().to_owned();
    // Made for the first one who connects, used by the other.
    let mut agent = connect_as(AGENT, relay.port);
    let mut other = connect_as(OTHER, relay.port);
    assert_eq!(ask(&mut other), "1");
    assert_eq!(ask(&mut agent), "2");
    for _ in 0..3 {
        assert_eq!((ask(&mut other), ask(&mut agent)), ("1".into(), "2".into()));
    }
    assert_eq!(ask(&mut connect_as(AGENT, relay.port)), "2");
    assert_eq!(ask(&mut connect_as(OTHER, relay.port)), "1");
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn one_allowed_user_alone_shares_connections_as_ever() {
    needs_root();
    let upstream = Upstream::answering(ok("fine"));
    let relay = Relay::to(&upstream.url()).args(allowing(&[AGENT, AGENT])).start();
    for _ in 0..4 {
        let mut client = connect_as(AGENT, relay.port);
        assert_eq!(client.send(post("", "{}")).response().text(), "fine");
    }
    assert_eq!(upstream.connections(), 1);
}

#[test]
fn a_connection_whose_response_began_before_the_request_had_gone_is_not_used_again() {
    let (tell, begun) = Gate::pair();
    let upstream = Upstream::plain(move |peer| {
        while let Some(head) = peer.head() {
            let number = peer.number.to_string();
            if head.contains("X-Early: 1\r\n") {
                // The final response begins; the rest of the body has not come yet.
                peer.write("HTTP/1.1 200 OK\r\nContent-");
                tell.signal();
                peer.take(4);
                peer.write("Length: 1\r\n\r\n");
                peer.write(number);
            } else {
                peer.take(2);
                peer.write(ok(&number));
            }
        }
    });
    let relay = Relay::to(&upstream.url()).start();
    let mut client = relay.connect();
    client.send(post("X-Early: 1\r\n", "1234").trim_end_matches("34"));
    begun.wait();
    // The relay has seen that: bytes on loopback are there at once, and this comes after them.
    let mut another = relay.connect();
    another.send("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").response();
    assert_eq!(client.send("34").response().text(), "1");
    assert_ne!(client.send(post("", "{}")).response().text(), "1");
}

#[test]
fn part_of_a_record_behind_a_response_is_not_the_beginning_of_the_next() {
    let upstream = Upstream::tls(|peer| {
        let mut late = Vec::new();
        while peer.request().is_some() {
            if peer.number > 1 {
                peer.write(ok("second"));
            } else if late.is_empty() {
                let (answer, mut more) = (peer.seal(ok("first")), peer.seal(ok("stale")));
                late = more.split_off(20);
                peer.stream().write_all(&[answer, more].concat()).unwrap();
            } else {
                peer.stream().write_all(&late).unwrap();
            }
        }
    });
    let relay = Relay::to(&upstream.url()).start();
    for want in ["first", "second"] {
        assert_eq!(relay.connect().send(post("", "{}")).response().body, want.as_bytes());
    }
}

#[test]
fn a_request_that_meets_the_end_of_an_idle_connection_goes_out_on_a_fresh_one() {
    for tls in [false, true] {
        for resets in [false, true] {
            let (tell, told) = Gate::pair();
            let (go, may_go) = Gate::pair();
            let script = move |peer: &mut Peer| {
                while peer.request().is_some() {
                    peer.write(ok("fine"));
                    if peer.number > 1 {
                        continue;
                    }
                    may_go.wait();
                    if resets {
                        peer.reset();
                        peer.cut();
                    } else {
                        peer.close();
                    }
                    tell.signal();
                    if resets {
                        return;
                    }
                }
            };
            let upstream = if tls { Upstream::tls(script) } else { Upstream::plain(script) };
            let relay = Relay::to(&upstream.url()).start();
            let mut client = relay.connect();
            assert_eq!(client.send(post("", "{}")).response().status, 200);
            relay.stop();
            go.signal();
            told.wait();
            client.send(post("", "{}"));
            relay.signal(libc::SIGCONT);
            assert_eq!(client.response().status, 200, "tls {tls}, reset {resets}");
            assert_eq!((upstream.connections(), upstream.requests().len()), (2, 2));
        }
    }
}

/// Adds an offset, which a file contains, to one clock.
const CLOCK: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
static volatile long *passed;
__attribute__((constructor)) static void begin(void) {
    int fd = open(getenv("PASSED"), O_RDONLY);
    passed = mmap(0, sizeof *passed, PROT_READ, MAP_SHARED, fd, 0);
    close(fd);
}
int clock_gettime(clockid_t clock, struct timespec *time) {
    int result = syscall(SYS_clock_gettime, clock, time);
    if (clock == SHIFTED) time->tv_sec += *passed;
    return result;
}
"#;

/// A clock that a test sets forward, in the eyes of one relay.
pub struct Clock {
    folder: Folder,
    passed: std::fs::File,
}

impl Clock {
    /// `clock` is a name of `<time.h>`. None for a static program, which takes no other clock.
    pub fn new(clock: &str) -> Option<Clock> {
        let program = std::fs::read(binary()).unwrap();
        if !program.windows(8).any(|window| window == b"ld-linux") {
            skipped("a static program takes no other clock");
            return None;
        }
        let folder = Folder::new(&format!("clock-{}", random_hex()));
        let [source, library, passed] =
            ["clock.c", "clock.so", "passed"].map(|name| folder.file(name));
        std::fs::write(&source, CLOCK).unwrap();
        std::fs::write(&passed, 0u64.to_ne_bytes()).unwrap();
        let built = Command::new("cc")
            .args(["-shared", "-fPIC", &format!("-DSHIFTED={clock}"), "-o"])
            .args([&library, &source])
            .status()
            .expect("a C compiler, which the program itself needs too");
        assert!(built.success());
        let passed = std::fs::File::options().write(true).open(&passed).unwrap();
        Some(Clock { folder, passed })
    }

    /// The relay that sees this clock.
    pub fn of(&self, relay: Starter) -> Starter {
        let [library, passed] = ["clock.so", "passed"].map(|name| self.folder.file(name));
        relay.env("LD_PRELOAD", library.to_str().unwrap()).env("PASSED", passed.to_str().unwrap())
    }

    /// So many seconds are added in all.
    pub fn set_forward(&self, seconds: u64) {
        self.passed.write_all_at(&seconds.to_ne_bytes(), 0).unwrap();
    }
}

#[test]
fn a_connection_that_was_idle_while_the_machine_slept_is_as_old_as_it_is() {
    let Some(clock) = Clock::new("CLOCK_BOOTTIME") else {
        return;
    };
    let upstream = Upstream::answering(ok("fine"));
    let relay = clock.of(Relay::to(&upstream.url())).start();
    let mut client = relay.connect();
    let mut ask = || assert_eq!(client.send(post("", "{}")).response().status, 200);
    ask();
    // (slept in all, connections then): short naps add up, as time awake does.
    for (seconds, connections) in [(0u64, 1), (30, 1), (86, 2), (86, 2), (36_000, 3), (36_001, 3)] {
        clock.set_forward(seconds);
        ask();
        assert_eq!(upstream.connections(), connections, "after {seconds} s");
    }
}
