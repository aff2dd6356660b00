//! Tests which address the relay connects to: names with several addresses, addresses that fail,
//! names that move, name servers that hang. The relay runs in its own mount namespace with its own
//! `/etc/hosts` and name server, which needs root.

use std::ffi::CString;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::listening::in_namespace;
use super::support::port::free_port;
use super::support::relay::{Starter, random_hex};
use super::support::upstream::Kind;
use super::support::{
    Client, Gate, Peer, Relay, Upstream, certs, needs_root, pace, post, skipped, wait_for,
};

const NAME: &str = "upstream.test";
const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// A file that is gone when this goes; a process that has mounted it keeps it.
struct Temporary(PathBuf);

impl Temporary {
    fn new(text: &str) -> Temporary {
        let path = std::env::temp_dir().join(random_hex());
        fs::write(&path, text).unwrap();
        Temporary(path)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Starts it where these and localhost's are the lines of `/etc/hosts`, and this the one name
/// server.
fn start(starter: Starter, hosts: &str, server: IpAddr) -> Relay {
    start_with(starter, &format!("127.0.0.1 localhost\n{hosts}"), server)
}

/// Starts it where this is `/etc/hosts`.
fn start_with(starter: Starter, hosts: &str, server: IpAddr) -> Relay {
    let files = [
        ("/etc/hosts", Temporary::new(hosts)),
        ("/etc/resolv.conf", Temporary::new(&format!("nameserver {server}\n"))),
        ("/etc/nsswitch.conf", Temporary::new("hosts: files dns\n")),
    ];
    let mounts: Vec<_> = files
        .iter()
        .filter(|(over, _)| fs::exists(over).unwrap())
        .map(|(over, file)| {
            (CString::new(file.0.as_os_str().as_bytes()).unwrap(), CString::new(*over).unwrap())
        })
        .collect();
    let mount = move || {
        let none = std::ptr::null();
        // SAFETY: system calls on strings that outlive them.
        let done = unsafe {
            libc::unshare(libc::CLONE_NEWNS) == 0
                && libc::mount(
                    none,
                    c"/".as_ptr(),
                    none,
                    libc::MS_REC | libc::MS_PRIVATE,
                    none.cast(),
                ) == 0
                && mounts.iter().all(|(file, over)| {
                    let (file, over) = (file.as_ptr(), over.as_ptr());
                    libc::mount(file, over, none, libc::MS_BIND, none.cast()) == 0
                })
        };
        if done { Ok(()) } else { Err(std::io::Error::last_os_error()) }
    };
    starter
        .command(|command| {
            // SAFETY: between fork and exec it does no more than that.
            unsafe { command.pre_exec(mount) };
        })
        .start()
}

/// A name server: `answers` says what addresses the name has now, or nothing, and then nothing is
/// said. Its address, and how many questions for IPv4 addresses have come.
fn name_server(
    answers: impl Fn() -> Option<Vec<IpAddr>> + Send + 'static,
) -> (IpAddr, Arc<AtomicUsize>) {
    let random = random_hex();
    let number = |at: usize| u8::from_str_radix(&random[at..at + 2], 16).unwrap();
    let address = Ipv4Addr::new(127, 53, number(0), number(2));
    let socket = UdpSocket::bind((address, 53)).unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    std::thread::spawn(move || {
        let mut question = [0; 512];
        while let Ok((n, from)) = socket.recv_from(&mut question) {
            // The name ends with an empty label; its type and class follow.
            let Some(end) = question[12..n].iter().position(|byte| *byte == 0) else { continue };
            let end = 12 + end + 5;
            let kind = question[end - 3];
            count.fetch_add(usize::from(kind == 1), Ordering::SeqCst);
            let Some(addresses) = answers() else { continue };
            let records: Vec<Vec<u8>> = addresses
                .iter()
                .filter_map(|address| match (address, kind) {
                    (IpAddr::V4(address), 1) => Some(address.octets().to_vec()),
                    (IpAddr::V6(address), 28) => Some(address.octets().to_vec()),
                    _ => None,
                })
                .collect();
            let count = records.len() as u8;
            let mut answer = [&question[..2], &[0x81, 0x80, 0, 1, 0, count, 0, 0, 0, 0]].concat();
            answer.extend(&question[12..end]);
            for record in records {
                answer.extend([0xc0, 12, 0, kind, 0, 1, 0, 0, 0, 0, 0, record.len() as u8]);
                answer.extend(record);
            }
            let _ = socket.send_to(&answer, from);
        }
    });
    (address.into(), asked)
}

/// No response comes from this address.
const NO_SERVER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 250));

/// One connection for each request, whose response is this.
fn closing(answer: &'static str) -> impl Fn(&mut Peer) + Send + Sync + 'static {
    move |peer| {
        if peer.request().is_some() {
            let length = answer.len();
            peer.write(format!(
                "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{answer}"
            ));
            peer.close();
        }
    }
}

fn on(address: IpAddr, port: u16, answer: &'static str) -> Upstream {
    let listener = TcpListener::bind((address, port)).unwrap();
    Upstream::on(listener, Some(certs().config(Kind::Good, rustls::ALL_VERSIONS)), closing(answer))
}

/// Listens, with a queue that is full: clients that connect wait.
fn hanging(address: IpAddr, port: u16) -> (TcpListener, Vec<TcpStream>) {
    let listener = TcpListener::bind((address, port)).unwrap();
    // SAFETY: no memory is involved.
    unsafe { libc::listen(listener.as_raw_fd(), 0) };
    let to = SocketAddr::new(address, port);
    let mut queue = Vec::new();
    while let Ok(stream) = TcpStream::connect_timeout(&to, Duration::from_millis(300)) {
        queue.push(stream);
        assert!(queue.len() < 100, "the queue does not fill");
    }
    (listener, queue)
}

fn ask(client: &mut Client) -> (u16, String) {
    let response = client.send(post("", "{}")).response();
    let said = if response.status == 200 { response.text() } else { response.code() };
    (response.status, said.to_owned())
}

fn v4(last: u8) -> IpAddr {
    Ipv4Addr::new(127, 0, 0, last).into()
}

#[test]
fn literal_addresses_need_no_name_server() {
    let v6: IpAddr = Ipv6Addr::LOCALHOST.into();
    if TcpListener::bind((v6, 0)).is_err() {
        skipped("this machine has no IPv6");
        return;
    }
    let upstream = on(v6, 0, "six");
    let relay = Relay::to(&upstream.url_at("[::1]")).start();
    assert_eq!(ask(&mut relay.connect()), (200, "six".into()));
    let upstream = on(HERE, 0, "four");
    let relay = Relay::to(&upstream.url_at("127.0.0.1")).start();
    assert_eq!(ask(&mut relay.connect()), (200, "four".into()));
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn every_address_is_tried_before_the_client_is_told() {
    needs_root();
    let upstream = on(HERE, 0, "here");
    let hosts = |last: u8| {
        let all = [2, 3, 4, 5, last].map(|n| format!("127.0.0.{n} {NAME}\n"));
        format!("::1 {NAME}\n{}", all.concat())
    };
    let url = upstream.url_at(NAME);
    let relay = start(Relay::to(&url), &hosts(1), NO_SERVER);
    assert_eq!(ask(&mut relay.connect()), (200, "here".into()));
    let relay = start(Relay::to(&url), &hosts(6), NO_SERVER);
    assert_eq!(ask(&mut relay.connect()), (502, "upstream_refused".into()));
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn the_first_16_addresses_of_a_name_are_tried() {
    needs_root();
    let upstream = on(v4(99), 0, "last");
    let url = upstream.url_at(NAME);
    for (before, want) in
        [(15, (200, "last".to_owned())), (16, (502, "upstream_refused".to_owned()))]
    {
        let refusing: String =
            (0..before).map(|n| format!("127.0.0.{} {NAME}\n", 51 + n)).collect();
        let relay = start(Relay::to(&url), &format!("{refusing}127.0.0.99 {NAME}\n"), NO_SERVER);
        assert_eq!(ask(&mut relay.connect()), want, "behind {before}");
    }
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn localhost_may_be_either_family() {
    needs_root();
    let upstream = on(HERE, 0, "four");
    let relay = start(Relay::to(&upstream.url()), "::1 localhost\n", NO_SERVER);
    assert_eq!(ask(&mut relay.connect()), (200, "four".into()));
    if let Ok(listener) = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)) {
        let config = certs().config(Kind::Good, rustls::ALL_VERSIONS);
        let upstream = Upstream::on(listener, Some(config), closing("six"));
        let relay = start(Relay::to(&upstream.url()), "::1 localhost\n", NO_SERVER);
        assert_eq!(ask(&mut relay.connect()), (200, "six".into()));
    }
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn localhost_is_never_looked_up() {
    needs_root();
    let wrong = v4(9);
    let listener = TcpListener::bind((HERE, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let plain = Upstream::on(listener, None, closing("here"));
    let elsewhere =
        Upstream::on(TcpListener::bind((wrong, port)).unwrap(), None, closing("elsewhere"));
    let (server, asked) = name_server(move || Some(vec![wrong]));
    for name in ["localhost", "LOCALHOST", "a.b.localhost"] {
        for hosts in ["", "127.0.0.9 localhost a.b.localhost\n"] {
            let relay = start_with(Relay::to(&plain.url_at(name)), hosts, server);
            assert_eq!(ask(&mut relay.connect()), (200, "here".into()), "{name} by {hosts:?}");
        }
    }
    assert_eq!(elsewhere.connections(), 0);
    // Over TLS it is no other.
    let secure = on(HERE, 0, "here");
    let relay = start_with(Relay::to(&secure.url()), "127.0.0.9 localhost\n", server);
    assert_eq!(ask(&mut relay.connect()), (200, "here".into()));
    // A proxy's name is no other either.
    let listener = TcpListener::bind((HERE, 0)).unwrap();
    let proxy = listener.local_addr().unwrap().port();
    let refusing = Upstream::on(listener, None, |peer| {
        if peer.head().is_some() {
            peer.write("HTTP/1.1 407 Authenticate\r\nContent-Length: 0\r\n\r\n");
        }
    });
    let starter = Relay::to("https://upstream.test/v1/responses")
        .env("https_proxy", &format!("http://localhost:{proxy}"));
    let relay = start_with(starter, "127.0.0.9 localhost\n", server);
    assert_eq!(ask(&mut relay.connect()), (502, "proxy_auth_required".into()));
    assert_eq!(refusing.connections(), 1);
    assert_eq!(asked.load(Ordering::SeqCst), 0);
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn an_address_that_hangs_is_overtaken_after_250_ms() {
    needs_root();
    let upstream = on(HERE, 0, "here");
    let port = upstream.port;
    let v6: IpAddr = Ipv6Addr::LOCALHOST.into();
    let mut hanging_ones = vec![hanging(v4(2), port), hanging(v4(3), port)];
    if TcpListener::bind((v6, 0)).is_ok() {
        hanging_ones.push(hanging(v6, port));
    }
    let hosts: String = hanging_ones
        .iter()
        .rev()
        .map(|(listener, _)| format!("{} {NAME}\n", listener.local_addr().unwrap().ip()))
        .collect();
    let hosts = format!("{hosts}127.0.0.1 {NAME}\n");
    let relay = start(Relay::to(&upstream.url_at(NAME)), &hosts, NO_SERVER);
    let begun = Instant::now();
    assert_eq!(ask(&mut relay.connect()), (200, "here".into()));
    let took = begun.elapsed();
    let (least, most) = (Duration::from_millis(240), Duration::from_secs(8));
    assert!(took > least && took < most, "{took:?} for {} that hang", hanging_ones.len());
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn a_name_that_moves_is_followed_when_connections_fail() {
    needs_root();
    let upstream = on(HERE, 0, "here");
    let strange = Upstream::on(
        TcpListener::bind((v4(3), upstream.port)).unwrap(),
        Some(certs().config(Kind::WrongName, rustls::ALL_VERSIONS)),
        |_| {},
    );
    let now: Arc<Mutex<Vec<IpAddr>>> = Arc::default();
    let shared = now.clone();
    let (server, asked) = name_server(move || Some(shared.lock().unwrap().clone()));
    let relay = start(Relay::to(&upstream.url_at(NAME)), "", server);
    let mut client = relay.connect();
    for (addresses, want) in [
        (vec![], (502, "upstream_dns_failed")),
        (vec![v4(2)], (502, "upstream_refused")),
        (vec![strange.address().ip()], (502, "upstream_tls_wrong_name")),
        (vec![HERE], (200, "here")),
    ] {
        *now.lock().unwrap() = addresses;
        assert_eq!(ask(&mut client), (want.0, want.1.to_owned()));
    }
    // What works is remembered, however many connections are made.
    let before = asked.load(Ordering::SeqCst);
    for _ in 0..5 {
        assert_eq!(ask(&mut client), (200, "here".into()));
    }
    assert_eq!((upstream.connections() >= 6, asked.load(Ordering::SeqCst)), (true, before));
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn the_last_good_addresses_are_used_when_a_name_server_has_none_or_hangs() {
    needs_root();
    for later in [Some(vec![]), None] {
        let random = random_hex();
        let part = |at: usize| u8::from_str_radix(&random[at..at + 2], 16).unwrap();
        // An address that no other test uses, so that its port stays free.
        let address: IpAddr = Ipv4Addr::new(127, 54, part(0), part(2)).into();
        let port = free_port();
        let now = Arc::new(Mutex::new(Some(vec![address])));
        let shared = now.clone();
        let (server, asked) = name_server(move || shared.lock().unwrap().clone());
        let relay = start(Relay::to(&format!("https://{NAME}:{port}/")), "", server);
        let mut client = relay.connect();
        assert_eq!(ask(&mut client), (502, "upstream_refused".into()));
        // It may have moved, so the name is asked for again.
        let before = asked.load(Ordering::SeqCst);
        *now.lock().unwrap() = later;
        let _upstream = on(address, port, "here");
        assert_eq!(ask(&mut client), (200, "here".into()));
        assert!(asked.load(Ordering::SeqCst) > before);
    }
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn lookups_that_find_nothing_become_rarer_and_requests_share_them() {
    needs_root();
    let (server, asked) = name_server(|| Some(vec![]));
    let relay = start(Relay::to(&format!("https://{NAME}/")), "", server);
    let mut client = relay.connect();
    let begun = Instant::now();
    for _ in 0..5 {
        assert_eq!(ask(&mut client), (502, "upstream_dns_failed".into()));
    }
    // Between them 0.1, 0.2, 0.4 and 0.8 seconds pass.
    assert!(begun.elapsed() >= Duration::from_millis(1500), "{:?}", begun.elapsed());
    // A C library may ask once more with a domain of its own.
    assert!(asked.load(Ordering::SeqCst) <= 10);
    let before = asked.load(Ordering::SeqCst);
    let mut clients: Vec<_> = (0..30).map(|_| relay.connect()).collect();
    clients.iter_mut().for_each(|client| {
        client.send(post("", "{}"));
    });
    for client in &mut clients {
        assert_eq!(client.response().code(), "upstream_dns_failed");
    }
    assert!(asked.load(Ordering::SeqCst) <= before + 4);
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
#[cfg_attr(root, ignore = "takes a minute")]
fn a_name_is_looked_up_again_after_a_minute() {
    needs_root();
    let first = on(HERE, 0, "first");
    let second = on(v4(2), first.port, "second");
    let now = Arc::new(Mutex::new(vec![HERE]));
    let (tell, questions) = Gate::pair();
    let shared = now.clone();
    let (server, _) = name_server(move || {
        tell.signal();
        Some(shared.lock().unwrap().clone())
    });
    let relay = start(Relay::to(&first.url_at(NAME)), "", server);
    let begun = Instant::now();
    assert_eq!(ask(&mut relay.connect()), (200, "first".into()));
    *now.lock().unwrap() = vec![second.address().ip()];
    questions.drain();
    loop {
        let answer = ask(&mut relay.connect());
        if questions.wait_within(Duration::from_secs(1)).is_some() {
            break;
        }
        assert_eq!(answer, (200, "first".into()));
        assert!(begun.elapsed() < Duration::from_secs(65), "it does not ask again");
    }
    assert!(begun.elapsed() > Duration::from_secs(58), "{:?}", begun.elapsed());
    // The connection that was made in advance may still lead to the first.
    ask(&mut relay.connect());
    assert_eq!(ask(&mut relay.connect()), (200, "second".into()));
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn a_name_server_that_hangs_holds_nothing_up() {
    needs_root();
    let upstream = on(HERE, 0, "here");
    let now: Arc<Mutex<Option<Vec<IpAddr>>>> = Arc::default();
    let shared = now.clone();
    let (server, _) = name_server(move || shared.lock().unwrap().clone());
    let starter = Relay::to(&upstream.url_at(NAME)).env("RES_OPTIONS", "timeout:1 attempts:5");
    let relay = start(starter, "", server);
    let mut waiting = relay.connect();
    waiting.send(post("", "{}"));
    let begun = Instant::now();
    for _ in 0..50 {
        let refused = relay.connect().send("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").response();
        assert_eq!(refused.status, 403);
    }
    // The lookup takes five times one second.
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    *now.lock().unwrap() = Some(vec![HERE]);
    assert_eq!(waiting.response().text(), "here");

    // A proxy that never responds.
    let (server, _) = name_server(|| None);
    let starter = Relay::to(&upstream.url_at(NAME)).args(["--upstream-timeout", "1"]);
    let mut relay = start(starter, "", server);
    let begun = Instant::now();
    assert_eq!(ask(&mut relay.connect()), (504, "upstream_connect_timeout".into()));
    relay.signal(libc::SIGTERM);
    assert_eq!(relay.exit_code(), 0);
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
}

/// CPU time of a process so far, in clock ticks of 10 ms.
fn cpu_ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<_> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

/// The connector of a relay: its one child.
fn connector(relay: &Relay) -> u32 {
    let pid = relay.pid();
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    children.trim().parse().expect("one child")
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn dials_beyond_the_limit_of_attempts_wait_without_work() {
    needs_root();
    let first = hanging(v4(21), 0);
    let port = first.0.local_addr().unwrap().port();
    let others: Vec<_> = (22..25).map(|last| hanging(v4(last), port)).collect();
    let hosts: String = (21..25).map(|last| format!("127.0.0.{last} {NAME}\n")).collect();
    let relay = start(Relay::to(&format!("https://{NAME}:{port}/")), &hosts, NO_SERVER);
    let mut clients: Vec<_> = (0..100).map(|_| relay.connect()).collect();
    for client in &mut clients {
        client.send(post("", "{}"));
    }
    let pid = connector(&relay);
    // 256 attempts are under way, and four descriptors are open.
    wait_for(|| fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count() >= 260);
    let before = cpu_ticks(pid);
    pace(Duration::from_secs(2));
    let spent = cpu_ticks(pid) - before;
    assert!(spent < 50, "{spent} ticks of 10 ms in two seconds");
    drop(others);
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn an_address_that_hangs_is_doubted_too() {
    needs_root();
    let upstream = on(HERE, 0, "here");
    let _hanging = hanging(v4(26), upstream.port);
    let now = Arc::new(Mutex::new(vec![v4(26)]));
    let shared = now.clone();
    let (server, _) = name_server(move || Some(shared.lock().unwrap().clone()));
    let starter = Relay::to(&upstream.url_at(NAME)).args(["--upstream-timeout", "1"]);
    let relay = start(starter, "", server);
    let mut client = relay.connect();
    assert_eq!(ask(&mut client), (504, "upstream_connect_timeout".into()));
    *now.lock().unwrap() = vec![HERE];
    assert_eq!(ask(&mut client), (200, "here".into()));
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn a_connection_to_itself_is_a_refused_one() {
    needs_root();
    let setup = "ip link set lo up; echo 41000 41000 > /proc/sys/net/ipv4/ip_local_port_range";
    for scheme in ["http", "https"] {
        in_namespace(setup, || {
            // The only port to connect from is the upstream's own, where nothing listens: TCP lets a
            // socket connect to itself (RFC 9293, simultaneous open).
            let url = format!("{scheme}://127.0.0.1:41000/v1/responses");
            let relay = Relay::to(&url).args(["--port", "40999"]).start();
            assert_eq!(ask(&mut relay.connect()), (502, "upstream_refused".into()));
        });
    }
}
