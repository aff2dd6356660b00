//! Compares the protections that the start line names with the state that the kernel reports. Tests
//! starts on machines that refuse some protections.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use codex_responses_api_proxy::process::sys;

use super::support::relay::{Starter, binary, copy_program, emulated};
use super::support::{Relay, Upstream, needs_root, ok, post, skipped};

const KEY: &[u8] = b"sk-a-key-that-goes-nowhere\n";

/// Runs it in a mount namespace of its own, after a shell has changed what is mounted.
fn mounted(script: &str) -> Starter {
    let script = format!("{script} && exec \"$@\"");
    let starter = Relay::under(&["unshare", "-m", "sh", "-c", &script, "sh"]);
    starter.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
}

/// A file for this test that goes with it.
struct Scrap(PathBuf);

impl Scrap {
    fn new(name: &str, content: &[u8]) -> Scrap {
        let path = std::env::temp_dir().join(format!("{name}-{}", std::process::id()));
        fs::write(&path, content).unwrap();
        Scrap(path)
    }

    /// A copy of the program. Another process writes it: a descriptor of this one might be
    /// inherited by a child that another test starts at the same time, and then nothing could run
    /// the copy.
    fn program(name: &str) -> Scrap {
        let path = std::env::temp_dir().join(format!("{name}-{}", std::process::id()));
        copy_program(binary(), &path);
        Scrap(path)
    }

    fn text(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for Scrap {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[track_caller]
fn has(line: &str, part: &str) {
    assert!(line.contains(part), "no \"{part}\" in: {line}");
}

#[track_caller]
fn lacks(line: &str, part: &str) {
    assert!(!line.contains(part), "\"{part}\" in: {line}");
}

fn protections(starter: Starter) -> String {
    starter.start().output_line("protections: ")
}

/// It does not start, and says why.
#[track_caller]
fn ends(starter: Starter, code: i32, texts: &[&str]) {
    let (got, out, err) = starter.run(KEY);
    assert_eq!(got, code, "{out}{err}");
    has(&err, "error: ");
    for text in texts {
        has(&err, text);
    }
    assert!(err.lines().count() == 1 && out.is_empty(), "{out}{err}");
}

#[test]
fn a_missing_layer_is_named_with_its_cause() {
    if emulated() {
        return;
    }
    let (seccomp, landlock) = (libc::SYS_seccomp, libc::SYS_landlock_create_ruleset);
    let refused = "refused by the container's profile";
    for (call, error, want) in [
        (seccomp, libc::EPERM, format!("no seccomp ({refused})")),
        // The kernel runs the filter that says so: it has seccomp.
        (seccomp, libc::ENOSYS, format!("no seccomp ({refused})")),
        (seccomp, libc::EINVAL, "no seccomp (this kernel has none)".into()),
        (landlock, libc::EPERM, format!("no Landlock ({refused})")),
        (landlock, libc::EOPNOTSUPP, "no Landlock (switched off when this kernel was".into()),
    ] {
        let starter = || Relay::bare().refusing(call, None, error);
        has(&protections(starter()), &want);
        let reason = want.trim_start_matches("no ");
        ends(starter().args(["--require-hardening"]), 14, &["--require-hardening", reason]);
    }
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn a_landlock_that_is_not_known_is_told_from_one_that_is_refused_by_the_list_of_modules() {
    needs_root();
    if emulated() {
        return;
    }
    let lsm = "mount -t tmpfs none /sys && mkdir -p /sys/kernel/security";
    for (script, want) in [
        ("true".into(), "missing from this kernel, or refused by the container's profile"),
        (
            format!("{lsm} && echo capability,landlock,yama > /sys/kernel/security/lsm"),
            "refused by the container's profile",
        ),
        (format!("{lsm} && echo capability > /sys/kernel/security/lsm"), "this kernel has none"),
    ] {
        if script == "true" && fs::exists("/sys/kernel/security/lsm").unwrap() {
            continue;
        }
        let call = libc::SYS_landlock_create_ruleset;
        let line = protections(mounted(&script).refusing(call, None, libc::ENOSYS));
        has(&line, &format!("no Landlock ({want})"));
    }
}

#[test]
fn hardening_that_is_required_is_in_force_or_the_start_ends() {
    if emulated() {
        return;
    }
    let upstream = Upstream::answering(ok("fine"));
    let required = || Relay::to(&upstream.url()).args(["--require-hardening"]);
    let line = protections(Relay::to(&upstream.url()));
    if line.contains("attach") {
        skipped("this user can attach to the program at its start: that is refused first");
        return ends(required(), 14, &["attach"]);
    }
    let is_complete = ["memfd_secret pages", "; seccomp", "; Landlock "];
    if is_complete.iter().all(|part| line.contains(part)) {
        let relay = required().args(["--access-log"]).start();
        assert_eq!(relay.connect().send(post("", "{}")).response().status, 200);
    }
    let refused = required().refusing(libc::SYS_memfd_secret, None, libc::ENOSYS);
    ends(refused, 14, &["--require-hardening", "secret memory (no memfd_secret here)"]);
    ends(required().args(["--no-sandbox"]), 14, &["seccomp and Landlock (--no-sandbox)"]);
    // The flag of its own comes first where both are given, and the stronger one decides.
    let both = required().args(["--require-secret-memory"]);
    ends(both.refusing(libc::SYS_memfd_secret, None, libc::ENOSYS), 14, &["memfd_secret"]);
}

#[test]
fn a_layer_that_the_kernel_has_and_does_not_put_in_force_ends_the_start() {
    if emulated() {
        return;
    }
    const SET_MODE_FILTER: Option<i32> = Some(1);
    let starter = || Relay::bare().refusing(libc::SYS_seccomp, SET_MODE_FILTER, libc::EPERM);
    ends(starter(), 12, &["cannot put seccomp filters in force", "--no-sandbox"]);
    ends(starter().args(["--no-sandbox", "--require-hardening"]), 14, &["seccomp"]);
}

#[test]
fn check_asks_for_the_same() {
    if emulated() {
        return;
    }
    let refused = || Relay::bare().args(["--check"]).refusing(libc::SYS_seccomp, None, libc::EPERM);
    ends_check(refused().args(["--require-hardening"]), "seccomp (refused by the container's");
    let (_, out, _) = refused().run(b"");
    has(&out, "protections key in ");
    has(&out, "NOT in force: every local user may use it");
}

#[track_caller]
fn ends_check(starter: Starter, text: &str) {
    let (code, _, err) = starter.run(b"");
    assert_eq!(code, 14, "{err}");
    has(&err, text);
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn what_cannot_be_read_back_is_not_claimed() {
    needs_root();
    if emulated() {
        return;
    }
    let without = || mounted("mount -t tmpfs none /proc");
    let line = protections(without());
    has(&line, "; what is in force was not read back (no /proc)");
    has(&line, "; connector: what is in force was not read back (no /proc)");
    let texts = ["a readable /proc", "a /proc that the connector can read"];
    ends(without().args(["--require-hardening"]), 14, &texts);
    lacks(&protections(Relay::bare()), "read back");
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn what_the_connector_lacks_is_said_too() {
    needs_root();
    if emulated() {
        return;
    }
    let line = protections(Relay::bare());
    has(&line, "; connector: uid 65520, with the same protections");
    lacks(&line, "; connector: it");
    // A container may have taken the right to change the user.
    let line = protections(Relay::bare().refusing(libc::SYS_setresuid, None, libc::EPERM));
    has(&line, "; connector: uid 0, with the same protections");
    has(&line, "; connector: it runs as uid 0");
}

/// The program as a file of its own with this mode, started by user 65534.
fn copy_with_mode(mode: u32) -> (Scrap, Starter) {
    let file = Scrap::program(&format!("relay-{mode:o}"));
    fs::set_permissions(&file.0, fs::Permissions::from_mode(mode)).unwrap();
    let run = "shift; exec \"$PROGRAM\" \"$@\"";
    let starter = Relay::under(&["/bin/sh", "-c", run, "sh"]).env("PROGRAM", file.text()).command(
        |command| {
            command.uid(65_534).gid(65_534);
        },
    );
    (file, starter)
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn a_program_that_its_user_may_read_is_said_to_be_open_at_its_start() {
    needs_root();
    if emulated() {
        return;
    }
    let yama = fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").unwrap_or_default();
    if !["", "0"].contains(&yama.trim()) {
        skipped("Yama keeps every process closed here");
        return;
    }
    let open = "processes of uid 65534 could attach until it was non-dumpable";
    let (_file, starter) = copy_with_mode(0o755);
    has(&protections(starter), open);
    let (_file, starter) = copy_with_mode(0o755);
    ends(starter.args(["--require-hardening"]), 14, &["uid 65534", "mode 711"]);
    let (_file, starter) = copy_with_mode(0o711);
    lacks(&protections(starter), open);
    let (_file, starter) = copy_with_mode(0o711);
    let required = starter.args(["--require-hardening"]);
    if protections(Relay::bare()).contains("memfd_secret pages") {
        protections(required);
    }
    // Root's own processes can do everything in any case.
    lacks(&protections(Relay::bare()), "could attach");
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn yama_counts() {
    needs_root();
    if emulated() {
        return;
    }
    // A file takes the place of the sysctl, where this kernel has none.
    let files = "mount -t tmpfs none /proc/sys/kernel && mkdir /proc/sys/kernel/yama && \
                 echo 1 > /proc/sys/kernel/yama/ptrace_scope";
    let file = Scrap::program("relay-yama");
    fs::set_permissions(&file.0, fs::Permissions::from_mode(0o755)).unwrap();
    let run =
        format!("{files} && shift && exec setpriv --reuid 65534 --clear-groups {}", file.text());
    let line = protections(mounted(&format!("{run} \"$@\"")));
    lacks(&line, "could attach");
}

#[test]
fn a_tracer_is_reported_and_refused_where_hardening_is_required() {
    if emulated() {
        return;
    }
    if Command::new("strace").arg("-V").stdout(Stdio::null()).status().is_err() {
        skipped("strace is not installed");
        return;
    }
    let traced = || Relay::under(&["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=none"]);
    let relay = traced().start();
    has(&relay.output_line("protections: "), "traces it");
    drop(relay);
    ends(traced().args(["--require-hardening"]), 14, &["a start without a tracer"]);
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn a_change_of_user_under_suid_dumpable_ends_the_start() {
    needs_root();
    if emulated() {
        return;
    }
    for (value, code) in [("1", 15), ("0", 0), ("2", 0)] {
        let file = Scrap::new(&format!("suid-{value}"), format!("{value}\n").as_bytes());
        let script = format!("mount --bind {} /proc/sys/fs/suid_dumpable", file.text());
        let starter = || mounted(&script);
        if code == 0 {
            has(&protections(starter().args(["--user", "65534:65534"])), "user 65534:65534");
        } else {
            let texts = ["fs.suid_dumpable=1", "sysctl -w fs.suid_dumpable=0"];
            ends(starter().args(["--user", "65534:65534"]), code, &texts);
            // The relay does not change its user here.
            protections(starter());
        }
    }
}

/// Between setresuid(2) and the next PR_SET_DUMPABLE the process has capabilities that a process of
/// its new user does not have.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn capabilities_go_last_when_the_user_changes() {
    needs_root();
    if emulated() {
        return;
    }
    let log = Scrap::new("trace", b"");
    let tool = ["strace", "-f", "-qq", "-o", log.text(), "-e", "trace=prctl,setresuid,capset"];
    if Command::new("strace").arg("-V").stdout(Stdio::null()).status().is_err() {
        skipped("strace is not installed");
        return;
    }
    protections(Relay::under(&tool).args(["--user", "65534:65534"]));
    let calls = fs::read_to_string(&log.0).unwrap();
    // The relay and its connector change at the same time: the calls of each are looked at alone.
    let mut processes = std::collections::BTreeMap::<&str, String>::new();
    for line in calls.lines() {
        let pid = line.split(' ').next().unwrap();
        *processes.entry(pid).or_default() += &format!("{line}\n");
    }
    let changing =
        processes.values().filter(|calls| calls.contains("setresuid(65534, 65534, 65534"));
    let mut count = 0;
    for calls in changing {
        count += 1;
        let at = |from: usize, text: &str| {
            from + calls[from..].find(text).unwrap_or_else(|| panic!("{text} in {calls}"))
        };
        let kept = at(0, "PR_SET_KEEPCAPS, 1");
        let changed = at(kept, "setresuid(65534, 65534, 65534");
        let closed = at(changed, "PR_SET_DUMPABLE, SUID_DUMP_DISABLE");
        assert!(!calls[kept..closed].contains("capset("), "{calls}");
        at(closed, "capset(");
    }
    assert_eq!(count, 2, "{calls}");
}

/// A line of a file that tells of mappings, with its address range and permissions.
struct Mapping {
    range: std::ops::Range<u64>,
    permissions: String,
    path: String,
    flags: String,
}

fn mappings(pid: u32) -> Option<Vec<Mapping>> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps")).ok()?;
    let mut found: Vec<Mapping> = Vec::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let Some(flags) = line.strip_prefix("VmFlags:") {
            found.last_mut()?.flags = format!("{flags} ");
        } else if words.len() >= 5 && words[0].contains('-') {
            let (start, end) = words[0].split_once('-')?;
            let address = |digits| u64::from_str_radix(digits, 16).unwrap();
            found.push(Mapping {
                range: address(start)..address(end),
                permissions: words[1].to_owned(),
                path: words.get(5).copied().unwrap_or_default().to_owned(),
                flags: String::new(),
            });
        }
    }
    Some(found)
}

/// Address and length of PT_GNU_RELRO in a 64-bit ELF file of this machine's byte order.
fn relro(file: &[u8]) -> (u64, u64) {
    let word = |at: usize| u64::from_ne_bytes(file[at..at + 8].try_into().unwrap());
    let (headers, count) = (word(32) as usize, u16::from_ne_bytes([file[56], file[57]]) as usize);
    let kind = |at: usize| u32::from_ne_bytes(file[at..at + 4].try_into().unwrap());
    let at = (0..count).map(|n| headers + n * 56).find(|at| kind(*at) == libc::PT_GNU_RELRO);
    let at = at.expect("the program asks for RELRO");
    (word(at + 16), word(at + 40))
}

#[test]
fn the_program_is_read_only_and_sealed_and_the_pages_of_the_key_are_not() {
    let upstream = Upstream::answering(ok("fine"));
    let relay = Relay::to(&upstream.url()).start();
    assert_eq!(relay.connect().send(post("", "{}")).response().status, 200);
    if emulated() {
        return;
    }
    let line = relay.output_line("protections: ");
    has(&line, "; RELRO");
    lacks(&line, "NOT in force: connector");
    let lock = ["protection key (this machine has none)", "key's pages closed except in use"];
    assert!(lock.iter().any(|lock| line.contains(lock)), "nothing said of protection keys: {line}");
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", relay.pid())).unwrap();
    let connector = children.trim().parse().expect("one child: the connector");
    for pid in [relay.pid(), connector] {
        let Some(mappings) = mappings(pid) else {
            skipped("reading the mappings of another process needs root");
            return;
        };
        let is_sealed = line.contains("program sealed (mseal)");
        assert!(
            is_sealed || sys::kernel_version().unwrap() < (6, 10),
            "this kernel has mseal: {line}"
        );
        let secret: Vec<_> = mappings.iter().filter(|m| m.path.starts_with("/secretmem")).collect();
        if pid == relay.pid() {
            assert!(secret.iter().all(|m| !m.flags.contains(" sl ")), "the key cannot be wiped");
        } else {
            assert!(secret.is_empty(), "the connector maps the key");
        }
        is_read_only(&mappings, is_sealed);
    }
}

fn is_read_only(mappings: &[Mapping], is_sealed: bool) {
    let program = fs::canonicalize(binary()).unwrap();
    let own = |mapping: &&Mapping| mapping.path == program.to_str().unwrap();
    let base = mappings.iter().find(own).expect("the program is mapped").range.start;
    let (start, len) = relro(&fs::read(&program).unwrap());
    let (start, end) = ((base + start) & !4095, (base + start + len) & !4095);
    assert!(end > start);
    let inside: Vec<&Mapping> =
        mappings.iter().filter(|m| m.range.start < end && m.range.end > start).collect();
    assert!(inside.iter().all(|m| m.permissions.starts_with("r--")), "RELRO is writable");
    assert!(mappings.iter().all(|m| !m.permissions.contains("wx")), "memory to write code into");
    let read_only = mappings.iter().filter(own).filter(|m| !m.permissions.contains('w'));
    for mapping in read_only.chain(inside).filter(|_| is_sealed) {
        assert!(mapping.flags.contains(" sl "), "{:x?} is not sealed", mapping.range);
    }
}

#[test]
#[ignore = "run by the test below, in a process of its own"]
fn executable_memory() {
    // SAFETY: a mapping of its own, in a process of its own.
    let map = || unsafe {
        let both = libc::PROT_WRITE | libc::PROT_EXEC;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        libc::mmap(std::ptr::null_mut(), 4096, both, flags, -1, 0) != libc::MAP_FAILED
    };
    assert!(map(), "it can be had before");
    sys::deny_executable_memory().unwrap();
    assert!(!map(), "it cannot be had any more");
}

#[test]
fn executable_memory_is_denied_where_the_kernel_can() {
    if emulated() {
        return;
    }
    let line = protections(Relay::bare());
    let knows = sys::kernel_version().unwrap() >= (6, 3);
    assert_eq!(line.contains("no new executable memory (MDWE)"), knows, "{line}");
    if knows {
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["relay::hardening::executable_memory", "--exact", "--ignored"])
            .output()
            .unwrap()
            .status;
        assert!(status.success());
    }
    // A debugger that translates the program can be used with this flag.
    lacks(&protections(Relay::bare().args(["--no-sandbox"])), "MDWE");
    // An older kernel: it starts without a complaint.
    let older = Relay::bare().refusing(libc::SYS_prctl, Some(65), libc::EINVAL);
    lacks(&protections(older), "MDWE");
    let older = Relay::bare().refusing(462, None, libc::ENOSYS);
    let line = protections(older);
    lacks(&line, "mseal");
    has(&line, "; RELRO");
}

/// A profile may have a call return 0 and do nothing.
#[test]
fn a_protection_that_only_seems_to_be_in_force_is_not_claimed() {
    if emulated() {
        return;
    }
    lacks(&protections(Relay::bare().refusing(libc::SYS_prctl, Some(65), 0)), "MDWE");
    lacks(&protections(Relay::bare().refusing(462, None, 0)), "mseal");
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn memory_is_not_executable_whatever_the_personality() {
    needs_root();
    if emulated() {
        return;
    }
    let upstream = Upstream::answering(ok("fine"));
    let relay = Relay::under(&["setarch", "-X"]).upstream(&upstream.url()).start();
    assert_eq!(relay.connect().send(post("", "{}")).response().status, 200);
    // The kernel gives up this personality when it runs a program of 64 bits. What it mapped before
    // that is not the program's to change.
    let made = |m: &&Mapping| m.path.is_empty() || m.path == "/secretmem";
    let mappings = mappings(relay.pid()).expect("root reads it");
    let executable = mappings.iter().filter(made).filter(|m| m.permissions.contains("wx")).count();
    assert_eq!(executable, 0, "mappings that can be written and run");
}

/// The type of the names of limits, on which the C libraries do not agree.
#[cfg(target_env = "gnu")]
type Resource = libc::__rlimit_resource_t;
#[cfg(not(target_env = "gnu"))]
type Resource = libc::c_int;

fn limited(starter: Starter, what: Resource, limit: u64) -> Starter {
    let lower = move || {
        let limit = libc::rlimit { rlim_cur: limit, rlim_max: limit };
        // SAFETY: the kernel reads one struct that outlives the call.
        match unsafe { libc::setrlimit(what, &limit) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    };
    starter.command(|command| {
        // SAFETY: between fork and exec it does no more than that.
        unsafe { command.pre_exec(lower) };
    })
}

#[test]
fn a_start_without_room_for_files_or_stack_says_so() {
    if emulated() {
        return;
    }
    const SMALLEST_FILE_LIMIT: u64 = 1024 * 1024;
    for limit in [0, SMALLEST_FILE_LIMIT - 1] {
        let starter = limited(Relay::bare(), libc::RLIMIT_FSIZE, limit);
        ends(starter, 1, &["size of files", "ulimit -f"]);
    }
    limited(Relay::bare(), libc::RLIMIT_FSIZE, SMALLEST_FILE_LIMIT).start();
    let run = |kibibytes: u64| {
        let starter = Relay::bare().args(["--version"]);
        let (code, _, err) = limited(starter, libc::RLIMIT_STACK, kibibytes * 1024).run(b"");
        (code, err.contains("limit on the stack is too low"))
    };
    for kibibytes in [16, 64, 128] {
        // A process that may raise the limit does.
        let end = run(kibibytes);
        assert!([(0, false), (1, true)].contains(&end), "{end:?} with {kibibytes} KiB");
    }
    // The dynamic loader has no stack to say so.
    let end = run(8);
    assert!([(-libc::SIGSEGV, false), (1, true)].contains(&end), "{end:?} with 8 KiB");
}

#[test]
fn a_start_without_random_numbers_says_so() {
    for error in [libc::ENOSYS, libc::EPERM] {
        let refused = Relay::bare().refusing(libc::SYS_getrandom, None, error);
        ends(refused, 1, &["no random numbers", "getrandom(2)"]);
    }
}

/// Otherwise every request would end with "upstream_dns_failed".
#[test]
fn a_start_without_what_a_lookup_takes_says_so() {
    if emulated() {
        return;
    }
    let name = || Relay::to("https://upstream.test/");
    for (call, text) in [(libc::SYS_timer_create, "timer_create(2)"), (libc::SYS_pipe2, "pipe2(2)")]
    {
        ends(name().refusing(call, None, libc::EPERM), 1, &["look names up", text]);
    }
    ends(limited(name(), libc::RLIMIT_SIGPENDING, 0), 1, &["look names up", "ulimit -i"]);
    // An address is not looked up, nor is this name.
    for url in ["https://192.0.2.1/", "https://localhost/"] {
        protections(Relay::to(url).refusing(libc::SYS_timer_create, None, libc::EPERM));
    }
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn a_start_without_dev_and_with_closed_descriptors_says_so() {
    needs_root();
    if emulated() {
        return;
    }
    let script = "mount -t tmpfs none /dev && exec \"$@\" >&-";
    let starter = Relay::under(&["unshare", "-m", "sh", "-c", script, "sh"])
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    ends(starter, 1, &["/dev/null cannot be opened"]);
    // With /dev/null a closed descriptor is no reason not to start.
    let starter = Relay::under(&["sh", "-c", "exec \"$@\" >&-", "sh"]);
    protections(starter.env("PATH", "/bin:/usr/bin"));
}

#[test]
fn memory_that_cannot_be_protected_ends_the_start_with_a_message() {
    if emulated() {
        return;
    }
    let (code, out, err) = Relay::bare().refusing(libc::SYS_mprotect, None, libc::EPERM).run(KEY);
    assert!(code != 0 && code != -libc::SIGSEGV && out.is_empty(), "{code}: {err}");
    assert!(err.contains("Operation not permitted") || err.contains("protect"), "{err}");
}

#[test]
fn variables_that_steer_the_allocator_or_the_loader_are_wiped() {
    let relay = Relay::bare()
        .env("GLIBC_TUNABLES", "glibc.malloc.check=0:MARK")
        .env("MALLOC_ARENA_MAX", "1MARK")
        .env("LD_DEBUG_OUTPUT", "/MARK")
        .env("HOME", "/kept")
        .start();
    if emulated() {
        return;
    }
    match fs::read(format!("/proc/{}/environ", relay.pid())) {
        Ok(environment) => {
            let text = String::from_utf8_lossy(&environment).into_owned();
            has(&text, "HOME=/kept");
            for wiped in ["MARK", "GLIBC_TUNABLES", "MALLOC_", "LD_"] {
                lacks(&text, wiped);
            }
        }
        Err(_) => skipped("reading the environment of another process needs root"),
    }
}
