//! Tests the bounds of the connector: descriptors, simultaneous attempts, processes, time.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use super::connector::{Etc, connector, status};
use super::support::relay::emulated;
use super::support::{Client, Peer, Relay, Upstream, needs_root, ok, pace, post, wait_for};

const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// The kernel counts the descriptors that are on their way between processes by user, against the
/// limit on open files of the sender. As this user, a connector whose limit a test lowers does not
/// share that count with the connectors of other tests.
const OWN_USER: [&str; 2] = ["--user", "65529:65529"];

/// Sets the limit on open files of a process that runs, by a process of the same user: root may
/// lack the right to do so.
fn limit_files(pid: u32, count: usize) {
    let set = move || {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        let (none, resource) = (std::ptr::null_mut(), libc::RLIMIT_NOFILE);
        // SAFETY: the kernel fills one struct, and reads it, that outlives the calls.
        let done = unsafe {
            libc::prlimit(pid as i32, resource, std::ptr::null(), &mut limit) == 0 && {
                limit.rlim_cur = count as u64;
                libc::prlimit(pid as i32, resource, &limit, none) == 0
            }
        };
        if done { Ok(()) } else { Err(std::io::Error::last_os_error()) }
    };
    let id = |field| status(pid, field).split_whitespace().next().unwrap().parse().unwrap();
    let mut command = Command::new("true");
    command.uid(id("Uid:")).gid(id("Gid:"));
    // SAFETY: between fork and exec it does no more than that.
    unsafe { command.pre_exec(set) };
    assert!(command.status().unwrap().success());
}

fn descriptors(pid: u32) -> Vec<usize> {
    let folder = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let number = |fd: fs::DirEntry| fd.file_name().to_str().unwrap().parse().unwrap();
    folder.map(|fd| number(fd.unwrap())).collect()
}

/// Listens, with a queue that is full: clients that connect wait.
fn hanging(address: IpAddr, port: u16) -> (TcpListener, Vec<TcpStream>) {
    let listener = TcpListener::bind((address, port)).unwrap();
    set_queue(&listener, 0);
    let to = SocketAddr::new(address, listener.local_addr().unwrap().port());
    let mut queue = Vec::new();
    while let Ok(stream) = TcpStream::connect_timeout(&to, Duration::from_millis(300)) {
        queue.push(stream);
        assert!(queue.len() < 100, "the queue does not fill");
    }
    (listener, queue)
}

fn set_queue(listener: &TcpListener, len: i32) {
    // SAFETY: no memory is involved.
    assert_eq!(unsafe { libc::listen(listener.as_raw_fd(), len) }, 0);
}

/// How many attempts to connect to this port are under way, the full queues' own left out.
fn attempts(port: u16) -> usize {
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    let to = format!(":{port:04X}");
    let is_one = |line: &str| {
        let mut fields = line.split_whitespace().skip(2);
        fields.next().is_some_and(|remote| remote.ends_with(&to)) && fields.next() == Some("02")
    };
    table.lines().filter(|line| is_one(line)).count()
}

fn code(client: &mut Client) -> (u16, String) {
    let response = client.response();
    let code = if response.status == 200 { "" } else { response.code() };
    (response.status, code.to_owned())
}

fn answer(peer: &mut Peer) {
    while peer.request().is_some() {
        peer.write(ok("fine"));
    }
}

/// A request fails while the connector has no free descriptor, and the next one is served.
fn fails_without_descriptors(relay: &Relay) {
    let pid = connector(relay);
    // Before a client comes, for whom a connection would be made in advance.
    limit_files(pid, 4);
    let mut client = relay.connect();
    client.send(post("", "{}"));
    assert_eq!(code(&mut client), out_of_descriptors());
    limit_files(pid, 64);
    assert_eq!(client.send(post("", "{}")).response().status, 200);
}

fn out_of_descriptors() -> (u16, String) {
    (502, "out_of_descriptors".into())
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn a_connector_without_a_descriptor_for_a_connection_says_so_and_goes_on() {
    needs_root();
    if emulated() {
        return;
    }
    let upstream = Upstream::answering(ok("fine"));
    fails_without_descriptors(&Relay::to(&upstream.url()).args(OWN_USER).start());
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn a_lookup_that_finds_no_descriptor_says_so_and_the_next_one_is_made() {
    needs_root();
    if emulated() {
        return;
    }
    let upstream = Upstream::on(TcpListener::bind((HERE, 0)).unwrap(), None, answer);
    let etc = Etc::new("no-descriptor");
    etc.put("hosts", "127.0.0.1 upstream.test\n");
    let url = format!("http://upstream.test:{}/", upstream.port);
    let starter = Relay::to(&url).args(OWN_USER).args(["--allow-plaintext-upstream"]);
    fails_without_descriptors(&etc.start(starter));
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn a_loop_without_a_descriptor_for_what_it_is_handed_says_so_and_goes_on() {
    needs_root();
    if emulated() {
        return;
    }
    let upstream = Upstream::answering(ok("fine"));
    let relay = Relay::to(&upstream.url()).start();
    // One is left, which the client takes.
    let held = descriptors(relay.pid());
    let free = (0..).find(|number| !held.contains(number)).unwrap();
    limit_files(relay.pid(), free + 1);
    let mut client = relay.connect();
    client.send(post("", "{}"));
    assert_eq!(code(&mut client), out_of_descriptors());
    limit_files(relay.pid(), 1024);
    assert_eq!(relay.connect().send(post("", "{}")).response().status, 200);
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn too_many_descriptors_on_their_way_are_told_and_are_no_end() {
    needs_root();
    if emulated() {
        return;
    }
    // Another relay has some on their way, as its loop does not take them.
    let (listener, queue) = hanging(HERE, 0);
    let port = listener.local_addr().unwrap().port();
    let full = Relay::to(&format!("http://127.0.0.1:{port}/")).args(OWN_USER).start();
    let mut waiting: Vec<_> = (0..8).map(|_| full.connect()).collect();
    waiting.iter_mut().for_each(|client| {
        client.send(post("", "{}"));
    });
    wait_for(|| attempts(port) >= 8);
    full.stop();
    set_queue(&listener, 64);
    drop(queue);
    let slow = Upstream::on(listener, None, answer);
    wait_for(|| slow.connections() >= 8 && descriptors(connector(&full)).len() == 4);

    let upstream = Upstream::answering(ok("fine"));
    let relay = Relay::to(&upstream.url()).args(OWN_USER).start();
    limit_files(connector(&relay), 5);
    let mut client = relay.connect();
    client.send(post("", "{}"));
    assert_eq!(code(&mut client), out_of_descriptors());
    full.signal(libc::SIGCONT);
    for client in &mut waiting {
        assert_eq!(code(client), (200, String::new()));
    }
    limit_files(connector(&relay), 64);
    assert_eq!(client.send(post("", "{}")).response().status, 200);
}

#[test]
fn so_many_attempts_run_at_one_time_and_the_next_waits_for_room() {
    const AT_ONCE: usize = 256;
    let (listener, queue) = hanging(HERE, 0);
    let port = listener.local_addr().unwrap().port();
    let relay =
        Relay::to(&format!("http://127.0.0.1:{port}/")).args(["--max-connections", "400"]).start();
    let mut clients: Vec<_> = (0..AT_ONCE + 44).map(|_| relay.connect()).collect();
    clients.iter_mut().for_each(|client| {
        client.send(post("", "{}"));
    });
    wait_for(|| {
        let now = attempts(port);
        assert!(now <= AT_ONCE, "{now}");
        now == AT_ONCE
    });
    // A client that leaves makes room for one.
    drop(clients.drain(..20));
    wait_for(|| attempts(port) == AT_ONCE);
    pace(Duration::from_millis(100));
    assert_eq!(attempts(port), AT_ONCE);
    set_queue(&listener, 1024);
    drop(queue);
    let _upstream = Upstream::on(listener, None, answer);
    // On a busy machine some have waited too long by now.
    for client in &mut clients {
        let (status, code) = code(client);
        assert!(status == 200 || code == "upstream_connect_timeout", "{status} {code}");
    }
}

/// Clock ticks of the processor that a process has used.
fn ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<_> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn an_attempt_that_waits_for_room_takes_no_time_of_the_processor() {
    needs_root();
    if emulated() {
        return;
    }
    let etc = Etc::new("no-room");
    let (first, mut held) = hanging(Ipv4Addr::new(127, 0, 0, 21).into(), 0);
    let port = first.local_addr().unwrap().port();
    let mut listeners = vec![first];
    for last in 22..25 {
        let (listener, queue) = hanging(Ipv4Addr::new(127, 0, 0, last).into(), port);
        listeners.push(listener);
        held.extend(queue);
    }
    // glibc then returns the addresses of all lines.
    etc.put("host.conf", "multi on\n");
    let hosts = |last| format!("127.0.0.{last} upstream.test\n");
    etc.put("hosts", &(21..25).map(hosts).collect::<String>());
    let relay = etc.start(Relay::to(&format!("https://upstream.test:{port}/")));
    let mut clients: Vec<_> = (0..90).map(|_| relay.connect()).collect();
    clients.iter_mut().for_each(|client| {
        client.send(post("", "{}"));
    });
    // Each tries three addresses, then there is no room for a fourth.
    wait_for(|| attempts(port) == 256);
    pace(Duration::from_millis(600));
    let pid = connector(&relay);
    let before = ticks(pid);
    pace(Duration::from_secs(1));
    let used = ticks(pid) - before;
    assert!(used <= 3, "{used} ticks in a second of waiting");
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn its_own_user_has_a_bounded_number_of_processes() {
    needs_root();
    if emulated() {
        return;
    }
    let limits = |relay: &Relay| {
        let text = fs::read_to_string(format!("/proc/{}/limits", connector(relay))).unwrap();
        let line = text.lines().find(|line| line.starts_with("Max processes")).unwrap();
        line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(limits(&Relay::bare().start())[2..4], ["1024", "1024"]);
    // Another user has other processes, which count too.
    assert_ne!(limits(&Relay::bare().args(["--user", "65533:65532"]).start())[2], "1024");
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn a_user_of_its_own_that_is_refused_is_said_and_ends_the_start_where_hardening_is_required() {
    needs_root();
    if emulated() {
        return;
    }
    let refused = || Relay::bare().refusing(libc::SYS_setresuid, Some(65_520), libc::EPERM);
    let relay = refused().start();
    let line = relay.output_line("protections: ");
    let (_, missing) = line.split_once("NOT in force: ").unwrap();
    assert!(missing.contains("connector: it runs as uid 0"));
    drop(relay);
    let mut relay = refused().args(["--require-hardening"]).spawn(std::process::Stdio::piped());
    assert_eq!(relay.exit_code(), 14);
    let output = String::from_utf8(relay.output()).unwrap();
    assert!(output.contains("a user of its own for the connector ("), "{output}");
    let relay = Relay::bare().start();
    assert!(!relay.output_line("protections: ").contains("connector: it runs as uid 0"));
}
