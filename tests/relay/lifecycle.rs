//! Tests the life of the program from its first line to its exit code.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::FromRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use super::support::relay::random_hex;
use super::support::{DEADLINE, End, Gate, Relay, Upstream, comes, ok, post};

/// A folder that goes with the test.
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("relay-{name}-{}", random_hex()));
        fs::create_dir(&path).unwrap();
        Folder(path)
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Waits until what this file holds is as it should be.
    pub fn wait_for(&self, name: &str, fine: impl Fn(&str) -> bool) {
        let folder = CString::new(self.0.to_str().unwrap()).unwrap();
        // SAFETY: the path is a valid C string; the descriptor is new, and nothing else owns it.
        let mut changes = unsafe {
            let fd = libc::inotify_init1(libc::IN_CLOEXEC);
            let events = libc::IN_MODIFY | libc::IN_MOVED_TO;
            assert!(libc::inotify_add_watch(fd, folder.as_ptr(), events) >= 0);
            File::from_raw_fd(fd)
        };
        while !fs::read_to_string(self.file(name)).is_ok_and(|text| fine(&text)) {
            assert!(comes(&changes, libc::POLLIN, DEADLINE), "{name} does not become so");
            let _ = changes.read(&mut [0; 4096]).unwrap();
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn with_info(path: &Path) -> super::support::relay::Starter {
    Relay::bare().args(["--server-info", path.to_str().unwrap()])
}

pub const SHUTDOWN: &str = "GET /shutdown HTTP/1.1\r\nHost: localhost\r\n\r\n";

#[test]
fn the_start_lines_say_where_it_listens_and_what_protects_it() {
    let mut relay = Relay::bare().spawn(Stdio::piped());
    let line = relay.line();
    let port = line.strip_prefix("codex-responses-api-proxy listening on 127.0.0.1:").unwrap();
    assert!(port.parse::<u16>().unwrap() > 0);
    let line = relay.line();
    for part in [
        format!("relay: version {}, pid {}, port {port}, ", env!("CARGO_PKG_VERSION"), relay.pid()),
        "upstream https://api.openai.com/v1/responses, open to every local user, grace 1 s".into(),
    ] {
        assert!(line.contains(&part), "{line}");
    }
    assert!(relay.line().starts_with("clients: base URL http://127.0.0.1:"));
    let line = relay.line();
    for part in ["protections: key in ", "not dumpable", "no core files", "LD_* removed"] {
        assert!(line.contains(part), "{line}");
    }
    assert!(
        line.contains(". NOT in force: every local user may use it (no --allow-uid)"),
        "{line}"
    );
    relay.signal(libc::SIGTERM);
    assert_eq!(relay.exit_code(), 0);
}

#[test]
fn server_info_is_exact_and_for_everyone_and_empty_after_the_end() {
    let folder = Folder::new("exact");
    for path in [folder.file("info"), folder.file("made/on/the/way/info")] {
        let mut relay = with_info(&path).start();
        let want = format!("{{\"port\":{},\"pid\":{}}}\n", relay.port, relay.pid());
        assert_eq!(fs::read_to_string(&path).unwrap(), want);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o644);
        relay.connect();
        relay.signal(libc::SIGTERM);
        assert_eq!(relay.exit_code(), 0);
        assert_eq!(fs::read(&path).unwrap(), b"", "the file leads to a stale port");
        let others = fs::read_dir(path.parent().unwrap())
            .unwrap()
            .filter(|entry| entry.as_ref().unwrap().file_name().to_str().unwrap().starts_with('.'));
        assert_eq!(others.count(), 0, "another file is left in the folder");
    }
}

#[test]
fn a_planted_link_is_replaced_and_never_written_through() {
    let folder = Folder::new("link");
    let (info, victim) = (folder.file("info"), folder.file("victim"));
    fs::write(&victim, "precious").unwrap();
    for target in [victim.as_path(), Path::new("/nonexistent/x"), Path::new("info")] {
        let _ = fs::remove_file(&info);
        symlink(target, &info).unwrap();
        let mut relay = with_info(&info).start();
        assert!(fs::symlink_metadata(&info).unwrap().is_file());
        assert!(fs::read_to_string(&info).unwrap().contains(&relay.port.to_string()));
        relay.signal(libc::SIGTERM);
        relay.wait();
        assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
    }
}

#[test]
fn at_its_end_it_touches_its_own_file_only() {
    let folder = Folder::new("own");
    let info = folder.file("info");
    let mut relay = with_info(&info).start();
    fs::remove_file(&info).unwrap();
    fs::write(&info, "another's").unwrap();
    relay.signal(libc::SIGTERM);
    relay.wait();
    assert_eq!(fs::read_to_string(&info).unwrap(), "another's");
}

#[test]
fn a_target_that_is_no_file_is_refused() {
    let folder = Folder::new("target");
    let (directory, fifo) = (folder.file("directory"), folder.file("fifo"));
    fs::create_dir(&directory).unwrap();
    let name = CString::new(fifo.to_str().unwrap()).unwrap();
    // SAFETY: the name is a valid C string.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
    for target in [&directory, &fifo, Path::new("/proc/nope/info")] {
        let (code, _, err) = with_info(target).run(b"key\n");
        assert_eq!(code, 1);
        assert!(err.contains("cannot write --server-info"), "{err}");
        assert_eq!(err.lines().count(), 1);
    }
    assert!(fs::symlink_metadata(&directory).unwrap().is_dir());
}

#[test]
fn a_start_that_fails_later_leaves_no_port_behind() {
    let taken = Relay::bare().start();
    let folder = Folder::new("failed");
    let info = folder.file("info");
    let port = taken.port.to_string();
    let (code, ..) = with_info(&info).args(["--port", &port]).run(b"key\n");
    assert_eq!(code, 1);
    assert!(!info.exists() || fs::read(&info).unwrap().is_empty());
}

#[test]
fn get_shutdown_ends_it_when_allowed() {
    let folder = Folder::new("shutdown");
    let info = folder.file("info");
    let mut relay = with_info(&info).args(["--http-shutdown"]).start();
    let mut client = relay.connect();
    assert_eq!(client.send(SHUTDOWN).response().status, 200);
    assert_eq!(relay.exit_code(), 0);
    assert_eq!(fs::read(&info).unwrap(), b"");
    let mut relay = Relay::bare().start();
    assert_eq!(relay.connect().send(SHUTDOWN).response().code(), "route_not_allowed");
    assert!(relay.is_running());
}

/// An upstream that has begun a response and ends it at a signal.
pub fn halfway(
    relay: impl FnOnce(&str) -> Relay,
) -> (Upstream, Relay, super::support::Client, Gate) {
    let (go, may_go) = Gate::pair();
    let upstream = Upstream::tls(move |peer| {
        while peer.request().is_some() {
            peer.write("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nha");
            may_go.wait();
            peer.try_write("lf");
        }
    });
    let relay = relay(&upstream.url());
    let mut client = relay.connect();
    client.send(post("", "{}"));
    client.head();
    assert_eq!(client.take(2), b"ha");
    (upstream, relay, client, go)
}

/// A connection that has been accepted and on which nothing happens.
pub fn idle(relay: &Relay) -> super::support::Client {
    let mut idle = relay.connect();
    idle.send("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").response();
    idle
}

#[test]
fn a_client_that_is_gone_does_not_kill_it() {
    let (_upstream, mut relay, client, go) = halfway(|url| Relay::to(url).start());
    drop(client);
    go.signal();
    relay.signal(libc::SIGPIPE);
    let mut other = relay.connect();
    assert_eq!(other.send(SHUTDOWN).response().code(), "route_not_allowed");
    assert!(relay.is_running());
}

#[test]
fn it_is_not_dumpable_and_leaves_no_core() {
    let relay = Relay::bare().start();
    let status = fs::read_to_string(format!("/proc/{}/status", relay.pid())).unwrap();
    assert!(status.contains("NoNewPrivs:\t1"), "{status}");
    // The kernel gives the files of a process that is not dumpable to root.
    assert_eq!(fs::metadata(format!("/proc/{}/fd", relay.pid())).unwrap().uid(), 0);
    let limits = fs::read_to_string(format!("/proc/{}/limits", relay.pid())).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(line.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["0", "0"]);
}

#[test]
fn a_keep_alive_connection_ends_after_shutdown_was_answered_on_another() {
    let upstream = Upstream::answering(ok("fine"));
    let mut relay = Relay::to(&upstream.url()).args(["--http-shutdown"]).start();
    let mut kept = relay.connect();
    assert_eq!(kept.send(post("", "{}")).response().status, 200);
    assert_eq!(relay.connect().send(SHUTDOWN).response().status, 200);
    kept.expect_end(End::Fin);
    assert_eq!(relay.exit_code(), 0);
}
