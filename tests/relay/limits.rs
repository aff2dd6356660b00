//! Tests every bound at n and at n + 1, and the effect of many clients.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::Command;
use std::time::Duration;

use codex_responses_api_proxy::http1::limits;

use super::support::{
    Client, End, Gate, Peer, Relay, Upstream, comes, ok, pace, post, quiet, reset_on_close, skipped,
};

/// A POST whose head has exactly so many bytes.
fn head_of(len: usize) -> String {
    let rest = post("X-Fill: \r\n", "").len();
    post(&format!("X-Fill: {}\r\n", "x".repeat(len - rest)), "")
}

/// A GET whose request line has exactly so many bytes.
fn line_of(len: usize) -> String {
    let target = "a".repeat(len - "GET / HTTP/1.1".len());
    format!("GET /{target} HTTP/1.1\r\nHost: localhost\r\n\r\n")
}

/// A POST with exactly so many fields, Host and Content-Length among them.
fn fields_of(count: usize) -> String {
    post(&"A: b\r\n".repeat(count - 2), "")
}

#[test]
fn a_head_a_request_line_and_the_fields_are_bounded() {
    let upstream = Upstream::answering(ok("fine"));
    let relay = Relay::to(&upstream.url()).start();
    for (fits, status, too_much, refusal, code) in [
        (head_of(limits::HEAD), 200, head_of(limits::HEAD + 1), 431, "head_too_large"),
        (fields_of(limits::FIELDS), 200, fields_of(limits::FIELDS + 1), 431, "too_many_fields"),
        (
            line_of(limits::REQUEST_LINE),
            403,
            line_of(limits::REQUEST_LINE + 1),
            414,
            "uri_too_long",
        ),
    ] {
        let mut client = relay.connect();
        assert_eq!(client.send(&fits).response().status, status);
        let response = client.send(&too_much).response();
        assert_eq!((response.status, response.code()), (refusal, code));
        assert_eq!(response.fields("connection"), ["close"]);
        client.expect_end(End::Fin);
    }
    assert_eq!(upstream.requests().len(), 2);
}

#[test]
fn a_head_without_end_is_refused_at_the_limit() {
    let relay = Relay::to(&Upstream::answering(ok("")).url()).start();
    for (start, code) in [
        ("GET /v1/", "uri_too_long"),
        ("GET / HTTP/1.1\r\nA: ", "head_too_large"),
        ("GET / HTTP/1.1\r\nA: b\r\nC", "head_too_large"),
    ] {
        let mut client = relay.connect();
        client.try_send(start).try_send("x".repeat(2 * limits::HEAD));
        assert_eq!(client.response().code(), code);
    }
}

#[test]
fn chunk_extensions_digits_and_trailers_are_bounded() {
    let upstream = Upstream::answering(ok("fine"));
    let relay = Relay::to(&upstream.url()).start();
    let digits = usize::from(limits::CHUNK_DIGITS);
    let ext = |n: usize| format!("1;{}\r\nx\r\n0\r\n\r\n", "e".repeat(n - 1));
    let size = |n: usize| format!("{:0>n$}\r\nx\r\n0\r\n\r\n", 1);
    // The section begins behind the last chunk's line.
    let trailer = |n: usize| format!("0\r\nT:{}\r\n\r\n", "t".repeat(n - "T:\r\n\r\n".len()));
    let trailers = |n: usize| format!("0\r\n{}\r\n", "T: t\r\n".repeat(n));
    for (fits, too_much) in [
        (ext(limits::CHUNK_EXT), ext(limits::CHUNK_EXT + 1)),
        (size(digits), size(digits + 1)),
        (trailer(limits::HEAD), trailer(limits::HEAD + 1)),
        (trailers(limits::FIELDS), trailers(limits::FIELDS + 1)),
    ] {
        let head =
            "POST /v1/responses HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n";
        let mut client = relay.connect();
        assert_eq!(client.send(format!("{head}\r\n{fits}")).response().status, 200);
        client.try_send(format!("{head}\r\n{too_much}"));
        assert_eq!(client.response().code(), "invalid_chunk");
    }
}

#[test]
fn connection_options_are_bounded() {
    let upstream = Upstream::answering(ok("fine"));
    let relay = Relay::to(&upstream.url()).start();
    let most = limits::CONNECTION_OPTIONS;
    let options = |n: usize| post(&format!("Connection: {}\r\n", vec!["x"; n].join(", ")), "");
    let mut client = relay.connect();
    assert_eq!(client.send(options(most)).response().status, 200);
    assert_eq!(client.send(options(most + 1)).response().code(), "malformed_request");
}

#[test]
fn a_refused_body_is_dropped_up_to_its_bound() {
    let relay = Relay::to(&Upstream::answering(ok("")).url()).start();
    let drop = limits::DROP as usize;
    let refused = |len: usize| {
        let body = "x".repeat(len);
        format!("POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len}\r\n\r\n{body}")
    };
    let mut client = relay.connect();
    let response = client.send(refused(drop)).response();
    assert_eq!((response.status, response.fields("connection").len()), (403, 0));
    let response = client.try_send(refused(drop + 1)).response();
    assert_eq!((response.status, response.fields("connection")), (403, vec!["close"]));
}

#[test]
fn a_client_that_goes_on_sending_reads_its_refusal_and_no_reset_eats_it() {
    let relay = Relay::to(&Upstream::answering(ok("")).url()).start();
    let mut client = relay.connect();
    client.send("POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999\r\n\r\n");
    // Far more than any socket buffer holds, and all of it is taken.
    for _ in 0..256 {
        client.send([b'x'; 65_536]);
    }
    client.finish();
    assert_eq!(client.response().code(), "route_not_allowed");
    client.expect_end(End::Fin);
}

#[test]
fn requests_on_one_connection_are_not_bounded() {
    let upstream = Upstream::answering(ok("fine"));
    let relay = Relay::to(&upstream.url()).start();
    let mut client = relay.connect();
    for _ in 0..2_000 {
        assert_eq!(client.send(post("", "{}")).response().status, 200);
    }
    assert_eq!(upstream.connections(), 1);
}

#[test]
fn an_upstream_url_is_bounded() {
    let url = |n: usize| format!("https://localhost/{}", "a".repeat(n - 18));
    Relay::to(&url(limits::URL)).start();
    let (code, _, err) = Relay::to(&url(limits::URL + 1)).run(b"");
    assert_eq!(code, 2);
    assert!(err.contains("--upstream-url"), "{err}");
}

/// Sends the beginning of a request, so that the connection is known to be accepted and counted
/// once a response on another one has come.
fn held(relay: &Relay) -> Client {
    let mut client = relay.connect();
    client.send("GET /held HTTP/1.1\r\n");
    client
}

/// The same, but its request is under way, so that the place is not given to another: the last byte
/// of the body is missing.
fn busy(relay: &Relay) -> Client {
    let mut client = relay.connect();
    let request = post("", "{}");
    client.send(&request[..request.len() - 1]);
    client
}

/// A plain upstream that accepts no connection; its kernel does.
fn silent_upstream() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    // SAFETY: no memory is involved; more may wait than std asks for.
    unsafe { libc::listen(listener.as_raw_fd(), 4096) };
    let url = format!("http://localhost:{}/", listener.local_addr().unwrap().port());
    (listener, url)
}

#[test]
fn one_connection_more_than_allowed_is_told_503_and_the_listener_goes_on() {
    let upstream = Upstream::answering(ok("fine"));
    let relay = Relay::to(&upstream.url()).args(["--max-connections", "3"]).start();
    let mut crowd: Vec<Client> = (0..3).map(|_| busy(&relay)).collect();
    for round in 0..50 {
        let mut one_more = relay.connect();
        let response = one_more.try_send(post("", "{}")).response();
        assert_eq!((response.status, response.code()), (503, "too_many_connections"), "{round}");
        assert_eq!(response.fields("retry-after"), ["1"]);
        assert_eq!(response.fields("connection"), ["close"]);
        one_more.finish().expect_end(End::Fin);
    }
    // Those who are in are served, and a place that is given up is there for the next.
    let mut first = crowd.remove(0);
    assert_eq!(first.send("}").response().status, 200);
    first.finish().expect_end(End::Fin);
    assert_eq!(relay.connect().send(post("", "{}")).response().status, 200);
}

#[test]
fn without_a_flag_1024_connections_are_taken_and_no_more() {
    let (_listener, url) = silent_upstream();
    let relay = Relay::to(&url).start();
    if relay.output_line("protections: ").contains("--max-connections lowered") {
        skipped("too few descriptors");
        return;
    }
    let crowd: Vec<Client> = (0..limits::CONNECTIONS).map(|_| busy(&relay)).collect();
    for client in &crowd {
        assert!(quiet(&client.stream, Duration::ZERO));
    }
    assert_eq!(relay.connect().response().code(), "too_many_connections");
}

#[test]
fn too_few_descriptors_lower_the_cap_and_the_start_line_says_so() {
    let (_listener, url) = silent_upstream();
    let relay = Relay::bare().args(["--upstream-url", &url]).open_files(74).start();
    let line = relay.output_line("protections: ");
    assert!(line.contains("--max-connections lowered to 5 by the limit on open files"), "{line}");
    let crowd: Vec<Client> = (0..5).map(|_| busy(&relay)).collect();
    assert_eq!(relay.connect().response().code(), "too_many_connections");
    drop(crowd);

    let (code, _, err) = Relay::bare().open_files(65).run(b"key");
    assert_eq!(code, 1);
    assert!(err.contains("the limit on open files (65) is too low; raise ulimit -n"), "{err}");
}

#[test]
fn enough_descriptors_are_asked_for() {
    let relay = Relay::to("https://localhost/").args(["--max-connections", "5000"]).start();
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", relay.pid())).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let soft: usize = line.split_whitespace().nth(3).unwrap().parse().unwrap();
    let lowered = relay.output_line("protections: ").contains("--max-connections lowered");
    assert!(soft >= 2 * 5_000 + 64 || lowered, "{line}");
}

/// Growing later would hold the loop up: the table is shared with other threads by then.
#[test]
fn the_table_of_descriptors_has_its_size_from_the_start() {
    let relay = Relay::to("https://localhost/").args(["--max-connections", "400"]).start();
    assert!(relay.memory("FDSize:") >= 2 * 400 + 64);
}

#[test]
fn the_heads_of_all_clients_together_are_bounded() {
    const CLIENTS: usize = 1024;
    let part = limits::HEADS / CLIENTS;
    let relay = Relay::bare().args(["--max-connections", "1100"]).start();
    if relay.output_line("protections: ").contains("--max-connections lowered") {
        skipped("too few descriptors");
        return;
    }
    let start = "POST /v1/responses HTTP/1.1\r\nHost: localhost\r\nA: ";
    let head = format!("{start}{}", "a".repeat(part - start.len()));
    let mut crowd: Vec<Client> = (0..CLIENTS).map(|_| relay.connect()).collect();
    for client in &mut crowd {
        client.send(&head);
    }
    // All of it has been read: a request that comes after it gets its response.
    let get = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
    assert_eq!(relay.connect().send(get).response().status, 403);
    for client in &crowd {
        assert!(quiet(&client.stream, Duration::ZERO), "n is not too many");
    }
    // One byte more: the oldest head goes, and no other.
    crowd[CLIENTS / 2].send("a");
    assert_eq!(crowd[0].response().code(), "request_timeout");
    assert_eq!(relay.connect().send(get).response().status, 403);
    for client in &crowd[1..] {
        assert!(quiet(&client.stream, Duration::ZERO));
    }
}

/// Sends a body in parts of so many bytes, one each tenth of a second; its status.
fn drip(port: u16, parts: usize, size: usize) -> u16 {
    let mut client = Client::connect(port);
    let body = "x".repeat(parts * size);
    let request = post("", &body);
    client.send(&request[..request.len() - body.len()]);
    for _ in 0..parts {
        pace(Duration::from_millis(100));
        client.try_send(&body[..size]);
    }
    client.response().status
}

#[test]
fn a_body_comes_at_a_rate_or_not_at_all() {
    let upstream = Upstream::tls(|peer| {
        while let Some(head) = peer.head() {
            if peer.take_unless_closed(client_length(&head)).is_none() {
                return;
            }
            peer.write(ok("fine"));
        }
    });
    let relay = Relay::to(&upstream.url()).args(["--client-timeout", "1"]).start();
    let port = relay.port;
    let rate = limits::UPLOAD_RATE as usize / 10;
    // Each byte is in time, and all of them together are not.
    let parts = 10 * limits::UPLOAD_PATIENCE as usize + 20;
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| drip(port, parts, 1));
        assert_eq!(drip(port, parts, 4 * rate), 200);
        assert_eq!(slow.join().unwrap(), 408);
    });
}

fn client_length(head: &str) -> usize {
    super::support::client::fields(head, "content-length")[0].parse().unwrap()
}

#[test]
fn a_client_that_waits_for_the_upstream_may_wait() {
    // The upstream reads nothing for longer than the client's time, and then all of it.
    let (tell, told) = Gate::pair();
    let others = tell.clone();
    let upstream = Upstream::plain(move |peer| {
        told.wait();
        // For every other connection.
        others.signal();
        while peer.request().is_some() {
            peer.write(ok("fine"));
        }
    });
    // Once the upstream reads, the client has its time again: on a busy machine it needs some.
    let relay = Relay::to(&upstream.url()).args(["--client-timeout", "3"]).start();
    let mut client = relay.connect();
    let body = "x".repeat(32 << 20);
    let mut stream = client.stream.try_clone().unwrap();
    let sender = std::thread::spawn(move || stream.write_all(post("", &body).as_bytes()));
    pace(Duration::from_secs(4));
    tell.signal();
    sender.join().unwrap().unwrap();
    assert_eq!(client.response().status, 200);
}

#[test]
fn the_kernel_buffers_little_for_a_client() {
    let upstream = Upstream::answering(ok("fine"));
    let relay = Relay::to(&upstream.url()).start();
    let mut client = relay.connect();
    assert_eq!(client.send(post("", "{}")).response().status, 200);
    let port = format!("= :{}", relay.port);
    let sockets = Command::new("ss").args(["-tmnH", "sport"]).arg(port).output();
    let Ok(sockets) = sockets else {
        skipped("ss is not installed");
        return;
    };
    let text = String::from_utf8(sockets.stdout).unwrap();
    let bound = |name: &str| -> Vec<usize> {
        let words = text.split([',', '(']);
        words.filter_map(|word| word.strip_prefix(name)?.parse().ok()).collect()
    };
    // The kernel doubles what is asked for.
    assert_eq!((bound("rb"), bound("tb")), (vec![2 * 208 * 1024], vec![2 * 208 * 1024]), "{text}");
}

/// A connection from an address of its own, so that a hundred thousand of them find ports.
fn connect_from(address: Ipv4Addr, port: u16) -> TcpStream {
    // SAFETY: a new socket, owned at once; the address outlives the calls.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    assert!(fd >= 0);
    // SAFETY: as above.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let name = |at: SocketAddrV4| libc::sockaddr_in {
        sin_family: libc::AF_INET as u16,
        sin_port: at.port().to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from(*at.ip()).to_be() },
        sin_zero: [0; 8],
    };
    let len = size_of::<libc::sockaddr_in>() as u32;
    let (from, to) =
        (name(SocketAddrV4::new(address, 0)), name(SocketAddrV4::new(Ipv4Addr::LOCALHOST, port)));
    // SAFETY: as above.
    let bound = unsafe { libc::bind(socket.as_raw_fd(), std::ptr::from_ref(&from).cast(), len) };
    assert_eq!(bound, 0);
    // SAFETY: as above.
    let made = unsafe { libc::connect(socket.as_raw_fd(), std::ptr::from_ref(&to).cast(), len) };
    assert_eq!(made, 0);
    TcpStream::from(socket)
}

/// Runs this in a network of its own where one can be made. The connections that it leaves in
/// TIME_WAIT end with that network; in the tables of the machine they would slow other tests down.
fn in_a_network(test: impl Fn() + Sync) {
    let prepared = || {
        // SAFETY: no memory is involved; the namespace is this thread's and its children's.
        let is_made = unsafe { libc::unshare(libc::CLONE_NEWNET) } == 0;
        let lines = ["link", "set", "lo", "up"];
        is_made && Command::new("ip").args(lines).status().is_ok_and(|status| status.success())
    };
    let test = &test;
    let is_done = std::thread::scope(|scope| {
        let thread = scope.spawn(move || prepared().then(test));
        thread.join().unwrap().is_some()
    });
    if !is_done {
        test();
    }
}

#[test]
fn a_hundred_thousand_slow_connections_leave_memory_where_it_was() {
    in_a_network(a_hundred_thousand_slow_connections);
}

fn a_hundred_thousand_slow_connections() {
    let upstream = Upstream::answering(ok("fine"));
    let relay = Relay::to(&upstream.url()).start();
    let wave = |count: usize| {
        for n in 0..count {
            let mut slow = connect_from(Ipv4Addr::new(127, 1, (n >> 8) as u8, n as u8), relay.port);
            slow.write_all(&b"POST /v1/responses HTTP/1.1\r\nHost: loc"[..1 + n % 38]).unwrap();
            // Most leave no TIME_WAIT, where the tables are those of the machine.
            if n % 8 > 0 {
                reset_on_close(&slow);
            }
            drop(slow);
        }
        // All of them have been seen: connections are accepted in order.
        assert_eq!(relay.connect().send(post("", "{}")).response().status, 200);
        relay.memory("VmRSS")
    };
    let before = wave(2_000);
    let after = wave(100_000);
    assert!(after <= before + 256, "{before} KiB before, {after} KiB after");
    // Root alone can look.
    match std::fs::read_dir(format!("/proc/{}/fd", relay.pid())) {
        Ok(descriptors) => assert!(descriptors.count() < 64, "descriptors are left open"),
        Err(error) => skipped(&format!("the descriptors of another process: {error}")),
    }
}

#[test]
fn a_thousand_slow_connections_hold_a_good_request_up_by_less_than_ten_ms() {
    let upstream = Upstream::answering(ok("fine"));
    let relay = Relay::to(&upstream.url()).start();
    let mut client = relay.connect();
    let mut median = || client.times(101)[50];
    let quiet = median();
    let mut crowd: Vec<Client> = (0..1_000).map(|_| held(&relay)).collect();
    let crowded = median();
    assert!(crowded < quiet + Duration::from_millis(10), "{quiet:?} alone, {crowded:?} in a crowd");
    // They were there all the time.
    let last = crowd.last_mut().unwrap();
    assert_eq!(last.send("Host: localhost\r\n\r\n").response().status, 403);
}

#[test]
fn a_responses_head_is_bounded() {
    let answers = |head: fn(usize) -> String| {
        move |peer: &mut Peer| {
            while let Some(request) = peer.request() {
                peer.try_write(head(request.fields("x-size")[0].parse().unwrap()));
            }
        }
    };
    let bytes = |n: usize| {
        let rest = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nA: \r\n\r\n".len();
        format!("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nA: {}\r\n\r\n", "a".repeat(n - rest))
    };
    let fields = |n: usize| {
        format!("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n{}\r\n", "A: b\r\n".repeat(n - 1))
    };
    for (head, most) in [(bytes as fn(usize) -> String, limits::HEAD), (fields, limits::FIELDS)] {
        let upstream = Upstream::tls(answers(head));
        let relay = Relay::to(&upstream.url()).start();
        let mut client = relay.connect();
        let ask = |n: usize| post(&format!("X-Size: {n}\r\n"), "");
        assert_eq!(client.send(ask(most)).response().status, 200);
        let response = client.send(ask(most + 1)).response();
        assert_eq!((response.status, response.code()), (502, "upstream_bad_response"));
    }
}

#[test]
fn the_record_that_carries_the_key_is_bounded() {
    // A head that fills the first record to its last byte, and one byte more: both arrive whole.
    let upstream = Upstream::answering(ok("fine"));
    let relay = Relay::to(&upstream.url()).start();
    let mut client = relay.connect();
    client.send(post("X-Fill: \r\n", "")).response();
    let block = format!("Host: localhost:{}\r\n", upstream.port).len()
        + format!("Authorization: Bearer {}\r\n", relay.key).len()
        + "Accept-Encoding: identity\r\nVia: 1.1 relay\r\n".len()
        - "Host: localhost\r\n".len();
    let full = limits::RECORD - block;
    for len in [full - 1, full, full + 1] {
        let body = "b".repeat(100);
        assert_eq!(client.send(head_of(len)).response().status, 200);
        let with_body = head_of(len).replace("Content-Length: 0", "Content-Length: 100") + &body;
        assert_eq!(client.send(with_body).response().status, 200);
    }
    let requests = upstream.requests();
    let heads: Vec<usize> = requests[1..].iter().map(|r| r.head.len()).collect();
    assert!(heads.contains(&limits::RECORD), "{heads:?}");
    assert!(requests.iter().skip(2).step_by(2).all(|r| r.body == [b'b'; 100]));
}

#[test]
fn a_peer_that_stays_is_read_to_its_end_after_503() {
    let (_listener, url) = silent_upstream();
    let relay = Relay::to(&url).args(["--max-connections", "1"]).start();
    let _one = busy(&relay);
    let mut turned_away = relay.connect();
    turned_away.try_send("x".repeat(1 << 20));
    assert_eq!(turned_away.response().status, 503);
    let mut nothing = [0];
    assert_eq!(turned_away.stream.read(&mut nothing).unwrap(), 0);
}

/// Bytes that the kernel keeps of what was sent to this port and is not acknowledged.
fn unacknowledged(port: u16) -> usize {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let to_port = rows.filter(|row| row[2].ends_with(&format!(":{port:04X}")));
    to_port.map(|row| usize::from_str_radix(&row[4][..8], 16).unwrap()).sum()
}

#[test]
fn the_kernel_keeps_little_of_an_upload_that_the_upstream_does_not_take() {
    let (listener, url) = silent_upstream();
    let relay = Relay::to(&url).start();
    let mut client = relay.connect();
    client
        .send("POST /v1/responses HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999\r\n\r\n");
    client.stream.set_nonblocking(true).unwrap();
    let mut sent = 0;
    while comes(&client.stream, libc::POLLOUT, Duration::from_millis(500)) {
        sent += client.stream.write(&[b'x'; 65_536]).unwrap_or(0);
    }
    let kept = unacknowledged(listener.local_addr().unwrap().port());
    println!("the kernel keeps {kept} of {sent} bytes for the upstream");
    // What is not sent, one write on top, and what is on its way.
    assert!(kept > 0 && kept <= 512 * 1024 + 64 * 1024 + 128 * 1024, "{kept} of {sent}");
}
