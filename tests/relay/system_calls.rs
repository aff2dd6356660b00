//! Tests that the loop's process uses each system call that its filters allow: a call that is not
//! used is one that only an attacker needs.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};

use codex_responses_api_proxy::process::system_calls::{Allowed, LOG, LOOP};
use libc::c_long;

use super::lifecycle::Folder;
use super::support::relay::{Starter, emulated};
use super::support::{End, Peer, Relay, Upstream, ok, pattern, post, skipped};

/// What the workload below does not bring about with each C library, and who makes the call.
const SELDOM: &[(c_long, &str)] = &[
    (libc::SYS_clock_gettime, "the vDSO, where the kernel's clock cannot be read without a call"),
    (libc::SYS_rt_sigreturn, "a stack overflow"),
    (libc::SYS_restart_syscall, "a wait that SIGSTOP has interrupted"),
    (libc::SYS_exit, "the end of a thread, which another end of the process may outrun"),
    (libc::SYS_tgkill, "abort(3) of glibc"),
    (libc::SYS_tkill, "abort(3) of musl"),
    (libc::SYS_rt_sigaction, "abort(3)"),
    (libc::SYS_getpid, "abort(3)"),
    (libc::SYS_gettid, "abort(3), a panic"),
    (libc::SYS_sched_yield, "a lock that is held for long"),
    (libc::SYS_epoll_pwait, "musl"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_epoll_wait, "glibc"),
    (libc::SYS_mmap, "more memory than the heap has"),
    (libc::SYS_brk, "one C library or the other"),
    (libc::SYS_mremap, "one C library or the other"),
    (libc::SYS_madvise, "one C library or the other"),
    (libc::SYS_mprotect, "one C library or the other"),
    (libc::SYS_fcntl, "a debug build"),
    (libc::SYS_sigaltstack, "the end of a thread"),
    (libc::SYS_rt_sigprocmask, "the end of a thread"),
];

/// The numbers of the calls of a list.
fn numbers(allowed: &Allowed) -> BTreeSet<c_long> {
    let any = allowed.any.iter().copied().flatten().copied();
    let limited = allowed.limited.iter().copied().flatten().map(|limited| limited.call);
    any.chain(limited).collect()
}

/// The calls of the process `pid` in a trace, once its loop is confined: of the loop's thread since
/// it has confined itself, and of the other threads.
fn calls(trace: &str, pid: u32) -> BTreeSet<c_long> {
    let pid = pid.to_string();
    let of_loop = |line: &&str| line.split_whitespace().next() == Some(&pid);
    let lines: Vec<&str> = trace.lines().filter(of_loop).collect();
    let confined = lines.iter().rposition(|line| line.contains("seccomp(SECCOMP_SET_MODE_FILTER"));
    let number = |line: &&str| {
        let (_, rest) = line.split_once('[')?;
        rest.split_once(']')?.0.trim().parse().ok()
    };
    lines[confined.expect("it confines itself") + 1..].iter().filter_map(number).collect()
}

/// Serves under strace(1) what needs all kinds of calls, and returns those that the loop has made.
fn used(scheme: &str, prepare: impl FnOnce(Starter) -> Starter) -> BTreeSet<c_long> {
    const SIZE: usize = 8 << 20;
    let folder = Folder::new("trace");
    let (trace, info) = (folder.file("trace"), folder.file("info"));
    let serve = |peer: &mut Peer| {
        while let Some(request) = peer.request() {
            match request.body.len() {
                1 => peer.write("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\ncut"),
                0 => peer.write(ok("fine")),
                _ => peer.write(ok(&"x".repeat(SIZE))),
            }
            if request.body.len() == 1 {
                peer.close();
                return;
            }
        }
    };
    // A plain upstream is asked for its owner, by the two addresses of the connection.
    let upstream = match scheme {
        "http" => Upstream::plain(serve),
        _ => Upstream::tls(serve),
    };
    let tool = ["strace", "-f", "-n", "-qq", "-o", trace.to_str().unwrap()];
    // SAFETY: no memory is involved.
    let uid = unsafe { libc::geteuid() }.to_string();
    let starter = Relay::under(&tool).upstream(&upstream.url());
    let starter = starter.args(["--access-log", "--allow-uid", &uid, "--http-shutdown"]);
    let mut relay = prepare(starter.args(["--server-info", info.to_str().unwrap()])).start();
    let text = fs::read_to_string(&info).unwrap();
    let pid = text.trim_end_matches("}\n").rsplit(':').next().unwrap().parse().unwrap();
    let mut client = relay.connect();
    assert_eq!(client.send(post("", "")).response().text(), "fine");
    // More than the sockets hold, both ways.
    let body = pattern(SIZE);
    let mut writer = client.stream.try_clone().unwrap();
    let head = post("", &"x".repeat(SIZE)).replace(&"x".repeat(SIZE), "");
    let sender = std::thread::spawn(move || {
        writer.write_all(head.as_bytes()).unwrap();
        writer.write_all(&body).unwrap();
    });
    assert_eq!(client.response().body.len(), SIZE);
    sender.join().unwrap();
    let mut client = relay.connect();
    client.send(post("", "1")).head();
    client.take(3);
    client.expect_end(End::Reset);
    let shutdown = "GET /shutdown HTTP/1.1\r\nHost: localhost\r\n\r\n";
    assert_eq!(relay.connect().send(shutdown).response().status, 200);
    assert_eq!(relay.exit_code(), 0);
    calls(&fs::read_to_string(trace).unwrap(), pid)
}

#[test]
fn every_call_that_the_loop_may_make_is_made() {
    if emulated() {
        return;
    }
    if Command::new("strace").arg("-V").stdout(Stdio::null()).status().is_err() {
        skipped("strace is not installed");
        return;
    }
    let mut used = used("https", |starter| starter);
    used.extend(self::used("http", |starter| {
        starter.refusing(libc::SYS_socket, Some(libc::AF_NETLINK), libc::EAFNOSUPPORT)
    }));
    let allowed: BTreeSet<c_long> = numbers(&LOOP).union(&numbers(&LOG)).copied().collect();
    let seldom: BTreeSet<c_long> = SELDOM.iter().map(|(call, _)| *call).collect();
    assert!(seldom.is_subset(&allowed), "a reason for a call that is not allowed");
    let unused = &(&allowed - &used) - &seldom;
    assert!(unused.is_empty(), "{unused:?}: numbers of calls that are allowed and not made");
}
