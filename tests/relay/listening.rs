//! Tests the addresses that the relay listens on, and sockets from systemd.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr as UnixAddress, UnixDatagram};
use std::os::unix::process::CommandExt;
use std::time::Duration;

use super::local_users::{AGENT, OTHER, allowing, as_user};
use super::support::relay::{Starter, emulated, random_hex};
use super::support::skip::is_root;
use super::support::{
    Client, DEADLINE, Gate, Relay, Upstream, needs_root, ok, post, quiet, skipped,
};

fn connect_v6(port: u16) -> Client {
    let stream = TcpStream::connect((Ipv6Addr::LOCALHOST, port)).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.set_nodelay(true).unwrap();
    Client { stream, buffer: Vec::new(), date: None }
}

/// Whether this machine has ::1. Says so.
fn has_v6() -> bool {
    let has = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok();
    if !has {
        skipped("this machine has no IPv6");
    }
    has
}

#[test]
fn both_loopback_addresses_are_bound_and_served_alike() {
    if !has_v6() {
        return;
    }
    let upstream = Upstream::answering(ok("fine"));
    let relay = Relay::to(&upstream.url()).start();
    for _ in 0..3 {
        for mut client in [relay.connect(), connect_v6(relay.port)] {
            assert_eq!(client.send(post("", "{}")).response().text(), "fine");
        }
    }
    // No other program can bind it.
    assert!(TcpListener::bind((Ipv6Addr::LOCALHOST, relay.port)).is_err());
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn users_are_told_apart_on_ipv6_too() {
    if !has_v6() {
        return;
    }
    // The tables of a machine with many connections take long to read.
    in_namespace("ip link set lo up", || {
        let upstream = Upstream::answering(ok("fine"));
        for tables in [false, true] {
            let mut starter = Relay::to(&upstream.url()).args(allowing(&[AGENT]));
            if tables {
                starter =
                    starter.refusing(libc::SYS_socket, Some(libc::AF_NETLINK), libc::EAFNOSUPPORT);
            }
            let relay = starter.start();
            let port = relay.port;
            let response = as_user(AGENT, || connect_v6(port).send(post("", "{}")).response());
            assert_eq!(response.status, 200);
            let response = as_user(OTHER, || connect_v6(port).try_send(post("", "{}")).response());
            assert_eq!(response.code(), "user_not_allowed");
        }
    });
}

#[test]
fn a_port_that_is_taken_on_ipv6_ends_the_start() {
    if !has_v6() {
        return;
    }
    let holder = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).unwrap();
    let port = holder.local_addr().unwrap().port().to_string();
    let (code, _, err) = Relay::bare().args(["--port", &port]).run(b"sk-key\n");
    assert_eq!(code, 1, "{err}");
    assert!(err.contains(&format!("cannot listen on [::1]:{port}: ")), "{err}");
    assert!(err.contains("choose another --port"), "{err}");
}

/// Runs a test in a network namespace of its own, after these shell commands.
pub fn in_namespace(setup: &'static str, test: impl FnOnce() + Send) {
    needs_root();
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: no memory is involved; the namespace is this thread's and its children's.
            if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
                skipped("no network namespace can be made here");
                return;
            }
            let done = std::process::Command::new("sh").args(["-ec", setup]).status();
            if done.is_ok_and(|status| status.success()) {
                test();
            } else {
                skipped("the namespace cannot be set up");
            }
        });
        thread.join().unwrap();
    });
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn a_machine_without_ipv6_gets_127_0_0_1_alone() {
    let setup = "ip link set lo up; echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6";
    in_namespace(setup, || {
        let relay = Relay::bare().start();
        let refused = relay.connect().send("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").response();
        assert_eq!(refused.status, 403);
        let line = relay.output_line("protections: ");
        assert!(line.contains("; 127.0.0.1 only, as there is no ::1"), "{line}");
    });
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn a_free_port_is_one_that_is_free_on_both() {
    let setup = "ip link set lo up; echo 40000 40007 > /proc/sys/net/ipv4/ip_local_port_range";
    in_namespace(setup, || {
        let holders: Vec<TcpListener> = (40_000..40_007)
            .map(|port| TcpListener::bind((Ipv6Addr::LOCALHOST, port)).unwrap())
            .collect();
        for _ in 0..3 {
            assert_eq!(Relay::bare().start().port, 40_007);
        }
        drop(holders);
    });
}

/// Takes the place of systemd: a shell that names itself in `LISTEN_PID` and becomes the relay. The
/// sockets are its descriptors from 3 on.
fn activated(sockets: Vec<OwnedFd>, pid: &str) -> Starter {
    let count = sockets.len();
    let script = format!(
        "export LISTEN_PID={pid} LISTEN_FDS={count} LISTEN_FDNAMES=http; exec \"$0\" \"$@\""
    );
    Relay::under(&["sh", "-c", &script]).command(|command| {
        // SAFETY: between fork and exec it makes system calls alone.
        unsafe {
            command.pre_exec(move || {
                // Out of the way of the low ones first.
                for (n, fd) in sockets.iter().enumerate() {
                    libc::dup2(fd.as_raw_fd(), 900 + n as RawFd);
                }
                for n in 0..count as RawFd {
                    libc::dup2(900 + n, 3 + n);
                    libc::close(900 + n);
                }
                Ok(())
            })
        };
    })
}

fn loopback_pair() -> (Vec<OwnedFd>, u16) {
    loop {
        let v4 = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = v4.local_addr().unwrap().port();
        if let Ok(v6) = TcpListener::bind((Ipv6Addr::LOCALHOST, port)) {
            return (vec![v4.into(), v6.into()], port);
        }
    }
}

#[test]
fn sockets_that_systemd_hands_over_are_served() {
    if !has_v6() {
        return;
    }
    let upstream = Upstream::answering(ok("fine"));
    let (sockets, port) = loopback_pair();
    let copy = || sockets.iter().map(|fd| fd.try_clone().unwrap()).collect();
    // One relay after the other, as systemd starts them.
    for _ in 0..2 {
        let mut relay = activated(copy(), "$$").upstream(&upstream.url()).start();
        assert_eq!(relay.port, port);
        for mut client in [relay.connect(), connect_v6(port)] {
            assert_eq!(client.send(post("", "{}")).response().status, 200);
        }
        assert!(!relay.output_line("protections: ").contains("ANOTHER USER"));
        // What is inside is not told to anybody, and the port stays systemd's.
        if !emulated()
            && let Ok(variables) = std::fs::read(format!("/proc/{}/environ", relay.pid()))
        {
            assert!(!variables.windows(7).any(|word| word == b"LISTEN_"));
        }
        relay.signal(libc::SIGTERM);
        assert_eq!(relay.exit_code(), 0);
        for address in [IpAddr::from([127, 0, 0, 1]), Ipv6Addr::LOCALHOST.into()] {
            assert!(TcpListener::bind((address, port)).is_err(), "the port is free");
        }
    }
}

#[test]
fn a_loopback_address_that_systemd_does_not_hold_is_named() {
    if !has_v6() {
        return;
    }
    let [v4, v6] = [IpAddr::from([127, 0, 0, 1]), Ipv6Addr::LOCALHOST.into()];
    for (held, other) in [(v4, v6), (v6, v4)] {
        let socket = TcpListener::bind((held, 0)).unwrap();
        let address = SocketAddr::new(other, socket.local_addr().unwrap().port());
        let relay = activated(vec![socket.into()], "$$").start();
        let line = relay.output_line("protections: ");
        assert!(line.contains(&format!("ANOTHER USER MAY LISTEN ON {address}")), "{line}");
        assert!(line.contains(&format!("add ListenStream={address}")), "{line}");
    }
}

#[test]
fn one_socket_is_enough_and_other_processes_sockets_are_not_taken() {
    let upstream = Upstream::answering(ok("fine"));
    let alone = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = alone.local_addr().unwrap().port();
    let relay = activated(vec![alone.into()], "$$").upstream(&upstream.url()).start();
    assert_eq!(relay.port, port);
    assert_eq!(relay.connect().send(post("", "{}")).response().status, 200);

    let (sockets, port) = loopback_pair();
    let copies: Vec<OwnedFd> = sockets.iter().map(|fd| fd.try_clone().unwrap()).collect();
    let relay = activated(sockets, "1").upstream(&upstream.url()).start();
    assert_ne!(relay.port, port);
    assert_eq!(relay.connect().send(post("", "{}")).response().status, 200);
    drop(copies);
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn the_sockets_stay_with_a_relay_that_changes_its_user_and_leaves() {
    needs_root();
    let upstream = Upstream::answering(ok("fine"));
    let (sockets, port) = loopback_pair();
    let starter = activated(sockets, "$$").upstream(&upstream.url());
    let relay = starter.args(["--user", "65534:65534"]).start();
    assert_eq!(relay.port, port);
    assert_eq!(connect_v6(port).send(post("", "{}")).response().status, 200);
}

#[test]
fn sockets_that_are_none_to_serve_on_end_the_start() {
    let v4 = || TcpListener::bind("127.0.0.1:0").unwrap();
    let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
    let server = v4();
    let connected = TcpStream::connect(server.local_addr().unwrap()).unwrap();
    let cases: Vec<(Vec<OwnedFd>, &str)> = vec![
        (vec![datagrams.into()], "not a listening TCP socket"),
        (vec![connected.into()], "not a listening TCP socket"),
        (vec![UnixDatagram::unbound().unwrap().into()], "not a listening TCP socket"),
        (vec![TcpListener::bind("0.0.0.0:0").unwrap().into()], "on another address than 127.0.0.1"),
        (
            vec![TcpListener::bind("127.0.0.2:0").unwrap().into()],
            "on another address than 127.0.0.1",
        ),
        (vec![v4().into(), v4().into()], "with the same port"),
        (vec![v4().into(), v4().into(), v4().into()], "LISTEN_FDS must be 1 or 2"),
    ];
    for (sockets, reason) in cases {
        let (code, _, err) = activated(sockets, "$$").run(b"sk-key\n");
        assert_eq!(code, 1, "{err}");
        assert!(err.contains("socket activation: ") && err.contains(reason), "{err}");
    }
    let (code, _, err) = activated(vec![v4().into()], "$$").args(["--port", "8080"]).run(b"k\n");
    assert_eq!(code, 2, "{err}");
    assert!(err.contains("--port") && err.contains("LISTEN_FDS"), "{err}");
    // They are said to be there and are not.
    let script = "export LISTEN_PID=$$ LISTEN_FDS=2; exec \"$0\" \"$@\" 3<&- 4<&-";
    let (code, _, err) = Relay::under(&["sh", "-c", script]).run(b"sk-key\n");
    assert_eq!(code, 1, "{err}");
    assert!(err.contains("not a listening TCP socket"), "{err}");
}

/// The next datagram.
fn news(socket: &UnixDatagram) -> String {
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut buffer = [0; 256];
    let len = socket.recv(&mut buffer).unwrap();
    String::from_utf8(buffer[..len].to_vec()).unwrap()
}

#[test]
fn the_service_manager_is_told_that_requests_are_served_and_that_the_end_has_begun() {
    let (tell, asked) = Gate::pair();
    let upstream = Upstream::plain(move |peer| {
        if peer.request().is_some() {
            tell.signal();
            peer.closed();
        }
    });
    let name = random_hex();
    let path = std::env::temp_dir().join(&name);
    let by_path = UnixDatagram::bind(&path).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777)).unwrap();
    let by_name =
        UnixDatagram::bind_addr(&UnixAddress::from_abstract_name(&name).unwrap()).unwrap();
    let address = path.to_str().unwrap().to_owned();
    let user: &[&str] = if is_root() { &["--user", "65534:65534"] } else { &[] };
    for (socket, address) in [(by_path, address), (by_name, format!("@{name}"))] {
        let relay = Relay::to(&upstream.url())
            .args(user)
            .args(["--grace", "60"])
            .env("NOTIFY_SOCKET", &address)
            .spawn(std::process::Stdio::piped());
        assert_eq!(news(&socket), format!("READY=1\nMAINPID={}", relay.pid()));
        let port = relay.line().rsplit_once(':').unwrap().1.parse().unwrap();
        let mut client = Client::connect(port);
        client.send(post("", "{}"));
        asked.wait();
        relay.signal(libc::SIGTERM);
        // Said while the exchange is still under way.
        assert_eq!(news(&socket), "STOPPING=1");
        assert!(quiet(&client.stream, Duration::ZERO));
        if !emulated()
            && let Ok(variables) = std::fs::read(format!("/proc/{}/environ", relay.pid()))
        {
            assert!(!variables.windows(6).any(|word| word == b"NOTIFY"));
        }
    }
    std::fs::remove_file(path).unwrap();
}

#[test]
fn a_service_manager_that_cannot_be_told_is_a_warning() {
    for address in ["/no/such/socket", "nonsense", "vsock:2:1"] {
        let mut relay = Relay::bare().env("NOTIFY_SOCKET", address).start();
        relay.signal(libc::SIGTERM);
        assert_eq!(relay.exit_code(), 0);
        let output = String::from_utf8(relay.output()).unwrap();
        assert!(output.contains("warning: NOTIFY_SOCKET: "), "{output}");
    }
}
