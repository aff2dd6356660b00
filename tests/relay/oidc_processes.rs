//! Tests the processes of `--github-oidc`: what each of them has and can do, and how they end.

use std::fs;
use std::path::Path;
use std::process::Stdio;

use super::compromise::{Arg, Call, Outcome, issue};
use super::connector::{assert_unprivileged, children, status};
use super::memory::scanner::{Needles, scan};
use super::memory::{may_read, none};
use super::oidc::{Endpoint, Tokens, api, endpoints, relay};
use super::support::relay::{descriptors, emulated, ends};
use super::support::skip::is_root;
use super::support::{Relay, needs_root, post, skipped, wait_for};

/// The processes of a relay with a feeder.
pub struct Processes {
    pub connector: u32,
    pub feeder: u32,
    pub feeders_connectors: [u32; 2],
}

impl Processes {
    pub fn of(relay: u32) -> Processes {
        let name = |pid: &u32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap();
        let (feeders, others): (Vec<u32>, Vec<u32>) =
            children(relay).into_iter().partition(|pid| name(pid) == "feeder\n");
        let ([feeder], [connector]) = (&feeders[..], &others[..]) else {
            panic!("{feeders:?} {others:?}");
        };
        let feeders_connectors = children(*feeder).try_into().expect("two connectors");
        Processes { connector: *connector, feeder: *feeder, feeders_connectors }
    }

    pub fn all(&self) -> [u32; 4] {
        let [first, second] = self.feeders_connectors;
        [self.connector, self.feeder, first, second]
    }
}

fn ask(relay: &Relay) -> String {
    relay.connect().send(post("", "{}")).response().text().to_owned()
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn no_copy_of_a_token_is_readable_in_any_process() {
    let tokens = Tokens::new();
    let (github, _) = endpoints(&tokens, 2);
    let access = tokens.clone();
    // Three tokens are renewed after a second, and the fourth stays.
    let provider = Endpoint::answering(move |number| {
        access.access_response(number, if number < 4 { 2 } else { 900 })
    });
    let api = api(&tokens);
    // As a step of a job has it.
    let relay = relay(&tokens, &github, &provider, &api)
        .env("ACTIONS_ID_TOKEN_REQUEST_TOKEN", &tokens.request)
        .env("COPY", &format!("bearer {}", tokens.request))
        .start();
    if !may_read(&relay) {
        return;
    }
    let processes = Processes::of(relay.pid());
    wait_for(|| ask(&relay) == "4");
    let all: Vec<String> = (1..=4).map(|number| tokens.access(number)).collect();
    for secret in all.iter().chain([&tokens.request, &tokens.id]) {
        let needles = Needles::new(secret.as_bytes());
        for pid in processes.all().into_iter().chain([relay.pid()]) {
            none(&scan(pid, &needles).unwrap());
        }
    }
    let secret = relay.output_line("protections: ").contains("memfd_secret");
    let needles = Needles::new(tokens.request.as_bytes());
    let refused = [processes.feeder, processes.feeders_connectors[0]]
        .map(|pid| scan(pid, &needles).unwrap().refused);
    assert!(!secret || refused[0] > refused[1], "the feeder's pages can be read");
}

#[test]
fn the_feeder_and_its_connectors_are_unprivileged_confined_and_keep_few_descriptors() {
    if emulated() {
        return;
    }
    let tokens = Tokens::new();
    let (github, provider) = endpoints(&tokens, 900);
    let api = api(&tokens);
    let relay = relay(&tokens, &github, &provider, &api).env("SECRET", "secret").start();
    let line = relay.output_line("protections: ");
    assert!(line.contains("; feeder: uid "), "{line}");
    let processes = Processes::of(relay.pid());
    for pid in processes.all() {
        assert_unprivileged(pid);
    }
    if is_root() {
        assert_few_descriptors(&processes);
    } else {
        skipped("the descriptors of another process need root");
    }
}

/// Nothing of the environment and the command line is left, and few descriptors are open.
fn assert_few_descriptors(processes: &Processes) {
    for pid in processes.all() {
        for file in ["environ", "cmdline"] {
            let bytes = fs::read(format!("/proc/{pid}/{file}")).unwrap();
            assert!(bytes.iter().all(|byte| *byte == 0), "{file}");
        }
    }
    for pid in processes.feeders_connectors {
        assert_eq!(status(pid, "Uid:"), ["65520"; 4].join("\t"));
        wait_for(|| fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count() == 4);
    }
    // stdin and stderr are those of the caller; then the links to the relay and to the connectors, the
    // pipe, the poll and its timer.
    let links: Vec<_> = descriptors(processes.feeder).into_iter().map(|(_, link)| link).collect();
    let count =
        |start: &str| links.iter().filter(|link| link.to_str().unwrap().starts_with(start)).count();
    assert!(links.contains(&Path::new("/dev/null").to_owned()));
    assert_eq!(count("socket:"), 3, "{links:?}");
    assert_eq!((count("pipe:"), count("anon_inode:")), (3, 2), "{links:?}");
    assert_eq!(links.len(), 9, "{links:?}");
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn with_user_the_feeder_becomes_that_user_and_hardening_that_is_required_covers_it() {
    needs_root();
    if emulated() {
        return;
    }
    let tokens = Tokens::new();
    let (github, provider) = endpoints(&tokens, 900);
    let api = api(&tokens);
    let starter = relay(&tokens, &github, &provider, &api);
    let relay = starter.args(["--user", "65533:65532"]).start();
    assert_eq!(ask(&relay), "1");
    for pid in Processes::of(relay.pid()).all() {
        assert_eq!(status(pid, "Uid:"), ["65533"; 4].join("\t"));
        assert_eq!(status(pid, "Gid:"), ["65532"; 4].join("\t"));
    }
    // A kernel without secret memory, in the feeder as in the relay.
    let starter = super::oidc::relay(&tokens, &github, &provider, &api)
        .refusing(libc::SYS_memfd_secret, None, libc::ENOSYS)
        .args(["--require-secret-memory"]);
    let (code, _, err) = starter.run(format!("{}\n", tokens.request).as_bytes());
    assert_eq!(code, 13, "{err}");
    assert_eq!(github.seen().len(), 1, "a request was sent without secret memory");
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn code_in_the_feeder_opens_nothing_sends_nowhere_and_reaches_no_process() {
    needs_root();
    if emulated() {
        return;
    }
    let number = Arg::Number;
    let tokens = Tokens::new();
    let (github, provider) = endpoints(&tokens, 900);
    let api = api(&tokens);
    let passwd = Arg::Bytes(b"/etc/passwd\0");
    let at = number(libc::AT_FDCWD.into());
    let message = [0u8; 56];
    let address = [0u8; 16];
    for (what, call, arguments) in [
        ("a socket", libc::SYS_socket, &[number(2), number(1), number(0)][..]),
        ("connect", libc::SYS_connect, &[number(3), Arg::Bytes(&address), number(16)]),
        (
            "send to an address",
            libc::SYS_sendto,
            &[number(3), Arg::Bytes(b"x"), number(1), number(0), Arg::Bytes(&address), number(16)],
        ),
        ("pass a descriptor", libc::SYS_sendmsg, &[number(3), Arg::Bytes(&message), number(0)]),
        ("accept", libc::SYS_accept4, &[number(3), number(0), number(0), number(0o2004000)]),
        ("open", libc::SYS_openat, &[at, passwd, number(0)]),
        ("run a program", libc::SYS_execve, &[Arg::Bytes(b"/bin/sh\0"), number(0), number(0)]),
        ("fork", libc::SYS_clone, &[number(17), number(0), number(0), number(0), number(0)]),
        ("attach", libc::SYS_ptrace, &[number(16), number(std::process::id().into())]),
        ("signal", libc::SYS_kill, &[number(std::process::id().into()), number(0)]),
        ("become dumpable", libc::SYS_prctl, &[number(4), number(1)]),
        ("empty a file", libc::SYS_ftruncate, &[number(2), number(0)]),
        (
            "code",
            libc::SYS_mmap,
            &[number(0), number(4096), number(7), number(0x22), number(-1), number(0)],
        ),
    ] {
        let mut relay = relay(&tokens, &github, &provider, &api).start();
        let feeder = Processes::of(relay.pid()).feeder;
        let outcome = issue(feeder, Call { number: call, arguments });
        assert_eq!(outcome, Outcome::Killed, "{what}");
        assert!(ends(feeder), "{what}");
        assert!(relay.is_running(), "{what}");
        let response = relay.connect().send(post("", "{}")).response();
        assert_eq!(response.status, 200, "{what}: the relay goes on");
    }
}

#[test]
fn when_the_relay_ends_or_is_killed_the_feeder_and_its_connectors_end() {
    let tokens = Tokens::new();
    let (github, provider) = endpoints(&tokens, 900);
    let api = api(&tokens);
    for signal in [libc::SIGTERM, libc::SIGKILL] {
        let mut relay = relay(&tokens, &github, &provider, &api).start();
        let processes = (!emulated()).then(|| Processes::of(relay.pid()));
        relay.signal(signal);
        relay.wait();
        for pid in processes.iter().flat_map(Processes::all) {
            assert!(ends(pid), "{pid} goes on after signal {signal}");
        }
    }
}

#[test]
fn a_relay_that_is_killed_while_the_feeder_waits_for_stdin_leaves_no_process() {
    if emulated() {
        return;
    }
    let tokens = Tokens::new();
    let (github, provider) = endpoints(&tokens, 900);
    let api = api(&tokens);
    for signal in [libc::SIGTERM, libc::SIGKILL] {
        let mut starter = relay(&tokens, &github, &provider, &api);
        let (mut relay, stdin) = starter.spawn_without_key(Stdio::null());
        let relays = relay.pid();
        // The feeder waits for stdin once it has its two connectors.
        let feeder = || {
            let all = children(relays);
            all.into_iter().find(|child| children(*child).len() == 2)
        };
        wait_for(|| feeder().is_some());
        let feeder = feeder().unwrap();
        let connectors = children(feeder);
        relay.signal(signal);
        relay.wait();
        for pid in [&[feeder], &connectors[..]].concat() {
            assert!(ends(pid), "{pid} goes on after signal {signal}");
        }
        drop(stdin);
    }
}
