//! The parts that all tests use: the real program, real upstreams, clients that send raw bytes.

pub mod client;
pub mod gate;
pub mod port;
pub mod relay;
pub mod skip;
pub mod upstream;
pub mod watchdog;

use std::io::Read;
use std::net::TcpStream;
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

/// The longest time that one step of a test may take. A longer step fails the test.
pub const DEADLINE: Duration = Duration::from_secs(20);

pub use client::{Client, End, Response, body, post};
pub use gate::Gate;
pub use relay::Relay;
#[allow(unused_imports, reason = "not every crate of tests needs both")]
pub use skip::{needs_root, skipped};
pub use upstream::{Peer, Request, Upstream, certs};

/// Sets the usual umask before the first test runs: relays and connectors of other users read files
/// that the tests make, and a file that others may write to is refused.
#[used]
#[unsafe(link_section = ".init_array")]
static USUAL_UMASK: extern "C" fn() = usual_umask;

extern "C" fn usual_umask() {
    // SAFETY: no memory is involved.
    unsafe { libc::umask(0o022) };
}

/// Waits for this event of poll(2), or for the end of the connection, for at most `within`. Returns
/// whether either came.
pub fn comes(on: &impl AsFd, event: i16, within: Duration) -> bool {
    let mut on = libc::pollfd { fd: on.as_fd().as_raw_fd(), events: event, revents: 0 };
    // SAFETY: the kernel fills one struct that outlives the call.
    unsafe { libc::poll(&mut on, 1, within.as_millis() as i32) == 1 }
}

/// Waits for this time. Returns true if nothing came, and false as soon as bytes or the end come.
pub fn quiet(stream: &TcpStream, time: Duration) -> bool {
    !comes(stream, libc::POLLIN, time)
}

/// Reads until this text has come. Returns all bytes read; `None` if the end comes first.
pub fn read_until(from: &mut (impl Read + AsFd), text: &str) -> Option<Vec<u8>> {
    let (mut seen, mut byte) = (Vec::new(), [0]);
    while !seen.ends_with(text.as_bytes()) {
        assert!(comes(from, libc::POLLIN, DEADLINE), "{text:?} does not come");
        if from.read(&mut byte).unwrap() == 0 {
            return None;
        }
        seen.push(byte[0]);
    }
    Some(seen)
}

/// Checks a condition every 2 ms until it holds. This is only for the state of other processes and
/// of the kernel, whose changes cause no event.
#[track_caller]
pub fn wait_for(done: impl Fn() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < DEADLINE, "it does not become so");
        pace(Duration::from_millis(2));
    }
}

/// Makes the stream end its connection with a reset when it is dropped. The connection then leaves
/// no TIME_WAIT state on this side.
pub fn reset_on_close(stream: &TcpStream) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    let (value, size) = (std::ptr::from_ref(&linger).cast(), size_of_val(&linger) as u32);
    // SAFETY: the kernel reads a struct that outlives the call.
    let set = unsafe {
        libc::setsockopt(stream.as_raw_fd(), libc::SOL_SOCKET, libc::SO_LINGER, value, size)
    };
    assert_eq!(set, 0);
}

/// Resets the connection now. A drop may come later: until a child that another test starts at this
/// moment runs its program, the child has a copy of each descriptor.
pub fn reset_now(stream: &TcpStream) {
    let nothing = libc::sockaddr { sa_family: libc::AF_UNSPEC as u16, sa_data: [0; 14] };
    let (address, size) = (std::ptr::from_ref(&nothing), size_of_val(&nothing) as u32);
    // SAFETY: the kernel reads an address that outlives the call.
    assert_eq!(unsafe { libc::connect(stream.as_raw_fd(), address, size) }, 0);
}

/// Sleeps. This is only for cases in which time itself matters and no event can replace it: the
/// pace of a load, a slow link, the interval between two checks.
pub fn pace(time: Duration) {
    std::thread::sleep(time);
}

/// A 200 response with this body and its Content-Length.
pub fn ok(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

/// Bytes that differ from position to position; none is 0.
pub fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i as u32).wrapping_mul(2_654_435_761).to_be_bytes()[0] | 1).collect()
}
