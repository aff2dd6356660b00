//! How much room the static program takes, on disk and in memory.

use std::process::Command;
use std::time::Duration;

use super::support::relay::binary;
use super::support::{Relay, Upstream, ok, pace, post, skipped};

/// 1.95 MiB, in bytes.
const SIZE: u64 = 2_044_723;
/// What the connector has in memory that is its own: 0.35 MiB, in KiB.
const CONNECTOR: usize = 358;
/// 2.2 MiB, in KiB, of which the program's own code is most.
const IDLE: usize = 2_252;

fn output(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
}

#[test]
#[ignore = "needs a static release build"]
fn footprint_is_one_static_file_of_at_most_1_95_mib() {
    let binary = binary();
    let size = std::fs::metadata(&binary).unwrap().len();
    println!("{size} bytes of {SIZE}");
    assert!(size <= SIZE, "{} bytes too many", size - SIZE);
    let headers = output("readelf", &["--wide", "--file-header", "--program-headers", &binary]);
    let dynamic = output("readelf", &["--wide", "--dynamic", &binary]);
    assert!(headers.contains("LOAD") && !headers.contains("INTERP"), "{headers}");
    assert!(!dynamic.contains("NEEDED"), "{dynamic}");
    // What is loaded at an address of the kernel's choice: a static PIE, which ldd has words for.
    assert!(headers.contains("DYN (Position-Independent Executable file)"), "{headers}");
    let ldd = output("ldd", &[&binary]);
    let is_static = ["statically linked", "not a dynamic executable"];
    assert!(is_static.iter().any(|words| ldd.contains(words)), "{ldd}");
}

#[test]
#[ignore = "needs a static release build"]
fn footprint_at_rest_is_at_most_2_2_mib_of_memory_with_the_systems_roots_too() {
    let upstream = Upstream::answering(ok("{}"));
    let bundle = "/etc/ssl/certs/ca-certificates.crt";
    for more in [None, Some(bundle)] {
        if let Some(bundle) = more
            && !std::path::Path::new(bundle).exists()
        {
            skipped(&format!("there is no {bundle}"));
            continue;
        }
        let starter = match more {
            None => Relay::to(&upstream.url()),
            Some(bundle) => Relay::bare().env("SSL_CERT_FILE", bundle),
        };
        let relay = starter.start();
        let protections = relay.output_line("protections: ");
        assert!(!protections.contains("no seccomp"), "{protections}");
        // The most of what is seen in a tenth of a second: the threads may be about to wait.
        let seen = (0..20).map(|_| {
            pace(Duration::from_millis(5));
            relay.memory("VmRSS:")
        });
        let idle = seen.max().unwrap();
        println!("{idle} KiB of {IDLE} at rest; further roots: {}", more.unwrap_or("one"));
        assert!(idle <= IDLE, "{} KiB too many", idle - IDLE);
        let pid = relay.pid();
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        let connector = children.trim();
        // Of a process that is not dumpable, root alone is told.
        if let Ok(memory) = std::fs::read_to_string(format!("/proc/{connector}/smaps_rollup")) {
            let kib = |line: &str| line.split_whitespace().nth(1)?.parse::<usize>().ok();
            let private = memory.lines().filter(|line| line.starts_with("Private_"));
            let private: usize = private.filter_map(kib).sum();
            println!("{private} KiB of {CONNECTOR} are the connector's own");
            assert!((1..=CONNECTOR).contains(&private), "{private} KiB");
        }
        if more.is_none() {
            assert_eq!(relay.connect().send(post("", "{}")).response().status, 200);
            println!("{} KiB after the first request", relay.memory("VmRSS:"));
        }
    }
}
