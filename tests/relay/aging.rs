//! Idle connections to the upstream: which of them a request is trusted to.

use std::os::unix::fs::FileExt;
use std::process::Command;
use std::sync::Mutex;
use std::sync::mpsc::channel;

use super::lifecycle::Folder;
use super::support::relay::binary;
use super::support::{DEADLINE, Peer, Relay, Upstream, ok, post, skipped};

#[test]
fn a_request_that_meets_the_end_of_an_idle_connection_goes_out_on_a_fresh_one() {
    for tls in [false, true] {
        for resets in [false, true] {
            let (tell, told) = channel();
            let (go, wait) = channel::<()>();
            let ends = Mutex::new((tell, wait));
            let script = move |peer: &mut Peer| {
                while peer.request().is_some() {
                    peer.write(ok("fine"));
                    if peer.number > 1 {
                        continue;
                    }
                    let (tell, wait) = &*ends.lock().unwrap();
                    wait.recv_timeout(DEADLINE).unwrap();
                    if resets {
                        peer.reset();
                        peer.cut();
                    } else {
                        peer.close();
                    }
                    tell.send(()).unwrap();
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
            go.send(()).unwrap();
            told.recv_timeout(DEADLINE).unwrap();
            client.send(post("", "{}"));
            relay.signal(libc::SIGCONT);
            assert_eq!(client.response().status, 200, "tls {tls}, reset {resets}");
            assert_eq!((upstream.connections(), upstream.requests().len()), (2, 2));
        }
    }
}

/// Answers CLOCK_BOOTTIME with an offset that stands in a file: a machine that has slept.
const CLOCK: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
static volatile long *slept;
__attribute__((constructor)) static void begin(void) {
    int fd = open(getenv("SLEPT"), O_RDONLY);
    slept = mmap(0, sizeof *slept, PROT_READ, MAP_SHARED, fd, 0);
    close(fd);
}
int clock_gettime(clockid_t clock, struct timespec *time) {
    int result = syscall(SYS_clock_gettime, clock, time);
    if (clock == CLOCK_BOOTTIME) time->tv_sec += *slept;
    return result;
}
"#;

#[test]
fn a_connection_that_was_idle_while_the_machine_slept_is_as_old_as_it_is() {
    let program = std::fs::read(binary()).unwrap();
    if !program.windows(8).any(|window| window == b"ld-linux") {
        skipped("a static program takes no other clock");
        return;
    }
    let folder = Folder::new("clock");
    let [source, library, slept] = ["clock.c", "clock.so", "slept"].map(|name| folder.file(name));
    std::fs::write(&source, CLOCK).unwrap();
    std::fs::write(&slept, 0u64.to_ne_bytes()).unwrap();
    let built = Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .args([&library, &source])
        .status()
        .expect("a C compiler, which the program itself needs too");
    assert!(built.success());
    let upstream = Upstream::answering(ok("fine"));
    let relay = Relay::to(&upstream.url())
        .env("LD_PRELOAD", library.to_str().unwrap())
        .env("SLEPT", slept.to_str().unwrap())
        .start();
    let mut client = relay.connect();
    let mut ask = || assert_eq!(client.send(post("", "{}")).response().status, 200);
    ask();
    let clock = std::fs::File::options().write(true).open(&slept).unwrap();
    // (slept in all, connections then): short naps add up, as time awake does.
    for (seconds, connections) in [(0u64, 1), (30, 1), (86, 2), (86, 2), (36_000, 3), (36_001, 3)] {
        clock.write_all_at(&seconds.to_ne_bytes(), 0).unwrap();
        ask();
        assert_eq!(upstream.connections(), connections, "after {seconds} s");
    }
}
