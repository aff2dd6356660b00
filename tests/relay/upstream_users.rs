//! Tests which processes on this machine may receive a secret in plaintext: the relay checks whose
//! process holds the other end of the connection. The other users are threads of the test with
//! another uid, which needs root.

use std::io::{self, Read};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::oidc::{Tokens, api, endpoints};
use super::proxy::HERE;
use super::support::relay::Starter;
use super::support::{Peer, Relay, Upstream, needs_root, ok, post, skipped, wait_for};

/// A local user who has nothing to do with the relay.
pub const STRANGER: u32 = 65_531;
/// Another one.
pub const OTHER: u32 = 65_530;

/// What is asked in place of netlink where that is refused.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Source {
    Netlink,
    Proc,
}

impl Source {
    pub const ALL: [Source; 2] = [Source::Netlink, Source::Proc];

    pub fn of(self, starter: Starter) -> Starter {
        match self {
            Source::Netlink => starter,
            Source::Proc => {
                starter.refusing(libc::SYS_socket, Some(libc::AF_NETLINK), libc::EAFNOSUPPORT)
            }
        }
    }
}

/// Runs this on a thread of its own that belongs to another user, as do the threads it starts.
pub fn as_user<T: Send + 'static>(uid: u32, work: impl FnOnce() -> T + Send + 'static) -> T {
    let thread = std::thread::spawn(move || {
        // SAFETY: plain numbers. The system call itself changes this thread alone; the process had
        // become non-dumpable by it.
        unsafe {
            assert_eq!(libc::syscall(libc::SYS_setresuid, uid, uid, uid), 0);
            libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0);
        }
        work()
    });
    thread.join().unwrap()
}

/// How a listener takes connections.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Ordinary,
    /// The kernel hands a connection over when its first byte has come (TCP_DEFER_ACCEPT).
    Deferred,
    /// One of two on the same port.
    Shared,
    Multipath,
}

const KINDS: [Kind; 4] = [Kind::Ordinary, Kind::Deferred, Kind::Shared, Kind::Multipath];

/// Listens; the second listener of [`Kind::Shared`] takes its part and says nothing. None where the
/// kernel does not know the kind or the address.
fn listen(kind: Kind, at: SocketAddr) -> Option<(TcpListener, Option<TcpListener>)> {
    let first = listener(kind, at).ok()?;
    let second = (kind == Kind::Shared).then(|| {
        let second = listener(kind, first.local_addr().unwrap()).unwrap();
        // SAFETY: no memory is involved.
        assert_eq!(unsafe { libc::listen(second.as_raw_fd(), 64) }, 0);
        second
    });
    Some((first, second))
}

fn listener(kind: Kind, at: SocketAddr) -> io::Result<TcpListener> {
    let protocol = if kind == Kind::Multipath { 262 } else { 0 };
    let family = if at.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    // SAFETY: no memory is involved.
    let fd = unsafe { libc::socket(family, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, protocol) };
    if fd == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new, and nothing else owns it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    match kind {
        Kind::Deferred => set(&fd, libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, 5),
        Kind::Shared => set(&fd, libc::SOL_SOCKET, libc::SO_REUSEPORT, 1),
        Kind::Ordinary | Kind::Multipath => {}
    }
    bind(&fd, at)?;
    // SAFETY: no memory is involved.
    match unsafe { libc::listen(fd.as_raw_fd(), 64) } {
        0 => Ok(fd.into()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn set(fd: &OwnedFd, level: i32, option: i32, value: i32) {
    let size = size_of::<i32>() as u32;
    let value = std::ptr::from_ref(&value).cast();
    // SAFETY: the kernel reads a number that outlives the call.
    assert_eq!(unsafe { libc::setsockopt(fd.as_raw_fd(), level, option, value, size) }, 0);
}

fn bind(fd: &OwnedFd, at: SocketAddr) -> io::Result<()> {
    with_address(at, |address, size| {
        // SAFETY: the kernel reads an address that outlives the call.
        unsafe { libc::bind(fd.as_raw_fd(), address, size) }
    })
}

fn with_address(
    at: SocketAddr,
    call: impl FnOnce(*const libc::sockaddr, u32) -> i32,
) -> io::Result<()> {
    let done = match at {
        SocketAddr::V4(at) => {
            let address = libc::sockaddr_in {
                sin_family: libc::AF_INET as u16,
                sin_port: at.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(at.ip().octets()) },
                sin_zero: [0; 8],
            };
            call(std::ptr::from_ref(&address).cast(), size_of_val(&address) as u32)
        }
        SocketAddr::V6(at) => {
            let address = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as u16,
                sin6_port: at.port().to_be(),
                sin6_flowinfo: 0,
                sin6_addr: libc::in6_addr { s6_addr: at.ip().octets() },
                sin6_scope_id: 0,
            };
            call(std::ptr::from_ref(&address).cast(), size_of_val(&address) as u32)
        }
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Connects from this address.
pub fn connect_from(from: SocketAddr, to: SocketAddr) -> TcpStream {
    // SAFETY: no memory is involved.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    // SAFETY: the descriptor is new, and nothing else owns it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    bind(&fd, from).unwrap();
    with_address(to, |address, size| {
        // SAFETY: the kernel reads an address that outlives the call.
        unsafe { libc::connect(fd.as_raw_fd(), address, size) }
    })
    .unwrap();
    fd.into()
}

/// An upstream that notes every byte.
struct Server {
    upstream: Upstream,
    received: Arc<Mutex<Vec<u8>>>,
    /// Connections that have been read to their end, or have carried a response.
    ended: Arc<AtomicUsize>,
}

impl Server {
    /// Its threads are this user's.
    fn start(uid: u32, listener: TcpListener) -> Server {
        let received: Arc<Mutex<Vec<u8>>> = Arc::default();
        let ended: Arc<AtomicUsize> = Arc::default();
        let (noted, count) = (received.clone(), ended.clone());
        let script = move |peer: &mut Peer| {
            let mut head: Vec<u8> = Vec::new();
            let mut part = [0; 4096];
            while let Ok(n @ 1..) = peer.read(&mut part) {
                noted.lock().unwrap().extend(&part[..n]);
                head.extend(&part[..n]);
                if head.windows(4).any(|end| end == b"\r\n\r\n") {
                    let close = "Connection: close\r\nContent-Length: 4\r\n\r\nfine";
                    peer.write(format!("HTTP/1.1 200 OK\r\n{close}"));
                    peer.close();
                    break;
                }
            }
            count.fetch_add(1, Ordering::SeqCst);
        };
        let upstream = as_user(uid, move || Upstream::on(listener, None, script));
        Server { upstream, received, ended }
    }

    /// All that came on connections that are over now, of which there has to be one.
    fn take(&self) -> String {
        wait_for(|| {
            let ended = self.ended.load(Ordering::SeqCst);
            ended > 0 && ended == self.upstream.connections()
        });
        self.take_now()
    }

    /// All that came so far.
    fn take_now(&self) -> String {
        String::from_utf8(std::mem::take(&mut *self.received.lock().unwrap())).unwrap()
    }
}

/// What becomes of one request on a connection of its own: the status, and `error.code`.
fn ask(relay: &Relay) -> (u16, String) {
    let response = relay.connect().send(post("", "{}")).response();
    let code = if response.status == 200 { String::new() } else { response.code().to_owned() };
    (response.status, code)
}

const REFUSED: (u16, &str) = (502, "upstream_not_trusted");
const SERVED: (u16, &str) = (200, "");

#[track_caller]
fn expect(relay: &Relay, want: (u16, &str), what: impl std::fmt::Debug) {
    let (status, code) = ask(relay);
    assert_eq!((status, code.as_str()), want, "{what:?}");
}

fn url(at: SocketAddr) -> String {
    format!("http://{at}/v1/responses")
}

fn trusting(url: &str, uid: u32) -> Starter {
    Relay::to(url).args(["--upstream-uid", &uid.to_string()])
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn a_stranger_who_holds_the_upstreams_port_gets_nothing() {
    needs_root();
    for at in ["127.0.0.1:0", "[::1]:0"] {
        for kind in KINDS {
            let at = at.parse().unwrap();
            let Some((first, second)) = as_user(STRANGER, move || listen(kind, at)) else {
                skipped(&format!("{kind:?} at {at}"));
                continue;
            };
            let url = url(first.local_addr().unwrap());
            let listeners = [Some(first), second].into_iter().flatten();
            let servers: Vec<Server> =
                listeners.map(|listener| Server::start(STRANGER, listener)).collect();
            for source in Source::ALL {
                eprintln!("{at} {kind:?} {source:?}");
                let relay = source.of(Relay::to(&url)).start();
                for _ in 0..5 {
                    expect(&relay, REFUSED, (at, kind, source));
                }
                drop(relay);
                let got = match (kind, servers.as_slice()) {
                    (Kind::Ordinary | Kind::Multipath, [server]) => server.take(),
                    // Which of the two it is, and whether a connection without a byte is ever
                    // accepted, is the kernel's business.
                    _ => servers.iter().map(Server::take_now).collect(),
                };
                assert_eq!(got, "", "{at} {kind:?} {source:?}");
                let relay = source.of(trusting(&url, STRANGER)).start();
                expect(&relay, SERVED, (at, kind, source));
                let got: String = servers.iter().map(Server::take_now).collect();
                assert!(got.starts_with("POST /v1/responses HTTP/1.1\r\n"));
            }
        }
    }
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn a_connection_to_a_stranger_is_reset() {
    needs_root();
    let listener = as_user(STRANGER, || TcpListener::bind("127.0.0.1:0").unwrap());
    let relay = Relay::to(&url(listener.local_addr().unwrap())).start();
    for _ in 0..5 {
        expect(&relay, REFUSED, "another user");
        // One ahead of the request or one for it: all that has come until now.
        listener.set_nonblocking(true).unwrap();
        let connections: Vec<TcpStream> =
            std::iter::from_fn(|| listener.accept().ok()).map(|(stream, _)| stream).collect();
        assert!(!connections.is_empty());
        for mut stream in connections {
            stream.set_nonblocking(false).unwrap();
            let end = stream.read(&mut [0]).map_err(|error| error.kind());
            assert_eq!(end, Err(io::ErrorKind::ConnectionReset));
        }
    }
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn a_connection_that_is_not_accepted_yet_is_the_listeners() {
    needs_root();
    for kind in KINDS {
        for source in Source::ALL {
            let at = "127.0.0.1:0".parse().unwrap();
            let Some((squatted, second)) = as_user(STRANGER, move || listen(kind, at)) else {
                skipped(&format!("{kind:?}"));
                continue;
            };
            let url = url(squatted.local_addr().unwrap());
            let relay = source.of(Relay::to(&url)).start();
            expect(&relay, REFUSED, (kind, source));
            // The connections that wait hold nothing.
            for listener in [Some(&squatted), second.as_ref()].into_iter().flatten() {
                listener.set_nonblocking(true).unwrap();
                while let Ok((mut stream, _)) = listener.accept() {
                    let mut bytes = Vec::new();
                    let _ = stream.read_to_end(&mut bytes);
                    assert!(bytes.is_empty(), "{kind:?} {source:?}");
                }
                listener.set_nonblocking(false).unwrap();
            }
            // One who is named is trusted before accept too.
            drop(second);
            let relay = source.of(trusting(&url, STRANGER)).start();
            let mut client = relay.connect();
            client.send(post("", "{}"));
            let _server = Server::start(STRANGER, squatted);
            assert_eq!(client.response().status, 200, "{kind:?} {source:?}");
        }
    }
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_the_relays_own_user_and_the_one_that_started_it_are_trusted() {
    needs_root();
    let at = "127.0.0.1:0";
    for uid in [0, STRANGER] {
        let listener = as_user(uid, move || TcpListener::bind(at).unwrap());
        let url = url(listener.local_addr().unwrap());
        let _server = Server::start(uid, listener);
        for (user, own) in [(OTHER, false), (STRANGER, true)] {
            let relay = Relay::to(&url).args(["--user", &format!("{user}:{user}")]).start();
            let want = if uid == 0 || own { SERVED } else { REFUSED };
            expect(&relay, want, (uid, user));
        }
        // The relay stays uid 0, and was started by a user who is not.
        let relay = Relay::to(&url)
            .command(|command| {
                use std::os::unix::process::CommandExt;
                // SAFETY: between fork and exec it makes one system call.
                unsafe {
                    command.pre_exec(|| {
                        libc::syscall(libc::SYS_setresuid, STRANGER, 0, 0);
                        Ok(())
                    })
                };
            })
            .start();
        expect(&relay, SERVED, uid);
        let line = relay.output_line("protections: ");
        assert!(line.contains("a local upstream must be of uid 0 or 65531"), "{line}");
    }
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn a_worker_that_accepts_for_root_is_trusted_when_it_is_named() {
    needs_root();
    for source in Source::ALL {
        // Root listens, another user accepts: so a connection is of either, by the moment.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = url(listener.local_addr().unwrap());
        let server = Server::start(STRANGER, listener);
        let relay = source.of(trusting(&url, STRANGER)).start();
        for _ in 0..50 {
            expect(&relay, SERVED, source);
        }
        assert!(server.upstream.connections() >= 50, "a connection for each");
    }
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn the_kernel_is_not_asked_with_any() {
    needs_root();
    let listener = as_user(STRANGER, || TcpListener::bind("127.0.0.1:0").unwrap());
    let url = url(listener.local_addr().unwrap());
    let _server = Server::start(STRANGER, listener);
    let relay = Relay::to(&url).args(["--upstream-uid", "any"]).start();
    expect(&relay, SERVED, "any");
    let line = relay.output_line("protections: ");
    assert!(
        line.contains("A LOCAL UPSTREAM MAY BELONG TO ANY USER (--upstream-uid any)"),
        "{line}"
    );
    // The flag for other machines does not switch it off.
    let relay = Relay::to(&url).args(["--allow-plaintext-upstream"]).start();
    expect(&relay, REFUSED, "--allow-plaintext-upstream");
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn localhost_is_one_address_and_the_other_only_where_that_is_refused() {
    needs_root();
    for name in ["localhost", "a.localhost"] {
        let real = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = real.local_addr().unwrap().port();
        let at = SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, port));
        let Ok(squatted) = as_user(STRANGER, move || TcpListener::bind(at)) else {
            skipped("this machine has no IPv6");
            return;
        };
        let real = Server::start(0, real);
        let squatter = Server::start(STRANGER, squatted);
        let url = format!("http://{name}:{port}/v1/responses");
        let relay = Relay::to(&url).start();
        for _ in 0..10 {
            expect(&relay, SERVED, name);
        }
        assert!(real.take().starts_with("POST "));
        // The real one ends: its port refuses, the other family is asked, and is another user's.
        drop(real);
        let refused = || TcpStream::connect(("127.0.0.1", port)).is_err();
        wait_for(refused);
        expect(&relay, REFUSED, name);
        drop(relay);
        assert_eq!(squatter.take(), "", "{name}");
        let relay = trusting(&url, STRANGER).start();
        expect(&relay, SERVED, name);
    }
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn a_proxys_password_goes_to_no_stranger() {
    needs_root();
    for source in Source::ALL {
        let listener = as_user(STRANGER, || TcpListener::bind("127.0.0.1:0").unwrap());
        let at = listener.local_addr().unwrap();
        let squatter = Server::start(STRANGER, listener);
        let relay = |proxy: &str, more: &[&str]| {
            let starter = Relay::to("https://upstream.test/v1/responses").args(more);
            source.of(starter).env("https_proxy", proxy).start()
        };
        let with = format!("http://user:secret@{at}");
        expect(&relay(&with, &[]), REFUSED, source);
        assert_eq!(squatter.take(), "", "{source:?}");
        let trusted = relay(&with, &["--upstream-uid", &STRANGER.to_string()]);
        // It gets the request for a tunnel, and opens none.
        let (status, code) = ask(&trusted);
        assert!(status == 502 && code != REFUSED.1, "{code}");
        let got = squatter.take();
        assert!(got.starts_with("CONNECT upstream.test:443 HTTP/1.1\r\n"), "{got}");
        assert!(got.contains("Proxy-Authorization: Basic dXNlcjpzZWNyZXQ="), "{got}");
        // Without a password no secret is sent.
        let (status, code) = ask(&relay(&format!("http://{at}"), &[]));
        assert!(status == 502 && code != REFUSED.1, "{code}");
        let got = squatter.take();
        assert!(got.starts_with("CONNECT upstream.test:443 HTTP/1.1\r\n"), "{got}");
    }
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn a_token_of_github_oidc_goes_to_no_stranger() {
    needs_root();
    let tokens = Tokens::new();
    let (github, _) = endpoints(&tokens, 900);
    let api = api(&tokens);
    let listener = as_user(STRANGER, || TcpListener::bind("127.0.0.1:0").unwrap());
    let local = format!("http://{}/", listener.local_addr().unwrap());
    let squatter = Server::start(STRANGER, listener);
    let first = format!("https://localhost:{}/", github.upstream.port);
    for (request_url, token_url, secret) in
        [(&local, &local, &tokens.request), (&first, &local, &tokens.id)]
    {
        let run = |more: &[&str]| {
            let starter = Relay::to(&api.url())
                .args(["--github-oidc", "--oidc-audience", "a", "--identity-provider-id", "i"])
                .args(["--service-account-id", "s", "--github-oidc-request-url", request_url])
                .args(["--oidc-token-url", token_url])
                .args(more);
            let (code, _, err) = starter.run(format!("{}\n", tokens.request).as_bytes());
            assert_eq!(code, 1, "{err}");
            err
        };
        let err = run(&[]);
        assert!(err.contains("no connection (upstream_not_trusted)"), "{err}");
        assert!(squatter.take().is_empty(), "a token went to a stranger");
        let err = run(&["--upstream-uid", &STRANGER.to_string()]);
        assert!(err.contains("the response is not one JSON object"), "{err}");
        assert!(squatter.take().contains(secret), "a user who is trusted got no token");
    }
}

/// Runs this on a thread in a network of its own, in which this machine has two further addresses.
fn in_a_network(work: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(move || {
        // SAFETY: no memory is involved. The system call changes this thread alone.
        assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0);
        for line in
            ["link set lo up", "addr add 192.0.2.1/24 dev lo", "addr add 192.0.2.2/24 dev lo"]
        {
            match Command::new("ip").args(line.split(' ')).status() {
                Ok(status) => assert!(status.success(), "ip {line}"),
                Err(_) => return skipped("iproute2 is not installed"),
            }
        }
        work();
    });
    thread.join().unwrap();
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn a_stranger_on_another_address_of_this_machine_gets_nothing() {
    needs_root();
    in_a_network(|| {
        for source in Source::ALL {
            let targets = [
                ("192.0.2.1", "192.0.2.1"),
                ("192.0.2.2", "192.0.2.2"),
                ("127.0.0.1", HERE),
                ("127.0.0.1", "[::ffff:127.0.0.1]"),
                ("0.0.0.0", "192.0.2.2"),
            ];
            for (address, host) in targets {
                for (uid, want) in [(STRANGER, REFUSED), (0, SERVED)] {
                    let listener = as_user(uid, move || TcpListener::bind((address, 0)).unwrap());
                    let port = listener.local_addr().unwrap().port();
                    let server = Server::start(uid, listener);
                    let url = format!("http://{host}:{port}/v1/responses");
                    let starter = Relay::to(&url).args(["--allow-plaintext-upstream"]);
                    let relay = source.of(starter).start();
                    expect(&relay, want, (host, uid, source));
                    drop(relay);
                    assert_eq!(server.take().is_empty(), want == REFUSED);
                }
            }
        }
    });
}

/// A socket of the calling thread's user, bound to this port. Several can be, and a listener too,
/// as long as none listens yet.
fn bound(at: SocketAddr) -> OwnedFd {
    let flags = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: no memory is involved.
    let fd = unsafe { libc::socket(libc::AF_INET, flags, 0) };
    // SAFETY: the descriptor is new, and nothing else owns it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    set(&fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1);
    bind(&fd, at).unwrap();
    fd
}

/// Has the kernel drop every segment that comes for this socket but a bare SYN: no reset ends it,
/// and no ACK completes its connection.
fn take_only_syn(fd: &OwnedFd) {
    let step = |code: u32, jf, k| libc::sock_filter { code: code as u16, jt: 0, jf, k };
    let mut steps = [
        step(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 0, 13),
        step(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, 0, 0x16),
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, 0x02),
        step(libc::BPF_RET | libc::BPF_K, 0, 0xffff),
        step(libc::BPF_RET | libc::BPF_K, 0, 0),
    ];
    let program = libc::sock_fprog { len: steps.len() as u16, filter: steps.as_mut_ptr() };
    let size = size_of_val(&program) as u32;
    let program = std::ptr::from_ref(&program).cast();
    let (level, name) = (libc::SOL_SOCKET, libc::SO_ATTACH_FILTER);
    // SAFETY: the kernel reads a program that outlives the call.
    assert_eq!(unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, program, size) }, 0);
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn a_strangers_socket_that_stays_half_open_is_not_the_listeners() {
    needs_root();
    in_a_network(|| {
        std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", "40000 40063").unwrap();
        for (port, source) in (7777..).zip(Source::ALL) {
            let at = SocketAddr::from(([127, 0, 0, 1], port));
            // While the upstream is down another user binds sockets to its port, one for each port
            // that the relay may connect from. Each meets the relay's SYN with one of its own.
            let sockets = as_user(STRANGER, move || (0..64).map(|_| bound(at)).collect::<Vec<_>>());
            // Some kernels allow it to root alone; the socket stays the other user's.
            sockets.iter().for_each(take_only_syn);
            let real = Server::start(0, TcpListener::bind(at).unwrap());
            let relay = source.of(Relay::to(&url(at))).start();
            for (port, socket) in (40_000..).zip(&sockets) {
                let to = SocketAddr::from(([127, 0, 0, 1], port));
                let begun = with_address(to, |address, size| {
                    // SAFETY: the kernel reads an address that outlives the call.
                    unsafe { libc::connect(socket.as_raw_fd(), address, size) }
                });
                assert!(begun.is_err_and(|e| e.raw_os_error() == Some(libc::EINPROGRESS)));
            }
            expect(&relay, REFUSED, source);
            assert_eq!(real.take_now(), "");
        }
    });
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn check_says_that_the_upstream_is_a_strangers() {
    needs_root();
    let listener = as_user(STRANGER, || TcpListener::bind("127.0.0.1:0").unwrap());
    let url = url(listener.local_addr().unwrap());
    let _server = Server::start(STRANGER, listener);
    let (code, _, err) = Relay::to(&url).args(["--check"]).run(b"");
    assert_eq!(code, 1, "{err}");
    assert!(err.contains("--upstream-uid"), "{err}");
    let (code, out, err) = trusting(&url, STRANGER).args(["--check"]).run(b"");
    assert_eq!(code, 0, "{out}{err}");
}

#[test]
fn an_upstream_that_closes_at_once_is_told_apart_from_a_strangers() {
    let upstream = Upstream::plain(|peer| peer.close());
    let relay = Relay::to(&upstream.url()).start();
    for _ in 0..20 {
        expect(&relay, (502, "upstream_closed"), "closes");
    }
    let upstream = Upstream::plain(|peer| peer.reset());
    let relay = Relay::to(&upstream.url()).start();
    for _ in 0..20 {
        let (status, code) = ask(&relay);
        assert!(status == 502 && code != REFUSED.1, "{code}");
    }
}

#[test]
fn a_connection_that_is_kept_is_not_asked_about_again() {
    let upstream = Upstream::plain(|peer| {
        while peer.request().is_some() {
            peer.write(ok("fine"));
        }
    });
    let relay = Relay::to(&upstream.url()).start();
    let mut client = relay.connect();
    for _ in 0..3 {
        assert_eq!(client.send(post("", "{}")).response().status, 200);
    }
    assert_eq!(upstream.connections(), 1);
}
