//! Tests which bytes the relay sends together, in one record and one packet, and that it does not
//! wait for more.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use super::support::{DEADLINE, Gate, Relay, Upstream, ok, post, skipped};

/// Packets with data that have come in on this connection.
fn packets(stream: &TcpStream) -> u32 {
    // `tcpi_data_segs_in` of `struct tcp_info`, which libc declares without it.
    const AT: usize = 152;
    let mut info = [0; 256];
    let mut size = info.len() as libc::socklen_t;
    // SAFETY: the kernel writes at most `size` bytes into memory that outlives the call.
    let result = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &mut size,
        )
    };
    assert!(result == 0 && size as usize >= AT + 4, "TCP_INFO");
    u32::from_ne_bytes(info[AT..AT + 4].try_into().unwrap())
}

/// A listener whose connections are not accepted yet, and its URL.
fn door() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://localhost:{}/v1/responses", listener.local_addr().unwrap().port());
    (listener, url)
}

/// Makes the first connection on this port a link to the upstream, and keeps what the relay sends:
/// the link's side towards the relay once that has connected, and the bytes.
fn tap(listener: TcpListener, upstream: &Upstream) -> (Gate<TcpStream>, Arc<Mutex<Vec<u8>>>) {
    let far = TcpStream::connect(("127.0.0.1", upstream.port)).unwrap();
    far.set_nodelay(true).unwrap();
    let (tell, told) = Gate::pair();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let kept = seen.clone();
    thread::spawn(move || {
        let (mut near, _) = listener.accept().unwrap();
        near.set_nodelay(true).unwrap();
        tell.pass(near.try_clone().unwrap());
        let (mut back, mut there) = (far.try_clone().unwrap(), near.try_clone().unwrap());
        thread::spawn(move || {
            let _ = std::io::copy(&mut back, &mut there);
            let _ = there.shutdown(Shutdown::Both);
        });
        let (mut far, mut buffer) = (far, vec![0; 1 << 16]);
        while let Ok(n @ 1..) = near.read(&mut buffer) {
            kept.lock().unwrap().extend(&buffer[..n]);
            let _ = far.write_all(&buffer[..n]);
        }
        let _ = far.shutdown(Shutdown::Both);
    });
    (told, seen)
}

#[test]
fn head_key_and_body_leave_in_one_record_and_one_packet() {
    let (tell, told) = Gate::pair();
    let upstream = Upstream::tls(move |peer| {
        tell.signal();
        while peer.request().is_some() {
            peer.write(ok("fine"));
        }
    });
    let (listener, url) = door();
    let (link, seen) = tap(listener, &upstream);
    let relay = Relay::to(&url).start();
    let mut client = relay.connect();
    let link = link.wait();
    told.wait();
    for body in ["j".repeat(2_048), "{}".into(), "x".repeat(10_000)] {
        let (bytes, before) = (seen.lock().unwrap().len(), packets(&link));
        let request = post("User-Agent: codex\r\nX-A: b\r\n", &body);
        assert_eq!(client.send(&request).response().status, 200);
        let sent = seen.lock().unwrap()[bytes..].to_vec();
        // Application data, TLS 1.2 on the outside, and a length that covers the whole of it.
        let length = usize::from(u16::from_be_bytes([sent[3], sent[4]]));
        assert_eq!((sent[0], sent.len()), (23, 5 + length));
        assert!(length > relay.key.len() + request.len() - "localhost".len());
        assert_eq!(packets(&link) - before, 1);
    }
    assert_eq!(upstream.requests().len(), 3);
}

#[test]
fn a_head_that_waits_leaves_with_the_end_of_the_handshake() {
    let upstream = Upstream::answering(ok("fine"));
    let (listener, url) = door();
    let relay = Relay::to(&url).start();
    let mut client = relay.connect();
    client.send(post("", &"j".repeat(2_048)));
    // What came first is looked at first: the other's response shows that the head waits.
    let mut other = relay.connect();
    assert_eq!(other.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").response().status, 403);
    let (link, _) = tap(listener, &upstream);
    assert_eq!(client.response().status, 200);
    // The ClientHello is one, the client's Finished with the request the other.
    assert_eq!(packets(&link.wait()), 2);
}

#[test]
fn a_responses_head_and_the_first_part_of_its_body_leave_in_one_packet() {
    let part = "data: first\n\n".repeat(40);
    let size = part.len();
    for (head, body) in [
        (format!("Content-Length: {size}"), part.clone()),
        ("Transfer-Encoding: chunked".into(), format!("{size:x}\r\n{part}\r\n")),
    ] {
        let answer = format!("HTTP/1.1 200 OK\r\nX-A: b\r\n{head}\r\nX-C: d\r\n\r\n{body}");
        let upstream = Upstream::tls(move |peer| {
            peer.request().unwrap();
            peer.write(&answer);
            peer.closed();
        });
        let relay = Relay::to(&upstream.url()).start();
        let mut client = relay.connect();
        client.send(post("", "{}"));
        let answered = client.head();
        assert!(answered.contains("X-C: d"));
        client.take(body.len());
        assert_eq!(packets(&client.stream), 1, "{head}");
    }
}

/// Whether an option of a socket is on.
fn option(stream: &TcpStream, level: i32, option: i32) -> i32 {
    let mut value: libc::c_int = 0;
    let mut size = size_of_val(&value) as libc::socklen_t;
    // SAFETY: the kernel writes at most `size` bytes into memory that outlives the call.
    let result = unsafe {
        libc::getsockopt(stream.as_raw_fd(), level, option, (&raw mut value).cast(), &mut size)
    };
    assert_eq!(result, 0, "getsockopt");
    value
}

/// The connected sockets of the relay: the port that each leads to, whether it sends without delay,
/// whether the kernel looks after a silent peer, and how many milliseconds bytes may wait to be
/// acknowledged; `None` where this process may not take them.
fn sockets(relay: &Relay) -> Option<Vec<(u16, bool, bool, i32)>> {
    // SAFETY: no memory is involved; the descriptor is new.
    let pid = unsafe { libc::syscall(libc::SYS_pidfd_open, relay.pid(), 0) } as i32;
    // SAFETY: as above.
    let pid = (pid >= 0).then(|| unsafe { File::from_raw_fd(pid) })?;
    let mut found = Vec::new();
    for entry in std::fs::read_dir(format!("/proc/{}/fd", relay.pid())).ok()? {
        let number: i32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
        // SAFETY: no memory is involved; the descriptor is new.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_getfd, pid.as_raw_fd(), number, 0) } as i32;
        // SAFETY: as above.
        let fd = (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd) })?;
        let stream = TcpStream::from(fd);
        if let Ok(peer) = stream.peer_addr() {
            found.push((
                peer.port(),
                stream.nodelay().unwrap(),
                option(&stream, libc::SOL_SOCKET, libc::SO_KEEPALIVE) != 0,
                option(&stream, libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT),
            ));
        }
    }
    Some(found)
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn neither_side_waits_for_more_to_send_or_for_a_peer_that_has_gone() {
    let upstream = Upstream::answering(ok("fine"));
    let relay = Relay::to(&upstream.url()).start();
    let mut client = relay.connect();
    assert_eq!(client.send(post("", "{}")).response().status, 200);
    match sockets(&relay) {
        Some(mut sockets) => {
            sockets.sort_by_key(|socket| socket.0 == upstream.port);
            let port = client.stream.local_addr().unwrap().port();
            // The upstream's is given up before a request has waited for longer.
            assert_eq!(sockets, [(port, true, true, 0), (upstream.port, true, true, 120_000)]);
        }
        None => skipped("taking the sockets of another process needs root and ptrace"),
    }
}

/// The random bytes and the session id of the ClientHello with which the relay begins a connection
/// (RFC 8446 §4.1.2).
fn hello(mut stream: TcpStream) -> Vec<u8> {
    const BEFORE: usize = 5 + 4 + 2;
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut start = [0; BEFORE + 32 + 1 + 32];
    stream.read_exact(&mut start).unwrap();
    assert_eq!((start[0], start[5], start[BEFORE + 32]), (22, 1, 32), "a ClientHello");
    [&start[BEFORE..BEFORE + 32], &start[BEFORE + 33..]].concat()
}

#[test]
fn no_two_handshakes_begin_with_the_same_random_bytes() {
    let (listener, url) = door();
    let (tell, told) = Gate::pair();
    thread::spawn(move || listener.incoming().flatten().for_each(|stream| tell.pass(stream)));
    let mut parts = Vec::new();
    // Two of each of two processes. Once the relay has seen that the first is cut off, the next client
    // brings another.
    for relay in [Relay::to(&url).start(), Relay::to(&url).start()] {
        for _ in 0..2 {
            let start = Instant::now();
            let stream = loop {
                let _client = relay.connect();
                if let Some(stream) = told.wait_within(Duration::from_millis(100)) {
                    break stream;
                }
                assert!(start.elapsed() < DEADLINE, "it does not connect");
            };
            parts.extend(hello(stream).chunks(16).map(<[u8]>::to_vec));
        }
    }
    let count = parts.len();
    assert!(parts.iter().all(|part| part.iter().any(|byte| *byte != part[0])), "not random");
    parts.sort();
    parts.dedup();
    assert_eq!(parts.len(), count, "something came twice");
}
