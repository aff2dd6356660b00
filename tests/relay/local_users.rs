//! Tests how connection slots and turns are shared, so that no local user can starve another.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::support::{
    Client, DEADLINE, End, Peer, Relay, Upstream, needs_root, ok, pace, post, quiet, wait_for,
};

pub const AGENT: u32 = 65_533;
pub const OTHER: u32 = 65_532;

/// Does something on a thread that is another user to the kernel.
pub fn as_user<T: Send>(uid: u32, work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: no memory is involved. The system call itself, unlike the C library's
            // function, changes this thread alone.
            let done = unsafe { libc::syscall(libc::SYS_setresuid, -1, uid, -1) };
            assert_eq!(done, 0);
            work()
        });
        thread.join().unwrap()
    })
}

pub fn connect_as(uid: u32, port: u16) -> Client {
    as_user(uid, || Client::connect(port))
}

pub fn allowing(uids: &[u32]) -> Vec<String> {
    uids.iter().map(|uid| format!("--allow-uid={uid}")).collect()
}

/// An upstream that responds to every request without the field X-Wait.
fn answers_when_told(peer: &mut Peer) {
    while let Some(request) = peer.request() {
        if request.fields("x-wait").is_empty() {
            peer.write(ok("fine"));
        } else {
            peer.closed();
            return;
        }
    }
}

/// A request that gets no response.
fn unanswered() -> String {
    post("X-Wait: 1\r\n", "{}")
}

/// Connections that end with this value, for those who read from them.
struct Ended<'a>(Vec<&'a Client>);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        for client in &self.0 {
            let _ = client.stream.shutdown(Shutdown::Both);
        }
    }
}

/// A response is all that comes.
fn told(mut client: Client) -> String {
    let code = client.response().code().to_owned();
    client.finish().expect_end(End::Fin);
    code
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn refused_connections_write_few_lines_and_the_allowed_user_is_served_meanwhile() {
    needs_root();
    const REFUSED: u64 = 5_000;
    let upstream = Upstream::answering(ok("fine"));
    let relay = Relay::to(&upstream.url())
        .args(["--access-log", "--max-connections", "4"])
        .args(allowing(&[AGENT]))
        .start();
    let start = Instant::now();
    let served = std::thread::scope(|scope| {
        let refused = scope.spawn(|| {
            as_user(OTHER, || {
                for _ in 0..REFUSED {
                    let mut stream = TcpStream::connect(("127.0.0.1", relay.port)).unwrap();
                    let mut answer = Vec::new();
                    let _ = stream.read_to_end(&mut answer);
                    assert!(answer.starts_with(b"HTTP/1.1 403 "), "{answer:?}");
                }
            });
        });
        let mut served = 0;
        while !refused.is_finished() {
            let mut client = connect_as(AGENT, relay.port);
            assert_eq!(client.send(post("", "{}")).response().status, 200);
            served += 1;
        }
        served
    });
    assert!(served > 0);
    // Lines come once in a second, and the last one within a second.
    let mut counted = 0;
    let mut lines = 0;
    while counted < REFUSED {
        let line = relay.line_with("\"user_refused\"");
        assert!(line.contains(&format!("\"uid\":{OTHER},")), "{line}");
        let count = line.rsplit_once("\"count\":").unwrap().1.trim_end_matches('}');
        counted += count.parse::<u64>().unwrap();
        lines += 1;
    }
    assert_eq!(counted, REFUSED);
    assert!(lines <= start.elapsed().as_secs() + 2, "{lines} lines");
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn a_refused_user_holds_no_place() {
    needs_root();
    let upstream = Upstream::answering(ok("fine"));
    let relay = Relay::to(&upstream.url())
        .args(["--max-connections", "2"])
        .args(allowing(&[AGENT]))
        .start();
    let crowd: Vec<Client> = (0..64).map(|_| connect_as(OTHER, relay.port)).collect();
    let mut agents = [connect_as(AGENT, relay.port), connect_as(AGENT, relay.port)];
    for agent in &mut agents {
        assert_eq!(agent.send(post("", "{}")).response().status, 200);
    }
    for client in crowd {
        assert_eq!(told(client), "user_not_allowed");
    }
}

#[test]
fn a_full_table_closes_what_has_been_idle_longest_before_any_client_gets_503() {
    let upstream = Upstream::tls(answers_when_told);
    let relay = Relay::to(&upstream.url()).args(["--max-connections", "3"]).start();
    let mut busy = relay.connect();
    busy.send(unanswered());
    let mut first = relay.connect();
    assert_eq!(first.send(post("", "{}")).response().status, 200);
    // A head that drips does not keep a place either.
    let mut second = relay.connect();
    second.send("POST /v1/resp");
    pace(Duration::from_millis(1_200));
    second.send("onses HTTP/1.1\r\n");
    let mut third = relay.connect();
    assert_eq!(third.send(post("", "{}")).response().status, 200);
    first.expect_end(End::Fin);
    let mut fourth = relay.connect();
    assert_eq!(fourth.send(post("", "{}")).response().status, 200);
    assert_eq!(told(second), "request_timeout");
    // The request under way is still there.
    assert!(quiet(&busy.stream, Duration::from_millis(10)));
}

#[test]
fn a_table_full_of_requests_under_way_keeps_them() {
    let upstream = Upstream::plain(answers_when_told);
    let relay = Relay::to(&upstream.url()).args(["--max-connections", "2"]).start();
    let mut busy = [relay.connect(), relay.connect()];
    for client in &mut busy {
        client.send(unanswered());
    }
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(1_500) {
        assert_eq!(told(relay.connect()), "too_many_connections");
    }
    for client in &busy {
        assert!(quiet(&client.stream, Duration::ZERO));
    }
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn a_user_with_idle_connections_does_not_keep_another_out() {
    needs_root();
    let upstream = Upstream::answering(ok("fine"));
    let relay = Relay::to(&upstream.url())
        .args(["--max-connections", "8"])
        .args(allowing(&[AGENT, OTHER]))
        .start();
    // Alone, a user has all of them.
    let mut greedy: Vec<Client> = (0..8).map(|_| connect_as(OTHER, relay.port)).collect();
    for client in &mut greedy {
        assert_eq!(client.send(post("", "{}")).response().status, 200);
    }
    pace(Duration::from_millis(1_100));
    let mut agents: Vec<Client> = (0..4).map(|_| connect_as(AGENT, relay.port)).collect();
    for client in &mut agents {
        assert_eq!(client.send(post("", "{}")).response().status, 200);
    }
    // Those idle longest are gone, and no more than were needed.
    for (n, client) in greedy.iter_mut().enumerate() {
        if n < 4 {
            client.expect_end(End::Fin);
        } else {
            assert_eq!(client.send(post("", "{}")).response().status, 200);
        }
    }
}

/// A relay with so many places for two users, one of whom has requests under way in so many.
fn crowded(places: usize, taken: usize) -> (Upstream, Relay, Vec<Client>) {
    let upstream = Upstream::plain(answers_when_told);
    let relay = Relay::to(&upstream.url())
        .args(["--max-connections", &places.to_string()])
        .args(allowing(&[AGENT, OTHER]))
        .start();
    let mut greedy: Vec<Client> = (0..taken).map(|_| connect_as(OTHER, relay.port)).collect();
    for client in &mut greedy {
        client.send(unanswered());
    }
    (upstream, relay, greedy)
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn a_user_whose_requests_never_end_leaves_some_places_to_another() {
    needs_root();
    let (_upstream, relay, _greedy) = crowded(64, 62);
    assert_eq!(told(connect_as(OTHER, relay.port)), "too_many_connections");
    let mut agents = [connect_as(AGENT, relay.port), connect_as(AGENT, relay.port)];
    for agent in &mut agents {
        assert_eq!(agent.send(post("", "{}")).response().status, 200);
    }
    // The greedy one, who holds more than an equal share, gets none of these when they are free
    // again.
    drop(agents);
    assert_eq!(told(connect_as(OTHER, relay.port)), "too_many_connections");
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn a_user_with_requests_under_way_gets_no_more_while_another_waits() {
    needs_root();
    let (_upstream, relay, mut greedy) = crowded(4, 4);
    assert_eq!(told(connect_as(AGENT, relay.port)), "too_many_connections");
    // A place becomes free: it is the agent's, however fast the other asks.
    drop(greedy.pop());
    let start = Instant::now();
    loop {
        assert_eq!(told(connect_as(OTHER, relay.port)), "too_many_connections");
        let mut agent = connect_as(AGENT, relay.port);
        agent.try_send(post("", "{}"));
        if agent.response().status == 200 {
            break;
        }
        assert!(start.elapsed() < DEADLINE);
    }
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn a_user_who_moves_much_on_many_connections_does_not_hold_up_another() {
    needs_root();
    const CROWD: usize = 16;
    let upstream = Upstream::plain(|peer| {
        while let Some(request) = peer.request() {
            if request.fields("x-wait").is_empty() {
                peer.write(ok("fine"));
            } else {
                let piece = format!("{:x}\r\n{}\r\n", 65_536, "x".repeat(65_536));
                peer.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
                while peer.try_write(&piece) {}
            }
        }
    });
    let relay = Relay::to(&upstream.url()).args(allowing(&[AGENT, OTHER])).start();
    let mut agent = connect_as(AGENT, relay.port);
    assert_eq!(agent.send(post("", "{}")).response().status, 200);
    let bulk = connect_as(AGENT, relay.port);
    let crowd: Vec<Client> = (0..CROWD).map(|_| connect_as(OTHER, relay.port)).collect();
    // Bytes that all have read, and that of the agent's.
    let (all, own) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let read = |client: &Client, counts: &[&AtomicUsize]| {
        let mut reader = client.stream.try_clone().unwrap();
        reader.write_all(unanswered().as_bytes()).unwrap();
        let mut piece = vec![0; 65_536];
        while let Ok(n @ 1..) = reader.read(&mut piece) {
            for count in counts {
                count.fetch_add(n, Ordering::Relaxed);
            }
        }
    };
    std::thread::scope(|scope| {
        // Whether the test fails or not, its threads end.
        let _ended = Ended(crowd.iter().chain([&bulk]).collect());
        for client in &crowd {
            scope.spawn(|| read(client, &[&all]));
        }
        scope.spawn(|| read(&bulk, &[&all, &own]));
        for _ in 0..50 {
            assert_eq!(agent.send(post("", "{}")).response().status, 200);
        }
        let [all_read, own_read] = [&all, &own].map(|count| || count.load(Ordering::Relaxed));
        // From a moment on at which all of them read.
        wait_for(|| own_read() >= 1 << 20);
        let (all_before, own_before) = (all_read(), own_read());
        wait_for(|| own_read() - own_before >= 4 << 20);
        // With equal shares for all connections the agent's would get one part in 17.
        let share = (all_read() - all_before) / (own_read() - own_before);
        assert!(share <= CROWD / 2, "the agent's part is one in {share}");
    });
}
