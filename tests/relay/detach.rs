//! Tests `--detach`: the command returns when the relay listens, and the relay keeps nothing of the
//! process that started it.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::process::{ChildStdin, Stdio};

use super::key::{asked, echo_is_back};
use super::lifecycle::Folder;
use super::support::relay::{
    Starter, descriptors, ends, inherit, marker_key, port_of_start, program,
};
use super::support::skip::is_root;
use super::support::{
    Client, DEADLINE, Gate, Relay, Upstream, comes, needs_root, ok, post, skipped, wait_for,
};

/// A relay that has left; it ends with the test.
pub struct Detached {
    pub pid: u32,
    pub port: u16,
    folder: Folder,
}

impl Detached {
    /// Takes over what `--server-info` names.
    fn find(folder: Folder) -> Detached {
        let text = fs::read_to_string(folder.file("info")).unwrap();
        let numbers: Vec<u32> =
            text.split(|c: char| !c.is_ascii_digit()).flat_map(str::parse).collect();
        assert_eq!(text, format!("{{\"port\":{},\"pid\":{}}}\n", numbers[0], numbers[1]));
        Detached { port: numbers[0] as u16, pid: numbers[1], folder }
    }

    pub fn connect(&self) -> Client {
        Client::connect(self.port)
    }

    fn signal(&self, signal: i32) {
        // SAFETY: no memory is involved.
        unsafe { libc::kill(self.pid as i32, signal) };
    }
}

impl Drop for Detached {
    fn drop(&mut self) {
        self.signal(libc::SIGKILL);
        assert!(ends(self.pid));
    }
}

/// The fields of `/proc/PID/stat` from the state on; none when there is no such process.
fn stat(pid: u32) -> Option<Vec<String>> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(stat.rsplit_once(") ")?.1.split(' ').map(str::to_owned).collect())
}

/// Starts one whose child waits for the rest of this key: it, its stdin, and the child's pid.
fn waiting_for_the_rest(mut starter: Starter, key: &str) -> (Relay, ChildStdin, u32) {
    let (parent, mut stdin) = starter.spawn_without_key(Stdio::piped());
    // One byte fills a pipe that holds a single page; once the child has taken it, another would
    // fit.
    // SAFETY: no memory is involved.
    assert!(unsafe { libc::fcntl(stdin.as_raw_fd(), libc::F_SETPIPE_SZ, 1) } > 0);
    stdin.write_all(&key.as_bytes()[..1]).unwrap();
    assert!(comes(&stdin, libc::POLLOUT, DEADLINE), "the key is not read");
    let pids = fs::read_dir("/proc").unwrap().flatten();
    let mut pids = pids.flat_map(|entry| entry.file_name().to_string_lossy().parse());
    let is_its_child = |pid| stat(pid).is_some_and(|fields| fields[1] == parent.pid().to_string());
    let child = pids.find(|pid| is_its_child(*pid)).expect("it has a child");
    (parent, stdin, child)
}

fn with_info(starter: Starter, folder: &Folder) -> Starter {
    starter.args(["--detach", "--server-info", folder.file("info").to_str().unwrap()])
}

/// Does what may take for ever, on a thread of its own, and waits no longer than a test may.
fn within_deadline<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (tell, told) = Gate::pair();
    std::thread::spawn(move || tell.pass(work()));
    told.wait_within(DEADLINE)
}

/// Runs it until it has ended and both pipes have: exit code, stdout, stderr.
fn run(starter: Starter, stdin: &[u8]) -> Option<(i32, String, String)> {
    let stdin = stdin.to_owned();
    within_deadline(move || starter.run(&stdin))
}

/// Starts one with this key.
pub fn detach(name: &str, starter: Starter, key: &str) -> (Detached, String) {
    let folder = Folder::new(name);
    let ran = run(with_info(starter, &folder), format!("{key}\n").as_bytes());
    let relay = Detached::find(folder);
    let (code, out, err) = ran.expect("it returns, and its pipes end");
    assert_eq!((code, out.as_str()), (0, ""), "{err}");
    assert!(!err.contains(key), "the key is in the output");
    (relay, err)
}

#[test]
fn it_returns_0_once_the_relay_listens_and_its_pipes_end() {
    let upstream = Upstream::answering(ok("fine"));
    let (relay, err) = detach("detached", Relay::to(&upstream.url()), &marker_key());
    assert!(err.starts_with(&format!(
        "codex-responses-api-proxy listening on 127.0.0.1:{}\n",
        relay.port
    )));
    assert!(err.contains("protections: key in ") && err.ends_with('\n'), "{err}");
    for _ in 0..2 {
        assert_eq!(relay.connect().send(post("", "{}")).response().text(), "fine");
    }
    relay.signal(libc::SIGTERM);
    assert!(ends(relay.pid));
    assert_eq!(fs::read(relay.folder.file("info")).unwrap(), b"");
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn the_relay_has_a_session_of_its_own_and_no_descriptor_of_its_starter() {
    let inherited = File::open("/dev/zero").unwrap();
    let starter = Relay::bare().command(|command| inherit(command, inherited.as_raw_fd()));
    let (relay, _) = detach("session", starter, &marker_key());
    let fields = stat(relay.pid).unwrap();
    // State, parent, group, session, terminal.
    assert_eq!(fields[3], relay.pid.to_string());
    assert_eq!(fields[4], "0");
    needs_root();
    let mut null = 0;
    for (number, target) in descriptors(relay.pid) {
        match target.to_str().unwrap() {
            "/dev/null" => null += u32::from(number <= 2),
            path if path.starts_with("pipe:") || path == "/dev/zero" => {
                panic!("descriptor {number} is {path}")
            }
            _ => assert!(number > 2),
        }
    }
    assert_eq!(null, 3);
}

#[test]
fn with_rotate_stdin_stays_and_gives_the_relay_its_further_keys() {
    let upstream = Upstream::answering(ok("fine"));
    let folder = Folder::new("detached-rotate");
    let log = folder.file("log");
    let starter = with_info(Relay::to(&upstream.url()), &folder);
    let mut starter = starter.args(["--rotate", "--access-log"]);
    let stderr = File::options().append(true).create(true).open(&log).unwrap();
    let (mut starting, mut stdin) = starter.spawn_without_key(stderr.into());
    let (first, second) = (marker_key(), marker_key());
    writeln!(stdin, "{first}").unwrap();
    assert_eq!(starting.exit_code(), 0);
    let relay = Detached::find(folder);
    writeln!(stdin, "{second}").unwrap();
    relay.folder.wait_for("log", |text| text.contains("\"event\":\"key_rotated\""));
    assert_eq!(relay.connect().send(post("", "{}")).response().text(), "fine");
    let seen = upstream.requests().pop().unwrap();
    assert!(seen.fields("authorization") == [format!("Bearer {second}")], "another key");
    let text = fs::read_to_string(&log).unwrap();
    assert!(!text.contains(&first) && !text.contains(&second), "a key was told");
}

#[test]
fn it_is_as_confined_as_one_that_stays() {
    let of = |pid: u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let names = ["NoNewPrivs", "Seccomp", "Cap", "Threads", "Groups", "Uid"];
        let lines = status.lines().filter(|line| names.iter().any(|name| line.starts_with(name)));
        let lines: Vec<String> = lines.map(str::to_owned).collect();
        let owner = fs::metadata(format!("/proc/{pid}/fd")).unwrap().uid();
        let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let cores = limits.lines().find(|line| line.starts_with("Max core")).unwrap().to_owned();
        (lines, owner, cores)
    };
    let stays = Relay::bare().start();
    let (left, err) = detach("confined", Relay::bare(), &marker_key());
    assert!(err.contains("not dumpable"), "{err}");
    assert_eq!(of(left.pid), of(stays.pid()));
}

#[test]
fn a_file_as_stderr_is_kept_and_gets_the_access_log() {
    let upstream = Upstream::answering(ok("fine"));
    let folder = Folder::new("kept");
    let log = folder.file("log");
    let mut starter = with_info(Relay::to(&upstream.url()), &folder).args(["--access-log"]);
    let (mut parent, mut stdin) =
        starter.spawn_without_key(Stdio::from(File::create(&log).unwrap()));
    stdin.write_all(b"key\n").unwrap();
    assert_eq!(parent.exit_code(), 0);
    let text = fs::read_to_string(&log).unwrap();
    let relay = Detached::find(folder);
    assert_eq!(port_of_start(&text), relay.port);
    assert_eq!(relay.connect().send(post("", "{}")).response().text(), "fine");
    let access = "\"route\":\"responses\",\"status\":200";
    relay.folder.wait_for("log", |text| text.contains(access));
    if is_root() {
        assert_eq!(fs::read_link(format!("/proc/{}/fd/2", relay.pid)).unwrap(), log);
    } else {
        skipped("the files of a process that is not dumpable are root's");
    }
}

#[test]
fn an_access_log_that_would_be_lost_is_wrong_use_before_stdin_is_read() {
    let mut starter = Relay::bare().args(["--detach", "--access-log"]);
    let (mut relay, _stdin) = starter.spawn_without_key(Stdio::piped());
    assert_eq!(relay.exit_code(), 2);
    let line = relay.line();
    assert!(line.contains("--access-log with --detach needs stderr to be a file"), "{line}");
}

#[test]
fn a_start_that_fails_says_why_and_passes_its_exit_code_on() {
    let taken = Relay::bare().start();
    let port = taken.port.to_string();
    let bare = Relay::bare;
    for (starter, stdin, code, want) in [
        (bare().args(["--port", &port]), &b"key\n"[..], 1, "cannot listen on 127.0.0.1:"),
        (bare(), b"", 1, "API key must be provided via stdin"),
        (bare(), b"no key\n", 1, "API key may only contain"),
        (bare().args(["--ca-file", "/nonexistent"]), b"key\n", 1, "--ca-file"),
        (bare().args(["--port", "x"]), b"key\n", 2, "--port takes"),
        (bare().args(["--user", "no such user"]), b"key\n", 2, "--user"),
        (
            bare().args(["--require-secret-memory"]).refusing(
                libc::SYS_memfd_secret,
                None,
                libc::ENOSYS,
            ),
            b"key\n",
            13,
            "memfd_secret",
        ),
    ] {
        let folder = Folder::new(&format!("fails-{code}-{}", want.len()));
        let (got, out, err) = run(with_info(starter, &folder), stdin).unwrap();
        assert_eq!((got, out.as_str()), (code, ""), "{err}");
        assert!(err.starts_with("codex-responses-api-proxy: error: "), "{err}");
        assert!(
            err.contains(want) && err.lines().count() == if code == 2 { 2 } else { 1 },
            "{err}"
        );
        assert!(!folder.file("info").exists());
    }
}

#[test]
fn what_fails_after_stderr_was_left_is_told_too() {
    let folder = Folder::new("late");
    // To an address there is no resolver thread: the loop's own confinement is the first.
    let starter = Relay::bare().args(["--upstream-url", "http://127.0.0.1:1/"]).refusing(
        libc::SYS_landlock_restrict_self,
        None,
        libc::EPERM,
    );
    let (code, _, err) = run(with_info(starter, &folder), b"key\n").unwrap();
    if code == 0 {
        skipped("this kernel has no Landlock");
        drop(Detached::find(folder));
        return;
    }
    assert_eq!(code, 11, "{err}");
    assert!(err.contains("Landlock") && err.lines().count() == 1, "{err}");
    // Emptied, or never made: that depends on which thread fails first.
    assert!(fs::read(folder.file("info")).unwrap_or_default().is_empty());
}

#[test]
fn a_child_that_is_killed_while_it_starts_is_a_start_that_failed() {
    let starter = Relay::bare().args(["--detach"]);
    let (mut parent, _stdin, child) = waiting_for_the_rest(starter, "key");
    // SAFETY: no memory is involved.
    unsafe { libc::kill(child as i32, libc::SIGKILL) };
    assert_eq!(parent.exit_code(), 1);
    let line = parent.line();
    assert!(line.contains("--detach: it was killed by signal 9 before it listened"), "{line}");
}

#[test]
fn a_start_that_is_called_off_leaves_no_child_behind() {
    let starter = Relay::bare().args(["--detach"]);
    // The child has asked to end with its parent long before it waits for the key.
    let (mut parent, _stdin, child) = waiting_for_the_rest(starter, "key");
    parent.signal(libc::SIGKILL);
    parent.wait();
    assert!(ends(child));
}

#[test]
fn at_a_terminal_the_key_is_asked_for_before_the_relay_leaves() {
    let key = marker_key();
    for called_off in [false, true] {
        let folder = Folder::new(&format!("terminal-{called_off}"));
        let info = folder.file("info");
        let mut command = program();
        command.args(["--detach", "--server-info", info.to_str().unwrap()]);
        let (mut parent, mut stderr, mut ours, theirs) = asked(&mut command);
        if called_off {
            parent.kill().unwrap();
            parent.wait().unwrap();
        } else {
            ours.write_all(format!("{key}\n").as_bytes()).unwrap();
        }
        echo_is_back(&theirs, &mut stderr);
        let status = parent.wait().unwrap();
        let relay = (!called_off).then(|| Detached::find(folder));
        let text = within_deadline(move || {
            let mut text = String::new();
            stderr.read_to_string(&mut text).map(|_| text)
        });
        let text = text.expect("the pipe ends").unwrap();
        assert!(!text.contains(&key), "the key was shown");
        if let Some(relay) = relay {
            assert_eq!(status.code(), Some(0), "{text}");
            assert!(text.contains(&format!("listening on 127.0.0.1:{}\n", relay.port)), "{text}");
        }
    }
}

/// Starts one whose parent is stopped before the key comes, and gives both pids to `look`; the
/// relay listens by then.
pub fn with_parent_stopped(starter: Starter, key: &str, look: impl FnOnce(u32, u32)) {
    let folder = Folder::new("stopped");
    let (mut parent, mut stdin, _) = waiting_for_the_rest(with_info(starter, &folder), key);
    // It waits for its child then, and has done all that it does before.
    wait_for(|| stat(parent.pid()).is_some_and(|fields| fields[0] == "S"));
    parent.signal(libc::SIGSTOP);
    stdin.write_all(format!("{}\n", &key[1..]).as_bytes()).unwrap();
    folder.wait_for("info", |text| text.ends_with('\n'));
    let relay = Detached::find(folder);
    look(parent.pid(), relay.pid);
    parent.signal(libc::SIGCONT);
    assert_eq!(parent.exit_code(), 0);
}
