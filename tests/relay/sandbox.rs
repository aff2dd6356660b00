//! Tests each layer of the sandbox by attempts at forbidden operations.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output, Stdio};

use codex_responses_api_proxy::connector::confine::Confinement;
use codex_responses_api_proxy::net::report::{Form, end_on_panic};
use codex_responses_api_proxy::process::confine::Sandbox;
use codex_responses_api_proxy::process::filter::Descriptors;
use codex_responses_api_proxy::process::filter::Thread;
use codex_responses_api_proxy::process::sys;

use super::support::relay::emulated;
use super::support::{DEADLINE, Relay, Upstream, needs_root, ok, post, skipped};

/// Exit codes of the child that tries something.
const DONE: i32 = 40;
const REFUSED: i32 = 41;
const OTHERWISE: i32 = 42;

fn call(number: i64, arguments: [usize; 5]) -> i64 {
    let [a, b, c, d, e] = arguments;
    // A sixth argument, which mmap has, is 0.
    // SAFETY: the arguments are numbers, or pointers to static strings; the process ends right
    // after.
    unsafe { libc::syscall(number, a, b, c, d, e, 0usize) }
}

fn socket(family: i32, kind: i32) -> i64 {
    call(libc::SYS_socket, [family as usize, (kind | libc::SOCK_CLOEXEC) as usize, 0, 0, 0])
}

fn loopback(port: u16) -> libc::sockaddr_in {
    libc::sockaddr_in {
        sin_family: libc::AF_INET as u16,
        sin_port: port.to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes([127, 0, 0, 1]) },
        sin_zero: [0; 8],
    }
}

fn connect(fd: i64, port: u16) -> i64 {
    let address = loopback(port);
    let at = std::ptr::from_ref(&address) as usize;
    call(libc::SYS_connect, [fd as usize, at, size_of_val(&address), 0, 0])
}

/// Opens a connection by sending: without connect(2), and so past Landlock.
fn fast_open(by: i64, port: u16) -> i64 {
    let mut address = loopback(port);
    let fd = socket(libc::AF_INET, libc::SOCK_STREAM) as usize;
    let (flags, len) = (libc::MSG_FASTOPEN as usize, size_of_val(&address) as u32);
    let mut part = libc::iovec { iov_base: c"hello".as_ptr().cast_mut().cast(), iov_len: 5 };
    // SAFETY: plain memory.
    let mut messages: [libc::mmsghdr; 1] = unsafe { std::mem::zeroed() };
    let message = &mut messages[0].msg_hdr;
    message.msg_name = std::ptr::from_mut(&mut address).cast();
    message.msg_namelen = len;
    message.msg_iov = &mut part;
    message.msg_iovlen = 1;
    let at = std::ptr::from_mut(&mut messages) as usize;
    match by {
        libc::SYS_sendmsg => call(by, [fd, at, flags, 0, 0]),
        libc::SYS_sendmmsg => call(by, [fd, at, 1, flags, 0]),
        _ => {
            let address = std::ptr::from_ref(&address) as usize;
            // SAFETY: the arguments are numbers and pointers that outlive the call.
            unsafe { libc::syscall(by, fd, part.iov_base, 5usize, flags, address, len as usize) }
        }
    }
}

/// What an attempt needs, made before the thread confines itself.
struct Prepared {
    /// A file of three bytes. It is also stderr.
    file: i32,
    /// A terminal, which this process is in control of.
    terminal: i32,
    /// A connected pair of sockets.
    pair: [i32; 2],
    epoll: i32,
}

impl Prepared {
    fn new() -> Prepared {
        let mut pair = [0; 2];
        let (mut terminal, mut other) = (-1, -1);
        let null = std::ptr::null_mut();
        // SAFETY: the calls write into numbers that are ours alone, and read static strings.
        unsafe {
            let file = libc::memfd_create(c"file".as_ptr(), 0);
            assert_eq!(libc::write(file, c"abc".as_ptr().cast(), 3), 3);
            assert_eq!(libc::dup2(file, 2), 2);
            libc::setsid();
            libc::openpty(&mut other, &mut terminal, null, null.cast(), null.cast());
            libc::ioctl(terminal, libc::TIOCSCTTY, 0);
            assert_eq!(libc::socketpair(libc::AF_UNIX, libc::SOCK_STREAM, 0, pair.as_mut_ptr()), 0);
            let epoll = libc::epoll_create1(0);
            let mut event = libc::epoll_event { events: 0, u64: 0 };
            assert_eq!(libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, pair[0], &mut event), 0);
            Prepared { file, terminal, pair, epoll }
        }
    }
}

fn open(path: &'static std::ffi::CStr, flags: i32) -> i64 {
    let at = libc::AT_FDCWD as usize;
    call(libc::SYS_openat, [at, path.as_ptr() as usize, flags as usize, 0o600, 0])
}

/// Does what the name says, to this port if it is about one; returns the result of the system call.
fn attempt(what: &str, elsewhere: u16, prepared: &Prepared) -> i64 {
    let Prepared { file, terminal, pair, epoll } = prepared;
    let (file, terminal, epoll) = (*file as usize, *terminal as usize, *epoll as usize);
    let [first, second] = pair.map(|fd| fd as usize);
    // SAFETY: no memory is involved.
    let (pid, tid) = unsafe { (libc::getpid() as usize, libc::gettid() as usize) };
    let term = libc::SIGTERM as usize;
    let word = [0u64; 4];
    let number = std::ptr::from_ref(&word) as usize;
    let private = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as usize;
    // SAFETY: memory for the attempts that change some.
    let page = unsafe { libc::mmap(std::ptr::null_mut(), 4096, 3, private as i32, -1, 0) } as usize;
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
        "connect" => connect(socket(libc::AF_INET, libc::SOCK_STREAM), elsewhere),
        "connect by MPTCP" => {
            let kind = (libc::SOCK_STREAM | libc::SOCK_CLOEXEC) as usize;
            let protocol = libc::IPPROTO_MPTCP as usize;
            match call(libc::SYS_socket, [libc::AF_INET as usize, kind, protocol, 0, 0]) {
                -1 => -1,
                fd => connect(fd, elsewhere),
            }
        }
        "open by sendto" => fast_open(libc::SYS_sendto, elsewhere),
        "open by sendmsg" => fast_open(libc::SYS_sendmsg, elsewhere),
        "open by sendmmsg" => fast_open(libc::SYS_sendmmsg, elsewhere),
        "send" => call(libc::SYS_sendto, [first, number, 1, 0, 0]),
        // A high address whose low half is 0 is no null pointer.
        "send to an address" => call(libc::SYS_sendto, [first, number, 1, 0, 1 << 32]),
        "empty the log" => call(libc::SYS_ftruncate, [2, 0, 0, 0, 0]),
        "empty the server-info file" => call(libc::SYS_ftruncate, [file, 0, 0, 0, 0]),
        "read stdin again" => call(libc::SYS_pread64, [2, page, 3, 0, 0]),
        "read a table" => call(libc::SYS_pread64, [file, page, 3, 0, 0]),
        "type into the terminal" => {
            call(libc::SYS_ioctl, [terminal, libc::TIOCSTI as usize, number, 0, 0])
        }
        "how much is there" => call(libc::SYS_ioctl, [first, libc::FIONREAD as usize, page, 0, 0]),
        "ask for signals" => call(libc::SYS_fcntl, [first, libc::F_SETOWN as usize, pid, 0, 0]),
        "copy a descriptor" => call(libc::SYS_fcntl, [first, libc::F_DUPFD as usize, 0, 0, 0]),
        "flags" => call(libc::SYS_fcntl, [first, libc::F_GETFL as usize, 0, 0, 0]),
        "change an event" => {
            call(libc::SYS_epoll_ctl, [epoll, libc::EPOLL_CTL_MOD as usize, first, number, 0])
        }
        "one event less" => {
            call(libc::SYS_epoll_ctl, [epoll, libc::EPOLL_CTL_DEL as usize, first, 0, 0])
        }
        "end both directions" => call(libc::SYS_shutdown, [second, 2, 0, 0, 0]),
        "shared memory" => call(libc::SYS_mmap, [0, 4096, 3, 0x21, usize::MAX]),
        "a file in memory" => call(libc::SYS_mmap, [0, 4096, 1, 0x02, file]),
        "memory in another's place" => {
            call(libc::SYS_mmap, [page, 4096, 3, private | libc::MAP_FIXED as usize, usize::MAX])
        }
        "move memory" => call(libc::SYS_mremap, [page, 4096, 4096, 3, page + (1 << 30)]),
        "advice for core files" => {
            call(libc::SYS_madvise, [page, 4096, libc::MADV_DODUMP as usize, 0, 0])
        }
        "drop memory" => call(libc::SYS_madvise, [page, 4096, libc::MADV_DONTNEED as usize, 0, 0]),
        "requeue" => call(libc::SYS_futex, [number, libc::FUTEX_REQUEUE as usize, 0, 0, number]),
        "wake" => call(libc::SYS_futex, [number, libc::FUTEX_WAKE as usize | 128, 1, 0, 0]),
        "signal the process" => call(libc::SYS_tgkill, [pid, tid, 0, 0, 0]),
        "signal a thread" => call(libc::SYS_tkill, [tid, 0, 0, 0, 0]),
        "abort another process" => {
            // SAFETY: no memory is involved.
            let other = unsafe { libc::getppid() } as usize;
            call(libc::SYS_tgkill, [other, usize::MAX, libc::SIGABRT as usize, 0, 0])
        }
        "handle a signal" => call(libc::SYS_rt_sigaction, [term, 0, page, 8, 0]),
        what => panic!("there is no attempt {what}"),
    }
}

/// The other half of the tests below: a process that confines one thread and tries one thing.
#[test]
#[ignore = "run by the tests of this file, in a process of its own"]
fn one_attempt() {
    let (Ok(thread), Ok(port), Ok(elsewhere), Ok(what)) = (
        std::env::var("THREAD"),
        std::env::var("PORT"),
        std::env::var("ELSEWHERE"),
        std::env::var("WHAT"),
    ) else {
        return;
    };
    let process = thread;
    let thread = match process.as_str() {
        "loop" => Some(Thread::Loop),
        "log" => Some(Thread::Log),
        _ => None,
    };
    if what == "panic" || what == "a panic with bytes" {
        end_on_panic(Form::Text);
    }
    sys::deny_new_privileges().unwrap();
    let sandbox = Sandbox::new(port.parse().unwrap());
    let prepared = (!what.contains("panic")).then(Prepared::new);
    if let Some(thread) = thread {
        let file = prepared.as_ref().map(|prepared| prepared.file);
        let descriptors =
            Descriptors { server_info: file, socket_tables: [[file, None], [None; 2]] };
        sandbox.with_descriptors(descriptors).confine(thread).expect("confined");
    }
    if ["connector", "lookup"].contains(&process.as_str()) {
        let confinement = Confinement::new(sandbox);
        confinement.connector(port.parse().unwrap()).expect("confined");
        if process == "lookup" {
            let hosts = std::fs::OpenOptions::new()
                .read(true)
                .custom_flags(libc::O_PATH)
                .open("/etc/hosts")
                .unwrap();
            confinement.lookup(&[hosts.into()]).expect("confined");
        }
    }
    let Some(prepared) = prepared else {
        match what.as_str() {
            "panic" => panic!("a constant text"),
            _ => panic!("{}", String::from("secret") + " bytes"),
        }
    };
    let code = match attempt(&what, elsewhere.parse().unwrap(), &prepared) {
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

#[test]
#[ignore = "run by the test below, in a process of its own"]
fn outlasting_its_end() {
    sys::child::end_after(1).unwrap();
    // SAFETY: plain memory, and a set that is full.
    unsafe {
        let mut every: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&mut every);
        libc::pthread_sigmask(libc::SIG_BLOCK, &every, std::ptr::null_mut());
    }
    std::thread::sleep(DEADLINE);
}

#[test]
fn a_lookup_that_blocks_every_signal_ends_at_its_time() {
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["relay::sandbox::outlasting_its_end", "--exact", "--ignored", "--test-threads=1"])
        .output()
        .unwrap()
        .status;
    assert_eq!(status.signal(), Some(libc::SIGKILL));
}

#[derive(Debug, PartialEq)]
enum Fate {
    Killed,
    Refused,
    Done,
    Otherwise,
}

fn run(thread: &str, what: &str, port: u16, elsewhere: u16) -> Output {
    Command::new(std::env::current_exe().unwrap())
        .args([
            "relay::sandbox::one_attempt",
            "--exact",
            "--ignored",
            "--test-threads=1",
            "--nocapture",
        ])
        .envs([("THREAD", thread), ("WHAT", what), ("PORT", &port.to_string())])
        .env("ELSEWHERE", elsewhere.to_string())
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn fate(thread: &str, what: &str, port: u16) -> Fate {
    fate_elsewhere(thread, what, port, port)
}

fn fate_elsewhere(thread: &str, what: &str, port: u16, elsewhere: u16) -> Fate {
    let status = run(thread, what, port, elsewhere).status;
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
    for what in NEVER.iter().chain(&["open", "bind", "socket option"]) {
        assert_eq!(fate("loop", what, 443), Fate::Killed, "{what}");
    }
    assert_eq!(fate("loop", "memory", 443), Fate::Done);
}

#[test]
fn the_loop_makes_no_socket_of_any_family_and_reads_no_file_of_the_connectors() {
    for what in ["unix socket", "udp socket", "tcp socket", "packet socket", "connect", "open"] {
        // Port 443 refuses a connection where nothing listens: the call is then made all the same. A
        // packet socket takes a privilege that an ordinary user has not.
        assert!(what == "connect" || possible(what, 443) || what == "packet socket", "{what}");
        assert_eq!(fate("loop", what, 443), Fate::Killed, "{what}");
    }
}

#[test]
fn what_the_connector_and_a_lookup_may_not_do_kills_them_or_is_refused() {
    for process in ["connector", "lookup"] {
        for what in NEVER {
            let want = match (what, process) {
                ("packet socket", _) | ("fork", "lookup") => Fate::Refused,
                // One child for each lookup.
                ("fork", _) => continue,
                _ => Fate::Killed,
            };
            assert_eq!(fate(process, what, 443), want, "{process}: {what}");
        }
        assert_eq!(fate(process, "udp socket", 443), Fate::Done);
        assert_eq!(fate(process, "unix socket", 443), Fate::Refused);
    }
    assert_eq!(fate("lookup", "open", 443), Fate::Done);
    if Relay::to("https://localhost/").start().output_line("protections: ").contains("Landlock ") {
        assert_eq!(fate("lookup", "open another file", 443), Fate::Refused);
    }
}

#[test]
fn what_the_log_may_not_do_kills_it() {
    for what in NEVER.iter().chain(&["open", "bind", "tcp socket", "udp socket"]) {
        assert_eq!(fate("log", what, 443), Fate::Killed, "{what}");
    }
    assert_eq!(fate("log", "memory", 443), Fate::Done);
}

/// Each of these does what it says where nothing is confined; where it does not, this machine
/// cannot do it.
fn possible(what: &str, elsewhere: u16) -> bool {
    let possible = fate_elsewhere("none", what, 443, elsewhere) == Fate::Done;
    if !possible {
        skipped(&format!("\"{what}\" is not possible here, confined or not"));
    }
    possible
}

#[test]
fn no_thread_opens_a_connection_past_landlock() {
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let elsewhere = other.local_addr().unwrap().port();
    let ways = ["open by sendto", "open by sendmsg", "open by sendmmsg", "connect by MPTCP"];
    let mut tried = 0;
    for what in ways {
        if !possible(what, elsewhere) {
            continue;
        }
        tried += 1;
        for (thread, want) in [
            ("loop", Fate::Killed),
            ("connector", Fate::Refused),
            ("lookup", Fate::Refused),
            ("log", Fate::Killed),
        ] {
            assert_eq!(fate_elsewhere(thread, what, 443, elsewhere), want, "{thread}: {what}");
        }
    }
    assert!(tried >= 3, "TCP Fast Open is possible on every kernel that tests run on");
}

#[test]
fn the_loop_sends_to_no_address_and_empties_no_file_but_its_own() {
    for (what, want) in [
        ("send", Fate::Done),
        ("send to an address", Fate::Killed),
        ("empty the server-info file", Fate::Done),
        ("empty the log", Fate::Killed),
        ("read a table", Fate::Done),
        ("read stdin again", Fate::Killed),
    ] {
        assert!(what == "send to an address" || possible(what, 443), "{what}");
        assert_eq!(fate("loop", what, 443), want, "{what}");
    }
}

#[test]
fn the_loop_calls_with_the_arguments_that_it_uses_alone() {
    for what in [
        "change an event",
        "end both directions",
        "shared memory",
        "a file in memory",
        "memory in another's place",
        "move memory",
        "advice for core files",
        "requeue",
        "signal the process",
        "signal a thread",
        "handle a signal",
        "ask for signals",
        "copy a descriptor",
        "how much is there",
    ] {
        assert!(possible(what, 443), "{what}");
        assert_eq!(fate("loop", what, 443), Fate::Killed, "{what}");
        if !["change an event", "end both directions"].contains(&what) {
            assert_ne!(fate("log", what, 443), Fate::Done, "{what}");
        }
    }
    for what in ["one event less", "drop memory", "wake"] {
        assert_eq!(fate("loop", what, 443), Fate::Done, "{what}");
    }
    assert_eq!(fate("loop", "abort another process", 443), Fate::Killed);
}

#[test]
fn the_connector_and_a_lookup_reach_no_unix_socket_no_terminal_and_no_signal() {
    for what in [
        "unix socket",
        "type into the terminal",
        "ask for signals",
        "copy a descriptor",
        "shared memory",
        "advice for core files",
        "signal the process",
    ] {
        if possible(what, 443) {
            assert_eq!(fate("connector", what, 443), Fate::Refused, "{what}");
            assert_eq!(fate("lookup", what, 443), Fate::Refused, "{what}");
        }
    }
    assert_eq!(fate("lookup", "socket option", 443), Fate::Refused);
    for what in ["how much is there", "flags", "udp socket", "tcp socket"] {
        assert_eq!(fate("lookup", what, 443), Fate::Done, "{what}");
    }
}

#[test]
fn a_fault_in_a_confined_thread_is_told_and_ends_by_sigabrt() {
    for thread in ["loop", "log"] {
        for (what, text) in
            [("panic", ": a constant text; "), ("a panic with bytes", ": a fault; ")]
        {
            let output = run(thread, what, 443, 443);
            let told = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{thread}: {told}");
            assert!(
                told.contains("error: the program failed at tests/relay/sandbox.rs:"),
                "{told}"
            );
            assert!(told.contains(text) && !told.contains("secret"), "{told}");
        }
    }
}

#[test]
fn a_relay_without_memory_says_so_and_ends_by_sigabrt() {
    let upstream = Upstream::answering(ok("fine"));
    let mut relay = Relay::to(&upstream.url()).start();
    if emulated() {
        return;
    }
    // The stack is as deep as an exchange makes it: it could not grow any more either, and a stack
    // that cannot grow ends a process by SIGSEGV.
    assert_eq!(relay.connect().send(post("", "{}")).response().status, 200);
    let none = libc::rlimit { rlim_cur: 4096, rlim_max: 4096 };
    // SAFETY: the kernel reads one struct that outlives the call.
    let lowered =
        unsafe { libc::prlimit(relay.pid() as i32, libc::RLIMIT_AS, &none, std::ptr::null_mut()) };
    assert_eq!(lowered, 0, "the limit is lowered");
    let mut clients = Vec::new();
    let half = format!("GET /{} HTTP/1.1\r\nX-A: {}", "a".repeat(100), "a".repeat(40_000));
    // Half a head each, which the relay has to keep, until it is gone.
    while clients.len() < 900
        && let Ok(mut client) = TcpStream::connect(("127.0.0.1", relay.port))
    {
        client.set_write_timeout(Some(DEADLINE)).unwrap();
        let _ = client.write_all(half.as_bytes());
        clients.push(client);
    }
    assert_eq!(relay.exit_code(), -libc::SIGABRT);
    let told = String::from_utf8_lossy(&relay.output()).into_owned();
    assert!(told.contains("memory allocation of "), "{told}");
}

#[test]
fn the_connector_connects_to_the_upstreams_port_alone() {
    let (upstream, other) =
        (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
    let port = upstream.local_addr().unwrap().port();
    let elsewhere = other.local_addr().unwrap().port();
    let fate = |thread, to| fate_elsewhere(thread, "connect", port, to);
    assert_eq!(fate("connector", port), Fate::Done);
    if Relay::to("https://localhost/").start().output_line("protections: ").contains("TCP to port")
    {
        assert_eq!(fate("connector", elsewhere), Fate::Refused);
        assert_eq!(fate("lookup", elsewhere), Fate::Refused);
        assert_eq!(fate("lookup", port), Fate::Refused);
    } else {
        skipped("this kernel's Landlock knows no ports");
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
    // A name that has to be looked up, so that there is a thread which does.
    let relay = Relay::to("https://upstream.test/v1/responses").args(["--access-log"]).start();
    assert_eq!(
        relay.connect().send("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").response().status,
        403
    );
    if emulated() {
        let line = relay.output_line("protections: ");
        assert!(line.contains("no seccomp (this kernel has none)"), "{line}");
        return;
    }
    assert!(fs::read_dir(format!("/proc/{}/task", relay.pid())).unwrap().count() >= 2);
    assert_eq!(of_each_thread(&relay, "Seccomp:"), only("2"));
    assert_eq!(of_each_thread(&relay, "NoNewPrivs:"), only("1"));
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
        assert_eq!(of_each_thread(&relay, set), only("0000000000000000"), "{set}");
    }
    // Emptying the bounding set takes CAP_SETPCAP. Without it the set stays as it was; no new
    // privileges make it useless.
    let ours = fs::read_to_string("/proc/self/status").unwrap();
    let ours = |name| ours.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim();
    let may_empty = u64::from_str_radix(ours("CapEff:"), 16).unwrap() & 1 << 8 != 0;
    let bounding = if may_empty { "0000000000000000" } else { ours("CapBnd:") };
    assert_eq!(of_each_thread(&relay, "CapBnd:"), only(bounding));
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

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn user_gives_every_id_and_group_up_and_stays_not_dumpable() {
    needs_root();
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
        // What is not dumpable belongs to root, not to the user that runs it.
        let owner = fs::metadata(format!("/proc/{}/mem", relay.pid())).unwrap();
        assert_eq!(std::os::unix::fs::MetadataExt::uid(&owner), 0);
        assert_eq!(relay.connect().send(post("", "{}")).response().status, 200);
        relay.connect().send("GET /shutdown HTTP/1.1\r\nHost: localhost\r\n\r\n").response();
        assert_eq!(relay.exit_code(), 0);
        assert_eq!(
            fs::read(&info).unwrap(),
            b"",
            "the file is emptied by the process that opened it"
        );
    }
    fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn a_user_that_is_not_there_is_wrong_use() {
    for (user, text) in [
        ("no-such-user-here", "there is no user named"),
        ("4294967290", "the user database has no group for 4294967290"),
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
    // Neither is `number`: dup2(2) of a descriptor onto itself keeps its close-on-exec flag.
    let inherited = if number < 100 { [177, 178] } else { [77, 78] };
    let inherit = move || {
        // SAFETY: async-signal-safe calls without memory.
        let done = inherited.iter().all(|fd| unsafe { libc::dup2(number, *fd) == *fd });
        if done { Ok(()) } else { Err(std::io::Error::last_os_error()) }
    };
    let relay = Relay::bare()
        .args(["--upstream-url", &upstream.url()])
        .args(["--ca-file", &format!("/dev/fd/{}", inherited[0])])
        .command(|command| {
            // SAFETY: between fork and exec it does no more than that.
            unsafe { std::os::unix::process::CommandExt::pre_exec(command, inherit) };
        })
        .start();
    assert_eq!(relay.connect().send(post("", "{}")).response().status, 200);
    for fd in inherited {
        assert!(fs::symlink_metadata(format!("/proc/{}/fd/{fd}", relay.pid())).is_err(), "{fd}");
    }
}
