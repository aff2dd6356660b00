//! Simulates an attacker inside the process. Root makes a thread of the real relay, connector or
//! lookup issue system calls, so that its real filters, Landlock rules, descriptors and credentials
//! decide.

use std::fmt::Write as _;
use std::fs;
use std::io::Read;
use std::net::{TcpListener, UdpSocket};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::connector::{Etc, children, connector, name_servers};
use super::lifecycle::Folder;
use super::support::relay::{descriptors, emulated};
use super::support::{
    Client, DEADLINE, Relay, Upstream, needs_root, ok, pace, post, skipped, wait_for,
};

/// An argument of a call.
#[derive(Clone, Copy, Debug)]
pub enum Arg<'a> {
    Number(i64),
    /// The address of these bytes in the memory of the thread.
    Bytes(&'a [u8]),
    /// What an earlier call returned.
    Result(usize),
}

/// One system call.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    pub number: i64,
    pub arguments: &'a [Arg<'a>],
}

/// These are replaced by numbers that are known only once the relay runs: the ids of processes, and
/// descriptors.
const CONNECTOR: i64 = -1_000_001;
const LINK: i64 = -1_000_002;
const INFO: i64 = -1_000_003;
const RELAY: i64 = -1_000_004;
/// An entry to the kernel by `int 0x80`; the number of the call is the first argument.
const INT_80: i64 = -1_000_005;
/// The instruction for a system call.
const SYSCALL: u64 = 0x050f;

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Returned(i64),
    /// The process was killed by SIGSYS.
    Killed,
}

/// Has a thread issue a call.
pub fn issue(thread: u32, call: Call) -> Outcome {
    issue_all(thread, &[call])[0]
}

/// Has a thread issue the calls, one after the other, until one kills it.
pub fn issue_all(thread: u32, calls: &[Call]) -> Vec<Outcome> {
    let mut script = String::new();
    for call in calls {
        write!(script, "{}", call.number).unwrap();
        for argument in call.arguments {
            match argument {
                Arg::Number(number) => write!(script, " {number}").unwrap(),
                Arg::Result(at) => write!(script, " ${at}").unwrap(),
                Arg::Bytes(bytes) => {
                    script.push_str(" @");
                    bytes.iter().for_each(|byte| write!(script, "{byte:02x}").unwrap());
                }
            }
        }
        script.push('\n');
    }
    // Without the name of the crate, as libtest has it.
    let (_, name) = concat!(module_path!(), "::tracer").split_once("::").unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args([name, "--exact", "--ignored", "--test-threads=1", "--nocapture"])
        .envs([("TRACED", thread.to_string()), ("CALLS", script)])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}{errors}");
    let outcomes = text.lines().filter_map(|line| line.split_once("outcome ")?.1.parse().ok());
    let mut outcomes: Vec<_> = outcomes.map(Outcome::Returned).collect();
    if text.contains("killed") {
        outcomes.push(Outcome::Killed);
    }
    outcomes
}

/// The tracer is a process of its own: who traces a child of the test's would take its end away
/// from the test.
#[test]
#[ignore = "run by the tests of this file, in a process of its own"]
fn tracer() {
    let (Ok(thread), Ok(script)) = (std::env::var("TRACED"), std::env::var("CALLS")) else {
        return;
    };
    let thread: i32 = thread.parse().unwrap();
    let trace = |request, address: u64, data: u64| {
        // SAFETY: the addresses are numbers of the traced thread, or lead to memory that outlives
        // the call.
        let result = unsafe { libc::ptrace(request, thread, address, data) };
        assert_ne!(result, -1, "ptrace {request}: {}", std::io::Error::last_os_error());
        result as u64
    };
    let wait = || {
        let mut status = 0;
        // SAFETY: the kernel fills one number.
        assert_eq!(unsafe { libc::waitpid(thread, &mut status, libc::__WALL) }, thread);
        status
    };
    trace(libc::PTRACE_SEIZE, 0, 0);
    // SAFETY: plain memory for the kernel to fill.
    let mut before: libc::user_regs_struct = unsafe { std::mem::zeroed() };
    let begun = Instant::now();
    let (instruction, code) = loop {
        trace(libc::PTRACE_INTERRUPT, 0, 0);
        assert!(libc::WIFSTOPPED(wait()));
        trace(libc::PTRACE_GETREGS, 0, std::ptr::from_mut(&mut before) as u64);
        // A thread that waits is in a system call, so the instruction for one is right before.
        let instruction = before.rip - 2;
        let code = trace(libc::PTRACE_PEEKTEXT, instruction, 0);
        if code & 0xffff == SYSCALL {
            break (instruction, code);
        }
        // It is still at work for the last request.
        assert!(begun.elapsed() < DEADLINE, "the thread does not wait");
        trace(libc::PTRACE_CONT, 0, 0);
        pace(Duration::from_millis(1));
    };
    let mut results: Vec<i64> = Vec::new();
    for line in script.lines() {
        // Below the red zone.
        let mut free = (before.rsp - 256) & !15;
        let mut words = line.split(' ').map(|word| match word.as_bytes() {
            [b'$', ..] => results[word[1..].parse::<usize>().unwrap()] as u64,
            [b'@', digits @ ..] => {
                let mut bytes: Vec<u8> = digits
                    .chunks(2)
                    .map(|two| u8::from_str_radix(std::str::from_utf8(two).unwrap(), 16).unwrap())
                    .collect();
                bytes.resize(bytes.len().next_multiple_of(16), 0);
                free -= bytes.len() as u64;
                for (at, word) in bytes.chunks(8).enumerate() {
                    let word = u64::from_ne_bytes(word.try_into().unwrap());
                    trace(libc::PTRACE_POKEDATA, free + 8 * at as u64, word);
                }
                free
            }
            _ => word.parse::<i64>().unwrap() as u64,
        });
        let mut registers = before;
        registers.rip = instruction;
        registers.orig_rax = u64::MAX;
        registers.rax = words.next().unwrap();
        if registers.rax as i64 == INT_80 {
            registers.rax = words.next().unwrap();
            trace(libc::PTRACE_POKETEXT, instruction, code & !0xffff | 0x80cd);
        }
        let mut argument = || words.next().unwrap_or(0);
        registers.rdi = argument();
        registers.rsi = argument();
        registers.rdx = argument();
        registers.r10 = argument();
        registers.r8 = argument();
        registers.r9 = argument();
        trace(libc::PTRACE_SETREGS, 0, std::ptr::from_mut(&mut registers) as u64);
        trace(libc::PTRACE_SINGLESTEP, 0, 0);
        let status = wait();
        if libc::WIFSIGNALED(status) {
            assert_eq!(libc::WTERMSIG(status), libc::SIGSYS);
            println!("killed");
            return;
        }
        assert!(libc::WIFSTOPPED(status) && libc::WSTOPSIG(status) == libc::SIGTRAP, "{status:x}");
        trace(libc::PTRACE_GETREGS, 0, std::ptr::from_mut(&mut registers) as u64);
        results.push(registers.rax as i64);
        println!("outcome {}", registers.rax as i64);
    }
    trace(libc::PTRACE_SETREGS, 0, std::ptr::from_mut(&mut before) as u64);
    trace(libc::PTRACE_DETACH, 0, 0);
}

/// A relay that has served a request, with a file for what it tells of itself.
fn relay(upstream: &Upstream, folder: &Folder) -> Relay {
    let info = folder.file("info");
    let args = ["--access-log", "--server-info", info.to_str().unwrap()];
    let relay = Relay::to(&upstream.url()).args(args).start();
    assert_eq!(relay.connect().send(post("", "{}")).response().status, 200);
    relay
}

/// The number of the descriptor whose link in `/proc` begins with this, the first from `from` on.
fn descriptor(pid: u32, from: i64, link: &str) -> i64 {
    let links = descriptors(pid).into_iter();
    let found =
        links.filter(|(number, to)| *number >= from && to.to_str().unwrap().starts_with(link));
    found.map(|(number, _)| number).min().unwrap_or_else(|| panic!("no {link}"))
}

/// The socket to the connector: the only one of its kind. `ss` of iproute2 is not everywhere, so
/// the table of the kernel is read: a connected SOCK_SEQPACKET.
fn link(pid: u32) -> i64 {
    let table = fs::read_to_string(format!("/proc/{pid}/net/unix")).unwrap();
    let inode = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        (words.get(4) == Some(&"0005")).then(|| words[6].to_owned())
    };
    let inodes: Vec<String> = table.lines().filter_map(inode).collect();
    let is_link = |(_, to): &(i64, std::path::PathBuf)| {
        inodes.iter().any(|inode| to.to_str().unwrap() == format!("socket:[{inode}]"))
    };
    let mut links = descriptors(pid).into_iter();
    links.find(is_link).expect("the socket to the connector").0
}

const EPERM: Outcome = Outcome::Returned(-libc::EPERM as i64);
const EACCES: Outcome = Outcome::Returned(-libc::EACCES as i64);

fn call<'a>(number: i64, arguments: &'a [Arg<'a>]) -> Call<'a> {
    Call { number, arguments }
}

const N: fn(i64) -> Arg<'static> = Arg::Number;

/// 16 bytes: 127.0.0.1 and this port.
fn address(port: u16) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
    bytes[2..4].copy_from_slice(&port.to_be_bytes());
    bytes[4..8].copy_from_slice(&[127, 0, 0, 1]);
    bytes
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn code_in_the_loop_opens_nothing_sends_nowhere_and_reaches_no_process() {
    needs_root();
    if emulated() {
        return;
    }
    let (upstream, folder) = (Upstream::answering(ok("fine")), Folder::new("inside-loop"));
    let to = address(upstream.address().port());
    let message = [0u8; 56];
    let me = i64::from(std::process::id());
    let at = i64::from(libc::AT_FDCWD);
    let passwd = Arg::Bytes(b"/etc/passwd\0");
    let shell = Arg::Bytes(b"/bin/sh\0");
    for (what, number, arguments) in [
        ("a socket", libc::SYS_socket, &[N(2), N(1), N(0)][..]),
        ("a pair of sockets", libc::SYS_socketpair, &[N(1), N(1), N(0)]),
        ("connect", libc::SYS_connect, &[N(LINK), Arg::Bytes(&to), N(16)]),
        (
            "send to an address",
            libc::SYS_sendto,
            &[N(LINK), Arg::Bytes(b"x"), N(1), N(0), Arg::Bytes(&to), N(16)],
        ),
        ("pass a descriptor", libc::SYS_sendmsg, &[N(LINK), Arg::Bytes(&message), N(0)]),
        ("pass descriptors", libc::SYS_sendmmsg, &[N(LINK), Arg::Bytes(&message), N(1), N(0)]),
        ("accept otherwise", libc::SYS_accept, &[N(5), N(0), N(0)]),
        ("listen", libc::SYS_listen, &[N(LINK), N(1)]),
        ("ask of a socket", libc::SYS_getsockopt, &[N(LINK), N(1), N(17)]),
        ("open", libc::SYS_open, &[passwd, N(0)]),
        ("openat", libc::SYS_openat, &[N(at), passwd, N(0)]),
        ("openat2", libc::SYS_openat2, &[N(at), passwd, Arg::Bytes(&[0; 24]), N(24)]),
        (
            "a handle",
            libc::SYS_name_to_handle_at,
            &[N(at), passwd, Arg::Bytes(&[0; 24]), N(0), N(0)],
        ),
        ("stat", libc::SYS_stat, &[passwd, N(0)]),
        ("io_uring", libc::SYS_io_uring_setup, &[N(1), Arg::Bytes(&[0; 128])]),
        ("memory with a descriptor", libc::SYS_memfd_create, &[passwd, N(0)]),
        ("run a program", libc::SYS_execve, &[shell, N(0), N(0)]),
        ("run a program by descriptor", libc::SYS_execveat, &[N(0), shell, N(0), N(0), N(0)]),
        ("fork", libc::SYS_fork, &[]),
        ("clone", libc::SYS_clone, &[N(17), N(0), N(0), N(0), N(0)]),
        ("clone3", libc::SYS_clone3, &[Arg::Bytes(&[0; 64]), N(64)]),
        ("attach", libc::SYS_ptrace, &[N(16), N(CONNECTOR)]),
        (
            "read another's memory",
            libc::SYS_process_vm_readv,
            &[N(CONNECTOR), N(0), N(0), N(0), N(0), N(0)],
        ),
        ("a process as a descriptor", libc::SYS_pidfd_open, &[N(CONNECTOR), N(0)]),
        ("another's descriptor", libc::SYS_pidfd_getfd, &[N(0), N(0), N(0)]),
        ("signal", libc::SYS_kill, &[N(me), N(0)]),
        ("signal a thread", libc::SYS_tgkill, &[N(me), N(me), N(6)]),
        ("signal the connector", libc::SYS_tkill, &[N(CONNECTOR), N(6)]),
        ("queue a signal", libc::SYS_rt_sigqueueinfo, &[N(me), N(0), N(0)]),
        ("become dumpable", libc::SYS_prctl, &[N(4), N(1)]),
        ("name a tracer", libc::SYS_prctl, &[N(0x59616d61), N(-1)]),
        ("core files", libc::SYS_setrlimit, &[N(4), Arg::Bytes(&[0xff; 16])]),
        (
            "another's limits",
            libc::SYS_prlimit64,
            &[N(CONNECTOR), N(7), Arg::Bytes(&[0; 16]), N(0)],
        ),
        ("code", libc::SYS_mmap, &[N(0), N(4096), N(7), N(0x22), N(-1), N(0)]),
        (
            "code by high bits",
            libc::SYS_mmap,
            &[N(0), N(4096), N(7 | 1 << 32), N(0x22 | 1 << 32), N(-1), N(0)],
        ),
        ("a key of pages", libc::SYS_pkey_mprotect, &[N(0), N(4096), N(7), N(0)]),
        ("ioctl", libc::SYS_ioctl, &[N(2), N(0x5412), Arg::Bytes(b"x")]),
        ("the log's place", libc::SYS_lseek, &[N(2), N(0), N(0)]),
        ("the log's length", libc::SYS_ftruncate, &[N(2), N(0)]),
        ("stdin again", libc::SYS_pread64, &[N(0), Arg::Bytes(&[0; 16]), N(16), N(0)]),
        ("the file again", libc::SYS_pread64, &[N(INFO), Arg::Bytes(&[0; 16]), N(16), N(0)]),
        ("signals of a descriptor", libc::SYS_fcntl, &[N(2), N(8), N(me)]),
        ("flags of a descriptor", libc::SYS_fcntl, &[N(2), N(4), N(0o20000)]),
        ("stderr becomes another", libc::SYS_dup2, &[N(LINK), N(2)]),
        ("splice", libc::SYS_splice, &[N(0), N(0), N(2), N(0), N(1), N(0)]),
        ("a timer", libc::SYS_timer_create, &[N(1), N(0), Arg::Bytes(&[0; 16])]),
        ("an alarm", libc::SYS_alarm, &[N(1)]),
        ("processors", libc::SYS_sched_setaffinity, &[N(0), N(8), Arg::Bytes(&[1; 16])]),
        ("priority", libc::SYS_setpriority, &[N(0), N(0), N(0)]),
        ("a keyring", libc::SYS_keyctl, &[N(0), N(0)]),
        ("page faults", libc::SYS_userfaultfd, &[N(0)]),
        ("bpf", libc::SYS_bpf, &[N(0), Arg::Bytes(&[0; 64]), N(64)]),
        ("perf", libc::SYS_perf_event_open, &[Arg::Bytes(&[0; 64]), N(0), N(-1), N(-1), N(0)]),
        ("namespaces", libc::SYS_unshare, &[N(0x1000_0000)]),
        ("another's namespaces", libc::SYS_setns, &[N(0), N(0)]),
        ("a root", libc::SYS_chroot, &[Arg::Bytes(b"/tmp\0")]),
        ("mount", libc::SYS_mount, &[passwd, passwd, N(0), N(0), N(0)]),
        ("personality", libc::SYS_personality, &[N(0x40_0000)]),
        ("a filter", libc::SYS_seccomp, &[N(1), N(0), N(0)]),
        ("System V memory", libc::SYS_shmget, &[N(0), N(4096), N(0o1600)]),
        ("the x32 interface", 0x4000_0000 + libc::SYS_getpid, &[]),
        ("the 32-bit interface", INT_80, &[N(20)]),
    ] {
        let mut relay = relay(&upstream, &folder);
        let known = |argument| match argument {
            Arg::Number(CONNECTOR) => N(connector(&relay).into()),
            Arg::Number(LINK) => N(link(relay.pid())),
            Arg::Number(INFO) => {
                N(descriptor(relay.pid(), 3, folder.file("info").to_str().unwrap()))
            }
            other => other,
        };
        let arguments: Vec<Arg> = arguments.iter().copied().map(known).collect();
        let outcome = issue(relay.pid(), call(number, &arguments));
        assert_eq!(outcome, Outcome::Killed, "{what}");
        assert_eq!(relay.exit_code(), -libc::SIGSYS, "{what}");
    }
}

/// The log's thread has the same memory, and so the key.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn code_in_the_thread_of_the_log_can_do_even_less() {
    needs_root();
    if emulated() {
        return;
    }
    let (upstream, folder) = (Upstream::answering(ok("fine")), Folder::new("inside-log"));
    let to = address(upstream.address().port());
    for (what, number, arguments) in [
        ("a socket", libc::SYS_socket, &[N(2), N(1), N(0)][..]),
        ("send", libc::SYS_sendto, &[N(LINK), Arg::Bytes(&to), N(1), N(0), N(0), N(0)]),
        ("read", libc::SYS_read, &[N(0), N(0), N(0)]),
        ("accept", libc::SYS_accept4, &[N(5), N(0), N(0), N(0o2004000)]),
        ("receive", libc::SYS_recvmsg, &[N(LINK), N(0), N(0x4000_0040)]),
        ("fork", libc::SYS_clone, &[N(17), N(0), N(0), N(0), N(0)]),
        ("attach", libc::SYS_ptrace, &[N(16), N(CONNECTOR)]),
    ] {
        let mut relay = relay(&upstream, &folder);
        let known = |argument| match argument {
            Arg::Number(CONNECTOR) => N(connector(&relay).into()),
            Arg::Number(LINK) => N(link(relay.pid())),
            other => other,
        };
        let arguments: Vec<Arg> = arguments.iter().copied().map(known).collect();
        let threads = fs::read_dir(format!("/proc/{}/task", relay.pid())).unwrap();
        let threads = threads.map(|thread| thread.unwrap().file_name().into_string().unwrap());
        let other = threads.map(|id| id.parse().unwrap()).find(|id| *id != relay.pid());
        let outcome = issue(other.expect("a second thread"), call(number, &arguments));
        assert_eq!(outcome, Outcome::Killed, "{what}");
        assert_eq!(relay.exit_code(), -libc::SIGSYS, "{what}");
    }
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn a_malformed_message_of_the_loop_ends_the_connector_and_the_relay() {
    needs_root();
    if emulated() {
        return;
    }
    let (upstream, folder) = (Upstream::answering(ok("fine")), Folder::new("inside-link"));
    let mut relay = relay(&upstream, &folder);
    let (other, link) = (connector(&relay), link(relay.pid()));
    // As if the server-info file came once more, without a file.
    let message = [4u8; 9];
    let arguments = [N(link), Arg::Bytes(&message), N(9)];
    assert_eq!(issue(relay.pid(), call(libc::SYS_write, &arguments)), Outcome::Returned(9));
    assert_eq!(relay.exit_code(), 16);
    wait_for(|| !fs::exists(format!("/proc/{other}")).unwrap());
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn a_malformed_message_of_the_connector_ends_the_relay() {
    needs_root();
    if emulated() {
        return;
    }
    let (upstream, folder) = (Upstream::answering(ok("fine")), Folder::new("inside-reply"));
    for message in [&[0u8; 9][..], &[0xff; 240]] {
        let mut relay = relay(&upstream, &folder);
        let n = message.len() as i64;
        let arguments = [N(3), Arg::Bytes(message), N(n), N(0), N(0), N(0)];
        let outcome = issue(connector(&relay), call(libc::SYS_sendto, &arguments));
        assert_eq!(outcome, Outcome::Returned(n));
        assert_eq!(relay.exit_code(), 16);
    }
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn code_in_the_connector_reads_few_files_and_reaches_no_process() {
    needs_root();
    if emulated() {
        return;
    }
    let (upstream, folder) = (Upstream::answering(ok("fine")), Folder::new("inside-connector"));
    fs::write(folder.file("secret"), "secret").unwrap();
    // As any user of the relay: the same files are out of reach.
    let user = ["--user", "65533:65533"];
    let start = || {
        let relay = Relay::to(&upstream.url()).args(user).start();
        assert_eq!(relay.connect().send(post("", "{}")).response().status, 200);
        relay
    };
    let relay = start();
    let pid = connector(&relay);
    let at = N(libc::AT_FDCWD.into());
    let text = |text: String| [text.into_bytes(), vec![0]].concat();
    let open = |path: String, flags: i32| {
        let path = text(path);
        issue(pid, call(libc::SYS_openat, &[at, Arg::Bytes(&path), N(flags.into()), N(0)]))
    };
    if relay.output_line("protections: ").contains("; Landlock ") {
        for path in [
            "/proc/self/status".into(),
            format!("/proc/{}/mem", relay.pid()),
            format!("/proc/{}/environ", relay.pid()),
            format!("/proc/{}/maps", std::process::id()),
            folder.file("secret").to_str().unwrap().into(),
            "/dev/tty".into(),
            "/usr/lib/os-release".into(),
        ] {
            assert_eq!(open(path.clone(), libc::O_RDONLY), EACCES, "{path}");
        }
    } else {
        skipped("this kernel has no Landlock");
    }
    let relay_pid = N(relay.pid().into());
    let null = Arg::Bytes(&[0; 16]);
    for (what, number, arguments) in [
        ("a Unix socket", libc::SYS_socket, &[N(1), N(1), N(0)][..]),
        ("a raw socket", libc::SYS_socket, &[N(2), N(3), N(255)]),
        ("MPTCP", libc::SYS_socket, &[N(2), N(1), N(262)]),
        ("SCTP", libc::SYS_socket, &[N(2), N(5), N(132)]),
        ("sockets of the kernel", libc::SYS_socket, &[N(16), N(3), N(4)]),
        ("VSOCK", libc::SYS_socket, &[N(40), N(1), N(0)]),
        ("ALG", libc::SYS_socket, &[N(38), N(5), N(0)]),
        ("signals of a descriptor", libc::SYS_fcntl, &[N(3), N(8), relay_pid]),
        ("a copy of a descriptor", libc::SYS_fcntl, &[N(3), N(0), N(0)]),
        ("typing", libc::SYS_ioctl, &[N(0), N(0x5412), null]),
        ("signal a thread", libc::SYS_tgkill, &[relay_pid, relay_pid, N(9)]),
    ] {
        let outcome = issue(pid, call(number, arguments));
        assert_eq!(outcome, EPERM, "{what}");
    }
    // Neither by connect(2) nor past it to another port, and none to be connected to.
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = address(other.local_addr().unwrap().port());
    let socket = [N(libc::AF_INET.into()), N(libc::SOCK_STREAM.into()), N(0)];
    let socket = call(libc::SYS_socket, &socket);
    let end = [Arg::Result(0), Arg::Bytes(&to), N(16)];
    let fast_open = N(libc::MSG_FASTOPEN.into());
    let fast = [Arg::Result(0), Arg::Bytes(b"x"), N(1), fast_open, Arg::Bytes(&to), N(16)];
    for (number, arguments, want) in [
        (libc::SYS_connect, &end[..], EACCES),
        (libc::SYS_bind, &end, EACCES),
        (libc::SYS_sendto, &fast, EPERM),
    ] {
        if number == libc::SYS_sendto || knows_ports(&relay) {
            assert_eq!(issue_all(pid, &[socket, call(number, arguments)])[1], want, "{number}");
        }
    }
    drop(relay);
    let read_write = N(libc::O_RDWR.into());
    let hosts = Arg::Bytes(b"/etc/hosts\0");
    for (what, number, arguments) in [
        ("write a file", libc::SYS_openat, &[at, hosts, read_write][..]),
        ("make a file", libc::SYS_openat, &[at, Arg::Bytes(b"/tmp\0"), N(0o20200000 | 2)]),
        ("openat2", libc::SYS_openat2, &[at, hosts, Arg::Bytes(&[0; 24]), N(24)]),
        ("limits of the relay", libc::SYS_prlimit64, &[N(RELAY), N(7), null, N(0)]),
        ("limits of its own", libc::SYS_prlimit64, &[N(0), N(7), null, N(0)]),
        ("what the relay's limits are", libc::SYS_prlimit64, &[N(RELAY), N(7), N(0), null]),
        ("kill", libc::SYS_kill, &[N(RELAY), N(9)]),
        ("attach", libc::SYS_ptrace, &[N(16), N(RELAY)]),
        ("the relay as a descriptor", libc::SYS_pidfd_open, &[N(RELAY), N(0)]),
        ("read the relay", libc::SYS_process_vm_readv, &[N(RELAY), N(0), N(0), N(0), N(0), N(0)]),
        ("compare", libc::SYS_kcmp, &[N(RELAY), N(RELAY), N(0), N(0), N(0)]),
        ("become dumpable", libc::SYS_prctl, &[N(4), N(1)]),
        ("a listener for a filter", libc::SYS_seccomp, &[N(1), N(8), null]),
        ("run a program", libc::SYS_execve, &[hosts, N(0), N(0)]),
        ("a thread", libc::SYS_clone, &[N(0x10f00), N(0), N(0), N(0), N(0)]),
        ("listen", libc::SYS_listen, &[N(3), N(1)]),
        ("code", libc::SYS_mmap, &[N(0), N(4096), N(7), N(0x22), N(-1), N(0)]),
        ("namespaces", libc::SYS_unshare, &[N(0x1000_0000)]),
        ("a root", libc::SYS_chroot, &[hosts]),
        ("io_uring", libc::SYS_io_uring_setup, &[N(1), null]),
        ("a keyring", libc::SYS_keyctl, &[N(0), N(0)]),
        ("the x32 interface", 0x4000_0000 + libc::SYS_getpid, &[]),
        ("the 32-bit interface", INT_80, &[N(20)]),
    ] {
        let mut relay = start();
        let known = |argument| match argument {
            Arg::Number(RELAY) => N(relay.pid().into()),
            other => other,
        };
        let arguments: Vec<Arg> = arguments.iter().copied().map(known).collect();
        let outcome = issue(connector(&relay), call(number, &arguments));
        assert_eq!(outcome, Outcome::Killed, "{what}");
        assert_eq!(relay.exit_code(), 16, "{what}");
    }
}

/// Landlock has a say in TCP here.
fn knows_ports(relay: &Relay) -> bool {
    relay.output_line("protections: ").contains("TCP to port")
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn code_in_a_lookup_reads_the_resolvers_files_alone_and_ends_in_a_minute() {
    needs_root();
    if emulated() {
        return;
    }
    let etc = Etc::new("inside-lookup");
    // A name server that never answers.
    let server = name_servers(1)[0];
    let silent = UdpSocket::bind((server, 53)).unwrap();
    etc.put("resolv.conf", &format!("nameserver {server}\n"));
    let relay = etc.start(Relay::to("https://upstream.test/"));
    let mut waiting = relay.connect();
    waiting.send(post("", "{}"));
    assert!(silent.recv(&mut [0; 512]).unwrap() > 0);
    let lookup = children(connector(&relay))[0];
    let timers = fs::read_to_string(format!("/proc/{lookup}/timers")).unwrap();
    assert!(timers.contains("signal: 9/"), "SIGKILL, which cannot be blocked: {timers}");
    let at = N(libc::AT_FDCWD.into());
    let null = Arg::Bytes(&[0; 64]);
    let timer = [N(0), N(0), null, N(0)];
    let every = Arg::Bytes(&[0xff; 8]);
    let socket = [N(libc::AF_INET.into()), N(libc::SOCK_STREAM.into()), N(0)];
    for (what, number, arguments, want) in [
        ("block all signals", libc::SYS_rt_sigprocmask, &[N(0), every, N(0), N(8)][..], Some(0)),
        ("put its end off", libc::SYS_timer_settime, &timer, Some(-libc::EPERM)),
        ("another timer", libc::SYS_timer_create, &[N(1), N(0), null], Some(-libc::EPERM)),
        ("outlive the connector", libc::SYS_prctl, &[N(1), N(0)], Some(-libc::EPERM)),
        ("fork", libc::SYS_fork, &[], Some(-libc::EPERM)),
        ("a Unix socket", libc::SYS_socket, &[N(1), N(1), N(0)], Some(-libc::EPERM)),
        ("a pipe", libc::SYS_pipe2, &[null, N(0)], Some(-libc::EPERM)),
        ("limits", libc::SYS_prlimit64, &[N(0), N(7), N(0), null], Some(-libc::EPERM)),
        ("hosts", libc::SYS_openat, &[at, Arg::Bytes(b"/etc/hosts\0"), N(0)], None),
        ("users", libc::SYS_openat, &[at, Arg::Bytes(b"/etc/passwd\0"), N(0)], Some(-libc::EACCES)),
        ("/run", libc::SYS_openat, &[at, Arg::Bytes(b"/run\0"), N(0)], Some(-libc::EACCES)),
        ("a TCP socket", libc::SYS_socket, &socket, None),
        ("a UDP socket", libc::SYS_socket, &[N(2), N(2), N(0)], None),
    ] {
        match (issue(lookup, call(number, arguments)), want) {
            (Outcome::Returned(got), Some(want)) => assert_eq!(got, want.into(), "{what}"),
            (Outcome::Returned(got), None) => assert!(got >= 0, "{what}: {got}"),
            (Outcome::Killed, _) => panic!("{what} kills"),
        }
    }
    if knows_ports(&relay) {
        // Not even to the upstream.
        let to = address(443);
        let end = [Arg::Result(0), Arg::Bytes(&to), N(16)];
        let calls = [call(libc::SYS_socket, &socket), call(libc::SYS_connect, &end)];
        assert_eq!(issue_all(lookup, &calls)[1], EACCES);
    }
    let kill = [N(relay.pid().into()), N(0)];
    assert_eq!(issue(lookup, call(libc::SYS_kill, &kill)), Outcome::Killed);
    // The relay goes on without it.
    assert_eq!(waiting.response().code(), "upstream_dns_failed");
}

/// The relay's descriptor of the connection to this client.
fn connection(relay: &Relay, client: &Client) -> i64 {
    let end = |port: u16| format!("0100007F:{port:04X}");
    let remote = client.stream.local_addr().unwrap().port();
    let (local, remote) = (end(relay.port), end(remote));
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    let inode = table.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        (words[1] == local && words[2] == remote).then(|| words[9].to_owned())
    });
    let inode = inode.expect("a connection from 127.0.0.1 to 127.0.0.1");
    descriptor(relay.pid(), 3, &format!("socket:[{inode}]"))
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn what_remains_to_code_in_the_loop() {
    needs_root();
    if emulated() {
        return;
    }
    let (upstream, folder) = (Upstream::answering(ok("fine")), Folder::new("inside-remains"));
    let mut relay = relay(&upstream, &folder);
    let pid = relay.pid();
    // The key goes to a client that is connected.
    let mut client = relay.connect();
    assert_eq!(client.send(post("", "{}")).response().status, 200);
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let number = |digits| i64::from_str_radix(digits, 16).unwrap();
    let secret = maps.lines().filter(|line| line.contains("/secretmem")).flat_map(|line| {
        let (start, rest) = line.split_once('-').unwrap();
        (number(start)..number(rest.split(' ').next().unwrap())).step_by(4096)
    });
    let secret: Vec<i64> = secret.collect();
    let fd = connection(&relay, &client);
    let is_sent = |start: &i64| {
        let arguments = [N(fd), N(*start), N(4096)];
        assert_eq!(issue(pid, call(libc::SYS_write, &arguments)), Outcome::Returned(4096));
        let mut got = vec![0; 4096];
        client.stream.read_exact(&mut got).unwrap();
        let key = relay.key.as_bytes();
        got.windows(key.len()).any(|bytes| bytes == key)
    };
    if secret.is_empty() {
        skipped("there is no memfd_secret here, so the key's pages are not found");
    } else {
        let sent = secret.iter().map(is_sent).collect::<Vec<_>>();
        assert!(sent.contains(&true), "the key as it lies there");
    }
    // A line in the log that says anything, and another port in the server-info file.
    let line = b"a line of somebody else's\n";
    let arguments = [N(2), Arg::Bytes(line), N(line.len() as i64)];
    assert_eq!(issue(pid, call(libc::SYS_write, &arguments)), Outcome::Returned(line.len() as i64));
    relay.line_with("a line of somebody else's");
    let info = descriptor(pid, 3, folder.file("info").to_str().unwrap());
    let arguments = [N(info), Arg::Bytes(b"x"), N(1)];
    assert_eq!(issue(pid, call(libc::SYS_write, &arguments)), Outcome::Returned(1));
    assert!(fs::read_to_string(folder.file("info")).unwrap().contains('x'));
    // A connection to the upstream, and nowhere else.
    let before = upstream.connections();
    let dial = [1u8; 9];
    let arguments = [N(link(pid)), Arg::Bytes(&dial), N(9)];
    assert_eq!(issue(pid, call(libc::SYS_write, &arguments)), Outcome::Returned(9));
    wait_for(|| upstream.connections() > before);
    // It did not ask the loop's own count, so the reply is one too many.
    assert_eq!(relay.exit_code(), 16);
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn what_remains_to_code_in_the_connector() {
    needs_root();
    if emulated() {
        return;
    }
    let (upstream, folder) = (Upstream::answering(ok("fine")), Folder::new("inside-connector-2"));
    let mut relay = relay(&upstream, &folder);
    let pid = connector(&relay);
    let issue = |number, arguments: &[Arg]| match issue(pid, call(number, arguments)) {
        Outcome::Returned(got) => got,
        Outcome::Killed => panic!("{number} kills"),
    };
    // Files of the two folders that its user may read.
    let path = Arg::Bytes(b"/etc/passwd\0");
    assert!(issue(libc::SYS_openat, &[N(libc::AT_FDCWD.into()), path, N(0), N(0)]) > 2);
    // Datagrams to anywhere.
    let other = UdpSocket::bind("127.0.0.1:0").unwrap();
    let to = address(other.local_addr().unwrap().port());
    let socket = issue(libc::SYS_socket, &[N(2), N(2), N(0)]);
    let arguments = [N(socket), Arg::Bytes(b"x"), N(1), N(0), Arg::Bytes(&to), N(16)];
    assert_eq!(issue(libc::SYS_sendto, &arguments), 1);
    assert_eq!(other.recv(&mut [0; 2]).unwrap(), 1);
    // The server-info file.
    let info = descriptor(pid, 3, folder.file("info").to_str().unwrap());
    assert_eq!(issue(libc::SYS_ftruncate, &[N(info), N(0)]), 0);
    assert_eq!(fs::read(folder.file("info")).unwrap(), b"");
    // The end of the relay.
    assert_eq!(issue(libc::SYS_sendto, &[N(3), Arg::Bytes(b"x"), N(1), N(0), N(0), N(0)]), 1);
    assert_eq!(relay.exit_code(), 16);
}
