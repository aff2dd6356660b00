//! The first request on a slow link: two network namespaces, joined by packets that this process
//! carries from one to the other, half of the round trip later. (`tc netem` would do that too, but
//! many kernels come without it.)

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::process::Command;
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use super::support::upstream::{FAR, Kind};
use super::support::{Client, Relay, Upstream, certs, ok, pace, post, quiet, skipped};

/// The other end of the link, see [`FAR`].
const NEAR: &str = "192.0.2.1";
const ROUND_TRIP: Duration = Duration::from_millis(30);
/// A round trip on which buffers count: a connection carries its window once for each.
const LONG_ROUND_TRIP: Duration = Duration::from_millis(100);
/// Bytes of a large body.
const MUCH: usize = 32 << 20;

fn check(result: i32) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Gives the calling thread a network of its own; what is sent to the other end comes out of the
/// file.
fn network(address: &str, peer: &str) -> io::Result<File> {
    // SAFETY: no memory is involved.
    check(unsafe { libc::unshare(libc::CLONE_NEWNET) })?;
    let tunnel = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
    // `struct ifreq`: a name and flags.
    let mut request = [0_u8; 40];
    request[..4].copy_from_slice(b"tun0");
    let flags = (libc::IFF_TUN | libc::IFF_NO_PI) as u16;
    request[16..18].copy_from_slice(&flags.to_ne_bytes());
    // SAFETY: the kernel reads and writes a struct that outlives the call.
    check(unsafe { libc::ioctl(tunnel.as_raw_fd(), libc::TUNSETIFF as _, request.as_mut_ptr()) })?;
    for words in [
        "link set lo up".to_owned(),
        format!("address add {address} peer {peer} dev tun0"),
        // No packet may be lost: a tunnel's queue holds 500 otherwise.
        "link set tun0 txqueuelen 50000 up".to_owned(),
    ] {
        let done = Command::new("ip").args(words.split(' ')).status()?;
        assert!(done.success(), "ip {words}");
    }
    Ok(tunnel)
}

/// Carries packets one way, as long as this process lives.
fn carry(mut from: File, mut to: File, delay: Duration) {
    let (tell, told) = channel::<(Instant, Vec<u8>)>();
    thread::spawn(move || {
        let mut packet = vec![0; 65_536];
        while let Ok(n) = from.read(&mut packet) {
            let due = Instant::now() + delay;
            if tell.send((due, packet[..n].to_vec())).is_err() {
                return;
            }
        }
    });
    thread::spawn(move || {
        for (due, packet) in told {
            pace(due.saturating_duration_since(Instant::now()));
            let _ = to.write_all(&packet);
        }
    });
}

/// Makes a link between the calling thread and an upstream. The upstream ends the connection after
/// its response if the request says so.
fn slow_link(round_trip: Duration) -> io::Result<Upstream> {
    let far = || {
        let tunnel = network(FAR, NEAR)?;
        let config = certs().config(Kind::Good, rustls::ALL_VERSIONS);
        let upstream = Upstream::on(TcpListener::bind((FAR, 0))?, Some(config), |peer| {
            while let Some(request) = peer.request() {
                if request.body == b"much" {
                    peer.write(ok(&"a".repeat(MUCH)));
                    continue;
                }
                if request.body == b"close" {
                    peer.write("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
                    return peer.close();
                }
                peer.write(ok(if peer.resumed { "resumed" } else { "full" }));
            }
        });
        Ok::<_, io::Error>((tunnel, upstream))
    };
    let (far, upstream) = thread::spawn(far).join().unwrap()?;
    let near = network(NEAR, FAR)?;
    carry(near.try_clone()?, far.try_clone()?, round_trip / 2);
    carry(far, near, round_trip / 2);
    Ok(upstream)
}

/// From sending a request to its response.
fn time(client: &mut Client, kind: &str) -> Duration {
    let start = Instant::now();
    assert_eq!(client.send(post("", "{}")).response().text(), kind);
    start.elapsed()
}

/// The best of three, each with a relay of its own, whose client connects and says nothing for a
/// while.
fn first(url: &str, pause: Duration) -> Duration {
    let attempts = (0..3).map(|_| {
        let relay = Relay::to(url).start();
        let mut client = relay.connect();
        assert!(quiet(&client.stream, pause));
        time(&mut client, "full")
    });
    attempts.min().unwrap()
}

fn measure() -> io::Result<()> {
    let upstream = slow_link(ROUND_TRIP)?;
    let url = format!("https://{FAR}:{}/v1/responses", upstream.port);
    println!("a round trip takes {ROUND_TRIP:?}; first response after the request was sent:");
    let took: Vec<Duration> = [0, 30, 60, 100, 200]
        .map(|pause| {
            let pause = Duration::from_millis(pause);
            let took = first(&url, pause);
            println!("{took:8.1?} when the client connected {pause:?} before");
            took
        })
        .into();

    let relay = Relay::to(&url).start();
    let mut client = relay.connect();
    time(&mut client, "full");
    let kept = (0..3).map(|_| time(&mut client, "full")).min().unwrap();
    println!("{kept:8.1?} on a connection that is kept");
    client.send(post("", "close")).response();
    // TLS 1.3 saves the certificate by a ticket, and a round trip only with early data, which could
    // be replayed and is not used.
    let resumed = time(&mut client, "resumed");
    println!("{resumed:8.1?} on a new connection that resumes a session");

    assert!(took[0] >= ROUND_TRIP * 3, "the link is not slow: {:?}", took[0]);
    assert!(took[4] < ROUND_TRIP * 2, "connecting was not over: {:?}", took[4]);
    assert!(kept < ROUND_TRIP * 2 && resumed >= ROUND_TRIP * 3);
    Ok(())
}

#[test]
#[ignore = "needs network namespaces"]
fn a_first_request_on_a_slow_link_takes_one_round_trip() {
    // On a thread of its own, since its network is no longer that of the process.
    if let Err(error) = thread::spawn(measure).join().unwrap() {
        skipped(&format!("no slow link can be made here: {error}"));
    }
}

/// The buffers towards clients are small and of fixed size; those towards the upstream are not.
fn measure_throughput() -> io::Result<[Duration; 2]> {
    let upstream = slow_link(LONG_ROUND_TRIP)?;
    let relay = Relay::to(&format!("https://{FAR}:{}/v1/responses", upstream.port)).start();
    let mut client = relay.connect();
    let ways = [("response", "much".to_owned()), ("upload", "b".repeat(MUCH))];
    Ok(ways.map(|(what, body)| {
        let start = Instant::now();
        let response = client.send(post("", &body)).response();
        let took = start.elapsed();
        assert_eq!(response.status, 200);
        println!("{what} of {} MiB over {LONG_ROUND_TRIP:?}: {took:.1?}", MUCH >> 20);
        took
    }))
}

#[test]
#[ignore = "needs network namespaces"]
fn the_delay_of_a_long_way_to_the_upstream_does_not_bound_throughput() {
    // With the window of a fixed buffer of 208 KiB, either way would take 16 s.
    let most = LONG_ROUND_TRIP * (MUCH >> 20) as u32 * 2;
    let mut best = [Duration::MAX; 2];
    // Where other work holds a link up, packets are lost, which costs a connection its pace for
    // long: each attempt has links of its own.
    for _ in 0..3 {
        match thread::spawn(measure_throughput).join().unwrap() {
            Ok(took) => best = [0, 1].map(|way| best[way].min(took[way])),
            Err(error) => {
                skipped(&format!("no slow link can be made here: {error}"));
                return;
            }
        }
        if best.iter().all(|took| *took < most) {
            return;
        }
    }
    panic!("{best:.1?} for response and upload: less than 1 MiB for each two round trips");
}
