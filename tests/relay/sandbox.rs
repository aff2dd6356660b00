//! What the process can still do: each layer tried by doing what it forbids.

use std::collections::BTreeSet;
use std::fs;
use std::net::TcpListener;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use codex_responses_api_proxy::process::confine::{Sandbox, Thread};

use super::support::relay::emulated;
use super::support::{Relay, Upstream, ok, post};

/// Exit codes of the child that tries something.
const DONE: i32 = 40;
const REFUSED: i32 = 41;
const OTHERWISE: i32 = 42;

fn call(number: i64, arguments: [usize; 5]) -> i64 {
    let [a, b, c, d, e] = arguments;
    // A sixth argument, which mmap has, is 0.
    // SAFETY: the arguments are numbers, or pointers to static strings; the process ends right after.
    unsafe { libc::syscall(number, a, b, c, d, e, 0usize) }
}

fn socket(family: i32, kind: i32) -> i64 {
    call(libc::SYS_socket, [family as usize, (kind | libc::SOCK_CLOEXEC) as usize, 0, 0, 0])
}

fn connect(kind: i32, port: u16) -> i64 {
    let fd = socket(libc::AF_INET, kind);
    let address = libc::sockaddr_in {
        sin_family: libc::AF_INET as u16,
        sin_port: port.to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes([127, 0, 0, 1]) },
        sin_zero: [0; 8],
    };
    let at = std::ptr::from_ref(&address) as usize;
    call(libc::SYS_connect, [fd as usize, at, size_of_val(&address), 0, 0])
}

fn open(path: &'static std::ffi::CStr, flags: i32) -> i64 {
    let at = libc::AT_FDCWD as usize;
    call(libc::SYS_openat, [at, path.as_ptr() as usize, flags as usize, 0o600, 0])
}

/// Does what the name says; what the kernel answered.
fn attempt(what: &str) -> i64 {
    let shell = c"/bin/true".as_ptr() as usize;
    let exec = libc::PROT_EXEC as usize;
    match what {
        "execve" => call(libc::SYS_execve, [shell, 0, 0, 0, 0]),
        "execveat" => call(libc::SYS_execveat, [0, shell, 0, 0, 0]),
        "fork" => call(libc::SYS_clone, [libc::SIGCHLD as usize, 0, 0, 0, 0]),
        "ptrace" => call(libc::SYS_ptrace, [libc::PTRACE_TRACEME as usize, 0, 0, 0, 0]),
        "read another process" => call(libc::SYS_process_vm_readv, [1, 0, 0, 0, 0]),
        "write another process" => call(libc::SYS_process_vm_writev, [1, 0, 0, 0, 0]),
        "open" => open(c"/etc/hosts", libc::O_RDONLY),
        "open another file" => open(c"/etc/passwd", libc::O_RDONLY),
        "open to write" => open(c"/etc/hosts", libc::O_RDWR),
        "unlink" => call(libc::SYS_unlinkat, [0, shell, 0, 0, 0]),
        "bind" => call(libc::SYS_bind, [0, 0, 0, 0, 0]),
        "listen" => call(libc::SYS_listen, [0, 0, 0, 0, 0]),
        "memfd" => call(libc::SYS_memfd_create, [shell, 0, 0, 0, 0]),
        "io_uring" => call(libc::SYS_io_uring_setup, [1, 0, 0, 0, 0]),
        "bpf" => call(libc::SYS_bpf, [0, 0, 0, 0, 0]),
        "prctl" => call(libc::SYS_prctl, [libc::PR_SET_DUMPABLE as usize, 1, 0, 0, 0]),
        "kill" => call(libc::SYS_kill, [1, 0, 0, 0, 0]),
        "setuid" => call(libc::SYS_setuid, [0, 0, 0, 0, 0]),
        "mount" => call(libc::SYS_mount, [shell, shell, 0, 0, 0]),
        "unix socket" => socket(libc::AF_UNIX, libc::SOCK_STREAM),
        "packet socket" => socket(libc::AF_PACKET, libc::SOCK_RAW),
        "udp socket" => socket(libc::AF_INET, libc::SOCK_DGRAM),
        "tcp socket" => socket(libc::AF_INET, libc::SOCK_STREAM),
        "socket option" => call(
            libc::SYS_setsockopt,
            [0, libc::SOL_SOCKET as usize, libc::SO_RCVBUF as usize, 0, 0],
        ),
        "executable memory" => call(libc::SYS_mmap, [0, 4096, 1 | exec, 0x22, usize::MAX]),
        "memory made executable" => call(libc::SYS_mprotect, [0, 4096, exec, 0, 0]),
        "memory" => call(libc::SYS_mmap, [0, 4096, 3, 0x22, usize::MAX]),
        port => connect(libc::SOCK_STREAM, port.parse().expect("a port")),
    }
}

/// The other half of the tests below: a process that confines one thread and tries one thing.
#[test]
#[ignore = "run by the tests of this file, in a process of its own"]
fn one_attempt() {
    let (Ok(thread), Ok(port), Ok(what)) =
        (std::env::var("THREAD"), std::env::var("PORT"), std::env::var("WHAT"))
    else {
        return;
    };
    let thread = match thread.as_str() {
        "loop" => Thread::Loop,
        "resolver" => Thread::Resolver,
        _ => Thread::Log,
    };
    Sandbox::new(port.parse().unwrap()).confine(thread).expect("confined");
    let code = match attempt(&what) {
        // SAFETY: reads a number of this thread.
        -1 => match unsafe { *libc::__errno_location() } {
            libc::EPERM | libc::EACCES => REFUSED,
            _ => OTHERWISE,
        },
        _ => DONE,
    };
    // SAFETY: ends the process.
    unsafe { libc::_exit(code) };
}

#[derive(Debug, PartialEq)]
enum Fate {
    Killed,
    Refused,
    Done,
    Otherwise,
}

fn fate(thread: &str, what: &str, port: u16) -> Fate {
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["sandbox::one_attempt", "--exact", "--ignored", "--test-threads=1"])
        .envs([("THREAD", thread), ("WHAT", what), ("PORT", &port.to_string())])
        .output()
        .unwrap()
        .status;
    match (status.signal(), status.code()) {
        (Some(libc::SIGSYS), _) => Fate::Killed,
        (_, Some(DONE)) => Fate::Done,
        (_, Some(REFUSED)) => Fate::Refused,
        (_, Some(OTHERWISE)) => Fate::Otherwise,
        other => panic!("{thread}, {what}: {other:?}"),
    }
}

const NEVER: [&str; 19] = [
    "execve",
    "execveat",
    "fork",
    "ptrace",
    "read another process",
    "write another process",
    "open to write",
    "unlink",
    "listen",
    "memfd",
    "io_uring",
    "bpf",
    "prctl",
    "kill",
    "setuid",
    "mount",
    "packet socket",
    "executable memory",
    "memory made executable",
];

#[test]
fn what_the_loop_may_not_do_kills_it() {
    for what in NEVER.iter().chain(&["open", "bind", "unix socket", "udp socket", "socket option"])
    {
        assert_eq!(fate("loop", what, 443), Fate::Killed, "{what}");
    }
    assert_eq!(fate("loop", "memory", 443), Fate::Done);
    assert_eq!(fate("loop", "tcp socket", 443), Fate::Done);
}

#[test]
fn what_the_resolver_may_not_do_is_refused() {
    for what in NEVER {
        assert_eq!(fate("resolver", what, 443), Fate::Refused, "{what}");
    }
    assert_eq!(fate("resolver", "open", 443), Fate::Done);
    assert_eq!(fate("resolver", "open another file", 443), Fate::Refused);
    assert_eq!(fate("resolver", "udp socket", 443), Fate::Done);
}

#[test]
fn what_the_log_may_not_do_kills_it() {
    for what in NEVER.iter().chain(&["open", "bind", "tcp socket", "udp socket"]) {
        assert_eq!(fate("log", what, 443), Fate::Killed, "{what}");
    }
    assert_eq!(fate("log", "memory", 443), Fate::Done);
}

#[test]
fn the_loop_connects_to_the_upstreams_port_alone() {
    let (upstream, other) =
        (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
    let port = upstream.local_addr().unwrap().port();
    let elsewhere = other.local_addr().unwrap().port();
    assert_eq!(fate("loop", &port.to_string(), port), Fate::Done);
    if Relay::to("https://localhost/").start().output_line("protections: ").contains("TCP to port")
    {
        assert_eq!(fate("loop", &elsewhere.to_string(), port), Fate::Refused);
        assert_eq!(fate("resolver", &elsewhere.to_string(), port), Fate::Refused);
        assert_eq!(fate("resolver", &port.to_string(), port), Fate::Refused);
    } else {
        eprintln!("skipped: this kernel's Landlock knows no ports");
    }
}

/// A field of each thread's `/proc/PID/task/TID/status`.
fn of_each_thread(relay: &Relay, field: &str) -> BTreeSet<String> {
    let threads = fs::read_dir(format!("/proc/{}/task", relay.pid())).unwrap();
    let statuses = threads.map(|thread| {
        let text = fs::read_to_string(thread.unwrap().path().join("status")).unwrap();
        let line = text.lines().find(|line| line.starts_with(field)).unwrap();
        line.split_once(':').unwrap().1.trim().to_owned()
    });
    statuses.collect()
}

fn only(value: &str) -> BTreeSet<String> {
    BTreeSet::from([value.to_owned()])
}

#[test]
fn every_thread_of_the_relay_is_confined_and_has_no_privilege() {
    let upstream = Upstream::answering(ok("fine"));
    let relay = Relay::to(&upstream.url()).args(["--access-log", "--http-shutdown"]).start();
    assert_eq!(relay.connect().send(post("", "{}")).response().status, 200);
    if emulated() {
        let line = relay.output_line("protections: ");
        assert!(line.contains("no seccomp (this kernel has none)"), "{line}");
        return;
    }
    assert!(fs::read_dir(format!("/proc/{}/task", relay.pid())).unwrap().count() >= 3);
    assert_eq!(of_each_thread(&relay, "Seccomp:"), only("2"));
    assert_eq!(of_each_thread(&relay, "NoNewPrivs:"), only("1"));
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(of_each_thread(&relay, set), only("0000000000000000"), "{set}");
    }
}

#[test]
fn without_the_sandbox_the_start_line_says_so_loudly() {
    let upstream = Upstream::answering(ok("fine"));
    let relay = Relay::to(&upstream.url()).args(["--no-sandbox"]).start();
    let line = relay.output_line("protections: ");
    assert!(line.contains("SANDBOX OFF (--no-sandbox): no seccomp, no Landlock"), "{line}");
    assert_eq!(of_each_thread(&relay, "Seccomp:"), only("0"));
    assert_eq!(relay.connect().send(post("", "{}")).response().status, 200);
}

fn is_root() -> bool {
    // SAFETY: no memory is involved.
    let root = unsafe { libc::geteuid() } == 0;
    if !root {
        eprintln!("skipped: becoming another user needs root");
    }
    root
}

#[test]
fn user_gives_every_id_and_group_up_and_stays_not_dumpable() {
    if !is_root() {
        return;
    }
    let folder = std::env::temp_dir().join(format!("user-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let upstream = Upstream::answering(ok("fine"));
    for (user, uid, gid) in
        [("nobody", 65_534, 65_534), ("65533:65532", 65_533, 65_532), ("nobody:7", 65_534, 7)]
    {
        let info = folder.join("info");
        let mut relay = Relay::to(&upstream.url())
            .args(["--http-shutdown", "--user", user, "--server-info", info.to_str().unwrap()])
            .start();
        if !emulated() {
            let four = |id: u32| only(&[id; 4].map(|n| n.to_string()).join("\t"));
            assert_eq!(of_each_thread(&relay, "Uid:"), four(uid));
            assert_eq!(of_each_thread(&relay, "Gid:"), four(gid));
            assert_eq!(of_each_thread(&relay, "Groups:"), only(""));
        }
        let line = relay.output_line("protections: ");
        assert!(line.contains(&format!("user {uid}:{gid}")), "{line}");
        // What is not dumpable belongs to root, whoever runs it.
        let owner = fs::metadata(format!("/proc/{}/mem", relay.pid())).unwrap();
        assert_eq!(std::os::unix::fs::MetadataExt::uid(&owner), 0);
        assert_eq!(relay.connect().send(post("", "{}")).response().status, 200);
        relay.connect().send("GET /shutdown HTTP/1.1\r\nHost: localhost\r\n\r\n").response();
        assert_eq!(relay.exit_code(), 0);
        assert_eq!(fs::read(&info).unwrap(), b"", "the file is emptied by whoever opened it");
    }
    fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn a_user_that_is_not_there_is_wrong_use() {
    for (user, text) in [
        ("no-such-user-here", "there is no user of that name"),
        ("4294967290", "the group of 4294967290 is not known"),
        ("", "--user"),
    ] {
        let (code, _, err) = Relay::bare().args(["--user", user]).run(b"");
        assert_eq!(code, 2, "{err}");
        assert!(err.contains(text), "{err}");
    }
}

#[test]
fn descriptors_of_the_parent_are_closed_and_a_ca_file_by_descriptor_works() {
    let upstream = Upstream::answering(ok("fine"));
    let pem = fs::read(super::support::certs().ca_file()).unwrap();
    let path = super::support::upstream::memory_file(&pem);
    let number: i32 = path.file_name().unwrap().to_str().unwrap().parse().unwrap();
    let inherit = move || {
        // SAFETY: async-signal-safe calls without memory.
        let done = unsafe { libc::dup2(number, 77) == 77 && libc::dup2(number, 78) == 78 };
        if done { Ok(()) } else { Err(std::io::Error::last_os_error()) }
    };
    let relay = Relay::bare()
        .args(["--upstream-url", &upstream.url(), "--ca-file", "/dev/fd/77"])
        .command(|command| {
            // SAFETY: between fork and exec it does no more than that.
            unsafe { std::os::unix::process::CommandExt::pre_exec(command, inherit) };
        })
        .start();
    assert_eq!(relay.connect().send(post("", "{}")).response().status, 200);
    for fd in [77, 78] {
        assert!(fs::symlink_metadata(format!("/proc/{}/fd/{fd}", relay.pid())).is_err(), "{fd}");
    }
}
