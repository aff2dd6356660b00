//! Tests the connector, the process that connects: its privileges, its end, and that it resolves
//! names after the configuration files of the resolver have been replaced.

use std::ffi::CString;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, TcpListener, UdpSocket};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::lifecycle::Folder;
use super::support::relay::{Starter, descriptors, emulated, random_hex};
use super::support::skip::is_root;
use super::support::upstream::Kind;
use super::support::{
    Client, Peer, Relay, Upstream, certs, needs_root, ok, pace, post, skipped, wait_for,
};

/// The children of a process.
pub(super) fn children(pid: u32) -> Vec<u32> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let text = fs::read_to_string(path).unwrap_or_default();
    text.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

pub(super) fn connector(relay: &Relay) -> u32 {
    let children = children(relay.pid());
    assert_eq!(children.len(), 1, "one child: the connector");
    children[0]
}

/// Checks that a process is confined, has a session of its own and no capability, and cannot be read
/// by its own user.
#[track_caller]
pub(super) fn assert_unprivileged(pid: u32) {
    assert_eq!(status(pid, "Seccomp:"), "2");
    assert_eq!(status(pid, "NoNewPrivs:"), "1");
    // No terminal can stop it or hang up on it.
    // SAFETY: no memory is involved.
    assert_eq!(unsafe { libc::getsid(pid as i32) }, pid as i32);
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
        assert_eq!(status(pid, set), "0000000000000000", "{set}");
    }
    // What is not dumpable belongs to root, not to the user that runs it.
    let owner = fs::metadata(format!("/proc/{pid}/mem")).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&owner), 0);
}

pub(super) fn status(pid: u32, field: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_once(':').unwrap().1.trim().to_owned()
}

/// It has not gone, nor is it a zombie.
fn lives(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit_once(')').unwrap().1.trim_start().starts_with('Z'))
}

fn exists(pid: u32) -> bool {
    fs::exists(format!("/proc/{pid}")).unwrap()
}

pub(super) fn signal(pid: u32, signal: i32) {
    // SAFETY: the process is a child of the relay, which has not been waited for.
    assert_eq!(unsafe { libc::kill(pid as i32, signal) }, 0);
}

#[test]
fn it_is_unprivileged_confined_and_has_nothing_of_the_relays() {
    if emulated() {
        return;
    }
    let upstream = Upstream::answering(ok("fine"));
    let relay = Relay::to(&upstream.url()).env("SECRET", "secret").start();
    assert_eq!(relay.connect().send(post("", "{}")).response().status, 200);
    let pid = connector(&relay);
    assert_unprivileged(pid);
    if is_root() {
        for ids in ["Uid:", "Gid:"] {
            assert_eq!(status(pid, ids), ["65520"; 4].join("\t"));
        }
        assert_eq!(status(pid, "Groups:"), "");
        assert_eq!(status(pid, "CapBnd:"), "0000000000000000");
        for file in ["environ", "cmdline"] {
            let bytes = fs::read(format!("/proc/{pid}/{file}")).unwrap();
            assert!(bytes.iter().all(|byte| *byte == 0), "{file}");
        }
        // The loser of a race may still be on its way out.
        wait_for(|| fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count() == 4);
        let links: Vec<_> = descriptors(pid).into_iter().map(|(_, link)| link).collect();
        let (null, rest): (Vec<_>, Vec<_>) =
            links.iter().partition(|link| **link == Path::new("/dev/null"));
        assert_eq!(null.len(), 3, "{links:?}");
        assert!(rest.len() == 1 && rest[0].to_str().unwrap().starts_with("socket:"), "{links:?}");
    } else {
        skipped("the connector has a user of its own only if root starts the relay");
    }
    assert_eq!(children(pid), [], "no lookup is left, and no zombie");
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn with_user_it_becomes_that_user() {
    needs_root();
    if emulated() {
        return;
    }
    let relay = Relay::bare().args(["--user", "65533:65532"]).start();
    assert_eq!(status(connector(&relay), "Uid:"), ["65533"; 4].join("\t"));
    assert_eq!(status(connector(&relay), "Gid:"), ["65532"; 4].join("\t"));
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn when_it_is_killed_who_waits_gets_502_and_the_relay_ends() {
    needs_root();
    if emulated() {
        return;
    }
    let folder = Folder::new("connector-killed");
    let info = folder.file("info");
    // A listener whose queue is full: clients that connect wait.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    // SAFETY: no memory is involved.
    unsafe { libc::listen(std::os::fd::AsRawFd::as_raw_fd(&listener), 0) };
    let to = listener.local_addr().unwrap();
    let mut queue = Vec::new();
    while let Ok(stream) = std::net::TcpStream::connect_timeout(&to, Duration::from_millis(300)) {
        queue.push(stream);
    }
    let mut relay = Relay::to(&format!("https://127.0.0.1:{}/", to.port()))
        .args(["--server-info", info.to_str().unwrap()])
        .start();
    let mut waiting = relay.connect();
    waiting.send(post("", "{}"));
    let pid = connector(&relay);
    // The dial has arrived when it has a connection under way in addition to its four descriptors
    // and the file.
    wait_for(|| fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count() > 5);
    signal(pid, libc::SIGKILL);
    let response = waiting.response();
    assert_eq!((response.status, response.code()), (502, "connector_failed"));
    assert_eq!(relay.exit_code(), 16);
    assert!(String::from_utf8(relay.output()).unwrap().contains("the connector process has ended"));
    assert_eq!(fs::read(&info).unwrap(), b"");
    wait_for(|| !exists(pid));
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn when_the_relay_is_killed_it_ends_too_with_its_lookup_and_empties_the_server_info_file() {
    needs_root();
    if emulated() {
        return;
    }
    let folder = Folder::new("relay-killed");
    let info = folder.file("info");
    let etc = Etc::new("relay-killed-etc");
    // A name server that never answers.
    let address = name_servers(1)[0];
    let silent = UdpSocket::bind((address, 53)).unwrap();
    etc.put("resolv.conf", &format!("nameserver {address}\n"));
    let starter = Relay::to("https://upstream.test/");
    let mut relay = etc.start(starter.args(["--server-info", info.to_str().unwrap()]));
    let mut waiting = relay.connect();
    waiting.send(post("", "{}"));
    let pid = connector(&relay);
    assert!(silent.recv(&mut [0; 512]).unwrap() > 0);
    let lookup = children(pid);
    assert_eq!(lookup.len(), 1, "one child for the lookup");
    assert_eq!(status(lookup[0], "Seccomp:"), "2");
    relay.signal(libc::SIGKILL);
    assert_eq!(relay.exit_code(), -libc::SIGKILL);
    wait_for(|| !lives(pid) && !lives(lookup[0]));
    folder.wait_for("info", str::is_empty);
}

#[test]
fn signals_that_end_the_relay_do_not_end_it_before_exchanges_under_way_have_ended() {
    if emulated() {
        return;
    }
    let upstream = Upstream::answering(ok("fine"));
    let relay = Relay::to(&upstream.url()).start();
    let pid = connector(&relay);
    let ending = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];
    for number in ending.into_iter().chain(super::shutdown::HARMLESS) {
        signal(pid, number);
    }
    assert_eq!(relay.connect().send(post("", "{}")).response().status, 200);
    assert_eq!(connector(&relay), pid);
    drop(relay);
    wait_for(|| !lives(pid));
}

/// An `/etc` for one relay, in a mount namespace of its own. It is this folder, so that what is
/// done to the folder is seen there.
pub(super) struct Etc(Folder);

impl Etc {
    pub(super) fn new(name: &str) -> Etc {
        let etc = Etc(Folder::new(name));
        etc.put("nsswitch.conf", "hosts: files dns\n");
        etc.put("hosts", "127.0.0.1 localhost\n");
        for file in ["passwd", "group", "ld.so.cache"] {
            let _ = fs::copy(format!("/etc/{file}"), etc.0.file(file));
        }
        etc
    }

    /// In place, or new.
    pub(super) fn put(&self, name: &str, text: &str) {
        fs::write(self.0.file(name), text).unwrap();
    }

    /// A new file takes the name, as resolvers, VPN clients and `sed -i` do it.
    fn replace(&self, name: &str, text: &str) {
        self.put("new", text);
        fs::rename(self.0.file("new"), self.0.file(name)).unwrap();
    }

    pub(super) fn start(&self, starter: Starter) -> Relay {
        let folder = CString::new(self.0.file("").as_os_str().as_bytes()).unwrap();
        let mount = move || {
            let none = std::ptr::null();
            let (root, etc) = (c"/".as_ptr(), c"/etc".as_ptr());
            let private = libc::MS_REC | libc::MS_PRIVATE;
            // SAFETY: system calls on strings that outlive them.
            let done = unsafe {
                libc::unshare(libc::CLONE_NEWNS) == 0
                    && libc::mount(none, root, none, private, none.cast()) == 0
                    && libc::mount(folder.as_ptr(), etc, none, libc::MS_BIND, none.cast()) == 0
            };
            if done { Ok(()) } else { Err(std::io::Error::last_os_error()) }
        };
        let prepare = |command: &mut Command| {
            // SAFETY: between fork and exec it does no more than that.
            unsafe { command.pre_exec(mount) };
        };
        starter.command(prepare).start()
    }
}

/// One connection for each request, so that each request needs the address.
fn closing(peer: &mut Peer) {
    if peer.request().is_some() {
        peer.write("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok");
        peer.close();
    }
}

fn on(address: IpAddr, port: u16) -> Upstream {
    let listener = TcpListener::bind((address, port)).unwrap();
    Upstream::on(listener, Some(certs().config(Kind::Good, rustls::ALL_VERSIONS)), closing)
}

fn ask(client: &mut Client) -> u16 {
    client.send(post("", "{}")).response().status
}

fn v4(last: u8) -> IpAddr {
    Ipv4Addr::new(127, 0, 0, last).into()
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn hosts_is_read_again_after_a_rename_and_when_it_comes_into_being() {
    needs_root();
    let upstream = on(v4(1), 0);
    let port = upstream.address().port();
    let etc = Etc::new("hosts");
    etc.put("resolv.conf", "nameserver 127.0.0.250\n");
    fs::remove_file(etc.0.file("hosts")).unwrap();
    let relay = etc.start(Relay::to(&format!("https://upstream.test:{port}/")));
    let mut client = relay.connect();
    let mut code = || client.send(post("", "{}")).response().code().to_owned();
    assert_eq!(code(), "upstream_dns_failed", "there is no such file yet");
    etc.replace("hosts", "127.0.0.9 upstream.test\n");
    assert_eq!(code(), "upstream_refused");
    etc.replace("hosts", "127.0.0.8 upstream.test\n");
    assert_eq!(code(), "upstream_refused");
    etc.replace("hosts", "127.0.0.1 upstream.test\n");
    assert_eq!(ask(&mut client), 200);
}

/// As container runtimes do it.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn a_file_that_is_mounted_over_hosts_is_read() {
    needs_root();
    let upstream = on(v4(1), 0);
    let folder = Folder::new("mounted-hosts");
    let hosts = folder.file("hosts");
    fs::write(&hosts, "127.0.0.1 upstream.test\n").unwrap();
    let script = format!("mount --bind {} /etc/hosts && exec \"$@\"", hosts.display());
    let relay = Relay::under(&["unshare", "-m", "sh", "-c", &script, "sh"])
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .upstream(&format!("https://upstream.test:{}/", upstream.address().port()))
        .start();
    assert_eq!(ask(&mut relay.connect()), 200);
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn an_address_that_leads_to_another_is_told_as_the_other() {
    needs_root();
    let upstream = on(v4(1), 0);
    let etc = Etc::new("unspecified");
    etc.put("hosts", "0.0.0.0 upstream.test\n");
    let url = format!("https://upstream.test:{}/", upstream.address().port());
    let relay = etc.start(Relay::to(&url));
    assert_eq!(ask(&mut relay.connect()), 200);
    assert_eq!(ask(&mut relay.connect()), 200);
}

/// Addresses for name servers, which no other run of the tests has.
pub fn name_servers(count: u8) -> Vec<Ipv4Addr> {
    let random = random_hex();
    let number = |at: usize| u8::from_str_radix(&random[at..at + 2], 16).unwrap();
    (0..count).map(|n| Ipv4Addr::new(127, 54 + n, number(0), number(2).clamp(1, 254))).collect()
}

/// Answers every question for an IPv4 address with 127.0.0.1.
fn name_server(address: Ipv4Addr) {
    let socket = UdpSocket::bind((address, 53)).unwrap();
    std::thread::spawn(move || {
        let mut question = [0; 512];
        while let Ok((n, from)) = socket.recv_from(&mut question) {
            let Some(end) = question[12..n].iter().position(|byte| *byte == 0) else { continue };
            let end = 12 + end + 5;
            let is_v4 = question[end - 3] == 1;
            let count = u8::from(is_v4);
            let mut answer = [&question[..2], &[0x81, 0x80, 0, 1, 0, count, 0, 0, 0, 0]].concat();
            answer.extend(&question[12..end]);
            if is_v4 {
                answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4, 127, 0, 0, 1]);
            }
            let _ = socket.send_to(&answer, from);
        }
    });
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn resolv_conf_is_read_again_after_a_rename_of_it_and_of_what_it_links_to() {
    needs_root();
    let upstream = on(v4(1), 0);
    let port = upstream.address().port();
    let [first, second] = name_servers(2)[..] else { unreachable!() };
    name_server(second);
    let etc = Etc::new("resolv");
    fs::create_dir(etc.0.file("resolve")).unwrap();
    etc.put("resolve/stub.conf", &format!("nameserver {first}\n"));
    std::os::unix::fs::symlink("resolve/stub.conf", etc.0.file("resolv.conf")).unwrap();
    let relay = etc.start(Relay::to(&format!("https://upstream.test:{port}/")));
    let mut client = relay.connect();
    assert_eq!(ask(&mut client), 502, "nothing listens there");
    etc.replace("resolve/stub.conf", &format!("nameserver {second}\n"));
    assert_eq!(ask(&mut client), 200);
    etc.replace("resolv.conf", &format!("nameserver {first}\n"));
    etc.replace("resolv.conf", &format!("nameserver {second}\n"));
    assert_eq!(ask(&mut client), 200);
    // The last lookup has answered and is about to end.
    let connector = connector(&relay);
    wait_for(|| children(connector).is_empty());
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn a_root_without_hosts_starts_at_once() {
    needs_root();
    let etc = Etc::new("no-hosts");
    let address = name_servers(1)[0];
    etc.put("resolv.conf", &format!("nameserver {address}\n"));
    fs::remove_file(etc.0.file("hosts")).unwrap();
    // Whatever is asked waits for five seconds.
    let silent = UdpSocket::bind((address, 53)).unwrap();
    let begun = std::time::Instant::now();
    let relay = etc.start(Relay::to("https://upstream.test/"));
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    silent.set_nonblocking(true).unwrap();
    pace(Duration::from_millis(50));
    assert!(silent.recv(&mut [0; 512]).is_err(), "nothing is asked before a client comes");
    drop(relay);
}

/// A module that knows one name, as `libnss_NAME.so.2`.
const MODULE: &str = r#"
#include <errno.h>
#include <netdb.h>
#include <nss.h>
#include <string.h>
#include <sys/socket.h>
enum nss_status _nss_standin_gethostbyname4_r(const char *name, struct gaih_addrtuple **pat,
    char *buffer, size_t len, int *errnop, int *h_errnop, int *ttl) {
    if (strcmp(name, "only.standin") || len < sizeof(struct gaih_addrtuple) + 64) {
        *errnop = ENOENT; *h_errnop = HOST_NOT_FOUND; return NSS_STATUS_NOTFOUND;
    }
    struct gaih_addrtuple *tuple = (struct gaih_addrtuple *)(((unsigned long)buffer + 63) & ~63UL);
    memset(tuple, 0, sizeof *tuple);
    tuple->name = (char *)name; tuple->family = AF_INET; tuple->addr[0] = 0x0100007f;
    if (*pat) { **pat = *tuple; } else { *pat = tuple; }
    return NSS_STATUS_SUCCESS;
}
"#;

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn modules_of_nsswitch_conf_are_loaded_before_it_is_confined() {
    needs_root();
    if std::env::var("RELAY_BINARY").is_ok() {
        skipped("the program of RELAY_BINARY may be static, and then it loads no modules");
        return;
    }
    if cfg!(not(target_env = "gnu")) {
        skipped("the program is not linked with glibc");
        return;
    }
    let etc = Etc::new("nss");
    etc.put("module.c", MODULE);
    let module = etc.0.file("libnss_standin.so.2");
    let built = Command::new("cc")
        .args(["-shared", "-fPIC", "-Wl,-soname,libnss_standin.so.2", "-o"])
        .args([&module, &etc.0.file("module.c")])
        .status();
    if !built.is_ok_and(|status| status.success()) {
        skipped("there is no C compiler");
        return;
    }
    etc.put("nsswitch.conf", "hosts: files standin\n");
    etc.put("resolv.conf", "nameserver 127.0.0.250\n");
    let upstream = on(v4(1), 0);
    let url = format!("https://only.standin:{}/", upstream.address().port());
    let relay = etc.start(Relay::to(&url).env("LD_LIBRARY_PATH", "/etc"));
    // It is found: TLS goes on to the name, which the certificate does not have.
    let mut client = relay.connect();
    let response = client.send(post("", "{}")).response();
    assert_eq!(response.code(), "upstream_tls_wrong_name");
    // The lookup has answered and is about to end.
    let connector = connector(&relay);
    wait_for(|| children(connector).is_empty());
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn an_nsswitch_conf_that_is_a_pipe_without_a_writer_does_not_hold_the_start_up() {
    needs_root();
    let etc = Etc::new("nss-pipe");
    let path = etc.0.file("nsswitch.conf");
    fs::remove_file(&path).unwrap();
    let pipe = CString::new(path.as_os_str().as_bytes()).unwrap();
    // SAFETY: a system call on a string that outlives it.
    assert_eq!(unsafe { libc::mkfifo(pipe.as_ptr(), 0o644) }, 0);
    let relay = etc.start(Relay::to("https://upstream.test/"));
    let refused = relay.connect().send("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").response();
    assert_eq!(refused.status, 403);
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
#[cfg_attr(root, ignore = "takes a minute")]
fn a_lookup_that_never_ends_is_given_up_after_a_minute() {
    needs_root();
    let upstream = on(v4(1), 0);
    let port = upstream.address().port();
    let etc = Etc::new("stopped-lookup");
    let address = name_servers(1)[0];
    let silent = UdpSocket::bind((address, 53)).unwrap();
    etc.put("resolv.conf", &format!("nameserver {address}\n"));
    let relay = etc.start(Relay::to(&format!("https://upstream.test:{port}/")));
    let mut client = relay.connect();
    let begun = std::time::Instant::now();
    client.send(post("", "{}"));
    assert!(silent.recv(&mut [0; 512]).unwrap() > 0);
    let lookup = children(connector(&relay))[0];
    signal(lookup, libc::SIGSTOP);
    assert_eq!(client.response().code(), "upstream_connect_timeout");
    etc.replace("hosts", "127.0.0.1 upstream.test\n");
    while ask(&mut client) != 200 {
        assert!(begun.elapsed() < Duration::from_secs(90), "it is waited for");
    }
    // Its timer has ended it, though it was stopped.
    wait_for(|| !lives(lookup));
}
