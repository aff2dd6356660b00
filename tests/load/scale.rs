//! Ten thousand streams in one process.

use std::io::{ErrorKind, Read};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use mio::{Events, Interest, Poll, Token};

use super::go_first;
use super::support::{Client, Gate, Relay, Upstream, pace, post, skipped};

/// Streams at most; the first of them are there to warm things up.
const MOST: usize = 10_000;
const FIRST: usize = 100;
/// Events of each stream, and the time between two.
const EVENTS: usize = 5;
const PACE: Duration = Duration::from_secs(5);
/// What it may take to open all streams.
const OPENING: Duration = Duration::from_secs(300);
/// What an event may take on its way, but for one of a hundred.
const DELAY: u64 = 50_000;

/// Raises this process's limit on open files, which the relay inherits; how many there may be.
fn raise_open_files(wanted: u64) -> u64 {
    let mut limit = libc::rlimit { rlim_cur: wanted, rlim_max: wanted };
    // SAFETY: the kernel reads and writes a struct that outlives the calls.
    unsafe {
        if libc::setrlimit(libc::RLIMIT_NOFILE, &limit) != 0 {
            libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit);
            limit.rlim_cur = limit.rlim_max.min(wanted);
            libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
        }
    }
    limit.rlim_cur
}

fn micros() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros() as u64
}

/// An event with its number and when it was sent, in a chunk; all are of one length.
fn event(number: usize) -> String {
    let event = format!("event: e\ndata: {number:04} {:020}\n\n", micros());
    format!("{:x}\r\n{event}\r\n", event.len())
}

/// Reads all streams to their ends; how long each event took.
fn delays(clients: Vec<Client>) -> Vec<u64> {
    go_first(0);
    let mut poll = Poll::new().unwrap();
    let mut events = Events::with_capacity(1_024);
    let mut streams: Vec<(TcpStream, Vec<u8>)> = Vec::new();
    for (n, client) in clients.into_iter().enumerate() {
        client.stream.set_nonblocking(true).unwrap();
        let mut stream = mio::net::TcpStream::from_std(client.stream);
        poll.registry().register(&mut stream, Token(n), Interest::READABLE).unwrap();
        streams.push((stream.into(), client.buffer));
    }
    let size = event(0).len();
    let (mut delays, mut open, mut buffer) = (Vec::new(), streams.len(), [0; 4_096]);
    let start = Instant::now();
    while open > 0 {
        assert!(start.elapsed() < PACE * (EVENTS as u32 + 6), "{open} streams do not end");
        poll.poll(&mut events, Some(PACE)).unwrap();
        for ready in &events {
            let (stream, seen) = &mut streams[ready.token().0];
            loop {
                match stream.read(&mut buffer) {
                    Ok(0) => panic!("a stream was cut off"),
                    Ok(n) => seen.extend(&buffer[..n]),
                    Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                    Err(e) => panic!("{e}"),
                }
            }
            let now = micros();
            while seen.len() >= size {
                let sent: Vec<u8> = seen.drain(..size).collect();
                let text = std::str::from_utf8(&sent).unwrap();
                let at = text.rsplit(' ').next().unwrap().trim_end();
                delays.push(now.saturating_sub(at.parse().unwrap()));
            }
            open -= usize::from(*seen == b"0\r\n\r\n");
        }
    }
    delays
}

#[test]
#[ignore = "measures a release build"]
fn ten_thousand_streams_cost_ten_times_what_a_thousand_do_and_wait_for_nothing() {
    // The relay needs two for a stream, this process two in tables of their own.
    let files = raise_open_files(2 * MOST as u64 + 200) as usize;
    let most = MOST.min(files.saturating_sub(200) / 2);
    if most < MOST * 9 / 10 {
        skipped(&format!("{files} open files are not enough"));
        return;
    }
    let (begin, begun) = Gate::pair();
    let upstream = Upstream::tls(move |peer| {
        peer.request().unwrap();
        peer.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        begun.wait_within(OPENING).expect("all streams are open by then");
        // Spread over the time between two events of one stream.
        pace(PACE * (peer.number % 1_000) as u32 / 1_000);
        for number in 0..EVENTS {
            peer.write(event(number));
            pace(PACE);
        }
        peer.write("0\r\n\r\n");
        peer.request();
    });
    let limit = most.to_string();
    let mut delays = thread::scope(|scope| {
        let clients = scope.spawn(|| {
            // SAFETY: no memory is involved; this thread's descriptors become its own.
            assert_eq!(unsafe { libc::unshare(libc::CLONE_FILES) }, 0);
            let relay = Relay::to(&upstream.url()).args(["--max-connections", &limit]).start();
            go_first(relay.pid());
            let mut clients: Vec<Client> = Vec::new();
            let streams = [FIRST, FIRST + MOST / 10, most];
            let memory = streams.map(|streams| {
                while clients.len() < streams {
                    let mut client = relay.connect();
                    client.send(post("", "{}")).head();
                    clients.push(client);
                }
                relay.memory("VmRSS") * 1_024
            });
            let each = |n: usize| (memory[n] - memory[0]) / (streams[n] - FIRST);
            println!("{} bytes for a stream at {}, {} at {most}", each(1), streams[1], each(2));
            let ratio = each(2) as f64 / each(1) as f64;
            assert!((0.9..1.1).contains(&ratio), "memory grows by {ratio:.2}");

            (0..most).for_each(|_| begin.signal());
            delays(clients)
        });
        clients.join().unwrap()
    });
    assert_eq!(delays.len(), most * EVENTS);
    delays.sort();
    let [p50, p99] = [50, 99].map(|percent| delays[delays.len() * percent / 100]);
    println!("{} events took {p50} µs; 99 of 100 no more than {p99}", delays.len());
    assert!(p99 < DELAY, "one of a hundred events takes more than {p99} µs");
}
